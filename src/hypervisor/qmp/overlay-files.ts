// The disk overlay of one managed VM on the host's disk: its files, the record of its fate, and what becomes of it when the VM is off.
//
//   none ─begin─► trial ─accept─► accepted ─commit─► none        A trial that ends any other way is thrown away.
//
// The record alone says what an overlay is worth. It is written before there is an overlay, and it goes before the overlay does:
// whatever is found without a record is of no use to anybody.
import { mkdir, readFile, rm, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { type Static, Type } from 'typebox';
import { syncFolder, writeDurably } from '../../base/durable-file.ts';
import { OVERLAY_MERGE_TIMEOUT_MS } from '../../base/limits.ts';
import { makeParser, parseJson } from '../../base/parse.ts';
import { runCommand } from '../../base/run-command.ts';
import { BackingSchema, DiskFormatSchema, HostPathSchema } from '../../model/disk-image.ts';
import { type VmId, VmIdSchema } from '../../model/ids.ts';
import { HypervisorError } from '../errors.ts';
import type { OverlayFate } from '../hypervisor.ts';
import { writableNode } from './command-line.ts';
import { giveTo } from './disk-paths.ts';

const strict = { additionalProperties: false } as const;
const OverlayDiskSchema = Type.Object(
  {
    /** QEMU's name of the disk's own node, and of the overlay's. */
    node: Type.String({ maxLength: 31 }),
    overlayNode: Type.String({ maxLength: 31 }),
    /** The disk as the VM's spec has it: nothing of it is ever read from a file that a guest or its QEMU can write. */
    base: Type.Object(
      { path: HostPathSchema, format: DiskFormatSchema, backing: Type.Optional(BackingSchema) },
      strict,
    ),
    file: Type.String({ maxLength: 4096 }),
  },
  strict,
);
export type OverlayDisk = Static<typeof OverlayDiskSchema>;

const RecordSchema = Type.Object(
  {
    format: Type.Literal('pratique.overlay/1'),
    vm: VmIdSchema,
    fate: Type.Union([Type.Literal('trial'), Type.Literal('accepted')]),
    /** Whose files the overlay's are: the user of the VM's QEMU, who alone reads them; null: ours. */
    uid: Type.Union([Type.Integer({ minimum: 1 }), Type.Null()]),
    disks: Type.Array(OverlayDiskSchema, { minItems: 1, maxItems: 16 }),
  },
  strict,
);
export type OverlayRecord = Static<typeof RecordSchema>;
const parseRecord = makeParser(RecordSchema, 'host-fault/overlay-record');

/** A disk that is to have an overlay. */
export type WritableDisk = Pick<OverlayDisk, 'node' | 'base'>;

export type OverlayFiles = {
  readonly vm: VmId;
  /** QEMU may go through it and no more: it cannot change the record. */
  readonly folder: string;
  readonly recordPath: string;
};

/** Where the overlay of a VM lies. */
export function overlayFiles(overlayFolder: string, vm: VmId): OverlayFiles {
  const folder = join(overlayFolder, vm);
  return { vm, folder, recordPath: join(folder, 'overlay.json') };
}

/** The record; null when there is no overlay. Throws HypervisorError when it is damaged. */
export async function readOverlay(files: OverlayFiles): Promise<OverlayRecord | null> {
  let text: string;
  try {
    text = await readFile(files.recordPath, 'utf8');
  } catch (cause) {
    if (isAbsent(cause)) return null;
    throw new HypervisorError('host-fault/overlay-record', `${files.vm}: reading ${files.recordPath}`, { cause });
  }
  return parseRecord(parseJson(text, files.recordPath, 'host-fault/overlay-record'), files.recordPath);
}

/** What the overlay of a VM is worth. */
export async function overlayFate(files: OverlayFiles): Promise<OverlayFate> {
  return (await readOverlay(files))?.fate ?? 'none';
}

/** Records a trial for these disks, before any of its files exists. Throws HypervisorError when the folder takes nothing, or has too little space. */
export async function recordTrial(
  files: OverlayFiles,
  owned: { readonly disks: readonly WritableDisk[]; readonly uid: number | null },
  spaceBytes: number,
): Promise<OverlayRecord> {
  const { vm, folder } = files;
  try {
    await removeFolder(files);
    await mkdir(folder, { recursive: true, mode: 0o711 });
    const { bavail, bsize } = await statfs(folder);
    const freeBytes = bavail * bsize;
    if (freeBytes < spaceBytes) {
      throw new HypervisorError(
        'host-fault/overlay-space',
        `${vm}: a disk overlay may need ${mebibytes(spaceBytes)} MiB, and ${folder} has ${mebibytes(freeBytes)} MiB left`,
        { next: 'free space there' },
      );
    }
    const record: OverlayRecord = {
      format: 'pratique.overlay/1',
      vm,
      fate: 'trial',
      uid: owned.uid,
      disks: owned.disks.map((disk) => ({
        ...disk,
        overlayNode: disk.node.replace('disk', 'overlay'),
        file: join(folder, `${disk.node}.qcow2`),
      })),
    };
    await writeRecord(files, record);
    return record;
  } catch (cause) {
    if (cause instanceof HypervisorError) throw cause;
    throw new HypervisorError('host-fault/overlay-folder', `${vm}: no disk overlay can be made in ${folder}`, {
      cause,
      next: 'see that the folder exists and can be written',
    });
  }
}

const mebibytes = (bytes: number): number => Math.floor(bytes / (1024 * 1024));

/** Makes one overlay's file. It names no other file: what is below it is said by us each time. */
export async function makeOverlayFile(disk: OverlayDisk, sizeBytes: number, uid: number | null): Promise<void> {
  const purpose = 'making a disk overlay';
  await runCommand(['qemu-img', 'create', '-q', '-f', 'qcow2', disk.file, String(sizeBytes)], { purpose });
  if (uid !== null) await giveTo(uid, disk.file);
}

/** From now on the overlay belongs to the disk, whatever happens. Resolves when that is on disk. */
export async function recordAccepted(files: OverlayFiles): Promise<void> {
  const record = await readOverlay(files);
  if (record?.fate === 'trial') await writeRecord(files, { ...record, fate: 'accepted' });
}

/** From now on its files are worth nothing. Resolves when no power cut brings the record back. */
export async function forgetOverlay(files: OverlayFiles): Promise<void> {
  await rm(files.recordPath, { force: true });
  await syncFolder(files.folder);
}

/** Forgets the overlay, if it is not forgotten yet, then removes it. */
export async function removeOverlay(files: OverlayFiles): Promise<void> {
  if ((await readOverlay(files)) !== null) await forgetOverlay(files);
  await removeFolder(files);
}

/**
 * What becomes of the overlay of a VM that is off: accepted ones are merged into the disk, all others are thrown away. Merging
 * again after a crash is the same merge: nothing else has written the disk since. As the VM's own user: its QEMU wrote the file.
 */
export async function settleOverlay(files: OverlayFiles): Promise<'none' | 'discarded' | 'committed'> {
  const record = await readOverlay(files);
  if (record === null) {
    await removeFolder(files);
    return 'none';
  }
  if (record.fate === 'accepted') for (const disk of record.disks) await mergeFile(files.vm, disk, record.uid);
  await removeOverlay(files);
  return record.fate === 'accepted' ? 'committed' : 'discarded';
}

async function mergeFile(vm: VmId, disk: OverlayDisk, uid: number | null): Promise<void> {
  const file = { driver: 'file', filename: disk.file };
  const image = { driver: 'qcow2', file, backing: writableNode(disk.base) };
  const identity =
    uid === null ? [] : ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--no-new-privs', '--'];
  const argv = [...identity, 'qemu-img', 'commit', '-q', '-d', `json:${JSON.stringify(image)}`];
  try {
    await runCommand(argv, { purpose: `merging the overlay of ${vm}`, timeoutMs: OVERLAY_MERGE_TIMEOUT_MS });
  } catch (cause) {
    throw new HypervisorError(
      'host-fault/overlay-merge',
      `${vm}: its update could not be merged into ${disk.base.path}`,
      {
        cause,
        next: 'see that the disk can be written and its file system has space; the overlay is kept',
      },
    );
  }
}

async function writeRecord(files: OverlayFiles, record: OverlayRecord): Promise<void> {
  await writeDurably(files.recordPath, `${JSON.stringify(record)}\n`);
}

async function removeFolder(files: OverlayFiles): Promise<void> {
  try {
    await rm(files.folder, { recursive: true, force: true });
  } catch (error) {
    if (!isAbsent(error)) throw error;
  }
}

/** Nothing is there, or what should be a folder is none: there is no overlay, whatever else is wrong. */
function isAbsent(error: unknown): boolean {
  return error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ENOTDIR');
}
