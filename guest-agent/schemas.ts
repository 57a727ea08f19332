// The shapes of everything the agent reads: host messages, manifests, its own state. This is the only file of the agent
// that needs typebox; the build evaluates it and puts plain JSON in its place, so the executable carries no typebox.
import { type Static, type TSchema, Type } from 'typebox';
import type { JsonSchema } from '../src/base/json-shape.ts';
import { AGENT_PRODUCTS_MAX, NAME_CHARS_MAX } from '../src/base/limits.ts';
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

export type { BootRecord, ProductRecord, RunRecord, ShutdownRecord };
export type BundleJournal = Static<typeof BundleJournalSchema>;
export type RebootRecord = Static<typeof RebootRecordSchema>;
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
};
