// What one VM may be offered: the packages of the configured suites by apt's priorities and pins. apt_preferences(5).
import { matchesProduct } from '../../model/policy.ts';
import type { Automatic, PackageIndex } from './package-index.ts';
import type { OfferedPackage } from './packages-file.ts';
import { type Alternatives, type Providing, parseRelations, type Relation, satisfies } from './relations.ts';
import { compareDebianVersions } from './version.ts';

/** One pin; the first that matches decides, and one that names packages comes before one that does not. */
export type Pin = {
  /** Names, or beginnings of names with a `*` at the end; absent: every package. */
  readonly packages?: readonly string[] | undefined;
  readonly suite?: string | undefined;
  /** A version, or its beginning with a `*` at the end; only together with `packages`. */
  readonly version?: string | undefined;
  /** Below zero: never. The highest priority wins, then the highest version. */
  readonly priority: number;
};

/** One package as it would be on the VM: what it is, what it needs and what it cannot be beside. */
export type Member = Providing & {
  readonly depends: readonly Alternatives[];
  readonly breaks: readonly Relation[];
  readonly replaces: readonly Relation[];
};

export type Catalog = {
  readonly arch: string;
  /** Every offer of a package for this architecture, whatever its priority. */
  readonly byName: (name: string) => readonly OfferedPackage[];
  /**
   * The version apt would take, given the installed one, but never an older one. The installed one where it wins and is on
   * offer itself; undefined where it wins and is not, or where nothing may be taken.
   */
  readonly candidate: (name: string, installedVersion: string | undefined) => OfferedPackage | undefined;
  /** Candidates of packages that are not installed and provide the name. */
  readonly providers: (relation: Relation) => readonly OfferedPackage[];
  readonly satisfies: (relation: Relation, offer: OfferedPackage) => boolean;
  readonly memberOf: (offer: OfferedPackage) => Member;
  /** Names looked up so far: what the catalog remembers grows with them. */
  readonly size: () => number;
};

/** apt's priorities of a source, and of the version that is installed (apt_preferences(5), "APT's Default Priority Assignments"). */
const PRIORITY_OF_SUITE: Readonly<Record<Automatic, number>> = { yes: 500, upgrades: 100, no: 1 };
const PRIORITY_OF_INSTALLED = 100;

export const isSecuritySuite = (suite: string): boolean => /-security$|\/updates$/.test(suite);

const matchesVersion = (pattern: string | undefined, version: string): boolean =>
  pattern === undefined || matchesProduct([pattern], version);

/** One version of a package, with all the suites that have it; an installed one may be in none. */
type VersionOnOffer = { readonly name: string; readonly version: string; readonly offers: readonly OfferedPackage[] };

/** The priority of one version: that of the first pin that names it, else the highest of where it comes from. */
function priorityOf(
  { name, version, offers }: VersionOnOffer,
  isInstalled: boolean,
  { pins, suites }: Pick<CatalogOptions, 'pins' | 'suites'>,
): number {
  const own = pins.find(
    (pin) =>
      pin.packages !== undefined &&
      matchesProduct(pin.packages, name) &&
      matchesVersion(pin.version, version) &&
      (pin.suite === undefined || offers.some((offer) => offer.suite === pin.suite)),
  );
  if (own !== undefined) return own.priority;
  const ofSuites = offers.map((offer) => {
    const general = pins.find((pin) => pin.packages === undefined && pin.suite === offer.suite);
    return general?.priority ?? PRIORITY_OF_SUITE[suites.get(offer.suite) ?? 'yes'];
  });
  return Math.max(...ofSuites, isInstalled ? PRIORITY_OF_INSTALLED : Number.NEGATIVE_INFINITY);
}

