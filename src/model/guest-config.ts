// What configuration a VM is to have: typed items, each with a version of its own. The host renders them, the agent applies them.
import { type Static, Type } from 'typebox';
import { CONFIG_FILE_CHARS_MAX, CONFIG_ITEM_BYTES_MAX, CONFIG_ITEMS_MAX, NAME_CHARS_MAX } from '../base/limits.ts';
import { DigestSchema } from './digest-schema.ts';
import { HealthChecksSchema } from './health.ts';
import { RunIdSchema, VmIdSchema } from './ids.ts';

const strict = { additionalProperties: false } as const;
const name = Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX });
/** Of an item, a user, a group: safe in paths and shell words. */
const word = Type.String({ minLength: 1, maxLength: 64, pattern: '^[A-Za-z0-9_][A-Za-z0-9_.@-]*$' });
const ipAddress = Type.String({ minLength: 2, maxLength: 45, pattern: '^[0-9A-Fa-f:.]+$' });
const cidr = Type.String({ minLength: 4, maxLength: 49, pattern: '^[0-9A-Fa-f:.]+/[0-9]{1,3}$' });
const hostName = Type.String({
  minLength: 1,
  maxLength: 253,
  pattern: '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$',
});
const unit = Type.String({ minLength: 1, maxLength: 200, pattern: '^[A-Za-z0-9][A-Za-z0-9@:._\\\\-]*$' });
/** An absolute path in the guest without dot components. */
const absolutePath = Type.String({
  minLength: 2,
  maxLength: 1024,
  pattern: '^(?!.*/\\.\\.?(/|$))/[^\\u0000-\\u001f\\\\]+$',
});

/** What is done after an item was written; typed, because the agent never runs a command that the host sends. */
export const ApplyStepSchema = Type.Union([
  Type.Object({ restart: unit }, strict),
  Type.Object({ reload: unit }, strict),
  /** The item takes effect at the next boot: the run reboots the VM where its policy allows it. */
  Type.Object({ reboot: Type.Literal(true) }, strict),
]);
export type ApplyStep = Static<typeof ApplyStepSchema>;

/** One network interface, found by its MAC address. */
export const InterfaceSchema = Type.Object(
  {
    mac: Type.String({ pattern: '^[0-9a-f]{2}(:[0-9a-f]{2}){5}$' }),
    dhcp4: Type.Optional(Type.Boolean()),
    dhcp6: Type.Optional(Type.Boolean()),
    addresses: Type.Optional(Type.Array(cidr, { maxItems: 64 })),
    gateway4: Type.Optional(ipAddress),
    gateway6: Type.Optional(ipAddress),
    dns: Type.Optional(Type.Array(ipAddress, { maxItems: 8 })),
    search: Type.Optional(Type.Array(hostName, { maxItems: 16 })),
    mtu: Type.Optional(Type.Integer({ minimum: 576, maximum: 65_535 })),
  },
  strict,
);
export type Interface = Static<typeof InterfaceSchema>;

/** A file of the guest. `base64` for what is not text. */
export const ConfigFileContentSchema = Type.Object(
  {
    path: absolutePath,
    content: Type.String({ maxLength: CONFIG_FILE_CHARS_MAX }),
    encoding: Type.Optional(Type.Literal('base64')),
    /** Octal, four digits; `0644` by default. */
    mode: Type.Optional(Type.String({ pattern: '^0[0-7]{3}$' })),
    owner: Type.Optional(word),
    group: Type.Optional(word),
  },
  strict,
);
export type ConfigFileContent = Static<typeof ConfigFileContentSchema>;

/** What an item sets. */
export const ConfigSettingSchema = Type.Union([
  Type.Object({ kind: Type.Literal('hostname'), hostname: hostName }, strict),
  Type.Object(
    { kind: Type.Literal('network'), interfaces: Type.Array(InterfaceSchema, { minItems: 1, maxItems: 16 }) },
    strict,
  ),
  Type.Object({ kind: Type.Literal('file'), file: ConfigFileContentSchema }, strict),
  /** The keys become the user's authorized keys of ours; what the user wrote there stays, unless `exclusive`. */
  Type.Object(
    {
      kind: Type.Literal('ssh-keys'),
      user: word,
      keys: Type.Array(
        Type.String({ minLength: 16, maxLength: 8192, pattern: '^(ssh-|ecdsa-|sk-)[^\\u0000-\\u001f]+$' }),
        { maxItems: 100 },
      ),
      exclusive: Type.Optional(Type.Boolean()),
    },
    strict,
  ),
  /** A product's own configuration: several files that change together. */
  Type.Object(
    {
      kind: Type.Literal('product'),
      product: name,
      files: Type.Array(ConfigFileContentSchema, { minItems: 1, maxItems: 200 }),
    },
    strict,
  ),
]);
export type ConfigSetting = Static<typeof ConfigSettingSchema>;

