// Bundles are tars. Reads one with guards, before anything unpacks it anywhere, and packs a folder into a deterministic one.
import { createReadStream, createWriteStream } from 'node:fs';
import { lstat, readdir, readlink } from 'node:fs/promises';
import { join, posix } from 'node:path';
import { PassThrough, Readable, Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip, createGzip, createZstdCompress, createZstdDecompress } from 'node:zlib';
import { extract, type Header, type Pack, pack } from 'tar-stream';
import { PratiqueError } from '../base/errors.ts';
import { BUNDLE_ENTRIES_MAX, BUNDLE_UNPACKED_BYTES_MAX } from '../base/limits.ts';
import { printable } from '../base/printable.ts';
import type { Compression } from '../model/release.ts';
import { VendorError } from './errors.ts';

export type ArchiveReading = {
  readonly compression: Compression;
  /** Paths inside that must be plain files with an executable bit: the bundle's own `install` and `check`. */
  readonly executables?: readonly string[];
  readonly entriesMax?: number;
  readonly unpackedBytesMax?: number;
  /** Told of each plain file, by its path without `./`, with its bytes. */
  readonly onFile?: (path: string) => { readonly push: (piece: Buffer) => void; readonly end: () => void };
};

export type ArchiveSummary = { readonly entries: number; readonly unpackedBytes: number };

/** What stands at a path of the archive. A folder that only its content implies may still be listed, once, as a folder. */
type Place = 'file' | 'executable' | 'directory' | 'implied-directory' | 'link';

/** Bytes of one path component: what every file system of a guest takes. */
const COMPONENT_BYTES_MAX = 255;
/** Bytes of one path: under Linux' PATH_MAX with room for the prefix. */
const PATH_BYTES_MAX = 2048;

/**
 * Reads a whole bundle and refuses whatever could harm who unpacks it: absolute or climbing paths, links out of the tree,
 * entries below a link, devices, pipes, duplicates, setuid, too many entries or bytes (decompression bombs included).
 * Throws VendorError `vendor-ill/bundle-…` whose message names the entry; nothing is written anywhere.
 */
export async function readArchive(path: string, reading: ArchiveReading): Promise<ArchiveSummary> {
  const places = new Map<string, Place>();
  const bytesMax = reading.unpackedBytesMax ?? BUNDLE_UNPACKED_BYTES_MAX;
  const entriesMax = reading.entriesMax ?? BUNDLE_ENTRIES_MAX;
  const tar = extract();
  let entries = 0;
  let unpackedBytes = 0;
  const consume = async () => {
    for await (const entry of tar) {
      entries += 1;
      if (entries > entriesMax) throw refuse('too-large', `it has more than ${entriesMax} entries`);
      place(places, entry.header);
      const isFile = entry.header.type === 'file' || entry.header.type === 'contiguous-file';
      const reader = isFile ? reading.onFile?.(normalPath(entry.header.name, false)) : undefined;
      for await (const piece of entry) {
        // The cast holds: tar-stream hands out the Buffers it was fed.
        unpackedBytes += (piece as Buffer).length;
        reader?.push(piece as Buffer);
      }
      reader?.end();
    }
  };
  try {
    const feed = pipeline(createReadStream(path), decompressor(reading.compression), byteLimit(bytesMax), tar);
    await Promise.all([feed, consume()]);
  } catch (cause) {
    if (cause instanceof PratiqueError) throw cause;
    throw damage(cause, reading.compression);
  }
  for (const executable of reading.executables ?? []) requireExecutable(places, executable);
  return { entries, unpackedBytes };
}

function refuse(detail: string, message: string): VendorError {
  return new VendorError(`vendor-ill/bundle-${detail}`, `the bundle is refused: ${message}`, {
    next: 'tell the vendor; nothing was unpacked',
  });
}

