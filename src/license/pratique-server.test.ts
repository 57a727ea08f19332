// What a host believes of a license server's answers: a signer of our own says true and false things, and only the true ones count.
import assert from 'node:assert/strict';
import { createPrivateKey } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Clock } from '../base/clock.ts';
import { type Envelope, makePrivatePem, type SigningKey, sealEnvelope, signingKeyOf } from '../base/dsse.ts';
import {
  LICENSE_ANSWER_BYTES_MAX,
  LICENSE_BUSY_TRIES_MAX,
  LICENSE_CLOCK_SKEW_MAX_MS,
  LICENSE_REVOCATION_PAGES_MAX,
} from '../base/limits.ts';
import { rememberSecret } from '../base/redact.ts';
import { LicenseError } from './license-error.ts';
import type { LicenseServer } from './license-server.ts';
import { ANSWER_FORMAT, ANSWER_TYPE } from './pratique-protocol.ts';
import { makePratiqueServer, readProof } from './pratique-server.ts';
import { readServerKeys } from './signed-answer.ts';
import type { LicenseHttpAnswer, LicenseHttpRequest } from './transport.ts';

const NOW_MS = Date.UTC(2026, 10, 21);
const LICENSE = 'acme-2026';
const FINGERPRINT = 'f'.repeat(32);
const REQUEST = { license: LICENSE, vm: 'web-1', fingerprint: FINGERPRINT, durationMs: 60_000 };
const ILL = { code: 'vendor-ill/license-server' };

function newKey(): SigningKey {
  return signingKeyOf(createPrivateKey(makePrivatePem())) ?? assert.fail();
}
const KEY = newKey();
const OTHER_KEY = newKey();

type Payload = Record<string, unknown>;

/** The honest answer to a request, as an object. */
function honest(request: LicenseHttpRequest, nowMs: number): Payload {
  // The cast holds: the client sends JSON objects only.
  const { nonce, license, fingerprint, durationMs, since } = request.body as Record<string, string | number>;
  const said = { format: ANSWER_FORMAT, nonce, license, issuedAtMs: nowMs, expiresAtMs: nowMs + 60_000 };
  const verdict = {
    valid: true,
    code: 'VALID',
    detail: 'is valid',
    seats: { used: 1, total: 2 },
    licenseExpiresAtMs: null,
  };
  if (request.path === '/v1/validate') return { ...said, kind: 'validation', ...verdict };
  if (request.path === '/v1/revocations') {
    return { ...said, kind: 'revocations', code: 'VALID', since, serial: since, more: false, revoked: [] };
  }
  const leaseId = /^\/v1\/leases\/([^/]+)\/release$/.exec(request.path)?.[1];
  if (leaseId !== undefined) return { ...said, kind: 'release', leaseId, released: true, code: 'VALID' };
  const times = { grantedAtMs: nowMs, expiresAtMs: nowMs + Number(durationMs) };
  return { ...said, kind: 'lease', ...verdict, lease: { id: 'seat-1', fingerprint, ...times, offline: false } };
}

function seal(payload: Payload | string, keys: readonly SigningKey[] = [KEY], type = ANSWER_TYPE): Envelope {
  return sealEnvelope(type, Buffer.from(typeof payload === 'string' ? payload : JSON.stringify(payload)), keys);
}

const ok = (body: unknown): LicenseHttpAnswer => ({
  status: 200,
  headers: {},
  body: Buffer.from(typeof body === 'string' ? body : JSON.stringify(body)),
});

type Times = { hostMs: number; serverMs: number; monotonicMs: number };
type Reply = (request: LicenseHttpRequest, times: Times) => LicenseHttpAnswer;

const HONEST: Reply = (request, { serverMs }) => ok(seal(honest(request, serverMs)));

