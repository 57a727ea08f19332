// A host's real client (vault, transport, adapter) against the reference license server over real sockets: what it answers, what breaks on
// the wire, and 1,000 machines at 900 seats while clients give up and the server dies.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { createServer, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { systemClock } from '../../src/base/clock.ts';
import { LICENSE_ANSWER_BYTES_MAX } from '../../src/base/limits.ts';
import { silentLog } from '../../src/base/log.ts';
import { makeLicenseTransport } from '../../src/license/http-transport.ts';
import { readKeygenKey } from '../../src/license/keygen-answer.ts';
import { makeKeygenServer } from '../../src/license/keygen-server.ts';
import { LicenseError } from '../../src/license/license-error.ts';
import type { LeaseAnswer, LicenseServer } from '../../src/license/license-server.ts';
import { makePratiqueServer, readProof } from '../../src/license/pratique-server.ts';
import { openVault, type Vault } from '../../src/license/vault.ts';
import { startKeygen } from '../fakes/keygen-server.ts';
import { startLicenseServer, type TestLicenseServer, type TestLicenseServerOptions } from '../fakes/license-server.ts';
import { makeRandom } from '../simulator/random.ts';

const LICENSE = 'acme-2026';
const ILL = { code: 'vendor-ill/license-server' };
const HOUR_MS = 3_600_000;

async function started(t: TestContext, options: TestLicenseServerOptions = {}): Promise<TestLicenseServer> {
  const server = await startLicenseServer(options);
  t.after(async () => await server.close());
  return server;
}

/** A vault with one token in it. */
async function vaultOf(t: TestContext, license: string, token: string): Promise<Vault> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-license-e2e-'));
  const runSealer = async () => {
    throw new Error('a key file will do');
  };
  const vault = await openVault({ folder: join(folder, 'vault'), clock: systemClock, log: silentLog, runSealer });
  await vault.put(license, Buffer.from(token));
  t.after(async () => {
    vault.close();
    await rm(folder, { recursive: true });
  });
  return vault;
}

type ClientOptions = {
  readonly license?: string;
  readonly url?: string;
  readonly token?: string;
  readonly timeoutMs?: number;
};

/** The host's own way to a license server: token in a vault, real transport. */
async function clientOf(
  t: TestContext,
  server: TestLicenseServer,
  options: ClientOptions = {},
): Promise<LicenseServer> {
  const { license = LICENSE, url = server.url, token = server.token(license), timeoutMs } = options;
  const vault = await vaultOf(t, license, token);
  const transport = makeLicenseTransport({
    vault,
    license,
    serverUrl: url,
    isLoopbackHttpAllowed: true,
    clock: systemClock,
    ...(server.ca === null ? {} : { ca: server.ca }),
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
  });
  t.after(async () => await transport.close());
  return makePratiqueServer({ transport, clock: systemClock, keys: server.keys, license });
}

const fingerprintOf = (name: string): string => createHash('sha256').update(name).digest('hex');
const requestOf = (vm: string, durationMs = HOUR_MS) => ({
  license: LICENSE,
  vm,
  fingerprint: fingerprintOf(vm),
  durationMs,
});

function leaseOf(answer: LeaseAnswer) {
  assert.ok(answer.kind === 'granted', JSON.stringify(answer));
  return answer.lease;
}
const codeOf = (answer: LeaseAnswer): string => (answer.kind === 'granted' ? 'VALID' : answer.verdict.code);

