// The pure heart of a run: (state, event) -> new state and effects, or ignored, or denied. No clock, no I/O, no chance.
import type { Digest } from '../base/digest-text.ts';
import { OFFERS_MAX, REBOOTS_MAX, SESSIONS_PER_RUN_MAX } from '../base/limits.ts';
import type { HostBody } from '../guest/messages.ts';
import type { RunId } from '../model/ids.ts';
import type { Policy } from '../model/policy.ts';
import type { Trouble } from '../model/quarantine.ts';
import { failOrDoubt, mend } from './doubt.ts';
import { type Effect, START } from './effect.ts';
import type { GuestEvent, RunEvent } from './event.ts';
import { askInventory, nextRun, planAnew } from './new-run.ts';
import { onAdmit, onRetry, onStart, onStop, onUpdate } from './operator-moves.ts';
import { amended, denied, ignored, moved, type Outcome, send } from './outcome.ts';
import {
  bootsAgain,
  fail,
  forgetTrial,
  hold,
  loseDrive,
  quarantine,
  quarantineRun,
  rolledBack,
  sendRelease,
} from './quarantine.ts';
import {
  type Grant,
  hasVm,
  isGateOpen,
  isUnderWay,
  type Journaled,
  type Run,
  type RunState,
  runOf,
  type Session,
  sessionOf,
} from './state.ts';
import {
  goesOnWithAgent,
  onDeadline,
  onDiskFull,
  onEffectFailed,
  onMisbehaved,
  onMonitorLost,
  onRunDeadline,
} from './trouble-moves.ts';

/** The next state of a run. Total: every state answers every event. */
export function transition(journaled: Journaled, event: RunEvent, policy: Policy): Outcome {
  const { state, step } = journaled;
  if ('step' in event && event.step !== step) return ignored('it answers an earlier step');
  switch (event.kind) {
    case 'start':
      return onStart(state, event);
    case 'stop':
      return onStop(state, event.force);
    case 'retry':
      return onRetry(state, event);
    case 'admit':
      return onAdmit(state, event);
    case 'update':
      return onUpdate(state, event, policy);
    case 'stage':
      return state.kind === 'off' || state.kind === 'staged' ? moved(state, { kind: 'stage' }) : ignored('the VM runs');
    case 'reset':
      return onReset(state, event);
    case 'exited':
      return onExited(state, event.isGuestsWish);
    case 'monitor-lost':
      return onMonitorLost(state, event.detail);
    case 'disk-full':
      return onDiskFull(state);
    case 'drive-lost':
      return loseDrive(state, event.reason);
    case 'fence-changed':
      return onFenceChanged(state, event);
    case 'agent-opened':
      return onAgentOpened(state, event);
    case 'misbehaved':
      return onMisbehaved(state, event);
    case 'inventory':
    case 'drive':
    case 'installed':
    case 'confirm':
      return onGuestMessage(state, event, policy);
    case 'deadline':
      return onDeadline(state, event.waitedMs);
    case 'run-deadline':
      return onRunDeadline(state, event);
    case 'effect-failed':
      return onEffectFailed(state, event);
    case 'found-ungated':
    case 'planned':
    case 'plan-failed':
    case 'fetched':
    case 'staged':
    case 'drive-attached':
    case 'config-changed':
    case 'drive-detached':
    case 'judged':
    case 'judged-refused':
    case 'opened':
      return onAnswer(state, event, policy);
    default:
      return event satisfies never;
  }
}

// ---- The hypervisor -----------------------------------------------------------------------------------------------

function onReset(
  state: RunState,
  event: { readonly isStopped: boolean; readonly run: RunId; readonly atMs: number },
): Outcome {
  if (!hasVm(state)) return ignored('the VM is off');
  if (state.kind === 'rolling-back') return ignored('the VM is being ended');
  const close: Effect = { kind: 'close-gate', reason: 'guest reset' };
  const resume: readonly Effect[] = event.isStopped ? [{ kind: 'resume-vm', afterReset: true }] : [];
  const run = isUnderWay(state) ? rebootedRun(state) : nextRun(state, event);
  if (run.reboots > REBOOTS_MAX) {
    // The VM stays stopped where it is: a guest that only reboots gets no more processor time.
    return quarantineRun(run, null, { kind: 'too-many-reboots', reboots: run.reboots }, [close]);
  }
  // A channel that was cut for the guest's misbehaviour is opened anew for the next boot.
  return moved({ kind: 'booting', run }, close, { kind: 'open-channel' }, ...resume);
}

