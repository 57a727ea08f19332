// What the daemon does at intervals: when, what it leaves alone, and that it ends.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as tick } from 'node:timers/promises';
import {
  STORE_COLLECT_MS,
  STORE_SCRUB_BYTES_PER_SECOND,
  STORE_SCRUB_LOOK_MS,
  STORE_SCRUB_MS,
  TRUST_SAVE_MS,
  VENDOR_POLL_MS,
} from '../src/base/limits.ts';
import { silentLog } from '../src/base/log.ts';
import type { VmId } from '../src/model/ids.ts';
import type { ScrubOptions } from '../src/store/scrub.ts';
import type { RunState } from '../src/update/state.ts';
import { makeFakeClock } from '../test/simulator/clock.ts';
import { startMaintenance } from './maintenance.ts';

function house(states: readonly RunState['kind'][], isStoreIll = false) {
  const clock = makeFakeClock();
  const done: string[] = [];
  const scrubs: ScrubOptions[] = [];
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
    scrub: async (options: ScrubOptions = {}) => {
      scrubs.push(options);
      return { checkedBlobs: 0, checkedBytes: 0, rotten: [] };
    },
  };
  const trustTime = {
    save: async () => {
      done.push('save');
      throw new Error('the disk is ill');
    },
  };
  const fenceFor = async () => assert.fail();
  const maintenance = startMaintenance({ clock, log: silentLog, store, runs, trustTime, fenceFor });
  const pass = async (ms: number): Promise<void> => {
    const untilMs = clock.monotonicMs() + ms;
    for (let next = clock.nextMs(); next !== null && next <= untilMs; next = clock.nextMs()) {
      clock.moveTo(next);
      await tick();
    }
    clock.moveTo(untilMs);
  };
  return { done, scrubs, maintenance, pass, clock };
}

test('the store is collected at its intervals, also after one time failed', async () => {
  const { done, pass, maintenance } = house([], true);
  await pass(STORE_COLLECT_MS - 1);
  assert.ok(!done.includes('collect'));
  await pass(2 * STORE_COLLECT_MS);
  assert.deepEqual(
    done.filter((each) => each === 'collect'),
    ['collect', 'collect'],
  );
  await maintenance.close();
});

test('a daemon that runs for an hour looks for blobs that were not read for a week, however often it was restarted', async () => {
  const { scrubs, pass, maintenance, clock } = house([]);
  await pass(STORE_SCRUB_LOOK_MS);
  assert.equal(scrubs.length, 1);
  assert.equal(scrubs[0]?.verifiedBeforeMs, clock.nowMs() - STORE_SCRUB_MS);
  assert.equal(scrubs[0]?.bytesPerSecond, STORE_SCRUB_BYTES_PER_SECOND);
  await maintenance.close();
});

test('how late it is at least is noted, and one note that fails does not end that', async () => {
  const { done, pass, maintenance } = house([]);
  await pass(2 * TRUST_SAVE_MS);
  assert.deepEqual(done, ['save', 'save']);
  await maintenance.close();
});

test('VMs that are off are staged again, others are left alone [A1]', async () => {
  const { done, pass, maintenance } = house(['off', 'connected', 'staged', 'quarantined']);
  await pass(VENDOR_POLL_MS);
  assert.deepEqual(
    done.filter((each) => each.startsWith('stage')),
    ['stage off', 'stage staged'],
  );
  await maintenance.close();
});

test('it ends at once when it is closed, and does nothing more', async () => {
  const { done, pass, maintenance, clock } = house(['off']);
  await maintenance.close();
  assert.equal(clock.timers(), 0);
  await pass(2 * STORE_COLLECT_MS);
  assert.deepEqual(done, []);
});
