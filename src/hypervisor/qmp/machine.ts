// One running QEMU behind the RunningVm contract: what managed and attached VMs have in common.
import type { Clock } from '../../base/clock.ts';
import { assert, PratiqueError } from '../../base/errors.ts';
import {
  CONSOLE_BYTES,
  GUEST_POWERDOWN_TIMEOUT_MS,
  QEMU_EXIT_TIMEOUT_MS,
  VM_EVENTS_PENDING_MAX,
} from '../../base/limits.ts';
import type { Log } from '../../base/log.ts';
import { printableBlock } from '../../base/printable.ts';
import { waitUntil } from '../../base/wait-until.ts';
import type { VmId } from '../../model/ids.ts';
import { HypervisorError } from '../errors.ts';
import type { AdoptedState, DiskOverlay, DiskView, RunningVm, Tap, VmEvent } from '../hypervisor.ts';
import type { Namespace } from '../vm-spec.ts';
import { parseBlockError, parsePortChange, parseShutdownEvent, parseStatus, parseText } from './answers.ts';
import { CONSOLE_CHARDEV } from './command-line.ts';
import { makeDrive } from './drive.ts';
import type { DriveSlots } from './drive-places.ts';
import { ejectMedia, insertMedia, type Medium } from './media.ts';
import type { QmpClient, QmpEvent } from './qmp-client.ts';

export type MachineParts = {
  readonly vm: VmId;
  readonly namespace: Namespace;
  readonly taps: readonly Tap[];
  /** Device ids that set_link knows the NICs by. */
  readonly nicDevices: readonly string[];
  readonly channelSocket: string;
  readonly adopted: AdoptedState;
  /** What happened before anybody listened; told to the first listener. */
  readonly missed: readonly VmEvent[];
  readonly qmp: QmpClient;
  readonly slots: DriveSlots;
  readonly media: readonly Medium[];
  readonly overlay?: DiskOverlay;
  readonly viewDisk?: (disk: string) => Promise<DiskView>;
  /** Throws when the VM has other cards than it was taken over with: somebody else's QEMU may get one at any moment. */
  readonly checkCards?: () => Promise<void>;
  /** Id of the agent's port in VSERPORT_CHANGE. */
  readonly agentPort: string;
  /** Managed VMs stop at a reset and at power-off, and have a console. */
  readonly isManaged: boolean;
  /** Whether the QEMU process is gone. */
  readonly hasEnded: () => Promise<boolean>;
  /** SIGKILL; null when the process is not ours to kill. */
  readonly kill: (() => void) | null;
  /** Cleans up after the process is gone, before anybody is told. */
  readonly onEnded: () => Promise<void>;
  readonly clock: Clock;
  readonly log: Log;
  readonly unplugTimeoutMs?: number;
};

/** Resets that firmware may add to one of ours: SeaBIOS adds one. */
const FIRMWARE_RESETS_MAX = 2;

/** Puts a RunningVm around a connected monitor. */
export function makeMachine(parts: MachineParts): RunningVm {
  const { qmp, viewDisk } = parts;
  const drive = makeDrive(parts);
  const events = makeEventQueue(parts.missed);
  const life = watchLife(parts, events.emit);
  const resets = makeResets(parts, events.emit);
  const setLinks = async (isUp: boolean) => {
    await Promise.all(parts.nicDevices.map((name) => qmp.execute('set_link', { name, up: isUp })));
  };
  qmp.onEvent((event) =>
    translate(event, parts, events.emit, {
      onReset: resets.onGuestReset,
      onPowerOff: life.guestPoweredOff,
      onPortOpen: resets.endFirmwarePhase,
    }),
  );

  // A monitor that closes does not say what became of the VM. That is told first, and decides: a run whose QEMU died begins
  // again, and the failure of what was under way then comes too late to matter.
  const step = async <T>(name: string, work: () => Promise<T>): Promise<T> => {
    try {
      return await named(parts.vm, name, work);
    } catch (error) {
      if (error instanceof PratiqueError && error.code === 'host-fault/qmp-closed') await life.told;
      throw error;
    }
  };

  return {
    vm: parts.vm,
    namespace: parts.namespace,
    taps: parts.taps,
    channelSocket: parts.channelSocket,
    adopted: parts.adopted,
    onEvent: events.listen,
    lowerLinks: () => step('lowering the links', () => setLinks(false)),
    raiseLinks: () =>
      step('raising the links', async () => {
        await parts.checkCards?.();
        resets.endFirmwarePhase();
        await setLinks(true);
      }),
    resume: () => step('letting the VM run', resets.resume),
    resetStopped: () =>
      step('resetting the VM', async () => {
        if ((await readStatus(qmp)).running) await qmp.execute('stop');
        // A guest that boots anew gets its drive anew; the reset itself completes what a hung guest never let go of.
        await drive.detach();
        await resets.resetStopped();
      }),
    isStopped: () => step('asking for its state', async () => !(await readStatus(qmp)).running),
    driveFrontEnds: drive.frontEnds,
    attachDrive: (image) => step('attaching the drive', () => drive.attach(image)),
    reopenDrive: (source) => step('opening the drive anew', () => drive.reopen(source)),
    detachDrive: () => step('detaching the drive', drive.detach),
    hasDrive: () => step('looking for the drive', drive.isAttached),
    releaseMedia: () => step('inserting its media', () => insertMedia(qmp, parts.media)),
    withholdMedia: () => step('withholding its media', () => ejectMedia(qmp, parts.media)),
    stop: ({ graceful }) => step('ending the VM', () => life.stop(graceful)),
    ...(parts.isManaged ? { readConsole: () => step('reading its console', () => readConsole(qmp)) } : {}),
    ...(parts.overlay === undefined ? {} : { overlay: stepped(parts.overlay, step) }),
    ...(viewDisk === undefined
      ? {}
      : { viewDisk: (disk: string) => step('opening a view of its disk', () => viewDisk(disk)) }),
    release: async () => life.release(),
  };
}

