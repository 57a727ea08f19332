// Every state answers every event; the moves that matter most are named one by one.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Digest } from '../base/digest-text.ts';
import type { AgentMessageOf } from '../guest/messages.ts';
import type { EvidenceFacts } from '../model/evidence.ts';
import type { RunId, VmId } from '../model/ids.ts';
import { DEFAULT_POLICY } from '../model/policy.ts';
import type { RunEvent } from './event.ts';
import { type Grant, isGateOpen, type Run, type RunState, type RunStateKind } from './state.ts';
import { newRun, type Outcome, transition } from './transition.ts';

// The casts hold: these have the form that the brands promise.
const RUN = '0'.repeat(32) as RunId;
const OTHER_RUN = '1'.repeat(32) as RunId;
const PLAN = 'a'.repeat(64) as Digest;
const MANIFEST = 'b'.repeat(64) as Digest;
const session = { nonce: 'c'.repeat(32), boot: '00000000-0000-0000-0000-000000000001' };
const otherBoot = { nonce: 'd'.repeat(32), boot: '00000000-0000-0000-0000-000000000002' };
const evidence: EvidenceFacts = {
  vm: 'vm1' as VmId,
  run: RUN,
  ...session,
  planDigest: PLAN,
  manifestDigests: [MANIFEST],
  inventoryDigest: PLAN,
  items: [],
  vendors: [],
  judgedAtMs: 1,
};
const grant: Grant = { kind: 'evidence', evidence };
const planned: Run = { ...newRun({ run: RUN, atMs: 1 }), plan: { digest: PLAN, itemCount: 1, sizeBytes: 10 } };
const offered: Run = { ...planned, manifests: [MANIFEST], offersSent: 1 };
const live: Run = { ...offered, liveGrant: grant };

const STATES: readonly RunState[] = [
  { kind: 'off' },
  { kind: 'staged', itemCount: 1, sizeBytes: 10 },
  { kind: 'booting', run: newRun({ run: RUN, atMs: 1 }) },
  { kind: 'reporting', run: newRun({ run: RUN, atMs: 1 }), session },
  { kind: 'planning', run: newRun({ run: RUN, atMs: 1 }), session, phase: 'comparing' },
  { kind: 'planning', run: planned, session, phase: 'fetching' },
  { kind: 'offering', run: planned, session, isDriveAttached: false },
  { kind: 'offering', run: offered, session, isDriveAttached: true },
  { kind: 'installing', run: offered, session },
  { kind: 'installing', run: live, session },
  { kind: 'rebooting', run: offered, session, phase: 'releasing' },
  { kind: 'rebooting', run: offered, session, phase: 'detaching' },
  { kind: 'rebooting', run: offered, session, phase: 'waiting' },
  { kind: 'judging', run: offered, session },
  { kind: 'opening', run: offered, session, phase: 'releasing', grant },
  { kind: 'opening', run: offered, session, phase: 'detaching', grant },
  { kind: 'opening', run: offered, session, phase: 'plugging', grant },
  { kind: 'connected', run: offered, session, grant, trouble: null },
  { kind: 'connected', run: offered, session: null, grant, trouble: null },
  {
    kind: 'quarantined',
    run: offered,
    session,
    reason: { kind: 'agent-silent', waitedMs: 1, state: 'booting' },
    isRunning: true,
  },
  {
    kind: 'quarantined',
    run: offered,
    session: null,
    reason: { kind: 'host-failure', step: 'start-vm', detail: 'x' },
    isRunning: false,
  },
];

