// Taking over somebody else's QEMU: what is checked, what is refused, and how it is known again. Real taps and fence, fake QEMU.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { makeNamespace } from '../../../test/fakes/namespace.ts';
import { type FakeQemuOptions, startFakeQemu } from '../../../test/fakes/qemu.ts';
import { systemClock } from '../../base/clock.ts';
import { describeError } from '../../base/errors.ts';
import { silentLog } from '../../base/log.ts';
import type { VmId } from '../../model/ids.ts';
import { openFence } from '../fence.ts';
import type { AttachedVm } from '../vm-spec.ts';
import { makeQmpDriver } from './driver.ts';
import { readNetworkText } from './network-text.ts';
import { connectQmp } from './qmp-client.ts';

async function house(t: TestContext) {
  const folder = await mkdtemp(join(tmpdir(), 'pq-att-'));
  const net = await makeNamespace();
  t.after(net.close);
  await net.ip(
    'link add br0 type bridge',
    'tuntap add dev vnet3 mode tap',
    'link set vnet3 master br0',
    'tuntap add dev loose mode tap',
    'link add veth0 type veth peer name veth1',
    'link set veth0 master br0',
  );
  const fence = await openFence({ namespace: net.namespace, log: silentLog, clock: systemClock });
  t.after(async () => {
    fence.close();
    await rm(folder, { recursive: true });
  });
  const driver = () =>
    makeQmpDriver({
      runFolder: folder,
      overlayFolder: join(folder, 'overlays'),
      diskRoots: [],
      fenceFor: async () => fence,
      clock: systemClock,
      log: silentLog,
      accelerator: 'tcg',
    });
  const qmpSocket = join(folder, 'q');
  const spec = (nics: AttachedVm['nics'] = [{ id: 'net0', tap: 'vnet3' }]): AttachedVm => ({
    format: 'pratique.vm/1',
    kind: 'attached',
    vm: 'theirs' as VmId,
    qmpSocket,
    channelSocket: join(folder, 'a'),
    nics,
    drivePort: 'rp1',
    namespace: net.namespace,
  });
  const qemu = async (options: Partial<FakeQemuOptions> = {}) => {
    const fake = await startFakeQemu({ qmpSocket, nics: [{ id: 'net0', tap: 'vnet3' }], ports: ['rp1'], ...options });
    t.after(fake.close);
    return fake;
  };
  return { driver, fence, spec, qemu };
}

test('a VM that has not run yet is fresh, and its tap is fenced under its own name [A2] [X1]', async (t) => {
  const { driver, fence, spec, qemu } = await house(t);
  await qemu();
  const vm = await driver().start(spec());
  t.after(vm.release);
  assert.deepEqual(vm.adopted, { kind: 'fresh' });
  const state = await fence.verify();
  assert.equal(state.fault, null);
  assert(state.gated.has('vnet3') && !state.admitted.has('vnet3'));
});

test('a card that is not gated is left alone whatever it is connected to; the other one is fenced and unplugged', async (t) => {
  const { driver, fence, spec, qemu } = await house(t);
  const cards = [
    { id: 'net0', tap: 'vnet3' },
    { id: 'mgmt', tap: 'none', backend: 'user' },
  ];
  const fake = await qemu({ nics: cards });
  await assert.rejects(driver().start(spec(cards)), /"mgmt" is connected by user, not by a tap/, 'positive control');
  const vm = await driver().start(
    spec([
      { id: 'net0', tap: 'vnet3' },
      { id: 'mgmt', tap: 'none', gated: false },
    ]),
  );
  t.after(vm.release);
  await vm.lowerLinks();
  assert.deepEqual(
    [...fake.links],
    [
      ['net0', false],
      ['mgmt', true],
    ],
  );
  assert.deepEqual(
    vm.taps.map(({ name }) => name),
    ['vnet3'],
  );
  assert.deepEqual([...(await fence.verify()).gated], ['vnet3']);
});

