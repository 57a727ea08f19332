// What the daemon does at intervals: when, what it leaves alone, and that it ends.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as tick } from 'node:timers/promises';
import { STORE_COLLECT_MS, STORE_SCRUB_MS, VENDOR_POLL_MS } from '../src/base/limits.ts';
import { silentLog } from '../src/base/log.ts';
import type { VmId } from '../src/model/ids.ts';
import type { RunState } from '../src/update/state.ts';
import { makeFakeClock } from '../test/simulator/clock.ts';
import { startMaintenance } from './maintenance.ts';

function house(states: readonly RunState['kind'][], isStoreIll = false) {
  const clock = makeFakeClock();
  const done: string[] = [];
  const runs = new Map(
    states.map((kind, index) => {
      // The casts hold: the name has a VM's form, and only the kind of the state is looked at.
      const runner = {
        state: () => ({ kind }) as RunState,
        post: () => void done.push(`stage ${kind}`),
        settle: async () => {},
      };
      return [`vm${index}` as VmId, { runner, running: null }] as const;
    }),
  );
  const store = {
    collect: async () => {
      done.push('collect');
      if (isStoreIll) throw new Error('the disk is ill');
      return { removed: [], freedBytes: 0, totalBytes: 0, isOverBudget: false };
    },
    scrub: async () => {
      done.push('scrub');
      return { checkedBlobs: 0, checkedBytes: 0, rotten: [] };
    },
  };
  const maintenance = startMaintenance({ clock, log: silentLog, store, runs, fenceFor: async () => assert.fail() });
  const pass = async (ms: number): Promise<void> => {
    const untilMs = clock.nowMs() + ms;
    for (let next = clock.nextMs(); next !== null && next <= untilMs; next = clock.nextMs()) {
      clock.moveTo(next);
      await tick();
    }
    clock.moveTo(untilMs);
  };
  return { done, maintenance, pass, clock };
}

test('the store is collected and read again at its intervals, also after one time failed', async () => {
  const { done, pass, maintenance } = house([], true);
  await pass(STORE_COLLECT_MS - 1);
  assert.deepEqual(done, []);
  await pass(2 * STORE_COLLECT_MS);
  assert.deepEqual(done, ['collect', 'collect']);
  await pass(STORE_SCRUB_MS);
  assert.equal(done.filter((each) => each === 'scrub').length, 1);
  await maintenance.close();
});

test('VMs that are off are staged again, others are left alone [A1]', async () => {
  const { done, pass, maintenance } = house(['off', 'connected', 'staged', 'quarantined']);
  await pass(VENDOR_POLL_MS);
  assert.deepEqual(done, ['stage off', 'stage staged']);
  await maintenance.close();
});

test('it ends at once when it is closed, and does nothing more', async () => {
  const { done, pass, maintenance, clock } = house(['off']);
  await maintenance.close();
  assert.equal(clock.timers(), 0);
  await pass(STORE_SCRUB_MS);
  assert.deepEqual(done, []);
});
