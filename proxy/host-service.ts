// Answers the surfaces from the rooms of a running host.
import { isoTime, trustedNowMs } from '../src/base/clock.ts';
import { describeError, PratiqueError } from '../src/base/errors.ts';
import { EVENTS_PAGE_MAX } from '../src/base/limits.ts';
import { redactText } from '../src/base/redact.ts';
import { isCoveredName } from '../src/hypervisor/fence.ts';
import type { VmSpec } from '../src/hypervisor/vm-spec.ts';
import { findConfigDrift } from '../src/inventory/config-drift.ts';
import { type Behind, behindLeftOut, type CompareVersions, findDrift, indexProducts } from '../src/inventory/drift.ts';
import type { Inventory } from '../src/model/inventory.ts';
import type { Policy } from '../src/model/policy.ts';
import type { Journal, SeqNote } from '../src/update/journal.ts';
import { newRunId } from '../src/update/new-run-id.ts';
import { comparisonOf } from '../src/update/planner.ts';
import { heldText, holderOf } from '../src/update/planner-offers.ts';
import { remarksOf } from '../src/update/remarks.ts';
import { hasVm, isGateOpen, runOf } from '../src/update/state.ts';
import { everyTapOf } from '../src/update/taps.ts';
import type { VmRun } from '../src/update/vm-run.ts';
import { explain } from '../src/update/why.ts';
import type { VendorStatus } from '../src/vendor/vendor.ts';
import { runDoctor } from './doctor.ts';
import type { HostRooms } from './host-rooms.ts';
import { DEFAULT_TENANT } from './licenses.ts';
import { noLicenses } from './licenses-service.ts';
import type { DriftRow, PolicyView, Service, VmEventRecord, VmView, Why } from './service.ts';
import type { VendorBook } from './vendor-book.ts';
import {
  changedPolicy,
  changeText,
  checkPolicyFits,
  type OwnPolicy,
  policyOf,
  policyRemarks,
  ungatedNicsOf,
} from './vm-policy.ts';

/** Who asked, where the surface does not say: whoever may reach the socket. */
const API_ACTOR = 'api';

