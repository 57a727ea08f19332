// What a disk told against what the agent reports.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { InstalledProduct, Inventory } from '../model/inventory.ts';
import { differenceOf, differenceText } from './difference.ts';

const deb = (product: string, version: string, more: Partial<InstalledProduct> = {}): InstalledProduct => ({
  ecosystem: 'debian',
  product,
  version,
  arch: 'amd64',
  state: 'installed',
  ...more,
});
const inventory = (products: readonly InstalledProduct[], more: Partial<Inventory> = {}): Inventory => ({
  os: { id: 'debian', versionId: '12', arch: 'amd64' },
  products: [...products],
  config: [],
  agent: { version: '0.1.0', digest: null },
  abilities: { drives: [], compressions: ['none'] },
  freeBytes: 0,
  rebootRequired: false,
  lastShutdown: null,
  ...more,
});

test('what a disk cannot tell is no difference: kernel, abilities, free space, the order of products [A3]', () => {
  const disk = inventory([deb('a', '1'), deb('b', '2')]);
  const reported = inventory([deb('b', '2'), deb('a', '1')], {
    os: { id: 'debian', versionId: '12', arch: 'amd64', kernel: '6.1.0' },
    abilities: { drives: ['virtio-blk'], compressions: ['none', 'gzip'] },
    freeBytes: 77,
    rebootRequired: true,
  });
  assert.equal(differenceOf(disk, reported), null);
});

test('versions, holds and states that differ, missing and added products are counted and named [A3]', () => {
  const disk = inventory([deb('a', '1'), deb('b', '2'), deb('c', '3'), deb('d', '4')]);
  const reported = inventory([
    deb('a', '1.1'),
    deb('b', '2', { held: true }),
    deb('c', '3', { state: 'broken' }),
    deb('e', '5'),
  ]);
  const difference = differenceOf(disk, reported);
  assert.deepEqual(difference, {
    changed: {
      count: 3,
      first: ['debian/a:amd64 1 -> 1.1', 'debian/b:amd64 2 -> 2 (held)', 'debian/c:amd64 3 -> 3 (broken)'],
    },
    missing: { count: 1, first: ['debian/d:amd64'] },
    added: { count: 1, first: ['debian/e:amd64'] },
    facts: [],
  });
  assert.match(
    differenceText(difference),
    /3 products changed: debian\/a:amd64 1 -> 1.1.*1 product missing: .*1 product added: /,
  );
});

test('another system or another agent is a difference', () => {
  const disk = inventory([]);
  const other = inventory([], {
    os: { id: 'alpine', versionId: '3', arch: 'amd64' },
    agent: { version: '0.2.0', digest: null },
  });
  assert.deepEqual(differenceOf(disk, other)?.facts, ['os debian 12 amd64 -> alpine 3 amd64', 'agent 0.1.0 -> 0.2.0']);
});

test('a guest that reports something else of everything makes a bounded, printable sentence', () => {
  const many = Array.from({ length: 20_000 }, (_, index) => deb(`p${index}${'\u001b[2J'.repeat(40)}`, '1'));
  const difference = differenceOf(inventory(many), inventory([]));
  assert(difference !== null);
  assert.equal(difference.missing.count, 20_000);
  const text = differenceText(difference);
  assert(text.length < 1_000, String(text.length));
  assert.doesNotMatch(text, /\p{Cc}/u);
});
