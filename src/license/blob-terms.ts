// Under which licenses blobs came to this host: a digest is no secret, so naming one is no proof that a vendor has the bytes.
import type { DatabaseSync } from '../base/sqlite.ts';
import type { BlobTerms } from '../model/license-check.ts';

/** How terms without a license are written down; no license is called that. */
const FREE = '';

/** Over an open database with the migrations of lease-rows.ts applied. */
export function openBlobTerms(db: DatabaseSync): BlobTerms {
  const guard = db.prepare('INSERT OR IGNORE INTO license_blob VALUES (?, ?, 0)');
  const prove = db.prepare('INSERT OR REPLACE INTO license_blob VALUES (?, ?, 1)');
  const guarded = db.prepare('SELECT 1 FROM license_blob WHERE digest = ? AND license NOT IN (?, ?) LIMIT 1');
  const proven = db.prepare('SELECT 1 FROM license_blob WHERE digest = ? AND license IN (?, ?) AND proven = 1 LIMIT 1');
  const isGuarded: BlobTerms['mustProve'] = (digest, license) =>
    guarded.get(digest, license ?? FREE, FREE) !== undefined;
  return {
    guard: (digest, license) => void guard.run(digest, license),
    prove: (digest, license) => {
      // What nobody guards needs no row: that is nearly everything.
      if (license !== null || isGuarded(digest, null)) prove.run(digest, license ?? FREE);
    },
    // What one vendor gives to everybody is guarded no more.
    mustProve: (digest, license) =>
      isGuarded(digest, license) && proven.get(digest, license ?? FREE, FREE) === undefined,
  };
}
