// Which host files a VM may be given: only those that really lie under the configured roots.
import { constants } from 'node:fs';
import { open, realpath, stat } from 'node:fs/promises';
import { sep } from 'node:path';
import { readQcow2Header } from '../../base/qcow2-header.ts';
import type { DiskImage } from '../../model/disk-image.ts';
import type { VmId } from '../../model/ids.ts';
import { HypervisorError } from '../errors.ts';

export type HostFile = { readonly vm: VmId; readonly field: string; readonly path: string };

/** The real path of a file (or block device) under one of the roots. Throws HypervisorError when it is elsewhere, missing, or something else. */
export async function pathUnderRoots(file: HostFile, roots: readonly string[]): Promise<string> {
  const real = await realpath(file.path).catch((cause: unknown) => {
    throw new HypervisorError('usage/disk', `${file.vm}: ${file.field}: ${file.path} cannot be found`, { cause });
  });
  const realRoots = await Promise.all(roots.map((root) => realpath(root).catch(() => null)));
  const isInside = realRoots.some((root) => root !== null && real.startsWith(root.endsWith(sep) ? root : root + sep));
  if (!isInside) {
    const seen = real === file.path ? '' : ` (really ${real})`;
    throw new HypervisorError(
      'refused/disk-root',
      `${file.vm}: ${file.field}: ${file.path}${seen} is under none of the disk roots ${roots.join(', ')}`,
      { next: 'move it there, or add its folder to the disk roots of the configuration' },
    );
  }
  const facts = await stat(real);
  if (!facts.isFile() && !facts.isBlockDevice()) {
    throw new HypervisorError('usage/disk', `${file.vm}: ${file.field}: ${real} is neither a file nor a block device`);
  }
  return real;
}

/** A disk's image and its chain with real paths under the roots. Throws HypervisorError; also when a header names a file that the spec does not. */
export async function resolveImage(
  vm: VmId,
  field: string,
  image: DiskImage,
  roots: readonly string[],
): Promise<DiskImage> {
  const path = await pathUnderRoots({ vm, field, path: image.path }, roots);
  if (image.format === 'qcow2') await checkQcow2({ vm, field, path }, image);
  if (image.backing === undefined) return { path, format: image.format };
  const backing = await resolveImage(vm, `${field}.backing`, image.backing, roots);
  return { path, format: image.format, backing };
}

/** A disk as a program of this user may read it while the VM is off: with real paths, and the VM's own if it would be at its start. */
export async function prepareImage(
  vm: VmId,
  disk: DiskImage & { readonly id: string; readonly readOnly?: boolean | undefined },
  uid: number | null,
  roots: readonly string[],
): Promise<DiskImage> {
  const image = await resolveImage(vm, `disks.${disk.id}`, disk, roots);
  if (uid === null || disk.readOnly === true) return image;
  const facts = await stat(image.path);
  const isReadable = facts.uid === uid || (facts.mode & 0o004) !== 0;
  if (!isReadable) await giveTo(uid, image.path);
  return image;
}

/** With a backing file left out the guest would see zeros in its place, and write on top of them. */
async function checkQcow2({ vm, field, path }: HostFile, { backing }: DiskImage): Promise<void> {
  const header = await readQcow2Header(path).catch((cause: unknown) => {
    throw new HypervisorError('usage/disk', `${vm}: ${field}: ${path} cannot be read`, { cause });
  });
  if (header?.namesDataFile === true) {
    throw new HypervisorError('refused/disk-data-file', `${vm}: ${field}: ${path} keeps its data in another file`, {
      next: 'make it one file with: qemu-img convert -O qcow2',
    });
  }
  if (header?.namesBacking !== true || backing !== undefined) return;
  throw new HypervisorError(
    'usage/disk-backing',
    `${vm}: ${field}: ${path} was made on top of another image, and the spec names none`,
    {
      next: `give that image's path and format as ${field}.backing, or make it one file with: qemu-img convert -O qcow2`,
    },
  );
}

/** Gives a VM's writable disk to the VM's own uid, so that its QEMU can open it and no other VM's QEMU can. */
export async function giveTo(uid: number, path: string): Promise<void> {
  // O_NOFOLLOW: the path was resolved before; a link now would be somebody's trick.
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  try {
    await file.chown(uid, uid);
    await file.chmod(0o600);
  } finally {
    await file.close();
  }
}