test('a card that its owner plugged in meanwhile keeps the links down [A11] [X1]', async (t) => {
  const { driver, spec, qemu } = await house(t);
  const cards = [{ id: 'net0', tap: 'vnet3' }];
  const fake = await qemu({ nics: cards });
  const vm = await driver().start(spec());
  t.after(vm.release);
  await vm.lowerLinks();
  cards.push({ id: 'late', tap: 'vnet9' });
  const refused = await vm.raiseLinks().catch((error: unknown) => error);
  assert.match(describeError(refused), /a network card "late" that its spec does not name/);
  assert.equal(fake.links.get('net0'), false);
  cards.pop();
  await vm.raiseLinks();
  assert.equal(fake.links.get('net0'), true, 'positive control');
});

test('a running VM is ungated; found again after our restart it is the same process; a new QEMU is not [A2] [X4]', async (t) => {
  const { driver, spec, qemu } = await house(t);
  const first = await qemu({ status: 'running' });
  const vm = await driver().adopt(spec());
  assert(vm !== null);
  assert.deepEqual(vm.adopted, { kind: 'ungated' });
  await vm.release();
  const again = await driver().adopt(spec());
  assert.deepEqual(again?.adopted, { kind: 'same-process' });
  await again?.release();
  await first.close();
  assert.equal(await driver().adopt(spec()), null);
  await qemu({ status: 'running' });
  const other = await driver().adopt(spec());
  assert.deepEqual(other?.adopted, { kind: 'ungated' });
  await other?.release();
});

test('a paused VM has run before: it is not fresh [A2]', async (t) => {
  const { driver, spec, qemu } = await house(t);
  await qemu({ status: 'paused' });
  const vm = await driver().adopt(spec());
  assert.deepEqual(vm?.adopted, { kind: 'ungated' });
  await vm?.release();
});

test('a reset of an attached VM is told as one that is already booting [A2]', async (t) => {
  const { driver, spec, qemu } = await house(t);
  const fake = await qemu({ status: 'running' });
  const vm = await driver().adopt(spec());
  assert(vm !== null);
  t.after(vm.release);
  const kinds: unknown[] = [];
  vm.onEvent((event) => kinds.push(event));
  fake.emit('RESET', { guest: true, reason: 'guest-reset' });
  await vm.isStopped();
  assert.deepEqual(kinds, [
    { kind: 'agent-port', isOpen: false },
    { kind: 'reset', isStopped: false },
  ]);
});

const REFUSED: readonly {
  readonly name: string;
  readonly qemu?: Partial<FakeQemuOptions>;
  readonly nics?: AttachedVm['nics'];
  readonly message: RegExp;
}[] = [
  { name: 'that arrives by migration', qemu: { status: 'inmigrate' }, message: /state inmigrate/ },
  {
    name: 'whose card is no tap',
    qemu: { nics: [{ id: 'net0', tap: '', backend: 'user' }] },
    message: /connected by user, not by a tap/,
  },
  {
    name: 'with a card nobody told us of',
    qemu: {
      nics: [
        { id: 'net0', tap: 'vnet3' },
        { id: 'net1', tap: 'vnet4' },
      ],
    },
    message: /network card "net1" that its spec does not name/,
  },
  {
    name: 'without the card of its spec',
    nics: [{ id: 'net9', tap: 'vnet3' }],
    message: /"net0" that its spec does not name/,
  },
  {
    name: 'on another tap than its spec says',
    qemu: { nics: [{ id: 'net0', tap: 'vnet8' }] },
    message: /uses the tap vnet8, the spec says vnet3/,
  },
  {
    name: 'whose tap is on no bridge',
    qemu: { nics: [{ id: 'net0', tap: 'loose' }] },
    nics: [{ id: 'net0', tap: 'loose' }],
    message: /loose is on no Linux bridge/,
  },
  {
    name: 'whose "tap" is something else',
    qemu: { nics: [{ id: 'net0', tap: 'veth0' }] },
    nics: [{ id: 'net0', tap: 'veth0' }],
    message: /veth0 is not a tap/,
  },
];
for (const { name, qemu: options, nics, message } of REFUSED) {
  test(`a VM ${name} is refused, and its monitor is free again [X1]`, async (t) => {
    const { driver, spec, qemu } = await house(t);
    await qemu(options);
    await assert.rejects(driver().adopt(spec(nics)), { code: 'refused/attached', message });
    await assert.rejects(driver().adopt(spec(nics)), { code: 'refused/attached' });
  });
}

