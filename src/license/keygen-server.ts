// The adapter for Keygen's API (https://keygen.sh/docs/api/): a machine of a license is a VM's seat, its heartbeat the lease.
//
// Keygen signs answers over request and date, with a nonce only in validations. So each seat ends with a validation of its own:
// what was sent again a minute later decides nothing.
import { randomInt } from 'node:crypto';
import type { Static } from 'typebox';
import { type Clock, trustedNowMs } from '../base/clock.ts';
import type { VerifyKey } from '../base/dsse.ts';
import { assert } from '../base/errors.ts';
import { LICENSE_KEYGEN_CHECKOUT_MS_MIN } from '../base/limits.ts';
import { makeParser, type Parser } from '../base/parse.ts';
import { isVmId } from '../model/ids.ts';
import { ENDING_CODES, type Lease, type Verdict } from '../model/license.ts';
import {
  checkKeygenSignature,
  ErrorsSchema,
  keygenTime,
  MachineFileSchema,
  MachineSchema,
  readKeygen,
  readMachineFile,
  ValidationSchema,
} from './keygen-answer.ts';
import type { LeaseAnswer, LicenseServer, SeatRequest } from './license-server.ts';
import { ill } from './signed-answer.ts';
import type { LicenseHttpAnswer, LicenseHttpRequest, LicenseTransport } from './transport.ts';

export type KeygenServerOptions = {
  readonly transport: LicenseTransport;
  readonly clock: Clock;
  /** The account's key: `readKeygenKey`. */
  readonly key: VerifyKey;
  /** The account's id or slug. */
  readonly account: string;
  /** `https://api.keygen.sh`, or where one's own Keygen answers: what its signatures name. */
  readonly serverUrl: string;
};

const ILL = 'vendor-ill/license-server';
const MEDIA_TYPE = 'application/vnd.api+json';
const parseValidation = makeParser(ValidationSchema, ILL);
const parseMachine = makeParser(MachineSchema, ILL);
const parseErrors = makeParser(ErrorsSchema, ILL);
const parseMachineFile = makeParser(MachineFileSchema, ILL);

/** Codes of a validation that say of a license only that no machine was named or activated yet. */
const WITHOUT_MACHINE: ReadonlySet<string> = new Set(['NO_MACHINE', 'NO_MACHINES', 'FINGERPRINT_SCOPE_REQUIRED']);
/** Codes of a validation for a machine that is not activated, or not any more. */
const NOT_ACTIVATED: ReadonlySet<string> = new Set([...WITHOUT_MACHINE, 'FINGERPRINT_SCOPE_MISMATCH']);
/** Codes that a first or new heartbeat mends. */
const NEEDS_HEARTBEAT: ReadonlySet<string> = new Set(['HEARTBEAT_NOT_STARTED', 'HEARTBEAT_DEAD']);

/** One license at Keygen; its token is the license key. The policy of the license must allow authentication by it. */
export function makeKeygenServer(options: KeygenServerOptions): LicenseServer {
  const keygen = new KeygenServer(options);
  return {
    validate: (signal) => keygen.validate(signal),
    lease: (request, signal) => keygen.lease(request, signal),
    renew: (lease, request, signal) => keygen.renew(lease, request, signal),
    release: (leaseId, signal) => keygen.release(leaseId, signal),
    revocations: async (sinceSerial, signal) => {
      // Keygen has no list: what a license is, its validation says.
      const { valid, code } = await keygen.validate(signal);
      const isEnded = !valid && ENDING_CODES.has(code);
      return { serial: sinceSerial, revoked: isEnded ? [{ serial: sinceSerial, leaseId: null, code }] : [] };
    },
    checkout: (request, signal) => keygen.checkout(request, signal),
    close: async () => {},
  };
}

type Machine = Static<typeof MachineSchema>['data'];
type Validation = {
  readonly verdict: Verdict;
  readonly license: string | null;
  readonly atMs: number;
  readonly sentAtMs: number;
};
/** A signed answer to a machine's call: its document, or the code of what Keygen refused. */
type Said<T> = { readonly kind: 'done'; readonly value: T } | { readonly kind: 'refused'; readonly code: string };

class KeygenServer {
  readonly #options: KeygenServerOptions;
  readonly #host: string;
  readonly #root: string;
  readonly #account: string;

  constructor(options: KeygenServerOptions) {
    const { hostname, pathname } = new URL(options.serverUrl);
    this.#options = options;
    this.#host = hostname;
    this.#root = pathname.replace(/\/$/, '');
    this.#account = `/v1/accounts/${encodeURIComponent(options.account)}`;
  }

  async validate(signal?: AbortSignal): Promise<Verdict> {
    const { verdict } = await this.#validate(null, signal);
    // A license that no machine has yet is one that a machine may have.
    if (!WITHOUT_MACHINE.has(verdict.code)) return verdict;
    return { ...verdict, valid: true, code: 'VALID', detail: detailOf('VALID') };
  }

