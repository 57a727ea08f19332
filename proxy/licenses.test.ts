// The host's licenses over a real vault and a real license server: added, tried, rotated, revoked, removed; whose they are; what they cost.
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import type { AuditRecord } from '../src/audit/record.ts';
import { systemClock } from '../src/base/clock.ts';
import { PratiqueError } from '../src/base/errors.ts';
import { silentLog } from '../src/base/log.ts';
import { type DatabaseSync, openDatabase } from '../src/base/sqlite.ts';
import { waitUntil } from '../src/base/wait-until.ts';
import { LEASE_MIGRATIONS } from '../src/license/lease-rows.ts';
import { openVault, type Vault } from '../src/license/vault.ts';
import type { RunId, VmId } from '../src/model/ids.ts';
import { startLicenseServer, type TestLicenseServer } from '../test/fakes/license-server.ts';
import { makeSeats } from '../test/fakes/seats.ts';
import { type Licenses, openLicenses } from './licenses.ts';
import type { LicenseDefinition } from './licenses-service.ts';

const HOUR = 3_600_000;
const ID = 'acme-2026';
// The casts hold: letters are names of VMs, and any word is a run here.
const [WEB, SHOP, RUN] = ['web' as VmId, 'shop' as VmId, 'run-1' as RunId];
const never = new AbortController().signal;

let folder = '';
let server: TestLicenseServer;
let db: DatabaseSync;
let vault: Vault;
let licenses: Licenses;
let records: AuditRecord[] = [];
let ended: string[] = [];

const open = async (): Promise<void> => {
  vault = await openVault({ folder: join(folder, 'licenses'), clock: systemClock, log: silentLog });
  licenses = openLicenses({
    ...{ db, vault, clock: systemClock, log: silentLog },
    policy: { durationMs: 24 * HOUR, graceMs: HOUR, idleMs: HOUR, pollMs: 20 },
    record: async (record) => void records.push(record),
    groupTenantOf: (vm) => (vm === SHOP ? 'retail' : null),
    onEnded: (vm, license, code) => void ended.push(`${vm} ${license} ${code}`),
  });
};

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'pratique-licenses-'));
  [records, ended] = [[], []];
  server = await startLicenseServer({ licenses: { [ID]: 2, other: 1 } });
  db = openDatabase(join(folder, 'host.db'), LEASE_MIGRATIONS);
  await open();
});
afterEach(async () => {
  await licenses.close();
  db.close();
  await server.close();
  rmSync(folder, { recursive: true, force: true });
});

const definition = (changes: Partial<LicenseDefinition> = {}): LicenseDefinition => ({
  ...{ license: ID, kind: 'pratique', serverUrl: server.url, publicKey: server.publicKey, isLab: true },
  ...{ origins: ['https://updates.example'], tenants: [], ...changes },
});
const add = async (changes: Partial<LicenseDefinition> = {}, token = server.token(ID)) =>
  await licenses.service.addLicense(definition(changes), { token, isUnchecked: false, actor: 'ann' });
const take = async (vm: VmId) => {
  await licenses.book.take({ vm, run: RUN, licenses: [ID] }, never);
  return licenses.book.check(vm, ID);
};
const codeOf = async (work: Promise<unknown>): Promise<string> =>
  await work.then(
    () => 'done',
    (error: unknown) => (error instanceof PratiqueError ? error.code : String(error)),
  );

const untilAborted = async (signal: AbortSignal | undefined): Promise<never> =>
  await new Promise((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)));

test('a license is kept once its server has accepted its token, which nobody is shown again [A15]', async () => {
  const view = await add();
  assert.deepEqual(view.said?.seats, { used: 0, total: 2 });
  assert.equal(view.token?.lastFour, server.token(ID).slice(-4));
  const everything = JSON.stringify([
    view,
    await licenses.service.listLicenses(),
    records,
    await licenses.doctorLines(),
  ]);
  assert.ok(!everything.includes(server.token(ID)));
  assert.equal(await take(WEB), null);
  assert.equal((await licenses.service.showLicense(ID)).held, 1);
  assert.equal(await codeOf(add()), 'conflict/license');
  await licenses.close();
  await open();
  assert.equal(licenses.book.check(WEB, ID), null, 'after a restart, too');
  assert.equal(await take(SHOP), null);
});