test('`info network` is read as QEMU prints it', () => {
  const text =
    'net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:01\r\n' +
    ' \\ hn0: index=0,type=tap,ifname=tap0,script=no,downscript=no\r\n' +
    'net1: index=0,type=nic,model=e1000,macaddr=52:54:00:00:00:02\r\n' +
    ' \\ hn1: index=0,type=tap,fd=20\r\n' +
    'net2: index=0,type=nic,model=e1000,macaddr=52:54:00:00:00:03\r\n' +
    'hub0\r\n';
  assert.deepEqual(readNetworkText(text), [
    { nic: 'net0', backend: 'tap', tap: 'tap0' },
    { nic: 'net1', backend: 'tap', tap: null },
    { nic: 'net2', backend: null, tap: null },
  ]);
});

test('a VM offers its drive the places that its spec names, the best first [A4] [A16]', async (t) => {
  const { driver, spec, qemu } = await house(t);
  await qemu({ scsiBuses: ['scsi0.0'], usbBuses: ['xhci.0'], trays: ['cd0'] });
  const own = { driveScsiBus: 'scsi0.0', driveUsbBus: 'xhci.0', driveTray: 'cd0' };
  const vm = await driver().start({ ...spec(), ...own });
  t.after(vm.release);
  assert.deepEqual(vm.driveFrontEnds, ['virtio-blk', 'scsi-cd', 'nvme', 'ide-cd', 'usb-storage']);
  await vm.attachDrive({ source: { kind: 'vmdk', path: '/d/a.vmdk' }, frontEnd: 'ide-cd' });
  await vm.release();
  // Our own drive in the tray is no stranger's.
  const again = await driver().start({ ...spec(), ...own });
  t.after(again.release);
  assert.equal(await again.hasDrive(), true);
});

for (const { name, places, error, next } of [
  { name: 'port', places: { drivePort: 'rp9' }, error: /no PCI port "rp9".* drivePort/, next: /pcie-root-port,id=rp9/ },
  {
    name: 'SCSI bus',
    places: { driveScsiBus: 'scsi9.0' },
    error: /no such bus "scsi9\.0".* driveScsiBus/,
    next: /virtio-scsi-pci,id=scsi9/,
  },
  // A bus of another kind is none.
  {
    name: 'USB bus',
    places: { driveUsbBus: 'scsi0.0' },
    error: /no such bus "scsi0\.0".* driveUsbBus/,
    next: /qemu-xhci,id=scsi0/,
  },
  { name: 'tray', places: { driveTray: 'cd9' }, error: /no CD drive "cd9".* driveTray/, next: /ide-cd,id=cd9/ },
]) {
  test(`a VM without the ${name} that its spec names for the drive is refused, and the error says what is missing [A4]`, async (t) => {
    const { driver, spec, qemu } = await house(t);
    await qemu({ scsiBuses: ['scsi0.0'], trays: ['cd0'] });
    await assert.rejects(driver().start({ ...spec(), ...places }), { code: 'refused/attached', message: error, next });
    const vm = await driver().start({ ...spec(), driveScsiBus: 'scsi0.0', driveTray: 'cd0' });
    await vm.release();
  });
}

test("a port with somebody's device on it, or a tray with somebody's medium in it, is no place for the drive [A4]", async (t) => {
  const { driver, spec, qemu } = await house(t);
  const fake = await qemu({ trays: ['cd0'] });
  const theirs = await connectQmp({ path: spec().qmpSocket, clock: systemClock });
  for (const name of ['theirs', 'disc']) await theirs.execute('blockdev-add', { 'node-name': name, driver: 'null-co' });
  await theirs.execute('device_add', { driver: 'virtio-blk-pci', id: 'disk9', bus: 'rp1', drive: 'theirs' });
  await theirs.execute('blockdev-open-tray', { id: 'cd0', force: true });
  await theirs.execute('blockdev-insert-medium', { id: 'cd0', 'node-name': 'disc' });
  theirs.close();
  await assert.rejects(driver().start(spec()), {
    code: 'refused/attached',
    message: /a device is on its PCI port "rp1"/,
  });
  const { drivePort: _, ...portless } = spec();
  const tray = { ...portless, driveTray: 'cd0' };
  await assert.rejects(driver().start(tray), { code: 'refused/attached', message: /a medium in its CD drive "cd0"/ });
  assert.equal(fake.inserted.get('cd0'), 'disc', 'it was left there');
});
