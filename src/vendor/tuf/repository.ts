// A TUF repository of our own as it lies on the disk: what clients see now, and what was signed since but is not visible yet.
import { mkdir, open, readdir, readFile, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { METADATA_BYTES_MAX } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';
import { startWalk } from './delegations.ts';
import type { Signers } from './keys.ts';
import { Metadata, MetadataKind, type Root, type Snapshot, type Targets, type Timestamp } from './models.ts';

/** A targets role: the newest version that is validly signed. */
export type TargetsFile = {
  readonly name: string;
  readonly metadata: Metadata<Targets>;
  readonly bytes: Buffer;
  /** Whether the snapshot that clients see has this very version. */
  readonly isVisible: boolean;
};

export type Repository = {
  readonly folder: string;
  readonly root: Metadata<Root> | null;
  /** Null until the first complete publish. */
  readonly visible: { readonly timestamp: Metadata<Timestamp>; readonly snapshot: Metadata<Snapshot> } | null;
  /** By name, `targets` among them unless nothing was published. */
  readonly roles: ReadonlyMap<string, TargetsFile>;
};

/** A repository that has a root. */
export type Published = Repository & { readonly root: Metadata<Root> };

/** Extra fields that our own metadata carry, signed with them: how long a role's metadata are valid. */
export const EXPIRES_DAYS_FIELD = 'x-pratique-expires-days';

/** What @tufjs/models parses from; it checks the shape itself. */
type Json = { [key: string]: never };

export function metadataFolder(repository: string): string {
  return join(repository, 'metadata');
}

/** The name of a version of a role's file (TUF 6.2). Clients escape it in the URL, and web servers take that back. */
export function roleFile(version: number, role: string): string {
  return `${version}.${role}.json`;
}

/** Throws VendorError `usage/tuf-repository` when the folder holds no repository. */
export function requirePublished(repository: Repository): Published {
  const { root } = repository;
  if (root !== null) return { ...repository, root };
  throw new VendorError(
    'usage/tuf-repository',
    `there is no TUF repository in ${printable(repository.folder, 1_000)}`,
    {
      next: 'make one with `pratique vendor publish init`, or by publishing a release into it',
    },
  );
}

/**
 * Reads and verifies what lies there. Targets that others signed are never signed over: a file that is not signed by its
 * delegator's keys does not count. Throws VendorError `usage/tuf-repository` when what clients see is damaged.
 */
export async function readRepository(folder: string): Promise<Repository> {
  const names = await readdir(metadataFolder(folder)).catch((): string[] => []);
  const rootVersion = Math.max(
    0,
    ...names.flatMap((name) => /^([1-9]\d{0,14})\.root\.json$/.exec(name)?.[1] ?? []).map(Number),
  );
  if (rootVersion === 0) return { folder, root: null, visible: null, roles: new Map() };
  try {
    const root = Metadata.fromJSON(MetadataKind.Root, await readJson(folder, `${rootVersion}.root.json`));
    root.verifyDelegate(MetadataKind.Root, root);
    const visible = names.includes('timestamp.json') ? await readVisible(folder) : null;
    const former = names.includes(`${rootVersion - 1}.root.json`)
      ? Metadata.fromJSON(MetadataKind.Root, await readJson(folder, `${rootVersion - 1}.root.json`))
      : null;
    const roles = await readRoles(
      folder,
      names,
      [root, ...(former === null ? [] : [former])],
      visible?.snapshot ?? null,
    );
    return { folder, root, visible, roles };
  } catch (cause) {
    throw new VendorError('usage/tuf-repository', `the TUF repository ${printable(folder, 1_000)} is damaged`, {
      cause,
      next: 'restore it from a backup, or publish into a new folder',
    });
  }
}

async function readVisible(folder: string): Promise<Repository['visible']> {
  const timestamp = Metadata.fromJSON(MetadataKind.Timestamp, await readJson(folder, 'timestamp.json'));
  const { version } = timestamp.signed.snapshotMeta;
  const snapshot = Metadata.fromJSON(MetadataKind.Snapshot, await readJson(folder, `${version}.snapshot.json`));
  return { timestamp, snapshot };
}

async function readBytes(folder: string, name: string): Promise<Buffer> {
  const bytes = await readFile(join(metadataFolder(folder), name));
  if (bytes.length > METADATA_BYTES_MAX) throw new Error(`${name} is larger than ${METADATA_BYTES_MAX} bytes`);
  return bytes;
}

async function readJson(folder: string, name: string): Promise<Json> {
  return JSON.parse((await readBytes(folder, name)).toString('utf8'));
}

async function readRoles(
  folder: string,
  names: readonly string[],
  roots: readonly Metadata<Root>[],
  snapshot: Metadata<Snapshot> | null,
): Promise<ReadonlyMap<string, TargetsFile>> {
  const roles = new Map<string, TargetsFile>();
  const walk = startWalk(null);
  for (let visit = walk.next(); visit !== null; visit = walk.next()) {
    const { role, parent, isRepeat } = visit;
    if (isRepeat) continue;
    const seen = snapshot?.signed.meta[`${role}.json`]?.version ?? 0;
    // A rotation that was cut off leaves targets that only the former root's keys signed.
    const parents = parent === 'root' ? roots : [roles.get(parent)?.metadata].filter((each) => each !== undefined);
    const file = await readNewest({ folder, names, role, seen, verify: (one) => void verifyByAny(parents, role, one) });
    if (file === null) {
      if (seen > 0) throw new Error(`${roleFile(seen, role)} is missing, or not signed by the keys that may sign it`);
      continue;
    }
    roles.set(role, file);
    walk.enter(visit, file.metadata.signed);
  }
  return roles;
}

type Delegator = { readonly verifyDelegate: Metadata<Root>['verifyDelegate'] };

function verifyByAny(parents: readonly Delegator[], role: string, metadata: Metadata<Targets>): void {
  const failures: unknown[] = [];
  for (const parent of parents) {
    try {
      parent.verifyDelegate(role, metadata);
      return;
    } catch (error) {
      failures.push(error);
    }
  }
  throw failures[0] ?? new Error(`nobody delegates to ${role}`);
}

/** How far ahead of what is visible a role may have been signed; further is not the work of a publisher. */
const AHEAD_MAX = 1_000;

type Search = {
  readonly folder: string;
  readonly names: readonly string[];
  readonly role: string;
  /** The version that clients see. */
  readonly seen: number;
  readonly verify: (metadata: Metadata<Targets>) => void;
};

async function readNewest({ folder, names, role, seen, verify }: Search): Promise<TargetsFile | null> {
  const ending = `.${role}.json`;
  const versions = names
    .filter((name) => name.endsWith(ending) && /^[1-9]\d{0,14}$/.test(name.slice(0, -ending.length)))
    .map((name) => Number(name.slice(0, -ending.length)))
    .filter((version) => version >= seen && version <= seen + AHEAD_MAX)
    .sort((a, b) => b - a);
  for (const version of versions) {
    try {
      const bytes = await readBytes(folder, roleFile(version, role));
      const metadata = Metadata.fromJSON(MetadataKind.Targets, JSON.parse(bytes.toString('utf8')));
      verify(metadata);
      if (metadata.signed.version !== version) continue;
      return { name: role, metadata, bytes, isVisible: version === seen };
    } catch {
      // Not signed by those who may, or cut off: an older one counts.
    }
  }
  return null;
}

/** Who may sign a role, by the root or by the role that delegates to it. Null: nobody delegates to it. */
export function signersOf(repository: Published, role: string): (Signers & { readonly delegator: string }) | null {
  const top = Object.hasOwn(repository.root.signed.roles, role) ? repository.root.signed.roles[role] : undefined;
  if (top !== undefined) return { keyIDs: top.keyIDs, threshold: top.threshold, delegator: 'root' };
  for (const [delegator, { metadata }] of repository.roles) {
    const { roles = {} } = metadata.signed.delegations ?? {};
    const found = Object.hasOwn(roles, role) ? roles[role] : undefined;
    if (found !== undefined) return { keyIDs: found.keyIDs, threshold: found.threshold, delegator };
  }
  return null;
}

/** Makes sure that one process at a time writes into the repository. Throws VendorError `conflict/tuf-repository`. */
export async function withLock<T>(repository: string, work: () => Promise<T>): Promise<T> {
  await mkdir(repository, { recursive: true, mode: 0o755 });
  const path = join(repository, '.lock');
  const lock = (await tryLock(path)) ?? ((await isStale(path)) ? await tryLock(path) : null);
  if (lock === null) {
    throw new VendorError(
      'conflict/tuf-repository',
      `somebody else is publishing into ${printable(repository, 1_000)}`,
      {
        next: `try again; remove ${path} if no publish runs on any machine`,
      },
    );
  }
  try {
    return await work();
  } finally {
    await unlink(path);
  }
}

async function tryLock(path: string): Promise<true | null> {
  try {
    const file = await open(path, 'wx', 0o644);
    await file.writeFile(`${process.pid}\n`);
    await file.close();
    return true;
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EEXIST') return null;
    throw new VendorError('host-fault/file', `${printable(path, 1_000)} cannot be written`, { cause: error });
  }
}

/** Whether the publisher that holds the lock is gone: it was killed, or the power was cut. Takes its lock away then. */
async function isStale(path: string): Promise<boolean> {
  const pid = Number((await readFile(path, 'utf8').catch(() => '')).trim());
  if (!Number.isSafeInteger(pid) || pid <= 0) return false;
  try {
    process.kill(pid, 0);
    return false;
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EPERM') return false;
  }
  await unlink(path).catch(() => {});
  return true;
}
