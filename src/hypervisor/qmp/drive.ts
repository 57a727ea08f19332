// The update drive: hot-plugs an image read-only and takes it away again. What is attached is read from QEMU each time, so
// that it is right after our own restart too.
import type { Clock } from '../../base/clock.ts';
import { DEVICE_UNPLUG_TIMEOUT_MS, NODE_RELEASE_TIMEOUT_MS } from '../../base/limits.ts';
import type { VmId } from '../../model/ids.ts';
import { HypervisorError } from '../errors.ts';
import type { DriveImage } from '../hypervisor.ts';
import { parseDeviceDeleted, parseNodes, parseQomList, parseStatus } from './answers.ts';
import { waitUntil } from './process.ts';
import type { QmpClient } from './qmp-client.ts';

const DEVICE = 'pratique-drive';
/** What the device reads: a raw node over the image, so that the image can be taken away under a guest that does not let go. */
const FRONT_NODE = 'pratique-front';
const IMAGE_NODE = 'pratique-image';
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
  readonly attach: (image: DriveImage) => Promise<void>;
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
    isAttached: async () => (await imagePath(qmp)) !== null,
    attach: async (image) => {
      const present = await imagePath(qmp);
      const hasDevice = await deviceIsThere(qmp);
      if (present !== null && hasDevice) {
        if (present === image.path) return;
        throw new HypervisorError('conflict/drive', `${vm}: another drive (${present}) is attached`, {
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
        for (const node of imageNodes(image)) await qmp.execute('blockdev-add', node);
        await qmp.execute('device_add', deviceOf(vm, image, options.slots));
      } catch (error) {
        await removeNodes(qmp, clock);
        throw error;
      }
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

function imageNodes(image: DriveImage): readonly Readonly<Record<string, unknown>>[] {
  const file = { driver: 'file', filename: image.path, 'read-only': true };
  // read-only must stand on the image node: otherwise QEMU asks for the write lock of blobs that other VMs read.
  const top = { driver: image.format, 'node-name': IMAGE_NODE, 'read-only': true, file };
  return [top, { driver: 'raw', 'node-name': FRONT_NODE, 'read-only': true, file: IMAGE_NODE }];
}

function deviceOf(vm: VmId, image: DriveImage, slots: DriveSlots): Readonly<Record<string, unknown>> {
  const bus = image.frontEnd === 'virtio-blk' ? slots.port : slots.scsiBus;
  if (bus === null) {
    const missing = image.frontEnd === 'virtio-blk' ? 'a spare pcie-root-port' : 'virtio-scsi';
    throw new HypervisorError('usage/drive-port', `${vm}: the VM has no ${missing} for a ${image.frontEnd} drive`, {
      next: 'give it one in its spec, or choose the other front-end',
    });
  }
  const driver = image.frontEnd === 'virtio-blk' ? 'virtio-blk-pci' : 'scsi-cd';
  return { driver, id: DEVICE, bus, drive: FRONT_NODE, serial: SERIAL };
}

async function imagePath(qmp: QmpClient): Promise<string | null> {
  const node = (await nodes(qmp)).find((one) => one['node-name'] === IMAGE_NODE);
  return node === undefined ? null : (node.file ?? '');
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
  for (const name of [FRONT_NODE, IMAGE_NODE, EMPTY_NODE]) {
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
  if (present.has(IMAGE_NODE)) await qmp.execute('blockdev-del', { 'node-name': IMAGE_NODE });
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
