// An image and its chain as QEMU's block nodes, with every format and every file said: nothing is probed, no header is followed.
import { type DiskImage, type DiskViewSource, FORMATS_WITH_BACKING, imageChain } from '../model/disk-image.ts';

type Node = Readonly<Record<string, unknown>>;

/** Whether it is a disk of a VM that runs. */
export function isView(target: DiskImage | DiskViewSource): target is DiskViewSource {
  return 'socket' in target;
}

/** The files that a target is made of, in the order in which they are shown as /disk/0, /disk/1, … */
export function filesOf(target: DiskImage | DiskViewSource): readonly string[] {
  return isView(target) ? [target.socket, target.scratch] : imageChain(target).map(({ path }) => path);
}

/** The node `image` of a chain whose files are shown as /disk/0 (the uppermost), /disk/1, …; or of a view. */
export function blockNode(target: DiskImage | DiskViewSource): string {
  const node: Node = isView(target) ? viewNode(target) : nodeAt(target, 0);
  return JSON.stringify({ 'node-name': 'image', ...node });
}

/** The node `replayed` over one partition of a view: what is written to it goes to /disk/1. */
export function replayNode(view: DiskViewSource, place: { readonly offsetBytes: number; readonly sizeBytes: number }) {
  const { offsetBytes, sizeBytes } = place;
  const partition = { ...viewNode(view), offset: offsetBytes, size: sizeBytes };
  const file = { driver: 'file', filename: '/disk/1' };
  return JSON.stringify({ 'node-name': 'replayed', driver: 'qcow2', file, backing: partition });
}

function viewNode({ exportName }: DiskViewSource): Node {
  const server = { type: 'unix', path: '/disk/0' };
  const file = { driver: 'nbd', server, export: exportName, 'read-only': true };
  return { driver: 'raw', 'read-only': true, file };
}

function nodeAt(image: DiskImage, depth: number): Node {
  const node = {
    driver: image.format,
    'read-only': true,
    file: { driver: 'file', filename: `/disk/${depth}`, 'read-only': true },
  };
  if (!FORMATS_WITH_BACKING.has(image.format)) return node;
  return { ...node, backing: image.backing === undefined ? null : nodeAt(image.backing, depth + 1) };
}
