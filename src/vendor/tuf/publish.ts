// Publishes one's own software into a TUF repository, a folder that any web server can serve at any moment.
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../../base/clock.ts';
import { TUF_TARGETS_MAX } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import type { Compression } from '../../model/release.ts';
import { VendorError } from '../errors.ts';
import { productRole } from './delegate.ts';
import { type KeyRing, openKeyRing, presentSigners, type RoleName, refuseNesting } from './keys.ts';
import type { Root } from './models.ts';
import { describePublication, type Publication } from './publication.ts';
import { makeRoot, rotatedRoot } from './publish-root.ts';
import { mergeTargets, placeTarget, readReleases, type StagedTarget, stageTarget } from './releases.ts';
import { type Repository, readRepository, requirePublished, signersOf, withLock } from './repository.ts';
import {
  type ExpiresDays,
  expiresDaysOf,
  expiryOf,
  isDue,
  nextTargets,
  type SignOptions,
  signAndWrite,
} from './sign.ts';

export type PublishOptions = {
  /**
   * A release folder (`release.json` beside `files/`), or a folder of such folders, one release each. Null publishes
   * nothing new and signs again what is there, before it expires.
   */
  readonly source: string | null;
  /** The folder to serve: gets `metadata/` and `targets/`. Made when absent. */
  readonly repository: string;
  /**
   * Folders with the private keys, mode 0600; made on first use, in the first of them. They must not lie in the
   * repository. Keep a backup of them, offline.
   */
  readonly keys: string | readonly string[];
  readonly clock: Clock;
  /** For bundles whose release.json names none; gzip by default. */
  readonly compression?: Compression;
  /** Days until each role's metadata expire, instead of what the repository's root says. */
  readonly expiresDays?: ExpiresDays;
  /** Roles that get a new key now: after a suspicion, or by routine. Clients follow through the new root. */
  readonly rotate?: readonly RoleName[];
  /** Publish as the team to which this product was delegated, with its keys. */
  readonly product?: string;
};

/**
 * Publishes releases into a TUF repository (consistent snapshots, ed25519): adds them or replaces those of the same product,
 * version, os and arch, keeps all others, raises the versions and signs. A folder without a repository becomes one, with
 * one key a role. Clients see the old repository or the new one, also after a power cut. One publisher at a time. Throws
 * VendorError `usage/…` naming file and field, or the key that is missing; nothing was changed then.
 */
export async function publishFolder(options: PublishOptions): Promise<Publication> {
  const folders = typeof options.keys === 'string' ? [options.keys] : options.keys;
  refuseNesting(options.repository, folders);
  const releases = options.source === null ? [] : await readReleases(options.source);
  return await withLock(options.repository, async () => {
    const before = await readRepository(options.repository);
    const staging = join(options.repository, '.staging');
    await rm(staging, { recursive: true, force: true });
    await mkdir(staging, { mode: 0o700 });
    try {
      const role = options.product === undefined ? 'targets' : productRole(options.product);
      const terms = { staging, compression: options.compression ?? 'gzip', role } as const;
      const staged: StagedTarget[] = [];
      for (const release of releases) staged.push(await stageTarget(release, terms));
      refuseTooMany(before, staged.length);
      if (options.product === undefined) return await publishAll(options, folders, before, staged);
      return await publishProduct(options, folders, before, staged, options.product);
    } finally {
      await rm(staging, { recursive: true, force: true });
    }
  });
}

function refuseTooMany(before: Repository, added: number): void {
  const counts = [...before.roles.values()].map(({ metadata }) => Object.keys(metadata.signed.targets).length);
  const total = counts.reduce((sum, count) => sum + count, added);
  if (total <= TUF_TARGETS_MAX) return;
  throw new VendorError('usage/tuf-too-many', `a repository holds at most ${TUF_TARGETS_MAX} releases`, {
    next: 'publish into a second repository',
  });
}

async function publishAll(
  options: PublishOptions,
  folders: readonly string[],
  before: Repository,
  staged: readonly StagedTarget[],
): Promise<Publication> {
  const { clock, rotate = [] } = options;
  const merged = mergeTargets(before.roles.get('targets')?.metadata.signed.targets ?? {}, staged);
  const { root, isNew } = await chooseRoot(options, folders, before, rotate);
  const ring = await openKeyRing(folders);
  const signing: SignOptions = { clock, ring, before, root, ...expiresOf(options) };
  const targets = nextTargets(before, 'targets', expiryOf(signing, 'targets'), merged);
  for (const target of staged) await placeTarget(options.repository, target);
  await signAndWrite(signing, {
    ...(isNew ? { root } : {}),
    targets: new Map([['targets', targets]]),
    isSnapshotForced: true,
  });
  return await describePublication(options, staged, true);
}

