// Directory records and path tables (ECMA-119, 9.1 and 9.4).
import { assert } from '../../base/errors.ts';
import { putBoth16, putBoth32, putLatin1, putRecordDate, putUtf16be } from './fields.ts';
import type { TreeNode } from './nodes.ts';
import { type SystemUse, writeSystemUse } from './rock-ridge.ts';
import { SECTOR_BYTES } from './types.ts';

/** Even, because records are padded to even length, and at most what the length byte can say. */
export const RECORD_BYTES_MAX = 254;
/** The largest piece of a file that one record can describe: 32 bits, whole sectors so that the next piece follows directly. */
export const SECTION_BYTES_MAX = 0xffff_f800;

const FLAG_FOLDER = 0x02;
const FLAG_MORE_SECTIONS = 0x80;

/** Bytes of a record with an identifier and a system use field of these lengths. */
export function recordBytes(identifierBytes: number, systemUseBytes: number): number {
  const named = 33 + identifierBytes;
  return named + (named % 2) + systemUseBytes + (systemUseBytes % 2);
}

/** Records that a file of this size needs in its folder: one for every 4 GiB (ECMA-119, 6.5.1). */
export function sectionsOf(sizeBytes: number): number {
  return Math.max(1, Math.ceil(sizeBytes / SECTION_BYTES_MAX));
}

/** Where a record goes that would start at `offset`: no record crosses a sector's end (ECMA-119, 6.8.1.1). */
export function placeRecord(offset: number, lengthBytes: number): number {
  const room = SECTOR_BYTES - (offset % SECTOR_BYTES);
  return lengthBytes <= room ? offset : offset + room;
}

/** How a hierarchy writes its identifiers. */
export type IdentifierEncoding = 'ascii' | 'utf16';

/** `.` and `..`: one byte in either encoding (ECMA-119, 7.6.2). */
export const SELF_IDENTIFIER = '\u0000';
export const PARENT_IDENTIFIER = '\u0001';

/** What ends the identifier of everything that is not a folder (ECMA-119, 7.5.1); it is written, not kept a hundred thousand times. */
const VERSION = ';1';

/** Bytes of a folder's identifier as it is written. */
function folderIdentifierBytes(identifier: string, encoding: IdentifierEncoding): number {
  const isDot = identifier === SELF_IDENTIFIER || identifier === PARENT_IDENTIFIER;
  return encoding === 'utf16' && !isDot ? 2 * identifier.length : identifier.length;
}

/** Bytes of the identifier in a node's record, with the version. */
export function identifierBytes(node: TreeNode, identifier: string, encoding: IdentifierEncoding): number {
  if (node.kind === 'folder') return folderIdentifierBytes(identifier, encoding);
  return identifier.length * (encoding === 'utf16' ? 2 : 1) + versionBytes(encoding);
}

function versionBytes(encoding: IdentifierEncoding): number {
  return encoding === 'utf16' ? 2 * VERSION.length : VERSION.length;
}

function putText(target: Buffer, at: number, text: string, encoding: IdentifierEncoding): void {
  const isDot = text === SELF_IDENTIFIER || text === PARENT_IDENTIFIER;
  if (encoding === 'utf16' && !isDot) putUtf16be(target, at, text);
  else putLatin1(target, at, text);
}

/** How a folder shows a node. */
export type NamedNode = {
  readonly node: TreeNode;
  /** Without the version. */
  readonly identifier: string;
  readonly systemUse: SystemUse;
};

export type RecordContent = {
  readonly named: NamedNode;
  readonly encoding: IdentifierEncoding;
  readonly sector: number;
  readonly lengthBytes: number;
  readonly hasMoreSections: boolean;
  readonly continuationSector: number;
};

/** Writes one record where it has room at or after `offset`; returns its end. */
export function writeRecord(target: Buffer, offset: number, content: RecordContent): number {
  const { encoding } = content;
  const { node, identifier, systemUse } = content.named;
  const nameBytes = identifierBytes(node, identifier, encoding);
  const length = recordBytes(nameBytes, systemUse.lengthBytes);
  assert(length <= RECORD_BYTES_MAX, 'a directory record has at most 254 bytes');
  const at = placeRecord(offset, length);
  target[at] = length;
  putBoth32(target, at + 2, content.sector);
  putBoth32(target, at + 10, content.lengthBytes);
  putRecordDate(target, at + 18, node.mtimeMs);
  target[at + 25] = (node.kind === 'folder' ? FLAG_FOLDER : 0) | (content.hasMoreSections ? FLAG_MORE_SECTIONS : 0);
  putBoth16(target, at + 28, 1);
  target[at + 32] = nameBytes;
  putText(target, at + 33, identifier, encoding);
  if (node.kind !== 'folder') putText(target, at + 33 + nameBytes - versionBytes(encoding), VERSION, encoding);
  const useAt = at + recordBytes(nameBytes, 0);
  if (systemUse.lengthBytes > 0) writeSystemUse(target, useAt, node, systemUse, content.continuationSector);
  return at + length;
}

export type PathTableEntry = {
  readonly identifier: string;
  readonly sector: number;
  readonly parentNumber: number;
};

/** Bytes of a path table with these identifiers. */
export function pathTableBytes(identifiers: Iterable<string>, encoding: IdentifierEncoding): number {
  let total = 0;
  for (const identifier of identifiers) total += pathEntryBytes(folderIdentifierBytes(identifier, encoding));
  return total;
}

function pathEntryBytes(nameBytes: number): number {
  return 8 + nameBytes + (nameBytes % 2);
}

export type PathTable = {
  readonly entries: Iterable<PathTableEntry>;
  readonly encoding: IdentifierEncoding;
  readonly order: 'little' | 'big';
};

/** Writes a path table, once per byte order (ECMA-119, 6.9). */
export function writePathTable(target: Buffer, start: number, { entries, encoding, order }: PathTable): void {
  let at = start;
  for (const { identifier, sector, parentNumber } of entries) {
    if (order === 'little') {
      target.writeUInt32LE(sector, at + 2);
      target.writeUInt16LE(parentNumber, at + 6);
    } else {
      target.writeUInt32BE(sector, at + 2);
      target.writeUInt16BE(parentNumber, at + 6);
    }
    const nameBytes = folderIdentifierBytes(identifier, encoding);
    target[at] = nameBytes;
    putText(target, at + 8, identifier, encoding);
    at += pathEntryBytes(nameBytes);
  }
}
