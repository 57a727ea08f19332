// A table that a test prints.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { drawTable } from './result-table.ts';

test('a table has a line for each row, its columns below their headings, and nothing at the ends of lines', () => {
  const rows = [
    { fault: 'daemon killed', result: 'connected, 0 frames' },
    { fault: 'cut', result: 'off' },
  ];
  assert.equal(
    drawTable(['fault', 'result'], rows),
    [
      'fault          result',
      '-------------  -------------------',
      'daemon killed  connected, 0 frames',
      'cut            off',
    ].join('\n'),
  );
});
