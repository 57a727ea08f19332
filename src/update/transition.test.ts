// Every state answers every event; the moves that matter most are named one by one.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DEFAULT_POLICY } from '../model/policy.ts';
import type { RunEvent } from './event.ts';
import {
  confirm,
  EVENTS,
  evidence,
  grant,
  live,
  MANIFEST,
  OTHER_RUN,
  offered,
  otherBoot,
  PLAN,
  RUN,
  SAMPLE_STEP,
  STATES,
  session,
} from './samples.ts';
import { isGateOpen, type RunState, type RunStateKind } from './state.ts';
import { newRun, type Outcome, transition } from './transition.ts';

const next = (state: RunState, event: RunEvent, policy = DEFAULT_POLICY): Outcome =>
  transition({ step: SAMPLE_STEP, state }, event, policy);

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
  assert.equal(
    transition({ step: SAMPLE_STEP + 1, state }, { kind: 'opened', step: SAMPLE_STEP }, DEFAULT_POLICY).kind,
    'ignored',
  );
  movedTo(transition({ step: SAMPLE_STEP, state }, { kind: 'opened', step: SAMPLE_STEP }, DEFAULT_POLICY), 'connected');
});

test('an up-to-date VM is judged without a drive and plugged in [A13]', () => {
  const asked = next(
    { kind: 'planning', run: newRun({ run: RUN, atMs: 1 }), session, phase: 'comparing' },
    { kind: 'planned', step: SAMPLE_STEP, plan: { digest: PLAN, itemCount: 0, sizeBytes: 0 } },
  );
  const judging = movedTo(asked, 'judging');
  assert.deepEqual(effectsOf(asked), ['send ask-confirm']);
  const judged = next(judging, { kind: 'judged', step: SAMPLE_STEP, evidence });
  movedTo(judged, 'opening');
  assert.deepEqual(effectsOf(judged), ['open-gate']);
});

test('the drive is asked back, taken away, and only then is the cable plugged in [A4 A11]', () => {
  const judged = next({ kind: 'judging', run: offered, session }, { kind: 'judged', step: SAMPLE_STEP, evidence });
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
  const detached = next(movedTo(released, 'opening'), { kind: 'drive-detached', step: SAMPLE_STEP });
  assert.deepEqual(effectsOf(detached), ['open-gate']);
});

test('a guest that will not let go of the drive loses it by surprise', () => {
  const outcome = next(
    { kind: 'opening', run: offered, session, phase: 'releasing', grant },
    { kind: 'deadline', step: SAMPLE_STEP, waitedMs: 1 },
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
    step: SAMPLE_STEP,
    reason: { kind: 'vendor-unavailable', vendor: 'v', detail: 'd' },
  };
  movedTo(next(state, away), 'quarantined');
  const opening = movedTo(next(state, away, { ...DEFAULT_POLICY, infrastructure: true }), 'opening');
  assert.ok(opening.kind === 'opening' && opening.grant.kind === 'override');
  const refused: RunEvent = {
    kind: 'plan-failed',
    step: SAMPLE_STEP,
    reason: { kind: 'plan-refused', code: 'x', detail: 'd' },
  };
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
