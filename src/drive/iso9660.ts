// ISO 9660 as a library: a list of files becomes metadata and an extent map; the bytes of the files are never touched.
//
//   entries ─► tree ─► hierarchies (Rock Ridge, Joliet) ─► layout ─► metadata, extents, totalSectors
//
// The image is the metadata, then the blobs in the order of the extents, each padded to a sector of 2,048 bytes.
// Equal entries give equal bytes in whatever order they come; no time is read.
import { DriveError } from './drive-error.ts';
import { layImage } from './iso9660/layout.ts';
import { isRecordTime, makeTree } from './iso9660/tree.ts';
import type { IsoEntry, IsoImage, IsoOptions } from './iso9660/types.ts';

export type { BlobSource, InlineSource, IsoEntry, IsoExtent, IsoImage, IsoOptions } from './iso9660/types.ts';
export { SECTOR_BYTES, sectorsOf } from './iso9660/types.ts';

/** What both volume descriptors can carry: 16 characters in Joliet, d-characters in ISO 9660 (ECMA-119, 7.4.1). */
const LABEL = /^[A-Z0-9_]{1,16}$/;

/**
 * The metadata and extent map of an image with these entries, in time and memory linear in their number.
 *
 * Rock Ridge carries every name of up to 253 bytes of UTF-8 (Linux cuts longer ones), modes, times and symlinks.
 * Joliet carries the same names except symlinks, which it does not know; a name it cannot carry (over 103 UTF-16
 * units, one of `*:;?\` or a control character, a dot at the end) is an error unless `joliet` is false. Folders may be
 * deeper than the eight levels of the bare standard: every reader of Rock Ridge or Joliet follows them. Throws
 * DriveError `usage/drive-…`.
 */
export function buildIso(entries: readonly IsoEntry[], options: IsoOptions = {}): IsoImage {
  const label = options.label ?? 'PRATIQUE';
  if (!LABEL.test(label)) {
    throw new DriveError('usage/drive-label', 'a volume label must be 1 to 16 of the characters A-Z, 0-9 and _');
  }
  const createdAtMs = options.createdAtMs ?? 0;
  if (!isRecordTime(createdAtMs)) {
    throw new DriveError(
      'usage/drive-time',
      `a volume cannot be created at ${createdAtMs} ms: not between the years 1970 and 2155`,
    );
  }
  return layImage(makeTree(entries), { label, joliet: options.joliet ?? true, createdAtMs });
}
