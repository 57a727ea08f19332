// Drive images judged by the Linux kernel: mounted in a guest by Rock Ridge and by Joliet, archived there by busybox, compared here.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, open, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { buildAgent } from '../../guest-agent/build.ts';
import { makeCpio } from '../../images/cpio.ts';
import { kernelCommandLine } from '../../images/guest-system.ts';
import { buildImage, type GuestImage } from '../../images/images.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { digestOf } from '../../src/base/digest.ts';
import { silentLog } from '../../src/base/log.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { buildIso, type IsoEntry, type IsoOptions, SECTOR_BYTES } from '../../src/drive/iso9660.ts';
import {
  brief,
  contentOf,
  contents,
  expected,
  file,
  hostileName,
  inline,
  isJolietName,
  treeOf,
  withoutLinks,
} from '../fakes/drive-trees.ts';
import { lookAt, type SeenTree, writePlainImage } from '../fakes/image-readers.ts';

/** Emulated, on a busy machine; alone it takes 8 s. */
const GUEST_TIMEOUT_MS = 180_000;
/** Room for the archive of one tree. */
const ANSWER_BYTES = 24 * 1024 * 1024;
const TREES = 6;
const BIG_BYTES = 2 ** 32 + 5_000;
/** Sectors of the big file that the guest copies: its ends, and both sides of the end of its first section. */
const BIG_SECTORS = [0, 2 ** 21 - 2, 2 ** 21 - 1, 2 ** 21, 2 ** 21 + 1, 2 ** 21 + 2];

/**
 * The guest's first program. The answers are archives on disks of their own, because only the kernel's own names, modes, times
 * and bytes are wanted, and no console carries those unharmed.
 */
const INIT = `#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t devtmpfs dev /dev
while read -r module; do $bb insmod "/modules/$module"; done </modules/order
$bb mount -r -t ext4 /dev/vda /root
while read -r module; do $bb insmod "/root/lib/modules/pratique/base/$module" 2>/dev/null; done </root/lib/modules/pratique/base/order
$bb mkdir /a
answer() { # image, options, where the answer goes
  $bb mount -r -t iso9660 -o "$2" "/dev/$1" /a || { echo "judge: no mount of $1"; return; }
  $bb tar -cf "/dev/$3" -C /a all || echo "judge: tar failed on $1 ($2)"
  [ "$4" ] && big "$4"
  $bb umount /a
}
big() {
  echo "judge: big $($bb stat -c %s /a/big)"
  place=0
  for sector in ${BIG_SECTORS.join(' ')}; do
    $bb dd if=/a/big "of=/dev/$1" bs=${SECTOR_BYTES} count=1 "skip=$sector" "seek=$place" conv=notrunc 2>/dev/null
    place=$((place + 1))
  done
}
answer vdb iocharset=utf8 vdd vdg
answer vdb norock,utf8 vde vdh
answer vdc iocharset=utf8 vdf
$bb sync
echo "judge: done"
$bb poweroff -f
`;

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-readers-'));
});
after(async () => await rm(folder, { recursive: true, force: true }));

function seedOf(t: TestContext): number {
  const seed = Number(process.env.PRATIQUE_SEED ?? randomInt(2 ** 31));
  t.diagnostic(`seed ${seed}`);
  return seed;
}

/** Below /all: several random trees, each in a folder of its own, and what random trees seldom have. */
function makeTrees(name: fc.Arbitrary<string>, seed: number): IsoEntry[] {
  const trees = fc.sample(treeOf(name), { seed, numRuns: TREES });
  const random = trees.flatMap((entries, index) =>
    entries.map((entry) => ({ ...entry, path: `/tree-${index}${entry.path}` })),
  );
  const all: IsoEntry[] = [
    ...random,
    inline('/empty', ''),
    inline('/inline', 'in the metadata'),
    file('/twice-1', 'the same bytes', { mode: 0o400 }),
    file('/twice-2', 'the same bytes', { mode: 0o755, mtimeMs: 1_700_000_000_000 }),
    file(`/${'deep/'.repeat(60)}bottom`, 'far down'),
    { kind: 'folder', path: '/empty-folder', mode: 0o700, mtimeMs: 1_600_000_000_000 },
    { kind: 'symlink', path: '/dots', target: './empty-folder/../twice-1' },
    ...Array.from({ length: 300 }, (_, index) => file(`/many/${String(index).padStart(40, 'n')}`, `file ${index}`)),
  ];
  return all.map((entry) => ({ ...entry, path: `/all${entry.path}` }));
}

/** The longest that Linux reads: names and targets that go on behind the folder. */
const LONGEST: readonly IsoEntry[] = [
  file(`/all/${'ü'.repeat(126)}a`, 'the longest name'),
  { kind: 'symlink', path: `/all/${'l'.repeat(253)}`, target: `${'./'.repeat(384)}${'ü'.repeat(126)}a` },
];

async function writeImage(name: string, entries: readonly IsoEntry[], options: IsoOptions = {}): Promise<string> {
  const path = join(folder, name);
  await writePlainImage(path, buildIso(entries, options), contentOf);
  return path;
}

/** A disk for an answer. */
async function makeAnswer(name: string): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, '');
  await truncate(path, ANSWER_BYTES);
  return path;
}

