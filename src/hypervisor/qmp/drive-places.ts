// Where a VM can have its drive: places on its buses where a device comes and goes, and a tray whose medium does.
import type { Clock } from '../../base/clock.ts';
import { DRIVE_LOCK_LOOK_MS, NODE_RELEASE_TIMEOUT_MS } from '../../base/limits.ts';
import { waitUntil } from '../../base/wait-until.ts';
import type { DriveFrontEnd } from '../../model/drive.ts';
import { HypervisorError } from '../errors.ts';
import { parseBlock, parseDeviceSign, parseQomList } from './answers.ts';
import { FRONT_NODE } from './drive-nodes.ts';
import type { QmpClient } from './qmp-client.ts';

/** Id of the drive's device. */
export const DRIVE_DEVICE = 'pratique-drive';
/** Serial number by which the guest finds the drive besides its label; virtio-blk takes 20 characters, and NVMe needs one. */
const SERIAL = 'PRATIQUE';

/** What a VM's hardware has for a drive; null where it has none. */
export type DriveSlots = {
  /** Id of the spare pcie-root-port for virtio-blk and nvme. */
  readonly port: string | null;
  /** Bus for scsi-cd. */
  readonly scsiBus: string | null;
  /** Bus for usb-storage. */
  readonly usbBus: string | null;
  /** Id of the ide-cd tray that is the drive's alone. */
  readonly tray: string | null;
};

const DEVICES = {
  'virtio-blk': { slot: 'port', driver: 'virtio-blk-pci', missing: 'a spare pcie-root-port' },
  nvme: { slot: 'port', driver: 'nvme', missing: 'a spare pcie-root-port' },
  'scsi-cd': { slot: 'scsiBus', driver: 'scsi-cd', missing: 'a virtio-scsi controller' },
  'usb-storage': { slot: 'usbBus', driver: 'usb-storage', missing: 'an xHCI controller' },
  'ide-cd': { slot: 'tray', driver: null, missing: 'an ide-cd tray of its own' },
} as const satisfies Readonly<
  Record<DriveFrontEnd, { slot: keyof DriveSlots; driver: string | null; missing: string }>
>;

/** Whether the hardware has a place for such a drive. */
export function hasPlace(frontEnd: DriveFrontEnd, slots: DriveSlots): boolean {
  return slots[DEVICES[frontEnd].slot] !== null;
}

/** Throws HypervisorError `usage/drive-port` when the hardware has no place for such a drive. */
export function requirePlace(vm: string, frontEnd: DriveFrontEnd, slots: DriveSlots): void {
  if (hasPlace(frontEnd, slots)) return;
  const { missing } = DEVICES[frontEnd];
  throw new HypervisorError(
    'usage/drive-port',
    `${vm}: the VM has no ${missing.replace(/^an? /, '')} for a drive as ${frontEnd}`,
    {
      next: `give it ${missing} in its spec, or choose another front-end`,
    },
  );
}

/** Shows the front node to the guest. */
export async function putIn(qmp: QmpClient, frontEnd: DriveFrontEnd, slots: DriveSlots): Promise<void> {
  const { slot, driver } = DEVICES[frontEnd];
  const id = slots[slot];
  if (driver === null) {
    // QEMU takes a medium only into an open tray.
    await qmp.execute('blockdev-open-tray', { id, force: true });
    await qmp.execute('blockdev-insert-medium', { id, 'node-name': FRONT_NODE });
    await qmp.execute('blockdev-close-tray', { id });
    return;
  }
  // Removable, so that the guest's kernel locks what it has mounted, and we see that it has.
  const removable = frontEnd === 'usb-storage' ? { removable: true } : {};
  await qmp.execute('device_add', {
    driver,
    id: DRIVE_DEVICE,
    bus: id,
    drive: FRONT_NODE,
    serial: SERIAL,
    ...removable,
  });
}

/** Whether the guest has our device, or the front node in its tray, or neither. */
export async function findPlace(qmp: QmpClient, slots: DriveSlots): Promise<'device' | 'tray' | null> {
  if (await deviceIsThere(qmp)) return 'device';
  if (slots.tray === null) return null;
  return (await findBlock(qmp))?.id === slots.tray ? 'tray' : null;
}

/** Closes the tray that a guest has opened by itself: it would see nothing of what is inside. */
export async function closeTray(qmp: QmpClient): Promise<void> {
  const block = await findBlock(qmp);
  if (block?.isTrayOpen === true) await qmp.execute('blockdev-close-tray', { id: block.id });
}

