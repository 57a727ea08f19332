// Entries become a tree; everything the format cannot carry is refused here, before a byte is laid out.
import { assert } from '../../base/errors.ts';
import { DRIVE_ENTRIES_MAX, DRIVE_FOLDERS_MAX, DRIVE_PATH_BYTES_MAX } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import { DriveError } from '../drive-error.ts';
import type { FileNode, FolderNode, LinkNode, TreeNode } from './nodes.ts';
import { SECTION_BYTES_MAX } from './record.ts';
import { checkLinks, type PlacedLink } from './symlink.ts';
import type { IsoEntry, IsoFileEntry, IsoFolderEntry, IsoLinkEntry } from './types.ts';

/**
 * POSIX and Rock Ridge allow 255 bytes, but Linux silently drops the end of a name of 254 or more (fs/isofs/rock.c,
 * get_rock_ridge_filename).
 */
const NAME_BYTES_MAX = 253;
/** 256 GiB. Linux cuts a file of more than 100 sections, the gaps between them counted (fs/isofs/inode.c, isofs_read_level3_size). */
const FILE_BYTES_MAX = 64 * SECTION_BYTES_MAX;
/** The last second a 7-byte date can say (ECMA-119, 9.1.5: years since 1900 in one byte). */
const TIME_MS_MAX = Date.UTC(2155, 11, 31, 23, 59, 59);

export type Tree = {
  readonly root: FolderNode;
  /** Breadth first by folder, then by name: not in the order in which the entries came. */
  readonly files: readonly FileNode[];
};

/** The tree of the entries. Throws DriveError `usage/drive-path`, `drive-conflict`, `drive-link`, `drive-entry` or `drive-folders`. */
export function makeTree(entries: readonly IsoEntry[]): Tree {
  if (entries.length > DRIVE_ENTRIES_MAX) {
    throw new DriveError('usage/drive-files', `the drive would have more than ${DRIVE_ENTRIES_MAX} files and folders`);
  }
  const attributes = collectFolders(entries);
  const root = makeFolder('', null, attributes.get('/'));
  const known = new Map<string, FolderNode>([['', root]]);
  for (const path of attributes.keys()) if (path !== '/') ensureFolder(known, attributes, path);
  const links: PlacedLink[] = [];
  let fileCount = 0;
  for (const entry of entries) {
    if (entry.kind === 'folder') continue;
    const slash = splitPath(entry.path);
    const folder = ensureFolder(known, attributes, entry.path.slice(0, slash));
    const name = checkName(entry.path.slice(slash + 1), entry.path);
    if (entry.kind === 'symlink') {
      const node = makeLink(entry, name, folder);
      addChild(folder, node, entry.path);
      links.push({ node, path: entry.path });
    } else {
      addChild(folder, makeFile(entry, name, fileCount), entry.path);
      fileCount += 1;
    }
  }
  checkLinks(links);
  return { root, files: sortFolders(root) };
}

/** Sorts each folder once, so that nothing after depends on the order of the entries. The files in their order. */
function sortFolders(root: FolderNode): FileNode[] {
  const folders = [root];
  const files: FileNode[] = [];
  // The list grows while it is walked: breadth first, without a stack that deep trees would fill.
  for (const folder of folders) {
    for (const child of folder.children.values()) folder.sorted.push(child);
    folder.sorted.sort((a, b) => (a.name < b.name ? -1 : 1));
    for (const child of folder.sorted) {
      if (child.kind === 'folder') folders.push(child);
      else if (child.kind === 'file') files.push(child);
    }
  }
  return files;
}

function collectFolders(entries: readonly IsoEntry[]): Map<string, IsoFolderEntry> {
  const found = new Map<string, IsoFolderEntry>();
  for (const entry of entries) {
    if (entry.kind !== 'folder') continue;
    splitPath(entry.path);
    if (found.has(entry.path)) throw conflict(entry.path);
    found.set(entry.path, entry);
  }
  return found;
}

/** Index of the last slash of a path that is absolute and of bounded length. */
function splitPath(path: string): number {
  if (!path.startsWith('/')) throw badPath(path, 'does not start with a slash');
  if (isLonger(path, DRIVE_PATH_BYTES_MAX)) throw badPath(path, `is over ${DRIVE_PATH_BYTES_MAX} bytes`);
  return path.lastIndexOf('/');
}