for (const tls of [false, true]) {
  const over = tls ? 'HTTPS' : 'HTTP';
  test(`validate, lease, renew, release, checkout and revocations agree with the reference server over ${over} [A15]`, async (t) => {
    const server = await started(t, {
      tls,
      licenses: { [LICENSE]: { seats: 2, leaseMaxMs: HOUR_MS, product: 'shop' } },
    });
    const client = await clientOf(t, server);
    const free = await client.validate();
    assert.deepEqual(
      [free.valid, free.code, free.seats, free.expiresAtMs],
      [true, 'VALID', { used: 0, total: 2 }, null],
    );
    const web = leaseOf(await client.lease(requestOf('web')));
    assert.equal(leaseOf(await client.lease(requestOf('web'))).id, web.id, 'the same machine has the same seat');
    assert.equal(leaseOf(await client.renew(web, requestOf('web'))).id, web.id);
    leaseOf(await client.lease(requestOf('shop')));
    assert.equal(codeOf(await client.lease(requestOf('mail'))), 'TOO_MANY_MACHINES');
    await client.release(web.id);
    await client.release(web.id);
    leaseOf(await client.lease(requestOf('mail')));
    assert.equal(codeOf(await client.renew(web, requestOf('web'))), 'NO_MACHINE');
    assert.deepEqual((await client.validate()).seats, { used: 2, total: 2 });
    assert.deepEqual(await client.revocations(0), { serial: 0, revoked: [] });

    const out = await client.checkout?.(requestOf('mail', 48 * HOUR_MS));
    assert.ok(out?.kind === 'granted' && out.proof !== undefined);
    const proven = readProof(out.proof, { keys: server.keys, license: LICENSE }, fingerprintOf('mail'));
    assert.ok(proven.offline && proven.expiresAtMs - proven.grantedAtMs === 48 * HOUR_MS);
    const asked = leaseOf(await client.lease(requestOf('mail', 1_000)));
    assert.ok(asked.expiresAtMs > Date.now() + 47 * HOUR_MS, 'what is checked out stays out');
  });
}

test('what an administrator says holds for the next request, and for the list of revocations [A15]', async (t) => {
  const server = await started(t, { licenses: { [LICENSE]: { seats: 5, checkoutMaxMs: 0 } } });
  const client = await clientOf(t, server);
  const { admin } = server;
  const web = leaseOf(await client.lease(requestOf('web')));
  const shop = leaseOf(await client.lease(requestOf('shop')));
  assert.equal(codeOf((await client.checkout?.(requestOf('web'))) ?? assert.fail()), 'CHECKOUT_NOT_ALLOWED');
  admin.revokeLease(LICENSE, web.id);
  assert.deepEqual(await client.revocations(0), {
    serial: 1,
    revoked: [{ serial: 1, leaseId: web.id, code: 'BANNED' }],
  });
  assert.equal(codeOf(await client.renew(web, requestOf('web'))), 'BANNED');
  assert.equal(codeOf(await client.lease(requestOf('web'))), 'BANNED');
  assert.equal(codeOf(await client.renew(shop, requestOf('shop'))), 'VALID', 'the others go on');
  admin.suspend(LICENSE);
  assert.equal(codeOf(await client.renew(shop, requestOf('shop'))), 'SUSPENDED');
  assert.deepEqual((await client.revocations(1)).revoked, [{ serial: 2, leaseId: null, code: 'SUSPENDED' }]);
  admin.reinstate(LICENSE);
  admin.reinstateLease(LICENSE, web.id);
  assert.deepEqual(
    await client.revocations(0),
    { serial: 2, revoked: [] },
    'what holds no more is withdrawn; the serial stays',
  );
  assert.equal(codeOf(await client.lease(requestOf('web'))), 'VALID');
  admin.revoke(LICENSE);
  assert.deepEqual((await client.revocations(2)).revoked, [{ serial: 3, leaseId: null, code: 'REVOKED' }]);
  assert.equal((await client.validate()).code, 'REVOKED');
  admin.reinstate(LICENSE);
  admin.expire(LICENSE);
  const ended = await client.validate();
  assert.deepEqual([ended.valid, ended.code], [false, 'EXPIRED']);
  await client.release(shop.id);
  admin.change(LICENSE, { expiresAtMs: Date.now() + HOUR_MS });
  const last = leaseOf(await client.lease(requestOf('mail', 24 * HOUR_MS)));
  assert.ok(last.expiresAtMs <= Date.now() + HOUR_MS, 'a lease ends with its license');
});

