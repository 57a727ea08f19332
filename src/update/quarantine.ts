// What a run that fails comes to: a live update leaves the VM as it was, any other is gated, and what was on trial on a disk
// overlay (X5) is thrown away with the VM that ran on it. Pure.
import type { QuarantineReason, Trouble } from '../model/quarantine.ts';
import type { Effect } from './effect.ts';
import { amended, ignored, moved, type Outcome, send } from './outcome.ts';
import { hasVm, isGateOpen, type Run, type RunState, runOf, type Session, sessionOf } from './state.ts';

/** A live update that fails leaves the VM as it was; any other run ends in quarantine. */
export function fail(state: RunState, reason: Trouble): Outcome {
  const run = runOf(state);
  if (run === null) return ignored('no run');
  if (!isGateOpen(state)) return quarantine(state, reason);
  const session = sessionOf(state);
  const grant = run.liveGrant;
  if (grant === null) return ignored('the VM is plugged in and no run is under way');
  const back = run.manifests.length > 0 && session !== null ? [sendRelease(run)] : [];
  return moved({ kind: 'connected', run: { ...run, liveGrant: null }, session, grant, trouble: reason }, ...back);
}

/** Gated for good, whatever stood open. */
export function quarantine(state: RunState, reason: Trouble): Outcome {
  const run = runOf(state);
  if (run === null) return ignored('no run');
  return quarantineRun(run, sessionOf(state), reason, []);
}

/** Gated for good; what was on trial is thrown away with the VM that ran on it, and the VM boots as before. */
export function quarantineRun(run: Run, session: Session | null, reason: Trouble, first: readonly Effect[]): Outcome {
  if (!run.isOnTrial) return hold(run, session, reason, first);
  const { state, effects } = rolledBack(run, reason);
  const close: Effect = { kind: 'close-gate', reason: `rolled back: ${reason.kind}` };
  return moved(state, ...effects, ...first, close, { kind: 'stop-vm', graceful: false });
}

/** The VM goes on as it is, gated; an overlay it may have stays on trial until the VM ends. */
export function hold(run: Run, session: Session | null, reason: Trouble, first: readonly Effect[]): Outcome {
  const tell: Effect[] =
    session === null ? [] : [send({ type: 'hold', code: reason.kind, detail: 'see `pratique vm why` on the host' })];
  if (session !== null && run.manifests.length > 0) tell.push(sendRelease(run));
  return moved(
    { kind: 'quarantined', run: { ...run, liveGrant: null }, session, reason, isRunning: true },
    // The record first: closing starts at once wherever it stands, and what follows it does not run if it fails.
    { kind: 'record-quarantine', reason },
    ...first,
    { kind: 'close-gate', reason: `quarantined: ${reason.kind}` },
    ...tell,
  );
}

/** The guest's reads fail for good while it needs them; or it may not read any more what a license guards, and that is taken away at once. */
export function loseDrive(state: RunState, reason: Trouble): Outcome {
  if (reason.kind === 'license-refused') return withdrawLicensed(state, reason);
  const isRead = state.kind === 'installing' || (state.kind === 'offering' && state.phase === 'offered');
  return isRead ? fail(state, reason) : ignored('nothing is read from the drive now');
}

/** Before and during the installation the run ends by it; afterwards only the drive goes. Whoever is plugged in stays so. */
function withdrawLicensed(state: RunState, reason: Trouble): Outcome {
  const detach: Effect = { kind: 'detach-drive' };
  const isNeeded = state.kind === 'installing' || (state.kind === 'offering' && state.phase !== 'withdrawing');
  if (!isNeeded) return hasVm(state) ? amended(state, detach) : ignored('the VM is off');
  const failed = fail(state, reason);
  return failed.kind === 'moved' ? { ...failed, effects: [...failed.effects, detach] } : failed;
}

/** Asks the guest to let go of the drive. */
export function sendRelease(run: Run): Effect {
  const manifestDigest = run.manifests.at(-1);
  if (manifestDigest === undefined) throw new Error('assertion failed: only a drive that was offered is asked back');
  return send({ type: 'release', run: run.run, manifestDigest });
}

// ---- Rolling back -------------------------------------------------------------------------------------------------

type RolledBack = Extract<QuarantineReason, { kind: 'rolled-back' }>;
type RollingBack = Extract<RunState, { kind: 'rolling-back' }>;

/** The run without what its guest wrote on trial: its disk is as before the first offer. Its counters stay, so that it is bounded. */
export function forgetTrial(run: Run): Run {
  if (!run.isOnTrial) return run;
  return { ...run, isOnTrial: false, isInstalled: false, manifests: [] };
}

/** Which versions are to blame: none where the host failed, its disk told nothing or nothing was offered, the one that the guest named, or all of the plan. */
function reasonOf(run: Run, cause: Trouble): RolledBack {
  const isHosts = ['host-failure', 'vendor-unavailable', 'license-refused'].includes(cause.kind);
  const isUnread = cause.kind === 'confirm-refused' && cause.code === 'disk-unread';
  if (isHosts || isUnread || run.manifests.length === 0) return { kind: 'rolled-back', versions: [], cause };
  const all = run.plan?.versions ?? [];
  const named = cause.kind === 'install-failed' ? all.filter(({ item }) => item === cause.item) : [];
  return { kind: 'rolled-back', versions: named.length > 0 ? named : all, cause };
}

/** The first half: recorded and remembered, before the VM is ended. */
export function rolledBack(
  run: Run,
  cause: Trouble,
): { readonly state: RollingBack; readonly effects: readonly Effect[] } {
  const reason = reasonOf(run, cause);
  return {
    // Without its plan: whatever becomes of this run, an admission that a crash cut off for one, does not install it again.
    state: { kind: 'rolling-back', run: { ...forgetTrial(run), liveGrant: null, plan: null }, reason },
    effects: [
      { kind: 'remember-failed', reason },
      { kind: 'record-quarantine', reason },
    ],
  };
}

/** The second half: the VM is off, and boots from its disk as it was. */
export function bootsAgain({ run, reason }: RollingBack): RunState {
  return { kind: 'quarantined', run, session: null, reason, isRunning: true };
}
