// Gives everything its sector and writes the metadata.
//
//   0–15 empty │ descriptors │ path tables, folders (Rock Ridge) │ path tables, folders (Joliet) │ one empty │ inline files ║ blobs, smallest first
import type { Digest } from '../../base/digest-text.ts';
import { DRIVE_METADATA_BYTES_MAX } from '../../base/limits.ts';
import { DriveError } from '../drive-error.ts';
import { FIRST_DESCRIPTOR_SECTOR, type VolumeContent, writeTerminator, writeVolumeDescriptor } from './descriptor.ts';
import { type Hierarchy, type PlannedFolder, planJoliet, planRockRidge } from './hierarchy.ts';
import type { FileNode } from './nodes.ts';
import {
  type IdentifierEncoding,
  type NamedNode,
  PARENT_IDENTIFIER,
  pathTableBytes,
  SECTION_BYTES_MAX,
  SELF_IDENTIFIER,
  sectionsOf,
  writePathTable,
  writeRecord,
} from './record.ts';
import type { Tree } from './tree.ts';
import { type BlobSource, type IsoExtent, type IsoImage, SECTOR_BYTES, sectorsOf } from './types.ts';

/** libarchive looks at eight descriptors before it believes in an image, whether it has them or not. */
const METADATA_SECTORS_MIN = FIRST_DESCRIPTOR_SECTOR + 8;
/** libisofs reads the sector behind an empty folder too, and refuses the whole image if the image ends before it. */
const SECTORS_BEHIND_FOLDERS = 1;

type LayoutOptions = { readonly label: string; readonly joliet: boolean; readonly createdAtMs: number };

/** A hierarchy with its sectors. `folderSectors` is indexed by folder number. */
type PlacedHierarchy = {
  readonly plan: Hierarchy;
  readonly tableBytes: number;
  readonly tableSector: { readonly little: number; readonly big: number };
  readonly folderSectors: Float64Array;
  readonly endSector: number;
};

type PlacedFiles = {
  /** Indexed by file. An empty file has no place and says 0. */
  readonly startSectors: Float64Array;
  readonly metadataSectors: number;
  readonly extents: readonly IsoExtent[];
  readonly totalSectors: number;
};

/** The image of a tree. Throws DriveError when the volume or its metadata would be too large. */
export function layImage(tree: Tree, options: LayoutOptions): IsoImage {
  const plans = options.joliet ? [planRockRidge(tree.root), planJoliet(tree.root)] : [planRockRidge(tree.root)];
  const hierarchies: PlacedHierarchy[] = [];
  let sector = FIRST_DESCRIPTOR_SECTOR + plans.length + 1;
  for (const plan of plans) {
    const placed = placeHierarchy(plan, sector);
    hierarchies.push(placed);
    sector = placed.endSector;
  }
  const files = placeFiles(tree, sector);
  const metadata = Buffer.alloc(files.metadataSectors * SECTOR_BYTES);
  hierarchies.forEach((placed, index) => {
    writeHierarchy(metadata, placed, files.startSectors);
    writeVolumeDescriptor(metadata, FIRST_DESCRIPTOR_SECTOR + index, describeVolume(tree, placed, files, options));
  });
  writeTerminator(metadata, FIRST_DESCRIPTOR_SECTOR + hierarchies.length);
  writeInlineFiles(metadata, tree, files.startSectors);
  return { metadata, extents: files.extents, totalSectors: files.totalSectors };
}

function placeHierarchy(plan: Hierarchy, startSector: number): PlacedHierarchy {
  const identifiers = plan.folders.map((folder) => folder.identifier);
  const tableBytes = pathTableBytes(identifiers, plan.encoding);
  const tableSector = { little: startSector, big: startSector + sectorsOf(tableBytes) };
  let sector = tableSector.big + sectorsOf(tableBytes);
  const folderSectors = new Float64Array(plan.folders.length + 1);
  for (const folder of plan.folders) {
    folderSectors[folder.number] = sector;
    sector += sectorsOf(folder.lengthBytes) + folder.records.continuations.sectors();
  }
  return { plan, tableBytes, tableSector, folderSectors, endSector: sector };
}

/** Inline files follow the folders, then each distinct blob once, smallest first so that a prefix of them can be packed. */
function placeFiles(tree: Tree, startSector: number): PlacedFiles {
  const startSectors = new Float64Array(tree.files.length);
  let sector = startSector + SECTORS_BEHIND_FOLDERS;
  for (const file of tree.files) {
    if (file.source.kind === 'blob' || file.sizeBytes === 0) continue;
    startSectors[file.index] = sector;
    sector += sectorsOf(file.sizeBytes);
  }
  sector = Math.max(sector, METADATA_SECTORS_MIN);
  const metadataSectors = sector;
  checkMetadata(metadataSectors);
  const { firsts, copies } = distinctBlobs(tree.files);
  const extents: IsoExtent[] = [];
  for (const { index, source, sizeBytes } of firsts.sort(smallestFirst)) {
    // An empty file has no place.
    if (sizeBytes === 0) continue;
    extents.push({ startSector: sector, lengthBytes: sizeBytes, source });
    startSectors[index] = sector;
    sector += sectorsOf(sizeBytes);
  }
  for (const { file, first } of copies) startSectors[file.index] = startSectors[first.index] ?? 0;
  checkVolume(sector);
  return { startSectors, metadataSectors, extents, totalSectors: sector };
}

