// The log that QEMU's blklogwrites keeps of a disk's writes and flushes (the format of Linux' dm-log-writes: a superblock, then a sector
// for each entry with its data behind it), and the disk as a power cut after any entry leaves it.
//
// QEMU logs a write once it is done: what stands before a flush is what that flush made durable.
import assert from 'node:assert/strict';
import type { Ending } from './recorded-disk.ts';

const SECTOR_BYTES = 512;
const MAGIC = 0x6a736677736872n;
const SUPERBLOCK = { magicAt: 0, versionAt: 8, entriesAt: 16, sectorBytesAt: 24 } as const;
const ENTRY = { sectorAt: 0, sectorsAt: 8, flagsAt: 16 } as const;
const FLUSH = 1n;
/** ext4 itself takes the block of its superblock for one that is written whole: half of it is no file system any more. */
const SUPERBLOCK_BLOCK_BYTES = 4096;

export type Write = { readonly kind: 'write'; readonly at: number; readonly bytes: Buffer };
export type Entry = Write | { readonly kind: 'flush' };

/** Reads a whole log; the entries behind the last flush, which the superblock does not count yet, are left out. */
export function readLog(log: Buffer): readonly Entry[] {
  assert.equal(log.readBigUInt64LE(SUPERBLOCK.magicAt), MAGIC, 'this is a log of writes');
  assert.equal(log.readBigUInt64LE(SUPERBLOCK.versionAt), 1n);
  assert.equal(log.readUInt32LE(SUPERBLOCK.sectorBytesAt), SECTOR_BYTES);
  const entries: Entry[] = [];
  let place = SECTOR_BYTES;
  for (let left = log.readBigUInt64LE(SUPERBLOCK.entriesAt); left > 0n; left -= 1n) {
    const flags = log.readBigUInt64LE(place + ENTRY.flagsAt);
    const at = Number(log.readBigUInt64LE(place + ENTRY.sectorAt)) * SECTOR_BYTES;
    const sizeBytes = Number(log.readBigUInt64LE(place + ENTRY.sectorsAt)) * SECTOR_BYTES;
    place += SECTOR_BYTES;
    if (flags === FLUSH) entries.push({ kind: 'flush' });
    else {
      assert.equal(flags, 0n, 'the disk takes writes and flushes only');
      entries.push({ kind: 'write', at, bytes: log.subarray(place, place + sizeBytes) });
    }
    place += sizeBytes;
  }
  return entries;
}

export type Cut = { readonly count: number; readonly ending: Ending; readonly random: () => number };

/**
 * Cuts the power of a disk after its first `count` writes and flushes; the returned function is asked with counts that do not fall. A
 * sector is written whole or not at all, and so is the disk's first block.
 */
export function makeReplay(base: Buffer, entries: readonly Entry[]): (cut: Cut) => Buffer {
  const durable = Buffer.from(base);
  let unflushed: Write[] = [];
  let done = 0;
  return ({ count, ending, random }) => {
    assert.ok(count >= done, 'cuts are asked for in order');
    for (; done < count; done += 1) {
      const entry = entries[done] ?? assert.fail('there are so many entries');
      if (entry.kind === 'write') unflushed.push(entry);
      else {
        for (const { at, bytes } of unflushed) bytes.copy(durable, at);
        unflushed = [];
      }
    }
    const disk = Buffer.from(durable);
    if (ending === 'cut') return disk;
    for (const { at, bytes } of unflushed) {
      for (let start = 0; start < bytes.length; ) {
        const end = start + (at + start === 0 ? SUPERBLOCK_BLOCK_BYTES : SECTOR_BYTES);
        if (ending !== 'torn' || random() < 0.5) bytes.copy(disk, at + start, start, end);
        start = end;
      }
    }
    return disk;
  };
}
