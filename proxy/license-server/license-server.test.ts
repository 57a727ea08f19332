// The reference license server: how it counts, what it refuses over HTTP, and its commands.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type Envelope, openEnvelope } from '../../src/base/dsse.ts';
import {
  LICENSE_ANSWER_BYTES_MAX,
  LICENSE_CLOCK_SKEW_MAX_MS,
  LICENSE_REVOCATIONS_PAGE_MAX,
  LICENSE_SERVER_BODY_BYTES_MAX,
  LICENSE_SERVER_LEASE_KEPT_MS,
  LICENSE_SERVER_UNKNOWN_PER_SECOND,
} from '../../src/base/limits.ts';
import { silentLog } from '../../src/base/log.ts';
import {
  ANSWER_TYPE,
  ANSWERS,
  LeaseRequestSchema,
  ReleaseRequestSchema,
  RevocationsRequestSchema,
  SERVER_CODES,
  ValidateRequestSchema,
} from '../../src/license/pratique-protocol.ts';
import { makeFakeClock } from '../../test/simulator/clock.ts';
import { runCommandLine } from '../cli/program.ts';
import { listen, makeLicenseApi, parseListen } from './http.ts';
import { LicenseStore, type LicenseTerms, tokenHashOf } from './license-store.ts';
import { makeRate } from './rate.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const TERMS: LicenseTerms = {
  seats: 2,
  product: null,
  tenant: null,
  expiresAtMs: null,
  leaseMaxMs: HOUR_MS,
  checkoutMaxMs: 7 * DAY_MS,
};

async function folderOf(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-license-store-'));
  t.after(async () => await rm(folder, { recursive: true }));
  return folder;
}

function storeOf(t: TestContext, terms: Partial<LicenseTerms> = {}) {
  const clock = makeFakeClock();
  const store = new LicenseStore(':memory:', clock);
  t.after(() => store.close());
  const { token } = store.create('acme', { ...TERMS, ...terms });
  const asker = { tokenHash: tokenHashOf(token), license: 'acme' };
  const requestOf = (vm: string, durationMs = HOUR_MS) => ({
    nonce: '0'.repeat(32),
    license: 'acme',
    fingerprint: vm.padEnd(16, '.'),
    durationMs,
  });
  return {
    ...{ store, clock, token, asker, requestOf },
    lease: (vm: string, durationMs?: number) => store.lease(asker, requestOf(vm, durationMs)),
  };
}

test('a seat is free again when its lease ends, is revived while there is room, and is taken by others while there is none [A15]', async (t) => {
  const { store, clock, asker, requestOf, lease } = storeOf(t);
  const web = lease('web').lease ?? assert.fail();
  lease('shop');
  assert.equal(lease('mail').code, 'TOO_MANY_MACHINES');
  clock.jump(HOUR_MS);
  assert.equal(store.show('acme').used, 0);
  assert.equal(store.renew(asker, web.id, requestOf('web')).lease?.id, web.id, 'its machine gets the same one again');
  clock.jump(HOUR_MS);
  assert.equal(lease('mail').code, 'VALID');
  assert.equal(lease('blog').code, 'VALID');
  assert.equal(store.renew(asker, web.id, requestOf('web')).code, 'TOO_MANY_MACHINES');
  clock.jump(LICENSE_SERVER_LEASE_KEPT_MS + HOUR_MS + 1);
  lease('mail');
  assert.equal(store.renew(asker, web.id, requestOf('web')).code, 'NO_MACHINE', 'one that is long over is forgotten');
});

test('a lease is as long as was asked, as the terms allow, and never longer than the license [A15]', async (t) => {
  const { store, clock, asker, requestOf, lease } = storeOf(t, {
    expiresAtMs: makeFakeClock().nowMs() + 3 * HOUR_MS,
  });
  const nowMs = clock.nowMs();
  const lengthOf = (said: ReturnType<typeof lease>): number => (said.lease?.expiresAtMs ?? 0) - nowMs;
  assert.equal(lengthOf(lease('web', 5_000)), 5_000);
  assert.equal(lengthOf(lease('web', DAY_MS)), HOUR_MS);
  assert.equal(lengthOf(store.checkout(asker, requestOf('web', DAY_MS))), 3 * HOUR_MS);
  assert.equal(lengthOf(lease('web', 5_000)), 3 * HOUR_MS, 'what is checked out is not shortened');
  store.change('acme', { seats: 1, checkoutMaxMs: 0 });
  assert.equal(store.checkout(asker, requestOf('web')).code, 'CHECKOUT_NOT_ALLOWED');
  clock.jump(3 * HOUR_MS);
  assert.equal(lease('web').code, 'EXPIRED');
  assert.equal(store.validate(asker).licenseExpiresAtMs, nowMs + 3 * HOUR_MS);
});

