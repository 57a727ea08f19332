// A symlink on a drive may point only to what is on the drive: the guest must not be led to its own files.
import { DRIVE_LINK_BYTES_MAX } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import { DriveError } from '../drive-error.ts';
import type { FileNode, FolderNode, LinkNode, TreeNode } from './nodes.ts';

/** Symlinks followed while one is resolved: what Linux follows (path_resolution(7)). */
const HOPS_MAX = 40;

export type PlacedLink = { readonly node: LinkNode; readonly path: string };

/** Where a link ends, and how many others are followed on the way. */
type Resolved = { readonly end: FolderNode | FileNode; readonly hops: number };

/**
 * Throws DriveError `usage/drive-link` unless every link, resolved as a kernel would, stays in the tree and ends at
 * something. Each is resolved once, or links to links to links would take the product of their lengths.
 */
export function checkLinks(links: readonly PlacedLink[]): void {
  const known = new Map<LinkNode, Resolved>();
  for (const { node, path } of links) resolve(node, { path, known, depth: 0 });
}

type Walk = {
  /** The link that is being checked: the one to name. */
  readonly path: string;
  readonly known: Map<LinkNode, Resolved>;
  /** Links that wait for this one. */
  readonly depth: number;
};

function resolve(link: LinkNode, walk: Walk): Resolved {
  const before = walk.known.get(link);
  if (before !== undefined) return before;
  if (walk.depth > HOPS_MAX) throw badLink(walk.path, 'leads through too many symlinks');
  const components = checkTarget(walk.path, link.target);
  let at: FolderNode | FileNode = link.folder;
  let hops = 0;
  for (const component of components) {
    if (at.kind === 'file') throw badLink(walk.path, `uses the file "${printable(at.name)}" as a folder`);
    const next = step(walk.path, at, component);
    if (next.kind === 'symlink') {
      const other = resolve(next, { ...walk, depth: walk.depth + 1 });
      hops += 1 + other.hops;
      at = other.end;
    } else {
      at = next;
    }
  }
  if (hops > HOPS_MAX) throw badLink(walk.path, 'leads through too many symlinks');
  const resolved = { end: at, hops };
  walk.known.set(link, resolved);
  return resolved;
}

function step(path: string, folder: FolderNode, component: string): TreeNode {
  if (component === '.') return folder;
  if (component === '..') {
    if (folder.parent === null) throw badLink(path, 'climbs out of the drive');
    return folder.parent;
  }
  const next = folder.children.get(component);
  if (next === undefined) throw badLink(path, `leads to "${printable(component)}", which is not on the drive`);
  return next;
}

/** The components of a target that is relative and in its normal form. */
function checkTarget(path: string, target: string): readonly string[] {
  // The bytes first: nobody splits megabytes.
  if (Buffer.byteLength(target) > DRIVE_LINK_BYTES_MAX) {
    throw badLink(path, `is over ${DRIVE_LINK_BYTES_MAX} bytes`);
  }
  const components = target.split('/');
  if (components.includes('')) throw badLink(path, 'is not a relative path in its normal form');
  return components;
}

function badLink(path: string, why: string): DriveError {
  return new DriveError('usage/drive-link', `the target of the symlink "${printable(path)}" ${why}`);
}
