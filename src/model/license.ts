// Licenses as every room names them: ids, verdicts in the field's vocabulary, leases. No token is ever here.
import { type Static, Type } from 'typebox';
import { LICENSE_CODE_CHARS_MAX, LICENSE_ID_CHARS_MAX } from '../base/limits.ts';
import { VmIdSchema } from './ids.ts';

export const LICENSE_ID_PATTERN = `^[a-z0-9][a-z0-9._-]{0,${LICENSE_ID_CHARS_MAX - 1}}$`;
/** A license's id on this host, which releases name: `acme-2026`. */
export const LicenseIdSchema = Type.String({ pattern: LICENSE_ID_PATTERN });

/** A server's word: VALID, EXPIRED, SUSPENDED, OVERDUE, BANNED, NO_MACHINE, TOO_MANY_MACHINES, HEARTBEAT_DEAD, NOT_FOUND … */
export const LicenseCodeSchema = Type.String({
  maxLength: LICENSE_CODE_CHARS_MAX,
  pattern: '^[A-Z][A-Z0-9_]{1,63}$',
});

/** Codes that end a license at once, whatever a lease says: an explicit word, never a network error. */
export const ENDING_CODES: ReadonlySet<string> = new Set(['SUSPENDED', 'REVOKED', 'BANNED', 'NOT_FOUND']);

/** One VM's seat of one license. */
export const LeaseSchema = Type.Object(
  {
    /** The server's id of it. */
    id: Type.String({ minLength: 1, maxLength: 128, pattern: '^[A-Za-z0-9._:-]+$' }),
    license: LicenseIdSchema,
    vm: VmIdSchema,
    grantedAtMs: Type.Integer({ minimum: 0 }),
    expiresAtMs: Type.Integer({ minimum: 0 }),
  },
  { additionalProperties: false },
);
export type Lease = Static<typeof LeaseSchema>;

/** What a server said of a license or a seat. */
export type Verdict = {
  readonly valid: boolean;
  readonly code: string;
  /** One sentence for people, stripped of control characters; never a token. */
  readonly detail: string;
  readonly seats: { readonly used: number; readonly total: number } | null;
  readonly expiresAtMs: number | null;
};
