// What somebody else does to the host's packet filter while VMs run behind the gate.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runCommand } from '../../src/base/run-command.ts';
import { enterPrefix } from '../../src/hypervisor/namespace.ts';
import { namespaceOf } from '../../src/update/taps.ts';
import { openHouse } from './harness.ts';

test('a flushed rule set is noticed: the gate closes, the fence stands again, and an up-to-date VM is back by itself [A11] [X1]', async (t) => {
  const house = await openHouse(t, { version: '1.1.0' });
  const vm = await house.addVm();
  await vm.start();
  await vm.reach('connected');
  const enter = enterPrefix(namespaceOf((await house.service.showVm(vm.vm)).spec));
  const table = async () => await runCommand([...enter, 'nft', 'list', 'ruleset']);
  assert.match(await table(), /table bridge pratique/);

  await runCommand([...enter, 'nft', 'flush', 'ruleset']);
  assert.doesNotMatch(await table(), /table bridge pratique/, 'positive control: the fence is gone');
  await vm.hear(/closed: the fence was changed by somebody else/);
  await vm.reach('connected');
  assert.match(await table(), /table bridge pratique/);
  const kinds = (await vm.audit()).map(({ record }) => record.kind);
  assert.deepEqual(
    kinds.slice(kinds.lastIndexOf('gate-closed')),
    ['gate-closed', 'gate-opened'],
    'closed, then new evidence',
  );
  assert.ok(await vm.isHeard(), 'it is on the network again');
});