// The cast holds: the transition never looks into the confirmation, the judge does.
const confirm = {} as AgentMessageOf<'confirm'>;
const EVENTS: readonly RunEvent[] = [
  { kind: 'start', run: OTHER_RUN, atMs: 2 },
  { kind: 'stop', force: false },
  { kind: 'retry', run: OTHER_RUN, atMs: 2 },
  { kind: 'admit', reason: 'r', actor: 'a' },
  { kind: 'update', run: OTHER_RUN, atMs: 2 },
  { kind: 'stage' },
  { kind: 'reset', isStopped: true, run: OTHER_RUN, atMs: 2 },
  { kind: 'reset', isStopped: false, run: OTHER_RUN, atMs: 2 },
  { kind: 'exited', detail: 'x', isGuestsWish: true },
  { kind: 'exited', detail: 'x', isGuestsWish: false },
  { kind: 'monitor-lost', detail: 'x' },
  { kind: 'agent-opened', session, run: OTHER_RUN, atMs: 2 },
  { kind: 'agent-opened', session: otherBoot, run: OTHER_RUN, atMs: 2 },
  { kind: 'inventory', session },
  { kind: 'drive', session, state: 'verified', manifestDigest: MANIFEST, code: '', detail: '' },
  { kind: 'drive', session, state: 'refused', manifestDigest: MANIFEST, code: 'x', detail: 'y' },
  { kind: 'drive', session, state: 'released', manifestDigest: MANIFEST, code: '', detail: '' },
  { kind: 'installed', session, manifestDigest: MANIFEST, results: [], rebootRequired: false },
  { kind: 'installed', session, manifestDigest: MANIFEST, results: [], rebootRequired: true },
  {
    kind: 'installed',
    session,
    manifestDigest: MANIFEST,
    results: [{ item: 'i', outcome: 'failed', durationMs: 1 }],
    rebootRequired: false,
  },
  { kind: 'confirm', session, confirm },
  { kind: 'confirm', session: otherBoot, confirm },
  { kind: 'misbehaved', code: 'x', detail: 'y' },
  { kind: 'planned', step: 5, plan: { digest: PLAN, itemCount: 0, sizeBytes: 0 } },
  { kind: 'planned', step: 5, plan: { digest: PLAN, itemCount: 1, sizeBytes: 1 } },
  { kind: 'plan-failed', step: 5, reason: { kind: 'vendor-unavailable', vendor: 'v', detail: 'd' } },
  { kind: 'found-ungated', step: 5, detail: 'x' },
  { kind: 'fetched', step: 5 },
  { kind: 'staged', step: 5, itemCount: 1, sizeBytes: 1 },
  { kind: 'drive-attached', step: 5, manifestDigest: MANIFEST },
  { kind: 'drive-detached', step: 5 },
  { kind: 'judged', step: 5, evidence },
  { kind: 'judged-refused', step: 5, code: 'x', detail: 'y' },
  { kind: 'opened', step: 5 },
  { kind: 'effect-failed', step: 5, effect: 'x', detail: 'y', isRunning: true },
  { kind: 'effect-failed', step: 5, effect: 'x', detail: 'y', isRunning: false },
  { kind: 'deadline', step: 5, waitedMs: 1 },
];

const next = (state: RunState, event: RunEvent, policy = DEFAULT_POLICY): Outcome =>
  transition({ step: 5, state }, event, policy);

function movedTo(outcome: Outcome, kind: RunStateKind): RunState {
  assert.equal(outcome.kind, 'moved', JSON.stringify(outcome));
  if (outcome.kind !== 'moved') throw new Error('unreachable');
  assert.equal(outcome.state.kind, kind);
  return outcome.state;
}

const effectsOf = (outcome: Outcome): readonly string[] =>
  outcome.kind === 'moved'
    ? outcome.effects.map((effect) => (effect.kind === 'send' ? `send ${effect.body.type}` : effect.kind))
    : [];

test('every state answers every event, and no pair opens the gate but the two that may [A11]', () => {
  const opening = new Set<string>();
  let pairs = 0;
  for (const state of STATES) {
    for (const event of EVENTS) {
      const outcome = next(state, event);
      pairs += 1;
      if (outcome.kind !== 'moved') continue;
      if (effectsOf(outcome).includes('open-gate')) opening.add(`${state.kind} + ${event.kind}`);
      if (isGateOpen(outcome.state) && !isGateOpen(state))
        assert.equal(`${state.kind} + ${event.kind}`, 'opening + opened');
    }
  }
  assert.equal(pairs, STATES.length * EVENTS.length);
  // judging + judged would be here for an empty plan; the table's judging state has offered a drive.
  assert.deepEqual([...opening].sort(), ['opening + drive-detached']);
});

test('whatever leaves an open state for a closed one closes the gate [A2 A11]', () => {
  let closings = 0;
  for (const state of STATES.filter(isGateOpen)) {
    for (const event of EVENTS) {
      const outcome = next(state, event);
      if (outcome.kind !== 'moved' || isGateOpen(outcome.state)) continue;
      closings += 1;
      assert.ok(effectsOf(outcome).includes('close-gate'), `${state.kind} + ${event.kind} closes`);
    }
  }
  assert.ok(closings >= 8, `positive control: ${closings} pairs close`);
});

