// How a policy shapes a plan: what is asked for, what is held, what is left out, and whose metadata is believed.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { answer, deb, debian, inventory, plan, product, release, vendor } from '../../test/fakes/planner.ts';
import { makeFakeClock } from '../../test/simulator/clock.ts';
import { systemClock } from '../base/clock.ts';
import { VENDOR_RECHECK_MS } from '../base/limits.ts';
import { type Inventory, productKey } from '../model/inventory.ts';
import type { Plan } from '../model/plan.ts';
import { DEFAULT_POLICY, matchesProduct, type Policy } from '../model/policy.ts';
import type { LeftOut, Release } from '../model/release.ts';
import type { Vendor, VendorStatus } from '../vendor/vendor.ts';
import { leaveOut } from './planner-offers.ts';

const HOUR_MS = 3_600_000;
const apt = { ecosystem: 'debian', kind: 'debian-apt' } as const;

/** The plan's left-outs, each as "product version why: reason". */
async function leftOut(vendors: readonly Vendor[], has: Inventory, policy: Partial<Policy> = {}) {
  const answered = await answer(vendors, has, policy);
  assert.ok(answered.kind === 'plan', JSON.stringify(answered));
  return answered.plan.leftOut.map(({ product: name, version, why, reason }) => `${name} ${version} ${why}: ${reason}`);
}

/** An archive that keeps its contract: what is held stays, is told of, and takes along what needs it. */
function archive(offers: readonly Release[]): Vendor {
  return vendor([], {
    ...apt,
    latest: async ({ products }) => {
      const held = new Set(products.filter((one) => one.held === true).map((one) => one.product));
      const isStuck = (one: Release): boolean =>
        held.has(one.product) ||
        one.requires.some((need) => offers.some((other) => other.product === need.product && isStuck(other)));
      const left = offers.filter(isStuck).map(({ vendor: name, ecosystem, product: what, version, arch, kind }) => {
        const why = held.has(what) ? ('held' as const) : ('unsatisfiable' as const);
        const entry: LeftOut = { vendor: name, ecosystem, product: what, version, kind, why, reason: 'it says so' };
        return arch === undefined ? entry : { ...entry, arch };
      });
      return { releases: offers.filter((one) => !isStuck(one)), leftOut: left };
    },
  });
}

test('a VM that lists products gets those and what they need, nothing else', async () => {
  const offers = [
    deb('nginx', '2', { requires: [{ product: 'libfoo', range: '>= 2' }] }),
    deb('libfoo', '2'),
    deb('libfoo-data', '2'),
    deb('jq', '2', { kind: 'security' }),
  ];
  const has = inventory(debian('nginx', '1'), debian('libfoo', '1'), debian('jq', '1'));
  const policy: Partial<Policy> = { install: 'listed', packages: ['ngi*'] };
  assert.deepEqual(await plan([archive(offers)], has, policy), ['debian/libfoo:amd64 1 2', 'debian/nginx:amd64 1 2']);
});

test('a list that names nothing of the VM, or nothing at all, is not "up to date"', async () => {
  const vendors = [vendor([release('hello', '2.0.0')])];
  const has = inventory(product('hello', '2.0.0'));
  assert.equal(await plan(vendors, has, { install: 'listed', packages: ['helo'] }), 'refused: nothing-listed');
  assert.equal(await plan(vendors, has, { install: 'listed' }), 'refused: policy');
  assert.deepEqual(await plan(vendors, has, { install: 'listed', packages: ['hello'] }), []);
});

test('for a VM that lists products only those must have a vendor', async () => {
  const vendors = [vendor([release('hello', '2.0.0')])];
  const has = inventory(product('hello', '2.0.0'), product('other', '1.0.0'));
  assert.deepEqual(await plan(vendors, has, { install: 'listed', packages: ['hello'] }), []);
  assert.equal(await plan(vendors, has, { install: 'listed', packages: ['*'] }), 'refused: no-vendor');
});

test('a policy that could not be resolved gets no plan', async () => {
  const vendors = [vendor([release('hello', '2.0.0')])];
  const has = inventory(product('hello', '2.0.0'));
  const answered = await answer(vendors, has, {}, { policyTrouble: 'there is no group webb' });
  assert.deepEqual(answered, {
    kind: 'refused',
    reason: { kind: 'plan-refused', code: 'policy', detail: 'there is no group webb' },
  });
});