/** The service over the rooms. */
export function makeService(rooms: HostRooms): Service {
  const { clock, journal, audit, vendors } = rooms;
  const find = (vm: string): VmRun => {
    const run = [...rooms.runs.values()].find((each) => each.vm === vm);
    if (run !== undefined) return run;
    throw new PratiqueError('not-found/vm', `there is no VM ${vm}`, { next: 'list them with: pratique vm list' });
  };
  const fresh = () => ({ run: newRunId(), atMs: clock.nowMs() });
  const recordOperator = async (vm: VmRun, action: string, said = '', actor = API_ACTOR): Promise<void> => {
    const detail = redactText(said);
    const text = detail === '' ? action : `${action}: ${detail}`;
    vm.runner.note('operator', actor === API_ACTOR ? text : `${text} (${actor})`);
    await audit.append({ kind: 'operator', vm: vm.vm, actor, action, detail });
  };

  return {
    ...(rooms.licenses?.service ?? noLicenses()),
    addVm: async (spec, policy, { group, tenant } = {}) => {
      if (rooms.runs.has(spec.vm)) {
        throw new PratiqueError('conflict/vm-exists', `there is a VM ${spec.vm} already`, {
          next: `remove it first: pratique vm remove ${spec.vm}`,
        });
      }
      checkSpec(spec, [...rooms.runs.values()]);
      const change = { set: policy, unset: [], ...(group === undefined ? {} : { group }) };
      const given = changedPolicy(rooms.config, spec.vm, { own: {}, group: null }, change);
      checkPolicyFits(spec, policyOf(rooms.config, spec.vm, given));
      // Before anything can be asked for it: what it may have depends on whose it is.
      rooms.licenses?.setTenant(spec.vm, tenant ?? null);
      const run = rooms.addRun(spec, given);
      const ungated = ungatedNicsOf(spec);
      const whose = tenant === undefined ? '' : `tenant ${tenant}`;
      const said = [changeText(change), whose, ungated.length === 0 ? '' : `NICs not gated: ${ungated.join(', ')}`];
      await recordOperator(
        run,
        'vm-added',
        [`spec ${run.specDigest}`, ...said].filter((text) => text !== '').join('; '),
      );
      // A1: what it needs is fetched before it starts for the first time, as far as its disk tells.
      run.runner.post({ kind: 'stage' });
      return await viewOf(rooms, run);
    },
    listVms: async () => await Promise.all([...rooms.runs.values()].map((run) => viewOf(rooms, run))),
    showVm: async (vm) => {
      const run = find(vm);
      const known = rooms.inventories.last(run.vm);
      return {
        ...(await viewOf(rooms, run)),
        products: known?.inventory.products ?? [],
        config: known?.inventory.config ?? [],
        spec: run.spec,
        known: known === null ? null : { source: known.source, atMs: known.atMs },
      };
    },
    vmPolicy: async (vm) => policyViewOf(rooms, find(vm)),
    setVmPolicy: async (vm, { actor, ...change }) => {
      const run = find(vm);
      const given = changedPolicy(rooms.config, vm, ownPolicyOf(rooms, run), change);
      checkPolicyFits(run.spec, policyOf(rooms.config, vm, given));
      // On the record first: a policy that nobody is known to have given must not hold.
      await recordOperator(run, 'policy', changeText(change), actor);
      journal.savePolicy(run.vm, given);
      rooms.ownPolicies.set(run.vm, given);
      const { policy, trouble } = policyOf(rooms.config, vm, given);
      run.policy = policy;
      run.policyTrouble = trouble;
      return policyViewOf(rooms, run);
    },
    startVm: async (vm) => {
      const run = find(vm);
      await run.runner.request({ kind: 'start', ...fresh() });
      await recordOperator(run, 'start');
      return await viewOf(rooms, run);
    },
    stopVm: async (vm, { force }) => {
      const run = find(vm);
      await run.runner.request({ kind: 'stop', force });
      await recordOperator(run, force ? 'stop by force' : 'stop');
      return await viewOf(rooms, run);
    },
    retryVm: async (vm) => {
      const run = find(vm);
      await run.runner.request({ kind: 'retry', ...fresh() });
      await recordOperator(run, 'retry');
      return await viewOf(rooms, run);
    },
    admitVm: async (vm, { reason, actor }) => {
      const run = find(vm);
      if (reason.trim() === '')
        throw new PratiqueError('usage/reason', 'an override needs a reason', { next: 'say why with --reason' });
      await run.runner.request({ kind: 'admit', reason: redactText(reason), actor });
      await recordOperator(run, 'admit', reason, actor);
      return await viewOf(rooms, run);
    },
    removeVm: async (vm) => {
      const run = find(vm);
      // By its state, too: a VM that is being started is not held yet.
      if (run.running !== null || hasVm(run.runner.state())) {
        throw new PratiqueError('conflict/running', `${vm} is running`, {
          next: `stop it first: pratique vm stop ${vm}`,
        });
      }
      await rooms.removeRun(run, () => recordOperator(run, 'vm-removed'));
    },
    planVm: async (vm) => await find(vm).dryRun(new AbortController().signal),
    updateVm: async (vm) => {
      const run = find(vm);
      await run.runner.request({ kind: 'update', ...fresh() });
      await recordOperator(run, 'update');
      return await viewOf(rooms, run);
    },
    vmConfig: async (vm) => {
      const run = find(vm);
      const shown = (await rooms.guestConfig?.show(run.vm)) ?? null;
      return { vm: run.vm, isConfigured: shown !== null, ...(shown ?? { items: [], trouble: [], remarks: [] }) };
    },
    whyVm: async (vm) => whyOf(rooms, find(vm)),
    inspectVm: async (vm) => await find(vm).inspectDisk(new AbortController().signal),
    pastEvents: async ({ vm, afterSeq, limit }) =>
      journal.notes({ ...(vm === undefined ? {} : { vm }), afterSeq, limit }).map(asEvent),
    followEvents: (options) => followNotes(journal, options),
    addVendor: async (config) => {
      const status = await vendors.add(config);
      await audit.append({ kind: 'operator', actor: API_ACTOR, action: 'vendor-added', detail: config.name });
      return status;
    },
    listVendors: async () => vendors.registry.reports().map((report) => withAge(rooms, report)),
    checkVendor: async (name) => (await vendors.registry.refresh(name, {})).map((report) => withAge(rooms, report)),
    vendorOffers: async (name) => await vendors.registry.get(name).offers(),
    drift: async () => await driftOf(rooms),
    doctor: async () => [...(await runDoctor(rooms)), ...((await rooms.licenses?.doctorLines()) ?? [])],
    acceptClock: async ({ reason, actor }) => {
      const { trustTime } = rooms;
      const before = trustedNowMs(clock);
      const detail = `${isoTime(before)} -> ${isoTime(clock.nowMs())}: ${redactText(reason)}`;
      // On the record first: signatures that had expired are believed again afterwards.
      await audit.append({ kind: 'operator', actor, action: 'clock-accepted', detail });
      await trustTime?.accept();
      return { wallMs: clock.nowMs(), trustedMs: trustedNowMs(clock) };
    },
    startScrub: async () => {
      rooms.scrubbing?.start();
      return scrubViewOf(rooms);
    },
    scrubView: async () => scrubViewOf(rooms),
    auditEntries: async (query) => audit.entries(query),
    auditCheckpoint: async () => audit.checkpoint(),
    auditLines: async (query) => audit.lines(query),
    rotateAuditKey: async (options) => await audit.rotateKey(options),
    auditVerify: async (options) => await audit.verify(options),
  };
}

