// The runner against slow, failing and late effects, and against a journal that cannot be written.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as tick } from 'node:timers/promises';
import { makeFakeClock } from '../../test/simulator/clock.ts';
import { GATE_CLOSE_RETRY_MAX_MS, JOURNAL_RETRY_MS } from '../base/limits.ts';
import { silentLog } from '../base/log.ts';
import { openDatabase } from '../base/sqlite.ts';
import type { VmId } from '../model/ids.ts';
import { DEFAULT_POLICY } from '../model/policy.ts';
import type { Effect, EffectKind } from './effect.ts';
import { FAILED_UPDATE_MIGRATIONS, JOURNAL_MIGRATIONS, openJournal } from './journal.ts';
import { type Answer, makeRunner } from './runner.ts';
import { evidence, grant, newRunWithPlan, OTHER_RUN, offered, session } from './samples.ts';
import type { RunState } from './state.ts';

const VM = 'vm1' as VmId; // The form that the brand promises.

type Gate = 'open' | 'closed';

/** A runner whose effects are answered by the test: `hold` makes one wait, `fail` makes one fail. */
function house(state: RunState) {
  const clock = makeFakeClock();
  const db = openDatabase(':memory:', [...JOURNAL_MIGRATIONS, ...FAILED_UPDATE_MIGRATIONS]);
  db.exec(`INSERT INTO vm VALUES ('vm1', 1, '{}', 'x', '{}')`);
  const real = openJournal(db);
  let isDiskFull = false;
  let diskIsReady: Promise<void> = Promise.resolve();
  const journal: typeof real = {
    ...real,
    saveState: async (...args) => {
      if (isDiskFull) throw new Error('database or disk is full');
      await diskIsReady;
      await real.saveState(...args);
    },
  };
  const done: string[] = [];
  const held = new Map<EffectKind, PromiseWithResolvers<void>>();
  const failing = new Set<EffectKind>();
  let gate: Gate = state.kind === 'connected' ? 'open' : 'closed';
  const perform = async (effect: Effect): Promise<Answer | null> => {
    await held.get(effect.kind)?.promise;
    if (failing.has(effect.kind)) throw new Error(`${effect.kind} does not work`);
    done.push(effect.kind);
    if (effect.kind === 'close-gate') gate = 'closed';
    if (effect.kind === 'open-gate') gate = 'open';
    if (effect.kind === 'judge') return { kind: 'judged', evidence };
    if (effect.kind === 'open-gate') return { kind: 'opened' };
    if (effect.kind === 'detach-drive') return { kind: 'drive-detached' };
    return null;
  };
  const runner = makeRunner(
    { vm: VM, policy: () => DEFAULT_POLICY, journal, clock, log: silentLog, perform, isRunning: () => true },
    { step: 1, state },
    clock.nowMs(),
  );
  return {
    clock,
    runner,
    done,
    gate: () => gate,
    /** Saving waits for the promise. */
    slowDisk: (ready: Promise<void>) => {
      diskIsReady = ready;
    },
    fillDisk: (isFull: boolean) => {
      isDiskFull = isFull;
    },
    hold: (kind: EffectKind) => held.set(kind, Promise.withResolvers()),
    letGo: (kind: EffectKind) => {
      held.get(kind)?.resolve();
      held.delete(kind);
    },
    fail: (kind: EffectKind, isFailing: boolean) => (isFailing ? failing.add(kind) : failing.delete(kind)),
    /** Lets everything happen that does not need time. */
    rest: async () => {
      for (let turn = 0; turn < 20; turn += 1) await tick();
    },
  };
}

const reset = { kind: 'reset', isStopped: true, run: OTHER_RUN, atMs: 2 } as const;

test('an opening that is queued behind a slow effect is dropped when the run has moved on [A11]', async () => {
  const { runner, hold, letGo, gate, rest, done } = house({
    kind: 'opening',
    run: offered,
    session,
    phase: 'detaching',
    grant,
  });
  hold('resume-vm');
  await runner.resume(runner.state(), [{ kind: 'resume-vm', afterReset: true }, { kind: 'detach-drive' }]);
  await runner.resume({ kind: 'opening', run: offered, session, phase: 'plugging', grant }, [
    { kind: 'open-gate', grant },
  ]);
  runner.post(reset);
  await rest();
  assert.ok(done.includes('close-gate'), 'closing did not wait');
  letGo('resume-vm');
  await rest();
  assert.equal(gate(), 'closed', done.join(' '));
  assert.ok(!done.includes('open-gate'));
});

test('a gate that could not be closed is closed again until it is, also when the run has moved on [A11]', async () => {
  const { runner, fail, gate, rest, clock } = house({ kind: 'connected', run: offered, session, grant, trouble: null });
  fail('close-gate', true);
  runner.post({ kind: 'monitor-lost', detail: 'x' });
  await rest();
  assert.equal(runner.state().kind, 'quarantined');
  assert.equal(gate(), 'open', 'positive control: it really failed');
  for (let turn = 0; turn < 3; turn += 1) {
    clock.moveTo(clock.monotonicMs() + GATE_CLOSE_RETRY_MAX_MS);
    await rest();
  }
  fail('close-gate', false);
  clock.moveTo(clock.monotonicMs() + GATE_CLOSE_RETRY_MAX_MS);
  await rest();
  assert.equal(gate(), 'closed');
  assert.equal(clock.timers(), 0, 'and then it rests');
});

