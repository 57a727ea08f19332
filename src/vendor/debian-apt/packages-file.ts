// Reads a package index (Packages, Packages.xz, Packages.gz) as a stream: unpacked beside us, bounded, stanza by stanza.
import { spawn } from 'node:child_process';
import { createReadStream } from 'node:fs';
import type { Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { type Digest, isDigest } from '../../base/digest.ts';
import { ARTIFACT_BYTES_MAX, NAME_CHARS_MAX } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';
import { makeStanzaReader, type Stanza } from './stanzas.ts';
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

const FIELDS = new Set([
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
]);

/** Plain characters only and no climbing: the path becomes part of a URL and of a file name. */
const FILENAME = /^(?!.*(?:^|\/)\.\.?(?:\/|$))[A-Za-z0-9._+~:%@-][A-Za-z0-9._+~:%@/-]*$/;

function joined(first: string | undefined, second: string | undefined): string {
  if (first === undefined || first === '') return (second ?? '').replaceAll('\n', ' ');
  return (second === undefined || second === '' ? first : `${first}, ${second}`).replaceAll('\n', ' ');
}

/** `Source: name (version)`, the version only where it differs, the field only where either does. */
function sourceOf(field: string | undefined, version: string): string {
  if (field === undefined || field === '' || field.length > NAME_CHARS_MAX) return '';
  const open = field.indexOf(' (');
  return open < 0 ? `${field} ${version}` : `${field.slice(0, open)} ${field.slice(open + 2).replace(')', '')}`;
}

/** Turns one stanza into a package; a malformed one means the signed index itself is broken. Throws VendorError. */
export function packageFromStanza(stanza: Stanza, suite: string, component: string): OfferedPackage {
  const [name, version, arch] = [stanza.get('package'), stanza.get('version'), stanza.get('architecture')];
  const [filename, digest, sizeBytes] = [stanza.get('filename'), stanza.get('sha256'), Number(stanza.get('size'))];
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
    source: sourceOf(stanza.get('source'), version),
    sizeBytes,
    filename,
    digest,
    depends: joined(stanza.get('pre-depends'), stanza.get('depends')),
    breaks: joined(stanza.get('breaks'), stanza.get('conflicts')),
    replaces: joined(stanza.get('replaces'), undefined),
    provides: joined(stanza.get('provides'), undefined),
    summary: printable((stanza.get('description') ?? '').split('\n')[0] ?? '', 200),
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

/** The packages of one index file. Throws VendorError, also when it unpacks to more than it may. */
export async function* readPackages(file: IndexFile, suite: string): AsyncGenerator<readonly OfferedPackage[]> {
  const { text, finished, stop } = unpack(file);
  finished.catch(() => {}); // Awaited below; until then an early failure must not count as unhandled.
  const reader = makeStanzaReader(`the index of ${suite}`, FIELDS);
  const decoder = new TextDecoder();
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
      yield reader.push(decoder.decode(bytes, { stream: true })).map(toPackage);
    }
    await finished;
    yield reader.end().map(toPackage);
  } catch (error) {
    throw asVendorFault(error, suite);
  } finally {
    stop();
  }
}
