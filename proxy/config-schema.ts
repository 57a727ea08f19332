// The configuration file's schema: every key with its meaning. proxy/pratique.schema.json is generated from it.
import { type Static, type TInteger, type TOptional, Type } from 'typebox';
import { NAME_CHARS_MAX, STATE_DEADLINES_MS, TUF_MIRRORS_MAX } from '../src/base/limits.ts';
import { POLICY_KEYS, type Policy, PolicySchema, PRODUCT_PATTERN } from '../src/model/policy.ts';
import { DURATION_PATTERN } from './duration.ts';

const GROUP_NAME_PATTERN = '^[a-z0-9][a-z0-9._-]{0,63}$';
const strict = { additionalProperties: false } as const;
const absolutePath = { minLength: 2, maxLength: 1024, pattern: '^/[^\\u0000-\\u001f]*$' } as const;
/** Without user, password, query and fragment: a URL is shown and logged, a credential must not be. */
const httpUrl = { minLength: 8, maxLength: 2048, pattern: '^https?://[^\\s/?#@]+(/[^\\s?#]*)?$' } as const;

/** A vendor's name: used in paths and tables. */
export const VendorNameSchema = Type.String({
  minLength: 1,
  maxLength: 64,
  pattern: '^[a-z0-9][a-z0-9._-]*$',
  description: 'Unique name of this vendor',
});

const TufVendorSchema = Type.Object(
  {
    kind: Type.Literal('tuf', { description: 'A TUF repository of software bundles' }),
    name: VendorNameSchema,
    metadataUrl: Type.String({ ...httpUrl, description: 'Folder of the signed metadata' }),
    targetsUrl: Type.String({ ...httpUrl, description: 'Folder of the bundles' }),
    mirrors: Type.Optional(
      Type.Array(
        Type.Object(
          {
            metadataUrl: Type.String({ ...httpUrl, description: 'Folder of the same signed metadata' }),
            targetsUrl: Type.String({ ...httpUrl, description: 'Folder of the same bundles' }),
          },
          strict,
        ),
        { maxItems: TUF_MIRRORS_MAX - 1, description: 'Other places of the same repository, tried in this order' },
      ),
    ),
    rootPath: Type.String({ ...absolutePath, description: 'The first trusted root.json, obtained by a safe way' }),
  },
  strict,
);

const DebianPinSchema = Type.Object(
  {
    packages: Type.Optional(
      Type.Array(Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX, pattern: PRODUCT_PATTERN }), {
        minItems: 1,
        maxItems: 1000,
        description: 'Names, or their beginnings with a `*`; absent: every package of the suite',
      }),
    ),
    suite: Type.Optional(Type.String({ minLength: 1, maxLength: 64, description: 'One of the suites; absent: any' })),
    version: Type.Optional(
      Type.String({
        minLength: 1,
        maxLength: NAME_CHARS_MAX,
        pattern: PRODUCT_PATTERN,
        description: 'A version, or its beginning with a `*`; needs `packages`',
      }),
    ),
    priority: Type.Integer({
      minimum: -32_768,
      maximum: 32_767,
      description: 'As in apt_preferences(5); below 0: never',
    }),
  },
  strict,
);

const DebianVendorSchema = Type.Object(
  {
    kind: Type.Literal('debian-apt', { description: 'A Debian archive' }),
    name: VendorNameSchema,
    suites: Type.Array(Type.String({ minLength: 1, maxLength: 64, pattern: '^[a-z0-9][a-z0-9./-]*$' }), {
      minItems: 1,
      maxItems: 16,
      description: 'Suites to take packages from, for example "bookworm" and "bookworm-security"',
    }),
    url: Type.Optional(
      Type.String({ ...httpUrl, description: "Archive; absent: the one in the host's own apt sources" }),
    ),
    keyring: Type.Optional(
      Type.String({
        ...absolutePath,
        description: "Keyring file that signs the archive; absent: as the host's apt has it",
      }),
    ),
    fingerprints: Type.Optional(
      Type.Array(Type.String({ pattern: '^[0-9A-Fa-f ]{40,90}$' }), {
        minItems: 1,
        maxItems: 32,
        description: 'Primary keys that may sign; absent: those of the first verified InRelease are pinned',
      }),
    ),
    components: Type.Optional(
      Type.Array(Type.String({ minLength: 1, maxLength: 64, pattern: '^[a-z0-9][a-z0-9./-]*$' }), {
        minItems: 1,
        maxItems: 16,
        description: "Components; absent: those of the host's apt sources, or main with `url`",
      }),
    ),
    arch: Type.Optional(
      Type.String({
        pattern: '^[a-z0-9][a-z0-9-]{0,31}$',
        description: "Architecture of the guests; absent: the host's",
      }),
    ),
    pins: Type.Optional(
      Type.Array(DebianPinSchema, {
        maxItems: 200,
        description: "apt's priorities where they differ from its defaults",
      }),
    ),
  },
  strict,
);

