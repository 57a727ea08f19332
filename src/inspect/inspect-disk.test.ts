// Real disks as people have them: what each tells, and what the programs that read it may do.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, readdir, readFile, readlink, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import {
  convert,
  DEBIAN_TREE,
  LOOK_UID,
  look,
  makeExt4,
  makeImageFolder,
  makePartitioned,
  OS_RELEASE,
  patch,
} from '../../test/fakes/disk-images.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import { digestOf } from '../base/digest.ts';
import { runCommand } from '../base/run-command.ts';
import type { DiskFormat, DiskImage } from '../model/disk-image.ts';
import { productKey } from '../model/inventory.ts';
import { openLook } from './look.ts';

const MIB = 1024 * 1024;
const UUID = '0b0c7b1e-6f0e-4c3a-9f43-3a5d6a1c2d11';
let folder: string;
let debian: string;

before(async () => {
  folder = await makeImageFolder();
  debian = await makeExt4({ folder, name: 'debian.raw', tree: DEBIAN_TREE });
});
after(async () => {
  await rm(folder, { recursive: true });
});

const refusal = (code: string, message: RegExp) => (error: unknown) => {
  assert(error instanceof Error && 'code' in error);
  assert.equal(error.code, code, error.message);
  assert.match(error.message, message);
  return true;
};

test('a disk tells its system, its packages with their states and sources, and that it has no agent [A3]', async () => {
  const report = await look({ path: debian, format: 'raw' });
  const { os, products, agent, lastShutdown, rebootRequired } = report.inventory;
  assert.deepEqual(os, { id: 'debian', versionId: '12', codename: 'bookworm', arch: 'amd64' });
  const common = { ecosystem: 'debian', arch: 'amd64' } as const;
  assert.deepEqual(products, [
    { ...common, product: 'dpkg', version: '1.21.22', state: 'installed' },
    { ...common, product: 'jq', version: '1.6-2.1', state: 'installed', source: 'jq-source 1.6-2' },
    { ...common, product: 'held', version: '1', state: 'installed', held: true },
    { ...common, product: 'halfway', version: '2', state: 'broken' },
  ]);
  assert.deepEqual(
    { agent, lastShutdown, rebootRequired },
    { agent: { version: 'none', digest: null }, lastShutdown: null, rebootRequired: false },
  );
  assert(report.inventory.freeBytes > 1 * MIB && report.inventory.freeBytes < 8 * MIB);
  assert.match(report.notes.join(), /no guest agent/);
});

test('every format tells the same, also on top of another image [A3]', async () => {
  const { inventory, sizeBytes } = await look({ path: debian, format: 'raw' });
  for (const format of ['qcow2', 'vmdk', 'vdi', 'vhdx', 'vpc', 'qed'] as const) {
    const report = await look({ path: await convert(debian, format), format });
    assert.deepEqual({ format, inventory: report.inventory }, { format, inventory });
  }
  const middle = join(folder, 'middle.qcow2');
  const top = join(folder, 'top.qcow2');
  await runCommand(['qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', debian, middle]);
  await runCommand(['qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', middle, top]);
  const lowest: DiskImage = { path: debian, format: 'raw' };
  const chained = await look({
    path: top,
    format: 'qcow2',
    backing: { path: middle, format: 'qcow2', backing: lowest },
  });
  assert.deepEqual([chained.inventory, chained.sizeBytes], [inventory, sizeBytes]);
});

test('ext2 and ext3 are read as well [A3]', async () => {
  for (const type of ['ext2', 'ext3'] as const) {
    const path = await makeExt4({ folder, name: `${type}.raw`, tree: DEBIAN_TREE, type, sizeMiB: 16 });
    const report = await look({ path, format: 'raw' });
    assert.deepEqual([report.filesystem, report.inventory.products.length], [type, 4]);
  }
});

