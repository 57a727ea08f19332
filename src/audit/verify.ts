// Walks an audit chain, from the first record or from a checkpoint on, and says where it was removed from, changed or reordered.
//
// Which key signs follows from the chain: the first record is signed by one of the given keys, and a rotation names the next key,
// signed by both. Every given key must have signed: one that never did belongs to another chain, or to a tail that was cut.
import { canonicalJson } from '../base/digest-text.ts';
import { messageChain, PratiqueError } from '../base/errors.ts';
import { type Envelope, readEnvelope, readStatement, type Statement } from './envelope.ts';
import { type PublicKey, readNamedKey } from './host-key.ts';
import { type Checkpoint, ZERO_HASH } from './record.ts';

export type AuditReport = {
  readonly isIntact: boolean;
  /** Number of the last record that was found in order. */
  readonly records: number;
  /** Its hash. */
  readonly head: string;
  /** The first thing wrong, null when nothing is. */
  readonly trouble: string | null;
};

/** A record to check: its line, and where it was filed when it comes from a database; or what keeps it from being read. */
export type Link =
  | { readonly kind: 'line'; readonly line: string; readonly filed?: Filed }
  | { readonly kind: 'unreadable'; readonly trouble: string };
export type Filed = { readonly seq: number; readonly vm: string | null; readonly hash: string };

export type ChainToVerify = {
  /** In order. Read one by one: memory does not grow with the chain. */
  readonly links: AsyncIterable<Link>;
  readonly keys: readonly PublicKey[];
  readonly checkpoint?: Checkpoint;
};

/** Verifies every record, and that the chain still contains what the checkpoint saw. */
export async function verifyChain({ links, keys, checkpoint }: ChainToVerify): Promise<AuditReport> {
  const walk = new Walk(keys, checkpoint);
  for await (const link of links) {
    const trouble = walk.step(link);
    if (trouble !== null) return walk.report(trouble);
  }
  return walk.report(walk.whyNotWhole());
}

const NOT_GENUINE = 'the checkpoint is not signed by the key of this chain';

class Walk {
  readonly #keys: readonly PublicKey[];
  readonly #checkpoint: Checkpoint | undefined;
  /** Keys that were in force so far, the last one still. */
  readonly #signers: PublicKey[] = [];
  #seq = 0;
  #hash = ZERO_HASH;
  #host: string | null = null;
  #format: 1 | 2 = 1;
  #isBegunLater = false;

  constructor(keys: readonly PublicKey[], checkpoint: Checkpoint | undefined) {
    this.#keys = keys;
    this.#checkpoint = checkpoint;
  }