export const VendorConfigSchema = Type.Union([TufVendorSchema, DebianVendorSchema]);

/** The policy keys, each optional, as the API takes them: what one VM has of its own. */
export const PartialPolicySchema = Type.Partial(PolicySchema, strict);

const { metadataAgeMaxMs, healthTimeoutMs, runDeadlineMs, ...keysWithoutUnit } = PolicySchema.properties;
const duration = (description: string) => Type.Optional(Type.String({ pattern: DURATION_PATTERN, description }));

/** A policy as a file says it: durations have their unit in the value. */
export const FilePolicySchema = Type.Object(
  {
    ...Type.Partial(Type.Object(keysWithoutUnit)).properties,
    metadataAge: duration(
      'Age, for example "24h", after which verified vendor metadata no longer proves that a VM is up to date',
    ),
    healthTimeout: duration(
      'How long, for example "30s", the guest tries a health check again before it counts as failed',
    ),
    runDeadline: duration(
      'How long, for example "4h", a run may take from power-on to plugged in; then the VM is quarantined',
    ),
    /** What files of the first version say. */
    metadataAgeMaxMs: Type.Optional(Type.Integer({ ...metadataAgeMaxMs, deprecated: true })),
  },
  strict,
);
export type FilePolicy = Static<typeof FilePolicySchema>;

/** A group's name. */
export const GroupNameSchema = Type.String({
  minLength: 1,
  maxLength: 64,
  pattern: GROUP_NAME_PATTERN,
  description: 'Name of a group of the configuration',
});

const GroupSchema = Type.Object(
  {
    policy: Type.Optional(FilePolicySchema),
    tenant: Type.Optional(
      Type.String({
        minLength: 1,
        maxLength: 64,
        pattern: GROUP_NAME_PATTERN,
        description: 'Whom its VMs belong to: seats and use of licenses are metered by it',
      }),
    ),
    vms: Type.Optional(
      Type.Array(Type.String({ minLength: 1, maxLength: 64, pattern: '^[A-Za-z0-9._-]*\\*?$' }), {
        maxItems: 1000,
        description: 'VMs of this group: names, or the beginning of names with a `*`; the longest match wins',
      }),
    ),
  },
  { ...strict, description: 'A policy for several VMs' },
);

/** A key of the policy, as the API takes it. */
export const PolicyKeySchema = Type.Unsafe<keyof Policy>(Type.Union(POLICY_KEYS.map((key) => Type.Literal(key))));

/** A configuration server: over TLS only, for documents may hold secrets. */
const GuestConfigServerSchema = Type.Object(
  {
    url: Type.String({
      ...httpUrl,
      pattern: '^https://[^\\s/?#@]+(/[^\\s?#]*)?$',
      description: 'Documents are at URL/v1/vms/NAME',
    }),
    publicKeys: Type.Array(Type.String({ minLength: 40, maxLength: 200, pattern: '^[A-Za-z0-9+/]+={0,2}$' }), {
      minItems: 1,
      maxItems: 8,
      description:
        'Ed25519 keys (SPKI in base64, as `pratique config sign` prints them); one of them signs each document',
    }),
    grace: Type.Optional(
      Type.String({
        pattern: DURATION_PATTERN,
        description:
          'How long a document counts after it expired while the server has no newer one; absent: not at all',
      }),
    ),
    isRequired: Type.Optional(
      Type.Boolean({ description: 'A VM for which the server has no document gets no plan; false by default' }),
    ),
    caPath: Type.Optional(
      Type.String({
        ...absolutePath,
        description: 'Certificates (PEM) that vouch for the server, instead of the public ones',
      }),
    ),
    certificatePath: Type.Optional(
      Type.String({ ...absolutePath, description: 'Certificate (PEM) by which the server knows this host' }),
    ),
    keyPath: Type.Optional(Type.String({ ...absolutePath, description: 'Its private key (PEM), mode 0600' })),
  },
  { ...strict, description: 'Where signed configuration of VMs is fetched' },
);

