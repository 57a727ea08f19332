// Whether bytes from the network are this license server's own word, to this very question, now. Anything else is no answer at all.
import { createPublicKey } from 'node:crypto';
import { type Envelope, EnvelopeSchema, openEnvelope, type VerifyKey, verifyKeyOf } from '../base/dsse.ts';
import { LICENSE_ANSWER_BYTES_MAX, LICENSE_ANSWER_LIFE_MAX_MS, LICENSE_CLOCK_SKEW_MAX_MS } from '../base/limits.ts';
import { makeParser, type Parser, parseJson } from '../base/parse.ts';
import { LicenseError } from './license-error.ts';
import { ANSWER_TYPE, ANSWERS, type Answer, type AnswerKind } from './pratique-protocol.ts';

const ILL = 'vendor-ill/license-server';
const WHAT = "the license server's answer";

const parseEnvelope = makeParser(EnvelopeSchema, ILL);
const PARSERS: { readonly [K in AnswerKind]: Parser<Answer<K>> } = {
  validation: makeParser(ANSWERS.validation, ILL),
  lease: makeParser(ANSWERS.lease, ILL),
  release: makeParser(ANSWERS.release, ILL),
  revocations: makeParser(ANSWERS.revocations, ILL),
};

/** What was asked, and when: the host's trusted time, and how long the answer took by a clock that does not jump. */
export type Question = {
  readonly nonce: string;
  readonly license: string;
  readonly sentAtMs: number;
  readonly tookMs: number;
};

/**
 * A server's public keys from PEM text, one after another: the one in force and, while it is changed, the next. Throws LicenseError
 * `usage/license-key` naming `what`.
 */
export function readServerKeys(pems: string, what: string): readonly VerifyKey[] {
  const blocks = pems.match(/-----BEGIN PUBLIC KEY-----[^-]{1,1000}-----END PUBLIC KEY-----/g) ?? [];
  const keys = blocks.map((pem) => keyOf(pem, what));
  if (keys.length > 0) return keys;
  throw noKey(what);
}

function keyOf(pem: string, what: string): VerifyKey {
  let key: VerifyKey | null;
  try {
    key = verifyKeyOf(createPublicKey(pem));
  } catch {
    key = null;
  }
  if (key === null) throw noKey(what);
  return key;
}

function noKey(what: string): LicenseError {
  return new LicenseError('usage/license-key', `${what}: no ed25519 public key of a license server`, {
    next: "give the PEM text that `pratique license-server key` printed, or that the server's operator gave you",
  });
}

/** The payload of an answer, signed by one of the server's keys; nothing but its signature and shape is looked at. */
export function openAnswer<K extends AnswerKind>(kind: K, body: Uint8Array, keys: readonly VerifyKey[]): Answer<K> {
  const payload = openEnvelope(readEnvelope(body), ANSWER_TYPE, keys);
  if (payload === null) {
    throw ill(
      `${WHAT} is not signed by the key that this host knows`,
      "compare the key of the license with the one that the server's operator gives out",
    );
  }
  // The cast holds: the table has the parser of each kind under its name.
  return read(payload, PARSERS[kind] as Parser<Answer<K>>);
}

/** Opens an answer and holds it against its question. Throws LicenseError `vendor-ill/license-server`; never takes anything for a denial. */
export function readAnswer<K extends AnswerKind>(
  kind: K,
  body: Uint8Array,
  keys: readonly VerifyKey[],
  question: Question,
): Answer<K> {
  const answer = openAnswer(kind, body, keys);
  if (answer.nonce !== question.nonce)
    throw ill(`${WHAT} is to another question: it may be an old one that somebody sent again`);
  if (answer.license !== question.license) throw ill(`${WHAT} is about another license`);
  const trouble = whyNotNow(answer, question);
  if (trouble !== null) throw ill(`${WHAT} ${trouble}`, 'compare the clocks of this host and of the license server');
  return answer;
}

type Times = { readonly issuedAtMs: number; readonly expiresAtMs: number };

/** The nonce already says that the answer is younger than the question; the times must say the same, and make sense. */
function whyNotNow({ issuedAtMs, expiresAtMs }: Times, { sentAtMs, tookMs }: Question): string | null {
  const lifeMs = expiresAtMs - issuedAtMs;
  if (lifeMs <= 0) return 'ended before it was given';
  if (lifeMs > LICENSE_ANSWER_LIFE_MAX_MS) return 'claims to be true for longer than any answer may';
  if (tookMs >= lifeMs) return 'is out of date: it was under way for longer than it is true';
  const aheadMs = issuedAtMs - sentAtMs;
  if (aheadMs > LICENSE_CLOCK_SKEW_MAX_MS + tookMs) return 'comes from the future: the two clocks differ by minutes';
  if (aheadMs < -LICENSE_CLOCK_SKEW_MAX_MS) return 'is out of date: the two clocks differ by minutes';
  return null;
}

function readEnvelope(body: Uint8Array): Envelope {
  if (body.length > LICENSE_ANSWER_BYTES_MAX) throw ill(`${WHAT} has over ${LICENSE_ANSWER_BYTES_MAX} bytes`);
  return read(body, parseEnvelope);
}

function read<T>(bytes: Uint8Array, parse: Parser<T>): T {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw ill(`${WHAT}: not UTF-8`);
  }
  try {
    return parse(parseJson(text, WHAT, ILL), WHAT);
  } catch (error) {
    throw ill(error instanceof Error ? error.message : WHAT);
  }
}

/** The error of a server that is ill, whatever it said. */
export function ill(
  message: string,
  next = 'tell the operator of the license server; licenses that are held go on',
): LicenseError {
  return new LicenseError(ILL, message, { next });
}
