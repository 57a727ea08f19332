// Dependency relations between Debian packages: parsed, and asked whether something satisfies them. Debian policy 7.1.
import { compareDebianVersions } from './version.ts';

export type Relation = {
  readonly name: string;
  readonly operator: '<<' | '<=' | '=' | '>=' | '>>' | undefined;
  readonly version: string | undefined;
};

/** One requirement: any of its alternatives will do. */
export type Alternatives = readonly Relation[];

const FORM = /^([a-z0-9][a-z0-9+.-]*)(?::[a-z0-9-]+)?\s*(?:\(\s*(<<|<=|=|>=|>>|<|>)\s*([^\s)]+)\s*\))?/;

/** `<` and `>` are the obsolete spellings of `<=` and `>=` (policy 7.1). */
function operatorOf(text: string | undefined): Relation['operator'] {
  switch (text) {
    case '<<':
    case '<=':
    case '=':
    case '>=':
    case '>>':
      return text;
    case '<':
      return '<=';
    case '>':
      return '>=';
    default:
      return undefined;
  }
}

function parseRelation(text: string): Relation | undefined {
  const parts = FORM.exec(text.trim());
  if (parts?.[1] === undefined) return undefined;
  return { name: parts[1], operator: operatorOf(parts[2]), version: parts[3] };
}

/** Parses a Depends-like field; what does not parse is left out. Architecture qualifiers (`:any`) are dropped. */
export function parseRelations(field: string): readonly Alternatives[] {
  return field
    .split(',')
    .map((group) => group.split('|').map(parseRelation))
    .map((group) => group.filter((relation) => relation !== undefined))
    .filter((group) => group.length > 0);
}

/** Whether a version is what the relation asks for. */
export function isVersionWanted(relation: Relation, version: string): boolean {
  if (relation.operator === undefined || relation.version === undefined) return true;
  const order = compareDebianVersions(version, relation.version);
  switch (relation.operator) {
    case '<<':
      return order < 0;
    case '<=':
      return order <= 0;
    case '=':
      return order === 0;
    case '>=':
      return order >= 0;
    case '>>':
      return order > 0;
    default:
      return relation.operator satisfies never;
  }
}

/** What a package is and provides, as far as relations care. */
export type Providing = { readonly name: string; readonly version: string; readonly provides: readonly Relation[] };

/** Whether a package satisfies the relation, by its name or by a provide; only a versioned provide satisfies a versioned relation (7.5). */
export function satisfies(relation: Relation, candidate: Providing): boolean {
  if (candidate.name === relation.name && isVersionWanted(relation, candidate.version)) return true;
  return candidate.provides.some((provide) => {
    if (provide.name !== relation.name) return false;
    if (relation.operator === undefined) return true;
    return provide.version !== undefined && isVersionWanted(relation, provide.version);
  });
}
