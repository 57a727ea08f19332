// Lines in bytes: whatever the pieces, the same lines; never more than the limit kept.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { CHANNEL_CHUNK_TEXT_BYTES_MAX } from '../base/limits.ts';
import { makeChannelLineSplitter } from './channel-lines.ts';
import { cutIntoChunks } from './chunks.ts';

test('however the bytes are cut into pieces, the lines are the same [A4]', () => {
  const text = fc.array(fc.oneof(fc.string({ unit: 'binary', maxLength: 30 }), fc.constant('\n')), { maxLength: 20 });
  fc.assert(
    fc.property(text, fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1 }), (parts, sizes) => {
      const bytes = Buffer.from(parts.join(''));
      const whole = makeChannelLineSplitter(16).push(bytes);
      const splitter = makeChannelLineSplitter(16);
      const pieces = [];
      for (let start = 0, turn = 0; start < bytes.length; turn += 1) {
        const size = sizes[turn % sizes.length] ?? 1;
        pieces.push(...splitter.push(bytes.subarray(start, start + size)));
        start += size;
      }
      assert.deepEqual(pieces, whole);
    }),
    { seed: 7, numRuns: 2_000 },
  );
});

test('a line at the limit passes and one byte more does not, newline included [A4]', () => {
  const push = (text: string) => makeChannelLineSplitter(16).push(Buffer.from(text));
  assert.deepEqual(push(`${'x'.repeat(15)}\n`), [{ kind: 'line', text: 'x'.repeat(15) }]);
  assert.deepEqual(push(`${'x'.repeat(16)}\n`), [{ kind: 'too-long' }]);
  assert.deepEqual(push('x'.repeat(15)), []);
  assert.deepEqual(push('x'.repeat(16)), [{ kind: 'too-long' }]);
});

test('a line over the limit is reported once, and the next one is whole [A4]', () => {
  const splitter = makeChannelLineSplitter(16);
  const kinds = [];
  for (let count = 0; count < 10; count += 1) kinds.push(...splitter.push(Buffer.from('x'.repeat(10))));
  kinds.push(...splitter.push(Buffer.from('x\nnext\n')));
  assert.deepEqual(kinds, [{ kind: 'too-long' }, { kind: 'line', text: 'next' }]);
});

test('any text cut into chunks fits the limit and comes together again, no character divided [A4]', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme', maxLength: 9_000 }), (text) => {
      const pieces = cutIntoChunks(text);
      assert.equal(pieces.join(''), text);
      assert.ok(pieces.every((piece) => Buffer.byteLength(piece) <= CHANNEL_CHUNK_TEXT_BYTES_MAX && piece.length > 0));
    }),
    { seed: 7, numRuns: 300 },
  );
});
