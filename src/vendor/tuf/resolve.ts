// Finds one consistent set of versions: constraint propagation and search in the order of preference, bounded. Pure.
import { satisfies } from 'semver';
import { TUF_CHOICE_CHECKS_MAX, TUF_CHOICE_PRODUCTS_MAX } from '../../base/limits.ts';

/** What a version needs beside it. */
export type Need = { readonly key: string; readonly range: string };

/** One version that a product may have. */
export type Option = { readonly version: string; readonly needs: readonly Need[] };

export type Problem<O extends Option> = {
  /** The versions of each product, the preferred one first. */
  readonly options: ReadonlyMap<string, readonly O[]>;
  /** Products that must have a version, the most important one first. Others get one only if they are needed. */
  readonly wanted: readonly string[];
};

export type Solution<O extends Option> =
  | { readonly kind: 'solved'; readonly chosen: ReadonlyMap<string, O> }
  | { readonly kind: 'impossible' }
  /** The search was given up at its bound: only somebody who wants to hold us up makes such a puzzle. */
  | { readonly kind: 'too-entangled' };

/** Whether a version is within a range. Of a version that is no semver nothing is known, so it never is. */
export function isWithin(version: string, range: string): boolean {
  return satisfies(version, range, { includePrerelease: true });
}

type Live<O> = Map<string, readonly O[]>;
type State<O> = { readonly live: Live<O>; readonly must: Set<string> };
/** Counts down the comparisons that are left, and remembers their results. */
type Work = { left: number; readonly known: Map<string, boolean> };

class TooEntangled extends Error {}

/**
 * The set in which the first wanted product has the most preferred version that any consistent set allows, then the second
 * one, and so on; products that are only needed come last, by name.
 */
export function resolve<O extends Option>(
  { options, wanted }: Problem<O>,
  checksMax = TUF_CHOICE_CHECKS_MAX,
): Solution<O> {
  if (options.size > TUF_CHOICE_PRODUCTS_MAX) return { kind: 'too-entangled' };
  const work: Work = { left: checksMax, known: new Map() };
  try {
    const start: State<O> = { live: new Map(options), must: new Set(wanted) };
    if (!propagate(start, work)) return { kind: 'impossible' };
    const chosen = search(start, wanted, work);
    return chosen === null ? { kind: 'impossible' } : { kind: 'solved', chosen };
  } catch (error) {
    if (error instanceof TooEntangled) return { kind: 'too-entangled' };
    throw error;
  }
}

/** Products that can influence each other, as one group each: solved apart, because most have nothing to do with the others. */
export function groupsOf<O extends Option>({ options, wanted }: Problem<O>): readonly Problem<O>[] {
  const neighbours = new Map<string, Set<string>>();
  const join = (a: string, b: string) => {
    const known = neighbours.get(a);
    if (known === undefined) neighbours.set(a, new Set([b]));
    else known.add(b);
  };
  for (const [key, list] of options) {
    for (const need of list.flatMap(({ needs }) => needs)) {
      join(key, need.key);
      join(need.key, key);
    }
  }
  const seen = new Set<string>();
  return wanted.flatMap((start) => {
    if (seen.has(start)) return [];
    const members = new Set([start]);
    for (const member of members) for (const other of neighbours.get(member) ?? []) members.add(other);
    for (const member of members) seen.add(member);
    const inside = [...members].flatMap((key) => {
      const list = options.get(key);
      return list === undefined ? [] : [[key, list] as const];
    });
    return [{ options: new Map(inside), wanted: wanted.filter((key) => members.has(key)) }];
  });
}

/** A decision: the versions of one product that were not tried yet, in the state before it. */
type Decision<O> = { readonly before: State<O>; readonly key: string; readonly untried: O[] };

/** Depth first over what is still open. An own stack: a vendor decides how many products there are. */
function search<O extends Option>(start: State<O>, wanted: readonly string[], work: Work): Map<string, O> | null {
  const decisions: Decision<O>[] = [];
  let state: State<O> | null = start;
  for (;;) {
    if (state !== null) {
      const { live, must }: State<O> = state;
      const key = nextOpen(state, wanted);
      if (key === null) return new Map([...must].flatMap((each) => firstOf(live, each)));
      decisions.push({ before: state, key, untried: [...(live.get(key) ?? [])] });
    }
    const decision = decisions.at(-1);
    if (decision === undefined) return null;
    const option = decision.untried.shift();
    if (option === undefined) {
      decisions.pop();
      state = null;
      continue;
    }
    const { live, must } = decision.before;
    const next: State<O> = { live: new Map(live).set(decision.key, [option]), must: new Set(must) };
    state = propagate(next, work) ? next : null;
  }
}

function firstOf<O>(live: Live<O>, key: string): readonly (readonly [string, O])[] {
  const [first] = live.get(key) ?? [];
  return first === undefined ? [] : [[key, first]];
}

function nextOpen<O>({ live, must }: State<O>, wanted: readonly string[]): string | null {
  const isOpen = (key: string) => (live.get(key)?.length ?? 0) > 1;
  return wanted.find(isOpen) ?? [...must].filter(isOpen).sort()[0] ?? null;
}

/** Takes out what cannot be part of any solution (arc consistency), until nothing changes. False: there is none. */
function propagate<O extends Option>({ live, must }: State<O>, work: Work): boolean {
  for (let isChanged = true; isChanged; ) {
    isChanged = false;
    // `must` may grow on the way; a set's iteration sees that.
    for (const key of must) {
      const before = live.get(key) ?? [];
      const after = before.filter(({ needs }) => needs.every((need) => isSupported(live, need, work)));
      if (after.length === 0) return false;
      if (after.length < before.length) {
        live.set(key, after);
        isChanged = true;
      }
      for (const needed of commonNeeds(after)) {
        must.add(needed);
        if (restrict(live, needed, after, work)) isChanged = true;
      }
    }
  }
  return true;
}

function isSupported<O extends Option>(live: Live<O>, { key, range }: Need, work: Work): boolean {
  return (live.get(key) ?? []).some(({ version }) => check(version, range, work));
}

/** The products that each of these versions needs. */
function commonNeeds(options: readonly Option[]): ReadonlySet<string> {
  const [first, ...rest] = options.map(({ needs }) => new Set(needs.map(({ key }) => key)));
  return new Set([...(first ?? [])].filter((key) => rest.every((each) => each.has(key))));
}

/** Takes out the versions of a needed product that go with none of the versions that need it. Whether there were any. */
function restrict<O extends Option>(live: Live<O>, key: string, needing: readonly O[], work: Work): boolean {
  const ranges = needing.map(({ needs }) => needs.filter((need) => need.key === key));
  const before = live.get(key) ?? [];
  const after = before.filter(({ version }) =>
    ranges.some((all) => all.every(({ range }) => check(version, range, work))),
  );
  if (after.length === before.length) return false;
  live.set(key, after);
  return true;
}

function check(version: string, range: string, work: Work): boolean {
  work.left -= 1;
  if (work.left < 0) throw new TooEntangled();
  const name = `${version} ${range}`;
  const known = work.known.get(name);
  if (known !== undefined) return known;
  const result = isWithin(version, range);
  work.known.set(name, result);
  return result;
}
