// A TUF repository that can be made to lie: every version, key, threshold and date is free, and what it writes is really signed.
import { generateKeyPairSync, sign } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Signature } from '@tufjs/models';
import { digestOf } from '../../src/base/digest.ts';
import {
  DelegatedRole,
  Delegations,
  Key,
  Metadata,
  MetaFile,
  Role,
  Root,
  Snapshot,
  TargetFile,
  Targets,
  Timestamp,
} from '../../src/vendor/tuf/models.ts';

export type FakeKey = { readonly id: string; readonly shown: Key; readonly sign: (data: Buffer) => string };

/** A new ed25519 key. */
export function fakeKey(): FakeKey {
  const { privateKey, publicKey } = generateKeyPairSync('ed25519');
  const point = publicKey.export({ format: 'der', type: 'spki' }).subarray(-32).toString('hex');
  const id = digestOf(point);
  const shown = new Key({ keyID: id, keyType: 'ed25519', scheme: 'ed25519', keyVal: { public: point } });
  return { id, shown, sign: (data) => sign(null, data, privateKey).toString('hex') };
}

export type FakeRole = {
  version: number;
  expires: string;
  threshold: number;
  /** Keys that whoever delegates lists. */
  keys: readonly FakeKey[];
  /** Keys that sign. */
  signers: readonly FakeKey[];
};

export type FakeTarget = { readonly bytes: Buffer; readonly custom?: Record<string, unknown> };
export type FakeDelegation = {
  readonly role: string;
  readonly paths: readonly string[];
  readonly terminating: boolean;
};

const LATE = '2090-01-01T00:00:00Z';

/** The state of a repository; the functions below write it out. */
export type FakeRepository = {
  readonly folder: string;
  readonly roles: Map<string, FakeRole>;
  readonly targets: Map<string, Map<string, FakeTarget>>;
  readonly delegations: Map<string, FakeDelegation[]>;
  /** Versions that the snapshot lists instead of the true ones; null leaves a role out. */
  readonly listed: Map<string, number | null>;
  isConsistent: boolean;
  /** Whether snapshot and timestamp name lengths and hashes. */
  hasHashes: boolean;
  /** The last bytes of each role. */
  readonly bytes: Map<string, Buffer>;
};

const TOP = ['root', 'timestamp', 'snapshot', 'targets'] as const;

/** A repository with one key a role and nothing on offer; nothing is written yet. */
export function fakeRepository(folder: string): FakeRepository {
  const roles = new Map(TOP.map((name) => [name as string, newRole()]));
  return {
    folder,
    roles,
    targets: new Map([['targets', new Map()]]),
    delegations: new Map(),
    listed: new Map(),
    isConsistent: true,
    hasHashes: true,
    bytes: new Map(),
  };
}

function newRole(keys: readonly FakeKey[] = [fakeKey()]): FakeRole {
  return { version: 1, expires: LATE, threshold: 1, keys, signers: keys };
}

/** A copy that can be spoilt without the original knowing; keys are shared, files too. */
export function copyOf(repository: FakeRepository): FakeRepository {
  return {
    ...repository,
    roles: new Map([...repository.roles].map(([name, role]) => [name, { ...role }])),
    targets: new Map([...repository.targets].map(([name, targets]) => [name, new Map(targets)])),
    delegations: new Map([...repository.delegations].map(([name, list]) => [name, [...list]])),
    listed: new Map(repository.listed),
    bytes: new Map(repository.bytes),
  };
}

/** A role by its name; throws for one that does not exist. */
export function roleOf(repository: FakeRepository, name: string): FakeRole {
  const role = repository.roles.get(name);
  if (role === undefined) throw new Error(`the fake repository has no role ${name}`);
  return role;
}

/** Gives a role other keys, which also sign. */
export function rekey(repository: FakeRepository, name: string, keys: readonly FakeKey[] = [fakeKey()]): void {
  const role = roleOf(repository, name);
  role.keys = keys;
  role.signers = keys;
}

export function delegate(
  repository: FakeRepository,
  parent: string,
  role: string,
  { paths = ['*'], terminating = false, keys }: Partial<FakeDelegation> & { keys?: readonly FakeKey[] } = {},
): void {
  const list = repository.delegations.get(parent) ?? [];
  repository.delegations.set(parent, [...list, { role, paths, terminating }]);
  if (!repository.roles.has(role)) repository.roles.set(role, newRole(keys));
  if (!repository.targets.has(role)) repository.targets.set(role, new Map());
}

/** Puts a target on offer and its file in place. */
export async function addTarget(
  repository: FakeRepository,
  role: string,
  path: string,
  target: { readonly bytes: Buffer | string; readonly custom?: Record<string, unknown> },
): Promise<void> {
  const bytes = Buffer.from(target.bytes);
  const list = repository.targets.get(role) ?? new Map<string, FakeTarget>();
  repository.targets.set(role, list.set(path, { ...target, bytes }));
  const name = path.slice(path.lastIndexOf('/') + 1);
  const prefix = repository.isConsistent ? `${digestOf(bytes)}.` : '';
  const file = join(repository.folder, 'targets', path.slice(0, path.length - name.length), prefix + name);
  await mkdir(dirname(file), { recursive: true });
  await writeFile(file, bytes);
}

