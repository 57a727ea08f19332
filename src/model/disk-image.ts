// Disk images as a VM spec names them: path, format and backing chain, given by the operator and never probed.
import { Type } from 'typebox';
import { DISK_BACKING_DEPTH_MAX } from '../base/limits.ts';

/** The formats that QEMU reads and writes by these names. */
export const DISK_FORMATS = ['raw', 'qcow2', 'vmdk', 'vdi', 'vhdx', 'vpc', 'qcow', 'qed'] as const;
export type DiskFormat = (typeof DISK_FORMATS)[number];

// typebox loses the words of a mapped list, so their type is given.
export const DiskFormatSchema = Type.Unsafe<DiskFormat>(Type.Union(DISK_FORMATS.map((format) => Type.Literal(format))));

/** Without control characters and the comma, which QEMU's option syntax would split at. */
export const HostPathSchema = Type.String({ minLength: 2, maxLength: 1024, pattern: '^/[^\\u0000-\\u001f,]+$' });

/** An image and what lies beneath it, as far as it has a backing file. */
export type DiskImage = {
  readonly path: string;
  readonly format: DiskFormat;
  readonly backing?: DiskImage | undefined;
};

/** A disk of a VM that runs, as its hypervisor shows it: what it was at one moment. */
export type DiskViewSource = {
  /** For messages: `the disk root of web`. */
  readonly path: string;
  readonly socket: string;
  readonly exportName: string;
  /** An empty file of the reader's own, for what replaying a journal writes. */
  readonly scratch: string;
};

/** What a disk's image was made on top of; nested at most so deep. */
export const BackingSchema = Type.Unsafe<DiskImage>(backingSchema(DISK_BACKING_DEPTH_MAX));

function backingSchema(depth: number): ReturnType<typeof Type.Object> {
  const own = { path: HostPathSchema, format: DiskFormatSchema };
  const properties = depth <= 1 ? own : { ...own, backing: Type.Optional(backingSchema(depth - 1)) };
  return Type.Object(properties, { additionalProperties: false });
}

/** Formats whose headers can name a backing file. Said to have none, QEMU does not look there. */
export const FORMATS_WITH_BACKING: ReadonlySet<DiskFormat> = new Set(['qcow2', 'qcow', 'qed', 'vmdk']);

/** The images of a chain, the uppermost first. */
export function imageChain(image: DiskImage): readonly DiskImage[] {
  return image.backing === undefined ? [image] : [image, ...imageChain(image.backing)];
}
