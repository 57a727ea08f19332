// What the vendors of a VM have for it: with what is held kept back, and, for the record, without that.
import { type CompareVersions, findDrift } from '../inventory/drift.ts';
import { type InstalledProduct, type Inventory, productKey } from '../model/inventory.ts';
import { matchesProduct, type Policy } from '../model/policy.ts';
import type { LeftOut, Release } from '../model/release.ts';
import type { Offered, Vendor } from '../vendor/vendor.ts';

/** Who holds a product at its version. */
export type Holder = 'policy' | 'guest';

export type Offers = {
  /** What can be had with every hold kept: one release of each product, the newest. */
  readonly releases: readonly Release[];
  readonly leftOut: readonly LeftOut[];
  /** What there would be if the policy, or the guest, held nothing: one answer for each that holds something. */
  readonly without: Readonly<Partial<Record<Holder, readonly Release[]>>>;
};

/** Who holds this product; the operator's word counts more than the guest's. */
export function holderOf(product: InstalledProduct, policy: Policy): Holder | null {
  if (matchesProduct(policy.holds, product.product)) return 'policy';
  return product.held === true ? 'guest' : null;
}

/** The inventory as the vendors get it: what the policy holds is marked like what the guest holds. */
export function markHeld(inventory: Inventory, policy: Policy, unless: Holder | null = null): Inventory {
  const products = inventory.products.map((product) => {
    const holder = holderOf(product, policy);
    const held = holder !== null && holder !== unless;
    return held === (product.held === true) ? product : { ...product, held };
  });
  return { ...inventory, products };
}

/** Asks each vendor once, and once more for each holder, so that what a hold keeps back is known. */
export async function gatherOffers(
  vendors: readonly Vendor[],
  inventory: Inventory,
  policy: Policy,
  compare: CompareVersions,
): Promise<Offers> {
  const holders = new Set(inventory.products.map((product) => holderOf(product, policy)));
  const ask = async (unless: Holder | null): Promise<Offered> =>
    await latestOf(vendors, markHeld(inventory, policy, unless));
  const offered = await ask(null);
  const without: Partial<Record<Holder, readonly Release[]>> = {};
  for (const holder of ['policy', 'guest'] as const) {
    if (holders.has(holder)) without[holder] = newestOfEach((await ask(holder)).releases, inventory, compare);
  }
  return { releases: newestOfEach(offered.releases, inventory, compare), leftOut: offered.leftOut, without };
}

async function latestOf(vendors: readonly Vendor[], inventory: Inventory): Promise<Offered> {
  const lists: Offered[] = [];
  for (const vendor of vendors) lists.push(await vendor.latest(inventory));
  return { releases: lists.flatMap((list) => list.releases), leftOut: lists.flatMap((list) => list.leftOut) };
}

/**
 * One release of each product: where several vendors offer it, the newest, and of equal ones the first. It is a security update if
 * any of them has one above the installed version: an archive without its security suite does not know what its versions mend.
 */
function newestOfEach(
  releases: readonly Release[],
  inventory: Inventory,
  compare: CompareVersions,
): readonly Release[] {
  const security = newestByKey(
    releases.filter(({ kind }) => kind === 'security'),
    compare,
  );
  const pending = findDrift(inventory, [...security.values()], compare);
  const mends = new Set(pending.map((entry) => productKey({ ...entry, arch: entry.arch ?? undefined })));
  return [...newestByKey(releases, compare)].map(([key, release]) =>
    mends.has(key) ? { ...release, kind: 'security' } : release,
  );
}

function newestByKey(releases: readonly Release[], compare: CompareVersions): ReadonlyMap<string, Release> {
  const newest = new Map<string, Release>();
  for (const release of releases) {
    const known = newest.get(productKey(release));
    if (known === undefined || compare(release.ecosystem, release.version, known.version) > 0)
      newest.set(productKey(release), release);
  }
  return newest;
}

/** The newer versions that a holder keeps back, each with the installed version it is kept at. */
export function findHeldBack(
  holder: Holder,
  offers: Offers,
  inventory: Inventory,
  policy: Policy,
  compare: CompareVersions,
): readonly LeftOut[] {
  const releases = offers.without[holder];
  if (releases === undefined) return [];
  const held = new Set(
    inventory.products
      .filter((product) => holderOf(product, policy) === holder)
      .map(({ ecosystem, product }) => `${ecosystem}/${product}`),
  );
  const ofHeld = releases.filter(({ ecosystem, product }) => held.has(`${ecosystem}/${product}`));
  const byKey = new Map(ofHeld.map((release) => [productKey(release), release]));
  return findDrift(inventory, ofHeld, compare).flatMap((behind) => {
    const release = byKey.get(productKey({ ...behind, arch: behind.arch ?? undefined }));
    if (release === undefined || behind.installed === null) return [];
    return [leaveOut(release, 'held', heldText(holder, behind.installed))];
  });
}

/** Why a product stays where it is, in words. */
export function heldText(holder: Holder, installed: string | null): string {
  const where = installed === null ? 'kept out' : `held at ${installed}`;
  return holder === 'policy' ? `it is ${where} by this VM's policy` : `it is ${where} in the guest`;
}

/** A release as one that is left out. */
export function leaveOut(release: Release, why: LeftOut['why'], reason: string): LeftOut {
  const { vendor, ecosystem, product, version, arch, kind } = release;
  return { vendor, ecosystem, product, version, ...(arch === undefined ? {} : { arch }), kind, why, reason };
}
