// What a host and a license server say to each other, in our own words (docs/license-api.md): both ends take their schemas from here.
import { type Static, type TObject, type TProperties, Type } from 'typebox';
import { FREE_TEXT_CHARS_MAX, LICENSE_REVOCATIONS_PAGE_MAX } from '../base/limits.ts';
import { LeaseSchema, LicenseCodeSchema, LicenseIdSchema } from '../model/license.ts';

/** DSSE payload type of every answer: no other signed document of ours passes for one. */
export const ANSWER_TYPE = 'application/vnd.pratique.license-answer+json';
export const ANSWER_FORMAT = 'pratique.license/1';

const strict = { additionalProperties: false } as const;
const atMs = Type.Integer({ minimum: 0, maximum: 8_640_000_000_000_000 });
const serial = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const leaseId = LeaseSchema.properties.id;
/** Drawn anew by the host for every request: 128 bits in hex. */
const nonce = Type.String({ pattern: '^[0-9a-f]{32}$' });
/** Names a VM to this server and to nobody else. */
export const FingerprintSchema = Type.String({ pattern: '^[A-Za-z0-9._:-]{16,128}$' });
const durationMs = Type.Integer({ minimum: 1_000, maximum: 366 * 24 * 60 * 60_000 });

const asked = { nonce, license: LicenseIdSchema };
export const ValidateRequestSchema = Type.Object(asked, strict);
export const LeaseRequestSchema = Type.Object({ ...asked, fingerprint: FingerprintSchema, durationMs }, strict);
export const ReleaseRequestSchema = Type.Object(asked, strict);
export const RevocationsRequestSchema = Type.Object({ ...asked, since: serial }, strict);
export type LeaseRequest = Static<typeof LeaseRequestSchema>;

const SeatsSchema = Type.Object({ used: Type.Integer({ minimum: 0 }), total: Type.Integer({ minimum: 0 }) });

/** What every answer says. Fields that are not listed are passed over: a later server may say more. */
const said = {
  format: Type.Literal(ANSWER_FORMAT),
  nonce,
  license: LicenseIdSchema,
  issuedAtMs: atMs,
  expiresAtMs: atMs,
};
const verdict = {
  valid: Type.Boolean(),
  code: LicenseCodeSchema,
  detail: Type.String({ maxLength: FREE_TEXT_CHARS_MAX }),
  seats: Type.Union([SeatsSchema, Type.Null()]),
  licenseExpiresAtMs: Type.Union([atMs, Type.Null()]),
};
const SeatSchema = Type.Object({
  id: leaseId,
  fingerprint: FingerprintSchema,
  grantedAtMs: atMs,
  expiresAtMs: atMs,
  offline: Type.Boolean(),
});
const RevocationSchema = Type.Object({
  serial,
  leaseId: Type.Union([leaseId, Type.Null()]),
  code: LicenseCodeSchema,
  atMs,
});

const answer = <K extends string, P extends TProperties>(kind: K, more: P) =>
  Type.Object({ kind: Type.Literal(kind), ...said, ...more });

/** The payload of each kind of answer. */
export const ANSWERS = {
  validation: answer('validation', verdict),
  lease: answer('lease', { ...verdict, lease: Type.Union([SeatSchema, Type.Null()]) }),
  release: answer('release', { leaseId, released: Type.Boolean(), code: LicenseCodeSchema }),
  revocations: answer('revocations', {
    code: LicenseCodeSchema,
    since: serial,
    serial,
    more: Type.Boolean(),
    revoked: Type.Array(RevocationSchema, { maxItems: LICENSE_REVOCATIONS_PAGE_MAX }),
  }),
} as const satisfies Record<string, TObject>;
export type AnswerKind = keyof typeof ANSWERS;
export type Answer<K extends AnswerKind> = Static<(typeof ANSWERS)[K]>;
export type AnyAnswer = { readonly [K in AnswerKind]: Answer<K> }[AnswerKind];

/** The server's words, each with what it says of a license. `VALID` is the only one that grants. */
export const SERVER_CODES = {
  VALID: 'is valid',
  /** A lease never reaches beyond that. */
  EXPIRED: 'has expired',
  SUSPENDED: 'is suspended',
  REVOKED: 'is revoked',
  /** No license of this name for this token. */
  NOT_FOUND: 'does not exist for this token',
  TOO_MANY_MACHINES: 'has no free seat',
  /** A lease to renew that the server does not know, or that is another fingerprint's: take one anew. */
  NO_MACHINE: 'does not know this lease',
  /** This machine's lease was revoked; the license and its other leases go on. */
  BANNED: 'may not be held by this machine',
  CHECKOUT_NOT_ALLOWED: 'may not be used without the server',
} as const;
export type ServerCode = keyof typeof SERVER_CODES;