/** A client whose server says what `reply` says next; what time it is stands in `times`. */
function makeRig(): {
  readonly client: LicenseServer;
  readonly times: Times;
  readonly say: (reply: Reply) => void;
  readonly asked: LicenseHttpRequest[];
} {
  const times: Times = { hostMs: NOW_MS, serverMs: NOW_MS, monotonicMs: 0 };
  const clock: Clock = {
    nowMs: () => times.hostMs,
    monotonicMs: () => times.monotonicMs,
    sleep: async () => {},
    after: () => () => {},
  };
  let reply = HONEST;
  const asked: LicenseHttpRequest[] = [];
  const client = makePratiqueServer({
    clock,
    keys: [KEY],
    license: LICENSE,
    transport: async (request) => {
      asked.push(request);
      return reply(request, times);
    },
  });
  const say = (next: Reply): void => {
    reply = next;
  };
  return { client, times, say, asked };
}

/** An answer that is honest but for some fields, which may depend on the honest ones. */
const saying =
  (change: Payload | ((payload: Payload) => Payload), keys?: readonly SigningKey[]): Reply =>
  (request, { serverMs }) => {
    const payload = honest(request, serverMs);
    return ok(seal({ ...payload, ...(typeof change === 'function' ? change(payload) : change) }, keys));
  };

/** The lease of an honest answer with other fields. */
const leasing = (change: Payload): Reply =>
  saying((payload) => ({ lease: { ...(payload.lease as Payload), ...change } }));

/** An honest envelope, changed after it was signed. */
const sending =
  (change: (envelope: Envelope) => unknown): Reply =>
  (request, { serverMs }) =>
    ok(change(seal(honest(request, serverMs))));

const flip = (text: string): string => `${text.startsWith('A') ? 'B' : 'A'}${text.slice(1)}`;
const HOUR_MS = 3_600_000;
const refusal = { valid: false, code: 'SUSPENDED', lease: null };

