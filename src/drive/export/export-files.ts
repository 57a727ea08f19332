// The folder of one VM's export below the run folder: its record, pid, log, and the socket or the file that it is shown as.
//
// The folder is ours alone to write. Whoever reads the drive passes through it and reaches that one name.
import type { Stats } from 'node:fs';
import { chmod, chown, lstat, mkdir, open, readdir, readFile, rmdir, stat, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { type Static, Type } from 'typebox';
import { logTail } from '../../base/detached.ts';
import { writeDurably } from '../../base/durable-file.ts';
import { EXPORT_LOG_BYTES_MAX, NAME_CHARS_MAX, PLAN_ITEMS_MAX, SOCKET_PATH_BYTES_MAX } from '../../base/limits.ts';
import { makeParser, parseJson } from '../../base/parse.ts';
import { printable } from '../../base/printable.ts';
import { type ProcessId, parseProcessId } from '../../base/process-id.ts';
import type { DriveSource } from '../../model/drive.ts';
import { isVmId, type VmId, VmIdSchema } from '../../model/ids.ts';
import { DriveError, systemCode } from '../drive-error.ts';
import type { Owner } from '../drive-folder.ts';
import { METADATA_FILE } from '../zero-copy-image.ts';
import { unmountAll } from './mounts.ts';

export type ExportFiles = {
  readonly folder: string;
  readonly recordFile: string;
  readonly pidFile: string;
  readonly logFile: string;
  readonly socket: string;
  /** What the drive is mounted on. */
  readonly file: string;
};

const OWN_NAME = /^(?:export\.json|pid|log|nbd|drive\.iso)(?:\.new|~)?$/;

const strict = { additionalProperties: false } as const;
const OwnerSchema = Type.Object({ uid: Type.Integer({ minimum: 0 }), gid: Type.Integer({ minimum: 0 }) }, strict);

const RecordSchema = Type.Object(
  {
    format: Type.Literal('pratique.export/1'),
    vm: VmIdSchema,
    hostBoot: Type.String({ maxLength: 64 }),
    transport: Type.Union([Type.Literal('nbd'), Type.Literal('file')]),
    /** The VMDK descriptor. */
    image: Type.String({ maxLength: 4096 }),
    /** Which files it was: a folder may get another drive while this one is being read. */
    identity: Type.String({ maxLength: 200 }),
    exportName: Type.String({ pattern: '^drive-[0-9a-f]{16}$' }),
    /** As whom the process runs, and who may read from it; null: we ourselves. */
    owner: Type.Union([OwnerSchema, Type.Null()]),
    reader: Type.Union([OwnerSchema, Type.Null()]),
    /** What guards blobs on it: an export is started again only while the VM holds leases of these. */
    licenses: Type.Array(Type.String({ maxLength: NAME_CHARS_MAX }), { maxItems: PLAN_ITEMS_MAX }),
  },
  strict,
);
/** One export, as it is started and started again. */
export type ExportRecord = Static<typeof RecordSchema>;
const parseRecord = makeParser(RecordSchema, 'host-fault/drive-export');

/** Where the exports of all VMs are. */
export function exportsFolder(runFolder: string): string {
  return join(runFolder, 'drives');
}

/** The files of a VM's export. Throws DriveError when the run folder's name is too long for unix sockets. */
export function exportFiles(runFolder: string, vm: VmId): ExportFiles {
  const folder = join(exportsFolder(runFolder), vm);
  const named = (name: string): string => join(folder, name);
  const files = {
    ...{ folder, recordFile: named('export.json'), pidFile: named('pid'), logFile: named('log') },
    ...{ socket: named('nbd'), file: named('drive.iso') },
  };
  // It is bound under a name that is one character longer first.
  const sizeBytes = Buffer.byteLength(files.socket) + 1;
  if (sizeBytes <= SOCKET_PATH_BYTES_MAX) return files;
  throw new DriveError(
    'usage/socket-path',
    `${vm}: the socket path ${files.socket} has ${sizeBytes} bytes, unix sockets take ${SOCKET_PATH_BYTES_MAX}`,
    { next: 'configure a shorter run folder or give the VM a shorter name' },
  );
}

/** Where a hypervisor opens this export. */
export function sourceOf(record: ExportRecord, files: ExportFiles): DriveSource {
  if (record.transport === 'file') return { kind: 'raw', path: files.file };
  return { kind: 'nbd', socket: files.socket, exportName: record.exportName };
}

/** What tells one built drive from another that has taken its place. The metadata hold the manifest. */
export async function identityOf(image: string): Promise<string> {
  const paths = [image, join(dirname(image), METADATA_FILE)];
  const found = await Promise.all(paths.map((path) => stat(path, { bigint: true })));
  return found.map(({ ino, size, mtimeNs }) => `${ino}-${size}-${mtimeNs}`).join(' ');
}

/** Makes the folder, empty but for the record. Foreign files in it are an error and stay. */
export async function prepareFolder(files: ExportFiles, record: ExportRecord): Promise<void> {
  const { folder } = files;
  await mkdir(dirname(folder), { recursive: true, mode: 0o711 });
  await mkdir(folder, { mode: 0o700 }).catch((error: unknown) => {
    if (systemCode(error) !== 'EEXIST') throw error;
  });
  const found = await lstat(folder);
  if (!found.isDirectory() || found.uid !== process.getuid?.()) throw foreign(folder, 'is not a folder of ours');
  await clearFolder(files);
  await writeDurably(files.recordFile, `${JSON.stringify(record)}\n`);
  await letPass(files, record);
}

/** Who runs the process and who reads pass through; if they are two, so may others, who find nothing there that they may open. */
async function letPass({ folder }: ExportFiles, { owner, reader }: ExportRecord): Promise<void> {
  if (owner === null) return await chmod(folder, 0o700);
  const isOne = reader === null || reader.uid === 0 || reader.gid === owner.gid;
  await chown(folder, 0, owner.gid);
  await chmod(folder, isOne ? 0o710 : 0o711);
}

/** Takes away what a process left, all but the record and its log. Its process must have ended. */
export async function clearRemains(files: ExportFiles): Promise<void> {
  await unmountAll(files.file);
  await removeOwn(files.file, (found) => found.isFile() && found.size === 0);
  await removeOwn(files.socket, (found) => found.isSocket());
  await removeOwn(files.pidFile, (found) => found.isFile());
}

/** An empty file to mount on. An ordinary user may mount only on what he can write. */
export async function makeMountPoint(files: ExportFiles): Promise<void> {
  const handle = await open(files.file, 'wx', 0o600);
  await handle.close();
}

/** Removes the folder and all in it; fine when there is none. Foreign files are an error and stay. */
export async function removeExportFolder(files: ExportFiles): Promise<void> {
  try {
    await clearFolder(files);
    await rmdir(files.folder);
  } catch (error) {
    if (systemCode(error) !== 'ENOENT') throw error;
  }
}

async function clearFolder(files: ExportFiles): Promise<void> {
  // Before anything in it is looked at: what lies on a dead mount cannot even be asked for its kind.
  await clearRemains(files);
  const names = await readdir(files.folder);
  const stranger = names.find((name) => !OWN_NAME.test(name));
  if (stranger !== undefined) throw foreign(files.folder, `holds a file that is not ours (${printable(stranger)})`);
  for (const name of names) await unlink(join(files.folder, name));
}

async function removeOwn(path: string, isOurs: (found: Stats) => boolean): Promise<void> {
  try {
    if (!isOurs(await lstat(path))) throw foreign(path, 'is not what we would have put there');
    await unlink(path);
  } catch (error) {
    if (systemCode(error) !== 'ENOENT') throw error;
  }
}

function foreign(path: string, why: string): DriveError {
  return new DriveError('host-fault/drive-export-folder', `a drive cannot be exported: ${path} ${why}`, {
    next: 'look at it and move it away by hand',
  });
}

/** The VMs that have a folder here. */
export async function listExports(runFolder: string): Promise<readonly VmId[]> {
  try {
    return (await readdir(exportsFolder(runFolder))).filter(isVmId);
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return [];
    throw error;
  }
}

/** The record of an export, null when there is none. Throws when it is damaged. */
export async function readRecord(files: ExportFiles): Promise<ExportRecord | null> {
  const text = await readOrNull(files.recordFile);
  if (text === null) return null;
  return parseRecord(parseJson(text, files.recordFile, 'host-fault/drive-export'), files.recordFile);
}

/** The process that was started last; null when its start did not get that far. */
export async function readProcess(files: ExportFiles): Promise<ProcessId | null> {
  const text = await readOrNull(files.pidFile);
  return text === null ? null : parseProcessId(text);
}

async function readOrNull(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return null;
    throw error;
  }
}

/** What a process said last, fit to show. */
export async function wordsOf(files: ExportFiles): Promise<string> {
  return printable(await logTail(files.logFile, EXPORT_LOG_BYTES_MAX), EXPORT_LOG_BYTES_MAX);
}

export type { Owner };