type BlobFileNode = FileNode & { readonly source: BlobSource };

/** The first file of each blob, and the others, which share its place. */
function distinctBlobs(files: readonly FileNode[]): {
  readonly firsts: BlobFileNode[];
  readonly copies: readonly { readonly file: BlobFileNode; readonly first: BlobFileNode }[];
} {
  const firstOf = new Map<Digest, BlobFileNode>();
  const copies: { readonly file: BlobFileNode; readonly first: BlobFileNode }[] = [];
  for (const file of files) {
    if (!isBlobFile(file)) continue;
    const first = firstOf.get(file.source.digest);
    if (first === undefined) {
      firstOf.set(file.source.digest, file);
    } else {
      checkSameSize(first, file);
      copies.push({ file, first });
    }
  }
  return { firsts: [...firstOf.values()], copies };
}

function isBlobFile(file: FileNode): file is BlobFileNode {
  return file.source.kind === 'blob';
}

function smallestFirst(a: BlobFileNode, b: BlobFileNode): number {
  return a.sizeBytes - b.sizeBytes || (a.source.digest < b.source.digest ? -1 : 1);
}

function writeInlineFiles(target: Buffer, tree: Tree, startSectors: Float64Array): void {
  for (const { source, index } of tree.files) {
    if (source.kind === 'inline') target.set(source.bytes, (startSectors[index] ?? 0) * SECTOR_BYTES);
  }
}

function writeHierarchy(target: Buffer, placed: PlacedHierarchy, startSectors: Float64Array): void {
  const { plan, folderSectors, tableSector } = placed;
  const { encoding } = plan;
  const entries = plan.folders.map(({ identifier, number, parentNumber }) => {
    return { identifier, parentNumber, sector: folderSectors[number] ?? 0 };
  });
  writePathTable(target, tableSector.little * SECTOR_BYTES, { entries, encoding, order: 'little' });
  writePathTable(target, tableSector.big * SECTOR_BYTES, { entries, encoding, order: 'big' });
  for (const folder of plan.folders) writeFolder(target, placed, folder, startSectors);
}

function writeFolder(target: Buffer, placed: PlacedHierarchy, folder: PlannedFolder, startSectors: Float64Array): void {
  const { plan, folderSectors } = placed;
  const { node, records } = folder;
  const startSector = folderSectors[folder.number] ?? 0;
  const continuationSector = startSector + sectorsOf(folder.lengthBytes);
  const putFolder = (offset: number, number: number, named: NamedNode) =>
    writeRecord(target, offset, {
      named,
      encoding: plan.encoding,
      sector: folderSectors[number] ?? 0,
      lengthBytes: plan.folders[number - 1]?.lengthBytes ?? 0,
      hasMoreSections: false,
      continuationSector,
    });
  const self = { node, identifier: SELF_IDENTIFIER, systemUse: records.self };
  const parent = { node: node.parent ?? node, identifier: PARENT_IDENTIFIER, systemUse: records.parent };
  let at = putFolder(startSector * SECTOR_BYTES, folder.number, self);
  at = putFolder(at, folder.parentNumber, parent);
  for (const child of records.children) {
    if (child.node.kind === 'folder') at = putFolder(at, plan.numberOf.get(child.node) ?? 0, child);
    else at = writeLeafRecords(target, at, { encoding: plan.encoding, continuationSector, child, startSectors });
  }
  records.continuations.write(target, continuationSector * SECTOR_BYTES);
}

type Leaf = {
  readonly child: NamedNode;
  readonly encoding: IdentifierEncoding;
  readonly continuationSector: number;
  readonly startSectors: Float64Array;
};

/** One record, or one for each section of a file over 4 GiB. */
function writeLeafRecords(target: Buffer, start: number, leaf: Leaf): number {
  const { child, encoding, continuationSector, startSectors } = leaf;
  const { node } = child;
  const sizeBytes = node.kind === 'file' ? node.sizeBytes : 0;
  const firstSector = node.kind === 'file' ? (startSectors[node.index] ?? 0) : 0;
  const sections = sectionsOf(sizeBytes);
  let at = start;
  for (let section = 0; section < sections; section += 1) {
    const offset = section * SECTION_BYTES_MAX;
    at = writeRecord(target, at, {
      named: child,
      encoding,
      sector: firstSector + offset / SECTOR_BYTES,
      lengthBytes: Math.min(sizeBytes - offset, SECTION_BYTES_MAX),
      hasMoreSections: section < sections - 1,
      continuationSector,
    });
  }
  return at;
}

function describeVolume(
  tree: Tree,
  placed: PlacedHierarchy,
  files: PlacedFiles,
  options: LayoutOptions,
): VolumeContent {
  return {
    kind: placed.plan.kind,
    label: options.label,
    createdAtMs: options.createdAtMs,
    totalSectors: files.totalSectors,
    pathTableBytes: placed.tableBytes,
    pathTableSector: placed.tableSector,
    root: {
      node: tree.root,
      sector: placed.folderSectors[1] ?? 0,
      lengthBytes: placed.plan.folders[0]?.lengthBytes ?? 0,
    },
  };
}

function checkSameSize(first: BlobFileNode, other: BlobFileNode): void {
  if (first.sizeBytes === other.sizeBytes) return;
  throw new DriveError('usage/drive-entry', `the blob ${first.source.digest} is listed with two different sizes`);
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
