// What lies on a disk or a partition, by the marks of the formats themselves; and the facts of an ext superblock.
import { printable } from '../base/printable.ts';
import type { Look } from './look.ts';

/** A filesystem of the ext family, from its superblock (kernel: Documentation/filesystems/ext4/super.rst). */
export type ExtFilesystem = {
  readonly kind: 'ext2' | 'ext3' | 'ext4';
  readonly offsetBytes: number;
  readonly label: string;
  /** The journal holds what the filesystem itself does not have yet: it was not unmounted. debugfs reads without it. */
  readonly needsRecovery: boolean;
  readonly hasErrors: boolean;
  /** What an ordinary program may still write. */
  readonly freeBytes: number;
};

export type Content = ExtFilesystem | { readonly kind: 'other'; readonly name: string } | { readonly kind: 'unknown' };

type Mark = { readonly at: number; readonly bytes: string; readonly name: string };

/** In the order in which they are tried: a container before what it may hold. */
const MARKS: readonly Mark[] = [
  { at: 0, bytes: 'LUKS\xba\xbe', name: 'an encrypted volume (LUKS)' },
  { at: 3, bytes: '-FVE-FS-', name: 'an encrypted Windows volume (BitLocker)' },
  ...[0, 512, 1024, 1536].map((at) => ({ at, bytes: 'LABELONE', name: 'LVM' })),
  { at: 4096, bytes: '\xfc\x4e\x2b\xa9', name: 'a member of a software RAID' },
  { at: 0, bytes: 'XFSB', name: 'XFS' },
  { at: 65_600, bytes: '_BHRfS_M', name: 'btrfs' },
  { at: 1024, bytes: '\x10\x20\xf5\xf2', name: 'F2FS' },
  { at: 4120, bytes: '\xc6\x85\x73\xf6\x4e\x1a\x45\xca', name: 'bcachefs' },
  { at: 3, bytes: 'NTFS    ', name: 'NTFS (Windows)' },
  { at: 3, bytes: 'ReFS\0\0\0\0', name: 'ReFS (Windows)' },
  { at: 3, bytes: 'EXFAT   ', name: 'exFAT' },
  { at: 54, bytes: 'FAT', name: 'FAT' },
  { at: 82, bytes: 'FAT32', name: 'FAT' },
  { at: 4086, bytes: 'SWAPSPACE2', name: 'swap' },
  { at: 0, bytes: 'hsqs', name: 'squashfs' },
  { at: 32_769, bytes: 'CD001', name: 'a CD image' },
  { at: 0, bytes: 'QFI\xfb', name: 'the header of a qcow2 image, as data' },
  { at: 0, bytes: 'KDMV', name: 'the header of a VMDK image, as data' },
];
const HEAD_BYTES = 128 * 1024;

/** What begins at the offset. */
export async function identify(look: Pick<Look, 'read'>, offsetBytes: number): Promise<Content> {
  const head = await look.read(offsetBytes, HEAD_BYTES);
  const mark = MARKS.find(({ at, bytes }) => head.toString('latin1', at, at + bytes.length) === bytes);
  // Boot loaders in front of an ext filesystem leave marks of theirs below 1024; a superblock that makes sense counts for more.
  const ext = readSuperblock(head.subarray(1024, 2048), offsetBytes);
  if (ext !== null) return ext;
  return mark === undefined ? { kind: 'unknown' } : { kind: 'other', name: mark.name };
}

const EXT_MAGIC = 0xef53;
const INCOMPAT_RECOVER = 0x4;
const INCOMPAT_JOURNAL_DEVICE = 0x8;
/** extents, 64bit, flex_bg: nothing before ext4 has them. */
const INCOMPAT_EXT4 = 0x2c0;
const INCOMPAT_64BIT = 0x80;
const COMPAT_JOURNAL = 0x4;
const STATE_ERRORS = 0x2;

function readSuperblock(block: Buffer, offsetBytes: number): ExtFilesystem | null {
  if (block.length < 1024 || block.readUInt16LE(0x38) !== EXT_MAGIC) return null;
  const [compat, incompat] = [block.readUInt32LE(0x5c), block.readUInt32LE(0x60)];
  const blockShift = block.readUInt32LE(0x18);
  // A device that holds the journal of another filesystem is none itself.
  if (blockShift > 6 || (incompat & INCOMPAT_JOURNAL_DEVICE) !== 0) return null;
  const high = (at: number): number => ((incompat & INCOMPAT_64BIT) === 0 ? 0 : block.readUInt32LE(at) * 2 ** 32);
  const freeBlocks = block.readUInt32LE(0x0c) + high(0x158);
  const reservedBlocks = block.readUInt32LE(0x08) + high(0x154);
  const freeBytes = Math.max(0, freeBlocks - reservedBlocks) * 1024 * 2 ** blockShift;
  const hasJournal = (compat & COMPAT_JOURNAL) !== 0;
  return {
    kind: (incompat & INCOMPAT_EXT4) !== 0 ? 'ext4' : hasJournal ? 'ext3' : 'ext2',
    offsetBytes,
    label: printable(block.toString('latin1', 0x78, 0x88).replace(/\0.*$/s, ''), 16),
    needsRecovery: (incompat & INCOMPAT_RECOVER) !== 0,
    hasErrors: (block.readUInt16LE(0x3a) & STATE_ERRORS) !== 0,
    freeBytes: Math.min(freeBytes, Number.MAX_SAFE_INTEGER),
  };
}
