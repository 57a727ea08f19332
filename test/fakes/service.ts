// An in-memory Service: answers every question of the surfaces with complete sample data and remembers what was asked of it.
import { EventEmitter, on } from 'node:events';
import type { ScrubResult } from '../../proxy/scrubbing.ts';
import type {
  AuditCheckpoint,
  DriftRow,
  Inspection,
  PolicyView,
  RunStateName,
  Service,
  VmConfigView,
  VmEventRecord,
  VmView,
} from '../../proxy/service.ts';
import { digestOf } from '../../src/base/digest.ts';
import { PratiqueError } from '../../src/base/errors.ts';
import type { VmSpec } from '../../src/hypervisor/vm-spec.ts';
import { BLANKED } from '../../src/model/guest-config.ts';
import { isVmId, type RunId, type VmId } from '../../src/model/ids.ts';
import type { Plan } from '../../src/model/plan.ts';
import { DEFAULT_POLICY, resolvePolicy } from '../../src/model/policy.ts';
import type { Release } from '../../src/model/release.ts';
import { fakeLicenses } from './license-service.ts';

export type FakeService = Service & {
  /** Every call that changes something, in order: method and arguments. */
  readonly calls: readonly { readonly method: string; readonly args: readonly unknown[] }[];
  /** Adds an event and hands it to everybody who follows. */
  readonly emit: (event: Omit<VmEventRecord, 'seq' | 'atMs'>) => VmEventRecord;
  /** Puts a VM into a state and tells the followers. */
  readonly setState: (vm: string, state: RunStateName) => void;
  /** Makes the named method throw. */
  readonly failWith: (method: keyof Service, error: unknown) => void;
  /** Replaces the answer of `drift`. */
  readonly setDrift: (rows: readonly DriftRow[]) => void;
  /** Replaces the answer of `inspectVm`. */
  readonly setInspection: (inspection: Inspection) => void;
  /** Followers that are connected now. */
  readonly followers: () => number;
};

/** A VM name for tests. */
export function vmId(text: string): VmId {
  if (!isVmId(text)) throw new Error(`${text} is no VM name`);
  return text;
}

export const SAMPLE_SPEC: VmSpec = {
  format: 'pratique.vm/1',
  kind: 'managed',
  vm: vmId('web'),
  machine: 'q35',
  memoryMiB: 256,
  cpus: 1,
  disks: [{ id: 'root', path: '/srv/disks/web.raw', format: 'raw' }],
  nics: [{ id: 'net0', model: 'virtio-net-pci', mac: '52:54:00:00:00:01', bridge: 'pratique0' }],
};

export const SAMPLE_RELEASE: Release = {
  vendor: 'acme',
  ecosystem: 'bundle',
  product: 'shop',
  version: '2.0.0',
  kind: 'security',
  requires: [{ product: 'runtime', range: '>=1' }],
  advisories: ['ACME-2026-1'],
  summary: 'closes a hole',
  artifact: { name: 'shop-2.0.0.tar', digest: digestOf('shop'), sizeBytes: 4096, location: 'shop-2.0.0.tar' },
  install: { action: 'bundle', prefix: '/opt/shop', compression: 'none', check: 'check' },
};

export const SAMPLE_DRIFT: DriftRow = {
  vm: vmId('web'),
  ecosystem: 'bundle',
  product: 'shop',
  installed: '1.0.0',
  latest: '2.0.0',
  kind: 'security',
  advisories: ['ACME-2026-1'],
  sinceMs: 1_700_000_000_000,
  source: 'confirm',
  remark: null,
};

