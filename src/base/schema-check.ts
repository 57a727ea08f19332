// Checks operator input against a typebox schema and explains the first misfit in words: where, what, and the nearest known key.
import type { TSchema } from 'typebox';
import { Compile } from 'typebox/compile';
import { nearestWord } from './nearest-word.ts';
import { printable } from './printable.ts';

export type Misfit = {
  /** Keys and indices from the document's root to the place. */
  readonly path: readonly (string | number)[];
  /** What is wrong there, to be read after the path: "must be a whole number". */
  readonly message: string;
  /** For an unknown key: the known one it resembles most. */
  readonly nearest: string | null;
};

type Path = Misfit['path'];
/** The part of JSON Schema that our schemas use; every typebox schema is such an object. */
type Schema = {
  readonly type?: string;
  readonly const?: unknown;
  readonly anyOf?: readonly Schema[];
  readonly properties?: Readonly<Record<string, Schema>>;
  /** Of a table whose keys are names: one pattern. */
  readonly patternProperties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly additionalProperties?: unknown;
  readonly items?: Schema;
  readonly minItems?: number;
  readonly maxItems?: number;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly pattern?: string;
  readonly minimum?: number;
  readonly maximum?: number;
};

/** A check for a schema: null when the value fits, the first misfit otherwise. Compile it once. */
export function makeCheck(schema: TSchema): (value: unknown) => Misfit | null {
  const compiled = Compile(schema);
  return (value) => {
    if (compiled.Check(value)) return null;
    // The cast holds: a typebox schema is a JSON Schema object.
    return explain(schema as Schema, value, []) ?? misfit([], 'does not fit its schema');
  };
}

/** `vendors[0].name`, as people write it. */
export function pathText(path: Path): string {
  const text = path.map((step) => (typeof step === 'number' ? `[${step}]` : `.${step}`)).join('');
  return text === '' ? 'the document' : printable(text.replace(/^\./, ''));
}

/** One sentence about a misfit, without the place it was read from. */
export function misfitText(found: Misfit): string {
  const hint = found.nearest === null ? '' : `; the nearest known key is \`${found.nearest}\``;
  return `\`${pathText(found.path)}\` ${found.message}${hint}`;
}

function misfit(path: Path, message: string, nearest: string | null = null): Misfit {
  return { path, message, nearest };
}

function explain(schema: Schema, value: unknown, path: Path): Misfit | null {
  if (schema.anyOf !== undefined) return explainUnion(schema.anyOf, value, path);
  if (schema.const !== undefined) {
    return value === schema.const ? null : misfit(path, `must be ${JSON.stringify(schema.const)}`);
  }
  if (schema.type === 'object') return explainObject(schema, value, path);
  if (schema.type === 'array') return explainArray(schema, value, path);
  return explainLeaf(schema, value, path);
}

function explainUnion(variants: readonly Schema[], value: unknown, path: Path): Misfit | null {
  const literals = variants.map((variant) => variant.const).filter((literal) => literal !== undefined);
  if (literals.length === variants.length) {
    return literals.some((literal) => literal === value) ? null : misfit(path, `must be ${oneOf(literals)}`);
  }
  const key = discriminatorOf(variants);
  if (key !== null && isTable(value)) {
    const variant = variants.find((candidate) => candidate.properties?.[key]?.const === value[key]);
    if (variant !== undefined) return explain(variant, value, path);
    const known = variants.map((candidate) => candidate.properties?.[key]?.const);
    return misfit([...path, key], value[key] === undefined ? `is missing: ${oneOf(known)}` : `must be ${oneOf(known)}`);
  }
  const found = variants.map((variant) => explain(variant, value, path));
  return found.includes(null) ? null : (found[likeliestOf(variants, value)] ?? null);
}

/** The variant that the value was meant to be: the one that knows most of its keys. */
function likeliestOf(variants: readonly Schema[], value: unknown): number {
  if (!isTable(value)) return 0;
  const known = variants.map(({ type, properties = {} }) =>
    type === 'object' ? 1 + Object.keys(value).filter((key) => Object.hasOwn(properties, key)).length : 0,
  );
  return known.indexOf(Math.max(...known));
}