/** One item as a VM gets it: complete, no named value left in it. Its id in results is `config/<item>`. */
export const GuestConfigItemSchema = Type.Object(
  {
    item: word,
    /**
     * Made from the content with a key of this host (a plain digest of a short secret could be guessed back), behind the source's own
     * version where it has one: a change counts even if nobody raised that.
     */
    version: name,
    setting: ConfigSettingSchema,
    apply: Type.Optional(Type.Array(ApplyStepSchema, { maxItems: 16 })),
    /** What must work once the item is applied; otherwise the whole set is rolled back. */
    health: Type.Optional(HealthChecksSchema),
  },
  strict,
);
export type GuestConfigItem = Static<typeof GuestConfigItemSchema>;

/** What a plan says of an item: never its content, for plans are kept, recorded and shown. */
export const PlanConfigSchema = Type.Object(
  {
    item: word,
    version: name,
    /** The applied version, null when the item is new to the VM. */
    fromVersion: Type.Union([name, Type.Null()]),
    kind: Type.Enum(['hostname', 'network', 'file', 'ssh-keys', 'product']),
    reboot: Type.Boolean(),
  },
  strict,
);
export type PlanConfig = Static<typeof PlanConfigSchema>;

/** What the drive's manifest says of an item; the file holds a `ConfigDriveFile` in canonical JSON. */
export const ManifestConfigSchema = Type.Object(
  {
    item: word,
    version: name,
    path: Type.String({ maxLength: 1024, pattern: '^/config/[A-Za-z0-9._-]+\\.json$' }),
    digest: DigestSchema,
    sizeBytes: Type.Integer({ minimum: 0, maximum: CONFIG_ITEM_BYTES_MAX }),
  },
  strict,
);
export type ManifestConfig = Static<typeof ManifestConfigSchema>;

/** Applied items that are configured no longer: what Pratique made for them is taken away again. */
export const PlanConfigRemovedSchema = Type.Array(Type.Object({ item: word, version: name }, strict), {
  maxItems: 2 * CONFIG_ITEMS_MAX,
});
/** In a manifest their names are enough: the agent knows what it made. */
export const ManifestConfigRemovedSchema = Type.Array(word, { maxItems: 2 * CONFIG_ITEMS_MAX });

export const ManifestConfigsSchema = Type.Array(ManifestConfigSchema, { maxItems: CONFIG_ITEMS_MAX });
export const PlanConfigsSchema = Type.Array(PlanConfigSchema, { maxItems: CONFIG_ITEMS_MAX });

/** A file below `/config/` of a drive. The salt keeps the file's digest, which is logged, from telling a short secret. */
export const ConfigDriveFileSchema = Type.Object(
  {
    format: Type.Literal('pratique.config/1'),
    vm: VmIdSchema,
    run: RunIdSchema,
    salt: DigestSchema,
    item: GuestConfigItemSchema,
  },
  strict,
);
export type ConfigDriveFile = Static<typeof ConfigDriveFileSchema>;

/** The id of an item in results, evidence and messages. */
export function configItemId(item: string): string {
  return `config/${item}`;
}

/** Where the value of an item comes from, for `config show`. */
export type ConfigOrigin = {
  /** `file`: of this host; `server`: a signed document. */
  readonly source: 'file' | 'server';
  /** Path of the file with its line, or the document's URL with its serial. */
  readonly at: string;
  /** `default`, `group NAME`, `vm NAME`. */
  readonly layer: string;
};

/** The configuration of one VM, ready to be applied. */
export type ResolvedGuestConfig = {
  readonly items: readonly (GuestConfigItem & {
    readonly origin: ConfigOrigin;
    /** Whether a secret went into it: then it is shown with its secrets blanked. */
    readonly hasSecret: boolean;
  })[];
  /** What is wrong with the sources, one sentence each; a VM with trouble gets no plan. */
  readonly trouble: readonly string[];
  /** What is worth knowing: the server is away, and its last document counts. */
  readonly remarks: readonly string[];
};

/** Asked when a plan is made and again when its drive is built; null: nothing is configured for this VM. */
export type GuestConfigOf = (vm: string) => Promise<ResolvedGuestConfig | null>;

/** For people: what `config show` prints in the place of a secret. */
export const BLANKED = '(secret)';

/** Folders of the guest that no item writes: the kernel's, what is gone at the next boot, the agent's own records and dpkg's. */
const PROTECTED_GUEST_FOLDERS = [
  '/proc',
  '/sys',
  '/dev',
  '/run',
  '/var/run',
  '/var/lib/pratique',
  '/var/lib/dpkg',
] as const;
/** The agent itself. */
const PROTECTED_GUEST_FILES = ['/usr/sbin/pratique-agent', '/sbin/pratique-agent'] as const;

/** Whether a file of an item may not be at this absolute path. The agent asks again, once it has followed the guest's links. */
export function isProtectedGuestPath(path: string): boolean {
  const plain = path.replace(/\/+/g, '/');
  return (
    PROTECTED_GUEST_FOLDERS.some((folder) => plain === folder || plain.startsWith(`${folder}/`)) ||
    PROTECTED_GUEST_FILES.some((file) => plain === file)
  );
}
