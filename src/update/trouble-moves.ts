// What a run comes to when something goes wrong with it: monitor lost, disk full, a guest against the rules, a deadline, a failed
// effect. Pure.
import type { RunId } from '../model/ids.ts';
import type { QuarantineReason, Trouble } from '../model/quarantine.ts';
import { mend } from './doubt.ts';
import type { RunEvent } from './event.ts';
import { amended, ignored, moved, type Outcome } from './outcome.ts';
import { fail, forgetTrial, hold, quarantine, quarantineRun } from './quarantine.ts';
import { hasVm, isUnderWay, type RunState, runOf } from './state.ts';

/** How `deadline` names a run that took too long as a whole. */
const WHOLE_RUN = 'run';

/** Whether a quarantine ends by itself when the agent comes back: it was about silence, not about content. */
export function goesOnWithAgent(reason: QuarantineReason): boolean {
  return reason.kind === 'agent-silent' || (reason.kind === 'deadline' && reason.state !== WHOLE_RUN);
}

/** Whatever is known of this VM is doubtful, its session too. */
export function onMonitorLost(state: RunState, detail: string): Outcome {
  const run = runOf(state);
  if (run === null || !hasVm(state)) return ignored('the VM is off');
  return hold(run, null, { kind: 'host-failure', step: 'monitor', detail }, []);
}

/** On a trial it may have been the update that filled the disk; otherwise somebody has to make space, and the VM goes on from there. */
export function onDiskFull(state: RunState): Outcome {
  const run = runOf(state);
  if (run === null || !run.isOnTrial || !isUnderWay(state)) return ignored('it stands still until there is space');
  const detail = 'the disk overlay found no space on its file system';
  return quarantine(state, { kind: 'host-failure', step: 'disk-full', detail });
}

/** The guest broke the channel's rules. */
export function onMisbehaved(state: RunState, event: { readonly code: string; readonly detail: string }): Outcome {
  const run = runOf(state);
  if (run === null || !hasVm(state)) return ignored('the VM is off');
  if (state.kind === 'rolling-back') return ignored('the VM is being ended');
  // The channel is cut: there is no session any more, and nothing can be asked of the agent until a channel is opened.
  const reason: Trouble = { kind: 'guest-misbehaved', code: event.code, detail: event.detail };
  const grant = state.kind === 'connected' ? state.grant : run.liveGrant;
  if (grant !== null)
    return moved({ kind: 'connected', run: { ...run, liveGrant: null }, session: null, grant, trouble: reason });
  if (state.kind === 'quarantined') return amended({ ...state, session: null });
  return quarantineRun(run, null, reason, []);
}

/** A state took too long. */
export function onDeadline(state: RunState, waitedMs: number): Outcome {
  if (!isUnderWay(state)) return ignored('no run is under way');
  if (state.kind === 'booting' || state.kind === 'reporting')
    return fail(state, { kind: 'agent-silent', waitedMs, state: state.kind });
  if (state.kind === 'opening' && state.phase === 'releasing') {
    // A guest that will not let go of the drive loses it by surprise.
    return moved({ ...state, phase: 'detaching' }, { kind: 'detach-drive', isUnanswered: true });
  }
  if (state.kind === 'offering' && state.phase === 'withdrawing') return mend(state);
  return fail(state, { kind: 'deadline', state: state.kind, waitedMs });
}

/** The run as a whole took too long. */
export function onRunDeadline(state: RunState, event: { readonly run: RunId; readonly waitedMs: number }): Outcome {
  if (!isUnderWay(state) || state.kind === 'rolling-back' || runOf(state)?.run !== event.run)
    return ignored('that run is not under way');
  return fail(state, { kind: 'deadline', state: WHOLE_RUN, waitedMs: event.waitedMs });
}

/** This host could not do its part, or QEMU died under it. */
export function onEffectFailed(
  state: RunState,
  event: Pick<Extract<RunEvent, { kind: 'effect-failed' }>, 'effect' | 'detail' | 'trouble' | 'isRunning'>,
): Outcome {
  if (state.kind === 'quarantined' && state.isRunning && !event.isRunning && event.effect === 'start-vm')
    return amended({ ...state, isRunning: false }, { kind: 'close-gate', reason: 'it could not be started' });
  if (!isUnderWay(state)) return ignored('no run is under way');
  // Whatever else fails on the way: the VM ends, and boots as before.
  if (state.kind === 'rolling-back' && event.effect !== 'stop-vm') return ignored('the VM is being ended');
  const reason: Trouble = event.trouble ?? { kind: 'host-failure', step: event.effect, detail: event.detail };
  // What could not be begun has nothing to throw away.
  if (event.isRunning && event.effect === 'begin-overlay' && state.kind === 'offering')
    return quarantine({ ...state, run: { ...state.run, isOnTrial: false } }, reason);
  // What could not be accepted is still on trial.
  if (event.isRunning && event.effect === 'accept-overlay' && state.kind === 'opening')
    return quarantine({ ...state, run: { ...state.run, isOnTrial: true } }, reason);
  // A gate that could not be opened is closed again, also one that stood open for a live update.
  if (event.isRunning && event.effect === 'open-gate') return quarantine(state, reason);
  if (event.isRunning) return fail(state, reason);
  const run = runOf(state);
  if (run === null) return ignored('no run');
  return moved(
    { kind: 'quarantined', run: forgetTrial({ ...run, liveGrant: null }), session: null, reason, isRunning: false },
    { kind: 'close-gate', reason: `quarantined: ${reason.kind}` },
    { kind: 'record-quarantine', reason },
    { kind: 'settle-overlay' },
  );
}
