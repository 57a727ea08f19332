// Release folders become targets of a repository: packed, checked as a client would, put where nothing points to them yet.
import { chmod, copyFile, mkdir, open, readdir, rename, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { TargetFile } from '@tufjs/models';
import { digestOf, digestOfFile } from '../../base/digest.ts';
import type { Digest } from '../../base/digest-text.ts';
import { syncFolder } from '../../base/durable-file.ts';
import { TUF_OBJECT_FIELDS_MAX } from '../../base/limits.ts';
import type { Compression } from '../../model/release.ts';
import { packBundle } from '../archive.ts';
import { VendorError } from '../errors.ts';
import { customOf, type ReleaseDescription, readDescription } from './description.ts';
import { readOffer } from './offer.ts';

export type ReleaseFolder = { readonly folder: string; readonly description: ReleaseDescription };

/** Reads `source`: a release folder, or a folder of such folders. Throws VendorError `usage/release-description`. */
export async function readReleases(source: string): Promise<readonly ReleaseFolder[]> {
  const names = await readdir(source, { withFileTypes: true }).catch((cause: unknown) => {
    throw new VendorError('usage/release-description', `the folder ${source} cannot be read`, { cause });
  });
  const isOne = names.some((entry) => entry.name === 'release.json');
  const folders = isOne ? [source] : names.filter((entry) => entry.isDirectory()).map(({ name }) => join(source, name));
  if (folders.length === 0) {
    throw new VendorError('usage/release-description', `${source} holds neither a release.json nor release folders`, {
      next: 'put a release.json beside a files/ folder; src/vendor/README.md shows one',
    });
  }
  const read = async (folder: string) => ({ folder, description: await readDescription(folder) });
  return await Promise.all(folders.sort().map(read));
}

export type StagedTarget = {
  readonly path: string;
  readonly file: string;
  readonly digest: Digest;
  readonly target: TargetFile;
  readonly description: ReleaseDescription;
};

export type StagingOptions = {
  /** An empty folder on the file system of the repository. */
  readonly staging: string;
  /** For bundles whose release.json names none. */
  readonly compression: Compression;
  /** The role that will vouch for it. */
  readonly role: string;
};

/** Packs one release into the staging folder and checks that a client would take it. */
export async function stageTarget(
  release: ReleaseFolder,
  { staging, compression, role }: StagingOptions,
): Promise<StagedTarget> {
  const { folder, description } = release;
  await mkdir(staging, { recursive: true, mode: 0o700 });
  const custom = customOf(description, compression);
  const path = targetPath(description, custom.install.action === 'bundle' ? custom.install.compression : null);
  const file = join(staging, digestOf(path));
  try {
    if (custom.install.action === 'bundle') {
      const { install, check, compression: used } = custom.install;
      const executables = [install, check].filter((entry) => entry !== undefined);
      await packBundle(join(folder, 'files'), file, { compression: used, executables });
    } else {
      await copyFile(await onlyFile(join(folder, 'files')), file);
    }
    await chmod(file, 0o644);
    const digest = await digestOfFile(file);
    const { size } = await stat(file);
    // The cast holds: Custom is parsed from JSON and holds nothing else.
    const fields = { custom: JSON.parse(JSON.stringify(custom)) as Record<string, never> };
    const target = new TargetFile({ path, length: size, hashes: { sha256: digest }, unrecognizedFields: fields });
    readOffer('publisher', target, { isConsistent: true, role });
    return { path, file, digest, target, description };
  } catch (cause) {
    throw new VendorError('usage/bundle', `the release in ${folder} cannot be published`, {
      cause,
      next: 'correct its files/ and release.json',
    });
  }
}

/** `<product>/<product>-<version>[_os][_arch]` and the ending of its form. */
function targetPath(description: ReleaseDescription, compression: Compression | null): string {
  const { product, version, os, arch } = description;
  const systems = os === undefined ? [] : typeof os === 'string' ? [os] : os;
  const variant = [systems.join('-'), arch ?? ''].filter((part) => part !== '').map((part) => `_${part}`);
  const endings = { none: '.tar', gzip: '.tar.gz', zstd: '.tar.zst' } as const;
  return `${product}/${product}-${version}${variant.join('')}${compression === null ? '' : endings[compression]}`;
}

async function onlyFile(folder: string): Promise<string> {
  const names = await readdir(folder, { withFileTypes: true });
  const [only] = names;
  if (names.length === 1 && only?.isFile() === true) return join(folder, only.name);
  throw new VendorError('usage/bundle', `${folder} must hold exactly one file: the agent's executable`);
}

/** Old and new targets; a release replaces one of the same product, version, os and arch even if its form changed. */
export function mergeTargets(
  before: Readonly<Record<string, TargetFile>>,
  staged: readonly StagedTarget[],
): Record<string, TargetFile> {
  const stem = (path: string) => path.replace(/\.tar(\.gz|\.zst)?$/, '');
  const stems = new Set(staged.map(({ path }) => stem(path)));
  if (stems.size < staged.length) {
    throw new VendorError('usage/bundle', 'two of the folders describe the same release', {
      next: 'remove one, or give them different versions, os or arch',
    });
  }
  const kept = Object.entries(before).filter(([path]) => !stems.has(stem(path)));
  const merged = Object.fromEntries([...kept, ...staged.map(({ path, target }) => [path, target] as const)]);
  if (Object.keys(merged).length <= TUF_OBJECT_FIELDS_MAX) return merged;
  throw new VendorError('usage/tuf-too-many', `one role holds at most ${TUF_OBJECT_FIELDS_MAX} releases`, {
    next: 'delegate products to roles of their own, or publish into a second repository',
  });
}

/** Moves a staged target to its place, `targets/<folder>/<sha256>.<name>`, where nothing points to it yet. */
export async function placeTarget(repository: string, { path, file, digest }: StagedTarget): Promise<void> {
  const folder = join(repository, 'targets', dirname(path));
  await mkdir(folder, { recursive: true, mode: 0o755 });
  const handle = await open(file, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
  await rename(file, join(folder, `${digest}.${path.slice(path.lastIndexOf('/') + 1)}`));
  await syncFolder(folder);
  await syncFolder(dirname(folder));
}
