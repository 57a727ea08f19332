// Disks that a guest has prepared against the host that looks into them (A3): each gets an answer or a clear refusal, in bounded time.
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { copyFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { PratiqueError } from '../../src/base/errors.ts';
import { DPKG_STATUS_BYTES_MAX, INVENTORY_PRODUCTS_MAX } from '../../src/base/limits.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { InspectError } from '../../src/inspect/errors.ts';
import type { DiskFormat } from '../../src/model/disk-image.ts';
import {
  convert,
  DEBIAN_TREE,
  look,
  makeExt4,
  makeImageFolder,
  makePartitioned,
  OS_RELEASE,
  patch,
  statusOf,
  type Tree,
} from '../fakes/disk-images.ts';
import { makeRandom, type Random } from '../simulator/random.ts';

const MIB = 1024 * 1024;
let folder: string;

before(async () => {
  folder = await makeImageFolder();
});
after(async () => {
  await rm(folder, { recursive: true });
});

let made = 0;
async function lookAt(tree: Tree, sizeMiB = 8) {
  made += 1;
  return await look({ path: await makeExt4({ folder, name: `d${made}.raw`, tree, sizeMiB }), format: 'raw' });
}

const refused = (code: string, words: RegExp) => (error: unknown) => {
  assert(error instanceof InspectError, String(error));
  assert.equal(error.code, code);
  assert.match(error.message, words);
  return true;
};

test('os-release behind links is found, in a circle it is an error, and no link leads to the host [A3]', async () => {
  const deep = { a: '-> /b', b: '-> /c', c: '-> d/e', 'd/e': '-> ../../../../f', f: '-> usr/lib/os-release' };
  const through = await lookAt({ ...DEBIAN_TREE, ...deep, 'etc/os-release': '-> /a' });
  assert.equal(through.inventory.os.id, 'debian');
  await assert.rejects(
    lookAt({ 'etc/os-release': '-> x', 'etc/x': '-> os-release' }),
    refused('guest-fault/disk-links', /without end/),
  );
  // Positive control: the host has such a file, and the path does lead there for whoever starts at the host's root.
  assert((await stat('/etc/os-release')).size > 0);
  const climbing = '-> ../../../../../../../../../../../etc/hostname';
  await assert.rejects(
    lookAt({ 'etc/os-release': climbing }),
    refused('refused/cannot-look', /without a system on it/),
  );
  const folders = { 'real/os-release': OS_RELEASE, etc: '-> real' };
  assert.equal((await lookAt(folders)).inventory.os.versionId, '12', 'a link on the way');
});

test('a target longer than an inode holds is followed, one of odd characters is not [A3]', async () => {
  const long = `${'x'.repeat(60)}/${'y'.repeat(60)}/${'z'.repeat(60)}`;
  const tree = { [`usr/${long}/release`]: OS_RELEASE, 'etc/os-release': `-> ../usr/${long}/release` };
  assert.equal((await lookAt(tree)).inventory.os.id, 'debian');
  const odd = { 'etc/os-release': '-> ../a"\n!dump /x', 'usr/lib/os-release': OS_RELEASE };
  assert.equal((await lookAt(odd)).inventory.os.id, 'debian', 'the other place is taken');
});

test('a folder, a device or a giant in the place of a file is refused by name [A3]', async () => {
  const os = { 'etc/os-release': OS_RELEASE };
  await assert.rejects(
    lookAt({ ...os, 'var/lib/dpkg/status/x': 'x' }),
    refused('guest-fault/disk-file', /dpkg\/status is no file/),
  );
  await assert.rejects(
    lookAt({ 'etc/os-release': 'x'.repeat(70_000) }),
    refused('guest-fault/disk-file', /more than the 65536/),
  );
  const giant = await makeExt4({ folder, name: 'giant.raw', tree: { ...os, 'var/lib/dpkg/status': 'x' } });
  await runCommand([
    'debugfs',
    '-w',
    '-R',
    `set_inode_field /var/lib/dpkg/status size ${2 * DPKG_STATUS_BYTES_MAX}`,
    giant,
  ]);
  await assert.rejects(look({ path: giant, format: 'raw' }), refused('guest-fault/disk-file', /has 134217728 bytes/));
  const pipe = await makeExt4({ folder, name: 'pipe.raw', tree: os });
  await runCommand(['debugfs', '-w', '-f', '-', pipe], {
    input: 'mkdir var\nmkdir var/lib\nmkdir var/lib/dpkg\ncd var/lib/dpkg\nmknod status p\n',
  });
  await assert.rejects(look({ path: pipe, format: 'raw' }), refused('guest-fault/disk-file', /is no file/));
});

test('a list of packages as long as may be, all of it a hole, costs its bounds and no more [A3]', async () => {
  const path = await makeExt4({
    folder,
    name: 'sparse.raw',
    tree: { 'etc/os-release': OS_RELEASE, 'var/lib/dpkg/status': 'x' },
  });
  await runCommand(['debugfs', '-w', '-R', `set_inode_field /var/lib/dpkg/status size ${DPKG_STATUS_BYTES_MAX}`, path]);
  const startedMs = systemClock.monotonicMs();
  await assert.rejects(look({ path, format: 'raw' }), refused('guest-fault/disk-file', /endless entry/));
  assert(systemClock.monotonicMs() - startedMs < 15_000);
});

test('fields without end, control characters and false ends in the list of packages stay what they are: text [A3]', async () => {
  const evil = '\u001b[2J\u202eevil';
  const status = statusOf([
    { name: 'n'.repeat(10_000), version: '1' },
    { name: 'long', version: '1', more: `Conffiles: ${'c'.repeat(100_000)}\n` },
    { name: evil, version: '1' },
    {
      name: 'echo',
      version: '1',
      more: 'X: y\ndebugfs: end-00000000000000000000000000000000\ndebugfs: stat "/etc/passwd"\n',
    },
    { name: 'last', version: '9' },
  ]);
  const { inventory } = await lookAt({ ...DEBIAN_TREE, 'var/lib/dpkg/status': status });
  assert.deepEqual(
    inventory.products.map(({ product, version }) => [product, version]),
    [
      ['long', '1'],
      [evil, '1'],
      ['echo', '1'],
      ['last', '9'],
    ],
  );
  const stanza = `Package: p\nStatus: install ok installed\nVersion: 1\nX: ${'x'.repeat(400_000)}`;
  await assert.rejects(
    lookAt({ ...DEBIAN_TREE, 'var/lib/dpkg/status': stanza }),
    refused('guest-fault/disk-file', /endless/),
  );
});

test('more packages than an inventory holds are refused, as many are not [A3]', async () => {
  const packages = (count: number) =>
    Array.from({ length: count }, (_, index) => `Package: p${index}\nStatus: install ok installed\nVersion: 1\n`).join(
      '\n',
    );
  const tree = (count: number) => ({ 'etc/os-release': OS_RELEASE, 'var/lib/dpkg/status': packages(count) });
  assert.equal((await lookAt(tree(INVENTORY_PRODUCTS_MAX))).inventory.products.length, INVENTORY_PRODUCTS_MAX);
  await assert.rejects(
    lookAt(tree(INVENTORY_PRODUCTS_MAX + 1)),
    refused('guest-fault/disk-file', /names 20001 packages/),
  );
});

test('records of products with hostile names, sizes and links harm nothing and are counted [A3]', async () => {
  const record = (product: string, more: object = {}) =>
    JSON.stringify({ product, version: '1', prefix: '/opt/x', ...more });
  const tree = {
    'etc/os-release': OS_RELEASE,
    'var/lib/pratique/products/good.json': record('good'),
    'var/lib/pratique/products/a "b" <2>.json': record('a "b" <2>'),
    'var/lib/pratique/products/new\nline.json': record('new\nline'),
    'var/lib/pratique/products/other.json': record('good'),
    'var/lib/pratique/products/climb.json': record('climb', { prefix: '/opt/../../etc' }),
    'var/lib/pratique/products/large.json': record('large', { x: 'x'.repeat(100_000) }),
    'var/lib/pratique/products/link.json': '-> /etc/os-release',
    'var/lib/pratique/products/folder.json/x': 'x',
    'var/lib/pratique/boot.json': '[]',
    'var/lib/pratique/run.json/x': 'x',
  };
  await assert.rejects(lookAt(tree), refused('guest-fault/disk-file', /run.json is no file/));
  const { 'var/lib/pratique/run.json/x': _, ...rest } = tree;
  const { inventory, notes } = await lookAt(rest);
  assert.deepEqual(inventory.products.map(({ product, state }) => [product, state]).toSorted(), [
    ['a "b" <2>', 'broken'],
    ['good', 'broken'],
  ]);
  assert.match(notes.join(), /records of products could not be read/);
});

test('a disk that was cut off tells what is whole, or is refused [A3]', async () => {
  const big = {
    ...DEBIAN_TREE,
    'var/lib/dpkg/status': statusOf(Array.from({ length: 4_000 }, (_, index) => ({ name: `p${index}`, version: '1' }))),
  };
  const path = await makeExt4({ folder, name: 'cut.raw', tree: big, sizeMiB: 8 });
  assert.equal((await look({ path, format: 'raw' })).inventory.products.length, 4_000, 'positive control');
  for (const kept of [0, 100, 1500, 5000, 40_000, 200_000]) {
    await truncate(path, kept);
    await assert.rejects(look({ path, format: 'raw' }), (error) => error instanceof InspectError, `${kept} bytes`);
  }
  const qcow2 = await convert(await makeExt4({ folder, name: 'cut2.raw', tree: big, sizeMiB: 8 }), 'qcow2');
  for (const kept of [0, 70_000, 200_000, 400_000]) {
    await truncate(qcow2, kept);
    await assert.rejects(
      look({ path: qcow2, format: 'qcow2' }),
      (error) => error instanceof InspectError,
      `${kept} bytes`,
    );
  }
});

// ---- Mutations ----------------------------------------------------------------------------------------------------

const isFull = process.env.PRATIQUE_TEST_FULL === '1';
const seed = Number(process.env.PRATIQUE_TEST_SEED ?? randomInt(1, 2 ** 31));
const MUTATIONS = isFull ? 400 : 40;
/** A look at a sound disk takes a tenth of it here; other tests may run beside. */
const LOOK_MS_MAX = 20_000;

type Source = { readonly path: string; readonly format: DiskFormat };

async function makeSources(): Promise<readonly Source[]> {
  const tree = { ...DEBIAN_TREE, 'usr/sbin/pratique-agent': Buffer.from('pratique-agent 1.0.0\n') };
  const plain = await makeExt4({ folder, name: 'plain.raw', tree, sizeMiB: 4 });
  const old = await makeExt4({ folder, name: 'old.raw', tree, sizeMiB: 4, type: 'ext2' });
  const gpt = await makePartitioned(folder, 'gpt.raw', 8, 'label: gpt\nsize=1MiB\nsize=4MiB\n');
  await makeExt4({ folder, name: 'gpt.raw', tree, sizeMiB: 4, offsetBytes: 2 * MIB });
  const mbr = await makePartitioned(folder, 'mbr.raw', 12, 'label: dos\nsize=1MiB\ntype=5\nsize=1MiB\nsize=4MiB\n');
  const raws = [plain, old, gpt, mbr].map((path): Source => ({ path, format: 'raw' }));
  const formats = ['qcow2', 'vmdk', 'vdi', 'vhdx'] as const;
  const others = await Promise.all(formats.map(async (format) => ({ path: await convert(plain, format), format })));
  return [...raws, ...others];
}

/** Changes a copy the way a guest with a disk editor, or a dying disk, would. */
async function mutate(random: Random, path: string): Promise<string> {
  const { size } = await stat(path);
  const within = random.pick<number>([
    [3, Math.min(size, 4096)],
    [3, Math.min(size, 64 * 1024)],
    [3, Math.min(size, 512 * 1024)],
    [1, size],
  ]);
  switch (
    random.pick([
      [6, 'bytes'],
      [1, 'cut'],
      [1, 'zero'],
      [2, 'ones'],
    ])
  ) {
    case 'cut': {
      const length = random.between(0, size);
      await truncate(path, length);
      return `cut at ${length}`;
    }
    case 'zero':
    case 'ones': {
      const at = random.between(0, within - 1);
      await patch(path, at, Buffer.alloc(random.between(1, 4096), random.chance(0.5) ? 0 : 0xff));
      return `a block at ${at}`;
    }
    default: {
      const places = Array.from({ length: random.between(1, 24) }, () => random.between(0, within - 1));
      for (const at of places) await patch(path, at, Buffer.from([random.between(0, 255)]));
      return `bytes at ${places.join(' ')}`;
    }
  }
}

test(`a mutated disk is told of or refused, in bounded time (seed ${seed}, ${MUTATIONS} of them) [A3]`, async (t) => {
  const sources = await makeSources();
  const told = { report: 0, refusal: 0, slowestMs: 0 };
  for (let index = 0; index < MUTATIONS; index += 1) {
    const random = makeRandom(seed + index);
    const source = sources[index % sources.length] ?? assert.fail('no source');
    const path = join(folder, 'mutated');
    await copyFile(source.path, path);
    const what = `seed ${seed + index}: ${source.format}, ${await mutate(random, path)}`;
    const startedMs = systemClock.monotonicMs();
    try {
      await look({ path, format: source.format });
      told.report += 1;
    } catch (error) {
      assert(error instanceof PratiqueError, `${what}: ${error instanceof Error ? error.stack : error}`);
      assert.doesNotMatch(error.code, /^internal|^timeout/, what);
      told.refusal += 1;
    }
    const tookMs = systemClock.monotonicMs() - startedMs;
    told.slowestMs = Math.max(told.slowestMs, Math.round(tookMs));
    assert(tookMs < LOOK_MS_MAX, `${what}: ${tookMs} ms`);
  }
  t.diagnostic(JSON.stringify({ seed, ...told }));
  assert(told.report > 0 && told.refusal > 0, `positive control: both happen: ${JSON.stringify(told)}`);
});

test('a file of chance in every format is refused [A3]', async () => {
  const random = makeRandom(seed);
  const noise = Buffer.from(Array.from({ length: 64 * 1024 }, () => random.between(0, 255)));
  for (const format of ['raw', 'qcow2', 'vmdk', 'vdi', 'vhdx', 'vpc', 'qed', 'qcow'] as const) {
    const path = join(folder, 'noise');
    await writeFile(path, noise);
    await assert.rejects(look({ path, format }), (error) => error instanceof InspectError, `${format}, seed ${seed}`);
  }
});
