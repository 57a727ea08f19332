// What an operator's requests come to: start, stop, retry, admit, update. Pure.
import type { RunId } from '../model/ids.ts';
import type { Policy } from '../model/policy.ts';
import { type Effect, START } from './effect.ts';
import { askInventory, newRun, nextRun } from './new-run.ts';
import { amended, denied, moved, type Outcome } from './outcome.ts';
import { type Grant, hasVm, isUnderWay, type Run, type RunState, runOf, sessionOf } from './state.ts';

/** Power on, behind a closed gate. */
export function onStart(state: RunState, event: { readonly run: RunId; readonly atMs: number }): Outcome {
  if (hasVm(state)) return denied('already-running', `the VM is ${state.kind} already`);
  return moved({ kind: 'booting', run: newRun(event) }, ...START);
}

/** The wish to stop, kept until the VM has ended. */
export function onStop(state: RunState, force: boolean): Outcome {
  if (!hasVm(state)) return denied('not-running', 'the VM is off');
  const run = runOf(state);
  if (run === null || !('run' in state)) throw new Error('assertion failed: a VM that runs has a run');
  return amended({ ...state, run: { ...run, isStopping: true } }, { kind: 'stop-vm', graceful: !force });
}

/** A quarantined VM proves itself anew. */
export function onRetry(state: RunState, event: { readonly run: RunId; readonly atMs: number }): Outcome {
  if (state.kind !== 'quarantined')
    return denied('unexpected', `only a quarantined VM can be retried; this one is ${state.kind}`);
  const forget: Effect = { kind: 'forget-failed' };
  if (!state.isRunning) return moved({ kind: 'booting', run: newRun(event) }, forget, ...START);
  const run = nextRun(state, event);
  const close: Effect = { kind: 'close-gate', reason: 'retry' };
  // An agent may rest in a session that the run lost: its guest's reset was told after the new boot's hello.
  const open: Effect = state.session === null ? { kind: 'open-channel', asks: true } : { kind: 'open-channel' };
  const takeOver: readonly Effect[] = [
    forget,
    { kind: 'hold-vm' },
    close,
    open,
    // It may stand still since a reset whose closing failed half-way, whatever session it had.
    { kind: 'resume-vm', afterReset: true },
  ];
  if (state.session !== null) return askInventory(run, state.session, takeOver);
  return moved({ kind: 'booting', run }, ...takeOver);
}

/** The audited override. */
export function onAdmit(state: RunState, event: { readonly reason: string; readonly actor: string }): Outcome {
  if (!hasVm(state)) return denied('not-running', 'a VM that is off cannot be plugged in; start it first');
  const run = runOf(state);
  if (state.kind === 'connected' || run === null || run.liveGrant !== null)
    return denied('already-connected', 'the VM is plugged in');
  if (state.kind === 'rolling-back') return denied('under-way', 'a failed update is being rolled back; wait for it');
  const grant: Grant = { kind: 'override', reason: event.reason, actor: event.actor };
  // It may be out of our hands, or stand still: after a reset that failed half-way, or for rebooting too often.
  const first: readonly Effect[] = [
    { kind: 'hold-vm' },
    { kind: 'open-channel' },
    { kind: 'resume-vm', afterReset: true },
  ];
  // The guest may hold the drive: it goes first, by surprise if need be, so that drive and network are never there together.
  return moved({ kind: 'opening', run, session: sessionOf(state), phase: 'detaching', grant }, ...first, {
    kind: 'detach-drive',
  });
}

/** An update pushed to a VM that is plugged in, which it stays. */
export function onUpdate(
  state: RunState,
  event: { readonly run: RunId; readonly atMs: number },
  policy: Policy,
): Outcome {
  if (state.kind === 'quarantined') return onRetry(state, event);
  if (isUnderWay(state)) return denied('under-way', `a run is under way (${state.kind})`);
  if (state.kind !== 'connected')
    return denied('not-running', 'the VM is off; its updates are staged and installed when it starts');
  if (state.session === null) return denied('no-agent', 'the agent of this VM is not on the channel');
  if (policy.overlay) {
    // What it wrote since it was plugged in would be thrown away with an update that fails.
    const because = 'its policy wants updates on a disk overlay, which a VM that is plugged in cannot have';
    return denied('overlay', `${because}; restart the guest to update it, or take \`overlay\` out of its policy`);
  }
  const run: Run = { ...nextRun(state, event), liveGrant: state.grant };
  return askInventory(run, state.session, []);
}
