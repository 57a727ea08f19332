// Schemas of licenses on the API; the types of licenses-service.ts are their other half, and the compiler compares the two.
import { type Static, type TSchema, Type } from 'typebox';
import { LICENSE_ORIGINS_MAX, LICENSE_TENANTS_MAX, LICENSE_TOKEN_BYTES_MAX } from '../src/base/limits.ts';
import { VmIdSchema } from '../src/model/ids.ts';
import { LicenseIdSchema } from '../src/model/license.ts';
import type { LeaseView, LicenseDefinition, LicenseUse, LicenseView } from './licenses-service.ts';

const strict = { additionalProperties: false } as const;
const count = Type.Integer({ minimum: 0 });
const wallMs = Type.Integer({ description: 'Milliseconds since 1970-01-01 UTC' });
const nullable = <S extends TSchema>(schema: S) => Type.Union([schema, Type.Null()]);
const text = (maxLength: number) => Type.String({ minLength: 1, maxLength });
/** Without user, password, query and fragment: a URL is shown and logged, a credential must not be. */
const url = Type.String({ minLength: 8, maxLength: 2048, pattern: '^https?://[^\\s/?#@]+(/[^\\s?#]*)?$' });
const PEM_CHARS_MAX = 65_536;

/** A tenant's name. */
export const TenantSchema = Type.String({
  minLength: 1,
  maxLength: 64,
  pattern: '^[a-z0-9][a-z0-9._-]{0,63}$',
  description: 'Who the VM belongs to; seats and use are metered by it',
});

const kind = Type.Union([Type.Literal('pratique'), Type.Literal('keygen')]);
export const LicenseDefinitionSchema = Type.Object(
  {
    license: LicenseIdSchema,
    kind,
    serverUrl: url,
    serverName: Type.Optional(text(128)),
    publicKey: Type.String({ maxLength: PEM_CHARS_MAX }),
    ca: Type.Optional(text(PEM_CHARS_MAX)),
    origins: Type.Array(Type.String({ minLength: 8, maxLength: 300 }), { maxItems: LICENSE_ORIGINS_MAX }),
    header: Type.Optional(text(64)),
    tenants: Type.Array(TenantSchema, { maxItems: LICENSE_TENANTS_MAX }),
    isLab: Type.Optional(Type.Boolean()),
  },
  strict,
);

/** Comes in, never goes out. */
export const TokenSchema = Type.String({
  minLength: 1,
  maxLength: LICENSE_TOKEN_BYTES_MAX,
  description: 'Never shown again',
});
export const LicenseActorSchema = Type.String({
  minLength: 1,
  maxLength: 100,
  description: 'Who decides; goes into the audit record',
});

export const LicenseViewSchema = Type.Object(
  {
    license: Type.String(),
    kind,
    serverUrl: Type.String(),
    origins: Type.Array(Type.String()),
    tenants: Type.Array(Type.String()),
    token: nullable(
      Type.Object(
        {
          lastFour: Type.String(),
          sealedBy: Type.Union([Type.Literal('systemd-creds'), Type.Literal('key-file')]),
          addedAtMs: wallMs,
          warning: nullable(Type.String()),
        },
        strict,
      ),
    ),
    said: nullable(
      Type.Object(
        {
          code: Type.String(),
          isValid: Type.Boolean(),
          detail: Type.String(),
          seats: nullable(Type.Object({ used: count, total: count }, strict)),
          expiresAtMs: nullable(wallMs),
          atMs: wallMs,
        },
        { ...strict, description: 'What its server said last' },
      ),
    ),
    trouble: nullable(Type.String({ description: 'Why its server could not be asked' })),
    ended: nullable(Type.String({ description: 'The explicit word that ended it' })),
    held: count,
    waiting: count,
  },
  strict,
);

const oneOf = <Word extends string>(...words: readonly Word[]) =>
  Type.Unsafe<Word>(Type.Union(words.map((word) => Type.Literal(word))));
export const LeaseViewSchema = Type.Object(
  {
    license: Type.String(),
    vm: VmIdSchema,
    tenant: Type.String(),
    state: oneOf('asking', 'held', 'releasing', 'refused', 'ended'),
    standing: nullable(oneOf('valid', 'grace', 'over')),
    code: Type.String(),
    seat: nullable(Type.String()),
    grantedAtMs: nullable(wallMs),
    expiresAtMs: nullable(wallMs),
    usedAtMs: wallMs,
  },
  strict,
);

export const LicenseUseSchema = Type.Object(
  {
    tenant: Type.String(),
    license: Type.String(),
    vm: VmIdSchema,
    seatHours: Type.Number(),
    fetches: count,
    bytes: count,
  },
  strict,
);

type Same<A, B> = A extends B ? (keyof A extends keyof B ? true : never) : never;
type Loose<T> = T extends readonly (infer I)[]
  ? readonly Loose<I>[]
  : T extends string
    ? T
    : T extends object
      ? { readonly [K in keyof T]: Loose<T[K]> }
      : T;

/** Does not compile when a type and its schema part: the serializer would drop or refuse a field. */
export const SCHEMAS_CARRY_LICENSES: readonly [
  Same<Loose<LicenseView>, Loose<Static<typeof LicenseViewSchema>>>,
  Same<Loose<LeaseView>, Loose<Static<typeof LeaseViewSchema>>>,
  Same<Loose<LicenseUse>, Loose<Static<typeof LicenseUseSchema>>>,
  Same<Loose<Static<typeof LicenseDefinitionSchema>>, Loose<LicenseDefinition>>,
] = [true, true, true, true];