test('a guest reset closes the gate before the guest runs on [A2]', () => {
  for (const state of STATES) {
    const outcome = next(state, { kind: 'reset', isStopped: true, run: OTHER_RUN, atMs: 2 });
    if (outcome.kind !== 'moved') continue;
    const effects = effectsOf(outcome);
    assert.ok(
      effects.indexOf('close-gate') >= 0 && effects.indexOf('close-gate') < effects.indexOf('resume-vm'),
      state.kind,
    );
  }
});

test('an answer to an earlier step changes nothing', () => {
  const state: RunState = { kind: 'opening', run: offered, session, phase: 'plugging', grant };
  assert.equal(transition({ step: 6, state }, { kind: 'opened', step: 5 }, DEFAULT_POLICY).kind, 'ignored');
  movedTo(transition({ step: 5, state }, { kind: 'opened', step: 5 }, DEFAULT_POLICY), 'connected');
});

test('an up-to-date VM is judged without a drive and plugged in [A13]', () => {
  const asked = next(
    { kind: 'planning', run: newRun({ run: RUN, atMs: 1 }), session, phase: 'comparing' },
    { kind: 'planned', step: 5, plan: { digest: PLAN, itemCount: 0, sizeBytes: 0 } },
  );
  const judging = movedTo(asked, 'judging');
  assert.deepEqual(effectsOf(asked), ['send ask-confirm']);
  const judged = next(judging, { kind: 'judged', step: 5, evidence });
  movedTo(judged, 'opening');
  assert.deepEqual(effectsOf(judged), ['open-gate']);
});

test('the drive is asked back, taken away, and only then is the cable plugged in [A4 A11]', () => {
  const judged = next({ kind: 'judging', run: offered, session }, { kind: 'judged', step: 5, evidence });
  const releasing = movedTo(judged, 'opening');
  assert.deepEqual(effectsOf(judged), ['send release']);
  const released = next(releasing, {
    kind: 'drive',
    session,
    state: 'released',
    manifestDigest: MANIFEST,
    code: '',
    detail: '',
  });
  assert.deepEqual(effectsOf(released), ['detach-drive']);
  const detached = next(movedTo(released, 'opening'), { kind: 'drive-detached', step: 5 });
  assert.deepEqual(effectsOf(detached), ['open-gate']);
});

test('a guest that will not let go of the drive loses it by surprise', () => {
  const outcome = next(
    { kind: 'opening', run: offered, session, phase: 'releasing', grant },
    { kind: 'deadline', step: 5, waitedMs: 1 },
  );
  assert.deepEqual(effectsOf(outcome), ['detach-drive']);
});

test('a confirmation of another session is refused and changes nothing [A10]', () => {
  const state: RunState = { kind: 'judging', run: offered, session };
  const outcome = next(state, { kind: 'confirm', session: otherBoot, confirm });
  assert.equal(outcome.kind, 'denied');
  assert.deepEqual(effectsOf(next(state, { kind: 'confirm', session, confirm })), ['judge']);
});

test('a confirmation nobody asked for is refused [A10]', () => {
  for (const state of STATES.filter((each) => each.kind !== 'judging')) {
    assert.notEqual(next(state, { kind: 'confirm', session, confirm }).kind, 'moved', state.kind);
  }
});

test('an agent that comes back in the middle of an install gets the same drive again [X4]', () => {
  const opened = next(
    { kind: 'installing', run: offered, session },
    { kind: 'agent-opened', session: { ...session, nonce: 'e'.repeat(32) }, run: OTHER_RUN, atMs: 2 },
  );
  const reporting = movedTo(opened, 'reporting');
  const reported = next(reporting, { kind: 'inventory', session: { ...session, nonce: 'e'.repeat(32) } });
  const offering = movedTo(reported, 'offering');
  assert.deepEqual(effectsOf(reported), ['attach-drive']);
  assert.ok(offering.kind === 'offering' && offering.run.run === RUN);
});

