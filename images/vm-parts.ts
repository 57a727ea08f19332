// What a VM of an image has for itself: its disks, and how its guest learns what it is to do.
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { ManagedVm } from '../src/hypervisor/vm-spec.ts';
import type { VmId } from '../src/model/ids.ts';
import { type AnyImage, type DiskSpec, type GuestWishes, guestCommandLine, guestWords, makeVmDisk } from './images.ts';

/** Bytes of the disk that carries the wishes: one block of what the guest reads. */
const WISHES_BYTES = 4096;

/** Makes a VM's disks in the folder and returns its part of the VM spec. Throws as `makeVmDisk` does. */
export async function makeVmParts(options: {
  readonly image: AnyImage;
  readonly folder: string;
  readonly vm: VmId;
  readonly wishes: GuestWishes;
}): Promise<Pick<ManagedVm, 'memoryMiB' | 'kernel' | 'disks'>> {
  const { image, folder, vm, wishes } = options;
  const root = await makeVmDisk({ image, folder, vm });
  const { memoryMiB } = image;
  if (image.kernel === null) return { memoryMiB, disks: [root, await makeWishesDisk({ folder, vm, wishes })] };
  const commandLine = guestCommandLine(image, wishes);
  return { memoryMiB, kernel: { image: image.kernel, initrd: image.initrd, commandLine }, disks: [root] };
}

/** A guest that boots by its own boot loader has a command line of its own: it reads its wishes from a second, read-only disk. */
async function makeWishesDisk(options: {
  readonly folder: string;
  readonly vm: VmId;
  readonly wishes: GuestWishes;
}): Promise<DiskSpec> {
  const path = join(options.folder, `${options.vm}-wishes.raw`);
  const text = Buffer.alloc(WISHES_BYTES);
  text.write(`${['pratique-guest', ...guestWords(options.wishes)].join(' ')}\n`);
  await mkdir(options.folder, { recursive: true });
  await writeFile(path, text);
  return { id: 'wishes', path, format: 'raw', readOnly: true };
}
