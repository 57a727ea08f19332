// One VM's overlay between its runs: what waits for a merge, what is tried again, and what is said and remembered.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { setImmediate as tick } from 'node:timers/promises';
import { makeFakeClock } from '../../test/simulator/clock.ts';
import { SPEC } from '../../test/simulator/machine.ts';
import { OVERLAY_BYTES_PER_PLAN_BYTE, OVERLAY_FREE_BYTES_MIN, OVERLAY_RETRY_MS } from '../base/limits.ts';
import { openDatabase } from '../base/sqlite.ts';
import type { DiskOverlay, HypervisorDriver, OverlayFate, RunningVm } from '../hypervisor/hypervisor.ts';
import type { RunId, VmId } from '../model/ids.ts';
import type { Plan } from '../model/plan.ts';
import { FAILED_UPDATE_MIGRATIONS, JOURNAL_MIGRATIONS, openJournal } from './journal.ts';
import { VmOverlay } from './vm-overlay.ts';
import { explainQuarantine } from './why.ts';

// The casts hold: these have the form that the brands promise.
const VM = 'vm1' as VmId;
const PLAN: Plan = { vm: VM, run: '0'.repeat(32) as RunId, items: [], leftOut: [], vendors: [] };
const never = new AbortController().signal;

function house() {
  const clock = makeFakeClock();
  const notes: string[] = [];
  const merges: PromiseWithResolvers<boolean>[] = [];
  const begun: number[] = [];
  let fate: OverlayFate = 'none';
  const overlay: DiskOverlay = {
    fate: async () => fate,
    begin: async (spaceBytes) => {
      begun.push(spaceBytes);
      fate = 'trial';
    },
    accept: async () => {
      if (fate === 'trial') fate = 'accepted';
    },
    commit: () => {
      const merge = Promise.withResolvers<boolean>();
      merges.push(merge);
      return merge.promise;
    },
  };
  const driver: Pick<HypervisorDriver, 'settleOverlay'> = {
    settleOverlay: async () => (fate === 'accepted' ? 'committed' : fate === 'trial' ? 'discarded' : 'none'),
  };
  // The casts hold: an overlay asks for no more of a VM and of a driver.
  const running = { overlay } as RunningVm;
  const parts = { clock, driver: driver as HypervisorDriver };
  const vmOverlay = new VmOverlay(parts, {
    spec: SPEC,
    note: (kind, text) => notes.push(`${kind}: ${text}`),
    running: () => running,
  });
  const rest = async () => {
    for (let turn = 0; turn < 10; turn += 1) await tick();
  };
  return { clock, notes, merges, begun, running, overlay: vmOverlay, rest };
}

test('the next update waits until the overlay of the one before is merged, and no longer than its run [X5]', async () => {
  const { overlay, running, merges, begun, rest } = house();
  overlay.startMerge();
  const beginning = overlay.begin(running, PLAN, never);
  const gaveUp = new AbortController();
  const givenUp = assert.rejects(overlay.begin(running, PLAN, gaveUp.signal), /moved on/);
  gaveUp.abort(new Error('the run moved on'));
  await givenUp;
  await rest();
  assert.deepEqual(begun, []);
  merges[0]?.resolve(true);
  await beginning;
  assert.deepEqual(begun, [OVERLAY_FREE_BYTES_MIN]);
});

test('an overlay that was accepted and never merged, because its gate did not open, is merged before the next update [X5]', async () => {
  const { overlay, running, merges, begun, rest } = house();
  await overlay.begin(running, PLAN, never);
  await overlay.accept(running);
  const beginning = overlay.begin(running, PLAN, never);
  await rest();
  assert.equal(begun.length, 1);
  merges[0]?.resolve(true);
  await beginning;
  assert.equal(begun.length, 2);
});

test('an update does not wait until a merge that failed is due again: it is tried at once, and the update fails if it does [X5]', async () => {
  const { overlay, running, merges, begun, rest } = house();
  overlay.startMerge();
  merges[0]?.reject(new Error('No space left on device'));
  await rest();
  const beginning = overlay.begin(running, PLAN, never);
  await rest();
  assert.equal(merges.length, 2);
  merges[1]?.reject(new Error('still not'));
  await beginning;
  assert.equal(begun.length, 1, 'the driver refuses or begins; it is not waited for longer');
});

