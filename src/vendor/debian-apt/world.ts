// A set of packages that are on a VM together: what meets a need, what stands in the way of what.
import type { Member } from './catalog.ts';
import { type Alternatives, type Relation, satisfies } from './relations.ts';

/** The packages of a VM, by name, and by what they provide. */
export class World {
  readonly #members = new Map<string, Member>();
  readonly #providers = new Map<string, Set<string>>();

  constructor(members: Iterable<Member>) {
    for (const member of members) this.set(member);
  }

  /** Adds a package, in the place of one of the same name. */
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

  members(): Iterable<Member> {
    return this.#members.values();
  }

  /** The packages that are what the relation asks for, by name or by a provide. */
  matching(relation: Relation): readonly Member[] {
    const names = new Set([relation.name, ...(this.#providers.get(relation.name) ?? [])]);
    return [...names]
      .map((name) => this.#members.get(name))
      .filter((member) => member !== undefined)
      .filter((member) => satisfies(relation, member));
  }

  meeting(alternatives: Alternatives): readonly Member[] {
    return alternatives.flatMap((relation) => this.matching(relation));
  }

  meets(alternatives: Alternatives): boolean {
    return alternatives.some((relation) => this.matching(relation).length > 0);
  }

  /** What stands in the way of a package that breaks or conflicts with the relation; nothing breaks itself. */
  victims(breaker: Member, relation: Relation): readonly Member[] {
    return this.matching(relation).filter(({ name }) => name !== breaker.name);
  }
}
