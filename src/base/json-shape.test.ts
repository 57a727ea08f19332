// The checker gives typebox's own answers, on examples and on examples with something changed.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type TSchema, Type } from 'typebox';
import { Compile } from 'typebox/compile';
import { findShapeFault, type JsonSchema } from './json-shape.ts';

/** A schema with every keyword of the subset. */
const EVERYTHING = Type.Object(
  {
    kind: Type.Union([Type.Literal('a'), Type.Literal('b'), Type.Null()]),
    id: Type.String({ pattern: '^[0-9a-f]{4}$' }),
    path: Type.String({ minLength: 2, maxLength: 12, pattern: '^/(?!.*(^|/)\\.\\.?(/|$))[^\\u0000-\\u001f\\\\]+$' }),
    text: Type.String({ minLength: 1, maxLength: 5 }),
    count: Type.Integer({ minimum: -2, maximum: 3 }),
    ratio: Type.Number({ minimum: 0 }),
    isOn: Type.Boolean(),
    list: Type.Array(Type.Object({ n: Type.Integer() }, { additionalProperties: false }), { minItems: 1, maxItems: 3 }),
    choice: Type.Optional(Type.Enum(['x', 'y'])),
    open: Type.Optional(Type.Object({ a: Type.Optional(Type.String()) })),
  },
  { additionalProperties: false },
);
const EXAMPLE = {
  kind: 'a',
  id: '0f1e',
  path: '/a/b',
  text: 'ü😀x',
  count: 3,
  ratio: 0.5,
  isOn: true,
  list: [{ n: 1 }, { n: 2 }],
  choice: 'x',
  open: { a: 'z', other: 1 },
};

const plain = (schema: TSchema): JsonSchema => JSON.parse(JSON.stringify(schema));
const compiled = Compile(EVERYTHING);
const fitsUs = (value: unknown) => findShapeFault(plain(EVERYTHING), value) === null;

const oddValue = fc.oneof(
  fc.constantFrom(
    null,
    true,
    '',
    '/..',
    '/a/../b',
    '/a\n',
    'abcdef',
    '😀😀😀😀😀',
    '😀😀😀😀😀😀',
    -3,
    4,
    0.5,
    2 ** 60,
  ),
  fc.string({ unit: 'binary', maxLength: 8 }),
  fc.jsonValue({ maxDepth: 2 }),
);

/** The example with one field, or one field of a list's item, replaced, removed or added. */
const mutated = fc
  .record({
    place: fc.constantFrom(
      ...Object.keys(EXAMPLE),
      'extra',
      'list.0',
      'list.0.n',
      'list.0.extra',
      'open.a',
      '__proto__',
    ),
    isRemoval: fc.boolean(),
    value: oddValue,
  })
  .map(({ place, isRemoval, value }) => {
    const copy: unknown = structuredClone(EXAMPLE);
    const parts = place.split('.');
    const last = parts.pop() ?? '';
    // The casts hold: every place but its last part exists in the example.
    const target = parts.reduce((inner, part) => (inner as Record<string, unknown>)[part], copy) as object;
    if (isRemoval) Reflect.deleteProperty(target, last);
    else Object.defineProperty(target, last, { value, enumerable: true, configurable: true, writable: true });
    // Only what can come out of JSON.
    return JSON.parse(JSON.stringify(copy)) as unknown;
  });

test('a value that typebox accepts is accepted', () => {
  assert.ok(compiled.Check(EXAMPLE));
  assert.equal(findShapeFault(plain(EVERYTHING), EXAMPLE), null);
});

test('it agrees with typebox on changed examples', () => {
  let refused = 0;
  fc.assert(
    fc.property(mutated, (value) => {
      const isFitting = compiled.Check(value);
      refused += isFitting ? 0 : 1;
      assert.equal(fitsUs(value), isFitting, JSON.stringify(value));
    }),
    { numRuns: 3000 },
  );
  assert.ok(refused > 300, `only ${refused} of the changed examples were refused`);
});

test('a fault names the field and what is wrong with it', () => {
  const schema = plain(EVERYTHING);
  assert.deepEqual(findShapeFault(schema, { ...EXAMPLE, list: [{ n: 1 }, { n: 'x' }] }), {
    field: 'list.1.n',
    why: 'must be integer',
  });
  assert.deepEqual(findShapeFault(schema, { ...EXAMPLE, more: 1 }), {
    field: 'the whole document',
    why: 'has an unknown field',
  });
});

test('inherited fields are no fields', () => {
  const schema: JsonSchema = { type: 'object', required: ['toString'] };
  assert.notEqual(findShapeFault(schema, {}), null);
  assert.notEqual(findShapeFault(plain(EVERYTHING), JSON.parse('{"__proto__":{}}')), null);
});

test('a text far over its limit never reaches the pattern', () => {
  const schema: JsonSchema = { pattern: '^(a+)+$', type: 'string', maxLength: 30 };
  assert.deepEqual(findShapeFault(schema, `${'a'.repeat(100_000)}b`)?.why, 'is over 30 characters long');
});

test('a list over its limit is refused without a look at its items', () => {
  const schema: JsonSchema = { type: 'array', items: { type: 'nonsense' }, maxItems: 2 };
  assert.equal(findShapeFault(schema, [1, 2, 3])?.why, 'has over 2 items');
});

test('a keyword or type that is not of the subset is our mistake and throws', () => {
  assert.throws(() => findShapeFault({ multipleOf: 2 }, 4), /multipleOf is not known/);
  assert.throws(() => findShapeFault({ type: 'date' }, 4), /date is not known/);
});
