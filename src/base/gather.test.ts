// Tests of gathering: a lone arrival is not kept waiting, a burst is one, and an endless one is not waited for.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { makeGathering } from './gather.ts';

const turns = async (count: number): Promise<void> => {
  for (let done = 0; done < count; done += 1) await turn();
};

test('a lone arrival is flushed in the next turn', async () => {
  let flushes = 0;
  const arrive = makeGathering(() => {
    flushes += 1;
  });
  arrive();
  assert.equal(flushes, 0);
  await turns(1);
  assert.equal(flushes, 1);
  await turns(8);
  assert.equal(flushes, 1);
});

test('a burst that goes on from turn to turn is flushed together, but never waits longer than a few turns', async () => {
  const flushedAt: number[] = [];
  let now = 0;
  const arrive = makeGathering(() => flushedAt.push(now));
  for (now = 0; now < 12; now += 1) {
    arrive();
    arrive();
    await turns(1);
  }
  await turns(8);
  assert.deepEqual(flushedAt, [3, 7, 11]);
});

test('an arrival while the flush runs is flushed too', async () => {
  let flushes = 0;
  const arrive = makeGathering(() => {
    flushes += 1;
    if (flushes === 1) arrive();
  });
  arrive();
  await turns(3);
  assert.equal(flushes, 2);
});
