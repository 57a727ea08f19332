// Walks an audit chain and says where it was removed from, changed or reordered.
import { setImmediate as nextTurn } from 'node:timers/promises';
import { digestOf } from '../base/digest.ts';
import { canonicalJson } from '../base/digest-text.ts';
import type { HostKey } from './host-key.ts';
import { type Checkpoint, signedText, ZERO_HASH } from './record.ts';

export type Row = {
  readonly seq: number;
  readonly vm: string | null;
  readonly body: string;
  readonly hash: string;
  readonly signature: string;
};

export type AuditReport = {
  readonly isIntact: boolean;
  /** Records that were found in order. */
  readonly records: number;
  /** Hash of the last of them. */
  readonly head: string;
  /** The first thing wrong, null when nothing is. */
  readonly trouble: string | null;
};

export type ChainToVerify = {
  /** The next rows after a number, in order; an empty page ends the chain. */
  readonly page: (afterSeq: number) => readonly Row[];
  readonly key: Pick<HostKey, 'isSigned'>;
  readonly checkpoint?: Checkpoint;
};

/** Verifies every row, and that the chain still contains what the checkpoint saw. Yields between pages. */
export async function verifyChain({ page, key, checkpoint }: ChainToVerify): Promise<AuditReport> {
  let head = { seq: 0, hash: ZERO_HASH };
  const broken = (trouble: string) => ({ isIntact: false, records: head.seq, head: head.hash, trouble });
  if (checkpoint !== undefined && !isGenuine(checkpoint, key)) {
    return broken('the checkpoint is not signed by the key of this chain');
  }
  for (let rows = page(0); rows.length > 0; rows = page(head.seq)) {
    for (const row of rows) {
      const trouble = troubleOf(row, head, key);
      if (trouble !== null) return broken(trouble);
      head = { seq: row.seq, hash: row.hash };
      if (checkpoint?.records === head.seq && checkpoint.head !== head.hash) {
        return broken(`record ${head.seq} is not the one that the checkpoint saw`);
      }
    }
    await nextTurn();
  }
  if (checkpoint !== undefined && checkpoint.records > head.seq) {
    return broken(`the checkpoint saw ${checkpoint.records} records, ${head.seq} are left: the tail was cut`);
  }
  return { isIntact: true, records: head.seq, head: head.hash, trouble: null };
}

function isGenuine({ signature, ...said }: Checkpoint, key: Pick<HostKey, 'isSigned'>): boolean {
  return key.isSigned(canonicalJson(said), signature);
}

function troubleOf(row: Row, before: { seq: number; hash: string }, key: Pick<HostKey, 'isSigned'>): string | null {
  if (row.seq !== before.seq + 1)
    return `record ${before.seq + 1} is missing: record ${row.seq} comes after ${before.seq}`;
  if (digestOf(row.body) !== row.hash) return `record ${row.seq} was changed: its hash does not match`;
  if (!key.isSigned(signedText(row.hash), row.signature))
    return `record ${row.seq} is not signed by the key of this chain`;
  // Signed by us, so it is JSON of our own making.
  const body = JSON.parse(row.body) as { seq: number; prev: string; record: { vm?: string } };
  if (body.seq !== row.seq) return `record ${row.seq} was moved: it was written as record ${body.seq}`;
  if (body.prev !== before.hash) return `record ${row.seq} does not follow record ${before.seq}`;
  if ((body.record.vm ?? null) !== row.vm) return `record ${row.seq} is filed under another VM than it is about`;
  return null;
}
