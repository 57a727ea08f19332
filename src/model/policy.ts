// What the operator decided for one VM.
import { type Static, Type } from 'typebox';

export const PolicySchema = Type.Object(
  {
    /** Which missing updates a run installs before it opens the gate. */
    install: Type.Union([Type.Literal('all'), Type.Literal('security')]),
    allowReboot: Type.Boolean(),
    /**
     * The VM may carry the host's own way to the vendors (router, DNS): when no vendor can be reached it is admitted as
     * it is, and the audit record says so. Never the default.
     */
    infrastructure: Type.Boolean(),
    /** Names of the vendors that must have been checked; empty: every configured one that fits the VM's OS. */
    vendors: Type.Array(Type.String({ maxLength: 64 }), { maxItems: 100 }),
    /** How old verified vendor metadata may be, in milliseconds, before "up to date" is no longer believed. */
    metadataAgeMaxMs: Type.Integer({ minimum: 60_000 }),
  },
  { additionalProperties: false },
);
export type Policy = Static<typeof PolicySchema>;

export const DEFAULT_POLICY: Policy = {
  install: 'all',
  allowReboot: true,
  infrastructure: false,
  vendors: [],
  metadataAgeMaxMs: 24 * 60 * 60 * 1000,
};