  report(trouble: string | null): AuditReport {
    return { isIntact: trouble === null, records: this.#seq, head: this.#hash, trouble };
  }

  /** Takes the next record in, or says what is wrong with it. */
  step(link: Link): string | null {
    const next = this.#seq + 1;
    if (link.kind === 'unreadable') return `record ${next}: ${link.trouble}`;
    const { line, filed } = link;
    if (filed !== undefined && filed.seq !== next) return missing(next, filed.seq);
    try {
      const envelope = readEnvelope(line, `record ${next}`);
      const key = this.#signers.at(-1) ?? this.#keys.find((each) => isSignedBy(envelope, 0, each));
      if (key === undefined || !isSignedBy(envelope, 0, key)) {
        return `record ${next} was changed or is not signed by the key of this chain`;
      }
      if (filed !== undefined && filed.hash !== envelope.hash)
        return `record ${next} was changed: its hash does not match`;
      const said = readStatement(envelope, `record ${next}`);
      return this.#whyNotNext(envelope, said, key, filed) ?? this.#accept(envelope, said, key);
    } catch (error) {
      if (error instanceof PratiqueError) return messageChain(error);
      throw error;
    }
  }

  /** What is missing at the end. */
  whyNotWhole(): string | null {
    const kept = this.#checkpoint;
    // Which key was in force at a number that is not there cannot be known: any of this chain will do.
    if (kept !== undefined && (kept.records === 0 || kept.records > this.#seq)) {
      if (![...this.#keys, ...this.#signers].some((key) => isGenuine(kept, key))) return NOT_GENUINE;
      if (kept.records > 0) {
        return `the checkpoint saw ${kept.records} records, ${this.#seq} are left: the tail was cut`;
      }
    }
    const signed = new Set((this.#seq === 0 ? this.#keys.slice(0, 1) : this.#signers).map(({ keyid }) => keyid));
    // What begins after a checkpoint lacks the keys before it: they stand before the first signer.
    const first = this.#isBegunLater ? this.#keys.findIndex(({ keyid }) => signed.has(keyid)) : 0;
    const silent = this.#keys.slice(first).find(({ keyid }) => !signed.has(keyid));
    if (silent === undefined) return null;
    return `the chain never came to the key ${silent.keyid}: it is another chain, or its tail was cut or written anew`;
  }

  #whyNotNext(envelope: Envelope, said: Statement, key: PublicKey, filed: Filed | undefined): string | null {
    const misplaced = (filed === undefined ? null : whyMisfiled(said, filed)) ?? this.#whyNotHere(said, key);
    if (misplaced !== null) return misplaced;
    const host = this.#host ?? (said.seq === 1 ? key.keyid : null);
    if (said.host !== null && host !== null && said.host !== host) return `record ${said.seq} is of another host`;
    if (envelope.format < this.#format) return `record ${said.seq} goes back to the first format`;
    return whyNotRotated(envelope, said, key);
  }

  /** A file may begin just after the checkpoint; everywhere else the next record is the one that follows the last. */
  #whyNotHere({ seq, prev }: Statement, key: PublicKey): string | null {
    if (this.#signers.length === 0 && seq > 1) this.#beginAfterCheckpoint(seq, key);
    const next = this.#seq + 1;
    if (seq > next) return missing(next, seq);
    if (seq < next) return `record ${seq} comes again after record ${this.#seq}`;
    return prev === this.#hash ? null : `record ${seq} does not follow record ${this.#seq}`;
  }

  #beginAfterCheckpoint(seq: number, key: PublicKey): void {
    const kept = this.#checkpoint;
    if (kept?.records !== seq - 1 || !isGenuine(kept, key)) return;
    this.#seq = kept.records;
    this.#hash = kept.head;
    this.#isBegunLater = true;
  }

  #accept(envelope: Envelope, said: Statement, key: PublicKey): string | null {
    this.#host ??= said.seq === 1 ? key.keyid : said.host;
    if (this.#signers.length === 0) this.#signers.push(key);
    const rotated = said.record.kind === 'key-rotated' ? readNamedKey(said.record.to) : null;
    if (rotated !== null) this.#signers.push(rotated);
    this.#seq = said.seq;
    this.#hash = envelope.hash;
    this.#format = envelope.format;
    const kept = this.#checkpoint;
    if (kept?.records !== said.seq) return null;
    if (!isGenuine(kept, rotated ?? key)) return NOT_GENUINE;
    return kept.head === this.#hash ? null : `record ${said.seq} is not the one that the checkpoint saw`;
  }
}

function missing(expected: number, found: number): string {
  return `record ${expected} is missing: record ${found} comes after ${expected - 1}`;
}

/** Whether the signature at this place is the key's, and says so. */
function isSignedBy({ signed, signatures }: Envelope, place: 0 | 1, key: PublicKey): boolean {
  const signature = signatures[place];
  if (signature === undefined) return false;
  return (signature.keyid === null || signature.keyid === key.keyid) && key.isSigned(signed, signature.sig);
}

function isGenuine({ signature, ...said }: Checkpoint, key: PublicKey): boolean {
  return (said.keyid ?? key.keyid) === key.keyid && key.isSigned(canonicalJson(said), signature);
}

function whyMisfiled({ seq, record }: Statement, filed: Filed): string | null {
  if (seq !== filed.seq) return `record ${filed.seq} was moved: it was written as record ${seq}`;
  const vm = 'vm' in record ? (record.vm ?? null) : null;
  return vm === filed.vm ? null : `record ${filed.seq} is filed under another VM than it is about`;
}

/** A rotation is signed by the key that it takes out of force and by the one that it names, any other record once. */
function whyNotRotated(envelope: Envelope, { seq, record }: Statement, key: PublicKey): string | null {
  if (record.kind !== 'key-rotated') {
    return envelope.signatures.length === 1 ? null : `record ${seq} was changed: it has a signature too many`;
  }
  if (envelope.format === 1) return `record ${seq} rotates the key in the first format`;
  if (record.from.keyid !== key.keyid) return `record ${seq} rotates another key than the one in force`;
  const next = readNamedKey(record.to);
  return next !== null && isSignedBy(envelope, 1, next) ? null : `record ${seq} names a key that has not signed it`;
}
