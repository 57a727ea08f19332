// One running VM over a fake QEMU: resets, the drive, media, and the end.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type FakeQemuOptions, startFakeQemu } from '../../../test/fakes/qemu.ts';
import { type Clock, systemClock } from '../../base/clock.ts';
import { silentLog } from '../../base/log.ts';
import type { VmId } from '../../model/ids.ts';
import { HypervisorError } from '../errors.ts';
import type { VmEvent } from '../hypervisor.ts';
import { HOST_NAMESPACE } from '../namespace.ts';
import { type MachineParts, makeMachine } from './machine.ts';
import { connectQmp } from './qmp-client.ts';

const VM = 'web-1' as VmId;
const IMAGE = { source: { kind: 'vmdk', path: '/drives/a.vmdk' }, frontEnd: 'virtio-blk' } as const;

async function machine(t: TestContext, fake: Partial<FakeQemuOptions> = {}, parts: Partial<MachineParts> = {}) {
  const folder = await mkdtemp(join(tmpdir(), 'pq-vm-'));
  const qmpSocket = join(folder, 'q');
  const nics = [{ id: 'nic-lan', tap: 'pq0' }];
  const qemu = await startFakeQemu({ qmpSocket, nics, trays: ['media-tools'], ...fake });
  t.after(async () => {
    await qemu.close();
    await rm(folder, { recursive: true });
  });
  let hasEnded = false;
  void qemu.closed.then(() => {
    hasEnded = true;
  });
  const events: VmEvent[] = [];
  const vm = makeMachine({
    vm: VM,
    namespace: HOST_NAMESPACE,
    taps: [{ name: 'pq0', nic: 'lan' }],
    nicDevices: ['nic-lan'],
    channelSocket: join(folder, 'a'),
    adopted: { kind: 'fresh' },
    missed: [],
    qmp: await connectQmp({ path: qmpSocket, clock: systemClock, timeoutMs: 2000 }),
    slots: { port: 'pratique-port0', scsiBus: null, usbBus: null, tray: null },
    media: [{ device: 'media-tools', path: '/iso/tools.iso' }],
    agentPort: 'pratique-agent',
    isManaged: true,
    hasEnded: async () => hasEnded,
    kill: null,
    onEnded: async () => {},
    clock: systemClock,
    log: silentLog,
    unplugTimeoutMs: 100,
    ...parts,
  });
  vm.onEvent((event) => events.push(event));
  t.after(vm.release);
  return { qemu, vm, events };
}

async function soon(isSo: () => boolean): Promise<void> {
  for (let tries = 0; !isSo(); tries += 1) {
    if (tries > 400) assert.fail('it did not happen within 2 s');
    await systemClock.sleep(5);
  }
}

test('a guest that resets itself is stopped, told once, and runs on only after reset and resume [A2]', async (t) => {
  const { qemu, vm, events } = await machine(t);
  await vm.resume();
  qemu.guestReset();
  qemu.emit('SHUTDOWN', { guest: true, reason: 'guest-reset' });
  await soon(() => events.length > 0);
  assert.equal(await vm.isStopped(), true);
  assert.deepEqual(events, [{ kind: 'reset', isStopped: true }]);
  await assert.rejects(vm.resume(), { code: 'host-fault/qmp-refused' });
  await vm.resetStopped();
  assert.equal(qemu.status(), 'prelaunch');
  await vm.resume();
  assert.equal(qemu.status(), 'running');
  const actions = qemu.commands.filter(({ execute }) => execute === 'set-action');
  assert.deepEqual(actions.at(-1)?.arguments, { reboot: 'shutdown', shutdown: 'pause' });
});

test("the reset that firmware adds to ours is passed over; the guest's own next one is told [A2]", async (t) => {
  const { qemu, vm, events } = await machine(t);
  await vm.resetStopped();
  await vm.resume();
  qemu.guestReset();
  await soon(() => qemu.status() === 'running');
  assert.deepEqual(events, []);
  qemu.setPortOpen(true);
  qemu.guestReset();
  await soon(() => events.length > 1);
  assert.deepEqual(events[1], { kind: 'reset', isStopped: true });
  assert.equal(qemu.status(), 'shutdown');
});

test('firmware that never stops resetting is told in the end [A2]', async (t) => {
  const { qemu, vm, events } = await machine(t);
  await vm.resetStopped();
  await vm.resume();
  for (let resets = 0; resets < 10 && events.length === 0; resets += 1) {
    qemu.guestReset();
    await soon(() => qemu.status() === 'running' || events.length > 0);
  }
  assert.deepEqual(events, [{ kind: 'reset', isStopped: true }]);
});

test('once the links are up, no reset is passed over [A2]', async (t) => {
  const { qemu, vm, events } = await machine(t);
  await vm.resetStopped();
  await vm.resume();
  await vm.raiseLinks();
  qemu.guestReset();
  await soon(() => events.length > 0);
  assert.equal(qemu.status(), 'shutdown');
});

test('a guest that powers off ends its QEMU, and the end says that the guest wanted it', async (t) => {
  const cleaned: string[] = [];
  const { qemu, events } = await machine(t, {}, { onEnded: async () => void cleaned.push('taps') });
  qemu.guestPowerOff();
  await soon(() => events.length > 0);
  assert.deepEqual(events, [{ kind: 'exited', detail: 'the guest powered off', isGuestsWish: true }]);
  assert.deepEqual(cleaned, ['taps']);
});

