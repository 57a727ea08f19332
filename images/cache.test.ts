// What leaves the image cache, and what stays.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { markUsed, pruneCache, removeTree } from './cache.ts';

const HOUR_MS = 60 * 60 * 1000;
let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-cache-'));
});
afterEach(async () => {
  await rm(folder, { recursive: true, force: true });
});

async function addEntry(name: string, hoursAgo: number): Promise<void> {
  await mkdir(join(folder, name));
  await writeFile(join(folder, name, 'root.raw'), 'x');
  const seconds = systemClock.nowMs() / 1000 - hoursAgo * 3600;
  await utimes(join(folder, name), seconds, seconds);
}
const prune = async (keep: number) => await pruneCache({ folder, pattern: /^tiny-[0-9]+$/, keep });

test('the newest entries stay, the older ones go', async () => {
  for (const [name, hours] of [
    ['tiny-1', 40],
    ['tiny-2', 30],
    ['tiny-3', 20],
    ['tiny-4', 10],
  ] as const) {
    await addEntry(name, hours);
  }
  assert.deepEqual((await prune(2)).toSorted(), ['tiny-1', 'tiny-2']);
  assert.deepEqual((await readdir(folder)).toSorted(), ['tiny-3', 'tiny-4']);
});

test('an entry used within the last hours stays, however many are newer: a VM may have its disk on it', async () => {
  for (const [name, hours] of [
    ['tiny-1', 40],
    ['tiny-2', 3],
    ['tiny-3', 2],
    ['tiny-4', 1],
  ] as const) {
    await addEntry(name, hours);
  }
  assert.deepEqual(await prune(2), ['tiny-1']);
});

test('asking for an entry makes it the newest', async () => {
  for (const [name, hours] of [
    ['tiny-1', 40],
    ['tiny-2', 30],
    ['tiny-3', 20],
  ] as const)
    await addEntry(name, hours);
  await markUsed(join(folder, 'tiny-1'));
  assert(systemClock.nowMs() - (await stat(join(folder, 'tiny-1'))).mtimeMs < HOUR_MS);
  assert.deepEqual(await prune(2), ['tiny-2']);
});

test('other names are not looked at', async () => {
  await addEntry('tiny.lock', 40);
  await addEntry('debian-1', 40);
  assert.deepEqual(await prune(0), []);
  assert.equal((await readdir(folder)).length, 2);
});

test('a tree is removed with everything in it, and one that is gone is no error', async () => {
  await addEntry('tiny-1', 0);
  await removeTree(join(folder, 'tiny-1'));
  await removeTree(join(folder, 'tiny-1'));
  assert.deepEqual(await readdir(folder), []);
});