test('a merge that fails is said and tried again, one at a time, until it is done or the VM is off [X5]', async () => {
  const { clock, overlay, merges, notes, rest } = house();
  overlay.startMerge();
  overlay.startMerge();
  assert.equal(merges.length, 1);
  merges[0]?.reject(new Error('No space left on device'));
  await rest();
  assert.match(notes[0] ?? '', /^warning: its update is not in its disk yet: No space left/);
  clock.moveTo(clock.monotonicMs() + OVERLAY_RETRY_MS);
  await rest();
  assert.equal(merges.length, 2);
  merges[1]?.reject(new Error('still not'));
  await rest();
  await overlay.settle();
  clock.moveTo(clock.monotonicMs() + 100 * OVERLAY_RETRY_MS);
  await rest();
  assert.equal(merges.length, 2, 'what is off is settled by others');
});

test('what became of an overlay is said [X8]', async () => {
  const { overlay, running, notes } = house();
  await overlay.settle();
  assert.deepEqual(notes, [], 'where there was none nothing is said');
  await overlay.begin(running, PLAN, never);
  await overlay.settle();
  await overlay.accept(running);
  await overlay.settle();
  assert.match(
    notes.join('\n'),
    /updates on a disk overlay.*thrown away; the disk is as before.*merged into its disk/s,
  );
});

test('a VM whose QEMU somebody else started has no overlay, and is told what to change [X5] [A16]', async () => {
  const { overlay } = house();
  const attached = {} as RunningVm; // Nothing of it is asked for.
  await assert.rejects(overlay.begin(attached, PLAN, never), {
    code: 'usage/overlay',
    next: /take `overlay` out of its policy/,
  });
  assert.equal(await overlay.fate(attached), 'none');
  await overlay.accept(attached);
});

test('what failed is remembered for each VM until the operator says otherwise, or the VM is removed [X5]', async () => {
  const db = openDatabase(':memory:', [...JOURNAL_MIGRATIONS, ...FAILED_UPDATE_MIGRATIONS]);
  for (const [name, uid] of [
    ['vm1', 1],
    ['vm2', 2],
  ])
    db.prepare(`INSERT INTO vm VALUES (?, ?, '{}', 'x', '{}')`).run(name ?? '', uid ?? 0);
  const journal = openJournal(db);
  const other = 'vm2' as VmId; // The form that the brand promises.
  const failed = { item: 'bundle/hello', version: '1.1.0', atMs: 1, cause: 'it does not answer' };
  await journal.rememberFailed(VM, [failed, { ...failed, version: '1.2.0', atMs: 2 }]);
  await journal.rememberFailed(VM, [{ ...failed, atMs: 3 }]);
  await journal.rememberFailed(other, [failed]);
  assert.deepEqual(
    journal.failedUpdates(VM).map(({ version, atMs }) => [version, atMs]),
    [
      ['1.2.0', 2],
      ['1.1.0', 3],
    ],
  );
  await journal.forgetFailed(VM);
  assert.deepEqual(journal.failedUpdates(VM), []);
  assert.deepEqual(journal.failedUpdates(other), [failed]);
  journal.removeVm(other);
  assert.deepEqual(journal.failedUpdates(other), []);
});

test('why names the versions that were rolled back, the cause, and what to do; a host that failed blames no version [X8]', () => {
  const versions = ['a', 'b', 'c', 'd', 'e'].map((item) => ({ item, version: '2' }));
  const silent = { kind: 'agent-silent', waitedMs: 5_000, state: 'booting' } as const;
  const guests = explainQuarantine(VM, { kind: 'rolled-back', versions, cause: silent }, true);
  assert.match(
    guests.reason,
    /thrown away, and the VM is as before.*said nothing for 5 s.*a 2, b 2, c 2 and 2 more\.$/,
  );
  assert.match(guests.next, /newer release.*pratique vm retry vm1$/);
  const full = { kind: 'host-failure', step: 'disk-full', detail: 'no space' } as const;
  const hosts = explainQuarantine(VM, { kind: 'rolled-back', versions: [], cause: full }, false);
  assert.match(hosts.reason, /as before.*disk-full.*no space/);
  assert.match(hosts.next, /doctor.*pratique vm start vm1$/);
});

test('the page about overlays has the figures of the code', async () => {
  const text = await readFile(new URL('../../docs/overlay.md', import.meta.url), 'utf8');
  assert.ok(text.includes(`${OVERLAY_FREE_BYTES_MIN / 1024 ** 2} MiB`));
  assert.ok(OVERLAY_BYTES_PER_PLAN_BYTE === 8 && text.includes('eight times'));
});
