// The adapter for our own documented API of a license server (docs/license-api.md): signed answers, each to one question.
import { type Clock, trustedNowMs } from '../base/clock.ts';
import { randomToken } from '../base/digest.ts';
import type { VerifyKey } from '../base/dsse.ts';
import { assert } from '../base/errors.ts';
import {
  LICENSE_ANSWER_TIMEOUT_MS,
  LICENSE_BUSY_TRIES_MAX,
  LICENSE_BUSY_WAIT_MS,
  LICENSE_REVOCATION_PAGES_MAX,
} from '../base/limits.ts';
import { printable } from '../base/printable.ts';
import { redactText } from '../base/redact.ts';
import { isVmId } from '../model/ids.ts';
import type { Lease, Verdict } from '../model/license.ts';
import type { LeaseAnswer, LicenseServer, Revocation, SeatRequest } from './license-server.ts';
import type { Answer, AnswerKind } from './pratique-protocol.ts';
import { ill, openAnswer, type Question, readAnswer } from './signed-answer.ts';
import type { LicenseHttpAnswer, LicenseTransport } from './transport.ts';

export type PratiqueServerOptions = {
  readonly transport: LicenseTransport;
  readonly clock: Clock;
  /** The server's public keys, given to this host by its operator: more than one while they change. */
  readonly keys: readonly VerifyKey[];
  /** What the server calls the license. */
  readonly license: string;
};

/** One license at a server that speaks our API. */
export function makePratiqueServer(options: PratiqueServerOptions): LicenseServer {
  const client = new PratiqueServer(options);
  return {
    validate: (signal) => client.validate(signal),
    lease: (request, signal) => client.seat('/v1/leases', request, signal),
    renew: (lease, request, signal) => client.seat(`/v1/leases/${lease.id}/renew`, request, signal),
    release: (leaseId, signal) => client.release(leaseId, signal),
    revocations: (sinceSerial, signal) => client.revocations(sinceSerial, signal),
    checkout: (request, signal) => client.seat('/v1/checkouts', request, signal),
    close: async () => {},
  };
}

type Answered<K extends AnswerKind> = {
  readonly answer: Answer<K>;
  readonly question: Question;
  readonly body: Uint8Array;
};

class PratiqueServer {
  readonly #options: PratiqueServerOptions;

  constructor(options: PratiqueServerOptions) {
    this.#options = options;
  }

  async validate(signal?: AbortSignal): Promise<Verdict> {
    const { answer, question } = await this.#ask('validation', '/v1/validate', {}, signal);
    return verdictOf(answer, question);
  }

  async seat(path: string, request: SeatRequest, signal?: AbortSignal): Promise<LeaseAnswer> {
    const { fingerprint, durationMs } = request;
    const answered = await this.#ask('lease', path, { fingerprint, durationMs }, signal);
    return leaseAnswerOf(answered, request);
  }

  async release(leaseId: string, signal?: AbortSignal): Promise<void> {
    const { answer } = await this.#ask('release', `/v1/leases/${leaseId}/release`, {}, signal);
    if (answer.leaseId !== leaseId) throw ill("the license server's answer is about another lease");
    // A server that does not know the license for this token counts none of its seats for us.
    if (!answer.released && answer.code !== 'NOT_FOUND') throw ill(`the license server keeps the lease ${leaseId}`);
  }

  async revocations(
    sinceSerial: number,
    signal?: AbortSignal,
  ): Promise<{ readonly serial: number; readonly revoked: readonly Revocation[] }> {
    const revoked: Revocation[] = [];
    let serial = sinceSerial;
    const { clock } = this.#options;
    const untilMs = clock.monotonicMs() + LICENSE_ANSWER_TIMEOUT_MS;
    for (let page = 0; page < LICENSE_REVOCATION_PAGES_MAX; page += 1) {
      // However slowly it is told, the lists of other licenses are read after this one.
      if (page > 0 && clock.monotonicMs() >= untilMs) break;
      const { answer } = await this.#ask('revocations', '/v1/revocations', { since: serial }, signal);
      checkOrder(answer, serial);
      // No list of its own has this word: the license or this token of it is gone as a whole.
      if (answer.code === 'NOT_FOUND') return { serial, revoked: [{ serial, leaseId: null, code: answer.code }] };
      for (const { serial: at, leaseId, code } of answer.revoked) revoked.push({ serial: at, leaseId, code });
      serial = answer.serial;
      if (!answer.more) break;
    }
    return { serial, revoked };
  }

