// A record as bytes: an in-toto statement in a DSSE envelope, one line of JSON; and the first format, which older chains begin with.
//
// DSSE v1.0.2 (protocol.md, envelope.md); in-toto Statement v1 (spec/v1/statement.md). docs/audit.md is the page for other verifiers.
import { type Static, Type } from 'typebox';
import { digestOf } from '../base/digest.ts';
import { canonicalJson } from '../base/digest-text.ts';
import { preAuthentication as encode } from '../base/dsse.ts';
import { makeParser, parseJson } from '../base/parse.ts';
import { AuditError } from './error.ts';
import type { ChainRecord } from './record.ts';

export const PAYLOAD_TYPE = 'application/vnd.in-toto+json';
export const PREDICATE_TYPE = 'urn:pratique:audit:2';
const STATEMENT_TYPE = 'https://in-toto.io/Statement/v1';
const FIRST_FORMAT = 'pratique.audit/1';
const DAMAGED = 'host-fault/audit-damaged';

/** `keyid` is null in the first format, which had one key only. */
export type Signature = { readonly keyid: string | null; readonly sig: string };

/** A line that has the form of a record; nothing in it is believed before its signature is verified. */
export type Envelope = {
  readonly format: 1 | 2;
  /** What the signatures are over. */
  readonly signed: Uint8Array | string;
  readonly signatures: readonly Signature[];
  /** What the next record names. */
  readonly hash: string;
  /** JSON: a statement, or a body of the first format. */
  readonly payload: string;
};

/** What a record says. */
export type Statement = {
  readonly seq: number;
  readonly prev: string;
  readonly atMs: number;
  /** Key id of the chain's first key; null in the first format. */
  readonly host: string | null;
  readonly record: ChainRecord;
};

/** The parts of a statement that do not depend on its place in the chain, as canonical JSON. */
export type Draft = { readonly kind: string; readonly details: string; readonly subject: string };

/** The first half of a statement: made before its place is known, so that its size can be refused early. */
export function draftOf(record: ChainRecord): Draft {
  const { kind, ...details } = record;
  return { kind: JSON.stringify(kind), details: canonicalJson(details), subject: canonicalJson(subjectOf(record)) };
}

type Place = { readonly seq: number; readonly prev: string; readonly atMs: number; readonly host: string };

/** The canonical JSON of a statement: its keys are in order here. */
export function payloadOf({ kind, details, subject }: Draft, { seq, prev, atMs, host }: Place): string {
  const predicate = `{"atMs":${atMs},"details":${details},"host":"${host}","kind":${kind},"prev":"${prev}","seq":${seq}}`;
  return `{"_type":"${STATEMENT_TYPE}","predicate":${predicate},"predicateType":"${PREDICATE_TYPE}","subject":${subject}}`;
}

type Resource = { readonly name: string; readonly digest: { readonly sha256: string } };

/**
 * What a record is about. A statement's subject needs a digest: a plan or manifest has one of its own; a VM and a run are
 * no bytes, so theirs is the one of their name, by which tools can still find all that is said about them.
 */
function subjectOf(record: ChainRecord): readonly Resource[] {
  const found: Resource[] = [];
  const named = (name: string) => found.push({ name, digest: { sha256: digestOf(name) } });
  const facts = 'evidence' in record ? record.evidence : record;
  if ('vm' in facts && facts.vm !== undefined) named(`vm:${facts.vm}`);
  if ('run' in facts && facts.run !== null) named(`run:${facts.run}`);
  if ('planDigest' in facts) found.push({ name: 'plan', digest: { sha256: facts.planDigest } });
  if ('manifestDigest' in facts) found.push({ name: 'manifest', digest: { sha256: facts.manifestDigest } });
  if ('manifestDigests' in facts) {
    for (const sha256 of facts.manifestDigests) found.push({ name: 'manifest', digest: { sha256 } });
  }
  if ('from' in record) found.push({ name: 'key', digest: { sha256: record.from.keyid } });
  if ('to' in record) found.push({ name: 'key', digest: { sha256: record.to.keyid } });
  if (found.length === 0) named('host');
  return found;
}

/** DSSE's pre-authentication encoding of a payload of our type. */
export function preAuthentication(payload: Uint8Array): Buffer {
  return encode(PAYLOAD_TYPE, payload);
}

/** The signatures of an envelope as canonical JSON. */
export function signaturesText(signatures: readonly Signature[]): string {
  return `[${signatures.map(({ keyid, sig }) => `{"keyid":"${keyid}","sig":"${sig}"}`).join(',')}]`;
}

/** The line of an envelope; its SHA-256 is the record's hash. */
export function envelopeLine(payload: Uint8Array, signatures: string): string {
  const text = Buffer.from(payload).toString('base64');
  return `{"payload":"${text}","payloadType":"${PAYLOAD_TYPE}","signatures":${signatures}}`;
}

