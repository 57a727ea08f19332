// Reads MBR and GPT (UEFI 2.10, chapter 5) from a disk, bounded: every number in them is a guest's.
import { crc32 } from 'node:zlib';
import { INSPECT_PARTITIONS_MAX } from '../base/limits.ts';
import type { Look } from './look.ts';

export type Partition = { readonly number: number; readonly offsetBytes: number; readonly sizeBytes: number };

export type PartitionTable = {
  readonly kind: 'gpt' | 'mbr' | 'none';
  readonly partitions: readonly Partition[];
  /** What was wrong with it, in a sentence each. */
  readonly notes: readonly string[];
};

type Disk = Pick<Look, 'read' | 'sizeBytes'>;

const SECTOR = 512;
const SECTOR_SIZES = [512, 4096] as const;
const NONE: PartitionTable = { kind: 'none', partitions: [], notes: [] };

/** The table of a disk; kind `none` where there is none, or none that makes sense. */
export async function readPartitionTable(disk: Disk): Promise<PartitionTable> {
  const first = await disk.read(0, SECTOR);
  const entries = mbrEntries(first);
  if (entries.some(({ type }) => type === 0xee)) return (await readGpt(disk)) ?? NONE;
  if (entries.length === 0) return NONE;
  const within = entries.filter((entry) => fits(entry.start * SECTOR, entry.count * SECTOR, disk.sizeBytes));
  const extended = within.find(({ type }) => EXTENDED.has(type));
  const primary = within.filter(({ type }) => !EXTENDED.has(type)).map(asPartition);
  const notes = within.length < entries.length ? ['a partition of its table does not fit on the disk'] : [];
  if (extended === undefined) return { kind: 'mbr', partitions: primary, notes };
  const logical = await readLogical(disk, extended);
  return { kind: 'mbr', partitions: [...primary, ...logical.partitions], notes: [...notes, ...logical.notes] };
}

function fits(offsetBytes: number, sizeBytes: number, diskBytes: number): boolean {
  return offsetBytes > 0 && sizeBytes > 0 && offsetBytes < diskBytes && Number.isSafeInteger(offsetBytes + sizeBytes);
}

// ---- MBR ----------------------------------------------------------------------------------------------------------

const EXTENDED: ReadonlySet<number> = new Set([0x05, 0x0f, 0x85]);

type MbrEntry = { readonly number: number; readonly type: number; readonly start: number; readonly count: number };

const asPartition = ({ number, start, count }: MbrEntry): Partition => ({
  number,
  offsetBytes: start * SECTOR,
  sizeBytes: count * SECTOR,
});

/** The used entries; none where the sector is no partition table: a boot sector of FAT or NTFS has the same mark. */
function mbrEntries(sector: Buffer): readonly MbrEntry[] {
  if (sector.length < SECTOR || sector.readUInt16LE(510) !== 0xaa55) return [];
  if (/^(NTFS {4}|EXFAT {3}|MSDOS|MSWIN|mkfs)/.test(sector.toString('latin1', 3, 11))) return [];
  const all = [0, 1, 2, 3].map((index) => {
    const at = 446 + 16 * index;
    return {
      flag: sector.readUInt8(at),
      number: index + 1,
      type: sector.readUInt8(at + 4),
      start: sector.readUInt32LE(at + 8),
      count: sector.readUInt32LE(at + 12),
    };
  });
  if (all.some(({ flag }) => (flag & 0x7f) !== 0)) return [];
  return all.filter(({ type, count }) => type !== 0 && count > 0);
}