const ATTACKS: Readonly<Record<string, Reply>> = {
  'a payload changed after it was signed': sending((said) => ({
    ...said,
    payload: Buffer.from(Buffer.from(said.payload, 'base64').toString().replace('"used":1', '"used":0')).toString(
      'base64',
    ),
  })),
  'a signature with another bit': sending((said) => ({
    ...said,
    signatures: said.signatures.map(({ keyid, sig }) => ({ keyid, sig: flip(sig) })),
  })),
  'another key': saying({}, [OTHER_KEY]),
  'another key that calls itself by the right id': saying({}, [{ ...OTHER_KEY, keyid: KEY.keyid }]),
  'a refusal signed by another key': saying(refusal, [OTHER_KEY]),
  'no signature': sending((said) => ({ ...said, signatures: [] })),
  'many signatures': sending((said) => ({ ...said, signatures: Array(100).fill(said.signatures[0]) })),
  'a signed document of another type': (request, { serverMs }) =>
    ok(seal(honest(request, serverMs), [KEY], 'application/vnd.in-toto+json')),
  'another type on the envelope': sending((said) => ({ ...said, payloadType: 'application/vnd.in-toto+json' })),
  'another spelling of base64': (request, { serverMs }) => {
    const payload = honest(request, serverMs);
    let said = seal(payload);
    for (let blanks = 1; !said.payload.endsWith('A=='); blanks += 1)
      said = seal(`${JSON.stringify(payload)}${' '.repeat(blanks)}`);
    return ok({ ...said, payload: said.payload.replace(/A==$/, 'B==') });
  },
  'more in the envelope': sending((said) => ({ ...said, nonce: 'x' })),
  'an answer to another question': saying({ nonce: '0'.repeat(32) }),
  'a refusal to another question': saying({ ...refusal, nonce: '0'.repeat(32) }),
  'another license': saying({ license: 'other-2026' }),
  'another machine': leasing({ fingerprint: 'e'.repeat(32) }),
  'another kind of answer': saying({ kind: 'validation' }),
  'another format': saying({ format: 'pratique.license/2' }),
  'an answer from the future': shifted(LICENSE_CLOCK_SKEW_MAX_MS + 1),
  'an old answer': shifted(-LICENSE_CLOCK_SKEW_MAX_MS - 1),
  'an answer that ended before it was given': saying({ expiresAtMs: NOW_MS - 1 }),
  'an answer that ends when it is given': saying({ expiresAtMs: NOW_MS }),
  'an answer for ever': saying({ expiresAtMs: NOW_MS + 2 * HOUR_MS }),
  'an answer that was under way for longer than it is true': (request, times) => {
    const said = HONEST(request, times);
    times.monotonicMs += 60_000;
    return said;
  },
  'yes and SUSPENDED': saying({ code: 'SUSPENDED' }),
  'no and VALID': saying({ valid: false, lease: null }),
  'yes without a lease': saying({ lease: null }),
  'no with a lease': saying({ valid: false, code: 'EXPIRED' }),
  'a lease that is over': leasing({ expiresAtMs: NOW_MS }),
  'a lease that begins later': leasing({ grantedAtMs: NOW_MS + 1 }),
  'a lease with a name that is a path': leasing({ id: '../../v1/validate' }),
  'a code in lower case': saying({ code: 'valid' }),
  'a very long detail': saying({ detail: 'x'.repeat(100_000) }),
  'fewer than no seats': saying({ seats: { used: -1, total: 2 } }),
  'a time that is no number': saying({ issuedAtMs: String(NOW_MS) }),
  'no JSON in the envelope': () => ok(seal('{"kind":')),
  'null in the envelope': () => ok(seal('null')),
  'no UTF-8 in the envelope': (request, { serverMs }) => {
    const payload = Buffer.from(JSON.stringify(honest(request, serverMs)));
    payload[payload.indexOf('is valid')] = 0xff;
    return ok(sealEnvelope(ANSWER_TYPE, payload, [KEY]));
  },
  'an unsigned payload': (request, { serverMs }) => ok(honest(request, serverMs)),
  nothing: () => ok(''),
  garbage: () => ok('<html>captive portal</html>'),
  'no UTF-8': () => ({ status: 200, headers: {}, body: Buffer.from([0xff, 0x00, 0x7b]) }),
  'deep nesting': () => ok('['.repeat(100_000)),
  'too many bytes': (request, times) => {
    const said = HONEST(request, times);
    return { ...said, body: Buffer.concat([said.body, Buffer.alloc(LICENSE_ANSWER_BYTES_MAX, ' ')]) };
  },
  'a signed yes with another status': (request, times) => ({ ...HONEST(request, times), status: 201 }),
  'a signed no with another status': (request, times) => ({ ...saying(refusal)(request, times), status: 403 }),
  'a redirect': () => ({ status: 302, headers: { location: 'https://evil.example/' }, body: Buffer.alloc(0) }),
  'an unsigned 401': () => ({
    status: 401,
    headers: {},
    body: Buffer.from('{"title":"no","detail":"the license is revoked"}'),
  }),
  'an error of the server': () => ({ status: 500, headers: {}, body: Buffer.from('"') }),
};

/** The honest answer of a server whose clock shows another time. */
function shifted(byMs: number): Reply {
  return (request, { serverMs }) => ok(seal(honest(request, serverMs + byMs)));
}

test('an answer is believed when it is the server signed word to this question, and whatever else comes is an ill server, never a denial [A15]', async (t) => {
  for (const [name, attack] of Object.entries(ATTACKS)) {
    await t.test(name, async () => {
      const { client, say, times } = makeRig();
      assert.equal((await client.lease(REQUEST)).kind, 'granted', 'the same rig grants when the server is honest');
      say(attack);
      await assert.rejects(client.lease(REQUEST), (error) => error instanceof LicenseError && error.code === ILL.code);
      say(HONEST);
      times.monotonicMs = 0;
      assert.equal((await client.lease(REQUEST)).kind, 'granted', 'and again afterwards');
    });
  }
});

test('each question has a nonce of its own, and an answer that is sent again is not taken for a new one [A15]', async () => {
  const { client, say, asked } = makeRig();
  let kept: LicenseHttpAnswer | null = null;
  say((request, times) => {
    kept = HONEST(request, times);
    return kept;
  });
  assert.equal((await client.lease(REQUEST)).kind, 'granted');
  say(() => kept ?? assert.fail());
  await assert.rejects(client.lease(REQUEST), ILL);
  const nonces = asked.map(({ body }) => (body as { nonce: string }).nonce); // The cast holds: every request has one.
  assert.equal(new Set(nonces).size, nonces.length);
  for (const nonce of nonces) assert.match(nonce, /^[0-9a-f]{32}$/);
});

