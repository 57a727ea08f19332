// Drives for hypervisors that do not open the store's blobs themselves: over NBD, or as one file. Each is served by a process outside
// ours that outlives us, is started again when it dies, and is found again after our own restart.
//
//   serve ─► serving ──(process dies)──► starting again ─► serving
//              │                           │ too often, or not any more allowed
//              └── withdraw ─► gone ◄──────┘
import type { Clock } from '../../base/clock.ts';
import type { Detached } from '../../base/detached.ts';
import { describeError } from '../../base/errors.ts';
import { EXPORT_LOOK_MS, EXPORT_RESTART_DELAY_MS, EXPORT_SOUND_MS, EXPORT_STARTS_MAX } from '../../base/limits.ts';
import type { Log } from '../../base/log.ts';
import { hostBootId, isAlive, type ProcessId } from '../../base/process-id.ts';
import type { DriveSource, DriveTransport } from '../../model/drive.ts';
import type { VmId } from '../../model/ids.ts';
import { DriveError } from '../drive-error.ts';
import {
  type ExportFiles,
  type ExportRecord,
  exportFiles,
  identityOf,
  listExports,
  type Owner,
  prepareFolder,
  readProcess,
  readRecord,
  removeExportFolder,
  sourceOf,
  wordsOf,
} from './export-files.ts';
import { endExport, endLateLaunches, startExport } from './export-process.ts';

export type ExportTransport = Exclude<DriveTransport, 'direct'>;

/** Whoever attached the drive. */
export type ExportWatcher = {
  /** Throws what speaks against serving a drive that these licenses guard now. Asked before each start of a process. */
  readonly mayServe: (licenses: readonly string[]) => void;
  /** The process had ended and another serves at the same place; `why`: what became of the first. */
  readonly onRestart: (source: DriveSource, why: string) => Promise<void>;
  /** It ended and is not started again: nobody serves the drive any more. */
  readonly onFailure: (error: unknown) => void;
};

export type ServeRequest = {
  readonly vm: VmId;
  readonly drive: { readonly image: { readonly path: string }; readonly manifestDigest: string };
  readonly transport: ExportTransport;
  /** As whom the process runs, who can read the drive's folder; absent: as we do. */
  readonly owner?: Owner;
  /** Who opens the export; absent: the owner. */
  readonly reader?: Owner;
  /** What guards blobs on it; absent: nothing. */
  readonly licenses?: readonly string[];
  readonly watcher: ExportWatcher;
};

export type DriveExports = {
  /**
   * Serves the drive, and goes on doing so until it is withdrawn; once, however often asked. Throws DriveError:
   * `conflict/drive-export` while another drive of the VM is served, or why it cannot be.
   */
  readonly serve: (request: ServeRequest) => Promise<DriveSource>;
  /** What an earlier daemon served and this one goes on with, for the one who now answers for it; null when there is nothing. */
  readonly keep: (vm: VmId, watcher: ExportWatcher) => Promise<DriveSource | null>;
  /** Whether a VM's drive is served, or is being started again. */
  readonly isServing: (vm: VmId) => boolean;
  /** Ends it, without a trace; fine when there is none. Detach the drive first. */
  readonly withdraw: (vm: VmId) => Promise<void>;
  /** At our start: takes over what runs of the VMs that are known, and ends whatever else an earlier daemon left. */
  readonly recover: (known: ReadonlySet<VmId>) => Promise<void>;
  /** Lets go of all; the processes go on. */
  readonly close: () => Promise<void>;
};

type Served = {
  readonly record: ExportRecord;
  readonly files: ExportFiles;
  /** Null while it has none. */
  process: ProcessId | null;
  /** Null for one that an earlier daemon started: it is looked at at intervals. */
  child: Detached | null;
  watcher: ExportWatcher | null;
  startedAtMs: number;
  /** Starts in a row that did not last. */
  failures: number;
  readonly ending: AbortController;
};

