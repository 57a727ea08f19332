// Directory records and path tables (ECMA-119, 9.1 and 9.4).
import { assert } from '../../base/errors.ts';
import { putBoth16, putBoth32, putRecordDate } from './fields.ts';
import { putContinuation, type SystemUse } from './rock-ridge.ts';
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

export type RecordContent = {
  readonly identifier: Buffer;
  readonly sector: number;
  readonly lengthBytes: number;
  readonly isFolder: boolean;
  readonly hasMoreSections: boolean;
  readonly mtimeMs: number;
  readonly systemUse: SystemUse;
  readonly continuationSector: number;
};

/** Writes one record where it has room at or after `offset`; returns its end. */
export function writeRecord(target: Buffer, offset: number, content: RecordContent): number {
  const { identifier, systemUse } = content;
  const length = recordBytes(identifier.length, systemUse.bytes.length);
  assert(length <= RECORD_BYTES_MAX, 'a directory record has at most 254 bytes');
  const at = placeRecord(offset, length);
  target[at] = length;
  putBoth32(target, at + 2, content.sector);
  putBoth32(target, at + 10, content.lengthBytes);
  putRecordDate(target, at + 18, content.mtimeMs);
  target[at + 25] = (content.isFolder ? FLAG_FOLDER : 0) | (content.hasMoreSections ? FLAG_MORE_SECTIONS : 0);
  putBoth16(target, at + 28, 1);
  target[at + 32] = identifier.length;
  identifier.copy(target, at + 33);
  const useAt = at + recordBytes(identifier.length, 0);
  systemUse.bytes.copy(target, useAt);
  if (systemUse.continuesAt !== null) {
    putContinuation(target, useAt + systemUse.bytes.length, content.continuationSector, systemUse.continuesAt);
  }
  return at + length;
}

export type PathTableEntry = {
  readonly identifier: Buffer;
  readonly sector: number;
  readonly parentNumber: number;
};

/** Bytes of a path table with these identifiers. */
export function pathTableBytes(identifiers: Iterable<Buffer>): number {
  let total = 0;
  for (const identifier of identifiers) total += 8 + identifier.length + (identifier.length % 2);
  return total;
}

/** Writes a path table, once per byte order (ECMA-119, 6.9). */
export function writePathTable(
  target: Buffer,
  start: number,
  entries: Iterable<PathTableEntry>,
  order: 'little' | 'big',
): void {
  let at = start;
  for (const { identifier, sector, parentNumber } of entries) {
    target[at] = identifier.length;
    if (order === 'little') {
      target.writeUInt32LE(sector, at + 2);
      target.writeUInt16LE(parentNumber, at + 6);
    } else {
      target.writeUInt32BE(sector, at + 2);
      target.writeUInt16BE(parentNumber, at + 6);
    }
    identifier.copy(target, at + 8);
    at += 8 + identifier.length + (identifier.length % 2);
  }
}
