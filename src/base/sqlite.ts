// Opens a SQLite database the way all of ours are used: WAL, full sync, foreign keys, numbered forward migrations.
import { closeSync, openSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import { PratiqueError } from './errors.ts';

export type { DatabaseSync };

export type Migration = (db: DatabaseSync) => void;

/**
 * Opens (or makes) a database and brings it to the newest schema. `migrations[n]` takes version n to n+1, each in a
 * transaction of its own. Throws PratiqueError when the file was written by a newer program or is damaged.
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
  const row = db.prepare('PRAGMA user_version').get() as { user_version: number };
  if (row.user_version > migrations.length) {
    db.close();
    throw new PratiqueError(
      'host-fault/database-newer',
      `the database ${path} has schema ${row.user_version}, this program knows ${migrations.length}`,
      {
        next: 'run the version of Pratique that wrote it, or a newer one',
      },
    );
  }
  for (let version = row.user_version; version < migrations.length; version += 1) {
    inTransaction(db, () => {
      migrations[version]?.(db);
      db.exec(`PRAGMA user_version = ${version + 1}`);
    });
  }
  return db;
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