test('the system is found on a partition of a GPT, beside others, and by the copy of a damaged table [A3]', async () => {
  const words = 'label: gpt\nsize=4MiB, type=U\nsize=4MiB, type=swap\nsize=16MiB, type=L\n';
  const path = await makePartitioned(folder, 'gpt.raw', 32, words);
  await makeExt4({ folder, name: 'gpt.raw', tree: { 'lost/found': 'no system' }, offsetBytes: 1 * MIB, sizeMiB: 4 });
  await makeExt4({ folder, name: 'gpt.raw', tree: DEBIAN_TREE, offsetBytes: 9 * MIB, sizeMiB: 16 });
  const report = await look({ path, format: 'raw' });
  assert.deepEqual([report.table, report.partition, report.inventory.products.length], ['gpt', 3, 4]);
  await patch(path, 512 + 72, Buffer.alloc(8, 0xff));
  const damaged = await look({ path, format: 'raw' });
  assert.deepEqual([damaged.table, damaged.partition], ['gpt', 3]);
  assert.match(damaged.notes.join(), /table is damaged/);
});

test('the system is found on a primary and on a logical partition of an MBR [A3]', async () => {
  const primary = await makePartitioned(folder, 'mbr.raw', 32, 'label: dos\nsize=16MiB, type=83, bootable\n');
  await makeExt4({ folder, name: 'mbr.raw', tree: DEBIAN_TREE, offsetBytes: 1 * MIB, sizeMiB: 16 });
  const first = await look({ path: primary, format: 'raw' });
  assert.deepEqual([first.table, first.partition], ['mbr', 1]);
  const words = 'label: dos\nsize=4MiB, type=83\ntype=5\nsize=4MiB, type=82\nsize=16MiB, type=83\n';
  const logical = await makePartitioned(folder, 'logical.raw', 40, words);
  const table = JSON.parse(await runCommand(['/sbin/sfdisk', '--json', logical]));
  const offsetBytes = table.partitiontable.partitions[3].start * 512;
  await makeExt4({ folder, name: 'logical.raw', tree: DEBIAN_TREE, offsetBytes, sizeMiB: 16 });
  const second = await look({ path: logical, format: 'raw' });
  assert.deepEqual([second.table, second.partition, second.inventory.products.length], ['mbr', 6, 4]);
});

test('what the agent left on the disk is told: its version, its bundles, its last run and shutdown [A3 A6]', async () => {
  const boot = '11111111-2222-3333-4444-555555555555';
  const run = 'ab'.repeat(16);
  const record = (product: string, version: string) => JSON.stringify({ product, version, prefix: `/opt/${product}` });
  const executable = Buffer.concat([
    Buffer.from('\x7fELF'),
    Buffer.alloc(14),
    Buffer.from([183, 0]),
    Buffer.from('pratique-agent 0.9.1\n\0'),
  ]);
  const tree = {
    'etc/os-release': OS_RELEASE,
    'usr/sbin/pratique-agent': executable,
    'bin/gzip': 'x',
    'opt/shop/versions/2.0.0/x': 'x',
    'opt/shop/current': '-> versions/2.0.0',
    'opt/hall/versions/1.0.0/x': 'x',
    'opt/hall/current': '-> versions/0.9.0',
    'var/lib/pratique/products/shop.json': record('shop', '2.0.0'),
    'var/lib/pratique/products/hall.json': record('hall', '1.0.0'),
    'var/lib/pratique/products/spoilt.json': '{"product":',
    'var/lib/pratique/boot.json': JSON.stringify({ boot, lastShutdown: null }),
    'var/lib/pratique/shutdown.json': JSON.stringify({ boot, wallTimeMs: 5, products: [] }),
    'var/lib/pratique/run.json': JSON.stringify({
      ...{ run, vm: 'web', planDigest: digestOf('p'), manifestDigest: digestOf('m'), isFinished: false, earlier: [] },
      results: [],
    }),
  };
  const path = await makeExt4({ folder, name: 'agent.raw', tree });
  const { inventory, lastRun, notes } = await look({ path, format: 'raw' });
  assert.deepEqual(inventory.agent, { version: '0.9.1', digest: digestOf(executable) });
  assert.equal(inventory.os.arch, 'arm64', 'by the machine of its executable: no package names one');
  assert.deepEqual(inventory.abilities.compressions, ['none', 'gzip']);
  const states = inventory.products.map((product) => [productKey(product), product.version, product.state]);
  assert.deepEqual(states.toSorted(), [
    ['bundle/hall', '1.0.0', 'broken'],
    ['bundle/shop', '2.0.0', 'installed'],
  ]);
  assert.deepEqual(inventory.lastShutdown, { boot, wallTimeMs: 5, products: [] });
  assert.deepEqual(lastRun, { run, isFinished: false, results: 0, failed: 0 });
  assert.match(notes.join(), /1 record of products could not be read/);
});

