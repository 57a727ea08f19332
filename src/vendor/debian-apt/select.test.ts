// The choice of packages for one VM: newest, held, security, dependencies that can and cannot be met.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { digestOf } from '../../base/digest.ts';
import type { InstalledProduct } from '../../model/inventory.ts';
import { type Catalog, makeCatalog, type Pin } from './catalog.ts';
import type { OfferedPackage } from './packages-file.ts';
import { selectPackages } from './select.ts';
import { World } from './world.ts';

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

test('a new package that an update needs comes with it', () => {
  const lookup = lookupOf(
    { name: 'linux', version: '2', depends: 'linux-2 (= 2), base | nothing', suite: 'bookworm-security' },
    { name: 'linux-2', version: '2', depends: 'tool' },
    { name: 'real-tool', version: '1', provides: 'tool' },
    { name: 'base', version: '1' },
  );
  const { chosen, leftOut } = select(installed({ linux: '1', base: '1' }), lookup);
  assert.deepEqual(chosen, ['base 1 fix', 'linux 2 security', 'linux-2 2 fix', 'real-tool 1 fix']);
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

test('a held package is told, with its newer version and why it matters', () => {
  const lookup = lookupOf({ name: 'a', version: '2', suite: 'bookworm-security' }, { name: 'b', version: '1' });
  const held = [...installed({ a: '1', b: '1' }, { held: true })];
  const { chosen, leftOut } = selectPackages(held, lookup);
  assert.deepEqual(
    chosen.map(({ offer }) => offer.name),
    ['b'],
  );
  assert.deepEqual(leftOut, [
    { name: 'a', version: '2', arch: 'amd64', kind: 'security', why: 'held', reason: 'it is held at 1' },
  ]);
});

test('a package of another architecture is told when ours has something newer', () => {
  const lookup = lookupOf({ name: 'libc6', version: '2' });
  const [only] = selectPackages(installed({ libc6: '1' }, { arch: 'i386' }), lookup).leftOut;
  assert.equal(only?.arch, 'i386');
  assert.match(only?.reason ?? '', /installed for i386, and this vendor offers packages for amd64 only/);
  assert.deepEqual(selectPackages(installed({ libc6: '2' }, { arch: 'i386' }), lookup).leftOut, []);
});

test('backports upgrade what came from them and nothing else; experimental upgrades nothing by itself', () => {
  const main = { name: 'a', version: '1' };
  const backport = { name: 'a', version: '2~bpo', suite: 'bookworm-backports' };
  const experiment = { name: 'a', version: '3', suite: 'experimental' };
  const offers = [main, backport, experiment];
  assert.deepEqual(select(installed({ a: '0.9' }), lookupOf(...offers)).chosen, ['a 1 fix']);
  assert.deepEqual(select(installed({ a: '1' }), lookupOf(...offers)).chosen, ['a 1 fix']);
  assert.deepEqual(select(installed({ a: '1.9' }), lookupOf(...offers)).chosen, ['a 2~bpo fix']);
  assert.deepEqual(select(installed({ a: '2~bpo' }), lookupOf(experiment)).chosen, []);
});

test('pins raise, lower and forbid versions; the first that matches decides, one that names packages before the others', () => {
  const offers = [
    { name: 'a', version: '1' },
    { name: 'a', version: '2', suite: 'bookworm-backports' },
    { name: 'b', version: '1' },
    { name: 'b', version: '2', suite: 'bookworm-backports' },
  ];
  const suite = 'bookworm-backports';
  const of = (...pins: readonly Pin[]) => select(installed({ a: '1', b: '1' }), pinned(pins, ...offers)).chosen;
  assert.deepEqual(of(), ['a 1 fix', 'b 1 fix']);
  assert.deepEqual(of({ suite, priority: 500 }), ['a 2 fix', 'b 2 fix']);
  assert.deepEqual(of({ suite, priority: 500 }, { packages: ['a*'], suite, priority: -1 }), ['a 1 fix', 'b 2 fix']);
  assert.deepEqual(of({ packages: ['b'], suite, priority: 501 }, { packages: ['b'], priority: 1 }), [
    'a 1 fix',
    'b 2 fix',
  ]);
  assert.deepEqual(of({ suite, priority: 500 }, { packages: ['a'], version: '1*', priority: 501 }), [
    'a 1 fix',
    'b 2 fix',
  ]);
  assert.deepEqual(of({ packages: ['a', 'b'], priority: -1 }), ['a 1 fix', 'b 1 fix']);
});

test('a pin never takes a VM back to an older version, however high it is', () => {
  const catalog = pinned([{ packages: ['a'], version: '1', priority: 1001 }], { name: 'a', version: '1' });
  assert.deepEqual(select(installed({ a: '2' }), catalog).chosen, ['a 1 fix']);
});

test('a security update that a pin keeps away is told as held', () => {
  const offers = [
    { name: 'a', version: '1' },
    { name: 'a', version: '2', suite: 'bookworm-security' },
  ];
  const { chosen, leftOut } = selectPackages(
    installed({ a: '1' }),
    pinned([{ packages: ['a'], suite: 'bookworm-security', priority: -1 }], ...offers),
  );
  assert.deepEqual(
    chosen.map(({ offer }) => offer.version),
    ['1'],
  );
  assert.deepEqual(
    leftOut.map(({ version, kind, why }) => [version, kind, why]),
    [['2', 'security', 'held']],
  );
});

test('a virtual package that only one may provide stands in the way of a second one', () => {
  const lookup = lookupOf(
    { name: 'app', version: '2', depends: 'mailer' },
    { name: 'mailer', version: '1', provides: 'mta', breaks: 'mta' },
    { name: 'old-mailer', version: '1', provides: 'mta', breaks: 'mta' },
  );
  const { chosen, leftOut } = select(installed({ app: '1', 'old-mailer': '1' }), lookup);
  assert.deepEqual(chosen, ['old-mailer 1 fix']);
  assert.deepEqual(leftOut, ['app: it needs mailer, but mailer 1 cannot be installed: it breaks old-mailer 1']);
});

test('what takes the place of another package is left out with that said, because nothing is removed', () => {
  const lookup = lookupOf(
    { name: 'new', version: '2', breaks: 'old', replaces: 'old', provides: 'old' },
    { name: 'old', version: '1' },
  );
  const [reason] = select(installed({ new: '1', old: '1' }), lookup).leftOut;
  assert.equal(reason, 'new: it breaks old 1, whose place it takes, and no package is removed');
});

test('an installed package that breaks the newer version keeps it away', () => {
  const lookup = lookupOf({ name: 'guard', version: '1', breaks: 'a (>= 2)' }, { name: 'a', version: '2' });
  assert.deepEqual(select(installed({ a: '1', guard: '1' }), lookup).leftOut, [
    'a: guard 1 stays and does not work beside it',
  ]);
});

test('a second alternative is taken when the first cannot be installed', () => {
  const lookup = lookupOf(
    { name: 'app', version: '2', depends: 'best | good' },
    { name: 'best', version: '1', depends: 'missing' },
    { name: 'good', version: '1' },
  );
  assert.deepEqual(select(installed({ app: '1' }), lookup).chosen, ['app 2 fix', 'good 1 fix']);
});

test('what must be installed together is named: new packages, siblings of one version, and what would break', () => {
  const lookup = lookupOf(
    { name: 'jq', version: '2', depends: 'libjq (= 2), libc (>= 1)' },
    { name: 'jq', version: '1', depends: 'libjq (= 1), libc (>= 1)' },
    { name: 'libjq', version: '2', depends: 'new-lib' },
    { name: 'new-lib', version: '7', breaks: 'plugin (<< 3)' },
    { name: 'plugin', version: '3' },
    { name: 'libc', version: '2' },
  );
  const { chosen } = selectPackages(installed({ jq: '1', libjq: '1', plugin: '2', libc: '1' }), lookup);
  const requires = Object.fromEntries(
    chosen.map(({ offer, requires: all }) => [offer.name, all.map(({ product, range }) => `${product} ${range}`)]),
  );
  assert.deepEqual(requires, {
    jq: ['libjq = 2'],
    libjq: ['new-lib >= 7', 'jq >= 2'],
    'new-lib': ['plugin >= 3'],
    plugin: [],
    libc: [],
  });
});

test('a sibling of one version is kept back with its held sibling, also when the archive forgot the installed version', () => {
  const lookup = lookupOf({ name: 'lib', version: '2' }, { name: 'lib-dev', version: '2', depends: 'lib (= 2)' });
  const products = [...installed({ lib: '1' }), ...installed({ 'lib-dev': '1' }, { held: true })];
  assert.deepEqual(select(products, lookup).leftOut, [
    'lib-dev: it is held at 1',
    'lib: lib-dev 1 stays and needs lib (= 1)',
  ]);
});

/** What is wrong with a set of packages that was not wrong before: unmet needs and broken neighbours. */
function faultsOf(world: World, before: World): readonly string[] {
  const faults = (one: World) =>
    [...one.members()].flatMap((member) => [
      ...member.depends
        .filter((need) => !one.meets(need))
        .map((need) => `${member.name} needs ${JSON.stringify(need)}`),
      ...member.breaks.flatMap((relation) =>
        one.victims(member, relation).map(({ name }) => `${member.name} breaks ${name}`),
      ),
    ]);
  const old = new Set(faults(before));
  return faults(world).filter((fault) => !old.has(fault));
}

test('any choice that keeps to `requires` leaves nothing broken that was whole, in random archives', () => {
  const anyName = fc.constantFrom('a', 'b', 'c', 'd', 'e');
  const anyVersion = fc.constantFrom('1', '2', '3');
  const anyRelation = fc
    .tuple(fc.constantFrom('a', 'b', 'c', 'd', 'e', 'v'), fc.constantFrom('', '=', '>=', '<<'), anyVersion)
    .map(([name, operator, version]) => (operator === '' ? name : `${name} (${operator} ${version})`));
  const anyField = fc.array(
    fc.array(anyRelation, { minLength: 1, maxLength: 2 }).map((any) => any.join(' | ')),
    { maxLength: 2 },
  );
  const anyOffer = fc.record({
    name: anyName,
    version: anyVersion,
    depends: anyField.map((groups) => groups.join(', ')),
    breaks: fc.oneof({ weight: 3, arbitrary: fc.constant('') }, anyRelation),
    provides: fc.constantFrom('', '', 'v', 'v (= 2)'),
  });
  let updatesSeen = 0;
  fc.assert(
    fc.property(
      fc.uniqueArray(anyOffer, { minLength: 3, maxLength: 12, selector: ({ name, version }) => `${name} ${version}` }),
      fc.dictionary(anyName, anyVersion, { minKeys: 1 }),
      fc.array(fc.nat(), { maxLength: 3 }),
      (offers, products, picks) => {
        const catalog = lookupOf(...offers);
        const known = Object.entries(products).filter(([name, version]) =>
          offers.some((one) => one.name === name && one.version === version),
        );
        const { chosen } = selectPackages(installed(Object.fromEntries(known)), catalog);
        const members = known.flatMap(([name, version]) =>
          catalog.byName(name).filter((offer) => offer.version === version),
        );
        const before = new World(members.map(catalog.memberOf));
        const news = chosen.filter(({ offer }) => before.get(offer.name)?.version !== offer.version);
        updatesSeen += news.length;
        const part = new Map<string, OfferedPackage>();
        const queue = news.length === 0 ? [] : picks.flatMap((pick) => news[pick % news.length] ?? []);
        for (let one = queue.shift(); one !== undefined; one = queue.shift()) {
          if (part.has(one.offer.name)) continue;
          part.set(one.offer.name, one.offer);
          const names = one.requires.map(({ product }) => product);
          queue.push(...news.filter(({ offer }) => names.includes(offer.name)));
        }
        for (const choice of [[...part.values()], news.map(({ offer }) => offer)]) {
          const after = new World([...members.map(catalog.memberOf), ...choice.map(catalog.memberOf)]);
          assert.deepEqual(faultsOf(after, before), []);
        }
      },
    ),
    { numRuns: 3000 },
  );
  assert.ok(updatesSeen > 1000, 'the random archives have updates');
});