test('QEMU that dies in the middle of a run is started again, gated, a bounded number of times [X4]', () => {
  let state: RunState = { kind: 'installing', run: offered, session };
  let starts = 0;
  for (let turn = 0; turn < 20; turn += 1) {
    const outcome = next(state, { kind: 'exited', detail: 'killed', isGuestsWish: false });
    if (outcome.kind !== 'moved') break;
    state = outcome.state;
    if (state.kind === 'quarantined') break;
    starts += 1;
    const effects = effectsOf(outcome);
    assert.ok(effects.indexOf('close-gate') < effects.indexOf('start-vm') && effects.includes('resume-vm'));
  }
  assert.equal(state.kind, 'quarantined');
  assert.equal(starts, 5);
});

test('a VM that the operator stops in the middle of a run stays off', () => {
  const stopping = next({ kind: 'installing', run: offered, session }, { kind: 'stop', force: true });
  const state = movedTo(stopping, 'installing');
  movedTo(next(state, { kind: 'exited', detail: 'quit', isGuestsWish: false }), 'off');
});

test('a kexec that no reset announced closes the gate [A2]', () => {
  const outcome = next(
    { kind: 'connected', run: offered, session, grant, trouble: null },
    { kind: 'agent-opened', session: otherBoot, run: OTHER_RUN, atMs: 2 },
  );
  const state = movedTo(outcome, 'reporting');
  assert.ok(effectsOf(outcome).includes('close-gate'));
  assert.ok(state.kind === 'reporting' && state.run.run === OTHER_RUN);
});

test('a live update keeps the cable plugged in, whether it ends well or not [A12]', () => {
  const updating = next(
    { kind: 'connected', run: offered, session, grant, trouble: null },
    { kind: 'update', run: OTHER_RUN, atMs: 2 },
  );
  assert.ok(isGateOpen(movedTo(updating, 'reporting')));
  const failed = next(
    { kind: 'installing', run: live, session },
    {
      kind: 'installed',
      session,
      manifestDigest: MANIFEST,
      results: [{ item: 'i', outcome: 'failed', durationMs: 1 }],
      rebootRequired: false,
    },
  );
  const state = movedTo(failed, 'connected');
  assert.ok(state.kind === 'connected' && state.trouble?.kind === 'install-failed' && state.grant === grant);
  assert.ok(!effectsOf(failed).includes('close-gate'));
});

test('an infrastructure VM is admitted, audited, when no vendor can be reached; any other stays gated', () => {
  const state: RunState = { kind: 'planning', run: newRun({ run: RUN, atMs: 1 }), session, phase: 'comparing' };
  const away: RunEvent = {
    kind: 'plan-failed',
    step: 5,
    reason: { kind: 'vendor-unavailable', vendor: 'v', detail: 'd' },
  };
  movedTo(next(state, away), 'quarantined');
  const opening = movedTo(next(state, away, { ...DEFAULT_POLICY, infrastructure: true }), 'opening');
  assert.ok(opening.kind === 'opening' && opening.grant.kind === 'override');
  const refused: RunEvent = { kind: 'plan-failed', step: 5, reason: { kind: 'plan-refused', code: 'x', detail: 'd' } };
  movedTo(next(state, refused, { ...DEFAULT_POLICY, infrastructure: true }), 'quarantined');
});

test('a quarantine about silence ends when the agent comes back; one about content does not', () => {
  const silent: RunState = {
    kind: 'quarantined',
    run: offered,
    session: null,
    reason: { kind: 'agent-silent', waitedMs: 1, state: 'booting' },
    isRunning: true,
  };
  movedTo(next(silent, { kind: 'agent-opened', session, run: OTHER_RUN, atMs: 2 }), 'reporting');
  const forged: RunState = { ...silent, reason: { kind: 'confirm-refused', code: 'x', detail: 'y' } };
  movedTo(next(forged, { kind: 'agent-opened', session, run: OTHER_RUN, atMs: 2 }), 'quarantined');
});

test('a reboot is refused where the policy forbids it', () => {
  const outcome = next(
    { kind: 'installing', run: offered, session },
    { kind: 'installed', session, manifestDigest: MANIFEST, results: [], rebootRequired: true },
    { ...DEFAULT_POLICY, allowReboot: false },
  );
  movedTo(outcome, 'quarantined');
});