/** Says of each step of an overlay what it was. */
function stepped(overlay: DiskOverlay, step: <T>(name: string, work: () => Promise<T>) => Promise<T>): DiskOverlay {
  return {
    fate: () => step('looking for its disk overlay', overlay.fate),
    begin: (spaceBytes) => step('beginning its disk overlay', () => overlay.begin(spaceBytes)),
    accept: () => step('accepting its disk overlay', overlay.accept),
    commit: () => step('merging its disk overlay', overlay.commit),
  };
}

/** Says which VM and step an error belongs to; the class and the code stay. */
async function named<T>(vm: VmId, step: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (!(cause instanceof PratiqueError)) throw cause;
    const qemuClass = cause instanceof HypervisorError ? cause.qemuClass : undefined;
    throw new HypervisorError(cause.code, `${vm}: ${step}`, {
      cause,
      ...(cause.next === undefined ? {} : { next: cause.next }),
      ...(qemuClass === undefined ? {} : { qemuClass }),
    });
  }
}

async function readConsole(qmp: QmpClient): Promise<string> {
  const read = { device: CONSOLE_CHARDEV, size: CONSOLE_BYTES, format: 'utf8' };
  return printableBlock(parseText(await qmp.execute('ringbuf-read', read), 'ringbuf-read'), CONSOLE_BYTES);
}

async function readStatus(qmp: QmpClient) {
  return parseStatus(await qmp.execute('query-status'), 'query-status');
}

/**
 * Resets. SeaBIOS answers a reset by restoring itself and resetting once more (its "hard reboot"). To the rooms above
 * that is no event: it is passed over here, as long as no system answered and the links stayed down since our own reset, and a bounded number of times.
 */
function makeResets(parts: MachineParts, emit: (event: VmEvent) => void) {
  const { qmp, clock } = parts;
  let firmwareResetsLeft = 0;
  let isPending = false;

  const reset = async (): Promise<void> => {
    // While stopped nothing can reset but us, so the action that stops at resets may be off for this one.
    if (parts.isManaged) await qmp.execute('set-action', { reboot: 'reset' });
    await qmp.execute('system_reset');
    const isDone = async () => (await readStatus(qmp)).status === 'prelaunch';
    const isReset = await waitUntil(isDone, clock, QEMU_EXIT_TIMEOUT_MS);
    if (parts.isManaged) await qmp.execute('set-action', { reboot: 'shutdown', shutdown: 'pause' });
    if (!isReset) throw new HypervisorError('timeout/reset', 'the machine did not come out of its reset');
  };
  const resume = async (): Promise<void> => {
    if ((await readStatus(qmp)).running) return;
    isPending = false;
    if (parts.isManaged) await qmp.execute('set-action', { reboot: 'shutdown', shutdown: 'pause' });
    await qmp.execute('cont');
  };
  const tell = () => emit({ kind: 'reset', isStopped: true });
  const passOver = async (): Promise<void> => {
    try {
      await reset();
      await resume();
    } catch (error) {
      parts.log.warn({ err: error, vm: parts.vm }, 'could not continue a reset of the firmware');
      tell();
    }
  };
  return {
    resume,
    resetStopped: async () => {
      await reset();
      firmwareResetsLeft = FIRMWARE_RESETS_MAX;
    },
    endFirmwarePhase: () => {
      firmwareResetsLeft = 0;
    },
    /** The guest asked for a reset and is stopped; firmware may ask twice before it stops. */
    onGuestReset: () => {
      if (isPending) return;
      isPending = true;
      if (firmwareResetsLeft === 0) return tell();
      firmwareResetsLeft -= 1;
      void passOver();
    },
  };
}

