// The chain's table: how a record is kept, read back, and handed to the verifier as the line it was signed as.
//
// A row of the second format holds payload and signatures of its envelope; one of the first is as it was: nothing is rewritten.
import { setImmediate as nextTurn } from 'node:timers/promises';
import { AUDIT_KEYS_MAX, AUDIT_PAGE_BYTES_MAX, AUDIT_PAGE_MAX, AUDIT_VERIFY_SLICE_MAX } from '../base/limits.ts';
import type { DatabaseSync, Migration } from '../base/sqlite.ts';
import {
  type Envelope,
  envelopeLine,
  firstFormatLine,
  firstFormatSigned,
  readEnvelope,
  readStatement,
} from './envelope.ts';
import { AuditError } from './error.ts';
import { type PublicKey, readNamedKey } from './host-key.ts';
import { type AuditEntry, ZERO_HASH } from './record.ts';
import type { Link } from './verify.ts';

export const AUDIT_MIGRATIONS: readonly Migration[] = [
  (fresh) =>
    fresh.exec(`CREATE TABLE records (
      seq INTEGER PRIMARY KEY, vm TEXT, body TEXT NOT NULL, hash TEXT NOT NULL, signature TEXT NOT NULL
    ) STRICT; CREATE INDEX records_vm ON records (vm, seq)`),
  // Only the table's description changes: rows that are there keep every byte.
  (db) => db.exec('ALTER TABLE records ADD COLUMN format INTEGER NOT NULL DEFAULT 1'),
];

export type Row = {
  readonly seq: number;
  readonly vm: string | null;
  /** JSON: of the first format its body, of the second the statement. */
  readonly body: string;
  readonly hash: string;
  /** Of the first format base64, of the second the envelope's `signatures` as JSON. */
  readonly signature: string;
  readonly format: 1 | 2;
};

/** Where a chain ends. */
export type Head = { readonly seq: number; readonly hash: string };

export type LastRecord = Head & {
  /** Key id of the chain's first key; null while all records are of the first format, which had one key only. */
  readonly host: string | null;
  /** Whether the next record is this key's to sign. */
  readonly isCurrent: (key: PublicKey) => boolean;
};

/** What the last record says about the next one; null for an empty chain. Throws AuditError when it cannot be read. */
export function readLast(db: DatabaseSync): LastRecord | null {
  const [row] = readRows(() => db.prepare('SELECT * FROM records ORDER BY seq DESC LIMIT 1').iterate());
  if (row === undefined) return null;
  const { seq, hash } = row;
  if (row.format === 1) {
    const isCurrent = (key: PublicKey) => key.isSigned(firstFormatSigned(hash), row.signature);
    return { seq, hash, host: null, isCurrent };
  }
  const { envelope, said } = readBackLast(row);
  const keyid = said.record.kind === 'key-rotated' ? said.record.to.keyid : envelope.signatures[0]?.keyid;
  return { seq, hash, host: said.host, isCurrent: (key) => key.keyid === keyid };
}

function readBackLast(row: Row): ReturnType<typeof readBack> {
  try {
    return readBack(row);
  } catch (cause) {
    throw new AuditError('host-fault/audit-damaged', 'the last audit record does not say which key is in force', {
      cause,
      next: 'restore the audit folder from the backup, or move it away and keep it: a new chain begins',
    });
  }
}

export type RowQuery = { readonly afterSeq: number; readonly limit: number; readonly vm?: string };

/** Rows after a number, in order: at most `limit` and AUDIT_PAGE_MAX, and fewer where they are large. */
export function pageOfRows(db: DatabaseSync, { afterSeq, limit, vm }: RowQuery): readonly Row[] {
  const rowsMax = Math.max(0, Math.min(limit, AUDIT_PAGE_MAX));
  return readRows(() =>
    vm === undefined
      ? db.prepare('SELECT * FROM records WHERE seq > ? ORDER BY seq LIMIT ?').iterate(afterSeq, rowsMax)
      : db
          .prepare('SELECT * FROM records WHERE vm = ? AND seq > ? ORDER BY seq LIMIT ?')
          .iterate(vm, afterSeq, rowsMax),
  );
}

function readRows(query: () => Iterable<unknown>): readonly Row[] {
  const rows: Row[] = [];
  let bytes = 0;
  try {
    for (const found of query()) {
      // The cast holds for the table of our migrations; `linkOf` and `entryOf` look at what somebody else may have made of it.
      const row = { format: 1, ...(found as object) } as Row;
      rows.push(row);
      bytes += String(row.body).length;
      if (bytes >= AUDIT_PAGE_BYTES_MAX) break;
    }
  } catch (cause) {
    throw new AuditError('host-fault/audit-damaged', 'reading the audit database', {
      cause,
      next: 'look at the disk; restore the audit folder from the backup, and keep this one',
    });
  }
  return rows;
}

/** The keys that rotations took out of force, oldest first. Reads the whole table: only for a folder whose list of them is gone. */
export function pastKeys(db: DatabaseSync): readonly PublicKey[] {
  const rows = readRows(() =>
    db
      .prepare(
        `SELECT * FROM records WHERE format = 2 AND instr(body, '"kind":"key-rotated"') > 0 ORDER BY seq LIMIT ?`,
      )
      .iterate(AUDIT_KEYS_MAX),
  );
  return rows.flatMap((row) => {
    const { record } = readBack(row).said;
    const key = record.kind === 'key-rotated' ? readNamedKey(record.from) : null;
    return key === null ? [] : [key];
  });
}

/** The row as its line. */
export function lineOfRow({ seq, body, hash, signature, format }: Row): string {
  if (typeof body !== 'string' || typeof hash !== 'string' || typeof signature !== 'string') {
    throw new AuditError('host-fault/audit-damaged', `record ${seq} is not text`);
  }
  return format === 1 ? firstFormatLine({ body, hash, signature }) : envelopeLine(Buffer.from(body), signature);
}

/** The rows for the verifier, a slice at a time with a pause after each. */
export async function* linksOf(db: DatabaseSync): AsyncIterable<Link> {
  let afterSeq = 0;
  for (;;) {
    const rows = pageOfRows(db, { afterSeq, limit: AUDIT_VERIFY_SLICE_MAX });
    if (rows.length === 0) return;
    for (const row of rows) yield linkOfRow(row);
    afterSeq = rows.at(-1)?.seq ?? afterSeq;
    await nextTurn();
  }
}

/** The row for the verifier, with where it was filed. */
function linkOfRow(row: Row): Link {
  try {
    return { kind: 'line', line: lineOfRow(row), filed: { seq: row.seq, vm: row.vm, hash: row.hash } };
  } catch (error) {
    if (error instanceof AuditError) return { kind: 'unreadable', trouble: error.message };
    throw error;
  }
}

/** The row as a record for readers; whether it is genuine, only verify tells. Throws AuditError when it cannot be read. */
export function entryOf(row: Row): AuditEntry {
  const what = `audit record ${row.seq}`;
  const { seq, atMs, prev, record } = readStatement({ format: row.format, payload: row.body }, what);
  const signature = row.format === 1 ? row.signature : (/"sig":"([^"]*)"/.exec(row.signature)?.[1] ?? '');
  return { seq, atMs, prev, record, hash: row.hash, signature };
}

function readBack(row: Row): { envelope: Envelope; said: ReturnType<typeof readStatement> } {
  const what = `audit record ${row.seq}`;
  const envelope = readEnvelope(lineOfRow(row), what);
  return { envelope, said: readStatement(envelope, what) };
}

/** Where an empty chain ends. */
export const EMPTY: Head = { seq: 0, hash: ZERO_HASH };