export const ConfigFileSchema = Type.Object(
  {
    dataFolder: Type.Optional(Type.String({ ...absolutePath, description: 'Database, blobs, images, audit records' })),
    runFolder: Type.Optional(
      Type.String({ ...absolutePath, description: 'Sockets; emptied by a restart of the host' }),
    ),
    logLevel: Type.Optional(
      Type.Union(
        ['silent', 'error', 'warn', 'info', 'debug'].map((level) => Type.Literal(level)),
        { description: 'How much the daemon says on stderr' },
      ),
    ),
    diskRoots: Type.Optional(
      Type.Array(Type.String(absolutePath), {
        maxItems: 64,
        description: "Folders under which VMs' disks, kernels and media may lie; nothing else is opened",
      }),
    ),
    storeBudgetBytes: Type.Optional(
      Type.Integer({
        minimum: 64 * 1024 * 1024,
        maximum: Number.MAX_SAFE_INTEGER,
        description: 'Bytes the blob store may keep beyond what drives and pending runs need',
      }),
    ),
    policy: Type.Optional(FilePolicySchema),
    groups: Type.Optional(
      Type.Record(Type.String({ pattern: GROUP_NAME_PATTERN }), GroupSchema, {
        ...strict,
        maxProperties: 1000,
        description: 'Groups of VMs by name, each with a policy of its own',
      }),
    ),
    licenses: Type.Optional(
      Type.Object(
        {
          leaseDuration: duration('How long a seat is asked for, for example "24h"; it is renewed at a third of that'),
          grace: duration(
            'How long a lease goes on counting after its end while its server cannot be asked, for example "72h"',
          ),
          idleRelease: duration('After how long a seat that nothing was needed of is given back, for example "30d"'),
          poll: duration('How often license servers are asked what was revoked, for example "30s"'),
        },
        { ...strict, description: 'Seats of licenses' },
      ),
    ),
    network: Type.Optional(
      Type.Object(
        {
          bridge: Type.Optional(
            Type.String({
              minLength: 1,
              maxLength: 15,
              pattern: '^[a-zA-Z0-9_.-]+$',
              description: 'Bridge of NICs whose VM spec names none',
            }),
          ),
        },
        strict,
      ),
    ),
    uids: Type.Optional(
      Type.Object(
        {
          first: Type.Integer({ minimum: 1000, maximum: 4_294_000_000, description: 'First user id for QEMUs' }),
          count: Type.Integer({ minimum: 1, maximum: 100_000, description: 'How many; one VM uses one' }),
        },
        { ...strict, description: 'Each managed QEMU runs under a user id of its own from this range' },
      ),
    ),
    deadlines: Type.Optional(
      Type.Object(
        Object.fromEntries(
          Object.keys(STATE_DEADLINES_MS).map((state) => [
            state,
            Type.Optional(Type.Integer({ minimum: 1, maximum: 86_400, description: `Seconds a run may be ${state}` })),
          ]),
        ) as Record<keyof typeof STATE_DEADLINES_MS, TOptional<TInteger>>, // The keys are those of the table.
        { ...strict, description: 'Seconds after which a run that stays in a state is quarantined' },
      ),
    ),
    vendors: Type.Optional(Type.Array(VendorConfigSchema, { maxItems: 100 })),
    guestConfigFolder: Type.Optional(
      Type.String({
        ...absolutePath,
        description: 'What guests are to be configured with; `guests` beside the configuration file by default',
      }),
    ),
    guestConfigServer: Type.Optional(GuestConfigServerSchema),
  },
  { ...strict, title: 'pratique.toml', description: 'Configuration of Pratique on one host; every key is optional' },
);
export type ConfigFile = Static<typeof ConfigFileSchema>;

/** The JSON Schema that is shipped, as text. */
export function configJsonSchema(): string {
  const schema = { $schema: 'https://json-schema.org/draft/2020-12/schema', ...ConfigFileSchema };
  return `${JSON.stringify(schema, null, 2)}\n`;
}
