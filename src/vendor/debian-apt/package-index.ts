// The packages on offer, kept per suite in SQLite: imported as a stream, replaced in one transaction, asked in microseconds.
import { spawn } from 'node:child_process';
import { createReadStream } from 'node:fs';
import type { Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { type Digest, isDigest } from '../../base/digest.ts';
import { assert } from '../../base/errors.ts';
import { ARTIFACT_BYTES_MAX, NAME_CHARS_MAX } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import { type DatabaseSync, type Migration, openDatabase } from '../../base/sqlite.ts';
import { VendorError } from '../errors.ts';
import { makeStanzaReader, type Stanza } from './stanzas.ts';

export type OfferedPackage = {
  readonly suite: string;
  readonly name: string;
  readonly version: string;
  readonly arch: string;
  readonly sizeBytes: number;
  /** Path below the archive's root. */
  readonly filename: string;
  readonly digest: Digest;
  /** Pre-Depends and Depends. */
  readonly depends: string;
  /** Breaks and Conflicts. */
  readonly breaks: string;
  readonly provides: string;
  readonly summary: string;
};

/** What we know about one suite since its last verified InRelease. */
export type SuiteState = {
  readonly suite: string;
  readonly repoUri: string;
  readonly dateMs: number;
  readonly validUntilMs: number | null;
  readonly checkedAtMs: number;
  readonly etag: string | null;
  /** Primary-key fingerprints that may sign this suite, pinned when it was first seen. */
  readonly fingerprints: readonly string[];
  /** Digests of the indexes the packages came from, joined; equal means nothing to import. */
  readonly indexKey: string;
};

export type Compression = 'xz' | 'gzip' | 'none';

export type IndexFile = {
  /** A file whose digest has been verified. */
  readonly path: string;
  readonly compression: Compression;
  readonly unpackedBytesMax: number;
};

export type PackageIndex = {
  readonly suites: () => readonly SuiteState[];
  readonly setState: (state: SuiteState) => void;
  /** Replaces a suite's packages and state: all of it, or on an error nothing. */
  readonly replace: (state: SuiteState, files: readonly IndexFile[], signal?: AbortSignal) => Promise<number>;
  /** Every offered version of a package. */
  readonly byName: (name: string) => readonly OfferedPackage[];
  /** Packages whose Provides field mentions the name. */
  readonly mentioning: (name: string) => readonly OfferedPackage[];
  readonly all: () => Iterable<OfferedPackage>;
  readonly close: () => void;
};

const MIGRATIONS: readonly Migration[] = [
  (db) => {
    db.exec(`
      CREATE TABLE suites (suite TEXT PRIMARY KEY, repo_uri TEXT NOT NULL, date_ms INTEGER NOT NULL,
        valid_until_ms INTEGER, checked_at_ms INTEGER NOT NULL, etag TEXT, fingerprints TEXT NOT NULL,
        index_key TEXT NOT NULL) STRICT;
      CREATE TABLE packages (suite TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, arch TEXT NOT NULL,
        size_bytes INTEGER NOT NULL, filename TEXT NOT NULL, digest TEXT NOT NULL, depends TEXT NOT NULL,
        breaks TEXT NOT NULL, provides TEXT NOT NULL, summary TEXT NOT NULL) STRICT;
      CREATE INDEX packages_by_name ON packages (name);
      CREATE INDEX packages_by_provides ON packages (provides) WHERE provides <> '';
      CREATE INDEX packages_by_suite ON packages (suite);
    `);
  },
];

const FIELDS = new Set([
  'package',
  'version',
  'architecture',
  'size',
  'filename',
  'sha256',
  'pre-depends',
  'depends',
  'breaks',
  'conflicts',
  'provides',
  'description',
]);

/** Plain characters only and no climbing: the path becomes part of a URL and of a file name. */
const FILENAME = /^(?!.*(?:^|\/)\.\.?(?:\/|$))[A-Za-z0-9._+~:%@-][A-Za-z0-9._+~:%@/-]*$/;

function joined(stanza: Stanza, ...names: readonly string[]): string {
  const values = names.map((name) => stanza.get(name)).filter((value) => value !== undefined && value !== '');
  return values.join(', ').replaceAll('\n', ' ');
}

/** Turns one stanza into a package; a malformed one means the signed index itself is broken. Throws VendorError. */
export function packageFromStanza(stanza: Stanza, suite: string): OfferedPackage {
  const [name, version, arch] = [stanza.get('package'), stanza.get('version'), stanza.get('architecture')];
  const [filename, digest, sizeBytes] = [stanza.get('filename'), stanza.get('sha256'), Number(stanza.get('size'))];
  const isShort = (text: string | undefined): text is string =>
    text !== undefined && text !== '' && text.length <= NAME_CHARS_MAX;
  const isSized = Number.isSafeInteger(sizeBytes) && sizeBytes > 0 && sizeBytes <= ARTIFACT_BYTES_MAX;
  const isWell = isShort(name) && isShort(version) && isShort(arch) && isSized;
  const isLocated = filename !== undefined && filename.length <= 1024 && FILENAME.test(filename);
  if (!isWell || !isLocated || digest === undefined || !isDigest(digest)) {
    const what = printable(`${name ?? 'without a name'} ${version ?? ''}`);
    throw new VendorError('vendor-ill/malformed', `the index of ${suite} describes the package ${what} wrongly`);
  }
  return {
    suite,
    name,
    version,
    arch,
    sizeBytes,
    filename,
    digest,
    depends: joined(stanza, 'pre-depends', 'depends'),
    breaks: joined(stanza, 'breaks', 'conflicts'),
    provides: joined(stanza, 'provides'),
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

/** The packages of one index file. Throws VendorError, also when it unpacks to more than it may. */
export async function* readPackages(file: IndexFile, suite: string): AsyncGenerator<readonly OfferedPackage[]> {
  const { text, finished, stop } = unpack(file);
  finished.catch(() => {}); // Awaited below; until then an early failure must not count as unhandled.
  const reader = makeStanzaReader(`the index of ${suite}`, FIELDS);
  const decoder = new TextDecoder();
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
      yield reader.push(decoder.decode(bytes, { stream: true })).map((stanza) => packageFromStanza(stanza, suite));
    }
    await finished;
    yield reader.end().map((stanza) => packageFromStanza(stanza, suite));
  } finally {
    stop();
  }
}

function packageFromRow(row: Record<string, unknown>): OfferedPackage {
  const digest = String(row.digest);
  assert(isDigest(digest), 'the package index holds only digests');
  return {
    suite: String(row.suite),
    name: String(row.name),
    version: String(row.version),
    arch: String(row.arch),
    sizeBytes: Number(row.size_bytes),
    filename: String(row.filename),
    digest,
    depends: String(row.depends),
    breaks: String(row.breaks),
    provides: String(row.provides),
    summary: String(row.summary),
  };
}

function stateFromRow(row: Record<string, unknown>): SuiteState {
  return {
    suite: String(row.suite),
    repoUri: String(row.repo_uri),
    dateMs: Number(row.date_ms),
    validUntilMs: row.valid_until_ms === null ? null : Number(row.valid_until_ms),
    checkedAtMs: Number(row.checked_at_ms),
    etag: row.etag === null ? null : String(row.etag),
    fingerprints: String(row.fingerprints).split(' '),
    indexKey: String(row.index_key),
  };
}

function writeState(db: DatabaseSync, state: SuiteState): void {
  db.prepare('INSERT OR REPLACE INTO suites VALUES (?, ?, ?, ?, ?, ?, ?, ?)').run(
    state.suite,
    state.repoUri,
    state.dateMs,
    state.validUntilMs,
    Math.trunc(state.checkedAtMs),
    state.etag,
    state.fingerprints.join(' '),
    state.indexKey,
  );
}

async function importPackages(
  db: DatabaseSync,
  state: SuiteState,
  files: readonly IndexFile[],
  signal: AbortSignal | undefined,
): Promise<number> {
  db.prepare('DELETE FROM packages WHERE suite = ?').run(state.suite);
  const insert = db.prepare('INSERT INTO packages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)');
  let count = 0;
  for (const file of files) {
    for await (const packages of readPackages(file, state.suite)) {
      signal?.throwIfAborted();
      count += packages.length;
      for (const one of packages) {
        insert.run(
          one.suite,
          one.name,
          one.version,
          one.arch,
          one.sizeBytes,
          one.filename,
          one.digest,
          one.depends,
          one.breaks,
          one.provides,
          one.summary,
        );
      }
    }
  }
  return count;
}

/** Opens (or makes) the index. Only one `replace` may run at a time. Throws PratiqueError when it is damaged. */
export function openPackageIndex(path: string): PackageIndex {
  // Two connections: an import stays one open transaction while the stream comes in, and readers see what was before it.
  const writer = openDatabase(path, MIGRATIONS);
  const reader = openDatabase(path, MIGRATIONS);
  const suites = reader.prepare('SELECT * FROM suites');
  const byName = reader.prepare('SELECT * FROM packages WHERE name = ?');
  const mentioning = reader.prepare("SELECT * FROM packages WHERE provides <> '' AND instr(provides, ?) > 0");
  const all = reader.prepare('SELECT * FROM packages ORDER BY name');
  return {
    suites: () => suites.all().map(stateFromRow),
    setState: (state) => writeState(writer, state),
    replace: async (state, files, signal) => {
      writer.exec('BEGIN IMMEDIATE');
      try {
        const count = await importPackages(writer, state, files, signal);
        writeState(writer, state);
        writer.exec('COMMIT');
        return count;
      } catch (error) {
        writer.exec('ROLLBACK');
        throw error;
      }
    },
    byName: (name) => byName.all(name).map(packageFromRow),
    mentioning: (name) => mentioning.all(name).map(packageFromRow),
    all: function* () {
      for (const row of all.iterate()) yield packageFromRow(row);
    },
    close: () => {
      reader.close();
      writer.close();
    },
  };
}
