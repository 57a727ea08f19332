// The durable rows of leases: which VM has which seat, what was asked for and not answered yet, and which seats were had when.
import { randomBytes } from 'node:crypto';
import { type DatabaseSync, inTransaction, type Migration } from '../base/sqlite.ts';
import type { VmId } from '../model/ids.ts';

/** Also the tables of what an operator says of licenses and tenants, which the proxy reads and writes. */
export const LEASE_MIGRATIONS: readonly Migration[] = [
  (db) =>
    db.exec(`
      CREATE TABLE lease (
        license TEXT NOT NULL, vm TEXT NOT NULL, tenant TEXT NOT NULL, state TEXT NOT NULL, seat TEXT, granted_ms INTEGER,
        expires_ms INTEGER, said_ms INTEGER, due_ms INTEGER NOT NULL, used_ms INTEGER NOT NULL, code TEXT NOT NULL, told TEXT NOT NULL,
        PRIMARY KEY (license, vm)
      ) STRICT;
      CREATE INDEX lease_vm ON lease(vm);
      CREATE TABLE license_word (license TEXT PRIMARY KEY, serial INTEGER NOT NULL, ended TEXT) STRICT;
      CREATE TABLE license_seat_time (
        id INTEGER PRIMARY KEY, license TEXT NOT NULL, vm TEXT NOT NULL, tenant TEXT NOT NULL, from_ms INTEGER NOT NULL, until_ms INTEGER
      ) STRICT;
      CREATE INDEX license_seat_open ON license_seat_time(license, vm, until_ms);
      CREATE TABLE license_fetch (
        day INTEGER NOT NULL, license TEXT NOT NULL, vm TEXT NOT NULL, tenant TEXT NOT NULL, fetches INTEGER NOT NULL, bytes INTEGER NOT NULL,
        PRIMARY KEY (day, license, vm, tenant)
      ) STRICT;
      CREATE TABLE license (id TEXT PRIMARY KEY, definition TEXT NOT NULL) STRICT;
      CREATE TABLE vm_tenant (vm TEXT PRIMARY KEY, tenant TEXT NOT NULL) STRICT;
      CREATE TABLE license_key (id INTEGER PRIMARY KEY CHECK (id = 1), key BLOB NOT NULL) STRICT;
    `),
  (db) =>
    db.exec(`
      CREATE TABLE license_blob (
        digest TEXT NOT NULL, license TEXT NOT NULL, proven INTEGER NOT NULL, PRIMARY KEY (digest, license)
      ) STRICT, WITHOUT ROWID;
    `),
];

/**
 * `asking`: the wish is on disk, the answer is not known: the server may have given a seat. `held`: it has. `releasing`: to be given
 * back, and the server has not said that it is. `refused`, `ended`: by the server's word.
 */
export type LeaseState = 'asking' | 'held' | 'releasing' | 'refused' | 'ended';

export type LeaseRow = {
  readonly license: string;
  readonly vm: VmId;
  readonly tenant: string;
  readonly state: LeaseState;
  /** The server's id of the lease; null where none is known. */
  readonly seat: string | null;
  readonly grantedAtMs: number | null;
  readonly expiresAtMs: number | null;
  /** When the server gave its word last. */
  readonly saidAtMs: number | null;
  /** When it is to be asked again. */
  readonly dueAtMs: number;
  /** When something was needed of it last. */
  readonly usedAtMs: number;
  readonly code: string;
  /** What of its running out is on the record. */
  readonly told: 'nothing' | 'grace' | 'expired';
};

/** What a server said of a license as a whole. */
export type LicenseWord = { readonly serial: number; readonly ended: string | null };

export type LeaseRows = {
  readonly get: (license: string, vm: VmId) => LeaseRow | null;
  /** By license and VM; of one VM, of one license, or all. */
  readonly list: (filter?: { readonly vm?: string; readonly license?: string }) => readonly LeaseRow[];
  /** On disk when it returns; opens and closes the time for which a seat is counted. */
  readonly put: (row: LeaseRow, nowMs: number) => void;
  readonly remove: (row: LeaseRow, nowMs: number) => void;
  readonly word: (license: string) => LicenseWord;
  readonly putWord: (license: string, word: LicenseWord) => void;
  readonly forgetWord: (license: string) => void;
  /** All of it is on disk afterwards, or none. */
  readonly atOnce: (work: () => void) => void;
  /** Made once for this host: what fingerprints are made with. */
  readonly hostKey: () => Uint8Array;
};

