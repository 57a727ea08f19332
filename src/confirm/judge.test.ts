// The judge: what it believes, every single thing it does not, and that evidence implies all rules at once.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Digest } from '../base/digest-text.ts';
import type { RunId, VmId } from '../model/ids.ts';
import type { InstalledProduct, Inventory } from '../model/inventory.ts';
import { type Plan, type PlanItem, planDigest } from '../model/plan.ts';
import { DEFAULT_POLICY } from '../model/policy.ts';
import type { LeftOut } from '../model/release.ts';
import type { ItemResult } from '../model/result.ts';
import { type Confirmation, isEvidence, type JudgeCode, type JudgeInput, type JudgePolicy, judge } from './judge.ts';

const VM = 'web-1' as VmId;
const RUN = 'a'.repeat(32) as RunId;
const MANIFEST_1 = '1'.repeat(64) as Digest;
const MANIFEST_2 = '2'.repeat(64) as Digest;
const SESSION = { nonce: 'b'.repeat(32), boot: '0b8c1d52-7c6e-4f0a-9a51-2f6f1f0d3c44' };

const BUNDLE: PlanItem = {
  id: 'bundle/demo',
  fromVersion: '1.0.0',
  release: {
    vendor: 'own',
    ecosystem: 'bundle',
    product: 'demo',
    version: '1.1.0',
    kind: 'security',
    requires: [],
    advisories: ['DEMO-1'],
    artifact: { name: 'demo.tar', digest: '3'.repeat(64) as Digest, sizeBytes: 10, location: 'demo.tar' },
    install: { action: 'bundle', prefix: '/opt/demo', compression: 'none', check: 'check' },
  },
};
const PACKAGE: PlanItem = {
  id: 'debian/jq:amd64',
  fromVersion: '1.6-2',
  release: {
    ...BUNDLE.release,
    vendor: 'debian',
    ecosystem: 'debian',
    product: 'jq',
    version: '1.6-3',
    arch: 'amd64',
    install: { action: 'debian-package' },
  },
};
const PLAN: Plan = {
  vm: VM,
  run: RUN,
  items: [BUNDLE, PACKAGE],
  leftOut: [],
  vendors: [{ vendor: 'own', checkedAtMs: 5, fresh: true }],
};
const EMPTY_PLAN: Plan = { ...PLAN, items: [] };

const DEMO: InstalledProduct = { ecosystem: 'bundle', product: 'demo', version: '1.1.0', state: 'installed' };
const JQ: InstalledProduct = {
  ecosystem: 'debian',
  product: 'jq',
  version: '1.6-3',
  arch: 'amd64',
  state: 'installed',
};
const LIBC: InstalledProduct = {
  ecosystem: 'debian',
  product: 'libc6',
  version: '2.36',
  arch: 'amd64',
  state: 'installed',
};
const FRESH: Inventory = {
  os: { id: 'debian', versionId: '12', arch: 'amd64', kernel: '6.1.0-2' },
  products: [DEMO, JQ, LIBC],
  config: [],
  agent: { version: '0.1.0', digest: null },
  abilities: { drives: ['virtio-blk'], compressions: ['none'] },
  freeBytes: 1,
  rebootRequired: false,
  lastShutdown: null,
};
const REPORTED: Inventory = {
  ...FRESH,
  os: { ...FRESH.os, kernel: '6.1.0-1' },
  products: [{ ...DEMO, version: '1.0.0' }, { ...JQ, version: '1.6-2' }, LIBC],
};
const DEMO_RESULT: ItemResult = { item: BUNDLE.id, outcome: 'installed', checkPassed: true, durationMs: 1 };
const JQ_RESULT: ItemResult = { item: PACKAGE.id, outcome: 'installed', durationMs: 1 };
const CONFIRMATION: Confirmation = {
  ...SESSION,
  run: RUN,
  planDigest: planDigest(PLAN),
  manifestDigest: MANIFEST_2,
  results: [DEMO_RESULT, JQ_RESULT],
  inventory: FRESH,
};
const TRUE_INPUT: JudgeInput = {
  vm: VM,
  run: RUN,
  plan: PLAN,
  planDigest: planDigest(PLAN),
  session: SESSION,
  confirmation: CONFIRMATION,
  manifestDigests: [MANIFEST_1, MANIFEST_2],
  reported: REPORTED,
  compareVersions: (_ecosystem, a, b) => {
    if (!/^[0-9]/.test(a)) throw new Error('unreadable');
    return a < b ? -1 : a > b ? 1 : 0;
  },
  policy: DEFAULT_POLICY,
  nowMs: 1000,
};
const EMPTY_INPUT: JudgeInput = {
  ...TRUE_INPUT,
  plan: EMPTY_PLAN,
  planDigest: planDigest(EMPTY_PLAN),
  manifestDigests: [],
  confirmation: {
    ...CONFIRMATION,
    planDigest: planDigest(EMPTY_PLAN),
    manifestDigest: null,
    results: [],
    inventory: REPORTED,
  },
};

