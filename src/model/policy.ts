// What the operator decided for one VM: the default, overridden by its group, overridden by its own words.
import { type Static, Type } from 'typebox';
import { HEALTH_CHECKS_MAX, HEALTH_TIMEOUT_MAX_MS, NAME_CHARS_MAX } from '../base/limits.ts';
import { HealthCheckSchema } from './health.ts';

/** A product's name, or the beginning of names with a `*` at its end: `nginx`, `linux-image-*`. */
export const PRODUCT_PATTERN = '^[^\\s*]+\\*?$';
const products = (description: string) =>
  Type.Array(Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX, pattern: PRODUCT_PATTERN }), {
    maxItems: 1000,
    description,
  });

export const PolicySchema = Type.Object(
  {
    install: Type.Union([Type.Literal('all'), Type.Literal('security'), Type.Literal('listed'), Type.Literal('none')], {
      description:
        'Which missing updates a run installs before it opens the gate; "listed": those of `packages`; "none": no software, only configuration',
    }),
    packages: products('With `install = "listed"`: the products that are kept up to date, and what they need'),
    holds: products('Products that stay at their version, also against a security update; recorded with each opening'),
    allowReboot: Type.Boolean({ description: 'Whether an update may reboot the VM to become effective' }),
    infrastructure: Type.Boolean({
      description: 'Plug in, with a record, when no vendor can be reached: for a router or DNS server the host needs',
    }),
    vendors: Type.Array(Type.String({ maxLength: 64 }), {
      maxItems: 100,
      description: "Vendors that must have been checked; empty: every configured one that fits the VM's system",
    }),
    metadataAgeMaxMs: Type.Integer({
      minimum: 60_000,
      description: 'Milliseconds after which verified vendor metadata no longer proves that a VM is up to date',
    }),
    vendorAway: Type.Union([Type.Literal('gate'), Type.Literal('admit')], {
      description:
        'A VM starts while a vendor cannot be reached and its metadata is too old: stay gated, or go by the old metadata, with its age on the record',
    }),
    leftOut: Type.Union([Type.Literal('gate'), Type.Literal('admit')], {
      description:
        'A security update cannot be installed (what it needs is not on offer): stay gated, or plug in with a record',
    }),
    apt: Type.Union([Type.Literal('fast'), Type.Literal('vendor-verified')], {
      description:
        "How Debian packages are trusted in the guest: by the manifest's digests, or once more by the guest's own apt from the vendor's signed files",
    }),
    verify: Type.Union([Type.Literal('agent'), Type.Literal('disk')], {
      description:
        "Whose word a confirmation is held against: the agent's own fresh inventory, or also the VM's disk, which the host reads beside it; managed VMs",
    }),
    overlay: Type.Boolean({
      description: 'Install on a disk overlay that is thrown away if the update fails; managed VMs',
    }),
    configChange: Type.Union([Type.Literal('live'), Type.Literal('gate')], {
      description:
        'A VM that is plugged in gets another configuration: apply it while it stays plugged in, or close its gate first',
    }),
    inspectDisk: Type.Boolean({
      description:
        'Look into the disk of a switched-off VM of which nothing is known, to fetch its updates before it starts',
    }),
    health: Type.Array(HealthCheckSchema, {
      maxItems: HEALTH_CHECKS_MAX,
      description:
        'What must work in the guest before it is plugged in: `service:UNIT` is up, `port:NUMBER` answers on loopback, `bundle:PRODUCT` passes its own check',
    }),
    healthTimeoutMs: Type.Integer({
      minimum: 1_000,
      maximum: HEALTH_TIMEOUT_MAX_MS,
      description: 'Milliseconds for which the guest tries a health check again before it counts as failed',
    }),
    runDeadlineMs: Type.Integer({
      minimum: 60_000,
      maximum: 7 * 24 * 60 * 60 * 1000,
      description: 'Milliseconds a run may take from power-on to plugged in; then the VM is quarantined',
    }),
  },
  { additionalProperties: false },
);
export type Policy = Static<typeof PolicySchema>;

export const DEFAULT_POLICY: Policy = {
  install: 'all',
  packages: [],
  holds: [],
  allowReboot: true,
  infrastructure: false,
  vendors: [],
  metadataAgeMaxMs: 24 * 60 * 60 * 1000,
  vendorAway: 'gate',
  leftOut: 'gate',
  apt: 'fast',
  verify: 'agent',
  overlay: false,
  configChange: 'live',
  inspectDisk: true,
  health: [],
  healthTimeoutMs: 30_000,
  runDeadlineMs: 4 * 60 * 60 * 1000,
};

/** Where a value of a policy comes from, weakest first. */
export const POLICY_ORIGINS = ['built-in', 'default', 'group', 'vm'] as const;
export type PolicyOrigin = (typeof POLICY_ORIGINS)[number];

/** What holds for one VM, each key with where it comes from. */
export type ResolvedPolicy = {
  readonly policy: Policy;
  readonly from: Readonly<Record<keyof Policy, PolicyOrigin>>;
};

/** The keys in the order of the schema, which is the order in which people are shown them. */
export const POLICY_KEYS: readonly (keyof Policy)[] = Object.keys(PolicySchema.properties).filter(isPolicyKey);

/** Whether a word is a key of the policy. */
export function isPolicyKey(word: string): word is keyof Policy {
  return Object.hasOwn(PolicySchema.properties, word);
}

/** A VM's own keys over its group's, over the host's default, over what is built in. Lists replace each other whole. */
export function resolvePolicy(parts: {
  readonly default: Partial<Policy>;
  readonly group: Partial<Policy>;
  readonly vm: Partial<Policy>;
}): ResolvedPolicy {
  const layers: readonly (readonly [PolicyOrigin, Partial<Policy>])[] = [
    ['vm', parts.vm],
    ['group', parts.group],
    ['default', parts.default],
  ];
  const originOf = (key: keyof Policy): PolicyOrigin =>
    layers.find(([, part]) => part[key] !== undefined)?.[0] ?? 'built-in';
  const from = Object.fromEntries(POLICY_KEYS.map((key) => [key, originOf(key)]));
  return {
    policy: { ...DEFAULT_POLICY, ...parts.default, ...parts.group, ...parts.vm },
    // The cast holds: every key of the schema was given its origin.
    from: from as Record<keyof Policy, PolicyOrigin>,
  };
}

/** What makes a policy useless as a whole, each key being right for itself; null when nothing does. */
export function faultOfPolicy({ install, packages, health }: Policy): string | null {
  const noPort = health.find((check) => check.startsWith('port:') && Number(check.slice('port:'.length)) > 65_535);
  if (noPort !== undefined) return `${noPort} is no port: the highest is 65535`;
  if (install !== 'listed' || packages.length > 0) return null;
  return 'it installs what is listed, and lists no packages';
}

/** Whether a name is one of the patterns'. */
export function matchesProduct(patterns: readonly string[], product: string): boolean {
  return patterns.some((pattern) =>
    pattern.endsWith('*') ? product.startsWith(pattern.slice(0, -1)) : product === pattern,
  );
}
