// What a run becomes when the daemon starts again: pure, from the journaled state and what was found on the host.
import type { RunId } from '../model/ids.ts';
import type { Effect } from './effect.ts';
import { isUnderWay, type Run, type RunState, runOf } from './state.ts';
import { newRun } from './transition.ts';

export type Found =
  | { readonly kind: 'none' }
  | {
      readonly kind: 'running';
      /** The very process we started, which stops on a reset: it cannot have booted again unseen. */
      readonly isSameProcess: boolean;
      readonly isStopped: boolean;
      /** The fence's own table admits its taps. */
      readonly isAdmitted: boolean;
    };

export type Recovery = { readonly state: RunState; readonly effects: readonly Effect[] };

const RESTART: readonly Effect[] = [
  { kind: 'start-vm' },
  { kind: 'close-gate', reason: 'start' },
  { kind: 'open-channel' },
  { kind: 'resume-vm', afterReset: false },
];

/**
 * Whatever is not certain is closed and begins again at `booting`, with the plan it had: the agent says hello and the
 * run goes on. Only a VM that is the same process, was connected, never stopped and is admitted stays plugged in.
 */
export function recover(
  state: RunState,
  found: Found,
  fresh: { readonly run: RunId; readonly atMs: number },
): Recovery {
  const run = runOf(state);
  if (run === null) return { state: { kind: 'off' }, effects: [{ kind: 'stage' }] };
  if (found.kind === 'none') return recoverEnded(state, run);
  const isSure = found.isSameProcess && !found.isStopped && found.isAdmitted;
  if (state.kind === 'connected' && isSure)
    return { state: { ...state, session: null }, effects: [{ kind: 'open-channel' }] };
  const close: Effect = { kind: 'close-gate', reason: 'daemon restart' };
  if (state.kind === 'quarantined') {
    return { state: { ...state, session: null, isRunning: true }, effects: [close, { kind: 'open-channel' }] };
  }
  const next: Run = isUnderWay(state) ? { ...run, liveGrant: null } : newRun(fresh);
  return {
    state: { kind: 'booting', run: next },
    effects: [close, { kind: 'open-channel' }, { kind: 'resume-vm', afterReset: true }],
  };
}

/** The VM is gone too (host reboot, power cut): a run under way starts it again; everything else is off. */
function recoverEnded(state: RunState, run: Run): Recovery {
  const goesOn = isUnderWay(state) && !run.isStopping;
  if (!goesOn) return { state: { kind: 'off' }, effects: [{ kind: 'clean-up' }, { kind: 'stage' }] };
  return { state: { kind: 'booting', run: { ...run, liveGrant: null, reboots: run.reboots + 1 } }, effects: RESTART };
}
