// One view of the tree (Rock Ridge or Joliet): which children a folder shows, in which order, in how many bytes.

import { makeIsoNamer } from './iso-name.ts';
import { jolietIdentifier } from './joliet.ts';
import { placeRecord, RECORD_BYTES_MAX, recordBytes, sectionsOf } from './record.ts';
import type { ContinuationArea, SystemUse } from './rock-ridge.ts';
import {
  attributeEntries,
  childEntries,
  makeContinuationArea,
  NO_SYSTEM_USE,
  packEntries,
  rootEntries,
} from './rock-ridge.ts';
import type { FolderNode, TreeNode } from './tree.ts';
import { SECTOR_BYTES, sectorsOf } from './types.ts';

export type PlannedChild = { readonly node: TreeNode; readonly identifier: Buffer; readonly systemUse: SystemUse };

export type PlannedFolder = {
  readonly node: FolderNode;
  /** Its number in the path table, from 1. */
  readonly number: number;
  /** Itself for the root. */
  readonly parentNumber: number;
  readonly identifier: Buffer;
  readonly self: SystemUse;
  readonly parent: SystemUse;
  readonly children: readonly PlannedChild[];
  readonly lengthBytes: number;
};

export type Hierarchy = {
  /** In the order of the path table: by level, then parent, then identifier (ECMA-119, 6.9.1). */
  readonly folders: readonly PlannedFolder[];
  readonly numberOf: ReadonlyMap<FolderNode, number>;
  readonly continuations: ContinuationArea;
};

/** How a view names and describes what is in a folder. */
type View = {
  readonly nameChildren: (folder: FolderNode) => { readonly node: TreeNode; readonly identifier: Buffer }[];
  readonly describe: (node: TreeNode, role: 'self' | 'parent' | 'child', identifierBytes: number) => SystemUse;
  readonly continuations: ContinuationArea;
};

/** `.` and `..` (ECMA-119, 7.6.2). */
export const SELF_IDENTIFIER = Buffer.from([0]);
export const PARENT_IDENTIFIER = Buffer.from([1]);

/** The primary hierarchy: short ISO names, with Rock Ridge. */
export function planRockRidge(root: FolderNode): Hierarchy {
  const continuations = makeContinuationArea();
  const subfolders = (node: TreeNode) => (node.kind === 'folder' ? countFolders(node) : 0);
  return planView(root, {
    continuations,
    nameChildren: (folder) => {
      const isoName = makeIsoNamer();
      // By name first, so that the ISO names do not depend on the order of the entries.
      return sortedChildren(folder)
        .map((node) => ({ node, iso: isoName(node.name, node.kind === 'folder') }))
        .sort((a, b) => (a.iso < b.iso ? -1 : 1))
        .map(({ node, iso }) => ({ node, identifier: Buffer.from(iso, 'latin1') }));
    },
    describe: (node, role, identifierBytes) => {
      const room = RECORD_BYTES_MAX - recordBytes(identifierBytes, 0);
      if (role === 'child') return packEntries(childEntries(node, subfolders(node)), room, continuations);
      const attributes = attributeEntries(node, subfolders(node));
      if (role === 'parent' || node !== root) return packEntries(attributes, room, continuations);
      const { first, last } = rootEntries();
      return packEntries([first, ...attributes, last], room, continuations);
    },
  });
}

/** The Joliet hierarchy. It has no symlinks. Throws DriveError `usage/drive-joliet` for a name it cannot carry. */
export function planJoliet(root: FolderNode): Hierarchy {
  return planView(root, {
    continuations: makeContinuationArea(),
    // JavaScript compares UTF-16 units, which is Joliet's order of bytes.
    nameChildren: (folder) =>
      sortedChildren(folder)
        .filter((node) => node.kind !== 'symlink')
        .map((node) => ({ node, identifier: jolietIdentifier(node.name, node.kind === 'folder') })),
    describe: () => NO_SYSTEM_USE,
  });
}

function sortedChildren(folder: FolderNode): TreeNode[] {
  return [...folder.children.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
}

function countFolders(folder: FolderNode): number {
  let count = 0;
  for (const child of folder.children.values()) if (child.kind === 'folder') count += 1;
  return count;
}

function planView(root: FolderNode, view: View): Hierarchy {
  const folders: PlannedFolder[] = [];
  const queue: { readonly node: FolderNode; readonly identifier: Buffer; readonly parentNumber: number }[] = [];
  queue.push({ node: root, identifier: SELF_IDENTIFIER, parentNumber: 1 });
  const numberOf = new Map<FolderNode, number>();
  // The queue grows while it is walked: breadth first is the order of the path table.
  for (const { node, identifier, parentNumber } of queue) {
    const number = folders.length + 1;
    numberOf.set(node, number);
    const children = view.nameChildren(node).map((child) => ({
      ...child,
      systemUse: view.describe(child.node, 'child', child.identifier.length),
    }));
    const self = view.describe(node, 'self', 1);
    const parent = view.describe(node.parent ?? node, 'parent', 1);
    const lengthBytes = measureFolder(self, parent, children);
    folders.push({ node, number, parentNumber, identifier, self, parent, children, lengthBytes });
    for (const child of children) {
      if (child.node.kind !== 'folder') continue;
      queue.push({ node: child.node, identifier: child.identifier, parentNumber: number });
    }
  }
  return { folders, numberOf, continuations: view.continuations };
}

function measureFolder(self: SystemUse, parent: SystemUse, children: readonly PlannedChild[]): number {
  let end = recordBytes(1, self.bytes.length) + recordBytes(1, parent.bytes.length);
  for (const { node, identifier, systemUse } of children) {
    const length = recordBytes(identifier.length, systemUse.bytes.length);
    const records = node.kind === 'file' ? sectionsOf(node.sizeBytes) : 1;
    for (let record = 0; record < records; record += 1) end = placeRecord(end, length) + length;
  }
  return sectorsOf(end) * SECTOR_BYTES;
}
