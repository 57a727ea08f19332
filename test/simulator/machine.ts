// The world outside of the daemon: QEMUs, the kernel's fence and the guests' disks. It stays when the daemon dies.
import type { Clock } from '../../src/base/clock.ts';
import { PratiqueError } from '../../src/base/errors.ts';
import { type Fence, isCoveredName } from '../../src/hypervisor/fence.ts';
import type { DiskOverlay, HypervisorDriver, RunningVm, VmEvent } from '../../src/hypervisor/hypervisor.ts';
import type { ManagedVm, VmSpec } from '../../src/hypervisor/vm-spec.ts';
import type { VmId } from '../../src/model/ids.ts';
import { everyTapOf } from '../../src/update/taps.ts';
import type { Disk } from './guest.ts';
import type { BuiltImage } from './rooms.ts';
import { managedSpec } from './specs.ts';

/** For tests of one VM's pieces. */
export const SPEC: ManagedVm = managedSpec('sim' as VmId, 0); // The form that the brand promises.

export class SimulatedFault extends PratiqueError {}

/** The kernel's table. */
export type Kernel = { hasTable: boolean; readonly admitted: Set<string>; readonly gated: Set<string> };

/** One QEMU as it really is. */
export type Machine = {
  readonly vm: VmId;
  readonly spec: VmSpec;
  readonly taps: readonly string[];
  exists: boolean;
  /** Counts its QEMUs: a handle is of one of them. */
  process: number;
  /** Counts starts, resets and kexecs: what runs now is what was judged only if this has not changed. */
  epoch: number;
  epochAtMs: number;
  /** The epoch came without the host's stopping it: kexec, the reset or restart of an attached VM. */
  isEpochUnannounced: boolean;
  /** When the daemon was told of this boot. */
  toldAtMs: number | null;
  isStopped: boolean;
  /** No instruction has run since QEMU was started. */
  isFresh: boolean;
  /** Stopped at a reset that nobody was told of. */
  isResetPending: boolean;
  isLinkUp: boolean;
  drive: BuiltImage | null;
  isMonitorLost: boolean;
  /** Our mark in somebody else's QEMU. */
  isMarked: boolean;
  /** What lies over the disk, with what the disk itself holds meanwhile. */
  overlay: { fate: 'trial' | 'accepted'; readonly below: Disk } | null;
  /** Tells the daemon that holds it. */
  listener: ((event: VmEvent) => void) | null;
};

export function makeMachine(spec: VmSpec): Machine {
  return {
    vm: spec.vm,
    spec,
    taps: everyTapOf(spec),
    exists: false,
    process: 0,
    epoch: 0,
    epochAtMs: 0,
    isEpochUnannounced: false,
    toldAtMs: null,
    isStopped: true,
    isFresh: true,
    isResetPending: false,
    isLinkUp: false,
    drive: null,
    isMonitorLost: false,
    isMarked: false,
    overlay: null,
    listener: null,
  };
}

/** Whether a frame of the guest would reach the network now. */
export function framesPass(kernel: Kernel, machine: Machine): boolean {
  if (!machine.exists || machine.isStopped || !machine.isLinkUp) return false;
  const isDropped = (tap: string): boolean =>
    kernel.hasTable && !kernel.admitted.has(tap) && (isCoveredName(tap) || kernel.gated.has(tap));
  return machine.taps.some((tap) => !isDropped(tap));
}

/** Another boot began. */
export function beginEpoch(machine: Machine, nowMs: number, isUnannounced: boolean): void {
  machine.epoch += 1;
  machine.epochAtMs = nowMs;
  machine.isEpochUnannounced = isUnannounced;
  machine.toldAtMs = null;
}

/** QEMU is gone; who is told is the caller's to say. The fence's set keeps the tap of an attached VM: its owner made it. */
export function endMachine(kernel: Kernel, machine: Machine): void {
  machine.exists = false;
  machine.drive = null;
  machine.isLinkUp = false;
  machine.isStopped = true;
  machine.isResetPending = false;
  machine.isMarked = false;
  if (machine.spec.kind === 'managed') for (const tap of machine.taps) kernel.admitted.delete(tap);
}

/** Every touch of the world by the daemon: late, failing or never, as the simulation decides. */
export type Touch = <T>(
  what: string,
  work: () => T,
  /** `isQuick`: the kernel's own, which nothing holds up for longer than a moment. */
  options?: { readonly mayFail?: boolean; readonly isQuick?: boolean },
) => Promise<T>;

