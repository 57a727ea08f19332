// Which releases a VM should have: newest, fitting, and consistent with what they require.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { satisfies } from 'semver';
import { systemClock } from '../../base/clock.ts';
import { digestOf } from '../../base/digest.ts';
import type { InstalledProduct, Inventory } from '../../model/inventory.ts';
import type { Kind } from '../../model/release.ts';
import { chooseReleases, newestOfAll } from './choose.ts';
import type { Offer } from './offer.ts';
import { compareSemver } from './order.ts';

type Wanted = {
  readonly os?: readonly string[];
  readonly arch?: string;
  readonly requires?: Readonly<Record<string, string>>;
  readonly kind?: Kind;
};

function offer(product: string, version: string, { os, arch, requires = {}, kind = 'fix' }: Wanted = {}): Offer {
  return {
    os: os ?? null,
    release: {
      vendor: 'acme',
      ecosystem: 'bundle',
      product,
      version,
      ...(arch === undefined ? {} : { arch }),
      kind,
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
  return chooseReleases(offers, inventory(installed)).releases.map(({ product, version }) => `${product} ${version}`);
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

test('whatever changes on a VM has all that it requires', () => {
  const name = fc.constantFrom('a', 'b', 'c', 'd');
  const version = fc.constantFrom('1.0.0', '1.1.0', '2.0.0', '2.1.0');
  const range = fc.constantFrom('^1', '^2', '>=1.1', '*');
  const one = fc.record({ name, version, requires: fc.dictionary(name, range, { maxKeys: 2 }) });
  fc.assert(
    fc.property(fc.array(one, { maxLength: 12 }), fc.dictionary(name, version), (list, installed) => {
      const offers = list.map((entry) => offer(entry.name, entry.version, { requires: entry.requires }));
      const { releases } = chooseReleases(offers, inventory(installed));
      for (const release of releases.filter(({ product, version }) => installed[product] !== version)) {
        const own = installed[release.product];
        if (own !== undefined && compareSemver(own, release.version) > 0) continue;
        for (const need of release.requires) {
          const found = releases.find(({ product }) => product === need.product)?.version ?? '';
          const has = installed[need.product];
          const met = has !== undefined && (found === '' || compareSemver(has, found) > 0) ? has : found;
          assert.ok(met !== '', `${release.product} ${release.version} without ${need.product}`);
          if (need.range.startsWith('^')) assert.equal(met[0], need.range[1]);
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

function leftOut(offers: readonly Offer[], installed: Readonly<Record<string, string>>, held: readonly string[] = []) {
  const vm = inventory(installed);
  const products = vm.products.map((each) => (held.includes(each.product) ? { ...each, held: true } : each));
  return chooseReleases(offers, { ...vm, products }).leftOut;
}

test('two products that require disjoint ranges of a third: one goes on, the other is left out with both sides named', () => {
  const offers = [
    offer('app', '2.0.0', { requires: { lib: '^2' } }),
    offer('tool', '2.0.0', { requires: { lib: '^1' }, kind: 'security' }),
    offer('lib', '1.0.0'),
    offer('lib', '2.0.0'),
    offer('other', '2.0.0'),
  ];
  const installed = { app: '1.0.0', tool: '1.0.0', other: '1.0.0' };
  assert.deepEqual(chosen(offers, installed), ['lib 1.0.0', 'other 2.0.0', 'tool 2.0.0']);
  assert.deepEqual(leftOut(offers, installed), [
    {
      vendor: 'acme',
      ecosystem: 'bundle',
      product: 'app',
      version: '2.0.0',
      kind: 'fix',
      why: 'unsatisfiable',
      reason: 'app 2.0.0 requires lib ^2, but tool 2.0.0 requires lib ^1',
    },
  ]);
});

test('a required product that nobody offers is named, also at the end of a chain', () => {
  const offers = [
    offer('app', '2.0.0', { requires: { lib: '^2' } }),
    offer('lib', '2.0.0', { requires: { base: '^3' } }),
    offer('base', '2.9.0'),
    offer('solo', '1.1.0', { requires: { nothing: '*' } }),
  ];
  const reasons = leftOut(offers, { app: '1.0.0', solo: '1.0.0' }).map(({ reason }) => reason);
  assert.deepEqual(reasons, [
    'app 2.0.0 requires lib ^2, but lib 2.0.0 requires base ^3, and nobody offers that: there is base 2.9.0',
    'solo 1.1.0 requires nothing *, and nobody offers nothing',
  ]);
});

test('what works on a VM is not broken for the sake of another product', () => {
  const offers = [offer('app', '1.0.0', { requires: { lib: '^1' } }), offer('lib', '1.0.0'), offer('lib', '2.0.0')];
  const installed = { app: '1.0.0', lib: '1.0.0' };
  assert.deepEqual(chosen(offers, installed), ['app 1.0.0', 'lib 1.0.0']);
  assert.deepEqual(
    leftOut(offers, installed).map(({ product, version, reason }) => `${product} ${version}: ${reason}`),
    ['lib 2.0.0: app 1.0.0 requires lib ^1'],
  );
});

test('a held product stays, its newest version is left out with the most severe kind it would bring', () => {
  const offers = [
    offer('a', '1.1.0', { kind: 'security' }),
    offer('a', '1.2.0', { kind: 'enhancement' }),
    offer('b', '2.0.0', { requires: { a: '^1.2' } }),
  ];
  const installed = { a: '1.0.0', b: '1.0.0' };
  const found = leftOut(offers, installed, ['a']).map(({ product, version, kind, why, reason }) => [
    `${product} ${version} ${kind} ${why}`,
    reason,
  ]);
  assert.deepEqual(found, [
    ['a 1.2.0 security held', 'a is held at 1.0.0'],
    ['b 2.0.0 fix unsatisfiable', 'b 2.0.0 requires a ^1.2, and a is held at 1.0.0'],
  ]);
  assert.deepEqual(leftOut(offers, installed), []);
});

test('a release is as severe as what it brings, and so is what a security update requires', () => {
  const offers = [
    offer('a', '1.1.0', { kind: 'security' }),
    offer('a', '1.2.0', { kind: 'enhancement', requires: { lib: '*' } }),
    offer('lib', '1.0.0', { kind: 'enhancement' }),
  ];
  const kinds = (installed: Readonly<Record<string, string>>) =>
    chooseReleases(offers, inventory(installed)).releases.map(({ product, kind }) => `${product} ${kind}`);
  assert.deepEqual(kinds({ a: '1.0.0' }), ['a security', 'lib security']);
  assert.deepEqual(kinds({ a: '1.1.0' }), ['a enhancement', 'lib enhancement']);
});

test('an installed product that is on offer no more still meets what others require', () => {
  const offers = [offer('app', '2.0.0', { requires: { lib: '^1' } })];
  assert.deepEqual(chosen(offers, { app: '1.0.0', lib: '1.4.0' }), ['app 2.0.0']);
  assert.deepEqual(chosen(offers, { app: '1.0.0', lib: '2.0.0' }), []);
});

test('nobody is asked to go back to an older version', () => {
  const offers = [offer('a', '1.0.0', { requires: { lib: '*' } }), offer('lib', '1.0.0')];
  // It is shown, as what the vendor knows of the product, but it is older and brings nothing along.
  assert.deepEqual(chosen(offers, { a: '2.0.0' }), ['a 1.0.0']);
  assert.deepEqual(leftOut(offers, { a: '2.0.0' }), []);
});

test('a puzzle made to take for ever ends, nothing of it changes, and the rest goes on [X3]', () => {
  // A pigeonhole: 12 products, each of which requires one of 11 holes for itself alone.
  const holes = Array.from({ length: 11 }, (_, index) => `hole${index}`);
  const pigeons = Array.from({ length: 12 }, (_, index) => `pigeon${index}`);
  const offers = pigeons.flatMap((name, pigeon) =>
    holes.map((hole, index) => offer(name, `2.0.${index}`, { requires: { [hole]: `${pigeon + 1}.0.0` } })),
  );
  offers.push(...holes.flatMap((hole) => pigeons.map((_, pigeon) => offer(hole, `${pigeon + 1}.0.0`))));
  // Nobody may stay as they are, or the puzzle would have an answer.
  const boss = Object.fromEntries(pigeons.map((name) => [name, '^2']));
  offers.push(offer('boss', '2.0.0', { requires: boss, kind: 'security' }), offer('other', '2.0.0'));
  const installed = Object.fromEntries([...pigeons, 'boss', 'other'].map((name) => [name, '1.0.0']));
  const before = performance.now();
  assert.deepEqual(chosen(offers, installed), ['other 2.0.0']);
  assert.ok(performance.now() - before < 20_000);
  const boss2 = leftOut(offers, installed).find(({ product }) => product === 'boss');
  assert.match(boss2?.reason ?? '', /too entangled/);
});

type Small = { readonly name: string; readonly version: string; readonly requires: Readonly<Record<string, string>> };

/** All consistent sets by trying every combination; the best by the order of importance. Null where nothing is wanted. */
function bruteForce(list: readonly Small[], installed: Readonly<Record<string, string>>): readonly string[] {
  const names = [...new Set([...list.map(({ name }) => name), ...Object.keys(installed)])].sort();
  type Pick = { readonly version: string; readonly requires: Readonly<Record<string, string>> };
  const fits = (picks: ReadonlyMap<string, Pick | null>, pick: Pick) =>
    Object.entries(pick.requires).every(([name, range]) => satisfies(picks.get(name)?.version ?? '', range));
  const now = new Map(
    names.map((name) => [name, installed[name] === undefined ? null : { version: installed[name], requires: {} }]),
  );
  const optionsOf = (name: string): readonly (Pick | null)[] => {
    const offered = list.filter((each) => each.name === name).sort((a, b) => compareSemver(b.version, a.version));
    const version = installed[name];
    if (version === undefined) return [...offered, null];
    const same = offered.filter((each) => each.version === version);
    const bare = same.some((each) => fits(now, each)) ? [] : [{ version, requires: {} }];
    return [...offered.filter((each) => compareSemver(each.version, version) > 0), ...same, ...bare];
  };
  const options = new Map(names.map((name) => [name, optionsOf(name)]));
  // All releases are of one kind here, so what has something pending goes before what has not, then by name.
  const pending = (name: string) =>
    list.some((each) => each.name === name && compareSemver(each.version, installed[name] ?? '0.0.0') > 0);
  const wanted = Object.keys(installed).sort((a, b) => Number(pending(b)) - Number(pending(a)) || (a < b ? -1 : 1));
  let best: { readonly ranks: readonly number[]; readonly versions: readonly string[] } | null = null;
  const tryAll = (index: number, picks: Map<string, Pick | null>): void => {
    const name = names[index];
    if (name !== undefined) {
      for (const pick of options.get(name) ?? []) tryAll(index + 1, new Map(picks).set(name, pick));
      return;
    }
    if (![...picks.values()].every((pick) => pick === null || fits(picks, pick))) return;
    const ranks = wanted.map((each) => (options.get(each) ?? []).indexOf(picks.get(each) ?? null));
    const isBetter =
      best === null ||
      ranks.some(
        (rank, at) => rank < (best?.ranks[at] ?? 0) && ranks.slice(0, at).every((one, i) => one === best?.ranks[i]),
      );
    if (isBetter) best = { ranks, versions: wanted.map((each) => `${each} ${picks.get(each)?.version}`) };
  };
  tryAll(0, new Map());
  // The cast holds: the closure above assigns it, which the compiler does not follow.
  return (
    (best as { versions: readonly string[] } | null)?.versions ?? assert.fail('all as it is, is always consistent')
  );
}

test('the choice is the best one that trying every combination finds', (t) => {
  const seed = Number(process.env.PRATIQUE_SEED ?? Math.floor(systemClock.nowMs() % 2 ** 31));
  t.diagnostic(`seed ${seed}; again with PRATIQUE_SEED=${seed}`);
  const name = fc.constantFrom('a', 'b', 'c', 'd');
  const version = fc.constantFrom('1.0.0', '1.1.0', '2.0.0');
  const range = fc.constantFrom('^1', '^2', '>=1.1', '*', '<2', '^3');
  const one = fc.record({ name, version, requires: fc.dictionary(name, range, { maxKeys: 2 }) });
  const list = fc.uniqueArray(one, { maxLength: 9, selector: (each) => `${each.name} ${each.version}` });
  let contested = 0;
  fc.assert(
    fc.property(list, fc.dictionary(name, version, { minKeys: 1 }), (entries, installed) => {
      const offers = entries.map((each) => offer(each.name, each.version, { requires: each.requires }));
      const { releases, leftOut: missed } = chooseReleases(offers, inventory(installed));
      const versionOf = (product: string) => {
        const offered = releases.find((release) => release.product === product)?.version ?? '0.0.0';
        const own = installed[product] ?? '0.0.0';
        return compareSemver(offered, own) > 0 ? offered : own;
      };
      const best = bruteForce(entries, installed);
      assert.deepEqual(
        best.map((each) => each.split(' ')[0]).map((product = '') => `${product} ${versionOf(product)}`),
        best,
      );
      if (missed.length > 0) contested += 1;
      // Everything that is not the newest is explained, and nothing else.
      for (const product of Object.keys(installed)) {
        const all = entries.filter((each) => each.name === product).map((each) => each.version);
        const isBehind = all.some((each) => compareSemver(each, versionOf(product)) > 0);
        assert.equal(
          missed.some((each) => each.product === product),
          isBehind,
          product,
        );
      }
    }),
    { seed, numRuns: 1500 },
  );
  assert.ok(contested > 50, `only ${contested} of the random cases were hard`);
});
