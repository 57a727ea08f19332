// Which releases a VM should have: newest, fitting, and consistent with what they require.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { digestOf } from '../../base/digest.ts';
import type { InstalledProduct, Inventory } from '../../model/inventory.ts';
import { chooseReleases, compareSemver, newestOfAll } from './choose.ts';
import type { Offer } from './offer.ts';

type Wanted = {
  readonly os?: readonly string[];
  readonly arch?: string;
  readonly requires?: Readonly<Record<string, string>>;
};

function offer(product: string, version: string, { os, arch, requires = {} }: Wanted = {}): Offer {
  return {
    os: os ?? null,
    release: {
      vendor: 'acme',
      ecosystem: 'bundle',
      product,
      version,
      ...(arch === undefined ? {} : { arch }),
      kind: 'fix',
      requires: Object.entries(requires).map(([name, range]) => ({ product: name, range })),
      advisories: [],
      artifact: { name: 'x', digest: digestOf(`${product} ${version}`), sizeBytes: 1, location: 'x' },
      install: { action: 'bundle', prefix: '/opt/x', compression: 'none' },
    },
  };
}

function inventory(installed: Readonly<Record<string, string>>): Inventory {
  const products = Object.entries(installed).map(
    ([product, version]): InstalledProduct => ({ ecosystem: 'bundle', product, version, state: 'installed' }),
  );
  return {
    os: { id: 'tiny', versionId: '1', arch: 'amd64' },
    products,
    config: [],
    agent: { version: '0.1.0', digest: null },
    abilities: { drives: [], compressions: [] },
    freeBytes: 0,
    rebootRequired: false,
    lastShutdown: null,
  };
}

function chosen(offers: readonly Offer[], installed: Readonly<Record<string, string>>): readonly string[] {
  return chooseReleases(offers, inventory(installed)).map(({ product, version }) => `${product} ${version}`);
}

test('the newest by semver is chosen, not the last or the longest [A7]', () => {
  const offers = [offer('a', '1.9.0'), offer('a', '1.10.0'), offer('a', '1.2.30')];
  assert.deepEqual(chosen(offers, { a: '1.0.0' }), ['a 1.10.0']);
});

test('releases for another system or architecture are passed over', () => {
  const offers = [
    offer('a', '1.0.0', { os: ['tiny', 'debian'], arch: 'amd64' }),
    offer('a', '2.0.0', { os: ['debian'] }),
    offer('a', '3.0.0', { arch: 'arm64' }),
  ];
  assert.deepEqual(chosen(offers, { a: '1.0.0' }), ['a 1.0.0']);
});

test('what an installed product requires comes along, and what that requires', () => {
  const offers = [
    offer('app', '2.0.0', { requires: { lib: '^1' } }),
    offer('lib', '1.5.0', { requires: { base: '>=1' } }),
    offer('lib', '2.0.0'),
    offer('base', '1.0.0'),
    offer('other', '1.0.0'),
  ];
  assert.deepEqual(chosen(offers, { app: '1.0.0' }), ['app 2.0.0', 'base 1.0.0', 'lib 1.5.0']);
  assert.deepEqual(chosen(offers, { app: '1.0.0', lib: '1.0.0' }), ['app 2.0.0', 'base 1.0.0', 'lib 1.5.0']);
});

test('a release whose requirements cannot be met gives way to the next older one', () => {
  const offers = [
    offer('app', '3.0.0', { requires: { absent: '*' } }),
    offer('app', '2.0.0', { requires: { lib: '^9' } }),
    offer('app', '1.1.0', { requires: { lib: '^1' } }),
    offer('lib', '1.0.0'),
  ];
  assert.deepEqual(chosen(offers, { app: '1.0.0' }), ['app 1.1.0', 'lib 1.0.0']);
});

test('two products that require each other do not go round for ever', () => {
  const offers = [offer('a', '1.0.0', { requires: { b: '*' } }), offer('b', '1.0.0', { requires: { a: '*' } })];
  assert.deepEqual(chosen(offers, { a: '1.0.0' }), ['a 1.0.0', 'b 1.0.0']);
});

test('a pre-release is only for a VM that runs one of that product', () => {
  const offers = [offer('a', '1.0.0'), offer('a', '2.0.0-rc.1')];
  assert.deepEqual(chosen(offers, { a: '1.0.0' }), ['a 1.0.0']);
  assert.deepEqual(chosen(offers, { a: '2.0.0-beta.1' }), ['a 2.0.0-rc.1']);
});

test('an installed version that is no semver does not hide the newest', () => {
  assert.deepEqual(chosen([offer('a', '1.0.0')], { a: 'built by hand' }), ['a 1.0.0']);
});

test('every chosen set meets all of its own requirements', () => {
  const name = fc.constantFrom('a', 'b', 'c', 'd');
  const version = fc.constantFrom('1.0.0', '1.1.0', '2.0.0', '2.1.0');
  const range = fc.constantFrom('^1', '^2', '>=1.1', '*');
  const one = fc.record({ name, version, requires: fc.dictionary(name, range, { maxKeys: 2 }) });
  fc.assert(
    fc.property(fc.array(one, { maxLength: 12 }), fc.dictionary(name, version), (list, installed) => {
      const offers = list.map((entry) => offer(entry.name, entry.version, { requires: entry.requires }));
      const releases = chooseReleases(offers, inventory(installed));
      for (const release of releases) {
        for (const need of release.requires) {
          const met = releases.find(({ product }) => product === need.product);
          assert.ok(met !== undefined, `${release.product} ${release.version} without ${need.product}`);
          if (need.range.startsWith('^')) assert.equal(met.version[0], need.range[1]);
        }
      }
      assert.equal(new Set(releases.map(({ product }) => product)).size, releases.length);
    }),
    { numRuns: 500 },
  );
});

test('versions are ordered by semver, rebuilds last, and anything else is an error', () => {
  assert.ok(compareSemver('1.2.0', '1.10.0') < 0);
  assert.ok(compareSemver('1.0.0-rc.1', '1.0.0') < 0);
  assert.ok(compareSemver('1.0.0+2', '1.0.0+1') > 0);
  assert.equal(compareSemver('1.0.0', '1.0.0'), 0);
  for (const bad of ['', '1', '1.0', 'v1.0.0', ' 1.0.0', '1.0.0 ', '=1.0.0', 'latest']) {
    assert.throws(() => compareSemver(bad, '1.0.0'), { code: 'usage/version' });
  }
});

test('all offers show the newest of each product and architecture', () => {
  const offers = [
    offer('a', '1.0.0'),
    offer('a', '1.1.0'),
    offer('a', '1.0.0', { arch: 'arm64' }),
    offer('b', '0.1.0'),
  ];
  const shown = newestOfAll(offers).map(({ product, version, arch }) => `${product} ${version} ${arch ?? 'any'}`);
  assert.deepEqual(shown, ['a 1.1.0 any', 'a 1.0.0 arm64', 'b 0.1.0 any']);
});
