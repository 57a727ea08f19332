// Which of the offered packages one VM should have: apt's candidate of each it has, as far as their relations can be met.
import { SELECT_ROUNDS_MAX } from '../../base/limits.ts';
import type { InstalledProduct } from '../../model/inventory.ts';
import type { Kind } from '../../model/release.ts';
import { type Catalog, isSecuritySuite, type Member } from './catalog.ts';
import type { OfferedPackage } from './packages-file.ts';
import type { Alternatives } from './relations.ts';
import { type Requirement, requirementsOf } from './requires.ts';
import { compareDebianVersions } from './version.ts';
import { World } from './world.ts';

export type Chosen = {
  readonly offer: OfferedPackage;
  readonly kind: Kind;
  /** Other chosen packages that must be installed together with it. */
  readonly requires: readonly Requirement[];
};
export type LeftOut = {
  readonly name: string;
  readonly version: string;
  readonly arch: string;
  readonly kind: Kind;
  readonly why: 'unsatisfiable' | 'held';
  readonly reason: string;
};
export type Selection = { readonly chosen: readonly Chosen[]; readonly leftOut: readonly LeftOut[] };

/** Security if any version above the installed one, up to the offered one, came through a security suite: a point release includes it. */
function kindOf(offers: readonly OfferedPackage[], installedVersion: string, offeredVersion: string): Kind {
  const isSecurity = offers.some(
    ({ suite, version }) =>
      isSecuritySuite(suite) &&
      compareDebianVersions(version, installedVersion) > 0 &&
      compareDebianVersions(version, offeredVersion) <= 0,
  );
  return isSecurity ? 'security' : 'fix';
}

/**
 * An installed package, with the relations the archive knows for exactly its version. Of one that the archive no longer
 * has, only what another version of it tells: the names it provides, and that it is bound to the version of its siblings.
 */
function installedMember(product: InstalledProduct, catalog: Catalog): Member {
  const { product: name, version } = product;
  const offers = catalog.byName(name);
  const same = offers.find((offer) => offer.version === version);
  if (same !== undefined) return catalog.memberOf(same);
  const other = offers[0] === undefined ? undefined : catalog.memberOf(offers[0]);
  const siblings = (other?.depends ?? [])
    .filter(([first, ...rest]) => rest.length === 0 && first?.operator === '=' && first.version === other?.version)
    .map((alternatives) => alternatives.map((relation) => ({ ...relation, version })));
  return { name, version, provides: other?.provides ?? [], depends: siblings, breaks: [], replaces: [] };
}

type Update = { readonly installed: Member; readonly offer: OfferedPackage; readonly kind: Kind };

type Bans = ReadonlyMap<string, string>;

type Round = {
  readonly world: World;
  readonly additions: ReadonlyMap<string, OfferedPackage>;
  /** What cannot be in this round's world, and why; the next round goes without it. */
  readonly banned: Map<string, string>;
};

const keyOf = ({ name, version }: { readonly name: string; readonly version: string }): string => `${name} ${version}`;

const showAlternatives = (alternatives: Alternatives): string =>
  alternatives
    .map(({ name, operator, version }) => (operator === undefined ? name : `${name} (${operator} ${version})`))
    .join(' | ');

/** A package that is not installed and could be, to meet the requirement: apt's candidate of the first alternative that fits. */
function findAddition(
  alternatives: Alternatives,
  world: World,
  banned: Bans,
  catalog: Catalog,
): OfferedPackage | undefined {
  const isFree = (offer: OfferedPackage): boolean => world.get(offer.name) === undefined && !banned.has(keyOf(offer));
  for (const relation of alternatives) {
    const real = catalog.candidate(relation.name, undefined);
    if (real !== undefined && isFree(real) && catalog.satisfies(relation, real)) return real;
  }
  for (const relation of alternatives) {
    const provider = catalog.providers(relation).find(isFree);
    if (provider !== undefined) return provider;
  }
  return undefined;
}

/** Why a need cannot be met: nobody offers it, or what does cannot be installed itself. */
function explainUnmet(alternatives: Alternatives, banned: Bans, catalog: Catalog): string {
  const need = `it needs ${showAlternatives(alternatives)}`;
  for (const relation of alternatives) {
    const candidates = [catalog.candidate(relation.name, undefined), ...catalog.providers(relation)];
    for (const offer of candidates) {
      const why = offer === undefined ? undefined : banned.get(keyOf(offer));
      if (offer !== undefined && why !== undefined) return `${need}, but ${keyOf(offer)} cannot be installed: ${why}`;
    }
  }
  return `${need}, which is not on offer`;
}

