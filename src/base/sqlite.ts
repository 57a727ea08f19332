// Opens a SQLite database the way all of ours are used: WAL, full sync, foreign keys, numbered forward migrations; and copies one that is in use.
import { closeSync, fsyncSync, openSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { backup, DatabaseSync } from 'node:sqlite';
import { PratiqueError } from './errors.ts';
import { BACKUP_PAGES_AT_ONCE } from './limits.ts';

export type { DatabaseSync };

export type Migration = (db: DatabaseSync) => void;

/**
 * Opens (or makes) a database and brings it to the newest schema. `migrations[n]` takes version n to n+1, each in a
 * transaction of its own; a database that has something to lose is copied first, to `PATH.schema-VERSION`. Throws
 * PratiqueError `host-unfit/schema-newer` when a newer program wrote the file, `host-fault/…` when it is damaged or the
 * disk is full: then it is as it was after the last migration that went through.
 */
export function openDatabase(path: string, migrations: readonly Migration[]): DatabaseSync {
  let db: DatabaseSync;
  try {
    // SQLite gives its journal files the mode of the database: nobody else reads any of them.
    if (path !== ':memory:') closeSync(openSync(path, 'a', 0o600));
    db = new DatabaseSync(path);
    db.exec(
      'PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000',
    );
  } catch (cause) {
    throw new PratiqueError('host-fault/database', `opening the database ${path}`, {
      cause,
      next: 'check its permissions, the free space and the file itself',
    });
  }
  try {
    migrate(db, path, migrations);
    return db;
  } catch (error) {
    db.close();
    throw error;
  }
}

/** The number of migrations that made the database what it is. */
export function schemaVersion(db: DatabaseSync): number {
  const row = db.prepare('PRAGMA user_version').get();
  return Number(row?.user_version);
}

/** Runs the function in one transaction: all of it is on disk afterwards, or none. */
export function inTransaction<T>(db: DatabaseSync, work: () => T): T {
  db.exec('BEGIN IMMEDIATE');
  try {
    const result = work();
    db.exec('COMMIT');
    return result;
  } catch (error) {
    db.exec('ROLLBACK');
    throw error;
  }
}

/** One moment of a database that others go on writing to; `copyTo` may take its time. */
export type Snapshot = {
  readonly schema: number;
  /** Writes that moment to a new file of the owner's only, synced; resolves with its bytes on disk. */
  readonly copyTo: (target: string) => Promise<void>;
  readonly close: () => void;
};

/**
 * Holds one moment of a database, also of one that another process has open (https://sqlite.org/isolation.html): writers go
 * on, they only cannot shorten their write-ahead log meanwhile. Throws PratiqueError `host-fault/database`.
 */
export function takeSnapshot(path: string): Snapshot {
  const fault = (what: string, cause: unknown) =>
    new PratiqueError('host-fault/database', `${what} ${path}`, { cause, next: 'check the file and its permissions' });
  let db: DatabaseSync | null = null;
  try {
    db = new DatabaseSync(path, { readOnly: true });
    db.exec('PRAGMA busy_timeout = 5000; BEGIN');
    // A transaction begins with its first read, and reading the version is one.
    const held = db;
    const schema = schemaVersion(held);
    return {
      schema,
      copyTo: async (target) => {
        try {
          closeSync(openSync(target, 'wx', 0o600));
          await backup(held, target, { rate: BACKUP_PAGES_AT_ONCE });
          syncPath(target);
        } catch (cause) {
          throw fault('copying the database', cause);
        }
      },
      close: () => held.close(),
    };
  } catch (cause) {
    db?.close();
    throw fault('reading the database', cause);
  }
}

function migrate(db: DatabaseSync, path: string, migrations: readonly Migration[]): void {
  const from = schemaVersion(db);
  if (from > migrations.length) {
    throw new PratiqueError(
      'host-unfit/schema-newer',
      `the database ${path} has schema ${from}, this program knows ${migrations.length}`,
      {
        next: 'run the version of Pratique that wrote it, or restore a backup of this version: pratique restore --help',
      },
    );
  }
  if (from === migrations.length) return;
  const isWorthKeeping = from > 0 && path !== ':memory:';
  if (isWorthKeeping) keepCopy(db, path, from);
  for (let version = from; version < migrations.length; version += 1) {
    try {
      inTransaction(db, () => {
        migrations[version]?.(db);
        db.exec(`PRAGMA user_version = ${version + 1}`);
      });
    } catch (cause) {
      throw new PratiqueError(
        'host-fault/migration',
        `bringing the database ${path} from schema ${version} to ${version + 1}; it is still at ${version}`,
        { cause, next: 'free space and start again; what it was before is beside it' },
      );
    }
  }
}

/** What the migration of a release that turns out bad took: whole or not there, and the newest only. */
function keepCopy(db: DatabaseSync, path: string, version: number): void {
  const copy = `${path}.schema-${version}`;
  const temporary = `${copy}.new`;
  try {
    rmSync(temporary, { force: true });
    closeSync(openSync(temporary, 'wx', 0o600));
    db.prepare('VACUUM INTO ?').run(temporary);
    syncPath(temporary);
    renameSync(temporary, copy);
    syncPath(dirname(path));
  } catch (cause) {
    rmSync(temporary, { force: true });
    throw new PratiqueError('host-fault/migration', `copying ${path} before it is changed; nothing was changed`, {
      cause,
      next: 'free as much space as the database takes, then start again',
    });
  }
  const prefix = `${basename(path)}.schema-`;
  const copies = readdirSync(dirname(path)).filter((name) => name.startsWith(prefix));
  for (const name of copies) if (name !== basename(copy)) rmSync(join(dirname(path), name), { force: true });
}

function syncPath(path: string): void {
  const descriptor = openSync(path, 'r');
  try {
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}
