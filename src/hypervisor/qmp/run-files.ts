// The folder of one VM under the run folder: sockets, the pid, and the record of how it was launched. QEMU itself has no
// right to write here: a taken-over QEMU must not swap its monitor's socket for that of another VM.
import { chmod, mkdir, readFile, rm, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { type Static, Type } from 'typebox';
import { writeDurably } from '../../base/durable-file.ts';
import { SOCKET_PATH_BYTES_MAX } from '../../base/limits.ts';
import { makeParser, parseJson } from '../../base/parse.ts';
import { type ProcessId, parseProcessId } from '../../base/process-id.ts';
import { DigestSchema } from '../../model/digest-schema.ts';
import { type VmId, VmIdSchema } from '../../model/ids.ts';
import { HypervisorError } from '../errors.ts';

export type RunFiles = {
  readonly folder: string;
  readonly qmpSocket: string;
  readonly channelSocket: string;
  readonly pidFile: string;
  readonly launchFile: string;
  readonly logFile: string;
};

const LaunchSchema = Type.Object(
  {
    format: Type.Literal('pratique.launch/1'),
    vm: VmIdSchema,
    specDigest: DigestSchema,
    hostBoot: Type.String({ maxLength: 64 }),
    accelerator: Type.Union([Type.Literal('kvm'), Type.Literal('tcg'), Type.Null()]),
    uid: Type.Union([Type.Integer({ minimum: 1 }), Type.Null()]),
    /** Attached VMs: name of a block node that we put into the QEMU process, to know it again. */
    mark: Type.Union([Type.String({ maxLength: 31 }), Type.Null()]),
    launchedAtMs: Type.Number(),
  },
  { additionalProperties: false },
);
export type Launch = Static<typeof LaunchSchema>;
const parseLaunch = makeParser(LaunchSchema, 'host-fault/launch-record');

/** The files of a VM. Throws HypervisorError when the run folder's name is too long for unix sockets. */
export function runFiles(runFolder: string, vm: VmId): RunFiles {
  const folder = join(runFolder, 'vm', vm);
  const files = {
    folder,
    qmpSocket: join(folder, 'qmp.sock'),
    channelSocket: join(folder, 'agent.sock'),
    pidFile: join(folder, 'pid'),
    launchFile: join(folder, 'launch.json'),
    logFile: join(folder, 'qemu.log'),
  };
  // The launcher binds each socket under a name that is one character longer first.
  checkSocketPath(vm, `${files.channelSocket}~`);
  return files;
}

/** Refuses a path that does not fit into sun_path (unix(7)). */
export function checkSocketPath(vm: VmId, path: string): void {
  const sizeBytes = Buffer.byteLength(path);
  if (sizeBytes <= SOCKET_PATH_BYTES_MAX) return;
  throw new HypervisorError(
    'usage/socket-path',
    `${vm}: the socket path ${path} has ${sizeBytes} bytes, unix sockets take ${SOCKET_PATH_BYTES_MAX}`,
    { next: 'configure a shorter run folder or give the VM a shorter name' },
  );
}

/** Makes the folder and records the launch before there is a process, so that no process is ever unrecorded. */
export async function recordLaunch(files: RunFiles, launch: Launch): Promise<void> {
  await mkdir(files.folder, { recursive: true, mode: 0o700 });
  await chmod(files.folder, 0o700);
  for (const stale of [files.qmpSocket, files.channelSocket, files.pidFile]) await rm(stale, { force: true });
  await writeDurably(files.launchFile, `${JSON.stringify(launch)}\n`);
}

/** The record of the last launch and the process it became; null when there is none. Throws when the record is damaged. */
export async function readLaunch(
  files: RunFiles,
): Promise<{ readonly launch: Launch; readonly process: ProcessId | null } | null> {
  const text = await readOrNull(files.launchFile);
  if (text === null) return null;
  const launch = parseLaunch(parseJson(text, files.launchFile, 'host-fault/launch-record'), files.launchFile);
  const pid = await readOrNull(files.pidFile);
  return { launch, process: pid === null ? null : parseProcessId(pid) };
}

/** Removes what only a running QEMU needs. */
export async function forgetLaunch(files: RunFiles): Promise<void> {
  for (const path of [files.launchFile, files.qmpSocket, files.channelSocket, files.pidFile]) {
    await rm(path, { force: true });
  }
}

/** Removes the folder of a VM that is off and being removed. What is not ours in it stays, and so does the folder then. */
export async function forgetVm(files: RunFiles): Promise<void> {
  await forgetLaunch(files);
  await rm(files.logFile, { force: true });
  await rmdir(files.folder).catch((error: unknown) => {
    const code = error instanceof Error && 'code' in error ? error.code : null;
    if (code !== 'ENOENT' && code !== 'ENOTEMPTY') throw error;
  });
}

/** The end of what QEMU or the launcher wrote to its log. */
export async function logTail(files: RunFiles, charsMax: number): Promise<string> {
  return ((await readOrNull(files.logFile)) ?? '').trim().slice(-charsMax);
}

async function readOrNull(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return null;
    throw new HypervisorError('host-fault/run-folder', `reading ${path}`, { cause });
  }
}
