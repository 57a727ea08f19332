// An image and its chain as QEMU's block nodes, with every format and every file said: nothing is probed, no header is followed.
import { type DiskImage, FORMATS_WITH_BACKING } from '../model/disk-image.ts';

/** The node `image` of a chain whose files are shown as /disk/0 (the uppermost), /disk/1, … */
export function blockNode(image: DiskImage): string {
  return JSON.stringify({ 'node-name': 'image', ...nodeAt(image, 0) });
}

function nodeAt(image: DiskImage, depth: number): Readonly<Record<string, unknown>> {
  const node = {
    driver: image.format,
    'read-only': true,
    file: { driver: 'file', filename: `/disk/${depth}`, 'read-only': true },
  };
  if (!FORMATS_WITH_BACKING.has(image.format)) return node;
  return { ...node, backing: image.backing === undefined ? null : nodeAt(image.backing, depth + 1) };
}
