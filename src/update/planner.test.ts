// What becomes a plan and what is refused, from inventories and the answers of vendors.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { answer, deb, debian, inventory, plan, product, release, vendor } from '../../test/fakes/planner.ts';
import type { Inventory } from '../model/inventory.ts';
import type { LicenseCheck } from '../model/license-check.ts';
import type { Release } from '../model/release.ts';

test('an up-to-date VM has an empty plan, a stale one what it lacks [A7]', async () => {
  const vendors = [vendor([release('hello', '2.0.0')])];
  assert.deepEqual(await plan(vendors, inventory(product('hello', '2.0.0'))), []);
  assert.deepEqual(await plan(vendors, inventory(product('hello', '1.0.0'))), ['bundle/hello 1.0.0 2.0.0']);
});

test('a vendor of another Debian release says nothing, and nothing is not "up to date" [A7 A11]', async () => {
  const other = vendor([], { ecosystem: 'debian', kind: 'debian-apt' });
  assert.equal(await plan([other], inventory(debian('jq', '1.6-1'))), 'refused: no-vendor');
  assert.equal(await plan([other], inventory(debian('jq', '1.6-1')), { vendors: ['v'] }), 'refused: no-vendor');
  const fitting = vendor([deb('jq', '1.6-1')], { ecosystem: 'debian', kind: 'debian-apt', name: 'w' });
  assert.deepEqual(await plan([other, fitting], inventory(debian('jq', '1.6-1'), debian('local', '1'))), []);
});

test('a bundle that no configured vendor offers is not up to date [A7 A11]', async () => {
  const vendors = [vendor([release('hello', '2.0.0')])];
  assert.equal(
    await plan(vendors, inventory(product('hello', '2.0.0'), product('unknown', '1.0.0'))),
    'refused: no-vendor',
  );
});

test('listed packages of which no vendor knows any are not up to date [A7 A11]', async () => {
  const vendors = [vendor([deb('jq', '1.6-1')], { ecosystem: 'debian', kind: 'debian-apt' })];
  const has = inventory(debian('jq', '1.6-1'), debian('foreign', '1'), debian('foreign-data', '1'));
  const listed = (...packages: string[]) => plan(vendors, has, { install: 'listed', packages });
  assert.equal(await listed('foreign*'), 'refused: no-vendor');
  assert.deepEqual(await listed('foreign', 'jq'), []);
});

test('a vendor that the policy names and nobody configured is the fault of the policy, not a vendor out of reach [A11]', async () => {
  const vendors = [vendor([release('hello', '2.0.0')])];
  const answer = await plan(vendors, inventory(product('hello', '2.0.0')), { vendors: ['typo'], infrastructure: true });
  assert.equal(answer, 'refused: policy');
});

test('the agent itself needs no vendor', async () => {
  const has = inventory(product('hello', '2.0.0'), product('pratique-agent', '1.0.0', { ecosystem: 'agent' }));
  assert.deepEqual(await plan([vendor([release('hello', '2.0.0')])], has), []);
});

test('a whole ecosystem without a vendor is refused, unless the policy names the vendors that count', async () => {
  const vendors = [vendor([release('hello', '2.0.0')])];
  const has = inventory(product('hello', '2.0.0'), debian('jq', '1.6-1'));
  assert.equal(await plan(vendors, has), 'refused: no-vendor');
  assert.deepEqual(await plan(vendors, has, { vendors: ['v'] }), []);
});

test('a guest that reports nothing is not up to date', async () => {
  assert.equal(await plan([vendor([])], inventory()), 'refused: no-vendor');
  assert.equal(await plan([vendor([])], inventory(), { vendors: ['v'] }), 'refused: no-vendor');
});

test('new packages that an update needs are planned with it; for security only those of security updates', async () => {
  const offers = [
    deb('linux-image-amd64', '6.1.2', { kind: 'security' }),
    deb('linux-image-6.1.0-2', '6.1.2', { kind: 'security' }),
    deb('editor', '2', { kind: 'fix' }),
    deb('editor-data', '2', { kind: 'fix' }),
  ];
  const vendors = [vendor(offers, { ecosystem: 'debian', kind: 'debian-apt' })];
  const has = inventory(debian('linux-image-amd64', '6.1.1'), debian('editor', '1'));
  assert.deepEqual(await plan(vendors, has), [
    'debian/editor-data:amd64 null 2',
    'debian/linux-image-6.1.0-2:amd64 null 6.1.2',
    'debian/editor:amd64 1 2',
    'debian/linux-image-amd64:amd64 6.1.1 6.1.2',
  ]);
  assert.deepEqual(await plan(vendors, has, { install: 'security' }), [
    'debian/linux-image-6.1.0-2:amd64 null 6.1.2',
    'debian/linux-image-amd64:amd64 6.1.1 6.1.2',
  ]);
});

