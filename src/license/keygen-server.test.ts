// The adapter for Keygen's API against a fake that speaks Keygen's own documents and signatures.
import assert from 'node:assert/strict';
import { generateKeyPairSync, sign } from 'node:crypto';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { type FakeKeygen, type KeygenReply, startKeygen } from '../../test/fakes/keygen-server.ts';
import { makeTestTransport } from '../../test/fakes/license-server.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import { LICENSE_KEYGEN_AGE_MAX_MS } from '../base/limits.ts';
import { readKeygenKey, readMachineFile } from './keygen-answer.ts';
import { makeKeygenServer } from './keygen-server.ts';
import { LicenseError } from './license-error.ts';
import type { LeaseAnswer, LicenseServer } from './license-server.ts';

const ILL = { code: 'vendor-ill/license-server' };
const fingerprintOf = (vm: string): string => Buffer.from(vm.padEnd(16, '.')).toString('hex');
const requestOf = (vm: string, durationMs = 300_000) => ({
  license: 'shop',
  vm,
  fingerprint: fingerprintOf(vm),
  durationMs,
});

async function rig(
  t: TestContext,
  { key, clock = systemClock }: { readonly key?: string; readonly clock?: Clock } = {},
): Promise<{ readonly keygen: FakeKeygen; readonly client: LicenseServer }> {
  const keygen = await startKeygen();
  t.after(async () => await keygen.close());
  const { url, account } = keygen;
  const transport = makeTestTransport({ url, token: key ?? keygen.key });
  return {
    keygen,
    client: makeKeygenServer({ transport, clock, key: readKeygenKey(keygen.verifyKey), account, serverUrl: url }),
  };
}

function leaseOf(answer: LeaseAnswer) {
  assert.ok(answer.kind === 'granted', JSON.stringify(answer));
  return answer.lease;
}
const codeOf = (answer: LeaseAnswer): string => (answer.kind === 'granted' ? 'VALID' : answer.verdict.code);

test('a machine of a Keygen license is a seat: made once for each fingerprint, kept by its heartbeat, given back [A15]', async (t) => {
  const { keygen, client } = await rig(t);
  assert.deepEqual(await client.validate(), {
    valid: true,
    code: 'VALID',
    detail: 'the license is valid',
    seats: { used: 0, total: 2 },
    expiresAtMs: null,
  });
  const web = leaseOf(await client.lease(requestOf('web')));
  assert.ok(keygen.machines.has(web.id));
  assert.ok(web.expiresAtMs <= Date.now() + 300_000 && web.expiresAtMs > Date.now() + 290_000);
  assert.equal(leaseOf(await client.lease(requestOf('web'))).id, web.id);
  leaseOf(await client.lease(requestOf('shop')));
  assert.equal(codeOf(await client.lease(requestOf('mail'))), 'TOO_MANY_MACHINES');
  keygen.terms.heartbeatSeconds = 60;
  const renewed = leaseOf(await client.renew(web, requestOf('web')));
  assert.ok(renewed.expiresAtMs <= Date.now() + 60_000, 'a lease is not longer than the heartbeat allows');
  await client.release(web.id);
  await client.release(web.id);
  assert.equal(keygen.machines.size, 1);
  assert.equal(codeOf(await client.renew(web, requestOf('web'))), 'NO_MACHINE');
  leaseOf(await client.lease(requestOf('mail')));
  const paths = new Set(keygen.asked.map((line) => line.replace(/[0-9a-f-]{32,36}/g, '*')));
  assert.deepEqual([...paths].sort(), [
    'delete /v1/accounts/*/machines/*',
    'post /v1/accounts/*/licenses/actions/validate-key',
    'post /v1/accounts/*/machines',
    'post /v1/accounts/*/machines/*/actions/ping',
  ]);
});

