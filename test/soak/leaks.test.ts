// The soak's judge of leaks finds what is left and what grows, and nothing in what only comes and goes.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { judgeLeaks, LEAK_LIMITS, NO_COUNTS, type Sample } from './leaks.ts';

const sample = (index: number, change: Partial<Sample> = {}): Sample => ({
  atMinutes: index,
  life: 1,
  memory: { residentMB: 180 + (index % 3) * 4, residentMaxMB: 200, heapMB: 55 + (index % 2) },
  descriptors: { sockets: 100 + (index % 2), others: 40 },
  resources: 3,
  found: NO_COUNTS,
  allowed: NO_COUNTS,
  ...change,
});
const life = (change: (index: number) => Partial<Sample> = () => ({})): readonly Sample[] =>
  Array.from({ length: LEAK_LIMITS.warmUpCalms + 12 }, (_, index) => sample(index, change(index)));
const END = sample(20, { descriptors: { sockets: 3, others: 30 } });
const leaksIn = (samples: readonly Sample[], end = END) => judgeLeaks(samples, end).leaks.map(({ what }) => what);

test('figures that come and go are no leak, nor is what grows while a daemon warms up', () => {
  const warming = life((index) =>
    index < LEAK_LIMITS.warmUpCalms ? { memory: { residentMB: 50, residentMaxMB: 50, heapMB: 10 } } : {},
  );
  assert.deepEqual(leaksIn(warming), []);
  assert.equal(judgeLeaks(warming, END).basis?.calms, 12);
});

const GROWING: readonly (readonly [string, (index: number) => Partial<Sample>])[] = [
  ['heap (MB)', (index) => ({ memory: { residentMB: 180, residentMaxMB: 200, heapMB: 55 + index } })],
  ['resident memory (MB)', (index) => ({ memory: { residentMB: 180 + index * 4, residentMaxMB: 300, heapMB: 55 } })],
  ['sockets open', (index) => ({ descriptors: { sockets: 100 + index, others: 40 } })],
  ['other descriptors open', (index) => ({ descriptors: { sockets: 100, others: 40 + index } })],
  ['timers and the like', (index) => ({ resources: 3 + index })],
];
for (const [what, change] of GROWING) {
  test(`${what} that grow from calm to calm are a leak`, () => assert.deepEqual(leaksIn(life(change)), [what]));
}

test('whatever there is more of than may be is a leak, in a calm and at the end', () => {
  for (const what of Object.keys(NO_COUNTS)) {
    const more = sample(3, { found: { ...NO_COUNTS, [what]: 2 }, allowed: { ...NO_COUNTS, [what]: 1 } });
    assert.deepEqual(leaksIn([more]), [what]);
    assert.deepEqual(leaksIn([], more), [what]);
  }
});

test('growth is judged in the longest life of a daemon, and not at all where none is long enough', () => {
  const short = life().slice(0, LEAK_LIMITS.warmUpCalms + LEAK_LIMITS.calmsMin - 1);
  assert.equal(judgeLeaks(short, END).basis, null);
  const second = life((index) => ({ life: 2, resources: 3 + index }));
  const verdict = judgeLeaks([...short, ...second], END);
  assert.equal(verdict.basis?.life, 2);
  assert.deepEqual(
    verdict.leaks.map(({ what }) => what),
    ['timers and the like'],
  );
});
