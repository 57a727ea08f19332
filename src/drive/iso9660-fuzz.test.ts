// Hostile names, sizes and trees: the image builder answers with an image whose every record is in its place, or with a refusal.
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, type TestContext, test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import { hostileName } from '../../test/fakes/drive-trees.ts';
import { digestOf } from '../base/digest.ts';
import { DriveError } from './drive-error.ts';
import { buildIso, type IsoEntry, type IsoImage, type IsoOptions, SECTOR_BYTES } from './iso9660.ts';
import { planZeroCopyImage } from './zero-copy-image.ts';

const IS_FULL = process.env.PRATIQUE_TEST_FULL === '1';
const RUNS = IS_FULL ? 50_000 : 3_000;
/** Bytes that the heap may have grown by after all runs; one leaked image has 60 kB. */
const GROWTH_BYTES_MAX = 16 * 1024 * 1024;

/** Seeds that once found something, each with what it was; they are replayed in every run. The cast holds: the file is ours. */
const KEPT = JSON.parse(readFileSync(join(import.meta.dirname, 'iso9660-fuzz-seeds.json'), 'utf8')) as readonly {
  readonly seed: number;
  readonly found: string;
}[];

const component = fc.oneof(
  hostileName,
  fc.constantFrom(
    '',
    '.',
    '..',
    'a',
    'A',
    'b',
    'l0',
    'l1',
    'a\0',
    '\ud800',
    'a.',
    'CON',
    ' ',
    '"\nRW 99 FLAT "/etc/shadow" 0\n',
  ),
  fc.constantFrom('x'.repeat(10_000), 'x'.repeat(253), 'ü'.repeat(127), '\u202e"', "'; rm -rf /", '\r\n'),
);
const path = fc
  .tuple(fc.array(component, { maxLength: 6 }), fc.integer({ min: 0, max: 9 }))
  .map(([parts, way]) => `${way === 0 ? '' : '/'}${parts.join('/')}`);
