// The layers of a VM on the host: default, its group's and its own file of one folder.
import { type FileHandle, open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { CONFIG_FILE_BYTES_MAX, GUEST_CONFIG_FILES_MAX } from '../base/limits.ts';
import { printable } from '../base/printable.ts';
import { GuestConfigError } from './error.ts';
import { type Layer, layerOf, type Path } from './layer.ts';
import { readText, SUFFIXES } from './read-text.ts';

/** Subfolder of the secrets. */
export const SECRETS_SUBFOLDER = 'secrets';

/** What a file's name says it is for; null: nothing that is read. */
export type FileRole = { readonly kind: 'default' } | { readonly kind: 'group' | 'vm'; readonly name: string };

/** The role of a file by its name without suffix. */
export function roleOf(base: string): FileRole | null {
  if (base === 'default') return { kind: 'default' };
  const [, kind, name] = /^(group|vm)-(.+)$/.exec(base) ?? [];
  return (kind === 'group' || kind === 'vm') && name !== undefined ? { kind, name } : null;
}

/** `default`, `group web`, `vm web1`. */
export function layerName(role: FileRole): string {
  return role.kind === 'default' ? 'default' : `${role.kind} ${role.name}`;
}

/** The file's name without suffix. */
export function baseOf(role: FileRole): string {
  return role.kind === 'default' ? 'default' : `${role.kind}-${role.name}`;
}

/** What a folder holds: the files that are read by their name without suffix, and those whose names say nothing. */
export type FolderList = {
  readonly files: ReadonlyMap<string, readonly string[]>;
  readonly strangers: readonly string[];
};

/** Lists the folder; one that does not exist has nothing. Throws GuestConfigError when it cannot be read. */
export async function listFolder(folder: string): Promise<FolderList> {
  const names = await readdir(folder).catch((cause: unknown) => {
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return [];
    throw new GuestConfigError('usage/guest-config', `${folder}: cannot be read`, {
      cause,
      next: 'check its permissions',
    });
  });
  if (names.length > GUEST_CONFIG_FILES_MAX) {
    throw new GuestConfigError('usage/guest-config', `${folder}: more than ${GUEST_CONFIG_FILES_MAX} files`);
  }
  const files = new Map<string, string[]>();
  const strangers: string[] = [];
  for (const name of names.sort()) {
    const suffix = SUFFIXES.find((each) => name.endsWith(each));
    if (suffix === undefined || name.startsWith('.')) continue;
    const base = name.slice(0, -suffix.length);
    if (roleOf(base) === null) strangers.push(printable(name));
    else files.set(base, [...(files.get(base) ?? []), join(folder, name)]);
  }
  return { files, strangers };
}

/** The layer of a role; null when it has no file. Throws GuestConfigError `usage/guest-config`. */
export async function readLayer({ files }: FolderList, role: FileRole): Promise<Layer | null> {
  const [path, second] = files.get(baseOf(role)) ?? [];
  if (path === undefined) return null;
  if (second !== undefined) {
    throw new GuestConfigError('usage/guest-config', `${path} and ${second} are for the same`, {
      next: 'keep one of the two',
    });
  }
  const { value, lineOf } = readText(await readFileText(path), path);
  const at = (key: Path) => `${path}:${lineOf(key)}`;
  return layerOf(value, { name: layerName(role), source: 'file', at });
}

/** Whoever may write such a file rules the VMs: one that everybody may write is not read. */
async function readFileText(path: string): Promise<string> {
  const handle = await open(path, 'r').catch((cause: unknown) => {
    throw new GuestConfigError('usage/guest-config', `${path}: cannot be read`, {
      cause,
      next: 'check its permissions',
    });
  });
  try {
    await checkFile(handle, path);
    return await handle.readFile('utf8');
  } finally {
    await handle.close();
  }
}

async function checkFile(handle: FileHandle, path: string): Promise<void> {
  const { mode, size } = await handle.stat();
  if ((mode & 0o002) !== 0) {
    throw new GuestConfigError('usage/guest-config', `${path}: everybody may write it`, { next: `chmod o-w ${path}` });
  }
  if (size > CONFIG_FILE_BYTES_MAX) {
    throw new GuestConfigError('usage/guest-config', `${path}: larger than ${CONFIG_FILE_BYTES_MAX} bytes`);
  }
}