test('a journal that was not replayed is said, and the disk is read all the same [A3]', async () => {
  const path = await makeExt4({ folder, name: 'unclean.raw', tree: DEBIAN_TREE, features: '^metadata_csum' });
  assert.doesNotMatch((await look({ path, format: 'raw' })).notes.join(), /not unmounted/);
  const incompat = (await readFile(path)).readUInt32LE(1024 + 0x60);
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(incompat | 4);
  await patch(path, 1024 + 0x60, bytes);
  const report = await look({ path, format: 'raw' });
  assert.match(report.notes.join(), /was not unmounted/);
  assert.equal(report.inventory.products.length, 4);
});

test('what cannot be read is named, with what happens instead [A3]', async () => {
  const other: readonly (readonly [string, number, string])[] = [
    ['LUKS\xba\xbe', 0, 'encrypted volume \\(LUKS\\)'],
    ['LABELONE', 512, 'LVM'],
    ['XFSB', 0, 'XFS'],
    ['_BHRfS_M', 65_600, 'btrfs'],
    ['NTFS    ', 3, 'NTFS \\(Windows\\)'],
    ['-FVE-FS-', 3, 'encrypted Windows volume \\(BitLocker\\)'],
  ];
  const disk = await makePartitioned(folder, 'other.raw', 8, 'label: gpt\nsize=2MiB\nsize=4MiB\n');
  for (const [mark, at, name] of other) {
    await patch(disk, 3 * MIB, Buffer.alloc(128 * 1024));
    await patch(disk, 3 * MIB + at, mark);
    await assert.rejects(look({ path: disk, format: 'raw' }), (error) => {
      assert.match(String(error instanceof Error && 'next' in error && error.next), /staged after its first boot/);
      return refusal('refused/cannot-look', new RegExp(`the disk holds (an? )?${name}.* \\(partition 2\\)`))(error);
    });
  }
  const empty = await makePartitioned(folder, 'empty.raw', 8, 'label: gpt\n');
  await assert.rejects(look({ path: empty, format: 'raw' }), refusal('refused/cannot-look', /holds nothing we know/));
});

test('a qcow2 header that a guest wrote into its raw disk names a host file in vain [A3]', async () => {
  const secret = await makeExt4({ folder, name: 'secret.raw', tree: DEBIAN_TREE });
  const forged = join(folder, 'forged');
  await runCommand(['qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', secret, forged]);
  await chmod(forged, 0o644);
  await assert.rejects(look({ path: forged, format: 'raw' }), refusal('refused/cannot-look', /qcow2 image, as data/));
  // Positive control: the header does name it, and a QEMU that is not told better follows it.
  assert.equal(JSON.parse(await runCommand(['qemu-img', 'info', '--output=json', forged]))['backing-filename'], secret);
  // Also as what it is: the spec names no image beneath it, so there is none.
  await assert.rejects(
    look({ path: forged, format: 'qcow2' }),
    refusal('refused/cannot-look', /holds nothing we know/),
  );
  const told = await look({ path: forged, format: 'qcow2', backing: { path: secret, format: 'raw' } });
  assert.equal(told.inventory.products.length, 4);
});

