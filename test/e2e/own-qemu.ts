// A QEMU that somebody else starts, with names of their own.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { chown } from 'node:fs/promises';
import { join } from 'node:path';
import { runCommand } from '../../src/base/run-command.ts';
import { enterPrefix, HOST_NAMESPACE } from '../../src/hypervisor/namespace.ts';
import type { AttachedVm, ManagedVm } from '../../src/hypervisor/vm-spec.ts';

/** A tap with a name of its owner's choice, which the fence does not know by itself. */
const tapOf = (vm: string): string => `own-${vm}`;

export type OwnOptions = {
  /** Where its sockets are made. */
  readonly folder: string;
  readonly isPaused: boolean;
  /** As whom it runs, with no right at all; absent: as we do. */
  readonly uid?: number;
};

/** Starts a QEMU as somebody else would, with their own monitor and names, and says how to attach it. */
export async function startOwn(
  spec: ManagedVm,
  options: OwnOptions,
): Promise<{ readonly qemu: ChildProcess; readonly attached: AttachedVm }> {
  const { vm, kernel, namespace = HOST_NAMESPACE } = spec;
  const [nic] = spec.nics;
  assert(kernel?.initrd !== undefined && nic !== undefined);
  const enter = enterPrefix(namespace);
  const run = (...argv: readonly string[]) => runCommand([...enter, ...argv], { purpose: "making the owner's tap" });
  const { uid } = options;
  const user = uid === undefined ? [] : ['user', String(uid)];
  await run('ip', 'tuntap', 'add', 'dev', tapOf(vm), 'mode', 'tap', ...user);
  if (uid !== undefined)
    for (const { path, readOnly } of spec.disks) if (readOnly !== true) await chown(path, uid, uid);
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
  const rights = uid === undefined ? [] : ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--'];
  const [program, ...args] = [...enter, ...rights, ...argv];
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
    ...(spec.drive === undefined ? {} : { drive: spec.drive }),
  };
  return { qemu, attached };
}