/** A chain of tables, each with one partition and the way to the next; numbers from 5. */
async function readLogical(disk: Disk, extended: MbrEntry): Promise<Omit<PartitionTable, 'kind'>> {
  const partitions: Partition[] = [];
  const seen = new Set<number>();
  let at = extended.start;
  while (partitions.length < INSPECT_PARTITIONS_MAX) {
    if (seen.has(at)) return { partitions, notes: ['its chain of logical partitions runs in a circle'] };
    seen.add(at);
    const [own, next] = await readLink(disk, at);
    const start = at + (own?.start ?? 0);
    if (own !== undefined && fits(start * SECTOR, own.count * SECTOR, disk.sizeBytes))
      partitions.push({ number: 5 + partitions.length, offsetBytes: start * SECTOR, sizeBytes: own.count * SECTOR });
    if (next === undefined || !fits((extended.start + next.start) * SECTOR, SECTOR, disk.sizeBytes)) break;
    at = extended.start + next.start;
    if (seen.size >= INSPECT_PARTITIONS_MAX)
      return { partitions, notes: ['its chain of logical partitions is endless'] };
  }
  return { partitions, notes: [] };
}

async function readLink(disk: Disk, at: number): Promise<readonly [MbrEntry | undefined, MbrEntry | undefined]> {
  const entries = mbrEntries(await disk.read(at * SECTOR, SECTOR));
  return [entries.find(({ type }) => !EXTENDED.has(type)), entries.find(({ type }) => EXTENDED.has(type))];
}

// ---- GPT ----------------------------------------------------------------------------------------------------------

const ENTRIES_BYTES_MAX = INSPECT_PARTITIONS_MAX * 512;

/** The first table in order: at the disk's beginning, else its copy at the end. Null when there is none. */
async function readGpt(disk: Disk): Promise<PartitionTable | null> {
  for (const sector of SECTOR_SIZES) {
    const own = await readGptAt(disk, sector, 1);
    if (own !== null) return { kind: 'gpt', partitions: own, notes: [] };
    const copy = await readGptAt(disk, sector, Math.floor(disk.sizeBytes / sector) - 1);
    const notes = ['its partition table is damaged; the copy at its end was taken'];
    if (copy !== null) return { kind: 'gpt', partitions: copy, notes };
  }
  return null;
}

async function readGptAt(disk: Disk, sector: number, lba: number): Promise<readonly Partition[] | null> {
  if (lba < 1) return null;
  const header = await disk.read(lba * sector, sector);
  if (header.length < 92 || header.toString('latin1', 0, 8) !== 'EFI PART') return null;
  const headerBytes = header.readUInt32LE(12);
  if (headerBytes < 92 || headerBytes > header.length) return null;
  const bare = Buffer.from(header.subarray(0, headerBytes));
  bare.writeUInt32LE(0, 16);
  if (crc32(bare) !== header.readUInt32LE(16)) return null;
  const [count, entryBytes] = [header.readUInt32LE(80), header.readUInt32LE(84)];
  const at = header.readBigUInt64LE(72) * BigInt(sector);
  if (entryBytes < 128 || entryBytes > 512 || count * entryBytes > ENTRIES_BYTES_MAX || at > BigInt(disk.sizeBytes))
    return null;
  const entries = await disk.read(Number(at), count * entryBytes);
  if (entries.length < count * entryBytes || crc32(entries) !== header.readUInt32LE(88)) return null;
  return Array.from({ length: count }, (_, index) => gptEntry(entries, index * entryBytes, index + 1, sector)).filter(
    (entry) => entry !== null && fits(entry.offsetBytes, entry.sizeBytes, disk.sizeBytes),
  ) as readonly Partition[]; // The cast holds: the filter takes out null.
}

function gptEntry(entries: Buffer, at: number, number: number, sector: number): Partition | null {
  const isUsed = entries.subarray(at, at + 16).some((byte) => byte !== 0);
  if (!isUsed) return null;
  const [first, last] = [entries.readBigUInt64LE(at + 32), entries.readBigUInt64LE(at + 40)];
  if (last < first || last > BigInt(Number.MAX_SAFE_INTEGER) / BigInt(sector)) return null;
  return { number, offsetBytes: Number(first) * sector, sizeBytes: Number(last - first + 1n) * sector };
}
