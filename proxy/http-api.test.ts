// Tests of the API and its client together, over a real unix socket, against the in-memory service.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { PratiqueError } from '../src/base/errors.ts';
import { silentLog } from '../src/base/log.ts';
import {
  type FakeService,
  makeFakeService,
  SAMPLE_CHECKPOINT,
  SAMPLE_DRIFT,
  SAMPLE_RELEASE,
  SAMPLE_SPEC,
  vmId,
} from '../test/fakes/service.ts';
import { makeApiClient } from './api-client.ts';
import { listenOnSocket, makeHttpApi, openApiText } from './http-api.ts';
import type { LicenseDefinition } from './licenses-service.ts';
import type { Service, VmEventRecord } from './service.ts';

let folder = '';
let socketPath = '';
let fake: FakeService = makeFakeService();
let api: Awaited<ReturnType<typeof makeHttpApi>>;
let client: Service;

/** The API is compiled once; each test gets a fresh service behind it. */
const current: Service = new Proxy(fake, { get: (_target, key) => Reflect.get(fake, key) });

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-api-'));
  socketPath = join(folder, 'pratique.sock');
  api = await makeHttpApi({ service: current, log: silentLog, clock: systemClock });
  await listenOnSocket(api, socketPath, process.getuid?.() ?? 0);
  client = makeApiClient({ socketPath, clock: systemClock });
});
beforeEach(() => {
  fake = makeFakeService();
});
after(async () => {
  await api.close();
  await rm(folder, { recursive: true, force: true });
});

const thrownBy = async (work: Promise<unknown>): Promise<PratiqueError> => {
  const error = await work.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof PratiqueError, `expected a PratiqueError, got ${String(error)}`);
  return error;
};
const raw = async (method: string, path: string, body = '', headers: Record<string, string> = {}) =>
  await new Promise<{ status: number; type: string; text: string }>((resolve, reject) => {
    const sent = request(
      { socketPath, method, path, headers: { 'content-type': 'application/json', ...headers } },
      async (response) => {
        let text = '';
        for await (const piece of response) text += piece;
        resolve({ status: response.statusCode ?? 0, type: response.headers['content-type'] ?? '', text });
      },
    );
    sent.on('error', reject);
    sent.end(body);
  });

const LICENSE: LicenseDefinition = {
  license: 'acme',
  kind: 'pratique',
  serverUrl: 'https://licenses.example',
  publicKey: '-----BEGIN PUBLIC KEY-----',
  origins: ['https://updates.example'],
  tenants: ['retail'],
};

test('every method of the service gives the same answer over the socket as beside it', async () => {
  const twin = makeFakeService();
  const web = 'web';
  const calls: readonly ((service: Service) => Promise<unknown>)[] = [
    (s) => s.listVms(),
    (s) => s.showVm(web),
    (s) => s.startVm(web),
    (s) => s.stopVm(web, { force: true }),
    (s) => s.retryVm(web),
    (s) => s.updateVm(web),
    (s) => s.planVm(web),
    (s) => s.whyVm(web),
    (s) => s.inspectVm(web),
    (s) => s.admitVm(web, { reason: 'it is the router', actor: 'ann' }),
    (s) => s.pastEvents({ vm: web, afterSeq: 1, limit: 1 }),
    (s) => s.addVm({ ...SAMPLE_SPEC, vm: vmId('db') }, { install: 'security' }),
    (s) => s.addVm({ ...SAMPLE_SPEC, vm: vmId('db2') }, {}, { group: 'web' }),
    (s) => s.vmPolicy(web),
    (s) => s.vmConfig(web),
    (s) => s.setVmPolicy(web, { set: { holds: ['jq'] }, unset: ['overlay'], group: null, actor: 'ann' }),
    (s) => s.removeVm('db'),
    (s) =>
      s.addVendor({ kind: 'tuf', name: 'v', metadataUrl: 'https://v/m', targetsUrl: 'https://v/t', rootPath: '/r' }),
    (s) => s.addVendor({ kind: 'debian-apt', name: 'd', suites: ['bookworm'] }),
    (s) => s.listVendors(),
    (s) => s.checkVendor(null),
    (s) => s.checkVendor('acme'),
    (s) => s.vendorOffers('acme'),
    (s) => s.addVm({ ...SAMPLE_SPEC, vm: vmId('db3') }, {}, { tenant: 'retail' }),
    (s) => s.addLicense(LICENSE, { token: 'key-0123456789', isUnchecked: false, actor: 'ann' }),
    (s) => s.listLicenses(),
    (s) => s.showLicense('acme'),
    (s) => s.checkLicenses(null),
    (s) => s.checkLicenses('acme'),
    (s) => s.rotateLicense('acme', { token: 'key-0123456789', actor: 'ann' }),
    (s) => s.revokeLicense('acme', { reason: 'it leaked', actor: 'ann' }),
    (s) => s.removeLicense('acme', { isForced: true, actor: 'ann' }),
    (s) => s.leases({}),
    (s) => s.leases({ vm: web, license: 'acme' }),
    (s) => s.releaseSeats(web, { actor: 'ann' }),
    (s) => s.licenseUse({ sinceMs: 5 }),
    (s) => s.licenseUse({ tenant: 'retail', sinceMs: 5 }),
    (s) => s.drift(),
    (s) => s.doctor(),
    (s) => s.auditEntries({ afterSeq: 0, limit: 5, vm: web }),
    (s) => s.auditCheckpoint(),
    (s) => s.auditLines({ afterSeq: 0, limit: 5 }),
    (s) => s.rotateAuditKey({ actor: 'ann' }),
    (s) => s.acceptClock({ reason: 'it was wrong', actor: 'ann' }),
    (s) => s.startScrub(),
    (s) => s.scrubView(),
    (s) => s.auditVerify(),
    (s) => s.auditVerify({ checkpoint: SAMPLE_CHECKPOINT }),
  ];
  for (const call of calls) assert.deepEqual(await call(client), await call(twin), String(call));
  assert.deepEqual(fake.calls, twin.calls);
  const asked = new Set(fake.calls.map(({ method }) => method));
  const methods = Object.entries(fake).filter(
    ([name]) =>
      !['calls', 'emit', 'setState', 'failWith', 'setDrift', 'setInspection', 'followers', 'followEvents'].includes(
        name,
      ),
  );
  assert.deepEqual(
    methods.map(([name]) => name).filter((name) => !asked.has(name)),
    [],
  );
});

