// Reads a tar as a stream (POSIX.1-2001 pax and GNU long names) and refuses whatever could reach outside of its folder.
import {
  BUNDLE_ENTRIES_MAX,
  BUNDLE_UNPACKED_BYTES_MAX,
  NAME_CHARS_MAX,
  TAR_EXTENSION_BYTES_MAX,
} from '../src/base/limits.ts';
import { printable } from '../src/base/printable.ts';
import { AgentError, type OpenFile } from './platform/platform.ts';

export type TarEntry =
  | { readonly kind: 'file'; readonly path: string; readonly mode: number; readonly sizeBytes: number }
  | { readonly kind: 'folder'; readonly path: string; readonly mode: number }
  /** `target` is relative and stays inside. */
  | { readonly kind: 'symlink'; readonly path: string; readonly target: string }
  /** `target` is the path of a file that came before. */
  | { readonly kind: 'hardlink'; readonly path: string; readonly target: string };

type Bytes = Uint8Array<ArrayBuffer>;

const BLOCK = 512;
const BUFFER_BYTES = 128 * BLOCK;
const PATH_CHARS_MAX = 1024;

function bad(what: string): AgentError {
  return new AgentError('bad-bundle', `the bundle is refused: ${printable(what)}`);
}

type Header = {
  readonly type: string;
  readonly name: string;
  readonly target: string;
  readonly mode: number;
  readonly sizeBytes: number;
};
type Extension = { path?: string; linkpath?: string; size?: number };

/** Entries of a tar, one after the other. Throws AgentError `bad-bundle`. */
export class TarReader {
  readonly #file: OpenFile;
  readonly #decode: (bytes: Bytes) => string;
  readonly #buffer = new Uint8Array(BUFFER_BYTES);
  #start = 0;
  #end = 0;
  /** Bytes of the present entry's content not read yet, and of the padding after it. */
  #contentBytes = 0;
  #paddingBytes = 0;
  readonly #kinds = new Map<string, TarEntry['kind']>();
  #unpackedBytes = 0;

  constructor(file: OpenFile, decode: (bytes: Bytes) => string) {
    this.#file = file;
    this.#decode = decode;
  }

  /** The next entry, or null at the end. What is left of the present one's content is skipped. */
  next(): TarEntry | null {
    for (;;) {
      const entry = this.#readEntry();
      if (entry !== 'root') return entry;
    }
  }

  /** `root`: `./`, the bundle's own folder. */
  #readEntry(): TarEntry | 'root' | null {
    const extension: Extension = {};
    for (let extensions = 0; extensions < 8; extensions += 1) {
      this.#skipContent();
      const header = this.#readHeader();
      if (header === null) return null;
      this.#contentBytes = header.sizeBytes;
      this.#paddingBytes = paddingOf(header.sizeBytes);
      if (this.#isExtension(header, extension)) continue;
      return this.#guard(header, extension);
    }
    throw bad('an entry has too many extended headers');
  }

  /** The next piece of the present entry's content, valid until the next call; null at its end. */
  readContent(): Bytes | null {
    if (this.#contentBytes === 0) return null;
    if (this.#start === this.#end) this.#fill();
    const size = Math.min(this.#contentBytes, this.#end - this.#start);
    const piece = this.#buffer.subarray(this.#start, this.#start + size);
    this.#start += size;
    this.#contentBytes -= size;
    return piece;
  }

  /** Reads on; throws at the end of the file. */
  #fill(): void {
    const count = this.#file.read(this.#buffer);
    if (count === 0) throw bad('it ends in the middle of an entry');
    this.#start = 0;
    this.#end = count;
  }

  #skipContent(): void {
    while (this.readContent() !== null);
    this.#contentBytes = this.#paddingBytes;
    this.#paddingBytes = 0;
    while (this.readContent() !== null);
  }

  /** One header, or null at the end mark or at the end of the file. */
  #readHeader(): Header | null {
    if (this.#start === this.#end) {
      const count = this.#file.read(this.#buffer);
      if (count === 0) return null;
      this.#start = 0;
      this.#end = count;
    }
    const block = new Uint8Array(BLOCK);
    let filled = 0;
    this.#contentBytes = BLOCK;
    for (let piece = this.readContent(); piece !== null; piece = this.readContent()) {
      block.set(piece, filled);
      filled += piece.length;
    }
    if (block.every((byte) => byte === 0)) return null;
    return this.#parseHeader(block);
  }

