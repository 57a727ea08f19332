// Which of the offered packages one VM should have: the newest of each it has, as far as their dependencies can be met.
import type { InstalledProduct } from '../../model/inventory.ts';
import type { Kind } from '../../model/release.ts';
import type { OfferedPackage } from './package-index.ts';
import {
  type Alternatives,
  isVersionWanted,
  type Providing,
  parseRelations,
  type Relation,
  satisfies,
} from './relations.ts';
import { compareDebianVersions } from './version.ts';

export type Lookup = {
  readonly byName: (name: string) => readonly OfferedPackage[];
  readonly mentioning: (name: string) => readonly OfferedPackage[];
};

export type Chosen = { readonly offer: OfferedPackage; readonly kind: Kind };
export type LeftOut = {
  readonly name: string;
  readonly version: string;
  readonly kind: Kind;
  readonly why: 'unsatisfiable' | 'held';
  readonly reason: string;
};
export type Selection = { readonly chosen: readonly Chosen[]; readonly leftOut: readonly LeftOut[] };

const isSecuritySuite = (suite: string): boolean => /-security$|\/updates$/.test(suite);

/** The highest version on offer for the architecture; of equal ones the security suite's, which says what it is for. */
export function newestOf(offers: readonly OfferedPackage[], arch: string): OfferedPackage | undefined {
  let best: OfferedPackage | undefined;
  for (const offer of offers) {
    if (offer.arch !== arch && offer.arch !== 'all') continue;
    const order = best === undefined ? 1 : compareDebianVersions(offer.version, best.version);
    if (order > 0 || (order === 0 && isSecuritySuite(offer.suite))) best = offer;
  }
  return best;
}

/** Security if any version between the installed one and the newest came through a security suite: a point release includes it. */
function kindOf(offers: readonly OfferedPackage[], installedVersion: string): Kind {
  const isSecurity = offers.some(
    (offer) => isSecuritySuite(offer.suite) && compareDebianVersions(offer.version, installedVersion) > 0,
  );
  return isSecurity ? 'security' : 'fix';
}

/** One package of the VM as it would be: what it is, and what it needs. */
type Member = Providing & { readonly depends: string; readonly breaks: string };

/** The packages of a VM, by name, and by what they provide. */
class World {
  readonly #members = new Map<string, Member>();
  readonly #providers = new Map<string, Set<string>>();

  set(member: Member): void {
    this.#members.set(member.name, member);
    for (const { name } of member.provides) {
      const providers = this.#providers.get(name) ?? new Set();
      this.#providers.set(name, providers.add(member.name));
    }
  }

  get(name: string): Member | undefined {
    return this.#members.get(name);
  }