/** Taps of two VMs with one name would be admitted together. Throws PratiqueError. */
function checkSpec(spec: VmSpec, runs: readonly VmRun[]): void {
  const taps = everyTapOf(spec);
  const twice = taps.find((tap, index) => taps.indexOf(tap) !== index);
  if (twice !== undefined) {
    throw new PratiqueError('usage/spec', `${spec.vm}: nics: two of them have the same id or tap`, {
      next: 'give each NIC of the spec an id and a tap of its own',
    });
  }
  const covered = spec.nics.find((nic) => nic.gated === false && 'tap' in nic && isCoveredName(nic.tap));
  if (covered !== undefined) {
    throw new PratiqueError(
      'usage/spec',
      `${spec.vm}: the tap of ${covered.id} has a name that the fence always drops`,
      {
        next: 'give the tap of a NIC that is not gated a name that does not begin with pq',
      },
    );
  }
  for (const other of runs) {
    const shared = everyTapOf(other.spec).find((tap) => taps.includes(tap));
    if (shared === undefined) continue;
    throw new PratiqueError('conflict/tap', `${spec.vm}: the tap ${shared} is one of ${other.vm} already`, {
      next: 'name the taps that this VM alone has: whoever is admitted, is admitted by them',
    });
  }
}

const scrubViewOf = ({ scrubbing }: HostRooms) => scrubbing?.view() ?? { isRunning: false, last: null };

const ownPolicyOf = (rooms: HostRooms, { vm }: VmRun): OwnPolicy =>
  rooms.ownPolicies.get(vm) ?? { own: {}, group: null };

function policyViewOf(rooms: HostRooms, run: VmRun): PolicyView {
  const given = ownPolicyOf(rooms, run);
  return { vm: run.vm, own: given.own, ...policyOf(rooms.config, run.vm, given) };
}

function whyOf(rooms: HostRooms, run: VmRun): Why {
  const state = run.runner.state();
  const inventory = rooms.inventories.last(run.vm)?.inventory ?? null;
  const given = policyOf(rooms.config, run.vm, ownPolicyOf(rooms, run));
  const ofDisk = run.diskRemark === null ? [] : [run.diskRemark];
  const remarks = [...remarksOf(state), ...policyRemarks(run.spec, given, inventory), ...ofDisk];
  return {
    vm: run.vm,
    isPlugged: isGateOpen(state),
    state: state.kind,
    ...explain(run.vm, state, run.policy),
    remarks,
  };
}

/** A vendor knows whether its signatures are valid; the host's default policy, how old they may be. */
function withAge<T extends VendorStatus>({ config, clock }: HostRooms, report: T): T {
  const { checkedAtMs, trouble } = report;
  if (!report.isFresh || checkedAtMs === null) return report;
  const ageMs = trustedNowMs(clock) - checkedAtMs;
  if (ageMs >= 0 && ageMs <= config.policy.metadataAgeMaxMs) return report;
  const message = `verified last at ${isoTime(checkedAtMs)}, which is not within the policy's metadataAge`;
  return { ...report, isFresh: false, trouble: trouble ?? { code: 'vendor-ill/stale', message } };
}