/** Closed again in any case; what was open proves itself anew, which takes an up-to-date VM a moment. */
function onFenceChanged(state: RunState, event: { readonly run: RunId; readonly atMs: number }): Outcome {
  if (!hasVm(state)) return ignored('the VM is off');
  const close: Effect = { kind: 'close-gate', reason: 'the fence was changed by somebody else' };
  if (!isGateOpen(state)) return amended(state, close);
  const run = nextRun(state, event);
  const session = sessionOf(state);
  if (session !== null) return askInventory(run, session, [close]);
  return moved({ kind: 'booting', run }, close, { kind: 'open-channel' });
}

/** The run of a state under way, one reboot later, no longer live: whatever rebooted is gated again. */
function rebootedRun(state: RunState): Run {
  const run = runOf(state);
  if (run === null) throw new Error('assertion failed: a state under way has a run');
  return { ...run, liveGrant: null, reboots: run.reboots + 1 };
}

function onExited(state: RunState, isGuestsWish: boolean): Outcome {
  if (!hasVm(state)) return ignored('the VM is off');
  const leave: readonly Effect[] = [
    { kind: 'close-gate', reason: 'the VM ended' },
    { kind: 'close-channel' },
    { kind: 'settle-overlay' },
  ];
  const isStopping = runOf(state)?.isStopping === true;
  // While it is rolled back we end it, whatever the guest does at that moment.
  if (state.kind === 'rolling-back' && !isStopping) return moved(bootsAgain(state), ...leave, ...START);
  const isWanted = isGuestsWish || isStopping;
  if (state.kind === 'quarantined' && !isWanted) {
    // Why it was quarantined is still the answer to why it is not plugged in; often it is why it died, too.
    return moved({ ...state, run: forgetTrial(state.run), session: null, isRunning: false }, ...leave);
  }
  if (isWanted || !isUnderWay(state)) return moved({ kind: 'off' }, ...leave, { kind: 'clean-up' }, { kind: 'stage' });
  const run = rebootedRun(state);
  if (run.reboots > REBOOTS_MAX) {
    const reason: Trouble = { kind: 'too-many-reboots', reboots: run.reboots };
    if (run.isOnTrial) {
      const back = rolledBack(run, reason);
      return moved(bootsAgain(back.state), ...back.effects, ...leave, ...START);
    }
    const record: Effect = { kind: 'record-quarantine', reason };
    return moved({ kind: 'quarantined', run, session: null, isRunning: false, reason }, record, ...leave);
  }
  // QEMU died in the middle of a run: the run goes on by itself, without what it had on trial.
  return moved({ kind: 'booting', run: forgetTrial(run) }, ...leave, ...START);
}

// ---- The guest ----------------------------------------------------------------------------------------------------

function onAgentOpened(
  state: RunState,
  event: { readonly session: Session; readonly run: RunId; readonly atMs: number },
): Outcome {
  if (!hasVm(state)) return ignored('the VM is off');
  if (state.kind === 'rolling-back') return ignored('the VM is being ended');
  const { session } = event;
  const before = sessionOf(state);
  const knownBoot = before?.boot ?? judgedBoot(state);
  const isOtherBoot = knownBoot !== null && knownBoot !== session.boot;
  // A boot that no reset announced (kexec): what runs now was never judged. And what an earlier session confirmed does
  // not open the gate in this one, not even while it is being opened.
  const close: readonly Effect[] =
    isOtherBoot || state.kind === 'opening'
      ? [{ kind: 'close-gate', reason: isOtherBoot ? 'the guest booted again' : 'the agent began a new session' }]
      : [];
  if (state.kind === 'connected' && !isOtherBoot) return amended({ ...state, session });
  if (state.kind === 'connected' || state.kind === 'quarantined') {
    if (state.kind === 'quarantined' && !isOtherBoot && !goesOnWithAgent(state.reason))
      return amended({ ...state, session });
    return askInventory(nextRun(state, event), session, close);
  }
  if (state.kind === 'opening' && state.grant.kind === 'override' && !isOtherBoot)
    return amended({ ...state, session });
  const current = runOf(state);
  if (current === null) return ignored('no run');
  const run = isOtherBoot ? rebootedRun(state) : current;
  if (run.reboots > REBOOTS_MAX)
    return quarantineRun(run, session, { kind: 'too-many-reboots', reboots: run.reboots }, close);
  if (run.sessions >= SESSIONS_PER_RUN_MAX) {
    const detail = `its agent began ${run.sessions} sessions without ending its run`;
    return quarantineRun(run, session, { kind: 'guest-misbehaved', code: 'too-many-sessions', detail }, close);
  }
  return askInventory({ ...run, sessions: run.sessions + 1 }, session, close);
}

