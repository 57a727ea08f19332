// The disk overlay of a running QEMU: begun by one snapshot of all writable disks, merged back into them while the VM runs.
import type { Clock } from '../../base/clock.ts';
import { OVERLAY_LOOK_MS, OVERLAY_MERGE_TIMEOUT_MS, OVERLAY_SWITCH_TIMEOUT_MS } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import { waitUntil } from '../../base/wait-until.ts';
import { HypervisorError } from '../errors.ts';
import type { DiskOverlay } from '../hypervisor.ts';
import { parseBlock, parseJobs, parseNodes } from './answers.ts';
import {
  forgetOverlay,
  makeOverlayFile,
  type OverlayDisk,
  type OverlayFiles,
  overlayFate,
  recordAccepted,
  recordTrial,
  removeOverlay,
  type WritableDisk,
} from './overlay-files.ts';
import type { QmpClient } from './qmp-client.ts';

export type OverlayParts = {
  readonly qmp: QmpClient;
  readonly clock: Clock;
  readonly files: OverlayFiles;
  /** The VM's disks that its guest can write. */
  readonly disks: readonly WritableDisk[];
  readonly uid: number | null;
};

/** The overlay of one QEMU. What there is is read from QEMU and from the record each time, so that it is right after our own restart. */
export function makeOverlay(parts: OverlayParts): DiskOverlay {
  return {
    fate: () => overlayFate(parts.files),
    begin: (spaceBytes) => begin(parts, spaceBytes),
    accept: () => recordAccepted(parts.files),
    commit: () => commit(parts),
  };
}

async function begin(parts: OverlayParts, spaceBytes: number): Promise<void> {
  const { qmp, files, disks, uid } = parts;
  const { vm } = files;
  if (disks.length === 0) {
    throw new HypervisorError('usage/overlay', `${vm}: it has no disk that it can write, so an overlay keeps nothing`, {
      next: 'take `overlay` out of its policy',
    });
  }
  const present = await overlayFate(files);
  const isUsed = (await overlaysInUse(qmp)).length > 0;
  if (present === 'trial' && isUsed) return;
  if (present === 'accepted' || isUsed) {
    throw new HypervisorError('conflict/overlay', `${vm}: the overlay of the update before is not merged yet`, {
      next: 'wait until it is, or end the VM and start it again',
    });
  }
  await removeLeftovers(qmp);
  const sizes = await sizesOf(qmp);
  const record = await recordTrial(files, { disks, uid }, spaceBytes);
  try {
    for (const disk of record.disks) {
      await makeOverlayFile(disk, sizes.get(disk.node) ?? 0, uid);
      await qmp.execute('blockdev-add', nodeOf(disk));
    }
    await qmp.execute('transaction', { actions: record.disks.map(snapshotOf) });
  } catch (error) {
    // A transaction is all or nothing; whether this one was carried out QEMU says, if it still does.
    if ((await overlaysInUse(qmp)).length === 0) {
      await removeLeftovers(qmp);
      await removeOverlay(files);
    }
    throw error;
  }
}

function nodeOf(disk: OverlayDisk): Readonly<Record<string, unknown>> {
  const file = { driver: 'file', filename: disk.file };
  // Nothing below it: the snapshot puts the disk there, whatever the file's header may say by then.
  return { driver: 'qcow2', 'node-name': disk.overlayNode, discard: 'unmap', backing: null, file };
}

const snapshotOf = ({ node, overlayNode }: OverlayDisk) => ({
  type: 'blockdev-snapshot',
  data: { node, overlay: overlayNode },
});

const isOverlay = (node: string): boolean => /^overlay\d{1,2}$/.test(node);

/** The overlays that the guest's devices write to. */
async function overlaysInUse(qmp: QmpClient): Promise<readonly string[]> {
  const blocks = parseBlock(await qmp.execute('query-block'), 'query-block');
  return blocks.map((block) => block.inserted?.['node-name'] ?? '').filter(isOverlay);
}

async function nodesOf(qmp: QmpClient) {
  return parseNodes(await qmp.execute('query-named-block-nodes', { flat: true }), 'query-named-block-nodes');
}

async function sizesOf(qmp: QmpClient): Promise<ReadonlyMap<string, number>> {
  return new Map((await nodesOf(qmp)).map((node) => [node['node-name'] ?? '', node.image?.['virtual-size'] ?? 0]));
}

/** What a merge or a beginning that was cut off left open in QEMU. */
async function removeLeftovers(qmp: QmpClient): Promise<void> {
  for (const { id, status } of await jobsOf(qmp)) if (status === 'concluded') await qmp.execute('job-dismiss', { id });
  const inUse = await overlaysInUse(qmp);
  const open = (await nodesOf(qmp)).map((node) => node['node-name'] ?? '').filter(isOverlay);
  for (const node of open) if (!inUse.includes(node)) await qmp.execute('blockdev-del', { 'node-name': node });
}