test('a QEMU that dies is told as its end; a monitor lost while the process lives, as doubt', async (t) => {
  const dying = await machine(t);
  await dying.qemu.close();
  await soon(() => dying.events.length > 0);
  assert.deepEqual(dying.events, [{ kind: 'exited', detail: 'QEMU ended', isGuestsWish: false }]);
  const clock: Clock = { ...systemClock, monotonicMs: hurried() };
  const ill = await machine(t, {}, { hasEnded: async () => false, clock });
  ill.qemu.writeRaw('rubbish\r\n');
  await soon(() => ill.events.length > 0);
  assert.equal(ill.events[0]?.kind, 'monitor-lost');
});

/** A monotonic clock on which each look takes a second. */
function hurried(): () => number {
  let nowMs = 0;
  return () => {
    nowMs += 1000;
    return nowMs;
  };
}

test('what was under way when QEMU died fails only after its end was told, so that the end decides [X4]', async (t) => {
  let looks = 0;
  const hasEnded = async () => {
    looks += 1;
    return looks > 3; // A process takes a moment longer to be gone than its monitor.
  };
  const { qemu, vm, events } = await machine(t, {}, { hasEnded });
  const attaching = vm.attachDrive(IMAGE).catch((error: unknown) => error);
  await qemu.close();
  const error = await attaching;
  assert.ok(error instanceof HypervisorError && error.code === 'host-fault/qmp-closed');
  assert.deepEqual(
    events.map(({ kind }) => kind),
    ['exited'],
  );
});

test('events that come before anybody listens are kept', async (t) => {
  const { vm } = await machine(t, {}, { missed: [{ kind: 'agent-port', isOpen: true }] });
  const late: VmEvent[] = [];
  vm.onEvent((event) => late.push(event));
  assert.deepEqual(late, [], 'the first listener had them');
});

test('the drive is attached read-only, once however often asked, and goes when the guest lets go [A4]', async (t) => {
  const { qemu, vm } = await machine(t);
  await vm.resume();
  await vm.attachDrive(IMAGE);
  await vm.attachDrive(IMAGE);
  assert.equal(qemu.commands.filter(({ execute }) => execute === 'device_add').length, 1);
  const image = qemu.nodes.get('pratique-image');
  assert.deepEqual(image?.file, { driver: 'file', filename: IMAGE.source.path, 'read-only': true });
  assert.equal(image?.['read-only'], true);
  assert.equal(await vm.hasDrive(), true);
  await assert.rejects(vm.attachDrive({ ...IMAGE, source: { kind: 'vmdk', path: '/drives/b.vmdk' } }), {
    code: 'conflict/drive',
  });
  assert.deepEqual(await vm.detachDrive(), { surprise: false });
  assert.deepEqual(await vm.detachDrive(), { surprise: false });
  assert.equal(await vm.hasDrive(), false);
  assert.equal(qemu.nodes.size, 0);
});

test('a guest that keeps the drive loses its content, and a reset takes the rest [A4]', async (t) => {
  const { qemu, vm } = await machine(t, { holdsDevices: true });
  await vm.resume();
  await vm.attachDrive(IMAGE);
  assert.deepEqual(await vm.detachDrive(), { surprise: true });
  assert.equal(await vm.hasDrive(), false);
  assert.equal(qemu.nodes.has('pratique-image'), false);
  await assert.rejects(vm.attachDrive(IMAGE), { code: 'host-fault/drive-held' });
  await vm.resetStopped();
  await vm.attachDrive(IMAGE);
  assert.equal(await vm.hasDrive(), true);
});

test('a drive that cannot be plugged in leaves nothing behind', async (t) => {
  const { qemu, vm } = await machine(t);
  await assert.rejects(vm.attachDrive({ ...IMAGE, frontEnd: 'scsi-cd' }), { code: 'usage/drive-port' });
  assert.equal(qemu.nodes.size, 0);
});

test('media are withheld until released, and withheld again [A8] [X1]', async (t) => {
  const { qemu, vm } = await machine(t);
  await vm.withholdMedia();
  await vm.releaseMedia();
  await vm.releaseMedia();
  assert.equal(qemu.inserted.get('media-tools'), 'pratique-medium0');
  await vm.withholdMedia();
  assert.equal(qemu.inserted.size, 0);
  assert.equal(qemu.nodes.size, 0);
});

test('an ill answer is an error that names VM and step', async (t) => {
  const { vm } = await machine(t, {
    answer: ({ execute, id }) => (execute === 'query-status' ? [`{"return":{"status":7},"id":${id}}\r\n`] : null),
  });
  await assert.rejects(vm.isStopped(), { code: 'host-fault/qmp-answer', message: 'web-1: asking for its state' });
});

test('ending a VM asks the guest first only if told to', async (t) => {
  const graceful = await machine(t);
  await graceful.vm.resume();
  await graceful.vm.stop({ graceful: true });
  assert(graceful.qemu.commands.some(({ execute }) => execute === 'system_powerdown'));
  const hard = await machine(t);
  await hard.vm.stop({ graceful: false });
  assert(!hard.qemu.commands.some(({ execute }) => execute === 'system_powerdown'));
  assert.deepEqual(hard.events, [{ kind: 'exited', detail: 'we ended the VM', isGuestsWish: false }]);
});

test('a guest that stands still for want of space on the host is told; an error that the guest sees is not ours [X5]', async (t) => {
  const { qemu, events } = await machine(t);
  const error = { device: '', 'node-name': 'overlay0', operation: 'write', reason: 'No space left on device' };
  qemu.emit('BLOCK_IO_ERROR', { ...error, action: 'report', nospace: true });
  qemu.emit('BLOCK_IO_ERROR', { ...error, action: 'stop', nospace: false });
  qemu.emit('BLOCK_IO_ERROR', { ...error, action: 'stop', nospace: true });
  await soon(() => events.length > 0);
  assert.deepEqual(events, [{ kind: 'disk-full' }]);
});
