// A built drive as QEMU serves it: read through the descriptor, compared with the blobs, and attacked.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import {
  chmod,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  readlink,
  rename,
  rm,
  stat,
  truncate,
  unlink,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import fc from 'fast-check';
import { extractImage } from '../../test/fakes/image-readers.ts';
import { type Digest, digestOf, digestOfFile } from '../base/digest.ts';
import { runCommand, tryCommand } from '../base/run-command.ts';
import type { RunId, VmId } from '../model/ids.ts';
import type { Plan, PlanItem } from '../model/plan.ts';
import { planDigest } from '../model/plan.ts';
import type { InstallAction } from '../model/release.ts';
import { buildDrive, DriveError, type DriveOptions, removeDrive, removeDrives } from './drive.ts';
import { buildIso } from './iso9660.ts';
import { planZeroCopyImage } from './zero-copy-image.ts';

let scratch = '';
before(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'pratique-drive-'));
  await chmod(scratch, 0o711);
});
after(async () => {
  await rm(scratch, { recursive: true, force: true });
});

// The casts hold: both texts have the form of their id.
const VM = 'web-1' as VmId;
const RUN = 'a'.repeat(32) as RunId;
const BUNDLE: InstallAction = { action: 'bundle', prefix: '/opt/x', compression: 'gzip' };

/** A store and a drive folder of their own. */
type House = {
  readonly store: string;
  readonly folder: string;
  readonly add: (content: Buffer) => Promise<{ digest: Digest; sizeBytes: number }>;
  readonly options: (plan: Plan, rest?: Partial<DriveOptions>) => DriveOptions;
};

let lastHouse = 0;
async function makeHouse(): Promise<House> {
  lastHouse += 1;
  const home = join(scratch, String(lastHouse));
  const store = join(home, 'blobs');
  await mkdir(home, { mode: 0o711 });
  await mkdir(store, { mode: 0o700 });
  const folder = join(home, 'drives', VM, RUN);
  const path = (digest: Digest) => join(store, digest);
  return {
    store,
    folder,
    add: async (content) => {
      const digest = digestOf(content);
      await writeFile(path(digest), content, { mode: 0o444 });
      return { digest, sizeBytes: content.length };
    },
    options: (plan, rest = {}) => ({
      ...{ vm: VM, run: RUN, plan, planDigest: planDigest(plan), folder },
      blobs: { path, has: (digest) => existsSync(path(digest)) },
      ...rest,
    }),
  };
}

type Artifact = { name: string; digest: Digest; sizeBytes: number; install?: InstallAction };

function planOf(artifacts: readonly Artifact[]): Plan {
  const items = artifacts.map(({ install = BUNDLE, ...artifact }, index): PlanItem => {
    const product = `product-${index}`;
    const common = { vendor: 'v', ecosystem: 'bundle' as const, product, version: '2.0.0', kind: 'security' as const };
    const release = { ...common, requires: [], advisories: [], artifact: { ...artifact, location: 'x' }, install };
    return { id: `bundle/${product}`, fromVersion: null, release };
  });
  return { vm: VM, run: RUN, items, leftOut: [], vendors: [] };
}

/** The drive as one raw file, read by QEMU through the descriptor. */
async function readThroughQemu(path: string): Promise<string> {
  lastHouse += 1;
  const raw = join(scratch, `${lastHouse}.iso`);
  await runCommand(['qemu-img', 'convert', '-f', 'vmdk', '-O', 'raw', path, raw]);
  return raw;
}

async function extractDrive(path: string): Promise<Record<string, string>> {
  const raw = await readThroughQemu(path);
  const seen = await extractImage('xorriso', raw, `${raw}.d`);
  await rm(raw);
  return Object.fromEntries(
    Object.entries(seen).flatMap(([at, node]) =>
      node.kind === 'file' ? [[at, digestOf(Buffer.from(node.content, 'latin1'))]] : [],
    ),
  );
}

function refusal(code: string, says: RegExp, digest?: Digest): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof DriveError, String(error));
    assert.equal(error.code, code);
    assert.match(error.message, says);
    assert.equal(error.digest, digest);
    return true;
  };
}

