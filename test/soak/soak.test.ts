// A short soak with few VMs passes; and one in which a leak and a wrong opening are planted finds both.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { LEAK_LIMITS } from './leaks.ts';
import { reportText } from './report.ts';
import { runSoak } from './soak.ts';

const SEED = Number(process.env.PRATIQUE_TEST_SEED ?? Math.floor(systemClock.nowMs() % 1_000_000));
const SECONDS = { clean: 8, planted: 3 };
const CALM_TIMEOUT_MS = 120_000;

test('a short soak finds no wrong opening and no leak [A11] [X1] [X2] [X4]', async (t) => {
  t.diagnostic(`seed ${SEED} (PRATIQUE_TEST_SEED); npm run soak is the long one`);
  const report = await runSoak({
    minutes: SECONDS.clean / 60,
    ...{ vms: 9, realVms: 1, seed: SEED },
    stormMs: 3_000,
    settleMs: 30_000,
    killingShare: 1,
    calmTimeoutMs: CALM_TIMEOUT_MS,
    say: () => {},
  });
  const text = reportText(report);
  assert.deepEqual(report.wrong, [], text);
  assert.match(text, /\nsoak passed: 9 VMs, /);
  assert.ok(report.cycles >= 1 && Object.keys(report.faults).length >= 2, text);
  assert.ok(report.openings.admitted > 9 && report.openings.frames > 0, text);
  t.diagnostic(text.trim().split('\n').at(-1) ?? '');
});

test('a soak finds a stranger who plugs a VM in, and what is left behind', async (t) => {
  process.env.PRATIQUE_SOAK_LEAK = '1';
  t.after(() => {
    delete process.env.PRATIQUE_SOAK_LEAK;
  });
  const report = await runSoak({
    minutes: SECONDS.planted / 60,
    ...{ vms: 3, realVms: 0, seed: SEED },
    stormMs: 200,
    settleMs: 500,
    killingShare: 0,
    calmTimeoutMs: CALM_TIMEOUT_MS,
    limits: { ...LEAK_LIMITS, warmUpCalms: 0, calmsMin: 2, descriptorsGrowthMax: 2, heapGrowthMaxMB: 2 },
    plant: async ({ fleetNet, dataFolder, house }, cycle) => {
      if (cycle !== 0) return;
      const tap = 'bridge pratique admitted { "vmtap0" }';
      await fleetNet.run('nft', `delete element ${tap}`);
      await fleetNet.run('nft', `add element ${tap}`);
      await fleetNet.ip('tuntap add dev pqstray mode tap');
      await mkdir(join(dataFolder, 'drives/fleet-0/forgotten'), { recursive: true });
      const stray = spawn('sh', ['-c', 'sleep 600; true', house.runFolder], { stdio: 'ignore' });
      t.after(() => stray.kill('SIGKILL'));
    },
    say: () => {},
  });
  const text = reportText(report);
  const expected: readonly RegExp[] = [
    /fleet-0: its tap was admitted without a record of its own/,
    /leak: minute [\d.]+: 1 taps, where 0 may be/,
    /leak: minute [\d.]+: 1 drive folders, where 0 may be/,
    /1 processes outlived the daemon/,
    /leak: other descriptors open grew/,
    /leak: heap \(MB\) grew/,
  ];
  for (const words of expected)
    assert.ok(
      report.wrong.some((each) => words.test(each)),
      `${words}: ${text}`,
    );
  assert.match(text, /\nsoak FAILED: 3 VMs, /);
});
