// Which releases one VM should have: the newest that fit it, with what they require. Pure.
import { compareBuild, parse as parseSemver, satisfies } from 'semver';
import type { Inventory } from '../../model/inventory.ts';
import type { Release } from '../../model/release.ts';
import { VendorError } from '../errors.ts';
import { isVersion, type Offer } from './offer.ts';

/**
 * Compares two semantic versions. Build metadata, which has no precedence of its own (semver.org 10), decides last, so
 * that a rebuilt release is newer than what it replaces. Throws VendorError `usage/version` on anything else.
 */
export function compareSemver(a: string, b: string): number {
  for (const version of [a, b]) {
    if (!isVersion(version)) {
      throw new VendorError('usage/version', `"${version}" is not a semantic version`, {
        next: 'versions of bundles have the form 1.2.3',
      });
    }
  }
  return compareBuild(a, b);
}

/** The newest release of every product and architecture, sorted by product. */
export function newestOfAll(offers: readonly Offer[]): readonly Release[] {
  const newest = new Map<string, Release>();
  for (const { release } of offers) {
    const key = `${release.ecosystem}/${release.product}:${release.arch ?? ''}`;
    const known = newest.get(key);
    if (known === undefined || compareSemver(release.version, known.version) > 0) newest.set(key, release);
  }
  return sorted(newest.values());
}

/**
 * The newest release of each installed product and of all they require, as one consistent set: a release whose
 * requirements nothing on offer can meet is passed over for the next older one. Pre-releases are for VMs that already
 * run a pre-release of that product.
 */
export function chooseReleases(offers: readonly Offer[], inventory: Inventory): readonly Release[] {
  const candidates = candidatesFor(offers, inventory);
  const banned = new Set<Release>();
  // Each round without a set bans one release, so the rounds are bounded by the offers.
  for (let round = 0; round <= offers.length; round += 1) {
    const result = tryChoose(candidates, inventory, banned);
    if (result.kind === 'chosen') return sorted(result.releases);
    banned.add(result.release);
  }
  return [];
}

type Candidates = ReadonlyMap<string, readonly Release[]>;

/** Fitting releases per `ecosystem/product`, newest first. */
function candidatesFor(offers: readonly Offer[], inventory: Inventory): Candidates {
  const { os } = inventory;
  const previews = new Set(inventory.products.filter(({ version }) => isPreview(version)).map(keyOf));
  // The agent has a place of its own in the inventory, whatever name a vendor gives it.
  const mayPreview = (release: Release) =>
    release.ecosystem === 'agent' ? isPreview(inventory.agent.version) : previews.has(keyOf(release));
  const found = new Map<string, Release[]>();
  for (const offer of offers) {
    const { release } = offer;
    const fits = (offer.os?.includes(os.id) ?? true) && (release.arch === undefined || release.arch === os.arch);
    if (!fits || (isPreview(release.version) && !mayPreview(release))) continue;
    const list = found.get(keyOf(release));
    if (list === undefined) found.set(keyOf(release), [release]);
    else list.push(release);
  }
  for (const list of found.values()) list.sort((a, b) => compareSemver(b.version, a.version));
  return found;
}

function isPreview(version: string): boolean {
  return (parseSemver(version)?.prerelease.length ?? 0) > 0;
}

type Attempt =
  | { readonly kind: 'chosen'; readonly releases: Iterable<Release> }
  /** This release cannot be had, because something it requires cannot. */
  | { readonly kind: 'impossible'; readonly release: Release };

type Requirement = { readonly range: string; readonly by: Release };

function tryChoose(candidates: Candidates, inventory: Inventory, banned: ReadonlySet<Release>): Attempt {
  const chosen = new Map<string, Release>();
  const requirements = new Map<string, Requirement[]>();
  // Every guest that reports has an agent, though it lists none among its products.
  const agents = [...candidates.keys()].filter((key) => key.startsWith('agent/'));
  const waiting = [...inventory.products.map(keyOf).filter((key) => candidates.has(key)), ...agents];
  for (let key = waiting.pop(); key !== undefined; key = waiting.pop()) {
    const needs = requirements.get(key) ?? [];
    const release = candidates
      .get(key)
      ?.find((one) => !banned.has(one) && needs.every(({ range }) => isWithin(one.version, range)));
    if (release === undefined) {
      const last = needs.at(-1);
      // Installed, not required by anybody, and every release of it impossible: this VM keeps what it has.
      if (last === undefined) continue;
      return { kind: 'impossible', release: last.by };
    }
    const before = chosen.get(key);
    if (before === release) continue;
    // Another product rules out what was chosen before, so what that one required is moot: begin again without it.
    if (before !== undefined) return { kind: 'impossible', release: before };
    chosen.set(key, release);
    for (const { product, range } of release.requires) {
      const required = `bundle/${product}`;
      requirements.set(required, [...(requirements.get(required) ?? []), { range, by: release }]);
      waiting.push(required);
    }
  }
  return { kind: 'chosen', releases: chosen.values() };
}

function isWithin(version: string, range: string): boolean {
  return satisfies(version, range, { includePrerelease: true });
}

function keyOf(product: { readonly ecosystem: string; readonly product: string }): string {
  return `${product.ecosystem}/${product.product}`;
}

function sorted(releases: Iterable<Release>): readonly Release[] {
  return [...releases].sort((a, b) => (a.product < b.product ? -1 : a.product > b.product ? 1 : 0));
}
