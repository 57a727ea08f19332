// Tests of the timeline: what it shows of a run, on a terminal and in a log.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Clock } from '../../src/base/clock.ts';
import { vmId } from '../../test/fakes/service.ts';
import type { VmEventRecord } from '../service.ts';
import {
  advanceTimeline,
  EMPTY_TIMELINE,
  makeTimelinePrinter,
  plainEventLine,
  progressText,
  renderTimeline,
  type Timeline,
} from './timeline.ts';

let seq = 0;
const event = (atMs: number, more: Partial<VmEventRecord>): VmEventRecord => {
  seq += 1;
  return { seq, vm: vmId('web'), atMs, kind: 'state', state: 'booting', text: '', ...more };
};
const install = (atMs: number, done: number): VmEventRecord =>
  event(atMs, {
    kind: 'progress',
    state: 'installing',
    text: 'x',
    progress: { item: 'shop', phase: 'install', done, total: 4 },
  });
const timelineOf = (events: readonly VmEventRecord[]): Timeline => events.reduce(advanceTimeline, EMPTY_TIMELINE);
const VIEW = { nowMs: 10_000, columns: 79, rows: 20, isColoured: false };

test('each state is one line with its duration; the present one counts on', () => {
  const timeline = timelineOf([
    event(1_000, { text: 'started' }),
    event(3_500, { state: 'reporting', text: 'the agent said hello' }),
    event(3_585, { state: 'installing', text: 'four items' }),
  ]);
  assert.deepEqual(renderTimeline(timeline, VIEW), [
    '✓ booting            2.5 s  started',
    '✓ reporting          85 ms  the agent said hello',
    '▸ installing         6.4 s  four items',
  ]);
});

test('progress shows a bar; a download counts bytes; the next state ends it', () => {
  const installing = event(0, { state: 'installing', text: 'four items' });
  const bar = timelineOf([installing, install(5, 1)]);
  assert.equal(renderTimeline(bar, VIEW)[0], '▸ installing        10.0 s  [######------------------] 1/4 install shop');
  const bytes = { item: 'jq', phase: 'download', done: 65_000, total: 130_000 };
  const download = timelineOf([installing, event(5, { kind: 'progress', progress: bytes })]);
  assert.match(renderTimeline(download, { ...VIEW, columns: 120 })[0] ?? '', /65\.0 kB of 130 kB download jq/);
  assert.match(progressText({ ...bytes, item: 'download' }), /130 kB download$/);
  const over = timelineOf([installing, install(5, 9), event(6, { state: 'judging', text: 'is it true' })]);
  assert.equal(over.progress, null);
});

test('a progress that counts more than there is does not break the bar', () => {
  const lines = renderTimeline(timelineOf([event(0, { state: 'installing' }), install(5, 99)]), VIEW);
  assert.match(lines[0] ?? '', /\[#{24}\] 99\/4/);
});

test('a VM that rests has no running duration; a quarantine is marked', () => {
  assert.equal(
    renderTimeline(timelineOf([event(0, { state: 'connected', text: 'plugged in' })]), VIEW)[0],
    '✓ connected                 plugged in',
  );
  assert.match(
    renderTimeline(timelineOf([event(0, { state: 'quarantined', text: 'why' })]), VIEW)[0] ?? '',
    /^✗ quarantined/,
  );
});

test('what is said in a state takes the place of what was said before, a warning is shown beside it', () => {
  const timeline = timelineOf([
    event(0, { text: 'a' }),
    event(5, { text: 'b' }),
    event(6, { kind: 'warning', text: 'slow disk' }),
  ]);
  assert.equal(timeline.steps.length, 1);
  assert.match(renderTimeline(timeline, VIEW)[0] ?? '', /b {2}! slow disk$/);
  const gate = advanceTimeline(timeline, event(7, { kind: 'gate', text: 'closed: start' }));
  assert.match(renderTimeline(gate, VIEW)[0] ?? '', /gate closed: start {2}!/);
  const silent = timelineOf([event(0, { text: 'booting' }), event(1, { kind: 'operator', text: 'start' })]);
  assert.equal(renderTimeline(silent, VIEW)[0], '▸ booting           10.0 s');
});

test('lines fit the terminal, the oldest are left out, hostile text is stripped', () => {
  const states = ['booting', 'reporting', 'planning', 'offering', 'installing'] as const;
  const timeline = timelineOf(
    states.map((state, index) => event(index, { state, text: `\u001b[2J${'界'.repeat(80)}` })),
  );
  const lines = renderTimeline(timeline, { ...VIEW, columns: 40, rows: 2 });
  assert.deepEqual(
    lines.map((line) => line.slice(0, 12).trim()),
    ['✓ offering', '▸ installing'],
  );
  for (const line of lines) {
    assert.doesNotMatch(line, /\p{Cc}/u);
    assert.ok([...line].length + [...line].filter((char) => char === '界').length <= 40, line);
  }
});

test('in a log each state says how long the one before took, and progress is told once per item and phase', () => {
  const booting = event(1_000, { text: 'started' });
  const before = timelineOf([booting]);
  assert.equal(plainEventLine(EMPTY_TIMELINE, booting), 'web: booting: started');
  assert.equal(
    plainEventLine(before, event(3_000, { state: 'reporting', text: 'hello' })),
    'web: reporting: hello (booting took 2.0 s)',
  );
  assert.equal(plainEventLine(before, event(3_000, { text: 'booting' })), 'web: booting');
  assert.equal(plainEventLine(before, install(5, 1)), 'web: installing: install shop');
  assert.equal(plainEventLine(timelineOf([booting, install(5, 1)]), install(6, 2)), null);
});

test('on a terminal the lines are redrawn in place and with the time, in a pipe they are only added', () => {
  let now = 0;
  let tick = (): void => {};
  const clock: Clock = {
    nowMs: () => now,
    monotonicMs: () => now,
    sleep: async () => {},
    after: (_durationMs, callback) => {
      tick = callback;
      return () => {};
    },
  };
  const written: string[] = [];
  const stream = { write: (text: string) => written.push(text), isTTY: true, columns: 60, rows: 24 };
  const live = makeTimelinePrinter(stream, clock, { NO_COLOR: '1' });
  live.push(event(0, { text: 'started' }));
  now = 2_000;
  tick();
  live.end();
  assert.equal(written[0], '▸ booting             0 ms  started\n');
  assert.equal(written[1], '\u001b[1A\u001b[J▸ booting            2.0 s  started\n');
  const piped: string[] = [];
  const plain = makeTimelinePrinter({ write: (text) => piped.push(text) }, clock, {});
  plain.push(event(0, { text: 'started' }));
  plain.end();
  assert.deepEqual(piped, ['web: booting: started\n']);
});
