// Gives everything its sector and writes the metadata.
//
//   0–15 empty │ descriptors │ path tables, folders, continuations (Rock Ridge) │ path tables, folders (Joliet) │
//   inline files ║ blobs, smallest first
import { DRIVE_METADATA_BYTES_MAX } from '../../base/limits.ts';
import { DriveError } from '../drive-error.ts';
import { FIRST_DESCRIPTOR_SECTOR, type VolumeContent, writeTerminator, writeVolumeDescriptor } from './descriptor.ts';
import {
  type Hierarchy,
  PARENT_IDENTIFIER,
  type PlannedChild,
  type PlannedFolder,
  planJoliet,
  planRockRidge,
  SELF_IDENTIFIER,
} from './hierarchy.ts';
import { pathTableBytes, SECTION_BYTES_MAX, sectionsOf, writePathTable, writeRecord } from './record.ts';
import type { FileNode, FolderNode } from './tree.ts';
import { type IsoExtent, type IsoImage, SECTOR_BYTES, sectorsOf } from './types.ts';

type LayoutOptions = { readonly label: string; readonly joliet: boolean; readonly createdAtMs: number };

/** A hierarchy with its sectors. `folderSectors` is indexed by folder number. */
type PlacedHierarchy = {
  readonly kind: 'primary' | 'joliet';
  readonly plan: Hierarchy;
  readonly tableBytes: number;
  readonly tableSector: { readonly little: number; readonly big: number };
  readonly folderSectors: Float64Array;
  readonly continuationSector: number;
  readonly endSector: number;
};

type PlacedFiles = {
  readonly startOf: ReadonlyMap<FileNode, number>;
  readonly metadataSectors: number;
  readonly extents: readonly IsoExtent[];
  readonly totalSectors: number;
};

/** The image of a tree. Throws DriveError when the volume or its metadata would be too large. */
export function layImage(root: FolderNode, options: LayoutOptions): IsoImage {
  const plans = [{ kind: 'primary' as const, plan: planRockRidge(root) }];
  const joliet = options.joliet ? [{ kind: 'joliet' as const, plan: planJoliet(root) }] : [];
  const hierarchies: PlacedHierarchy[] = [];
  let sector = FIRST_DESCRIPTOR_SECTOR + plans.length + joliet.length + 1;
  for (const { kind, plan } of [...plans, ...joliet]) {
    const placed = placeHierarchy(kind, plan, sector);
    hierarchies.push(placed);
    sector = placed.endSector;
  }
  const files = placeFiles(root, sector);
  const metadata = Buffer.alloc(files.metadataSectors * SECTOR_BYTES);
  hierarchies.forEach((placed, index) => {
    writeHierarchy(metadata, placed, files.startOf);
    writeVolumeDescriptor(metadata, FIRST_DESCRIPTOR_SECTOR + index, describeVolume(placed, files, options));
  });
  writeTerminator(metadata, FIRST_DESCRIPTOR_SECTOR + hierarchies.length);
  for (const [file, start] of files.startOf) {
    if (file.source.kind === 'inline') metadata.set(file.source.bytes, start * SECTOR_BYTES);
  }
  return { metadata, extents: files.extents, totalSectors: files.totalSectors };
}

function placeHierarchy(kind: 'primary' | 'joliet', plan: Hierarchy, startSector: number): PlacedHierarchy {
  const tableBytes = pathTableBytes(plan.folders.map((folder) => folder.identifier));
  const tableSector = { little: startSector, big: startSector + sectorsOf(tableBytes) };
  let sector = tableSector.big + sectorsOf(tableBytes);
  const folderSectors = new Float64Array(plan.folders.length + 1);
  for (const folder of plan.folders) {
    folderSectors[folder.number] = sector;
    sector += sectorsOf(folder.lengthBytes);
  }
  const endSector = sector + plan.continuations.sectors();
  return { kind, plan, tableBytes, tableSector, folderSectors, continuationSector: sector, endSector };
}

/** Inline files follow the folders, then each distinct blob once, smallest first so that a prefix of them can be packed. */
function placeFiles(root: FolderNode, startSector: number): PlacedFiles {
  const files = listFiles(root);
  const startOf = new Map<FileNode, number>();
  let sector = startSector;
  for (const file of files) {
    if (file.source.kind === 'blob') continue;
    startOf.set(file, file.sizeBytes === 0 ? 0 : sector);
    sector += sectorsOf(file.sizeBytes);
  }
  const metadataSectors = sector;
  checkMetadata(metadataSectors);
  const extents: IsoExtent[] = [];
  const startOfBlob = new Map<string, number>();
  for (const blob of distinctBlobs(files)) {
    startOfBlob.set(blob.source.digest, sector);
    extents.push({ startSector: sector, lengthBytes: blob.lengthBytes, source: blob.source });
    sector += sectorsOf(blob.lengthBytes);
  }
  checkVolume(sector);
  for (const file of files) {
    if (file.source.kind === 'blob') startOf.set(file, startOfBlob.get(file.source.digest) ?? 0);
  }
  return { startOf, metadataSectors, extents, totalSectors: sector };
}