function withConfirm(change: Partial<Confirmation>): JudgeInput {
  return { ...TRUE_INPUT, confirmation: { ...CONFIRMATION, ...change } };
}
function withFresh(change: Partial<Inventory>): JudgeInput {
  return withConfirm({ inventory: { ...FRESH, ...change } });
}
function withResults(...results: ItemResult[]): JudgeInput {
  return withConfirm({ results });
}

test('a true confirmation becomes evidence that holds every fact [A10]', () => {
  const judged = judge(TRUE_INPUT);
  assert.equal(judged.kind, 'evidence');
  if (judged.kind !== 'evidence') return;
  const { inventoryDigest, ...facts } = judged.evidence;
  assert.match(inventoryDigest, /^[0-9a-f]{64}$/);
  assert.deepEqual(facts, {
    vm: VM,
    run: RUN,
    ...SESSION,
    planDigest: planDigest(PLAN),
    manifestDigests: [MANIFEST_1, MANIFEST_2],
    items: [
      { item: 'bundle/demo', fromVersion: '1.0.0', version: '1.1.0', checkPassed: true },
      { item: 'debian/jq:amd64', fromVersion: '1.6-2', version: '1.6-3', checkPassed: null },
    ],
    leftOut: [],
    health: [],
    vendors: [{ vendor: 'own', checkedAtMs: 5, fresh: true }],
    judgedAtMs: 1000,
  });
});

test('evidence names the license checks behind what was installed, as they were handed in [A15 X2]', () => {
  const license = {
    ...{ license: 'acme', code: 'SERVER_AWAY', lease: 'seat-1' },
    ...{ saidAtMs: 900, expiresAtMs: 950, isInGrace: true },
  };
  const judged = judge({ ...TRUE_INPUT, licenses: [license] });
  assert.deepEqual(judged.kind === 'evidence' && judged.evidence.licenses, [license]);
  const free = judge({ ...TRUE_INPUT, licenses: [] });
  assert.equal(free.kind === 'evidence' && 'licenses' in free.evidence, false);
});

test('an empty plan of this run is evidence too, with no manifest [A10]', () => {
  assert.equal(judge(EMPTY_INPUT).kind, 'evidence');
});

test('a package is believed whose vendor or guest names no architecture [A10]', () => {
  const { arch: _arch, ...anyArch } = JQ;
  assert.equal(judge(withFresh({ products: [DEMO, anyArch] })).kind, 'evidence');
});

test("another architecture's version of a package does not count against the plan [A10]", () => {
  assert.equal(judge(withFresh({ products: [DEMO, JQ, { ...JQ, arch: 'i386', version: '1.5' }] })).kind, 'evidence');
});

test('a product that vanished without being in the plan is no reason to refuse [A10]', () => {
  assert.equal(judge(withFresh({ products: [DEMO, JQ] })).kind, 'evidence');
});

const LEFT: LeftOut = {
  vendor: 'debian',
  ecosystem: 'debian',
  product: 'nginx',
  version: '1.22-2',
  arch: 'amd64',
  kind: 'security',
  why: 'unsatisfiable',
  reason: 'it needs libfoo (>= 2), which is not on offer',
};

