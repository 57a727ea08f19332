// The bench `drive` stays runnable: a small drive is read on the host by every way that this machine has.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readShapes, withDriveSite } from './drive.ts';
import { summarise } from './drive-figures.ts';
import { readOnHost } from './drive-host-reads.ts';
import { WAY_NAMES } from './drive-site.ts';

test('every way shows the same bytes and is measured, and a way that cannot be had is named with what to do', async () => {
  const said: string[] = [];
  const say = (line: string) => void said.push(line);
  await withDriveSite(8, say, async (site) => {
    const ways = site.ways.map((way) => way.name);
    const missing = site.leftOut.map(({ what }) => what);
    assert.deepEqual([...ways, ...missing].toSorted(), [...WAY_NAMES].toSorted());
    assert.ok(ways.includes('zero-copy') && ways.includes('nbd') && ways.includes('qemu-nbd'));
    for (const { why, next } of site.leftOut) assert.ok(why !== '' && next !== '');

    const shapes = readShapes({ sequential: 60, random: 1_000, randomDeep: 2_000 });
    const all = await readOnHost(site, { shapes, rounds: 2 }, say);
    assert.deepEqual(
      [...all.keys()].map((shape) => shape.name),
      ['sequential', 'random', 'randomDeep'],
    );
    for (const [shape, readings] of all) {
      const figures = summarise(shape, readings);
      assert.deepEqual(Object.keys(figures).toSorted(), ways.toSorted());
      for (const each of Object.values(figures)) assert.ok(each.requestsPerSecond > 0 && each.ofPlain > 0);
      assert.equal(figures.plain?.ofPlain, 1);
    }
  });
});
