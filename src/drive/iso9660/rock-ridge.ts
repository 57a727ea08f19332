// Rock Ridge (RRIP 1.10 on SUSP): POSIX names, modes, times and symlinks in the spare bytes of directory records.
import { assert } from '../../base/errors.ts';
import { putBoth32, putRecordDate } from './fields.ts';
import type { TreeNode } from './tree.ts';
import { SECTOR_BYTES, sectorsOf } from './types.ts';

/** The system use field of one record. */
export type SystemUse = {
  readonly bytes: Buffer;
  /** Where its continuation begins in the continuation area; the last 28 bytes are then a CE entry to be filled in. Null: none. */
  readonly continuesAt: number | null;
};

export const NO_SYSTEM_USE: SystemUse = { bytes: Buffer.alloc(0), continuesAt: null };

/** The entries that did not fit into their records, each within one sector as Linux demands. */
export type ContinuationArea = {
  readonly add: (bytes: Buffer) => number;
  readonly sectors: () => number;
  readonly write: (target: Buffer, offset: number) => void;
};

const ENTRY_BYTES_MAX = 255;
const CE_BYTES = 28;

/** An empty continuation area. */
export function makeContinuationArea(): ContinuationArea {
  const pieces: { readonly at: number; readonly bytes: Buffer }[] = [];
  let end = 0;
  return {
    add: (bytes) => {
      assert(bytes.length <= SECTOR_BYTES, 'a continuation fits into one sector');
      const room = SECTOR_BYTES - (end % SECTOR_BYTES);
      const at = bytes.length <= room ? end : end + room;
      pieces.push({ at, bytes });
      end = at + bytes.length;
      return at;
    },
    sectors: () => sectorsOf(end),
    write: (target, offset) => {
      for (const piece of pieces) piece.bytes.copy(target, offset + piece.at);
    },
  };
}

/** Packs entries into a system use field of at most `roomBytes`, the rest into the continuation area. */
export function packEntries(entries: readonly Buffer[], roomBytes: number, area: ContinuationArea): SystemUse {
  const total = entries.reduce((sum, entry) => sum + entry.length, 0);
  if (total <= roomBytes) return { bytes: Buffer.concat(entries, total), continuesAt: null };
  let kept = 0;
  let keptBytes = 0;
  for (const entry of entries) {
    if (keptBytes + entry.length + CE_BYTES > roomBytes) break;
    kept += 1;
    keptBytes += entry.length;
  }
  const rest = Buffer.concat(entries.slice(kept));
  const pointer = startEntry('CE', CE_BYTES);
  putBoth32(pointer, 20, rest.length);
  return { bytes: Buffer.concat([...entries.slice(0, kept), pointer]), continuesAt: area.add(rest) };
}

/** Fills in the CE entry of a written system use field that ends at `end` (SUSP 5.1). */
export function putContinuation(target: Buffer, end: number, areaSector: number, continuesAt: number): void {
  putBoth32(target, end - CE_BYTES + 4, areaSector + Math.floor(continuesAt / SECTOR_BYTES));
  putBoth32(target, end - CE_BYTES + 12, continuesAt % SECTOR_BYTES);
}

/** Mode and time of a node: what `.` and `..` carry too. */
export function attributeEntries(node: TreeNode, subfolders: number): Buffer[] {
  return [posixEntry(node, subfolders), timeEntry(node.mtimeMs)];
}

/** All entries of a child's record. */
export function childEntries(node: TreeNode, subfolders: number): Buffer[] {
  const entries = attributeEntries(node, subfolders);
  entries.push(...nameEntries(node.name));
  if (node.kind === 'symlink') entries.push(...linkEntries(node.target));
  return entries;
}