test('for security only, what a security update requires comes along whatever its own kind', async () => {
  const offers = [
    deb('nginx', '2', {
      kind: 'security',
      requires: [
        { product: 'libfoo', range: '>= 2' },
        { product: 'new', range: '*' },
      ],
    }),
    deb('libfoo', '2'),
    deb('new', '1'),
    deb('jq', '2', { requires: [{ product: 'jq-new', range: '*' }] }),
    deb('jq-new', '1', { kind: 'security' }),
  ];
  const has = inventory(debian('nginx', '1'), debian('libfoo', '1'), debian('jq', '1'));
  assert.deepEqual(await plan([archive(offers)], has, { install: 'security' }), [
    'debian/new:amd64 null 1',
    'debian/libfoo:amd64 1 2',
    'debian/nginx:amd64 1 2',
  ]);
});

test('what the policy holds stays, with its security update on the record; the VM gets the rest', async () => {
  const offers = [deb('nginx', '2', { kind: 'security' }), deb('jq', '2')];
  const has = inventory(debian('nginx', '1'), debian('jq', '1'));
  for (const vendors of [[archive(offers)], [vendor(offers, apt)]]) {
    assert.deepEqual(await plan(vendors, has, { holds: ['ngin*'] }), ['debian/jq:amd64 1 2']);
    assert.deepEqual(await leftOut(vendors, has, { holds: ['ngin*'] }), [
      "nginx 2 held: it is held at 1 by this VM's policy",
    ]);
  }
});

test("what only the operator's hold keeps back is held too, and no reason to stay gated", async () => {
  const needs = { requires: [{ product: 'libfoo', range: '>= 2' }] };
  const offers = [deb('nginx', '2', { kind: 'security', ...needs }), deb('libfoo', '2')];
  const has = inventory(debian('nginx', '1'), debian('libfoo', '1'));
  for (const vendors of [[archive(offers)], [vendor(offers, apt)]]) {
    const left = await leftOut(vendors, has, { holds: ['libfoo'] });
    assert.deepEqual(
      left.map((text) => text.split(':')[0]),
      ['nginx 2 held', 'libfoo 2 held'],
    );
    assert.deepEqual(await plan(vendors, has, { holds: ['libfoo'] }), []);
  }
});

test("a guest's own hold on a hole stays refused, unless the operator holds the same", async () => {
  const offers = [deb('nginx', '2', { kind: 'security' })];
  const has = inventory(debian('nginx', '1', { held: true }), debian('jq', '2'));
  const vendors = [archive([...offers, deb('jq', '2')])];
  assert.equal(await plan(vendors, has), 'refused: held');
  assert.deepEqual(await plan(vendors, has, { holds: ['nginx'] }), []);
  assert.deepEqual(await plan(vendors, has, { install: 'listed', packages: ['jq'] }), []);
});

test('a held bundle stays where it is; what can live with it is updated, what cannot is left out', async () => {
  const offers = [
    release('lib', '2.0.0'),
    release('app', '2.0.0', { kind: 'security', requires: [{ product: 'lib', range: '>=1' }] }),
    release('tool', '2.0.0', { requires: [{ product: 'lib', range: '>=2' }] }),
  ];
  const has = inventory(product('lib', '1.0.0'), product('app', '1.0.0'), product('tool', '1.0.0'));
  assert.deepEqual(await plan([vendor(offers)], has, { holds: ['lib'] }), ['bundle/app 1.0.0 2.0.0']);
  assert.deepEqual(await leftOut([vendor(offers)], has, { holds: ['lib'] }), [
    "lib 2.0.0 held: it is held at 1.0.0 by this VM's policy",
    "tool 2.0.0 held: it needs lib (>=2), which stays: it is held at 1.0.0 by this VM's policy",
  ]);
});

test('a product that is new to the VM and held does not come, nor what needs it', async () => {
  const offers = [
    deb('meta', '2', { requires: [{ product: 'kernel-2', range: '*' }] }),
    deb('kernel-2', '2'),
    deb('jq', '2'),
  ];
  const has = inventory(debian('meta', '1'), debian('jq', '1'));
  assert.deepEqual(await plan([vendor(offers, apt)], has, { holds: ['kernel-*'] }), ['debian/jq:amd64 1 2']);
});

test('what is neither there nor on offer is not waited for: whatever needs it is left out as unsatisfiable', async () => {
  const offers = [release('app', '2.0.0', { kind: 'security', requires: [{ product: 'lib', range: '>=1' }] })];
  const has = inventory(product('app', '1.0.0'));
  assert.deepEqual(await leftOut([vendor(offers)], has), [
    'app 2.0.0 unsatisfiable: it needs lib (>=1), which is not on offer',
  ]);
});

