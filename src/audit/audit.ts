// The chain of signed records of every decision to plug in or not (X2). Appends are durable before they are answered.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { digestOf } from '../base/digest.ts';
import { canonicalJson } from '../base/digest-text.ts';
import { makeGathering } from '../base/gather.ts';
import { AUDIT_BATCH_MAX, AUDIT_PAGE_MAX, AUDIT_QUEUE_MAX, AUDIT_RECORD_BYTES_MAX } from '../base/limits.ts';
import type { Log } from '../base/log.ts';
import { parseJson } from '../base/parse.ts';
import { type DatabaseSync, inTransaction, openDatabase } from '../base/sqlite.ts';
import { AuditError } from './error.ts';
import { type HostKey, openHostKey } from './host-key.ts';
import { type AuditEntry, type AuditRecord, type Checkpoint, signedText, ZERO_HASH } from './record.ts';
import { type AuditReport, type Row, verifyChain } from './verify.ts';

export type Audit = {
  /** Resolves when the record is on disk; many at once share one write. Throws AuditError when it could not be written. */
  readonly append: (record: AuditRecord) => Promise<{ readonly seq: number; readonly hash: string }>;
  /** Records after a number, oldest first, at most AUDIT_PAGE_MAX. */
  readonly entries: (query: {
    readonly afterSeq: number;
    readonly limit: number;
    readonly vm?: string;
  }) => readonly AuditEntry[];
  /** Walks the whole chain; with a checkpoint kept elsewhere it also tells whether the tail was cut or replaced since. */
  readonly verify: (options?: { readonly checkpoint?: Checkpoint }) => Promise<AuditReport>;
  readonly checkpoint: () => Checkpoint;
  /** PEM of the key that verifies the signatures. */
  readonly publicKey: string;
  /** Writes what waits, then closes. */
  readonly close: () => Promise<void>;
};

export type AuditOptions = { readonly folder: string; readonly clock: Clock; readonly log: Log };

/** Opens the chain of a folder (made if missing). Throws AuditError when its key is missing or open to others. */
export async function openAudit(options: AuditOptions): Promise<Audit> {
  await mkdir(options.folder, { recursive: true, mode: 0o700 });
  const db = openDatabase(join(options.folder, 'audit.db'), [
    (fresh) =>
      fresh.exec(`CREATE TABLE records (
        seq INTEGER PRIMARY KEY, vm TEXT, body TEXT NOT NULL, hash TEXT NOT NULL, signature TEXT NOT NULL
      ) STRICT; CREATE INDEX records_vm ON records (vm, seq)`),
  ]);
  try {
    const key = await openHostKey(options.folder, { mayMake: readHead(db).seq === 0 });
    return new Chain(db, key, options);
  } catch (error) {
    db.close();
    throw error;
  }
}

type Waiting = {
  readonly record: AuditRecord;
  /** Its canonical JSON: made once, for its size and for its hash. */
  readonly text: string;
  readonly resolve: (written: { readonly seq: number; readonly hash: string }) => void;
  readonly reject: (error: unknown) => void;
};
type Head = { readonly seq: number; readonly hash: string };

class Chain implements Audit {
  readonly publicKey: string;
  readonly #db: DatabaseSync;
  readonly #key: HostKey;
  readonly #clock: Clock;
  readonly #log: Log;
  #head: Head;
  #waiting: Waiting[] = [];
  #isClosed = false;

  constructor(db: DatabaseSync, key: HostKey, { clock, log }: AuditOptions) {
    this.#db = db;
    this.#key = key;
    this.#clock = clock;
    this.#log = log;
    this.#head = readHead(db);
    this.publicKey = key.publicPem;
  }

  append(record: AuditRecord): Promise<Head> {
    const text = canonicalJson(record);
    const trouble = this.#whyNotAppend(record, text);
    if (trouble !== null) return Promise.reject(trouble);
    return new Promise((resolve, reject) => {
      this.#waiting.push({ record, text, resolve, reject });
      this.#schedule();
    });
  }

  entries({ afterSeq, limit, vm }: { afterSeq: number; limit: number; vm?: string }): readonly AuditEntry[] {
    const rowsMax = Math.max(0, Math.min(limit, AUDIT_PAGE_MAX));
    const rows =
      vm === undefined
        ? this.#db.prepare('SELECT * FROM records WHERE seq > ? ORDER BY seq LIMIT ?').all(afterSeq, rowsMax)
        : this.#db
            .prepare('SELECT * FROM records WHERE vm = ? AND seq > ? ORDER BY seq LIMIT ?')
            .all(vm, afterSeq, rowsMax);
    return rows.map((row) => entryOf(row as Row));
  }