/** The exports of one host. */
export function makeDriveExports(options: {
  readonly runFolder: string;
  readonly clock: Clock;
  readonly log: Log;
}): DriveExports {
  const { runFolder, clock, log } = options;
  const served = new Map<VmId, Served>();
  const inLine = makeLines();
  let isClosed = false;
  let cancelLook = (): void => {};

  const begin = async (entry: Served): Promise<void> => {
    entry.watcher?.mayServe(entry.record.licenses);
    const { process, child } = await startExport(entry.record, entry.files, clock);
    Object.assign(entry, { process, child, startedAtMs: clock.monotonicMs() });
    void child.ended.then((how) => onDeath(entry, how));
  };

  const forget = async (entry: Served): Promise<void> => {
    if (served.get(entry.record.vm) === entry) served.delete(entry.record.vm);
    await removeExportFolder(entry.files);
  };

  const onDeath = (entry: Served, how: string): void => {
    const { vm } = entry.record;
    if (isClosed || entry.ending.signal.aborted || served.get(vm) !== entry) return;
    void inLine(vm, () => startAgain(entry, how)).catch((error: unknown) => {
      log.error({ vm, detail: describeError(error) }, 'what a dead export left could not be cleared away');
    });
  };

  /** Starts a dead one again, a bounded number of times; then whoever attached the drive is told that there is none any more. */
  const startAgain = async (entry: Served, how: string): Promise<void> => {
    const { vm } = entry.record;
    const words = await wordsOf(entry.files);
    const why = `the process that served its drive ${how}${words === '' ? '' : ` (${words})`}`;
    if (clock.monotonicMs() - entry.startedAtMs > EXPORT_SOUND_MS) entry.failures = 0;
    for (;;) {
      if (entry.ending.signal.aborted || served.get(vm) !== entry) return;
      entry.failures += 1;
      try {
        await pause(entry);
        await begin(entry);
        break;
      } catch (error) {
        if (entry.ending.signal.aborted) return;
        log.warn({ vm, detail: describeError(error) }, 'an export could not be started again');
        if (entry.failures < EXPORT_STARTS_MAX && !isFinal(error)) continue;
        await forget(entry).finally(() => entry.watcher?.onFailure(error));
        return;
      }
    }
    log.warn({ vm, why }, 'an export was started again');
    // Not in line: whoever is told may ask for something in turn.
    void entry.watcher
      ?.onRestart(sourceOf(entry.record, entry.files), why)
      .catch((error: unknown) => log.error({ vm, detail: describeError(error) }, 'a restart could not be told'));
  };

  /** At once the first time, later and later after that. */
  const pause = async ({ failures, ending }: Served): Promise<void> => {
    if (failures > EXPORT_STARTS_MAX) throw tooOften();
    if (failures > 1) await clock.sleep(EXPORT_RESTART_DELAY_MS * 2 ** (failures - 2), ending.signal);
  };

  /** Those of an earlier daemon are not our children: nobody tells of their end. */
  const lookLater = (): void => {
    cancelLook();
    if (isClosed || ![...served.values()].some(isAdopted)) return;
    cancelLook = clock.after(EXPORT_LOOK_MS, async () => {
      for (const entry of [...served.values()].filter(isAdopted)) {
        // Nobody could say yet whether it may be served: `keep` sees to it.
        if (entry.watcher === null || entry.process === null || (await isAlive(entry.process))) continue;
        entry.process = null;
        onDeath(entry, 'ended');
      }
      lookLater();
    });
  };

  const serveNow = async (request: ServeRequest): Promise<DriveSource> => {
    const { vm, drive, transport, owner, reader, licenses = [], watcher } = request;
    const files = exportFiles(runFolder, vm);
    const present = served.get(vm);
    const record: ExportRecord = {
      ...{ format: 'pratique.export/1', vm, transport, hostBoot: await hostBootId() },
      ...{ image: drive.image.path, identity: await identityOf(drive.image.path) },
      // Under another name a client of the drive before, which looks for it for a while, is refused.
      exportName: `drive-${drive.manifestDigest.slice(0, 16)}`,
      ...{ owner: owner ?? null, reader: reader ?? null, licenses: [...licenses] },
    };
    if (present !== undefined) {
      if (!isSame(present.record, record)) throw stillServed(vm);
      present.watcher = watcher;
      if (present.process === null) await begin(present);
      return sourceOf(record, files);
    }
    // One that could not be taken over.
    await endLateLaunches(files, clock);
    const left = await readProcess(files);
    if (left !== null && (await isAlive(left))) await endExport(left, clock);
    await prepareFolder(files, record);
    const entry: Served = { ...blank(record, files), watcher };
    served.set(vm, entry);
    try {
      await begin(entry);
    } catch (error) {
      await forget(entry);
      throw error;
    }
    return sourceOf(record, files);
  };

  const withdrawNow = async (vm: VmId): Promise<void> => {
    const entry = served.get(vm);
    if (entry === undefined) return;
    if (entry.process !== null && (await isAlive(entry.process))) await endExport(entry.process, clock);
    await forget(entry);
  };

  /** Also of a VM that is not known any more, and what is damaged: nothing that an earlier daemon started is left alone. */
  const takeOver = async (vm: VmId, isKnown: boolean): Promise<void> => {
    const files = exportFiles(runFolder, vm);
    const record = await readRecord(files).catch((error: unknown) => {
      log.warn({ vm, detail: describeError(error) }, 'the record of an export is damaged; it is ended');
      return null;
    });
    await endLateLaunches(files, clock);
    const found = await readProcess(files);
    const isOfThisBoot = record === null || record.hostBoot === (await hostBootId());
    const isRunning = found !== null && isOfThisBoot && (await isAlive(found));
    if (!isKnown || record === null || !isOfThisBoot) {
      if (isRunning) await endExport(found, clock);
      await removeExportFolder(files);
      return;
    }
    served.set(vm, { ...blank(record, files), process: isRunning ? found : null });
  };

  return {
    serve: (request) => inLine(request.vm, () => serveNow(request)),
    keep: (vm, watcher) =>
      inLine(vm, async () => {
        const entry = served.get(vm);
        if (entry === undefined) return null;
        entry.watcher = watcher;
        if (entry.process === null) await startAgain(entry, 'ended');
        return served.get(vm) === entry ? sourceOf(entry.record, entry.files) : null;
      }),
    isServing: (vm) => served.has(vm),
    withdraw: async (vm) => {
      served.get(vm)?.ending.abort(new DriveError('conflict/drive-export', `the drive of ${vm} is withdrawn`));
      await inLine(vm, () => withdrawNow(vm));
    },
    recover: async (known) => {
      for (const vm of await listExports(runFolder)) {
        await inLine(vm, () => takeOver(vm, known.has(vm))).catch((error: unknown) => {
          log.error({ vm, detail: describeError(error) }, 'what an earlier daemon exported could not be taken over');
        });
      }
      lookLater();
    },
    close: async () => {
      isClosed = true;
      cancelLook();
      const reason = new DriveError('conflict/closing', 'the daemon is stopping');
      for (const { ending } of served.values()) ending.abort(reason);
      await inLine.settled();
    },
  };
}

