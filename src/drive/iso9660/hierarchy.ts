// One view of the tree (Rock Ridge or Joliet): which children a folder shows, in which order, in how many bytes.
import { makeIsoNamer } from './iso-name.ts';
import { checkJolietName } from './joliet.ts';
import type { FolderNode } from './nodes.ts';
import {
  type IdentifierEncoding,
  identifierBytes,
  type NamedNode,
  placeRecord,
  RECORD_BYTES_MAX,
  recordBytes,
  SELF_IDENTIFIER,
  sectionsOf,
} from './record.ts';
import {
  type ContinuationArea,
  makeContinuationArea,
  NO_SYSTEM_USE,
  planAttributes,
  planChild,
  type SystemUse,
} from './rock-ridge.ts';
import { SECTOR_BYTES, sectorsOf } from './types.ts';

/** The records of one folder. */
export type FolderRecords = {
  readonly self: SystemUse;
  readonly parent: SystemUse;
  readonly children: Iterable<NamedNode>;
  /** Directly behind the folder, because libarchive reads forward only. */
  readonly continuations: ContinuationArea;
};

export type PlannedFolder = {
  readonly node: FolderNode;
  /** Its number in the path table, from 1. */
  readonly number: number;
  /** Its own number for the root. */
  readonly parentNumber: number;
  readonly identifier: string;
  readonly records: FolderRecords;
  /** Of its records, in whole sectors. */
  readonly lengthBytes: number;
};

export type Hierarchy = {
  readonly kind: 'primary' | 'joliet';
  readonly encoding: IdentifierEncoding;
  /** In the order of the path table: by level, then parent, then identifier (ECMA-119, 6.9.1). */
  readonly folders: readonly PlannedFolder[];
  readonly numberOf: ReadonlyMap<FolderNode, number>;
};

/** The primary hierarchy: short ISO names, with Rock Ridge. */
export function planRockRidge(root: FolderNode): Hierarchy {
  const room = (nameBytes: number) => RECORD_BYTES_MAX - recordBytes(nameBytes, 0);
  return planHierarchy(root, 'primary', 'ascii', (folder) => {
    const continuations = makeContinuationArea();
    const self = planAttributes(folder, folder === root, room(1), continuations);
    const parent = planAttributes(folder.parent ?? folder, false, room(1), continuations);
    const isoName = makeIsoNamer();
    const children = folder.sorted.map((node) => {
      const identifier = isoName(node.name, node.kind === 'folder');
      const nameBytes = identifierBytes(node, identifier, 'ascii');
      return { node, identifier, systemUse: planChild(node, room(nameBytes), continuations) };
    });
    children.sort((a, b) => (a.identifier < b.identifier ? -1 : 1));
    return { self, parent, children, continuations };
  });
}

/** The Joliet hierarchy. It has no symlinks. Throws DriveError `usage/drive-joliet` for a name it cannot carry. */
export function planJoliet(root: FolderNode): Hierarchy {
  const continuations = makeContinuationArea();
  return planHierarchy(root, 'joliet', 'utf16', (folder) => {
    for (const { kind, name } of folder.sorted) if (kind !== 'symlink') checkJolietName(name);
    return {
      self: NO_SYSTEM_USE,
      parent: NO_SYSTEM_USE,
      children: { [Symbol.iterator]: () => showJoliet(folder) },
      continuations,
    };
  });
}

/** Made anew each time rather than kept a hundred thousand times. The tree is sorted by UTF-16 units, which is Joliet's order of bytes. */
function* showJoliet(folder: FolderNode): Iterator<NamedNode> {
  for (const node of folder.sorted) {
    if (node.kind !== 'symlink') yield { node, identifier: node.name, systemUse: NO_SYSTEM_USE };
  }
}

function planHierarchy(
  root: FolderNode,
  kind: Hierarchy['kind'],
  encoding: IdentifierEncoding,
  planRecords: (folder: FolderNode) => FolderRecords,
): Hierarchy {
  const folders: PlannedFolder[] = [];
  const numberOf = new Map<FolderNode, number>();
  const queue: { readonly node: FolderNode; readonly identifier: string; readonly parentNumber: number }[] = [];
  queue.push({ node: root, identifier: SELF_IDENTIFIER, parentNumber: 1 });
  // The queue grows while it is walked: breadth first is the order of the path table.
  for (const { node, identifier, parentNumber } of queue) {
    const number = folders.length + 1;
    numberOf.set(node, number);
    const records = planRecords(node);
    const lengthBytes = measureRecords(records, encoding);
    folders.push({ node, number, parentNumber, identifier, records, lengthBytes });
    for (const child of records.children) {
      if (child.node.kind !== 'folder') continue;
      queue.push({ node: child.node, identifier: child.identifier, parentNumber: number });
    }
  }
  return { kind, encoding, folders, numberOf };
}

function measureRecords({ self, parent, children }: FolderRecords, encoding: IdentifierEncoding): number {
  let end = recordBytes(1, self.lengthBytes) + recordBytes(1, parent.lengthBytes);
  for (const { node, identifier, systemUse } of children) {
    const length = recordBytes(identifierBytes(node, identifier, encoding), systemUse.lengthBytes);
    const records = node.kind === 'file' ? sectionsOf(node.sizeBytes) : 1;
    for (let record = 0; record < records; record += 1) end = placeRecord(end, length) + length;
  }
  return sectorsOf(end) * SECTOR_BYTES;
}
