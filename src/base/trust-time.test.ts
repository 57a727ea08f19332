// How late it is at least: over clocks that are set back, that jump ahead, over restarts and reboots.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { type Clock, systemClock, trustedNowMs } from './clock.ts';
import { TRUST_JUMP_MAX_MS, TRUST_SETTLE_MS } from './limits.ts';
import { silentLog } from './log.ts';
import { openTrustTime } from './trust-time.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const YEAR_MS = 365 * DAY_MS;
const START_MS = Date.parse('2026-06-01T00:00:00Z');

let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'pratique-time-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** A machine whose wall clock can be set; its uptime goes on whatever the wall says. */
function makeMachine() {
  const machine = { wallMs: START_MS, upMs: 1_000, boot: 'first' };
  const clock: Clock = {
    ...systemClock,
    nowMs: () => machine.wallMs,
    monotonicMs: () => 0,
    uptimeMs: () => machine.upMs,
  };
  return {
    machine,
    pass: (ms: number) => {
      machine.wallMs += ms;
      machine.upMs += ms;
    },
    reboot: () => {
      machine.boot = `after ${machine.boot}`;
      machine.upMs = 500;
    },
    open: () =>
      openTrustTime({ path: join(folder, 'trust-time.json'), clock, log: silentLog, bootId: async () => machine.boot }),
  };
}

test('it is the wall time as long as nobody sets that', async () => {
  const { machine, pass, open } = makeMachine();
  const time = await open();
  assert.equal(time.nowMs(), START_MS);
  pass(DAY_MS);
  assert.equal(time.nowMs(), machine.wallMs);
  assert.equal(time.behindMs(), 0);
  assert.equal(time.unsettledMs(), 0);
});

test('a clock that is set back gains nothing, and time still passes', async () => {
  const { machine, pass, open } = makeMachine();
  const time = await open();
  pass(HOUR_MS);
  assert.equal(time.nowMs(), START_MS + HOUR_MS);
  machine.wallMs -= YEAR_MS;
  assert.equal(time.nowMs(), START_MS + HOUR_MS);
  assert.equal(time.behindMs(), YEAR_MS);
  // What was verified last grows old by the machine's own uptime, not never.
  pass(3 * DAY_MS);
  assert.equal(time.nowMs(), START_MS + HOUR_MS + 3 * DAY_MS);
  machine.upMs += 0.7; // Uptimes have fractions.
  assert.ok(Number.isInteger(time.nowMs()));
});

test('what is sure outlives the daemon, also the time without one, and a reboot', async () => {
  const { machine, pass, reboot, open } = makeMachine();
  const first = await open();
  pass(HOUR_MS);
  await first.save();
  machine.wallMs -= YEAR_MS;
  pass(HOUR_MS);
  const second = await open();
  assert.equal(second.nowMs(), START_MS + 2 * HOUR_MS, 'the hour without a daemon counts');
  await second.save();
  reboot();
  machine.wallMs = 0;
  const third = await open();
  assert.equal(third.nowMs(), START_MS + 2 * HOUR_MS, 'a machine without a clock of its own begins at 1970');
  machine.wallMs = START_MS + 5 * HOUR_MS;
  assert.equal(third.nowMs(), START_MS + 5 * HOUR_MS);
});

test('a clock that is years ahead and corrected soon leaves no mark', async () => {
  const { machine, pass, open } = makeMachine();
  const time = await open();
  machine.wallMs += 10 * YEAR_MS;
  assert.equal(time.nowMs(), machine.wallMs, 'as long as it stands there it counts: nothing expired is believed');
  assert.equal(time.unsettledMs(), 10 * YEAR_MS);
  pass(TRUST_SETTLE_MS - 1);
  assert.equal(time.nowMs(), machine.wallMs);
  await time.save();
  machine.wallMs -= 10 * YEAR_MS;
  assert.equal(time.nowMs(), machine.wallMs);
  assert.equal(time.behindMs(), 0);
  assert.equal((await open()).nowMs(), machine.wallMs);
  // And the next jump has its own hour.
  machine.wallMs += 10 * YEAR_MS;
  time.nowMs();
  pass(HOUR_MS - 1);
  time.nowMs();
  machine.wallMs -= 10 * YEAR_MS;
  assert.equal(time.behindMs(), 0);
});

test("one that has stood there for an hour counts; corrected later it takes an operator's word, which is durable", async () => {
  const { machine, pass, open } = makeMachine();
  const time = await open();
  machine.wallMs += 10 * YEAR_MS;
  time.nowMs();
  pass(TRUST_SETTLE_MS);
  time.nowMs();
  machine.wallMs -= 10 * YEAR_MS;
  assert.equal(time.behindMs(), 10 * YEAR_MS);
  await time.save();
  assert.equal((await open()).behindMs(), 10 * YEAR_MS);
  await time.accept();
  assert.equal(time.nowMs(), machine.wallMs);
  assert.equal((await open()).nowMs(), machine.wallMs);
});

test('a host that was off for a night counts at once, one that was off for half a year after an hour', async () => {
  const { machine, pass, reboot, open } = makeMachine();
  await (await open()).save();
  reboot();
  machine.wallMs += TRUST_JUMP_MAX_MS;
  const night = await open();
  assert.equal(night.nowMs(), machine.wallMs);
  assert.equal(night.unsettledMs(), 0);
  await night.save();
  reboot();
  machine.wallMs += YEAR_MS / 2;
  const year = await open();
  assert.equal(year.nowMs(), machine.wallMs);
  assert.ok(year.unsettledMs() > 0);
  for (let minute = 0; minute <= 60; minute += 1) {
    year.nowMs();
    pass(60_000);
  }
  assert.equal(year.unsettledMs(), 0);
  machine.wallMs -= YEAR_MS / 2;
  assert.ok(year.behindMs() > 0);
});

test('a suspended machine finds that time has passed', async () => {
  const { machine, open } = makeMachine();
  const time = await open();
  machine.upMs += 5 * HOUR_MS; // CLOCK_BOOTTIME counts it; the wall clock has not been set yet.
  assert.equal(time.nowMs(), START_MS + 5 * HOUR_MS);
});

test('a file that is damaged begins anew, for its owner only', async () => {
  const { open } = makeMachine();
  writeFileSync(join(folder, 'trust-time.json'), '{"trustedMs":"soon"}');
  const time = await open();
  assert.equal(time.nowMs(), START_MS);
  await time.save();
  assert.match(readFileSync(join(folder, 'trust-time.json'), 'utf8'), /"format":"pratique.trust-time\/1"/);
});

test('a clock without such a memory goes by the wall', () => {
  assert.equal(trustedNowMs({ nowMs: () => 5 }), 5);
  assert.equal(trustedNowMs({ nowMs: () => 5, trustedMs: () => 7 }), 7);
});
