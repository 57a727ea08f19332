// The world outside of the daemon: one VM, its taps' fence, and the disk. It stays when the daemon dies.
import type { AuditRecord } from '../../src/audit/record.ts';
import type { Fence } from '../../src/hypervisor/fence.ts';
import type { DiskOverlay, HypervisorDriver, RunningVm, VmEvent } from '../../src/hypervisor/hypervisor.ts';
import { tapsOf } from '../../src/hypervisor/network.ts';
import type { ManagedVm } from '../../src/hypervisor/vm-spec.ts';
import type { VmId } from '../../src/model/ids.ts';
import type { Disk } from './guest.ts';

export const VM = 'sim' as VmId; // The form that the brand promises.
export const SPEC: ManagedVm = {
  format: 'pratique.vm/1',
  kind: 'managed',
  vm: VM,
  machine: 'q35',
  memoryMiB: 64,
  cpus: 1,
  disks: [],
  nics: [{ id: 'lan', model: 'virtio-net-pci', mac: '52:54:00:00:00:01', bridge: 'br0' }],
};
export const TAPS: readonly string[] = tapsOf(SPEC).map((tap) => tap.name);

/** QEMU and the kernel as they really are. */
export type Machine = {
  exists: boolean;
  /** Counts starts, resets and kexecs: what runs now is what was judged only if this has not changed. */
  epoch: number;
  epochAtMs: number;
  /** The epoch came without the host's knowing or stopping it (kexec). */
  isEpochUnannounced: boolean;
  isStopped: boolean;
  /** Stopped at a reset that nobody was told of. */
  isResetPending: boolean;
  isLinkUp: boolean;
  hasDrive: boolean;
  isMonitorLost: boolean;
  /** What lies over the disk, with what the disk itself holds meanwhile. */
  overlay: { fate: 'trial' | 'accepted'; readonly below: Disk } | null;
  readonly admitted: Set<string>;
  readonly audit: { readonly record: AuditRecord; readonly epoch: number }[];
};

export function makeMachineState(): Machine {
  return {
    exists: false,
    epoch: 0,
    epochAtMs: 0,
    isEpochUnannounced: false,
    isStopped: true,
    isResetPending: false,
    isLinkUp: false,
    hasDrive: false,
    isMonitorLost: false,
    overlay: null,
    admitted: new Set(),
    audit: [],
  };
}

/** Whether a frame of the guest would reach the network now. */
export function framesPass(machine: Machine): boolean {
  return machine.exists && !machine.isStopped && machine.isLinkUp && TAPS.some((tap) => machine.admitted.has(tap));
}

/** Every touch of the world by the daemon: late, failing or never, as the simulation decides. */
export type Touch = <T>(what: string, work: () => T, options?: { readonly mayFail?: boolean }) => Promise<T>;

/** The kernel's table, which does not fail. */
export function makeFence(machine: Machine, touch: Touch, onChange: () => void): Fence {
  const sure = { mayFail: false } as const;
  return {
    ensure: async () => {},
    guard: async () => {},
    unguard: async () => {},
    admit: (taps) =>
      touch(
        'admit',
        () => {
          for (const tap of taps) machine.admitted.add(tap);
          onChange();
        },
        sure,
      ),
    expel: (taps) =>
      touch(
        'expel',
        () => {
          for (const tap of taps) machine.admitted.delete(tap);
        },
        sure,
      ),
    isAdmitted: async (tap) => machine.admitted.has(tap),
    verify: () =>
      touch('verify', () => ({ fault: null, admitted: new Set(machine.admitted), gated: new Set<string>() }), sure),
    counters: async () => ({ fromGuest: 0, toGuest: 0 }),
    close: () => {},
  };
}

export type MachineHooks = {
  readonly touch: Touch;
  readonly nowMs: () => number;
  readonly onChange: () => void;
  /** Power on, or on again after a reset: the guest boots. */
  readonly onBoot: () => void;
  readonly onEnd: () => void;
  readonly readDisk: () => Disk;
  readonly writeDisk: (disk: Disk) => void;
  /** Milliseconds that a merge takes. */
  readonly mergeMs: () => number;
  readonly sleep: (ms: number) => Promise<void>;
  readonly complain: (broken: string) => void;
  readonly isDiscardingAll: boolean;
};

export type SimDriver = HypervisorDriver & {
  /** Tells the daemon, if one listens. */
  readonly tell: (event: VmEvent) => void;
};