test('a signed no is a denial, in the words of the server without what could act on a terminal [A15]', async () => {
  const { client, say } = makeRig();
  say(
    saying({
      ...refusal,
      code: 'TOO_MANY_MACHINES',
      detail: 'no free seat\u001b[2J\u202e',
      licenseExpiresAtMs: NOW_MS + 5,
    }),
  );
  const answer = await client.lease(REQUEST);
  assert.deepEqual(answer, {
    kind: 'refused',
    verdict: {
      valid: false,
      code: 'TOO_MANY_MACHINES',
      detail: 'no free seat[2J',
      seats: { used: 1, total: 2 },
      expiresAtMs: NOW_MS + 5,
    },
  });
  say(saying({ valid: false, code: 'EXPIRED', more: 'a later server may say more' }));
  assert.equal((await client.validate()).code, 'EXPIRED');
});

test('whatever the two clocks show, a host never believes in a lease for longer than the server counts it [A15]', async () => {
  const span = fc.integer({ min: -LICENSE_CLOCK_SKEW_MAX_MS, max: LICENSE_CLOCK_SKEW_MAX_MS });
  const underWay = fc.integer({ min: 0, max: 20_000 });
  await fc.assert(
    fc.asyncProperty(span, underWay, underWay, async (skewMs, thereMs, backMs) => {
      const { client, say, times } = makeRig();
      times.serverMs = NOW_MS + skewMs;
      const pass = (ms: number): void => {
        times.hostMs += ms;
        times.serverMs += ms;
        times.monotonicMs += ms;
      };
      say((request) => {
        pass(thereMs);
        const said = HONEST(request, times);
        pass(backMs);
        return said;
      });
      const answer = await client.lease(REQUEST).catch((error: unknown) => {
        // The server's clock may be out of bounds by the time the answer took.
        assert.ok(error instanceof LicenseError && Math.abs(skewMs) + thereMs > LICENSE_CLOCK_SKEW_MAX_MS);
        return null;
      });
      if (answer === null) return;
      assert.ok(answer.kind === 'granted');
      const heldMs = answer.lease.expiresAtMs - times.hostMs;
      assert.ok(heldMs <= REQUEST.durationMs - backMs, `${heldMs}`);
      assert.ok(heldMs >= REQUEST.durationMs - backMs - thereMs, `${heldMs}`);
    }),
    { numRuns: 200 },
  );
});

test('whatever bytes come, they are an ill server; whatever a signed answer says, it is one or an answer that holds together [A15]', async () => {
  const { client, say } = makeRig();
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 400 }),
    fc.json().map((text) => Buffer.from(text)),
    fc
      .record({ payload: fc.base64String(), payloadType: fc.constant(ANSWER_TYPE), signatures: fc.anything() })
      .map((value) => Buffer.from(JSON.stringify(value) ?? '')),
  );
  await fc.assert(
    fc.asyncProperty(bytes, async (body) => {
      say(() => ({ status: 200, headers: {}, body }));
      await assert.rejects(client.lease(REQUEST), ILL);
      await assert.rejects(client.validate(), ILL);
    }),
    { numRuns: 300 },
  );
  const value = fc.oneof(
    fc.jsonValue({ maxDepth: 2 }),
    fc.integer(),
    fc.constantFrom(true, false, null, 'VALID', NOW_MS, FINGERPRINT),
  );
  const names = [
    'kind',
    'valid',
    'code',
    'detail',
    'seats',
    'licenseExpiresAtMs',
    'issuedAtMs',
    'expiresAtMs',
    'nonce',
    'license',
    'lease',
  ];
  const field = fc.constantFrom(
    ...names,
    'lease.id',
    'lease.fingerprint',
    'lease.grantedAtMs',
    'lease.expiresAtMs',
    'lease.offline',
  );
  let granted = 0;
  await fc.assert(
    fc.asyncProperty(fc.array(fc.tuple(field, value), { maxLength: 3 }), async (changes) => {
      say((request, times) => ok(seal(changed(honest(request, times.serverMs), changes))));
      const answer = await client.lease(REQUEST).catch((error: unknown) => {
        assert.ok(error instanceof LicenseError && error.code === ILL.code, String(error));
        return null;
      });
      if (answer?.kind !== 'granted') return;
      granted += 1;
      assert.equal(answer.lease.vm, 'web-1');
      assert.equal(answer.lease.license, LICENSE);
      assert.ok(answer.lease.expiresAtMs > NOW_MS && answer.lease.grantedAtMs <= NOW_MS);
      assert.match(answer.lease.id, /^[A-Za-z0-9._:-]+$/);
    }),
    { numRuns: 600 },
  );
  assert.ok(granted > 20, `${granted} of the changed answers were still leases`);
});

