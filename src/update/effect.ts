// What a move asks the runner to do. Data only; each effect is idempotent and may be run again after a crash.
import type { AgentMessageOf, HostBody } from '../guest/messages.ts';
import type { QuarantineReason } from '../model/quarantine.ts';
import type { Grant, Session } from './state.ts';

export type Effect =
  /** Start the VM paused before its first instruction, link down, behind the fence. */
  | { readonly kind: 'start-vm' }
  /** Take over a VM that runs but whose monitor we lost, or never had. */
  | { readonly kind: 'hold-vm' }
  | { readonly kind: 'stop-vm'; readonly graceful: boolean }
  /** Started at once, never queued behind other effects. */
  | { readonly kind: 'close-gate'; readonly reason: string }
  /** `asks`: an agent that is there already is asked for a hello, whatever session it believes in. */
  | { readonly kind: 'open-channel'; readonly asks?: true }
  | { readonly kind: 'close-channel' }
  /** Let the VM run, after a start or a stopped reset; refused by the gate unless it is verified closed. */
  | { readonly kind: 'resume-vm'; readonly afterReset: boolean }
  | { readonly kind: 'send'; readonly body: HostBody }
  | { readonly kind: 'stage' }
  | { readonly kind: 'make-plan' }
  | { readonly kind: 'fetch-plan' }
  /** From now on the guest writes to an overlay of its disks (kept if there is one already). */
  | { readonly kind: 'begin-overlay' }
  /** What the overlay holds belongs to the VM, whatever happens from now on. */
  | { readonly kind: 'accept-overlay' }
  /** Begin to merge an accepted overlay into the disks, beside the run: nothing waits for it. */
  | { readonly kind: 'commit-overlay' }
  /** The VM is off: merge an accepted overlay, throw any other away. */
  | { readonly kind: 'settle-overlay' }
  /** Remember which versions failed: they are not tried again by themselves. */
  | { readonly kind: 'remember-failed'; readonly reason: Extract<QuarantineReason, { kind: 'rolled-back' }> }
  /** The operator's word: what failed before may be tried again. */
  | { readonly kind: 'forget-failed' }
  /** Build the drive of the run's plan and attach it (kept if it is attached already). */
  | { readonly kind: 'attach-drive' }
  /** `isUnanswered`: the guest was asked to let go of it, and did not say so in its time. */
  | { readonly kind: 'detach-drive'; readonly isUnanswered?: true }
  | { readonly kind: 'judge'; readonly session: Session; readonly confirm: AgentMessageOf<'confirm'> }
  | { readonly kind: 'open-gate'; readonly grant: Grant }
  | { readonly kind: 'record-quarantine'; readonly reason: QuarantineReason }
  /** Hash the stored blobs of the run's plan again: the guest read something else from the drive. Damaged ones are fetched anew. */
  | { readonly kind: 'verify-blobs' }
  /** Let go of what the run held: drive folder, pins, plan. */
  | { readonly kind: 'clean-up' };

export type EffectKind = Effect['kind'];

/** A VM from off to its first instruction, behind a closed gate. */
export const START: readonly Effect[] = [
  { kind: 'start-vm' },
  { kind: 'close-gate', reason: 'start' },
  { kind: 'open-channel' },
  { kind: 'resume-vm', afterReset: false },
];
