// Finds the place of a configured file: from the root, folder by folder, each held open, so that nobody can put a link in the way.
import { AGENT_CONFIG_LINKS_MAX } from '../../src/base/limits.ts';
import { inRoot, type Paths } from '../paths.ts';
import { AgentError, type OpenFolder, type Platform } from '../platform/platform.ts';

/** A name in a folder that is held open until somebody closes it. */
export type Place = {
  readonly folder: OpenFolder;
  /** For system calls. */
  readonly path: string;
  /** In the guest, with its administrator's links resolved. */
  readonly realPath: string;
};

export type Walk =
  | { readonly kind: 'found'; readonly place: Place }
  /** Folders that have to be made first, the outermost first. */
  | { readonly kind: 'missing'; readonly folders: readonly string[]; readonly realPath: string };

/**
 * Goes to a place. Links on the way are followed only where root made them in a folder that nobody else writes to (/var/run);
 * any other is refused. Throws AgentError `path-link`, `path-not-folder`, `path-protected`.
 */
export function walkTo(platform: Platform, paths: Paths, path: string): Walk {
  const names = path.split('/').filter((name) => name !== '');
  // The schema says so already; a way that climbs would not be the way that was looked at.
  if (names.some((name) => name === '.' || name === '..'))
    throw new AgentError('path-protected', `${path} has dots in it`);
  for (let links = 0; ; links += 1) {
    if (links > AGENT_CONFIG_LINKS_MAX) throw new AgentError('path-link', `${path}: its links go round in circles`);
    const step = walkOnce(platform, paths, names);
    if (step.kind !== 'link') return checkProtected(platform, paths, step);
    names.splice(0, step.at + 1, ...step.to);
  }
}

/** Makes the missing folders on the way and goes there. `last`: of the innermost, if it has to be made. */
export function makeWay(platform: Platform, paths: Paths, path: string, last?: FolderWish): Place {
  const walk = walkTo(platform, paths, path);
  if (walk.kind === 'found') return walk.place;
  for (const folder of walk.folders) {
    const above = walkTo(platform, paths, folder);
    if (above.kind === 'missing') throw new AgentError('path-not-folder', `${folder} cannot be made`);
    try {
      makeFolder(platform, above.place, folder === walk.folders.at(-1) ? last : undefined);
    } finally {
      above.place.folder.close();
    }
  }
  const again = walkTo(platform, paths, path);
  if (again.kind === 'missing') throw new AgentError('path-not-folder', `${path} went away while it was made`);
  return again.place;
}

export type FolderWish = { readonly mode: number; readonly uid: number; readonly gid: number };

function makeFolder({ files }: Platform, place: Place, wish: FolderWish | undefined): void {
  files.makeFolder(place.path, wish?.mode ?? 0o755);
  if (wish !== undefined) {
    // Held first: the folder above may be a user's, who can put a link to another one in the place of this one.
    const made = files.openFolder(place.path);
    const folder = files.open(`${made.path}/.`);
    try {
      folder.setOwner(wish.uid, wish.gid);
      folder.setMode(wish.mode);
    } finally {
      folder.close();
      made.close();
    }
  }
  files.syncFolder(place.folder.path);
}

type Step = Walk | { readonly kind: 'link'; readonly at: number; readonly to: readonly string[] };

function walkOnce({ files }: Platform, paths: Paths, names: readonly string[]): Step {
  const real: string[] = [];
  const last = names.at(-1);
  if (last === undefined) throw new AgentError('path-is-folder', '/ is no file');
  const trusted = files.stat(`${paths.installRoot}/.`)?.uid ?? 0;
  let folder = files.openFolder(paths.installRoot);
  let isKept = false;
  try {
    for (const [at, name] of names.slice(0, -1).entries()) {
      const path = `${folder.path}/${name}`;
      const found = files.stat(path);
      if (found === null) {
        const rest = names.slice(at, -1);
        const folders = rest.map((_, index) => `/${[...real, ...rest.slice(0, index + 1)].join('/')}`);
        return { kind: 'missing', folders, realPath: `${folders.at(-1)}/${last}` };
      }
      if (found.kind === 'symlink') {
        const around = files.stat(`${folder.path}/.`);
        const isSafe = found.uid === trusted && around?.uid === trusted && (around.mode & 0o022) === 0;
        const where = `/${[...real, name].join('/')}`;
        if (!isSafe) throw new AgentError('path-link', `${where} is a link, and not one of the system's own`);
        return { kind: 'link', at, to: resolveLink(real, files.readLink(path) ?? '') };
      }
      if (found.kind !== 'folder')
        throw new AgentError('path-not-folder', `/${[...real, name].join('/')} is no folder`);
      const next = files.openFolder(path);
      folder.close();
      folder = next;
      real.push(name);
    }
    isKept = true;
    return {
      kind: 'found',
      place: { folder, path: `${folder.path}/${last}`, realPath: `/${[...real, last].join('/')}` },
    };
  } finally {
    if (!isKept) folder.close();
  }
}

function resolveLink(folders: readonly string[], target: string): readonly string[] {
  const names = target.startsWith('/') ? [] : [...folders];
  for (const name of target.split('/')) {
    if (name === '..') names.pop();
    else if (name !== '' && name !== '.') names.push(name);
  }
  return names;
}

/** Ours, and what is no disk. */
function checkProtected({ selfPath }: Platform, paths: Paths, walk: Walk): Walk {
  const realPath = walk.kind === 'found' ? walk.place.realPath : walk.realPath;
  const path = inRoot(paths, realPath);
  const isBelow = (folder: string) => path === folder || path.startsWith(`${folder}/`);
  const name = path.slice(path.lastIndexOf('/') + 1);
  const isOurs =
    path === selfPath || /^pratique-(agent|ready)\./.test(name) || [paths.state, paths.runtime].some(isBelow);
  if (!isOurs && ![paths.proc, paths.sys, paths.dev].some(isBelow)) return walk;
  if (walk.kind === 'found') walk.place.folder.close();
  throw new AgentError('path-protected', `${realPath} is not for configuration to write`);
}
