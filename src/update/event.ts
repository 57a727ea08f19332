// Everything that can happen to a run: the operator, the hypervisor, the guest, the clock, and the answers of effects.
import type { Digest } from '../base/digest-text.ts';
import type { AgentMessageOf } from '../guest/messages.ts';
import type { EvidenceFacts } from '../model/evidence.ts';
import type { RunId } from '../model/ids.ts';
import type { Trouble } from '../model/quarantine.ts';
import type { ItemResult } from '../model/result.ts';
import type { PlanSummary, Session } from './state.ts';

export type OperatorEvent =
  | { readonly kind: 'start'; readonly run: RunId; readonly atMs: number }
  | { readonly kind: 'stop'; readonly force: boolean }
  | { readonly kind: 'retry'; readonly run: RunId; readonly atMs: number }
  | { readonly kind: 'admit'; readonly reason: string; readonly actor: string }
  | { readonly kind: 'update'; readonly run: RunId; readonly atMs: number }
  | { readonly kind: 'stage' };

export type HypervisorEvent =
  /** `run` is used when the reset begins a new run. */
  | { readonly kind: 'reset'; readonly isStopped: boolean; readonly run: RunId; readonly atMs: number }
  /** `isGuestsWish`: the guest powered itself off; otherwise QEMU died under it. */
  | { readonly kind: 'exited'; readonly detail: string; readonly isGuestsWish: boolean }
  | { readonly kind: 'monitor-lost'; readonly detail: string }
  /** A write of the guest found no space on the host; the VM stands still. */
  | { readonly kind: 'disk-full' }
  /** Nobody serves the drive any more that is attached to it, and why. */
  | { readonly kind: 'drive-lost'; readonly reason: Trouble }
  /** Somebody else changed the fence: what is open may be cut off, and what is closed may have one layer less. */
  | { readonly kind: 'fence-changed'; readonly detail: string; readonly run: RunId; readonly atMs: number };

export type GuestEvent =
  | { readonly kind: 'agent-opened'; readonly session: Session; readonly run: RunId; readonly atMs: number }
  | { readonly kind: 'inventory'; readonly session: Session; readonly rebootRequired: boolean }
  | {
      readonly kind: 'drive';
      readonly session: Session;
      readonly state: 'verified' | 'refused' | 'released';
      readonly manifestDigest: Digest;
      readonly code: string;
      readonly detail: string;
    }
  | {
      readonly kind: 'installed';
      readonly session: Session;
      readonly manifestDigest: Digest;
      readonly results: readonly ItemResult[];
      readonly rebootRequired: boolean;
    }
  | { readonly kind: 'confirm'; readonly session: Session; readonly confirm: AgentMessageOf<'confirm'> }
  | { readonly kind: 'misbehaved'; readonly code: string; readonly detail: string };

/** Answers of effects carry the step that asked for them: an answer to an older step is ignored. */
export type AnswerEvent =
  /** The VM ran before we came; what it did was not gated. */
  | { readonly kind: 'found-ungated'; readonly step: number; readonly detail: string }
  | { readonly kind: 'planned'; readonly step: number; readonly plan: PlanSummary; readonly rebootRequired: boolean }
  | { readonly kind: 'plan-failed'; readonly step: number; readonly reason: Trouble }
  | { readonly kind: 'fetched'; readonly step: number }
  | { readonly kind: 'staged'; readonly step: number; readonly itemCount: number; readonly sizeBytes: number }
  | { readonly kind: 'drive-attached'; readonly step: number; readonly manifestDigest: Digest }
  /** What is configured is not what was planned; `run` is that of the plan to come. */
  | { readonly kind: 'config-changed'; readonly step: number; readonly run: RunId; readonly atMs: number }
  | { readonly kind: 'drive-detached'; readonly step: number }
  | { readonly kind: 'judged'; readonly step: number; readonly evidence: EvidenceFacts }
  | { readonly kind: 'judged-refused'; readonly step: number; readonly code: string; readonly detail: string }
  | { readonly kind: 'opened'; readonly step: number }
  | {
      readonly kind: 'effect-failed';
      readonly step: number;
      readonly effect: string;
      readonly detail: string;
      /** Where there is more to say than that this host failed. */
      readonly trouble?: Trouble;
      readonly isRunning: boolean;
    };

export type ClockEvent =
  | { readonly kind: 'deadline'; readonly step: number; readonly waitedMs: number }
  /** The run as a whole took longer than its policy allows. */
  | { readonly kind: 'run-deadline'; readonly run: RunId; readonly waitedMs: number };

export type RunEvent = OperatorEvent | HypervisorEvent | GuestEvent | AnswerEvent | ClockEvent;
export type RunEventKind = RunEvent['kind'];
