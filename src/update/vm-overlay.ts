// The disk overlay of one VM's update (X5): begun before the drive is shown, accepted before the gate opens, merged or thrown away.
import { describeError } from '../base/errors.ts';
import {
  OVERLAY_BYTES_PER_PLAN_BYTE,
  OVERLAY_FREE_BYTES_MIN,
  OVERLAY_RETRY_MAX_MS,
  OVERLAY_RETRY_MS,
} from '../base/limits.ts';
import { printable } from '../base/printable.ts';
import type { OverlayFate, RunningVm } from '../hypervisor/hypervisor.ts';
import type { VmSpec } from '../hypervisor/vm-spec.ts';
import { type Plan, planSizeBytes } from '../model/plan.ts';
import { RunError, type Runner } from './runner.ts';
import type { VmRunDeps } from './vm-run-deps.ts';

export type OverlayOwner = {
  readonly spec: VmSpec;
  readonly note: Runner['note'];
  /** The VM as it is held now: another after it was taken over anew. */
  readonly running: () => RunningVm | null;
};

/** A merge into the disks of the VM that runs; ends with the VM, or with the daemon. */
type Merge = {
  readonly ending: AbortController;
  /** Tries at once instead of later; resolves with the end of that attempt, or of one under way. */
  readonly attempt: () => Promise<void>;
};

/** Where the overlay of a VM stands, and the merge that goes on beside its runs. */
export class VmOverlay {
  readonly #deps: Pick<VmRunDeps, 'driver' | 'clock'>;
  readonly #owner: OverlayOwner;
  #merge: Merge | null = null;

  constructor(deps: Pick<VmRunDeps, 'driver' | 'clock'>, owner: OverlayOwner) {
    this.#deps = deps;
    this.#owner = owner;
  }

  async fate(running: RunningVm): Promise<OverlayFate> {
    return (await running.overlay?.fate()) ?? 'none';
  }

  /** From now on the guest writes to an overlay. Throws, with nothing changed, when there can be none. */
  async begin(running: RunningVm, plan: Plan, signal: AbortSignal): Promise<void> {
    const { vm } = this.#owner.spec;
    if (running.overlay === undefined) {
      throw new RunError('usage/overlay', `${vm} cannot update on a disk overlay: somebody else started its QEMU`, {
        next: 'take `overlay` out of its policy, or let Pratique start the VM',
      });
    }
    // What the update before wrote may still be on its way into the disk. If it does not get there, this throws below.
    if ((await running.overlay.fate()) === 'accepted') this.startMerge();
    if (this.#merge !== null) await unlessAborted(this.#merge.attempt(), signal);
    await running.overlay.begin(OVERLAY_FREE_BYTES_MIN + OVERLAY_BYTES_PER_PLAN_BYTE * planSizeBytes(plan));
    this.#owner.note('state', 'it updates on a disk overlay, which is thrown away if the update fails');
  }

  /** Whatever an overlay holds is the VM's from now on. */
  async accept(running: RunningVm): Promise<void> {
    await running.overlay?.accept();
  }

  /** Merges an accepted overlay beside everything else, again and again until it is done. */
  startMerge(): void {
    if (this.#merge !== null) return;
    const ending = new AbortController();
    let ended = Promise.withResolvers<void>();
    let pause = new AbortController();
    const onAttempted = (): AbortSignal => {
      ended.resolve();
      ended = Promise.withResolvers();
      pause = new AbortController();
      return AbortSignal.any([ending.signal, pause.signal]);
    };
    void this.#mergeUntilDone(ending.signal, onAttempted).finally(() => {
      this.#merge = null;
      ended.resolve();
    });
    const attempt = (): Promise<void> => {
      pause.abort();
      return ended.promise;
    };
    this.#merge = { ending, attempt };
  }

  /** `onAttempted` is told of each failure, and gives what cuts the pause short. */
  async #mergeUntilDone(ending: AbortSignal, onAttempted: () => AbortSignal): Promise<void> {
    for (let afterMs = OVERLAY_RETRY_MS; ; afterMs = Math.min(2 * afterMs, OVERLAY_RETRY_MAX_MS)) {
      const overlay = this.#owner.running()?.overlay;
      if (overlay === undefined) return;
      try {
        if (await overlay.commit()) this.#noteMerged();
        return;
      } catch (error) {
        if (ending.aborted) return;
        this.#owner.note('warning', `its update is not in its disk yet: ${printable(describeError(error), 400)}`);
      }
      await this.#deps.clock.sleep(afterMs, onAttempted()).catch(() => {});
      if (ending.aborted) return;
    }
  }

  /** The VM is off: its overlay is merged or thrown away. */
  async settle(): Promise<void> {
    this.close();
    const what = await this.#deps.driver.settleOverlay(this.#owner.spec);
    if (what === 'committed') this.#noteMerged();
    if (what === 'discarded') this.#owner.note('state', 'its disk overlay is thrown away; the disk is as before');
  }

  #noteMerged(): void {
    this.#owner.note('state', 'its disk overlay is merged into its disk');
  }

  /** Nobody waits for a merge any more; one that is under way goes on in QEMU, and the next daemon finishes it. */
  close(): void {
    this.#merge?.ending.abort();
  }
}

async function unlessAborted(work: Promise<void>, signal: AbortSignal): Promise<void> {
  const aborted = Promise.withResolvers<never>();
  const onAbort = () => aborted.reject(signal.reason);
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    signal.throwIfAborted();
    await Promise.race([work, aborted.promise]);
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}