/** The rows of an open database with the migrations of this file applied. */
export function openLeaseRows(db: DatabaseSync): LeaseRows {
  const columns =
    'license, vm, tenant, state, seat, granted_ms, expires_ms, said_ms, due_ms, used_ms, code, told FROM lease';
  const get = db.prepare(`SELECT ${columns} WHERE license = ? AND vm = ?`);
  const all = db.prepare(`SELECT ${columns} ORDER BY license, vm`);
  const ofVm = db.prepare(`SELECT ${columns} WHERE vm = ? ORDER BY license`);
  const ofLicense = db.prepare(`SELECT ${columns} WHERE license = ? ORDER BY vm`);
  const put = db.prepare('INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)');
  const remove = db.prepare('DELETE FROM lease WHERE license = ? AND vm = ?');
  const open = db.prepare(
    'INSERT INTO license_seat_time (license, vm, tenant, from_ms) SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM license_seat_time WHERE license = ?1 AND vm = ?2 AND until_ms IS NULL)',
  );
  const close = db.prepare(
    'UPDATE license_seat_time SET until_ms = max(from_ms, ?) WHERE license = ? AND vm = ? AND until_ms IS NULL',
  );
  const word = db.prepare('SELECT serial, ended FROM license_word WHERE license = ?');
  const putWord = db.prepare('INSERT OR REPLACE INTO license_word VALUES (?, ?, ?)');
  const forgetWord = db.prepare('DELETE FROM license_word WHERE license = ?');
  const readKey = db.prepare('SELECT key FROM license_key');
  const writeKey = db.prepare('INSERT OR IGNORE INTO license_key VALUES (1, ?)');

  let depth = 0;
  const atOnce = (work: () => void): void => {
    if (depth > 0) {
      work();
      return;
    }
    depth += 1;
    try {
      inTransaction(db, work);
    } finally {
      depth -= 1;
    }
  };
  /** A seat that ran out is the server's again: it is counted until its end. */
  const count = (row: LeaseRow, nowMs: number): void => {
    const isHad = row.state === 'held' && row.told !== 'expired';
    if (isHad) open.run(row.license, row.vm, row.tenant, nowMs);
    else close.run(Math.min(nowMs, row.expiresAtMs ?? nowMs), row.license, row.vm);
  };
  return {
    get: (license, vm) => asRow(get.get(license, vm)),
    list: ({ vm, license } = {}) => {
      const found = vm !== undefined ? ofVm.all(vm) : license !== undefined ? ofLicense.all(license) : all.all();
      const rows = found.flatMap((each) => asRow(each) ?? []);
      return license === undefined ? rows : rows.filter((row) => row.license === license);
    },
    put: (row, nowMs) =>
      atOnce(() => {
        const { license, vm, tenant, state, seat, grantedAtMs, expiresAtMs, saidAtMs, dueAtMs, usedAtMs } = row;
        put.run(
          ...[license, vm, tenant, state, seat, grantedAtMs, expiresAtMs, saidAtMs],
          ...[dueAtMs, usedAtMs, row.code, row.told],
        );
        count(row, nowMs);
      }),
    remove: (row, nowMs) =>
      atOnce(() => {
        remove.run(row.license, row.vm);
        count({ ...row, state: 'ended' }, nowMs);
      }),
    word: (license) => {
      const row = word.get(license) as { serial: number; ended: string | null } | undefined; // The cast holds: only putWord writes this table.
      return row === undefined ? { serial: 0, ended: null } : { serial: row.serial, ended: row.ended };
    },
    putWord: (license, { serial, ended }) => void putWord.run(license, serial, ended),
    forgetWord: (license) => void forgetWord.run(license),
    atOnce,
    hostKey: () => {
      writeKey.run(randomBytes(32));
      return (readKey.get() as { key: Uint8Array }).key; // The cast holds: the row was written by the line above, or before.
    },
  };
}

function asRow(found: Record<string, unknown> | undefined): LeaseRow | null {
  if (found === undefined) return null;
  // The cast holds: only `put` writes this table.
  const row = found as {
    license: string;
    vm: VmId;
    tenant: string;
    state: LeaseState;
    seat: string | null;
    granted_ms: number | null;
    expires_ms: number | null;
    said_ms: number | null;
    due_ms: number;
    used_ms: number;
    code: string;
    told: LeaseRow['told'];
  };
  const { license, vm, tenant, state, seat, code, told } = row;
  return {
    ...{ license, vm, tenant, state, seat, code, told },
    ...{ grantedAtMs: row.granted_ms, expiresAtMs: row.expires_ms, saidAtMs: row.said_ms },
    ...{ dueAtMs: row.due_ms, usedAtMs: row.used_ms },
  };
}