  async #ask<K extends AnswerKind>(
    kind: K,
    path: string,
    more: Readonly<Record<string, unknown>>,
    signal?: AbortSignal,
    tries = 1,
  ): Promise<Answered<K>> {
    const { clock, transport, license, keys } = this.#options;
    const nonce = randomToken();
    const sentAtMs = trustedNowMs(clock);
    const startMs = clock.monotonicMs();
    const body = { nonce, license, ...more };
    const received = await transport({ method: 'POST', path, body, ...(signal === undefined ? {} : { signal }) });
    if (received.status === 429 && tries < LICENSE_BUSY_TRIES_MAX) {
      await clock.sleep(tries * LICENSE_BUSY_WAIT_MS, signal);
      return await this.#ask(kind, path, more, signal, tries + 1);
    }
    if (received.status !== 200) throw ill(`the license server answered ${received.status}${reasonOf(received)}`);
    const question = { nonce, license, sentAtMs, tookMs: clock.monotonicMs() - startMs };
    return { answer: readAnswer(kind, received.body, keys, question), question, body: received.body };
  }
}

/** Redacted last: a token that a server hides between control characters, or in another spelling of JSON, is whole only now. */
const shown = (text: string): string => redactText(printable(text));

/** The title of a problem document, for people: it is signed by nobody and decides nothing. */
function reasonOf({ body }: LicenseHttpAnswer): string {
  if (body.length > 16 * 1024) return '';
  try {
    const value: unknown = JSON.parse(Buffer.from(body).toString('utf8'));
    if (typeof value !== 'object' || value === null) return '';
    const text =
      'detail' in value && typeof value.detail === 'string' ? value.detail : 'title' in value ? value.title : null;
    return typeof text === 'string' ? `: ${shown(text)}` : '';
  } catch {
    return '';
  }
}

type Judged = Answer<'validation'> | Answer<'lease'>;

function verdictOf(answer: Judged, question: Question): Verdict {
  const { valid, code, detail, seats, licenseExpiresAtMs } = answer;
  if (valid !== (code === 'VALID')) throw ill(`the license server says both ${valid ? 'yes' : 'no'} and ${code}`);
  const expiresAtMs = licenseExpiresAtMs === null ? null : onOurClock(licenseExpiresAtMs, answer, question);
  return { valid, code, detail: shown(detail), seats, expiresAtMs };
}

/**
 * A time of the server's on this host's clock, taken from the moment of the question: whatever the two clocks show, this host
 * never believes in a lease for longer than the server counts it.
 */
function onOurClock(atMs: number, { issuedAtMs }: Judged, { sentAtMs }: Question): number {
  return Math.max(0, Math.trunc(atMs - issuedAtMs + sentAtMs));
}

function leaseAnswerOf({ answer, question, body }: Answered<'lease'>, request: SeatRequest): LeaseAnswer {
  const verdict = verdictOf(answer, question);
  const { lease } = answer;
  if (verdict.valid !== (lease !== null))
    throw ill("the license server's answer has no lease with its yes, or one with its no");
  if (lease === null) return { kind: 'refused', verdict };
  if (lease.fingerprint !== request.fingerprint) throw ill("the license server's answer is about another VM");
  if (lease.expiresAtMs <= answer.issuedAtMs || lease.grantedAtMs > answer.issuedAtMs) {
    throw ill("the license server's lease is over before it begins, or begins later");
  }
  assert(isVmId(request.vm), 'a seat is asked for a VM');
  const granted: Lease = {
    id: lease.id,
    license: request.license,
    vm: request.vm,
    grantedAtMs: onOurClock(lease.grantedAtMs, answer, question),
    expiresAtMs: onOurClock(lease.expiresAtMs, answer, question),
  };
  return { kind: 'granted', lease: granted, proof: Buffer.from(body).toString('utf8') };
}

function checkOrder({ since, serial, more, revoked }: Answer<'revocations'>, asked: number): void {
  if (since !== asked || serial < asked)
    throw ill("the license server's list of revocations went back: it may be an old copy");
  if (more && serial === asked) throw ill("the license server's list of revocations does not go on");
  let last = asked;
  for (const each of revoked) {
    if (each.serial <= last || each.serial > serial)
      throw ill("the license server's list of revocations is out of order");
    last = each.serial;
  }
}

/**
 * A lease from the proof that came with it, without the server: also long after its answer was given. The times are the server's.
 * Throws LicenseError `vendor-ill/license-server` when the proof is not the server's word about this license and fingerprint.
 */
export function readProof(
  proof: string,
  { keys, license }: Pick<PratiqueServerOptions, 'keys' | 'license'>,
  fingerprint: string,
): { readonly id: string; readonly grantedAtMs: number; readonly expiresAtMs: number; readonly offline: boolean } {
  const { lease, valid, license: named } = openAnswer('lease', Buffer.from(proof), keys);
  if (!valid || lease === null || named !== license || lease.fingerprint !== fingerprint) {
    throw ill('the proof of a lease is about another license or another VM');
  }
  const { id, grantedAtMs, expiresAtMs, offline } = lease;
  return { id, grantedAtMs, expiresAtMs, offline };
}