function damage(cause: unknown, compression: Compression): PratiqueError {
  const code = cause instanceof Error && 'code' in cause ? String(cause.code) : '';
  if (/^E[A-Z]+$/.test(code)) return new VendorError('host-fault/file', 'reading a stored bundle', { cause });
  const form = compression === 'none' ? 'a tar' : `a tar compressed with ${compression}`;
  return new VendorError('vendor-ill/bundle-damaged', `the bundle is not ${form}, or a damaged one`, { cause });
}

function decompressor(compression: Compression): Transform {
  switch (compression) {
    case 'none':
      return new PassThrough();
    case 'gzip':
      return createGunzip();
    case 'zstd':
      return createZstdDecompress();
    default:
      return compression satisfies never;
  }
}

/** Counts what comes out of the decompressor, so a bomb ends here and not in memory or on a disk. */
function byteLimit(bytesMax: number): Transform {
  let total = 0;
  return new Transform({
    transform: (piece: Buffer, _encoding, done) => {
      total += piece.length;
      if (total > bytesMax) done(refuse('too-large', `it unpacks to more than ${bytesMax} bytes`));
      else done(null, piece);
    },
  });
}

/** Checks one entry against all before it and notes its place. */
function place(places: Map<string, Place>, header: Header): void {
  const isDirectory = header.type === 'directory';
  const path = normalPath(header.name, isDirectory);
  if (path === '') return; // "./": the folder itself, as `tar -C folder -c .` writes it.
  const name = printable(header.name);
  if (((header.mode ?? 0) & 0o6000) !== 0) throw refuse('entry', `"${name}" is setuid or setgid`);
  const before = places.get(path);
  if (before !== undefined && !(before === 'implied-directory' && isDirectory)) {
    throw refuse('duplicate', `"${name}" stands in it twice`);
  }
  placeParents(places, path, name);
  places.set(path, placeOf(places, path, header));
}

function placeParents(places: Map<string, Place>, path: string, name: string): void {
  for (let parent = posix.dirname(path); parent !== '.'; parent = posix.dirname(parent)) {
    const known = places.get(parent);
    if (known === 'directory' || known === 'implied-directory') return;
    // Through a link an entry would land somewhere else than its path says.
    if (known !== undefined) throw refuse('path', `"${name}" lies below something that is not a folder`);
    places.set(parent, 'implied-directory');
  }
}

function placeOf(places: ReadonlyMap<string, Place>, path: string, header: Header): Place {
  const name = printable(header.name);
  const size = header.size ?? 0;
  switch (header.type) {
    case 'directory':
      return 'directory';
    case 'file':
    case 'contiguous-file':
      return ((header.mode ?? 0) & 0o111) === 0 ? 'file' : 'executable';
    case 'symlink':
      if (size !== 0 || !staysInside(path, header.linkname ?? '')) throw refuse('link', `"${name}" links out of it`);
      return 'link';
    case 'link':
      return hardLinkPlace(places, header, name);
    default:
      throw refuse('entry', `"${name}" is a ${printable(header.type ?? 'thing of unknown kind')}`);
  }
}

/** A hard link must name an earlier plain file of the same archive; it is then that file. */
function hardLinkPlace(places: ReadonlyMap<string, Place>, header: Header, name: string): Place {
  const target = places.get(normalPath(header.linkname ?? '', false));
  const isFile = target === 'file' || target === 'executable';
  if (!isFile || (header.size ?? 0) !== 0) throw refuse('link', `"${name}" links to what is no earlier file of it`);
  return target;
}

/**
 * Whether a symbolic link's target stays in the tree. `..` may only lead it: the entry's own parents are real folders
 * (placeParents), but after a component that is itself a link, `..` would climb from wherever that link leads.
 */
function staysInside(path: string, target: string): boolean {
  if (!isCleanText(target) || target.startsWith('/')) return false;
  const parts = target.split('/').filter((part) => part !== '' && part !== '.');
  const climbs = parts.findIndex((part) => part !== '..');
  const leading = climbs === -1 ? parts.length : climbs;
  if (parts.slice(leading).includes('..')) return false;
  return leading <= path.split('/').length - 1;
}