  #parseHeader(block: Bytes): Header {
    let sum = 0;
    for (let index = 0; index < BLOCK; index += 1) sum += index >= 148 && index < 156 ? 32 : (block[index] ?? 0);
    if (sum !== numberOf(block.subarray(148, 156))) throw bad('a header has a wrong checksum');
    const isPosix = this.#text(block.subarray(257, 263)) === 'ustar';
    const folder = isPosix ? this.#text(block.subarray(345, 500)) : '';
    const name = this.#text(block.subarray(0, 100));
    return {
      type: String.fromCharCode(block[156] ?? 0),
      name: folder === '' ? name : `${folder}/${name}`,
      target: this.#text(block.subarray(157, 257)),
      mode: numberOf(block.subarray(100, 108)) & 0o777,
      sizeBytes: numberOf(block.subarray(124, 136)),
    };
  }

  #text(bytes: Bytes): string {
    const end = bytes.indexOf(0);
    return this.#decode(end < 0 ? bytes : bytes.subarray(0, end));
  }

  /** Takes in an extended header; false if the header is an entry of its own. */
  #isExtension(header: Header, extension: Extension): boolean {
    switch (header.type) {
      case 'L':
        extension.path = this.#text(this.#readExtension());
        return true;
      case 'K':
        extension.linkpath = this.#text(this.#readExtension());
        return true;
      case 'x':
        readPax(this.#readExtension(), this.#decode, extension);
        return true;
      case 'g':
        return true; // Comments and times of the whole archive: nothing that concerns us.
      default:
        return false;
    }
  }

  #readExtension(): Bytes {
    if (this.#contentBytes > TAR_EXTENSION_BYTES_MAX) throw bad('an extended header is too long');
    const bytes = new Uint8Array(this.#contentBytes);
    let filled = 0;
    for (let piece = this.readContent(); piece !== null; piece = this.readContent()) {
      bytes.set(piece, filled);
      filled += piece.length;
    }
    return bytes;
  }

  #guard(header: Header, extension: Extension): TarEntry | 'root' {
    const path = checkPath(extension.path ?? header.name);
    const kind = kindOf(header.type, extension.path ?? header.name);
    if (kind === null) throw bad(`${path} is a device, pipe or something else that a bundle may not hold`);
    const sizeBytes = extension.size ?? header.sizeBytes;
    if (kind === 'file') {
      this.#contentBytes = sizeBytes;
      this.#paddingBytes = paddingOf(sizeBytes);
      this.#unpackedBytes += sizeBytes;
    }
    if (this.#unpackedBytes > BUNDLE_UNPACKED_BYTES_MAX)
      throw bad(`it unpacks to over ${BUNDLE_UNPACKED_BYTES_MAX} bytes`);
    if (path === '') {
      if (kind !== 'folder') throw bad('an entry has no name');
      return 'root';
    }
    this.#register(path, kind);
    const { mode } = header;
    const target = extension.linkpath ?? header.target;
    if (kind === 'file') return { kind, path, mode, sizeBytes };
    if (kind === 'folder') return { kind, path, mode };
    if (kind === 'symlink') return { kind, path, target: checkTarget(path, target) };
    const first = checkPath(target);
    if (this.#kinds.get(first) !== 'file')
      throw bad(`${path} is a hard link to ${first}, which is no file of the bundle`);
    return { kind, path, target: first };
  }

  /** Refuses duplicates and anything that lies below something else than a folder. */
  #register(path: string, kind: TarEntry['kind']): void {
    const known = this.#kinds.get(path);
    if (known !== undefined && !(known === 'folder' && kind === 'folder')) throw bad(`${path} comes twice`);
    for (let end = path.indexOf('/'); end >= 0; end = path.indexOf('/', end + 1)) {
      const above = path.slice(0, end);
      const kindAbove = this.#kinds.get(above);
      if (kindAbove === undefined) this.#kinds.set(above, 'folder');
      else if (kindAbove !== 'folder') throw bad(`${path} lies below ${above}, which is no folder`);
    }
    this.#kinds.set(path, kind);
    if (this.#kinds.size > BUNDLE_ENTRIES_MAX) throw bad(`it has over ${BUNDLE_ENTRIES_MAX} entries`);
  }
}

function paddingOf(sizeBytes: number): number {
  return (BLOCK - (sizeBytes % BLOCK)) % BLOCK;
}

/** A number in octal digits, or in base 256 if the first bit is set (GNU). */
function numberOf(bytes: Bytes): number {
  const first = bytes[0] ?? 0;
  if (first === 0x80) {
    const value = bytes.subarray(1).reduce((sum, byte) => sum * 256 + byte, 0);
    if (!Number.isSafeInteger(value)) throw bad('a header has an impossible number');
    return value;
  }
  const text = String.fromCharCode(...bytes)
    .replace(/[\0 ]+$/, '')
    .trimStart();
  if (text === '') return 0;
  if (!/^[0-7]+$/.test(text)) throw bad('a header has a number that is none');
  return Number.parseInt(text, 8);
}

function kindOf(type: string, name: string): TarEntry['kind'] | null {
  if (type === '5') return 'folder';
  if (type === '2') return 'symlink';
  if (type === '1') return 'hardlink';
  if (type !== '0' && type !== '\0' && type !== '7') return null;
  return name.endsWith('/') ? 'folder' : 'file'; // Old tars mark a folder by its slash only.
}

/** pax records: `<length in bytes> <key>=<value>\n`. */
function readPax(bytes: Bytes, decode: (bytes: Bytes) => string, extension: Extension): void {
  for (let start = 0; start < bytes.length; ) {
    const space = bytes.indexOf(32, start);
    const length = space < 0 ? Number.NaN : Number(decode(bytes.subarray(start, space)));
    const end = start + length;
    if (!Number.isInteger(length) || end > bytes.length || end <= space + 1 || bytes[end - 1] !== 10) {
      throw bad('an extended header is malformed');
    }
    const record = decode(bytes.subarray(space + 1, end - 1));
    const equals = record.indexOf('=');
    if (equals < 0) throw bad('an extended header is malformed');
    takeRecord(record.slice(0, equals), record.slice(equals + 1), extension);
    start = end;
  }
}

function takeRecord(key: string, value: string, extension: Extension): void {
  if (key === 'path') extension.path = value;
  if (key === 'linkpath') extension.linkpath = value;
  if (key === 'size') {
    extension.size = /^[0-9]{1,15}$/.test(value) ? Number(value) : Number.NaN;
    if (!Number.isSafeInteger(extension.size)) throw bad('an entry has an impossible size');
  }
  if (key.startsWith('GNU.sparse')) throw bad('a sparse file');
}

/** The path without empty and dot components; throws if it is absolute, climbs, or is not text. */
function checkPath(name: string): string {
  if (name.startsWith('/')) throw bad(`${name} is an absolute path`);
  const parts = name.split('/').filter((part) => part !== '' && part !== '.');
  if (parts.includes('..')) throw bad(`${name} climbs out of the bundle`);
  const path = parts.join('/');
  checkText(path);
  if (parts.some((part) => part.length > NAME_CHARS_MAX)) throw bad(`too long a name: ${path}`);
  return path;
}

/**
 * A symbolic link's target: relative, climbing only at its beginning, and never above the bundle. The folder of the link
 * has no symbolic link in its path, so the climb ends where it seems to; links on the way down are held to the same rule.
 */
function checkTarget(path: string, target: string): string {
  if (target === '' || target.startsWith('/')) throw bad(`${path} links to ${target || 'nothing'}`);
  checkText(target);
  const parts = target.split('/').filter((part) => part !== '' && part !== '.');
  const climbs = parts.findIndex((part) => part !== '..');
  const height = climbs < 0 ? parts.length : climbs;
  if (parts.slice(height).includes('..')) throw bad(`${path} links up and down through ${target}`);
  if (height > path.split('/').length - 1) throw bad(`${path} links out of the bundle to ${target}`);
  return target;
}

function checkText(text: string): void {
  if (text.length > PATH_CHARS_MAX) throw bad(`too long a name: ${text}`);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is refused.
  if (/[\u0000-\u001f\u007f\ufffd]/.test(text)) throw bad(`characters that a name may not have: ${text}`);
}