/** The root to sign with: a new one when there is none, when keys rotate, or when it expires soon and its keys are here. */
async function chooseRoot(
  options: PublishOptions,
  folders: readonly string[],
  before: Repository,
  rotate: readonly RoleName[],
): Promise<{ readonly root: Root; readonly isNew: boolean }> {
  const { clock, expiresDays } = options;
  if (before.root === null) return { root: await makeRoot({ folders, clock, ...expiresOf(options) }), isNew: true };
  const published = requirePublished(before);
  const { signed } = published.root;
  if (rotate.length > 0) {
    const root = await rotatedRoot(published, { clock, folders, roles: rotate, ...expiresOf(options) });
    return { root, isNew: true };
  }
  const days = expiresDays?.root ?? expiresDaysOf(signed, 'root');
  const ring = await openKeyRing(folders);
  const role = signed.roles.root;
  const maySign = role !== undefined && presentSigners(ring, role).length >= role.threshold;
  if (!isDue(clock, signed.expires, days) || !maySign) return { root: signed, isNew: false };
  const root = await rotatedRoot(published, { clock, folders, roles: [], ...expiresOf(options) });
  return { root, isNew: true };
}

const expiresOf = ({ expiresDays }: { readonly expiresDays?: ExpiresDays }): { readonly expiresDays?: ExpiresDays } =>
  expiresDays === undefined ? {} : { expiresDays };

/** As the team of a product: signs its role; clients see it at once if the keys of snapshot and timestamp are here too. */
async function publishProduct(
  options: PublishOptions,
  folders: readonly string[],
  before: Repository,
  staged: readonly StagedTarget[],
  product: string,
): Promise<Publication> {
  const published = requirePublished(before);
  const role = productRole(product);
  const old = before.roles.get(role);
  const signers = signersOf(published, role);
  if (old === undefined || signers === null) {
    throw new VendorError(
      'usage/tuf-delegation',
      `the product ${printable(product)} is not delegated in this repository`,
      {
        next: 'ask its owner: `pratique vendor publish request`, then `publish delegate`',
      },
    );
  }
  const foreign = staged.find(({ description }) => description.product !== product);
  if (foreign !== undefined) {
    throw new VendorError('usage/tuf-delegation', `${foreign.description.product} is not the product ${product}`, {
      next: 'publish it as its own team, or as the owner of the repository',
    });
  }
  const ring = await openKeyRing(folders);
  const root = published.root.signed;
  const signing: SignOptions = { clock: options.clock, ring, before, root, ...expiresOf(options) };
  const merged = mergeTargets(old.metadata.signed.targets, staged);
  const targets = nextTargets(before, role, expiryOf(signing, 'targets'), merged);
  const mayShow = (['snapshot', 'timestamp'] as const).every((name) => isComplete(root, name, ring));
  const changes = { targets: new Map([[role, targets]]), isSnapshotForced: true, isHidden: !mayShow };
  for (const target of staged) await placeTarget(options.repository, target);
  await signAndWrite(signing, changes);
  return await describePublication(options, staged, mayShow);
}

function isComplete(root: Root, name: RoleName, ring: KeyRing): boolean {
  const role = root.roles[name];
  return role !== undefined && presentSigners(ring, role).length >= role.threshold;
}

export type RefreshOptions = {
  readonly repository: string;
  readonly keys: readonly string[];
  readonly clock: Clock;
  readonly expiresDays?: ExpiresDays;
};

/**
 * Signs the timestamp again, and the snapshot when a role has news or the snapshot is in the last part of its time: needs
 * the keys of these two roles only, so that the others can stay offline. For cron. Throws VendorError `usage/tuf-key`.
 */
export async function refreshRepository(options: RefreshOptions): Promise<Publication> {
  refuseNesting(options.repository, options.keys);
  return await withLock(options.repository, async () => {
    const before = requirePublished(await readRepository(options.repository));
    if (before.roles.get('targets') === undefined) {
      throw new VendorError(
        'usage/tuf-repository',
        `nothing is published in ${printable(options.repository, 1_000)} yet`,
        {
          next: 'publish a release first, or an empty set without a source',
        },
      );
    }
    const ring = await openKeyRing(options.keys);
    const root = before.root.signed;
    const days = options.expiresDays?.snapshot ?? expiresDaysOf(root, 'snapshot');
    const expires = before.visible?.snapshot.signed.expires;
    const isSnapshotForced = expires === undefined || isDue(options.clock, expires, days);
    await signAndWrite({ clock: options.clock, ring, before, root, ...expiresOf(options) }, { isSnapshotForced });
    return await describePublication(options, [], true);
  });
}