/** The boot whose confirmation opened the gate: known also after a restart of the daemon, which ends the session. */
function judgedBoot(state: RunState): string | null {
  return state.kind === 'connected' && state.grant.kind === 'evidence' ? state.grant.evidence.boot : null;
}

type MessageEvent = Extract<GuestEvent, { kind: 'inventory' | 'drive' | 'installed' | 'confirm' }>;

function onGuestMessage(state: RunState, event: MessageEvent, policy: Policy): Outcome {
  const session = sessionOf(state);
  if (session === null || session.nonce !== event.session.nonce)
    return denied('unexpected', 'the message is not of the present session');
  switch (event.kind) {
    case 'inventory':
      return onInventory(state, event.rebootRequired, policy);
    case 'drive':
      return onDrive(state, event);
    case 'installed':
      return onInstalled(state, event, policy);
    case 'confirm':
      if (state.kind !== 'judging') return denied('unexpected', `a confirmation is not expected while ${state.kind}`);
      if (state.phase === 'weighing') return denied('unexpected', 'an earlier confirmation is being judged');
      return moved({ ...state, phase: 'weighing' }, { kind: 'judge', session, confirm: event.confirm });
    default:
      return event satisfies never;
  }
}

function onInventory(state: RunState, rebootRequired: boolean, policy: Policy): Outcome {
  if (state.kind !== 'reporting') return ignored(`kept for the record while ${state.kind}`);
  const { run, session } = state;
  if (run.plan === null) return moved({ kind: 'planning', run, session, phase: 'comparing' }, { kind: 'make-plan' });
  if (run.isInstalled || run.plan.itemCount === 0) return finish(run, session, rebootRequired, policy);
  // The guest came back in the middle: same plan, same drive, the agent goes on where it was. It may have come back before
  // all was fetched; what is there is not fetched again.
  return moved({ kind: 'planning', run, session, phase: 'fetching' }, { kind: 'fetch-plan' });
}

/** Nothing is left to install; what was installed before this session began may still need its reboot. */
function finish(run: Run, session: Session, rebootRequired: boolean, policy: Policy): Outcome {
  if (!rebootRequired) return askConfirm(run, session);
  const rebooting: RunState = { kind: 'rebooting', run, session, phase: 'waiting' };
  if (!policy.allowReboot) return refuseReboot(rebooting);
  return moved(rebooting, send({ type: 'reboot', run: run.run }));
}

function refuseReboot(state: RunState): Outcome {
  return fail(state, { kind: 'plan-refused', code: 'reboot-not-allowed', detail: 'the updates need a reboot' });
}

function askConfirm(run: Run, session: Session): Outcome {
  if (run.plan === null) throw new Error('assertion failed: only a planned run is judged');
  const body: HostBody = {
    type: 'ask-confirm',
    run: run.run,
    planDigest: run.plan.digest,
    manifestDigest: run.manifests.at(-1) ?? null,
  };
  return moved({ kind: 'judging', run, session, phase: 'asking' }, send(body));
}

function onDrive(state: RunState, event: Extract<GuestEvent, { kind: 'drive' }>): Outcome {
  if (event.state === 'released') return onReleased(state);
  const isOurs = runOf(state)?.manifests.at(-1) === event.manifestDigest;
  if (state.kind !== 'offering' || state.phase === 'withdrawing' || !isOurs)
    return denied('unexpected', `word of a drive is not expected while ${state.kind}`);
  if (event.state === 'refused') {
    return failOrDoubt(state, event.code, { kind: 'drive-refused', code: event.code, detail: event.detail });
  }
  return moved({ kind: 'installing', run: state.run, session: state.session });
}

function onReleased(state: RunState): Outcome {
  const detach: Effect = { kind: 'detach-drive' };
  if (state.kind === 'rebooting' && state.phase === 'releasing') return moved({ ...state, phase: 'detaching' }, detach);
  if (state.kind === 'opening' && state.phase === 'releasing') return moved({ ...state, phase: 'detaching' }, detach);
  if (state.kind === 'offering' && state.phase === 'withdrawing') return mend(state);
  if (state.kind === 'quarantined' || state.kind === 'connected') return amended(state, detach);
  return denied('unexpected', `the drive was not asked back while ${state.kind}`);
}