test('a security bundle brings all it requires, a fix that is not wanted brings nothing', async () => {
  const offers = [
    release('app', '2.0.0', { kind: 'security', requires: [{ product: 'lib', range: '>=2' }] }),
    release('lib', '2.0.0', { kind: 'fix', requires: [{ product: 'base', range: '>=1' }] }),
    release('base', '1.0.0', { kind: 'enhancement' }),
    release('tool', '2.0.0', { kind: 'fix', requires: [{ product: 'tool-data', range: '>=1' }] }),
    release('tool-data', '1.0.0', { kind: 'security' }),
  ];
  const has = inventory(product('app', '1.0.0'), product('lib', '1.0.0'), product('tool', '1.0.0'));
  assert.deepEqual(await plan([vendor(offers)], has, { install: 'security' }), [
    'bundle/base null 1.0.0',
    'bundle/app 1.0.0 2.0.0',
    'bundle/lib 1.0.0 2.0.0',
  ]);
  assert.equal((await plan([vendor(offers)], has)).length, 5);
});

test('a product listed twice, or offered by two vendors, is planned once, at the newest', async () => {
  const has = inventory(product('hello', '1.0.0'), product('hello', '1.1.0'));
  const older = vendor([release('hello', '2.0.0')]);
  const newer = vendor([release('hello', '3.0.0', { vendor: 'w' })], { name: 'w' });
  for (const vendors of [
    [older, newer],
    [newer, older],
  ]) {
    const items = await plan(vendors, has);
    assert.ok(Array.isArray(items) && items.length === 1 && items[0]?.endsWith('3.0.0'));
  }
});

test('a package that became one for all architectures is updated, and never downgraded', async () => {
  const vendors = [vendor([deb('docs', '2', { arch: 'all' })], { ecosystem: 'debian', kind: 'debian-apt' })];
  assert.deepEqual(await plan(vendors, inventory(debian('docs', '1'))), ['debian/docs:all 1 2']);
  assert.deepEqual(await plan(vendors, inventory(debian('docs', '3'))), []);
});

test('a held package with a known hole keeps the VM unplugged, one without does not', async () => {
  const offers = (kind: Release['kind']) => (has: Inventory) =>
    has.products.filter(({ held }) => held !== true).map((one) => deb(one.product, '2', { kind }));
  const has = inventory(debian('nginx', '1', { held: true }), debian('jq', '2'));
  const about = (kind: Release['kind']) => [vendor(offers(kind), { ecosystem: 'debian', kind: 'debian-apt' })];
  assert.equal(await plan(about('security'), has), 'refused: held');
  assert.deepEqual(await plan(about('fix'), has), []);
});

test('the seats that a plan needs are taken before it is decided, each once, and none for a plan that comes to nothing anyway [A15]', async () => {
  const offers = [
    release('hello', '2.0.0', { license: 'antivirus' }),
    release('more', '2.0.0', { license: 'antivirus' }),
    release('free', '2.0.0'),
  ];
  const has = inventory(product('hello', '1.0.0'), product('more', '1.0.0'), product('free', '1.0.0'));
  const taken: string[][] = [];
  const seats = new Set<string>();
  const how = {
    takeSeats: async (licenses: readonly string[]) => {
      taken.push([...licenses]);
      for (const license of licenses) seats.add(license);
    },
    checkLicense: (_vm: string, license: string) => (seats.has(license) ? null : 'NO_LEASE'),
  };
  const planned = await answer([vendor(offers)], has, {}, how);
  assert.ok(planned.kind === 'plan' && planned.plan.items.length === 3);
  assert.deepEqual(taken, [['antivirus']]);
  await answer([vendor(offers)], inventory(product('free', '1.0.0')), {}, how);
  const unknown = inventory(product('hello', '1.0.0'), product('alone', '1.0.0'));
  const refused = await answer([vendor(offers)], unknown, {}, how);
  assert.ok(refused.kind === 'refused' && refused.reason.kind === 'plan-refused');
  assert.equal(taken.length, 1, 'nothing licensed is missing, or nothing is planned at all');
});

test("what a license guards is planned only for a VM that holds a lease of it, and the refusal carries the license server's code [A15]", async () => {
  const vendors = [vendor([release('hello', '2.0.0', { license: 'antivirus' }), release('free', '2.0.0')])];
  const has = inventory(product('hello', '1.0.0'), product('free', '1.0.0'));
  assert.equal(await plan(vendors, has), 'license-refused', 'this host has no licenses');
  const asked: string[] = [];
  const holds: LicenseCheck = (vm, license) => {
    asked.push(`${vm} ${license}`);
    return null;
  };
  const planned = await answer(vendors, has, {}, { checkLicense: holds });
  assert.ok(planned.kind === 'plan' && planned.plan.items.length === 2);
  assert.deepEqual(asked, [`${planned.plan.vm} antivirus`]);
  const refused = await answer(vendors, has, {}, { checkLicense: () => 'TOO_MANY_MACHINES' });
  assert.deepEqual(refused.kind === 'refused' && refused.reason, {
    kind: 'license-refused',
    license: 'antivirus',
    code: 'TOO_MANY_MACHINES',
  });
});
