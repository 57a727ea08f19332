// What a run becomes when the daemon starts again, for every state and everything that may be found on the host.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { REBOOTS_MAX } from '../base/limits.ts';
import { type Found, type Fresh, recover } from './recover.ts';
import { grant, live, OTHER_RUN, offered, RUN, STATES, session } from './samples.ts';
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