test('a token opens its own license only, a further one works beside it, and an ended one gets a signed NOT_FOUND [A15] [A17]', async (t) => {
  const server = await started(t, { licenses: { [LICENSE]: 2, 'other-2026': 2 } });
  const stranger = await clientOf(t, server, { token: server.token('other-2026') });
  assert.equal((await stranger.validate()).code, 'NOT_FOUND', "another tenant's token learns nothing of this license");
  assert.equal((await stranger.validate()).seats, null);
  const client = await clientOf(t, server);
  const second = server.admin.addToken(LICENSE, { isOnly: false });
  const renewed = await clientOf(t, server, { token: second });
  assert.ok((await client.validate()).valid && (await renewed.validate()).valid);
  const third = server.admin.addToken(LICENSE, { isOnly: true });
  assert.equal((await client.validate()).code, 'NOT_FOUND');
  assert.equal(codeOf(await client.lease(requestOf('web'))), 'NOT_FOUND');
  assert.deepEqual(await client.revocations(0), {
    serial: 0,
    revoked: [{ serial: 0, leaseId: null, code: 'NOT_FOUND' }],
  });
  assert.ok((await (await clientOf(t, server, { token: third })).validate()).valid);
});

test('a host that pinned a key goes on over one rotation of it, and not over two [A15]', async (t) => {
  const server = await started(t);
  const client = await clientOf(t, server);
  server.admin.rotateKey();
  assert.ok((await client.validate()).valid);
  server.admin.rotateKey();
  await assert.rejects(client.validate(), ILL);
});

