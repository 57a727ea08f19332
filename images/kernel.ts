// The guest's kernel: Debian's own package, unpacked and never installed, and the few of its modules that a guest needs.
import { copyFile, mkdir, readdir, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { Log } from '../src/base/log.ts';
import { runCommand, tryCommand } from '../src/base/run-command.ts';
import { type DebianPackage, fetchPackage, packageField, unpackPackage } from './debian-package.ts';
import { ImageError } from './image-error.ts';

/** `cloud` knows virtio only; `generic` also the emulated network cards of the leak matrix. */
export type KernelFlavour = 'cloud' | 'generic';

export type Kernel = {
  /** As `uname -r` says it. */
  readonly release: string;
  readonly image: string;
  /** The folder that holds lib/modules/<release>. */
  readonly root: string;
};

/** Debian's word for this machine's architecture. */
export function hostArch(): 'amd64' | 'arm64' {
  if (process.arch === 'x64') return 'amd64';
  if (process.arch === 'arm64') return 'arm64';
  throw new ImageError('host-unfit/arch', `guest images are made for x86_64 and aarch64, not for ${process.arch}`);
}

/** Fetches the newest kernel package of the flavour that this machine's apt offers, or the one this cache has pinned. */
export async function fetchKernelPackage(options: {
  readonly flavour: KernelFlavour;
  readonly cacheFolder: string;
  readonly log: Log;
}): Promise<DebianPackage> {
  const suffix = options.flavour === 'cloud' ? `cloud-${hostArch()}` : hostArch();
  const { cacheFolder, log } = options;
  const pointer = await fetchPackage({ name: `linux-image-${suffix}`, cacheFolder, log });
  const name = /\blinux-image-[a-z0-9.+-]+/.exec(await packageField(pointer.path, 'Depends'))?.[0];
  if (name === undefined) {
    throw new ImageError('host-fault/package', `${pointer.name} ${pointer.version} names no kernel it depends on`);
  }
  return await fetchPackage({ name, cacheFolder, log });
}

/** Unpacks the kernel below the folder and indexes its modules. */
export async function unpackKernel(kernelPackage: DebianPackage, folder: string): Promise<Kernel> {
  await unpackPackage(kernelPackage, folder);
  const [release] = await readdir(join(folder, 'lib/modules'));
  if (release === undefined) throw new ImageError('host-fault/package', `${kernelPackage.name} holds no modules`);
  await runCommand(['/sbin/depmod', '--basedir', folder, release], { purpose: 'indexing the kernel modules' });
  return { release, image: join(folder, 'boot', `vmlinuz-${release}`), root: folder };
}

/** Faster forms of what another module does too; they refuse to load on a processor without the instructions. */
const ACCELERATORS = /\/crc32c-intel\.ko$/;

/**
 * Files of the named modules and of everything they need, in the order to load them; what is built in is left out. Throws
 * CommandError for a module that this kernel does not have, unless it may be absent.
 */
export async function listModules(
  kernel: Kernel,
  names: readonly string[],
  options: { readonly mayBeAbsent: boolean } = { mayBeAbsent: false },
): Promise<readonly string[]> {
  const files: string[] = [];
  for (const name of names) {
    const argv = ['/sbin/modprobe', '--dirname', kernel.root, '--set-version', kernel.release, '--show-depends', name];
    const run = { purpose: `finding the kernel module ${name}` };
    const text = options.mayBeAbsent ? (await tryCommand(argv, run)).stdout : await runCommand(argv, run);
    for (const line of text.split('\n')) {
      const file = /^insmod (\S+)/.exec(line)?.[1];
      if (file !== undefined && !ACCELERATORS.test(file) && !files.includes(file)) files.push(file);
    }
  }
  return files;
}

/** Copies modules flat into a folder, with a file `order` that lists them in the order to load. */
export async function copyModules(files: readonly string[], folder: string): Promise<void> {
  await mkdir(folder, { recursive: true });
  for (const file of files) await copyFile(file, join(folder, basename(file)));
  await writeFile(join(folder, 'order'), files.map((file) => `${basename(file)}\n`).join(''));
}
