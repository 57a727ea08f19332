// How a run begins, and how one begins anew in a VM that goes on running.
import { REPLANS_MAX } from '../base/limits.ts';
import type { RunId } from '../model/ids.ts';
import type { Effect } from './effect.ts';
import { moved, type Outcome, send } from './outcome.ts';
import { fail } from './quarantine.ts';
import { type Run, type RunState, runOf, type Session } from './state.ts';

/** A run that has just begun. */
export function newRun(options: { readonly run: RunId; readonly atMs: number }): Run {
  return {
    run: options.run,
    startedAtMs: options.atMs,
    liveGrant: null,
    isStopping: false,
    reboots: 0,
    sessions: 0,
    offersSent: 0,
    plan: null,
    manifests: [],
    isInstalled: false,
    isOnTrial: false,
  };
}

/** A new run of a VM that goes on running. The wish to stop outlives the run it was made in: a guest may reset instead. So does a trial. */
export function nextRun(state: RunState, options: { readonly run: RunId; readonly atMs: number }): Run {
  const before = runOf(state);
  return { ...newRun(options), isStopping: before?.isStopping === true, isOnTrial: before?.isOnTrial === true };
}

/** A run whose agent is there: it begins with what the guest has. */
export function askInventory(run: Run, session: Session, first: readonly Effect[]): Outcome {
  return moved({ kind: 'reporting', run, session }, ...first, send({ type: 'ask-inventory' }));
}

/**
 * What is configured changed between the plan and its drive: a run of its own, for no result of the old plan may count for the new
 * one. What the old one has used up stays used up.
 */
export function planAnew(
  state: Extract<RunState, { kind: 'offering' }>,
  options: { readonly run: RunId; readonly atMs: number },
): Outcome {
  const { startedAtMs, liveGrant, reboots, sessions, offersSent, doubts, replans = 0 } = state.run;
  if (replans >= REPLANS_MAX) {
    const detail = 'what is configured for it changes faster than it is applied';
    return fail(state, { kind: 'plan-refused', code: 'guest-config', detail });
  }
  const used = { startedAtMs, liveGrant, reboots, sessions, offersSent, ...(doubts === undefined ? {} : { doubts }) };
  return askInventory({ ...nextRun(state, options), ...used, replans: replans + 1 }, state.session, []);
}
