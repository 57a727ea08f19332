// A VM whose only program fills a data folder on a disk that logs every write and flush, so that the disk can be put together again as
// a power cut leaves it: node itself with the daemon's own code, on Debian's kernel and its ext4.
import assert from 'node:assert/strict';
import { mkdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { build } from 'esbuild';
import type { CpioEntry } from '../../images/cpio.ts';
import { kernelCommandLine, writeExt4 } from '../../images/guest-system.ts';
import { fetchKernelPackage, hostArch, listModules, unpackKernel } from '../../images/kernel.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { silentLog } from '../../src/base/log.ts';
import { runCommand, tryCommand } from '../../src/base/run-command.ts';
import { makeInitrd } from '../e2e/sending-guest.ts';
import { LIVES, type Said } from './data-folder.ts';
import { MARK_BYTES } from './data-folder-victim.ts';
import { type Entry, readLog } from './write-log.ts';

const FILE_SYSTEM_MIB = 32;
/** Where the marks lie: behind the file system, which does not know of them. */
const MARKS_AT = FILE_SYSTEM_MIB * 1024 * 1024;
const MEMORY_MIB = 768;
/** Milliseconds from power-on to power-off: 12 s on a quiet machine, emulated. */
const RUN_TIMEOUT_MS = 180_000;
const TOOL_TIMEOUT_MS = 30_000;

const MACHINES = {
  amd64: { qemu: 'qemu-system-x86_64', machine: 'q35,usb=off' },
  arm64: { qemu: 'qemu-system-aarch64', machine: 'virt' },
} as const;

/** Nothing reaches the disk for having waited: neither the journal's nor the cache's own clock runs within such a run. */
const INIT = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /data /tmp
/bin/busybox --install -s /bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
echo 0 >/proc/sys/vm/dirty_writeback_centisecs
mount -t ext4 -o commit=600 /dev/vda /data
for life in ${LIVES.join(' ')}; do
  /node /victim.mjs /data/host $life /dev/vda ${MARKS_AT}
  echo "VICTIM ended with $?"
done
sync
echo o >/proc/sysrq-trigger
sleep 60
`;

export type Recorded = {
  /** The disk before the first write. */
  readonly base: Buffer;
  readonly entries: readonly Entry[];
};

/** Runs the program in its VM. Throws when it does not come to its end. */
export async function recordGuest(folder: string): Promise<Recorded> {
  const disk = join(folder, 'disk.raw');
  const log = join(folder, 'log.raw');
  await mkdir(join(folder, 'root/host'), { recursive: true });
  await writeExt4({ root: join(folder, 'root'), path: disk, sizeMiB: FILE_SYSTEM_MIB, owners: 'one' });
  await truncate(disk, MARKS_AT + MARK_BYTES);
  const base = await readFile(disk);
  await writeFile(log, '');
  const said = await runCommand(await commandLine(folder, { disk, log }), {
    purpose: 'running the VM whose disk is recorded',
    timeoutMs: RUN_TIMEOUT_MS,
  });
  assert.equal(said.match(/VICTIM ended with 0/g)?.length, LIVES.length, said);
  return { base, entries: readLog(await readFile(log)) };
}

async function commandLine(
  folder: string,
  { disk, log }: { readonly disk: string; readonly log: string },
): Promise<readonly [string, ...string[]]> {
  const kernelPackage = await fetchKernelPackage({
    flavour: 'cloud',
    cacheFolder: defaultCacheFolder(),
    log: silentLog,
  });
  const kernel = await unpackKernel(kernelPackage, join(folder, 'kernel'));
  const initrd = join(folder, 'initrd');
  const modules = await listModules(kernel, ['virtio_pci', 'virtio_blk', 'ext4']);
  await writeFile(initrd, await makeInitrd(modules, INIT, await nodeEntries()));
  const { qemu, machine } = MACHINES[hostArch()];
  const node = (name: string, filename: string) => {
    return JSON.stringify({ driver: 'file', 'node-name': name, filename, cache: { 'no-flush': true } });
  };
  const logged = { driver: 'blklogwrites', 'node-name': 'losing', file: 'disk', log: 'log', 'log-sector-size': 512 };
  // What is discarded or zeroed by a command of its own is not logged as a write.
  const device = { driver: 'virtio-blk-pci', drive: 'losing', discard: false, 'write-zeroes': false };
  return [
    ...([qemu, '-nodefaults', '-no-user-config', '-display', 'none', '-monitor', 'none', '-no-reboot'] as const),
    ...['-machine', machine, '-accel', 'tcg', '-cpu', 'max', '-m', String(MEMORY_MIB), '-smp', '1'],
    ...['-serial', 'stdio', '-kernel', kernel.image, '-initrd', initrd, '-append', kernelCommandLine()],
    ...['-blockdev', node('disk', disk), '-blockdev', node('log', log), '-blockdev', JSON.stringify(logged)],
    ...['-device', JSON.stringify({ ...device, 'write-cache': 'on' })],
  ];
}

/** Node with the libraries that it names, and the program in one file. */
async function nodeEntries(): Promise<readonly CpioEntry[]> {
  const libraries = (await runCommand(['ldd', process.execPath]))
    .split('\n')
    .flatMap((line) => /(\/\S+) \(0x/.exec(line)?.[1] ?? []);
  const folders = new Set(libraries.flatMap(foldersAbove));
  const programs = [...libraries.map((path) => [path.slice(1), path] as const), ['node', process.execPath] as const];
  return [
    ...[...folders].map((path): CpioEntry => ({ kind: 'folder', path })),
    ...(await Promise.all(
      programs.map(
        async ([path, from]): Promise<CpioEntry> => ({ kind: 'program', path, content: await readFile(from) }),
      ),
    )),
    { kind: 'file', path: 'victim.mjs', content: await bundleVictim() },
  ];
}

/** `/lib/x/y.so`: lib, lib/x. */
function foldersAbove(path: string): readonly string[] {
  const above = dirname(path).slice(1);
  const parts = above === '' ? [] : above.split('/');
  return parts.map((_, index) => parts.slice(0, index + 1).join('/')).filter((each) => each !== 'bin');
}

async function bundleVictim(): Promise<Uint8Array> {
  const { outputFiles } = await build({
    entryPoints: [join(import.meta.dirname, 'data-folder-victim.ts')],
    ...{ bundle: true, minify: true, write: false, platform: 'node', format: 'esm', target: 'node24' },
    banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
  });
  return outputFiles[0]?.contents ?? assert.fail('esbuild made a bundle of the program');
}

/** What the program had promised by the first `count` entries: its marks are writes too, and done before it goes on. */
export function saidBy(entries: readonly Entry[], count: number): readonly Said[] {
  return entries.slice(0, count).flatMap((entry) => {
    if (entry.kind !== 'write' || entry.at !== MARKS_AT) return [];
    const text = entry.bytes.toString('utf8', 0, entry.bytes.indexOf(0));
    return text === '' ? [] : [JSON.parse(text) as Said]; // The cast holds: our program writes nothing else there.
  });
}

/** Mends the file system as a booting host does, and takes the data folder out of it. Returns where it lies. */
export async function takeOut(disk: Buffer, folder: string): Promise<string> {
  const image = join(folder, 'after.raw');
  await writeFile(image, disk.subarray(0, MARKS_AT));
  const check = await tryCommand(['/sbin/e2fsck', '-fy', image], { timeoutMs: TOOL_TIMEOUT_MS });
  // 1: something was put right, as the counts of free blocks always are.
  assert.ok(check.exitCode === 0 || check.exitCode === 1, `e2fsck: ${check.stdout}`);
  const target = join(folder, 'after');
  await mkdir(target);
  await runCommand(['/sbin/debugfs', '-R', `rdump /host ${target}`, image], { timeoutMs: TOOL_TIMEOUT_MS });
  return join(target, 'host');
}