function onInstalled(state: RunState, event: Extract<GuestEvent, { kind: 'installed' }>, policy: Policy): Outcome {
  const isOurs = runOf(state)?.manifests.at(-1) === event.manifestDigest;
  const isOffered = state.kind === 'installing' || (state.kind === 'offering' && state.phase !== 'withdrawing');
  if (!isOffered || !isOurs) {
    return denied('unexpected', `a report of an installation is not expected while ${state.kind}`);
  }
  const failed = event.results.find((result) => result.outcome !== 'installed');
  if (failed !== undefined) {
    const code = failed.code ?? failed.outcome;
    return failOrDoubt(state, code, { kind: 'install-failed', item: failed.item, code, detail: failed.output ?? '' });
  }
  const run: Run = { ...state.run, isInstalled: true };
  if (!event.rebootRequired) return askConfirm(run, state.session);
  if (!policy.allowReboot) return refuseReboot({ ...state, run });
  return moved({ kind: 'rebooting', run, session: state.session, phase: 'releasing' }, sendRelease(run));
}

// ---- Answers of effects -------------------------------------------------------------------------------------------

type Answer = Extract<
  RunEvent,
  {
    kind:
      | 'found-ungated'
      | 'planned'
      | 'plan-failed'
      | 'fetched'
      | 'staged'
      | 'drive-attached'
      | 'config-changed'
      | 'drive-detached'
      | 'judged'
      | 'judged-refused'
      | 'opened';
  }
>;

function onAnswer(state: RunState, event: Answer, policy: Policy): Outcome {
  switch (event.kind) {
    case 'found-ungated':
      return quarantine(state, { kind: 'ungated-start', detail: event.detail });
    case 'staged':
      if (state.kind !== 'off' && state.kind !== 'staged') return ignored('the VM runs');
      return moved({ kind: 'staged', itemCount: event.itemCount, sizeBytes: event.sizeBytes });
    case 'planned': {
      if (state.kind !== 'planning') return ignored('nothing is planned now');
      return onPlanned(state, event, policy);
    }
    case 'plan-failed':
      if (state.kind !== 'planning') return ignored('nothing is planned now');
      return onPlanFailed(state, event.reason, policy);
    case 'fetched':
      if (state.kind !== 'planning') return ignored('nothing is fetched now');
      return onFetched(state, policy);
    case 'drive-attached':
      return state.kind === 'offering'
        ? onDriveAttached(state, event.manifestDigest)
        : ignored('no drive is offered now');
    case 'config-changed':
      return state.kind === 'offering' && state.phase === 'attaching'
        ? planAnew(state, event)
        : ignored('no drive is made now');
    case 'drive-detached':
      return onDriveDetached(state);
    case 'judged':
      return state.kind === 'judging'
        ? onEvidence(state.run, state.session, { kind: 'evidence', evidence: event.evidence })
        : ignored('nothing is judged now');
    case 'judged-refused':
      return state.kind === 'judging'
        ? onRefused(state, { kind: 'confirm-refused', code: event.code, detail: event.detail })
        : ignored('nothing is judged now');
    case 'opened':
      return onOpened(state);
    default:
      return event satisfies never;
  }
}

/**
 * What was installed is well, but something else stays behind, or what is known of the vendor is too old: there is nothing to
 * throw away, and the gate stays closed. The judge says so only after everything else was right.
 */
function onRefused(
  state: Extract<RunState, { kind: 'judging' }>,
  reason: Extract<Trouble, { kind: 'confirm-refused' }>,
): Outcome {
  const isWell = reason.code === 'left-out' || reason.code === 'metadata-old';
  if (!state.run.isOnTrial || !isWell) return fail(state, reason);
  const keep: readonly Effect[] = [{ kind: 'accept-overlay' }, { kind: 'commit-overlay' }];
  return hold({ ...state.run, isOnTrial: false }, state.session, reason, keep);
}

