// The choice of what may go: order, budget, and the pins that stand above both.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { digestOf } from '../base/digest.ts';
import { chooseExpendable } from './retention.ts';

const blob = (name: string, sizeBytes: number, usedSequence: number, isPinned = false) => ({
  digest: digestOf(name),
  sizeBytes,
  usedSequence,
  isPinned,
});

test('the least recently used blobs go first, and no more than needed [X6]', () => {
  const blobs = [blob('c', 10, 3), blob('a', 10, 1), blob('b', 10, 2)];
  assert.deepEqual(chooseExpendable(blobs, 25), [digestOf('a')]);
  assert.deepEqual(chooseExpendable(blobs, 10), [digestOf('a'), digestOf('b')]);
  assert.deepEqual(chooseExpendable(blobs, 30), []);
});

test('whatever the sizes and the budget, no pinned blob is chosen, and the budget holds unless pins alone exceed it', () => {
  const anyBlob = fc.record({
    name: fc.string(),
    sizeBytes: fc.nat(1000),
    usedSequence: fc.nat(100),
    isPinned: fc.boolean(),
  });
  const anyBlobs = fc.uniqueArray(anyBlob, { selector: ({ name }) => name });
  fc.assert(
    fc.property(anyBlobs, fc.nat(5000), (drawn, budgetBytes) => {
      const blobs = drawn.map(({ name, ...rest }) => ({ digest: digestOf(name), ...rest }));
      const chosen = new Set(chooseExpendable(blobs, budgetBytes));
      const rest = blobs.filter(({ digest }) => !chosen.has(digest));
      const restBytes = rest.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
      assert.ok(blobs.every(({ digest, isPinned }) => !(isPinned && chosen.has(digest))));
      assert.ok(restBytes <= budgetBytes || rest.every(({ isPinned }) => isPinned));
    }),
  );
});
