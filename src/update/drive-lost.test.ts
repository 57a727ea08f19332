// A drive that nobody serves any more, or that may not be shown: what becomes of the run, and what is told.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { VmId } from '../model/ids.ts';
import { DEFAULT_POLICY } from '../model/policy.ts';
import type { Trouble } from '../model/quarantine.ts';
import type { RunEvent } from './event.ts';
import { newRun } from './new-run.ts';
import { RUN, SAMPLE_STEP, STATES, session } from './samples.ts';
import { hasVm, isGateOpen, type RunState } from './state.ts';
import { transition } from './transition.ts';
import { explainQuarantine } from './why.ts';

// The cast holds: letters are a VM's name.
const VM = 'web' as VmId;
const LOST: Trouble = { kind: 'host-failure', step: 'drive-export', detail: 'it ended 5 times in a row' };
const REFUSED: Trouble = { kind: 'license-refused', license: 'antivirus', code: 'LEASE_EXPIRED' };
const next = (state: RunState, event: RunEvent) => transition({ step: SAMPLE_STEP, state }, event, DEFAULT_POLICY);

test('a drive that is lost while the guest reads it ends the run with that reason and the next step [X8]', () => {
  const reading = STATES.filter((state) => {
    const isOffered = state.kind === 'offering' && state.phase === 'offered';
    return (isOffered || state.kind === 'installing') && state.run.liveGrant === null && !state.run.isOnTrial;
  });
  assert.ok(reading.length >= 2);
  for (const state of reading) {
    const outcome = next(state, { kind: 'drive-lost', reason: LOST });
    assert.ok(outcome.kind === 'moved' && outcome.state.kind === 'quarantined', state.kind);
    assert.deepEqual(outcome.state.reason, LOST);
    assert.ok(outcome.effects.some(({ kind }) => kind === 'close-gate'));
    const { reason, next: step } = explainQuarantine(VM, outcome.state.reason, true);
    assert.match(`${reason} ${step}`, /drive-export.*5 times in a row.*pratique doctor.*pratique vm retry web/);
  }
});

test('a drive that is lost when nobody reads it any more changes nothing', () => {
  const others = STATES.filter(({ kind }) => kind !== 'installing' && kind !== 'offering');
  assert.ok(others.length > 5);
  for (const state of others)
    assert.equal(next(state, { kind: 'drive-lost', reason: LOST }).kind, 'ignored', state.kind);
});

test('a live update whose drive is lost leaves the VM plugged in, with the reason', () => {
  const live = STATES.find((state) => state.kind === 'installing' && state.run.liveGrant !== null);
  assert.ok(live !== undefined);
  const outcome = next(live, { kind: 'drive-lost', reason: REFUSED });
  assert.ok(outcome.kind === 'moved' && outcome.state.kind === 'connected');
  assert.deepEqual(outcome.state.trouble, REFUSED);
});

test('what a license guards is taken away at once when its seat ends, from whoever has it; nobody is unplugged by that [A15]', () => {
  const ended: RunEvent = { kind: 'drive-lost', reason: REFUSED };
  const needing = STATES.filter(
    (state) => state.kind === 'installing' || (state.kind === 'offering' && state.phase !== 'withdrawing'),
  );
  assert.ok(needing.length >= 4);
  for (const state of STATES) {
    const outcome = next(state, ended);
    if (!hasVm(state)) {
      assert.equal(outcome.kind, 'ignored', state.kind);
      continue;
    }
    assert.ok(outcome.kind === 'moved', state.kind);
    const isEnded = outcome.effects.some(({ kind }) => kind === 'detach-drive' || kind === 'stop-vm');
    assert.ok(isEnded, state.kind);
    if (!needing.includes(state)) assert.deepEqual(outcome.state, state);
    if (isGateOpen(state)) assert.ok(isGateOpen(outcome.state), 'an open gate is not touched');
  }
});

test('a drive that no lease allows to show quarantines by the license, not as a failure of this host [A15]', () => {
  const run = newRun({ run: RUN, atMs: 1 });
  const attaching: RunState = { kind: 'offering', run, session, phase: 'attaching' };
  const failed = {
    kind: 'effect-failed',
    step: SAMPLE_STEP,
    effect: 'attach-drive',
    detail: 'x',
    isRunning: true,
  } as const;
  const reasonOf = (event: RunEvent) => {
    const outcome = next(attaching, event);
    assert.ok(outcome.kind === 'moved' && outcome.state.kind === 'quarantined');
    return outcome.state.reason;
  };
  assert.deepEqual(reasonOf({ ...failed, trouble: REFUSED }), REFUSED);
  assert.deepEqual(reasonOf(failed), { kind: 'host-failure', step: 'attach-drive', detail: 'x' });
});
