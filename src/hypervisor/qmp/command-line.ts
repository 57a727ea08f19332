// The QEMU command line of a managed VM. Pure: what is in the spec, and nothing QEMU would add or guess by itself.
import { CONSOLE_BYTES, TCG_CODE_MIB } from '../../base/limits.ts';
import { type DiskImage, FORMATS_WITH_BACKING } from '../../model/disk-image.ts';
import { type ManagedVm, MEDIA_MAX } from '../vm-spec.ts';
import type { Accelerator } from './accel.ts';
import type { DriveSlots } from './drive-places.ts';

/** Name of the agent's virtio-serial port (docs/agent-protocol.md). */
export const AGENT_PORT_NAME = 'dev.pratique.agent.0';
export const AGENT_PORT_ID = 'pratique-agent';
export const CONSOLE_CHARDEV = 'pratique-console';
export const DRIVE_PORT = 'pratique-port0';
export const SCSI_BUS = 'pratique-scsi.0';
export const USB_BUS = 'pratique-usb.0';
export const DRIVE_TRAY = 'pratique-tray';
/** Node and device of a cloud-init seed. */
export const SEED_DEVICE = 'pratique-seed';

/** Descriptors that the launcher opens and QEMU inherits. */
export const QMP_FD = 10;
export const CHANNEL_FD = 11;
export const FIRST_TAP_FD = 20;

/** Device id of a NIC, by which QEMU's set_link knows it. */
export function nicDevice(nic: string): string {
  return `nic-${nic}`;
}

/** Name of a disk's node, by its place in the spec. */
export function diskNode(index: number): string {
  return `disk${index}`;
}

/** Device id of a disk. */
export function diskDevice(disk: string): string {
  return `disk-${disk}`;
}

/** Device id of a removable medium's drive. */
export function mediaDevice(medium: string): string {
  return `media-${medium}`;
}

export type CommandLineParts = {
  readonly spec: ManagedVm;
  readonly qemuBinary: string;
  readonly accelerator: Accelerator;
  /** Resolved paths, in the order of `spec.disks`. */
  readonly diskPaths: readonly string[];
  /** What lies beneath each disk, with resolved paths, in the same order. */
  readonly backings?: readonly (DiskImage | undefined)[];
  /** Of a cloud-init seed; null or absent: none. */
  readonly seedPath?: string | null;
  readonly kernel: { readonly image: string; readonly initrd: string | null; readonly commandLine: string } | null;
};