/** The folder at this path (empty: the root), made with its parents where it is missing. */
function ensureFolder(
  folders: Map<string, FolderNode>,
  attributes: ReadonlyMap<string, IsoFolderEntry>,
  path: string,
): FolderNode {
  const known = folders.get(path);
  if (known !== undefined) return known;
  const missing: string[] = [];
  let above = path;
  for (; !folders.has(above); above = above.slice(0, splitPath(above))) missing.push(above);
  let folder = folders.get(above);
  assert(folder !== undefined, 'the walk up a drive path ends at a known folder');
  for (const next of missing.reverse()) {
    const made = makeFolder(checkName(next.slice(next.lastIndexOf('/') + 1), path), folder, attributes.get(next));
    addChild(folder, made, next);
    folders.set(next, made);
    folder = made;
    // The parent's number in a path table has 16 bits (ECMA-119, 9.4.4).
    if (folders.size > DRIVE_FOLDERS_MAX) {
      throw new DriveError('usage/drive-folders', `the drive would have more than ${DRIVE_FOLDERS_MAX} folders`);
    }
  }
  return folder;
}

function makeFolder(name: string, parent: FolderNode | null, entry: IsoFolderEntry | undefined): FolderNode {
  const path = entry?.path ?? name;
  const mode = checkMode(entry?.mode ?? 0o555, path);
  const mtimeMs = checkTime(entry?.mtimeMs ?? 0, path);
  return { kind: 'folder', name, parent, mode, mtimeMs, children: new Map(), sorted: [], subfolders: 0 };
}

function makeLink({ target, path, mtimeMs }: IsoLinkEntry, name: string, folder: FolderNode): LinkNode {
  return { kind: 'symlink', name, folder, mode: 0o777, mtimeMs: checkTime(mtimeMs ?? 0, path), target };
}

function makeFile(entry: IsoFileEntry, name: string, index: number): FileNode {
  const { source, sizeBytes, path } = entry;
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0) throw badEntry(path, `cannot have ${sizeBytes} bytes`);
  if (sizeBytes > FILE_BYTES_MAX)
    throw badEntry(path, `has ${sizeBytes} bytes, more than the ${FILE_BYTES_MAX} that Linux reads`);
  if (source.kind === 'inline' && source.bytes.length !== sizeBytes) {
    throw badEntry(path, `says ${sizeBytes} bytes and brings ${source.bytes.length}`);
  }
  const mode = checkMode(entry.mode ?? 0o444, path);
  return { kind: 'file', name, index, mode, mtimeMs: checkTime(entry.mtimeMs ?? 0, path), sizeBytes, source };
}

function addChild(folder: FolderNode, child: TreeNode, path: string): void {
  const before = folder.children.size;
  folder.children.set(child.name, child);
  // Looking first would hash each name twice.
  if (folder.children.size === before) throw conflict(path);
  if (child.kind === 'folder') folder.subfolders += 1;
}

function checkName(name: string, path: string): string {
  if (name === '') throw badPath(path, 'has an empty component');
  if (name === '.' || name === '..') throw badPath(path, `has the component "${name}"`);
  if (name.includes('\0')) throw badPath(path, 'has a NUL character');
  if (!name.isWellFormed()) throw badPath(path, 'is not valid Unicode');
  if (isLonger(name, NAME_BYTES_MAX)) throw badPath(path, `has a name over ${NAME_BYTES_MAX} bytes`);
  return name;
}

/** Whether the text has more bytes in UTF-8. A UTF-16 unit has at most three, so that most texts need not be counted. */
function isLonger(text: string, bytesMax: number): boolean {
  return text.length * 3 > bytesMax && Buffer.byteLength(text) > bytesMax;
}

function checkMode(mode: number, path: string): number {
  if (!Number.isInteger(mode) || mode < 0 || mode > 0o7777) throw badEntry(path, `cannot have the mode ${mode}`);
  return mode;
}

/** Whether a record's date can say this time. */
export function isRecordTime(wallMs: number): boolean {
  return wallMs >= 0 && wallMs <= TIME_MS_MAX;
}

function checkTime(mtimeMs: number, path: string): number {
  if (isRecordTime(mtimeMs)) return mtimeMs;
  throw badEntry(path, `has the time ${mtimeMs} ms, which is not between the years 1970 and 2155`);
}

function badPath(path: string, why: string): DriveError {
  return new DriveError('usage/drive-path', `the drive path "${printable(path)}" ${why}`);
}

function badEntry(path: string, why: string): DriveError {
  return new DriveError('usage/drive-entry', `the drive entry "${printable(path)}" ${why}`);
}

function conflict(path: string): DriveError {
  return new DriveError('usage/drive-conflict', `two entries of the drive want the path "${printable(path)}"`);
}
