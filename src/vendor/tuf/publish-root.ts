// Roots of a repository that we publish: made with threshold keys, and rotated so that clients follow by themselves.
import { unlink } from 'node:fs/promises';
import { type Clock, isoTime } from '../../base/clock.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';
import { makeKey, openKeyRing, ROLE_NAMES, type RoleName, refuseNesting, type SigningKey, shortId } from './keys.ts';
import { type Key, Role, Root, Targets } from './models.ts';
import { describePublication, type Publication } from './publication.ts';
import { EXPIRES_DAYS_FIELD, type Published, readRepository, requirePublished, withLock } from './repository.ts';
import {
  type ExpiresDays,
  expiresDaysOf,
  expiryOf,
  nextTargets,
  type SignOptions,
  SPEC_VERSION,
  signAndWrite,
} from './sign.ts';

export type RoleFolders = Partial<Readonly<Record<RoleName, readonly string[]>>>;
export type Thresholds = Partial<Readonly<Record<RoleName, number>>>;

export type NewRoot = {
  /** The first one gets the keys of roles that `roleFolders` does not name. */
  readonly folders: readonly string[];
  readonly clock: Clock;
  /** One new key a folder; a folder may stand there more than once. */
  readonly roleFolders?: RoleFolders;
  readonly thresholds?: Thresholds;
  readonly expiresDays?: ExpiresDays;
};

/** The first root of a repository, with its keys. Throws VendorError `usage/tuf-key`. */
export async function makeRoot(options: NewRoot): Promise<Root> {
  const { folders, roleFolders = {}, thresholds = {}, expiresDays = {} } = options;
  const [first] = folders;
  for (const role of ROLE_NAMES)
    checkRole(role, roleFolders[role] ?? (first === undefined ? [] : [first]), thresholds[role] ?? 1);
  const keys: Record<string, Key> = {};
  const roles: Record<string, Role> = {};
  for (const name of ROLE_NAMES) {
    const made = await keysFor(name, roleFolders[name] ?? (first === undefined ? [] : [first]));
    for (const { id, shown } of made) keys[id] = shown;
    const days = expiresDays[name];
    roles[name] = new Role({
      keyIDs: made.map(({ id }) => id),
      threshold: thresholds[name] ?? 1,
      ...(days === undefined ? {} : { unrecognizedFields: { [EXPIRES_DAYS_FIELD]: days } }),
    });
  }
  const root = new Root({ version: 1, specVersion: SPEC_VERSION, keys, roles, consistentSnapshot: true, expires: '' });
  return withExpiry(root, options.clock);
}

function checkRole(role: RoleName, folders: readonly string[], threshold: number): void {
  if (folders.length === 0) {
    throw new VendorError('usage/tuf-key', `the ${role} role has no folder for its keys`, { next: 'give --keys' });
  }
  if (Number.isInteger(threshold) && threshold >= 1 && threshold <= folders.length) return;
  throw new VendorError('usage/tuf-key', `${role} would need ${threshold} of ${folders.length} keys`, {
    next: `give --role-keys ${role}=FOLDER once for each key, or another --threshold`,
  });
}

/** A first publish that was cut off has made keys already, which nothing was signed with: they are used. */
async function keysFor(role: RoleName, folders: readonly string[]): Promise<readonly SigningKey[]> {
  const ring = await openKeyRing([...new Set(folders)]);
  const left = ring.all().filter(({ path }) => new RegExp(`/${role}(-[0-9]+)?\\.pem$`).test(path));
  const made: SigningKey[] = [];
  for (const folder of folders) {
    const at = left.findIndex(({ path }) => path.startsWith(`${folder.replace(/\/+$/, '')}/`));
    const [known] = at < 0 ? [] : left.splice(at, 1);
    made.push(known ?? (await makeKey(folder, role)));
  }
  return made;
}

function withExpiry(root: Root, clock: Clock, expiresDays?: ExpiresDays): Root {
  const days = expiresDays?.root ?? expiresDaysOf(root, 'root');
  const expires = isoTime(clock.nowMs() + days * 86_400_000).slice(0, 19);
  return new Root({ ...root, expires: `${expires}Z` });
}

export type InitOptions = Omit<NewRoot, 'folders'> & { readonly repository: string; readonly keys: readonly string[] };

/** Makes an empty repository. Throws VendorError `conflict/tuf-repository` when there is one. */
export async function initRepository(options: InitOptions): Promise<Publication> {
  const { repository, keys, clock } = options;
  const all = [...keys, ...Object.values(options.roleFolders ?? {}).flat()];
  refuseNesting(repository, all);
  return await withLock(repository, async () => {
    const before = await readRepository(repository);
    if (before.root !== null) {
      throw new VendorError('conflict/tuf-repository', `${printable(repository, 1_000)} is a TUF repository already`, {
        next: 'publish into it, or choose another folder',
      });
    }
    const root = await makeRoot({ ...options, folders: keys });
    const signing: SignOptions = { clock, ring: await openKeyRing(all), before, root };
    const targets = new Targets({
      version: 1,
      expires: expiryOf(signing, 'targets'),
      specVersion: SPEC_VERSION,
      targets: {},
    });
    await signAndWrite(signing, { root, targets: new Map([['targets', targets]]), isSnapshotForced: true });
    return await describePublication(options, [], true);
  });
}

