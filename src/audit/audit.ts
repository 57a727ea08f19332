// The chain of signed records of every decision to plug in or not (X2). Appends are durable before they are answered.
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { digestOf } from '../base/digest.ts';
import { canonicalJson } from '../base/digest-text.ts';
import { makeFolderDurably } from '../base/durable-file.ts';
import { makeGathering } from '../base/gather.ts';
import { AUDIT_BATCH_MAX, AUDIT_QUEUE_MAX, AUDIT_RECORD_BYTES_MAX } from '../base/limits.ts';
import type { Log } from '../base/log.ts';
import { type DatabaseSync, inTransaction, openDatabase } from '../base/sqlite.ts';
import { type Draft, draftOf, envelopeLine, payloadOf, preAuthentication, signaturesText } from './envelope.ts';
import { AuditError } from './error.ts';
import { finishRotation, type HostKey, makeNextKey, openHostKey, type PublicKey, readFolderKeys } from './host-key.ts';
import type { AuditEntry, AuditRecord, ChainRecord, Checkpoint } from './record.ts';
import {
  AUDIT_MIGRATIONS,
  EMPTY,
  entryOf,
  type Head,
  lineOfRow,
  linksOf,
  pageOfRows,
  pastKeys,
  readLast,
} from './rows.ts';
import { type AuditReport, verifyChain } from './verify.ts';

export type Audit = {
  /** Resolves when the record is on disk; many at once share one write. Throws AuditError when it could not be written. */
  readonly append: (record: AuditRecord) => Promise<Head>;
  /** Records after a number, oldest first, at most AUDIT_PAGE_MAX, and fewer where they are large; none: the end. */
  readonly entries: (query: {
    readonly afterSeq: number;
    readonly limit: number;
    readonly vm?: string;
  }) => readonly AuditEntry[];
  /** The same records as the lines of an export (docs/audit.md). */
  readonly lines: (query: { readonly afterSeq: number; readonly limit: number }) => LinesPage;
  /** Walks the whole chain; with a checkpoint kept elsewhere it also tells whether the tail was cut or replaced since. */
  readonly verify: (options?: { readonly checkpoint?: Checkpoint }) => Promise<AuditReport>;
  readonly checkpoint: () => Checkpoint;
  /** Makes another key sign from now on. Throws AuditError, and the old one stays in force, when it could not be recorded. */
  readonly rotateKey: (options: { readonly actor: string }) => Promise<Head & { readonly keyid: string }>;
  /** PEM of the key that signs now. */
  readonly publicKey: string;
  /** Writes what waits, then closes. */
  readonly close: () => Promise<void>;
};

/** `lastSeq`: after which the next page begins; a chain that was tampered with may have gaps. */
export type LinesPage = { readonly lines: readonly string[]; readonly lastSeq: number };

export type AuditOptions = { readonly folder: string; readonly clock: Clock; readonly log: Log };

/** Opens the chain of a folder (made if missing). Throws AuditError when its key is missing, another one or open to others. */
export async function openAudit(options: AuditOptions): Promise<Audit> {
  await makeFolderDurably(options.folder, 0o700);
  const db = openDatabase(join(options.folder, 'audit.db'), AUDIT_MIGRATIONS);
  try {
    const last = readLast(db);
    const isCurrent = last === null ? () => true : last.isCurrent;
    const past = () => pastKeys(db);
    const key = await openHostKey(options.folder, { mayMake: last === null, isCurrent, past });
    return new Chain({ db, key, head: last ?? EMPTY, host: last?.host ?? key.keyid }, options);
  } catch (error) {
    db.close();
    throw error;
  }
}

type Waiting = {
  readonly kind: string;
  readonly vm: string | null;
  readonly draft: Draft;
  /** The key that this record puts in force. */
  readonly next: HostKey | null;
  readonly resolve: (written: Head) => void;
  readonly reject: (error: unknown) => void;
};
type Opened = { readonly db: DatabaseSync; readonly key: HostKey; readonly head: Head; readonly host: string };

class Chain implements Audit {
  readonly #db: DatabaseSync;
  readonly #options: AuditOptions;
  /** Key id of the first key: names the chain. */
  readonly #host: string;
  #key: HostKey;
  #head: Head;
  #waiting: Waiting[] = [];
  #isRotating = false;
  #isClosed = false;

  constructor({ db, key, head, host }: Opened, options: AuditOptions) {
    this.#db = db;
    this.#key = key;
    this.#head = { seq: head.seq, hash: head.hash };
    this.#host = host;
    this.#options = options;
  }

  get publicKey(): string {
    return this.#key.publicPem;
  }

  append(record: AuditRecord): Promise<Head> {
    return this.#add(record, null);
  }

