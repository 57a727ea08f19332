// Makes and signs a TUF repository for one's own software, a folder that any web server can serve at any moment.
import { chmod, copyFile, mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { dirname, join, relative, resolve } from 'node:path';
import { Metadata, MetadataKind, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp } from '@tufjs/models';
import { type Clock, isoTime } from '../../base/clock.ts';
import { digestOf, digestOfFile } from '../../base/digest.ts';
import type { Digest } from '../../base/digest-text.ts';
import { syncFolder, writeDurably } from '../../base/durable-file.ts';
import { TUF_OBJECT_FIELDS_MAX } from '../../base/limits.ts';
import type { Compression } from '../../model/release.ts';
import { packBundle } from '../archive.ts';
import { VendorError } from '../errors.ts';
import { customOf, type ReleaseDescription, readDescription } from './description.ts';
import {
  adoptNextKey,
  createKeys,
  createNextKey,
  loadKeys,
  ROLE_NAMES,
  type RoleKeys,
  type RoleName,
  signWith,
} from './keys.ts';
import { readOffer } from './offer.ts';

export type PublishOptions = {
  /**
   * A release folder (`release.json` beside `files/`), or a folder of such folders, one release each. Null publishes
   * nothing new and signs again what is there, before it expires.
   */
  readonly source: string | null;
  /** The folder to serve: gets `metadata/` and `targets/`. Made when absent. */
  readonly repository: string;
  /** The private keys, made on first use, mode 0600. Must not lie in the repository. Keep a backup of it, offline. */
  readonly keys: string;
  readonly clock: Clock;
  /** For bundles whose release.json names none; gzip by default. */
  readonly compression?: Compression;
  /** Days until each role's metadata expire. */
  readonly expiresDays?: Partial<Readonly<Record<RoleName, number>>>;
  /** Roles that get a new key now: after a suspicion, or by routine. Clients follow through the new root. */
  readonly rotate?: readonly RoleName[];
};

export type PublishedTarget = {
  readonly path: string;
  readonly product: string;
  readonly version: string;
  readonly digest: Digest;
  readonly sizeBytes: number;
};

export type Publication = {
  /** The releases of this call. */
  readonly targets: readonly PublishedTarget[];
  /** All releases the repository now offers. */
  readonly targetsTotal: number;
  readonly versions: Readonly<Record<RoleName, number>>;
  /** The newest root, to hand to operators by a trusted way (`rootPath` of their vendor configuration). */
  readonly rootPath: string;
  /** ISO time by which the repository must be signed again. */
  readonly expires: string;
};

/** An operator who publishes now and then: the timestamp is the short one, as in TUF, but long enough for a holiday. */
const EXPIRES_DAYS: Readonly<Record<RoleName, number>> = { root: 730, targets: 365, snapshot: 365, timestamp: 30 };
/** A root that expires sooner than this is renewed by the way. */
const ROOT_RENEW_DAYS = 60;
const DAY_MS = 86_400_000;

/**
 * Publishes releases into a TUF repository (consistent snapshots, ed25519, one key per role): adds them or replaces those
 * of the same product, version, os and arch, keeps all others, raises the versions and signs. Written in the order targets,
 * root, targets.json, snapshot, timestamp, each durable: a client sees the old repository or the new one, also after a
 * power cut. One publisher at a time. Throws VendorError `usage/…` naming file and field; nothing was changed then.
 */
export async function publishFolder(options: PublishOptions): Promise<Publication> {
  refuseNesting(options);
  const releases = options.source === null ? [] : await readReleases(options.source);
  const before = await readRepository(options.repository);
  const staging = join(options.repository, '.staging');
  await rm(staging, { recursive: true, force: true });
  try {
    const staged: StagedTarget[] = [];
    for (const release of releases) staged.push(await stageTarget(release, staging, options.compression ?? 'gzip'));
    const targets = mergeTargets(before.targets?.signed.targets ?? {}, staged);
    const keys =
      before.root === null ? await createKeys(options.keys) : await loadKeys(options.keys, before.root.signed);
    for (const target of staged) await placeTarget(options.repository, target);
    return await writeMetadata(options, before, keys, targets, staged);
  } finally {
    await rm(staging, { recursive: true, force: true });
  }
}

function refuseNesting({ repository, keys }: PublishOptions): void {
  const path = relative(resolve(repository), resolve(keys));
  const isInside = path === '' || !(path.startsWith('..') || path.startsWith('/'));
  if (!isInside) return;
  throw new VendorError('usage/tuf-key', `the keys folder ${keys} lies in the repository that is served`, {
    next: 'keep the private keys somewhere else',
  });
}

type ReleaseFolder = { readonly folder: string; readonly description: ReleaseDescription };

async function readReleases(source: string): Promise<readonly ReleaseFolder[]> {
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

type StagedTarget = {
  readonly path: string;
  readonly file: string;
  readonly digest: Digest;
  readonly target: TargetFile;
  readonly description: ReleaseDescription;
};

/** Packs one release into the staging folder and checks that a client would take it. */
async function stageTarget(release: ReleaseFolder, staging: string, compression: Compression): Promise<StagedTarget> {
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
    readOffer('publisher', target, { isConsistent: true, role: 'targets' });
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
function mergeTargets(
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
  throw new VendorError('usage/tuf-too-many', `a repository holds at most ${TUF_OBJECT_FIELDS_MAX} releases`, {
    next: 'publish into a second repository',
  });
}

/** Moves a staged target to its place, `targets/<folder>/<sha256>.<name>`, where nothing points to it yet. */
async function placeTarget(repository: string, { path, file, digest }: StagedTarget): Promise<void> {
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

/** What @tufjs/models parses from; it checks the shape itself. */
type Json = { [key: string]: never };

type Repository = {
  readonly root: Metadata<Root> | null;
  readonly targets: Metadata<Targets> | null;
  readonly versions: Readonly<Record<RoleName, number>>;
};

/** Reads what clients see now: by way of the timestamp, so what an interrupted publish left unreferenced does not count. */
async function readRepository(repository: string): Promise<Repository> {
  const folder = join(repository, 'metadata');
  const names = await readdir(folder).catch((): string[] => []);
  const rootVersions = names.flatMap((name) => /^(\d+)\.root\.json$/.exec(name)?.[1] ?? []).map(Number);
  const rootVersion = Math.max(0, ...rootVersions);
  const none: Repository = { root: null, targets: null, versions: { root: 0, targets: 0, snapshot: 0, timestamp: 0 } };
  if (rootVersion === 0) return none;
  const read = async (name: string): Promise<Json> => JSON.parse(await readFile(join(folder, name), 'utf8'));
  try {
    const root = Metadata.fromJSON(MetadataKind.Root, await read(`${rootVersion}.root.json`));
    if (!names.includes('timestamp.json')) return { ...none, root, versions: { ...none.versions, root: rootVersion } };
    const timestamp = Metadata.fromJSON(MetadataKind.Timestamp, await read('timestamp.json'));
    const snapshotVersion = timestamp.signed.snapshotMeta.version;
    const snapshot = Metadata.fromJSON(MetadataKind.Snapshot, await read(`${snapshotVersion}.snapshot.json`));
    const targetsVersion = snapshot.signed.meta['targets.json']?.version ?? 0;
    const targets = Metadata.fromJSON(MetadataKind.Targets, await read(`${targetsVersion}.targets.json`));
    root.verifyDelegate(MetadataKind.Root, root);
    // Targets that others signed are never signed over. A rotation that was cut off has the former root's signature.
    const former = rootVersion > 1 ? await read(`${rootVersion - 1}.root.json`) : null;
    verifyTargets(root, former, targets);
    const versions = { root: rootVersion, targets: targetsVersion, snapshot: snapshotVersion };
    return { root, targets, versions: { ...versions, timestamp: timestamp.signed.version } };
  } catch (cause) {
    throw new VendorError('usage/tuf-repository', `the TUF repository ${repository} is damaged`, {
      cause,
      next: 'restore it from a backup, or publish into a new folder',
    });
  }
}

function verifyTargets(root: Metadata<Root>, former: Json | null, targets: Metadata<Targets>): void {
  try {
    root.verifyDelegate(MetadataKind.Targets, targets);
  } catch (error) {
    if (former === null) throw error;
    Metadata.fromJSON(MetadataKind.Root, former).verifyDelegate(MetadataKind.Targets, targets);
  }
}

type RoleTerms = { readonly version: number; readonly expires: string; readonly specVersion: string };

async function writeMetadata(
  options: PublishOptions,
  before: Repository,
  oldKeys: RoleKeys,
  targets: Record<string, TargetFile>,
  staged: readonly StagedTarget[],
): Promise<Publication> {
  const folder = join(options.repository, 'metadata');
  await mkdir(folder, { recursive: true, mode: 0o755 });
  const terms = (role: RoleName): RoleTerms => ({
    version: before.versions[role] + 1,
    expires: expiryOf(options, role),
    specVersion: '1.0.31',
  });
  const write = async (name: string, metadata: Serializable) => {
    const bytes = Buffer.from(JSON.stringify(metadata.toJSON()));
    await writeDurably(join(folder, name), bytes, 0o644);
    return bytes;
  };
  const { keys, rootVersion } = await writeRoot(options, before, oldKeys, terms('root'), write);

  const targetsMetadata = new Metadata(new Targets({ ...terms('targets'), targets }));
  signWith(keys.targets, targetsMetadata);
  const targetsBytes = await write(`${terms('targets').version}.targets.json`, targetsMetadata);

  const meta = { 'targets.json': metaFile(terms('targets').version, targetsBytes) };
  const snapshot = new Metadata(new Snapshot({ ...terms('snapshot'), meta }));
  signWith(keys.snapshot, snapshot);
  const snapshotBytes = await write(`${terms('snapshot').version}.snapshot.json`, snapshot);

  const snapshotMeta = metaFile(terms('snapshot').version, snapshotBytes);
  const timestamp = new Metadata(new Timestamp({ ...terms('timestamp'), snapshotMeta }));
  signWith(keys.timestamp, timestamp);
  await write('timestamp.json', timestamp);
  return {
    targets: staged.map(({ path, digest, target, description }) => {
      const { product, version } = description;
      return { path, product, version, digest, sizeBytes: target.length };
    }),
    targetsTotal: Object.keys(targets).length,
    versions: {
      root: rootVersion,
      targets: terms('targets').version,
      snapshot: terms('snapshot').version,
      timestamp: terms('timestamp').version,
    },
    rootPath: join(folder, `${rootVersion}.root.json`),
    expires: terms('timestamp').expires,
  };
}

type Serializable = { readonly toJSON: () => unknown };
type Write = (name: string, metadata: Serializable) => Promise<Buffer>;

function metaFile(version: number, bytes: Buffer): MetaFile {
  return new MetaFile({ version, length: bytes.length, hashes: { sha256: digestOf(bytes) } });
}

function expiryOf(options: PublishOptions, role: RoleName): string {
  const days = options.expiresDays?.[role] ?? EXPIRES_DAYS[role];
  return `${isoTime(options.clock.nowMs() + days * DAY_MS).slice(0, 19)}Z`;
}

/**
 * A new root when there is none, when keys rotate, or when the old one expires soon. It is signed with the old root key
 * as well as the new one, so that clients can follow (TUF 5.3.4).
 */
async function writeRoot(
  options: PublishOptions,
  before: Repository,
  oldKeys: RoleKeys,
  terms: RoleTerms,
  write: Write,
): Promise<{ readonly keys: RoleKeys; readonly rootVersion: number }> {
  const rotate = options.rotate ?? [];
  const expiresMs = before.root === null ? 0 : Date.parse(before.root.signed.expires);
  const isDue = expiresMs < options.clock.nowMs() + ROOT_RENEW_DAYS * DAY_MS;
  if (!isDue && rotate.length === 0) return { keys: oldKeys, rootVersion: before.versions.root };
  const keys: Record<RoleName, (typeof oldKeys)[RoleName]> = { ...oldKeys };
  for (const role of rotate) keys[role] = await createNextKey(options.keys, role);
  const root = new Root({ ...terms, consistentSnapshot: true });
  for (const role of ROLE_NAMES) root.addKey(keys[role].shown, role);
  const metadata = new Metadata(root);
  signWith(keys.root, metadata);
  if (before.root !== null && keys.root.id !== oldKeys.root.id) signWith(oldKeys.root, metadata);
  await write(`${terms.version}.root.json`, metadata);
  for (const role of rotate) await adoptNextKey(options.keys, role);
  return { keys, rootVersion: terms.version };
}
