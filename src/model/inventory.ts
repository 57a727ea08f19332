// What a guest has installed, as the agent reports it or the disk shows it.
import { type Static, Type } from 'typebox';
import { INVENTORY_PRODUCTS_MAX, NAME_CHARS_MAX } from '../base/limits.ts';
import { DigestSchema } from './digest-schema.ts';
import { DriveFrontEndSchema } from './drive.ts';
import { BootIdSchema } from './ids.ts';

const name = Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX });

/** Who counts the versions: a TUF bundle, Debian's dpkg, or our own agent. */
export const EcosystemSchema = Type.Union([Type.Literal('bundle'), Type.Literal('debian'), Type.Literal('agent')]);
export type Ecosystem = Static<typeof EcosystemSchema>;

export const InstalledProductSchema = Type.Object(
  {
    ecosystem: EcosystemSchema,
    product: name,
    version: name,
    /** Debian's architecture of the package; absent for bundles that have none. */
    arch: Type.Optional(name),
    /** `broken`: half-installed, or its files do not match what was unpacked. */
    state: Type.Union([Type.Literal('installed'), Type.Literal('broken')]),
    /** Debian source package and its version where they differ from the binary's. */
    source: Type.Optional(name),
    /** Debian: selection state `hold`. */
    held: Type.Optional(Type.Boolean()),
  },
  { additionalProperties: false },
);
export type InstalledProduct = Static<typeof InstalledProductSchema>;

export const OsSchema = Type.Object(
  {
    /** ID of os-release: `debian`, `tiny`. */
    id: name,
    versionId: Type.String({ maxLength: NAME_CHARS_MAX }),
    codename: Type.Optional(name),
    /** Debian's word for the architecture: amd64, arm64. */
    arch: name,
    /** `uname -r` of the running kernel; absent when read from a switched-off disk. */
    kernel: Type.Optional(name),
    /** The version of the Debian package the running kernel was built as, by its own word; absent where it has none. */
    kernelVersion: Type.Optional(name),
  },
  { additionalProperties: false },
);
export type Os = Static<typeof OsSchema>;

export const AppliedConfigSchema = Type.Object(
  {
    item: name,
    version: name,
    /** Somebody changed in the guest what the item had set; absent: it is as it was applied. */
    state: Type.Optional(Type.Literal('changed')),
  },
  { additionalProperties: false },
);
export type AppliedConfig = Static<typeof AppliedConfigSchema>;

export const InventorySchema = Type.Object(
  {
    os: OsSchema,
    products: Type.Array(InstalledProductSchema, { maxItems: INVENTORY_PRODUCTS_MAX }),
    /** Applied configuration items and their versions. */
    config: Type.Array(AppliedConfigSchema, { maxItems: 1000 }),
    agent: Type.Object(
      { version: name, digest: Type.Union([DigestSchema, Type.Null()]) },
      { additionalProperties: false },
    ),
    /** What the guest can do, so that the host chooses a drive front-end and refuses what cannot be unpacked. */
    abilities: Type.Object(
      {
        drives: Type.Array(DriveFrontEndSchema, { maxItems: 8 }),
        compressions: Type.Array(Type.Union([Type.Literal('none'), Type.Literal('gzip'), Type.Literal('zstd')]), {
          maxItems: 8,
        }),
        /** Whether this agent knows `health` in `ask-confirm`; absent: it does not. */
        healthChecks: Type.Optional(Type.Boolean()),
        /** Whether this agent knows `config` in a manifest; absent: it does not. */
        config: Type.Optional(Type.Boolean()),
      },
      { additionalProperties: false },
    ),
    /** Free bytes where software is installed. */
    freeBytes: Type.Integer({ minimum: 0 }),
    rebootRequired: Type.Boolean(),
    /** What the agent recorded at the last shutdown; null on the first boot or after a crash that left none. */
    lastShutdown: Type.Union([
      Type.Null(),
      Type.Object(
        {
          boot: BootIdSchema,
          wallTimeMs: Type.Integer({ minimum: 0 }),
          products: Type.Array(InstalledProductSchema, { maxItems: INVENTORY_PRODUCTS_MAX }),
          /** Configuration applied then; absent from agents that know none. */
          config: Type.Optional(Type.Array(AppliedConfigSchema, { maxItems: 1000 })),
        },
        { additionalProperties: false },
      ),
    ]),
  },
  { additionalProperties: false },
);
export type Inventory = Static<typeof InventorySchema>;

/** The key under which a product's version is compared: ecosystem, name and, where it matters, architecture. */
export function productKey(product: Pick<InstalledProduct, 'ecosystem' | 'product' | 'arch'>): string {
  return `${product.ecosystem}/${product.product}${product.arch === undefined ? '' : `:${product.arch}`}`;
}
