// How a run begins.
import type { RunId } from '../model/ids.ts';
import type { Run } from './state.ts';

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