test('a version that failed on this VM before is not tried again; a newer one is', async () => {
  const failedBefore = [{ item: 'bundle/hello', version: '2.0.0' }];
  const has = inventory(product('hello', '1.0.0'));
  const offered = async (version: string) => {
    const answered = await answer([vendor([release('hello', version)])], has, {}, { failedBefore });
    assert.ok(answered.kind === 'plan');
    return [answered.plan.items.length, answered.plan.leftOut.map(({ why }) => why)];
  };
  assert.deepEqual(await offered('2.0.0'), [0, ['failed-before']]);
  assert.deepEqual(await offered('2.0.1'), [1, []]);
});

test('a plan tells what it does without as far as its policy asks for it, security first', async () => {
  const left = (name: string, kind: Release['kind']): LeftOut => ({
    vendor: 'v',
    ecosystem: 'bundle',
    product: name,
    version: '2.0.0',
    kind,
    why: 'unsatisfiable',
    reason: 'r',
  });
  const told = [left('a', 'fix'), left('c', 'security'), left('b', 'security')];
  const source = vendor([], { latest: async () => ({ releases: [release('x', '1.0.0')], leftOut: told }) });
  const has = inventory(product('x', '1.0.0'));
  const names = async (policy: Partial<Policy>) =>
    (await leftOut([source], has, policy)).map((text) => text.split(' ')[0]);
  assert.deepEqual(await names({}), ['b', 'c', 'a']);
  assert.deepEqual(await names({ install: 'security' }), ['b', 'c']);
  assert.deepEqual(await names({ install: 'listed', packages: ['x', 'a'] }), ['a']);
});

test('what one vendor leaves out and another has is not left out', async () => {
  const left: LeftOut = {
    vendor: 'v',
    ecosystem: 'bundle',
    product: 'x',
    version: '2.0.0',
    kind: 'security',
    why: 'unsatisfiable',
    reason: 'r',
  };
  const one = vendor([], { latest: async () => ({ releases: [], leftOut: [left] }) });
  const other = vendor([release('x', '2.0.0', { vendor: 'w' })], { name: 'w' });
  const has = inventory(product('x', '1.0.0'));
  assert.deepEqual(await leftOut([one, other], has), []);
  assert.deepEqual((await leftOut([one], has)).length, 1);
});

test('what one vendor knows to be a security update is one, also where another offers as much or more without saying so [A7]', async () => {
  const archive = (version: string, kind: 'fix' | 'security', name: string) =>
    vendor([deb('openssl', version, { kind, vendor: name })], { ecosystem: 'debian', kind: 'debian-apt', name });
  const has = inventory(debian('openssl', '1'));
  const security = archive('3', 'security', 'security');
  for (const main of ['2', '3', '4']) {
    const wanted = main === '4' ? '4' : '3';
    for (const vendors of [
      [archive(main, 'fix', 'main'), security],
      [security, archive(main, 'fix', 'main')],
    ])
      assert.deepEqual(await plan(vendors, has, { install: 'security' }), [`debian/openssl:amd64 1 ${wanted}`], main);
  }
  // What is installed already makes no security update of what only came after it.
  const later = [security, archive('4', 'fix', 'main')];
  assert.deepEqual(await plan(later, inventory(debian('openssl', '3')), { install: 'security' }), []);
});

test('of versions that two vendors leave out the hole is told, whichever vendor is asked first [A11]', async () => {
  const has = inventory(debian('nginx', '1'), debian('curl', '1'));
  const leavesOut = (version: string, kind: 'fix' | 'security') => {
    const left = leaveOut(deb('nginx', version, { kind }), 'unsatisfiable', 'it needs something');
    const latest: Vendor['latest'] = async () => ({ releases: [deb('curl', '1')], leftOut: [left] });
    return vendor([], { ecosystem: 'debian', kind: 'debian-apt', latest });
  };
  const [security, main] = [leavesOut('1.2', 'security'), leavesOut('1.1', 'fix')];
  const told = ['nginx 1.2 unsatisfiable: it needs something'];
  assert.deepEqual(await leftOut([main, security], has), told);
  assert.deepEqual(await leftOut([security, main], has), told);
});

// ---- Whose metadata is believed ------------------------------------------------------------------------------------

