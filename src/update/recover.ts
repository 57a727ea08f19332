// What a run becomes when the daemon starts again: pure, from the journaled state and what was found on the host.

import { REBOOTS_MAX } from '../base/limits.ts';
import type { RunId } from '../model/ids.ts';
import type { Trouble } from '../model/quarantine.ts';
import { type Effect, START } from './effect.ts';
import { newRun } from './new-run.ts';
import { bootsAgain, forgetTrial, rolledBack } from './quarantine.ts';
import { isGateOpen, isUnderWay, type Run, type RunState, runOf } from './state.ts';

export type Found =
  | { readonly kind: 'none' }
  | {
      readonly kind: 'running';
      /** The very process we started, which stops on a reset (managed VMs): it cannot have booted again unseen. */
      readonly isSameProcess: boolean;
      readonly isStopped: boolean;
      /** The fence's own table admits its taps. */
      readonly isAdmitted: boolean;
      /** What its guest writes is on trial on a disk overlay. */
      readonly isOnTrial: boolean;
    };

/** For the run that begins anew when the one at hand cannot go on. */
export type Fresh = {
  readonly run: RunId;
  readonly atMs: number;
  /** The policy's age of vendor metadata: a run that began longer ago may rest on a plan that is older than that. */
  readonly planAgeMaxMs: number;
};

export type Recovery = { readonly state: RunState; readonly effects: readonly Effect[] };

const SETTLE: Effect = { kind: 'settle-overlay' };
/** Goes on with a merge that the daemon did not survive; what is on trial stays. */
const MERGE: Effect = { kind: 'commit-overlay' };

/**
 * Whatever is not certain is closed and begins again at `booting`, with the plan it had: the agent says hello and the
 * run goes on. Only a VM that is the same process, was connected, never stopped and is admitted stays plugged in.
 */
export function recover(state: RunState, found: Found, fresh: Fresh): Recovery {
  const run = runOf(state);
  if (run === null) return { state: { kind: 'off' }, effects: [SETTLE, { kind: 'stage' }] };
  if (found.kind === 'none') return recoverEnded(state, run, fresh);
  const isSure = found.isSameProcess && !found.isStopped && found.isAdmitted;
  if (state.kind === 'connected' && isSure)
    return { state: { ...state, session: null }, effects: [MERGE, { kind: 'open-channel' }, { kind: 'clean-up' }] };
  const close: Effect = { kind: 'close-gate', reason: 'daemon restart' };
  const { isOnTrial } = found;
  if (state.kind === 'rolling-back') {
    const remember: Effect = { kind: 'remember-failed', reason: state.reason };
    return { state, effects: [close, remember, { kind: 'stop-vm', graceful: false }] };
  }
  if (state.kind === 'quarantined') {
    const closed: Run = { ...run, liveGrant: null, isOnTrial };
    return {
      state: { ...state, run: closed, session: null, isRunning: true },
      effects: [close, { kind: 'open-channel' }, MERGE],
    };
  }
  const next = isUnderWay(state) ? goOn(run, fresh) : { ...newRun(fresh), isStopping: run.isStopping };
  return {
    state: { kind: 'booting', run: { ...next, isOnTrial } },
    effects: [close, { kind: 'open-channel' }, { kind: 'resume-vm', afterReset: true }, MERGE],
  };
}

/** The VM is gone too (host reboot, power cut): a run under way starts it again; everything else is off. */
function recoverEnded(state: RunState, run: Run, fresh: Fresh): Recovery {
  if (state.kind === 'quarantined' && !run.isStopping) {
    return { state: { ...state, run: forgetTrial(run), session: null, isRunning: false }, effects: [SETTLE] };
  }
  // Also of a VM that stays off: what failed is not tried again when it starts.
  const remember: readonly Effect[] =
    state.kind === 'rolling-back' ? [{ kind: 'remember-failed', reason: state.reason }] : [];
  if (state.kind === 'rolling-back' && !run.isStopping)
    return { state: bootsAgain(state), effects: [...remember, SETTLE, ...START] };
  const goesOn = isUnderWay(state) && !run.isStopping;
  if (!goesOn) {
    // Somebody else's QEMU may be started again on the same taps before anybody looks.
    const close: readonly Effect[] = isGateOpen(state) ? [{ kind: 'close-gate', reason: 'the VM is off' }] : [];
    const effects: readonly Effect[] = [...close, ...remember, SETTLE, { kind: 'clean-up' }, { kind: 'stage' }];
    return { state: { kind: 'off' }, effects };
  }
  const kept = goOn(run, fresh);
  // Whether an overlay was accepted before everything fell over, its record knows and this state does not: the VM reports what its
  // disk came to, and is planned for that.
  const known: Run = state.kind === 'opening' ? { ...kept, plan: null, isInstalled: false, manifests: [] } : kept;
  const next: Run = { ...known, reboots: run.reboots + 1 };
  if (next.reboots > REBOOTS_MAX) {
    const reason: Trouble = { kind: 'too-many-reboots', reboots: next.reboots };
    if (next.isOnTrial) {
      const back = rolledBack(next, reason);
      return { state: bootsAgain(back.state), effects: [...back.effects, SETTLE, ...START] };
    }
    return {
      state: { kind: 'quarantined', run: next, session: null, reason, isRunning: false },
      effects: [{ kind: 'record-quarantine', reason }, SETTLE],
    };
  }
  return { state: { kind: 'booting', run: forgetTrial(next) }, effects: [SETTLE, ...START] };
}

/** The run with the plan it had, closed; without its plan when that is older than the policy believes. */
function goOn(run: Run, fresh: Fresh): Run {
  const ageMs = fresh.atMs - run.startedAtMs;
  if (ageMs >= 0 && ageMs <= fresh.planAgeMaxMs) return { ...run, liveGrant: null };
  return { ...newRun(fresh), isStopping: run.isStopping, reboots: run.reboots, isOnTrial: run.isOnTrial };
}
