// The packages on offer, kept per suite: unpacked files, and in SQLite where in them what stands; replaced in one transaction.
import { randomUUID } from 'node:crypto';
import { mkdirSync, readdirSync, rmSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import { syncFolder } from '../../base/durable-file.ts';
import { type DatabaseSync, inTransaction, type Migration, openDatabase } from '../../base/sqlite.ts';
import { VendorError } from '../errors.ts';
import type { OfferedPackage, StanzaPlace } from './packages-file.ts';
import { type IndexFile, unpackStanzas } from './unpack.ts';
import { openUnpackedFiles, type UnpackedFiles } from './unpacked-files.ts';

/** Whether apt takes from a suite by itself: `no` is NotAutomatic, `upgrades` is NotAutomatic with ButAutomaticUpgrades (backports). */
export type Automatic = 'yes' | 'upgrades' | 'no';

/** A signed file of a suite that is kept on disk, under its digest. */
export type KeptFile = {
  /** Below the suite's folder: `InRelease`, `main/binary-amd64/Packages.xz`. */
  readonly path: string;
  readonly digest: Digest;
  readonly sizeBytes: number;
};

/** What we know about one suite since its last verified InRelease. */
export type SuiteState = {
  readonly suite: string;
  /** The name of the Debian release, also where the suite is asked for as `stable`. */
  readonly codename: string;
  readonly repoUri: string;
  readonly dateMs: number;
  readonly validUntilMs: number | null;
  readonly checkedAtMs: number;
  readonly etag: string | null;
  /** Primary-key fingerprints that may sign this suite, pinned when it was first seen. */
  readonly fingerprints: readonly string[];
  readonly automatic: Automatic;
  /** Digests of the indexes the packages came from, joined; equal means nothing to import. Empty: nothing is imported. */
  readonly indexKey: string;
  readonly files: readonly KeptFile[];
};

export type PackageIndex = {
  /** Every suite ever verified, also those without packages at the moment: their dates still forbid a rollback. */
  readonly suites: () => readonly SuiteState[];
  readonly setState: (state: SuiteState) => void;
  /** Replaces a suite's packages and state: all of it, or on an error nothing. */
  readonly replace: (state: SuiteState, files: readonly IndexFile[], signal?: AbortSignal) => Promise<number>;
  /** Every offered version of a package. Throws VendorError `vendor-ill/malformed` when its index describes one of them wrongly. */
  readonly byName: (name: string) => readonly OfferedPackage[];
  /** Packages whose Provides field mentions the name. One that is described wrongly is left out: `byName` says so to who needs it. */
  readonly mentioning: (name: string) => readonly OfferedPackage[];
  /** Everything that is described rightly, by name. */
  readonly all: () => Iterable<OfferedPackage>;
  /** Notes that a source package's version mends these holes, as its changelog says. */
  readonly addAdvisories: (
    source: string,
    entries: readonly { version: string; advisories: readonly string[] }[],
  ) => void;
  readonly advisoriesOf: (source: string) => readonly { version: string; advisory: string }[];
  /** Source packages of which any advisory is known. */
  readonly advisedSources: () => readonly string[];
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
  // The packages are fetched again; the dates and keys stay, because they forbid going back.
  (db) => {
    db.exec(`
      DROP TABLE packages;
      CREATE TABLE packages (suite TEXT NOT NULL, component TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL,
        arch TEXT NOT NULL, source TEXT NOT NULL, size_bytes INTEGER NOT NULL, filename TEXT NOT NULL,
        digest TEXT NOT NULL, depends TEXT NOT NULL, breaks TEXT NOT NULL, replaces TEXT NOT NULL,
        provides TEXT NOT NULL, summary TEXT NOT NULL) STRICT;
      CREATE INDEX packages_by_name ON packages (name);
      CREATE INDEX packages_by_provides ON packages (provides) WHERE provides <> '';
      CREATE INDEX packages_by_suite ON packages (suite);
      ALTER TABLE suites ADD COLUMN codename TEXT NOT NULL DEFAULT '';
      ALTER TABLE suites ADD COLUMN automatic TEXT NOT NULL DEFAULT 'yes';
      ALTER TABLE suites ADD COLUMN files TEXT NOT NULL DEFAULT '[]';
      UPDATE suites SET index_key = '', etag = NULL;
      CREATE TABLE advisories (source TEXT NOT NULL, version TEXT NOT NULL, advisory TEXT NOT NULL,
        PRIMARY KEY (source, version, advisory)) STRICT, WITHOUT ROWID;
    `);
  },
  // The packages are imported again, into files; the dates and keys stay.
  (db) => {
    db.exec(`
      DROP TABLE packages;
      CREATE TABLE unpacked (id INTEGER PRIMARY KEY, suite TEXT NOT NULL, component TEXT NOT NULL,
        file TEXT NOT NULL UNIQUE, size_bytes INTEGER NOT NULL) STRICT;
      CREATE TABLE packages (name TEXT NOT NULL, unpacked INTEGER NOT NULL, start INTEGER NOT NULL,
        length INTEGER NOT NULL, PRIMARY KEY (name, unpacked, start)) STRICT, WITHOUT ROWID;
      CREATE TABLE provides (provides TEXT NOT NULL, name TEXT NOT NULL, unpacked INTEGER NOT NULL,
        start INTEGER NOT NULL, length INTEGER NOT NULL) STRICT;
      UPDATE suites SET index_key = '', etag = NULL;
    `);
  },
];

function stateFromRow(row: Record<string, unknown>): SuiteState {
  const { automatic } = row;
  return {
    suite: String(row.suite),
    codename: String(row.codename),
    repoUri: String(row.repo_uri),
    dateMs: Number(row.date_ms),
    validUntilMs: row.valid_until_ms === null ? null : Number(row.valid_until_ms),
    checkedAtMs: Number(row.checked_at_ms),
    etag: row.etag === null ? null : String(row.etag),
    fingerprints: String(row.fingerprints).split(' '),
    automatic: automatic === 'no' || automatic === 'upgrades' ? automatic : 'yes',
    indexKey: String(row.index_key),
    // The cast holds: only writeState writes this column.
    files: JSON.parse(String(row.files)) as readonly KeptFile[],
  };
}

function writeState(db: DatabaseSync, state: SuiteState): void {
  const columns =
    'suite, repo_uri, date_ms, valid_until_ms, checked_at_ms, etag, fingerprints, index_key, codename, automatic, files';
  db.prepare(`INSERT OR REPLACE INTO suites (${columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`).run(
    state.suite,
    state.repoUri,
    state.dateMs,
    state.validUntilMs,
    Math.trunc(state.checkedAtMs),
    state.etag,
    state.fingerprints.join(' '),
    state.indexKey,
    state.codename,
    state.automatic,
    JSON.stringify(state.files),
  );
}

/** Rows of one statement: binding many at once costs half of binding each alone. */
const ROWS_AT_ONCE = 64;

function makeInsert(db: DatabaseSync): (unpacked: number, places: readonly StanzaPlace[]) => void {
  const sql = (rows: number) => `INSERT INTO packages VALUES ${Array(rows).fill('(?, ?, ?, ?)').join(', ')}`;
  const [one, many] = [db.prepare(sql(1)), db.prepare(sql(ROWS_AT_ONCE))];
  const addProvides = db.prepare('INSERT INTO provides VALUES (?, ?, ?, ?, ?)');
  return (unpacked, places) => {
    let values: (string | number)[] = [];
    for (const { name, provides, start, length } of places) {
      values.push(name, unpacked, start, length);
      if (values.length === ROWS_AT_ONCE * 4) {
        many.run(...values);
        values = [];
      }
      if (provides !== '') addProvides.run(provides, name, unpacked, start, length);
    }
    for (let at = 0; at < values.length; at += 4) one.run(...values.slice(at, at + 4));
  };
}

type ImportDeps = { readonly db: DatabaseSync; readonly folder: string; readonly clock: Clock };

function removePackages(db: DatabaseSync, suite: string): void {
  for (const table of ['packages', 'provides']) {
    db.prepare(`DELETE FROM ${table} WHERE unpacked IN (SELECT id FROM unpacked WHERE suite = ?)`).run(suite);
  }
  db.prepare('DELETE FROM unpacked WHERE suite = ?').run(suite);
}

/** Unpacks the files beside the database. They are on disk before the transaction that names them is. */
async function importPackages(
  { db, folder, clock }: ImportDeps,
  suite: string,
  files: readonly IndexFile[],
  signal: AbortSignal | undefined,
): Promise<number> {
  removePackages(db, suite);
  const insert = makeInsert(db);
  const addFile = db.prepare('INSERT INTO unpacked (suite, component, file, size_bytes) VALUES (?, ?, ?, 0)');
  const setSize = db.prepare('UPDATE unpacked SET size_bytes = ? WHERE id = ?');
  let count = 0;
  for (const file of files) {
    const name = randomUUID();
    const unpacked = Number(addFile.run(suite, file.component, name).lastInsertRowid);
    const target = await open(join(folder, name), 'wx+', 0o600);
    try {
      for await (const places of unpackStanzas(file, target, { what: `the index of ${suite}`, clock, signal })) {
        insert(unpacked, places);
        count += places.length;
      }
      await target.sync();
      setSize.run((await target.stat()).size, unpacked);
    } finally {
      await target.close();
    }
  }
  await syncFolder(folder);
  return count;
}

/** Removes what no row names: what was replaced, and what an import that failed or was cut off left. */
function removeUnnamed(db: DatabaseSync, folder: string): void {
  const named = new Set(
    db
      .prepare('SELECT file FROM unpacked')
      .all()
      .map(({ file }) => file),
  );
  for (const name of readdirSync(folder)) if (!named.has(name)) rmSync(join(folder, name), { force: true });
}

/** A suite of which a file is lost or cut short has no packages until they are imported again; its date and keys stay. */
function forgetLost(db: DatabaseSync, files: UnpackedFiles): void {
  for (const suite of files.lostSuites()) {
    inTransaction(db, () => {
      removePackages(db, suite);
      db.prepare("UPDATE suites SET index_key = '', etag = NULL WHERE suite = ?").run(suite);
    });
  }
}

/** The packages of these rows; malformed ones are left out. */
function* wellFormed(files: UnpackedFiles, rows: Iterable<Record<string, unknown>>): Generator<OfferedPackage> {
  for (const row of rows) {
    try {
      yield files.read(row);
    } catch (error) {
      if (!(error instanceof VendorError) || error.code !== 'vendor-ill/malformed') throw error;
    }
  }
}

/**
 * Opens (or makes) the index: the database, and a folder beside it. Only one `replace` may run at a time, and only one
 * process may have it open. Throws PratiqueError when it is damaged.
 */
export function openPackageIndex(path: string, clock: Clock): PackageIndex {
  const folder = `${path}-unpacked`;
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  // Two connections: an import stays one open transaction while the stream comes in, and readers see what was before it.
  const writer = openDatabase(path, MIGRATIONS);
  const reader = openDatabase(path, MIGRATIONS);
  const suites = reader.prepare('SELECT * FROM suites');
  const files = openUnpackedFiles(reader, folder);
  forgetLost(writer, files);
  removeUnnamed(writer, folder);
  const byName = reader.prepare('SELECT * FROM packages WHERE name = ?');
  const mentioning = reader.prepare('SELECT * FROM provides WHERE instr(provides, ?) > 0');
  const all = reader.prepare('SELECT * FROM packages ORDER BY name');
  const advised = reader.prepare('SELECT DISTINCT source FROM advisories');
  const advisories = reader.prepare('SELECT version, advisory FROM advisories WHERE source = ?');
  const addAdvisory = writer.prepare('INSERT OR IGNORE INTO advisories VALUES (?, ?, ?)');
  return {
    suites: () => suites.all().map(stateFromRow),
    setState: (state) => writeState(writer, state),
    replace: async (state, packed, signal) => {
      writer.exec('BEGIN IMMEDIATE');
      try {
        const count = await importPackages({ db: writer, folder, clock }, state.suite, packed, signal);
        writeState(writer, state);
        writer.exec('COMMIT');
        files.reopen();
        return count;
      } catch (error) {
        if (writer.isTransaction) writer.exec('ROLLBACK');
        throw error;
      } finally {
        removeUnnamed(writer, folder);
      }
    },
    byName: (name) => byName.all(name).map((row) => files.read(row)),
    mentioning: (name) => [...wellFormed(files, mentioning.all(name))],
    all: () => wellFormed(files, all.iterate()),
    addAdvisories: (source, entries) => {
      for (const { version, advisories: ids } of entries) for (const id of ids) addAdvisory.run(source, version, id);
    },
    advisoriesOf: (source) =>
      advisories.all(source).map((row) => ({ version: String(row.version), advisory: String(row.advisory) })),
    advisedSources: () => advised.all().map((row) => String(row.source)),
    close: () => {
      files.close();
      reader.close();
      writer.close();
    },
  };
}
