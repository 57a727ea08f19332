// What somebody else's VM has for its drive: each place that its spec names is looked at before the VM is taken over.
import { HypervisorError } from '../errors.ts';
import type { AttachedVm } from '../vm-spec.ts';
import { parseBlock, parseQomList, parseText } from './answers.ts';
import { FRONT_NODE } from './drive-nodes.ts';
import { DRIVE_DEVICE, type DriveSlots } from './drive-places.ts';
import type { QmpClient } from './qmp-client.ts';

/** The places that the spec names. Throws HypervisorError `refused/attached` that says which one is missing, or not the drive's alone. */
export async function attachedSlots(spec: AttachedVm, qmp: QmpClient): Promise<DriveSlots> {
  const { drivePort, driveScsiBus, driveUsbBus, driveTray } = spec;
  if (drivePort !== undefined) await checkPort(spec, drivePort, qmp);
  if (driveScsiBus !== undefined) {
    await checkBus(
      spec,
      { field: 'driveScsiBus', bus: driveScsiBus, type: 'child<SCSI>', device: 'virtio-scsi-pci' },
      qmp,
    );
  }
  if (driveUsbBus !== undefined) {
    await checkBus(spec, { field: 'driveUsbBus', bus: driveUsbBus, type: 'child<usb-bus>', device: 'qemu-xhci' }, qmp);
  }
  if (driveTray !== undefined) await checkTray(spec, driveTray, qmp);
  return {
    port: drivePort ?? null,
    scsiBus: driveScsiBus ?? null,
    usbBus: driveUsbBus ?? null,
    tray: driveTray ?? null,
  };
}

/** A port has a bus of its own name. Looked at as an object: as PCI shows it, a port has no bus before the firmware ran. */
async function checkPort(spec: AttachedVm, id: string, qmp: QmpClient): Promise<void> {
  const path = `/machine/peripheral/${id}`;
  const isPort = (await children(qmp, path)).some((one) => one.name === id && /^child<PCIE?>$/.test(one.type));
  if (!isPort) throw refuse(spec, 'drivePort', `it has no PCI port "${id}"`, `give it -device pcie-root-port,id=${id}`);
  for (const { name } of (await children(qmp, `${path}/${id}`)).filter((one) => one.name.startsWith('child['))) {
    const device = parseText(await qmp.execute('qom-get', { path: `${path}/${id}`, property: name }), 'qom-get');
    if (device === `/machine/peripheral/${DRIVE_DEVICE}`) continue;
    throw refuse(spec, 'drivePort', `a device is on its PCI port "${id}"`, 'name a spare one');
  }
}

type WantedBus = { readonly field: string; readonly bus: string; readonly type: string; readonly device: string };

/** QEMU names a bus after the device that has it and counts from 0; virtio hides it one level deeper. */
async function checkBus(spec: AttachedVm, { field, bus, type, device }: WantedBus, qmp: QmpClient): Promise<void> {
  const owner = bus.replace(/\.\d+$/, '');
  const path = `/machine/peripheral/${owner}`;
  const isThere = (await has(qmp, path, bus, type)) || (await has(qmp, `${path}/virtio-backend`, bus, type));
  if (!isThere) {
    throw refuse(
      spec,
      field,
      `it has no such bus "${bus}"`,
      `give it -device ${device},id=${owner}, or correct the spec`,
    );
  }
}

async function has(qmp: QmpClient, path: string, name: string, type: string): Promise<boolean> {
  return (await children(qmp, path)).some((child) => child.name === name && child.type === type);
}

/** What stands below an object of QEMU's; nothing if there is no such object. */
async function children(qmp: QmpClient, path: string) {
  try {
    return parseQomList(await qmp.execute('qom-list', { path }), 'qom-list');
  } catch (error) {
    if (error instanceof HypervisorError && error.qemuClass === 'DeviceNotFound') return [];
    throw error;
  }
}

async function checkTray(spec: AttachedVm, id: string, qmp: QmpClient): Promise<void> {
  if (!(await has(qmp, '/machine/peripheral', id, 'child<ide-cd>'))) {
    throw refuse(spec, 'driveTray', `it has no CD drive "${id}"`, `give it -device ide-cd,id=${id}`);
  }
  const blocks = parseBlock(await qmp.execute('query-block'), 'query-block');
  const medium = blocks.find((block) => block.qdev === id || block.qdev === `/machine/peripheral/${id}`)?.inserted;
  if (medium !== undefined && medium['node-name'] !== FRONT_NODE) {
    throw refuse(
      spec,
      'driveTray',
      `there is a medium in its CD drive "${id}"`,
      'name an empty one, or take the medium out',
    );
  }
}

function refuse(spec: AttachedVm, field: string, detail: string, next: string): HypervisorError {
  return new HypervisorError('refused/attached', `${spec.vm}: ${detail}, which its spec names as ${field}`, { next });
}
