// A confirmation that the judge believes, and products that turned up only with it.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DiskWitness, JudgeInput } from '../confirm/judge.ts';
import type { InstalledProduct, Inventory } from '../model/inventory.ts';
import { type Plan, planDigest } from '../model/plan.ts';
import { DEFAULT_POLICY } from '../model/policy.ts';
import type { Release } from '../model/release.ts';
import type { PlanAnswer } from './planner.ts';
import { quarantineRun } from './quarantine.ts';
import { evidence, onTrial, PLAN, RUN, session } from './samples.ts';
import { weigh } from './weigh.ts';

const { vm } = evidence;

const product = (name: string, version: string): InstalledProduct => ({
  ecosystem: 'bundle',
  product: name,
  version,
  state: 'installed',
});

function inventory(...products: readonly InstalledProduct[]): Inventory {
  return {
    os: { id: 'tiny', versionId: '1', arch: 'amd64' },
    products: [...products],
    config: [],
    agent: { version: '1.0.0', digest: null },
    abilities: { drives: ['virtio-blk'], compressions: ['none'] },
    freeBytes: 1,
    rebootRequired: false,
    lastShutdown: null,
  };
}

const empty: Plan = { vm, run: RUN, items: [], leftOut: [], vendors: [] };

function input(reported: Inventory | null, confirmed: Inventory): JudgeInput {
  const digest = planDigest(empty);
  const confirmation = {
    ...session,
    run: RUN,
    planDigest: digest,
    manifestDigest: null,
    results: [],
    inventory: confirmed,
  };
  return {
    vm,
    run: RUN,
    plan: empty,
    planDigest: digest,
    session,
    confirmation,
    manifestDigests: [],
    reported,
    policy: DEFAULT_POLICY,
    nowMs: 1,
  };
}

const release: Release = {
  vendor: 'v',
  ecosystem: 'bundle',
  product: 'late',
  version: '2.0.0',
  kind: 'security',
  requires: [],
  advisories: [],
  artifact: { name: 'late', digest: PLAN, sizeBytes: 1, location: 'late' },
  install: { action: 'bundle', prefix: '/opt/late', compression: 'none' },
};
const behind: PlanAnswer = {
  kind: 'plan',
  plan: { ...empty, items: [{ id: 'bundle/late', fromVersion: '1.0.0', release }] },
};

const weighed = async (given: JudgeInput, answer: PlanAnswer | null): Promise<string> => {
  const planAnew = async () => {
    assert.ok(answer !== null, 'the vendors are not asked');
    return answer;
  };
  const readDisk = () => assert.fail('the policy does not ask for the disk');
  const verdict = await weigh(given, { planAnew, readDisk });
  return verdict.kind === 'refused' ? verdict.code : verdict.kind;
};

test('the vendors are not asked again when nothing turned up', async () => {
  const has = inventory(product('hello', '2.0.0'));
  assert.equal(await weighed(input(has, has), null), 'evidence');
});

test('a stale product that is shown only with the confirmation is not overlooked [A7 A10]', async () => {
  const shown = inventory(product('hello', '2.0.0'), product('late', '1.0.0'));
  assert.equal(await weighed(input(inventory(product('hello', '2.0.0')), shown), behind), 'still-behind');
  assert.equal(await weighed(input(null, shown), behind), 'still-behind', 'also when the report is forgotten');
});

test('a new product that is the latest, or not the one that is behind, does no harm', async () => {
  const reported = inventory(product('hello', '2.0.0'));
  const shown = inventory(product('hello', '2.0.0'), product('other', '1.0.0'));
  assert.equal(await weighed(input(reported, shown), { kind: 'plan', plan: empty }), 'evidence');
  assert.equal(await weighed(input(reported, shown), behind), 'evidence');
});

test('what cannot be looked up is not believed', async () => {
  const shown = inventory(product('hello', '2.0.0'), product('late', '1.0.0'));
  const reason = { kind: 'vendor-unavailable', vendor: 'v', detail: 'away' } as const;
  assert.equal(
    await weighed(input(inventory(product('hello', '2.0.0')), shown), { kind: 'refused', reason }),
    'still-behind',
  );
});

test('a product that turns up late and whose security update cannot be had keeps the VM gated, unless the policy says so', async () => {
  const shown = inventory(product('hello', '2.0.0'), product('late', '1.0.0'));
  const { vendor, ecosystem, version, kind } = release;
  const leftOut = [
    { vendor, ecosystem, product: 'late', version, kind, why: 'unsatisfiable', reason: 'it needs x' } as const,
  ];
  const answer: PlanAnswer = { kind: 'plan', plan: { ...empty, leftOut: [...leftOut] } };
  const given = input(inventory(product('hello', '2.0.0')), shown);
  assert.equal(await weighed(given, answer), 'left-out');
  assert.equal(await weighed({ ...given, policy: { ...DEFAULT_POLICY, leftOut: 'admit' } }, answer), 'evidence');
  const other: PlanAnswer = {
    kind: 'plan',
    plan: { ...empty, leftOut: leftOut.map((each) => ({ ...each, product: 'hello' })) },
  };
  assert.equal(await weighed(given, other), 'evidence', 'what was there before is in the plan at hand');
});

test("the VM's disk is read only where the policy asks, and only when all that costs less is right [A3 A10]", async () => {
  const has = inventory(product('hello', '2.0.0'));
  const given = { ...input(has, has), policy: { ...DEFAULT_POLICY, verify: 'disk' as const } };
  let looks = 0;
  const planAnew = () => assert.fail('nothing turned up');
  const weighedOn = async (asked: JudgeInput, disk: DiskWitness) => {
    const readDisk = async () => {
      looks += 1;
      return disk;
    };
    const verdict = await weigh(asked, { planAnew, readDisk });
    return verdict.kind === 'refused' ? verdict.code : verdict.kind;
  };
  const agrees: DiskWitness = { kind: 'agrees', matching: 1, unread: 0 };
  assert.equal(await weighedOn({ ...given, session: null }, agrees), 'session-ended');
  assert.equal(looks, 0);
  assert.equal(await weighedOn(given, agrees), 'evidence');
  assert.equal(await weighedOn(given, { kind: 'differs', detail: 'x' }), 'disk-mismatch');
  assert.equal(await weighedOn(given, { kind: 'unread', detail: 'LVM' }), 'disk-unread');
  assert.equal(looks, 3);
});

test('a disk that tells nothing blames no version; one that contradicts its guest blames those of the plan [X5]', () => {
  const versionsAfter = (code: string) => {
    const outcome = quarantineRun(onTrial, null, { kind: 'confirm-refused', code, detail: '' }, []);
    assert(outcome.kind === 'moved' && outcome.state.kind === 'rolling-back');
    return outcome.state.reason.versions;
  };
  assert.deepEqual(versionsAfter('disk-unread'), []);
  assert.deepEqual(versionsAfter('disk-mismatch'), onTrial.plan?.versions);
});
