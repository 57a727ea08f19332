// What is said of versions that are left out and of old metadata, in the timeline, in `why`, and of which VMs.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { REMARKS_MAX } from '../base/limits.ts';
import type { EvidenceLeftOut } from '../model/evidence.ts';
import type { Plan } from '../model/plan.ts';
import { oldMetadataText, planNotes, remarksOf } from './remarks.ts';
import { evidence, offered, RUN } from './samples.ts';
import type { RunState } from './state.ts';
import { explainQuarantine } from './why.ts';

const HOUR_MS = 3_600_000;
const left: EvidenceLeftOut = {
  item: 'debian/nginx:amd64',
  version: '2',
  kind: 'security',
  why: 'held',
  reason: "it is held at 1 by this VM's policy",
};
const connected = (change: Partial<typeof evidence>): RunState => ({
  kind: 'connected',
  run: offered,
  session: null,
  grant: { kind: 'evidence', evidence: { ...evidence, ...change } },
  trouble: null,
});

test('a VM that evidence opened is remarked upon for what it goes without, the first few in full', () => {
  assert.deepEqual(remarksOf(connected({})), [], 'evidence of the first version has no such list');
  const text = "debian/nginx:amd64 2 (security) is left out: it is held at 1 by this VM's policy";
  assert.deepEqual(remarksOf(connected({ leftOut: [left] })), [text]);
  const many = remarksOf(connected({ leftOut: Array.from({ length: REMARKS_MAX + 2 }, () => left) }));
  assert.equal(many.length, REMARKS_MAX + 1);
  assert.match(many.at(-1) ?? '', /^2 more versions left out: pratique vm plan vm1$/);
});

test('nothing is said of a VM that is off, that waits, or that an override opened', () => {
  assert.deepEqual(remarksOf({ kind: 'off' }), []);
  assert.deepEqual(remarksOf({ kind: 'booting', run: offered }), []);
  const grant = { kind: 'override', reason: 'r', actor: 'a' } as const;
  assert.deepEqual(remarksOf({ kind: 'connected', run: offered, session: null, grant, trouble: null }), []);
});

test('the age of metadata is that of the oldest which was not fresh, in whole hours, at the time of the judgement', () => {
  const vendors = (...ages: readonly (readonly [string, number, boolean])[]) => ({
    ...evidence,
    judgedAtMs: 100 * HOUR_MS,
    vendors: ages.map(([vendor, hours, fresh]) => ({ vendor, checkedAtMs: (100 - hours) * HOUR_MS, fresh })),
  });
  assert.equal(oldMetadataText(vendors(['a', 40, true])), null);
  const text = oldMetadataText(vendors(['a', 30, false], ['b', 49.2, false], ['c', 80, true]));
  assert.equal(text, 'vendor metadata 49 hours old (a, b)');
  assert.equal(oldMetadataText(vendors(['a', 0.2, false])), 'vendor metadata 1 hour old (a)');
  const opened = connected(vendors(['a', 30, false]));
  assert.deepEqual(remarksOf(opened), ['It was plugged in on vendor metadata 30 hours old (a)']);
});

test('the timeline warns of security updates that are left out, and tells of others', () => {
  const entry = { vendor: 'v', ecosystem: 'bundle', version: '2', why: 'unsatisfiable', reason: 'it needs x' } as const;
  const plan: Plan = {
    vm: evidence.vm,
    run: RUN,
    items: [],
    leftOut: [
      { ...entry, product: 'a', kind: 'security' },
      { ...entry, product: 'b', kind: 'fix' },
    ],
    vendors: [],
  };
  assert.deepEqual(planNotes(plan), [
    { kind: 'warning', text: 'bundle/a 2 (security) is left out: it needs x' },
    { kind: 'state', text: 'bundle/b 2 is left out: it needs x' },
  ]);
  assert.equal(
    planNotes({ ...plan, leftOut: Array.from({ length: 9 }, () => ({ ...entry, product: 'a', kind: 'fix' })) }).length,
    REMARKS_MAX + 1,
  );
});

test('a VM that is gated for what it cannot have is not told that its guest lied', () => {
  const say = (code: string) =>
    explainQuarantine(evidence.vm, { kind: 'confirm-refused', code, detail: 'nginx 2 is left out, it needs x' }, true);
  assert.match(say('left-out').reason, /^What it should have cannot be installed: nginx 2/);
  assert.match(say('left-out').next, /vm set vm1 leftOut=admit/);
  assert.match(say('metadata-old').reason, /^Whether it is up to date is not known any more/);
  assert.match(say('wrong-run').reason, /was not believed/, 'positive control');
});
