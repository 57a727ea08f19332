// What the daemon does at intervals without being asked: keeps the store within its budget and sound, and VMs that are off staged.
import type { Clock } from '../src/base/clock.ts';
import { describeError } from '../src/base/errors.ts';
import { STORE_COLLECT_MS, STORE_SCRUB_BYTES_PER_SECOND, STORE_SCRUB_MS, VENDOR_POLL_MS } from '../src/base/limits.ts';
import type { Log } from '../src/base/log.ts';
import type { VmId } from '../src/model/ids.ts';
import type { BlobStore } from '../src/store/blob-store.ts';
import type { Runner } from '../src/update/runner.ts';

export type MaintenanceRooms = {
  readonly clock: Clock;
  readonly log: Log;
  readonly store: Pick<BlobStore, 'collect' | 'scrub'>;
  readonly runs: ReadonlyMap<VmId, { readonly runner: Pick<Runner, 'state' | 'post' | 'settle'> }>;
};

/** Starts it; `close` ends it and waits for what is under way. */
export function startMaintenance(rooms: MaintenanceRooms): { readonly close: () => Promise<void> } {
  const ending = new AbortController();
  const { signal } = ending;
  const works = [
    everyInterval(rooms, signal, STORE_COLLECT_MS, 'collecting the store', async () => {
      const { removed, freedBytes, isOverBudget } = await rooms.store.collect();
      if (removed.length > 0)
        rooms.log.info({ blobs: removed.length, freedBytes }, 'blobs that nobody needs were removed');
      if (isOverBudget) rooms.log.warn({}, 'the store is over its budget with blobs that VMs need');
    }),
    everyInterval(rooms, signal, STORE_SCRUB_MS, 'reading the stored blobs again', async () => {
      await rooms.store.scrub({ bytesPerSecond: STORE_SCRUB_BYTES_PER_SECOND, signal });
    }),
    everyInterval(rooms, signal, VENDOR_POLL_MS, 'staging', () => stageAll(rooms, signal)),
  ];
  return {
    close: async () => {
      ending.abort();
      await Promise.all(works);
    },
  };
}

/** A1: what a VM that is off will need is fetched as soon as its vendor has it. One VM after the other: VMs that start come first. */
async function stageAll({ runs }: MaintenanceRooms, signal: AbortSignal): Promise<void> {
  for (const { runner } of [...runs.values()]) {
    if (signal.aborted) return;
    const { kind } = runner.state();
    if (kind !== 'off' && kind !== 'staged') continue;
    runner.post({ kind: 'stage' });
    await runner.settle();
  }
}

/** Until the signal aborts; what fails is said and tried again the next time. */
async function everyInterval(
  { clock, log }: MaintenanceRooms,
  signal: AbortSignal,
  intervalMs: number,
  what: string,
  work: () => Promise<void>,
): Promise<void> {
  for (;;) {
    try {
      await clock.sleep(intervalMs, signal);
    } catch {
      return; // Only the abort ends a sleep.
    }
    try {
      await work();
    } catch (error) {
      if (!signal.aborted) log.error({ detail: describeError(error) }, `${what} failed`);
    }
  }
}