test('fewer seats than are held end no lease; they are not given out again [A15]', async (t) => {
  const { store, lease, asker, requestOf } = storeOf(t);
  const [web, shop] = [lease('web').lease ?? assert.fail(), lease('shop').lease ?? assert.fail()];
  store.change('acme', { seats: 1 });
  assert.deepEqual(store.renew(asker, web.id, requestOf('web')).seats, { used: 2, total: 1 });
  store.release(asker, shop.id);
  assert.equal(lease('shop').code, 'TOO_MANY_MACHINES');
});

test('the log tells grants, refusals, releases and what the administrator did, and no heartbeat [A15] [A17]', async (t) => {
  const { store, lease, asker, requestOf } = storeOf(t, { seats: 1 });
  const web = lease('web').lease ?? assert.fail();
  store.renew(asker, web.id, requestOf('web'));
  lease('shop');
  store.revokeLease('acme', web.id);
  assert.deepEqual(
    store.log(10).map(({ actor, action, detail }) => `${actor} ${action} ${detail}`.trim()),
    ['admin create 1 seats', 'host grant', 'host refuse TOO_MANY_MACHINES', 'admin revoke-lease'],
  );
  assert.equal(store.log(1)[0]?.action, 'revoke-lease', 'the newest ones');
});

test('revocations come in pages, each license with serials of its own [A15]', async (t) => {
  const { store, asker, lease } = storeOf(t, { seats: 600 });
  store.create('other', TERMS);
  store.suspend('other');
  for (let vm = 0; vm < 502; vm += 1) store.revokeLease('acme', lease(`vm-${vm}`).lease?.id ?? '');
  const first = store.revocations(asker, 0);
  assert.deepEqual([first.revoked.length, first.serial, first.more], [500, 500, true]);
  const second = store.revocations(asker, first.serial);
  assert.deepEqual([second.revoked.length, second.serial, second.more], [2, 502, false]);
  assert.deepEqual(store.revocations(asker, 502).revoked, []);
});

test('a server restored from an old copy goes on behind what hosts have seen, as far as that is believable [A15]', (t) => {
  const { store, asker } = storeOf(t);
  assert.equal(store.revocations(asker, 41).serial, 41);
  store.suspend('acme');
  assert.deepEqual(
    store.revocations(asker, 41).revoked.map(({ serial, code }) => [serial, code]),
    [[42, 'SUSPENDED']],
  );
  assert.equal(
    store.revocations(asker, Number.MAX_SAFE_INTEGER).serial,
    42,
    'nobody makes it count beyond all numbers',
  );
});

test('the database is its owner only, and another process sees each change at once [A15]', async (t) => {
  const path = join(await folderOf(t), 'licenses.db');
  const clock = makeFakeClock();
  const [one, two] = [new LicenseStore(path, clock), new LicenseStore(path, clock)];
  assert.equal((await stat(path)).mode & 0o077, 0);
  const { token } = one.create('acme', TERMS);
  two.suspend('acme');
  assert.equal(one.validate({ tokenHash: tokenHashOf(token), license: 'acme' }).code, 'SUSPENDED');
  assert.equal(one.signingKeys().length, 1);
  two.rotateKey();
  assert.equal(one.signingKeys().length, 2);
  assert.equal(one.signingKeys()[0]?.keyid, two.signingKeys()[0]?.keyid);
  one.close();
  two.close();
});

async function apiOf(t: TestContext, options: { readonly ratePerSecond?: number } = {}) {
  const rig = storeOf(t);
  const app = makeLicenseApi({ store: rig.store, clock: rig.clock, log: silentLog, ...options });
  t.after(async () => await app.close());
  const url = await listen(app, { host: '127.0.0.1', port: 0 }, false);
  const post = async (path: string, body: unknown, headers: Record<string, string> = {}) =>
    await fetch(url + path, {
      method: 'POST',
      headers: { authorization: `Bearer ${rig.token}`, 'content-type': 'application/json', ...headers },
      body: typeof body === 'string' ? body : JSON.stringify(body),
    });
  return { ...rig, url, post };
}