/** The same input with another plan, both full and empty ones. */
function withPlan(base: JudgeInput, change: Partial<Plan>, policy: Partial<JudgePolicy> = {}): JudgeInput {
  const plan = { ...base.plan, ...change };
  const digest = planDigest(plan);
  const confirmation = { ...base.confirmation, planDigest: digest };
  return { ...base, plan, planDigest: digest, confirmation, policy: { ...base.policy, ...policy } };
}

const codeOf = (input: JudgeInput): string => {
  const judged = judge(input);
  return judged.kind === 'evidence' ? 'evidence' : judged.code;
};

test('a security update that cannot be installed keeps the VM gated, also with nothing else to do [A7 A11]', () => {
  for (const base of [TRUE_INPUT, EMPTY_INPUT]) {
    const judged = judge(withPlan(base, { leftOut: [LEFT, { ...LEFT, product: 'jq' }] }));
    assert.equal(judged.kind, 'refused');
    if (judged.kind !== 'refused') return;
    assert.equal(judged.code, 'left-out');
    assert.match(judged.detail, /nginx 1\.22-2 is left out, it needs libfoo .* \(2 in all\)/);
    assert.equal(codeOf(withPlan(base, { leftOut: [LEFT] }, { leftOut: 'admit' })), 'evidence');
  }
});

test('what is left out without a hole, or by a hold, is no reason to stay gated; a failure before is', () => {
  const leave = (change: Partial<LeftOut>) => codeOf(withPlan(EMPTY_INPUT, { leftOut: [{ ...LEFT, ...change }] }));
  assert.equal(leave({ kind: 'fix' }), 'evidence');
  assert.equal(leave({ why: 'held' }), 'evidence');
  assert.equal(leave({ why: 'failed-before', kind: 'fix' }), 'left-out');
});

test('what was left out is in the evidence', () => {
  const judged = judge(withPlan(EMPTY_INPUT, { leftOut: [{ ...LEFT, why: 'held' }] }));
  assert.ok(judged.kind === 'evidence');
  const { version, kind, reason } = LEFT;
  assert.deepEqual(judged.evidence.leftOut, [{ item: 'debian/nginx:amd64', version, kind, why: 'held', reason }]);
});

test('a plan on old metadata opens only where the policy goes by it, and the age is in the evidence', () => {
  const old = [{ vendor: 'own', checkedAtMs: 5, fresh: false }];
  assert.equal(codeOf(withPlan(EMPTY_INPUT, { vendors: old })), 'metadata-old');
  const judged = judge(withPlan(EMPTY_INPUT, { vendors: old }, { vendorAway: 'admit' }));
  assert.ok(judged.kind === 'evidence');
  assert.deepEqual(judged.evidence.vendors, old);
});

test('metadata may age while a run takes its time, but not without end, and not backwards', () => {
  const { metadataAgeMaxMs, runDeadlineMs } = DEFAULT_POLICY;
  const after = (nowMs: number) => codeOf({ ...EMPTY_INPUT, nowMs: 5 + nowMs });
  assert.equal(after(metadataAgeMaxMs + runDeadlineMs), 'evidence');
  assert.equal(after(metadataAgeMaxMs + runDeadlineMs + 1), 'metadata-old');
  const checkedLater = [{ vendor: 'own', checkedAtMs: 3_600_000, fresh: true }];
  assert.equal(codeOf(withPlan(EMPTY_INPUT, { vendors: checkedLater }, { vendorAway: 'admit' })), 'metadata-old');
  const aStep = [{ vendor: 'own', checkedAtMs: 60_000, fresh: true }];
  assert.equal(codeOf(withPlan(EMPTY_INPUT, { vendors: aStep })), 'evidence');
});

test('a VM whose policy asks for its disk is believed only when that bears it out [A3 A10]', () => {
  const base = withPlan(EMPTY_INPUT, {}, { verify: 'disk' });
  const codeWith = (disk: JudgeInput['disk']) => {
    const judged = judge(disk === undefined ? base : { ...base, disk });
    return judged.kind === 'refused' ? judged.code : judged.evidence.disk;
  };
  assert.equal(codeWith(undefined), 'disk-unread', 'nobody looked');
  assert.equal(codeWith({ kind: 'unread', detail: 'LVM' }), 'disk-unread');
  assert.equal(codeWith({ kind: 'differs', detail: 'jq 1 -> 2' }), 'disk-mismatch');
  assert.deepEqual(codeWith({ kind: 'agrees', matching: 7, unread: 1 }), { matching: 7, unread: 1 });
  const unasked = judge({ ...withPlan(EMPTY_INPUT, {}), disk: { kind: 'differs', detail: 'x' } });
  assert.equal(unasked.kind === 'refused' && unasked.code, 'disk-mismatch', 'what was seen is not forgotten');
});

