// Crashes, resets and later updates on real VMs: after each the VM is as before or updated, never plugged in wrongly, and the
// run goes on by itself.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isAlive } from '../../src/base/process-id.ts';
import { assertConnected, crash, openHouse } from './harness.ts';

test('a daemon killed in each state of one run takes the same VM over and brings it to the network by itself [X4] [A11]', async (t) => {
  const { daemon, addVm } = await openHouse(t, { version: '1.1.0', installSeconds: 2 });
  const vm = await addVm();
  await vm.start();
  const hits: string[] = [];
  let qemu = null;
  for (const state of ['booting', 'planning', 'installing', 'opening', 'connected'] as const) {
    await vm.reach(state);
    if (state === 'booting') await vm.hear(/^closed: start/); // Its process is there; before, a new one is right.
    await daemon.kill();
    hits.push(vm.journaledState());
    qemu ??= await vm.qemu();
    await daemon.start();
    assert.deepEqual(await vm.qemu(), qemu, `killed while ${state}: the same process`);
  }
  t.diagnostic(`killed while ${hits.join(', ')}`);
  assert.equal(hits[0], 'booting');
  assert.equal(hits[2], 'installing');
  assert.equal(hits[4], 'connected');
  await assertConnected(vm, '1.1.0');
  const events = await vm.events();
  const openings = events.filter(({ kind, text }) => kind === 'gate' && text.startsWith('open'));
  const last = events.findLastIndex(({ kind, text }) => kind === 'gate' && text.startsWith('closed'));
  assert.equal(openings.length, 1, 'plugged in once');
  assert(
    events.findIndex(({ kind, text }) => kind === 'gate' && text.startsWith('open')) > last,
    'and never unplugged',
  );
});

test('a VM whose QEMU is killed in the middle of an install is started again and ends updated [X4] [A11]', async (t) => {
  const { addVm } = await openHouse(t, { version: '1.1.0', installSeconds: 3 });
  const vm = await addVm();
  await vm.start();
  await vm.reach('installing');
  const first = await vm.qemu();
  await crash(first);
  await vm.reach('booting');
  await assertConnected(vm, '1.1.0');
  assert.notDeepEqual(await vm.qemu(), first);
});

test('a VM through its days: updated, reset by its guest, updated live, staged while off, updated with the vendor gone [A1] [A2] [A12]', async (t) => {
  const { service, server, publish, addVm } = await openHouse(t, { version: '1.1.0' });
  const vm = await addVm();
  await vm.start();
  await assertConnected(vm, '1.1.0');

  await t.test('a guest that resets itself is unplugged before it runs again, and plugged in anew [A2]', async () => {
    const before = await vm.qemu();
    await vm.reach('connected');
    await vm.order('reset');
    await vm.hear(/the guest reset itself/);
    await vm.hear(/^closed: guest reset/);
    await vm.reach('connected');
    await assertConnected(vm, '1.1.0');
    assert.deepEqual(await vm.qemu(), before);
  });

  await t.test('a newer release is pushed to the VM while it stays plugged in [A12]', async () => {
    await publish({ version: '1.2.0', installSeconds: 1 });
    const closings = async () => (await vm.events()).filter(({ text }) => text.startsWith('closed')).length;
    const [before, qemu] = [await closings(), await vm.qemu()];
    await service.updateVm(vm.vm);
    await vm.reach('installing');
    assert.equal((await service.showVm(vm.vm)).gate, 'open');
    assert(await vm.isHeard(), 'it sends while it installs');
    await vm.reach('connected');
    await assertConnected(vm, '1.2.0');
    assert.equal(await closings(), before, 'the gate was never closed');
    assert.deepEqual(await vm.qemu(), qemu);
  });

  await t.test('what a VM needs is staged while it is off, and installed though the vendor is gone [A1]', async () => {
    await publish({ version: '1.3.0' });
    await service.stopVm(vm.vm, { force: true });
    await vm.reach('staged');
    await server.close();
    await vm.start();
    await vm.reach('connected');
    await assertConnected(vm, '1.3.0');
  });
});

test('a VM that an operator admits is plugged in, and the audit chain says who and why [A11] [X2]', async (t) => {
  const { service, addVm } = await openHouse(t, { version: '1.1.0' });
  const vm = await addVm({ hasAgent: false });
  await vm.start();
  await vm.reach('booting');
  await service.admitVm(vm.vm, { reason: 'it carries our only way to the vendor', actor: 'ann' });
  await vm.reach('connected');
  await assertConnected(vm, '1.0.0');
  const overrides = (await vm.audit()).filter(({ record }) => record.kind === 'override');
  assert.equal(overrides.length, 1);
  assert.match(JSON.stringify(overrides[0]?.record), /our only way to the vendor.*/);
  assert.match(JSON.stringify(overrides[0]?.record), /ann/);
  assert.equal((await service.auditVerify()).isIntact, true);
});

test('a release that asks for a reboot is confirmed after it, gated all the while [A10] [A11]', async (t) => {
  const { addVm } = await openHouse(t, { version: '1.1.0', behaviour: 'reboot' });
  const vm = await addVm();
  await vm.start();
  await vm.reach('rebooting');
  await vm.reach('booting');
  await vm.reach('connected');
  await assertConnected(vm, '1.1.0');
});

test('a release that fails its check keeps the VM off the network until a better one is there and it is retried [X8]', async (t) => {
  const { service, publish, addVm } = await openHouse(t, { version: '1.1.0', behaviour: 'check-fails' });
  const vm = await addVm();
  await vm.start();
  assert.equal(await vm.settle(), 'quarantined');
  const why = await service.whyVm(vm.vm);
  assert.match(why.reason, /bundle\/hello failed.*does not answer with the new version/);
  assert.match(why.next, /pratique vm retry/);
  assert.deepEqual(await vm.frames(), []);
  const qemu = await vm.qemu();
  await publish({ version: '1.1.1' });
  await service.retryVm(vm.vm);
  await vm.reach('connected');
  await assertConnected(vm, '1.1.1');
  assert(await isAlive(qemu), 'without a restart of the VM');
});