test('what is no decision about a license is a problem document, and says nothing of what was sent [A15]', async (t) => {
  const { url, post, token, requestOf } = await apiOf(t);
  const good = { nonce: '0'.repeat(32), license: 'acme' };
  assert.equal((await post('/v1/validate', good)).status, 200, 'the honest one');
  const cases: readonly (readonly [number, Promise<Response>])[] = [
    [401, fetch(`${url}/v1/validate`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{}' })],
    [401, post('/v1/validate', good, { authorization: 'Basic eDp5' })],
    [400, post('/v1/validate', {})],
    [400, post('/v1/validate', { ...good, nonce: 'short' })],
    [400, post('/v1/validate', { ...good, more: 1 })],
    [400, post('/v1/leases', { ...requestOf('web'), durationMs: -1 })],
    [400, post('/v1/leases', { ...requestOf('web'), fingerprint: '../../etc' })],
    [400, post('/v1/leases/a%20b/renew', requestOf('web'))],
    [400, post('/v1/validate', '{"nonce":')],
    [400, post('/v1/validate', 'null')],
    [413, post('/v1/validate', { ...good, nonce: 'x'.repeat(20_000) })],
    [415, post('/v1/validate', 'x', { 'content-type': 'text/plain' })],
    [404, post('/v1/nothing', good)],
    [404, fetch(`${url}/v1/validate`)],
  ];
  for (const [status, asked] of cases) {
    const response = await asked;
    const text = await response.text();
    assert.equal(response.status, status, text);
    assert.match(response.headers.get('content-type') ?? '', /^application\/problem\+json/);
    const problem = JSON.parse(text) as { status: number; title: string; detail: string }; // The cast holds: it is looked at next.
    assert.deepEqual([problem.status, typeof problem.title, typeof problem.detail], [status, 'string', 'string']);
    assert.ok(!text.includes(token) && !text.includes('eDp5'));
  }
});

test('an unknown token gets a signed NOT_FOUND, and soon no answer at all; one that is known has a rate of its own [A15]', async (t) => {
  const { post, store } = await apiOf(t, { ratePerSecond: 20 });
  const body = { nonce: '0'.repeat(32), license: 'acme' };
  const stranger = { authorization: `Bearer ${'x'.repeat(40)}` };
  const first = await post('/v1/validate', body, stranger);
  const envelope = (await first.json()) as Envelope; // The cast holds: openEnvelope looks at it.
  const said = JSON.parse(openEnvelope(envelope, ANSWER_TYPE, store.signingKeys())?.toString() ?? 'null') as {
    code: string;
  };
  assert.equal(said.code, 'NOT_FOUND');
  const statuses: number[] = [];
  for (let count = 0; count < LICENSE_SERVER_UNKNOWN_PER_SECOND * 10 + 5; count += 1) {
    statuses.push((await post('/v1/validate', body, stranger)).status);
  }
  assert.equal(statuses.at(-1), 429);
  const known: Response[] = [];
  for (let count = 0; count < 201; count += 1) known.push(await post('/v1/validate', body));
  assert.equal(known[199]?.status, 200, 'strangers do not use up what a known token may');
  assert.deepEqual([known[200]?.status, known[200]?.headers.get('retry-after')], [429, '1']);
});

test('of too many names the one that asked least recently is forgotten, and a rate refills [A15]', () => {
  let nowMs = 0;
  const rate = makeRate({ perSecond: 1, monotonicMs: () => nowMs });
  for (let count = 0; count < 10; count += 1) assert.ok(rate.mayAsk('a'));
  assert.ok(!rate.mayAsk('a'));
  nowMs += 1_000;
  assert.ok(rate.mayAsk('a') && !rate.mayAsk('a'));
  for (let name = 0; name < 10_000; name += 1) rate.mayAsk(`b${name}`);
  assert.ok(rate.mayAsk('a'), 'a new bucket');
});

test('it listens without TLS on this machine only [A15]', async (t) => {
  const { store, clock } = storeOf(t);
  const app = makeLicenseApi({ store, clock, log: silentLog });
  t.after(async () => await app.close());
  await assert.rejects(listen(app, parseListen('0.0.0.0:0'), false), { code: 'usage/listen' });
  await assert.rejects(listen(app, parseListen('[::]:0'), false), { code: 'usage/listen' });
  for (const text of ['', '127.0.0.1', 'x:99999', '[::1:5']) {
    assert.throws(() => parseListen(text), { code: 'usage/listen' }, text);
  }
  assert.deepEqual(parseListen('[::1]:8475'), { host: '::1', port: 8475 });
});

test('the page of the API names every request, field, code and bound that the code has [A15]', async () => {
  const page = await readFile(new URL('../../docs/license-api.md', import.meta.url), 'utf8');
  const requests = [
    ValidateRequestSchema,
    LeaseRequestSchema,
    ReleaseRequestSchema,
    RevocationsRequestSchema,
    ...Object.values(ANSWERS),
  ];
  const fields = new Set(requests.flatMap(({ properties }) => Object.keys(properties)));
  for (const field of [...fields, ...Object.keys(SERVER_CODES), ...Object.keys(ANSWERS)]) {
    assert.ok(page.includes(`\`${field}\``) || page.includes(`"${field}"`), field);
  }
  const paths = [
    '/v1/validate',
    '/v1/leases',
    '/v1/leases/ID/renew',
    '/v1/leases/ID/release',
    '/v1/checkouts',
    '/v1/revocations',
  ];
  for (const path of paths) assert.ok(page.includes(`\`POST ${path}\``), path);
  for (const verb of [
    'change',
    'create',
    'expire',
    'key',
    'leases',
    'list',
    'log',
    'reinstate',
    'revoke',
    'serve',
    'suspend',
    'token',
  ]) {
    assert.match(page.slice(page.indexOf('## A server for labs')), new RegExp(`\`${verb}\``), verb);
  }
  assert.ok(page.includes(`DSSEv1 ${Buffer.byteLength(ANSWER_TYPE)} ${ANSWER_TYPE} LENGTH PAYLOAD`));
  assert.ok(page.includes(`at most ${LICENSE_ANSWER_BYTES_MAX / 1024} KiB and come`));
  assert.ok(page.includes(`at most ${LICENSE_SERVER_BODY_BYTES_MAX / 1024} KiB)`));
  assert.ok(page.includes(`at most ${LICENSE_CLOCK_SKEW_MAX_MS / 60_000} minutes away`));
  assert.ok(page.includes(`at most ${LICENSE_REVOCATIONS_PAGE_MAX} of`));
});

async function run(argv: readonly string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const said = { stdout: '', stderr: '' };
  const stream = (name: keyof typeof said) => ({
    write: (text: string) => {
      said[name] += text;
    },
    isTTY: false,
    columns: 80,
    rows: 24,
  });
  const code = await runCommandLine(argv, {
    stdout: stream('stdout'),
    stderr: stream('stderr'),
    env: {},
    uid: 1000,
    interrupted: () => AbortSignal.abort(),
  });
  return { code, ...said };
}

test('the commands make a license, print its token once, change what it is, and tell who holds it [A15] [A17]', async (t) => {
  const data = join(await folderOf(t), 'licenses.db');
  const server = async (...words: readonly string[]) => await run(['license-server', ...words, '--data', data]);
  const made = await server('create', '--license', 'acme', '--seats', '3', '--tenant', 'north', '--expires', '90d');
  assert.equal(made.code, 0, made.stderr);
  assert.match(made.stdout, /^pratique_license_[A-Za-z0-9_-]{43}\n$/, 'the token and nothing else');
  const token = made.stdout.trim();
  assert.ok(!(await readFile(data)).includes(token));
  const again = await server('create', '--license', 'acme', '--seats', '3');
  assert.equal(again.code, 1);
  assert.match(again.stderr, /exists already/);
  for (const words of [
    ['suspend', 'acme'],
    ['reinstate', 'acme'],
    ['revoke', 'acme'],
    ['reinstate', 'acme'],
    ['expire', 'acme'],
    ['change', 'acme', '--seats', '5', '--expires', 'never'],
  ]) {
    assert.deepEqual(await server(...words), { code: 0, stdout: '', stderr: '' }, words.join(' '));
  }
  const second = JSON.parse((await server('token', 'acme', '--json')).stdout) as {
    token: string;
    license: { tokens: number };
  };
  assert.equal(second.license.tokens, 2);
  const { licenses } = JSON.parse((await server('list', '--json')).stdout) as {
    licenses: { id: string; seats: number; tenant: string; expiresAtMs: null }[];
  };
  assert.deepEqual(
    licenses.map(({ id, seats, tenant, expiresAtMs }) => [id, seats, tenant, expiresAtMs]),
    [['acme', 5, 'north', null]],
  );
  const texts = [
    await server('list'),
    await server('log'),
    await server('leases', 'acme'),
    await server('key'),
    await server('key', '--rotate'),
  ];
  for (const { code, stdout } of texts) {
    assert.equal(code, 0);
    assert.ok(!stdout.includes(token) && !stdout.includes(second.token));
  }
  assert.equal(texts[4]?.stdout.match(/BEGIN PUBLIC KEY/g)?.length, 2);
  assert.equal((await server('list')).stdout.includes('north'), true);
});

test('wrong input of the commands is a usage error that names what to write [A15]', async (t) => {
  const data = join(await folderOf(t), 'licenses.db');
  const server = async (...words: readonly string[]) => await run(['license-server', ...words, '--data', data]);
  const wrong: readonly (readonly string[])[] = [
    ['create', '--license', 'Acme!', '--seats', '3'],
    ['create', '--license', 'acme', '--seats', '0'],
    ['create', '--license', 'acme', '--seats', '3', '--expires', 'soon'],
    ['create', '--license', 'acme', '--seats', '3', '--lease-max', '5'],
    ['suspend', 'nobody'],
    ['revoke', 'nobody', '--lease', 'x'],
    ['serve', '--listen', '0.0.0.0:8475'],
    ['serve', '--tls-cert', '/nonexistent'],
  ];
  for (const words of wrong) {
    const { code, stdout, stderr } = await server(...words);
    assert.deepEqual([code, stdout], [2, ''], `${words.join(' ')}: ${stderr}`);
    assert.match(stderr, /^pratique: /);
  }
});
