// Partition tables, most of them hostile.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crc32 } from 'node:zlib';
import { INSPECT_PARTITIONS_MAX } from '../base/limits.ts';
import { readPartitionTable } from './partition-table.ts';

const SECTOR = 512;

/** A disk in memory that counts how often it is asked. */
function makeDisk(sectors: number, sectorsOf: Readonly<Record<number, Buffer>>) {
  const bytes = Buffer.alloc(sectors * SECTOR);
  for (const [lba, sector] of Object.entries(sectorsOf)) sector.copy(bytes, Number(lba) * SECTOR);
  const asked = { reads: 0, bytes: 0 };
  return {
    asked,
    sizeBytes: bytes.length,
    read: async (offset: number, length: number) => {
      asked.reads += 1;
      asked.bytes += length;
      return bytes.subarray(offset, offset + length);
    },
  };
}

type Entry = { readonly type: number; readonly start: number; readonly count: number; readonly flag?: number };

function mbr(...entries: readonly Entry[]): Buffer {
  const sector = Buffer.alloc(SECTOR);
  for (const [index, { type, start, count, flag = 0 }] of entries.entries()) {
    sector.writeUInt8(flag, 446 + 16 * index);
    sector.writeUInt8(type, 446 + 16 * index + 4);
    sector.writeUInt32LE(start, 446 + 16 * index + 8);
    sector.writeUInt32LE(count, 446 + 16 * index + 12);
  }
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}

const PROTECTIVE = mbr({ type: 0xee, start: 1, count: 99 });

/** A header of a GPT with right checksums over whatever it says. */
function gpt(options: {
  readonly count: number;
  readonly entryBytes?: number;
  readonly entriesAt?: bigint;
  readonly entries?: Buffer;
}): Buffer {
  const { count, entryBytes = 128, entriesAt = 2n, entries = Buffer.alloc(0) } = options;
  const header = Buffer.alloc(SECTOR);
  header.write('EFI PART', 0, 'latin1');
  header.writeUInt32LE(92, 12);
  header.writeBigUInt64LE(entriesAt, 72);
  header.writeUInt32LE(count, 80);
  header.writeUInt32LE(entryBytes, 84);
  header.writeUInt32LE(crc32(entries), 88);
  header.writeUInt32LE(crc32(header.subarray(0, 92)), 16);
  return header;
}

function gptEntry(first: bigint, last: bigint): Buffer {
  const entry = Buffer.alloc(128, 1);
  entry.writeBigUInt64LE(first, 32);
  entry.writeBigUInt64LE(last, 40);
  return entry;
}

test('a chain of logical partitions that runs in a circle ends [A3]', async () => {
  const link = mbr({ type: 0x83, start: 1, count: 5 }, { type: 5, start: 0, count: 10 });
  const disk = makeDisk(1000, { 0: mbr({ type: 5, start: 10, count: 900 }), 10: link });
  const table = await readPartitionTable(disk);
  assert.deepEqual(table.partitions, [{ number: 5, offsetBytes: 11 * SECTOR, sizeBytes: 5 * SECTOR }]);
  assert.match(table.notes.join(), /circle/);
});

test('a chain of logical partitions without end is left after its bound [A3]', async () => {
  const links = Object.fromEntries(
    Array.from({ length: 400 }, (_, index) => [10 + index, mbr({ type: 5, start: index + 1, count: 10 })]),
  );
  const disk = makeDisk(1000, { 0: mbr({ type: 5, start: 10, count: 900 }), ...links });
  const table = await readPartitionTable(disk);
  assert.deepEqual(table.partitions, []);
  assert.match(table.notes.join(), /endless/);
  assert(disk.asked.reads <= INSPECT_PARTITIONS_MAX + 1, String(disk.asked.reads));
});

test('partitions that lie outside of the disk are left out and said', async () => {
  const entries = [
    { type: 0x83, start: 2, count: 10 },
    { type: 0x83, start: 0xffff_ffff, count: 0xffff_ffff },
  ];
  const table = await readPartitionTable(makeDisk(100, { 0: mbr(...entries) }));
  assert.deepEqual(table.partitions, [{ number: 1, offsetBytes: 2 * SECTOR, sizeBytes: 10 * SECTOR }]);
  assert.match(table.notes.join(), /does not fit/);
});

test('a boot sector, random flags and an empty disk are no tables', async () => {
  const fat = mbr({ type: 1, start: 1, count: 1 });
  fat.write('MSDOS5.0', 3, 'latin1');
  for (const sector of [fat, mbr({ type: 0x83, start: 1, count: 1, flag: 0x33 }), Buffer.alloc(SECTOR), mbr()])
    assert.deepEqual(await readPartitionTable(makeDisk(10, { 0: sector })), {
      kind: 'none',
      partitions: [],
      notes: [],
    });
  assert.equal((await readPartitionTable(makeDisk(0, {}))).kind, 'none');
});

test('a GPT is read, and its entries that make no sense are left out [A3]', async () => {
  const wrongs = [gptEntry(50n, 40n), gptEntry(2n ** 63n, 2n ** 63n + 1n), gptEntry(5000n, 6000n)];
  const entries = Buffer.concat([gptEntry(10n, 19n), ...wrongs]);
  const disk = makeDisk(100, { 0: PROTECTIVE, 1: gpt({ count: 4, entries }), 2: entries });
  const table = await readPartitionTable(disk);
  assert.deepEqual(table, {
    kind: 'gpt',
    partitions: [{ number: 1, offsetBytes: 10 * SECTOR, sizeBytes: 10 * SECTOR }],
    notes: [],
  });
});

test('a GPT whose numbers would cost memory or read elsewhere is no table [A3]', async () => {
  const headers = [
    gpt({ count: 0xffff_ffff }),
    gpt({ count: 100_000, entryBytes: 512 }),
    gpt({ count: 1, entryBytes: 0 }),
    gpt({ count: 1, entryBytes: 0xffff_ff80 }),
    gpt({ count: 1, entriesAt: 2n ** 63n }),
  ];
  for (const header of headers) {
    const disk = makeDisk(100, { 0: PROTECTIVE, 1: header });
    assert.deepEqual((await readPartitionTable(disk)).partitions, []);
    assert(disk.asked.bytes < 64 * 1024, String(disk.asked.bytes));
  }
  const damaged = gpt({ count: 1, entries: gptEntry(10n, 19n) });
  damaged.writeUInt8(0xff, 40);
  const disk = makeDisk(100, { 0: PROTECTIVE, 1: damaged, 2: gptEntry(10n, 19n) });
  assert.equal((await readPartitionTable(disk)).kind, 'none', 'a wrong checksum');
});
