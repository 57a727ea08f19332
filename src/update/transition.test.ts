// Every state answers every event; the moves that matter most are named one by one.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { REBOOTS_MAX, REPLANS_MAX } from '../base/limits.ts';
import { DEFAULT_POLICY } from '../model/policy.ts';
import type { RunEvent } from './event.ts';
import { newRun } from './new-run.ts';
import type { Outcome } from './outcome.ts';
import {
  confirm,
  EVENTS,
  evidence,
  grant,
  live,
  MANIFEST,
  OTHER_RUN,
  offered,
  onTrial,
  otherBoot,
  PLAN,
  RUN,
  SAMPLE_STEP,
  STATES,
  session,
} from './samples.ts';
import { isGateOpen, type RunState, type RunStateKind, runOf } from './state.ts';
import { transition } from './transition.ts';

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
  // While it is being opened, layers may stand open already.
  const mayBeOpen = (state: RunState) => isGateOpen(state) || state.kind === 'opening';
  for (const state of STATES.filter(mayBeOpen)) {
    for (const event of EVENTS) {
      const outcome = next(state, event);
      if (outcome.kind !== 'moved' || mayBeOpen(outcome.state)) continue;
      closings += 1;
      assert.ok(effectsOf(outcome).includes('close-gate'), `${state.kind} + ${event.kind} closes`);
    }
  }
  assert.ok(closings >= 30, `positive control: ${closings} pairs close`);
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
    {
      kind: 'planned',
      step: SAMPLE_STEP,
      plan: { digest: PLAN, itemCount: 0, sizeBytes: 0, versions: [] },
      rebootRequired: false,
    },
  );
  const judging = movedTo(asked, 'judging');
  assert.deepEqual(effectsOf(asked), ['send ask-confirm']);
  const judged = next(judging, { kind: 'judged', step: SAMPLE_STEP, evidence });
  movedTo(judged, 'opening');
  assert.deepEqual(effectsOf(judged), ['open-gate']);
});

test('the drive is asked back, taken away, and only then is the cable plugged in [A4 A11]', () => {
  const judged = next(
    { kind: 'judging', run: offered, session, phase: 'weighing' },
    { kind: 'judged', step: SAMPLE_STEP, evidence },
  );
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
  assert.deepEqual(outcome.kind === 'moved' && outcome.effects, [{ kind: 'detach-drive', isUnanswered: true }]);
});