/** Sizes around every edge: empty, one byte, a sector, the packing limit, several buffers. */
const SIZES = [0, 1, 511, 512, 513, 2047, 2048, 2049, 65_536, 65_537, 100_000, 1_048_576, 3_000_001];

async function addSizes(house: House): Promise<Artifact[]> {
  const artifacts: Artifact[] = [];
  for (const [index, size] of SIZES.entries()) {
    artifacts.push({ name: `file-${size}.tar.gz`, ...(await house.add(Buffer.alloc(size, index + 1))) });
  }
  return artifacts;
}

describe('a built drive [A4] [X6]', () => {
  test('holds exactly the manifest and the blobs of the plan, read back through QEMU', async () => {
    const house = await makeHouse();
    const plan = planOf(await addSizes(house));
    const drive = await buildDrive(house.options(plan));
    const found = await extractDrive(drive.image.path);
    const wanted = drive.manifest.items.flatMap((item) => item.files).map(({ path, digest }) => [path, digest]);
    assert.deepEqual(found, { ...Object.fromEntries(wanted), '/manifest.json': drive.manifestDigest });
    assert.equal((await stat(await readThroughQemu(drive.image.path))).size, drive.sizeBytes);
  });

  test('is the plain ISO file of the same content, byte for byte', async () => {
    const house = await makeHouse();
    const drive = await buildDrive(house.options(planOf(await addSizes(house))));
    const raw = await readThroughQemu(drive.image.path);
    await runCommand(['qemu-img', 'compare', '-f', 'vmdk', '-F', 'raw', drive.image.path, raw]);
    assert.match(await runCommand(['blkid', '-p', raw]), /LABEL="PRATIQUE"/);
  });

  test('copies no blob over 64 KiB: those are the very files of the store', async () => {
    const house = await makeHouse();
    const artifacts = await addSizes(house);
    const drive = await buildDrive(house.options(planOf(artifacts)));
    const inodes = new Set<number>();
    for (const { digest, sizeBytes } of artifacts) {
      if (sizeBytes > 65_536) inodes.add((await stat(join(house.store, digest))).ino);
    }
    const linked = ['b0001', 'b0002', 'b0003', 'b0004'].map((name) => join(house.folder, name));
    assert.deepEqual(new Set((await Promise.all(linked.map((path) => stat(path)))).map(({ ino }) => ino)), inodes);
    assert.equal((await readFile(drive.image.path, 'utf8')).match(/^RW /gm)?.length, 5);
  });

  test('lists items in the order of the plan, the agent itself last, and extra files apart', async () => {
    const house = await makeHouse();
    const one = await house.add(Buffer.from('one'));
    const plan = planOf([
      { name: 'agent', ...one, install: { action: 'agent' } },
      { name: 'first.tar', ...one },
      { name: 'second.deb', ...one, install: { action: 'debian-package' } },
    ]);
    const index = await house.add(Buffer.from('Origin: Debian'));
    const extraFiles = [
      { path: '/apt/dists/bookworm/InRelease', ...index },
      { path: '/config/network.json', bytes: Buffer.from('{}') },
    ];
    const drive = await buildDrive(house.options(plan, { extraFiles }));
    const paths = drive.manifest.items.map((item) => item.files[0]?.path);
    assert.deepEqual(paths, ['/packages/01-first.tar', '/packages/02-second.deb', '/agent/03-agent']);
    const found = await extractDrive(drive.image.path);
    for (const { path, digest } of drive.manifest.extraFiles) assert.equal(found[path], digest);
    assert.equal(found['/config/network.json'], digestOf('{}'));
  });

  test('with signed archives holds them as a package manager expects them, and no second copy of a package [A9]', async () => {
    const house = await makeHouse();
    const [shared, own, bundle] = [Buffer.from('in both archives'), Buffer.from('in one'), Buffer.from('a bundle')];
    const debs: Artifact[] = [
      { name: 'a_1_amd64.deb', ...(await house.add(shared)), install: { action: 'debian-package' } },
      { name: 'x.tar', ...(await house.add(bundle)) },
      { name: 'b_1_amd64.deb', ...(await house.add(own)), install: { action: 'debian-package' } },
    ];
    const plan = planOf(debs);
    const signed = async (suite: string, paths: Readonly<Record<string, Buffer>>) => ({
      suite,
      components: ['main'],
      files: [{ path: `dists/${suite}/InRelease`, ...(await house.add(Buffer.from(suite))) }],
      pool: Object.entries(paths).map(([path, content]) => ({ path, digest: digestOf(content) })),
    });
    const archives = [
      await signed('bookworm', { 'pool/main/a/a_1_amd64.deb': shared }),
      await signed('bookworm-security', {
        'pool/updates/main/a/a_1_amd64.deb': shared,
        'pool/updates/main/b/b_1_amd64.deb': own,
      }),
    ];
    const { manifest, image } = await buildDrive(house.options(plan, { archives }));
    assert.deepEqual(manifest.apt?.archives, [
      { folder: '/apt/1', suite: 'bookworm', components: ['main'] },
      { folder: '/apt/2', suite: 'bookworm-security', components: ['main'] },
    ]);
    assert.deepEqual(
      manifest.items.map((item) => item.files.map(({ path }) => path)),
      [
        ['/apt/1/pool/main/a/a_1_amd64.deb', '/apt/2/pool/updates/main/a/a_1_amd64.deb'],
        ['/packages/02-x.tar'],
        ['/apt/2/pool/updates/main/b/b_1_amd64.deb'],
      ],
    );
    const found = await extractDrive(image.path);
    assert.equal(found['/apt/2/dists/bookworm-security/InRelease'], digestOf('bookworm-security'));
    assert.equal(found['/apt/2/pool/updates/main/a/a_1_amd64.deb'], digestOf(shared));
    // A Debian package that no archive vouches for does not slip in beside the others.
    const unsigned = archives.slice(0, 1);
    await assert.rejects(buildDrive(house.options(plan, { archives: unsigned })), { code: 'usage/drive-unsigned' });
  });

  test('of an empty plan is only its manifest', async () => {
    const house = await makeHouse();
    const drive = await buildDrive(house.options(planOf([])));
    assert.deepEqual(await extractDrive(drive.image.path), { '/manifest.json': drive.manifestDigest });
  });

  test('holds a file over 4 GiB, whole', async () => {
    const house = await makeHouse();
    const sizeBytes = 2 ** 32 + 5_000;
    // Nobody looks at the digest of a linked blob, so this one need not be computed.
    const digest = digestOf('a sparse file');
    const file = await open(join(house.store, digest), 'w', 0o444);
    const marks: [number, string][] = [
      [0, 'start'],
      [2 ** 32 - 2_100, 'across the edge'.repeat(200)],
      [sizeBytes - 3, 'end'],
    ];
    for (const [at, text] of marks) await file.write(text, at);
    await file.close();
    const drive = await buildDrive(house.options(planOf([{ name: 'big.img', digest, sizeBytes }])));
    const raw = await readThroughQemu(drive.image.path);
    const env = { ...process.env, LC_ALL: 'C.UTF-8' };
    const listed = await runCommand(['bsdtar', '-tvf', raw], { env });
    assert.match(listed, new RegExp(` ${sizeBytes} .*packages/01-big.img`));
    const report = ['-find', '/packages/01-big.img', '-exec', 'report_lba', '--'];
    const sections = [...(await runCommand(['xorriso', '-indev', raw, ...report])).matchAll(/^File data lba: (.*)$/gm)];
    const [first, second] = sections.map(([, numbers]) => numbers?.split(',').map(Number) ?? []);
    assert.equal(sections.length, 2);
    assert.deepEqual(second?.slice(1, 3), [(first?.[1] ?? 0) + (first?.[2] ?? 0), 4]);
    const image = await open(raw);
    for (const [at, text] of marks) {
      const piece = Buffer.alloc(text.length);
      await image.read(piece, 0, piece.length, (first?.[1] ?? 0) * 2048 + at);
      assert.equal(piece.toString(), text);
    }
    await image.close();
    await rm(raw);
  });

  test('needs at most 256 open files, however many large blobs there are', async () => {
    const house = await makeHouse();
    const artifacts: Artifact[] = [];
    for (let index = 0; index < 300; index += 1) {
      const content = Buffer.alloc(70_000 + 7 * index, index);
      artifacts.push({ name: `p${index}`, ...(await house.add(content)) });
    }
    const drive = await buildDrive(house.options(planOf(artifacts)));
    assert.equal((await readFile(drive.image.path, 'utf8')).match(/^RW /gm)?.length, 256);
    const found = await extractDrive(drive.image.path);
    for (const { files } of drive.manifest.items)
      for (const { path, digest } of files) assert.equal(found[path], digest);
  });
});

