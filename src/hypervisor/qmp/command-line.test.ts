// The command line of a managed VM: everything that holds it closed is on it, and nothing QEMU would guess.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TCG_CODE_MIB } from '../../base/limits.ts';
import { makeParser } from '../../base/parse.ts';
import { CHANNEL_PORT_NAME } from '../../guest/messages.ts';
import type { VmId } from '../../model/ids.ts';
import { tapName } from '../network.ts';
import { type ManagedVm, ManagedVmSchema } from '../vm-spec.ts';
import { AGENT_PORT_NAME, commandLine, driveSlots } from './command-line.ts';

const SPEC: ManagedVm = {
  format: 'pratique.vm/1',
  kind: 'managed',
  vm: 'web-1' as VmId,
  machine: 'q35',
  memoryMiB: 512,
  cpus: 2,
  disks: [
    { id: 'root', path: '/d/root.qcow2', format: 'qcow2' },
    { id: 'base', path: '/d/base.raw', format: 'raw', readOnly: true },
  ],
  nics: [{ id: 'lan', model: 'e1000e', mac: '52:54:00:00:00:01', bridge: 'br0' }],
  media: [{ id: 'cd', path: '/d/cd.iso' }],
};

const line = (spec: ManagedVm, accelerator: 'kvm' | 'tcg' = 'tcg') =>
  commandLine({
    spec,
    qemuBinary: 'qemu',
    accelerator,
    diskPaths: spec.disks.map((disk) => disk.path),
    kernel: { image: '/k', initrd: null, commandLine: 'console=ttyS0 a=b,c' },
  });

/** The JSON values of an option. */
function valuesOf(argv: readonly string[], option: string): readonly Record<string, unknown>[] {
  return argv
    .filter((_, index) => argv[index - 1] === option)
    .filter((value) => value.startsWith('{'))
    .map((value) => JSON.parse(value) as Record<string, unknown>);
}

test('a VM starts stopped, stops at resets, and is sandboxed [A2]', () => {
  const argv = line(SPEC);
  assert(argv.includes('-S'));
  assert.equal(argv[argv.indexOf('-action') + 1], 'reboot=shutdown,shutdown=pause');
  assert.match(argv[argv.indexOf('-sandbox') + 1] ?? '', /^on,.*spawn=deny/);
  for (const flag of ['-nodefaults', '-no-user-config']) assert(argv.includes(flag));
});

test('an emulated VM keeps a bounded amount of translated code, a VM on KVM has none', () => {
  const acceleratorOf = (argv: readonly string[]) => argv[argv.indexOf('-accel') + 1];
  assert.equal(acceleratorOf(line(SPEC, 'tcg')), `tcg,tb-size=${TCG_CODE_MIB}`);
  assert.equal(acceleratorOf(line(SPEC, 'kvm')), 'kvm');
});

test('every disk has the format of the spec, at every layer', () => {
  const nodes = valuesOf(line(SPEC), '-blockdev');
  assert.deepEqual(
    nodes.map((node) => [node.driver, node['read-only'], (node.file as { driver: string }).driver]),
    [
      ['qcow2', false, 'file'],
      ['raw', true, 'file'],
    ],
  );
});

test('the chain beneath a disk is the one of the spec, to its end: no header is asked [A3]', () => {
  const lowest = { path: '/d/base.raw', format: 'raw' } as const;
  const backing = { path: '/d/middle.qcow2', format: 'qcow2', backing: lowest } as const;
  const [plain, layered] = [
    SPEC,
    { ...SPEC, disks: [{ id: 'root', path: '/d/top.qcow2', format: 'qcow2' as const, backing }] },
  ].map((spec) => valuesOf(line(spec), '-blockdev')[0]);
  const file = (filename: string) => ({ driver: 'file', filename, 'read-only': true });
  assert.equal(plain?.backing, null);
  assert.deepEqual(layered?.backing, {
    driver: 'qcow2',
    'read-only': true,
    file: file('/d/middle.qcow2'),
    backing: { driver: 'raw', 'read-only': true, file: file('/d/base.raw') },
  });
});

test('media are empty trays, on virtio-scsi where the guest has it [A8]', () => {
  const devices = (spec: ManagedVm) => valuesOf(line(spec), '-device').filter((one) => one.id === 'media-cd');
  assert.deepEqual(devices(SPEC), [{ driver: 'ide-cd', id: 'media-cd', bus: 'ide.0' }]);
  assert.deepEqual(devices({ ...SPEC, scsi: true }), [{ driver: 'scsi-cd', id: 'media-cd', bus: 'pratique-scsi.0' }]);
  assert(!line(SPEC).some((word) => word.includes('cd.iso')));
});