test('a descriptor that names another host file shows nothing of it [A3]', async () => {
  const secret = await makeExt4({ folder, name: 'extent.raw', tree: DEBIAN_TREE });
  const descriptor = (extent: string) =>
    `# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="twoGbMaxExtentFlat"\nRW 16384 FLAT "${extent}" 0\n`;
  const path = join(folder, 'extents.vmdk');
  await writeFile(path, descriptor(secret));
  const size = JSON.parse(await runCommand(['qemu-img', 'info', '--output=json', '-f', 'vmdk', path]))['virtual-size'];
  assert.equal(size, 8 * MIB, 'positive control: QEMU outside of the look opens it');
  await assert.rejects(look({ path, format: 'vmdk' }), refusal('usage/disk-image', /No such file/));
});

test('an image in another format than the spec says, or none at all, is an error that says so', async () => {
  for (const format of ['qcow2', 'vmdk', 'vdi', 'vhdx', 'qed'] satisfies readonly DiskFormat[])
    await assert.rejects(look({ path: debian, format }), refusal('usage/disk-image', new RegExp(`as ${format}`)));
  const missing = join(folder, 'missing.raw');
  await assert.rejects(look({ path: missing, format: 'raw' }), refusal('usage/disk-unreadable', /may not read it/));
});

test('a disk that another program writes is left alone', async () => {
  const node = JSON.stringify({ driver: 'raw', 'node-name': 'd', file: { driver: 'file', filename: debian } });
  const socket = join(folder, 'writer.sock');
  const argv = ['--blockdev', node, '--nbd-server', `addr.type=unix,addr.path=${socket}`];
  const writer = spawn('qemu-storage-daemon', [...argv, '--export', 'type=nbd,id=e,node-name=d,writable=on']);
  try {
    while (!(await readdir(folder)).includes('writer.sock')) await systemClock.sleep(10);
    await assert.rejects(look({ path: debian, format: 'raw' }), refusal('conflict/disk-in-use', /open for writing/));
  } finally {
    writer.kill();
    await once(writer, 'close');
  }
});

test('the programs of a look have no rights, no network and no file but the disk [A3]', async () => {
  const signal = new AbortController().signal;
  const opened = await openLook({ image: { path: debian, format: 'raw' }, uid: LOOK_UID, clock: systemClock, signal });
  try {
    const storage = await processWith('qemu-storage-daemon', UUID);
    assert.equal(storage, null, 'positive control of the search');
    const pid = (await processWith('qemu-storage-daemon', '/disk/image')) ?? assert.fail('it does not run');
    const status = await readFile(`/proc/${pid}/status`, 'utf8');
    const uid = LOOK_UID ?? process.getuid?.();
    assert.match(status, new RegExp(`^Uid:\\t${uid}\\t${uid}\\t${uid}\\t${uid}$`, 'm'));
    for (const namespace of ['user', 'mnt', 'pid', 'net', 'ipc', 'uts'])
      assert.notEqual(
        await readlink(`/proc/${pid}/ns/${namespace}`),
        await readlink(`/proc/self/ns/${namespace}`),
        namespace,
      );
    const seen = await readdir(`/proc/${pid}/root`);
    assert.deepEqual(
      seen.filter((name) => !['bin', 'sbin', 'lib', 'lib64', 'lib32', 'libx32'].includes(name)).toSorted(),
      ['dev', 'disk', 'old', 'usr'],
    );
    assert.deepEqual(await readdir(`/proc/${pid}/root/old`), []);
    const mounts = await readFile('/proc/self/mounts', 'utf8');
    assert.doesNotMatch(mounts, /disk\/image/);
  } finally {
    await opened.close();
  }
  assert.equal(await processWith('qemu-storage-daemon', '/disk/image'), null);
});

