// What the reference license server knows, and the decisions it takes: each in one transaction, durable before it is answered.
import { createPrivateKey, randomBytes } from 'node:crypto';
import type { SQLInputValue } from 'node:sqlite';
import type { Clock } from '../../src/base/clock.ts';
import { digestOf, randomToken } from '../../src/base/digest.ts';
import { makePrivatePem, type SigningKey, signingKeyOf } from '../../src/base/dsse.ts';
import {
  LICENSE_REVOCATIONS_PAGE_MAX,
  LICENSE_SERVER_LEASE_KEPT_MS,
  LICENSE_SERVER_LOG_MAX,
} from '../../src/base/limits.ts';
import { printable } from '../../src/base/printable.ts';
import { type DatabaseSync, inTransaction, openDatabase } from '../../src/base/sqlite.ts';
import {
  type Answer,
  type AnyAnswer,
  type LeaseRequest,
  SERVER_CODES,
  type ServerCode,
} from '../../src/license/pratique-protocol.ts';
import { LICENSE_ID_PATTERN } from '../../src/model/license.ts';
import { LicenseServerError } from './error.ts';
import { LICENSE_SERVER_MIGRATIONS } from './schema.ts';

export type LicenseTerms = {
  readonly seats: number;
  readonly product: string | null;
  readonly tenant: string | null;
  readonly expiresAtMs: number | null;
  /** Longest lease, and longest one for use without the server; 0: none of these. */
  readonly leaseMaxMs: number;
  readonly checkoutMaxMs: number;
};

export type LicenseRow = LicenseTerms & {
  readonly id: string;
  readonly status: 'active' | 'suspended' | 'revoked';
  readonly serial: number;
  readonly used: number;
  readonly tokens: number;
  readonly createdAtMs: number;
};

export type SeatRow = {
  readonly id: string;
  readonly license: string;
  readonly fingerprint: string;
  readonly grantedAtMs: number;
  readonly expiresAtMs: number;
  readonly offline: boolean;
};

export type LogRow = {
  readonly seq: number;
  readonly atMs: number;
  readonly actor: string;
  readonly action: string;
  readonly license: string | null;
  readonly lease: string | null;
  readonly detail: string;
};

/** What is said of a request besides nonce and times, which the HTTP side adds. */
type Said<K extends AnyAnswer['kind']> = Omit<Answer<K>, 'format' | 'nonce' | 'license' | 'issuedAtMs' | 'expiresAtMs'>;

/** Who asks: the hash of the token, and the license it names. */
export type Asker = { readonly tokenHash: string; readonly license: string };

/** How a token is kept and looked for. It has 256 random bits, so that a plain hash of it cannot be turned round. */
export function tokenHashOf(token: string): string {
  return digestOf(token);
}

/** How the tokens begin: a scanner for leaked credentials finds them by it. */
const TOKEN_PREFIX = 'pratique_license_';

/** Serials that a host may claim to have seen: far beyond what is ever counted, and with room to count on. */
const SERIAL_BELIEVED_MAX = 2 ** 48;

/** The server's state over one database file, which the serving process and the admin commands share. */
export class LicenseStore {
  readonly #db: DatabaseSync;
  readonly #clock: Clock;
  #keys: { readonly seq: number; readonly keys: readonly SigningKey[] } = { seq: -1, keys: [] };

  constructor(path: string, clock: Clock) {
    this.#db = openDatabase(path, LICENSE_SERVER_MIGRATIONS);
    this.#clock = clock;
    inTransaction(this.#db, () => {
      if (this.#newestKey() === 0) this.#addKey();
    });
  }

  close(): void {
    this.#db.close();
  }

  // --- what hosts ask ---

