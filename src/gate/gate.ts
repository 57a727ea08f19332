// The only code that lets a VM run, raises a link, lifts a fence or releases media. Closing wins over everything.
//
//   close: expel from the fence ─► lower the links ─► withhold media ─► read the fence back ─► record
//   open:  evidence or override ─► signed record on disk ─► admit ─► raise the links ─► release media
//
// What stands open is remembered by the run's journal and by the kernel's own table (QEMU cannot be asked for a link's
// state). The journal says `connected` only after `open` returned; whatever is not both is closed when the daemon starts.
import type { AuditRecord } from '../audit/record.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import { type ErrorCode, PratiqueError } from '../base/errors.ts';
import type { Log } from '../base/log.ts';
import { type Fence, type FenceState, isCoveredName } from '../hypervisor/fence.ts';
import type { RunningVm } from '../hypervisor/hypervisor.ts';
import type { Namespace } from '../hypervisor/vm-spec.ts';
import type { Evidence } from '../model/evidence.ts';
import type { RunId, VmId } from '../model/ids.ts';

/** The gate refused, or a layer did not do what was asked; then the VM is closed as far as possible. */
export class GateError extends PratiqueError {}

/** What entitles a VM to be plugged in. */
export type GateGrant =
  | {
      readonly kind: 'evidence';
      readonly run: RunId;
      readonly evidence: Evidence;
      /** Whether the session that confirmed is still the present one; asked again before each layer opens. Absent: it is. */
      readonly isCurrent?: () => boolean;
    }
  /** By an operator, or for an infrastructure VM: recorded with who and why. */
  | { readonly kind: 'override'; readonly run: RunId; readonly reason: string; readonly actor: string };

export type Gate = {
  /**
   * Closes fence, links and media, in this order, each even if one before failed, and reads the fence back. Throws GateError
   * `host-fault/gate-close` naming the layers that could not be closed.
   */
  readonly close: (vm: RunningVm, reason: string) => Promise<void>;
  /**
   * Fences the taps of a VM whose monitor is out of reach: its links cannot be lowered, but no frame passes. Throws GateError
   * `host-fault/gate-close`.
   */
  readonly fenceOff: (vm: VmId, namespace: Namespace, taps: readonly string[], reason: string) => Promise<void>;
  /**
   * Lets a stopped VM run. Throws GateError and leaves it stopped unless this gate closed it, the fence in the kernel holds,
   * and links and media could be lowered and withheld once more.
   */
  readonly resume: (vm: RunningVm) => Promise<void>;
  /**
   * Plugs a VM in. Throws GateError `refused/…` without a change for anything but genuine evidence or an override with a
   * reason, or when a close was asked for meanwhile; and closes again if a layer fails. Repeated for the same run: no change.
   */
  readonly open: (vm: RunningVm, grant: GateGrant) => Promise<{ readonly linkUpAtMs: number }>;
  /** Whether the kernel's fence stands and admits every tap of the VM. */
  readonly isAdmitted: (vm: RunningVm) => Promise<boolean>;
};

export type GateDeps = {
  readonly fenceFor: (namespace: Namespace) => Promise<Fence>;
  /** Resolves when the record is on disk. */
  readonly audit: (record: AuditRecord) => Promise<unknown>;
  /** Only what the judge made in this process is evidence. */
  readonly isEvidence: (value: unknown) => value is Evidence;
  readonly log: Log;
  readonly clock?: Clock;
};

/** What this gate did last to a VM, in this process. */
type Position =
  | { readonly kind: 'unknown' }
  | { readonly kind: 'closed' }
  | { readonly kind: 'open'; readonly run: RunId; readonly by: GateGrant['kind']; readonly linkUpAtMs: number };

