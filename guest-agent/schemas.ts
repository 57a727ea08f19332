// The shapes of everything the agent reads: host messages, manifests, its own state. This is the only file of the agent
// that needs typebox; the build evaluates it and puts plain JSON in its place, so the executable carries no typebox.
import { type Static, type TSchema, Type } from 'typebox';
import type { JsonSchema } from '../src/base/json-shape.ts';
import { AGENT_PRODUCTS_MAX, CONFIG_FILES_MAX, CONFIG_ITEMS_MAX, NAME_CHARS_MAX } from '../src/base/limits.ts';
import { CHANNEL_PORT_NAME, HOST_MESSAGES, NO_SESSION_NONCE, PROTOCOL_VERSIONS } from '../src/guest/messages.ts';
import {
  type BootRecord,
  BootRecordSchema,
  GuestPathSchema,
  type ProductRecord,
  ProductRecordSchema,
  type RunRecord,
  RunRecordSchema,
  type ShutdownRecord,
  ShutdownRecordSchema,
} from '../src/model/agent-records.ts';
import { ConfigDriveFileSchema } from '../src/model/guest-config.ts';
import { BootIdSchema } from '../src/model/ids.ts';
import { ManifestSchema } from '../src/model/manifest.ts';

const strict = { additionalProperties: false } as const;
const name = Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX });

/** `<state>/bundle.json`: a bundle whose folder exists but whose record does not name it yet. */
const BundleJournalSchema = Type.Object(
  {
    product: name,
    prefix: GuestPathSchema,
    /** Name of the new folder under `<prefix>/versions`. */
    folder: name,
    /** What `<prefix>/current` pointed at before; null if there was no such link. */
    previous: Type.Union([Type.String({ minLength: 1, maxLength: 4096 }), Type.Null()]),
  },
  strict,
);

/** `<state>/reboot.json`: the boot in which something was installed that needs another one. */
const RebootRecordSchema = Type.Object({ boot: BootIdSchema }, strict);

/** `<state>/kernel.json`: the kernel for which this guest was restarted. */
const KernelRecordSchema = Type.Object({ tried: Type.String({ minLength: 1, maxLength: 600 }) }, strict);

const owned = {
  mode: Type.Integer({ minimum: 0 }),
  uid: Type.Integer({ minimum: 0 }),
  gid: Type.Integer({ minimum: 0 }),
};
const path = Type.String({ minLength: 2, maxLength: 4096 });
const linkName = Type.Union([Type.Null(), Type.String({ maxLength: 64 })]);

/** A step as it is done again when the files were put back (guest-agent/config/change.ts). */
const ConfigStepSchema = Type.Union([
  Type.Object({ do: Type.Literal('hostname'), name, before: Type.String({ maxLength: NAME_CHARS_MAX }) }, strict),
  Type.Object(
    {
      do: Type.Literal('network'),
      way: Type.Union([Type.Literal('networkd'), Type.Literal('network-manager'), Type.Literal('ifupdown')]),
      links: Type.Array(Type.Object({ mac: name, name: linkName, isDhcp: Type.Boolean() }, strict), { maxItems: 16 }),
    },
    strict,
  ),
  Type.Object({ do: Type.Union([Type.Literal('restart'), Type.Literal('reload')]), unit: name }, strict),
]);

/** `<state>/config/journal.json`: a set of configuration that may be half written, with all that it changes. */
const ConfigJournalSchema = Type.Object(
  {
    set: name,
    /** In the order in which they are written; the content before is in `previous/<index>`. */
    places: Type.Array(
      Type.Object(
        {
          path,
          kind: Type.Union([Type.Literal('absent'), Type.Literal('file'), Type.Literal('symlink')]),
          target: Type.Optional(Type.String({ maxLength: 4096 })),
          ...owned,
        },
        strict,
      ),
      { maxItems: CONFIG_FILES_MAX },
    ),
    /** Folders that are made for it, the outer ones first. */
    folders: Type.Array(path, { maxItems: CONFIG_FILES_MAX }),
    steps: Type.Array(ConfigStepSchema, { maxItems: CONFIG_FILES_MAX }),
  },
  strict,
);

/** `<state>/config/applied.json`: what is applied, and the set that was last. */
const ConfigRecordSchema = Type.Object(
  {
    set: Type.String({ maxLength: NAME_CHARS_MAX }),
    items: Type.Array(
      Type.Object(
        {
          item: name,
          version: name,
          files: Type.Array(
            Type.Object(
              {
                path,
                watch: Type.Union([Type.Literal('whole'), Type.Literal('lines'), Type.Literal('none')]),
                /** Of what is the item's in it; null where there is nothing to hold anything against. */
                digest: Type.Union([Type.String({ maxLength: 64 }), Type.Null()]),
                ...owned,
                /** Nothing was there before the item was applied for the first time. */
                wasAbsent: Type.Boolean(),
              },
              strict,
            ),
            { maxItems: CONFIG_FILES_MAX },
          ),
        },
        strict,
      ),
      { maxItems: 2 * CONFIG_ITEMS_MAX },
    ),
  },
  strict,
);

export type { BootRecord, ProductRecord, RunRecord, ShutdownRecord };
export type BundleJournal = Static<typeof BundleJournalSchema>;
export type RebootRecord = Static<typeof RebootRecordSchema>;
export type ConfigJournal = Static<typeof ConfigJournalSchema>;
export type ConfigRecord = Static<typeof ConfigRecordSchema>;
export type KernelRecord = Static<typeof KernelRecordSchema>;

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
  kernelRecord: plain(KernelRecordSchema),
  configFile: plain(ConfigDriveFileSchema),
  configJournal: plain(ConfigJournalSchema),
  configRecord: plain(ConfigRecordSchema),
};
