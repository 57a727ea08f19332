// What the surfaces (HTTP API, CLI, demo) may ask of the running host. host.ts implements it over the rooms of src/.
import type { Checkpoint as AuditCheckpoint } from '../src/audit/record.ts';
import type { ShownGuestConfig } from '../src/guest-config/guest-config.ts';
import type { VmSpec } from '../src/hypervisor/vm-spec.ts';
import type { InventorySource } from '../src/inventory/inventory-store.ts';
import type { VmId } from '../src/model/ids.ts';
import type { AppliedConfig, InstalledProduct, Os } from '../src/model/inventory.ts';
import type { Plan } from '../src/model/plan.ts';
import type { Policy, PolicyOrigin } from '../src/model/policy.ts';
import type { Kind, Release } from '../src/model/release.ts';
import type { Inspection } from '../src/update/staging.ts';
import type { VendorConfig } from '../src/vendor/registry.ts';
import type { VendorStatus } from '../src/vendor/vendor.ts';
import type { DoctorLine } from './doctor-line.ts';
import type { LicenseService } from './licenses-service.ts';
import type { PolicyChange } from './policy-words.ts';
import type { ScrubView } from './scrubbing.ts';

/** State names of a run, as users see them (ARCHITECTURE.md has the diagram). */
export const RUN_STATES = [
  'off',
  'staged',
  'booting',
  'reporting',
  'planning',
  'offering',
  'installing',
  'rebooting',
  'judging',
  'opening',
  'rolling-back',
  'connected',
  'quarantined',
] as const;
export type RunStateName = (typeof RUN_STATES)[number];

/** X8: one sentence why a VM is not plugged in, one what to do next. */
export type Why = {
  readonly vm: VmId;
  readonly isPlugged: boolean;
  readonly state: RunStateName;
  readonly reason: string;
  readonly next: string;
  /** What else should be known: what it was plugged in without, on how old metadata, which NICs are not gated. */
  readonly remarks: readonly string[];
};

/** What holds for a VM, and where each value comes from. */
export type PolicyView = {
  readonly vm: VmId;
  readonly policy: Policy;
  readonly from: Readonly<Record<keyof Policy, PolicyOrigin>>;
  /** Keys that were decided for this VM alone. */
  readonly own: Partial<Policy>;
  /** Its group, by its own word or by its name; null: none. */
  readonly group: string | null;
  /** Why this is not what was meant; then the VM stays gated. */
  readonly trouble: string | null;
};

/** What a VM is to be configured with, secrets blanked, and where each value comes from. */
export type VmConfigView = ShownGuestConfig & {
  readonly vm: VmId;
  /** False: nothing is configured for it. */
  readonly isConfigured: boolean;
};

export type VmView = {
  readonly vm: VmId;
  readonly kind: 'managed' | 'attached';
  readonly state: RunStateName;
  readonly sinceMs: number;
  readonly gate: 'open' | 'closed';
  readonly run: string | null;
  readonly os: Os | null;
  readonly agentVersion: string | null;
  readonly specDigest: string;
  readonly policy: Policy;
  readonly group: string | null;
  /** Who it belongs to: by its own word, by its group, or `default`. */
  readonly tenant: string;
  /** NICs that are never unplugged or fenced. */
  readonly ungatedNics: readonly string[];
  /** Frames the fence dropped from and to this VM since its taps exist. */
  readonly fenceDropped: { readonly fromGuest: number; readonly toGuest: number };
  readonly why: Why;
};

export type VmDetail = VmView & {
  readonly products: readonly InstalledProduct[];
  /** Applied configuration, by name and version. */
  readonly config: readonly AppliedConfig[];
  readonly spec: VmSpec;
  /** Who told of these products, and when; null while nothing is known. */
  readonly known: { readonly source: InventorySource; readonly atMs: number } | null;
};

export type VmEventRecord = {
  readonly seq: number;
  readonly vm: VmId;
  readonly atMs: number;
  /** `state`, `progress`, `gate`, `guest`, `operator`, `warning`. */
  readonly kind: 'state' | 'progress' | 'gate' | 'guest' | 'operator' | 'warning';
  readonly state: RunStateName;
  /** One printable sentence. */
  readonly text: string;
  readonly progress?: { readonly item: string; readonly phase: string; readonly done: number; readonly total: number };
};

export type DriftRow = {
  readonly vm: VmId;
  readonly ecosystem: string;
  readonly product: string;
  readonly installed: string | null;
  readonly latest: string;
  readonly kind: Kind;
  readonly advisories: readonly string[];
  /** Wall time since when we know that it is behind. */
  readonly sinceMs: number;
  /** Who told what is installed: the agent (`report`, `confirm`), or the disk of a VM that has never run. */
  readonly source: InventorySource;
  /** Why it stays behind, where something keeps it back: a hold, or what it needs is not on offer. */
  readonly remark: string | null;
};