test('a VM whose policy asks for health is believed only with a good answer for each check [A11]', () => {
  const health = ['port:80', 'service:web.service'];
  const answering = (...answers: readonly (readonly [check: string, isHealthy: boolean])[]) => {
    const given = answers.map(([check, isHealthy]) => ({ check, isHealthy, detail: 'as it is' }));
    const base = withPlan(EMPTY_INPUT, {}, { health });
    return judge({ ...base, confirmation: { ...base.confirmation, health: given } });
  };
  const codes = (judged: ReturnType<typeof judge>) => (judged.kind === 'evidence' ? 'evidence' : judged.code);
  assert.equal(codeOf(withPlan(EMPTY_INPUT, {}, { health })), 'health-missing', 'an agent that knows no checks');
  assert.equal(codes(answering(['port:80', true])), 'health-missing');
  assert.equal(codes(answering(['port:80', true], ['service:web.service', false])), 'health-failed');
  assert.equal(
    codes(answering(['port:80', true], ['port:80', false], ['service:web.service', true])),
    'health-failed',
    'a second answer does not mend the first, nor the first the second',
  );
  const judged = answering(['service:web.service', true], ['port:80', true], ['port:443', false]);
  assert.ok(judged.kind === 'evidence', 'what nobody asked for is of no interest');
  assert.deepEqual(judged.evidence.health, health);
});

const otherRun = 'c'.repeat(32) as RunId;
const otherDigest = '9'.repeat(64) as Digest;
const AGENT: PlanItem = {
  ...BUNDLE,
  id: 'agent/pratique-agent',
  release: { ...BUNDLE.release, ecosystem: 'agent', product: 'pratique-agent', install: { action: 'agent' } },
};
const AGENT_PLAN: Plan = { ...PLAN, items: [AGENT] };
const AGENT_INPUT: JudgeInput = {
  ...TRUE_INPUT,
  plan: AGENT_PLAN,
  planDigest: planDigest(AGENT_PLAN),
  confirmation: {
    ...CONFIRMATION,
    planDigest: planDigest(AGENT_PLAN),
    results: [{ item: AGENT.id, outcome: 'installed', durationMs: 1 }],
    inventory: { ...FRESH, agent: { version: '1.1.0', digest: null } },
  },
};

function withAgent(digest: Digest | null): JudgeInput {
  const inventory = { ...FRESH, agent: { version: '1.1.0', digest } };
  return { ...AGENT_INPUT, confirmation: { ...AGENT_INPUT.confirmation, inventory } };
}

test('an update of the agent is believed by version and digest of the running one [A10]', () => {
  assert.equal(judge(AGENT_INPUT).kind, 'evidence');
  assert.equal(judge(withAgent(AGENT.release.artifact.digest)).kind, 'evidence');
});