test('a drive has its port; a tray, a USB controller and SATA are there only where they are asked for [A4]', () => {
  const has = (spec: ManagedVm) => {
    const argv = line(spec);
    const devices = valuesOf(argv, '-device');
    return {
      sata: argv.some((word) => word.includes('sata=on')),
      tray: devices.find((one) => one.id === 'pratique-tray') ?? null,
      usb: devices.find((one) => one.driver === 'qemu-xhci') ?? null,
      slots: driveSlots(spec),
    };
  };
  const bare: ManagedVm = { ...SPEC, media: [] };
  const slots = { port: 'pratique-port0', scsiBus: null, usbBus: null, tray: null };
  assert(valuesOf(line(bare), '-device').some((one) => one.driver === 'pcie-root-port' && one.id === slots.port));
  assert.deepEqual(has(bare), { sata: false, tray: null, usb: null, slots });
  assert.deepEqual(has({ ...bare, scsi: true }).slots, { ...slots, scsiBus: 'pratique-scsi.0' });
  assert.equal(has(SPEC).sata, true, 'its media need it');
  // After the four trays that media may have.
  const tray = { driver: 'ide-cd', id: 'pratique-tray', bus: 'ide.4' };
  const cd = has({ ...bare, drive: { frontEnd: 'ide-cd' } });
  assert.deepEqual(cd, { sata: true, tray, usb: null, slots: { ...slots, tray: 'pratique-tray' } });
  const usb = has({ ...bare, drive: { frontEnd: 'usb-storage' } });
  assert.deepEqual(usb.usb, { driver: 'qemu-xhci', id: 'pratique-usb' });
  assert.deepEqual(usb.slots, { ...slots, usbBus: 'pratique-usb.0' });
  assert.equal(usb.sata, false);
});

test('cards use inherited descriptors: QEMU itself opens no tap', () => {
  const argv = line(SPEC);
  assert(argv.includes('tap,id=net0,fd=20,vhost=off'));
  assert(!argv.some((word) => word.includes('ifname')));
});

test("the agent's port has the name of the protocol", () => {
  assert.equal(AGENT_PORT_NAME, CHANNEL_PORT_NAME);
  assert(valuesOf(line(SPEC), '-device').some((one) => one.name === CHANNEL_PORT_NAME));
});

test('a path that would smuggle in an option does not pass the spec', () => {
  const parse = makeParser(ManagedVmSchema, 'usage/vm-spec');
  parse(SPEC, 'the spec');
  const [disk] = SPEC.disks;
  assert.throws(() => parse({ ...SPEC, disks: [{ ...disk, path: '/d/a,snapshot=on' }] }, 'the spec'), /disks\.0\.path/);
});

test('taps have names of their own that fit the kernel and start with our prefix [X1]', () => {
  const names = new Set<string>();
  for (let vm = 0; vm < 500; vm += 1) {
    for (const nic of ['lan', 'wan']) names.add(tapName(`vm-${vm}` as VmId, nic));
  }
  assert.equal(names.size, 1000);
  for (const name of names) assert.match(name, /^pq[0-9a-v]{13}$/);
  assert.notEqual(tapName('a' as VmId, 'bc'), tapName('ab' as VmId, 'c'));
  assert.equal(tapName('web-1' as VmId, 'lan'), tapName('web-1' as VmId, 'lan'));
});

test('a cloud-init seed is read-only and behind everything else, so that no other device moves by it', () => {
  const parts = {
    spec: SPEC,
    qemuBinary: 'qemu',
    accelerator: 'tcg',
    diskPaths: ['/d/a', '/d/b'],
    kernel: null,
  } as const;
  const without = commandLine(parts);
  const seeded = commandLine({ ...parts, seedPath: '/s/web-1.iso' });
  assert.deepEqual(seeded.slice(0, without.length), without);
  const added = seeded.slice(without.length);
  const [node] = valuesOf(added, '-blockdev');
  assert.deepEqual([node?.['read-only'], node?.driver], [true, 'raw']);
  assert.equal(valuesOf(added, '-device')[0]?.driver, 'virtio-blk-pci');
});
