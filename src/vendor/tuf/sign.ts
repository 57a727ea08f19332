// Signs new versions of a repository's metadata and writes them so that clients see the old repository or the new one.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { type Clock, isoTime } from '../../base/clock.ts';
import { digestOf } from '../../base/digest.ts';
import { writeDurably } from '../../base/durable-file.ts';
import { VendorError } from '../errors.ts';
import { type KeyRing, presentSigners, ROLE_NAMES, type RoleName, type Signers, signersFor, signWith } from './keys.ts';
import { guardMetadata, newBudget } from './metadata-guard.ts';
import { Metadata, MetaFile, type Root, Snapshot, Targets, Timestamp } from './models.ts';
import { EXPIRES_DAYS_FIELD, metadataFolder, type Repository, roleFile } from './repository.ts';

/** An operator who publishes now and then: the timestamp is the short one, as in TUF, but long enough for a holiday. */
export const EXPIRES_DAYS: Readonly<Record<RoleName, number>> = {
  root: 730,
  targets: 365,
  snapshot: 365,
  timestamp: 30,
};
/** Metadata that expire sooner than this part of their time are worth a warning, and are renewed by the way. */
const RENEW_PART = 0.2;
const DAY_MS = 86_400_000;

export type ExpiresDays = Partial<Readonly<Record<RoleName, number>>>;

/** What is to be signed, beyond a new snapshot and timestamp. */
export type Changes = {
  /** A new root, its version already raised; the visible one is kept when absent. */
  readonly root?: Root;
  /** New content of targets roles by name, their versions already raised. */
  readonly targets?: ReadonlyMap<string, Targets>;
  /** Metadata that somebody else signed, by role. */
  readonly signedTargets?: ReadonlyMap<string, Metadata<Targets>>;
  /** False: only the timestamp is signed again, if nothing else changed. */
  readonly isSnapshotForced: boolean;
  /** True: the targets roles are written, and become visible with the next snapshot. */
  readonly isHidden?: boolean;
};

export type SignOptions = {
  readonly clock: Clock;
  readonly ring: KeyRing;
  readonly before: Repository;
  /** The root in force afterwards. */
  readonly root: Root;
  readonly expiresDays?: ExpiresDays;
};

/** When a role's new metadata expire: what was asked for now, else what its root says, else the default. */
export function expiryOf({ clock, root, expiresDays }: SignOptions, role: RoleName): string {
  const days = expiresDays?.[role] ?? expiresDaysOf(root, role);
  return `${isoTime(clock.nowMs() + days * DAY_MS).slice(0, 19)}Z`;
}

/** How long a role's metadata are valid, as its root says. */
export function expiresDaysOf(root: Root, role: RoleName): number {
  const days: unknown = root.roles[role]?.unrecognizedFields?.[EXPIRES_DAYS_FIELD];
  return typeof days === 'number' && days > 0 && days <= 36_500 ? days : EXPIRES_DAYS[role];
}

/** Whether metadata have come into the last part of their time. */
export function isDue(clock: Clock, expires: string, days: number): boolean {
  return Date.parse(expires) < clock.nowMs() + days * DAY_MS * RENEW_PART;
}

export const SPEC_VERSION = '1.0.31';

/** The new version of a targets role: other targets, the same delegations. */
export function nextTargets(before: Repository, role: string, expires: string, merged: Targets['targets']): Targets {
  const old = before.roles.get(role)?.metadata.signed;
  const delegations = old?.delegations === undefined ? {} : { delegations: old.delegations };
  const fields = old === undefined ? {} : { unrecognizedFields: old.unrecognizedFields };
  return new Targets({
    version: (old?.version ?? 0) + 1,
    expires,
    specVersion: SPEC_VERSION,
    targets: merged,
    ...delegations,
    ...fields,
  });
}

type Serializable = { readonly toJSON: () => unknown };
type File = { readonly name: string; readonly bytes: Buffer };

const bytesOf = (metadata: Serializable): Buffer => Buffer.from(JSON.stringify(metadata.toJSON()));

/**
 * Signs everything before anything is written, so that a missing key changes nothing. Then, each durable: the targets
 * roles, the snapshot, `timestamp.json`, and a new root last. Where keys rotate, the new metadata carry old and new
 * signatures, so that they are valid under either root. Only if the old keys are not here any more does the new root come
 * before them. Throws VendorError `usage/tuf-key` for missing keys.
 */
export async function signAndWrite(options: SignOptions, changes: Changes): Promise<void> {
  const { before } = options;
  const roots = signRoot(options, changes);
  const targets = signTargets(options, changes);
  const folder = metadataFolder(before.folder);
  await mkdir(folder, { recursive: true, mode: 0o755 });
  const write = async (files: readonly File[]) => {
    refuseOversize(options, files);
    for (const { name, bytes } of files) await writeDurably(join(folder, name), bytes, 0o644);
  };
  if (changes.isHidden === true) return await write(targets);
  const isChanged = targets.length > 0 || [...before.roles.values()].some(({ isVisible }) => !isVisible);
  const snapshot =
    changes.isSnapshotForced || isChanged || before.visible === null ? signSnapshot(options, targets) : null;
  const timestamp = signTimestamp(options, snapshot);
  const late = [...(snapshot === null ? [] : [snapshot]), timestamp];
  const isBothWays = roots.length === 0 || isValidUnderOld(options);
  await write(isBothWays ? [...targets, ...late, ...roots] : [...targets, ...roots, ...late]);
}

