// Which of the offered releases a plan takes: what is behind and wanted, with all that it requires, without what must not come. Pure.
import { satisfies } from 'semver';
import { FREE_TEXT_CHARS_MAX } from '../base/limits.ts';
import {
  type CompareVersions,
  findDrift,
  findInstalled,
  indexProducts,
  type ProductIndex,
} from '../inventory/drift.ts';
import { type Ecosystem, type Inventory, productKey } from '../model/inventory.ts';
import type { PlanItem } from '../model/plan.ts';
import { matchesProduct, type Policy } from '../model/policy.ts';
import type { LeftOut, Release } from '../model/release.ts';
import { heldText, holderOf, leaveOut } from './planner-offers.ts';

/** A version that was rolled back on this VM and is not tried again by itself; `item` is a plan item's id. */
export type FailedBefore = { readonly item: string; readonly version: string };

const FAILED_BEFORE_TEXT = 'installing it failed on this VM before and was rolled back';

export type SelectRequest = {
  readonly inventory: Inventory;
  /** One of each product. */
  readonly releases: readonly Release[];
  readonly policy: Policy;
  readonly compare: CompareVersions;
  readonly failedBefore: readonly FailedBefore[];
};

export type Selection = {
  readonly items: readonly PlanItem[];
  /**
   * What the VM has and would be newer, but is kept back by a hold, a failure before, or because something that it requires is.
   * What would be new to the VM is no loss of its own.
   */
  readonly blocked: readonly LeftOut[];
};

type Requirement = Release['requires'][number];

/** What may be planned, by id and by name. */
type Ground = {
  readonly index: ProductIndex;
  readonly candidates: ReadonlyMap<string, PlanItem>;
  readonly candidatesOf: (ecosystem: Ecosystem, product: string) => readonly PlanItem[];
  readonly isOffered: (ecosystem: Ecosystem, product: string) => boolean;
};

/** Chooses the items: closed under what releases require, and never with a product that is held. */
export function selectItems(request: SelectRequest): Selection {
  const { releases, policy } = request;
  const ground = layGround(request);
  const blocked = findBlocked(request, ground);
  const required = new Set(
    releases.flatMap((release) => release.requires.map(({ product }) => nameKey(ecosystemOfNeeds(release), product))),
  );
  const isWanted = ({ id, release, fromVersion }: PlanItem): boolean => {
    if (blocked.has(id)) return false;
    // A product that is new to the VM comes for the sake of what requires it. Of a Debian archive that does not say so,
    // by its contract it is among the answers only because something needs it, and then it is of that one's kind.
    const isNew = fromVersion === null;
    if (isNew && (release.ecosystem === 'bundle' || required.has(nameKey(release.ecosystem, release.product))))
      return false;
    return isAskedFor(policy, release);
  };
  const chosen = new Map<string, PlanItem>();
  const queue = [...ground.candidates.values()].filter(isWanted);
  for (let next = 0; next < queue.length; next += 1) {
    const item = queue[next];
    if (item === undefined || chosen.has(item.id)) continue;
    chosen.set(item.id, item);
    for (const { product } of item.release.requires) {
      const needed = ground.candidatesOf(ecosystemOfNeeds(item.release), product);
      queue.push(...needed.filter(({ id }) => !blocked.has(id)));
    }
  }
  const isLoss = (id: string) => ground.candidates.get(id)?.fromVersion !== null;
  const losses = [...blocked].filter(([id]) => isLoss(id)).map(([, { leftOut }]) => leftOut);
  return { items: [...chosen.values()], blocked: losses };
}

/** Whether the policy asks for updates of this kind and name. */
export function isAskedFor(policy: Policy, { kind, product }: Pick<Release, 'kind' | 'product'>): boolean {
  switch (policy.install) {
    case 'all':
      return true;
    case 'security':
      return kind === 'security';
    case 'listed':
      return matchesProduct(policy.packages, product);
    case 'none':
      return false;
    default:
      return policy.install satisfies never;
  }
}

const nameKey = (ecosystem: Ecosystem, product: string): string => `${ecosystem}/${product}`;

/** An agent's release may require bundles; everything else requires its own kind. */
function ecosystemOfNeeds(release: Release): Ecosystem {
  return release.ecosystem === 'agent' ? 'bundle' : release.ecosystem;
}

function layGround({ inventory, releases, compare }: SelectRequest): Ground {
  const index = indexProducts(inventory);
  const found = new Map([...findMissing(index, releases, compare), ...findBehind(inventory, releases, compare)]);
  // In an order of their own, so that equal offers give equal reasons however they are listed.
  const candidates = new Map([...found].sort(([a], [b]) => (a < b ? -1 : 1)));
  const byName = Map.groupBy(candidates.values(), ({ release }) => nameKey(release.ecosystem, release.product));
  const offered = new Set(releases.map(({ ecosystem, product }) => nameKey(ecosystem, product)));
  return {
    index,
    candidates,
    candidatesOf: (ecosystem, product) => byName.get(nameKey(ecosystem, product)) ?? [],
    isOffered: (ecosystem, product) => offered.has(nameKey(ecosystem, product)),
  };
}

