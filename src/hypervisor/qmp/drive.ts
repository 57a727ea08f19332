// The update drive: hot-plugs an image read-only and takes it away again. What is attached is read from QEMU each time, so
// that it is right after our own restart too.
import type { Clock } from '../../base/clock.ts';
import { DEVICE_UNPLUG_TIMEOUT_MS, DRIVE_RECONNECT_DELAY_S, NODE_RELEASE_TIMEOUT_MS } from '../../base/limits.ts';
import { waitUntil } from '../../base/wait-until.ts';
import { DRIVE_FRONT_ENDS, type DriveFrontEnd, type DriveSource } from '../../model/drive.ts';
import type { VmId } from '../../model/ids.ts';
import { HypervisorError } from '../errors.ts';
import type { DriveImage } from '../hypervisor.ts';
import { parseDeviceDeleted, parseNodes, parseQomList, parseStatus } from './answers.ts';
import type { QmpClient } from './qmp-client.ts';

const DEVICE = 'pratique-drive';
/** What the device reads: a raw node over the image, so that the image can be taken away under a guest that does not let go. */
const FRONT_NODE = 'pratique-front';
/** Two names, so that an image can be opened anew before the old one is let go. */
const IMAGE_NODES = ['pratique-image', 'pratique-image2'] as const;
const EMPTY_NODE = 'pratique-empty';
/** Serial number by which the guest finds the drive besides its label; virtio-blk takes 20 characters. */
const SERIAL = 'PRATIQUE';

export type DriveSlots = {
  /** Id of the spare pcie-root-port for virtio-blk; null when the VM has none. */
  readonly port: string | null;
  /** Bus for scsi-cd; null when the VM has none. */
  readonly scsiBus: string | null;
};

export type Drive = {
  readonly frontEnds: readonly DriveFrontEnd[];
  readonly attach: (image: DriveImage) => Promise<void>;
  readonly reopen: (source: DriveSource) => Promise<void>;
  readonly detach: () => Promise<{ readonly surprise: boolean }>;
  readonly isAttached: () => Promise<boolean>;
};

/** The drive of one QEMU. `unplugTimeoutMs` is how long a guest may hold on to it. */
export function makeDrive(options: {
  readonly vm: VmId;
  readonly qmp: QmpClient;
  readonly slots: DriveSlots;
  readonly clock: Clock;
  readonly unplugTimeoutMs?: number;
}): Drive {
  const { vm, qmp, clock } = options;
  const unplugTimeoutMs = options.unplugTimeoutMs ?? DEVICE_UNPLUG_TIMEOUT_MS;
  const deletions = watchDeletions(qmp);

  return {
    frontEnds: DRIVE_FRONT_ENDS.filter((frontEnd) => busOf(frontEnd, options.slots) !== null),
    isAttached: async () => (await openImage(qmp)) !== null,
    attach: async (image) => {
      const present = await openImage(qmp);
      const hasDevice = await deviceIsThere(qmp);
      if (present !== null && hasDevice) {
        if (present.file === fileOf(image.source)) return;
        throw new HypervisorError('conflict/drive', `${vm}: another drive (${present.file}) is attached`, {
          next: 'detach it first',
        });
      }
      if (hasDevice) {
        throw new HypervisorError(
          'host-fault/drive-held',
          `${vm}: the guest still holds the drive that was taken away`,
          {
            next: 'reset the VM',
          },
        );
      }
      await removeNodes(qmp, clock);
      try {
        await qmp.execute('blockdev-add', imageNode(IMAGE_NODES[0], image.source));
        await qmp.execute('blockdev-add', frontNode(IMAGE_NODES[0]));
        await qmp.execute('device_add', deviceOf(vm, image, options.slots));
      } catch (error) {
        await removeNodes(qmp, clock);
        throw error;
      }
    },
    reopen: async (source) => {
      const present = await openImage(qmp);
      if (present === null) {
        throw new HypervisorError('conflict/drive', `${vm}: there is no drive to open anew`, { next: 'attach it' });
      }
      const name = IMAGE_NODES[0] === present.name ? IMAGE_NODES[1] : IMAGE_NODES[0];
      await qmp.execute('blockdev-add', imageNode(name, source));
      await qmp.execute('blockdev-reopen', { options: [frontNode(name)] });
      await qmp.execute('blockdev-del', { 'node-name': present.name });
    },
    detach: async () => {
      if (!(await deviceIsThere(qmp))) {
        await removeNodes(qmp, clock);
        return { surprise: false };
      }
      const { running } = parseStatus(await qmp.execute('query-status'), 'query-status');
      // A stopped guest cannot let go.
      const isGone = await unplug(qmp, deletions, clock, running ? unplugTimeoutMs : 0);
      if (isGone) await removeNodes(qmp, clock);
      else await withdrawContent(qmp);
      return { surprise: !isGone };
    },
  };
}

type Options = Readonly<Record<string, unknown>>;

/** read-only must stand on the image node: otherwise QEMU asks for the write lock of blobs that other VMs read. */
function imageNode(name: string, source: DriveSource): Options {
  const file =
    source.kind === 'nbd'
      ? {
          driver: 'nbd',
          server: { type: 'unix', path: source.socket },
          export: source.exportName,
          // Without it a server that was started again is an I/O error for good.
          'reconnect-delay': DRIVE_RECONNECT_DELAY_S,
          'read-only': true,
        }
      : { driver: 'file', filename: source.path, 'read-only': true };
  const driver = source.kind === 'vmdk' ? 'vmdk' : 'raw';
  return { driver, 'node-name': name, 'read-only': true, file };
}