// ---- The merge ----------------------------------------------------------------------------------------------------

const JOB_PREFIX = 'pratique-merge-';
const jobOf = (overlayNode: string): string => `${JOB_PREFIX}${overlayNode}`;

async function jobsOf(qmp: QmpClient) {
  return parseJobs(await qmp.execute('query-jobs'), 'query-jobs').filter(({ id }) => id.startsWith(JOB_PREFIX));
}

/**
 * Merges an accepted overlay into its disks. Each of QEMU's jobs copies, then waits (`ready`), then holds the guest's writes back
 * (`pending`): in this moment the disks are complete and the overlay is forgotten, and only then does the guest write to the
 * disks again. So an overlay with a record is never older than its disk, and after a crash at any point merging again is right.
 */
async function commit(parts: OverlayParts): Promise<boolean> {
  const { qmp, files } = parts;
  if ((await overlayFate(files)) === 'trial') return false;
  const overlays = await overlaysInUse(qmp);
  if (overlays.length > 0) await mergeAll(parts, overlays);
  else if ((await overlayFate(files)) === 'none') return false;
  await removeLeftovers(qmp);
  await removeOverlay(files);
  return true;
}

async function mergeAll(parts: OverlayParts, overlays: readonly string[]): Promise<void> {
  const { qmp, files } = parts;
  try {
    for (const overlay of overlays) await startJob(qmp, overlay);
    await waitForJobs(parts, overlays, ['ready', 'pending'], OVERLAY_MERGE_TIMEOUT_MS);
    await passOn(qmp, 'ready', 'job-complete');
    await waitForJobs(parts, overlays, ['pending'], OVERLAY_SWITCH_TIMEOUT_MS);
    await forgetOverlay(files);
  } catch (error) {
    // Once it is forgotten there is no way back to it.
    if ((await overlayFate(files)) !== 'none') {
      await cancelJobs(qmp);
      throw error;
    }
  }
  await passOn(qmp, 'pending', 'job-finalize');
  await waitForJobs(parts, overlays, ['concluded'], OVERLAY_SWITCH_TIMEOUT_MS);
}

/** A daemon before this one may have started it already. */
async function startJob(qmp: QmpClient, overlay: string): Promise<void> {
  const id = jobOf(overlay);
  const present = (await jobsOf(qmp)).find((job) => job.id === id);
  if (present?.status === 'concluded') await qmp.execute('job-dismiss', { id });
  else if (present !== undefined) return;
  await qmp.execute('block-commit', {
    ...{ 'job-id': id, device: overlay, 'top-node': overlay, 'base-node': overlay.replace('overlay', 'disk') },
    ...{ 'auto-finalize': false, 'auto-dismiss': false },
  });
}

/** Takes all jobs that stand in a status one step on. */
async function passOn(qmp: QmpClient, from: string, command: string): Promise<void> {
  for (const { id, status } of await jobsOf(qmp)) if (status === from) await qmp.execute(command, { id });
}

async function waitForJobs(
  { qmp, clock, files }: OverlayParts,
  overlays: readonly string[],
  wanted: readonly string[],
  timeoutMs: number,
): Promise<void> {
  const isThere = async (): Promise<boolean> => {
    const jobs = (await jobsOf(qmp)).filter(({ id }) => overlays.some((overlay) => jobOf(overlay) === id));
    const failed = jobs.find(
      ({ error, status }) => error !== undefined || (status === 'concluded' && !wanted.includes(status)),
    );
    if (failed !== undefined) throw notMerged(files, failed.error ?? 'the job ended early');
    return jobs.length === overlays.length && jobs.every(({ status }) => wanted.includes(status));
  };
  if (await waitUntil(isThere, clock, timeoutMs, OVERLAY_LOOK_MS)) return;
  throw notMerged(files, `not ${wanted.join(' or ')} within ${timeoutMs} ms`);
}

function notMerged({ vm }: OverlayFiles, detail: string): HypervisorError {
  return new HypervisorError(
    'host-fault/overlay-merge',
    `${vm}: its update could not be merged into its disk: ${printable(detail, 400)}`,
    { next: "see that the disk's file system has space; the overlay is kept, and merged later" },
  );
}

async function cancelJobs(qmp: QmpClient): Promise<void> {
  for (const { id, status } of await jobsOf(qmp)) {
    if (status === 'concluded') await qmp.execute('job-dismiss', { id });
    else await qmp.execute('job-cancel', { id });
  }
}
