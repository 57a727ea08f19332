// What the guest says about each item of a manifest after trying to install it.
import { type Static, Type } from 'typebox';
import { NAME_CHARS_MAX, OUTPUT_TAIL_CHARS_MAX } from '../base/limits.ts';

export const ItemResultSchema = Type.Object(
  {
    item: Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX }),
    outcome: Type.Union([Type.Literal('installed'), Type.Literal('failed'), Type.Literal('skipped')]),
    /** Stable word for a failure: `digest-mismatch`, `no-space`, `install-failed`, `check-failed`, `timeout`, … */
    code: Type.Optional(Type.String({ maxLength: 64, pattern: '^[a-z][a-z0-9-]*$' })),
    exitCode: Type.Optional(Type.Integer({ minimum: -1, maximum: 255 })),
    /** The end of what the installer printed. */
    output: Type.Optional(Type.String({ maxLength: OUTPUT_TAIL_CHARS_MAX })),
    /** Whether the item's `check` entry ran and passed; absent if it has none. */
    checkPassed: Type.Optional(Type.Boolean()),
    durationMs: Type.Integer({ minimum: 0 }),
  },
  { additionalProperties: false },
);
export type ItemResult = Static<typeof ItemResultSchema>;