  entries(query: { afterSeq: number; limit: number; vm?: string }): readonly AuditEntry[] {
    return pageOfRows(this.#db, query).map(entryOf);
  }

  lines(query: { afterSeq: number; limit: number }): LinesPage {
    const rows = pageOfRows(this.#db, query);
    return { lines: rows.map(lineOfRow), lastSeq: rows.at(-1)?.seq ?? query.afterSeq };
  }

  async verify(options: { readonly checkpoint?: Checkpoint } = {}): Promise<AuditReport> {
    const keys: readonly PublicKey[] = await readFolderKeys(this.#options.folder);
    return await verifyChain({ links: linksOf(this.#db), keys, ...options });
  }

  checkpoint(): Checkpoint {
    const said = {
      format: 'pratique.checkpoint/2',
      records: this.#head.seq,
      head: this.#head.hash,
      atMs: this.#options.clock.nowMs(),
      keyid: this.#key.keyid,
    } as const;
    return { ...said, signature: this.#key.sign(canonicalJson(said)) };
  }

  async rotateKey({ actor }: { readonly actor: string }): Promise<Head & { readonly keyid: string }> {
    if (this.#isRotating) throw new AuditError('conflict/audit-rotation', 'the audit key is being rotated already');
    this.#isRotating = true;
    try {
      const next = await makeNextKey(this.#options.folder, this.#key);
      const from = { keyid: this.#key.keyid, publicKey: this.#key.publicKey };
      const to = { keyid: next.keyid, publicKey: next.publicKey };
      const written = await this.#add({ kind: 'key-rotated', actor, from, to }, next);
      // The record decides: what cannot be finished now is finished at the next rotation or start.
      await finishRotation(this.#options.folder, next).catch((err: unknown) => {
        this.#options.log.error({ err }, 'the new audit key is in force, but its file is not in its place yet');
      });
      return { ...written, keyid: next.keyid };
    } finally {
      this.#isRotating = false;
    }
  }

  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    while (this.#waiting.length > 0) this.#flush();
    this.#db.close();
  }

  #add(record: ChainRecord, next: HostKey | null): Promise<Head> {
    const draft = draftOf(record);
    const trouble = this.#whyNotAppend(record.kind, draft);
    if (trouble !== null) return Promise.reject(trouble);
    const vm = 'vm' in record ? (record.vm ?? null) : null;
    return new Promise((resolve, reject) => {
      this.#waiting.push({ kind: record.kind, vm, draft, next, resolve, reject });
      this.#schedule();
    });
  }

  #whyNotAppend(kind: string, { details, subject }: Draft): AuditError | null {
    if (this.#isClosed) return new AuditError('host-fault/audit-closed', `recording ${kind}: the audit is closed`);
    if (this.#waiting.length >= AUDIT_QUEUE_MAX) {
      return new AuditError('host-fault/audit-busy', `recording ${kind}: ${AUDIT_QUEUE_MAX} records already wait`, {
        next: 'look for a slow or full disk',
      });
    }
    if (Buffer.byteLength(details) + Buffer.byteLength(subject) <= AUDIT_RECORD_BYTES_MAX) return null;
    return new AuditError('internal/audit-record', `a ${kind} record is over ${AUDIT_RECORD_BYTES_MAX} bytes`);
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
      this.#key = batch.findLast(({ next }) => next !== null)?.next ?? this.#key;
      for (const [index, { resolve }] of batch.entries()) resolve(written[index] ?? this.#head);
    } catch (cause) {
      this.#options.log.error({ err: cause, records: batch.length }, 'audit records could not be written');
      for (const { kind, reject } of batch) {
        reject(
          new AuditError('host-fault/audit-write', `recording ${kind}`, {
            cause,
            next: 'check the free space and the permissions of the audit folder',
          }),
        );
      }
    }
  }

  #insert(batch: readonly Waiting[]): readonly Head[] {
    const insert = this.#db.prepare(
      'INSERT INTO records (seq, vm, body, hash, signature, format) VALUES (?, ?, ?, ?, ?, 2)',
    );
    let head = this.#head;
    let key = this.#key;
    return batch.map(({ vm, draft, next }) => {
      const seq = head.seq + 1;
      const payload = payloadOf(draft, {
        seq,
        prev: head.hash,
        atMs: this.#options.clock.nowMs(),
        host: this.#host,
      });
      const bytes = Buffer.from(payload);
      const signed = preAuthentication(bytes);
      const signers = next === null ? [key] : [key, next];
      const signatures = signaturesText(signers.map((each) => ({ keyid: each.keyid, sig: each.sign(signed) })));
      const hash = digestOf(envelopeLine(bytes, signatures));
      insert.run(seq, vm, payload, hash, signatures);
      head = { seq, hash };
      key = next ?? key;
      return head;
    });
  }
}