function changed(payload: Payload, changes: readonly (readonly [string, unknown])[]): Payload {
  const copy = structuredClone(payload);
  for (const [path, value] of changes) {
    const [outer = '', inner] = path.split('.');
    const lease = copy.lease;
    if (inner === undefined) copy[outer] = value;
    else if (typeof lease === 'object' && lease !== null) Object.assign(lease, { [inner]: value });
  }
  return copy;
}

const entry = (serial: number, leaseId: string | null = 'seat-1') => ({
  serial,
  leaseId,
  code: 'BANNED',
  atMs: NOW_MS,
});

test('revocations come oldest first over as many pages as there are, and a list that goes back or turns in a circle is not believed [A15]', async () => {
  const { client, say, asked } = makeRig();
  say((request, times) => {
    const since = Number((request.body as { since: number }).since); // The cast holds: it is asked for revocations.
    const revoked = since < 4 ? [entry(since + 1), entry(since + 2, null)] : [];
    const serial = since < 4 ? since + 2 : 9;
    return saying({ revoked, serial, more: since < 4 })(request, times);
  });
  assert.deepEqual(await client.revocations(0), {
    serial: 9,
    revoked: [1, 2, 3, 4].map((serial) => ({ serial, leaseId: serial % 2 === 1 ? 'seat-1' : null, code: 'BANNED' })),
  });
  assert.deepEqual(await client.revocations(9), { serial: 9, revoked: [] });
  const lies: readonly Payload[] = [
    { since: 3 },
    { serial: 3 },
    { more: true },
    { serial: 9, revoked: [entry(7), entry(6)] },
    { serial: 9, revoked: [entry(7), entry(7)] },
    { serial: 9, revoked: [entry(4)] },
    { serial: 9, revoked: [entry(10)] },
    { serial: 9, revoked: Array.from({ length: 501 }, (_, index) => entry(5 + index)) },
  ];
  for (const lie of lies) {
    say(saying(lie));
    await assert.rejects(client.revocations(4), ILL, JSON.stringify(lie));
  }
  asked.length = 0;
  say((request, times) => saying((payload) => ({ serial: Number(payload.since) + 1, more: true }))(request, times));
  assert.equal(
    (await client.revocations(0)).serial,
    LICENSE_REVOCATION_PAGES_MAX,
    'a list without an end is left for the next time',
  );
  assert.equal(asked.length, LICENSE_REVOCATION_PAGES_MAX);
});

test('a list of revocations that is told slowly is read on the next time: other licenses wait for theirs', async () => {
  const { client, say, times, asked } = makeRig();
  say((request, now) => {
    times.monotonicMs += 14_000;
    return saying((payload) => ({ serial: Number(payload.since) + 1, more: true }))(request, now);
  });
  assert.equal((await client.revocations(0)).serial, 2);
  assert.equal(asked.length, 2);
});

