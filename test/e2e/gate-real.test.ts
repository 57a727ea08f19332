// The gate on real VMs: real QEMU, taps, bridge and fence; frames are counted by the kernel of a peer on the bridge, where
// they would really arrive. Each "nothing arrived" stands beside the same guest with the gate disabled, where frames do arrive.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { runCommand } from '../../src/base/run-command.ts';
import type { HypervisorDriver, RunningVm } from '../../src/hypervisor/hypervisor.ts';
import { tapName } from '../../src/hypervisor/network.ts';
import type { ManagedVm } from '../../src/hypervisor/vm-spec.ts';
import type { VmId } from '../../src/model/ids.ts';
import { chosenAccelerator, gateHouse, gateOf, MAC, makeDriver, RUN, uid, watch } from './gate-house.ts';
import type { SendingGuest } from './sending-guest.ts';

test('no frame of a gated VM reaches a peer: not while booting, not over resets, not with its link forced up [A2] [A8] [A11] [X1]', async (t) => {
  const { driver, fence, net, framesAtPeer, spec } = await gateHouse(t);
  const gate = gateOf(fence);
  const vm = await driver.start(spec('t1'));
  const guest = watch(t, vm);
  assert.equal(await vm.isStopped(), true);
  await gate.close(vm, 'start');
  await gate.resume(vm);
  assert.match(await guest.untilSaid(/sent on eth0.*\n.*sent on eth0/), /carrier=0/);
  assert.equal(await framesAtPeer(), 0, 'while booting');

  guest.order('reboot');
  await guest.untilEvent('reset');
  assert.equal(await vm.isStopped(), true);
  await gate.close(vm, 'guest reset');
  await vm.resetStopped();
  assert.equal(await vm.isStopped(), true);
  await gate.resume(vm);
  await guest.untilSaid(/GUEST up.*sent on eth0/s);
  assert.equal(guest.events.filter(({ kind }) => kind === 'reset').length, 1, "the firmware's own reset is not told");
  assert.equal(await framesAtPeer(), 0, 'over a reset');

  const idle = await fence.counters(vm.taps.map((tap) => tap.name));
  assert.equal(idle.fromGuest, 0, 'the lowered link alone held until here');
  await vm.raiseLinks();
  await guest.untilSaid(/carrier=1.*carrier=1/s);
  const dropped = await fence.counters(vm.taps.map((tap) => tap.name));
  assert(dropped.fromGuest > 0, 'the fence alone holds now, and counts');
  assert.equal(await framesAtPeer(), 0, 'with the link forced up');

  const tap = tapName('t1' as VmId, 'lan');
  await net.run('nft', 'delete', 'table', 'bridge', 'pratique');
  await guest.untilSaid(/sent on eth0.*sent on eth0/s);
  const control = await framesAtPeer();
  assert(control > 0, 'positive control: the same guest with the gate disabled');
  await gate.close(vm, 'the fence was gone');
  const after = await framesAtPeer();
  await guest.untilSaid(/sent on eth0.*sent on eth0/s);
  assert.equal(await framesAtPeer(), after, `${tap} is fenced again`);
});

test('an admitted VM is on the network, and off it again once the gate is closed [A11]', async (t) => {
  const { driver, fence, framesAtPeer, spec } = await gateHouse(t);
  const gate = gateOf(fence);
  const vm = await driver.start(spec('t2'));
  const guest = watch(t, vm);
  await gate.close(vm, 'start');
  await gate.resume(vm);
  await guest.untilSaid(/sent on eth0/);
  assert.equal(await framesAtPeer(), 0);
  await gate.open(vm, { kind: 'override', run: RUN, reason: 'a test', actor: 'the test' });
  await guest.untilSaid(/carrier=1.*carrier=1/s);
  assert((await framesAtPeer()) > 0);
  await gate.close(vm, 'doubt');
  await guest.untilSaid(/carrier=0/);
  const before = await framesAtPeer();
  await guest.untilSaid(/sent on eth0.*sent on eth0/s);
  assert.equal(await framesAtPeer(), before);
});

test('QEMU runs without any privilege, and its folder is not its own [X1]', async (t) => {
  const { driver, folder, spec } = await gateHouse(t);
  const vm = await driver.start(spec('t3'));
  watch(t, vm);
  const pid = (await readFile(join(folder, 'vm/t3/pid'), 'utf8')).split(' ')[0];
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  assert.match(status, /Seccomp:\t2/);
  if (uid === null) return;
  assert.match(status, new RegExp(`Uid:\\t${uid}\\t${uid}\\t${uid}\\t${uid}`));
  for (const field of ['CapEff', 'CapPrm', 'CapBnd']) assert.match(status, new RegExp(`${field}:\\t0+\\n`));
  assert.match(status, /NoNewPrivs:\t1/);
  assert.match(await runCommand(['stat', '-c', '%u %a', join(folder, 'vm/t3')]), /^0 700/);
});

test('the drive is plugged in, read, and let go; a stopped guest loses it by surprise [A4]', async (t) => {
  const { driver, fence, folder, spec } = await gateHouse(t);
  const gate = gateOf(fence);
  const path = join(folder, 'drive.iso');
  await mkdir(join(folder, 'content'));
  await writeFile(join(folder, 'content/hello'), 'from-the-drive');
  await runCommand(['xorriso', '-as', 'mkisofs', '-quiet', '-V', 'PRATIQUE', '-o', path, join(folder, 'content')]);
  const vm = await driver.start(spec('t4'));
  const guest = watch(t, vm);
  await gate.close(vm, 'start');
  await gate.resume(vm);
  await guest.untilSaid(/sent on/);
  const image = { source: { kind: 'raw', path }, frontEnd: 'virtio-blk' } as const;
  await vm.attachDrive(image);
  await vm.attachDrive(image);
  await guest.untilSaid(/read from-the-drive/);
  assert.equal(await vm.hasDrive(), true);
  assert.deepEqual(await vm.detachDrive(), { surprise: false });
  await guest.untilSaid(/blocks \[\]/);

  await vm.attachDrive(image);
  await guest.untilSaid(/read from-the-drive/);
  guest.order('reboot');
  await guest.untilEvent('reset');
  await gate.close(vm, 'guest reset');
  assert.deepEqual(await vm.detachDrive(), { surprise: true });
  assert.equal(await vm.hasDrive(), false);
  await vm.resetStopped();
  await vm.attachDrive(image);
  await gate.resume(vm);
  await guest.untilSaid(/read from-the-drive/);
});

