// Answers the surfaces from the rooms of a running host.
import { describeError, PratiqueError } from '../src/base/errors.ts';
import { EVENTS_PAGE_MAX } from '../src/base/limits.ts';
import type { VmSpec } from '../src/hypervisor/vm-spec.ts';
import { findDrift } from '../src/inventory/drift.ts';
import { DEFAULT_POLICY } from '../src/model/policy.ts';
import type { Journal, SeqNote } from '../src/update/journal.ts';
import { newRunId } from '../src/update/new-run-id.ts';
import { comparisonOf } from '../src/update/planner.ts';
import { hasVm, isGateOpen, runOf } from '../src/update/state.ts';
import { tapNamesOf } from '../src/update/taps.ts';
import type { VmRun } from '../src/update/vm-run.ts';
import { explain } from '../src/update/why.ts';
import { runDoctor } from './doctor.ts';
import type { HostRooms } from './host-rooms.ts';
import type { DriftRow, Service, VmEventRecord, VmView, Why } from './service.ts';

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
  const recordOperator = async (vm: VmRun, action: string, detail = '', actor = API_ACTOR): Promise<void> => {
    const text = detail === '' ? action : `${action}: ${detail}`;
    vm.runner.note('operator', actor === API_ACTOR ? text : `${text} (${actor})`);
    await audit.append({ kind: 'operator', vm: vm.vm, actor, action, detail });
  };

  return {
    addVm: async (spec, policy) => {
      if (rooms.runs.has(spec.vm)) {
        throw new PratiqueError('conflict/vm-exists', `there is a VM ${spec.vm} already`, {
          next: `remove it first: pratique vm remove ${spec.vm}`,
        });
      }
      checkSpec(spec, [...rooms.runs.values()]);
      const run = rooms.addRun(spec, { ...DEFAULT_POLICY, ...rooms.config.policy, ...policy });
      await recordOperator(run, 'vm-added', `spec ${run.specDigest}`);
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
        spec: run.spec,
        known: known === null ? null : { source: known.source, atMs: known.atMs },
      };
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
      await run.runner.request({ kind: 'admit', reason, actor });
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
    whyVm: async (vm) => whyOf(find(vm)),
    inspectVm: async (vm) => await find(vm).inspectDisk(new AbortController().signal),
    pastEvents: async ({ vm, afterSeq, limit }) =>
      journal.notes({ ...(vm === undefined ? {} : { vm }), afterSeq, limit }).map(asEvent),
    followEvents: (options) => followNotes(journal, options),
    addVendor: async (config) => {
      const status = await vendors.add(config);
      await audit.append({ kind: 'operator', actor: API_ACTOR, action: 'vendor-added', detail: config.name });
      return status;
    },
    listVendors: async () => vendors.registry.reports(),
    checkVendor: async (name) => await vendors.registry.refresh(name, {}),
    vendorOffers: async (name) => await vendors.registry.get(name).offers(),
    drift: async () => await driftOf(rooms),
    doctor: async () => await runDoctor(rooms),
    auditEntries: async (query) => audit.entries(query),
    auditCheckpoint: async () => audit.checkpoint(),
    auditVerify: async (options) => await audit.verify(options),
  };
}

/** Taps of two VMs with one name would be admitted together. Throws PratiqueError. */
function checkSpec(spec: VmSpec, runs: readonly VmRun[]): void {
  const taps = tapNamesOf(spec);
  const twice = taps.find((tap, index) => taps.indexOf(tap) !== index);
  if (twice !== undefined) {
    throw new PratiqueError('usage/spec', `${spec.vm}: nics: two of them have the same id or tap`, {
      next: 'give each NIC of the spec an id and a tap of its own',
    });
  }
  for (const other of runs) {
    const shared = tapNamesOf(other.spec).find((tap) => taps.includes(tap));
    if (shared === undefined) continue;
    throw new PratiqueError('conflict/tap', `${spec.vm}: the tap ${shared} is one of ${other.vm} already`, {
      next: 'name the taps that this VM alone has: whoever is admitted, is admitted by them',
    });
  }
}

function whyOf(run: VmRun): Why {
  const state = run.runner.state();
  return { vm: run.vm, isPlugged: isGateOpen(state), state: state.kind, ...explain(run.vm, state) };
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
    fenceDropped: await fenceDroppedOf(rooms, run),
    why: whyOf(run),
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
    const { releases } = await registry.latest(known.inventory);
    rooms.inventories.setDrift(vm, findDrift(known.inventory, releases, compare), rooms.clock.nowMs());
  }
  const sources = new Map(rooms.inventories.vms().map((vm) => [vm, rooms.inventories.last(vm)?.source]));
  return rooms.inventories.drift().map((entry) => ({ ...entry, source: sources.get(entry.vm) ?? 'report' }));
}
