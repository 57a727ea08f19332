// The choice of packages for one VM: newest, held, security, dependencies that can and cannot be met.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { digestOf } from '../../base/digest.ts';
import type { InstalledProduct } from '../../model/inventory.ts';
import { type Catalog, makeCatalog, type Pin } from './catalog.ts';
import type { OfferedPackage } from './packages-file.ts';
import { selectPackages } from './select.ts';

type Offer = Partial<OfferedPackage> & { readonly name: string; readonly version: string };

/** What these offers are to a VM of amd64; backports and experimental have the priorities that apt gives them. */
function lookupOf(...offers: readonly Offer[]): Catalog {
  return pinned([], ...offers);
}

function pinned(pins: readonly Pin[], ...offers: readonly Offer[]): Catalog {
  const all = offers.map((offer) => ({
    suite: 'bookworm',
    component: 'main',
    arch: 'amd64',
    source: '',
    sizeBytes: 1,
    filename: `pool/${offer.name}.deb`,
    digest: digestOf(`${offer.name} ${offer.version}`),
    depends: '',
    breaks: '',
    replaces: '',
    provides: '',
    summary: '',
    ...offer,
  }));
  const index = {
    byName: (name: string) => all.filter((offer) => offer.name === name),
    mentioning: (name: string) => all.filter((offer) => offer.provides.includes(name)),
  };
  const suites = new Map([
    ['bookworm', 'yes'],
    ['bookworm-security', 'yes'],
    ['bookworm-backports', 'upgrades'],
    ['experimental', 'no'],
  ] as const);
  return makeCatalog(index, { arch: 'amd64', suites, pins });
}

function installed(
  products: Readonly<Record<string, string>>,
  more: Partial<InstalledProduct> = {},
): InstalledProduct[] {
  return Object.entries(products).map(([product, version]) => {
    return { ecosystem: 'debian', product, version, arch: 'amd64', state: 'installed', ...more };
  });
}

function select(products: readonly InstalledProduct[], catalog: Catalog) {
  const { chosen, leftOut } = selectPackages(products, catalog);
  return {
    chosen: chosen.map(({ offer, kind }) => `${offer.name} ${offer.version} ${kind}`).sort(),
    leftOut: leftOut.map(({ name, reason }) => `${name}: ${reason}`),
  };
}

test('what is installed and current is named too, what the archive does not know is not [A7]', () => {
  const lookup = lookupOf({ name: 'a', version: '1' }, { name: 'b', version: '2' }, { name: 'other', version: '9' });
  const { chosen } = select(installed({ a: '1', b: '1', local: '5' }), lookup);
  assert.deepEqual(chosen, ['a 1 fix', 'b 2 fix']);
});

test('a held package and another ecosystem’s product of the same name are left alone', () => {
  const lookup = lookupOf({ name: 'a', version: '2' });
  assert.deepEqual(select(installed({ a: '1' }, { held: true }), lookup).chosen, []);
  assert.deepEqual(select(installed({ a: '1' }, { ecosystem: 'bundle' }), lookup).chosen, []);
});

test('a point release that includes a security update is a security update', () => {
  const lookup = lookupOf({ name: 'a', version: '3' }, { name: 'a', version: '2', suite: 'bookworm-security' });
  assert.deepEqual(select(installed({ a: '1' }), lookup).chosen, ['a 3 security']);
  assert.deepEqual(select(installed({ a: '2' }), lookup).chosen, ['a 3 fix']);
});

test('a version that both suites have is taken from the security suite', () => {
  const [security, main] = [
    { name: 'a', version: '2', suite: 'bookworm-security' },
    { name: 'a', version: '2' },
  ];
  for (const lookup of [lookupOf(security, main), lookupOf(main, security)]) {
    const { chosen } = selectPackages(installed({ a: '1' }), lookup);
    assert.equal(chosen[0]?.offer.suite, 'bookworm-security');
  }
});

