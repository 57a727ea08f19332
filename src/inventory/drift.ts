// What of an inventory is behind what the vendors have. Pure: the host decides that a version is old, not the guest (A7).
import type { Digest } from '../base/digest-text.ts';
import type { Ecosystem, InstalledProduct, Inventory } from '../model/inventory.ts';
import type { Kind, LeftOut, Release } from '../model/release.ts';

/** Orders two version strings of an ecosystem: negative, zero, positive. Throws on a version it cannot read. */
export type CompareVersions = (ecosystem: Ecosystem, a: string, b: string) => number;

/** A product that is not at its latest version. */
export type Behind = {
  readonly ecosystem: Ecosystem;
  readonly product: string;
  /** Of the release: null where it fits every architecture. */
  readonly arch: string | null;
  /** Null: not installed, but another product needs it. */
  readonly installed: string | null;
  readonly latest: string;
  readonly kind: Kind;
  readonly advisories: readonly string[];
  readonly vendor: string;
  /** `broken`: half-installed at whatever version; `unreadable`: a version that cannot be compared, so it is not believed. */
  readonly why: 'older' | 'broken' | 'unreadable' | 'missing';
  /** Why it stays behind, where something keeps it back. */
  readonly remark?: string;
};

type Wanted = {
  readonly ecosystem: Ecosystem;
  readonly product: string;
  readonly arch?: string;
};

/** An inventory's products by ecosystem and name: made once, because a plan of 2,000 items asks of 20,000 products. */
export type ProductIndex = {
  readonly byName: ReadonlyMap<string, readonly InstalledProduct[]>;
  readonly agentVersion: string;
  readonly agentDigest: Digest | null;
};

/** Makes the index. */
export function indexProducts(inventory: Inventory): ProductIndex {
  const byName = Map.groupBy(inventory.products, (product) => `${product.ecosystem}/${product.product}`);
  const { version, digest } = inventory.agent;
  return { byName, agentVersion: version, agentDigest: digest };
}

/**
 * The installed products that a release is about. An architecture counts only where both sides name one. More than one
 * match is possible (a guest may list a product twice), and each of them has to be right.
 */
export function findInstalled(index: ProductIndex, wanted: Wanted): readonly InstalledProduct[] {
  const named = index.byName.get(`${wanted.ecosystem}/${wanted.product}`) ?? [];
  const listed = named.filter(({ arch }) => arch === undefined || wanted.arch === undefined || arch === wanted.arch);
  if (wanted.ecosystem !== 'agent') return listed;
  const { ecosystem, product } = wanted;
  return [{ ecosystem, product, version: index.agentVersion, state: 'installed' }, ...listed];
}

/** What is behind, in the order of the releases (one newest release per product, as a vendor's `latest` gives them). */
export function findDrift(
  inventory: Inventory,
  releases: readonly Release[],
  compare: CompareVersions,
): readonly Behind[] {
  const index = indexProducts(inventory);
  const required = new Set(releases.flatMap((release) => release.requires.map((need) => need.product)));
  return releases.flatMap((release) => {
    const installed = findInstalled(index, release);
    if (installed.length === 0) return required.has(release.product) ? [behind(release, null, 'missing')] : [];
    return installed.flatMap((product) => {
      const why = whyBehind(product, release, compare);
      return why === null ? [] : [behind(release, product, why)];
    });
  });
}

/** What a vendor leaves out, for each installed product that it is about. */
export function behindLeftOut(leftOut: LeftOut, index: ProductIndex): readonly Behind[] {
  const { ecosystem, product, arch, version, kind, vendor, reason } = leftOut;
  return findInstalled(index, leftOut).map((installed) => ({
    ecosystem,
    product,
    arch: arch ?? null,
    installed: installed.version,
    latest: version,
    kind,
    advisories: [],
    vendor,
    why: 'older',
    remark: reason,
  }));
}

function whyBehind(product: InstalledProduct, release: Release, compare: CompareVersions): Behind['why'] | null {
  if (product.state === 'broken') return 'broken';
  try {
    return compare(release.ecosystem, product.version, release.version) < 0 ? 'older' : null;
  } catch {
    return 'unreadable';
  }
}

function behind(release: Release, product: InstalledProduct | null, why: Behind['why']): Behind {
  return {
    ecosystem: release.ecosystem,
    product: release.product,
    arch: release.arch ?? null,
    installed: product?.version ?? null,
    latest: release.version,
    kind: release.kind,
    advisories: release.advisories,
    vendor: release.vendor,
    why,
  };
}