export type Rotation = {
  readonly clock: Clock;
  readonly folders: readonly string[];
  /** Roles all of whose keys are replaced. */
  readonly roles: readonly RoleName[];
  readonly expiresDays?: ExpiresDays;
};

/** The next root, with as many new keys in the first folder as each of these roles had. */
export async function rotatedRoot({ root }: Published, options: Rotation): Promise<Root> {
  const [folder] = options.folders;
  if (folder === undefined) throw new VendorError('usage/tuf-key', 'there is no folder for the new keys');
  let next = root.signed;
  for (const role of options.roles) {
    for (const id of root.signed.roles[role]?.keyIDs ?? [])
      next = replaceKey(next, role, id, await makeKey(folder, role));
  }
  return withExpiry(nextVersion(next), options.clock, options.expiresDays);
}

function nextVersion(root: Root): Root {
  return new Root({ ...root, version: root.version + 1 });
}

function replaceKey(root: Root, name: RoleName, id: string, by: SigningKey | null): Root {
  const roles: Record<string, Role> = { ...root.roles };
  const old = roles[name];
  if (old === undefined) throw new Error(`assertion failed: every root has the role ${name}`);
  const keyIDs = old.keyIDs.flatMap((each) => (each === id ? (by?.id ?? []) : each));
  roles[name] = new Role({ ...old, keyIDs });
  const used = new Set(Object.values(roles).flatMap((role) => role.keyIDs));
  const keys: Record<string, Key> = Object.fromEntries(
    [...Object.entries(root.keys), ...(by === null ? [] : [[by.id, by.shown] as const])].filter(([each]) =>
      used.has(each),
    ),
  );
  return new Root({ ...root, roles, keys });
}

export type RotateOptions = {
  readonly repository: string;
  readonly keys: readonly string[];
  readonly clock: Clock;
  readonly role: RoleName;
  /** The beginning of the id of the key to replace; null where the role has one key only. */
  readonly keyId: string | null;
  /** Where the new key goes; null: the first of `keys`. */
  readonly into: string | null;
};

export type RotateResult = {
  readonly publication: Publication;
  readonly replaced: string;
  readonly key: { readonly id: string; readonly path: string };
};

/**
 * Replaces one key of a role, also one that is lost or stolen: the new root is signed by the threshold of the old root's keys
 * and of its own, and what the role signed is signed again. Throws VendorError `usage/tuf-key` naming the missing keys.
 */
export async function rotateKey(options: RotateOptions): Promise<RotateResult> {
  const { repository, keys, clock, role, into } = options;
  const folder = into ?? keys[0];
  if (folder === undefined)
    throw new VendorError('usage/tuf-key', 'there is no folder for the new key', { next: 'give --keys' });
  refuseNesting(repository, [...keys, folder]);
  return await withLock(repository, async () => {
    const before = requirePublished(await readRepository(repository));
    const id = chooseKey(before, role, options.keyId);
    const made = await makeKey(folder, role);
    try {
      const ring = await openKeyRing([...keys, folder]);
      const root = withExpiry(nextVersion(replaceKey(before.root.signed, role, id, made)), clock);
      await signRotation({ clock, ring, before, root }, role);
    } catch (error) {
      // Nothing was written if signing failed; a root that was written names the key, and it must stay.
      const after = await readRepository(repository);
      if (after.root?.signed.keys[made.id] === undefined) await unlink(made.path);
      throw error;
    }
    const publication = await describePublication(options, [], true);
    return { publication, replaced: shortId(id), key: { id: made.id, path: made.path } };
  });
}

async function signRotation(signing: SignOptions, role: RoleName): Promise<void> {
  const { before, root } = signing;
  const old = before.roles.get('targets')?.metadata.signed;
  const again =
    role === 'targets' && old !== undefined
      ? { targets: new Map([['targets', nextTargets(before, 'targets', expiryOf(signing, 'targets'), old.targets)]]) }
      : {};
  await signAndWrite(signing, { root, ...again, isSnapshotForced: true });
}

function chooseKey({ root }: Published, role: RoleName, beginning: string | null): string {
  const ids = root.signed.roles[role]?.keyIDs ?? [];
  const found = ids.filter((id) => beginning === null || id.startsWith(beginning));
  const [only] = found;
  if (only !== undefined && found.length === 1) return only;
  const list = ids.map(shortId).join(', ');
  const problem =
    beginning === null ? `has ${ids.length} keys` : `has ${found.length} keys that begin with ${printable(beginning)}`;
  throw new VendorError('usage/tuf-key', `${role} ${problem}: ${list}`, {
    next: 'name the one to replace with --key-id',
  });
}