function blank(record: ExportRecord, files: ExportFiles): Served {
  const none = { process: null, child: null, watcher: null };
  return { record, files, ...none, startedAtMs: Number.NEGATIVE_INFINITY, failures: 0, ending: new AbortController() };
}

const isAdopted = ({ child, process }: Served): boolean => child === null && process !== null;

function isSame(a: ExportRecord, b: ExportRecord): boolean {
  return (
    a.identity === b.identity && a.image === b.image && a.transport === b.transport && a.exportName === b.exportName
  );
}

/** What trying again does not mend. */
function isFinal(error: unknown): boolean {
  if (!(error instanceof DriveError)) return true;
  return /^(?:refused|conflict|usage|host-unfit)\//.test(error.code) || error.code === 'host-fault/drive-export-folder';
}

function tooOften(): DriveError {
  return new DriveError(
    'host-fault/drive-export',
    `the process that serves the drive ended ${EXPORT_STARTS_MAX} times in a row`,
    { next: 'see what pratique vm events tells of its end, and run pratique doctor' },
  );
}

function stillServed(vm: VmId): DriveError {
  return new DriveError('conflict/drive-export', `${vm}: another drive is still served at its place`, {
    next: 'detach that one first',
  });
}

type Lines = {
  <T>(vm: VmId, work: () => Promise<T>): Promise<T>;
  readonly settled: () => Promise<void>;
};

/** What concerns one VM happens one after another; VMs do not wait for each other. */
function makeLines(): Lines {
  const last = new Map<VmId, Promise<unknown>>();
  const inLine = <T>(vm: VmId, work: () => Promise<T>): Promise<T> => {
    const before = last.get(vm) ?? Promise.resolve();
    const now = before.then(work, work);
    last.set(vm, now);
    const leave = (): void => {
      if (last.get(vm) === now) last.delete(vm);
    };
    now.then(leave, leave);
    return now;
  };
  return Object.assign(inLine, {
    settled: async () => {
      await Promise.allSettled(last.values());
    },
  });
}