export const SAMPLE_INSPECTION: Inspection = {
  disk: 'root',
  format: 'qcow2',
  sizeBytes: 1_073_741_824,
  table: 'gpt',
  partition: 1,
  filesystem: 'ext4',
  inventory: {
    os: { id: 'debian', versionId: '12', codename: 'bookworm', arch: 'amd64' },
    products: [{ ecosystem: 'debian', product: 'jq', version: '1.6-2.1', arch: 'amd64', state: 'installed' }],
    config: [],
    agent: { version: '0.1.0', digest: digestOf('agent') },
    abilities: { drives: [], compressions: ['none'] },
    freeBytes: 1_000_000,
    rebootRequired: false,
    lastShutdown: null,
  },
  lastRun: { run: 'ab'.repeat(16) as RunId, isFinished: true, results: 2, failed: 0 }, // The cast holds: 32 hex digits.
  notes: ['its filesystem was not unmounted'],
  tookMs: 90,
  counts: 'confirm',
  difference: {
    changed: { count: 1, first: ['debian/jq:amd64 1.6-2.1 -> 1.6-2.2'] },
    missing: { count: 0, first: [] },
    added: { count: 0, first: [] },
    facts: [],
  },
};

/** One of twelve packages was damaged. */
export const SAMPLE_SCRUB: ScrubResult = {
  startedAtMs: 1_700_000_000_000,
  endedAtMs: 1_700_000_060_000,
  checkedBlobs: 12,
  checkedBytes: 4096,
  rottenBlobs: 1,
  rotten: [{ digest: digestOf('shop'), fault: 'altered', owners: ['web'] }],
};

/** Well-formed; its signature is of no key. */
export const SAMPLE_CHECKPOINT: AuditCheckpoint = {
  format: 'pratique.checkpoint/2',
  records: 1,
  head: digestOf('1'),
  atMs: 1_700_000_000_000,
  keyid: digestOf('key'),
  signature: `${'A'.repeat(86)}==`,
};

export const SAMPLE_PLAN: Plan = {
  vm: vmId('web'),
  run: 'ab'.repeat(16) as RunId, // The cast holds: 32 hex digits.
  items: [{ id: 'bundle/shop', fromVersion: '1.0.0', release: SAMPLE_RELEASE }],
  leftOut: [],
  vendors: [{ vendor: 'acme', checkedAtMs: 1_700_000_000_000, fresh: true }],
};

function sampleView(vm: VmId, spec: VmSpec, state: RunStateName): VmView {
  const isPlugged = state === 'connected';
  return {
    vm,
    kind: spec.kind,
    state,
    sinceMs: 1_700_000_000_000,
    gate: isPlugged ? 'open' : 'closed',
    run: 'ab'.repeat(16),
    os: { id: 'debian', versionId: '12', codename: 'bookworm', arch: 'amd64', kernel: '6.1.0' },
    agentVersion: '0.1.0',
    specDigest: digestOf(JSON.stringify(spec)),
    policy: DEFAULT_POLICY,
    group: null,
    tenant: 'default',
    ungatedNics: [],
    fenceDropped: { fromGuest: 7, toGuest: 3 },
    why: {
      vm,
      isPlugged,
      state,
      reason: isPlugged ? 'it is plugged in' : 'the check of shop failed',
      next: isPlugged ? 'nothing' : `run pratique vm retry ${vm}`,
      remarks: [],
    },
  };
}

/** A policy of which one value comes from each place. */
/** One file with a secret in it, and what an operator should know. */
export function sampleVmConfig(vm: VmId): VmConfigView {
  const origin = { source: 'file', at: '/etc/pratique/guests/default.toml:4', layer: 'default' } as const;
  const file = { path: '/etc/app.conf', content: `password=${BLANKED}\n`, mode: '0600' };
  return {
    vm,
    isConfigured: true,
    items: [
      {
        item: 'app',
        version: '3+0123456789abcdef',
        setting: { kind: 'file', file },
        apply: [{ restart: 'app.service' }],
        origin,
        hasSecret: true,
        values: [{ name: 'password', value: BLANKED, origin }],
      },
    ],
    trouble: [],
    remarks: ["the VM's spec has no NIC 52:54:00:00:00:02"],
  };
}

function samplePolicyView(vm: VmId): PolicyView {
  const own = { holds: ['nginx'] };
  const group = { install: 'security', overlay: true } as const;
  return { vm, own, group: 'web', trouble: null, ...resolvePolicy({ default: { leftOut: 'admit' }, group, vm: own }) };
}

