// Reads a package index (Packages, Packages.xz, Packages.gz) as a stream: unpacked beside us, bounded, stanza by stanza.
import { spawn } from 'node:child_process';
import { createReadStream } from 'node:fs';
import type { Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { type Digest, isDigest } from '../../base/digest.ts';
import { ARTIFACT_BYTES_MAX, NAME_CHARS_MAX, STANZA_BYTES_MAX } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';
import { isDebianVersion } from './version.ts';

export type OfferedPackage = {
  readonly suite: string;
  readonly component: string;
  readonly name: string;
  readonly version: string;
  readonly arch: string;
  /** Source package and its version, `name version`; empty where both are the package's own. */
  readonly source: string;
  readonly sizeBytes: number;
  /** Path below the archive's root. */
  readonly filename: string;
  readonly digest: Digest;
  /** Pre-Depends and Depends. */
  readonly depends: string;
  /** Breaks and Conflicts. */
  readonly breaks: string;
  readonly replaces: string;
  readonly provides: string;
  readonly summary: string;
};

export type Compression = 'xz' | 'gzip' | 'none';

export type IndexFile = {
  /** A file whose digest has been verified. */
  readonly path: string;
  readonly component: string;
  readonly compression: Compression;
  readonly unpackedBytesMax: number;
};

/** The fields we read, by their names in lower case; the places in the array below. */
const FIELDS = [
  'package',
  'version',
  'architecture',
  'source',
  'size',
  'filename',
  'sha256',
  'pre-depends',
  'depends',
  'breaks',
  'conflicts',
  'replaces',
  'provides',
  'description',
] as const;
type Field = (typeof FIELDS)[number];
type Stanza = { [field in Field]?: string };
const WANTED: ReadonlySet<string> = new Set(FIELDS);

/** Plain characters only and no climbing: the path becomes part of a URL and of a file name. */
const FILENAME = /^(?!.*(?:^|\/)\.\.?(?:\/|$))[A-Za-z0-9._+~:%@-][A-Za-z0-9._+~:%@/-]*$/;

const SUMMARY_CHARS_MAX = 200;

function joined(first: string | undefined, second: string | undefined): string {
  if (first === undefined || first === '') return second ?? '';
  return second === undefined || second === '' ? first : `${first}, ${second}`;
}

/** The stanza was read byte by byte; nearly all summaries are plain ASCII and need no second look. */
function summaryOf(bytes: string): string {
  if (bytes.length <= SUMMARY_CHARS_MAX && /^[ -~]*$/.test(bytes)) return bytes;
  return printable(Buffer.from(bytes, 'latin1').toString('utf8'), SUMMARY_CHARS_MAX);
}

/** `Source: name (version)`, the version only where it differs, the field only where either does. */
function sourceOf(field: string | undefined, version: string): string {
  if (field === undefined || field === '' || field.length > NAME_CHARS_MAX) return '';
  const open = field.indexOf(' (');
  return open < 0 ? `${field} ${version}` : `${field.slice(0, open)} ${field.slice(open + 2).replace(')', '')}`;
}

/** Turns one stanza into a package; a malformed one means the signed index itself is broken. Throws VendorError. */
export function packageFromStanza(stanza: Stanza, suite: string, component: string): OfferedPackage {
  const [name, version, arch] = [stanza.package, stanza.version, stanza.architecture];
  const [filename, digest, sizeBytes] = [stanza.filename, stanza.sha256, Number(stanza.size)];
  const isShort = (text: string | undefined): text is string =>
    text !== undefined && text !== '' && text.length <= NAME_CHARS_MAX;
  const isSized = Number.isSafeInteger(sizeBytes) && sizeBytes > 0 && sizeBytes <= ARTIFACT_BYTES_MAX;
  const isWell = isShort(name) && isShort(version) && isShort(arch) && isSized && isDebianVersion(version);
  const isLocated = filename !== undefined && filename.length <= 1024 && FILENAME.test(filename);
  if (!isWell || !isLocated || digest === undefined || !isDigest(digest)) {
    const what = printable(`${name ?? 'without a name'} ${version ?? ''}`);
    throw new VendorError('vendor-ill/malformed', `the index of ${suite} describes the package ${what} wrongly`);
  }
  return {
    suite,
    component,
    name,
    version,
    arch,
    source: sourceOf(stanza.source, version),
    sizeBytes,
    filename,
    digest,
    depends: joined(stanza['pre-depends'], stanza.depends),
    breaks: joined(stanza.breaks, stanza.conflicts),
    replaces: joined(stanza.replaces, undefined),
    provides: joined(stanza.provides, undefined),
    summary: summaryOf(stanza.description ?? ''),
  };
}

type Unpacked = { readonly text: Readable; readonly finished: Promise<void>; readonly stop: () => void };

/** `xz -dc` as a process of its own: it runs beside us on another core, and a bomb costs it, not us. */
function unpackXz(path: string): Unpacked {
  const child = spawn('xz', ['-dc', '--', path], { stdio: ['ignore', 'pipe', 'pipe'] });
  let complaint = '';
  child.stderr.on('data', (piece: Buffer) => {
    complaint = (complaint + piece.toString('utf8')).slice(0, 500);
  });
  const finished = new Promise<void>((resolve, reject) => {
    child.on('error', (cause) => {
      child.stdout.destroy();
      reject(
        new VendorError('host-unfit/no-xz', 'unpacking a package index: xz could not run', {
          cause,
          next: 'install the package xz-utils',
        }),
      );
    });
    child.on('close', (code) => {
      if (code === 0) resolve();
      else reject(new VendorError('vendor-ill/malformed', `unpacking a package index: ${printable(complaint)}`));
    });
  });
  return { text: child.stdout, finished, stop: () => void child.kill('SIGKILL') };
}

function unpack(file: IndexFile): Unpacked {
  if (file.compression === 'xz') return unpackXz(file.path);
  const bytes = createReadStream(file.path, { highWaterMark: 256 * 1024 });
  if (file.compression === 'none') return { text: bytes, finished: Promise.resolve(), stop: () => bytes.destroy() };
  const text = createGunzip();
  bytes.on('error', (error) => text.destroy(error)).pipe(text);
  return { text, finished: Promise.resolve(), stop: () => bytes.destroy() };
}

/** What zlib says of a file that is no gzip is the vendor's fault; what we threw ourselves stays as it is. */
function asVendorFault(error: unknown, suite: string): unknown {
  const isZlib = error instanceof Error && 'code' in error && String(error.code).startsWith('Z_');
  if (!isZlib) return error;
  return new VendorError('vendor-ill/malformed', `the index of ${suite} cannot be unpacked`, { cause: error });
}

const NEWLINE = 10;
const SPACE = 32;
const TAB = 9;
const COLON = 58;

/** The characters with which a line of interest begins; most lines of a stanza need no closer look. */
const INITIALS = new Uint8Array(128);
for (const character of [' ', '\t', ...FIELDS.flatMap(([initial = '']) => [initial, initial.toUpperCase()])]) {
  INITIALS[character.charCodeAt(0)] = 1;
}

/** Which field a line begins with. Unknown names are remembered too: there are a dozen of them in every stanza. */
function makeFieldNames(): (name: string) => Field | null {
  const known = new Map<string, Field | null>();
  return (name) => {
    const found = known.get(name);
    if (found !== undefined) return found;
    const lower = name.toLowerCase();
    // The cast holds: what is in WANTED is a Field.
    const field = WANTED.has(lower) ? (lower as Field) : null;
    if (known.size < FIELD_NAMES_REMEMBERED_MAX) known.set(name, field);
    return field;
  };
}

const FIELD_NAMES_REMEMBERED_MAX = 1000;

/**
 * The wanted fields of one stanza, deb822(5): folded lines joined by spaces, of Description only the first. It is the inner loop of
 * an import (1.5 million lines), so it looks for line ends and colons and makes no list of lines.
 */
function readStanza(text: string, start: number, end: number, fieldOf: (name: string) => Field | null): Stanza {
  const stanza: Stanza = {};
  let field: Field | null = null;
  for (let at = start; at < end; ) {
    const newline = text.indexOf('\n', at);
    const lineEnd = newline < 0 || newline > end ? end : newline;
    const first = text.charCodeAt(at);
    if (first < 128 && INITIALS[first] === 0) {
      field = null;
    } else if (first === SPACE || first === TAB) {
      if (field !== null && field !== 'description')
        stanza[field] = `${stanza[field]} ${text.slice(at, lineEnd).trim()}`;
    } else {
      let colon = at;
      while (colon < lineEnd && text.charCodeAt(colon) !== COLON) colon += 1;
      field = fieldOf(text.slice(at, colon));
      if (field !== null) stanza[field] = text.slice(colon + 1, lineEnd).trim();
    }
    at = lineEnd + 1;
  }
  return stanza;
}

/** Splits a stream of bytes into stanzas; keeps the unfinished one, up to a bound. */
function makeStanzaScanner(what: string) {
  const fieldOf = makeFieldNames();
  let pending = '';
  const scan = (text: string, isLast: boolean): readonly Stanza[] => {
    const stanzas: Stanza[] = [];
    let start = 0;
    for (;;) {
      while (text.charCodeAt(start) === NEWLINE) start += 1;
      const blank = text.indexOf('\n\n', start);
      if (blank < 0) break;
      stanzas.push(readStanza(text, start, blank, fieldOf));
      start = blank + 2;
    }
    pending = text.slice(start);
    if (pending.length > STANZA_BYTES_MAX) {
      throw new VendorError('vendor-ill/malformed', `${what}: a stanza is longer than ${STANZA_BYTES_MAX} bytes`);
    }
    if (isLast && pending.trim() !== '') stanzas.push(readStanza(pending, 0, pending.length, fieldOf));
    return stanzas;
  };
  return {
    /** Bytes as characters: every separator is ASCII, and text outside it stands only where it is decoded later. */
    push: (bytes: Buffer): readonly Stanza[] => scan(pending + bytes.toString('latin1'), false),
    end: (): readonly Stanza[] => scan(pending, true),
  };
}

/** The packages of one index file. Throws VendorError, also when it unpacks to more than it may. */
export async function* readPackages(file: IndexFile, suite: string): AsyncGenerator<readonly OfferedPackage[]> {
  const { text, finished, stop } = unpack(file);
  finished.catch(() => {}); // Awaited below; until then an early failure must not count as unhandled.
  const scanner = makeStanzaScanner(`the index of ${suite}`);
  const toPackage = (stanza: Stanza) => packageFromStanza(stanza, suite, file.component);
  let unpackedBytes = 0;
  try {
    for await (const piece of text) {
      // The cast holds: a stream without an encoding gives Buffers.
      const bytes = piece as Buffer;
      unpackedBytes += bytes.length;
      if (unpackedBytes > file.unpackedBytesMax) {
        throw new VendorError(
          'vendor-ill/too-large',
          `the index of ${suite} unpacks to more than ${file.unpackedBytesMax} bytes`,
        );
      }
      yield scanner.push(bytes).map(toPackage);
    }
    await finished;
    yield scanner.end().map(toPackage);
  } catch (error) {
    throw asVendorFault(error, suite);
  } finally {
    stop();
  }
}