/** Each row flips one thing of a confirmation that is believed. */
const FLIPPED: readonly (readonly [string, JudgeCode, JudgeInput])[] = [
  ['the running agent is another file than the one of the plan', 'version-differs', withAgent(otherDigest)],
  ['the plan is of another VM', 'plan-mismatch', { ...TRUE_INPUT, vm: 'web-2' as VmId }],
  ['the plan is of another run', 'plan-mismatch', { ...TRUE_INPUT, run: otherRun }],
  ['the journaled digest is of another plan', 'plan-mismatch', { ...TRUE_INPUT, planDigest: otherDigest }],
  ['an item was dropped from the plan since', 'plan-mismatch', { ...TRUE_INPUT, plan: { ...PLAN, items: [BUNDLE] } }],
  [
    'a version in the plan was changed since',
    'plan-mismatch',
    {
      ...TRUE_INPUT,
      plan: { ...PLAN, items: [{ ...BUNDLE, release: { ...BUNDLE.release, version: '1.0.0' } }, PACKAGE] },
    },
  ],
  ['there is no session any more', 'session-ended', { ...TRUE_INPUT, session: null }],
  [
    'the present session has another nonce',
    'session-ended',
    { ...TRUE_INPUT, session: { ...SESSION, nonce: 'd'.repeat(32) } },
  ],
  [
    'the present session is of another boot',
    'session-ended',
    { ...TRUE_INPUT, session: { ...SESSION, boot: 'other' } },
  ],
  ['it came with another nonce', 'session-ended', withConfirm({ nonce: 'd'.repeat(32) })],
  ['it came from another boot', 'session-ended', withConfirm({ boot: 'other' })],
  ['it is for another run', 'wrong-run', withConfirm({ run: otherRun })],
  ['it is for another plan', 'wrong-plan', withConfirm({ planDigest: otherDigest })],
  ["it is for the empty plan's digest", 'wrong-plan', withConfirm({ planDigest: planDigest(EMPTY_PLAN) })],
  ['it names an earlier manifest of the run', 'wrong-manifest', withConfirm({ manifestDigest: MANIFEST_1 })],
  ['it names a manifest never offered', 'wrong-manifest', withConfirm({ manifestDigest: otherDigest })],
  ['it names no manifest although one was offered', 'wrong-manifest', withConfirm({ manifestDigest: null })],
  ['no manifest was offered at all', 'wrong-manifest', { ...TRUE_INPUT, manifestDigests: [] }],
  [
    'no manifest was offered and it names none',
    'wrong-manifest',
    { ...withConfirm({ manifestDigest: null }), manifestDigests: [] },
  ],
  [
    'an empty plan comes with a manifest',
    'wrong-manifest',
    { ...EMPTY_INPUT, confirmation: { ...EMPTY_INPUT.confirmation, manifestDigest: MANIFEST_1 } },
  ],
  ['there are no results', 'result-missing', withResults()],
  ['one item has no result', 'result-missing', withResults(DEMO_RESULT)],
  [
    'a result is for an unknown item',
    'result-unknown',
    withResults(DEMO_RESULT, JQ_RESULT, { ...JQ_RESULT, item: 'x' }),
  ],
  [
    'an empty plan has a result',
    'result-unknown',
    { ...EMPTY_INPUT, confirmation: { ...EMPTY_INPUT.confirmation, results: [DEMO_RESULT] } },
  ],
  ['an item has two results', 'result-repeated', withResults(DEMO_RESULT, JQ_RESULT, DEMO_RESULT)],
  [
    'an item failed and was installed',
    'result-repeated',
    withResults(DEMO_RESULT, { ...DEMO_RESULT, outcome: 'failed' }, JQ_RESULT),
  ],
  ['an item failed', 'not-installed', withResults({ ...DEMO_RESULT, outcome: 'failed', code: 'no-space' }, JQ_RESULT)],
  ['an item was skipped', 'not-installed', withResults(DEMO_RESULT, { ...JQ_RESULT, outcome: 'skipped' })],
  ['a check failed', 'check-failed', withResults({ ...DEMO_RESULT, checkPassed: false }, JQ_RESULT)],
  [
    'a check failed that nobody asked for',
    'check-failed',
    withResults(DEMO_RESULT, { ...JQ_RESULT, checkPassed: false }),
  ],
  [
    'a check was not run',
    'check-missing',
    withResults({ item: BUNDLE.id, outcome: 'installed', durationMs: 1 }, JQ_RESULT),
  ],
  ['the OS is another', 'os-changed', withFresh({ os: { ...FRESH.os, id: 'ubuntu' } })],
  ['the OS version is another', 'os-changed', withFresh({ os: { ...FRESH.os, versionId: '11' } })],
  ['the architecture is another', 'os-changed', withFresh({ os: { ...FRESH.os, arch: 'arm64' } })],
  ['a reboot is required', 'reboot-required', withFresh({ rebootRequired: true })],
  [
    'a reboot is required although the plan is empty',
    'reboot-required',
    { ...EMPTY_INPUT, confirmation: { ...EMPTY_INPUT.confirmation, inventory: { ...FRESH, rebootRequired: true } } },
  ],
  ['a product of the plan is gone', 'product-missing', withFresh({ products: [JQ, LIBC] })],
  [
    'a product is there for another architecture only',
    'product-missing',
    withFresh({ products: [DEMO, { ...JQ, arch: 'i386' }] }),
  ],
  [
    'a product is there in another ecosystem only',
    'product-missing',
    withFresh({ products: [{ ...DEMO, ecosystem: 'debian' }, JQ] }),
  ],
  [
    'a product is broken at the right version',
    'product-broken',
    withFresh({ products: [{ ...DEMO, state: 'broken' }, JQ] }),
  ],
  ['a product is at the old version', 'version-differs', withFresh({ products: [{ ...DEMO, version: '1.0.0' }, JQ] })],
  ['a product is at a newer version', 'version-differs', withFresh({ products: [{ ...DEMO, version: '1.2.0' }, JQ] })],
  ['a version differs by a space', 'version-differs', withFresh({ products: [{ ...DEMO, version: '1.1.0 ' }, JQ] })],
  [
    'a product is listed at two versions',
    'version-differs',
    withFresh({ products: [DEMO, { ...DEMO, version: '1.0.0' }, JQ] }),
  ],
  [
    'a product is listed broken beside right',
    'product-broken',
    withFresh({ products: [DEMO, { ...DEMO, state: 'broken' }, JQ] }),
  ],
  [
    'the running agent is the old one',
    'version-differs',
    {
      ...AGENT_INPUT,
      confirmation: { ...AGENT_INPUT.confirmation, inventory: FRESH },
    },
  ],
  [
    'another product went backwards',
    'went-backwards',
    withFresh({ products: [DEMO, JQ, { ...LIBC, version: '2.35' }] }),
  ],
  [
    'another product has an unreadable version',
    'version-unreadable',
    withFresh({ products: [DEMO, JQ, { ...LIBC, version: '~' }] }),
  ],
];

