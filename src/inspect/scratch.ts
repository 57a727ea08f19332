// Files for what is written aside while a running VM's disk is read: one a VM, and none after its look.
import { chown, mkdir, open, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { VmId } from '../model/ids.ts';

export type Scratch = { readonly path: string; readonly remove: () => Promise<void> };

/** Files below a folder that is nobody else's; what a process before this one left there goes first. */
export function makeScratch(folder: string): {
  readonly take: (vm: VmId, uid: number | null) => Promise<Scratch>;
} {
  let cleared: Promise<void> | null = null;
  const clear = async (): Promise<void> => {
    await mkdir(folder, { recursive: true, mode: 0o711 });
    for (const name of await readdir(folder)) await rm(join(folder, name), { force: true });
  };
  return {
    take: async (vm, uid) => {
      cleared ??= clear();
      await cleared;
      const path = join(folder, `${vm}.qcow2`);
      const remove = (): Promise<void> => rm(path, { force: true });
      await remove();
      const file = await open(path, 'wx', 0o600);
      await file.close();
      if (uid !== null) await chown(path, uid, uid);
      return { path, remove };
    },
  };
}
