// Builds and removes the drive that one VM sees in one run.
//
//   plan ─► contents (manifest, entries) ─► iso9660 (metadata, extents) ─► zero-copy image (descriptor) ─► folder
import { readdir, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { type Digest, digestOf } from '../base/digest.ts';
import type { ConfigDriveFile } from '../model/guest-config.ts';
import type { RunId, VmId } from '../model/ids.ts';
import { DRIVE_LABEL, type Manifest } from '../model/manifest.ts';
import type { Plan } from '../model/plan.ts';
import { type BlobFiles, damagedBlob, missingBlob } from './blob-files.ts';
import { type DriveArchive, type ExtraFile, makeContents } from './contents.ts';
import {
  type DriveFiles,
  grantFolder,
  isBuilt,
  type Owner,
  removeDriveFolder,
  writeDriveFolder,
} from './drive-folder.ts';
import { buildIso, type IsoEntry, SECTOR_BYTES } from './iso9660.ts';
import { DESCRIPTOR_FILE, planZeroCopyImage } from './zero-copy-image.ts';

export type { BlobFiles } from './blob-files.ts';
export type { DriveArchive, ExtraFile } from './contents.ts';
export { DriveError } from './drive-error.ts';
export type { Owner } from './drive-folder.ts';
export { type DriveExports, type ExportWatcher, makeDriveExports } from './export/exports.ts';
export { checkLicenses, licensesOf } from './licenses.ts';

export type DriveOptions = {
  readonly vm: VmId;
  readonly run: RunId;
  readonly plan: Plan;
  readonly planDigest: Digest;
  readonly blobs: BlobFiles;
  /** A folder of this run alone, on the store's file system; made here. */
  readonly folder: string;
  /** Who runs QEMU: its group may read the folder. Without it only our own user can. */
  readonly owner?: Owner;
  readonly extraFiles?: readonly ExtraFile[];
  /** The vendors' signed archives, from which the guest's own apt verifies the Debian packages. */
  readonly archives?: readonly DriveArchive[];
  readonly config?: readonly ConfigDriveFile[];
  readonly configRemoved?: readonly string[];
};

export type BuiltDrive = {
  readonly manifest: Manifest;
  /** Digest of the bytes of `/manifest.json`, to be announced on the channel. */
  readonly manifestDigest: Digest;
  readonly label: string;
  /** Bytes of the drive as the guest sees it. */
  readonly sizeBytes: number;
  readonly image: { readonly path: string; readonly format: 'vmdk' };
};

/**
 * Builds the drive of a run. A second call with the same plan finds it and gives the same answer; what a crash
 * or a power cut of the host left behind is built again; another plan replaces the files, while a QEMU that has the old ones open keeps them.
 * Throws DriveError: `host-fault/blob-missing` and `blob-damaged` (with `digest`), `usage/drive-…` for what a drive
 * cannot carry, `host-unfit/drive-links` when folder and store are on different file systems.
 */
export async function buildDrive(options: DriveOptions): Promise<BuiltDrive> {
  const contents = makeContents(options);
  checkBlobs(contents.entries, options.blobs);
  const iso = buildIso(contents.entries, { label: DRIVE_LABEL });
  const files: DriveFiles = {
    folder: options.folder,
    iso,
    plan: planZeroCopyImage(iso),
    blobs: options.blobs,
  };
  if (!(await isBuilt(files))) await writeDriveFolder(files);
  await grantFolder(options.folder, options.owner);
  return {
    manifest: contents.manifest,
    manifestDigest: contents.manifestDigest,
    label: DRIVE_LABEL,
    sizeBytes: iso.totalSectors * SECTOR_BYTES,
    image: { path: join(options.folder, DESCRIPTOR_FILE), format: 'vmdk' },
  };
}

/** Removes a run's drive; fine when there is none. Detach it first: an open drive keeps its bytes, but cannot be attached again. */
export async function removeDrive(folder: string): Promise<void> {
  await removeDriveFolder(folder);
}

/** Removes the drives of a VM's runs, each a folder below this one and named after its run, all or all but one. Fine when there is none. */
export async function removeDrives(folder: string, except: RunId | null = null): Promise<void> {
  const runs = await listFolder(folder);
  for (const run of runs) if (run !== except) await removeDriveFolder(join(folder, run));
  if (except === null && runs.length > 0) await rmdir(folder);
}

async function listFolder(folder: string): Promise<readonly string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return [];
    throw error;
  }
}

const EMPTY_DIGEST = digestOf('');

/** Every blob is in the store; sizes are checked when the files are linked or copied, where nothing can come in between. */
function checkBlobs(entries: readonly IsoEntry[], blobs: BlobFiles): void {
  for (const entry of entries) {
    if (entry.kind === 'folder' || entry.kind === 'symlink' || entry.source.kind === 'inline') continue;
    const { digest } = entry.source;
    if (!blobs.has(digest)) throw missingBlob(digest);
    // An empty file has no place on the drive, so nobody would look at the blob.
    if (entry.sizeBytes === 0 && digest !== EMPTY_DIGEST) throw damagedBlob(digest);
  }
}
