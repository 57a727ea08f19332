// Which kinds of drive a guest says that it can see: by the drivers it has loaded, or would load.
import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { FakeGuest } from '../test/fakes/guest-agent/fake-guest.ts';
import { takeInventory } from './inventory.ts';
import { nodePlatform } from './platform/node.ts';
import type { Platform } from './platform/platform.ts';

const RELEASE = '6.1.0-37-amd64';
let guest: FakeGuest;
let platform: Platform;

beforeEach(() => {
  guest = new FakeGuest();
  platform = { ...nodePlatform(systemClock), kernel: () => ({ release: RELEASE, machine: 'x86_64' }) };
});
afterEach(() => guest.remove());

function drives(): readonly string[] {
  const boot = { boot: guest.boot, wallTimeMs: 0, lastShutdown: null };
  const agent = { version: '1.0.0', digest: null };
  return takeInventory(platform, guest.paths, agent, boot).abilities.drives;
}

function load(...drivers: readonly string[]): void {
  for (const driver of drivers) mkdirSync(join(guest.paths.sys, 'bus', driver), { recursive: true });
}

/** A line of modules.dep for each, as depmod writes them. */
function keepModules(...paths: readonly string[]): void {
  const folder = join(guest.folder, 'lib/modules', RELEASE);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'modules.dep'), paths.map((path) => `kernel/${path}:\n`).join(''));
}

test('a guest without a driver sees no drive', () => {
  assert.deepEqual(drives(), []);
});

for (const { kind, drivers } of [
  { kind: 'virtio-blk', drivers: ['virtio/drivers/virtio_blk'] },
  { kind: 'scsi-cd', drivers: ['scsi/drivers/sr', 'virtio/drivers/virtio_scsi'] },
  { kind: 'nvme', drivers: ['pci/drivers/nvme'] },
  { kind: 'ide-cd', drivers: ['scsi/drivers/sr', 'pci/drivers/ahci'] },
  { kind: 'usb-storage', drivers: ['usb/drivers/usb-storage', 'scsi/drivers/sd', 'pci/drivers/xhci_hcd'] },
]) {
  test(`${kind} needs the drivers of the device and of what it hangs on, all of them`, () => {
    for (const missing of drivers) {
      load(...drivers.filter((driver) => driver !== missing));
      assert.deepEqual(drives(), [], `without ${missing}`);
      guest.remove();
      guest = new FakeGuest();
    }
    load(...drivers);
    assert.deepEqual(drives(), [kind]);
  });
}

test('with udev a module on the disk counts, compressed or not; without it nobody would load it', () => {
  keepModules('drivers/nvme/host/nvme.ko', 'drivers/ata/ahci.ko.xz', 'drivers/scsi/sr_mod.ko.xz');
  assert.deepEqual(drives(), []);
  mkdirSync(join(guest.folder, 'run/udev'));
  assert.deepEqual(drives(), ['nvme', 'ide-cd']);
});