/** SP says that system use fields follow (SUSP 5.3), ER which ones (SUSP 5.5, RRIP 4.3); on the root's `.` only. */
export function rootEntries(): { readonly first: Buffer; readonly last: Buffer } {
  const first = startEntry('SP', 7);
  first[4] = 0xbe;
  first[5] = 0xef;
  const id = 'RRIP_1991A';
  const description = 'THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS';
  const source =
    'PLEASE CONTACT DISC PUBLISHER FOR SPECIFICATION SOURCE.  SEE PUBLISHER IDENTIFIER IN PRIMARY VOLUME DESCRIPTOR FOR CONTACT INFORMATION.';
  const last = startEntry('ER', 8 + id.length + description.length + source.length);
  last[4] = id.length;
  last[5] = description.length;
  last[6] = source.length;
  last[7] = 1;
  last.write(id + description + source, 8, 'latin1');
  return { first, last };
}

function startEntry(signature: string, lengthBytes: number): Buffer {
  assert(lengthBytes <= ENTRY_BYTES_MAX, 'a system use entry has at most 255 bytes');
  const entry = Buffer.alloc(lengthBytes);
  entry.write(signature, 0, 'latin1');
  entry[2] = lengthBytes;
  entry[3] = 1;
  return entry;
}

const FILE_TYPE = { folder: 0o040000, file: 0o100000, symlink: 0o120000 } as const;

/** PX: mode, links, owner 0:0 (RRIP 4.1.1). */
function posixEntry(node: TreeNode, subfolders: number): Buffer {
  const entry = startEntry('PX', 36);
  putBoth32(entry, 4, FILE_TYPE[node.kind] | node.mode);
  putBoth32(entry, 12, node.kind === 'folder' ? 2 + subfolders : 1);
  return entry;
}

/** TF with the time of the last change only (RRIP 4.1.6). */
function timeEntry(mtimeMs: number): Buffer {
  const entry = startEntry('TF', 12);
  entry[4] = 0x02;
  putRecordDate(entry, 5, mtimeMs);
  return entry;
}

/** NM, in two entries when the name is over 250 bytes (RRIP 4.1.4). */
function nameEntries(name: string): Buffer[] {
  const bytes = Buffer.from(name, 'utf8');
  const pieceMax = ENTRY_BYTES_MAX - 5;
  const entries: Buffer[] = [];
  for (let start = 0; start < bytes.length; start += pieceMax) {
    const piece = bytes.subarray(start, start + pieceMax);
    const entry = startEntry('NM', 5 + piece.length);
    entry[4] = start + pieceMax < bytes.length ? 0x01 : 0;
    piece.copy(entry, 5);
    entries.push(entry);
  }
  return entries;
}

/** SL: the target's components, over as many entries as they need (RRIP 4.1.3). */
function linkEntries(target: string): Buffer[] {
  const roomMax = ENTRY_BYTES_MAX - 5;
  const groups: Buffer[][] = [[]];
  let used = 0;
  for (const record of target.split('/').flatMap(componentRecords)) {
    if (used + record.length > roomMax) {
      groups.push([]);
      used = 0;
    }
    groups.at(-1)?.push(record);
    used += record.length;
  }
  return groups.map((group, index) => {
    const content = Buffer.concat(group);
    const entry = startEntry('SL', 5 + content.length);
    entry[4] = index < groups.length - 1 ? 0x01 : 0;
    content.copy(entry, 5);
    return entry;
  });
}

function componentRecords(component: string): Buffer[] {
  if (component === '.') return [Buffer.from([0x02, 0])];
  if (component === '..') return [Buffer.from([0x04, 0])];
  const bytes = Buffer.from(component, 'utf8');
  const pieceMax = ENTRY_BYTES_MAX - 5 - 2;
  const records: Buffer[] = [];
  for (let start = 0; start < bytes.length; start += pieceMax) {
    const piece = bytes.subarray(start, start + pieceMax);
    const hasMore = start + pieceMax < bytes.length;
    records.push(Buffer.concat([Buffer.from([hasMore ? 0x01 : 0, piece.length]), piece]));
  }
  return records;
}
