// The files of one drive in its folder: hard links of the blobs, the metadata file and, last of all, the descriptor.
//
// A folder with a descriptor of this boot of the host is complete. After a power cut the VM is gone and so is the worth of its
// drive: it is built anew, and nobody waits for a disk (fsync) before a guest may read. Hard links give QEMU's user the blobs
// of this VM and no others, and keep their bytes in place whatever retention does to the store.
import {
  chmod,
  chown,
  link,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rmdir,
  stat,
  unlink,
  writeFile,
} from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Digest } from '../base/digest-text.ts';
import { syncFolder } from '../base/durable-file.ts';
import { hostBootId } from '../base/process-id.ts';
import { type BlobFiles, missingBlob, wrongSize } from './blob-files.ts';
import { DriveError, systemCode } from './drive-error.ts';
import type { IsoImage } from './iso9660.ts';
import { writePacked } from './pack-blobs.ts';
import { DESCRIPTOR_FILE, type ImagePlan, type LinkedBlob, METADATA_FILE } from './zero-copy-image.ts';

/** The user and group that QEMU runs as. */
export type Owner = { readonly uid: number; readonly gid: number };

const OWN_FILE = /^(?:b\d{4,}|meta\.bin|drive\.vmdk)(?:\.new)?$/;

/** Bytes of the metadata compared at once. */
const COMPARE_BYTES = 1024 * 1024;

export type DriveFiles = {
  readonly folder: string;
  readonly iso: IsoImage;
  readonly plan: ImagePlan;
  readonly blobs: BlobFiles;
};

/** Whether the folder already holds exactly this drive, built since the host's last start. */
export async function isBuilt(files: DriveFiles): Promise<boolean> {
  try {
    const descriptor = await readFile(join(files.folder, DESCRIPTOR_FILE), 'utf8');
    if (descriptor !== (await descriptorOfThisBoot(files.plan))) return false;
    for (const { file, extent } of files.plan.linked) {
      const [ours, theirs] = await Promise.all([
        stat(join(files.folder, file)),
        stat(files.blobs.path(extent.source.digest)),
      ]);
      if (ours.ino !== theirs.ino || ours.dev !== theirs.dev || ours.size !== extent.lengthBytes) return false;
    }
    return await startsWith(join(files.folder, METADATA_FILE), files);
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return false;
    throw error;
  }
}

/** A comment line, which QEMU does not read, says which boot the files' bytes are known to be from. */
async function descriptorOfThisBoot({ descriptor }: ImagePlan): Promise<string> {
  const [first, ...rest] = descriptor.split('\n');
  return [first, `# host boot ${await hostBootId()}`, ...rest].join('\n');
}

/** Whether the metadata file has the right length and begins with the metadata; what is packed follows from it. */
async function startsWith(path: string, { iso, plan }: DriveFiles): Promise<boolean> {
  const handle = await open(path, 'r');
  try {
    if ((await handle.stat()).size !== plan.metadataFileBytes) return false;
    const found = Buffer.allocUnsafe(Math.min(COMPARE_BYTES, iso.metadata.length));
    for (let done = 0; done < iso.metadata.length; ) {
      const wanted = iso.metadata.subarray(done, done + found.length);
      const { bytesRead } = await handle.read(found, 0, wanted.length, done);
      if (bytesRead === 0 || !found.subarray(0, bytesRead).equals(wanted.subarray(0, bytesRead))) return false;
      done += bytesRead;
    }
    return true;
  } finally {
    await handle.close();
  }
}

/** Builds the folder anew; whatever drive was in it is removed first. */
export async function writeDriveFolder(files: DriveFiles): Promise<void> {
  const { folder, plan } = files;
  await removeDriveFolder(folder);
  // The users of the VMs pass through the parents and read only their own folder.
  await mkdir(dirname(folder), { recursive: true, mode: 0o711 });
  await mkdir(folder, { mode: 0o700 });
  for (const blob of plan.linked) await linkBlob(files, blob);
  await writeMetadataFile(files);
  // Renamed into its place, so that whoever kills us leaves a whole descriptor or none.
  const descriptor = join(folder, DESCRIPTOR_FILE);
  await writeFile(`${descriptor}.new`, await descriptorOfThisBoot(plan), { mode: 0o444 });
  await rename(`${descriptor}.new`, descriptor);
}

/** Lets the owner's group read a complete folder, and nobody else. */
export async function grantFolder(folder: string, owner: Owner | undefined): Promise<void> {
  const metadata = join(folder, METADATA_FILE);
  if (owner !== undefined) await Promise.all([folder, metadata].map((path) => chown(path, 0, owner.gid)));
  await chmod(metadata, 0o440);
  await chmod(folder, 0o750);
}

/** Removes a drive's files and its folder. Foreign files make it stop with an error; a missing folder is fine. */
export async function removeDriveFolder(folder: string): Promise<void> {
  let names: string[];
  try {
    names = await readdir(folder);
  } catch (error) {
    if (systemCode(error) === 'ENOENT') return;
    throw error;
  }
  const foreign = names.find((name) => !OWN_FILE.test(name));
  if (foreign !== undefined) {
    throw new DriveError('host-fault/drive-folder', `the drive folder ${folder} holds a file that is not ours`, {
      next: 'look into the folder and remove it by hand',
    });
  }
  // The descriptor first: without it the folder is no drive, wherever the power fails.
  for (const name of names.sort((a, b) => Number(b === DESCRIPTOR_FILE) - Number(a === DESCRIPTOR_FILE))) {
    await unlink(join(folder, name));
  }
  await rmdir(folder);
  await syncFolder(dirname(folder));
}

async function linkBlob({ folder, blobs }: DriveFiles, { file, extent }: LinkedBlob): Promise<void> {
  const { digest } = extent.source;
  const path = join(folder, file);
  try {
    await link(blobs.path(digest), path);
  } catch (cause) {
    throw linkError(cause, digest, folder);
  }
  const found = await stat(path);
  if (!found.isFile() || found.size !== extent.lengthBytes) throw wrongSize(digest, found.size, extent.lengthBytes);
}

function linkError(cause: unknown, digest: Digest, folder: string): DriveError {
  switch (systemCode(cause)) {
    case 'ENOENT':
      return missingBlob(digest);
    case 'EXDEV':
      return new DriveError(
        'host-unfit/drive-links',
        `the drive folder ${folder} and the store are on different file systems`,
        {
          cause,
          next: 'keep the whole data directory on one file system',
        },
      );
    case 'EMLINK':
      return new DriveError(
        'host-fault/drive-links',
        `the blob ${digest} is on more drives than the file system can link`,
        {
          cause,
          next: 'remove drives of finished runs',
        },
      );
    default:
      return new DriveError('host-fault/drive-links', `linking the blob ${digest} into ${folder}`, { cause });
  }
}

async function writeMetadataFile({ folder, iso, plan, blobs }: DriveFiles): Promise<void> {
  const handle = await open(join(folder, METADATA_FILE), 'wx', 0o400);
  try {
    await writePacked(handle, { metadata: iso.metadata, packed: plan.packed, blobs });
  } finally {
    await handle.close();
  }
}
