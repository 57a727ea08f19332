// Which host files a VM may be given: only those that really lie under the configured roots.
import { constants } from 'node:fs';
import { open, realpath, stat } from 'node:fs/promises';
import { sep } from 'node:path';
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