test('a server that has too many requests is asked again a little later, a bounded number of times: it is not away', async () => {
  const { client, say, asked } = makeRig();
  const busy: LicenseHttpAnswer = { status: 429, headers: { 'retry-after': '1' }, body: Buffer.from('{}') };
  say((request, times) => (asked.length < 3 ? busy : HONEST(request, times)));
  assert.equal((await client.lease(REQUEST)).kind, 'granted');
  assert.equal(asked.length, 3);
  asked.length = 0;
  say(() => busy);
  await assert.rejects(client.lease(REQUEST), ILL);
  assert.equal(asked.length, LICENSE_BUSY_TRIES_MAX);
});

test('a token that a server hides in what it says of a license is not shown [A15]', async () => {
  const { client, say } = makeRig();
  const { forget } = rememberSecret('pratique_license_Zb9');
  try {
    // JSON spells a letter in more than one way, and control characters are taken out before anything is shown.
    const hidden = 'it is pratique\u0000_license_Zb9';
    say(saying({ detail: hidden }));
    assert.equal((await client.validate()).detail, 'it is [redacted]');
    say(() => ({ status: 500, headers: {}, body: Buffer.from(JSON.stringify({ detail: hidden })) }));
    await assert.rejects(client.validate(), { message: 'the license server answered 500: it is [redacted]' });
  } finally {
    forget();
  }
});

test('a server that knows the license no more for this token has revoked it as a whole, and counts no seat of ours [A15]', async () => {
  const { client, say } = makeRig();
  say(saying({ code: 'NOT_FOUND' }));
  assert.deepEqual(await client.revocations(7), {
    serial: 7,
    revoked: [{ serial: 7, leaseId: null, code: 'NOT_FOUND' }],
  });
  say(saying({ released: false, code: 'NOT_FOUND' }));
  await client.release('seat-1');
});

test('a seat is released when the server says so about this seat [A15]', async () => {
  const { client, say } = makeRig();
  await client.release('seat-1');
  say(saying({ leaseId: 'seat-2' }));
  await assert.rejects(client.release('seat-1'), ILL);
  say(saying({ released: false, code: 'SUSPENDED' }));
  await assert.rejects(client.release('seat-1'), ILL);
});

test('a lease has its proof with it, which is believed without the server for this license and machine only [A15]', async () => {
  const { client } = makeRig();
  const answer = await client.checkout?.(REQUEST);
  assert.ok(answer?.kind === 'granted' && answer.proof !== undefined);
  const read = (proof: string, { license = LICENSE, fingerprint = FINGERPRINT, key = KEY } = {}) =>
    readProof(proof, { keys: [key], license }, fingerprint);
  assert.deepEqual(read(answer.proof), {
    id: 'seat-1',
    grantedAtMs: NOW_MS,
    expiresAtMs: NOW_MS + REQUEST.durationMs,
    offline: false,
  });
  assert.throws(() => read(answer.proof ?? '', { license: 'other' }), ILL);
  assert.throws(() => read(answer.proof ?? '', { fingerprint: 'e'.repeat(32) }), ILL);
  assert.throws(() => read(answer.proof ?? '', { key: OTHER_KEY }), ILL);
  assert.throws(() => read(answer.proof?.replace('"payload":"', '"payload":"e30') ?? ''), ILL);
});

test('keys are read from PEM text, two while they change, and anything else is told to whoever gave it [A15]', () => {
  const both = readServerKeys(`${KEY.publicPem}\n${OTHER_KEY.publicPem}`, 'it');
  assert.deepEqual(
    both.map(({ keyid }) => keyid),
    [KEY.keyid, OTHER_KEY.keyid],
  );
  const p256 =
    '-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEoBUyo8CQAFPeYPvv78ylh5MwFZjTCLQeb042TjiMJxG+9DLFmRSMlBQ9T/RsLLc+PmpB1+7yPAR+oR5gZn3kJQ==\n-----END PUBLIC KEY-----';
  for (const text of ['', 'no key', p256, KEY.publicPem.replace('MCow', 'AAAA')]) {
    assert.throws(() => readServerKeys(text, 'it'), { code: 'usage/license-key' });
  }
});