test('a new package that an update needs comes with it, and shares its reason', () => {
  const lookup = lookupOf(
    { name: 'linux', version: '2', depends: 'linux-2 (= 2), base | nothing', suite: 'bookworm-security' },
    { name: 'linux-2', version: '2', depends: 'tool' },
    { name: 'real-tool', version: '1', provides: 'tool' },
    { name: 'base', version: '1' },
  );
  const { chosen, leftOut } = select(installed({ linux: '1', base: '1' }), lookup);
  assert.deepEqual(chosen, ['base 1 fix', 'linux 2 security', 'linux-2 2 security', 'real-tool 1 security']);
  assert.deepEqual(leftOut, []);
});

test('an update whose dependency nobody can meet is left out with the reason, and those that need it with it', () => {
  const lookup = lookupOf(
    { name: 'app', version: '2', depends: 'lib (>= 2)' },
    { name: 'lib', version: '2', depends: 'missing (>= 1:3) | gone' },
    { name: 'free', version: '2' },
  );
  const { chosen, leftOut } = select(installed({ app: '1', lib: '1', free: '1' }), lookup);
  assert.deepEqual(chosen, ['free 2 fix']);
  assert.deepEqual(leftOut.sort(), [
    'app: it needs lib (>= 2), but lib 2 cannot be installed: it needs missing (>= 1:3) | gone, which is not on offer',
    'lib: it needs missing (>= 1:3) | gone, which is not on offer',
  ]);
});

test('the installed version and what it provides count, a versioned provide too', () => {
  const lookup = lookupOf(
    { name: 'app', version: '2', depends: 'lib (>= 1.5), mta, api (= 3)' },
    { name: 'mailer', version: '7', provides: 'mta, api (= 3)' },
  );
  assert.deepEqual(select(installed({ app: '1', lib: '1.5', mailer: '7' }), lookup).leftOut, []);
  assert.equal(select(installed({ app: '1', lib: '1.4', mailer: '7' }), lookup).leftOut.length, 1);
  const wrongApi = lookupOf(
    { name: 'app', version: '2', depends: 'api (= 4)' },
    { name: 'mailer', version: '7', provides: 'api (= 3), api-too' },
  );
  assert.equal(select(installed({ app: '1', mailer: '7' }), wrongApi).leftOut.length, 1);
});

test('an update that would break what stays is left out', () => {
  const breaker = lookupOf({ name: 'a', version: '2', breaks: 'old (<< 5)' }, { name: 'old', version: '4' });
  assert.deepEqual(select(installed({ a: '1', old: '4' }), breaker).leftOut, ['a: it breaks old 4']);
  const mended = lookupOf({ name: 'a', version: '2', breaks: 'old (<< 5)' }, { name: 'old', version: '5' });
  assert.deepEqual(select(installed({ a: '1', old: '4' }), mended).chosen, ['a 2 fix', 'old 5 fix']);
});

test('an update that takes from a held package what it needs is left out', () => {
  const lookup = lookupOf(
    { name: 'lib', version: '2' },
    { name: 'lib', version: '1' },
    { name: 'lib-dev', version: '1', depends: 'lib (= 1)' },
    { name: 'lib-dev', version: '2', depends: 'lib (= 2)' },
  );
  const products = [...installed({ lib: '1' }), ...installed({ 'lib-dev': '1' }, { held: true })];
  assert.deepEqual(select(products, lookup).leftOut, [
    'lib-dev: it is held at 1',
    'lib: lib-dev 1 stays and needs lib (= 1)',
  ]);
  assert.deepEqual(select(installed({ lib: '1', 'lib-dev': '1' }), lookup).chosen, ['lib 2 fix', 'lib-dev 2 fix']);
});

test('a package that is also there for an architecture we do not offer is left out with the reason', () => {
  const lookup = lookupOf({ name: 'libc6', version: '2' });
  const products = [...installed({ libc6: '1' }), ...installed({ libc6: '1' }, { arch: 'i386' })];
  const { chosen, leftOut } = select(products, lookup);
  assert.deepEqual(chosen, []);
  assert.match(leftOut.join(), /another architecture/);
});

test('offers for another architecture are not taken', () => {
  const lookup = lookupOf({ name: 'a', version: '2', arch: 'arm64' }, { name: 'a', version: '1', arch: 'all' });
  assert.deepEqual(select(installed({ a: '1' }), lookup).chosen, ['a 1 fix']);
});