/** The path without `./` before and `/` behind. Throws for every path that is not plainly inside. */
function normalPath(raw: string, isDirectory: boolean): string {
  const inner = raw.startsWith('./') ? raw.slice(2) : raw;
  const path = isDirectory && inner.endsWith('/') ? inner.slice(0, -1) : inner;
  if (isDirectory && (path === '' || path === '.')) return '';
  const components = path.split('/');
  const isPlain =
    isCleanText(path) &&
    components.every((part) => part !== '' && part !== '.' && part !== '..') &&
    components.every((part) => Buffer.byteLength(part) <= COMPONENT_BYTES_MAX);
  if (!isPlain) throw refuse('path', `the path "${printable(raw)}" is not allowed`);
  return path;
}

/** Valid UTF-8 (no replacement character), no control characters, no backslash, not too long. */
function isCleanText(path: string): boolean {
  return path !== '' && !/[\p{Cc}\\\u{FFFD}]/u.test(path) && Buffer.byteLength(path) <= PATH_BYTES_MAX;
}

function requireExecutable(places: ReadonlyMap<string, Place>, path: string): void {
  const found = places.get(path);
  if (found === 'executable') return;
  const problem = found === undefined ? 'is not in it' : 'is not an executable file';
  throw refuse('incomplete', `its entry "${printable(path)}" ${problem}`);
}

/**
 * Packs a folder's content so that equal content gives equal bytes: entries sorted, times and owners zero, modes 0755 or
 * 0644 by the owner's executable bit. Writes the tar to `target`. Throws VendorError `usage/bundle` for what a bundle may
 * not hold. The result is read again with the guards of `readArchive` before it counts.
 */
export async function packBundle(folder: string, target: string, reading: ArchiveReading): Promise<ArchiveSummary> {
  const tar = pack();
  const feed = async () => {
    await packFolder(tar, folder, '');
    tar.finalize();
  };
  // tar-stream's Pack is a streamx stream: async iteration is the bridge to Node's own streams.
  const written = pipeline(Readable.from(tar), compressor(reading.compression), createWriteStream(target));
  await Promise.all([
    feed().catch((error: unknown) => {
      tar.destroy(error instanceof Error ? error : new Error(String(error)));
      throw error;
    }),
    written,
  ]);
  return await readArchive(target, reading);
}

function compressor(compression: Compression): Transform {
  switch (compression) {
    case 'none':
      return new PassThrough();
    case 'gzip':
      return createGzip({ level: 9 });
    case 'zstd':
      return createZstdCompress();
    default:
      return compression satisfies never;
  }
}

async function packFolder(tar: Pack, root: string, inside: string): Promise<void> {
  const names = (await readdir(join(root, inside))).sort((a, b) => (a < b ? -1 : 1));
  for (const name of names) {
    const path = inside === '' ? name : `${inside}/${name}`;
    const source = join(root, path);
    const stats = await lstat(source);
    const common = { name: path, mtime: new Date(0), uid: 0, gid: 0, uname: '', gname: '' };
    if (stats.isDirectory()) {
      await packEntry(tar, { ...common, name: `${path}/`, type: 'directory', mode: 0o755 });
      await packFolder(tar, root, path);
    } else if (stats.isSymbolicLink()) {
      await packEntry(tar, { ...common, type: 'symlink', linkname: await readlink(source), mode: 0o777 });
    } else if (stats.isFile()) {
      const mode = (stats.mode & 0o100) === 0 ? 0o644 : 0o755;
      const entry = tar.entry({ ...common, type: 'file', size: stats.size, mode });
      await pipeline(createReadStream(source), entry);
    } else {
      throw new VendorError('usage/bundle', `${printable(source)} is neither a file, a folder nor a link`);
    }
  }
}

async function packEntry(tar: Pack, headers: Partial<Header> & Pick<Header, 'name'>): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    tar.entry(headers, (error) => {
      if (error == null) resolve();
      else reject(error);
    });
  });
}
