// How a VM comes to see its drive: the device it reads, the way the bytes take, and where the hypervisor opens them.
import { Type } from 'typebox';

/** Devices that a drive can be, by QEMU's words; what the guest's kernel and the VM's hardware both know is chosen. */
export const DRIVE_FRONT_ENDS = ['virtio-blk', 'scsi-cd', 'nvme', 'ide-cd', 'usb-storage'] as const;
export type DriveFrontEnd = (typeof DRIVE_FRONT_ENDS)[number];

// typebox loses the words of a mapped list, so their type is given.
export const DriveFrontEndSchema = Type.Unsafe<DriveFrontEnd>(
  Type.Union(DRIVE_FRONT_ENDS.map((frontEnd) => Type.Literal(frontEnd))),
);

/**
 * `direct`: the hypervisor opens the store's blobs itself. `nbd`: over a unix socket, for one that may not open them. `file`:
 * as one file, for one that takes nothing else.
 */
export const DRIVE_TRANSPORTS = ['direct', 'nbd', 'file'] as const;
export type DriveTransport = (typeof DRIVE_TRANSPORTS)[number];

export const DriveTransportSchema = Type.Unsafe<DriveTransport>(
  Type.Union(DRIVE_TRANSPORTS.map((transport) => Type.Literal(transport))),
);

/** Where a hypervisor opens a drive, always read-only. Paths are absolute. */
export type DriveSource =
  /** A VMDK descriptor over the blobs (`direct`). */
  | { readonly kind: 'vmdk'; readonly path: string }
  /** The whole drive as one file (`file`). */
  | { readonly kind: 'raw'; readonly path: string }
  /** An export of an NBD server on a unix socket (`nbd`). */
  | { readonly kind: 'nbd'; readonly socket: string; readonly exportName: string };