test('a confirmation of another session is refused and changes nothing [A10]', () => {
  const state: RunState = { kind: 'judging', run: offered, session, phase: 'asking' };
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
  const reported = next(reporting, {
    kind: 'inventory',
    session: { ...session, nonce: 'e'.repeat(32) },
    rebootRequired: false,
  });
  const planning = movedTo(reported, 'planning');
  assert.deepEqual(
    effectsOf(reported),
    ['fetch-plan'],
    'what is missing is fetched first: the fetch may have been cut off',
  );
  const fetched = next(planning, { kind: 'fetched', step: SAMPLE_STEP });
  const offering = movedTo(fetched, 'offering');
  assert.deepEqual(effectsOf(fetched), ['attach-drive']);
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

test('an agent that begins a new session while the gate is being opened closes it and is asked again [A11]', () => {
  const anew = { ...session, nonce: 'e'.repeat(32) };
  for (const state of STATES.filter((each) => each.kind === 'opening')) {
    const outcome = next(state, { kind: 'agent-opened', session: anew, run: OTHER_RUN, atMs: 2 });
    movedTo(outcome, 'reporting');
    assert.ok(effectsOf(outcome).includes('close-gate'));
  }
});

test('one confirmation is judged at a time, so that repeating it puts nothing off [A10]', () => {
  const judging: RunState = { kind: 'judging', run: offered, session, phase: 'asking' };
  const weighing = movedTo(next(judging, { kind: 'confirm', session, confirm }), 'judging');
  assert.equal(next(weighing, { kind: 'confirm', session, confirm }).kind, 'denied');
});

test('an agent that says hello again and again does not put the deadline off for ever', () => {
  let state: RunState = { kind: 'reporting', run: newRun({ run: RUN, atMs: 1 }), session };
  let hellos = 0;
  for (; hellos < 1000 && state.kind !== 'quarantined'; hellos += 1) {
    const outcome = next(state, { kind: 'agent-opened', session, run: OTHER_RUN, atMs: 2 });
    if (outcome.kind === 'moved') state = outcome.state;
  }
  assert.ok(state.kind === 'quarantined' && state.reason.kind === 'guest-misbehaved');
  assert.ok(hellos > 10 && hellos < 100);
});

test('after the channel was cut nothing is asked of the session that is gone, and a retry opens a channel', () => {
  const cut: RunEvent = { kind: 'misbehaved', code: 'x', detail: 'y' };
  const held = movedTo(next({ kind: 'installing', run: offered, session }, cut), 'quarantined');
  const retried = next(held, { kind: 'retry', run: OTHER_RUN, atMs: 2 });
  movedTo(retried, 'booting');
  assert.ok(effectsOf(retried).includes('open-channel'));
  // It may be open, and its agent rest in a session that the run lost.
  assert.ok(retried.kind === 'moved' && retried.effects.some((each) => each.kind === 'open-channel' && each.asks));
  const plugged = movedTo(next({ kind: 'connected', run: offered, session, grant, trouble: null }, cut), 'connected');
  assert.ok(plugged.kind === 'connected' && plugged.session === null && plugged.trouble?.kind === 'guest-misbehaved');
  const updating = movedTo(next({ kind: 'installing', run: live, session }, cut), 'connected');
  assert.ok(updating.kind === 'connected' && updating.session === null);
});

test('a reboot that an earlier run left behind is made up for, where the policy allows it [X4]', () => {
  const planning: RunState = { kind: 'planning', run: newRun({ run: RUN, atMs: 1 }), session, phase: 'comparing' };
  const nothing = { digest: PLAN, itemCount: 0, sizeBytes: 0, versions: [] };
  const planned: RunEvent = { kind: 'planned', step: SAMPLE_STEP, plan: nothing, rebootRequired: true };
  const rebooting = next(planning, planned);
  movedTo(rebooting, 'rebooting');
  assert.deepEqual(effectsOf(rebooting), ['send reboot']);
  movedTo(next(planning, planned, { ...DEFAULT_POLICY, allowReboot: false }), 'quarantined');
  const back: RunState = { kind: 'reporting', run: { ...offered, isInstalled: true }, session };
  movedTo(next(back, { kind: 'inventory', session, rebootRequired: true }), 'rebooting');
  movedTo(next(back, { kind: 'inventory', session, rebootRequired: false }), 'judging');
});

test('a VM that is being stopped stays off, also when its guest resets or its agent comes back on the way', () => {
  const stopped = movedTo(
    next({ kind: 'connected', run: offered, session, grant, trouble: null }, { kind: 'stop', force: false }),
    'connected',
  );
  const reset = movedTo(next(stopped, { kind: 'reset', isStopped: true, run: OTHER_RUN, atMs: 2 }), 'booting');
  movedTo(next(reset, { kind: 'exited', detail: 'quit', isGuestsWish: false }), 'off');
  const again = movedTo(
    next(stopped, { kind: 'agent-opened', session: otherBoot, run: OTHER_RUN, atMs: 2 }),
    'reporting',
  );
  movedTo(next(again, { kind: 'exited', detail: 'quit', isGuestsWish: false }), 'off');
});

test('a quarantined VM whose QEMU dies keeps its reason, is shown as off, and can be started [X8]', () => {
  const reason = { kind: 'confirm-refused', code: 'version-differs', detail: 'x' } as const;
  const held: RunState = { kind: 'quarantined', run: offered, session, reason, isRunning: true };
  const dead = movedTo(next(held, { kind: 'exited', detail: 'killed', isGuestsWish: false }), 'quarantined');
  assert.ok(dead.kind === 'quarantined' && !dead.isRunning && dead.reason === reason);
  movedTo(next(dead, { kind: 'start', run: OTHER_RUN, atMs: 2 }), 'booting');
});

test('a live update of a VM that is gone does not read as plugged in', () => {
  const failed: RunEvent = { kind: 'effect-failed', step: SAMPLE_STEP, effect: 'x', detail: 'y', isRunning: false };
  assert.equal(isGateOpen(movedTo(next({ kind: 'installing', run: live, session }, failed), 'quarantined')), false);
});

test('a live update whose gate could not be opened again does not read as plugged in', () => {
  const opening: RunState = { kind: 'opening', run: live, session, phase: 'plugging', grant };
  const failed: RunEvent = {
    kind: 'effect-failed',
    step: SAMPLE_STEP,
    effect: 'open-gate',
    detail: 'y',
    isRunning: true,
  };
  const outcome = next(opening, failed);
  movedTo(outcome, 'quarantined');
  assert.ok(effectsOf(outcome).includes('close-gate'));
});

test('a VM that stands still, or is out of our hands, is taken over and runs when it is admitted', () => {
  const reason = { kind: 'too-many-reboots', reboots: 6 } as const;
  const held: RunState = { kind: 'quarantined', run: offered, session: null, reason, isRunning: true };
  assert.deepEqual(effectsOf(next(held, { kind: 'admit', reason: 'r', actor: 'a' })), [
    'hold-vm',
    'open-channel',
    'resume-vm',
    'detach-drive',
  ]);
});

test('after a restart of the daemon another boot than the one that confirmed closes the gate [A2]', () => {
  const found: RunState = { kind: 'connected', run: offered, session: null, grant, trouble: null };
  const same = next(found, { kind: 'agent-opened', session, run: OTHER_RUN, atMs: 2 });
  movedTo(same, 'connected');
  const other = next(found, { kind: 'agent-opened', session: otherBoot, run: OTHER_RUN, atMs: 2 });
  movedTo(other, 'reporting');
  assert.ok(effectsOf(other).includes('close-gate'));
});

const OVERLAY = { ...DEFAULT_POLICY, overlay: true };
const FAILED: RunEvent = {
  kind: 'installed',
  session,
  manifestDigest: MANIFEST,
  results: [{ item: 'i', outcome: 'failed', durationMs: 1 }],
  rebootRequired: false,
};
const fetched: RunEvent = { kind: 'fetched', step: SAMPLE_STEP };

test('an overlay is begun before the drive is shown, where the policy says so, and not in the middle of an update [X5]', () => {
  const planning: RunState = { kind: 'planning', run: { ...offered, manifests: [] }, session, phase: 'fetching' };
  assert.deepEqual(effectsOf(next(planning, fetched)), ['attach-drive']);
  const begun = next(planning, fetched, OVERLAY);
  assert.deepEqual(effectsOf(begun), ['begin-overlay', 'attach-drive']);
  const offering = movedTo(begun, 'offering');
  assert.ok(offering.kind === 'offering' && offering.run.isOnTrial);
  // What was begun without one goes on without one; what is on one stays there.
  assert.deepEqual(effectsOf(next({ ...planning, run: offered }, fetched, OVERLAY)), ['attach-drive']);
  assert.deepEqual(effectsOf(next({ ...planning, run: onTrial }, fetched)), ['begin-overlay', 'attach-drive']);
  assert.deepEqual(effectsOf(next({ ...planning, run: { ...live, manifests: [] } }, fetched, OVERLAY)), [
    'attach-drive',
  ]);
});

test('where no overlay can be made nothing is offered, and the VM is held as it is [X5]', () => {
  const offering: RunState = { kind: 'offering', run: onTrial, session, phase: 'attaching' };
  const outcome = next(offering, {
    kind: 'effect-failed',
    step: SAMPLE_STEP,
    effect: 'begin-overlay',
    detail: 'no space',
    isRunning: true,
  });
  const held = movedTo(outcome, 'quarantined');
  assert.ok(held.kind === 'quarantined' && held.reason.kind === 'host-failure' && !held.run.isOnTrial);
  assert.ok(!effectsOf(outcome).includes('stop-vm'));
});

test('what fails on trial is remembered, thrown away with its VM, and the VM boots as before, gated [X5]', () => {
  const failed = next({ kind: 'installing', run: onTrial, session }, FAILED);
  const rolling = movedTo(failed, 'rolling-back');
  assert.deepEqual(effectsOf(failed), ['remember-failed', 'record-quarantine', 'close-gate', 'stop-vm']);
  assert.ok(rolling.kind === 'rolling-back');
  assert.deepEqual(rolling.reason.versions, [{ item: 'i', version: '2' }]);
  assert.equal(rolling.run.plan, null, 'the run does not come back to it by another way');
  const ended = next(rolling, { kind: 'exited', detail: 'we ended it', isGuestsWish: false });
  const held = movedTo(ended, 'quarantined');
  assert.ok(held.kind === 'quarantined' && held.isRunning && held.reason === rolling.reason);
  const effects = effectsOf(ended);
  assert.ok(effects.indexOf('settle-overlay') >= 0 && effects.indexOf('settle-overlay') < effects.indexOf('start-vm'));
  assert.ok(effects.lastIndexOf('close-gate') < effects.indexOf('resume-vm'));
  // Its agent comes back, and is left alone: only a retry or a new start goes on.
  movedTo(next(held, { kind: 'agent-opened', session, run: OTHER_RUN, atMs: 2 }), 'quarantined');
  const retried = next(held, { kind: 'retry', run: OTHER_RUN, atMs: 2 });
  assert.equal(effectsOf(retried)[0], 'forget-failed', 'the operator wants it tried again');
});

test('whatever ends a run on trial in quarantine rolls it back; only a VM out of our hands stays as it is [X5]', () => {
  const kinds = new Set<string>();
  for (const state of STATES.filter((each) => runOf(each)?.isOnTrial === true)) {
    for (const event of EVENTS) {
      const outcome = next(state, event);
      if (outcome.kind !== 'moved') continue;
      kinds.add(outcome.state.kind);
      if (outcome.state.kind !== 'quarantined') continue;
      const isDead = !outcome.state.isRunning;
      assert.ok(isDead || event.kind === 'monitor-lost', `${state.kind} + ${event.kind}`);
      if (isDead) assert.ok(effectsOf(outcome).includes('settle-overlay'));
    }
  }
  assert.ok(kinds.has('rolling-back') && kinds.has('opening'), 'positive control');
});

test('a failure of the host is rolled back too, and blames no version; nor does one before anything was offered [X5]', () => {
  const versionsAfter = (state: RunState, event: RunEvent) => {
    const rolling = movedTo(next(state, event), 'rolling-back');
    return rolling.kind === 'rolling-back' ? rolling.reason.versions.length : null;
  };
  const installing: RunState = { kind: 'installing', run: onTrial, session };
  const broke: RunEvent = { kind: 'effect-failed', step: SAMPLE_STEP, effect: 'x', detail: 'y', isRunning: true };
  const late: RunEvent = { kind: 'deadline', step: SAMPLE_STEP, waitedMs: 1 };
  assert.equal(versionsAfter(installing, broke), 0);
  assert.equal(versionsAfter(installing, { kind: 'disk-full' }), 0);
  assert.equal(
    versionsAfter({ kind: 'offering', run: { ...onTrial, manifests: [] }, session, phase: 'attaching' }, late),
    0,
  );
  assert.equal(versionsAfter(installing, late), 1, 'positive control');
});

test('what was on trial is accepted before the gate opens, also when an operator opens it [A11] [X5]', () => {
  const accepted = ['accept-overlay', 'open-gate'];
  const detached: RunEvent = { kind: 'drive-detached', step: SAMPLE_STEP };
  const plugging = next({ kind: 'opening', run: onTrial, session, phase: 'detaching', grant }, detached);
  assert.deepEqual(effectsOf(plugging), accepted);
  const admitted = next({ kind: 'installing', run: onTrial, session }, { kind: 'admit', reason: 'r', actor: 'a' });
  assert.deepEqual(effectsOf(next(movedTo(admitted, 'opening'), detached)), accepted);
  const state = movedTo(plugging, 'opening');
  assert.ok(state.kind === 'opening' && !state.run.isOnTrial, 'from now on nothing throws it away');
  assert.ok(effectsOf(next(state, { kind: 'opened', step: SAMPLE_STEP })).includes('commit-overlay'));
});

test('QEMU that dies on trial begins anew from the disk as it was, a bounded number of times [X4] [X5]', () => {
  let state: RunState = { kind: 'installing', run: { ...onTrial, isInstalled: true }, session };
  const died: RunEvent = { kind: 'exited', detail: 'killed', isGuestsWish: false };
  const again = next(state, died);
  state = movedTo(again, 'booting');
  const run = runOf(state);
  assert.ok(run !== null && !run.isOnTrial && !run.isInstalled && run.manifests.length === 0 && run.plan !== null);
  const effects = effectsOf(again);
  assert.ok(effects.indexOf('settle-overlay') < effects.indexOf('start-vm'));
  const often: RunState = { kind: 'installing', run: { ...onTrial, reboots: REBOOTS_MAX }, session };
  const held = movedTo(next(often, died), 'quarantined');
  assert.ok(held.kind === 'quarantined' && held.isRunning && held.reason.kind === 'rolled-back');
});

test('an update is not pushed to a VM that is plugged in where the policy wants an overlay [X5]', () => {
  const connected: RunState = { kind: 'connected', run: offered, session, grant, trouble: null };
  const outcome = next(connected, { kind: 'update', run: OTHER_RUN, atMs: 2 }, OVERLAY);
  assert.ok(outcome.kind === 'denied' && /restart the guest/.test(outcome.because));
});

test('an update that is well although something else is left out is kept, behind a closed gate [X5]', () => {
  const judging: RunState = { kind: 'judging', run: onTrial, session, phase: 'weighing' };
  const refusal = (code: string): RunEvent => ({ kind: 'judged-refused', step: SAMPLE_STEP, code, detail: 'x' });
  for (const code of ['left-out', 'metadata-old']) {
    const kept = next(judging, refusal(code));
    movedTo(kept, 'quarantined');
    assert.ok(effectsOf(kept).includes('accept-overlay') && effectsOf(kept).includes('close-gate'), code);
  }
  movedTo(next(judging, refusal('still-behind')), 'rolling-back');
});

test('a run that takes longer than its policy allows is quarantined; a later run is not [X8]', () => {
  const installing: RunState = { kind: 'installing', run: offered, session };
  const late = movedTo(next(installing, { kind: 'run-deadline', run: RUN, waitedMs: 9 }), 'quarantined');
  assert.ok(late.kind === 'quarantined' && late.reason.kind === 'deadline' && late.reason.state === 'run');
  assert.equal(next(installing, { kind: 'run-deadline', run: OTHER_RUN, waitedMs: 9 }).kind, 'ignored');
  // An agent that speaks again does not begin the time anew.
  movedTo(next(late, { kind: 'agent-opened', session, run: OTHER_RUN, atMs: 2 }), 'quarantined');
});

test('a fence that somebody else changed closes every gate; an open VM proves itself anew at once [A11] [X1]', () => {
  const changed: RunEvent = { kind: 'fence-changed', detail: 'x', run: OTHER_RUN, atMs: 2 };
  const connected = next({ kind: 'connected', run: offered, session, grant, trouble: null }, changed);
  movedTo(connected, 'reporting');
  assert.deepEqual(effectsOf(connected), ['close-gate', 'send ask-inventory']);
  movedTo(next({ kind: 'connected', run: offered, session: null, grant, trouble: null }, changed), 'booting');
  const gated = next({ kind: 'installing', run: offered, session }, changed);
  movedTo(gated, 'installing');
  assert.deepEqual(effectsOf(gated), ['close-gate']);
});

const planned = (configCount: number): RunEvent => ({
  kind: 'planned',
  step: SAMPLE_STEP,
  plan: { digest: MANIFEST, itemCount: 1, configCount, sizeBytes: 0, versions: [] },
  rebootRequired: false,
});

test('a configuration that changes is applied to a VM that is plugged in while it stays so, unless its policy wants it gated [A12]', () => {
  const planning: RunState = { kind: 'planning', run: live, session, phase: 'comparing' };
  const gate = { ...DEFAULT_POLICY, configChange: 'gate' as const };
  const asLive = next(planning, planned(1));
  assert.deepEqual(effectsOf(asLive), ['fetch-plan']);
  assert.equal(isGateOpen(movedTo(asLive, 'planning')), true);
  const gated = next(planning, planned(1), gate);
  assert.deepEqual(effectsOf(gated), ['close-gate', 'fetch-plan']);
  assert.equal(isGateOpen(movedTo(gated, 'planning')), false);
  assert.deepEqual(effectsOf(next(planning, planned(0), gate)), ['fetch-plan'], 'software alone is no reason');
});

test('a configuration that changed before its drive was made begins a run of its own, a bounded number of times [A14]', () => {
  const changed: RunEvent = { kind: 'config-changed', step: SAMPLE_STEP, run: OTHER_RUN, atMs: 9 };
  const offering = (replans: number): RunState => ({
    kind: 'offering',
    run: { ...live, reboots: 2, replans },
    session,
    phase: 'attaching',
  });
  const anew = next(offering(0), changed);
  assert.deepEqual(effectsOf(anew), ['send ask-inventory']);
  const run = runOf(movedTo(anew, 'reporting'));
  assert.equal(run?.run, OTHER_RUN);
  assert.deepEqual([run.plan, run.manifests, run.replans, run.reboots], [null, [], 1, 2]);
  assert.equal(run.startedAtMs, live.startedAtMs, 'its deadline is not put off');
  assert.notEqual(run.liveGrant, null, 'it stays plugged in');
  const offeredAlready: RunState = { kind: 'offering', run: live, session, phase: 'offered' };
  assert.equal(next(offeredAlready, changed).kind, 'ignored');
  const given = movedTo(next(offering(REPLANS_MAX), changed), 'connected');
  assert.ok(given.kind === 'connected' && given.trouble?.kind === 'plan-refused');
});