test('a daemon that is killed leaves the VM running and gated, and the next one knows it again [A11] [X4]', async (t) => {
  const { driver, fence, folder, guest, spec, framesAtPeer } = await gateHouse(t);
  const daemon = await startElsewhere(spec('t5'), folder, guest);
  t.after(() => daemon.kill('SIGKILL'));
  daemon.kill('SIGKILL');
  await once(daemon, 'exit');
  const vm = await driver.adopt(spec('t5'));
  assert(vm !== null);
  const seen = watch(t, vm);
  assert.deepEqual(vm.adopted, { kind: 'same-process' });
  assert.equal(await vm.isStopped(), false);
  await seen.untilSaid(/sent on eth0.*\n.*sent on eth0/);
  assert.equal(await framesAtPeer(), 0);
  assert.equal((await fence.verify()).fault, null);
  await assert.rejects(driver.start(spec('t5')), { code: 'conflict/vm-runs' });
  await assert.rejects(driver.adopt(spec('t5', { memoryMiB: 128 })), { code: 'conflict/spec' });
});

test('a VM that reset itself while nobody watched is found stopped, and told as a reset [A2] [X4]', async (t) => {
  const { driver, fence, spec, folder } = await gateHouse(t);
  const gate = gateOf(fence);
  const vm = await driver.start(spec('t6'));
  const guest = watch(t, vm);
  await gate.close(vm, 'start');
  await gate.resume(vm);
  await guest.untilSaid(/sent on/);
  await vm.release();
  guest.order('reboot');
  const again = await adoptStopped(await makeDriver(folder, fence), spec('t6'));
  const seen = watch(t, again);
  assert.deepEqual(seen.events[0], { kind: 'reset', isStopped: true });
});

test('a guest that powers off takes its taps along, and its place in the fence [A2]', async (t) => {
  const { driver, fence, net, spec } = await gateHouse(t);
  const gate = gateOf(fence);
  const vm = await driver.start(spec('t7'));
  const guest = watch(t, vm);
  await gate.close(vm, 'start');
  await gate.resume(vm);
  await guest.untilSaid(/sent on/);
  await gate.open(vm, { kind: 'override', run: RUN, reason: 'a test', actor: 'the test' });
  guest.order('poweroff');
  await guest.untilEvent('exited');
  assert.deepEqual(guest.events.at(-1), { kind: 'exited', detail: 'the guest powered off', isGuestsWish: true });
  assert.equal((await fence.verify()).admitted.size, 0);
  assert.doesNotMatch(await net.run('ip', '-br', 'link'), /pq/);
  assert.equal(await driver.adopt(spec('t7')), null);
});

test('disks outside the roots, through a link too, and unknown bridges are refused; nothing is left behind', async (t) => {
  const { driver, net, folder, spec } = await gateHouse(t);
  const link = join(folder, 'link.raw');
  await runCommand(['ln', '-s', '/etc/passwd', link]);
  const disk = (path: string) => spec('t8', { disks: [{ id: 'd', path, format: 'raw' as const }] });
  await assert.rejects(driver.start(disk('/etc/passwd')), { code: 'refused/disk-root' });
  await assert.rejects(driver.start(disk(link)), { code: 'refused/disk-root' });
  await assert.rejects(driver.start(disk(join(folder, 'none'))), { code: 'usage/disk' });
  await assert.rejects(driver.start(spec('t8', { nics: [{ id: 'l', model: 'e1000', mac: MAC, bridge: 'nope' }] })), {
    code: 'host-fault/network',
  });
  await writeFile(join(folder, 'bad.qcow2'), 'this is no qcow2');
  const bad = spec('t8', { disks: [{ id: 'd', path: join(folder, 'bad.qcow2'), format: 'qcow2' }] });
  await assert.rejects(driver.start(bad), /QEMU ended at once.*qcow2/);
  assert.doesNotMatch(await net.run('ip', '-br', 'link'), /pq/);
});

/** Looks now and then, as a daemon that comes and goes, until the VM has stopped. */
async function adoptStopped(driver: HypervisorDriver, spec: ManagedVm): Promise<RunningVm> {
  for (let looks = 0; looks < 100; looks += 1) {
    const vm = await driver.adopt(spec);
    assert(vm !== null);
    if (await vm.isStopped()) return vm;
    await vm.release();
    await systemClock.sleep(200);
  }
  return assert.fail('the guest did not reset itself');
}

/** Starts the VM in another process, gated and running: the daemon that is going to be killed. */
async function startElsewhere(spec: ManagedVm, folder: string, guest: SendingGuest): Promise<ChildProcess> {
  const program = join(import.meta.dirname, 'gate-daemon.ts');
  const child = spawn(
    process.execPath,
    [
      program,
      JSON.stringify({
        spec,
        folder,
        roots: [folder, dirname(guest.initrd)],
        uid,
        accelerator: await chosenAccelerator(),
      }),
    ],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  const [text] = await once(child.stdout, 'data');
  assert.equal(String(text).trim(), 'running');
  return child;
}
