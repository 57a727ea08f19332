// Looks into the disks of VMs. Of those that are off: one look a VM at a time, few at once, and none that a starting VM would have
// to wait for. Of those that run: what their hypervisor shows of one moment, for whoever checks a guest's word.
import type { Clock } from '../base/clock.ts';
import { INSPECT_AT_ONCE_MAX, INSPECT_DISKS_MAX, VERIFY_AT_ONCE_MAX } from '../base/limits.ts';
import type { DiskImage } from '../model/disk-image.ts';
import type { VmId } from '../model/ids.ts';
import { InspectError, WITHOUT_A_LOOK } from './errors.ts';
import { type DiskReport, inspectDisk, inspectView, type RunningOptions, type RunningReport } from './inspect-disk.ts';
import { makeScratch } from './scratch.ts';

export type VmDisks = {
  readonly vm: VmId;
  readonly disks: readonly (DiskImage & { readonly id: string })[];
};

/** A disk of a running VM as its hypervisor shows it. */
export type ShownDisk = { readonly socket: string; readonly exportName: string; readonly close: () => Promise<void> };

export type RunningDisks = {
  readonly vm: VmId;
  /** In the order in which they are searched for the system. */
  readonly disks: readonly string[];
  readonly show: (disk: string) => Promise<ShownDisk>;
};

export type Inspector = {
  /**
   * What the first disk with a system on it tells. Whoever asks while a look at this VM is under way gets the same answer.
   * The VM must be off. Throws InspectError, or what `prepare` throws; with the signal's reason when aborted.
   */
  readonly inspect: (of: VmDisks, signal: AbortSignal) => Promise<DiskReport>;
  /**
   * What the first disk with a system on it held at this moment, with what its guest has made durable; `check` looks for files
   * on it. Throws InspectError, what `show` throws, or the signal's reason. Nothing is shown any more when it ends.
   */
  readonly inspectRunning: (
    of: RunningDisks,
    check: RunningOptions['check'],
    signal: AbortSignal,
  ) => Promise<RunningReport>;
  /** Ends a look at this VM: when it resolves, nobody has its disks open. Call it before the VM starts. */
  readonly leave: (vm: VmId) => Promise<void>;
  readonly close: () => Promise<void>;
};

export type InspectorOptions = {
  readonly clock: Clock;
  /** Checks a disk's paths against the disk roots, makes it readable for `uid`, and returns it with real paths. */
  readonly prepare: (vm: VmId, disk: VmDisks['disks'][number], uid: number | null) => Promise<DiskImage>;
  /** The user who looks: the VM's own; null: ourselves, the case without root. */
  readonly uidFor: (vm: VmId) => Promise<number | null>;
  /** For what is written aside while a running VM's disk is read; what lies in it is removed. */
  readonly scratchFolder: string;
};

type Underway = { readonly report: Promise<DiskReport>; readonly abort: AbortController; waiting: number };

/** The inspector of one host. */
export function makeInspector(options: InspectorOptions): Inspector {
  const { clock } = options;
  const underway = new Map<VmId, Underway>();
  const inTurn = makeTurns(INSPECT_AT_ONCE_MAX);

  const runningInTurn = makeTurns(VERIFY_AT_ONCE_MAX);
  const scratch = makeScratch(options.scratchFolder);

  const lookBeside = async (
    { vm, show }: RunningDisks,
    disk: string,
    check: RunningOptions['check'],
    signal: AbortSignal,
  ) => {
    const uid = await options.uidFor(vm);
    const own = await scratch.take(vm, uid);
    try {
      const { socket, exportName, close } = await show(disk);
      try {
        const view = { path: `the disk ${disk} of ${vm}`, socket, exportName, scratch: own.path };
        return await inspectView({ view, check, uid, clock, signal });
      } finally {
        await close();
      }
    } finally {
      await own.remove();
    }
  };

  const lookInto = async ({ vm, disks }: VmDisks, signal: AbortSignal): Promise<DiskReport> => {
    const uid = await options.uidFor(vm);
    let first: unknown;
    for (const disk of disks.slice(0, INSPECT_DISKS_MAX)) {
      signal.throwIfAborted();
      try {
        const image = await options.prepare(vm, disk, uid);
        return await inspectDisk({ disk: disk.id, image, uid, clock, signal });
      } catch (error) {
        // The system may lie on another disk; if not, what counts is why not on the first.
        first ??= error;
        if (!(error instanceof InspectError) || error.code !== 'refused/cannot-look') break;
      }
    }
    throw (
      first ??
      new InspectError('refused/cannot-look', `cannot look inside: ${vm} has no disk`, { next: WITHOUT_A_LOOK })
    );
  };

  const begin = (of: VmDisks): Underway => {
    const abort = new AbortController();
    const report = inTurn(abort.signal, () => lookInto(of, abort.signal));
    const begun: Underway = { report, abort, waiting: 0 };
    underway.set(of.vm, begun);
    const end = (): void => {
      if (underway.get(of.vm) === begun) underway.delete(of.vm);
    };
    report.then(end, end);
    return begun;
  };

  const leave = async (vm: VmId): Promise<void> => {
    const begun = underway.get(vm);
    begun?.abort.abort(
      new InspectError('conflict/inspect-left', `the look into the disk of ${vm} was left: the VM starts`),
    );
    await begun?.report.catch(() => {});
  };

  return {
    inspect: async (of, signal) => {
      signal.throwIfAborted();
      const begun = underway.get(of.vm) ?? begin(of);
      begun.waiting += 1;
      // Nobody waits any more: then it ends, and whoever gave up waits until it has.
      const giveUp = (): void => {
        begun.waiting -= 1;
        if (begun.waiting === 0) begun.abort.abort(signal.reason);
      };
      signal.addEventListener('abort', giveUp, { once: true });
      try {
        return await begun.report;
      } finally {
        signal.removeEventListener('abort', giveUp);
      }
    },
    inspectRunning: async (of, check, signal) =>
      await runningInTurn(signal, async () => {
        let first: unknown;
        for (const disk of of.disks.slice(0, INSPECT_DISKS_MAX)) {
          signal.throwIfAborted();
          try {
            return await lookBeside(of, disk, check, signal);
          } catch (error) {
            first ??= error;
            if (!(error instanceof InspectError) || error.code !== 'refused/cannot-look') break;
          }
        }
        throw first ?? new InspectError('refused/cannot-look', `cannot look inside: ${of.vm} has no disk`);
      }),
    leave,
    close: async () => {
      await Promise.all([...underway.keys()].map(leave));
    },
  };
}

type InTurn = <T>(signal: AbortSignal, work: () => Promise<T>) => Promise<T>;

/** Runs works in turn, so many at once; who is told to stop while it waits, stops at once. */
function makeTurns(count: number): InTurn {
  let busy = 0;
  const queue: (() => void)[] = [];
  const waitForTurn = (signal: AbortSignal): Promise<void> =>
    new Promise((resolve, reject) => {
      const enter = (): void => {
        signal.removeEventListener('abort', leave);
        resolve();
      };
      const leave = (): void => {
        queue.splice(queue.indexOf(enter), 1);
        reject(signal.reason);
      };
      queue.push(enter);
      signal.addEventListener('abort', leave, { once: true });
    });
  return async (signal, work) => {
    if (busy >= count) await waitForTurn(signal);
    else busy += 1;
    try {
      return await work();
    } finally {
      // The turn is handed on, or given back.
      const next = queue.shift();
      if (next === undefined) busy -= 1;
      else next();
    }
  };
}
