// The shapes of everything the agent reads: host messages, manifests, its own state. This is the only file of the agent
// that needs typebox; the build evaluates it and puts plain JSON in its place, so the executable carries no typebox.
import { type Static, type TSchema, Type } from 'typebox';
import type { JsonSchema } from '../src/base/json-shape.ts';
import { AGENT_PRODUCTS_MAX, NAME_CHARS_MAX, PLAN_ITEMS_MAX } from '../src/base/limits.ts';
import { CHANNEL_PORT_NAME, HOST_MESSAGES, NO_SESSION_NONCE, PROTOCOL_VERSIONS } from '../src/guest/messages.ts';
import { DigestSchema } from '../src/model/digest-schema.ts';
import { BootIdSchema, RunIdSchema, VmIdSchema } from '../src/model/ids.ts';
import { InventorySchema } from '../src/model/inventory.ts';
import { ManifestSchema } from '../src/model/manifest.ts';
import { ItemResultSchema } from '../src/model/result.ts';

const strict = { additionalProperties: false } as const;
const name = Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX });
const path = Type.String({
  minLength: 2,
  maxLength: 1024,
  pattern: '^/(?!.*(^|/)\\.\\.?(/|$))[^\\u0000-\\u001f\\\\]+$',
});

/** `<state>/run.json`: the run this guest is in, or was in last. */
const RunRecordSchema = Type.Object(
  {
    run: RunIdSchema,
    vm: VmIdSchema,
    planDigest: DigestSchema,
    manifestDigest: DigestSchema,
    /** Whether every item of this manifest has its result. */
    isFinished: Type.Boolean(),
    /** Of the items done so far, in the order they were done. */
    results: Type.Array(ItemResultSchema, { maxItems: PLAN_ITEMS_MAX }),
    /** Of earlier manifests of the same run. */
    earlier: Type.Array(ItemResultSchema, { maxItems: PLAN_ITEMS_MAX }),
  },
  strict,
);

/** `<state>/bundle.json`: a bundle whose folder exists but whose record does not name it yet. */
const BundleJournalSchema = Type.Object(
  {
    product: name,
    prefix: path,
    /** Name of the new folder under `<prefix>/versions`. */
    folder: name,
    /** What `<prefix>/current` pointed at before; null if there was no such link. */
    previous: Type.Union([Type.String({ minLength: 1, maxLength: 4096 }), Type.Null()]),
  },
  strict,
);

/** `<state>/products/<product>.json`: what is installed from bundles. Guest images come with such records too. */
const ProductRecordSchema = Type.Object({
  product: name,
  version: name,
  prefix: path,
  /** Digest of the artifact it came from. */
  digest: Type.Optional(Type.Union([DigestSchema, Type.Null()])),
  /** Folder under `<prefix>/versions`; the version if absent. */
  folder: Type.Optional(name),
  /** Folder of the version before, kept for a rollback. */
  previousFolder: Type.Optional(Type.Union([name, Type.Null()])),
});

const lastShutdown = Type.Union([Type.Null(), InventorySchema.properties.lastShutdown.anyOf[1]]);

/** `<state>/boot.json`: the present boot, and what was recorded when the one before it ended. */
const BootRecordSchema = Type.Object({ boot: BootIdSchema, lastShutdown }, strict);
/** `<state>/shutdown.json`: what was installed when the boot ended. */
const ShutdownRecordSchema = InventorySchema.properties.lastShutdown.anyOf[1];
/** `<state>/reboot.json`: the boot in which something was installed that needs another one. */
const RebootRecordSchema = Type.Object({ boot: BootIdSchema }, strict);

export type RunRecord = Static<typeof RunRecordSchema>;
export type BundleJournal = Static<typeof BundleJournalSchema>;
export type ProductRecord = Static<typeof ProductRecordSchema>;
export type BootRecord = Static<typeof BootRecordSchema>;
export type ShutdownRecord = Static<typeof ShutdownRecordSchema>;
export type RebootRecord = Static<typeof RebootRecordSchema>;

const plain = (schema: TSchema): JsonSchema => JSON.parse(JSON.stringify(schema));

/** Everything the build puts into the executable. */
export const EMBEDDED = {
  portName: CHANNEL_PORT_NAME,
  protocols: [...PROTOCOL_VERSIONS],
  noSessionNonce: NO_SESSION_NONCE,
  productsMax: AGENT_PRODUCTS_MAX,
  hostMessages: Object.fromEntries(Object.entries(HOST_MESSAGES).map(([type, schema]) => [type, plain(schema)])),
  manifest: plain(ManifestSchema),
  runRecord: plain(RunRecordSchema),
  bundleJournal: plain(BundleJournalSchema),
  productRecord: plain(ProductRecordSchema),
  bootRecord: plain(BootRecordSchema),
  shutdownRecord: plain(ShutdownRecordSchema),
  rebootRecord: plain(RebootRecordSchema),
};
