// Who may speak for which target path: the walk over delegations (TUF specification, 5.6.7) and its bounds. Pure.
import { createHash } from 'node:crypto';
import type { TargetFile, Targets } from '@tufjs/models';
import { TUF_DELEGATION_DEPTH_MAX, TUF_DELEGATIONS_MAX } from '../../base/limits.ts';
import { VendorError } from '../errors.ts';

/** One delegation to follow: `parent` vouches for `role`. */
export type Visit = {
  readonly parent: string;
  readonly role: string;
  readonly depth: number;
  /** Another parent's delegation to the same role was followed already. */
  readonly isRepeat: boolean;
};

export type Walk = {
  /** The next delegation in preorder; null at the end. Throws VendorError `vendor-ill/tuf-delegations` beyond the bounds. */
  readonly next: () => Visit | null;
  /** Adds the delegations of a role that was just visited. */
  readonly enter: (visit: Visit, targets: Targets) => void;
};

/** Delegations followed in one walk, several to one role counted each. */
const VISITS_MAX = 4 * TUF_DELEGATIONS_MAX;

/**
 * Starts at the top-level targets. With a path only the roles are visited that may speak for it, each once, and none after
 * a terminating one; without a path every delegation is.
 */
export function startWalk(path: string | null): Walk {
  const waiting: Omit<Visit, 'isRepeat'>[] = [{ parent: 'root', role: 'targets', depth: 0 }];
  const visited = new Set<string>();
  let visits = 0;
  return {
    next: () => {
      for (let visit = waiting.pop(); visit !== undefined; visit = waiting.pop()) {
        const isRepeat = visited.has(visit.role);
        if (isRepeat && path !== null) continue;
        visited.add(visit.role);
        visits += 1;
        if (visited.size > TUF_DELEGATIONS_MAX + 1) throw refuse(`more than ${TUF_DELEGATIONS_MAX} delegated roles`);
        if (visits > VISITS_MAX) throw refuse(`more than ${VISITS_MAX} delegations`);
        return { ...visit, isRepeat };
      }
      return null;
    },
    enter: ({ role, depth }, targets) => {
      const children = path === null ? allChildren(targets) : childrenFor(targets, path);
      if (children.length > 0 && depth >= TUF_DELEGATION_DEPTH_MAX) {
        throw refuse(`delegations more than ${TUF_DELEGATION_DEPTH_MAX} deep`);
      }
      const isFinal = path !== null && children.at(-1)?.isTerminating === true;
      if (isFinal) waiting.length = 0;
      waiting.push(...children.map((child) => ({ parent: role, role: child.role, depth: depth + 1 })).toReversed());
    },
  };
}

function refuse(problem: string): VendorError {
  return new VendorError('vendor-ill/tuf-delegations', `the TUF metadata have ${problem}`, {
    next: 'ask the vendor; what was verified before stays',
  });
}

type Child = { readonly role: string; readonly isTerminating: boolean };

function allChildren({ delegations }: Targets): readonly Child[] {
  const { roles, succinctRoles } = delegations ?? {};
  if (roles !== undefined) return Object.keys(roles).map((role) => ({ role, isTerminating: false }));
  if (succinctRoles === undefined) return [];
  if (succinctRoles.numberOfBins > TUF_DELEGATIONS_MAX) throw refuse(`${succinctRoles.numberOfBins} bins`);
  return [...succinctRoles.getRoles()].map((role) => ({ role, isTerminating: false }));
}

/** The delegations for a path in their order, none after the first terminating one. */
function childrenFor({ delegations }: Targets, path: string): readonly Child[] {
  const { roles, succinctRoles } = delegations ?? {};
  if (roles === undefined) {
    return succinctRoles === undefined ? [] : [{ role: succinctRoles.getRoleForTarget(path), isTerminating: true }];
  }
  const pathHash = createHash('sha256').update(path).digest('hex');
  const children: Child[] = [];
  for (const [role, { paths, pathHashPrefixes, terminating }] of Object.entries(roles)) {
    const isDelegated =
      paths?.some((pattern) => matchesPattern(path, pattern)) ??
      pathHashPrefixes?.some((prefix) => pathHash.startsWith(prefix)) ??
      false;
    if (!isDelegated) continue;
    children.push({ role, isTerminating: terminating });
    if (terminating) break;
  }
  return children;
}

/** TUF 4.5, PATHPATTERN: `*` and `?`, neither of which matches a slash. Everything else stands for itself. */
export function matchesPattern(path: string, pattern: string): boolean {
  const parts = path.split('/');
  const patterns = pattern.split('/');
  return parts.length === patterns.length && patterns.every((each, index) => matchesPart(parts[index] ?? '', each));
}

/** Goes back to the last star only, so the time is at most the product of the lengths, whatever the pattern. */
function matchesPart(text: string, pattern: string): boolean {
  let at = 0;
  let inPattern = 0;
  let star = -1;
  let afterStar = 0;
  while (at < text.length) {
    const wanted = pattern[inPattern];
    if (wanted === '*') {
      star = inPattern;
      afterStar = at;
      inPattern += 1;
    } else if (wanted === '?' || (wanted !== undefined && wanted === text[at])) {
      at += 1;
      inPattern += 1;
    } else if (star >= 0) {
      afterStar += 1;
      at = afterStar;
      inPattern = star + 1;
    } else {
      return false;
    }
  }
  return [...pattern.slice(inPattern)].every((rest) => rest === '*');
}

/** A target and the role that vouches for it. */
export type FoundTarget = { readonly role: string; readonly target: TargetFile };

/** The target at a path as a client must find it: in the first role of the walk that has it. Null: none, or its role is not there. */
export function findTarget(roles: ReadonlyMap<string, Targets>, path: string): FoundTarget | null {
  const walk = startWalk(path);
  for (let visit = walk.next(); visit !== null; visit = walk.next()) {
    const targets = roles.get(visit.role);
    if (targets === undefined) return null;
    const target = targetAt(targets, path);
    if (target !== null) return { role: visit.role, target };
    walk.enter(visit, targets);
  }
  return null;
}

/** A role's own target at a path. */
export function targetAt({ targets }: Targets, path: string): TargetFile | null {
  return Object.hasOwn(targets, path) ? (targets[path] ?? null) : null;
}

/** All targets of a set of roles; what a role lists outside of the paths delegated to it does not count. */
export function allTargets(roles: ReadonlyMap<string, Targets>): readonly FoundTarget[] {
  const top = roles.get('targets');
  if (top === undefined) return [];
  if (top.delegations === undefined) return Object.values(top.targets).map((target) => ({ role: 'targets', target }));
  const paths = new Set([...roles.values()].flatMap(({ targets }) => Object.keys(targets)));
  return [...paths].flatMap((path) => findTarget(roles, path) ?? []);
}
