// Schemas of what the API answers and takes; the types of service.ts are their other half, and the compiler compares the two.
import { type Static, type TSchema, Type } from 'typebox';
import { VmSpecSchema } from '../src/hypervisor/vm-spec.ts';
import { DiskFormatSchema } from '../src/model/disk-image.ts';
import { GuestConfigItemSchema } from '../src/model/guest-config.ts';
import { RunIdSchema, VmIdSchema } from '../src/model/ids.ts';
import { AppliedConfigSchema, InstalledProductSchema, InventorySchema, OsSchema } from '../src/model/inventory.ts';
import { POLICY_KEYS, POLICY_ORIGINS, type Policy, PolicySchema } from '../src/model/policy.ts';
import { KindSchema } from '../src/model/release.ts';
import type { DoctorLine } from './doctor-line.ts';
import type { Problem } from './problem.ts';
import type { ScrubView, ScrubViewSchema } from './scrubbing.ts';
import {
  type AuditCheckpoint,
  type AuditEntry,
  type AuditLines,
  type AuditReport,
  type AuditRotation,
  type ClockView,
  type DriftRow,
  type Inspection,
  type PolicyView,
  RUN_STATES,
  type Service,
  type VmConfigView,
  type VmEventRecord,
  type VmView,
  type Why,
} from './service.ts';

const strict = { additionalProperties: false } as const;
const count = Type.Integer({ minimum: 0 });
const wallMs = Type.Integer({ description: 'Milliseconds since 1970-01-01 UTC' });
const nullable = <S extends TSchema>(schema: S) => Type.Union([schema, Type.Null()]);

/** A union of words; typebox loses the words of a mapped list, so their type is given. */
const oneOf = <Word extends string>(words: readonly Word[]) =>
  Type.Unsafe<Word>(Type.Union(words.map((word) => Type.Literal(word))));

const PolicyOriginSchema = oneOf(POLICY_ORIGINS);
type OriginFields = Record<keyof Policy, typeof PolicyOriginSchema>;
export const RunStateSchema = oneOf(RUN_STATES);

export const ProblemSchema = Type.Object({
  type: Type.String(),
  title: Type.String(),
  status: Type.Integer(),
  code: Type.String({ description: 'Stable: family/detail' }),
  detail: Type.String(),
  next: nullable(Type.String({ description: 'What to do next' })),
});

const ConfigOriginSchema = Type.Object(
  {
    source: oneOf(['file', 'server']),
    at: Type.String({ description: "Path and line, or the document's address and serial" }),
    layer: Type.String({ description: '`default`, `group NAME`, `vm NAME`' }),
  },
  strict,
);

export const VmConfigSchema = Type.Object(
  {
    vm: VmIdSchema,
    isConfigured: Type.Boolean({ description: 'False: nothing is configured for it' }),
    items: Type.Array(
      Type.Object(
        {
          ...GuestConfigItemSchema.properties,
          origin: ConfigOriginSchema,
          hasSecret: Type.Boolean({ description: 'Secrets in it are shown as `(secret)`' }),
          values: Type.Array(
            Type.Object({ name: Type.String(), value: Type.String(), origin: ConfigOriginSchema }, strict),
            { description: 'Named values that went into it' },
          ),
        },
        strict,
      ),
    ),
    trouble: Type.Array(Type.String(), { description: 'Why the VM gets no plan' }),
    remarks: Type.Array(Type.String()),
  },
  strict,
);

export const WhySchema = Type.Object(
  {
    vm: VmIdSchema,
    isPlugged: Type.Boolean(),
    state: RunStateSchema,
    reason: Type.String(),
    next: Type.String(),
    remarks: Type.Array(Type.String()),
  },
  strict,
);

/** Each value of a policy with where it comes from. */
export const PolicyViewSchema = Type.Object(
  {
    vm: VmIdSchema,
    policy: PolicySchema,
    from: Type.Object(Object.fromEntries(POLICY_KEYS.map((key) => [key, PolicyOriginSchema])) as OriginFields, strict), // The keys are those of the policy.
    own: Type.Partial(PolicySchema, strict),
    group: nullable(Type.String()),
    trouble: nullable(Type.String({ description: 'Why this is not what was meant; then the VM stays gated' })),
  },
  strict,
);