export type { AuditCheckpoint, Inspection, VendorConfig };

/** The wall clock, and what signatures and ages are held against. */
export type ClockView = { readonly wallMs: number; readonly trustedMs: number };

export type AuditEntry = {
  readonly seq: number;
  readonly atMs: number;
  readonly hash: string;
  readonly record: { readonly kind: string; readonly vm?: string } & Record<string, unknown>;
};

/** `lastSeq`: what to give as `after` for the next page. */
export type AuditLines = { readonly lines: readonly string[]; readonly lastSeq: number };

/** The key that signs audit records after the record `seq`. */
export type AuditRotation = { readonly seq: number; readonly hash: string; readonly keyid: string };

export type AuditReport = {
  readonly isIntact: boolean;
  readonly records: number;
  readonly head: string;
  readonly trouble: string | null;
};

/** Every method throws a PratiqueError with a code of the one table; unknown VMs are `not-found/vm`. */
export type Service = LicenseService & {
  readonly addVm: (
    spec: VmSpec,
    policy: Partial<Policy>,
    options?: { readonly group?: string; readonly tenant?: string },
  ) => Promise<VmView>;
  readonly vmPolicy: (vm: string) => Promise<PolicyView>;
  /** Changes what was decided for this VM alone; audited. It counts from the next plan on and unplugs nothing. */
  readonly setVmPolicy: (vm: string, change: PolicyChange & { readonly actor: string }) => Promise<PolicyView>;
  readonly listVms: () => Promise<readonly VmView[]>;
  readonly showVm: (vm: string) => Promise<VmDetail>;
  readonly startVm: (vm: string) => Promise<VmView>;
  readonly stopVm: (vm: string, options: { readonly force: boolean }) => Promise<VmView>;
  readonly retryVm: (vm: string) => Promise<VmView>;
  /** The audited override: plugs a VM in without evidence. */
  readonly admitVm: (vm: string, options: { readonly reason: string; readonly actor: string }) => Promise<VmView>;
  readonly removeVm: (vm: string) => Promise<void>;
  /** Dry run: what would be installed now, from the last inventory. */
  readonly planVm: (vm: string) => Promise<Plan>;
  /** Starts an update now; a connected VM stays plugged in. */
  readonly updateVm: (vm: string) => Promise<VmView>;
  /** What it would be configured with now. */
  readonly vmConfig: (vm: string) => Promise<VmConfigView>;
  readonly whyVm: (vm: string) => Promise<Why>;
  /** Looks into the disk of a VM that is off; changes nothing on it. */
  readonly inspectVm: (vm: string) => Promise<Inspection>;
  /** Events after `afterSeq`, then live ones until the signal aborts. */
  readonly followEvents: (options: {
    readonly vm?: string;
    readonly afterSeq: number;
    readonly signal: AbortSignal;
  }) => AsyncIterable<VmEventRecord>;
  readonly pastEvents: (options: {
    readonly vm?: string;
    readonly afterSeq: number;
    readonly limit: number;
  }) => Promise<readonly VmEventRecord[]>;
  readonly addVendor: (config: VendorConfig) => Promise<VendorStatus>;
  readonly listVendors: () => Promise<readonly (VendorStatus & { readonly kind: string })[]>;
  readonly checkVendor: (name: string | null) => Promise<readonly VendorStatus[]>;
  readonly vendorOffers: (name: string) => Promise<readonly Release[]>;
  readonly drift: () => Promise<readonly DriftRow[]>;
  readonly doctor: () => Promise<readonly DoctorLine[]>;
  /** An operator's word that the clock is right: signatures are held against it again. Audited. */
  readonly acceptClock: (options: { readonly reason: string; readonly actor: string }) => Promise<ClockView>;
  /** Begins to read every stored package again, unless that was asked for already. */
  readonly startScrub: () => Promise<ScrubView>;
  /** Whether one is under way, and what the last one found. */
  readonly scrubView: () => Promise<ScrubView>;
  readonly auditEntries: (options: {
    readonly afterSeq: number;
    readonly limit: number;
    readonly vm?: string;
  }) => Promise<readonly AuditEntry[]>;
  /** A signed statement of how long the chain is and how it ends, to be kept elsewhere. */
  readonly auditCheckpoint: () => Promise<AuditCheckpoint>;
  /** Records as the lines of an export; fewer than asked for where they are large, none at the end. */
  readonly auditLines: (options: { readonly afterSeq: number; readonly limit: number }) => Promise<AuditLines>;
  /** Makes a new key sign from now on, by a record that both keys sign. */
  readonly rotateAuditKey: (options: { readonly actor: string }) => Promise<AuditRotation>;
  /** Checks the chain; only with a checkpoint kept elsewhere is a tail that was cut off noticed. */
  readonly auditVerify: (options?: { readonly checkpoint?: AuditCheckpoint }) => Promise<AuditReport>;
};
