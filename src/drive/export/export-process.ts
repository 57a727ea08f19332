// One process that exports one drive: a qemu-storage-daemon of its own, started so that it outlives us.
import { chown, readdir, readFile, stat } from 'node:fs/promises';
import { connect } from 'node:net';
import type { Clock } from '../../base/clock.ts';
import { type Detached, type Identity, launcherArgv, scopePrefix, startDetached } from '../../base/detached.ts';
import { EXPORT_CONNECTIONS_MAX, EXPORT_END_TIMEOUT_MS, EXPORT_START_TIMEOUT_MS } from '../../base/limits.ts';
import { isAlive, type ProcessId, processOf } from '../../base/process-id.ts';
import { waitUntil } from '../../base/wait-until.ts';
import { DriveError, systemCode } from '../drive-error.ts';
import {
  clearRemains,
  type ExportFiles,
  type ExportRecord,
  identityOf,
  makeMountPoint,
  readProcess,
  wordsOf,
} from './export-files.ts';
import { countMounts, readFurtherAhead } from './mounts.ts';

const PROGRAM = 'qemu-storage-daemon';
/** Descriptor on which it inherits the listening socket. */
const SOCKET_FD = 10;
/** What an NBD server says first, and the polite answer of somebody who wants nothing: client flags and NBD_OPT_ABORT (NBD protocol). */
const NBD_GREETING = /^NBDMAGICIHAVEOPT/;
const NBD_GOODBYE = Buffer.concat([
  Buffer.from([0, 0, 0, 1]),
  Buffer.from('IHAVEOPT'),
  Buffer.from([0, 0, 0, 2, 0, 0, 0, 0]),
]);

export type Started = { readonly process: ProcessId; readonly child: Detached };

/**
 * Starts it and waits until the drive can be read from it. Throws DriveError, with nothing left running or mounted: when the drive
 * is not there or is another one by now, or with what the program said.
 */
export async function startExport(record: ExportRecord, files: ExportFiles, clock: Clock): Promise<Started> {
  await checkSameDrive(record);
  await clearRemains(files);
  if (record.transport === 'file') await makeMountPoint(files);
  const isUsers = process.getuid?.() !== 0;
  // Each start has a unit of its own: the one before may not be forgotten yet.
  const unit = `pratique-drive-${record.vm}-${Math.round(clock.monotonicMs() * 1000)}`;
  const argv = [...scopePrefix(unit, isUsers), ...launcherArgv(launcherOptions(record, files))];
  const child = await startDetached(argv, files.logFile);
  try {
    const isReady = await waitUntil(
      async () => child.hasEnded() || (await canBeRead(record, files, clock)),
      clock,
      EXPORT_START_TIMEOUT_MS,
    );
    if (child.hasEnded() || !isReady) throw await notStarted(record, files, isReady);
    const found = await readProcess(files);
    if (found === null) throw new DriveError('host-fault/drive-export', `${files.pidFile} does not name its process`);
    await giveToReader(record, files);
    if (record.transport === 'file') await readFurtherAhead(files.file);
    return { process: found, child };
  } catch (error) {
    child.kill();
    await child.ended;
    await clearRemains(files);
    throw error;
  }
}

/**
 * Ends a launch that an earlier daemon began and did not see through: until it has written its pid file, only its words tell that
 * it is there. Afterwards the pid file tells of whatever came of it.
 */
export async function endLateLaunches(files: ExportFiles, clock: Clock): Promise<void> {
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const words = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0');
    const isLaunch = words[words.indexOf('--pid-file') + 1] === files.pidFile;
    const found = isLaunch ? await processOf(Number(pid)) : null;
    if (found !== null) await endExport(found, clock);
  }
}

/** Ends it, by force if it does not go. Throws DriveError when it stays. */
export async function endExport(found: ProcessId, clock: Clock): Promise<void> {
  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    sendSignal(found, signal);
    if (await waitUntil(async () => !(await isAlive(found)), clock, EXPORT_END_TIMEOUT_MS)) return;
  }
  throw new DriveError('host-fault/drive-export', `the process ${found.pid} that exports a drive does not end`, {
    next: 'look at it: it may hang in the kernel',
  });
}

function sendSignal({ pid }: ProcessId, signal: 'SIGTERM' | 'SIGKILL'): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if (systemCode(error) !== 'ESRCH') throw error;
  }
}

/** A drive that was built anew in the same folder must not appear under the guest that reads the old one. */
async function checkSameDrive({ vm, image, identity }: ExportRecord): Promise<void> {
  const found = await identityOf(image).catch((cause: unknown) => {
    throw new DriveError('host-fault/drive-export', `${vm}: the drive to export cannot be looked at`, { cause });
  });
  if (found === identity) return;
  throw new DriveError('conflict/drive-export', `${vm}: the drive that was exported is not there any more`, {
    next: 'detach it; the next offer shows the new one',
  });
}

