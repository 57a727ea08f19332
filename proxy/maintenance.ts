// What the daemon does at intervals without being asked: keeps the store within its budget and sound, VMs that are off staged, and
// the fence as it left it.
import type { Clock } from '../src/base/clock.ts';
import { describeError } from '../src/base/errors.ts';
import { everyInterval } from '../src/base/interval.ts';
import {
  FENCE_CHECK_MS,
  STORE_COLLECT_MS,
  STORE_SCRUB_BYTES_PER_SECOND,
  STORE_SCRUB_LOOK_MS,
  STORE_SCRUB_MS,
  TRUST_SAVE_MS,
  VENDOR_POLL_MS,
} from '../src/base/limits.ts';
import type { Log } from '../src/base/log.ts';
import type { TrustTime } from '../src/base/trust-time.ts';
import type { Fence } from '../src/hypervisor/fence.ts';
import type { Tap } from '../src/hypervisor/hypervisor.ts';
import { namespaceKey } from '../src/hypervisor/namespace.ts';
import type { Namespace } from '../src/hypervisor/vm-spec.ts';
import type { VmId } from '../src/model/ids.ts';
import type { BlobStore } from '../src/store/blob-store.ts';
import { newRunId } from '../src/update/new-run-id.ts';
import type { Runner } from '../src/update/runner.ts';

export type MaintenanceRooms = {
  readonly clock: Clock;
  readonly log: Log;
  readonly store: Pick<BlobStore, 'collect' | 'scrub'>;
  readonly fenceFor: (namespace: Namespace) => Promise<Pick<Fence, 'verify'>>;
  readonly runs: ReadonlyMap<VmId, MaintainedRun>;
  readonly trustTime?: Pick<TrustTime, 'save'>;
};

type MaintainedRun = {
  readonly runner: Pick<Runner, 'state' | 'post' | 'settle'>;
  readonly running: { readonly namespace: Namespace; readonly taps: readonly Tap[] } | null;
};

/** Starts it; `close` ends it and waits for what is under way. */
export function startMaintenance(rooms: MaintenanceRooms): { readonly close: () => Promise<void> } {
  const ending = new AbortController();
  const { signal } = ending;
  const { clock, log } = rooms;
  const every = (intervalMs: number, what: string, work: () => Promise<void>) =>
    everyInterval({ clock, log, signal, waitMs: () => intervalMs, what, work });
  const works = [
    every(STORE_COLLECT_MS, 'collecting the store', async () => {
      const { removed, freedBytes, isOverBudget } = await rooms.store.collect();
      if (removed.length > 0)
        rooms.log.info({ blobs: removed.length, freedBytes }, 'blobs that nobody needs were removed');
      if (isOverBudget) rooms.log.warn({}, 'the store is over its budget with blobs that VMs need');
    }),
    // By each blob's own age: a daemon that is restarted more often than every week would never come to it otherwise.
    every(STORE_SCRUB_LOOK_MS, 'reading the stored blobs again', async () => {
      const verifiedBeforeMs = rooms.clock.nowMs() - STORE_SCRUB_MS;
      await rooms.store.scrub({ bytesPerSecond: STORE_SCRUB_BYTES_PER_SECOND, verifiedBeforeMs, signal });
    }),
    every(TRUST_SAVE_MS, 'noting how late it is', async () => await rooms.trustTime?.save()),
    every(FENCE_CHECK_MS, 'looking at the fence', () => watchFences(rooms)),
    every(VENDOR_POLL_MS, 'staging', () => stageAll(rooms, signal)),
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

/** X1: a flushed rule set leaves only the lowered link; and a VM whose tap is no longer admitted is cut off without a word. */
export async function watchFences(rooms: MaintenanceRooms): Promise<void> {
  const members = [...rooms.runs.values()].flatMap(({ runner, running }) =>
    running === null ? [] : [{ runner, running }],
  );
  for (const inOneNamespace of Map.groupBy(members, (each) => namespaceKey(each.running.namespace)).values()) {
    try {
      await watchFence(rooms, inOneNamespace);
    } catch (error) {
      rooms.log.error({ detail: describeError(error) }, 'a fence could not be looked at');
    }
  }
}

type Member = { readonly runner: MaintainedRun['runner']; readonly running: NonNullable<MaintainedRun['running']> };

/** The fence of one namespace and the VMs behind it. */
async function watchFence({ fenceFor, clock, log }: MaintenanceRooms, members: readonly Member[]): Promise<void> {
  const [first] = members;
  if (first === undefined) return;
  const { fault, admitted } = await (await fenceFor(first.running.namespace)).verify();
  for (const { runner, running } of members) {
    const isCutOff = runner.state().kind === 'connected' && !running.taps.every((tap) => admitted.has(tap.name));
    if (fault === null && !isCutOff) continue;
    const detail = fault ?? 'a tap that was admitted no longer is';
    log.warn({ detail }, 'the fence was changed by somebody else');
    runner.post({ kind: 'fence-changed', detail, run: newRunId(), atMs: clock.nowMs() });
  }
}