/** The line of a record of the first format. */
export function firstFormatLine(record: {
  readonly body: string;
  readonly hash: string;
  readonly signature: string;
}): string {
  return canonicalJson({ ...record, format: FIRST_FORMAT });
}

const strict = { additionalProperties: false } as const;
const sha256 = Type.String({ pattern: '^[0-9a-f]{64}$' });
const whole = Type.Integer({ minimum: 0 });
const EnvelopeSchema = Type.Object(
  {
    payload: Type.String(),
    payloadType: Type.Literal(PAYLOAD_TYPE),
    signatures: Type.Array(Type.Object({ keyid: sha256, sig: Type.String() }, strict), { minItems: 1, maxItems: 2 }),
  },
  strict,
);
const FirstFormatSchema = Type.Object(
  { body: Type.String(), format: Type.Literal(FIRST_FORMAT), hash: sha256, signature: Type.String() },
  strict,
);
const BodySchema = Type.Object({ atMs: whole, prev: sha256, record: Type.Object({ kind: Type.String() }), seq: whole });
const StatementSchema = Type.Object(
  {
    _type: Type.Literal(STATEMENT_TYPE),
    predicate: Type.Object(
      { atMs: whole, details: Type.Object({}), host: sha256, kind: Type.String(), prev: sha256, seq: whole },
      strict,
    ),
    predicateType: Type.Literal(PREDICATE_TYPE),
    subject: Type.Array(Type.Unknown(), { minItems: 1 }),
  },
  strict,
);
const NamedKeySchema = Type.Object({ keyid: sha256, publicKey: Type.String() }, strict);
const RotationSchema = Type.Object({ actor: Type.String(), from: NamedKeySchema, to: NamedKeySchema }, strict);
const parseEnvelope = makeParser(EnvelopeSchema, DAMAGED);
const parseFirstFormat = makeParser(FirstFormatSchema, DAMAGED);
const parseBody = makeParser(BodySchema, DAMAGED);
const parseStatement = makeParser(StatementSchema, DAMAGED);
const parseRotation = makeParser(RotationSchema, DAMAGED);

/** A line as an envelope. Throws PratiqueError `host-fault/audit-damaged` for anything but the one spelling that we write. */
export function readEnvelope(line: string, what: string): Envelope {
  const value = parseJson(line, what, DAMAGED);
  const isFirst = typeof value === 'object' && value !== null && 'format' in value;
  const envelope = isFirst
    ? firstFormat(parseFirstFormat(value, what), what)
    : secondFormat(parseEnvelope(value, what), line);
  // Also the last line, which no other line's hash covers, can be written in one way only.
  if (lineOf(envelope) !== line) throw new AuditError(DAMAGED, `${what} was changed: it is written in another way`);
  return envelope;
}

/** The line of an envelope: what `readEnvelope` reads. */
function lineOf({ format, payload, signatures, hash }: Envelope): string {
  if (format === 2) return envelopeLine(Buffer.from(payload), signaturesText(signatures));
  return firstFormatLine({ body: payload, hash, signature: signatures[0]?.sig ?? '' });
}

function firstFormat({ body, hash, signature }: Static<typeof FirstFormatSchema>, what: string): Envelope {
  if (digestOf(body) !== hash) throw new AuditError(DAMAGED, `${what} was changed: its hash does not match`);
  const signatures = [{ keyid: null, sig: signature }];
  return { format: 1, signed: firstFormatSigned(hash), signatures, hash, payload: body };
}

/** What the signature of a record of the first format is over. */
export function firstFormatSigned(hash: string): string {
  return `${FIRST_FORMAT} ${hash}`;
}

function secondFormat({ payload, signatures }: Static<typeof EnvelopeSchema>, line: string): Envelope {
  const bytes = Buffer.from(payload, 'base64');
  return { format: 2, signed: preAuthentication(bytes), signatures, hash: digestOf(line), payload: bytes.toString() };
}

/** What an envelope says, once its signature was verified. Throws PratiqueError `host-fault/audit-damaged`. */
export function readStatement({ format, payload }: Pick<Envelope, 'format' | 'payload'>, what: string): Statement {
  const value = parseJson(payload, what, DAMAGED);
  // The casts hold for what this program signed; a surface that shows records escapes them all the same.
  if (format === 1) {
    const { seq, prev, atMs, record } = parseBody(value, what);
    return { seq, prev, atMs, host: null, record: record as ChainRecord };
  }
  const { seq, prev, atMs, host, kind, details } = parseStatement(value, what).predicate;
  if (kind === 'key-rotated') return { seq, prev, atMs, host, record: { kind, ...parseRotation(details, what) } };
  return { seq, prev, atMs, host, record: { ...details, kind } as ChainRecord };
}
