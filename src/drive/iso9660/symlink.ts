// A symlink on a drive may point only to what is on the drive: the guest must not be led to its own files.
import { DRIVE_LINK_BYTES_MAX } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import { DriveError } from '../drive-error.ts';
import type { FolderNode, TreeNode } from './nodes.ts';

/** Symlinks followed while one is resolved: what Linux follows (path_resolution(7)). */
const HOPS_MAX = 40;

type Link = { readonly folder: FolderNode; readonly path: string; readonly target: string };

/** Throws DriveError `usage/drive-link` unless the link, resolved as a kernel would, stays in the tree and ends at something. */
export function checkLink(link: Link): void {
  checkTarget(link.path, link.target);
  const pending = link.target.split('/').reverse();
  let folder = link.folder;
  let hops = 0;
  for (let component = pending.pop(); component !== undefined; component = pending.pop()) {
    const next: TreeNode = step(link, folder, component);
    if (next.kind === 'folder') {
      folder = next;
    } else if (next.kind === 'symlink') {
      hops += 1;
      if (hops > HOPS_MAX) throw badLink(link.path, 'leads through too many symlinks');
      // The other link may not have been looked at yet.
      checkTarget(link.path, next.target);
      pending.push(...next.target.split('/').reverse());
    } else if (pending.length > 0) {
      throw badLink(link.path, `uses the file "${printable(next.name)}" as a folder`);
    }
  }
}

function step(link: Link, folder: FolderNode, component: string): TreeNode {
  if (component === '.') return folder;
  if (component === '..') {
    if (folder.parent === null) throw badLink(link.path, 'climbs out of the drive');
    return folder.parent;
  }
  const next = folder.children.get(component);
  if (next === undefined) throw badLink(link.path, `leads to "${printable(component)}", which is not on the drive`);
  return next;
}

function checkTarget(path: string, target: string): void {
  if (target === '' || target.split('/').includes('')) throw badLink(path, 'is not a relative path in its normal form');
  if (Buffer.byteLength(target) > DRIVE_LINK_BYTES_MAX) {
    throw badLink(path, `is over ${DRIVE_LINK_BYTES_MAX} bytes`);
  }
}

function badLink(path: string, why: string): DriveError {
  return new DriveError('usage/drive-link', `the target of the symlink "${printable(path)}" ${why}`);
}