/** The kernel's table, which does not fail. */
export function makeFence(parts: {
  readonly kernel: Kernel;
  readonly touchOf: (tap: string | undefined) => Touch;
  readonly onChange: () => void;
  /** A mutation: taps are never forgotten. */
  readonly isKeeping: boolean;
}): Fence {
  const { kernel, touchOf, onChange, isKeeping } = parts;
  const sure = { mayFail: false, isQuick: true } as const;
  const change = (what: string, taps: readonly string[], each: (tap: string) => void): Promise<void> =>
    touchOf(taps[0])(
      what,
      () => {
        if (!kernel.hasTable) throw new SimulatedFault('host-fault/fence', `${what}: there is no table`);
        taps.forEach(each);
        onChange();
      },
      sure,
    );
  const read = () => ({
    fault: kernel.hasTable ? null : 'there is no table',
    admitted: new Set(kernel.admitted),
    gated: new Set(kernel.gated),
  });
  return {
    ensure: async () => {
      kernel.hasTable = true;
    },
    guard: async (taps) => {
      for (const tap of taps) kernel.gated.add(tap);
    },
    unguard: async (taps) => {
      for (const tap of taps) if (!isKeeping) kernel.gated.delete(tap);
    },
    admit: (taps) => change('admit', taps, (tap) => kernel.admitted.add(tap)),
    expel: (taps) => change('expel', taps, (tap) => kernel.admitted.delete(tap)),
    isAdmitted: async (tap) => kernel.admitted.has(tap),
    verify: () => touchOf(undefined)('', read, sure),
    counters: async () => ({ fromGuest: 0, toGuest: 0 }),
    close: () => {},
  };
}

export type DriverHooks = {
  readonly kernel: Kernel;
  readonly machineOf: (vm: VmId) => Machine;
  readonly touchOf: (vm: VmId) => Touch;
  readonly clock: Clock;
  readonly onChange: () => void;
  /** Power on, or on again after a reset: the guest boots. */
  readonly onBoot: (vm: VmId) => void;
  readonly onEnd: (vm: VmId) => void;
  readonly readDisk: (vm: VmId) => Disk;
  readonly writeDisk: (vm: VmId, disk: Disk) => void;
  /** The drive at a path. */
  readonly imageAt: (path: string) => BuiltImage;
  /** Milliseconds that a merge takes. */
  readonly mergeMs: () => number;
  readonly complain: (broken: string) => void;
  readonly isDiscardingAll: boolean;
  readonly isDead: () => boolean;
};

/** A driver of one incarnation of the daemon over the machines. */
export function makeDriver(hooks: DriverHooks): HypervisorDriver {
  return {
    kind: 'qmp',
    start: async (spec) => {
      const machine = hooks.machineOf(spec.vm);
      if (spec.kind === 'attached') return await adoptAttached(hooks, machine, 'start');
      await hooks.touchOf(spec.vm)('start QEMU', () => {
        if (machine.exists) throw new SimulatedFault('host-fault/qemu', `${spec.vm}: start: its QEMU runs already`);
        if (machine.overlay !== null)
          hooks.complain(`${spec.vm} is started from its disk while an overlay lies over it`);
        hooks.kernel.hasTable = true;
        machine.process += 1;
        Object.assign(machine, { exists: true, isStopped: true, isFresh: true, isLinkUp: false, drive: null });
        Object.assign(machine, { isMonitorLost: false, isResetPending: false });
        beginEpoch(machine, hooks.clock.monotonicMs(), false);
      });
      return makeHandle(hooks, machine, { kind: 'fresh' });
    },
    adopt: async (spec) => {
      const machine = hooks.machineOf(spec.vm);
      const isThere = await hooks.touchOf(spec.vm)('adopt', () => machine.exists, { mayFail: false });
      if (!isThere) return null;
      if (spec.kind === 'attached') return await adoptAttached(hooks, machine, 'adopt');
      machine.isMonitorLost = false;
      return makeHandle(hooks, machine, { kind: 'same-process' });
    },
    settleOverlay: ({ vm }) => settleOverlay(hooks, hooks.machineOf(vm)),
  };
}

async function adoptAttached(hooks: DriverHooks, machine: Machine, what: string): Promise<RunningVm> {
  const { kernel } = hooks;
  const adopted = await hooks.touchOf(machine.vm)(`${what} somebody's QEMU`, (): RunningVm['adopted'] => {
    if (!machine.exists)
      throw new SimulatedFault('host-fault/qmp-connect', `${machine.vm}: nobody listens on its monitor`);
    kernel.hasTable = true;
    for (const tap of machine.taps) if (!isCoveredName(tap)) kernel.gated.add(tap);
    const wasMarked = machine.isMarked;
    machine.isMarked = true;
    machine.isMonitorLost = false;
    if (machine.isFresh) return { kind: 'fresh' };
    return { kind: wasMarked ? 'same-process' : 'ungated' };
  });
  return makeHandle(hooks, machine, adopted);
}

function settleOverlay(hooks: DriverHooks, machine: Machine): Promise<'none' | 'discarded' | 'committed'> {
  return hooks.touchOf(machine.vm)('settle the overlay', () => {
    const over = machine.overlay;
    if (over === null) return 'none';
    if (machine.exists) throw new SimulatedFault('host-fault/overlay', 'settle: its QEMU runs');
    machine.overlay = null;
    if (over.fate === 'accepted' && !hooks.isDiscardingAll) return 'committed';
    hooks.writeDisk(machine.vm, over.below);
    return 'discarded';
  });
}

type Qmp = Touch;

