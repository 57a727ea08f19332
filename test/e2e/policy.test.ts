// Policies on real VMs: what is held and on the record, a group that follows the configuration, and old metadata where it is gone by.
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { DEFAULT_POLICY } from '../../src/model/policy.ts';
import { assertConnected, type House, openHouse, type TestVm } from './harness.ts';

const HOUR_MS = 3_600_000;

/** Ends the daemon, lets the test change what lies on the host, and starts it again. */
async function meanwhile(house: House, change: () => Promise<void>): Promise<void> {
  await house.daemon.stop();
  await change();
  await house.daemon.start();
}

async function openings(vm: TestVm): Promise<string> {
  const records = (await vm.audit()).map(({ record }) => record);
  return JSON.stringify(records.filter(({ kind }) => kind === 'gate-opened'));
}

test("what a VM's group holds stays, the VM is plugged in with that on its record, and the group follows the configuration [A7] [A11]", async (t) => {
  const house = await openHouse(t, { version: '1.1.0' });
  const { service } = house;
  const configPath = join(house.folder, 'pratique.toml');
  const before = await readFile(configPath, 'utf8');
  await meanwhile(house, async () => {
    await writeFile(configPath, `${before}\n[groups.old]\nvms = ["guest*"]\n[groups.old.policy]\nholds = ["hel*"]\n`);
  });
  const vm = await house.addVm();
  const { policy, from, group } = await service.vmPolicy(vm.vm);
  assert.deepEqual([policy.holds, from.holds, group], [['hel*'], 'group', 'old']);
  await vm.start();
  await vm.hear(/bundle\/hello 1\.1\.0 \(security\) is left out: it is held at 1\.0\.0 by this VM's policy/);
  await vm.reach('connected');
  await assertConnected(vm, '1.0.0');
  assert.match(await openings(vm), /"leftOut":\[\{"item":"bundle\/hello","kind":"security".*"why":"held"/);
  assert.match((await service.whyVm(vm.vm)).remarks.join(), /hello 1\.1\.0 \(security\) is left out/);
  const row = (await service.drift()).find(({ product }) => product === 'hello');
  assert.match(row?.remark ?? '', /held at 1\.0\.0/);

  // The group's policy goes, and a name that is gone is no reason to be more generous.
  await meanwhile(house, async () => await writeFile(configPath, before));
  assert.equal((await service.vmPolicy(vm.vm)).group, null);
  assert.equal((await service.showVm(vm.vm)).gate, 'open', 'a changed policy unplugs nobody');
  await vm.order('reset');
  await vm.hear(/^closed: guest reset/);
  await vm.reach('connected');
  await assertConnected(vm, '1.1.0');

  await assert.rejects(service.setVmPolicy(vm.vm, { set: {}, unset: [], group: 'old', actor: 'ann' }), /no group old/);
  await service.setVmPolicy(vm.vm, { set: { install: 'listed', packages: ['nothing'] }, unset: [], actor: 'ann' });
  await assert.rejects(service.planVm(vm.vm), /nothing that this VM has is listed/);
  const change = (await vm.audit()).find(({ record }) => record.kind === 'operator' && record.action === 'policy');
  assert.deepEqual([change?.record.actor, change?.record.detail], ['ann', 'install=listed packages=nothing']);
  await service.setVmPolicy(vm.vm, { set: {}, unset: ['install', 'packages'], actor: 'ann' });
  assert.deepEqual((await service.planVm(vm.vm)).items, []);
});

test('while the vendor is away and what is known is a day old the VM stays gated; where the policy goes by it, the age is on the record [A7] [A11]', async (t) => {
  const house = await openHouse(t, { version: '1.1.0' });
  const { service } = house;
  const vm = await house.addVm();
  await vm.start();
  await vm.reach('connected');
  await service.stopVm(vm.vm, { force: true });
  await vm.reach('off');
  await meanwhile(house, async () => {
    await house.server.close();
    // As if the host had been asleep: verified 30 hours ago, with signatures that hold for weeks.
    const path = join(house.folder, 'data/vendors/demo/trust.json');
    const state = JSON.parse(await readFile(path, 'utf8'));
    state.verified.checkedAtMs -= 30 * HOUR_MS;
    await writeFile(path, JSON.stringify(state));
  });
  assert.equal((await service.listVendors())[0]?.isFresh, false);
  await vm.start();
  await vm.reach('quarantined');
  assert.match((await service.whyVm(vm.vm)).reason, /Whether it is up to date cannot be known: demo cannot be asked/);

  await service.setVmPolicy(vm.vm, { set: { metadataAgeMaxMs: 31 * HOUR_MS }, unset: [], actor: 'ann' });
  await service.retryVm(vm.vm);
  await vm.reach('connected');
  assert.doesNotMatch(await openings(vm), /"fresh":false/, 'positive control: within the age it is simply believed');

  await service.setVmPolicy(vm.vm, { set: { vendorAway: 'admit' }, unset: ['metadataAgeMaxMs'], actor: 'ann' });
  assert.equal((await service.vmPolicy(vm.vm)).policy.metadataAgeMaxMs, DEFAULT_POLICY.metadataAgeMaxMs);
  await vm.order('reset');
  await vm.hear(/^open: the cable is plugged in, on vendor metadata 30 hours old \(demo\)$/);
  await vm.reach('connected');
  await assertConnected(vm, '1.1.0');
  assert.match(await openings(vm), /"fresh":false/);
  assert.match(
    (await service.whyVm(vm.vm)).remarks.join(),
    /It was plugged in on vendor metadata 30 hours old \(demo\)/,
  );
});