/** The same version in several suites is one version; the security suite's entry stands for it, and says what it is for. */
function groupByVersion(offers: readonly OfferedPackage[]): readonly (readonly OfferedPackage[])[] {
  const groups: OfferedPackage[][] = [];
  const sorted = [...offers].sort(
    (a, b) =>
      compareDebianVersions(b.version, a.version) ||
      Number(isSecuritySuite(b.suite)) - Number(isSecuritySuite(a.suite)),
  );
  for (const offer of sorted) {
    const last = groups.at(-1);
    if (last?.[0] !== undefined && compareDebianVersions(last[0].version, offer.version) === 0) last.push(offer);
    else groups.push([offer]);
  }
  return groups;
}

/** Newest first, so of equal priorities the newest wins, also against the installed one; zero and below never win. */
function candidateOf(
  name: string,
  offers: readonly OfferedPackage[],
  installedVersion: string | undefined,
  rules: Pick<CatalogOptions, 'pins' | 'suites'>,
): OfferedPackage | undefined {
  let best: OfferedPackage | undefined;
  let bestPriority = 0;
  let installed: readonly OfferedPackage[] = [];
  for (const group of groupByVersion(offers)) {
    const [offer] = group;
    if (offer === undefined) continue;
    const order = installedVersion === undefined ? 1 : compareDebianVersions(offer.version, installedVersion);
    if (order === 0) installed = group;
    if (order <= 0) break;
    const priority = priorityOf({ name, version: offer.version, offers: group }, false, rules);
    if (priority <= bestPriority) continue;
    best = offer;
    bestPriority = priority;
  }
  if (installedVersion === undefined) return best;
  const stays = priorityOf({ name, version: installedVersion, offers: installed }, true, rules) > bestPriority;
  return stays || best === undefined ? installed[0] : best;
}

export type CatalogOptions = {
  readonly arch: string;
  /** The configured suites; what the index has of others is not looked at. */
  readonly suites: ReadonlyMap<string, Automatic>;
  readonly pins: readonly Pin[];
};

/** A view of the index as it is now: what is looked up once is remembered, so it must be thrown away when the index changes. */
export function makeCatalog(
  index: Pick<PackageIndex, 'byName' | 'mentioning'>,
  { arch, suites, pins }: CatalogOptions,
): Catalog {
  const offersOf = new Map<string, readonly OfferedPackage[]>();
  const mentions = new Map<string, readonly OfferedPackage[]>();
  const members = new WeakMap<OfferedPackage, Member>();
  const fits = (offer: OfferedPackage): boolean =>
    suites.has(offer.suite) && (offer.arch === arch || offer.arch === 'all');
  const byName = (name: string): readonly OfferedPackage[] => {
    const known = offersOf.get(name) ?? index.byName(name).filter(fits);
    offersOf.set(name, known);
    return known;
  };
  const candidate: Catalog['candidate'] = (name, installedVersion) =>
    candidateOf(name, byName(name), installedVersion, { pins, suites });
  const memberOf = (offer: OfferedPackage): Member => {
    const known = members.get(offer) ?? makeMember(offer);
    members.set(offer, known);
    return known;
  };
  return {
    arch,
    byName,
    candidate,
    memberOf,
    size: () => offersOf.size + mentions.size,
    satisfies: (relation, offer) => satisfies(relation, memberOf(offer)),
    providers: (relation) => {
      const known = mentions.get(relation.name) ?? index.mentioning(relation.name).filter(fits);
      mentions.set(relation.name, known);
      const names = new Set(known.map(({ name }) => name));
      const candidates = [...names].map((name) => candidate(name, undefined)).filter((offer) => offer !== undefined);
      return candidates.filter((offer) => satisfies(relation, memberOf(offer)));
    },
  };
}

function makeMember(offer: OfferedPackage): Member {
  return {
    name: offer.name,
    version: offer.version,
    provides: parseRelations(offer.provides).flat(),
    depends: parseRelations(offer.depends),
    breaks: parseRelations(offer.breaks).flat(),
    replaces: parseRelations(offer.replaces).flat(),
  };
}