/** The property whose literal differs in every variant of a union of objects: `kind`, `action`. */
function discriminatorOf(variants: readonly Schema[]): string | null {
  const keys = Object.keys(variants[0]?.properties ?? {});
  return (
    keys.find((key) => {
      const literals = variants.map((variant) => variant.properties?.[key]?.const);
      return !literals.includes(undefined) && new Set(literals).size === variants.length;
    }) ?? null
  );
}

function explainObject(schema: Schema, value: unknown, path: Path): Misfit | null {
  if (!isTable(value)) return misfit(path, 'must be a table of keys and values');
  if (schema.patternProperties !== undefined) return explainNames(schema.patternProperties, value, path);
  const properties = schema.properties ?? {};
  const known = Object.keys(properties);
  if (schema.additionalProperties === false) {
    const stranger = Object.keys(value).find((key) => !known.includes(key));
    if (stranger !== undefined) return misfit([...path, stranger], 'is not a known key', nearestWord(stranger, known));
  }
  const missing = (schema.required ?? []).find((key) => value[key] === undefined);
  if (missing !== undefined) return misfit([...path, missing], 'is missing');
  for (const [key, property] of Object.entries(properties)) {
    const found = value[key] === undefined ? null : explain(property, value[key], [...path, key]);
    if (found !== null) return found;
  }
  return null;
}

function explainNames(patterns: Readonly<Record<string, Schema>>, value: object, path: Path): Misfit | null {
  for (const [name, entry] of Object.entries(value)) {
    const fitting = Object.entries(patterns).find(([pattern]) => new RegExp(pattern, 'u').test(name));
    if (fitting === undefined)
      return misfit([...path, name], `must be a name that matches ${Object.keys(patterns)[0]}`);
    const found = explain(fitting[1], entry, [...path, name]);
    if (found !== null) return found;
  }
  return null;
}

function explainArray(schema: Schema, value: unknown, path: Path): Misfit | null {
  if (!Array.isArray(value)) return misfit(path, 'must be a list');
  if (value.length < (schema.minItems ?? 0)) return misfit(path, `must have at least ${schema.minItems} entries`);
  if (schema.maxItems !== undefined && value.length > schema.maxItems) {
    return misfit(path, `must have at most ${schema.maxItems} entries`);
  }
  for (const [index, item] of value.entries()) {
    const found = schema.items === undefined ? null : explain(schema.items, item, [...path, index]);
    if (found !== null) return found;
  }
  return null;
}

function explainLeaf(schema: Schema, value: unknown, path: Path): Misfit | null {
  if (schema.type === 'string') return explainString(schema, value, path);
  if (schema.type === 'boolean') return typeof value === 'boolean' ? null : misfit(path, 'must be true or false');
  if (schema.type === 'null') return value === null ? null : misfit(path, 'must be null');
  if (schema.type === 'integer' || schema.type === 'number') return explainNumber(schema, value, path);
  return null;
}

function explainString(schema: Schema, value: unknown, path: Path): Misfit | null {
  if (typeof value !== 'string') return misfit(path, 'must be a string');
  if (value.length < (schema.minLength ?? 0)) return misfit(path, `must have at least ${schema.minLength} characters`);
  if (schema.maxLength !== undefined && value.length > schema.maxLength) {
    return misfit(path, `must have at most ${schema.maxLength} characters`);
  }
  if (schema.pattern !== undefined && !new RegExp(schema.pattern, 'u').test(value)) {
    return misfit(path, `must match ${schema.pattern}`);
  }
  return null;
}

function explainNumber(schema: Schema, value: unknown, path: Path): Misfit | null {
  const isWhole = schema.type !== 'integer' || Number.isInteger(value);
  if (typeof value !== 'number' || !isWhole) return misfit(path, 'must be a whole number');
  if (schema.minimum !== undefined && value < schema.minimum) return misfit(path, `must be at least ${schema.minimum}`);
  if (schema.maximum !== undefined && value > schema.maximum) return misfit(path, `must be at most ${schema.maximum}`);
  return null;
}

function oneOf(values: readonly unknown[]): string {
  const words = values.map((value) => JSON.stringify(value));
  return words.length === 1 ? `${words[0]}` : `one of ${words.join(', ')}`;
}

function isTable(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
