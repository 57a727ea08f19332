// Canonical JSON: equal values give equal bytes, whatever order their fields came in.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { canonicalJson } from './digest-text.ts';

test('fields stand in the order of their names, at every depth', () => {
  assert.equal(canonicalJson({ b: [{ d: 1, c: null }], a: 'x' }), '{"a":"x","b":[{"c":null,"d":1}]}');
  assert.equal(canonicalJson({ 9: 1, 10: 2, a: undefined }), '{"10":2,"9":1}');
});

/** The same value with the fields of every object in the opposite order. */
function turnedAround(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(turnedAround);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(
    Object.entries(value)
      .toReversed()
      .map(([key, field]) => [key, turnedAround(field)]),
  );
}

test('the order in which fields came is lost, and nothing else', () => {
  const key = fc.oneof(fc.string(), fc.nat(20).map(String), fc.constant('constructor'));
  fc.assert(
    fc.property(fc.object({ key, values: [fc.string(), fc.integer(), fc.boolean(), fc.constant(null)] }), (value) => {
      assert.equal(canonicalJson(value), canonicalJson(turnedAround(value)));
      assert.deepEqual(JSON.parse(canonicalJson(value)), JSON.parse(JSON.stringify(value)));
    }),
    { numRuns: 500 },
  );
});