function frontNode(imageName: string): Options {
  return { driver: 'raw', 'node-name': FRONT_NODE, 'read-only': true, file: imageName };
}

/** The name by which QEMU tells what an image node has open. */
function fileOf(source: DriveSource): string {
  return source.kind === 'nbd' ? `nbd+unix:///${source.exportName}?socket=${source.socket}` : source.path;
}

function busOf(frontEnd: DriveFrontEnd, slots: DriveSlots): string | null {
  switch (frontEnd) {
    case 'virtio-blk':
      return slots.port;
    case 'scsi-cd':
      return slots.scsiBus;
    default:
      return null;
  }
}

function deviceOf(vm: VmId, image: DriveImage, slots: DriveSlots): Options {
  const bus = busOf(image.frontEnd, slots);
  if (bus === null) {
    const missing = image.frontEnd === 'virtio-blk' ? 'a spare pcie-root-port' : 'virtio-scsi';
    throw new HypervisorError('usage/drive-port', `${vm}: the VM has no ${missing} for a ${image.frontEnd} drive`, {
      next: 'give it one in its spec, or choose the other front-end',
    });
  }
  const driver = image.frontEnd === 'virtio-blk' ? 'virtio-blk-pci' : 'scsi-cd';
  return { driver, id: DEVICE, bus, drive: FRONT_NODE, serial: SERIAL };
}

/** The image node that is open, and what QEMU says it has open. */
async function openImage(qmp: QmpClient): Promise<{ readonly name: string; readonly file: string } | null> {
  for (const node of await nodes(qmp)) {
    const name = IMAGE_NODES.find((one) => one === node['node-name']);
    if (name !== undefined) return { name, file: node.file ?? '' };
  }
  return null;
}

async function nodes(qmp: QmpClient) {
  return parseNodes(await qmp.execute('query-named-block-nodes', { flat: true }), 'query-named-block-nodes');
}

async function deviceIsThere(qmp: QmpClient): Promise<boolean> {
  const devices = parseQomList(await qmp.execute('qom-list', { path: '/machine/peripheral' }), 'qom-list');
  return devices.some((one) => one.name === DEVICE);
}

async function removeNodes(qmp: QmpClient, clock: Clock): Promise<void> {
  const present = new Set((await nodes(qmp)).map((node) => node['node-name']));
  for (const name of [FRONT_NODE, ...IMAGE_NODES, EMPTY_NODE]) {
    if (present.has(name)) await waitUntil(() => removeNode(qmp, name), clock, NODE_RELEASE_TIMEOUT_MS);
  }
}

/** Removes a node; false while a device that is being finalised still uses it (DEVICE_DELETED may come before or after). */
async function removeNode(qmp: QmpClient, name: string): Promise<boolean> {
  try {
    await qmp.execute('blockdev-del', { 'node-name': name });
    return true;
  } catch (error) {
    if (error instanceof HypervisorError && /in use/.test(error.message)) return false;
    throw error;
  }
}

/** Asks for the device and waits for its end; false when the guest kept it. */
async function unplug(qmp: QmpClient, deletions: Deletions, clock: Clock, timeoutMs: number): Promise<boolean> {
  const deleted = deletions.next();
  try {
    await qmp.execute('device_del', { id: DEVICE });
  } catch (error) {
    // Asked before, by us or by a run of ours that ended: the request stands.
    if (!(error instanceof HypervisorError) || !/unplug/.test(error.message)) {
      if (!(await deviceIsThere(qmp))) return true;
      throw error;
    }
  }
  const timeout = Promise.withResolvers<void>();
  const cancel = clock.after(timeoutMs, timeout.resolve);
  await Promise.race([deleted, timeout.promise]);
  cancel();
  return !(await deviceIsThere(qmp));
}

/** Surprise removal: the guest keeps a device that reads zeroes; the image is closed. The next reset removes the device. */
async function withdrawContent(qmp: QmpClient): Promise<void> {
  const present = new Set((await nodes(qmp)).map((node) => node['node-name']));
  if (!present.has(EMPTY_NODE)) {
    await qmp.execute('blockdev-add', {
      driver: 'null-co',
      'node-name': EMPTY_NODE,
      'read-only': true,
      'read-zeroes': true,
    });
  }
  const front = { driver: 'raw', 'node-name': FRONT_NODE, 'read-only': true, file: EMPTY_NODE };
  await qmp.execute('blockdev-reopen', { options: [front] });
  for (const name of IMAGE_NODES) {
    if (present.has(name)) await qmp.execute('blockdev-del', { 'node-name': name });
  }
}

type Deletions = { readonly next: () => Promise<void> };

/** DEVICE_DELETED comes twice, once for the virtio part without an id; the one with the id is the end. */
function watchDeletions(qmp: QmpClient): Deletions {
  let waiters: (() => void)[] = [];
  qmp.onEvent(({ event, data }) => {
    if (event !== 'DEVICE_DELETED' || parseDeviceDeleted(data, event).device !== DEVICE) return;
    for (const resolve of waiters) resolve();
    waiters = [];
  });
  return { next: () => new Promise((resolve) => waiters.push(resolve)) };
}