/** Takes the medium out of the tray; `surprise`: the guest had it locked to the end. */
export async function emptyTray(options: {
  readonly qmp: QmpClient;
  readonly tray: string;
  readonly clock: Clock;
  readonly timeoutMs: number;
}): Promise<{ readonly surprise: boolean }> {
  const { qmp, tray: id, clock, timeoutMs } = options;
  // Opens at once, or asks a guest that has it locked to eject it (which one with udev does); the answer is the same.
  await qmp.execute('blockdev-open-tray', { id, force: false });
  const isFree = await waitUntilFree(qmp, clock, timeoutMs);
  await qmp.execute('blockdev-open-tray', { id, force: true });
  await qmp.execute('blockdev-remove-medium', { id });
  await qmp.execute('blockdev-close-tray', { id });
  return { surprise: !isFree };
}

/** Waits until the guest has nothing mounted of a drive that it can lock; false when it did not let go in time. */
async function waitUntilFree(qmp: QmpClient, clock: Clock, timeoutMs: number): Promise<boolean> {
  const isFree = async () => {
    const block = await findBlock(qmp);
    return block === null || !block.isLocked || block.isTrayOpen;
  };
  return await waitUntil(isFree, clock, timeoutMs, DRIVE_LOCK_LOOK_MS);
}

/**
 * Takes the device away. A PCI device goes when the guest lets it go; SCSI and USB ones go whether it does or not, so that what it
 * has locked is waited for first.
 */
export async function unplug(options: {
  readonly qmp: QmpClient;
  readonly signs: Signs;
  readonly clock: Clock;
  readonly timeoutMs: number;
}): Promise<{ readonly isGone: boolean; readonly surprise: boolean }> {
  const { qmp, signs, clock, timeoutMs } = options;
  const block = await findBlock(qmp);
  if (block?.isRemovable !== true) {
    const isGone = await remove(qmp, signs, clock, timeoutMs);
    return { isGone, surprise: !isGone };
  }
  const isFree = await waitUntilFree(qmp, clock, timeoutMs);
  const isGone = await remove(qmp, signs, clock, NODE_RELEASE_TIMEOUT_MS);
  return { isGone, surprise: !isFree || !isGone };
}

/** Asks for the device and waits for its end; false when the guest kept it. */
async function remove(qmp: QmpClient, signs: Signs, clock: Clock, timeoutMs: number): Promise<boolean> {
  const sign = signs.next();
  try {
    await qmp.execute('device_del', { id: DRIVE_DEVICE });
  } catch (error) {
    // Asked before, by us or by a run of ours that ended: the request stands.
    if (!(error instanceof HypervisorError) || !/unplug/.test(error.message)) {
      if (!(await deviceIsThere(qmp))) return true;
      throw error;
    }
  }
  const timeout = Promise.withResolvers<void>();
  const cancel = clock.after(timeoutMs, timeout.resolve);
  await Promise.race([sign, timeout.promise]);
  cancel();
  return !(await deviceIsThere(qmp));
}

async function deviceIsThere(qmp: QmpClient): Promise<boolean> {
  const devices = parseQomList(await qmp.execute('qom-list', { path: '/machine/peripheral' }), 'qom-list');
  return devices.some((one) => one.name === DRIVE_DEVICE);
}

/** The device that reads the front node, as QEMU's block layer sees it. */
async function findBlock(qmp: QmpClient) {
  const blocks = parseBlock(await qmp.execute('query-block'), 'query-block');
  const block = blocks.find((one) => one.inserted?.['node-name'] === FRONT_NODE);
  if (block === undefined) return null;
  return {
    id: (block.qdev ?? '').replace(/^\/machine\/peripheral\/([^/]+)$/, '$1'),
    isRemovable: block.removable === true,
    isLocked: block.locked === true,
    isTrayOpen: block.tray_open === true,
  };
}

export type Signs = {
  /** Resolves with the next word on our device: that it is gone, or that the guest refused. */
  readonly next: () => Promise<void>;
};

/** DEVICE_DELETED comes twice for some devices, first for a part of them without an id; the one with the id is the end. */
export function watchSigns(qmp: QmpClient): Signs {
  let waiters: (() => void)[] = [];
  qmp.onEvent(({ event, data }) => {
    if (event !== 'DEVICE_DELETED' && event !== 'DEVICE_UNPLUG_GUEST_ERROR') return;
    if (parseDeviceSign(data, event).device !== DRIVE_DEVICE) return;
    for (const resolve of waiters) resolve();
    waiters = [];
  });
  return { next: () => new Promise((resolve) => waiters.push(resolve)) };
}