/** A vendor that was checked so long ago and answers no more; `isValid`: its signatures have not run out. */
function silent(ageMs: number | null, isValid = true) {
  // The pauses between attempts cost nothing.
  const clock = { ...makeFakeClock(), sleep: async () => {} };
  let asked = 0;
  const status = (): VendorStatus => ({
    vendor: 'v',
    checkedAtMs: ageMs === null ? null : clock.nowMs() - ageMs,
    isFresh: ageMs !== null && isValid,
    trouble: null,
  });
  const source = vendor([release('hello', '2.0.0')], {
    status,
    refresh: async () => {
      asked += 1;
      throw new Error('connection refused');
    },
  });
  const ask = async (policy: Partial<Policy>) => {
    const answered = await answer([source], inventory(product('hello', '1.0.0')), policy, { clock });
    return answered.kind === 'plan' ? answered.plan.vendors[0]?.fresh : answered.reason.kind;
  };
  return { ask, asked: () => asked };
}

test('metadata is believed up to the age that the policy allows, and then no more', async () => {
  assert.equal(await silent(23 * HOUR_MS).ask({}), true);
  assert.equal(await silent(25 * HOUR_MS).ask({}), 'vendor-unavailable');
  assert.equal(await silent(25 * HOUR_MS).ask({ metadataAgeMaxMs: 26 * HOUR_MS }), true);
  assert.equal(await silent(2 * HOUR_MS, false).ask({}), 'vendor-unavailable', 'expired, however young');
});

test('a policy that allows less than the usual pause between two checks has its vendors asked sooner', async () => {
  const vendorOf = silent(VENDOR_RECHECK_MS / 2);
  assert.equal(await vendorOf.ask({}), true);
  assert.equal(vendorOf.asked(), 0);
  assert.equal(await vendorOf.ask({ metadataAgeMaxMs: 60_000 }), 'vendor-unavailable');
  assert.ok(vendorOf.asked() > 0);
});

test('where the policy says so, old metadata is gone by with its age on the record, but never none, and none of the future', async () => {
  const policy = { vendorAway: 'admit' } as const;
  assert.equal(await silent(1_000 * HOUR_MS).ask(policy), false);
  assert.equal(await silent(1_000 * HOUR_MS, false).ask(policy), false);
  assert.equal(await silent(1 * HOUR_MS).ask(policy), true);
  assert.equal(await silent(null).ask(policy), 'vendor-unavailable');
  assert.equal(await silent(-1 * HOUR_MS).ask(policy), 'vendor-unavailable');
  assert.equal(await silent(-1 * HOUR_MS).ask({}), 'vendor-unavailable');
});

// ---- Properties -----------------------------------------------------------------------------------------------------

const NAMES = Array.from({ length: 8 }, (_, index) => `p${index}`);
const someNames = fc.subarray(NAMES);
const worlds = fc.record({
  ecosystem: fc.constantFrom('bundle' as const, 'debian' as const),
  installed: fc.subarray(NAMES, { minLength: 1 }),
  offered: fc.array(
    fc.record({
      product: fc.constantFrom(...NAMES),
      version: fc.constantFrom('1.0.0', '2.0.0'),
      kind: fc.constantFrom('security' as const, 'fix' as const),
      requires: fc.subarray(NAMES, { maxLength: 3 }),
    }),
    { maxLength: 10 },
  ),
  heldByGuest: fc.subarray(NAMES, { maxLength: 1 }),
  keepsContract: fc.boolean(),
  policy: fc.record({
    install: fc.constantFrom('all' as const, 'security' as const, 'listed' as const),
    packages: someNames,
    holds: fc.subarray([...NAMES, 'p*'], { maxLength: 3 }),
  }),
});
type World = typeof worlds extends fc.Arbitrary<infer T> ? T : never;

function build({ ecosystem, installed, offered, heldByGuest, keepsContract }: World, isReversed = false) {
  const make = ecosystem === 'debian' ? deb : release;
  const offers = offered.map((one) =>
    make(one.product, one.version, {
      kind: one.kind,
      requires: one.requires.filter((name) => name !== one.product).map((name) => ({ product: name, range: '>=2' })),
    }),
  );
  // A vendor names each product once.
  const once = [...new Map(offers.map((one) => [one.product, one])).values()];
  const ordered = isReversed ? once.toReversed() : once;
  const more = ecosystem === 'debian' ? apt : {};
  const source = keepsContract && ecosystem === 'debian' ? archiveOf(ordered) : vendor(ordered, more);
  const own = ecosystem === 'debian' ? debian : product;
  const products = installed.map((name) => own(name, '1.0.0', heldByGuest.includes(name) ? { held: true } : {}));
  return { vendors: [source], has: inventory(...(isReversed ? products.toReversed() : products)), offers: once };
}

