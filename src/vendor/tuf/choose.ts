// Which releases one VM should have: the newest that fit it and go together, and why newer ones do not. Pure.
import type { InstalledProduct, Inventory } from '../../model/inventory.ts';
import type { Release } from '../../model/release.ts';
import type { Offered } from '../vendor.ts';
import { type Choice, choiceOf, explainLeftOut, keyOf, type Subject } from './explain.ts';
import type { Offer } from './offer.ts';
import { compareSemver, isNewerVersion, isPreview, severestKind, severityOf } from './order.ts';
import { groupsOf, isWithin, resolve } from './resolve.ts';

export { compareSemver } from './order.ts';

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
 * The newest release of each installed product and of all they require, as one consistent set. Where not all can be the
 * newest, the product with the most severe pending update goes first, then by name; what is installed and works is never
 * broken for another one's sake. Every newer version that is done without is in `leftOut` with its reason.
 * Pre-releases are for VMs that already run a pre-release of that product.
 */
export function chooseReleases(offers: readonly Offer[], inventory: Inventory): Offered {
  const candidates = candidatesFor(offers, inventory);
  const subjects = subjectsOf(candidates, inventory);
  const options = new Map<string, readonly Choice[]>();
  for (const [key, list] of candidates) if (!subjects.has(key)) options.set(key, list.map(choiceOf));
  for (const [key, subject] of subjects) options.set(key, choicesOf(subject, subjects));
  const wanted = [...subjects.values()].sort(byImportance).map(({ key }) => key);
  const chosen = new Map<string, Choice>();
  const entangled = new Set<string>();
  for (const group of groupsOf({ options, wanted })) {
    const solution = resolve(group);
    if (solution.kind === 'solved') {
      for (const [key, choice] of solution.chosen) chosen.set(key, choice);
      continue;
    }
    // All products as they are is always a solution, so this is a puzzle too large to be honest: nothing of it changes.
    for (const key of group.wanted) {
      entangled.add(key);
      const stays = group.options.get(key)?.at(-1);
      if (stays !== undefined) chosen.set(key, stays);
    }
  }
  const leftOut = explainLeftOut({ chosen, options, subjects, entangled });
  return { releases: sorted(withKinds(chosen, subjects)), leftOut };
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

/** The VM's products, also those of which nothing is on offer: others may require them. */
function subjectsOf(candidates: Candidates, inventory: Inventory): ReadonlyMap<string, Subject> {
  // Every guest that reports has an agent, though it lists none among its products.
  const agents = [...candidates].flatMap(([key, [release]]): InstalledProduct[] =>
    key.startsWith('agent/') && release !== undefined
      ? [{ ecosystem: 'agent', product: release.product, version: inventory.agent.version, state: 'installed' }]
      : [],
  );
  const subjects = new Map<string, Subject>();
  for (const installed of [...agents, ...inventory.products.filter(({ ecosystem }) => ecosystem === 'bundle')]) {
    const key = keyOf(installed);
    const known = subjects.get(key);
    // A guest may list a product twice; the oldest of them decides what is newer.
    if (known !== undefined && !isNewerVersion(known.installed.version, installed.version)) continue;
    const list = candidates.get(key) ?? [];
    const newer = list.filter(({ version }) => isNewerVersion(version, installed.version));
    const same = list.find(({ version }) => version === installed.version) ?? null;
    // A VM that is ahead of what is on offer is known all the same.
    const shown = same ?? (newer.length === 0 ? (list[0] ?? null) : null);
    subjects.set(key, { key, installed, newer, same, shown });
  }
  return subjects;
}

/** What this product may become, the newest first and as it is last. Held products stay. */
function choicesOf({ installed, newer, same }: Subject, subjects: ReadonlyMap<string, Subject>): readonly Choice[] {
  const asItIs: Choice = { version: installed.version, needs: [], release: null };
  const upgrades = installed.held === true ? [] : newer.map(choiceOf);
  if (same === null) return [...upgrades, asItIs];
  const stays = choiceOf(same);
  // What works on this VM goes on working: its requirements bind the others. What lacks something already is mended if
  // that is possible, and does not stand in the way if it is not.
  const isMet = stays.needs.every(({ key, range }) => isWithin(subjects.get(key)?.installed.version ?? '', range));
  return isMet ? [...upgrades, stays] : [...upgrades, stays, asItIs];
}

function byImportance(a: Subject, b: Subject): number {
  return severityOf(a.newer) - severityOf(b.newer) || (a.key < b.key ? -1 : 1);
}

/** The chosen releases, each as severe as the most severe one it brings; what a security update requires is part of it. */
function withKinds(chosen: ReadonlyMap<string, Choice>, subjects: ReadonlyMap<string, Subject>): readonly Release[] {
  const urgent: string[] = [];
  const releases = new Map<string, Release>();
  for (const [key, choice] of chosen) {
    const release = choice.release ?? subjects.get(key)?.shown ?? null;
    if (release === null) continue;
    const skipped = subjects.get(key)?.newer.filter(({ version }) => !isNewerVersion(version, release.version)) ?? [];
    const kind = severestKind([...skipped, release]) ?? release.kind;
    releases.set(key, { ...release, kind });
    if (kind === 'security' && subjects.get(key)?.installed.version !== release.version) urgent.push(key);
  }
  // The list grows on the way; each product comes in once.
  for (const key of urgent) {
    for (const need of chosen.get(key)?.needs ?? []) {
      const release = releases.get(need.key);
      if (release === undefined || urgent.includes(need.key)) continue;
      if (isWithin(subjects.get(need.key)?.installed.version ?? '', need.range)) continue;
      releases.set(need.key, { ...release, kind: 'security' });
      urgent.push(need.key);
    }
  }
  return [...releases.values()];
}

function sorted(releases: Iterable<Release>): readonly Release[] {
  return [...releases].sort((a, b) => (a.product < b.product ? -1 : a.product > b.product ? 1 : 0));
}
