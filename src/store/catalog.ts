// What the store knows about its blobs across restarts: sizes, order of use, and who needs them.
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { type Digest, isDigest } from '../base/digest.ts';
import { assert } from '../base/errors.ts';
import { inTransaction, type Migration, openDatabase } from '../base/sqlite.ts';
import { diskError, StoreError } from './errors.ts';

export type CatalogBlob = {
  readonly digest: Digest;
  readonly sizeBytes: number;
  /** Wall time of the last full hash of this blob. */
  readonly verifiedAtMs: number;
  /** A counter, not a time: clocks jump. The smallest one was used longest ago. */
  readonly usedSequence: number;
  readonly isPinned: boolean;
};

export type Catalog = {
  readonly find: (digest: Digest) => CatalogBlob | undefined;
  /** All blobs, the least recently used first. */
  readonly list: () => readonly CatalogBlob[];
  readonly add: (digest: Digest, sizeBytes: number, nowMs: number) => void;
  readonly touch: (digest: Digest) => void;
  readonly setVerified: (digest: Digest, nowMs: number) => void;
  readonly remove: (digest: Digest) => void;
  readonly pin: (owner: string, digests: readonly Digest[]) => void;
  readonly unpin: (owner: string) => void;
  readonly ownersOf: (digest: Digest) => readonly string[];
  readonly close: () => void;
};

export const CATALOG_MIGRATIONS: readonly Migration[] = [
  (db) => {
    // A pin may precede its blob: a run pins first and downloads then, so that nothing is collected in between.
    db.exec(`
      CREATE TABLE blobs (digest TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, verified_at_ms INTEGER NOT NULL,
        used_sequence INTEGER NOT NULL) STRICT, WITHOUT ROWID;
      CREATE INDEX blobs_by_use ON blobs (used_sequence);
      CREATE TABLE pins (digest TEXT NOT NULL, owner TEXT NOT NULL, PRIMARY KEY (digest, owner)) STRICT, WITHOUT ROWID;
      CREATE INDEX pins_by_owner ON pins (owner);
    `);
  },
];

const SELECT_BLOB = `SELECT digest, size_bytes, verified_at_ms, used_sequence,
  EXISTS (SELECT 1 FROM pins WHERE pins.digest = blobs.digest) AS is_pinned FROM blobs`;
const NEXT_SEQUENCE = '(SELECT coalesce(max(used_sequence), 0) + 1 FROM blobs)';

function blobFromRow(row: Record<string, unknown>): CatalogBlob {
  const digest = String(row.digest);
  assert(isDigest(digest), 'the catalog holds only digests');
  return {
    digest,
    sizeBytes: Number(row.size_bytes),
    verifiedAtMs: Number(row.verified_at_ms),
    usedSequence: Number(row.used_sequence),
    isPinned: row.is_pinned === 1,
  };
}

/**
 * Takes the lock that makes this process the store's only writer; the kernel drops it when the process dies.
 * Throws StoreError `conflict/store-in-use` when another process has it.
 */
function lockStore(folder: string): DatabaseSync {
  const lock = new DatabaseSync(join(folder, 'lock.sqlite'));
  try {
    lock.exec('PRAGMA busy_timeout = 0; BEGIN EXCLUSIVE');
    return lock;
  } catch (cause) {
    lock.close();
    throw new StoreError('conflict/store-in-use', `the store ${folder} is in use by another process`, {
      cause,
      next: 'stop the other daemon, or give this one a data folder of its own',
    });
  }
}

/**
 * Commits without an fsync of its own: what a power cut takes back is a pin too many, never one too few, and the next
 * write of another kind carries it along. A fleet that is plugged in at once would wait for hundreds of them.
 */
function withoutSync(db: DatabaseSync, work: () => unknown): void {
  db.exec('PRAGMA synchronous = NORMAL');
  try {
    work();
  } finally {
    db.exec('PRAGMA synchronous = FULL');
  }
}

/** Opens the catalog in the store's folder. Throws PratiqueError when it is damaged, newer or in use. */
export function openCatalog(folder: string): Catalog {
  const lock = lockStore(folder);
  let db: DatabaseSync;
  try {
    db = openDatabase(join(folder, 'catalog.sqlite'), CATALOG_MIGRATIONS);
  } catch (error) {
    lock.close();
    throw error;
  }
  const find = db.prepare(`${SELECT_BLOB} WHERE digest = ?`);
  const list = db.prepare(`${SELECT_BLOB} ORDER BY used_sequence`);
  const add = db.prepare(`INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ${NEXT_SEQUENCE})`);
  const touch = db.prepare(`UPDATE blobs SET used_sequence = ${NEXT_SEQUENCE} WHERE digest = ?`);
  const setVerified = db.prepare('UPDATE blobs SET verified_at_ms = ? WHERE digest = ?');
  const remove = db.prepare('DELETE FROM blobs WHERE digest = ?');
  const pin = db.prepare('INSERT OR IGNORE INTO pins (owner, digest) VALUES (?, ?)');
  const unpin = db.prepare('DELETE FROM pins WHERE owner = ?');
  const ownersOf = db.prepare('SELECT owner FROM pins WHERE digest = ? ORDER BY owner');
  const write = (doing: string, work: () => unknown): void => {
    try {
      work();
    } catch (error) {
      throw diskError(error, doing, folder);
    }
  };
  return {
    find: (digest) => {
      const row = find.get(digest);
      return row === undefined ? undefined : blobFromRow(row);
    },
    list: () => list.all().map(blobFromRow),
    add: (digest, sizeBytes, nowMs) => write('cataloguing a blob', () => add.run(digest, sizeBytes, Math.trunc(nowMs))),
    touch: (digest) => write('noting the use of a blob', () => touch.run(digest)),
    setVerified: (digest, nowMs) => write('noting a check', () => setVerified.run(Math.trunc(nowMs), digest)),
    remove: (digest) => write('removing a blob from the catalog', () => remove.run(digest)),
    pin: (owner, digests) =>
      write(`pinning blobs for ${owner}`, () =>
        inTransaction(db, () => {
          for (const digest of digests) pin.run(owner, digest);
        }),
      ),
    unpin: (owner) => write(`unpinning the blobs of ${owner}`, () => withoutSync(db, () => unpin.run(owner))),
    ownersOf: (digest) => ownersOf.all(digest).map((row) => String(row.owner)),
    close: () => {
      db.close();
      lock.close();
    },
  };
}