/** A monitor that fails once its QEMU is gone, or another one stands in its place. */
function makeQmp(hooks: DriverHooks, machine: Machine): Qmp {
  const { process } = machine;
  return (what, work, options) =>
    hooks.touchOf(machine.vm)(
      what,
      () => {
        if (!machine.exists || machine.isMonitorLost || machine.process !== process)
          throw new SimulatedFault('host-fault/qmp-closed', `${what}: the monitor is closed`);
        return work();
      },
      options,
    );
}

function makeOverlay(hooks: DriverHooks, machine: Machine, qmp: Qmp): DiskOverlay {
  return {
    fate: async () => machine.overlay?.fate ?? 'none',
    begin: () =>
      qmp('begin an overlay', () => {
        if (machine.overlay?.fate === 'trial') return;
        if (machine.overlay !== null)
          throw new SimulatedFault('host-fault/overlay', 'begin an overlay: the one before is not merged');
        machine.overlay = { fate: 'trial', below: hooks.readDisk(machine.vm) };
      }),
    accept: () =>
      hooks.touchOf(machine.vm)('accept the overlay', () => {
        if (machine.overlay !== null) machine.overlay.fate = 'accepted';
      }),
    commit: async () => {
      if (machine.overlay?.fate !== 'accepted') return false;
      await qmp('begin to merge', () => {});
      await hooks.clock.sleep(hooks.mergeMs());
      return await qmp('merge the overlay', () => {
        const isMerged = machine.overlay?.fate === 'accepted';
        if (isMerged) machine.overlay = null;
        return isMerged;
      });
    },
  };
}

function makeHandle(hooks: DriverHooks, machine: Machine, adopted: RunningVm['adopted']): RunningVm {
  const { spec, vm, process } = machine;
  const qmp = makeQmp(hooks, machine);
  let mine: ((event: VmEvent) => void) | null = null;
  const taps = machine.taps.map((name, index) => ({ name, nic: spec.nics[index]?.id ?? name }));
  return {
    ...(spec.kind === 'managed' ? { overlay: makeOverlay(hooks, machine, qmp) } : {}),
    vm,
    namespace: { kind: 'host' },
    taps,
    channelSocket: `/simulated/${vm}`,
    adopted,
    driveFrontEnds: ['virtio-blk'],
    onEvent: (told) => {
      mine = (event) => {
        if (!hooks.isDead()) told(event);
      };
      machine.listener = mine;
      // What happened before anybody listened is told now.
      if (!machine.exists || machine.process !== process) {
        hooks.clock.after(0, () => mine?.({ kind: 'exited', detail: 'it ended meanwhile', isGuestsWish: false }));
        return;
      }
      if (machine.isMonitorLost)
        hooks.clock.after(0, () => mine?.({ kind: 'monitor-lost', detail: 'it was lost meanwhile' }));
      if (!machine.isResetPending) return;
      machine.isResetPending = false;
      mine({ kind: 'reset', isStopped: true });
    },
    lowerLinks: () =>
      qmp('lower links', () => {
        machine.isLinkUp = false;
      }),
    raiseLinks: () =>
      qmp('raise links', () => {
        machine.isLinkUp = true;
        hooks.onChange();
      }),
    resume: () =>
      qmp('resume', () => {
        if (!machine.isStopped) return;
        machine.isStopped = false;
        machine.isFresh = false;
        machine.isEpochUnannounced = false;
        hooks.onBoot(vm);
        hooks.onChange();
      }),
    resetStopped: () =>
      qmp('reset', () => {
        machine.isStopped = true;
        machine.drive = null;
        beginEpoch(machine, hooks.clock.monotonicMs(), false);
      }),
    isStopped: () => qmp('query status', () => machine.isStopped),
    attachDrive: ({ source }) =>
      qmp('attach', () => {
        machine.drive = hooks.imageAt('path' in source ? source.path : '');
        hooks.onChange();
      }),
    reopenDrive: () => qmp('reopen the drive', () => {}),
    detachDrive: () =>
      qmp('detach', () => {
        machine.drive = null;
        return { surprise: false };
      }),
    hasDrive: () => qmp('look for the drive', () => machine.drive !== null),
    releaseMedia: () => qmp('release media', () => {}),
    withholdMedia: () => qmp('withhold media', () => {}),
    stop: ({ graceful }) =>
      hooks.touchOf(vm)('stop', () => {
        if (graceful && machine.isMonitorLost)
          throw new SimulatedFault('host-fault/qmp-closed', 'stop: the monitor is closed');
        if (!machine.exists || machine.process !== process) return;
        const wasLost = machine.isMonitorLost;
        endMachine(hooks.kernel, machine);
        for (const tap of machine.taps) hooks.kernel.admitted.delete(tap);
        hooks.onEnd(vm);
        if (!wasLost) mine?.({ kind: 'exited', detail: 'we ended the VM', isGuestsWish: false });
      }),
    release: async () => {
      if (machine.listener === mine) machine.listener = null;
      mine = null;
    },
  };
}
