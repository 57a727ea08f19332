// Rock Ridge (RRIP 1.10 on SUSP): POSIX names, modes, times and symlinks in the spare bytes of directory records.
import { assert } from '../../base/errors.ts';
import { putBoth32, putLatin1, putRecordDate } from './fields.ts';
import type { FolderNode, TreeNode } from './nodes.ts';
import { SECTOR_BYTES, sectorsOf } from './types.ts';

/**
 * The system use field of one record. Most are written straight into the image when their record is; only the length
 * is known before, so that a hundred thousand of them cost no memory.
 */
export type SystemUse = {
  readonly lengthBytes: number;
  /** Ready bytes of a field that had to be split or is special; null: made from the node. */
  readonly ready: Buffer | null;
  /** Where the continuation begins in the continuation area; the last 28 ready bytes are then a CE entry to be filled in. Null: none. */
  readonly continuesAt: number | null;
};

/** The field of records without Rock Ridge. */
export const NO_SYSTEM_USE: SystemUse = { lengthBytes: 0, ready: Buffer.alloc(0), continuesAt: null };

/** The entries that did not fit into their records, each within one sector as Linux demands. */
export type ContinuationArea = {
  readonly add: (bytes: Buffer) => number;
  readonly sectors: () => number;
  readonly write: (target: Buffer, offset: number) => void;
};

const ENTRY_BYTES_MAX = 255;
const PX_BYTES = 36;
const TF_BYTES = 12;
const NM_HEAD_BYTES = 5;
const CE_BYTES = 28;

/** The field of `.` and `..`: mode and time. */
const ATTRIBUTES_ONLY: SystemUse = { lengthBytes: PX_BYTES + TF_BYTES, ready: null, continuesAt: null };

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

/** The field of `.` or `..` of a folder; the root's own `.` says which extensions the image has. */
export function planAttributes(
  node: FolderNode,
  isRootSelf: boolean,
  roomBytes: number,
  area: ContinuationArea,
): SystemUse {
  if (!isRootSelf) return ATTRIBUTES_ONLY;
  const attributes = Buffer.alloc(PX_BYTES + TF_BYTES);
  putAttributes(attributes, 0, node);
  const { first, last } = rootEntries();
  return packEntries([first, attributes, last], roomBytes, area);
}

/** One object for all fields of a length: there are at most 255. */
const plainUses: SystemUse[] = [];

function plainUse(lengthBytes: number): SystemUse {
  const known = plainUses[lengthBytes];
  if (known !== undefined) return known;
  const made: SystemUse = { lengthBytes, ready: null, continuesAt: null };
  plainUses[lengthBytes] = made;
  return made;
}

/** The field of a child's record: mode, time, name, symlink target. */
export function planChild(node: TreeNode, roomBytes: number, area: ContinuationArea): SystemUse {
  const lengthBytes = PX_BYTES + TF_BYTES + NM_HEAD_BYTES + Buffer.byteLength(node.name);
  if (node.kind !== 'symlink' && lengthBytes <= roomBytes) return plainUse(lengthBytes);
  const attributes = Buffer.alloc(PX_BYTES + TF_BYTES);
  putAttributes(attributes, 0, node);
  const target = node.kind === 'symlink' ? linkEntries(node.target) : [];
  return packEntries([attributes, ...nameEntries(node.name), ...target], roomBytes, area);
}

/** Writes a field; its CE entry, if it has one, then points into the area that starts at `areaSector` (SUSP 5.1). */
export function writeSystemUse(target: Buffer, at: number, node: TreeNode, use: SystemUse, areaSector: number): void {
  if (use.ready === null) {
    putAttributes(target, at, node);
    if (use !== ATTRIBUTES_ONLY) {
      putShortName(target, at + PX_BYTES + TF_BYTES, node.name, use.lengthBytes - PX_BYTES - TF_BYTES);
    }
    return;
  }
  use.ready.copy(target, at);
  if (use.continuesAt === null) return;
  const pointer = at + use.lengthBytes - CE_BYTES;
  putBoth32(target, pointer + 4, areaSector + Math.floor(use.continuesAt / SECTOR_BYTES));
  putBoth32(target, pointer + 12, use.continuesAt % SECTOR_BYTES);
}

/** Packs entries into a field of at most `roomBytes`, the rest into the continuation area. */
function packEntries(entries: readonly Buffer[], roomBytes: number, area: ContinuationArea): SystemUse {
  const total = entries.reduce((sum, entry) => sum + entry.length, 0);
  if (total <= roomBytes) return { lengthBytes: total, ready: Buffer.concat(entries, total), continuesAt: null };
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
  const ready = Buffer.concat([...entries.slice(0, kept), pointer]);
  return { lengthBytes: ready.length, ready, continuesAt: area.add(rest) };
}

/** SP says that system use fields follow (SUSP 5.3), ER which ones (SUSP 5.5, RRIP 4.3); on the root's `.` only. */
function rootEntries(): { readonly first: Buffer; readonly last: Buffer } {
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

function putHead(target: Buffer, at: number, signature: string, lengthBytes: number): void {
  assert(lengthBytes <= ENTRY_BYTES_MAX, 'a system use entry has at most 255 bytes');
  target[at] = signature.charCodeAt(0);
  target[at + 1] = signature.charCodeAt(1);
  target[at + 2] = lengthBytes;
  target[at + 3] = 1;
}

function startEntry(signature: string, lengthBytes: number): Buffer {
  const entry = Buffer.alloc(lengthBytes);
  putHead(entry, 0, signature, lengthBytes);
  return entry;
}

const FILE_TYPE = { folder: 0o040000, file: 0o100000, symlink: 0o120000 } as const;

/** PX with mode, links and owner 0:0 (RRIP 4.1.1), then TF with the time of the last change only (RRIP 4.1.6). */
function putAttributes(target: Buffer, at: number, node: TreeNode): void {
  putHead(target, at, 'PX', PX_BYTES);
  putBoth32(target, at + 4, FILE_TYPE[node.kind] | node.mode);
  putBoth32(target, at + 12, node.kind === 'folder' ? 2 + node.subfolders : 1);
  putHead(target, at + PX_BYTES, 'TF', TF_BYTES);
  target[at + PX_BYTES + 4] = 0x02;
  putRecordDate(target, at + PX_BYTES + 5, node.mtimeMs);
}

/** NM of a name that fits one entry (RRIP 4.1.4). */
function putShortName(target: Buffer, at: number, name: string, lengthBytes: number): void {
  putHead(target, at, 'NM', lengthBytes);
  // As many bytes as characters: ASCII, which takes a third of the time this way.
  if (lengthBytes === NM_HEAD_BYTES + name.length) putLatin1(target, at + NM_HEAD_BYTES, name);
  else target.write(name, at + NM_HEAD_BYTES, 'utf8');
}

/** NM, in two entries when the name is over 250 bytes (RRIP 4.1.4). */
function nameEntries(name: string): Buffer[] {
  const bytes = Buffer.from(name, 'utf8');
  const pieceMax = ENTRY_BYTES_MAX - NM_HEAD_BYTES;
  const entries: Buffer[] = [];
  for (let start = 0; start < bytes.length; start += pieceMax) {
    const piece = bytes.subarray(start, start + pieceMax);
    const entry = startEntry('NM', NM_HEAD_BYTES + piece.length);
    entry[4] = start + pieceMax < bytes.length ? 0x01 : 0;
    piece.copy(entry, NM_HEAD_BYTES);
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