test('what Keygen says of a license is said on, in a sentence of our own, and ends it where it is an ending word [A15]', async (t) => {
  const { keygen, client } = await rig(t);
  const lease = leaseOf(await client.lease(requestOf('web')));
  const cases: readonly (readonly [string, () => void])[] = [
    ['SUSPENDED', () => Object.assign(keygen.terms, { suspended: true })],
    ['BANNED', () => Object.assign(keygen.terms, { suspended: false, banned: true })],
    ['EXPIRED', () => Object.assign(keygen.terms, { banned: false, expiry: '2026-01-01T00:00:00.000Z' })],
  ];
  for (const [code, happen] of cases) {
    happen();
    const { valid, detail } = await client.validate();
    assert.deepEqual([valid, detail], [false, `Keygen says ${code}`]);
    assert.equal(codeOf(await client.renew(lease, requestOf('web'))), code);
    assert.equal(codeOf(await client.lease(requestOf('shop'))), code);
    const isEnding = code !== 'EXPIRED';
    assert.deepEqual(await client.revocations(3), {
      serial: 3,
      revoked: isEnding ? [{ serial: 3, leaseId: null, code }] : [],
    });
  }
  const { client: stranger } = await rig(t, { key: 'NO-SUCH-KEY' });
  assert.equal((await stranger.validate()).code, 'NOT_FOUND');
  assert.equal(codeOf(await stranger.lease(requestOf('web'))), 'NOT_FOUND');
});

test('a machine whose heartbeat died is revived, and one that somebody else made for the same fingerprint is taken over [A15]', async (t) => {
  const { keygen, client } = await rig(t);
  const lease = leaseOf(await client.lease(requestOf('web')));
  const machine = keygen.machines.get(lease.id) ?? assert.fail();
  machine.nextHeartbeatMs = 1;
  assert.equal(leaseOf(await client.lease(requestOf('web'))).id, lease.id);
  machine.nextHeartbeatMs = null;
  assert.equal(leaseOf(await client.renew(lease, requestOf('web'))).id, lease.id);
  assert.equal(keygen.machines.size, 1);
});

test('a machine that another of our questions made meanwhile is ours, and a license that ends meanwhile has ended [A15]', async (t) => {
  const { keygen, client } = await rig(t);
  const lease = leaseOf(await client.lease(requestOf('web')));
  let asked = 0;
  keygen.alter((reply, request) => {
    asked += 1;
    const late = edited(({ meta }) => Object.assign(meta ?? {}, { valid: false, code: 'NO_MACHINES' }));
    return asked === 1 ? late(reply, request, keygen) : reply;
  });
  assert.equal(leaseOf(await client.lease(requestOf('web'))).id, lease.id);
  assert.ok(keygen.asked.some((line) => line.endsWith('/machines')) && keygen.machines.size === 1);
  keygen.alter((reply, request) => {
    if (request.endsWith('/ping')) keygen.terms.suspended = true;
    return reply;
  });
  assert.equal(codeOf(await client.renew(lease, requestOf('web'))), 'SUSPENDED');
});

test('a machine file is the proof of a seat without Keygen, for its machine only [A15]', async (t) => {
  const { keygen, client } = await rig(t);
  const answer = await client.checkout?.(requestOf('web', 7_200_000));
  assert.ok(answer?.kind === 'granted' && answer.proof !== undefined);
  assert.ok(answer.lease.expiresAtMs > Date.now() + 7_100_000 && answer.lease.expiresAtMs <= Date.now() + 7_200_000);
  const key = readKeygenKey(keygen.verifyKey);
  const file = readMachineFile(answer.proof, key);
  assert.deepEqual([file.machine, file.fingerprint], [answer.lease.id, fingerprintOf('web')]);
  const short = await client.checkout?.(requestOf('web', 60_000));
  assert.ok(
    short?.kind === 'granted' && short.lease.expiresAtMs <= Date.now() + 60_000,
    'an hour is the shortest file, not the lease',
  );
  const { publicKey } = generateKeyPairSync('ed25519');
  const other = readKeygenKey(publicKey.export({ type: 'spki', format: 'pem' }).toString());
  assert.throws(() => readMachineFile(answer.proof ?? '', other), ILL);
  for (const text of ['', 'x', answer.proof.replace('MACHINE', 'LICENSE'), answer.proof.replace(/\n.{20}/, '\nAAAA')]) {
    assert.throws(() => readMachineFile(text, key), ILL);
  }
  const lines = answer.proof.split('\n').slice(1, -2).join('');
  const { enc } = JSON.parse(Buffer.from(lines, 'base64').toString()) as { enc: string }; // The cast holds for the fake.
  const stranger = generateKeyPairSync('ed25519');
  const sig = sign(null, Buffer.from(`machine/${enc}`), stranger.privateKey).toString('base64');
  const forged = Buffer.from(JSON.stringify({ enc, sig, alg: 'base64+ed25519' })).toString('base64');
  assert.throws(
    () => readMachineFile(`-----BEGIN MACHINE FILE-----\n${forged}\n-----END MACHINE FILE-----\n`, key),
    ILL,
  );
});