for (const [what, code, input] of FLIPPED) {
  test(`a confirmation is refused when ${what} [A10] [A11]`, () => {
    const judged = judge(input);
    assert.equal(judged.kind, 'refused');
    if (judged.kind !== 'refused') return;
    assert.equal(judged.code, code);
    assert.ok(judged.detail.length > 10, 'the detail is for a reader [X8]');
  });
}

test('without the report from before the install, its rules are not asked and the others hold [A10]', () => {
  const changed = withFresh({ os: { ...FRESH.os, id: 'ubuntu' }, products: [DEMO, JQ, { ...LIBC, version: '1' }] });
  assert.equal(judge({ ...changed, reported: null }).kind, 'evidence');
  assert.equal(judge({ ...withFresh({ products: [JQ] }), reported: null }).kind, 'refused');
});

test('only what the judge made is evidence, and nobody can change it afterwards [A11]', () => {
  const judged = judge(TRUE_INPUT);
  assert.equal(judged.kind, 'evidence');
  if (judged.kind !== 'evidence') return;
  assert.equal(isEvidence(judged.evidence), true);
  assert.equal(isEvidence({ ...judged.evidence }), false);
  assert.equal(isEvidence(structuredClone(judged.evidence)), false);
  assert.equal(isEvidence(JSON.parse(JSON.stringify(judged.evidence))), false);
  assert.equal(isEvidence(Object.create(judged.evidence)), false);
  assert.equal(isEvidence(new Proxy(judged.evidence, {})), false);
  for (const other of [null, undefined, 1, 'evidence', [], {}]) assert.equal(isEvidence(other), false);
  assert.ok(Object.isFrozen(judged.evidence) && Object.isFrozen(judged.evidence.items));
  assert.ok(Object.isFrozen(judged.evidence.items[0]));
});

test("a guest's words in a refusal are fit to show [X8]", () => {
  const judged = judge(withFresh({ products: [{ ...DEMO, version: '1.0\u001b[2J\u202e' }, JQ] }));
  assert.equal(judged.kind, 'refused');
  if (judged.kind === 'refused') assert.doesNotMatch(judged.detail, /[\p{Cc}\p{Cf}]/u);
});