  async lease(request: SeatRequest, signal?: AbortSignal): Promise<LeaseAnswer> {
    const first = await this.#validate(request.fingerprint, signal);
    const { code, valid } = first.verdict;
    if (NOT_ACTIVATED.has(code)) {
      const refusal = await this.#activate(request, first, signal);
      if (refusal !== null) return refusal;
    } else if (!valid && !NEEDS_HEARTBEAT.has(code)) {
      return { kind: 'refused', verdict: first.verdict };
    }
    return await this.#beat(request.fingerprint, request, signal);
  }

  async renew(lease: Lease, request: SeatRequest, signal?: AbortSignal): Promise<LeaseAnswer> {
    return await this.#beat(lease.id, request, signal);
  }

  async release(leaseId: string, signal?: AbortSignal): Promise<void> {
    const said = await this.#ask({ method: 'DELETE', path: this.#machinePath(leaseId) }, null, signal);
    if (said.kind === 'refused' && said.code !== 'NOT_FOUND') throw ill(`Keygen keeps the machine: ${said.code}`);
  }

  /** A seat with a machine file: it is what proves the lease while nobody can be asked. */
  async checkout(request: SeatRequest, signal?: AbortSignal): Promise<LeaseAnswer> {
    const answer = await this.lease(request, signal);
    if (answer.kind === 'refused') return answer;
    const ttl = Math.ceil(Math.max(request.durationMs, LICENSE_KEYGEN_CHECKOUT_MS_MIN) / 1000);
    const sentAtMs = trustedNowMs(this.#options.clock);
    const path = `${this.#machinePath(answer.lease.id)}/actions/check-out`;
    const body = { meta: { encrypt: false, ttl } };
    const said = await this.#ask({ method: 'POST', path, body }, parseMachineFile, signal);
    if (said.kind === 'refused') throw ill(`Keygen gives out no machine file: ${said.code}`);
    const { certificate } = said.value.data.attributes;
    const file = readMachineFile(certificate, this.#options.key);
    if (file.machine !== answer.lease.id || file.fingerprint !== request.fingerprint) {
      throw ill("Keygen's machine file is about another machine");
    }
    const lifeMs = file.expiresAtMs - file.issuedAtMs;
    if (!(lifeMs > 0)) throw ill("Keygen's machine file is over before it begins");
    // What was asked for, not what Keygen's shortest file lasts.
    const expiresAtMs = sentAtMs + Math.min(lifeMs, request.durationMs);
    return { kind: 'granted', lease: { ...answer.lease, grantedAtMs: sentAtMs, expiresAtMs }, proof: certificate };
  }

  /** Makes the machine; null when it is there now, whoever made it (https://keygen.sh/docs/api/machines/#machines-create). */
  async #activate(
    { fingerprint }: SeatRequest,
    { license, verdict }: Validation,
    signal?: AbortSignal,
  ): Promise<LeaseAnswer | null> {
    if (license === null) throw ill('Keygen names no license for the key');
    const said = await this.#ask(
      {
        method: 'POST',
        path: `${this.#account}/machines`,
        body: {
          data: {
            type: 'machines',
            attributes: { fingerprint },
            relationships: { license: { data: { type: 'licenses', id: license } } },
          },
        },
      },
      parseMachine,
      signal,
    );
    if (said.kind === 'done' || said.code === 'FINGERPRINT_TAKEN') return null;
    if (said.code === 'MACHINE_LIMIT_EXCEEDED')
      return { kind: 'refused', verdict: refusalOf(verdict, 'TOO_MANY_MACHINES') };
    return await this.#whyNot(fingerprint, said.code, signal);
  }

