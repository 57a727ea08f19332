// What a run becomes when the daemon starts again, for every state and everything that may be found on the host.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { REBOOTS_MAX } from '../base/limits.ts';
import { type Found, type Fresh, recover } from './recover.ts';
import { grant, live, OTHER_RUN, offered, onTrial, RUN, STATES, session } from './samples.ts';
import { isGateOpen, isUnderWay, type RunState, runOf } from './state.ts';

const FRESH: Fresh = { run: OTHER_RUN, atMs: 2, planAgeMaxMs: 1_000 };
const NONE: Found = { kind: 'none' };
const running = (over: Partial<Extract<Found, { kind: 'running' }>> = {}): Found => ({
  kind: 'running',
  isSameProcess: true,
  isStopped: false,
  isAdmitted: true,
  isOnTrial: false,
  ...over,
});
const connected: RunState = { kind: 'connected', run: offered, session, grant, trouble: null };

test('only a connected VM that is certainly the same, running and admitted stays plugged in [A11 X4]', () => {
  let kept = 0;
  for (const state of STATES) {
    for (const isSameProcess of [true, false]) {
      for (const isStopped of [true, false]) {
        for (const isAdmitted of [true, false]) {
          const found = running({ isSameProcess, isStopped, isAdmitted });
          const after = recover(state, found, FRESH);
          if (runOf(state) === null) continue;
          if (isGateOpen(after.state)) {
            kept += 1;
            assert.ok(state.kind === 'connected' && isSameProcess && !isStopped && isAdmitted);
            continue;
          }
          assert.equal(after.effects[0]?.kind, 'close-gate', `${state.kind} closes first`);
        }
      }
    }
  }
  assert.equal(kept, STATES.filter((state) => state.kind === 'connected').length);
});

test('a VM that was plugged in and is gone leaves its gate closed: its owner may start it again on the same taps [A11 X1]', () => {
  for (const state of STATES.filter(isGateOpen)) {
    const { effects } = recover(state, NONE, FRESH);
    const closes = effects.findIndex(({ kind }) => kind === 'close-gate');
    assert.ok(closes === 0 || effects[closes - 1]?.kind === 'start-vm', `${state.kind}: ${JSON.stringify(effects)}`);
  }
});

test('a live update that the daemon did not survive goes on behind a closed gate', () => {
  const after = recover({ kind: 'installing', run: live, session }, running(), FRESH);
  assert.equal(isGateOpen(after.state), false);
  assert.equal(runOf(after.state)?.run, RUN);
});

test('a run whose plan may be older than the policy believes begins anew [A7]', () => {
  const state: RunState = { kind: 'installing', run: offered, session };
  for (const found of [NONE, running()]) {
    const inTime = recover(state, found, { ...FRESH, atMs: 1_001 });
    assert.equal(runOf(inTime.state)?.run, RUN);
    for (const atMs of [1_002, 0]) {
      const late = runOf(recover(state, found, { ...FRESH, atMs }).state);
      assert.equal(late?.run, OTHER_RUN);
      assert.equal(late?.plan, null);
    }
  }
});

test('a run that takes the host down each time is not started for ever', () => {
  let state: RunState = { kind: 'installing', run: offered, session };
  let starts = 0;
  for (; isUnderWay(state) && starts < 100; starts += 1) state = recover(state, NONE, FRESH).state;
  assert.equal(state.kind, 'quarantined');
  assert.equal(starts, REBOOTS_MAX + 1);
});

test('a VM that fell over while its gate was being opened is planned anew from what its disk came to [X4] [X5]', () => {
  const isOpening = (state: RunState) => state.kind === 'opening';
  const opening = STATES.filter(isOpening);
  assert.ok(opening.length > 0);
  for (const state of opening) {
    const run = runOf(recover(state, NONE, FRESH).state);
    assert.deepEqual([run?.run, run?.plan, run?.isInstalled, run?.manifests], [RUN, null, false, []]);
  }
  // Any other state goes on with the plan it had.
  assert.notEqual(runOf(recover({ kind: 'installing', run: offered, session }, NONE, FRESH).state)?.plan, null);
});

test('what was on trial goes on with its VM, and is thrown away without it; the overlay says what it is worth [X4] [X5]', () => {
  const installing: RunState = { kind: 'installing', run: { ...onTrial, isInstalled: true }, session };
  assert.equal(runOf(recover(installing, running({ isOnTrial: true }), FRESH).state)?.isOnTrial, true);
  // The daemon ended between the acceptance and the next state.
  const accepted = recover(installing, running({ isOnTrial: false }), FRESH);
  assert.equal(runOf(accepted.state)?.isOnTrial, false);
  assert.ok(accepted.effects.some(({ kind }) => kind === 'commit-overlay'));
  const gone = recover(installing, NONE, FRESH);
  const run = runOf(gone.state);
  assert.ok(gone.state.kind === 'booting' && run !== null && !run.isOnTrial && !run.isInstalled);
  const kinds = gone.effects.map(({ kind }) => kind);
  assert.ok(kinds.indexOf('settle-overlay') >= 0 && kinds.indexOf('settle-overlay') < kinds.indexOf('start-vm'));
});

test('a roll-back that the daemon did not survive goes on: remembered, ended, booted as before [X4] [X5]', () => {
  const rolling = STATES.find((state) => state.kind === 'rolling-back');
  assert.ok(rolling !== undefined);
  const alive = recover(rolling, running({ isOnTrial: true }), FRESH);
  assert.equal(alive.state.kind, 'rolling-back');
  assert.deepEqual(
    alive.effects.map(({ kind }) => kind),
    ['close-gate', 'remember-failed', 'stop-vm'],
  );
  const gone = recover(rolling, NONE, FRESH);
  assert.ok(gone.state.kind === 'quarantined' && gone.state.isRunning && gone.state.reason.kind === 'rolled-back');
  const kinds = gone.effects.map(({ kind }) => kind);
  assert.deepEqual(kinds.slice(0, 3), ['remember-failed', 'settle-overlay', 'start-vm']);
  const stopping = recover({ ...rolling, run: { ...rolling.run, isStopping: true } }, NONE, FRESH);
  assert.equal(stopping.state.kind, 'off');
  assert.equal(stopping.effects[0]?.kind, 'remember-failed', 'a VM that stays off does not try it again either');
});

test('every VM that is off has its overlay settled before it is staged or started [X5]', () => {
  for (const state of STATES) {
    const kinds = recover(state, NONE, FRESH).effects.map(({ kind }) => kind);
    const settled = kinds.indexOf('settle-overlay');
    assert.ok(settled >= 0, state.kind);
    for (const later of ['stage', 'start-vm'] as const) {
      if (kinds.includes(later)) assert.ok(settled < kinds.indexOf(later), state.kind);
    }
  }
});

test('a quarantine is remembered over a power cut, with its reason [X8]', () => {
  const reason = { kind: 'confirm-refused', code: 'x', detail: 'y' } as const;
  const after = recover({ kind: 'quarantined', run: offered, session, reason, isRunning: true }, NONE, FRESH);
  assert.ok(after.state.kind === 'quarantined' && !after.state.isRunning && after.state.reason === reason);
});

test('a VM that was being stopped and is gone stays off', () => {
  const state: RunState = { kind: 'installing', run: { ...offered, isStopping: true }, session };
  assert.equal(recover(state, NONE, FRESH).state.kind, 'off');
  assert.equal(recover(connected, NONE, FRESH).state.kind, 'off');
});
