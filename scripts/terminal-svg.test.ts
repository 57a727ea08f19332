// Tests of the picture of a terminal: looks, columns, and text that must not become markup.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { drawTerminal, readTerminal } from './terminal-svg.ts';

test('a look begins in the middle of a line, goes on over its end, and ends', () => {
  const [first = [], second = []] = readTerminal('ab\u001b[2mcd\nef\u001b[0m\u001b[32mgh\n\n');
  assert.deepEqual(
    [...first, ...second].map(({ column, text, look }) => [column, text, look.isDim, look.colour !== null]),
    [
      [0, 'ab', false, false],
      [2, 'cd', true, false],
      [0, 'ef', true, false],
      [2, 'gh', false, true],
    ],
  );
});

test('text is escaped, and stands at its column with the width of its cells', () => {
  const picture = drawTerminal('  <a & b>\n\u001b[31mred\u001b[39m', 'title');
  assert.match(picture, /<text x="34\.8" y="58" textLength="58\.8" fill="#e6edf3">&lt;a &amp; b&gt;<\/text>/);
  assert.match(picture, /fill="#ff7b72">red</);
});