test('a field that the schema does not declare never leaves the daemon', async () => {
  // The cast is the point of the test: an object with more than its type says.
  fake.setDrift([{ ...SAMPLE_DRIFT, token: 'hunter2' } as typeof SAMPLE_DRIFT]);
  assert.deepEqual(await client.drift(), [SAMPLE_DRIFT]);
  const leaky = { ...SAMPLE_RELEASE, artifact: { ...SAMPLE_RELEASE.artifact, authorization: 'hunter2' } };
  fake = { ...fake, vendorOffers: async () => [leaky] };
  assert.deepEqual(await client.vendorOffers('acme'), [SAMPLE_RELEASE]);
});

test('an error keeps its code, its message, its chain and its next step', async () => {
  const cause = new PratiqueError('host-fault/command', 'nft ended with exit code 1');
  fake.failWith('startVm', new PratiqueError('host-unfit/nft', 'starting web', { cause, next: 'install nftables' }));
  const error = await thrownBy(client.startVm('web'));
  assert.equal(error.code, 'host-unfit/nft');
  assert.equal(error.message, 'starting web: nft ended with exit code 1');
  assert.equal(error.next, 'install nftables');
});

test('the HTTP status of a problem is the one of its family', async () => {
  const cases = [
    ['not-found/vm', 404],
    ['conflict/state', 409],
    ['refused/policy', 403],
    ['vendor-ill/http', 502],
    ['timeout/agent', 504],
  ] as const;
  for (const [code, status] of cases) {
    fake.failWith('whyVm', new PratiqueError(code, 'x'));
    const answer = await raw('GET', '/v1/vms/web/why');
    assert.equal(answer.status, status);
    assert.match(answer.type, /^application\/problem\+json/);
    assert.equal(JSON.parse(answer.text).code, code);
  }
});

test('a bug inside tells the outside nothing but that it is ours', async () => {
  fake.failWith('drift', new Error('secret path /root/x'));
  const error = await thrownBy(client.drift());
  assert.equal(error.code, 'internal/bug');
  assert.doesNotMatch(error.message, /secret/);
});

test('a malformed request is refused with the field, and the service is not asked', async () => {
  const bad = async (method: string, path: string, body: unknown) =>
    JSON.parse((await raw(method, path, JSON.stringify(body))).text);
  const spec = { ...SAMPLE_SPEC, disks: [{ id: 'root', path: '/x', fromat: 'raw' }] };
  assert.equal(
    (await bad('POST', '/v1/vms', { spec })).detail,
    "the request's body: `spec.disks[0].fromat` is not a known key; the nearest known key is `format`",
  );
  assert.match(
    (await bad('POST', '/v1/vms', { spec: SAMPLE_SPEC, policy: { instal: 'all' } })).detail,
    /`policy\.instal` is not a known key/,
  );
  assert.match((await bad('POST', '/v1/vms/web/admit', { reason: ' ', actor: 'a' })).detail, /`reason` must match/);
  assert.match(
    (await bad('POST', '/v1/audit/verify', { checkpoint: { ...SAMPLE_CHECKPOINT, records: -1 } })).detail,
    /`checkpoint\.records` must be at least 0/,
  );
  assert.equal((await raw('GET', '/v1/events?after=minus')).status, 400);
  assert.equal((await raw('GET', '/v1/vms/..%2fetc')).status, 400);
  assert.equal((await raw('POST', '/v1/vms', '{')).status, 400);
  assert.deepEqual(fake.calls, []);
});

