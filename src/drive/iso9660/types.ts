// What goes into an image and what comes out.
import type { Digest } from '../../base/digest-text.ts';

/** Bytes of one logical sector (ECMA-119, 6.1.2). */
export const SECTOR_BYTES = 2048;

export type BlobSource = { readonly kind: 'blob'; readonly digest: Digest };
export type InlineSource = { readonly kind: 'inline'; readonly bytes: Uint8Array };

type Common = {
  /** Absolute on the drive: `/packages/01-jq.deb`. Missing parents are made. */
  readonly path: string;
  /** Permission bits; files 0o444 and folders 0o555 by default. */
  readonly mode?: number;
  /** Wall time in milliseconds; the format keeps seconds. The epoch by default. */
  readonly mtimeMs?: number;
};

export type IsoFileEntry = Common & {
  readonly kind?: 'file';
  readonly sizeBytes: number;
  readonly source: BlobSource | InlineSource;
};
/** Needed only for an empty folder or for a mode or time of its own. */
export type IsoFolderEntry = Common & { readonly kind: 'folder' };
/** The target is relative, exists, and never climbs out of the tree. */
export type IsoLinkEntry = Omit<Common, 'mode'> & { readonly kind: 'symlink'; readonly target: string };

export type IsoEntry = IsoFileEntry | IsoFolderEntry | IsoLinkEntry;

export type IsoOptions = {
  /** Volume label, `PRATIQUE` by default; cloud-init looks for `CIDATA`. */
  readonly label?: string;
  /** Whether guests without Rock Ridge (Windows) are to see the names too; true by default. */
  readonly joliet?: boolean;
  /** Creation time in the volume descriptors; the epoch by default. */
  readonly createdAtMs?: number;
};

/** The bytes of one blob at one place; files with the same digest share it. */
export type IsoExtent = {
  readonly startSector: number;
  readonly lengthBytes: number;
  readonly source: BlobSource;
};

export type IsoImage = {
  /** Whole sectors from the start of the image up to the first blob; inline files are inside. */
  readonly metadata: Uint8Array;
  /** Without gaps from the end of the metadata to the end of the image, smallest first. */
  readonly extents: readonly IsoExtent[];
  readonly totalSectors: number;
};

/** Sectors that so many bytes fill. */
export function sectorsOf(lengthBytes: number): number {
  return Math.ceil(lengthBytes / SECTOR_BYTES);
}