test('a token that its server does not accept, and a server that does not answer, leave nothing behind', async () => {
  assert.equal(await codeOf(add({}, 'pratique_license_of_nobody_at_all')), 'refused/license');
  const otherKey = await startLicenseServer();
  try {
    assert.equal(await codeOf(add({ publicKey: otherKey.publicKey })), 'vendor-ill/license-server');
  } finally {
    await otherKey.close();
  }
  await server.kill();
  assert.equal(await codeOf(add()), 'vendor-ill/license-server');
  assert.equal(await codeOf(add({ origins: ['http://updates.example'] })), 'usage/license-origin');
  assert.equal(await codeOf(add({ serverUrl: 'http://licenses.example' })), 'usage/license-origin');
  assert.deepEqual(await licenses.service.listLicenses(), []);
  assert.deepEqual(vault.list(), []);
  assert.equal(db.prepare('SELECT count(*) AS n FROM license').get()?.n, 0);
  await server.restart();
  await add();
  assert.equal((await licenses.service.listLicenses()).length, 1, 'positive control');
});

test('a new token is tried before the old one is gone, and lifts what an operator revoked [A15]', async () => {
  await add();
  const before = (await licenses.service.showLicense(ID)).token;
  const rotate = async (token: string) => await licenses.service.rotateLicense(ID, { token, actor: 'ann' });
  assert.equal(await codeOf(rotate('pratique_license_of_nobody_at_all')), 'refused/license');
  assert.deepEqual((await licenses.service.showLicense(ID)).token, before);
  assert.equal(await take(WEB), null, 'the old one is in use');
  await licenses.service.revokeLicense(ID, { reason: 'it leaked', actor: 'ann' });
  assert.deepEqual(ended, [`web ${ID} REVOKED_HERE`]);
  assert.equal(await take(WEB), 'REVOKED_HERE');
  const token = server.admin.addToken(ID, { isOnly: true });
  assert.equal((await rotate(token)).token?.lastFour, token.slice(-4));
  assert.equal(await take(WEB), null);
  const operator = records.flatMap((record) =>
    record.kind === 'operator' ? [`${record.action} ${record.detail}`] : [],
  );
  assert.deepEqual(operator, [
    `license-added ${ID} at ${server.url}`,
    `license-revoked ${ID}: it leaked`,
    `license-rotated ${ID}`,
  ]);
});

test('a license that is added twice at once is added once, and keeps its token; so does none that is removed while it gets another [A15]', async () => {
  const codes = await Promise.all([codeOf(add()), codeOf(add())]);
  assert.deepEqual(codes.sort(), ['conflict/license', 'done']);
  assert.equal(vault.list().length, 1);
  assert.equal(await take(WEB), null);
  const token = server.admin.addToken(ID, { isOnly: false });
  const removed = codeOf(licenses.service.removeLicense(ID, { isForced: false, actor: 'ann' }));
  const rotated = codeOf(licenses.service.rotateLicense(ID, { token, actor: 'ann' }));
  assert.deepEqual([await removed, await rotated], ['done', 'not-found/license']);
  assert.deepEqual(vault.list(), [], 'no token is left of a license that is none');
});

test('a revocation by an operator while a new token is being tried stands: only one that was there before is lifted [A15]', async () => {
  await add();
  assert.equal(await take(WEB), null);
  const token = server.admin.addToken(ID, { isOnly: true });
  const rotating = licenses.service.rotateLicense(ID, { token, actor: 'ann' });
  await licenses.service.revokeLicense(ID, { reason: 'it leaked', actor: 'bob' });
  await rotating;
  assert.equal((await licenses.service.showLicense(ID)).ended, 'REVOKED_HERE');
  assert.equal(await take(WEB), 'REVOKED_HERE');
});

test('a license server that never answers holds up the revocations of no other license [A15]', async () => {
  const other = 'other' as const;
  const slow = makeSeats({ total: 1, nowMs: systemClock.nowMs });
  const quick = makeSeats({ total: 1, nowMs: systemClock.nowMs });
  const both = openLicenses({
    ...{ db, vault, clock: systemClock, log: silentLog, record: async () => {}, groupTenantOf: () => null },
    policy: { durationMs: 30, graceMs: HOUR, idleMs: HOUR, pollMs: 20 },
    onEnded: (vm, license, code) => void ended.push(`${vm} ${license} ${code}`),
    makeServer: ({ license }) =>
      license === other
        ? quick.server(other)
        : { ...slow.server(ID), renew: async (_lease, _request, signal) => await untilAborted(signal) },
  });
  for (const license of [ID, other]) {
    const given = { token: server.token(ID), isUnchecked: true, actor: 'ann' };
    await both.service.addLicense(definition({ license }), given);
    await both.book.take({ vm: WEB, run: RUN, licenses: [license] }, never);
  }
  try {
    both.start(new Set([WEB]));
    await systemClock.sleep(100);
    quick.revoke('seat-1', 'BANNED');
    assert.ok(await waitUntil(async () => ended.length > 0, systemClock, 5_000));
    assert.deepEqual([ended[0], both.book.check(WEB, ID)], [`${WEB} ${other} BANNED`, null]);
  } finally {
    await both.close();
  }
});