test('a look ends with whoever asked, also when that one is killed: nothing runs on, nothing stays mounted [X4]', async () => {
  const script = `
    const { openLook } = await import('${new URL('./look.ts', import.meta.url)}');
    const { systemClock } = await import('${new URL('../base/clock.ts', import.meta.url)}');
    const image = ${JSON.stringify({ path: debian, format: 'raw' })};
    await openLook({ image, uid: ${LOOK_UID}, clock: systemClock, signal: new AbortController().signal });
    console.log('open');
    setInterval(() => {}, 1000);`;
  const asker = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(asker.stdout, 'data');
  assert.notEqual(await processWith('qemu-storage-daemon', '/disk/image'), null);
  asker.kill('SIGKILL');
  await once(asker, 'close');
  for (let tries = 0; tries < 200 && (await processWith('qemu-storage-daemon', '/disk/image')) !== null; tries += 1)
    await systemClock.sleep(20);
  assert.equal(await processWith('qemu-storage-daemon', '/disk/image'), null);
  const report = await look({ path: debian, format: 'raw' });
  assert.equal(report.inventory.products.length, 4, 'and it can be looked into at once');
});

test('a look whose disk does not answer is ended in its time [A3]', async () => {
  // The same limits, ten times faster.
  const clock: Clock = { ...systemClock, after: (ms, callback) => systemClock.after(ms / 10, callback) };
  const image: DiskImage = { path: debian, format: 'raw' };
  const opened = await openLook({ image, uid: LOOK_UID, clock, signal: new AbortController().signal });
  const pid = (await processWith('qemu-storage-daemon', '/disk/image')) ?? assert.fail('it does not run');
  process.kill(pid, 'SIGSTOP');
  await assert.rejects(opened.read(4 * MIB, 4096), { code: 'timeout/inspect' });
  await opened.close();
  for (let tries = 0; tries < 200 && (await processWith('qemu-storage-daemon', '/disk/image')) !== null; tries += 1)
    await systemClock.sleep(20);
  assert.equal(await processWith('qemu-storage-daemon', '/disk/image'), null);
});

test('without FUSE the answer says so and what to do, and nothing is left running [A3]', async (t) => {
  if (LOOK_UID === null) {
    t.diagnostic('not root: /dev cannot be hidden for a test');
    return;
  }
  const script = `
    const { look } = await import('${new URL('../../test/fakes/disk-images.ts', import.meta.url)}');
    try {
      await look(${JSON.stringify({ path: debian, format: 'raw' })});
      console.log('told');
    } catch (error) {
      console.log(JSON.stringify({ code: error.code, message: error.message, next: error.next }));
    }`;
  const node = [process.execPath, '--input-type=module', '-e', script];
  const bare =
    'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9 && exec "$@"';
  const hidden = JSON.parse(await runCommand(['unshare', '--mount', 'sh', '-c', bare, 'sh', ...node]));
  assert.equal(hidden.code, 'host-unfit/fuse');
  assert.match(hidden.message, /cannot look inside .*: FUSE cannot be used/);
  assert.match(hidden.next, /modprobe fuse/);
  // Positive control: the same way, with FUSE.
  const fuse = bare.replace('exec', 'mknod -m 600 /dev/fuse c 10 229 && exec');
  assert.equal((await runCommand(['unshare', '--mount', 'sh', '-c', fuse, 'sh', ...node])).trim(), 'told');
});

/** Pid of a process of this program that has the word among its arguments and one of our images open; null if there is none. */
async function processWith(program: string, word: string): Promise<number | null> {
  for (const pid of await readdir('/proc')) {
    const line = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    if (!line.startsWith(`${program}\0`) || !line.includes(word)) continue;
    const mounts = await readFile(`/proc/${pid}/mountinfo`, 'utf8').catch(() => '');
    if (mounts.includes(folder)) return Number(pid);
  }
  return null;
}
