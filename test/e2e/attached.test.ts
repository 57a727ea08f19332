// VMs whose QEMU somebody else started, with real ones: gated from their first instruction when they are attached before it,
// gated again after a reset, and never plugged in when they ran before.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { enterPrefix, HOST_NAMESPACE } from '../../src/hypervisor/namespace.ts';
import type { AttachedVm, ManagedVm } from '../../src/hypervisor/vm-spec.ts';
import { makeHouse } from './harness.ts';

/** A tap with a name of its owner's choice, which the fence does not know by itself. */
const tapOf = (vm: string): string => `own-${vm}`;

/** Starts a QEMU as somebody else would, with their own monitor and names, and says how to attach it. */
async function startOwn(
  spec: ManagedVm,
  options: { readonly folder: string; readonly isPaused: boolean },
): Promise<{ readonly qemu: ChildProcess; readonly attached: AttachedVm }> {
  const { vm, kernel, namespace = HOST_NAMESPACE } = spec;
  const [nic] = spec.nics;
  assert(kernel?.initrd !== undefined && nic !== undefined);
  const enter = enterPrefix(namespace);
  const run = (...argv: readonly string[]) => runCommand([...enter, ...argv], { purpose: "making the owner's tap" });
  await run('ip', 'tuntap', 'add', 'dev', tapOf(vm), 'mode', 'tap');
  await run('ip', 'link', 'set', tapOf(vm), 'master', nic.bridge, 'up');
  const [qmpSocket, channelSocket] = [join(options.folder, `${vm}.qmp`), join(options.folder, `${vm}.agent`)];
  const drives = spec.disks.flatMap(({ id, path, readOnly = false }) => [
    ...['-drive', `if=none,id=${id},format=raw,file=${path},readonly=${readOnly ? 'on' : 'off'}`],
    ...['-device', `virtio-blk-pci,drive=${id}`],
  ]);
  const argv = [
    ...['qemu-system-x86_64', '-name', `theirs-${vm}`, ...(options.isPaused ? ['-S'] : [])],
    ...[
      '-M',
      'q35',
      '-accel',
      'tcg',
      '-cpu',
      'qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16',
      '-m',
      String(spec.memoryMiB),
    ],
    ...['-nodefaults', '-display', 'none', '-qmp', `unix:${qmpSocket},server=on,wait=off`],
    ...['-kernel', kernel.image, '-initrd', kernel.initrd, '-append', kernel.commandLine],
    ...['-netdev', `tap,id=cable,ifname=${tapOf(vm)},script=no,downscript=no`],
    ...['-device', `virtio-net-pci,id=card,netdev=cable,mac=${nic.mac}`],
    ...['-chardev', `socket,id=words,path=${channelSocket},server=on,wait=off`, '-device', 'virtio-serial-pci'],
    ...['-device', 'virtserialport,id=agent,chardev=words,name=dev.pratique.agent.0'],
    ...['-device', 'pcie-root-port,id=spare,chassis=1,slot=1', ...drives],
  ];
  const [program, ...args] = [...enter, ...argv];
  assert(program !== undefined);
  const qemu = spawn(program, args, { stdio: ['ignore', 'inherit', 'inherit'] });
  const attached: AttachedVm = {
    format: 'pratique.vm/1',
    kind: 'attached',
    vm,
    qmpSocket,
    channelSocket,
    nics: [{ id: 'card', tap: tapOf(vm) }],
    drivePort: 'spare',
    namespace,
  };
  return { qemu, attached };
}

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
