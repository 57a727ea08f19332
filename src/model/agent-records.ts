// What the guest agent keeps on its disk: written and read by the agent, and read by the host from a switched-off disk.
import { type Static, Type } from 'typebox';
import { NAME_CHARS_MAX, PLAN_ITEMS_MAX } from '../base/limits.ts';
import { DigestSchema } from './digest-schema.ts';
import { BootIdSchema, RunIdSchema, VmIdSchema } from './ids.ts';
import { InventorySchema } from './inventory.ts';
import { ItemResultSchema } from './result.ts';

const strict = { additionalProperties: false } as const;
const name = Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX });

/** Folder of the agent's durable state in the guest; the records below lie in it. */
export const AGENT_STATE_FOLDER = '/var/lib/pratique';

/** An absolute path in the guest that is normal and has no control characters. */
export const GuestPathSchema = Type.String({
  minLength: 2,
  maxLength: 1024,
  pattern: '^/(?!.*(^|/)\\.\\.?(/|$))[^\\u0000-\\u001f\\\\]+$',
});

/** `run.json`: the run this guest is in, or was in last. */
export const RunRecordSchema = Type.Object(
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

/** `products/<product>.json`: what is installed from bundles. Guest images come with such records too. */
export const ProductRecordSchema = Type.Object({
  product: name,
  version: name,
  prefix: GuestPathSchema,
  /** Digest of the artifact it came from. */
  digest: Type.Optional(Type.Union([DigestSchema, Type.Null()])),
  /** Folder under `<prefix>/versions`; the version if absent. */
  folder: Type.Optional(name),
  /** Folder of the version before, kept for a rollback. */
  previousFolder: Type.Optional(Type.Union([name, Type.Null()])),
  /** Its `check` entry, below its folder, and how long it may take; absent if it has none, or was installed by an older agent. */
  check: Type.Optional(Type.String({ minLength: 1, maxLength: 4096 })),
  checkTimeoutMs: Type.Optional(Type.Integer({ minimum: 1 })),
});

/** `shutdown.json`: what was installed when the boot ended. */
export const ShutdownRecordSchema = InventorySchema.properties.lastShutdown.anyOf[1];
/** `boot.json`: the present boot, and what was recorded when the one before it ended. */
export const BootRecordSchema = Type.Object(
  { boot: BootIdSchema, lastShutdown: Type.Union([Type.Null(), ShutdownRecordSchema]) },
  strict,
);

export type RunRecord = Static<typeof RunRecordSchema>;
export type ProductRecord = Static<typeof ProductRecordSchema>;
export type BootRecord = Static<typeof BootRecordSchema>;
export type ShutdownRecord = Static<typeof ShutdownRecordSchema>;
