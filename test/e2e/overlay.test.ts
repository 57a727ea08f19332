// Snapshot or abort on real VMs: an update on a disk overlay is merged after its confirmation, or thrown away with all that it wrote.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { access, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { assertConnected, crash, type House, openHouse, type TestVm } from './harness.ts';

const POLICY = { overlay: true } as const;
const BEGUN = /updates on a disk overlay/;
const MERGED = /overlay is merged into its disk/;
const THROWN_AWAY = /overlay is thrown away; the disk is as before/;
/** What a release does that writes and then fails: the garbage must not survive it. */
const SPOIL = 'dd if=/dev/urandom of=/srv/www/spoiled bs=65536 count=32 2>/dev/null\nsync\nexit 1';

async function digestOfDisk(house: House, vm: TestVm): Promise<string> {
  const { spec } = await house.service.showVm(vm.vm);
  assert(spec.kind === 'managed' && spec.disks[0] !== undefined);
  return createHash('sha256')
    .update(await readFile(spec.disks[0].path))
    .digest('hex');
}

const overlayFolder = (house: House, vm: TestVm): string => join(house.folder, 'data/overlays', vm.vm);

async function hasOverlay(house: House, vm: TestVm): Promise<boolean> {
  return await access(overlayFolder(house, vm)).then(
    () => true,
    () => false,
  );
}

const begun = async (vm: TestVm): Promise<number> => (await vm.events()).filter(({ text }) => BEGUN.test(text)).length;

test('an update that is confirmed on an overlay is merged into the disk while the VM runs, and stays there [X5]', async (t) => {
  const house = await openHouse(t, { version: '1.1.0', installSeconds: 2 });
  const vm = await house.addVm({ policy: POLICY });
  await vm.start();
  await vm.hear(BEGUN);
  const before = await digestOfDisk(house, vm);
  await vm.reach('judging');
  assert.equal(await digestOfDisk(house, vm), before, 'the installation wrote nothing to the disk itself');
  await vm.reach('connected');
  await vm.hear(MERGED);
  assert.equal(await hasOverlay(house, vm), false);
  await assertConnected(vm, '1.1.0');
  assert.notEqual(await digestOfDisk(house, vm), before, 'positive control: it is in the disk now');

  await house.service.stopVm(vm.vm, { force: true });
  await vm.reach('off');
  await vm.start();
  await vm.reach('connected');
  await assertConnected(vm, '1.1.0');
  assert.equal(await begun(vm), 1, 'what is up to date needs no overlay');
});

test('an update that fails is thrown away: the disk is as before, the VM boots gated, and only a newer version is tried [X5] [X8]', async (t) => {
  const house = await openHouse(t, { version: '1.1.0', installSeconds: 2, installLines: SPOIL });
  const { service } = house;
  const vm = await house.addVm({ policy: POLICY });
  await vm.start();
  await vm.hear(BEGUN);
  const [before, qemu] = [await digestOfDisk(house, vm), await vm.qemu()];
  await vm.reach('installing');
  await vm.hear(THROWN_AWAY);
  assert.equal(await digestOfDisk(house, vm), before, 'byte for byte');
  assert.equal(await hasOverlay(house, vm), false);
  assert.equal(await vm.settle(), 'quarantined');
  const why = await service.whyVm(vm.vm);
  assert.match(
    why.reason,
    /rolled back.*VM is as before.*bundle\/hello failed.*Not tried again by itself: bundle\/hello 1\.1\.0/,
  );
  assert.match(why.next, /newer release.*pratique vm retry/);
  await vm.hear(/^closed: start/);
  assert.notDeepEqual(await vm.qemu(), qemu, 'it boots again');

  await t.test('the same version is not tried again at the next start [X5]', async () => {
    await service.stopVm(vm.vm, { force: true });
    await vm.reach('off');
    await vm.start();
    await vm.reach('quarantined');
    assert.equal(await begun(vm), 1);
    assert.match((await service.whyVm(vm.vm)).reason, /hello 1\.1\.0.*failed on this VM before/);
    assert.deepEqual(await vm.frames(), [], 'not a single frame in all this time');
  });

  await t.test('a newer version is [X5]', async () => {
    await house.publish({ version: '1.2.0' });
    await service.stopVm(vm.vm, { force: true });
    await vm.reach('off');
    await vm.start();
    await vm.reach('connected');
    await vm.hear(MERGED);
    await assertConnected(vm, '1.2.0');
    assert.match((await vm.page('/spoiled')) ?? '', /404/, 'nothing is left of the one that failed');
    assert.equal(await begun(vm), 2);
  });
});