test('a body over the limit is refused', async () => {
  const answer = await raw('POST', '/v1/vms', JSON.stringify({ spec: 'x'.repeat(300_000) }));
  assert.equal(answer.status, 400);
  assert.match(JSON.parse(answer.text).detail, /too large/);
});

test('a request from a web page is refused, and no answer allows another origin', async () => {
  const answer = await raw('GET', '/v1/vms', '', { origin: 'https://evil.example' });
  assert.equal(answer.status, 403);
  assert.equal(JSON.parse(answer.text).code, 'refused/browser');
  assert.deepEqual(fake.calls, []);
});

test('only the owner may use the socket when there is no group for it', async () => {
  const { mode } = await stat(socketPath);
  assert.equal(mode & 0o007, 0);
});

test('nobody listening is told as a daemon that is not running, with how to start it', async () => {
  const error = await thrownBy(makeApiClient({ socketPath: join(folder, 'none.sock'), clock: systemClock }).listVms());
  assert.equal(error.code, 'daemon-down/not-running');
  assert.match(error.next ?? '', /pratique serve/);
});

const take = async (events: AsyncIterable<VmEventRecord>, count: number): Promise<readonly number[]> => {
  const seen: number[] = [];
  for await (const event of events) {
    seen.push(event.seq);
    if (seen.length === count) break;
  }
  return seen;
};
const say = (vm: string) => fake.emit({ vm: vmId(vm), kind: 'progress', state: 'installing', text: 'one more' });

test('the event stream gives the past after a seq, then what happens, and can be resumed', async () => {
  for (let index = 0; index < 3; index += 1) say('web');
  const signal = new AbortController().signal;
  assert.deepEqual(await take(client.followEvents({ afterSeq: 0, signal }), 2), [1, 2]);
  const rest = take(client.followEvents({ afterSeq: 2, signal }), 3);
  while (fake.followers() === 0) await systemClock.sleep(5);
  say('web');
  say('web');
  assert.deepEqual(await rest, [3, 4, 5]);
});

test('the event stream of one VM leaves the others out, and its end is seen by the service', async () => {
  say('web');
  say('db');
  const aborter = new AbortController();
  const seen = take(client.followEvents({ vm: 'web', afterSeq: 0, signal: aborter.signal }), 3);
  while (fake.followers() === 0) await systemClock.sleep(5);
  say('web');
  await systemClock.sleep(50);
  aborter.abort();
  assert.deepEqual(await seen, [1, 3]);
  for (let tries = 0; tries < 100 && fake.followers() > 0; tries += 1) await systemClock.sleep(10);
  assert.equal(fake.followers(), 0);
});

test('a thousand events reach a reader that is slow, in order and complete', async () => {
  for (let index = 0; index < 1_000; index += 1) say('web');
  let last = 0;
  for await (const event of client.followEvents({ afterSeq: 0, signal: new AbortController().signal })) {
    assert.equal(event.seq, last + 1);
    last = event.seq;
    if (last % 100 === 0) await systemClock.sleep(10);
    if (last === 1_000) break;
  }
  assert.equal(last, 1_000);
});

test('following an unknown VM fails with the code of the service', async () => {
  const error = await thrownBy(
    take(client.followEvents({ vm: 'nobody', afterSeq: 0, signal: new AbortController().signal }), 1),
  );
  assert.equal(error.code, 'not-found/vm');
});

test('an event stream goes on after the daemon was restarted', async (t) => {
  const path = join(folder, 'second.sock');
  const start = async () => {
    const server = await makeHttpApi({ service: current, log: silentLog, clock: systemClock });
    await listenOnSocket(server, path, 1);
    t.after(async () => await server.close());
    return server;
  };
  const first = await start();
  say('web');
  // The delay between attempts is shortened; nothing else of the clock is changed.
  const clock = { ...systemClock, sleep: async () => await systemClock.sleep(20) };
  const seen = take(
    makeApiClient({ socketPath: path, clock }).followEvents({ afterSeq: 0, signal: new AbortController().signal }),
    2,
  );
  while (fake.followers() === 0) await systemClock.sleep(5);
  await first.close();
  say('web');
  await start();
  assert.deepEqual(await seen, [1, 2]);
});

test('the shipped OpenAPI document is up to date and describes every route', async () => {
  const shipped = await readFile(new URL('../docs/openapi.json', import.meta.url), 'utf8');
  const document = JSON.parse(shipped);
  assert.deepEqual(document, JSON.parse(await openApiText(api)), 'run: node proxy/generate.ts');
  assert.equal(document.openapi, '3.1.0');
  assert.equal(Object.keys(document.paths).length, 34);
});
