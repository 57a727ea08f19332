// How a run begins, and how one begins anew in a VM that goes on running.
import type { RunId } from '../model/ids.ts';
import type { Effect } from './effect.ts';
import { moved, type Outcome, send } from './outcome.ts';
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
