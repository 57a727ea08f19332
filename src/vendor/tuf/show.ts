// Explains a repository that we publish: its roles, who may sign what, how long it is valid, what is not visible yet.
import type { Clock } from '../../base/clock.ts';
import { type KeyRing, openKeyRing, presentSigners, ROLE_NAMES, type Signers } from './keys.ts';
import { type Published, readRepository, requirePublished } from './repository.ts';
import { expiresDaysOf, isDue } from './sign.ts';

export type ShownRole = {
  readonly role: string;
  /** The newest version that is signed. */
  readonly version: number;
  /** Whether clients see that version; if not, the next refresh shows it to them. */
  readonly isVisible: boolean;
  readonly expires: string;
  readonly state: 'valid' | 'due' | 'expired';
  /** How many of the keys must sign. */
  readonly threshold: number;
  /** The file of a key is null where it is not in the folders that were given. */
  readonly keys: readonly { readonly id: string; readonly path: string | null }[];
  /** Whether the keys that are here are enough. */
  readonly maySign: boolean;
  /** Paths of targets it may speak for; null for roles that sign no releases. */
  readonly paths: readonly string[] | null;
  /** Who lets it sign. */
  readonly delegator: string;
  /** Releases it vouches for; null for roles that sign none. */
  readonly releases: number | null;
};

export type Shown = { readonly repository: string; readonly roles: readonly ShownRole[] };

export type ShowOptions = {
  readonly repository: string;
  /** Folders with keys, to say which are here; none is needed. */
  readonly keys: readonly string[];
  readonly clock: Clock;
};

/** Reads and verifies a repository. Throws VendorError `usage/tuf-repository`. */
export async function showRepository({ repository, keys, clock }: ShowOptions): Promise<Shown> {
  const published = requirePublished(await readRepository(repository));
  const ring = await openKeyRing(keys);
  return { repository, roles: [...topRoles(published, ring, clock), ...delegatedRoles(published, ring, clock)] };
}

type Facts = Pick<ShownRole, 'role' | 'version' | 'isVisible' | 'expires' | 'paths' | 'delegator' | 'releases'>;

function shown(
  facts: Facts,
  signers: Signers,
  ring: KeyRing,
  terms: { readonly clock: Clock; readonly days: number },
): ShownRole {
  const { clock, days } = terms;
  const isExpired = Date.parse(facts.expires) < clock.nowMs();
  const state = isExpired ? 'expired' : isDue(clock, facts.expires, days) ? 'due' : 'valid';
  return {
    ...facts,
    state,
    threshold: signers.threshold,
    keys: signers.keyIDs.map((id) => ({ id, path: ring.find(id)?.path ?? null })),
    maySign: presentSigners(ring, signers).length >= signers.threshold,
  };
}

function topRoles(published: Published, ring: KeyRing, clock: Clock): readonly ShownRole[] {
  const root = published.root.signed;
  const targets = published.roles.get('targets');
  const signed = {
    root,
    targets: targets?.metadata.signed,
    snapshot: published.visible?.snapshot.signed,
    timestamp: published.visible?.timestamp.signed,
  };
  return ROLE_NAMES.flatMap((role) => {
    const metadata = signed[role];
    const signers = root.roles[role];
    if (metadata === undefined || signers === undefined) return [];
    const isTargets = role === 'targets';
    const facts: Facts = {
      role,
      version: metadata.version,
      isVisible: isTargets ? (targets?.isVisible ?? false) : true,
      expires: metadata.expires,
      paths: isTargets ? ['*'] : null,
      delegator: 'root',
      releases: isTargets ? Object.keys(targets?.metadata.signed.targets ?? {}).length : null,
    };
    return [shown(facts, signers, ring, { clock, days: expiresDaysOf(root, role) })];
  });
}

function delegatedRoles(published: Published, ring: KeyRing, clock: Clock): readonly ShownRole[] {
  const days = expiresDaysOf(published.root.signed, 'targets');
  return [...published.roles].flatMap(([delegator, { metadata }]) => {
    const delegated = Object.values(metadata.signed.delegations?.roles ?? {});
    return delegated.flatMap((signers) => {
      const file = published.roles.get(signers.name);
      if (file === undefined) return [];
      const facts: Facts = {
        role: signers.name,
        version: file.metadata.signed.version,
        isVisible: file.isVisible,
        expires: file.metadata.signed.expires,
        paths: signers.paths ?? [],
        delegator,
        releases: Object.keys(file.metadata.signed.targets).length,
      };
      return [shown(facts, signers, ring, { clock, days })];
    });
  });
}
