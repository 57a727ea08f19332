// What the tiny and the Debian image have in common: the start files, the drivers, the agent, the initramfs and the disk.
import { chmod, copyFile, mkdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { runCommand } from '../src/base/run-command.ts';
import { asRootPrefix } from './as-root.ts';
import { type CpioEntry, makeCpio } from './cpio.ts';
import { copyModules, hostArch, type Kernel, listModules } from './kernel.ts';

/** The start files of the guest, beside this file. */
export const GUEST_FILES_FOLDER = join(import.meta.dirname, 'guest');
const GUEST_PROGRAMS = ['boot', 'chatter', 'agent', 'application', 'shutdown'] as const;

/** Where the guest keeps the agent. */
export const AGENT_PATH = '/usr/sbin/pratique-agent';

/** What the initramfs needs to reach the system disk. */
const DISK_MODULES = ['virtio_pci', 'virtio_blk', 'ext4'];
/**
 * What the running guest needs, in sets: always (the channel first, the agent waits for it), if there is a controller of that kind
 * (virtio-scsi, AHCI, xHCI), and if no network card has been found yet. Only the generic kernel knows AHCI, USB and the emulated
 * network cards. NVMe comes while the guest runs, and nothing here loads a driver then: the cloud kernel has it built in.
 */
const MODULE_SETS = {
  base: ['virtio_console', 'virtio_net', 'isofs'],
  scsi: ['virtio_scsi', 'sr_mod'],
  ata: ['ahci', 'sr_mod'],
  usb: ['xhci_pci', 'usb_storage', 'uas', 'sd_mod'],
  nics: ['e1000', 'e1000e', '8139cp', 'vmxnet3'],
} as const;
/** Sets that the cloud kernel lacks. */
const GENERIC_SETS: ReadonlySet<string> = new Set(['ata', 'usb', 'nics']);

/**
 * The kernel's words. The guest is thrown away after minutes and runs on emulated processors, so what protects or measures real
 * ones is switched off: together 0.5 s of the 2.0 s until the kernel is up.
 */
export function kernelCommandLine(): string {
  const console = hostArch() === 'amd64' ? 'ttyS0' : 'ttyAMA0';
  const quick = 'mitigations=off nokaslr cryptomgr.notests no_timer_check noreplace-smp tsc=reliable 8250.nr_uarts=1';
  return `console=${console} quiet loglevel=3 panic=1 ${quick} random.trust_cpu=on`;
}

/** Puts start files, drivers and agent into a guest's root folder that has /bin/busybox. */
export async function installGuestSystem(options: {
  readonly root: string;
  readonly kernel: Kernel;
  readonly agentPath: string;
}): Promise<void> {
  const { root, kernel } = options;
  const programs = join(root, 'usr/lib/pratique-guest');
  for (const folder of [programs, join(root, 'sbin'), join(root, 'srv/www'), join(root, 'var/lib/pratique')]) {
    await mkdir(folder, { recursive: true });
  }
  for (const name of GUEST_PROGRAMS) await installProgram(join(GUEST_FILES_FOLDER, name), join(programs, name));
  await mkdir(join(root, 'etc'), { recursive: true });
  await copyFile(join(GUEST_FILES_FOLDER, 'inittab'), join(root, 'etc/inittab'));
  await installProgram(options.agentPath, join(root, AGENT_PATH));
  for (const name of ['init', 'reboot', 'poweroff', 'halt', 'ip', 'ifup', 'ifdown'])
    await linkToBusybox(join(root, 'sbin', name));
  // What a network card is set by that configuration names: busybox's ifup wants its folders, and keeps its state below /var/run.
  for (const when of ['pre-up', 'up', 'down', 'post-down'])
    await mkdir(join(root, `etc/network/if-${when}.d`), { recursive: true });
  await symlink('/run', join(root, 'var/run')).catch((error: unknown) => {
    if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error;
  });

  await installModuleSets(kernel, join(root, 'lib/modules/pratique'));
}

async function installModuleSets(kernel: Kernel, folder: string): Promise<void> {
  const loaded = new Set(await listModules(kernel, DISK_MODULES));
  for (const [set, names] of Object.entries(MODULE_SETS)) {
    const files = (await listSet(kernel, set, names)).filter((file) => !loaded.has(file));
    // What the others need too each brings itself: a guest may have one controller or all, and loading twice changes nothing.
    if (set === 'base') for (const file of files) loaded.add(file);
    await copyModules(files, join(folder, set));
  }
}

/** The files of a set; none when the kernel lacks what the set begins with: the rest would only cost time. */
async function listSet(kernel: Kernel, set: string, names: readonly string[]): Promise<readonly string[]> {
  if (!GENERIC_SETS.has(set)) return await listModules(kernel, names);
  const mayBeAbsent = { mayBeAbsent: true };
  const first = await listModules(kernel, names.slice(0, 1), mayBeAbsent);
  return first.length === 0 ? [] : await listModules(kernel, names, mayBeAbsent);
}

/** Copies a program into a guest's root folder. */
export async function installProgram(from: string, to: string): Promise<void> {
  await mkdir(dirname(to), { recursive: true });
  await copyFile(from, to);
  await chmod(to, 0o755);
}

async function linkToBusybox(path: string): Promise<void> {
  await rm(path, { force: true });
  await symlink('/bin/busybox', path);
}

/** Writes the initramfs: busybox and the drivers of the system disk, nothing else, not compressed (inflating costs more than reading). */
export async function writeInitrd(options: {
  readonly kernel: Kernel;
  readonly busyboxPath: string;
  readonly path: string;
}): Promise<void> {
  const modules = await listModules(options.kernel, DISK_MODULES);
  const order = modules.map((file) => `${basename(file)}\n`).join('');
  const folders = ['bin', 'dev', 'modules', 'proc', 'root'].map((path): CpioEntry => ({ kind: 'folder', path }));
  const files: CpioEntry[] = [
    { kind: 'program', path: 'init', content: await readFile(join(GUEST_FILES_FOLDER, 'initrd-init')) },
    { kind: 'program', path: 'bin/busybox', content: await readFile(options.busyboxPath) },
    { kind: 'file', path: 'modules/order', content: Buffer.from(order) },
  ];
  for (const file of modules) {
    files.push({ kind: 'file', path: `modules/${basename(file)}`, content: await readFile(file) });
  }
  await writeFile(options.path, makeCpio([...folders, ...files]));
}

/** Unpacks a Debian base system into a new folder, with its owners. Remove it with `removeTree`. */
export async function unpackBase(path: string, root: string): Promise<void> {
  await mkdir(root);
  const unpack = ['tar', '--extract', '--preserve-permissions', '--numeric-owner', '--exclude=./dev/*'];
  await runCommand([...asRootPrefix('all'), ...unpack, '--file', path, '--directory', root], {
    purpose: 'unpacking the Debian base system',
  });
}

/** Makes an ext4 image of a folder without mounting anything. */
export async function writeExt4(options: {
  readonly root: string;
  readonly path: string;
  readonly sizeMiB: number;
  /** Where in the file it begins; absent: at the start. */
  readonly offsetBytes?: number;
  /** Whether the folder's files have one owner or many. */
  readonly owners: 'one' | 'all';
}): Promise<void> {
  const extended = `lazy_itable_init=0,root_owner=0:0${options.offsetBytes === undefined ? '' : `,offset=${options.offsetBytes}`}`;
  const layout = ['-t', 'ext4', '-b', '4096', '-m', '0', '-E', extended];
  const argv = [
    ...asRootPrefix(options.owners),
    '/sbin/mke2fs',
    '-q',
    '-F',
    ...layout,
    '-d',
    options.root,
    options.path,
    `${options.sizeMiB}M`,
  ];
  await runCommand(argv, { purpose: `writing the disk image ${options.path}`, timeoutMs: 300_000 });
}