test('a disk that is full does not keep the gate open, and the run goes on when there is room again [A11 X4]', async () => {
  const { runner, fillDisk, gate, rest, clock } = house({
    kind: 'connected',
    run: offered,
    session,
    grant,
    trouble: null,
  });
  fillDisk(true);
  runner.post({ kind: 'drive', session, state: 'released', manifestDigest: evidence.planDigest, code: '', detail: '' });
  await rest();
  assert.equal(gate(), 'open', 'positive control: that event closes nothing');
  runner.post(reset);
  clock.moveTo(clock.monotonicMs() + JOURNAL_RETRY_MS);
  await rest();
  assert.equal(gate(), 'closed', 'the reset waits behind an event that cannot be saved; closing does not');
  fillDisk(false);
  clock.moveTo(clock.monotonicMs() + JOURNAL_RETRY_MS);
  await rest();
  assert.equal(runner.state().kind, 'booting');
});

test('a request that cannot be saved is refused and changes nothing', async () => {
  const { runner, fillDisk, rest } = house({ kind: 'connected', run: offered, session, grant, trouble: null });
  fillDisk(true);
  await assert.rejects(runner.request({ kind: 'update', run: OTHER_RUN, atMs: 2 }), /full/);
  await rest();
  assert.equal(runner.state().kind, 'connected');
});

test('a runner that cannot save can be closed all the same', async () => {
  const { runner, fillDisk, rest } = house({ kind: 'connected', run: offered, session, grant, trouble: null });
  fillDisk(true);
  runner.post(reset);
  await rest();
  await runner.close();
});

test('a stop does not wait behind a long download, nor anything behind a guest that takes its time to power off', async () => {
  const { runner, hold, rest, done } = house({
    kind: 'planning',
    run: newRunWithPlan(1),
    session,
    phase: 'comparing',
  });
  hold('fetch-plan');
  await runner.resume({ kind: 'planning', run: newRunWithPlan(1), session, phase: 'fetching' }, [
    { kind: 'fetch-plan' },
  ]);
  await rest();
  await runner.request({ kind: 'stop', force: true });
  await rest();
  assert.ok(done.includes('stop-vm'));
});

test('a run that takes longer than its policy allows is quarantined, however often its states change [X8]', async () => {
  const { clock, runner, rest } = house({ kind: 'off' });
  const startedAtMs = clock.nowMs() - DEFAULT_POLICY.runDeadlineMs + 30_000;
  const run = { ...offered, startedAtMs };
  await runner.resume({ kind: 'reporting', run, session }, []);
  clock.moveTo(clock.monotonicMs() + 20_000);
  runner.post({ kind: 'inventory', session, rebootRequired: false });
  await rest();
  assert.equal(runner.state().kind, 'planning');
  clock.moveTo(clock.monotonicMs() + 9_000);
  await rest();
  assert.equal(runner.state().kind, 'planning', 'not a moment before');
  clock.moveTo(clock.monotonicMs() + 1_000);
  await rest();
  const state = runner.state();
  assert.ok(state.kind === 'quarantined' && state.reason.kind === 'deadline' && state.reason.state === 'run');
});

test('a clock that jumps by years, ahead or back, neither ends a run under way nor lengthens it', async () => {
  for (const years of [10, -10]) {
    const { clock, runner, rest } = house({ kind: 'off' });
    const run = { ...offered, startedAtMs: clock.nowMs() - DEFAULT_POLICY.runDeadlineMs + 30_000 };
    await runner.resume({ kind: 'reporting', run, session }, []);
    clock.jump(years * 365 * 86_400_000);
    clock.moveTo(clock.monotonicMs() + 10_000);
    // A move arms the deadlines anew.
    runner.post({ kind: 'inventory', session, rebootRequired: false });
    await rest();
    clock.moveTo(clock.monotonicMs() + 19_000);
    await rest();
    assert.equal(runner.state().kind, 'planning', `${years} years: not a moment before`);
    clock.moveTo(clock.monotonicMs() + 1_000);
    await rest();
    assert.equal(runner.state().kind, 'quarantined', `${years} years`);
  }
});

test('what happened to a VM that is plugged in closes its gate before a slow disk has taken it [A11 X4]', async () => {
  const { runner, gate, done, slowDisk, rest } = house({
    ...{ kind: 'connected', run: offered, session, grant, trouble: null },
  });
  const disk = Promise.withResolvers<void>();
  slowDisk(disk.promise);
  runner.post({ kind: 'reset', isStopped: true, run: OTHER_RUN, atMs: 1 });
  await rest();
  assert.equal(gate(), 'closed');
  assert.equal(runner.state().kind, 'connected', 'the disk has not taken it yet');
  assert.deepEqual(done, ['close-gate']);
  disk.resolve();
  await rest();
  assert.equal(runner.state().kind, 'booting');
  assert.equal(done.filter((kind) => kind === 'close-gate').length, 1, 'once');
});

test('however many closings fail, one is tried again at a time', async () => {
  const { clock, runner, fail, rest } = house({ kind: 'connected', run: offered, session, grant, trouble: null });
  fail('close-gate', true);
  for (let turn = 0; turn < 5; turn += 1) {
    runner.post({ kind: 'fence-changed', detail: 'x', run: OTHER_RUN, atMs: 1 });
    await rest();
  }
  const timers = clock.timers();
  for (let turn = 0; turn < 5; turn += 1) {
    runner.post({ kind: 'fence-changed', detail: 'x', run: OTHER_RUN, atMs: 1 });
    await rest();
  }
  assert.equal(clock.timers(), timers);
});
