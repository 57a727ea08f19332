// A VM for the peers: the machine that Pratique would give it, without the parts that belong to the gate, its cable plugged in from the start.
import { type ChildProcess, spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DEMO_BRIDGE } from '../../proxy/demo/demo-network.ts';
import { runCommand, tryCommand } from '../../src/base/run-command.ts';
import { commandLine } from '../../src/hypervisor/qmp/command-line.ts';
import type { ManagedVm } from '../../src/hypervisor/vm-spec.ts';
import type { PatchSite, Slot } from './patch-site.ts';

export type PlainVm = {
  /** What the guest printed so far. */
  readonly console: () => Promise<string>;
  readonly powerOff: () => Promise<void>;
};

/** What only the gate, the drive and the channel need. */
const GATE_OPTIONS = new Set(['-S', '-action', '-sandbox', '-chardev', '-mon', '-serial', '-netdev']);
const GATE_DRIVERS = new Set(['isa-serial', 'virtio-serial-pci', 'virtserialport', 'pcie-root-port']);
const WITHOUT_VALUE = new Set(['-S', '-nodefaults', '-no-user-config', '-nographic']);

/** Powers the VM on. The caller powers it off, whatever happens. */
export async function powerOn(site: PatchSite, slot: Slot, spec: ManagedVm): Promise<PlainVm> {
  const { enter } = site.network;
  const tap = `pb${slot.number}`;
  const ip = async (...words: readonly string[]) =>
    await runCommand([...enter, 'ip', ...words], { purpose: `making the tap of ${slot.name}` });
  await ip('tuntap', 'add', tap, 'mode', 'tap');
  await ip('link', 'set', tap, 'master', DEMO_BRIDGE, 'up');
  const consolePath = join(site.folder, `${slot.name}-console`);
  const argv = plainCommandLine(site, spec, { tap, consolePath });
  const [program, ...args] = [...enter, ...argv];
  if (program === undefined) throw new Error('assertion failed: there is a program to run');
  const qemu = spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'] });
  return {
    console: async () => await readFile(consolePath, 'latin1').catch(() => ''),
    powerOff: async () => {
      await end(qemu);
      await tryCommand([...enter, 'ip', 'link', 'delete', tap]);
    },
  };
}

function plainCommandLine(
  { accelerator }: PatchSite,
  spec: ManagedVm,
  { tap, consolePath }: { readonly tap: string; readonly consolePath: string },
): readonly string[] {
  const { kernel } = spec;
  const [binary = '', ...gated] = commandLine({
    spec,
    qemuBinary: 'qemu-system-x86_64',
    accelerator,
    diskPaths: spec.disks.map(({ path }) => path),
    backings: spec.disks.map(({ backing }) => backing),
    kernel: kernel === undefined ? null : { ...kernel, initrd: kernel.initrd ?? null },
  });
  const plain: string[] = [];
  for (let index = 0; index < gated.length; index += 1) {
    const option = gated[index] ?? '';
    const words = WITHOUT_VALUE.has(option) ? [option] : [option, gated[index + 1] ?? ''];
    index += words.length - 1;
    if (!GATE_OPTIONS.has(option) && !isOfTheGate(words)) plain.push(...words);
  }
  const net = ['-netdev', `tap,id=net0,ifname=${tap},script=no,downscript=no,vhost=off`];
  return [binary, ...net, ...plain, '-serial', `file:${consolePath}`];
}

function isOfTheGate([option, value = '']: readonly string[]): boolean {
  if (option !== '-device') return false;
  // The cast holds: commandLine writes every device as such an object.
  return GATE_DRIVERS.has((JSON.parse(value) as { readonly driver: string }).driver);
}

async function end(qemu: ChildProcess): Promise<void> {
  if (qemu.pid === undefined || qemu.exitCode !== null || qemu.signalCode !== null) return;
  const ended = new Promise<void>((resolve) => qemu.once('exit', () => resolve()));
  qemu.kill('SIGKILL');
  await ended;
}
