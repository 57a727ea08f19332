// Compares what a VM has with what its vendors have, and makes the plan of a run (A7: the host decides, not the guest).

import type { Clock } from '../base/clock.ts';
import { describeError, PratiqueError } from '../base/errors.ts';
import { PLAN_ATTEMPTS_MAX, PLAN_ITEMS_MAX, PLAN_RETRY_DELAY_MS, VENDOR_RECHECK_MS } from '../base/limits.ts';
import { type CompareVersions, findDrift, findInstalled, indexProducts } from '../inventory/drift.ts';
import type { RunId, VmId } from '../model/ids.ts';
import { type Ecosystem, type InstalledProduct, type Inventory, productKey } from '../model/inventory.ts';
import type { Plan, PlanItem } from '../model/plan.ts';
import type { Policy } from '../model/policy.ts';
import type { Trouble } from '../model/quarantine.ts';
import type { Release } from '../model/release.ts';
import type { Offered, Vendor } from '../vendor/vendor.ts';

export type PlanRequest = {
  readonly vm: VmId;
  readonly run: RunId;
  readonly inventory: Inventory;
  readonly policy: Policy;
  readonly vendors: readonly Vendor[];
  readonly clock: Clock;
  readonly signal?: AbortSignal;
};

export type PlanAnswer =
  | { readonly kind: 'plan'; readonly plan: Plan }
  | { readonly kind: 'refused'; readonly reason: Trouble };

/** Makes the plan, asking each vendor that matters for this VM. Vendor trouble and policy refusals are answers; bugs throw. */
export async function makePlan(request: PlanRequest): Promise<PlanAnswer> {
  const chosen = chooseVendors(request);
  if (chosen.kind === 'refused') return chosen;
  const checks = await Promise.all(chosen.vendors.map((vendor) => checkVendor(vendor, request)));
  const ill = checks.find((check) => check.kind === 'refused');
  if (ill?.kind === 'refused') return ill;
  const compare = comparisonOf(chosen.vendors);
  const offered = await latestOf(chosen.vendors, request.inventory);
  const releases = newestOfEach(offered.releases, compare);
  const items = [...selectItems(request.inventory, releases, request.policy, compare)];
  const refusal =
    refuseUncovered(request, chosen.vendors, releases) ??
    (await refuseHeld(request.inventory, chosen.vendors, compare)) ??
    refuseItems(items, request.inventory);
  if (refusal !== null) return { kind: 'refused', reason: refusal };
  items.sort(inOrderOfInstallation);
  const vendors = chosen.vendors.map((vendor) => {
    const status = vendor.status();
    return { vendor: vendor.name, checkedAtMs: status.checkedAtMs ?? 0, fresh: status.isFresh };
  });
  return { kind: 'plan', plan: { vm: request.vm, run: request.run, items, leftOut: [...offered.leftOut], vendors } };
}

type Chosen =
  | { readonly kind: 'chosen'; readonly vendors: readonly Vendor[] }
  | { readonly kind: 'refused'; readonly reason: Trouble };

/** The vendors the policy names, else those whose ecosystem this VM has something of. A VM for which nobody speaks is not up to date. */
function chooseVendors(request: PlanRequest): Chosen {
  const { policy, vendors, inventory } = request;
  const missing = policy.vendors.find((name) => !vendors.some((vendor) => vendor.name === name));
  if (missing !== undefined) {
    return {
      kind: 'refused',
      reason: { kind: 'vendor-unavailable', vendor: missing, detail: 'it is named by the policy but not configured' },
    };
  }
  const isNamed = (vendor: Vendor) => policy.vendors.includes(vendor.name);
  const fits = (vendor: Vendor) => inventory.products.some((product) => product.ecosystem === vendor.ecosystem);
  const chosen = policy.vendors.length > 0 ? vendors.filter(isNamed) : vendors.filter(fits);
  if (chosen.length > 0) return { kind: 'chosen', vendors: chosen };
  const ecosystems =
    [...new Set(inventory.products.map((product) => product.ecosystem))].join(', ') || 'nothing we know';
  return {
    kind: 'refused',
    reason: {
      kind: 'plan-refused',
      code: 'no-vendor',
      detail: `no configured vendor offers software for this VM (it has: ${ecosystems})`,
    },
  };
}

type Check = { readonly kind: 'ok' } | { readonly kind: 'refused'; readonly reason: Trouble };