type Block = {
  readonly leftOut: LeftOut;
  /** Nothing but a hold of the policy keeps it back: that is the operator's own decision. */
  readonly isOperators: boolean;
};

/** What must not come, and, until nothing changes any more, what requires it. Each round blocks at least one candidate. */
function findBlocked(request: SelectRequest, ground: Ground): ReadonlyMap<string, Block> {
  const blocked = new Map<string, Block>();
  for (const [id, item] of ground.candidates) {
    const block = blockedByItself(item, request, ground);
    if (block !== null) blocked.set(id, block);
  }
  for (let before = -1; before !== blocked.size; ) {
    before = blocked.size;
    for (const [id, { release }] of ground.candidates) {
      if (blocked.has(id) || release.requires.length === 0) continue;
      const block = blockedByNeed(release, blocked, ground);
      if (block !== null) blocked.set(id, block);
    }
  }
  return blocked;
}

function blockedByItself({ id, release, fromVersion }: PlanItem, request: SelectRequest, ground: Ground): Block | null {
  const { policy, failedBefore } = request;
  const block = (why: LeftOut['why'], reason: string, isOperators = false): Block => ({
    leftOut: leaveOut(release, why, reason),
    isOperators,
  });
  if (matchesProduct(policy.holds, release.product)) return block('held', heldText('policy', fromVersion), true);
  const isHeld = findInstalled(ground.index, release).some((product) => holderOf(product, policy) !== null);
  if (isHeld) return block('held', heldText('guest', fromVersion));
  const hasFailed = failedBefore.some(({ item, version }) => item === id && version === release.version);
  return hasFailed ? block('failed-before', FAILED_BEFORE_TEXT) : null;
}

function blockedByNeed(release: Release, blocked: ReadonlyMap<string, Block>, ground: Ground): Block | null {
  const ecosystem = ecosystemOfNeeds(release);
  for (const need of release.requires) {
    const candidates = ground.candidatesOf(ecosystem, need.product);
    if (candidates.some(({ id }) => !blocked.has(id))) continue;
    const [first] = candidates;
    if (first === undefined) {
      const isThere = findInstalled(ground.index, { ecosystem, product: need.product }).length > 0;
      if (isThere || ground.isOffered(ecosystem, need.product)) continue;
      const reason = `it needs ${needText(need)}, which is not on offer`;
      return { leftOut: leaveOut(release, 'unsatisfiable', reason), isOperators: false };
    }
    if (isMetAsItIs(need, ecosystem, ground)) continue;
    const cause = blocked.get(first.id);
    const isOperators = cause?.isOperators === true;
    const reason = `it needs ${needText(need)}, which stays: ${cause?.leftOut.reason ?? 'it is kept back'}`;
    return { leftOut: leaveOut(release, isOperators ? 'held' : 'unsatisfiable', cut(reason)), isOperators };
  }
  return null;
}

/** A long chain of causes is cut at its end. */
function cut(reason: string): string {
  return reason.length <= FREE_TEXT_CHARS_MAX ? reason : `${reason.slice(0, FREE_TEXT_CHARS_MAX - 1)}…`;
}

/** Whether what is installed meets the requirement. Only bundles' ranges can be read here; a Debian one says what must move. */
function isMetAsItIs({ product, range }: Requirement, ecosystem: Ecosystem, { index }: Ground): boolean {
  if (ecosystem !== 'bundle') return false;
  const installed = findInstalled(index, { ecosystem, product });
  return installed.some(
    (one) => one.state === 'installed' && satisfies(one.version, range, { includePrerelease: true }),
  );
}

const needText = ({ product, range }: Requirement): string => (range === '*' ? product : `${product} (${range})`);

type Entry = readonly [string, PlanItem];

/** Once for each release, also if the guest lists a product twice. */
function findBehind(inventory: Inventory, releases: readonly Release[], compare: CompareVersions): readonly Entry[] {
  const byKey = new Map(releases.map((release) => [productKey(release), release]));
  return findDrift(inventory, releases, compare).flatMap((entry) => {
    const id = productKey({ ...entry, arch: entry.arch ?? undefined });
    const release = byKey.get(id);
    return release === undefined ? [] : [[id, { id, fromVersion: entry.installed, release }] as const];
  });
}

/**
 * By its contract a vendor names a product that the VM has not only if something it has needs it. One that it has for another
 * architecture (a package that became `all`) is replaced if that is older.
 */
function findMissing(index: ProductIndex, releases: readonly Release[], compare: CompareVersions): readonly Entry[] {
  return releases.flatMap((release) => {
    if (findInstalled(index, release).length > 0) return [];
    const { arch, ...anyArch } = release;
    const [other] = findInstalled(index, anyArch);
    if (other !== undefined && arch !== 'all') return [];
    if (other !== undefined && compare(release.ecosystem, other.version, release.version) >= 0) return [];
    const id = productKey(release);
    return [[id, { id, fromVersion: other?.version ?? null, release }] as const];
  });
}