/** What our own clients would not read is not published: they bound what they parse and verify. */
function refuseOversize({ before }: SignOptions, files: readonly File[]): void {
  const budget = newBudget();
  const changed = new Set(files.map(({ name }) => name));
  const kept = [...before.roles.values()].map(({ name, metadata, bytes }) => ({
    name: roleFile(metadata.signed.version, name),
    bytes,
  }));
  try {
    for (const { name, bytes } of [...files, ...kept.filter(({ name }) => !changed.has(name))]) {
      guardMetadata(bytes, name, budget);
    }
  } catch (cause) {
    throw new VendorError('usage/tuf-too-many', 'the repository would be more than clients read', {
      cause,
      next: 'delegate products to roles of their own, sign with fewer keys, or publish into a second repository',
    });
  }
}

/** TUF 5.3.4 and 5.3.5: by the threshold of the old root's keys and by that of its own. */
function signRoot({ ring, before }: SignOptions, { root }: Changes): readonly File[] {
  if (root === undefined) return [];
  const metadata = new Metadata(root);
  const old = before.root === null ? [] : signersFor(ring, 'root', signersIn(before.root.signed, 'root'));
  const own = signersFor(ring, 'the new root', signersIn(root, 'root'));
  for (const key of new Map([...own, ...old].map((each) => [each.id, each])).values()) signWith(key, metadata);
  return [{ name: `${root.version}.root.json`, bytes: bytesOf(metadata) }];
}

function signersIn(root: Root, role: RoleName): Signers {
  const { keyIDs = [], threshold = 1 } = root.roles[role] ?? {};
  return { keyIDs, threshold };
}

/** Signs for a top-level role with the keys of the root to come, and with those of the old root that are here. */
function signTop({ ring, before, root }: SignOptions, role: RoleName, metadata: Parameters<typeof signWith>[1]): void {
  const own = signersFor(ring, role, signersIn(root, role));
  const old = before.root === null ? [] : presentSigners(ring, signersIn(before.root.signed, role));
  for (const key of new Map([...own, ...old].map((each) => [each.id, each])).values()) signWith(key, metadata);
}

type SignedTargets = File & { readonly role: string; readonly version: number };

function signTargets(options: SignOptions, { targets, signedTargets }: Changes): readonly SignedTargets[] {
  const files: SignedTargets[] = [];
  for (const [role, metadata] of signedTargets ?? []) {
    files.push(signedFile(role, metadata));
  }
  for (const [role, signed] of targets ?? []) {
    const metadata = new Metadata(signed);
    if (role === 'targets') signTop(options, 'targets', metadata);
    else for (const key of signersFor(options.ring, role, delegatedSigners(options, role))) signWith(key, metadata);
    files.push(signedFile(role, metadata));
  }
  return files;
}

function signedFile(role: string, metadata: Metadata<Targets>): SignedTargets {
  const { version } = metadata.signed;
  return { role, version, name: roleFile(version, role), bytes: bytesOf(metadata) };
}

function delegatedSigners({ before }: SignOptions, role: string): Signers {
  for (const { metadata } of before.roles.values()) {
    const { roles = {} } = metadata.signed.delegations ?? {};
    const found = Object.hasOwn(roles, role) ? roles[role] : undefined;
    if (found !== undefined) return found;
  }
  throw new Error(`assertion failed: somebody delegates to ${role}`);
}

const metaOf = (version: number, bytes: Buffer): MetaFile =>
  new MetaFile({ version, length: bytes.length, hashes: { sha256: digestOf(bytes) } });

function signSnapshot(options: SignOptions, changed: readonly SignedTargets[]): File & { readonly version: number } {
  const { before } = options;
  // TUF 5.5.5: a role that was listed once stays listed, or clients that know it refuse the snapshot.
  const meta: Record<string, MetaFile> = { ...before.visible?.snapshot.signed.meta };
  for (const { name, metadata, bytes } of before.roles.values())
    meta[`${name}.json`] = metaOf(metadata.signed.version, bytes);
  for (const { role, version, bytes } of changed) meta[`${role}.json`] = metaOf(version, bytes);
  const version = (before.visible?.timestamp.signed.snapshotMeta.version ?? 0) + 1;
  const snapshot = new Metadata(
    new Snapshot({ version, expires: expiryOf(options, 'snapshot'), specVersion: SPEC_VERSION, meta }),
  );
  signTop(options, 'snapshot', snapshot);
  return { name: `${version}.snapshot.json`, version, bytes: bytesOf(snapshot) };
}

function signTimestamp(options: SignOptions, snapshot: (File & { readonly version: number }) | null): File {
  const { visible } = options.before;
  const snapshotMeta =
    snapshot === null ? visible?.timestamp.signed.snapshotMeta : metaOf(snapshot.version, snapshot.bytes);
  if (snapshotMeta === undefined) throw new Error('assertion failed: a first publish makes a snapshot');
  const version = (visible?.timestamp.signed.version ?? 0) + 1;
  const timestamp = new Metadata(
    new Timestamp({ version, expires: expiryOf(options, 'timestamp'), specVersion: SPEC_VERSION, snapshotMeta }),
  );
  signTop(options, 'timestamp', timestamp);
  return { name: 'timestamp.json', bytes: bytesOf(timestamp) };
}

/** Whether enough of the old root's keys are here that the new metadata are valid under it too. */
function isValidUnderOld({ ring, before }: SignOptions): boolean {
  const old = before.root?.signed;
  if (old === undefined) return false;
  return ROLE_NAMES.filter((role) => role !== 'root').every((role) => {
    const signers = signersIn(old, role);
    return presentSigners(ring, signers).length >= signers.threshold;
  });
}