/** Makes the gate of this host. */
export function makeGate(deps: GateDeps): Gate {
  const clock = deps.clock ?? systemClock;
  const lanes = makeLanes();
  const positions = new WeakMap<RunningVm, Position>();
  const positionOf = (vm: RunningVm): Position => positions.get(vm) ?? { kind: 'unknown' };

  const isAdmitted = async (vm: RunningVm): Promise<boolean> => {
    const { fault, admitted } = await (await deps.fenceFor(vm.namespace)).verify();
    return fault === null && vm.taps.every((tap) => admitted.has(tap.name));
  };
  const shut = async (vm: RunningVm): Promise<void> => {
    positions.set(vm, { kind: 'unknown' });
    const failures = await closeLayers(vm, deps.fenceFor);
    const [first] = failures;
    if (first !== undefined) throw notClosed(vm.vm, failures, first.cause);
    positions.set(vm, { kind: 'closed' });
  };
  const plug = async (vm: RunningVm, grant: GateGrant, isStillMeant: () => boolean): Promise<number> => {
    positions.set(vm, { kind: 'unknown' });
    const fence = await deps.fenceFor(vm.namespace);
    await fence.admit(vm.taps.map((tap) => tap.name));
    if (!isStillMeant()) throw closedMeanwhile(vm.vm);
    await vm.raiseLinks();
    const linkUpAtMs = clock.nowMs();
    if (!isStillMeant()) throw closedMeanwhile(vm.vm);
    await vm.releaseMedia();
    positions.set(vm, { kind: 'open', run: grant.run, by: grant.kind, linkUpAtMs });
    return linkUpAtMs;
  };
  const open = async (vm: RunningVm, grant: GateGrant, isStillMeant: () => boolean) => {
    checkGrant(deps, vm, grant);
    const before = positionOf(vm);
    // An override of what evidence opened a moment ago is a decision of its own, and recorded.
    const isRepeated = before.kind === 'open' && before.run === grant.run && before.by === grant.kind;
    if (isRepeated && (await isAdmitted(vm))) return before;
    await record(deps, vm.vm, grant);
    if (!isStillMeant()) throw closedMeanwhile(vm.vm);
    try {
      return { linkUpAtMs: await plug(vm, grant, isStillMeant) };
    } catch (cause) {
      await shut(vm).catch((error: unknown) => {
        deps.log.error({ vm: vm.vm, err: error }, 'a half-open gate could not be closed');
      });
      throw new GateError('host-fault/gate-open', `${vm.vm}: could not be plugged in; it is closed again`, { cause });
    }
  };

  /**
   * A close never waits for an opening that waits for QEMU: the fence drops the VM's frames meanwhile, whenever the link comes up.
   * What fails here is done once more, and told, when it is the close's turn.
   */
  const fenceAtOnce = async (vm: VmId, namespace: Namespace, taps: readonly string[]): Promise<void> => {
    if (!lanes.isBusy(vm)) return;
    try {
      await (await deps.fenceFor(namespace)).expel(taps);
    } catch (error) {
      deps.log.warn({ vm, err: error }, 'a VM that is being opened could not be fenced at once');
    }
  };

  return {
    close: (vm, reason) => {
      lanes.askForClose(vm.vm);
      void fenceAtOnce(vm.vm, vm.namespace, tapNames(vm));
      return lanes.run(vm.vm, async () => {
        await shut(vm);
        await deps.audit({ kind: 'gate-closed', vm: vm.vm, reason });
      });
    },
    fenceOff: async (vm, namespace, taps, reason) => {
      lanes.askForClose(vm);
      void fenceAtOnce(vm, namespace, taps);
      await lanes.run(vm, async () => {
        try {
          await closeFence(vm, taps, await deps.fenceFor(namespace));
        } catch (cause) {
          throw notClosed(vm, [{ layer: 'the fence', cause }], cause);
        }
        await deps.audit({ kind: 'gate-closed', vm, reason });
      });
    },
    resume: (vm) =>
      lanes.run(vm.vm, async () => {
        if (positionOf(vm).kind !== 'closed') throw staysStopped(vm.vm, 'its gate was not closed before');
        await checkClosed(vm, await deps.fenceFor(vm.namespace));
        await vm.resume();
      }),
    open: (vm, grant) => {
      const isUnasked = lanes.watchForClose(vm.vm);
      const isStillMeant = () => isUnasked() && (grant.kind === 'override' || grant.isCurrent?.() !== false);
      return lanes.run(vm.vm, () => open(vm, grant, isStillMeant));
    },
    isAdmitted,
  };
}

const tapNames = (vm: RunningVm): readonly string[] => vm.taps.map((tap) => tap.name);

type Failure = { readonly layer: string; readonly cause: unknown };

async function closeLayers(vm: RunningVm, fenceFor: GateDeps['fenceFor']): Promise<readonly Failure[]> {
  const failures: Failure[] = [];
  const attempt = async (layer: string, work: () => Promise<void>) => {
    try {
      await work();
    } catch (cause) {
      failures.push({ layer, cause });
    }
  };
  await attempt('the fence', async () => closeFence(vm.vm, tapNames(vm), await fenceFor(vm.namespace)));
  await attempt('the links', vm.lowerLinks);
  await attempt('the removable media', vm.withholdMedia);
  return failures;
}