type Change = (reply: KeygenReply, request: string, keygen: FakeKeygen) => KeygenReply;
const withHeader =
  (name: string, change: (value: string) => string): Change =>
  (reply) => ({ ...reply, headers: { ...reply.headers, [name]: change(reply.headers[name] ?? '') } });
/** Signs what it makes of the honest answer, as Keygen would. */
const resigned =
  (change: (body: string) => string, aheadMs = 0): Change =>
  (reply, request, keygen) =>
    keygen.signed({ ...reply, body: change(reply.body) }, request, Date.now() + aheadMs);
const edited = (edit: (document: Record<string, Record<string, unknown>>) => unknown): Change =>
  resigned((body) => {
    const document = JSON.parse(body) as Record<string, Record<string, unknown>>; // The cast holds for the fake's own answers.
    edit(document);
    return JSON.stringify(document);
  });

const ATTACKS: Readonly<Record<string, Change>> = {
  'a body that was changed': (reply) => ({ ...reply, body: reply.body.replace('"valid":true', '"valid" :true') }),
  'no signature': (reply) => {
    const { 'keygen-signature': _signature, ...headers } = reply.headers;
    return { ...reply, headers };
  },
  'a signature with another bit': withHeader('keygen-signature', (value) =>
    value.replace(/signature="(.)/, (_, first) => `signature="${first === 'A' ? 'B' : 'A'}`),
  ),
  'another algorithm': withHeader('keygen-signature', (value) => value.replace('ed25519', 'rsa-sha256')),
  'another date': withHeader('keygen-date', () => new Date(Date.now() - 1000).toUTCString()),
  'the answer to another request': (reply, _request, keygen) =>
    keygen.signed(reply, 'post /v1/accounts/x/machines', Date.now()),
  'an old answer': resigned((body) => body, -LICENSE_KEYGEN_AGE_MAX_MS - 2_000),
  'an answer from the future': resigned((body) => body, LICENSE_KEYGEN_AGE_MAX_MS + 2_000),
  'another nonce': edited(({ meta }) => Object.assign(meta ?? {}, { nonce: 7 })),
  'no nonce': edited(({ meta }) => Object.assign(meta ?? {}, { nonce: undefined })),
  'another fingerprint': edited(({ meta }) => Object.assign(meta ?? {}, { scope: { fingerprint: 'x' } })),
  'no license': edited((document) => Object.assign(document, { data: { id: 'x' } })),
  'signed garbage': resigned(() => '<html>'),
  'signed nothing': resigned(() => ''),
  'a server that is ill': (reply) => ({ ...reply, status: 503 }),
  'too many requests': (reply) => ({ ...reply, status: 429 }),
  'a redirect': (reply) => ({ ...reply, status: 302 }),
  'an unsigned no': () => ({ status: 403, headers: {}, body: '{"errors":[{"code":"LICENSE_SUSPENDED"}]}' }),
};

test('an answer that is not signed for this question, by this account and now is an ill server, never a denial [A15]', async (t) => {
  const { keygen, client } = await rig(t);
  for (const [name, attack] of Object.entries(ATTACKS)) {
    assert.equal(codeOf(await client.lease(requestOf('web'))), 'VALID', `before ${name}`);
    keygen.alter((reply, request) => attack(reply, request, keygen));
    await assert.rejects(
      client.lease(requestOf('web')),
      (error) => error instanceof LicenseError && error.code === ILL.code,
      name,
    );
    keygen.alter(null);
  }
});

test('an answer that is sent again is not taken for a new one, though its signature is good for minutes [A15]', async (t) => {
  const { keygen, client } = await rig(t);
  leaseOf(await client.lease(requestOf('web')));
  const kept = new Map<string, KeygenReply>();
  keygen.alter((reply, request) => {
    kept.set(request, reply);
    return reply;
  });
  assert.ok((await client.validate()).valid);
  leaseOf(await client.lease(requestOf('web')));
  keygen.terms.suspended = true;
  keygen.alter((reply, request) => kept.get(request) ?? reply);
  await assert.rejects(client.validate(), ILL);
  await assert.rejects(client.lease(requestOf('web')), ILL);
});

test('a heartbeat that is answered for another machine or license is not believed [A15]', async (t) => {
  const { keygen, client } = await rig(t);
  leaseOf(await client.lease(requestOf('web')));
  const lies: readonly Change[] = [
    edited(({ data }) => Object.assign(data?.attributes ?? {}, { fingerprint: fingerprintOf('other') })),
    edited(({ data }) =>
      Object.assign(data?.relationships ?? {}, { license: { data: { id: '11111111-2222-3333-4444-555555555555' } } }),
    ),
    edited(({ data }) => Object.assign(data?.attributes ?? {}, { nextHeartbeat: '2026-01-01T00:00:00.000Z' })),
    edited(({ data }) => Object.assign(data?.attributes ?? {}, { nextHeartbeat: 'soon' })),
  ];
  for (const lie of lies) {
    keygen.alter((reply, request) => (request.endsWith('/ping') ? lie(reply, request, keygen) : reply));
    await assert.rejects(client.lease(requestOf('web')), ILL);
  }
});

test('whatever a signed answer of Keygen says, it is an ill server or an answer that holds together [A15]', async (t) => {
  const { keygen, client } = await rig(t);
  leaseOf(await client.lease(requestOf('web')));
  const places = [
    'meta',
    'meta.ts',
    'meta.valid',
    'meta.code',
    'meta.scope',
    'data',
    'data.id',
    'data.attributes',
    'data.attributes.expiry',
  ];
  const more = [
    'data.attributes.maxMachines',
    'data.attributes.fingerprint',
    'data.attributes.nextHeartbeat',
    'data.relationships',
  ];
  const values = fc.oneof(
    fc.jsonValue({ maxDepth: 1 }),
    fc.constantFrom('2026-99-99T99:99:99Z', '9999-12-31T23:59:59Z', 'VALID', 'SUSPENDED', true, false, null, 1e300),
  );
  await fc.assert(
    fc.asyncProperty(fc.constantFrom(...places, ...more), values, async (place, value) => {
      keygen.alter((reply, request) =>
        edited((document) => put(document, place.split('.'), value))(reply, request, keygen),
      );
      const answer = await client.lease(requestOf('web')).catch(onlyIll);
      if (answer?.kind === 'granted') {
        const { lease } = answer;
        assert.ok(
          keygen.machines.has(lease.id) && Number.isInteger(lease.expiresAtMs) && Number.isInteger(lease.grantedAtMs),
        );
        assert.ok(lease.expiresAtMs <= Date.now() + 300_000);
      }
      const verdict = await client.validate().catch(onlyIll);
      if (verdict !== null) assert.ok(verdict.expiresAtMs === null || Number.isInteger(verdict.expiresAtMs));
    }),
    { numRuns: 150 },
  );
});

function onlyIll(error: unknown): null {
  assert.ok(error instanceof LicenseError && error.code === ILL.code, String(error));
  return null;
}

/** Puts a value at a place of a document; where there is no such place, nothing. */
function put(document: object, path: readonly string[], value: unknown): void {
  const [name = '', ...rest] = path;
  if (rest.length === 0) Object.assign(document, { [name]: value });
  const inner: unknown = Object.entries(document).find(([key]) => key === name)?.[1];
  if (rest.length > 0 && typeof inner === 'object' && inner !== null) put(inner, rest, value);
}

test('no word of Keygen answers with the license key in them comes out of the adapter [A15]', async (t) => {
  const { keygen, client } = await rig(t);
  const answer = await client.checkout?.(requestOf('web'));
  const texts = [JSON.stringify(answer), JSON.stringify(await client.validate())];
  keygen.alter((reply, request) =>
    keygen.signed({ ...reply, status: 422, body: `{"errors":[{"code":"${keygen.key}"}]}` }, request, Date.now()),
  );
  texts.push(await client.lease(requestOf('web')).then(JSON.stringify, (error: Error) => error.stack ?? ''));
  for (const text of texts) assert.ok(!text.includes(keygen.key), text);
});

test("a Keygen key is its dashboard's 64 hex digits or PEM, and anything else is told to whoever gave it [A15]", async () => {
  for (const text of ['', 'e8601e48', 'x'.repeat(64), '-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----']) {
    assert.throws(() => readKeygenKey(text), { code: 'usage/license-key' });
  }
  const known = 'e8601e48b69383ba520245fd07971e983d06d22c4257cfd82304601479cee788';
  assert.ok(readKeygenKey(` ${known}\n`).publicPem.includes('BEGIN PUBLIC KEY'));
});