/** A server that answers each request in its own bad way, on loopback. */
async function badServer(t: TestContext, answer: (response: ServerResponse) => void): Promise<string> {
  const server: Server = createServer((request, response) => {
    request.resume();
    answer(response);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`; // The cast holds: it listens on a port.
}

test('a server that is slow, silent, endless, cut, gone or somebody else is an ill server, never a denial [A15]', async (t) => {
  const server = await started(t);
  assert.equal(codeOf(await (await clientOf(t, server)).lease(requestOf('web'))), 'VALID', 'the honest one grants');
  const ways: Readonly<Record<string, (response: ServerResponse) => void>> = {
    silent: () => {},
    dripping: (response) => {
      response.writeHead(200);
      const timer = setInterval(() => response.write(' '), 20);
      response.on('close', () => clearInterval(timer));
    },
    endless: (response) => {
      response.writeHead(200);
      const piece = Buffer.alloc(64 * 1024, ' ');
      const more = (): void => {
        while (!response.destroyed && response.write(piece)) {}
      };
      response.on('drain', more);
      more();
    },
    cut: (response) => {
      response.writeHead(200, { 'content-length': 5_000 });
      response.write('{"payload":"', () => response.destroy());
    },
    huge: (response) => response.end(Buffer.alloc(LICENSE_ANSWER_BYTES_MAX + 1, 'x')),
    'a captive portal': (response) => response.writeHead(302, { location: 'http://127.0.0.1:1/' }).end(),
    'a proxy that says no': (response) => response.writeHead(407).end('{"code":"SUSPENDED","valid":false}'),
    'an unsigned no': (response) => response.end('{"code":"SUSPENDED","valid":false}'),
  };
  for (const [name, answer] of Object.entries(ways)) {
    const client = await clientOf(t, server, { url: await badServer(t, answer), timeoutMs: 300 });
    await assert.rejects(client.lease(requestOf('web')), ILL, name);
  }
  const gone = await clientOf(t, server, { url: 'http://127.0.0.1:1' });
  await assert.rejects(gone.lease(requestOf('web')), ILL, 'gone');
});

test("Keygen's answers have the license key in them, and a host's own way to it takes them all the same [A15]", async (t) => {
  const keygen = await startKeygen();
  t.after(async () => await keygen.close());
  const vault = await vaultOf(t, LICENSE, keygen.key);
  const where = { vault, license: LICENSE, serverUrl: keygen.url, isLoopbackHttpAllowed: true, clock: systemClock };
  const transport = makeLicenseTransport(where);
  t.after(async () => await transport.close());
  const { account, verifyKey, url: serverUrl } = keygen;
  const key = readKeygenKey(verifyKey);
  const client = makeKeygenServer({ transport, clock: systemClock, key, account, serverUrl });
  assert.ok((await client.validate()).valid);
  const web = leaseOf(await client.lease(requestOf('web')));
  assert.equal(leaseOf(await client.renew(web, requestOf('web'))).id, web.id);
  assert.equal((await client.checkout?.(requestOf('web')))?.kind, 'granted');
  await client.release(web.id);
  assert.equal(keygen.machines.size, 0);
  const path = `/v1/accounts/${account}/licenses/actions/validate-key`;
  const asked = {
    method: 'POST',
    path,
    body: { meta: { nonce: 1 } },
    token: { kind: 'body', field: ['meta', 'key'] },
  } as const;
  await assert.rejects(transport(asked), ILL, 'who does not expect the key in an answer gets none');
});

const SEATS = 900;
const MACHINES = 1_000;
const WORKERS = 20;
const KILLS = 3;

/** Questions before it is asked whether all is well. */
const CHURN_OPERATIONS = process.env.PRATIQUE_TEST_FULL === '1' ? 10_000 : 1_500;
/** Milliseconds after which a server that is being started is asked again, and for how often. */
const AWAY_MS = 50;
const AWAY_MAX = 2_000;

type Contest = {
  readonly server: TestLicenseServer;
  readonly client: LicenseServer;
  readonly random: ReturnType<typeof makeRandom>;
  /** The lease that each machine was told of last, and whether it gave it back. */
  readonly held: Map<number, string>;
  readonly counts: Record<'granted' | 'refused' | 'released' | 'aborted' | 'away', number>;
  mostUsed: number;
};

/** Asks until there is an answer or the client gave up; null then. A server that is being started again is asked once more. */
async function ask<T>(contest: Contest, work: (signal: AbortSignal) => Promise<T>): Promise<T | null> {
  const { random, counts } = contest;
  for (let attempt = 0; attempt < AWAY_MAX; attempt += 1) {
    const stop = new AbortController();
    const timer = random.chance(0.15) ? setTimeout(() => stop.abort(), random.between(0, 12)) : null;
    try {
      return await work(stop.signal);
    } catch (error) {
      if (stop.signal.aborted) {
        counts.aborted += 1;
        return null;
      }
      assert.ok(error instanceof LicenseError && error.code === ILL.code, String(error));
      counts.away += 1;
      await sleep(AWAY_MS);
    } finally {
      if (timer !== null) clearTimeout(timer);
    }
  }
  return assert.fail('the server did not come back');
}

/** One machine asks for a seat, again for the one it has, or gives it back; after a lost answer only its next question tells. */
async function act(contest: Contest, machine: number): Promise<void> {
  const { client, held, random, counts } = contest;
  const lease = held.get(machine);
  if (lease !== undefined && random.chance(0.3)) {
    held.delete(machine);
    const released = async (signal: AbortSignal): Promise<true> => {
      await client.release(lease, signal);
      return true;
    };
    if ((await ask(contest, released)) !== null) counts.released += 1;
    return;
  }
  const answer = await ask(contest, async (signal) => await client.lease(requestOf(`vm-${machine}`), signal));
  if (answer?.kind === 'granted') {
    counts.granted += 1;
    held.set(machine, answer.lease.id);
  } else if (answer?.kind === 'refused') {
    assert.equal(answer.verdict.code, 'TOO_MANY_MACHINES');
    counts.refused += 1;
    held.delete(machine);
  }
}

/** Every lease that a machine was told of and did not give back stands in the database, whether the server lives or not. */
function checkNoneLost({ server, held }: Contest): void {
  const ids = new Map(server.admin.seats(LICENSE).map(({ fingerprint, id }) => [fingerprint, id]));
  for (const [machine, id] of held)
    assert.equal(ids.get(fingerprintOf(`vm-${machine}`)), id, `the lease of vm-${machine}`);
}

async function inParallel(
  count: number,
  work: (next: () => number | null) => Promise<void>,
  total: number,
): Promise<void> {
  let taken = 0;
  const next = (): number | null => (taken < total ? taken++ : null);
  await Promise.all(Array.from({ length: count }, async () => await work(next)));
}

test('1,000 machines at 900 seats, 20 at a time, with clients that give up and a server that is killed: never one seat too many, none lost, none stuck [A15] [A17]', async (t) => {
  const seed = Number(process.env.PRATIQUE_SEED ?? Math.trunc(Math.random() * 2 ** 31));
  t.diagnostic(`seed ${seed} (PRATIQUE_SEED)`);
  const server = await started(t, { child: true, licenses: { [LICENSE]: SEATS }, ratePerSecond: 50_000 });
  const contest: Contest = {
    server,
    client: makePratiqueServer({
      transport: server.transport(),
      clock: systemClock,
      keys: server.keys,
      license: LICENSE,
    }),
    random: makeRandom(seed),
    held: new Map(),
    counts: { granted: 0, refused: 0, released: 0, aborted: 0, away: 0 },
    mostUsed: 0,
  };
  const startMs = performance.now();
  let isOver = false;
  const watch = async (): Promise<void> => {
    while (!isOver) {
      contest.mostUsed = Math.max(contest.mostUsed, server.admin.show(LICENSE).used);
      await sleep(5);
    }
  };
  const kill = async (): Promise<void> => {
    for (let kills = 0; kills < KILLS; kills += 1) {
      await sleep(contest.random.between(300, 700));
      await server.kill();
      checkNoneLost(contest);
      await sleep(contest.random.between(0, 50));
      await server.restart();
    }
  };
  const watching = watch();
  const churn = async (next: () => number | null): Promise<void> => {
    for (let turn = next(); turn !== null; turn = next()) await act(contest, turn % MACHINES);
  };
  await Promise.all([kill(), inParallel(WORKERS, churn, CHURN_OPERATIONS)]);
  checkNoneLost(contest);
  assert.ok(contest.held.size > 300, `${contest.held.size} machines hold a seat`);

  // Everybody asks until they are answered: 900 have a seat, and the server counts just those.
  const granted = new Map<string, string>();
  let refused = 0;
  await inParallel(
    WORKERS,
    async (next) => {
      for (let machine = next(); machine !== null; machine = next()) {
        const answer = await contest.client.lease(requestOf(`vm-${machine}`));
        if (answer.kind === 'granted') granted.set(fingerprintOf(`vm-${machine}`), answer.lease.id);
        else refused += 1;
      }
    },
    MACHINES,
  );
  const counted = new Map(server.admin.seats(LICENSE).map(({ fingerprint, id }) => [fingerprint, id]));
  assert.equal(granted.size, SEATS);
  assert.equal(refused, MACHINES - SEATS);
  assert.deepEqual(new Map([...granted].sort()), new Map([...counted].sort()), 'none is lost, and nobody else has one');

  // All give theirs back: nothing is stuck, and those who were refused get one.
  await inParallel(
    WORKERS,
    async (next) => {
      const leases = [...granted.values()];
      for (let index = next(); index !== null; index = next())
        await contest.client.release(leases[index] ?? assert.fail());
    },
    SEATS,
  );
  assert.equal(server.admin.show(LICENSE).used, 0);
  for (const machine of [0, 950, 999]) leaseOf(await contest.client.lease(requestOf(`vm-${machine}`)));
  isOver = true;
  await watching;
  assert.ok(contest.mostUsed <= SEATS, `${contest.mostUsed} seats were counted at once`);
  const { counts, mostUsed } = contest;
  assert.ok(counts.aborted > 50 && counts.away > 0 && counts.released > 50, JSON.stringify(counts));
  const seconds = ((performance.now() - startMs) / 1000).toFixed(1);
  t.diagnostic(
    `${MACHINES} machines, ${SEATS} seats, ${WORKERS} workers, ${KILLS} kill -9: at most ${mostUsed} seats; ` +
      `${counts.granted} grants, ${counts.refused} refusals, ${counts.released} releases, ${counts.aborted} aborted, ` +
      `${counts.away} without a server; ${seconds} s`,
  );
});

test('the database holds no token: whoever steals the file cannot ask with it [A15]', async (t) => {
  const server = await started(t);
  const client = await clientOf(t, server);
  leaseOf(await client.lease(requestOf('web')));
  const folder = join(server.path, '..');
  const files = await readdir(folder);
  const token = server.token();
  const spellings = [token, Buffer.from(token).toString('base64').slice(0, 40), Buffer.from(token).toString('hex')];
  let looked = 0;
  for (const file of files) {
    const content = await readFile(join(folder, file));
    looked += content.length;
    for (const spelling of spellings) assert.ok(!content.includes(spelling), `${file} has the token`);
  }
  const digest = createHash('sha256').update(token).digest('hex');
  const wholes = await Promise.all(files.map(async (file) => await readFile(join(folder, file))));
  assert.ok(looked > 10_000 && wholes.some((content) => content.includes(digest)), 'its hash is there');
});