/** Expels at once; a fence that is not as it has to be is then mended, and looked at again. */
async function closeFence(vm: VmId, names: readonly string[], fence: Fence): Promise<void> {
  const isExpelled = await fence.expel(names).then(
    () => true,
    () => false,
  );
  let state = await fence.verify();
  if (!isExpelled || fenceTrouble(names, state) !== null) {
    await fence.ensure();
    await fence.guard(names.filter((name) => !isCoveredName(name)));
    await fence.expel(names);
    state = await fence.verify();
  }
  const trouble = fenceTrouble(names, state);
  if (trouble === null) return;
  throw new GateError('host-fault/fence-open', `${vm}: the fence does not hold: ${trouble}`, {
    next: 'look at `nft list table bridge pratique`',
  });
}

/** Why the kernel's table does not fence all of the VM's taps; null when it does. */
function fenceTrouble(names: readonly string[], { fault, admitted, gated }: FenceState): string | null {
  if (fault !== null) return fault;
  for (const name of names) {
    if (admitted.has(name)) return `it admits the tap ${name}`;
    if (!isCoveredName(name) && !gated.has(name)) return `it does not know the tap ${name}`;
  }
  return null;
}

/** The last look before a VM runs. Links are lowered once more rather than asked for: QEMU does not tell. */
async function checkClosed(vm: RunningVm, fence: Fence): Promise<void> {
  const trouble = fenceTrouble(tapNames(vm), await fence.verify());
  if (trouble !== null) throw staysStopped(vm.vm, `the fence does not hold: ${trouble}`);
  try {
    await vm.lowerLinks();
    await vm.withholdMedia();
  } catch (cause) {
    throw staysStopped(vm.vm, 'links and media could not be checked', cause);
  }
}

function checkGrant(deps: GateDeps, vm: RunningVm, grant: GateGrant): void {
  const refuse = (code: ErrorCode, detail: string) => new GateError(code, `${vm.vm} is not plugged in: ${detail}`);
  if (grant.kind === 'override') {
    if (grant.reason.trim() !== '' && grant.actor.trim() !== '') return;
    throw refuse('refused/override', 'an override needs a reason and the name of who gives it');
  }
  if (!deps.isEvidence(grant.evidence)) {
    throw refuse('refused/evidence', 'what was given is no evidence of this process');
  }
  if (grant.evidence.vm === vm.vm && grant.evidence.run === grant.run) return;
  throw refuse('refused/evidence-of-another', `the evidence is for run ${grant.evidence.run} of ${grant.evidence.vm}`);
}

/** Puts the decision on disk before anything moves. */
async function record(deps: GateDeps, vm: VmId, grant: GateGrant): Promise<void> {
  const entry: AuditRecord =
    grant.kind === 'evidence'
      ? { kind: 'gate-opened', vm, evidence: grant.evidence }
      : { kind: 'override', vm, run: grant.run, actor: grant.actor, reason: grant.reason };
  try {
    await deps.audit(entry);
  } catch (cause) {
    throw new GateError('host-fault/gate-record', `${vm} is not plugged in: the decision could not be recorded`, {
      cause,
    });
  }
}

function notClosed(vm: VmId, failures: readonly Failure[], cause: unknown): GateError {
  const layers = failures.map(({ layer }) => layer).join(', ');
  return new GateError('host-fault/gate-close', `${vm}: could not close ${layers}`, {
    cause,
    next: 'end the VM if it must not reach the network',
  });
}

function staysStopped(vm: VmId, detail: string, cause?: unknown): GateError {
  return new GateError('refused/gate-not-closed', `${vm} is not let run: ${detail}`, { cause, next: 'retry it' });
}

function closedMeanwhile(vm: VmId): GateError {
  return new GateError('refused/closed-meanwhile', `${vm}: the gate was closed while it was being opened`);
}

/**
 * One VM's changes one after the other, also when it was taken over anew in between; and whether a close was asked for since,
 * so that an open that waits gives way.
 */
function makeLanes() {
  type Lane = { closes: number; waiting: number; last: Promise<unknown> };
  const lanes = new Map<VmId, Lane>();
  const laneOf = (vm: VmId): Lane => {
    const lane = lanes.get(vm) ?? { closes: 0, waiting: 0, last: Promise.resolve() };
    lanes.set(vm, lane);
    return lane;
  };
  return {
    askForClose: (vm: VmId) => {
      laneOf(vm).closes += 1;
    },
    watchForClose: (vm: VmId) => {
      const lane = laneOf(vm);
      const { closes } = lane;
      return () => lane.closes === closes;
    },
    run: <T>(vm: VmId, work: () => Promise<T>): Promise<T> => {
      const lane = laneOf(vm);
      lane.waiting += 1;
      const mine = lane.last.then(work).finally(() => {
        lane.waiting -= 1;
      });
      lane.last = mine.catch(() => {});
      return mine;
    },
    /** Whether anything is being done to this VM, or waits for that. */
    isBusy: (vm: VmId): boolean => laneOf(vm).waiting > 0,
  };
}
