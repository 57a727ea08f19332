// A view of one disk of a running VM, as it was at one moment, for whoever reads it beside the guest (QEMU: image fleecing).
//
//   guest's device ─► view-of.<node> (copy-before-write) ─► <node>, the disk as before
//                          └ what is overwritten is kept in ─► view-old ◄─ view-disk (snapshot-access), shown over NBD
//
// The guest goes on and is never held up: where a copy fails, takes too long or finds no room, the view breaks and not the guest's
// write. What is kept has no name on the host any more once QEMU has it open. Nothing is remembered: what an earlier daemon left
// is read from QEMU's own graph and taken away.
import { chmod, chown, mkdir, rm, rmdir, statfs, truncate, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../../base/clock.ts';
import {
  NODE_LOOK_MS,
  NODE_RELEASE_TIMEOUT_MS,
  VIEW_CONNECTIONS_MAX,
  VIEW_COPY_TIMEOUT_S,
  VIEW_OLD_BYTES_MAX,
} from '../../base/limits.ts';
import { runCommand } from '../../base/run-command.ts';
import { waitUntil } from '../../base/wait-until.ts';
import type { VmId } from '../../model/ids.ts';
import { HypervisorError } from '../errors.ts';
import type { DiskView } from '../hypervisor.ts';
import { parseBlock, parseExports, parseJobs, parseNodes } from './answers.ts';
import { giveTo } from './disk-paths.ts';
import { removeNode } from './drive-nodes.ts';
import type { QmpClient } from './qmp-client.ts';
import { checkSocketPath } from './run-files.ts';

export type DiskViewParts = {
  readonly vm: VmId;
  readonly qmp: QmpClient;
  readonly clock: Clock;
  /** The user of the VM's QEMU; null: ours. */
  readonly uid: number | null;
  /** On a disk with room: what is overwritten while somebody reads is kept here, in a file without a name. */
  readonly spaceFolder: string;
  /** Short, and the VM's own: its QEMU listens in it. */
  readonly socketFolder: string;
  /** Device id of each disk, by the disk's id in the spec. */
  readonly devices: ReadonlyMap<string, string>;
  /** Bytes kept of what is overwritten; default: VIEW_OLD_BYTES_MAX. */
  readonly oldBytesMax?: number;
};

const DISK_NODE = 'view-disk';
const OLD_NODE = 'view-old';
const FILTER_PREFIX = 'view-of.';
const EXPORT = 'pratique-view';

/** Where a VM's views are listened for. */
export function viewSocketFolder(runFolder: string, vm: VmId): string {
  return join(runFolder, 'views', vm);
}

/** Opens a view; the caller closes it. Throws HypervisorError, with everything as before, when there can be none. */
export async function openView(parts: DiskViewParts, disk: string): Promise<DiskView> {
  const { vm, qmp } = parts;
  const device = parts.devices.get(disk);
  if (device === undefined) throw new HypervisorError('usage/disk', `${vm}: it has no disk "${disk}"`);
  await closeView(parts);
  await refuseUnderJob(parts);
  const top = await nodeUnder(qmp, device);
  if (top === null) throw new HypervisorError('host-fault/disk-view', `${vm}: its disk "${disk}" has no medium`);
  const sizeBytes = await sizeOf(qmp, top);
  const socket = join(parts.socketFolder, 'nbd');
  checkSocketPath(vm, socket);
  try {
    await keepOld(parts, sizeBytes);
    await qmp.execute('blockdev-add', filterOf(top));
    // From this moment on what the guest overwrites is kept.
    await putUnder(qmp, device, `${FILTER_PREFIX}${top}`);
    const shown = { driver: 'snapshot-access', 'node-name': DISK_NODE, file: `${FILTER_PREFIX}${top}` };
    await qmp.execute('blockdev-add', { ...shown, 'read-only': true });
    await show(parts, socket);
  } catch (error) {
    await closeView(parts);
    throw error;
  }
  return { socket, exportName: EXPORT, sizeBytes, close: () => closeView(parts) };
}

function filterOf(top: string): Readonly<Record<string, unknown>> {
  return {
    driver: 'copy-before-write',
    'node-name': `${FILTER_PREFIX}${top}`,
    file: top,
    target: OLD_NODE,
    'on-cbw-error': 'break-snapshot',
    'cbw-timeout': VIEW_COPY_TIMEOUT_S,
  };
}

/** A merge moves nodes about under the device: a view in its way would end one of them, or QEMU. */
async function refuseUnderJob({ vm, qmp }: DiskViewParts): Promise<void> {
  const jobs = parseJobs(await qmp.execute('query-jobs'), 'query-jobs');
  if (jobs.every(({ status }) => status === 'concluded')) return;
  throw new HypervisorError('conflict/overlay', `${vm}: its last update is still being merged into its disk`, {
    next: 'wait until it is',
  });
}

/** A file of bounded size, which loses its name as soon as QEMU has it open. */
async function keepOld(parts: DiskViewParts, sizeBytes: number): Promise<void> {
  const { vm, qmp, uid, spaceFolder, oldBytesMax = VIEW_OLD_BYTES_MAX } = parts;
  await mkdir(spaceFolder, { recursive: true, mode: 0o711 });
  const { bavail, bsize } = await statfs(spaceFolder);
  if (bavail * bsize < oldBytesMax) {
    const mebibytes = Math.ceil(oldBytesMax / (1024 * 1024));
    const message = `${vm}: reading its disk beside the guest may need ${mebibytes} MiB, and ${spaceFolder} has less`;
    throw new HypervisorError('host-fault/view-space', message, { next: 'free space there' });
  }
  const path = join(spaceFolder, `.view-${vm}.qcow2`);
  await rm(path, { force: true });
  try {
    const purpose = 'making room for a view of a disk';
    await runCommand(['qemu-img', 'create', '-q', '-f', 'qcow2', path, String(sizeBytes)], { purpose });
    await truncate(path, oldBytesMax);
    if (uid !== null) await giveTo(uid, path);
    const file = { driver: 'raw', size: oldBytesMax, file: { driver: 'file', filename: path } };
    await qmp.execute('blockdev-add', { driver: 'qcow2', 'node-name': OLD_NODE, backing: null, file });
  } finally {
    await rm(path, { force: true });
  }
}

async function show({ qmp, uid, socketFolder }: DiskViewParts, socket: string): Promise<void> {
  await mkdir(join(socketFolder, '..'), { recursive: true, mode: 0o711 });
  await mkdir(socketFolder, { recursive: true, mode: 0o700 });
  if (uid !== null) await chown(socketFolder, uid, uid);
  await chmod(socketFolder, 0o700);
  await rm(socket, { force: true });
  const addr = { type: 'unix', data: { path: socket } };
  await qmp.execute('nbd-server-start', { addr, 'max-connections': VIEW_CONNECTIONS_MAX });
  const shown = { type: 'nbd', id: EXPORT, name: EXPORT, 'node-name': DISK_NODE, writable: false };
  await qmp.execute('block-export-add', shown);
}

/** Takes a view away, whoever opened it and however far it came; the guest's device is on its own disk again. */
export async function closeView(parts: DiskViewParts): Promise<void> {
  const { qmp, clock } = parts;
  const names = await nodeNames(qmp);
  const filters = names.filter((name) => name.startsWith(FILTER_PREFIX));
  if (filters.length > 0 || names.includes(OLD_NODE)) {
    await unshow(qmp);
    const remove = async (name: string): Promise<void> => {
      if (!names.includes(name)) return;
      const isGone = await waitUntil(() => removeNode(qmp, name), clock, NODE_RELEASE_TIMEOUT_MS, NODE_LOOK_MS);
      if (isGone) return;
      throw new HypervisorError('host-fault/disk-view', `${parts.vm}: QEMU does not let go of ${name}`, {
        next: `end the VM and start it again`,
      });
    };
    await remove(DISK_NODE);
    for (const filter of filters) {
      for (const device of parts.devices.values())
        if ((await nodeUnder(qmp, device)) === filter) await putUnder(qmp, device, filter.slice(FILTER_PREFIX.length));
      await remove(filter);
    }
    await remove(OLD_NODE);
  }
  await removeSocket(parts);
}

/** What the views of a VM left below the run folder. Only names that are known: its QEMU could write there. */
export async function removeSocket({ socketFolder }: Pick<DiskViewParts, 'socketFolder'>): Promise<void> {
  await unlink(join(socketFolder, 'nbd')).catch(() => {});
  await rmdir(socketFolder).catch(() => {});
}

async function unshow(qmp: QmpClient): Promise<void> {
  const exports = parseExports(await qmp.execute('query-block-exports'), 'query-block-exports');
  if (exports.some(({ id }) => id === EXPORT)) await qmp.execute('block-export-del', { id: EXPORT, mode: 'hard' });
  await qmp.execute('nbd-server-stop').catch((error: unknown) => {
    // It was not started yet; QEMU says that in words only.
    if (!(error instanceof HypervisorError) || error.qemuClass === undefined) throw error;
  });
}

// ---- QEMU's graph -------------------------------------------------------------------------------------------------

/** The node that a device reads and writes; null when it has none. */
async function nodeUnder(qmp: QmpClient, device: string): Promise<string | null> {
  const path = `/machine/peripheral/${device}`;
  const blocks = parseBlock(await qmp.execute('query-block'), 'query-block');
  const own = blocks.find(({ qdev }) => qdev === device || qdev === path || qdev?.startsWith(`${path}/`) === true);
  return own?.inserted?.['node-name'] ?? null;
}

/** QEMU 7.2 ends with a failed assertion when a device is given the node that it has. */
async function putUnder(qmp: QmpClient, device: string, node: string): Promise<void> {
  if ((await nodeUnder(qmp, device)) === node) return;
  await qmp.execute('qom-set', { path: `/machine/peripheral/${device}`, property: 'drive', value: node });
}

async function nodesOf(qmp: QmpClient) {
  return parseNodes(await qmp.execute('query-named-block-nodes', { flat: true }), 'query-named-block-nodes');
}

async function nodeNames(qmp: QmpClient): Promise<readonly string[]> {
  return (await nodesOf(qmp)).map((node) => node['node-name'] ?? '');
}

async function sizeOf(qmp: QmpClient, name: string): Promise<number> {
  const node = (await nodesOf(qmp)).find((one) => one['node-name'] === name);
  return node?.image?.['virtual-size'] ?? 0;
}