/** Builds the world with all updates that are not banned, adds what they need, and notes what cannot be met. */
function buildWorld(installed: readonly Member[], updates: readonly Update[], known: Bans, catalog: Catalog): Round {
  const world = new World(installed);
  const wanted = updates.map(({ offer }) => offer).filter((offer) => !known.has(keyOf(offer)));
  for (const offer of wanted) world.set(catalog.memberOf(offer));
  const additions = new Map<string, OfferedPackage>();
  const banned = new Map(known);
  const queue = [...wanted];
  for (let offer = queue.shift(); offer !== undefined; offer = queue.shift()) {
    for (const alternatives of catalog.memberOf(offer).depends) {
      if (world.meets(alternatives)) continue;
      const addition = findAddition(alternatives, world, banned, catalog);
      if (addition === undefined) {
        banned.set(keyOf(offer), explainUnmet(alternatives, banned, catalog));
        break;
      }
      world.set(catalog.memberOf(addition));
      additions.set(addition.name, addition);
      queue.push(addition);
    }
  }
  return { world, additions, banned };
}

/** The newcomers that break or conflict with something, and those that something that stays breaks or conflicts with. */
function banBreakers(newcomers: readonly Member[], world: World, banned: Map<string, string>): void {
  const ban = (member: Member, reason: string): void =>
    void (banned.has(keyOf(member)) || banned.set(keyOf(member), reason));
  const names = new Set(newcomers.map(({ name }) => name));
  for (const member of newcomers) {
    for (const relation of member.breaks) {
      for (const victim of world.victims(member, relation)) {
        const takesOver = member.replaces.some(({ name }) => name === victim.name);
        const note = takesOver ? ', whose place it takes, and no package is removed' : '';
        ban(member, `it breaks ${keyOf(victim)}${note}`);
      }
    }
  }
  for (const staying of world.members()) {
    if (names.has(staying.name)) continue;
    for (const relation of staying.breaks) {
      for (const victim of world.victims(staying, relation)) {
        if (names.has(victim.name)) ban(victim, `${keyOf(staying)} stays and does not work beside it`);
      }
    }
  }
}

/** The updates that take away what a package that stays as it is needs. */
function banRobbers(
  installed: readonly Member[],
  updates: readonly Update[],
  before: World,
  world: World,
  banned: Map<string, string>,
): void {
  const byName = new Map(updates.map((update) => [update.offer.name, update.offer]));
  for (const member of installed) {
    if (world.get(member.name) !== member) continue;
    for (const alternatives of member.depends) {
      if (world.meets(alternatives)) continue;
      for (const provider of before.meeting(alternatives)) {
        const robber = byName.get(provider.name);
        if (robber === undefined || banned.has(keyOf(robber))) continue;
        banned.set(keyOf(robber), `${keyOf(member)} stays and needs ${showAlternatives(alternatives)}`);
      }
    }
  }
}

/** Rounds until nothing new is banned. Each bans at least one of finitely many offers; a guest that needs too many gets nothing. */
function settle(installed: readonly Member[], updates: readonly Update[], catalog: Catalog): Round {
  const before = new World(installed);
  let known: Bans = new Map();
  for (let number = 0; number < SELECT_ROUNDS_MAX; number += 1) {
    const { world, additions, banned } = buildWorld(installed, updates, known, catalog);
    const present = [...updates.map(({ offer }) => offer), ...additions.values()].filter(
      (offer) => !banned.has(keyOf(offer)),
    );
    banBreakers(present.map(catalog.memberOf), world, banned);
    const left = updates.filter(({ offer }) => !banned.has(keyOf(offer)));
    banRobbers(installed, left, before, world, banned);
    if (banned.size === known.size) return { world, additions, banned };
    known = banned;
  }
  const reason = 'its relations to the other packages of this VM are too entangled to be resolved';
  const banned = new Map(updates.map(({ offer }) => [keyOf(offer), known.get(keyOf(offer)) ?? reason]));
  return { world: before, additions: new Map(), banned };
}

/** The updates, and of the new packages those that any of them requires: another may have come that meets the same need. */
function withoutOrphans(
  updates: readonly Update[],
  requirements: ReadonlyMap<string, readonly Requirement[]>,
): ReadonlySet<string> {
  const reached = new Set(updates.map(({ offer }) => offer.name));
  for (const name of reached) for (const { product } of requirements.get(name) ?? []) reached.add(product);
  return reached;
}

type Sorted = {
  readonly current: readonly Chosen[];
  readonly updates: readonly Update[];
  readonly leftOut: readonly LeftOut[];
};

const newestOf = (offers: readonly OfferedPackage[]): OfferedPackage | undefined =>
  offers.reduce<OfferedPackage | undefined>(
    (best, offer) => (best === undefined || compareDebianVersions(offer.version, best.version) > 0 ? offer : best),
    undefined,
  );