/** A service that knows one VM, `web`, in the given state. */
export function makeFakeService(state: RunStateName = 'off'): FakeService {
  const vms = new Map<string, { spec: VmSpec; state: RunStateName }>([['web', { spec: SAMPLE_SPEC, state }]]);
  const events: VmEventRecord[] = [];
  const calls: { method: string; args: readonly unknown[] }[] = [];
  const failures = new Map<string, unknown>();
  const bus = new EventEmitter();
  let drift: readonly DriftRow[] = [SAMPLE_DRIFT];
  let inspection = SAMPLE_INSPECTION;
  const enter = (method: keyof Service, ...args: unknown[]): void => {
    calls.push({ method, args });
    if (failures.has(method)) throw failures.get(method);
  };
  const find = (vm: string): { spec: VmSpec; state: RunStateName } => {
    const found = vms.get(vm);
    if (found === undefined) {
      throw new PratiqueError('not-found/vm', `there is no VM ${vm}`, { next: 'see `pratique vm list`' });
    }
    return found;
  };
  const view = (vm: string): VmView => {
    const found = find(vm);
    return sampleView(vmId(vm), found.spec, found.state);
  };
  const emit: FakeService['emit'] = (event) => {
    const record = { ...event, seq: events.length + 1, atMs: 1_700_000_000_000 + events.length * 1_000 };
    events.push(record);
    bus.emit('event', record);
    return record;
  };
  const setState = (vm: string, next: RunStateName): void => {
    find(vm).state = next;
    emit({ vm: vmId(vm), kind: 'state', state: next, text: `${vm} is ${next}` });
  };
  const matches = (vm: string | undefined, afterSeq: number) => (event: VmEventRecord) =>
    event.seq > afterSeq && (vm === undefined || event.vm === vm);
  return {
    calls,
    emit,
    setState,
    failWith: (method, error) => {
      failures.set(method, error);
    },
    setInspection: (next) => {
      inspection = next;
    },
    setDrift: (rows) => {
      drift = rows;
    },
    followers: () => bus.listenerCount('event'),
    ...fakeLicenses(enter),
    addVm: async (spec, policy, options = {}) => {
      enter('addVm', spec, policy, options);
      if (vms.has(spec.vm)) throw new PratiqueError('conflict/vm', `there is already a VM ${spec.vm}`);
      vms.set(spec.vm, { spec, state: 'off' });
      return view(spec.vm);
    },
    listVms: async () => {
      enter('listVms');
      return [...vms.keys()].map(view);
    },
    showVm: async (vm) => {
      enter('showVm', vm);
      const products = [
        {
          ecosystem: 'debian',
          product: 'jq',
          version: '1.6',
          arch: 'amd64',
          state: 'installed',
          source: 'jq',
          held: false,
        },
      ] as const;
      const known = { source: 'confirm', atMs: 1_700_000_000_000 } as const;
      return { ...view(vm), products: [...products], config: [], spec: find(vm).spec, known };
    },
    vmPolicy: async (vm) => {
      enter('vmPolicy', vm);
      find(vm);
      return samplePolicyView(vmId(vm));
    },
    vmConfig: async (vm) => {
      enter('vmConfig', vm);
      find(vm);
      return sampleVmConfig(vmId(vm));
    },
    setVmPolicy: async (vm, change) => {
      enter('setVmPolicy', vm, change);
      find(vm);
      return samplePolicyView(vmId(vm));
    },
    startVm: async (vm) => {
      enter('startVm', vm);
      find(vm);
      setState(vm, 'booting');
      return view(vm);
    },
    stopVm: async (vm, options) => {
      enter('stopVm', vm, options);
      find(vm);
      setState(vm, 'off');
      return view(vm);
    },
    retryVm: async (vm) => {
      enter('retryVm', vm);
      return view(vm);
    },
    admitVm: async (vm, options) => {
      enter('admitVm', vm, options);
      find(vm);
      setState(vm, 'connected');
      return view(vm);
    },
    removeVm: async (vm) => {
      enter('removeVm', vm);
      find(vm);
      vms.delete(vm);
    },
    planVm: async (vm) => {
      enter('planVm', vm);
      find(vm);
      return SAMPLE_PLAN;
    },
    updateVm: async (vm) => {
      enter('updateVm', vm);
      return view(vm);
    },
    whyVm: async (vm) => {
      enter('whyVm', vm);
      return view(vm).why;
    },
    inspectVm: async (vm) => {
      enter('inspectVm', vm);
      find(vm);
      return inspection;
    },
    followEvents: async function* ({ vm, afterSeq, signal }) {
      enter('followEvents', vm, afterSeq);
      if (vm !== undefined) find(vm);
      // Listen before the past is read, so that nothing falls between.
      const live = on(bus, 'event', { signal });
      let lastSeq = afterSeq;
      try {
        for (const event of events.filter(matches(vm, afterSeq))) {
          lastSeq = event.seq;
          yield event;
        }
        for await (const [event] of live) {
          const record = event as VmEventRecord; // The cast holds: only `emit` writes to this bus.
          if (matches(vm, lastSeq)(record)) yield record;
        }
      } catch (error) {
        if (!signal.aborted) throw error;
      }
    },
    pastEvents: async ({ vm, afterSeq, limit }) => {
      enter('pastEvents', vm, afterSeq, limit);
      return events.filter(matches(vm, afterSeq)).slice(0, limit);
    },
    addVendor: async (config) => {
      enter('addVendor', config);
      return { vendor: config.name, checkedAtMs: null, isFresh: false, trouble: null };
    },
    listVendors: async () => {
      enter('listVendors');
      return [
        { vendor: 'acme', kind: 'tuf', checkedAtMs: 1_700_000_000_000, isFresh: true, trouble: null },
        {
          vendor: 'deb',
          kind: 'debian-apt',
          checkedAtMs: null,
          isFresh: false,
          trouble: { code: 'vendor-ill/http', message: 'answered 503' },
        },
      ];
    },
    checkVendor: async (name) => {
      enter('checkVendor', name);
      return [{ vendor: name ?? 'acme', checkedAtMs: 1_700_000_000_000, isFresh: true, trouble: null }];
    },
    vendorOffers: async (name) => {
      enter('vendorOffers', name);
      return [SAMPLE_RELEASE];
    },
    drift: async () => {
      enter('drift');
      return drift;
    },
    doctor: async () => {
      enter('doctor');
      return [
        { check: 'nft', state: 'ok', detail: 'nftables 1.0.6', mend: null },
        {
          check: 'kvm',
          state: 'warning',
          detail: 'no KVM: guests run slowly',
          mend: 'enable virtualisation in the firmware',
        },
      ];
    },
    acceptClock: async (options) => {
      enter('acceptClock', options);
      return { wallMs: 1_700_000_000_000, trustedMs: 1_700_000_000_000 };
    },
    startScrub: async () => {
      enter('startScrub');
      return { isRunning: true, last: null };
    },
    scrubView: async () => {
      enter('scrubView');
      return { isRunning: false, last: SAMPLE_SCRUB };
    },
    auditEntries: async (query) => {
      enter('auditEntries', query);
      return [
        {
          seq: 1,
          atMs: 1_700_000_000_000,
          hash: digestOf('1'),
          record: { kind: 'admitted', vm: 'web', facts: { boot: 'x', list: [1, { deep: true }] } },
        },
      ];
    },
    auditLines: async (query) => {
      enter('auditLines', query);
      return query.afterSeq === 0
        ? { lines: ['{"a":1}', '{"b":2}'], lastSeq: 2 }
        : { lines: [], lastSeq: query.afterSeq };
    },
    rotateAuditKey: async (options) => {
      enter('rotateAuditKey', options);
      return { seq: 2, hash: digestOf('2'), keyid: digestOf('key') };
    },
    auditCheckpoint: async () => {
      enter('auditCheckpoint');
      return SAMPLE_CHECKPOINT;
    },
    auditVerify: async (options = {}) => {
      enter('auditVerify', options);
      return { isIntact: true, records: 1, head: digestOf('1'), trouble: null };
    },
  };
}