async function viewOf(rooms: HostRooms, run: VmRun): Promise<VmView> {
  const state = run.runner.state();
  return {
    vm: run.vm,
    kind: run.spec.kind,
    state: state.kind,
    sinceMs: run.runner.sinceMs(),
    gate: isGateOpen(state) ? 'open' : 'closed',
    run: runOf(state)?.run ?? null,
    os: rooms.inventories.last(run.vm)?.inventory.os ?? null,
    agentVersion: run.agentVersion,
    specDigest: run.specDigest,
    policy: run.policy,
    group: policyOf(rooms.config, run.vm, ownPolicyOf(rooms, run)).group,
    tenant: rooms.licenses?.tenantOf(run.vm) ?? DEFAULT_TENANT,
    ungatedNics: ungatedNicsOf(run.spec),
    fenceDropped: await fenceDroppedOf(rooms, run),
    why: whyOf(rooms, run),
  };
}

async function fenceDroppedOf(rooms: HostRooms, run: VmRun): Promise<VmView['fenceDropped']> {
  const { running } = run;
  if (running === null) return { fromGuest: 0, toGuest: 0 };
  try {
    const fence = await rooms.fenceFor(running.namespace);
    return await fence.counters(running.taps.map((tap) => tap.name));
  } catch (error) {
    rooms.log.warn({ vm: run.vm, detail: describeError(error) }, "the fence's counters could not be read");
    return { fromGuest: 0, toGuest: 0 };
  }
}

const asEvent = (note: SeqNote): VmEventRecord => note;

/** Past notes, then live ones as they come, without a gap or a repetition between the two. */
async function* followNotes(
  journal: Journal,
  options: { readonly vm?: string; readonly afterSeq: number; readonly signal: AbortSignal },
): AsyncGenerator<VmEventRecord> {
  const { vm, signal } = options;
  let after = options.afterSeq;
  let wake = () => {};
  const stop = journal.onNote(() => wake());
  signal.addEventListener('abort', () => wake(), { once: true });
  try {
    while (!signal.aborted) {
      const woken = new Promise<void>((resolve) => {
        wake = resolve;
      });
      const page = journal.notes({ ...(vm === undefined ? {} : { vm }), afterSeq: after, limit: EVENTS_PAGE_MAX });
      for (const note of page) {
        after = note.seq;
        yield asEvent(note);
      }
      if (page.length === 0 && !signal.aborted) await woken;
    }
  } finally {
    stop();
  }
}

/** What is behind on every VM, from the last known inventories and the vendors' verified metadata; no network. */
async function driftOf(rooms: HostRooms): Promise<readonly DriftRow[]> {
  const { registry } = rooms.vendors;
  const compare = comparisonOf(registry.opened());
  for (const vm of rooms.inventories.vms()) {
    const known = rooms.inventories.last(vm);
    if (known === null) continue;
    const run = rooms.runs.get(vm);
    const policy = run?.policy ?? rooms.config.policy;
    const behind = await behindOf(registry, known.inventory, policy, compare);
    // What a disk tells it tells of software alone.
    const configuration = known.source === 'disk' ? null : ((await rooms.guestConfig?.resolve(vm)) ?? null);
    const config = findConfigDrift(known.inventory, configuration);
    rooms.inventories.setDrift(vm, [...behind, ...config], rooms.clock.nowMs());
  }
  const sources = new Map(rooms.inventories.vms().map((vm) => [vm, rooms.inventories.last(vm)?.source]));
  return rooms.inventories.drift().map((entry) => ({
    ...entry,
    source: sources.get(entry.vm) ?? 'report',
    remark: entry.remark ?? null,
  }));
}

/** What is behind whatever holds it back, with the reason where something does. */
async function behindOf(
  registry: VendorBook['registry'],
  inventory: Inventory,
  policy: Policy,
  compare: CompareVersions,
): Promise<readonly Behind[]> {
  const unheld = { ...inventory, products: inventory.products.map((product) => ({ ...product, held: false })) };
  const { releases, leftOut } = await registry.latest(unheld);
  const index = indexProducts(inventory);
  const reasons = new Map<string, string>();
  for (const product of inventory.products) {
    const holder = holderOf(product, policy);
    if (holder !== null) reasons.set(`${product.ecosystem}/${product.product}`, heldText(holder, product.version));
  }
  const known = findDrift(inventory, releases, compare).map((entry): Behind => {
    const remark = reasons.get(`${entry.ecosystem}/${entry.product}`);
    return remark === undefined ? entry : { ...entry, remark };
  });
  return [...known, ...leftOut.flatMap((entry) => behindLeftOut(entry, index))];
}