const number = fc.oneof(
  fc.nat(5_000),
  fc.constantFrom(-1, -0, 1.5, Number.NaN, Number.POSITIVE_INFINITY, 1e308),
  fc.constantFrom(2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 38, 2 ** 42, 2 ** 53 - 1, 2 ** 53, 2 ** 63, -(2 ** 63)),
);
/** Mostly in order, so that what stands behind a check is reached too. */
const mode = fc.option(number, { nil: 0o444, freq: 15 });
const mtimeMs = fc.option(number, { nil: 0, freq: 15 });
const entry: fc.Arbitrary<IsoEntry> = fc.oneof(
  fc.record({ path, sizeBytes: number, blob: fc.nat(6), mode, mtimeMs }).map(({ blob, ...rest }): IsoEntry => {
    return { ...rest, source: { kind: 'blob', digest: digestOf(`${blob} ${rest.sizeBytes}`) } };
  }),
  fc.record({ path, sizeBytes: fc.option(number, { nil: 3, freq: 15 }), mode, mtimeMs }).map((rest): IsoEntry => {
    return { ...rest, source: { kind: 'inline', bytes: Buffer.from('abc') } };
  }),
  fc.record({ path, mode, mtimeMs }).map((rest): IsoEntry => ({ kind: 'folder', ...rest })),
  fc.record({ path, target: path.map((text) => text.replace(/^\//, '')), mtimeMs }).map((rest): IsoEntry => {
    return { kind: 'symlink', ...rest };
  }),
);
const options: fc.Arbitrary<IsoOptions> = fc.record(
  {
    label: fc.oneof(fc.string({ unit: 'binary', maxLength: 40 }), fc.constant('CIDATA')),
    joliet: fc.boolean(),
    createdAtMs: mtimeMs,
  },
  { requiredKeys: [] },
);
const input = fc.tuple(fc.array(entry, { maxLength: 12 }), fc.option(options, { nil: {}, freq: 3 }));

function tryBuild([entries, wishes]: readonly [readonly IsoEntry[], IsoOptions]): IsoImage | null {
  try {
    return buildIso(entries, wishes);
  } catch (error) {
    assert.ok(error instanceof DriveError, `not a refusal: ${String(error)}`);
    assert.match(error.code, /^usage\/drive-/);
    assert.ok(error.message.length < 1_000, `a message of ${error.message.length} characters`);
    assert.doesNotMatch(error.message, /\n/);
    return null;
  }
}

type Volume = { readonly type: number; readonly leaves: number; readonly bytes: number };

/** Walks all records of a volume as a simple reader does: each lies in a sector, and what it points to in the image. */
function walkVolume({ metadata, totalSectors }: IsoImage, descriptor: number): Volume {
  const image = Buffer.from(metadata.buffer, metadata.byteOffset, metadata.length);
  const at = descriptor * SECTOR_BYTES;
  assert.equal(image.readUInt32LE(at + 80), totalSectors);
  const pending = [at + 156];
  let [leaves, bytes] = [0, 0];
  for (const record of pending) {
    const sector = image.readUInt32LE(record + 2);
    const lengthBytes = image.readUInt32LE(record + 10);
    assert.ok(sector * SECTOR_BYTES + lengthBytes <= totalSectors * SECTOR_BYTES, 'a record points out of the image');
    if ((image[record + 25] ?? 0) & 2) {
      assert.ok(sector * SECTOR_BYTES + lengthBytes <= metadata.length, 'a folder lies in the metadata');
      pending.push(...childrenOf(image, sector * SECTOR_BYTES, lengthBytes));
    } else {
      bytes += lengthBytes;
      // The last of a file's records has no flag of more.
      if (((image[record + 25] ?? 0) & 0x80) === 0) leaves += 1;
    }
  }
  return { type: image[at] ?? 0, leaves, bytes };
}

/** The records behind `.` and `..`. */
function childrenOf(image: Buffer, start: number, lengthBytes: number): number[] {
  const found: number[] = [];
  for (let at = start; at < start + lengthBytes; ) {
    const length = image[at] ?? 0;
    const left = SECTOR_BYTES - (at % SECTOR_BYTES);
    if (length === 0) {
      at += left;
      continue;
    }
    assert.ok(length <= left, 'no record crosses the end of a sector');
    found.push(at);
    at += length;
  }
  return found.slice(2);
}

function checkImage(entries: readonly IsoEntry[], wishes: IsoOptions, iso: IsoImage): void {
  for (const one of entries) assert.match(one.path, /^\//, 'a path that is not absolute was taken');
  const files = entries.filter((one) => one.kind !== 'folder' && one.kind !== 'symlink');
  const links = entries.filter((one) => one.kind === 'symlink').length;
  const bytes = files.reduce((sum, one) => sum + ('sizeBytes' in one ? one.sizeBytes : 0), 0);
  const rockRidge = walkVolume(iso, 16);
  assert.deepEqual(rockRidge, { type: 1, leaves: files.length + links, bytes });
  if (wishes.joliet !== false) assert.deepEqual(walkVolume(iso, 17), { type: 2, leaves: files.length, bytes });
  let sector = iso.metadata.length / SECTOR_BYTES;
  for (const { startSector, lengthBytes } of iso.extents) {
    assert.equal(startSector, sector);
    sector += Math.ceil(lengthBytes / SECTOR_BYTES);
  }
  assert.equal(iso.totalSectors, sector);
}

const LINE = /^(?:# [A-Za-z ]+|[a-zA-Z.]+ ?= ?[0-9a-zA-Z"]+|RW \d+ FLAT "(?:meta\.bin|b\d{4})" 0|)$/;

/** Nothing from outside is in the descriptor, and it is as long as the image. */
function checkDescriptor(iso: IsoImage): void {
  const { descriptor } = planZeroCopyImage(iso, {
    openFilesMax: 4,
    packedBlobBytesMax: 2_000,
    packedBytesMax: 2 ** 60,
  });
  let sectors = 0;
  for (const line of descriptor.split('\n')) {
    assert.match(line, LINE);
    sectors += Number(/^RW (\d+) /.exec(line)?.[1] ?? 0);
  }
  assert.equal(sectors * 512, iso.totalSectors * SECTOR_BYTES);
}

function fuzz(seed: number, numRuns: number): { readonly built: number; readonly refused: number } {
  let [built, refused] = [0, 0];
  fc.assert(
    fc.property(input, (one) => {
      const iso = tryBuild(one);
      if (iso === null) {
        refused += 1;
        return;
      }
      built += 1;
      checkImage(one[0], one[1], iso);
      checkDescriptor(iso);
    }),
    { seed, numRuns, endOnFailure: !IS_FULL },
  );
  return { built, refused };
}

function seedOf(t: TestContext): number {
  const seed = Number(process.env.PRATIQUE_SEED ?? randomInt(2 ** 31));
  t.diagnostic(`seed ${seed}: if it finds something, keep it in iso9660-fuzz-seeds.json`);
  return seed;
}

function heapBytes(): number {
  setFlagsFromString('--expose-gc');
  // The cast holds: with the flag set, a new context has the collector under this name.
  (runInNewContext('gc') as () => void)();
  return process.memoryUsage().heapUsed;
}

describe('hostile input to the image builder [A4] [X6]', () => {
  test('builds what can be built, refuses the rest with a code, and keeps nothing', (t) => {
    fuzz(1, 100);
    const before = heapBytes();
    const { built, refused } = fuzz(seedOf(t), RUNS);
    const grownBytes = heapBytes() - before;
    t.diagnostic(`${built} built, ${refused} refused, ${Math.round(grownBytes / 1024)} KiB grown`);
    assert.ok(built > RUNS / 50, 'images were checked');
    assert.ok(refused > RUNS / 50, 'refusals were checked');
    assert.ok(grownBytes < GROWTH_BYTES_MAX, `${grownBytes} bytes grown`);
  });

  for (const { seed, found } of KEPT) {
    test(`seed ${seed} finds no more: ${found}`, () => {
      fuzz(seed, 2_000);
    });
  }

  test('trees that are large or deep in one way only are built or refused in bounded time', () => {
    const many = (count: number, make: (index: number) => IsoEntry) =>
      Array.from({ length: count }, (_, index) => make(index));
    const blob = { kind: 'blob', digest: digestOf('x') } as const;
    const trees: readonly (readonly [string | null, readonly IsoEntry[]])[] = [
      ['usage/drive-folders', many(100_000, (index) => ({ kind: 'folder', path: `/${index}` }))],
      ['usage/drive-files', many(250_001, (index) => ({ path: `/${index}`, sizeBytes: 1, source: blob }))],
      [null, many(2_000, (index) => ({ path: `/${'d/'.repeat(index % 1_000)}${index}`, sizeBytes: 1, source: blob }))],
      // One ISO name for all of them, and none of Joliet's rules broken.
      [null, many(20_000, (index) => ({ path: `/same beginning ${index}`, sizeBytes: 1, source: blob }))],
      [
        'usage/drive-link',
        many(50_000, (index) => ({ kind: 'symlink', path: `/${index}`, target: `${(index + 1) % 50_000}` })),
      ],
      [
        'usage/drive-size',
        many(1_000, (index) => ({
          path: `/${index}`,
          sizeBytes: 2 ** 38 - 2 ** 17,
          source: { kind: 'blob', digest: digestOf(`${index}`) },
        })),
      ],
    ];
    for (const [code, entries] of trees) {
      if (code === null) checkImage(entries, {}, buildIso(entries));
      else assert.throws(() => buildIso(entries), { code });
    }
  });
});
