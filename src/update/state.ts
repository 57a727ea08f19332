// The states of one VM's run. Each carries exactly the data that exists in it. The diagram is in ARCHITECTURE.md.

import type { Digest } from '../base/digest-text.ts';
import type { EvidenceFacts } from '../model/evidence.ts';
import type { RunId } from '../model/ids.ts';
import type { FailedVersion, QuarantineReason } from '../model/quarantine.ts';

/** One passage from closed to open. It outlives reboots of the guest and restarts of the daemon. */
export type Run = {
  readonly run: RunId;
  readonly startedAtMs: number;
  /** What had opened the gate when this run began, if it stays open meanwhile (an update pushed to a VM that is plugged in). */
  readonly liveGrant: Grant | null;
  /** The operator asked for a stop: the end of the VM ends the run instead of beginning it anew. */
  readonly isStopping: boolean;
  /** Boots of the guest within this run, the first not counted. */
  readonly reboots: number;
  /** Sessions of the agent within this run: one that says hello again and again must not put its deadline off for ever. */
  readonly sessions: number;
  /** Offers sent in this run: an agent that dies at each offer must not go on for ever. */
  readonly offersSent: number;
  /** Times that this run's guest read something else than was announced and the host looked at its copies; absent: none. */
  readonly doubts?: number;
  /** Times that it was planned anew because what is configured had changed; absent: none. */
  readonly replans?: number;
  readonly plan: PlanSummary | null;
  /** Digest of every manifest offered in any boot of this run, the last one last. */
  readonly manifests: readonly Digest[];
  /** The agent reported every item of the plan as installed. */
  readonly isInstalled: boolean;
  /** It installs on a disk overlay (X5) that is thrown away unless the gate opens. */
  readonly isOnTrial: boolean;
};

export type PlanSummary = {
  readonly digest: Digest;
  readonly itemCount: number;
  /** How many of them are configuration; absent: none. */
  readonly configCount?: number;
  readonly sizeBytes: number;
  /** The first of its versions, by the ids of their items. */
  readonly versions: readonly FailedVersion[];
};

/** The channel session that a step belongs to. */
export type Session = { readonly nonce: string; readonly boot: string };

/** What opened the gate. */
export type Grant =
  | { readonly kind: 'evidence'; readonly evidence: EvidenceFacts }
  | { readonly kind: 'override'; readonly reason: string; readonly actor: string };

export type RunState =
  | { readonly kind: 'off' }
  | { readonly kind: 'staged'; readonly itemCount: number; readonly sizeBytes: number }
  | { readonly kind: 'booting'; readonly run: Run }
  | { readonly kind: 'reporting'; readonly run: Run; readonly session: Session }
  | {
      readonly kind: 'planning';
      readonly run: Run;
      readonly session: Session;
      readonly phase: 'comparing' | 'fetching';
    }
  | {
      readonly kind: 'offering';
      readonly run: Run;
      readonly session: Session;
      /** `withdrawing`: the guest read something else than was announced; it is asked to let go of the drive. */
      readonly phase: 'attaching' | 'offered' | 'withdrawing';
    }
  | { readonly kind: 'installing'; readonly run: Run; readonly session: Session }
  | {
      readonly kind: 'rebooting';
      readonly run: Run;
      readonly session: Session;
      readonly phase: 'releasing' | 'detaching' | 'waiting';
    }
  | { readonly kind: 'judging'; readonly run: Run; readonly session: Session; readonly phase: 'asking' | 'weighing' }
  | {
      readonly kind: 'opening';
      readonly run: Run;
      readonly session: Session | null;
      readonly phase: 'releasing' | 'detaching' | 'plugging';
      readonly grant: Grant;
    }
  /** The VM is being ended and its overlay thrown away; then it boots as before. */
  | {
      readonly kind: 'rolling-back';
      readonly run: Run;
      readonly reason: Extract<QuarantineReason, { kind: 'rolled-back' }>;
    }
  | {
      readonly kind: 'connected';
      readonly run: Run;
      readonly session: Session | null;
      readonly grant: Grant;
      /** Why the last live update did not end well; the VM stays as it was. */
      readonly trouble: QuarantineReason | null;
    }
  | {
      readonly kind: 'quarantined';
      readonly run: Run;
      readonly session: Session | null;
      readonly reason: QuarantineReason;
      /** Whether the VM runs (unplugged) or is off. */
      readonly isRunning: boolean;
    };

export type RunStateKind = RunState['kind'];

/** A state with the number of moves that led to it; answers of effects that belong to an earlier move are recognised by it. */
export type Journaled = { readonly step: number; readonly state: RunState };

/** Whether the gate is meant to be open in this state. Everything else is closed. */
export function isGateOpen(state: RunState): boolean {
  if (state.kind === 'connected') return true;
  return 'run' in state && state.run.liveGrant !== null;
}

/** Whether there is a VM: it runs, or is being started. */
export function hasVm(state: RunState): boolean {
  if (state.kind === 'off' || state.kind === 'staged') return false;
  return state.kind !== 'quarantined' || state.isRunning;
}

/** The run of a state that has one. */
export function runOf(state: RunState): Run | null {
  return 'run' in state ? state.run : null;
}

/** The channel session of a state that has one. */
export function sessionOf(state: RunState): Session | null {
  return 'session' in state ? state.session : null;
}

/** Whether a run is under way: neither off nor settled. */
export function isUnderWay(state: RunState): boolean {
  return state.kind !== 'off' && state.kind !== 'staged' && state.kind !== 'connected' && state.kind !== 'quarantined';
}
