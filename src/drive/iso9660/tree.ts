// Entries become a tree; everything the format cannot carry is refused here, before a byte is laid out.
import { assert } from '../../base/errors.ts';
import { DRIVE_FOLDERS_MAX, DRIVE_PATH_BYTES_MAX } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import { DriveError } from '../drive-error.ts';
import type { FileNode, FolderNode, LinkNode, TreeNode } from './nodes.ts';
import { checkLink } from './symlink.ts';
import type { IsoEntry, IsoFileEntry, IsoFolderEntry, IsoLinkEntry } from './types.ts';

/**
 * POSIX and Rock Ridge allow 255 bytes, but Linux silently drops the end of a name of 254 or more (fs/isofs/rock.c,
 * get_rock_ridge_filename).
 */
const NAME_BYTES_MAX = 253;
/** The last second a 7-byte date can say (ECMA-119, 9.1.5: years since 1900 in one byte). */
const MTIME_MS_MAX = Date.UTC(2155, 11, 31, 23, 59, 59);

export type Tree = {
  readonly root: FolderNode;
  /** Breadth first, by name. */
  readonly folders: readonly FolderNode[];
  readonly fileCount: number;
};

/** The tree of the entries. Throws DriveError `usage/drive-path`, `drive-conflict`, `drive-link`, `drive-entry` or `drive-folders`. */
export function makeTree(entries: readonly IsoEntry[]): Tree {
  const attributes = collectFolders(entries);
  const root = makeFolder('', null, attributes.get('/'));
  const known = new Map<string, FolderNode>([['', root]]);
  for (const path of attributes.keys()) if (path !== '/') ensureFolder(known, attributes, path);
  const links: { readonly entry: IsoLinkEntry; readonly folder: FolderNode }[] = [];
  let fileCount = 0;
  for (const entry of entries) {
    if (entry.kind === 'folder') continue;
    const slash = splitPath(entry.path);
    const folder = ensureFolder(known, attributes, entry.path.slice(0, slash));
    const name = checkName(entry.path.slice(slash + 1), entry.path);
    addChild(folder, entry.kind === 'symlink' ? makeLink(entry, name) : makeFile(entry, name, fileCount), entry.path);
    if (entry.kind === 'symlink') links.push({ entry, folder });
    else fileCount += 1;
  }
  for (const { entry, folder } of links) checkLink({ folder, path: entry.path, target: entry.target });
  return { root, folders: sortFolders(root), fileCount };
}

/** Sorts each folder once, so that nothing after depends on the order of the entries. */
function sortFolders(root: FolderNode): FolderNode[] {
  const folders = [root];
  for (const folder of folders) {
    for (const child of folder.children.values()) folder.sorted.push(child);
    folder.sorted.sort((a, b) => (a.name < b.name ? -1 : 1));
    for (const child of folder.sorted) if (child.kind === 'folder') folders.push(child);
  }
  return folders;
}

function collectFolders(entries: readonly IsoEntry[]): Map<string, IsoFolderEntry> {
  const found = new Map<string, IsoFolderEntry>();
  for (const entry of entries) {
    if (entry.kind !== 'folder') continue;
    if (found.has(entry.path)) throw conflict(entry.path);
    found.set(entry.path, entry);
  }
  return found;
}

/** Index of the last slash of a path that is absolute and of bounded length. */
function splitPath(path: string): number {
  if (!path.startsWith('/')) throw badPath(path, 'does not start with a slash');
  if (Buffer.byteLength(path) > DRIVE_PATH_BYTES_MAX) throw badPath(path, `is over ${DRIVE_PATH_BYTES_MAX} bytes`);
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

function makeLink(entry: IsoLinkEntry, name: string): LinkNode {
  return {
    kind: 'symlink',
    name,
    mode: 0o777,
    mtimeMs: checkTime(entry.mtimeMs ?? 0, entry.path),
    target: entry.target,
  };
}

function makeFile(entry: IsoFileEntry, name: string, index: number): FileNode {
  const { source, sizeBytes, path } = entry;
  if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0) throw badEntry(path, `cannot have ${sizeBytes} bytes`);
  if (source.kind === 'inline' && source.bytes.length !== sizeBytes) {
    throw badEntry(path, `says ${sizeBytes} bytes and brings ${source.bytes.length}`);
  }
  const mode = checkMode(entry.mode ?? 0o444, path);
  return { kind: 'file', name, index, mode, mtimeMs: checkTime(entry.mtimeMs ?? 0, path), sizeBytes, source };
}

function addChild(folder: FolderNode, child: TreeNode, path: string): void {
  if (folder.children.has(child.name)) throw conflict(path);
  folder.children.set(child.name, child);
  if (child.kind === 'folder') folder.subfolders += 1;
}

function checkName(name: string, path: string): string {
  if (name === '') throw badPath(path, 'has an empty component');
  if (name === '.' || name === '..') throw badPath(path, `has the component "${name}"`);
  if (name.includes('\0')) throw badPath(path, 'has a NUL character');
  if (!name.isWellFormed()) throw badPath(path, 'is not valid Unicode');
  if (Buffer.byteLength(name) > NAME_BYTES_MAX) throw badPath(path, `has a name over ${NAME_BYTES_MAX} bytes`);
  return name;
}

function checkMode(mode: number, path: string): number {
  if (!Number.isInteger(mode) || mode < 0 || mode > 0o7777) throw badEntry(path, `cannot have the mode ${mode}`);
  return mode;
}

function checkTime(mtimeMs: number, path: string): number {
  if (mtimeMs >= 0 && mtimeMs <= MTIME_MS_MAX) return mtimeMs;
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
