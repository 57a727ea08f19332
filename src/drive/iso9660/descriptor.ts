// Volume descriptors: the fixed sectors at the start of an image (ECMA-119, 8).
import { putBoth16, putBoth32, putNoVolumeDate, putUtf16be, putVolumeDate } from './fields.ts';
import type { FolderNode } from './nodes.ts';
import { SELF_IDENTIFIER, writeRecord } from './record.ts';
import { NO_SYSTEM_USE } from './rock-ridge.ts';
import { SECTOR_BYTES } from './types.ts';

/** The first descriptor's sector: the 16 before it belong to the boot loader and stay empty. */
export const FIRST_DESCRIPTOR_SECTOR = 16;

export type VolumeContent = {
  readonly kind: 'primary' | 'joliet';
  readonly label: string;
  readonly createdAtMs: number;
  readonly totalSectors: number;
  readonly pathTableBytes: number;
  readonly pathTableSector: { readonly little: number; readonly big: number };
  readonly root: { readonly node: FolderNode; readonly sector: number; readonly lengthBytes: number };
};

/** Text fields of both kinds: offset, bytes (ECMA-119, 8.4). */
const TEXT_FIELDS = {
  system: [8, 32],
  label: [40, 32],
  volumeSet: [190, 128],
  publisher: [318, 128],
  preparer: [446, 128],
  application: [574, 128],
  copyright: [702, 37],
  abstract: [739, 37],
  bibliography: [776, 37],
} as const;

/** Writes a primary (ECMA-119, 8.4) or a Joliet supplementary descriptor (8.5; escape sequence of UCS-2 level 3). */
export function writeVolumeDescriptor(target: Buffer, sector: number, content: VolumeContent): void {
  const at = sector * SECTOR_BYTES;
  const isJoliet = content.kind === 'joliet';
  target[at] = isJoliet ? 2 : 1;
  putIdentifier(target, at);
  for (const [field, [offset, bytes]] of Object.entries(TEXT_FIELDS)) {
    const text = field === 'label' ? content.label : field === 'application' ? 'PRATIQUE' : '';
    putText(target, at + offset, bytes, text, isJoliet);
  }
  putBoth32(target, at + 80, content.totalSectors);
  if (isJoliet) target.write('%/E', at + 88, 'latin1');
  putBoth16(target, at + 120, 1);
  putBoth16(target, at + 124, 1);
  putBoth16(target, at + 128, SECTOR_BYTES);
  putBoth32(target, at + 132, content.pathTableBytes);
  target.writeUInt32LE(content.pathTableSector.little, at + 140);
  target.writeUInt32BE(content.pathTableSector.big, at + 148);
  const { node, sector: rootSector, lengthBytes } = content.root;
  writeRecord(target, at + 156, {
    named: { node, identifier: SELF_IDENTIFIER, systemUse: NO_SYSTEM_USE },
    sector: rootSector,
    lengthBytes,
    encoding: 'ascii',
    hasMoreSections: false,
    continuationSector: 0,
  });
  putVolumeDate(target, at + 813, content.createdAtMs);
  putVolumeDate(target, at + 830, content.createdAtMs);
  putNoVolumeDate(target, at + 847);
  putNoVolumeDate(target, at + 864);
  target[at + 881] = 1;
}

/** Writes the descriptor that ends the set (ECMA-119, 8.3). */
export function writeTerminator(target: Buffer, sector: number): void {
  target[sector * SECTOR_BYTES] = 255;
  putIdentifier(target, sector * SECTOR_BYTES);
}

function putIdentifier(target: Buffer, at: number): void {
  target.write('CD001', at + 1, 'latin1');
  target[at + 6] = 1;
}

/** Text padded with spaces. An odd last byte of a Joliet field stays zero. */
function putText(target: Buffer, at: number, bytes: number, text: string, isWide: boolean): void {
  const padded = text.padEnd(isWide ? Math.floor(bytes / 2) : bytes, ' ');
  if (isWide) putUtf16be(target, at, padded);
  else target.write(padded, at, 'latin1');
}