function distinctBlobs(files: readonly FileNode[]): Omit<IsoExtent, 'startSector'>[] {
  const blobs = new Map<string, Omit<IsoExtent, 'startSector'>>();
  for (const { source, sizeBytes } of files) {
    if (source.kind !== 'blob') continue;
    const known = blobs.get(source.digest);
    if (known === undefined) blobs.set(source.digest, { lengthBytes: sizeBytes, source });
    else if (known.lengthBytes !== sizeBytes) {
      throw new DriveError('usage/drive-entry', `the blob ${source.digest} is listed with two different sizes`);
    }
  }
  // An empty file has no place.
  const placed = [...blobs.values()].filter((blob) => blob.lengthBytes > 0);
  return placed.sort((a, b) => a.lengthBytes - b.lengthBytes || (a.source.digest < b.source.digest ? -1 : 1));
}

/** All files in an order that does not depend on the order of the entries. */
function listFiles(root: FolderNode): FileNode[] {
  const files: FileNode[] = [];
  const folders = [root];
  for (const folder of folders) {
    for (const child of [...folder.children.values()].sort((a, b) => (a.name < b.name ? -1 : 1))) {
      if (child.kind === 'folder') folders.push(child);
      if (child.kind === 'file') files.push(child);
    }
  }
  return files;
}

function writeHierarchy(target: Buffer, placed: PlacedHierarchy, startOf: ReadonlyMap<FileNode, number>): void {
  const sectorOf = (number: number): number => placed.folderSectors[number] ?? 0;
  const table = placed.plan.folders.map(({ identifier, number, parentNumber }) => ({
    identifier,
    parentNumber,
    sector: sectorOf(number),
  }));
  writePathTable(target, placed.tableSector.little * SECTOR_BYTES, table, 'little');
  writePathTable(target, placed.tableSector.big * SECTOR_BYTES, table, 'big');
  for (const folder of placed.plan.folders) writeFolder(target, placed, folder, startOf);
  placed.plan.continuations.write(target, placed.continuationSector * SECTOR_BYTES);
}

function writeFolder(
  target: Buffer,
  placed: PlacedHierarchy,
  folder: PlannedFolder,
  startOf: ReadonlyMap<FileNode, number>,
): void {
  const { continuationSector } = placed;
  const folderRecord = (number: number, child: PlannedChild) => ({
    ...child,
    sector: placed.folderSectors[number] ?? 0,
    lengthBytes: placed.plan.folders[number - 1]?.lengthBytes ?? 0,
    isFolder: true,
    hasMoreSections: false,
    mtimeMs: child.node.mtimeMs,
    continuationSector,
  });
  const self = { node: folder.node, identifier: SELF_IDENTIFIER, systemUse: folder.self };
  const parent = { node: folder.node.parent ?? folder.node, identifier: PARENT_IDENTIFIER, systemUse: folder.parent };
  let at = (placed.folderSectors[folder.number] ?? 0) * SECTOR_BYTES;
  at = writeRecord(target, at, folderRecord(folder.number, self));
  at = writeRecord(target, at, folderRecord(folder.parentNumber, parent));
  for (const child of folder.children) {
    if (child.node.kind === 'folder') {
      at = writeRecord(target, at, folderRecord(placed.plan.numberOf.get(child.node) ?? 0, child));
    } else {
      const start = child.node.kind === 'file' ? (startOf.get(child.node) ?? 0) : 0;
      at = writeFileRecords(target, at, child, start, continuationSector);
    }
  }
}

/** One record, or one for each section of a file over 4 GiB. */
function writeFileRecords(
  target: Buffer,
  start: number,
  child: PlannedChild,
  firstSector: number,
  continuationSector: number,
): number {
  const sizeBytes = child.node.kind === 'file' ? child.node.sizeBytes : 0;
  const sections = sectionsOf(sizeBytes);
  let at = start;
  for (let section = 0; section < sections; section += 1) {
    const offset = section * SECTION_BYTES_MAX;
    at = writeRecord(target, at, {
      identifier: child.identifier,
      systemUse: child.systemUse,
      sector: firstSector + offset / SECTOR_BYTES,
      lengthBytes: Math.min(sizeBytes - offset, SECTION_BYTES_MAX),
      isFolder: false,
      hasMoreSections: section < sections - 1,
      mtimeMs: child.node.mtimeMs,
      continuationSector,
    });
  }
  return at;
}

function describeVolume(placed: PlacedHierarchy, files: PlacedFiles, options: LayoutOptions): VolumeContent {
  const root = placed.plan.folders[0];
  return {
    kind: placed.kind,
    label: options.label,
    createdAtMs: options.createdAtMs,
    totalSectors: files.totalSectors,
    pathTableBytes: placed.tableBytes,
    pathTableSector: placed.tableSector,
    root: {
      sector: placed.folderSectors[1] ?? 0,
      lengthBytes: root?.lengthBytes ?? 0,
      mtimeMs: root?.node.mtimeMs ?? 0,
    },
  };
}

function checkMetadata(sectors: number): void {
  if (sectors * SECTOR_BYTES <= DRIVE_METADATA_BYTES_MAX) return;
  throw new DriveError(
    'usage/drive-metadata',
    `names and inline files of the drive need ${sectors * SECTOR_BYTES} bytes, the limit is ${DRIVE_METADATA_BYTES_MAX}`,
  );
}

function checkVolume(sectors: number): void {
  // The volume's size has 32 bits (ECMA-119, 8.4.8): 8 TiB.
  if (sectors <= 0xffff_ffff) return;
  throw new DriveError('usage/drive-size', `the drive would have ${sectors} sectors, more than ISO 9660 can count`);
}