test('where no overlay can be made the update does not start, and why says so [X5] [X8]', async (t) => {
  const house = await openHouse(t, { version: '1.1.0' });
  const vm = await house.addVm({ policy: POLICY });
  const folder = join(house.folder, 'data/overlays');
  await rm(folder, { recursive: true, force: true });
  await writeFile(folder, 'somebody put a file here');
  await vm.start();
  assert.equal(await vm.settle(), 'quarantined');
  const why = await house.service.whyVm(vm.vm);
  assert.match(why.reason, /begin-overlay.*no disk overlay can be made/);
  const audit = await vm.audit();
  assert(!audit.some(({ record }) => record.kind === 'offer'), 'nothing was offered');
  assert.deepEqual(await vm.frames(), []);

  await rm(folder);
  await house.service.retryVm(vm.vm);
  await vm.reach('connected');
  await vm.hear(MERGED);
  await assertConnected(vm, '1.1.0');
});

test('a power cut in each phase of an overlay ends as before or updated, by itself [X4] [X5]', async (t) => {
  const house = await openHouse(t, { version: '1.1.0', installSeconds: 2 });

  await t.test('QEMU killed on trial: thrown away, begun anew, merged', async () => {
    const vm = await house.addVm({ policy: POLICY });
    await vm.start();
    await vm.reach('installing');
    await crash(await vm.qemu());
    await vm.hear(THROWN_AWAY);
    await vm.hear(BEGUN);
    await vm.reach('connected');
    await vm.hear(MERGED);
    await assertConnected(vm, '1.1.0');
    await house.service.stopVm(vm.vm, { force: true });
  });

  await t.test('the daemon killed on trial: the same VM goes on on its overlay', async () => {
    const vm = await house.addVm({ policy: POLICY });
    await vm.start();
    await vm.reach('installing');
    const qemu = await vm.qemu();
    await house.daemon.kill();
    await house.daemon.start();
    await vm.reach('connected');
    await vm.hear(MERGED);
    await assertConnected(vm, '1.1.0');
    assert.deepEqual(await vm.qemu(), qemu);
    assert.equal(await begun(vm), 2, 'asked for twice, made once');
    await house.service.stopVm(vm.vm, { force: true });
  });

  await t.test(
    'both killed as soon as it is plugged in: what was accepted is merged before it starts again',
    async () => {
      const vm = await house.addVm({ policy: POLICY });
      await vm.start();
      await vm.hear(/^open: the cable/);
      await house.daemon.kill();
      await crash(await vm.qemu());
      await house.daemon.start();
      const state = await vm.settle();
      if (state !== 'connected') await vm.start();
      await vm.reach('connected');
      await assertConnected(vm, '1.1.0');
      assert.equal(await hasOverlay(house, vm), false);
      assert.equal(await begun(vm), 1, 'the update was not lost');
      await house.service.stopVm(vm.vm, { force: true });
    },
  );
});

test('an update whose check fails is rolled back; the operator may have it tried again [X5]', async (t) => {
  const house = await openHouse(t, { version: '1.1.0', behaviour: 'check-fails' });
  const vm = await house.addVm({ policy: POLICY });
  await vm.start();
  await vm.hear(THROWN_AWAY);
  await vm.hear(/^closed: start/);
  assert.match((await house.service.whyVm(vm.vm)).reason, /does not answer with the new version/);
  await house.service.retryVm(vm.vm);
  await vm.hear(BEGUN);
  await vm.hear(THROWN_AWAY);
  assert.equal(await vm.settle(), 'quarantined');
  assert.deepEqual(await vm.frames(), []);
});