function launcherOptions(record: ExportRecord, files: ExportFiles) {
  const isNbd = record.transport === 'nbd';
  const reader = record.reader ?? record.owner;
  return {
    pidFile: files.pidFile,
    listeners: isNbd ? [{ path: files.socket, fd: SOCKET_FD }] : [],
    ...(isNbd && reader !== null ? { socketOwner: reader } : {}),
    identity: identityFor(record),
    command: commandLine(record, files),
  };
}

/** Mounting is a right of root's; an ordinary user has fusermount3, which the program starts by itself. */
function identityFor({ owner, transport }: ExportRecord): Identity | null {
  if (owner === null) return null;
  return transport === 'file' ? { ...owner, capability: 'sys_admin' } : owner;
}

/** Formats are given, never probed, and nothing is ever writable (qemu-storage-daemon(1)). */
function commandLine(record: ExportRecord, files: ExportFiles): readonly string[] {
  const json = (option: string, value: object) => [`--${option}`, JSON.stringify(value)];
  const common = { id: 'drive', 'node-name': 'drive', writable: false };
  const blockdevs = [
    { driver: 'file', 'node-name': 'descriptor', filename: record.image, 'read-only': true },
    { driver: 'vmdk', 'node-name': 'drive', file: 'descriptor', 'read-only': true },
  ];
  const nodes = [PROGRAM, ...blockdevs.flatMap((node) => json('blockdev', node))];
  if (record.transport === 'file') {
    // Others than whoever mounted it: root may always let them, an ordinary user only if /etc/fuse.conf says so, and needs none.
    const allowOther = record.owner === null && process.getuid?.() !== 0 ? 'off' : 'on';
    const shown = { type: 'fuse', ...common, mountpoint: files.file, 'allow-other': allowOther };
    return [...nodes, ...json('export', shown)];
  }
  const server = { addr: { type: 'fd', str: String(SOCKET_FD) }, 'max-connections': EXPORT_CONNECTIONS_MAX };
  return [
    ...nodes,
    ...json('nbd-server', server),
    ...json('export', { type: 'nbd', ...common, name: record.exportName }),
  ];
}

/** Whether it answers. A mount is there before it can answer, so it is only looked for, and never read from here. */
async function canBeRead({ transport }: ExportRecord, files: ExportFiles, clock: Clock): Promise<boolean> {
  if (transport === 'file') return (await countMounts(files.file)) > 0;
  return await greets(files.socket, clock);
}

/** Whether an NBD server greets on the socket; the listener is there before whoever will serve it. */
function greets(socketPath: string, clock: Clock): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(socketPath);
    let isGreeted = false;
    const cancel = clock.after(EXPORT_START_TIMEOUT_MS, () => socket.destroy());
    socket.on('data', (bytes: Buffer) => {
      if (isGreeted || !NBD_GREETING.test(bytes.toString('latin1'))) return void socket.destroy();
      isGreeted = true;
      socket.end(NBD_GOODBYE);
    });
    socket.on('error', () => socket.destroy());
    socket.on('close', () => {
      cancel();
      resolve(isGreeted);
    });
  });
}

/** The file belongs to whoever mounted it, and nobody else may read it, unless it is given to them. */
async function giveToReader({ transport, owner, reader }: ExportRecord, { file }: ExportFiles): Promise<void> {
  if (transport !== 'file' || owner === null || reader === null || reader.uid === owner.uid) return;
  if (reader.uid === 0 || (await stat(file)).uid === reader.uid) return;
  await chown(file, reader.uid, reader.gid);
}

async function notStarted({ vm }: ExportRecord, files: ExportFiles, isReady: boolean): Promise<DriveError> {
  const words = await wordsOf(files);
  const how = isReady ? 'ended at once' : `showed nothing within ${EXPORT_START_TIMEOUT_MS} ms`;
  const message = `${vm}: the process that exports its drive ${how}: ${words || 'it said nothing'}`;
  if (/(?:cannot run|failed to execute) qemu-storage-daemon/.test(words))
    return new DriveError('host-unfit/storage-daemon', message, { next: 'install the package qemu-system-common' });
  if (/Failed to stat .*Permission denied/.test(words)) {
    const next = `let its user pass through the folders above ${files.folder}: chmod o+x`;
    return new DriveError('host-unfit/drive-export', message, { next });
  }
  if (/fuse(?!")/i.test(words)) {
    const next = 'load it: modprobe fuse; an ordinary user also needs the package fuse3 and a name in /etc/passwd';
    return new DriveError('host-unfit/fuse', message, { next });
  }
  return new DriveError('host-fault/drive-export', message, { next: `look at ${files.logFile}` });
}