  /** Sends a heartbeat (https://keygen.sh/docs/api/machines/#machines-actions-ping), then asks whether the machine holds the license. */
  async #beat(machineOrFingerprint: string, request: SeatRequest, signal?: AbortSignal): Promise<LeaseAnswer> {
    const { fingerprint } = request;
    const path = `${this.#machinePath(machineOrFingerprint)}/actions/ping`;
    const beat = await this.#ask({ method: 'POST', path }, parseMachine, signal);
    if (beat.kind === 'refused') return await this.#whyNot(fingerprint, beat.code, signal);
    const machine = beat.value.data;
    const now = await this.#validate(fingerprint, signal);
    if (!now.verdict.valid) return { kind: 'refused', verdict: now.verdict };
    if (machine.attributes.fingerprint !== fingerprint || machine.relationships.license.data.id !== now.license) {
      throw ill('Keygen answered about another machine or license');
    }
    return { kind: 'granted', lease: leaseOf(machine, now, request) };
  }

  /** A refused call has no nonce; what it means for the license, a validation says. */
  async #whyNot(fingerprint: string, code: string, signal?: AbortSignal): Promise<LeaseAnswer> {
    const { verdict } = await this.#validate(fingerprint, signal);
    if (verdict.valid) throw ill(`Keygen says that the machine is valid, and refuses it: ${code}`);
    if (NOT_ACTIVATED.has(verdict.code)) return { kind: 'refused', verdict: refusalOf(verdict, 'NO_MACHINE') };
    return { kind: 'refused', verdict };
  }

  /** Validates the key (https://keygen.sh/docs/api/licenses/#licenses-actions-validate-key), for one machine or as a whole. */
  async #validate(fingerprint: string | null, signal?: AbortSignal): Promise<Validation> {
    const nonce = randomInt(2 ** 47);
    const scope = fingerprint === null ? {} : { scope: { fingerprint } };
    const sentAtMs = trustedNowMs(this.#options.clock);
    const said = await this.#ask(
      {
        method: 'POST',
        path: `${this.#account}/licenses/actions/validate-key`,
        body: { meta: { nonce, ...scope } },
        token: { kind: 'body', field: ['meta', 'key'] },
      },
      parseValidation,
      signal,
    );
    if (said.kind === 'refused') throw ill(`Keygen does not validate the key: ${said.code}`);
    const { meta, data } = said.value;
    if (meta.nonce !== nonce || (fingerprint !== null && meta.scope?.fingerprint !== fingerprint)) {
      throw ill("Keygen's answer is to another question: it may be an old one that somebody sent again");
    }
    const atMs = keygenTime(meta.ts);
    const seats = seatsOf(data);
    const expiresAtMs = data === null || data.attributes.expiry === null ? null : keygenTime(data.attributes.expiry);
    const { valid, code } = meta;
    return {
      verdict: { valid, code, detail: detailOf(code), seats, expiresAtMs },
      license: data?.id ?? null,
      atMs,
      sentAtMs,
    };
  }

  async #ask<T>(
    asked: Omit<LicenseHttpRequest, 'headers' | 'signal'>,
    parse: Parser<T> | null,
    signal?: AbortSignal,
  ): Promise<Said<T>> {
    const { transport, key, clock } = this.#options;
    const type: Record<string, string> = asked.body === undefined ? {} : { 'content-type': MEDIA_TYPE };
    const headers = { accept: MEDIA_TYPE, 'keygen-accept-signature': 'algorithm="ed25519"', ...type };
    const token = asked.token ?? ({ kind: 'header', scheme: 'License' } as const);
    const request: LicenseHttpRequest = {
      ...asked,
      token,
      headers,
      mayHoldToken: true,
      ...(signal === undefined ? {} : { signal }),
    };
    const answer = await transport(request);
    const isDone = answer.status >= 200 && answer.status < 300;
    const isRefused = answer.status >= 400 && answer.status < 500 && answer.status !== 408 && answer.status !== 429;
    if (!isDone && !isRefused) throw ill(`Keygen answered ${answer.status}`);
    const nowMs = trustedNowMs(clock);
    checkKeygenSignature(answer, key, { request, host: this.#host, root: this.#root, nowMs });
    if (isRefused) return { kind: 'refused', code: refusedCode(answer) };
    // The cast holds: a call without an answer has no parser, and nobody looks at its value.
    return { kind: 'done', value: parse === null ? (null as T) : readKeygen(parse, answer.body) };
  }

  #machinePath(machineOrFingerprint: string): string {
    return `${this.#account}/machines/${encodeURIComponent(machineOrFingerprint)}`;
  }
}

function refusedCode({ status, body }: LicenseHttpAnswer): string {
  const { errors } = readKeygen(parseErrors, body);
  return errors[0]?.code ?? `STATUS_${status}`;
}

/** Keygen's own sentence may hold what we must not show: ours is made of the code. */
function detailOf(code: string): string {
  return code === 'VALID' ? 'the license is valid' : `Keygen says ${code}`;
}

function refusalOf(verdict: Verdict, code: string): Verdict {
  return { ...verdict, valid: false, code, detail: detailOf(code) };
}

function seatsOf(data: Static<typeof ValidationSchema>['data']): Verdict['seats'] {
  const total = data?.attributes.maxMachines ?? null;
  const used = data?.relationships?.machines?.meta?.count ?? null;
  return total === null || used === null ? null : { used, total };
}

/** Until the next heartbeat is due, on this host's clock; where none is required, for as long as was asked. */
function leaseOf({ id, attributes }: Machine, { atMs, sentAtMs }: Validation, request: SeatRequest): Lease {
  const { license, vm, durationMs } = request;
  assert(isVmId(vm), 'a seat is asked for a VM');
  const due = attributes.nextHeartbeat ?? null;
  const lifeMs = due === null ? durationMs : Math.min(durationMs, keygenTime(due) - atMs);
  if (!(lifeMs > 0)) throw ill("Keygen's next heartbeat was due before its answer");
  return { id, license, vm, grantedAtMs: sentAtMs, expiresAtMs: Math.trunc(sentAtMs + lifeMs) };
}