/** Writes these roles' files at their present versions. */
export async function write(repository: FakeRepository, ...names: readonly string[]): Promise<void> {
  const folder = join(repository.folder, 'metadata');
  await mkdir(folder, { recursive: true });
  for (const name of names) {
    const bytes = signed(repository, name);
    repository.bytes.set(name, bytes);
    const path = join(folder, fileName(repository, name));
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, bytes);
  }
}

/** The file of a role's present version. A name with slashes makes folders: a server unescapes what a client asks for. */
export function fileName({ roles, isConsistent }: FakeRepository, name: string): string {
  const isVersioned = name === 'root' || (isConsistent && name !== 'timestamp');
  return `${isVersioned ? `${roles.get(name)?.version}.` : ''}${name}.json`;
}

/** Raises the versions of all roles but the root and writes everything, as an honest publisher does. */
export async function publishAll(repository: FakeRepository, by = 1): Promise<void> {
  for (const [name, role] of repository.roles) if (name !== 'root') role.version += by;
  await writeAll(repository);
}

/** Writes everything at the present versions; a root that was written stays, with the signatures it has. */
export async function writeAll(repository: FakeRepository): Promise<void> {
  const root = repository.bytes.has('root') ? [] : ['root'];
  await write(repository, ...root, ...repository.targets.keys(), 'snapshot', 'timestamp');
}

/** Raises the root's version and writes it, signed by these keys too: a rotation needs the old ones. */
export async function publishRoot(repository: FakeRepository, old: readonly FakeKey[] = []): Promise<void> {
  const root = roleOf(repository, 'root');
  root.version += 1;
  const own = root.signers;
  root.signers = [...new Set([...own, ...old])];
  await write(repository, 'root');
  root.signers = own;
}

function signed(repository: FakeRepository, name: string): Buffer {
  const metadata = new Metadata(contentOf(repository, name));
  for (const key of roleOf(repository, name).signers) {
    metadata.sign((data) => new Signature({ keyID: key.id, sig: key.sign(data) }));
  }
  return Buffer.from(JSON.stringify(metadata.toJSON()));
}

function contentOf(repository: FakeRepository, name: string): Root | Timestamp | Snapshot | Targets {
  const { version, expires } = roleOf(repository, name);
  const terms = { version, expires, specVersion: '1.0.31' };
  switch (name) {
    case 'root':
      return new Root({ ...terms, ...rootRoles(repository), consistentSnapshot: repository.isConsistent });
    case 'timestamp':
      return new Timestamp({ ...terms, snapshotMeta: metaOf(repository, 'snapshot') });
    case 'snapshot':
      return new Snapshot({ ...terms, meta: snapshotMeta(repository) });
    default:
      return new Targets({ ...terms, targets: targetsOf(repository, name), ...delegationsOf(repository, name) });
  }
}

function rootRoles(repository: FakeRepository): { keys: Record<string, Key>; roles: Record<string, Role> } {
  const top = TOP.map((name) => [name, roleOf(repository, name)] as const);
  const keys = top.flatMap(([, role]) => role.keys.map(({ id, shown }) => [id, shown] as const));
  const roles = top.map(([name, role]) => [name, asRole(role)] as const);
  return { keys: Object.fromEntries(keys), roles: Object.fromEntries(roles) };
}

const asRole = ({ keys, threshold }: FakeRole): Role => new Role({ keyIDs: keys.map(({ id }) => id), threshold });

function metaOf(repository: FakeRepository, name: string): MetaFile {
  const version = repository.listed.get(name) ?? roleOf(repository, name).version;
  const bytes = repository.bytes.get(name);
  if (!repository.hasHashes || bytes === undefined) return new MetaFile({ version });
  return new MetaFile({ version, length: bytes.length, hashes: { sha256: digestOf(bytes) } });
}

function snapshotMeta(repository: FakeRepository): Record<string, MetaFile> {
  const names = [...repository.targets.keys()].filter((name) => repository.listed.get(name) !== null);
  return Object.fromEntries(names.map((name) => [`${name}.json`, metaOf(repository, name)]));
}

function targetsOf(repository: FakeRepository, name: string): Record<string, TargetFile> {
  const list = [...(repository.targets.get(name) ?? [])].map(([path, { bytes, custom }]) => {
    // The cast holds for a fake: a description is JSON, also a hostile one.
    const unrecognizedFields = (custom === undefined ? {} : { custom }) as Record<string, never>;
    const hashes = { sha256: digestOf(bytes) };
    return [path, new TargetFile({ path, length: bytes.length, hashes, unrecognizedFields })] as const;
  });
  return Object.fromEntries(list);
}

function delegationsOf(repository: FakeRepository, name: string): { delegations?: Delegations } {
  const list = repository.delegations.get(name) ?? [];
  if (list.length === 0) return {};
  const keys = list.flatMap(({ role }) => roleOf(repository, role).keys.map(({ id, shown }) => [id, shown] as const));
  const roles = list.map(({ role, paths, terminating }) => {
    const { keyIDs, threshold } = asRole(roleOf(repository, role));
    return [role, new DelegatedRole({ name: role, keyIDs, threshold, paths: [...paths], terminating })] as const;
  });
  return { delegations: new Delegations({ keys: Object.fromEntries(keys), roles: Object.fromEntries(roles) }) };
}

/** What a bundle's target says about itself. */
export function bundle(product: string, version: string, more: Record<string, unknown> = {}): Record<string, unknown> {
  const install = { action: 'bundle', prefix: `/opt/${product}`, compression: 'none' };
  return { product, version, kind: 'security', install, ...more };
}