const vmViewFields = {
  vm: VmIdSchema,
  kind: Type.Union([Type.Literal('managed'), Type.Literal('attached')]),
  state: RunStateSchema,
  sinceMs: wallMs,
  gate: Type.Union([Type.Literal('open'), Type.Literal('closed')]),
  run: nullable(Type.String()),
  os: nullable(OsSchema),
  agentVersion: nullable(Type.String()),
  specDigest: Type.String(),
  policy: PolicySchema,
  group: nullable(Type.String()),
  tenant: Type.String({ description: 'Who it belongs to' }),
  ungatedNics: Type.Array(Type.String()),
  fenceDropped: Type.Object({ fromGuest: count, toGuest: count }, strict),
  why: WhySchema,
};
export const VmViewSchema = Type.Object(vmViewFields, strict);
const InventorySourceSchema = oneOf(['report', 'confirm', 'disk']);
export const VmDetailSchema = Type.Object(
  {
    ...vmViewFields,
    products: Type.Array(InstalledProductSchema),
    config: Type.Array(AppliedConfigSchema),
    spec: VmSpecSchema,
    known: nullable(Type.Object({ source: InventorySourceSchema, atMs: wallMs }, strict)),
  },
  strict,
);

const namesOf = (description: string) =>
  Type.Object(
    { count, first: Type.Array(Type.String(), { description: 'The first few' }) },
    { ...strict, description },
  );
export const InspectionSchema = Type.Object(
  {
    disk: Type.String({ description: 'Id in the VM spec' }),
    format: DiskFormatSchema,
    sizeBytes: count,
    table: oneOf(['gpt', 'mbr', 'none']),
    partition: nullable(count),
    filesystem: oneOf(['ext2', 'ext3', 'ext4']),
    inventory: InventorySchema,
    lastRun: nullable(
      Type.Object({ run: RunIdSchema, isFinished: Type.Boolean(), results: count, failed: count }, strict),
    ),
    notes: Type.Array(Type.String()),
    tookMs: count,
    counts: InventorySourceSchema,
    difference: nullable(
      Type.Object(
        {
          changed: namesOf('Another version, state or hold than on the disk'),
          missing: namesOf('On the disk, but not told by the agent'),
          added: namesOf('Told by the agent, but not on the disk'),
          facts: Type.Array(Type.String()),
        },
        strict,
      ),
    ),
  },
  strict,
);

export const VmEventSchema = Type.Object(
  {
    seq: count,
    vm: VmIdSchema,
    atMs: wallMs,
    kind: oneOf(['state', 'progress', 'gate', 'guest', 'operator', 'warning']),
    state: RunStateSchema,
    text: Type.String(),
    progress: Type.Optional(
      Type.Object({ item: Type.String(), phase: Type.String(), done: count, total: count }, strict),
    ),
  },
  strict,
);

const vendorStatusFields = {
  vendor: Type.String(),
  checkedAtMs: nullable(wallMs),
  isFresh: Type.Boolean(),
  trouble: nullable(Type.Object({ code: Type.String(), message: Type.String() }, strict)),
};
export const VendorStatusSchema = Type.Object(vendorStatusFields, strict);
export const VendorListedSchema = Type.Object({ ...vendorStatusFields, kind: Type.String() }, strict);

export const DriftRowSchema = Type.Object(
  {
    vm: VmIdSchema,
    ecosystem: Type.String(),
    product: Type.String(),
    installed: nullable(Type.String()),
    latest: Type.String(),
    kind: KindSchema,
    advisories: Type.Array(Type.String()),
    sinceMs: wallMs,
    source: InventorySourceSchema,
    remark: nullable(Type.String()),
  },
  strict,
);

