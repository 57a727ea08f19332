// ARCHITECTURE.md shows the states as the code has them.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { drawStateDiagram, replaceStateDiagram } from '../../scripts/state-diagram.ts';

test('the state diagram in ARCHITECTURE.md is the one of the code; npm run docs redraws it', () => {
  const text = readFileSync(new URL('../../ARCHITECTURE.md', import.meta.url), 'utf8');
  assert.equal(replaceStateDiagram(text), text);
  assert.match(drawStateDiagram(), /opening --> connected: opened/);
});