async function unpackAnswer(path: string): Promise<SeenTree> {
  const to = `${path}.d`;
  await runCommand(['mkdir', to]);
  await runCommand(['bsdtar', '-xpPf', path, '-C', to], { env: { ...process.env, LC_ALL: 'C.UTF-8', TZ: 'UTC' } });
  return await lookAt(to);
}

async function tinyImage(): Promise<GuestImage> {
  const cacheFolder = defaultCacheFolder();
  const agent = await buildAgent({ cacheFolder, log: silentLog });
  return await buildImage({ name: 'tiny', agentPath: agent.path, cacheFolder, log: silentLog });
}

/** Boots a guest with these disks behind its own and returns what it said until it ended. */
async function judge(
  image: GuestImage,
  disks: readonly { readonly path: string; readonly isWritable: boolean }[],
): Promise<string> {
  const initrd = join(folder, 'initrd');
  const over = makeCpio([{ kind: 'program', path: 'init', content: Buffer.from(INIT) }]);
  await writeFile(initrd, Buffer.concat([await readFile(image.initrd), over]));
  const own = image.disks[0];
  assert.ok(own);
  const drives = [{ path: own.path, isWritable: false }, ...disks].flatMap(({ path, isWritable }, index) => [
    ...['-drive', `if=none,id=d${index},format=raw,read-only=${isWritable ? 'off' : 'on'},file=${path}`],
    ...['-device', `virtio-blk-pci,drive=d${index}`],
  ]);
  const qemu = spawn('qemu-system-x86_64', [
    ...[
      '-nodefaults',
      '-display',
      'none',
      '-machine',
      'q35',
      '-accel',
      'tcg',
      '-cpu',
      'max',
      '-m',
      '192',
      '-no-reboot',
    ],
    ...['-serial', 'stdio', '-kernel', image.kernel, '-initrd', initrd, '-append', kernelCommandLine()],
    ...drives,
  ]);
  const timer = setTimeout(() => qemu.kill('SIGKILL'), GUEST_TIMEOUT_MS);
  let said = '';
  for (const stream of [qemu.stdout, qemu.stderr]) stream.on('data', (piece: Buffer) => (said += piece.toString()));
  await once(qemu, 'exit');
  clearTimeout(timer);
  return said;
}

/** The sectors that the guest copied, beside those that were put in. */
async function compareBig(answer: string, marks: ReadonlyMap<number, string>): Promise<void> {
  const copy = await open(answer);
  for (const [place, sector] of BIG_SECTORS.entries()) {
    const found = Buffer.alloc(SECTOR_BYTES);
    await copy.read(found, 0, SECTOR_BYTES, place * SECTOR_BYTES);
    const mark = marks.get(sector) ?? '';
    assert.equal(found.toString('latin1', 0, mark.length), mark, `sector ${sector} of the big file`);
    assert.ok(found.subarray(mark.length).every((byte) => byte === 0));
  }
  await copy.close();
}

describe("images as the kernel's isofs reads them [A4]", () => {
  test('each name, mode, time, symlink and byte of random trees, and a file over 4 GiB', async (t) => {
    const image = await tinyImage();
    const seed = seedOf(t);
    const forBoth = makeTrees(hostileName.filter(isJolietName), seed);
    const forRockRidge = [...makeTrees(hostileName, seed + 1), ...LONGEST];
    const digest = digestOf('a sparse file');
    const big: IsoEntry = { path: '/big', sizeBytes: BIG_BYTES, source: { kind: 'blob', digest } };
    const both = await writeImage('both.iso', [...forBoth, big]);
    const bigAt = (buildIso([...forBoth, big]).extents.at(-1)?.startSector ?? 0) * SECTOR_BYTES;
    // Every sector of it begins with its number.
    const marks = new Map(BIG_SECTORS.map((sector) => [sector, `sector ${sector}`]));
    const handle = await open(both, 'r+');
    for (const [sector, mark] of marks) await handle.write(mark, bigAt + sector * SECTOR_BYTES);
    await handle.close();
    const rockRidge = await writeImage('rock-ridge.iso', forRockRidge, { joliet: false });
    const answers = await Promise.all(['rr', 'joliet', 'rr-only', 'big-rr', 'big-joliet'].map(makeAnswer));
    const disks = [
      ...[both, rockRidge].map((path) => ({ path, isWritable: false })),
      ...answers.map((path) => ({ path, isWritable: true })),
    ];
    const said = await judge(image, disks);
    assert.match(said, /judge: done/, said.slice(-2_000));
    assert.doesNotMatch(said, /judge: (?:no mount|tar failed)/);
    assert.deepEqual(
      [...said.matchAll(/judge: big (\d+)/g)].map(([, size]) => Number(size)),
      [BIG_BYTES, BIG_BYTES],
    );
    const [byRockRidge = '', byJoliet = '', onlyRockRidge = '', bigByRockRidge = '', bigByJoliet = ''] = answers;
    assert.deepEqual(brief(await unpackAnswer(byRockRidge)), brief(expected(forBoth)));
    assert.deepEqual(contents(await unpackAnswer(byJoliet)), contents(withoutLinks(expected(forBoth))));
    assert.deepEqual(brief(await unpackAnswer(onlyRockRidge)), brief(expected(forRockRidge)));
    await compareBig(bigByRockRidge, marks);
    await compareBig(bigByJoliet, marks);
  });
});
