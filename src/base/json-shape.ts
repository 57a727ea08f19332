// Checks values against the subset of JSON Schema that our typebox schemas emit. Without Node and without generated
// code: the guest agent checks everything it reads with it. The schemas are ours, the values are not.

/** A schema as typebox writes it. A keyword outside this list is a mistake of ours and throws. */
export type JsonSchema = { readonly [keyword: string]: unknown };

/** Where a value does not fit, as `items.3.files`, and why. */
export type ShapeFault = { readonly field: string; readonly why: string };

/** Depth of schema and value; ours are not nested deeper than ten. */
const DEPTH_MAX = 32;
const patterns = new Map<string, RegExp>();

/** Null if the value fits the schema, otherwise the first fault found. */
export function findShapeFault(schema: JsonSchema, value: unknown): ShapeFault | null {
  const path: string[] = [];
  const why = faultOf(schema, value, path);
  return why === null ? null : { field: path.length === 0 ? 'the whole document' : path.join('.'), why };
}

type Rule = (limit: unknown, value: unknown, path: string[], schema: JsonSchema) => string | null;

const fits = (isFitting: boolean, why: string): string | null => (isFitting ? null : why);
const asSchema = (value: unknown): JsonSchema => {
  // The cast holds because only our own schemas come here.
  if (typeof value === 'object' && value !== null) return value as JsonSchema;
  throw new Error('assertion failed: a schema is an object');
};

/** Every keyword we know. A keyword says nothing about values of another type, as in JSON Schema. */
const RULES: Readonly<Record<string, Rule>> = {
  type: (type, value) => fits(isOfType(type, value), `must be ${type}`),
  const: (expected, value) => fits(value === expected, `must be ${JSON.stringify(expected)}`),
  enum: (allowed, value) =>
    fits(Array.isArray(allowed) && allowed.includes(value), 'must be one of the allowed values'),
  // Length before pattern: a pattern never sees an endless text. Order of keywords is the schema's, so both look.
  pattern: (pattern, value, _path, schema) => {
    if (typeof value !== 'string' || lengthFault(schema, value) !== null) return null;
    return fits(compiled(String(pattern)).test(value), `must match ${pattern}`);
  },
  minLength: (_limit, value, _path, schema) => lengthFault(schema, value),
  maxLength: (_limit, value, _path, schema) => lengthFault(schema, value),
  minimum: (limit, value) => fits(typeof value !== 'number' || value >= Number(limit), `must be at least ${limit}`),
  maximum: (limit, value) => fits(typeof value !== 'number' || value <= Number(limit), `must be at most ${limit}`),
  minItems: (limit, value) => fits(!Array.isArray(value) || value.length >= Number(limit), `needs ${limit} items`),
  maxItems: (limit, value) => fits(!Array.isArray(value) || value.length <= Number(limit), `has over ${limit} items`),
  items: (items, value, path, schema) => {
    // A list over its limit is refused by maxItems; its items are not worth the time.
    if (!Array.isArray(value) || value.length > Number(schema.maxItems ?? Number.MAX_SAFE_INTEGER)) return null;
    return firstFault(value.keys(), path, (index) => faultOf(asSchema(items), value[index], path));
  },
  required: (names, value) => {
    if (!isRecord(value) || !Array.isArray(names)) return null;
    const missing = names.find((name) => !Object.hasOwn(value, String(name)));
    return missing === undefined ? null : `lacks ${missing}`;
  },
  properties: (properties, value, path) => {
    if (!isRecord(value)) return null;
    const known = Object.entries(asSchema(properties)).filter(([name]) => Object.hasOwn(value, name));
    return firstFault(new Map(known).keys(), path, (name) =>
      faultOf(asSchema(asSchema(properties)[name]), value[name], path),
    );
  },
  additionalProperties: (allowed, value, _path, schema) => {
    if (allowed !== false || !isRecord(value)) return null;
    const known = asSchema(schema.properties ?? {});
    return fits(
      Object.keys(value).every((name) => Object.hasOwn(known, name)),
      'has an unknown field',
    );
  },
  anyOf: (schemas, value, path) => {
    if (!Array.isArray(schemas)) throw new Error('assertion failed: anyOf is a list');
    return fits(
      schemas.some((schema) => faultOf(asSchema(schema), value, [...path]) === null),
      'fits none of its forms',
    );
  },
};

function faultOf(schema: JsonSchema, value: unknown, path: string[]): string | null {
  if (path.length > DEPTH_MAX) return 'is nested too deep';
  for (const [keyword, limit] of Object.entries(schema)) {
    const rule = RULES[keyword];
    if (rule === undefined) throw new Error(`assertion failed: the schema keyword ${keyword} is not known`);
    const why = rule(limit, value, path, schema);
    if (why !== null) return why;
  }
  return null;
}

/** Tries each key and leaves the path at the first fault. */
function firstFault<K extends string | number>(keys: Iterable<K>, path: string[], check: (key: K) => string | null) {
  for (const key of keys) {
    path.push(String(key));
    const why = check(key);
    if (why !== null) return why;
    path.pop();
  }
  return null;
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isOfType(type: unknown, value: unknown): boolean {
  if (type === 'object') return isRecord(value);
  if (type === 'array') return Array.isArray(value);
  if (type === 'null') return value === null;
  if (type === 'integer') return Number.isInteger(value);
  if (type === 'string' || type === 'boolean') return typeof value === type;
  if (type === 'number') return Number.isFinite(value);
  throw new Error(`assertion failed: the schema type ${type} is not known`);
}

/** Lengths count code points. */
function lengthFault(schema: JsonSchema, value: unknown): string | null {
  if (typeof value !== 'string') return null;
  const least = Number(schema.minLength ?? 0);
  const most = Number(schema.maxLength ?? Number.MAX_SAFE_INTEGER);
  // A code point is one or two units, so most texts need not be counted.
  if (value.length > 2 * most) return `is over ${most} characters long`;
  if (value.length >= 2 * least && value.length <= most) return null;
  const length = [...value].length;
  if (length < least) return `needs ${least} characters`;
  return fits(length <= most, `is over ${most} characters long`);
}

function compiled(pattern: string): RegExp {
  const known = patterns.get(pattern);
  if (known !== undefined) return known;
  const made = new RegExp(pattern, 'u');
  patterns.set(pattern, made);
  return made;
}