/** The rules once more, written as one flat conjunction, to hold against the judge. */
function keepsEveryRule(input: JudgeInput): boolean {
  const { plan, confirmation: said, session, manifestDigests, reported } = input;
  const fresh = said.inventory;
  const targets = plan.items.map(({ release }) =>
    fresh.products.filter((p) => p.ecosystem === release.ecosystem && p.product === release.product),
  );
  return (
    [
      plan.vm === input.vm,
      plan.run === input.run && said.run === input.run,
      planDigest(plan) === input.planDigest && said.planDigest === input.planDigest,
      session !== null && said.nonce === session.nonce && said.boot === session.boot,
      said.manifestDigest === (manifestDigests.at(-1) ?? null),
      plan.items.length === 0 || said.manifestDigest !== null,
      said.results.length === plan.items.length,
      plan.items.every((item) => said.results.filter((result) => result.item === item.id).length === 1),
      said.results.every((result) => result.outcome === 'installed' && result.checkPassed !== false),
      fresh.rebootRequired === false,
      reported === null || (['id', 'versionId', 'arch'] as const).every((key) => fresh.os[key] === reported.os[key]),
      targets.every((found) => found.length > 0 && found.every((p) => p.state === 'installed')),
      targets.every((found, at) => found.every((p) => p.version === plan.items[at]?.release.version)),
    ] as const
  ).every((rule) => rule);
}

test('whatever is confirmed, evidence implies every rule, and only refusals come otherwise [A10]', () => {
  const versions = fc.constantFrom('1.0.0', '1.1.0', '1.6-2', '1.6-3');
  const product = fc.record({
    ecosystem: fc.constantFrom('bundle' as const, 'debian' as const),
    product: fc.constantFrom('demo', 'jq'),
    version: versions,
    state: fc.constantFrom('installed' as const, 'installed' as const, 'broken' as const),
  });
  const result = fc.record({
    item: fc.constantFrom(BUNDLE.id, PACKAGE.id, 'x'),
    outcome: fc.constantFrom('installed' as const, 'installed' as const, 'failed' as const, 'skipped' as const),
    checkPassed: fc.boolean(),
    durationMs: fc.constant(1),
  });
  // Mostly the truth, so that evidence comes up often enough to mean something.
  const mostly = <T>(truth: T, other: fc.Arbitrary<T>) =>
    fc.oneof({ weight: 9, arbitrary: fc.constant(truth) }, { weight: 1, arbitrary: other });
  const digests = fc.constantFrom(MANIFEST_1, MANIFEST_2, otherDigest);
  const inputs = fc.record({
    session: mostly<JudgeInput['session']>(SESSION, fc.constantFrom(null, { ...SESSION, nonce: 'e'.repeat(32) })),
    manifestDigests: mostly<readonly Digest[]>([MANIFEST_1, MANIFEST_2], fc.array(digests, { maxLength: 2 })),
    run: mostly(RUN, fc.constant(otherRun)),
    nonce: mostly(SESSION.nonce, fc.constant('f'.repeat(32))),
    planDigest: mostly(planDigest(PLAN), fc.constant(otherDigest)),
    manifestDigest: mostly<Digest | null>(MANIFEST_2, fc.option(digests)),
    results: mostly<readonly ItemResult[]>([DEMO_RESULT, JQ_RESULT], fc.array(result, { maxLength: 3 })),
    products: mostly<InstalledProduct[]>([DEMO, JQ], fc.array(product, { maxLength: 4 })),
    rebootRequired: mostly(false, fc.constant(true)),
  });
  let believed = 0;
  fc.assert(
    fc.property(inputs, ({ session, manifestDigests, products, rebootRequired, ...said }) => {
      const inventory = { ...FRESH, products, rebootRequired };
      const input = { ...TRUE_INPUT, session, manifestDigests, confirmation: { ...CONFIRMATION, ...said, inventory } };
      const judged = judge(input);
      if (judged.kind === 'evidence') believed += 1;
      assert.equal(judged.kind === 'evidence', keepsEveryRule(input));
    }),
    { seed: 20, numRuns: 3000 },
  );
  assert.ok(believed > 300, `only ${believed} of 3000 were believed, so the property said little`);
});