/** Metadata younger than VENDOR_RECHECK_MS is taken as it is; older is refreshed; what cannot be refreshed is believed up to the policy's age. */
async function checkVendor(vendor: Vendor, request: PlanRequest): Promise<Check> {
  const { clock, policy, signal } = request;
  const ageMs = () => clock.nowMs() - (vendor.status().checkedAtMs ?? Number.NEGATIVE_INFINITY);
  if (vendor.status().isFresh && ageMs() >= 0 && ageMs() < VENDOR_RECHECK_MS) return { kind: 'ok' };
  let trouble: unknown;
  for (let attempt = 1; attempt <= PLAN_ATTEMPTS_MAX; attempt += 1) {
    try {
      await vendor.refresh(signal === undefined ? {} : { signal });
      if (vendor.status().isFresh) return { kind: 'ok' };
      trouble = new PratiqueError('vendor-ill/stale', 'its metadata is out of date');
      break;
    } catch (error) {
      if (signal?.aborted) throw error;
      trouble = error;
      const isLast = attempt === PLAN_ATTEMPTS_MAX || vendor.status().checkedAtMs !== null;
      if (isLast) break;
      await clock.sleep(PLAN_RETRY_DELAY_MS, signal);
    }
  }
  const isBelieved = ageMs() >= 0 && ageMs() <= policy.metadataAgeMaxMs;
  if (isBelieved && vendor.status().checkedAtMs !== null) return { kind: 'ok' };
  return {
    kind: 'refused',
    reason: { kind: 'vendor-unavailable', vendor: vendor.name, detail: describeError(trouble) },
  };
}

/** One order of versions for each ecosystem, as its vendors have it. */
export function comparisonOf(vendors: readonly Vendor[]): CompareVersions {
  return (ecosystem, a, b) => {
    const vendor =
      vendors.find((each) => each.ecosystem === ecosystem) ?? vendors.find((each) => each.ecosystem === 'bundle');
    if (vendor === undefined)
      throw new Error(`assertion failed: versions of ${ecosystem} are compared without a vendor`);
    return vendor.compareVersions(a, b);
  };
}

async function latestOf(vendors: readonly Vendor[], inventory: Inventory): Promise<Offered> {
  const lists: Offered[] = [];
  for (const vendor of vendors) lists.push(await vendor.latest(inventory));
  return { releases: lists.flatMap((list) => list.releases), leftOut: lists.flatMap((list) => list.leftOut) };
}

/** One release of each product: where several vendors offer it, the newest, and of equal ones the first. */
function newestOfEach(releases: readonly Release[], compare: CompareVersions): readonly Release[] {
  const newest = new Map<string, Release>();
  for (const release of releases) {
    const known = newest.get(productKey(release));
    if (known === undefined || compare(release.ecosystem, release.version, known.version) > 0)
      newest.set(productKey(release), release);
  }
  return [...newest.values()];
}

/** What is behind and wanted, with all that it requires; nothing new comes for the sake of what is not wanted. */
function selectItems(
  inventory: Inventory,
  releases: readonly Release[],
  policy: Policy,
  compare: CompareVersions,
): readonly PlanItem[] {
  const candidates = new Map([
    ...findMissing(inventory, releases, compare),
    ...findBehind(inventory, releases, compare),
  ]);
  const isWanted = ({ release, fromVersion }: PlanItem): boolean => {
    // A new bundle is wanted by what requires it; Debian's index knows relations that its releases do not carry, and marks
    // what a security update needs as one.
    if (fromVersion === null && release.ecosystem === 'bundle') return false;
    return policy.install === 'all' || release.kind === 'security';
  };
  const chosen = new Map<string, PlanItem>();
  const queue = [...candidates.values()].filter(isWanted);
  for (let item = queue.shift(); item !== undefined; item = queue.shift()) {
    if (chosen.has(item.id)) continue;
    chosen.set(item.id, item);
    const { requires } = item.release;
    const needed = new Set(requires.map(({ product }) => product));
    for (const one of candidates.values()) {
      if (one.release.ecosystem === 'bundle' && needed.has(one.release.product)) queue.push(one);
    }
  }
  return [...chosen.values()];
}