  validate(asker: Asker): Said<'validation'> {
    return this.#atOnce(() => {
      const license = this.#licenseOf(asker);
      return { kind: 'validation', ...this.#verdict(license, this.#standing(license)) };
    });
  }

  /** A seat for this fingerprint: the one it has, or a free one. */
  lease(asker: Asker, request: LeaseRequest): Said<'lease'> {
    return this.#atOnce(() => this.#seat(asker, request, { leaseId: null, offline: false }));
  }

  /** The same seat for longer; one whose time was over is revived while there is a free one. */
  renew(asker: Asker, leaseId: string, request: LeaseRequest): Said<'lease'> {
    return this.#atOnce(() => this.#seat(asker, request, { leaseId, offline: false }));
  }

  checkout(asker: Asker, request: LeaseRequest): Said<'lease'> {
    return this.#atOnce(() => this.#seat(asker, request, { leaseId: null, offline: true }));
  }

  /** Frees a seat; `released` also when nothing was to be freed. */
  release(asker: Asker, leaseId: string): Said<'release'> {
    return this.#atOnce(() => {
      const license = this.#licenseOf(asker);
      if (license === null) return { kind: 'release', leaseId, released: false, code: 'NOT_FOUND' };
      const { changes } = this.#run('DELETE FROM leases WHERE id = ? AND license = ?', leaseId, license.id);
      if (Number(changes) > 0) this.#note('host', 'release', license.id, leaseId);
      return { kind: 'release', leaseId, released: true, code: 'VALID' };
    });
  }

  revocations(asker: Asker, since: number): Said<'revocations'> {
    return this.#atOnce(() => {
      const license = this.#licenseOf(asker);
      if (license === null) {
        return { kind: 'revocations', code: 'NOT_FOUND', since, serial: since, more: false, revoked: [] };
      }
      // A host has seen more than we know: this is a restored copy, and what is told next must come after.
      if (since > license.serial && since <= SERIAL_BELIEVED_MAX) {
        this.#run('UPDATE licenses SET serial = ? WHERE id = ?', since, license.id);
      }
      const lastSerial = this.#known(license.id).serial;
      const rows = this.#all(
        'SELECT serial, lease, code, at_ms FROM revocations WHERE license = ? AND serial > ? ORDER BY serial LIMIT ?',
        license.id,
        since,
        LICENSE_REVOCATIONS_PAGE_MAX + 1,
      );
      const revoked = rows.slice(0, LICENSE_REVOCATIONS_PAGE_MAX).map((row) => ({
        serial: Number(row.serial),
        leaseId: textOrNull(row.lease),
        code: String(row.code),
        atMs: Number(row.at_ms),
      }));
      const more = rows.length > revoked.length;
      const serial = more ? (revoked.at(-1)?.serial ?? since) : lastSerial;
      return { kind: 'revocations', code: this.#standing(license), since, serial, more, revoked };
    });
  }

  /** Whether the token is one of ours, whatever license it is for. */
  knowsToken(tokenHash: string): boolean {
    return this.#one('SELECT 1 FROM tokens WHERE hash = ?', tokenHash) !== null;
  }

  /** The keys that sign: the newest first, and the one before it. */
  signingKeys(): readonly SigningKey[] {
    const newest = this.#newestKey();
    if (newest === this.#keys.seq) return this.#keys.keys;
    const keys = this.#all('SELECT pem FROM keys ORDER BY seq DESC LIMIT 2').map(({ pem }) => readKey(String(pem)));
    this.#keys = { seq: newest, keys };
    return keys;
  }

  // --- what the administrator does ---

  /** Makes a license and its first token, which is told this once. Throws LicenseServerError `conflict/license`. */
  create(id: string, terms: LicenseTerms): { readonly license: LicenseRow; readonly token: string } {
    if (!new RegExp(LICENSE_ID_PATTERN).test(id)) {
      throw new LicenseServerError('usage/license-id', `${printable(id)} is no id of a license`, {
        next: 'use lower-case letters, digits, dots, dashes and underscores',
      });
    }
    return this.#atOnce(() => {
      if (this.#find(id) !== null) {
        throw new LicenseServerError('conflict/license', `the license ${id} exists already`, {
          next: 'choose another id, or make a further token of it: pratique license-server token',
        });
      }
      this.#run(
        `INSERT INTO licenses (id, seats, product, tenant, status, expires_at_ms, lease_max_ms, checkout_max_ms, created_at_ms)
         VALUES (?, ?, ?, ?, 'active', ?, ?, ?, ?)`,
        id,
        terms.seats,
        terms.product,
        terms.tenant,
        terms.expiresAtMs,
        terms.leaseMaxMs,
        terms.checkoutMaxMs,
        this.#clock.nowMs(),
      );
      this.#note('admin', 'create', id, null, `${terms.seats} seats`);
      const token = this.#addToken(id);
      return { license: this.#known(id), token };
    });
  }

  /** Makes a further token; `isOnly`: the ones before it end. */
  addToken(id: string, { isOnly }: { readonly isOnly: boolean }): string {
    return this.#atOnce(() => {
      this.#known(id);
      if (isOnly) this.#run('DELETE FROM tokens WHERE license = ?', id);
      this.#note('admin', 'token', id, null, isOnly ? 'the earlier ones ended' : '');
      return this.#addToken(id);
    });
  }

  /** Changes terms; leases that are held stay as they are. */
  change(id: string, terms: Partial<LicenseTerms>): LicenseRow {
    return this.#atOnce(() => {
      const { seats, product, tenant, expiresAtMs, leaseMaxMs, checkoutMaxMs } = { ...this.#known(id), ...terms };
      this.#run(
        `UPDATE licenses SET seats = ?, product = ?, tenant = ?, expires_at_ms = ?, lease_max_ms = ?, checkout_max_ms = ? WHERE id = ?`,
        seats,
        product,
        tenant,
        expiresAtMs,
        leaseMaxMs,
        checkoutMaxMs,
        id,
      );
      this.#note('admin', 'change', id, null, Object.keys(terms).join(', '));
      return this.#known(id);
    });
  }

  suspend(id: string): LicenseRow {
    return this.#setStatus(id, 'suspended', 'SUSPENDED');
  }

  revoke(id: string): LicenseRow {
    return this.#setStatus(id, 'revoked', 'REVOKED');
  }

  /** Makes a suspended or revoked license valid again; what was said of it as a whole is withdrawn. */
  reinstate(id: string): LicenseRow {
    return this.#atOnce(() => {
      this.#known(id);
      this.#run("UPDATE licenses SET status = 'active' WHERE id = ?", id);
      this.#run('DELETE FROM revocations WHERE license = ? AND lease IS NULL', id);
      this.#note('admin', 'reinstate', id);
      return this.#known(id);
    });
  }

  /** Lets a license end now. */
  expire(id: string): LicenseRow {
    return this.change(id, { expiresAtMs: this.#clock.nowMs() });
  }

  /** Ends one lease and bars its machine. Throws LicenseServerError `not-found/lease`. */
  revokeLease(id: string, leaseId: string): void {
    this.#atOnce(() => {
      const row = this.#one('SELECT fingerprint FROM leases WHERE id = ? AND license = ?', leaseId, id);
      if (row === null) throw noLease(id, leaseId);
      this.#run('DELETE FROM leases WHERE id = ?', leaseId);
      this.#run('INSERT OR REPLACE INTO barred VALUES (?, ?, ?)', id, String(row.fingerprint), leaseId);
      this.#tell(id, leaseId, 'BANNED');
      this.#note('admin', 'revoke-lease', id, leaseId);
    });
  }

  /** Lets the machine of a revoked lease ask again. Throws LicenseServerError `not-found/lease`. */
  reinstateLease(id: string, leaseId: string): void {
    this.#atOnce(() => {
      const { changes } = this.#run('DELETE FROM barred WHERE license = ? AND lease = ?', id, leaseId);
      if (Number(changes) === 0) throw noLease(id, leaseId);
      this.#run('DELETE FROM revocations WHERE license = ? AND lease = ?', id, leaseId);
      this.#note('admin', 'reinstate-lease', id, leaseId);
    });
  }

  list(): readonly LicenseRow[] {
    return this.#all('SELECT id FROM licenses ORDER BY id').map(({ id }) => this.#known(String(id)));
  }

  /** The license, with its use. Throws LicenseServerError `not-found/license`. */
  show(id: string): LicenseRow {
    return this.#known(id);
  }

  /** The seats that are held now. */
  seats(id: string): readonly SeatRow[] {
    this.#known(id);
    return this.#all(
      'SELECT * FROM leases WHERE license = ? AND expires_at_ms > ? ORDER BY granted_at_ms, id',
      id,
      this.#clock.nowMs(),
    ).map(seatOf);
  }

  /** What was decided, newest last. */
  log(limit: number): readonly LogRow[] {
    return this.#all('SELECT * FROM log ORDER BY seq DESC LIMIT ?', limit)
      .toReversed()
      .map((row) => ({
        seq: Number(row.seq),
        atMs: Number(row.at_ms),
        actor: String(row.actor),
        action: String(row.action),
        license: textOrNull(row.license),
        lease: textOrNull(row.lease),
        detail: String(row.detail),
      }));
  }

  /** Makes a new key sign, beside the one before it: hosts that know either go on. */
  rotateKey(): void {
    this.#atOnce(() => {
      this.#addKey();
      this.#note('admin', 'rotate-key', null);
    });
  }

  // --- inside ---

  #seat(
    asker: Asker,
    { fingerprint, durationMs }: LeaseRequest,
    { leaseId, offline }: { readonly leaseId: string | null; readonly offline: boolean },
  ): Said<'lease'> {
    const license = this.#licenseOf(asker);
    const refused = (code: ServerCode): Said<'lease'> => {
      if (license !== null) this.#note('host', 'refuse', license.id, leaseId, code);
      return { kind: 'lease', ...this.#verdict(license, code), lease: null };
    };
    const standing = this.#standing(license);
    if (license === null || standing !== 'VALID') return refused(standing);
    if (offline && license.checkoutMaxMs === 0) return refused('CHECKOUT_NOT_ALLOWED');
    if (this.#one('SELECT 1 FROM barred WHERE license = ? AND fingerprint = ?', license.id, fingerprint) !== null) {
      return refused('BANNED');
    }
    const held = this.#heldBy(license.id, fingerprint);
    if (leaseId !== null && held?.id !== leaseId) return refused('NO_MACHINE');
    const nowMs = this.#clock.nowMs();
    const isAlive = held !== null && held.expiresAtMs > nowMs;
    if (!isAlive && license.used >= license.seats) return refused('TOO_MANY_MACHINES');
    const longestMs = offline ? license.checkoutMaxMs : license.leaseMaxMs;
    const wantedMs = Math.min(nowMs + Math.min(durationMs, longestMs), license.expiresAtMs ?? Number.MAX_SAFE_INTEGER);
    const lease = {
      id: held?.id ?? randomToken(),
      fingerprint,
      grantedAtMs: nowMs,
      // What was checked out stays out for as long, whoever asks meanwhile.
      expiresAtMs: held?.offline === true ? Math.max(held.expiresAtMs, wantedMs) : wantedMs,
      offline: offline || (isAlive && held.offline),
    };
    this.#putLease(license.id, lease);
    if (!isAlive) this.#note('host', offline ? 'checkout' : 'grant', license.id, lease.id);
    return { kind: 'lease', ...this.#verdict(isAlive ? license : this.#known(license.id), 'VALID'), lease };
  }

  #putLease(license: string, lease: Omit<SeatRow, 'license'>): void {
    this.#run(
      `INSERT INTO leases (id, license, fingerprint, granted_at_ms, expires_at_ms, offline) VALUES (?, ?, ?, ?, ?, ?)
       ON CONFLICT (license, fingerprint)
       DO UPDATE SET granted_at_ms = excluded.granted_at_ms, expires_at_ms = excluded.expires_at_ms, offline = excluded.offline`,
      lease.id,
      license,
      lease.fingerprint,
      lease.grantedAtMs,
      lease.expiresAtMs,
      lease.offline ? 1 : 0,
    );
    this.#run(
      'DELETE FROM leases WHERE license = ? AND expires_at_ms < ?',
      license,
      lease.grantedAtMs - LICENSE_SERVER_LEASE_KEPT_MS,
    );
  }

  #heldBy(license: string, fingerprint: string): SeatRow | null {
    const row = this.#one('SELECT * FROM leases WHERE license = ? AND fingerprint = ?', license, fingerprint);
    return row === null ? null : seatOf(row);
  }

  /** The license that this token is for, when that is the one it was asked about. */
  #licenseOf({ tokenHash, license }: Asker): LicenseRow | null {
    const row = this.#one('SELECT license FROM tokens WHERE hash = ? AND license = ?', tokenHash, license);
    return row === null ? null : this.#find(license);
  }

  #standing(license: LicenseRow | null): ServerCode {
    if (license === null) return 'NOT_FOUND';
    if (license.status === 'revoked') return 'REVOKED';
    if (license.status === 'suspended') return 'SUSPENDED';
    const isOver = license.expiresAtMs !== null && license.expiresAtMs <= this.#clock.nowMs();
    return isOver ? 'EXPIRED' : 'VALID';
  }

  #verdict(license: LicenseRow | null, code: ServerCode): Omit<Said<'validation'>, 'kind'> {
    return {
      valid: code === 'VALID',
      code,
      detail: `the license ${SERVER_CODES[code]}`,
      seats: license === null ? null : { used: license.used, total: license.seats },
      licenseExpiresAtMs: license?.expiresAtMs ?? null,
    };
  }

  #setStatus(id: string, status: LicenseRow['status'], code: ServerCode): LicenseRow {
    return this.#atOnce(() => {
      if (this.#known(id).status === status) return this.#known(id);
      this.#run('UPDATE licenses SET status = ? WHERE id = ?', status, id);
      this.#tell(id, null, code);
      this.#note('admin', status, id);
      return this.#known(id);
    });
  }

  /** Puts a word on the license's list of revocations, under the next serial. */
  #tell(license: string, leaseId: string | null, code: ServerCode): void {
    this.#run('UPDATE licenses SET serial = serial + 1 WHERE id = ?', license);
    const { serial } = this.#known(license);
    this.#run('INSERT INTO revocations VALUES (?, ?, ?, ?, ?)', license, serial, leaseId, code, this.#clock.nowMs());
  }

  #addToken(license: string): string {
    const token = `${TOKEN_PREFIX}${randomBytes(32).toString('base64url')}`;
    this.#run('INSERT INTO tokens VALUES (?, ?, ?)', tokenHashOf(token), license, this.#clock.nowMs());
    return token;
  }

  #known(id: string): LicenseRow {
    const found = this.#find(id);
    if (found !== null) return found;
    throw new LicenseServerError('not-found/license', `there is no license ${id}`, {
      next: 'see pratique license-server list',
    });
  }

  #find(id: string): LicenseRow | null {
    const row = this.#one(
      `SELECT *, (SELECT count(*) FROM leases WHERE license = licenses.id AND leases.expires_at_ms > ?) AS used,
         (SELECT count(*) FROM tokens WHERE license = licenses.id) AS tokens FROM licenses WHERE id = ?`,
      this.#clock.nowMs(),
      id,
    );
    if (row === null) return null;
    return {
      id: String(row.id),
      seats: Number(row.seats),
      product: textOrNull(row.product),
      tenant: textOrNull(row.tenant),
      status: String(row.status) as LicenseRow['status'], // The cast holds: the table takes no other word.
      expiresAtMs: row.expires_at_ms === null ? null : Number(row.expires_at_ms),
      leaseMaxMs: Number(row.lease_max_ms),
      checkoutMaxMs: Number(row.checkout_max_ms),
      serial: Number(row.serial),
      used: Number(row.used),
      tokens: Number(row.tokens),
      createdAtMs: Number(row.created_at_ms),
    };
  }

  #note(
    actor: 'admin' | 'host',
    action: string,
    license: string | null,
    lease: string | null = null,
    detail = '',
  ): void {
    const { lastInsertRowid } = this.#run(
      'INSERT INTO log (at_ms, actor, action, license, lease, detail) VALUES (?, ?, ?, ?, ?, ?)',
      this.#clock.nowMs(),
      actor,
      action,
      license,
      lease,
      detail,
    );
    this.#run('DELETE FROM log WHERE seq <= ?', Number(lastInsertRowid) - LICENSE_SERVER_LOG_MAX);
  }

  #newestKey(): number {
    return Number(this.#one('SELECT max(seq) AS newest FROM keys')?.newest ?? 0);
  }

  #addKey(): void {
    this.#run('INSERT INTO keys (pem, made_at_ms) VALUES (?, ?)', makePrivatePem(), this.#clock.nowMs());
  }

  #atOnce<T>(work: () => T): T {
    return inTransaction(this.#db, work);
  }

  readonly #statements = new Map<string, ReturnType<DatabaseSync['prepare']>>();

  #prepared(sql: string): ReturnType<DatabaseSync['prepare']> {
    const found = this.#statements.get(sql) ?? this.#db.prepare(sql);
    this.#statements.set(sql, found);
    return found;
  }

  #run(sql: string, ...values: readonly SQLInputValue[]): ReturnType<ReturnType<DatabaseSync['prepare']>['run']> {
    return this.#prepared(sql).run(...values);
  }

  #one(sql: string, ...values: readonly SQLInputValue[]): Row | null {
    return this.#prepared(sql).get(...values) ?? null;
  }

  #all(sql: string, ...values: readonly SQLInputValue[]): readonly Row[] {
    return this.#prepared(sql).all(...values);
  }
}

type Row = Readonly<Record<string, unknown>>;

function seatOf(row: Row): SeatRow {
  return {
    id: String(row.id),
    license: String(row.license),
    fingerprint: String(row.fingerprint),
    grantedAtMs: Number(row.granted_at_ms),
    expiresAtMs: Number(row.expires_at_ms),
    offline: Number(row.offline) === 1,
  };
}

function textOrNull(value: unknown): string | null {
  return value === null || value === undefined ? null : String(value);
}

function noLease(license: string, leaseId: string): LicenseServerError {
  return new LicenseServerError('not-found/lease', `the license ${license} has no lease ${leaseId}`, {
    next: `see pratique license-server leases ${license}`,
  });
}

function readKey(pem: string): SigningKey {
  const key = signingKeyOf(createPrivateKey(pem));
  if (key === null)
    throw new LicenseServerError('host-fault/license-server-key', 'the key in the database is not ed25519');
  return key;
}