/** A security update that the pins keep away from the VM is a known hole, and somebody has to see it. */
function pinnedAway(
  { product, version }: InstalledProduct,
  candidate: OfferedPackage | undefined,
  offers: readonly OfferedPackage[],
): LeftOut | undefined {
  const known = candidate === undefined ? version : candidate.version;
  const reach = compareDebianVersions(known, version) > 0 ? known : version;
  const hidden = newestOf(
    offers.filter(({ suite, version: one }) => isSecuritySuite(suite) && compareDebianVersions(one, reach) > 0),
  );
  if (hidden === undefined) return undefined;
  const reason = `the pins of this vendor keep it at ${reach}, not at the version of ${hidden.suite}`;
  return { name: product, version: hidden.version, arch: hidden.arch, kind: 'security', why: 'held', reason };
}

/** Splits the VM's packages into those that are up to date, those with an update, and those that must do without one. */
function sortProducts(
  products: readonly InstalledProduct[],
  members: ReadonlyMap<InstalledProduct, Member>,
  catalog: Catalog,
): Sorted {
  const current: Chosen[] = [];
  const updates: Update[] = [];
  const leftOut: LeftOut[] = [];
  const foreign = products.filter((product) => !members.has(product));
  const foreignNames = new Set(foreign.map(({ product }) => product));
  for (const [product, installed] of members) {
    const { product: name, version } = product;
    const offers = catalog.byName(name);
    const offer = catalog.candidate(name, version);
    const hidden = pinnedAway(product, offer, offers);
    if (hidden !== undefined) leftOut.push(hidden);
    if (offer === undefined || compareDebianVersions(offer.version, version) <= 0) {
      const known = offer ?? newestOf(offers.filter((one) => compareDebianVersions(one.version, version) <= 0));
      if (known !== undefined) current.push({ offer: known, kind: 'fix', requires: [] });
      continue;
    }
    const kind = kindOf(offers, version, offer.version);
    const refuse = (why: LeftOut['why'], reason: string): void =>
      void leftOut.push({ name, version: offer.version, arch: offer.arch, kind, why, reason });
    if (product.held === true) refuse('held', `it is held at ${version}`);
    else if (foreignNames.has(name)) {
      refuse(
        'unsatisfiable',
        'it is also installed for another architecture, whose packages this vendor does not offer',
      );
    } else updates.push({ installed, offer, kind });
  }
  return {
    current,
    updates,
    leftOut: [...leftOut, ...foreign.flatMap((product) => leaveOutForeign(product, catalog))],
  };
}

/** We have no index of its architecture; that ours has something newer is what can be said. */
function leaveOutForeign(product: InstalledProduct, catalog: Catalog): readonly LeftOut[] {
  const { product: name, version, arch = '' } = product;
  const offer = catalog.candidate(name, version);
  if (offer === undefined || compareDebianVersions(offer.version, version) <= 0) return [];
  const kind = kindOf(catalog.byName(name), version, offer.version);
  const reason = `it is installed for ${arch}, and this vendor offers packages for ${catalog.arch} only`;
  return [{ name, version: offer.version, arch, kind, why: 'unsatisfiable', reason }];
}

/**
 * apt's candidate of each installed package, and the new packages that these need. An update whose relations can be met
 * neither by what the VM has, nor by the other updates, nor by new packages, is left out with the reason; so are held ones.
 */
export function selectPackages(products: readonly InstalledProduct[], catalog: Catalog): Selection {
  const debian = products.filter((product) => product.ecosystem === 'debian');
  const isNative = ({ arch }: InstalledProduct): boolean =>
    arch === undefined || arch === catalog.arch || arch === 'all';
  const native = debian.filter(isNative);
  const members = new Map(native.map((product) => [product, installedMember(product, catalog)] as const));
  const { current, updates, leftOut } = sortProducts(debian, members, catalog);
  const installed = [...members.values()];
  const { world, additions, banned } = settle(installed, updates, catalog);

  const accepted = updates.filter(({ offer }) => !banned.has(keyOf(offer)));
  const offers = new Map([...accepted.map(({ offer }) => [offer.name, offer] as const), ...additions]);
  const requirements = requirementsOf(new World(installed), world, new Set(offers.keys()));
  const kinds = new Map(accepted.map(({ offer, kind }) => [offer.name, kind]));
  const wanted = withoutOrphans(accepted, requirements);
  const chosen = [...offers]
    .filter(([name]) => wanted.has(name))
    .map(([name, offer]): Chosen => {
      return { offer, kind: kinds.get(name) ?? 'fix', requires: requirements.get(name) ?? [] };
    });
  const refused = updates
    .filter(({ offer }) => banned.has(keyOf(offer)))
    .map(({ offer: { name, version, arch }, offer, kind }): LeftOut => {
      return { name, version, arch, kind, why: 'unsatisfiable', reason: banned.get(keyOf(offer)) ?? '' };
    });
  return { chosen: [...current, ...chosen], leftOut: [...leftOut, ...refused] };
}