export const DoctorLineSchema = Type.Object(
  {
    check: Type.String(),
    state: Type.Union([Type.Literal('ok'), Type.Literal('warning'), Type.Literal('unfit')]),
    detail: Type.String(),
    mend: nullable(Type.String()),
  },
  strict,
);

export const ClockViewSchema = Type.Object({ wallMs, trustedMs: wallMs }, strict);

export const AuditEntrySchema = Type.Object(
  {
    seq: count,
    atMs: wallMs,
    hash: Type.String(),
    // The record's own fields depend on its kind; they never hold a secret (audit/ sees none).
    record: Type.Object({ kind: Type.String(), vm: Type.Optional(Type.String()) }, { additionalProperties: true }),
  },
  strict,
);
export const AuditReportSchema = Type.Object(
  { isIntact: Type.Boolean(), records: count, head: Type.String(), trouble: nullable(Type.String()) },
  strict,
);
/** Of src/audit/record.ts; also what `audit verify` reads from a file. */
export const AuditCheckpointSchema = Type.Object(
  {
    format: Type.Union([Type.Literal('pratique.checkpoint/1'), Type.Literal('pratique.checkpoint/2')]),
    records: count,
    head: Type.String({ pattern: '^[0-9a-f]{64}$', description: 'Hash of the last record' }),
    atMs: wallMs,
    keyid: Type.Optional(
      Type.String({
        pattern: '^[0-9a-f]{64}$',
        description: 'Key in force after that record; the first format has none',
      }),
    ),
    signature: Type.String({ pattern: '^[A-Za-z0-9+/]{86}==$', description: 'Ed25519, base64' }),
  },
  strict,
);
export const AuditLinesSchema = Type.Object(
  { lines: Type.Array(Type.String()), lastSeq: Type.Integer({ minimum: 0, description: 'Give it as `after` next' }) },
  strict,
);
export const AuditRotationSchema = Type.Object(
  {
    seq: count,
    hash: Type.String(),
    keyid: Type.String({ description: 'SHA-256 of the new public key (DER)' }),
  },
  strict,
);

type Frozen<T> = T extends string
  ? T
  : T extends readonly (infer Item)[]
    ? readonly Frozen<Item>[]
    : T extends object
      ? { readonly [K in keyof T]: Frozen<T[K]> }
      : T;
type Carries<T, S extends TSchema> =
  Frozen<T> extends Frozen<Static<S>> ? (keyof T extends keyof Static<S> ? true : never) : never;
type Answer<K extends keyof Service> = Service[K] extends (...args: never[]) => Promise<infer R> ? R : never;

/** Does not compile when a type of service.ts and its schema part: the serializer would drop or refuse a field. */
export const SCHEMAS_CARRY_THE_SERVICE: readonly [
  Carries<VmView, typeof VmViewSchema>,
  Carries<Answer<'showVm'>, typeof VmDetailSchema>,
  Carries<Why, typeof WhySchema>,
  Carries<VmConfigView, typeof VmConfigSchema>,
  Carries<Inspection, typeof InspectionSchema>,
  Carries<VmEventRecord, typeof VmEventSchema>,
  Carries<Answer<'listVendors'>[number], typeof VendorListedSchema>,
  Carries<Answer<'addVendor'>, typeof VendorStatusSchema>,
  Carries<DriftRow, typeof DriftRowSchema>,
  Carries<PolicyView, typeof PolicyViewSchema>,
  Carries<DoctorLine, typeof DoctorLineSchema>,
  Carries<ClockView, typeof ClockViewSchema>,
  Carries<ScrubView, typeof ScrubViewSchema>,
  Carries<AuditCheckpoint, typeof AuditCheckpointSchema>,
  Carries<AuditReport, typeof AuditReportSchema>,
  Carries<AuditLines, typeof AuditLinesSchema>,
  Carries<AuditRotation, typeof AuditRotationSchema>,
  Carries<AuditEntry['record']['kind'], (typeof AuditEntrySchema)['properties']['record']['properties']['kind']>,
  Carries<Problem, typeof ProblemSchema>,
] = [true, true, true, true, true, true, true, true, true, true, true, true, true, true, true, true, true, true, true];