test('what its server revokes is known within the time of a poll, and what it mends as well [A15]', async () => {
  await add();
  assert.equal(await take(WEB), null);
  licenses.start(new Set([WEB]));
  server.admin.suspend(ID);
  assert.ok(await waitUntil(async () => ended.length > 0, systemClock, 5_000));
  assert.equal(licenses.book.check(WEB, ID), 'SUSPENDED');
  const [view] = await licenses.service.checkLicenses(ID);
  assert.deepEqual([view?.ended, view?.said?.code], ['SUSPENDED', 'SUSPENDED']);
  const told = ended.length;
  assert.ok(await waitUntil(async () => ended.length > told, systemClock, 5_000), 'said again until it is done');
  assert.match((await licenses.doctorLines()).map(({ detail }) => detail).join(' '), /it has ended: SUSPENDED/);
  server.admin.reinstate(ID);
  await licenses.service.checkLicenses(null);
  assert.equal((await licenses.service.showLicense(ID)).ended, null);
  assert.equal(await take(WEB), null);
});

test('a server that went away is told as that, and denies nobody anything', async () => {
  await add();
  assert.equal(await take(WEB), null);
  await server.kill();
  const [view] = await licenses.service.checkLicenses(null);
  assert.match(String(view?.trouble), /could not be reached/);
  assert.equal(view?.ended, null);
  assert.equal(licenses.book.check(WEB, ID), null);
  assert.equal(await take(SHOP), 'SERVER_AWAY');
});

test('a license of one tenant is not there for the others, whose VMs belong to it by their group or by name [A17]', async () => {
  await add({ tenants: ['retail'] });
  assert.equal(await take(SHOP), null, 'by its group');
  assert.equal(await take(WEB), 'NO_LICENSE');
  licenses.setTenant(WEB, 'retail');
  assert.equal(await take(WEB), null);
  licenses.book.countFetch(WEB, ID, 10);
  const use = await licenses.service.licenseUse({ tenant: 'retail', sinceMs: 0 });
  assert.deepEqual(
    use.map(({ vm, fetches, bytes }) => [vm, fetches, bytes]),
    [
      ['shop', 0, 0],
      ['web', 1, 10],
    ],
  );
  assert.deepEqual(await licenses.service.licenseUse({ tenant: 'default', sinceMs: 0 }), []);
});

test('a VM that is removed gives its seats back, also those of before a crash; so does one that is told to', async () => {
  await add();
  await take(WEB);
  await take(SHOP);
  assert.deepEqual(await licenses.service.releaseSeats(SHOP, { actor: 'ann' }), []);
  assert.deepEqual(ended, [`shop ${ID} NO_LEASE`], 'what it guards goes from its drive');
  assert.equal(server.admin.seats(ID).length, 1);
  assert.equal(await codeOf(licenses.service.releaseSeats(SHOP, { actor: 'ann' })), 'not-found/lease');
  await licenses.close();
  await open();
  licenses.start(new Set());
  assert.ok(await waitUntil(async () => server.admin.seats(ID).length === 0, systemClock, 5_000));
});

test('a license is forgotten once its seats are given back, and by force where its server does not answer', async () => {
  await add();
  await take(WEB);
  await server.kill();
  const remove = async (isForced: boolean) => await licenses.service.removeLicense(ID, { isForced, actor: 'ann' });
  assert.equal(await codeOf(remove(false)), 'vendor-ill/license-server');
  assert.equal((await licenses.service.listLicenses()).length, 1, 'its token is needed to give them back');
  await server.restart();
  await remove(false);
  assert.equal(server.admin.seats(ID).length, 0);
  assert.deepEqual(await licenses.service.listLicenses(), []);
  assert.deepEqual(vault.list(), []);
  await add();
  await take(WEB);
  await server.kill();
  await remove(true);
  assert.deepEqual(
    readdirSync(join(folder, 'licenses')).filter((name) => name.includes(ID)),
    [],
  );
});

test('a download carries the token of its own license to the origins of that license only [A15]', async () => {
  await add();
  const plain = { accept: '*/*' };
  const ask = async (origin: string, license: string | null) =>
    await licenses.intercept({ origin, url: `${origin}/x`, license }, plain);
  assert.equal((await ask('https://updates.example', ID)).authorization, `Bearer ${server.token(ID)}`);
  assert.deepEqual(await ask('https://elsewhere.example', ID), plain);
  assert.deepEqual(await ask('https://updates.example', null), plain);
  assert.deepEqual(await ask('https://updates.example', 'other'), plain);
  await licenses.service.revokeLicense(ID, { reason: 'it leaked', actor: 'ann' });
  assert.deepEqual(await ask('https://updates.example', ID), plain, 'a download under way asks again without it');
});