describe('building again [X4]', () => {
  test('finds the same drive and touches nothing', async () => {
    const house = await makeHouse();
    const options = house.options(planOf(await addSizes(house)));
    const first = await buildDrive(options);
    const madeNs = async (name: string) => (await stat(join(house.folder, name), { bigint: true })).mtimeNs;
    const before = await Promise.all(['drive.vmdk', 'meta.bin'].map(madeNs));
    assert.deepEqual(await buildDrive(options), first);
    assert.deepEqual(await Promise.all(['drive.vmdk', 'meta.bin'].map(madeNs)), before);
  });

  const wrecks: readonly [string, (folder: string) => Promise<unknown>][] = [
    ['before the descriptor was written', (folder) => unlink(join(folder, 'drive.vmdk'))],
    ['while the metadata was written', (folder) => truncate(join(folder, 'meta.bin'), 40_000)],
    [
      'while small blobs were packed',
      async (folder) => truncate(join(folder, 'meta.bin'), (await stat(join(folder, 'meta.bin'))).size - 2048),
    ],
    ['before a blob was linked', (folder) => unlink(join(folder, 'b0002'))],
    [
      'of the host, of whose disk nobody knows what it kept,',
      async (folder) => {
        const [vmdk, meta] = [join(folder, 'drive.vmdk'), join(folder, 'meta.bin')];
        const descriptor = await readFile(vmdk, 'utf8');
        assert.match(descriptor, /^# host boot [0-9a-f-]{36}$/m);
        const older = descriptor.replace(/(?<=^# host boot ).*$/m, '00000000-0000-0000-0000-000000000000');
        await writeFile(`${vmdk}.older`, older);
        await rename(`${vmdk}.older`, vmdk);
        // Behind the metadata lie the packed blobs; the last of them has two whole sectors.
        const file = await open(meta, 'r+');
        await file.write(Buffer.alloc(2048), 0, 2048, (await file.stat()).size - 4096);
        await file.close();
      },
    ],
    [
      'while the descriptor was renamed',
      (folder) => rename(join(folder, 'drive.vmdk'), join(folder, 'drive.vmdk.new')),
    ],
  ];
  for (const [when, wreck] of wrecks) {
    test(`after a power cut ${when} gives a whole drive`, async () => {
      const house = await makeHouse();
      const options = house.options(planOf(await addSizes(house)));
      const first = await buildDrive(options);
      const whole = await extractDrive(first.image.path);
      await wreck(house.folder);
      assert.deepEqual(await buildDrive(options), first);
      assert.deepEqual(await extractDrive(first.image.path), whole);
    });
  }

  test('with another plan replaces the drive, while a reader of the old one still has its bytes', async () => {
    const house = await makeHouse();
    const [old, fresh] = [await house.add(Buffer.alloc(100_000, 1)), await house.add(Buffer.alloc(100_001, 2))];
    await buildDrive(house.options(planOf([{ name: 'old', ...old }])));
    const reader = await open(join(house.folder, 'b0001'));
    const drive = await buildDrive(house.options(planOf([{ name: 'fresh', ...fresh }])));
    const hash = createHash('sha256');
    for await (const piece of reader.createReadStream()) hash.update(piece);
    assert.equal(hash.digest('hex'), old.digest);
    assert.equal((await extractDrive(drive.image.path))['/packages/01-fresh'], fresh.digest);
  });

  test('a blob fetched anew after damage is linked anew', async () => {
    const house = await makeHouse();
    const content = Buffer.alloc(100_000, 7);
    const blob = await house.add(content);
    const options = house.options(planOf([{ name: 'p', ...blob }]));
    await buildDrive(options);
    await unlink(join(house.store, blob.digest));
    await house.add(content);
    await buildDrive(options);
    assert.equal((await stat(join(house.folder, 'b0001'))).ino, (await stat(join(house.store, blob.digest))).ino);
  });
});

describe('what a drive is not built from [X6]', () => {
  test('a blob that the store lacks', async () => {
    const house = await makeHouse();
    const digest = digestOf('missing');
    const plan = planOf([{ name: 'p', digest, sizeBytes: 7 }]);
    await assert.rejects(
      buildDrive(house.options(plan)),
      refusal('host-fault/blob-missing', /not in the store/, digest),
    );
    assert.equal(existsSync(join(house.folder, 'drive.vmdk')), false);
  });

  test('a blob that the store no longer vouches for, though its file is there', async () => {
    const house = await makeHouse();
    const blob = await house.add(Buffer.alloc(100_000, 1));
    const blobs = { path: (digest: Digest) => join(house.store, digest), has: () => false };
    const building = buildDrive(house.options(planOf([{ name: 'p', ...blob }]), { blobs }));
    await assert.rejects(building, refusal('host-fault/blob-missing', /not in the store/, blob.digest));
  });

  for (const sizeBytes of [1_000, 200_000]) {
    test(`a blob of ${sizeBytes} bytes that has another size than the vendor signed`, async () => {
      const house = await makeHouse();
      const blob = await house.add(Buffer.alloc(sizeBytes, 1));
      await truncate(join(house.store, blob.digest), sizeBytes - 1);
      const building = buildDrive(house.options(planOf([{ name: 'p', ...blob }])));
      await assert.rejects(building, refusal('host-fault/blob-damaged', /bytes instead of/, blob.digest));
      assert.equal(existsSync(join(house.folder, 'drive.vmdk')), false);
    });
  }

  test('a small blob whose bytes changed after it was verified', async () => {
    const house = await makeHouse();
    const blob = await house.add(Buffer.alloc(1_000, 1));
    await writeFile(join(house.store, blob.digest), Buffer.alloc(1_000, 2));
    const building = buildDrive(house.options(planOf([{ name: 'p', ...blob }])));
    await assert.rejects(building, refusal('host-fault/blob-damaged', /has changed on disk/, blob.digest));
  });

  test('a blob on another file system', async () => {
    const house = await makeHouse();
    const elsewhere = await mkdtemp('/dev/shm/pratique-drive-');
    try {
      assert.notEqual((await stat(elsewhere)).dev, (await stat(house.store)).dev, 'this test needs two file systems');
      const content = Buffer.alloc(100_000, 1);
      const digest = digestOf(content);
      await writeFile(join(elsewhere, digest), content);
      const blobs = { path: (name: Digest) => join(elsewhere, name), has: () => true };
      const plan = planOf([{ name: 'p', digest, sizeBytes: content.length }]);
      await assert.rejects(
        buildDrive(house.options(plan, { blobs })),
        refusal('host-unfit/drive-links', /different file systems/),
      );
    } finally {
      await rm(elsewhere, { recursive: true });
    }
  });

  test('a plan of another VM or run', async () => {
    const house = await makeHouse();
    const plan = { ...planOf([]), run: 'b'.repeat(32) as RunId };
    await assert.rejects(buildDrive(house.options(plan)), refusal('internal/drive-plan', /is for run b+/));
  });

  test('an extra file outside the folders of the drive, or in the place of the manifest', async () => {
    const house = await makeHouse();
    for (const path of ['/manifest.json', '/etc/passwd', '/apt/../manifest.json', '/apt/a\nb']) {
      const extraFiles = [{ path, bytes: Buffer.from('x') }];
      await assert.rejects(buildDrive(house.options(planOf([]), { extraFiles })), {
        code: /^usage\/drive-(manifest|path|conflict)$/,
      });
    }
  });
});

describe('nobody writes through a drive, and only its VM reads it [X6]', () => {
  test('a write through QEMU is refused and the blobs stay as they are', async () => {
    const house = await makeHouse();
    const artifacts = await addSizes(house);
    const drive = await buildDrive(house.options(planOf(artifacts)));
    const attack = await tryCommand(['qemu-io', '-r', '-f', 'vmdk', '-c', 'write -P 0xff 0 64k', drive.image.path]);
    assert.match(attack.stdout + attack.stderr, /read-only|not permitted/i);
    for (const { digest } of artifacts) assert.equal(await digestOfFile(join(house.store, digest)), digest);
    const found = await extractDrive(drive.image.path);
    assert.equal(found['/manifest.json'], drive.manifestDigest);
  });

  test("QEMU's group reads the whole drive without reaching the store; another user reads nothing", async (t) => {
    const house = await makeHouse();
    const owner = { uid: 61_001, gid: 61_001 };
    const isRoot = process.getuid?.() === 0;
    const plan = planOf(await addSizes(house));
    const drive = await buildDrive(house.options(plan, isRoot ? { owner } : {}));
    assert.equal((await stat(house.folder)).mode & 0o7777, 0o750);
    assert.equal((await stat(join(house.folder, 'meta.bin'))).mode & 0o7777, 0o440);
    if (!isRoot) {
      t.diagnostic('not root: only the modes were checked');
      return;
    }
    const as = (id: number) => ['setpriv', `--reuid=${id}`, `--regid=${id}`, '--clear-groups'];
    const read = ['qemu-io', '-r', '-f', 'vmdk', '-c', 'read 0 1M', drive.image.path];
    assert.equal((await tryCommand([...as(owner.uid), ...read])).exitCode, 0);
    assert.notEqual((await tryCommand([...as(61_002), ...read])).exitCode, 0);
    assert.notEqual((await tryCommand([...as(owner.uid), 'ls', house.store])).exitCode, 0);
    const write = ['qemu-io', '-f', 'vmdk', '-c', 'write 1M 512', drive.image.path];
    assert.notEqual((await tryCommand([...as(owner.uid), ...write])).exitCode, 0);
    assert.notEqual((await tryCommand([...as(owner.uid), 'touch', join(house.folder, 'x')])).exitCode, 0);
  });

  test('retention may drop a blob of the store: the drive keeps its bytes', async () => {
    const house = await makeHouse();
    const blob = await house.add(Buffer.alloc(200_000, 9));
    const drive = await buildDrive(house.options(planOf([{ name: 'p', ...blob }])));
    await unlink(join(house.store, blob.digest));
    assert.equal((await extractDrive(drive.image.path))['/packages/01-p'], blob.digest);
  });

  test('no name of a vendor becomes a line of the descriptor', async () => {
    const line = /^(?:# [A-Za-z ]+|[a-zA-Z.]+ ?= ?[0-9a-zA-Z"]+|RW \d+ FLAT "(?:meta\.bin|b\d{4})" 0|)$/;
    const hostile = fc.oneof(
      fc.string({ unit: 'binary', minLength: 1, maxLength: 60 }),
      fc.constantFrom('"\nRW 99 FLAT "/etc/shadow" 0\n', 'x" 0', 'a\r\nb', '../../etc/shadow', '/etc/shadow'),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(fc.tuple(hostile, fc.nat(300_000)), { maxLength: 20 }), async (files) => {
        const entries = files.map(([name, sizeBytes], index) => {
          const path = `/${index}${name.replaceAll('/', '_').replaceAll('\0', '_').toWellFormed()}`;
          return { path, sizeBytes, source: { kind: 'blob' as const, digest: digestOf(`${index}`) } };
        });
        const { descriptor } = planZeroCopyImage(buildIso(entries, { joliet: false }));
        for (const found of descriptor.split('\n')) assert.match(found, line);
      }),
      { numRuns: 300 },
    );
  });

  test('QEMU opens the files of the drive and nothing else, whatever the names are', async () => {
    const house = await makeHouse();
    const names = [
      '"\nRW 99 FLAT "/etc/shadow" 0\n',
      '../../../etc/passwd',
      'x" 0\nRW 1 FLAT "/etc/hostname',
      'a'.repeat(250),
    ];
    const artifacts: Artifact[] = [];
    for (const [index, name] of names.entries()) {
      artifacts.push({ name, ...(await house.add(Buffer.alloc(70_000 + index, index))) });
    }
    const { image } = await buildDrive(house.options(planOf(artifacts)));
    const listed = await runCommand(['qemu-img', 'info', '-f', 'vmdk', '--backing-chain', '--output=json', image.path]);
    assert.equal([...listed.matchAll(/"backing-filename"/g)].length, 0);
    const node = {
      driver: 'vmdk',
      'node-name': 'drive',
      'read-only': true,
      file: { driver: 'file', filename: image.path },
    };
    const qemu = spawn('qemu-storage-daemon', [
      '--blockdev',
      JSON.stringify(node),
      '--chardev',
      'stdio,id=q',
      '--monitor',
      'q',
    ]);
    try {
      // It greets when all images are open.
      await once(qemu.stdout, 'data');
      const folder = `/proc/${qemu.pid}/fd`;
      const opened = await Promise.all(
        (await readdir(folder)).map((name) => readlink(join(folder, name)).catch(() => '')),
      );
      const files = opened.filter((path) => path.startsWith('/') && !path.startsWith('/dev/'));
      const wanted = ['b0001', 'b0002', 'b0003', 'b0004', 'drive.vmdk', 'meta.bin'];
      assert.deepEqual(
        [...new Set(files)].sort(),
        wanted.map((name) => join(house.folder, name)),
      );
    } finally {
      qemu.kill('SIGKILL');
      await once(qemu, 'exit');
    }
  });

  test('hostile artifact names give safe paths and a manifest that names them', async () => {
    const house = await makeHouse();
    const blob = await house.add(Buffer.from('content'));
    const names = ['"; rm -rf *', '..', '.hidden', '-rf', 'n'.repeat(250), 'ü 🚢.deb', 'a:b*c?', 'ends.in.dots...'];
    const drive = await buildDrive(house.options(planOf(names.map((name) => ({ name, ...blob })))));
    const found = await extractDrive(drive.image.path);
    for (const { path } of drive.manifest.items.flatMap((item) => item.files)) {
      assert.match(path, /^\/packages\/\d\d-[A-Za-z0-9._+~-]{1,80}$/);
      assert.equal(found[path], blob.digest);
    }
    assert.equal(Object.keys(found).length, names.length + 1);
  });
});

describe('removing a drive', () => {
  test('removes its files and its folder, leaves the store, and may be done twice', async () => {
    const house = await makeHouse();
    const artifacts = await addSizes(house);
    await buildDrive(house.options(planOf(artifacts)));
    await removeDrive(house.folder);
    await removeDrive(house.folder);
    assert.equal(existsSync(house.folder), false);
    for (const { digest } of artifacts) assert.ok(existsSync(join(house.store, digest)));
  });

  test('removes the drives of all runs of a VM but one, and is content with none', async () => {
    const house = await makeHouse();
    const options = house.options(planOf([]));
    const folder = join(house.folder, 'runs');
    const runs = ['a', 'b', 'c'].map((letter) => letter.repeat(32) as RunId); // 32 hex digits are a run's name.
    const [, kept] = runs;
    assert.ok(kept);
    await removeDrives(folder, null);
    for (const run of runs) await buildDrive({ ...options, folder: join(folder, run) });
    await removeDrives(folder, kept);
    assert.deepEqual(await readdir(folder), [kept]);
    await removeDrives(folder);
    assert.equal(existsSync(folder), false);
  });

  test('stops at a file that is not its own and removes nothing', async () => {
    const house = await makeHouse();
    const drive = await buildDrive(house.options(planOf([])));
    await writeFile(join(house.folder, 'notes.txt'), 'mine');
    await assert.rejects(removeDrive(house.folder), refusal('host-fault/drive-folder', /not ours/));
    assert.ok(existsSync(drive.image.path));
  });
});