  meets(alternatives: Alternatives): boolean {
    return alternatives.some((relation) => this.#meetsOne(relation));
  }

  #meetsOne(relation: Relation): boolean {
    const names = [relation.name, ...(this.#providers.get(relation.name) ?? [])];
    return names.some((name) => {
      const member = this.#members.get(name);
      return member !== undefined && satisfies(relation, member);
    });
  }
}

function memberOf(offer: OfferedPackage): Member {
  const provides = parseRelations(offer.provides).flat();
  return { name: offer.name, version: offer.version, provides, depends: offer.depends, breaks: offer.breaks };
}

/**
 * An installed package, with the relations the archive knows for exactly its version. Of one that the archive no longer
 * has, only the names it provides are guessed from another version; its needs are unknown and not held against others.
 */
function installedMember(product: InstalledProduct, lookup: Lookup): Member {
  const offers = lookup.byName(product.product);
  const same = offers.find((offer) => offer.version === product.version);
  if (same !== undefined) return memberOf(same);
  const provides = parseRelations(offers[0]?.provides ?? '').flat();
  return { name: product.product, version: product.version, provides, depends: '', breaks: '' };
}

type Update = {
  readonly installed: Member;
  readonly offer: OfferedPackage;
  readonly offers: readonly OfferedPackage[];
};

type Round = {
  readonly world: World;
  readonly additions: ReadonlyMap<string, OfferedPackage>;
  /** What cannot be in this round's world, and why; the next round goes without it. */
  readonly banned: ReadonlyMap<string, string>;
};

const keyOf = (offer: { readonly name: string; readonly version: string }): string => `${offer.name} ${offer.version}`;

const showAlternatives = (alternatives: Alternatives): string =>
  alternatives
    .map(({ name, operator, version }) => (operator === undefined ? name : `${name} (${operator} ${version})`))
    .join(' | ');

/** A package that is not installed and could be, to meet the requirement. */
function findAddition(
  alternatives: Alternatives,
  world: World,
  banned: ReadonlyMap<string, string>,
  lookup: Lookup,
  arch: string,
): OfferedPackage | undefined {
  const isFree = (offer: OfferedPackage | undefined): offer is OfferedPackage =>
    offer !== undefined && world.get(offer.name) === undefined && !banned.has(keyOf(offer));
  for (const relation of alternatives) {
    const fitting = lookup.byName(relation.name).filter((offer) => isVersionWanted(relation, offer.version));
    const real = newestOf(fitting, arch);
    if (isFree(real)) return real;
  }
  for (const relation of alternatives) {
    const providers = lookup.mentioning(relation.name).filter((offer) => satisfies(relation, memberOf(offer)));
    const provider = newestOf(providers.filter(isFree), arch);
    if (provider !== undefined) return provider;
  }
  return undefined;
}

/** Builds the world with all updates that are not banned, adds what they need, and notes what cannot be met. */
function buildWorld(
  installed: readonly Member[],
  updates: readonly Update[],
  alreadyBanned: ReadonlyMap<string, string>,
  lookup: Lookup,
  arch: string,
): Round {
  const world = new World();
  for (const member of installed) world.set(member);
  const wanted = updates.map(({ offer }) => offer).filter((offer) => !alreadyBanned.has(keyOf(offer)));
  for (const offer of wanted) world.set(memberOf(offer));
  const additions = new Map<string, OfferedPackage>();
  const banned = new Map(alreadyBanned);
  const queue = [...wanted];
  for (let offer = queue.shift(); offer !== undefined; offer = queue.shift()) {
    for (const alternatives of parseRelations(offer.depends)) {
      if (world.meets(alternatives)) continue;
      const addition = findAddition(alternatives, world, banned, lookup, arch);
      if (addition === undefined) {
        banned.set(keyOf(offer), `it needs ${showAlternatives(alternatives)}, which is not on offer`);
        break;
      }
      world.set(memberOf(addition));
      additions.set(addition.name, addition);
      queue.push(addition);
    }
  }
  return { world, additions, banned };
}

/** The newcomer that breaks or conflicts with something that stays. */
function banBreakers(newcomers: readonly OfferedPackage[], world: World, banned: Map<string, string>): void {
  for (const offer of newcomers) {
    for (const relation of parseRelations(offer.breaks).flat()) {
      const victim = world.get(relation.name);
      if (victim === undefined || victim.name === offer.name || !isVersionWanted(relation, victim.version)) continue;
      banned.set(keyOf(offer), `it breaks ${victim.name} ${victim.version}`);
    }
  }
}

/** An update that takes away what a package that stays as it is needs. */
function banRobbers(
  installed: readonly Member[],
  updates: readonly Update[],
  before: World,
  world: World,
  banned: Map<string, string>,
): void {
  for (const member of installed) {
    if (world.get(member.name) !== member) continue;
    for (const alternatives of parseRelations(member.depends)) {
      if (world.meets(alternatives) || !before.meets(alternatives)) continue;
      const names = new Set(alternatives.map(({ name }) => name));
      for (const { offer, installed: old } of updates) {
        const isRobber = names.has(offer.name) || old.provides.some(({ name }) => names.has(name));
        if (isRobber)
          banned.set(
            keyOf(offer),
            `${member.name} ${member.version} stays and needs ${showAlternatives(alternatives)}`,
          );
      }
    }
  }
}

/** Rounds until nothing new is banned. Each round bans at least one of finitely many offers, so it ends. */
function settle(installed: readonly Member[], updates: readonly Update[], lookup: Lookup, arch: string): Round {
  const before = new World();
  for (const member of installed) before.set(member);
  let known: ReadonlyMap<string, string> = new Map();
  for (;;) {
    const round = buildWorld(installed, updates, known, lookup, arch);
    const banned = new Map(round.banned);
    const newcomers = [...updates.map(({ offer }) => offer), ...round.additions.values()];
    const present = newcomers.filter((offer) => !banned.has(keyOf(offer)));
    banBreakers(present, round.world, banned);
    banRobbers(
      installed,
      updates.filter(({ offer }) => !banned.has(keyOf(offer))),
      before,
      round.world,
      banned,
    );
    if (banned.size === known.size) return round;
    known = banned;
  }
}

/** A security update drags along what it needs: that is then for security too, or a security-only run could not install it. */
function spreadSecurity(kinds: Map<string, Kind>, offers: ReadonlyMap<string, OfferedPackage>, before: World): void {
  const queue = [...kinds].filter(([, kind]) => kind === 'security').map(([name]) => name);
  for (let name = queue.shift(); name !== undefined; name = queue.shift()) {
    for (const alternatives of parseRelations(offers.get(name)?.depends ?? '')) {
      if (before.meets(alternatives)) continue;
      for (const [needed, offer] of offers) {
        const isNeeded =
          kinds.get(needed) !== 'security' && alternatives.some((one) => satisfies(one, memberOf(offer)));
        if (!isNeeded) continue;
        kinds.set(needed, 'security');
        queue.push(needed);
      }
    }
  }
}

type Sorted = {
  readonly current: readonly Chosen[];
  readonly updates: readonly Update[];
  readonly leftOut: readonly LeftOut[];
};

/** Splits the VM's packages into those that are up to date, those with an update, and those we cannot speak for. */
function sortProducts(
  products: readonly InstalledProduct[],
  members: ReadonlyMap<InstalledProduct, Member>,
  lookup: Lookup,
  arch: string,
): Sorted {
  const current: Chosen[] = [];
  const updates: Update[] = [];
  const leftOut: LeftOut[] = [];
  const foreign = new Set(
    products
      .filter((one) => one.arch !== undefined && one.arch !== arch && one.arch !== 'all')
      .map((one) => one.product),
  );
  for (const [product, installed] of members) {
    const offers = lookup.byName(product.product);
    const offer = newestOf(offers, arch);
    if (offer === undefined || product.held === true) continue;
    if (compareDebianVersions(offer.version, product.version) <= 0) {
      current.push({ offer, kind: 'fix' });
    } else if (foreign.has(product.product)) {
      const reason = 'it is also installed for another architecture, whose packages this vendor does not offer';
      const kind = kindOf(offers, installed.version);
      leftOut.push({ name: offer.name, version: offer.version, kind, why: 'unsatisfiable', reason });
    } else {
      updates.push({ installed, offer, offers });
    }
  }
  return { current, updates, leftOut };
}

/**
 * The newest offer of each installed package that is not held, and the new packages that these need. An update whose
 * dependencies can be met neither by what the VM has, nor by the other updates, nor by new packages, is left out.
 */
export function selectPackages(products: readonly InstalledProduct[], lookup: Lookup, arch: string): Selection {
  const debian = products.filter((product) => product.ecosystem === 'debian');
  const native = debian.filter(({ arch: own }) => own === undefined || own === arch || own === 'all');
  const members = new Map(native.map((product) => [product, installedMember(product, lookup)] as const));
  const { current, updates, leftOut } = sortProducts(debian, members, lookup, arch);
  const installed = [...members.values()];
  const { additions, banned } = settle(installed, updates, lookup, arch);

  const accepted = updates.filter(({ offer }) => !banned.has(keyOf(offer)));
  const offers = new Map([...accepted.map(({ offer }) => [offer.name, offer] as const), ...additions]);
  const kinds = new Map<string, Kind>([...additions.keys()].map((name) => [name, 'fix']));
  for (const update of accepted) kinds.set(update.offer.name, kindOf(update.offers, update.installed.version));
  const before = new World();
  for (const member of installed) before.set(member);
  spreadSecurity(kinds, offers, before);

  const refused = updates.filter(({ offer }) => banned.has(keyOf(offer)));
  return {
    chosen: [...current, ...[...offers].map(([name, offer]) => ({ offer, kind: kinds.get(name) ?? 'fix' }) as const)],
    leftOut: [
      ...leftOut,
      ...refused.map(({ offer, offers: all, installed: old }) => ({
        name: offer.name,
        version: offer.version,
        kind: kindOf(all, old.version),
        why: 'unsatisfiable' as const,
        reason: banned.get(keyOf(offer)) ?? '',
      })),
    ],
  };
}