/** The whole argv. */
export function commandLine(parts: CommandLineParts): readonly string[] {
  const { spec } = parts;
  return [
    parts.qemuBinary,
    ...['-name', `pratique-${spec.vm}`],
    // Stopped before the first instruction, and again at each reset, so that the gate is closed before the guest goes on.
    ...['-S', '-action', 'reboot=shutdown,shutdown=pause'],
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-nographic', '-serial', 'none', '-monitor', 'none'],
    ...['-machine', `${spec.machine},usb=off,sata=${hasSata(spec) ? 'on' : 'off'},dump-guest-core=off`],
    ...['-accel', parts.accelerator === 'kvm' ? 'kvm' : `tcg,tb-size=${TCG_CODE_MIB}`],
    ...['-cpu', parts.accelerator === 'kvm' ? 'host' : TCG_CPU],
    ...['-m', String(spec.memoryMiB), '-smp', String(spec.cpus), '-rtc', 'base=utc'],
    ...['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
    ...kernelArguments(parts.kernel),
    ...[
      '-chardev',
      `socket,id=pratique-qmp,fd=${QMP_FD},server=on,wait=off`,
      '-mon',
      'chardev=pratique-qmp,mode=control',
    ],
    ...['-chardev', `ringbuf,id=${CONSOLE_CHARDEV},size=${CONSOLE_BYTES}`],
    ...device({ driver: 'isa-serial', chardev: CONSOLE_CHARDEV }),
    ...['-chardev', `socket,id=pratique-channel,fd=${CHANNEL_FD},server=on,wait=off`],
    ...device({ driver: 'virtio-serial-pci', id: 'pratique-serial' }),
    ...device({ driver: 'virtserialport', id: AGENT_PORT_ID, chardev: 'pratique-channel', name: AGENT_PORT_NAME }),
    // pcie.0 itself takes no hot-plug: the drive comes and goes on a port of its own.
    ...device({ driver: 'pcie-root-port', id: DRIVE_PORT, chassis: 1, slot: 1 }),
    ...(spec.scsi === true ? device({ driver: 'virtio-scsi-pci', id: 'pratique-scsi' }) : []),
    ...spec.disks.flatMap((disk, index) =>
      diskArguments(disk, index, {
        path: parts.diskPaths[index] ?? disk.path,
        backing: parts.backings?.[index] ?? disk.backing,
      }),
    ),
    ...(spec.media ?? []).flatMap((medium, index) => trayArguments(medium.id, index, spec.scsi === true)),
    ...spec.nics.flatMap((nic, index) => nicArguments(nic, index)),
    ...driveArguments(spec),
    // Behind everything else: the places of NICs and disks on the bus, and so their names, are the same with and without it.
    ...seedArguments(parts.seedPath ?? null),
  ];
}

/** Read-only and there from the first instruction: the host's own, and no removable medium that waits for the gate. */
function seedArguments(path: string | null): readonly string[] {
  if (path === null) return [];
  const file = { driver: 'file', filename: path, 'read-only': true };
  const node = { driver: 'raw', 'node-name': SEED_DEVICE, 'read-only': true, file };
  return [
    ...['-blockdev', JSON.stringify(node)],
    ...device({ driver: 'virtio-blk-pci', id: SEED_DEVICE, drive: SEED_DEVICE }),
  ];
}

/** No controller that nothing hangs on: a guest would spend time on its driver. */
function hasSata(spec: ManagedVm): boolean {
  return spec.drive?.frontEnd === 'ide-cd' || (spec.scsi !== true && (spec.media ?? []).length > 0);
}

/** Where the command line leaves room for the drive. */
export function driveSlots(spec: ManagedVm): DriveSlots {
  return {
    port: DRIVE_PORT,
    scsiBus: spec.scsi === true ? SCSI_BUS : null,
    usbBus: spec.drive?.frontEnd === 'usb-storage' ? USB_BUS : null,
    tray: spec.drive?.frontEnd === 'ide-cd' ? DRIVE_TRAY : null,
  };
}

/** What a drive needs besides the port and virtio-scsi: a tray, empty at first, or a USB controller. */
function driveArguments(spec: ManagedVm): readonly string[] {
  switch (spec.drive?.frontEnd) {
    case 'ide-cd':
      return device({ driver: 'ide-cd', id: DRIVE_TRAY, bus: `ide.${MEDIA_MAX}` });
    case 'usb-storage':
      return device({ driver: 'qemu-xhci', id: 'pratique-usb' });
    default:
      return [];
  }
}

/** The x86-64-v2 baseline, which current distributions need; TCG's own default is older, its `max` boots slower. */
const TCG_CPU = 'qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16';

function kernelArguments(kernel: CommandLineParts['kernel']): readonly string[] {
  if (kernel === null) return [];
  const initrd = kernel.initrd === null ? [] : ['-initrd', kernel.initrd];
  return ['-kernel', kernel.image, ...initrd, '-append', kernel.commandLine];
}

function diskArguments(
  disk: ManagedVm['disks'][number],
  index: number,
  { path, backing }: Pick<DiskImage, 'path' | 'backing'>,
): readonly string[] {
  const isReadOnly = disk.readOnly === true;
  const node = {
    driver: disk.format,
    'node-name': diskNode(index),
    'read-only': isReadOnly,
    ...(isReadOnly ? {} : { discard: 'unmap' }),
    file: { driver: 'file', filename: path, 'read-only': isReadOnly },
    ...backingOf({ format: disk.format, backing }),
  };
  return [
    ...['-blockdev', JSON.stringify(node)],
    ...device({ driver: 'virtio-blk-pci', id: diskDevice(disk.id), drive: diskNode(index), bootindex: index + 1 }),
  ];
}

/** Always said, also that there is none: QEMU would take a chain from the header otherwise. */
function backingOf({ format, backing }: Pick<DiskImage, 'format' | 'backing'>): { readonly backing?: object | null } {
  if (!FORMATS_WITH_BACKING.has(format)) return {};
  return { backing: backing === undefined ? null : backingNode(backing) };
}

function backingNode(image: DiskImage): object {
  const file = { driver: 'file', filename: image.path, 'read-only': true };
  return { driver: image.format, 'read-only': true, file, ...backingOf(image) };
}

/** A disk that may be written, with all that lies beneath it, as block layer options. */
export function writableNode(image: DiskImage): object {
  return { driver: image.format, file: { driver: 'file', filename: image.path }, ...backingOf(image) };
}

/** An empty tray: the medium is inserted at admission. */
function trayArguments(id: string, index: number, isScsi: boolean): readonly string[] {
  return isScsi
    ? device({ driver: 'scsi-cd', id: mediaDevice(id), bus: SCSI_BUS })
    : device({ driver: 'ide-cd', id: mediaDevice(id), bus: `ide.${index}` });
}

function nicArguments(nic: ManagedVm['nics'][number], index: number): readonly string[] {
  return [
    // vhost=off: /dev/vhost-net would have to be opened by the unprivileged QEMU.
    ...['-netdev', `tap,id=net${index},fd=${FIRST_TAP_FD + index},vhost=off`],
    // No boot ROM: a firmware that tries the network first would only wait.
    ...device({ driver: nic.model, id: nicDevice(nic.id), netdev: `net${index}`, mac: nic.mac, romfile: '' }),
  ];
}

function device(properties: Readonly<Record<string, string | number>>): readonly string[] {
  return ['-device', JSON.stringify(properties)];
}
