// The log that QEMU's blklogwrites keeps of a disk's writes and flushes (the format of Linux' dm-log-writes: a superblock, then a sector
// for each entry with its data behind it), and the disk as a power cut at any entry leaves it.
import assert from 'node:assert/strict';

/** Bytes of one mark of the guest's program; it is cut off at the first zero byte. */
export const MARK_BYTES = 4096;
const SECTOR_BYTES = 512;
const MAGIC = 0x6a736677736872n;
const SUPERBLOCK = { magicAt: 0, versionAt: 8, entriesAt: 16, sectorBytesAt: 24 } as const;
const ENTRY = { sectorAt: 0, sectorsAt: 8, flagsAt: 16, bytes: 32 } as const;
const FLAGS = { flush: 1n, fua: 2n } as const;

export type Entry =
  | { readonly kind: 'write'; readonly at: number; readonly bytes: Buffer; readonly isDurable: boolean }
  | { readonly kind: 'flush' };

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
    assert.ok((flags & ~(FLAGS.flush | FLAGS.fua)) === 0n, 'the disk takes writes and flushes only');
    place += SECTOR_BYTES;
    if ((flags & FLAGS.flush) !== 0n) entries.push({ kind: 'flush' });
    if (sizeBytes > 0) {
      const bytes = log.subarray(place, place + sizeBytes);
      entries.push({ kind: 'write', at, bytes, isDurable: (flags & FLAGS.fua) !== 0n });
    }
    place += sizeBytes;
  }
  return entries;
}