  verify(options: { readonly checkpoint?: Checkpoint } = {}): Promise<AuditReport> {
    const statement = this.#db.prepare('SELECT * FROM records WHERE seq > ? ORDER BY seq LIMIT ?');
    // The cast holds: these are the columns of the table.
    const page = (afterSeq: number) => statement.all(afterSeq, AUDIT_PAGE_MAX) as Row[];
    return verifyChain({ page, key: this.#key, ...options });
  }

  checkpoint(): Checkpoint {
    const said = {
      format: 'pratique.checkpoint/1',
      records: this.#head.seq,
      head: this.#head.hash,
      atMs: this.#clock.nowMs(),
    } as const;
    return { ...said, signature: this.#key.sign(canonicalJson(said)) };
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    while (this.#waiting.length > 0) this.#flush();
    this.#db.close();
  }

  #whyNotAppend(record: AuditRecord, text: string): AuditError | null {
    if (this.#isClosed)
      return new AuditError('host-fault/audit-closed', `recording ${record.kind}: the audit is closed`);
    if (this.#waiting.length >= AUDIT_QUEUE_MAX) {
      return new AuditError(
        'host-fault/audit-busy',
        `recording ${record.kind}: ${AUDIT_QUEUE_MAX} records already wait`,
        {
          next: 'look for a slow or full disk',
        },
      );
    }
    if (Buffer.byteLength(text) <= AUDIT_RECORD_BYTES_MAX) return null;
    return new AuditError('internal/audit-record', `a ${record.kind} record is over ${AUDIT_RECORD_BYTES_MAX} bytes`);
  }

  /** Group commit: whatever is appended in the same moment shares one transaction, so one fsync. */
  readonly #schedule = makeGathering(() => {
    if (this.#isClosed) return;
    this.#flush();
    if (this.#waiting.length > 0) this.#schedule();
  });

  #flush(): void {
    const batch = this.#waiting.slice(0, AUDIT_BATCH_MAX);
    this.#waiting = this.#waiting.slice(AUDIT_BATCH_MAX);
    try {
      const written = inTransaction(this.#db, () => this.#insert(batch));
      this.#head = written.at(-1) ?? this.#head;
      for (const [index, { resolve }] of batch.entries()) resolve(written[index] ?? this.#head);
    } catch (cause) {
      this.#log.error({ err: cause, records: batch.length }, 'audit records could not be written');
      for (const { record, reject } of batch) {
        reject(
          new AuditError('host-fault/audit-write', `recording ${record.kind}`, {
            cause,
            next: 'check the free space and the permissions of the audit folder',
          }),
        );
      }
    }
  }

  #insert(batch: readonly Waiting[]): readonly Head[] {
    const insert = this.#db.prepare('INSERT INTO records (seq, vm, body, hash, signature) VALUES (?, ?, ?, ?, ?)');
    let head = this.#head;
    return batch.map(({ record, text }) => {
      const seq = head.seq + 1;
      // Canonical JSON of the whole: its four keys are in order.
      const body = `{"atMs":${this.#clock.nowMs()},"prev":"${head.hash}","record":${text},"seq":${seq}}`;
      const hash = digestOf(body);
      insert.run(seq, record.vm ?? null, body, hash, this.#key.sign(signedText(hash)));
      head = { seq, hash };
      return head;
    });
  }
}

function readHead(db: DatabaseSync): Head {
  const row = db.prepare('SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1').get() as Head | undefined;
  return row === undefined ? { seq: 0, hash: ZERO_HASH } : { seq: row.seq, hash: row.hash };
}

function entryOf(row: Row): AuditEntry {
  // The cast holds for a body that this program wrote; verify tells whether it did.
  const body = parseJson(row.body, `audit record ${row.seq}`, 'host-fault/audit-damaged') as Pick<
    AuditEntry,
    'atMs' | 'prev' | 'record'
  >;
  return {
    seq: row.seq,
    atMs: body.atMs,
    prev: body.prev,
    record: body.record,
    hash: row.hash,
    signature: row.signature,
  };
}
