// The sums of the drive bench: a wrong one would be believed.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { attachFigures, measureSteps } from './drive-attach.ts';
import {
  median,
  parseBenchSeconds,
  parseGuestAnswer,
  parseStatSeconds,
  quartiles,
  type Readings,
  type ReadShape,
  ratioOf,
  spreadStepBytes,
  summarise,
  targetAtLeast,
} from './drive-figures.ts';
import { inTurn } from './drive-host-reads.ts';

const SHAPE: ReadShape = { name: 'sequential', blockBytes: 2 ** 20, depth: 1, count: 100, isRandom: false };

function readings(samples: Readonly<Record<string, readonly number[]>>): Readings {
  const entries = Object.entries(samples).map(
    ([way, seconds]) => [way, seconds.map((each) => ({ seconds: each, cpuSeconds: each / 2 }))] as const,
  );
  return new Map(entries);
}

test('the median is the middle value, or the mean of both middle ones', () => {
  assert.equal(median([9, 1, 5]), 5);
  assert.equal(median([4, 1, 2, 9]), 3);
  assert.ok(Number.isNaN(median([])));
  assert.deepEqual(quartiles([8, 1, 2, 3, 4, 5, 6, 7]), [2, 6]);
});

test('ways are compared within each round: a round that was slow for all changes no ratio', () => {
  const all = readings({ plain: [1, 1, 10], nbd: [2, 2, 20], nbdkit: [4, 1, 10] });
  assert.equal(ratioOf(all, 'nbd', 'plain'), 0.5);
  assert.equal(ratioOf(all, 'nbdkit', 'plain'), 1);
  assert.equal(ratioOf(all, 'nbdkit', 'nbd'), 2);
});

test('the figures of a way are of its median reading, processor time is of all of them', () => {
  const figures = summarise(SHAPE, readings({ plain: [0.1, 0.2, 0.6], nbd: [0.2, 0.4, 1.2] }));
  assert.deepEqual(figures.nbd, {
    MBs: 262,
    requestsPerSecond: 250,
    microsecondsPerRequest: 4000,
    spreadPercent: 250,
    cpuMicrosecondsPerMiB: 3000,
    ofPlain: 0.5,
    ofPlainQuartiles: [0.5, 0.5],
  });
});

test('what qemu-img, the kernel and the guest print is read, and nothing else is taken for a figure', () => {
  assert.equal(parseBenchSeconds('Sending 5 read requests, 4096 bytes each\nRun completed in 0.125 seconds.\n'), 0.125);
  assert.throws(() => parseBenchSeconds('qemu-img: Failed request: Input/output error'), /told no time/);
  assert.throws(() => parseBenchSeconds('Run completed in 0.000 seconds.\n'), /told no time/);
  const stat = `42 (a) b) S ${Array.from({ length: 10 }, () => '0').join(' ')} 150 50 700 300 20 0`;
  assert.deepEqual(parseStatSeconds(stat), { own: 2, children: 10 });
  assert.deepEqual(parseGuestAnswer('done 1500000000 1f\r'), { seconds: 1.5, checksum: '1f' });
  assert.throws(() => parseGuestAnswer('failed read: Input/output error'), /Input\/output error/);
});

test('random requests reach every block before any a second time', () => {
  for (const blocks of [1, 2, 4096, 71_168]) {
    const step = spreadStepBytes(blocks * 4096, 4096) / 4096;
    const seen = new Set(Array.from({ length: blocks }, (_, index) => (index * step) % blocks));
    assert.equal(seen.size, blocks);
  }
});

test('each way is the first in some round', () => {
  const ways = ['a', 'b', 'c'];
  assert.deepEqual(
    [0, 1, 2, 3].map((round) => inTurn(ways, round)[0]),
    ['a', 'b', 'c', 'a'],
  );
  assert.deepEqual(inTurn(ways, 1), ['b', 'c', 'a']);
});

test('a promise of at least so much is missed by less', () => {
  assert.deepEqual(targetAtLeast('x', 0.9, 0.9), { what: 'x', limit: 0.9, measured: 0.9, ratio: 1, isMet: true });
  assert.equal(targetAtLeast('x', 0.9, 0.899).isMet, false);
  assert.equal(targetAtLeast('x', 0.9, Number.NaN).isMet, false);
});

test('the steps of an attachment add up to the time from the decision to the verified drive', () => {
  const record = [
    { atMs: 1040, what: 'out:blockdev-add' },
    { atMs: 1042, what: 'out:blockdev-add' },
    { atMs: 1050, what: 'in:device-added' },
    { atMs: 1055, what: 'out:offer' },
    { atMs: 1155, what: 'in:drive' },
  ];
  const events = [
    { atMs: 900, text: 'planning' },
    { atMs: 1000, text: 'missing: 1 update' },
  ];
  const steps = measureSteps(record, events);
  assert.deepEqual(steps, { build: 40, attach: 10, offer: 5, guest: 100 });
  const figures = attachFigures([steps, { ...steps, build: 60, guest: 300 }, steps]);
  assert.equal(figures.decidedToReadableMs, 155);
  assert.equal(figures.attachToReadableMs, 115);
  assert.ok(Number.isNaN(measureSteps([], events).attach));
});