/** Once for each release, also if the guest lists a product twice. */
function findBehind(
  inventory: Inventory,
  releases: readonly Release[],
  compare: CompareVersions,
): readonly (readonly [string, PlanItem])[] {
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
function findMissing(
  inventory: Inventory,
  releases: readonly Release[],
  compare: CompareVersions,
): readonly (readonly [string, PlanItem])[] {
  const index = indexProducts(inventory);
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

/**
 * A VM that no vendor speaks for is not up to date: a vendor of another release of the system answers with nothing, and so does
 * one that never heard of a bundle. Where the policy names vendors, only what is theirs to know is asked for.
 */
function refuseUncovered(
  { inventory, policy }: PlanRequest,
  vendors: readonly Vendor[],
  releases: readonly Release[],
): Trouble | null {
  const refuse = (detail: string): Trouble => ({ kind: 'plan-refused', code: 'no-vendor', detail });
  // The agent comes from this project; a host that offers no newer one says nothing against it.
  const ecosystems = new Set(inventory.products.map(({ ecosystem }) => ecosystem).filter((each) => each !== 'agent'));
  const isAsked = (ecosystem: Ecosystem) =>
    policy.vendors.length === 0 || vendors.some((vendor) => vendor.ecosystem === ecosystem);
  const covered = new Set(releases.map(({ ecosystem, product }) => `${ecosystem}/${product}`));
  const isCovered = ({ ecosystem, product }: InstalledProduct) => covered.has(`${ecosystem}/${product}`);
  if (!inventory.products.some(isCovered)) return refuse('no configured vendor knows anything that this VM has');
  for (const ecosystem of [...ecosystems].filter(isAsked)) {
    const own = inventory.products.filter((product) => product.ecosystem === ecosystem);
    if (ecosystem === 'bundle') {
      const alone = own.find((product) => !isCovered(product));
      if (alone !== undefined) return refuse(`no configured vendor offers ${alone.product} for this VM`);
    } else if (!own.some(isCovered)) {
      const { id, versionId } = inventory.os;
      return refuse(`no configured vendor offers ${ecosystem} software for ${id} ${versionId}`);
    }
  }
  return null;
}

/** Whoever holds a package back holds back its security updates, too; a VM with a known hole is not plugged in. */
async function refuseHeld(
  inventory: Inventory,
  vendors: readonly Vendor[],
  compare: CompareVersions,
): Promise<Trouble | null> {
  const held = new Set(inventory.products.filter((product) => product.held === true).map(productKey));
  if (held.size === 0) return null;
  const free: Inventory = {
    ...inventory,
    products: inventory.products.map((product) => ({ ...product, held: false })),
  };
  const behind = findDrift(free, newestOfEach((await latestOf(vendors, free)).releases, compare), compare);
  const holes = behind.filter(
    (entry) =>
      entry.kind === 'security' &&
      entry.installed !== null &&
      (held.has(productKey({ ...entry, arch: entry.arch ?? undefined })) ||
        held.has(productKey({ ...entry, arch: undefined }))),
  );
  const [first] = holes;
  if (first === undefined) return null;
  const detail = `${first.product} is held at ${first.installed ?? ''}, but ${first.latest} mends a hole (${holes.length} in all)`;
  return { kind: 'plan-refused', code: 'held', detail };
}

function refuseItems(items: readonly PlanItem[], inventory: Inventory): Trouble | null {
  if (items.length > PLAN_ITEMS_MAX) {
    return {
      kind: 'plan-refused',
      code: 'too-many-items',
      detail: `${items.length} updates are missing, more than ${PLAN_ITEMS_MAX}; rebuild the VM from a newer image`,
    };
  }
  for (const { id, release } of items) {
    if (release.license !== undefined) {
      return { kind: 'license-refused', license: release.license, code: 'NO_LICENSE' };
    }
    const { install } = release;
    if (install.action === 'bundle' && !inventory.abilities.compressions.includes(install.compression)) {
      return {
        kind: 'plan-refused',
        code: 'cannot-unpack',
        detail: `${id} is packed with ${install.compression}, which this guest cannot unpack`,
      };
    }
  }
  return null;
}

/** New products before what requires them, the agent last; otherwise by id, so that equal plans are equal. */
function inOrderOfInstallation(a: PlanItem, b: PlanItem): number {
  const rank = (item: PlanItem) => (item.release.ecosystem === 'agent' ? 2 : item.fromVersion === null ? 0 : 1);
  return rank(a) - rank(b) || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
}