/** Like `archive`, for requirements that may go in circles. */
function archiveOf(offers: readonly Release[]): Vendor {
  return vendor((has) => {
    const stuck = new Set(has.products.filter((one) => one.held === true).map((one) => one.product));
    for (let before = -1; before !== stuck.size; ) {
      before = stuck.size;
      for (const one of offers) if (one.requires.some((need) => stuck.has(need.product))) stuck.add(one.product);
    }
    return offers.filter((one) => !stuck.has(one.product));
  }, apt);
}

async function planned(world: World, isReversed = false): Promise<Plan | null> {
  const { vendors, has } = build(world, isReversed);
  const answered = await answer(vendors, has, world.policy);
  return answered.kind === 'plan' ? answered.plan : null;
}

test('every plan is closed under what its releases require, never holds a held product, and equal inputs make equal plans', async () => {
  let plans = 0;
  let items = 0;
  await fc.assert(
    fc.asyncProperty(worlds, async (world) => {
      const made = await planned(world);
      assert.deepEqual(made, await planned(world));
      if (made === null) return;
      const mirrored = await planned(world, true);
      assert.ok(mirrored !== null);
      assert.deepEqual(made, mirrored, 'the order in which things are named does not matter');
      plans += 1;
      items += made.items.length;
      const { offers } = build(world);
      const planOf = new Set(made.items.map(({ release: { product: name } }) => name));
      for (const { release: chosen } of made.items) {
        assert.ok(!matchesProduct(world.policy.holds, chosen.product), `${chosen.product} is held`);
        const isHeldByGuest = world.installed.includes(chosen.product) && world.heldByGuest.includes(chosen.product);
        assert.ok(!isHeldByGuest, `${chosen.product} is held in the guest`);
        for (const need of chosen.requires) {
          const offer = offers.find((one) => one.product === need.product);
          const isThere = world.installed.includes(need.product);
          const isCurrent = isThere && (offer === undefined || offer.version === '1.0.0');
          assert.ok(planOf.has(need.product) || isCurrent, `${chosen.product} needs ${need.product}`);
        }
      }
      const ids = made.items.map(({ id }) => id);
      assert.equal(new Set(ids).size, ids.length);
      const left = made.leftOut.map((entry) => `${productKey(entry)} ${entry.version}`);
      for (const { id, release: chosen } of made.items) assert.ok(!left.includes(`${id} ${chosen.version}`), id);
    }),
    { numRuns: 1_500 },
  );
  assert.ok(plans > 100 && items > 100, `the worlds are too poor: ${plans} plans, ${items} items`);
});

test('what is installed as planned is not planned again', async () => {
  await fc.assert(
    fc.asyncProperty(worlds, async (world) => {
      const made = await planned(world);
      if (made === null) return;
      const { vendors, has } = build(world);
      const versions = new Map(made.items.map(({ release: chosen }) => [chosen.product, chosen.version]));
      const own = world.ecosystem === 'debian' ? debian : product;
      const isNew = (name: string) => !has.products.some((one) => one.product === name);
      const after = [
        ...has.products.map((one) => ({ ...one, version: versions.get(one.product) ?? one.version })),
        ...[...versions].filter(([name]) => isNew(name)).map(([name, version]) => own(name, version)),
      ];
      const again = await answer(vendors, inventory(...after), world.policy);
      assert.ok(again.kind === 'plan');
      assert.deepEqual(
        again.plan.items.map(({ id }) => id),
        [],
      );
    }),
    { numRuns: 200 },
  );
});

test('plans of 300 packages for 500 VMs at once take seconds, with holds and requirements', async () => {
  const count = 300;
  const offers = Array.from({ length: count }, (_, index) =>
    deb(`p${index}`, '2', index === 0 ? {} : { requires: [{ product: `p${index - 1}`, range: '>= 2' }] }),
  );
  const has = inventory(...offers.map(({ product: name }) => debian(name, '1')));
  const vendors = [vendor(offers, apt)];
  const startedMs = systemClock.monotonicMs();
  const plans = await Promise.all(
    Array.from({ length: 500 }, () => answer(vendors, has, { ...DEFAULT_POLICY, holds: ['p299'] })),
  );
  const tookMs = systemClock.monotonicMs() - startedMs;
  assert.ok(plans.every((each) => each.kind === 'plan' && each.plan.items.length === count - 1));
  assert.ok(tookMs < 10_000, `500 plans took ${Math.round(tookMs)} ms`);
});
