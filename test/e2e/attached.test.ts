// VMs whose QEMU somebody else started, with real ones: gated from their first instruction when they are attached before it,
// gated again after a reset, and never plugged in when they ran before.
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { type TestContext, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { makeHouse } from './harness.ts';
import { startOwn } from './own-qemu.ts';

async function house(t: TestContext) {
  const made = await makeHouse({ version: '1.1.0' });
  const qemus: ChildProcess[] = [];
  t.after(async () => {
    for (const qemu of qemus.filter(({ exitCode, signalCode }) => exitCode === null && signalCode === null)) {
      qemu.kill('SIGKILL');
      await once(qemu, 'exit');
    }
    await made.close();
  });
  const addOwn = async (isPaused: boolean) =>
    await made.addVm({
      change: async (spec) => {
        const { qemu, attached } = await startOwn(spec, { folder: made.folder, isPaused });
        qemus.push(qemu);
        await systemClock.sleep(500); // Until its sockets are there.
        return attached;
      },
    });
  return { ...made, addOwn, qemus };
}

test("somebody else's VM is attached before it runs, updated behind the gate and plugged in; gated again after a reset [A16] [A2] [X1]", async (t) => {
  const { addOwn, service } = await house(t);
  const vm = await addOwn(true);
  await vm.start();
  await vm.hear(/^closed: start/);
  assert.equal((await service.showVm(vm.vm)).gate, 'closed');
  await vm.reach('judging');
  assert.deepEqual(await vm.frames(), [], 'nothing arrived while it was updated');
  await vm.reach('connected');
  assert.equal(await vm.served(), '1.1.0');
  assert(await vm.isHeard(), 'positive control: its frames arrive now');
  assert.deepEqual(await vm.strayFrames(), []);

  await vm.order('reset');
  const told = await vm.hear(/the guest reset itself/);
  const closed = await vm.hear(/^closed: guest reset/);
  await vm.reach('connected');
  assert.equal(await vm.served(), '1.1.0');
  assert(await vm.isHeard());
  // It boots on until the close, milliseconds after QEMU told of the reset: the window that SECURITY.md names.
  t.diagnostic(`closed ${closed.atMs - told.atMs} ms after the reset was told`);
  assert.deepEqual(await vm.strayFrames(), []);
  const opened = (await vm.audit()).filter(({ record }) => record.kind === 'gate-opened');
  assert.equal(opened.length, 2, 'each boot was judged for itself');
});

test('a VM that ran before it was attached is fenced and quarantined, and why says so [A16] [X8]', async (t) => {
  const { addOwn, service } = await house(t);
  const vm = await addOwn(false);
  assert(await vm.isHeard(), 'it is on the network before we come');
  await vm.start();
  assert.equal(await vm.settle(), 'quarantined');
  const closed = await vm.hear(/^closed: quarantined: ungated-start/);
  const why = await service.whyVm(vm.vm);
  assert.equal(why.isPlugged, false);
  assert.match(why.reason, /It ran before Pratique took it over/);
  assert.match(why.next, /Power it off and on/);
  t.diagnostic(`${why.reason} ${why.next}`);
  await systemClock.sleep(3_000); // Some thirty frames of its chatter.
  const later = (await vm.frames()).filter(({ atMs }) => Math.floor(atMs) > closed.atMs);
  assert.deepEqual(later, []);
  const { fenceDropped } = await service.showVm(vm.vm);
  t.diagnostic(`dropped by the fence: ${JSON.stringify(fenceDropped)}`);
});