/** Turns QEMU's events into ours (QAPI: SHUTDOWN, RESET, BLOCK_IO_ERROR, VSERPORT_CHANGE). */
function translate(
  { event, data }: QmpEvent,
  parts: MachineParts,
  emit: (event: VmEvent) => void,
  on: { readonly onReset: () => void; readonly onPowerOff: () => void; readonly onPortOpen: () => void },
): void {
  switch (event) {
    case 'SHUTDOWN': {
      const { guest, reason } = parseShutdownEvent(data, event);
      if (guest && reason === 'guest-shutdown') on.onPowerOff();
      else if (guest && parts.isManaged) on.onReset();
      return;
    }
    case 'RESET':
      // Our own resets of managed VMs come by here too; those of guests arrive as SHUTDOWN.
      if (!parts.isManaged) emit({ kind: 'reset', isStopped: false });
      return;
    case 'BLOCK_IO_ERROR': {
      const { action, nospace } = parseBlockError(data, event);
      if (action === 'stop' && nospace === true) emit({ kind: 'disk-full' });
      return;
    }
    case 'VSERPORT_CHANGE': {
      const { id, open } = parsePortChange(data, event);
      if (id !== parts.agentPort) return;
      if (open) on.onPortOpen();
      emit({ kind: 'agent-port', isOpen: open });
      return;
    }
    default:
      return;
  }
}

/** Follows the process to its end, and brings the end about when asked. */
function watchLife(parts: MachineParts, emit: (event: VmEvent) => void) {
  const { qmp, clock } = parts;
  const ended = Promise.withResolvers<void>();
  let detail = 'QEMU ended';
  let isGuestsWish = false;
  let isReleased = false;

  const settle = async (why: string): Promise<void> => {
    if (isReleased) return ended.resolve();
    const isGone = await waitUntil(parts.hasEnded, clock, QEMU_EXIT_TIMEOUT_MS);
    if (!isGone) {
      emit({ kind: 'monitor-lost', detail: why });
      return ended.resolve();
    }
    try {
      await parts.onEnded();
    } catch (error) {
      parts.log.error({ err: error, vm: parts.vm }, 'could not clean up after a VM that ended');
    }
    emit({ kind: 'exited', detail, isGuestsWish });
    ended.resolve();
  };
  qmp.closed.then(settle, (error: unknown) => assert(false, `closed never rejects: ${String(error)}`));

  const quit = async (): Promise<void> => {
    try {
      await qmp.execute('quit');
    } catch (error) {
      // The connection may end before the answer arrives; whether the process did is looked at next.
      parts.log.debug({ err: error, vm: parts.vm }, 'quit was not answered');
    }
  };
  const isOver = (timeoutMs: number) => within(ended.promise, clock, timeoutMs);

  return {
    /** Resolves when listeners were told what became of the VM, or nobody wants to know. */
    told: ended.promise,
    guestPoweredOff: () => {
      detail = 'the guest powered off';
      isGuestsWish = true;
      // An attached VM's QEMU ends or waits as its owner decided; its closed monitor will tell.
      if (parts.isManaged) void quit();
    },
    release: () => {
      isReleased = true;
      qmp.close();
    },
    stop: async (graceful: boolean): Promise<void> => {
      detail = 'we ended the VM';
      isGuestsWish = false;
      if (graceful) {
        await qmp.execute('system_powerdown');
        if (await isOver(GUEST_POWERDOWN_TIMEOUT_MS)) return;
      }
      await quit();
      const isGone = () => waitUntil(parts.hasEnded, clock, QEMU_EXIT_TIMEOUT_MS);
      if (!(await isGone())) parts.kill?.();
      if (await isGone()) return ended.promise;
      throw new HypervisorError('timeout/qemu-exit', 'QEMU does not end', {
        next: 'look at the process; it may hang in the kernel',
      });
    },
  };
}

/** Whether the promise resolves within the time. */
async function within(promise: Promise<void>, clock: Clock, timeoutMs: number): Promise<boolean> {
  const late = Promise.withResolvers<boolean>();
  const cancel = clock.after(timeoutMs, () => late.resolve(false));
  const isDone = await Promise.race([promise.then(() => true), late.promise]);
  cancel();
  return isDone;
}

/** Events wait for the first listener, so that none is lost between the start of a VM and its runner. */
function makeEventQueue(missed: readonly VmEvent[]) {
  const listeners: ((event: VmEvent) => void)[] = [];
  let pending: VmEvent[] = [...missed];
  return {
    emit: (event: VmEvent) => {
      if (listeners.length === 0) {
        if (pending.length < VM_EVENTS_PENDING_MAX) pending.push(event);
        return;
      }
      for (const listener of listeners) listener(event);
    },
    listen: (listener: (event: VmEvent) => void) => {
      listeners.push(listener);
      const kept = pending;
      pending = [];
      for (const event of kept) listener(event);
    },
  };
}
