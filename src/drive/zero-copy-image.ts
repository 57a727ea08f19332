// The image as QEMU opens it: a VMDK descriptor that strings the metadata file and the blob files together, without a copy.
//
// Only numbers and names made here go into the descriptor; nothing from outside can become a line of it.
// Source: QEMU block/vmdk.c (vmdk_parse_extents); VMware "Virtual Disk Format 1.1".
import { DRIVE_OPEN_FILES_MAX, DRIVE_PACKED_BLOB_BYTES_MAX, DRIVE_PACKED_BYTES_MAX } from '../base/limits.ts';
import { DriveError } from './drive-error.ts';
import { type IsoExtent, type IsoImage, SECTOR_BYTES } from './iso9660.ts';

export const METADATA_FILE = 'meta.bin';
export const DESCRIPTOR_FILE = 'drive.vmdk';

/** VMDK counts in sectors of 512 bytes. */
const VMDK_SECTORS_PER_ISO_SECTOR = SECTOR_BYTES / 512;

export type LinkedBlob = { readonly file: string; readonly extent: IsoExtent };

/** Which blobs are copied behind the metadata and which are opened as files of their own. */
export type ImagePlan = {
  /** In the order of their place: right behind the metadata. */
  readonly packed: readonly IsoExtent[];
  readonly linked: readonly LinkedBlob[];
  /** Bytes of the metadata file: metadata and packed blobs, whole ISO sectors. */
  readonly metadataFileBytes: number;
  readonly descriptor: string;
};

export type PackingLimits = {
  readonly openFilesMax: number;
  readonly packedBlobBytesMax: number;
  readonly packedBytesMax: number;
};

const DEFAULT_PACKING: PackingLimits = {
  openFilesMax: DRIVE_OPEN_FILES_MAX,
  packedBlobBytesMax: DRIVE_PACKED_BLOB_BYTES_MAX,
  packedBytesMax: DRIVE_PACKED_BYTES_MAX,
};

/**
 * Splits an image into metadata file and linked blobs and writes the descriptor's text. Blobs up to the limit are
 * packed, then the smallest others until QEMU has at most `openFilesMax` files to open (the metadata file is one).
 * Throws DriveError `usage/drive-packing` when that would copy more than `packedBytesMax`.
 */
export function planZeroCopyImage(iso: IsoImage, limits: PackingLimits = DEFAULT_PACKING): ImagePlan {
  const packedCount = countPacked(iso.extents, limits);
  const packed = iso.extents.slice(0, packedCount);
  const linked = iso.extents
    .slice(packedCount)
    .map((extent, index) => ({ file: `b${String(index + 1).padStart(4, '0')}`, extent }));
  const metadataSectors = linked[0]?.extent.startSector ?? iso.totalSectors;
  const packedBytes = metadataSectors * SECTOR_BYTES - iso.metadata.length;
  if (packedBytes > limits.packedBytesMax) {
    throw new DriveError(
      'usage/drive-packing',
      `the drive has ${iso.extents.length} files; keeping ${limits.openFilesMax} of them open would mean copying ${packedBytes} bytes`,
      { next: 'split the content over several runs' },
    );
  }
  const descriptor = makeDescriptor(metadataSectors, linked);
  return { packed, linked, metadataFileBytes: metadataSectors * SECTOR_BYTES, descriptor };
}

/** The extents come smallest first, so what is packed is a prefix of them. */
function countPacked(extents: readonly IsoExtent[], limits: PackingLimits): number {
  const firstLarge = extents.findIndex((extent) => extent.lengthBytes > limits.packedBlobBytesMax);
  const small = firstLarge < 0 ? extents.length : firstLarge;
  return Math.max(small, extents.length - (limits.openFilesMax - 1));
}

/** A blob's file need not fill its last sector: QEMU reads zeros beyond its end. */
function makeDescriptor(metadataSectors: number, linked: readonly LinkedBlob[]): string {
  const line = (isoSectors: number, file: string) => `RW ${isoSectors * VMDK_SECTORS_PER_ISO_SECTOR} FLAT "${file}" 0`;
  return [
    '# Disk DescriptorFile',
    'version=1',
    'CID=fffffffe',
    'parentCID=ffffffff',
    'createType="twoGbMaxExtentFlat"',
    // No blank line before the first extent: QEMU 7.2 would read that extent twice.
    '# Extent description',
    line(metadataSectors, METADATA_FILE),
    ...linked.map(({ file, extent }) => line(Math.ceil(extent.lengthBytes / SECTOR_BYTES), file)),
    '',
    'ddb.adapterType = "ide"',
    '',
  ].join('\n');
}