function onPlanned(
  state: Extract<RunState, { kind: 'planning' }>,
  { plan, rebootRequired }: Extract<Answer, { kind: 'planned' }>,
  policy: Policy,
): Outcome {
  const run: Run = { ...state.run, plan };
  if (plan.itemCount === 0) return finish(run, state.session, rebootRequired, policy);
  const planning: RunState = { kind: 'planning', run, session: state.session, phase: 'fetching' };
  const isGatedForConfig = run.liveGrant !== null && policy.configChange === 'gate' && (plan.configCount ?? 0) > 0;
  if (!isGatedForConfig) return moved(planning, { kind: 'fetch-plan' });
  // From here on it is a run like that of a VM that has just started: it is plugged in again by its own evidence.
  const close: Effect = { kind: 'close-gate', reason: 'its configuration changes' };
  return moved({ ...planning, run: { ...run, liveGrant: null } }, close, { kind: 'fetch-plan' });
}

function onPlanFailed(state: Extract<RunState, { kind: 'planning' }>, reason: Trouble, policy: Policy): Outcome {
  const mayAdmit = policy.infrastructure && reason.kind === 'vendor-unavailable' && state.run.liveGrant === null;
  if (!mayAdmit) return fail(state, reason);
  const grant: Grant = {
    kind: 'override',
    reason: `infrastructure VM, ${reason.vendor} cannot be reached`,
    actor: 'policy',
  };
  return plug(state.run, state.session, grant);
}

/** Only before anything was offered: what is thrown away then is a boot, and the disk is as a power cut would have left it. */
function onFetched({ run, session }: Extract<RunState, { kind: 'planning' }>, policy: Policy): Outcome {
  const isOnTrial = run.isOnTrial || (policy.overlay && run.liveGrant === null && run.manifests.length === 0);
  const begin: readonly Effect[] = isOnTrial ? [{ kind: 'begin-overlay' }] : [];
  const offering: RunState = { kind: 'offering', run: { ...run, isOnTrial }, session, phase: 'attaching' };
  return moved(offering, ...begin, { kind: 'attach-drive' });
}

function onDriveAttached(state: Extract<RunState, { kind: 'offering' }>, manifestDigest: Digest): Outcome {
  const { plan } = state.run;
  if (plan === null) throw new Error('assertion failed: a drive is made from a plan');
  const isKnown = state.run.manifests.includes(manifestDigest);
  const manifests = isKnown ? state.run.manifests : [...state.run.manifests, manifestDigest];
  const run: Run = { ...state.run, manifests, offersSent: state.run.offersSent + 1 };
  if (run.offersSent > OFFERS_MAX) return fail({ ...state, run }, { kind: 'too-many-offers', offers: OFFERS_MAX });
  const offer: HostBody = { type: 'offer', run: run.run, planDigest: plan.digest, manifestDigest, label: 'PRATIQUE' };
  return moved({ kind: 'offering', run, session: state.session, phase: 'offered' }, send(offer));
}

function onDriveDetached(state: RunState): Outcome {
  if (state.kind === 'rebooting' && state.phase === 'detaching') {
    return moved({ ...state, phase: 'waiting' }, send({ type: 'reboot', run: state.run.run }));
  }
  if (state.kind === 'opening' && state.phase === 'detaching') return plug(state.run, state.session, state.grant);
  return ignored('the drive is gone');
}

function onEvidence(run: Run, session: Session, grant: Grant): Outcome {
  if (run.manifests.length === 0) return plug(run, session, grant);
  return moved({ kind: 'opening', run, session, phase: 'releasing', grant }, sendRelease(run));
}

function plug(run: Run, session: Session | null, grant: Grant): Outcome {
  // Whoever is plugged in keeps what it writes: that is on disk before the gate opens.
  const accept: readonly Effect[] = run.isOnTrial ? [{ kind: 'accept-overlay' }] : [];
  const kept: Run = { ...run, isOnTrial: false };
  return moved({ kind: 'opening', run: kept, session, phase: 'plugging', grant }, ...accept, {
    kind: 'open-gate',
    grant,
  });
}

function onOpened(state: RunState): Outcome {
  if (state.kind !== 'opening') return ignored('nothing is being opened');
  const { run, session, grant } = state;
  const tell: readonly Effect[] = session === null ? [] : [send({ type: 'admitted', run: run.run })];
  const settled: Run = { ...run, liveGrant: null };
  const after: readonly Effect[] = [{ kind: 'commit-overlay' }, { kind: 'clean-up' }];
  return moved({ kind: 'connected', run: settled, session, grant, trouble: null }, ...tell, ...after);
}
