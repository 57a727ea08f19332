// Which of the releases for one VM must be installed together, so that any choice of them that keeps to this leaves a working VM.
import { RELEASE_REQUIRES_MAX } from '../../base/limits.ts';
import type { Member } from './catalog.ts';
import type { Alternatives } from './relations.ts';
import type { World } from './world.ts';

export type Requirement = { readonly product: string; readonly range: string };

/**
 * The requirements of each new or updated package (`changed`), given the VM as it is and as it would be with all of them.
 * Installing a set of them that is closed under these keeps every need met and every break avoided, if the full set does:
 * each way in which a part could differ from both worlds has its edge here.
 */
export function requirementsOf(
  before: World,
  after: World,
  changed: ReadonlySet<string>,
): ReadonlyMap<string, readonly Requirement[]> {
  const edges = new Map<string, Map<string, string>>([...changed].map((name) => [name, new Map<string, string>()]));
  const require = (name: string, needed: Member, range: string): void => {
    const own = edges.get(name);
    if (name === needed.name || !changed.has(needed.name) || own === undefined) return;
    if (!own.has(needed.name) && own.size < RELEASE_REQUIRES_MAX) own.set(needed.name, range);
  };
  for (const name of changed) {
    const member = after.get(name);
    if (member !== undefined) requireForNewcomer(member, before, after, require);
  }
  for (const member of before.members()) requireForInstalled(member, before, after, changed, require);
  return new Map([...edges].map(([name, own]) => [name, [...own].map(([product, range]) => ({ product, range }))]));
}

type Require = (name: string, needed: Member, range: string) => void;

/** Whether some package meets it whether or not it is updated: then nothing has to come along. */
function isMetEitherWay(alternatives: Alternatives, before: World, after: World): boolean {
  const names = new Set(after.meeting(alternatives).map(({ name }) => name));
  return before.meeting(alternatives).some(({ name }) => names.has(name));
}

/** A version the relation itself names says most; otherwise the one that comes. */
function rangeFor(alternatives: Alternatives, provider: Member): string {
  const relation = alternatives.find(({ name, version }) => name === provider.name && version !== undefined);
  return relation === undefined ? `>= ${provider.version}` : `${relation.operator} ${relation.version}`;
}

function requireForNewcomer(member: Member, before: World, after: World, require: Require): void {
  for (const alternatives of member.depends) {
    if (isMetEitherWay(alternatives, before, after)) continue;
    const [provider] = after.meeting(alternatives);
    if (provider !== undefined) require(member.name, provider, rangeFor(alternatives, provider));
  }
  for (const relation of member.breaks) {
    for (const victim of before.victims(member, relation)) {
      const update = after.get(victim.name);
      if (update !== undefined) require(member.name, update, `>= ${update.version}`);
    }
  }
}

/** What an installed package needs or breaks binds those that would change around it, until it is updated itself. */
function requireForInstalled(
  member: Member,
  before: World,
  after: World,
  changed: ReadonlySet<string>,
  require: Require,
): void {
  const update = after.get(member.name);
  for (const alternatives of member.depends) {
    const providers = before.meeting(alternatives);
    if (providers.length === 0 || isMetEitherWay(alternatives, before, after)) continue;
    // Every one of them is updated away from it: with the first that goes, the package itself must go along, or a new provider come.
    const rescue = changed.has(member.name) ? update : after.meeting(alternatives)[0];
    if (rescue === undefined) continue;
    for (const provider of providers) require(provider.name, rescue, `>= ${rescue.version}`);
  }
  if (update === undefined || !changed.has(member.name)) return;
  for (const relation of member.breaks) {
    for (const newcomer of after.victims(member, relation)) {
      if (before.get(newcomer.name) !== newcomer) require(newcomer.name, update, `>= ${update.version}`);
    }
  }
}
