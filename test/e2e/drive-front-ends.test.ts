// Each kind of drive on real guests, from power-on to plugged in; media that change in one tray while the guest runs; a guest that does
// not let go; and a VM that has no place for the drive it is to have. NVMe is built into the cloud kernel; AHCI and USB only the
// generic one knows. virtio-blk and scsi-cd go through whole runs in other tests too, so by default they are left out here.
import assert from 'node:assert/strict';
import { after, before, type TestContext, test } from 'node:test';
import type { KernelFlavour } from '../../images/kernel.ts';
import type { ManagedVm } from '../../src/hypervisor/vm-spec.ts';
import type { DriveFrontEnd } from '../../src/model/drive.ts';
import { assertConnected, type House, makeHouse, type TestVm } from './harness.ts';

const isFull = process.env.PRATIQUE_TEST_FULL === '1';
/** ide-cd has a test of its own. */
const SAMPLE: readonly DriveFrontEnd[] = isFull
  ? ['virtio-blk', 'scsi-cd', 'nvme', 'usb-storage']
  : ['nvme', 'usb-storage'];
const KERNELS: Readonly<Record<DriveFrontEnd, KernelFlavour>> = {
  'virtio-blk': 'cloud',
  'scsi-cd': 'cloud',
  nvme: 'cloud',
  'ide-cd': 'generic',
  'usb-storage': 'generic',
};
/** How the guest's kernel names each; the order disk is a virtio-blk device too. */
const DEVICES: Readonly<Record<DriveFrontEnd, RegExp>> = {
  'virtio-blk': /^vd/,
  'scsi-cd': /^sr/,
  nvme: /^nvme\d+n1$/,
  'ide-cd': /^sr/,
  'usb-storage': /^sd/,
};

/** Notes where the drive is mounted, for a page that the guest serves once it is plugged in. */
const NOTE_DRIVE = `grep ' /run/pratique/drive ' /proc/mounts >/srv/www/drive\n`;
const BOOT_ID = `#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
exec cat /proc/sys/kernel/random/boot_id
`;
/** Something in the guest stays in the drive until it is told to leave it. */
const HOLD_DRIVE = `setsid /usr/lib/pratique-guest/holder </dev/null >/dev/null 2>&1 &\n`;
const PROGRAMS = {
  '/usr/lib/pratique-guest/holder': `#!/bin/sh
cd /run/pratique/drive
until [ -e /run/let-go ]; do usleep 100000; done
cd /
: >/run/gone
`,
  '/srv/www/cgi-bin/let-go': `#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
: >/run/let-go
until [ -e /run/gone ]; do usleep 100000; done
echo gone
`,
  '/srv/www/cgi-bin/boot': BOOT_ID,
};

const RELEASE = { version: '1.1.0', installLines: NOTE_DRIVE } as const;
const houses = new Map<KernelFlavour, House>();
before(async () => {
  for (const flavour of ['cloud', 'generic'] as const) {
    houses.set(flavour, await makeHouse(RELEASE, flavour));
  }
});
after(async () => {
  for (const { close } of houses.values()) await close();
});

async function addVm(frontEnd: DriveFrontEnd): Promise<TestVm> {
  const house = houses.get(KERNELS[frontEnd]);
  assert(house !== undefined);
  const change = (spec: ManagedVm): ManagedVm => ({
    ...spec,
    ...(frontEnd === 'scsi-cd' ? { scsi: true } : {}),
    drive: { frontEnd },
  });
  return await house.addVm({
    change,
    programs: PROGRAMS,
  });
}

async function runThrough(t: TestContext, frontEnd: DriveFrontEnd, vm: TestVm): Promise<void> {
  await vm.start();
  await vm.reach('judging');
  assert.deepEqual(await vm.frames(), [], 'nothing arrived while it was updated');
  await vm.hear(/^the drive is detached$/);
  await vm.reach('connected');
  await assertConnected(vm, '1.1.0');
  const mount = (await vm.page('/drive')) ?? '';
  const [, device = '', options = ''] = /^\/dev\/(\S+) \S+ iso9660 (\S+)/.exec(mount) ?? [];
  assert.match(device, DEVICES[frontEnd], mount);
  assert.match(options, /^ro,/);
  t.diagnostic(`${frontEnd} was /dev/${device}`);
}

test('a guest is updated from each kind of drive before it is plugged in, and the drive is gone then [A4] [A8]', {
  concurrency: 2,
}, async (t) => {
  const vms: (readonly [DriveFrontEnd, TestVm])[] = [];
  for (const frontEnd of SAMPLE) vms.push([frontEnd, await addVm(frontEnd)]);
  if (!isFull) t.diagnostic(`sample: ${SAMPLE.join(', ')}; PRATIQUE_TEST_FULL=1 runs all`);
  await Promise.all(vms.map(([frontEnd, vm]) => t.test(frontEnd, (t) => runThrough(t, frontEnd, vm))));
});

test('media change in the tray of a running guest; one that does not let go loses it after the deadline, and the next one comes [A4] [A12]', async (t) => {
  const vm = await addVm('ide-cd');
  await runThrough(t, 'ide-cd', vm);
  await changeMedia(t, vm);
});

/** Two further drives in the same tray of a guest that is plugged in; from the first it does not let go. */
async function changeMedia(t: TestContext, vm: TestVm): Promise<void> {
  const house = houses.get(KERNELS['ide-cd']);
  assert(house !== undefined);
  const boot = await vm.page('/cgi-bin/boot');
  assert.match(boot ?? '', /^[0-9a-f-]{36}$/);

  await house.publish({ ...RELEASE, version: '1.2.0', installLines: HOLD_DRIVE });
  await house.service.updateVm(vm.vm);
  const released = await vm.hear(/^opening/);
  const taken = await vm.hear(/^the guest did not let go of the drive; it was taken away$/);
  t.diagnostic(`a locked tray was opened by force after ${taken.atMs - released.atMs} ms`);
  await vm.reach('connected');
  assert.equal(await vm.served(), '1.2.0');

  // Once nothing in the guest holds the old medium any more.
  assert.equal(await vm.page('/cgi-bin/let-go'), 'gone');
  await house.publish({ ...RELEASE, version: '1.3.0' });
  await house.service.updateVm(vm.vm);
  await vm.hear(/^the drive is detached$/);
  await vm.reach('connected');
  await assertConnected(vm, '1.3.0');
  assert.equal(await vm.page('/cgi-bin/boot'), boot, 'without a reboot');
}

test('a VM that has no place for the drive it is to have stays unplugged, and why names the choice [A4] [X8]', async (t) => {
  const house = houses.get('cloud');
  assert(house !== undefined);
  const vm = await house.addVm({ change: (spec) => ({ ...spec, drive: { frontEnd: 'scsi-cd' } }) });
  await vm.start();
  assert.equal(await vm.settle(), 'quarantined');
  assert.deepEqual(await vm.frames(), []);
  const why = await house.service.whyVm(vm.vm);
  assert.match(why.reason, /no place for a drive as scsi-cd, only for virtio-blk, nvme/);
  t.diagnostic(`${why.reason} ${why.next}`);
});
