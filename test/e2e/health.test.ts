// Health checks on a real guest: what must work before the cable is plugged in.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { assertConnected, openHouse } from './harness.ts';

test('a guest is plugged in once its port answers and its bundle passes its own check, and not while one of them fails [A11]', async (t) => {
  const house = await openHouse(t, { version: '1.1.0' });
  const { service } = house;
  const vm = await house.addVm({ policy: { health: ['port:80', 'bundle:hello', 'port:81'], healthTimeoutMs: 1_000 } });
  await vm.start();
  assert.equal(await vm.settle(), 'quarantined');
  const why = await service.whyVm(vm.vm);
  assert.match(
    why.reason,
    /a health check of its policy did not pass: port:81: nothing answers on loopback \(ECONNREFUSED\)/,
  );
  assert.equal((await service.showVm(vm.vm)).gate, 'closed');
  assert.deepEqual(await vm.frames(), []);
  t.diagnostic(`${why.reason} ${why.next}`);

  await service.setVmPolicy(vm.vm, { set: { health: ['port:80', 'bundle:hello'] }, unset: [], actor: 'ann' });
  await service.retryVm(vm.vm);
  await vm.reach('connected');
  await assertConnected(vm, '1.1.0');
  const opening = (await vm.audit()).map(({ record }) => record).findLast(({ kind }) => kind === 'gate-opened');
  assert.match(JSON.stringify(opening), /"health":\["port:80","bundle:hello"\]/);
});