/** A driver of one incarnation of the daemon over the machine. */
export function makeDriver(machine: Machine, hooks: MachineHooks): SimDriver {
  const { touch } = hooks;
  let listener: ((event: VmEvent) => void) | null = null;
  const qmp: Touch = (what, work, options) =>
    touch(
      what,
      () => {
        if (!machine.exists || machine.isMonitorLost) throw new Error(`${what}: the monitor is closed`);
        return work();
      },
      options,
    );
  const beginEpoch = (): void => {
    machine.epoch += 1;
    machine.epochAtMs = hooks.nowMs();
    machine.isEpochUnannounced = false;
  };
  const end = (): void => {
    machine.exists = false;
    machine.hasDrive = false;
    machine.isLinkUp = false;
    machine.isStopped = true;
    for (const tap of TAPS) machine.admitted.delete(tap);
    hooks.onEnd();
  };
  const overlay: DiskOverlay = {
    fate: async () => machine.overlay?.fate ?? 'none',
    begin: () =>
      qmp('begin an overlay', () => {
        if (machine.overlay?.fate === 'trial') return;
        if (machine.overlay !== null) throw new Error('begin an overlay: the one before is not merged');
        machine.overlay = { fate: 'trial', below: hooks.readDisk() };
      }),
    accept: () =>
      touch('accept the overlay', () => {
        if (machine.overlay !== null) machine.overlay.fate = 'accepted';
      }),
    commit: async () => {
      if (machine.overlay?.fate !== 'accepted') return false;
      await qmp('begin to merge', () => {});
      await hooks.sleep(hooks.mergeMs());
      return await qmp('merge the overlay', () => {
        const isMerged = machine.overlay?.fate === 'accepted';
        if (isMerged) machine.overlay = null;
        return isMerged;
      });
    },
  };
  const handle = (adopted: RunningVm['adopted']): RunningVm => ({
    overlay,
    vm: VM,
    namespace: { kind: 'host' },
    taps: tapsOf(SPEC),
    channelSocket: '/simulated',
    adopted,
    onEvent: (told) => {
      listener = told;
      if (!machine.isResetPending) return;
      machine.isResetPending = false;
      told({ kind: 'reset', isStopped: true });
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
        machine.isStopped = false;
        hooks.onBoot();
        hooks.onChange();
      }),
    resetStopped: () =>
      qmp('reset', () => {
        machine.isStopped = true;
        machine.hasDrive = false;
        beginEpoch();
      }),
    isStopped: () => qmp('query status', () => machine.isStopped),
    driveFrontEnds: ['virtio-blk'],
    reopenDrive: () => qmp('reopen', () => hooks.onChange()),
    attachDrive: () =>
      qmp('attach', () => {
        machine.hasDrive = true;
        hooks.onChange();
      }),
    detachDrive: () =>
      qmp('detach', () => {
        machine.hasDrive = false;
        return { surprise: false };
      }),
    hasDrive: () => qmp('look for the drive', () => machine.hasDrive),
    releaseMedia: () => qmp('release media', () => {}),
    withholdMedia: () => qmp('withhold media', () => {}),
    stop: ({ graceful }) =>
      touch('stop', () => {
        if (graceful && machine.isMonitorLost) throw new Error('stop: the monitor is closed');
        if (!machine.exists) return;
        const wasLost = machine.isMonitorLost;
        end();
        if (!wasLost) listener?.({ kind: 'exited', detail: 'we ended the VM', isGuestsWish: false });
      }),
    release: async () => {
      listener = null;
    },
  });
  return {
    kind: 'qmp',
    tell: (event) => listener?.(event),
    start: async () => {
      await touch('start QEMU', () => {
        if (machine.exists) throw new Error('start: its QEMU runs already');
        if (machine.overlay !== null) hooks.complain('a VM is started from its disk while an overlay lies over it');
        machine.exists = true;
        machine.isStopped = true;
        machine.isLinkUp = false;
        machine.hasDrive = false;
        machine.isMonitorLost = false;
        machine.isResetPending = false;
        beginEpoch();
      });
      return handle({ kind: 'fresh' });
    },
    adopt: async () => {
      const isThere = await touch('adopt', () => machine.exists, { mayFail: false });
      if (!isThere) return null;
      machine.isMonitorLost = false;
      return handle({ kind: 'same-process' });
    },
    settleOverlay: () =>
      touch('settle the overlay', () => {
        const over = machine.overlay;
        if (over === null) return 'none';
        if (machine.exists) throw new Error('settle: its QEMU runs');
        machine.overlay = null;
        if (over.fate === 'accepted' && !hooks.isDiscardingAll) return 'committed';
        hooks.writeDisk(over.below);
        return 'discarded';
      }),
  };
}
