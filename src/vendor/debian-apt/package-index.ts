// The packages on offer, kept per suite in SQLite: imported as a stream, replaced in one transaction, asked in microseconds.
import { type Digest, isDigest } from '../../base/digest.ts';
import { assert } from '../../base/errors.ts';
import { type DatabaseSync, type Migration, openDatabase } from '../../base/sqlite.ts';
import { type IndexFile, type OfferedPackage, readPackages } from './packages-file.ts';

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
  /** Every offered version of a package. */
  readonly byName: (name: string) => readonly OfferedPackage[];
  /** Packages whose Provides field mentions the name. */
  readonly mentioning: (name: string) => readonly OfferedPackage[];
  /** Everything, by name. */
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
];

function packageFromRow(row: Record<string, unknown>): OfferedPackage {
  const digest = String(row.digest);
  assert(isDigest(digest), 'the package index holds only digests');
  return {
    suite: String(row.suite),
    component: String(row.component),
    name: String(row.name),
    version: String(row.version),
    arch: String(row.arch),
    source: String(row.source),
    sizeBytes: Number(row.size_bytes),
    filename: String(row.filename),
    digest,
    depends: String(row.depends),
    breaks: String(row.breaks),
    replaces: String(row.replaces),
    provides: String(row.provides),
    summary: String(row.summary),
  };
}

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

async function importPackages(
  db: DatabaseSync,
  state: SuiteState,
  files: readonly IndexFile[],
  signal: AbortSignal | undefined,
): Promise<number> {
  db.prepare('DELETE FROM packages WHERE suite = ?').run(state.suite);
  const insert = db.prepare('INSERT INTO packages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)');
  let count = 0;
  for (const file of files) {
    for await (const packages of readPackages(file, state.suite)) {
      signal?.throwIfAborted();
      count += packages.length;
      for (const one of packages) {
        insert.run(
          one.suite,
          one.component,
          one.name,
          one.version,
          one.arch,
          one.source,
          one.sizeBytes,
          one.filename,
          one.digest,
          one.depends,
          one.breaks,
          one.replaces,
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
  const advised = reader.prepare('SELECT DISTINCT source FROM advisories');
  const advisories = reader.prepare('SELECT version, advisory FROM advisories WHERE source = ?');
  const addAdvisory = writer.prepare('INSERT OR IGNORE INTO advisories VALUES (?, ?, ?)');
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
    addAdvisories: (source, entries) => {
      for (const { version, advisories: ids } of entries) for (const id of ids) addAdvisory.run(source, version, id);
    },
    advisoriesOf: (source) =>
      advisories.all(source).map((row) => ({ version: String(row.version), advisory: String(row.advisory) })),
    advisedSources: () => advised.all().map((row) => String(row.source)),
    close: () => {
      reader.close();
      writer.close();
    },
  };
}
