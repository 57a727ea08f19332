// Whether packages fit: counted before the first of them is unpacked, with a dpkg-deb that is a script.
import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import type { ManifestItem } from '../../src/model/manifest.ts';
import { FakeGuest } from '../../test/fakes/guest-agent/fake-guest.ts';
import { asDigest } from '../../test/fakes/guest-agent/fake-host.ts';
import { nodePlatform } from '../platform/node.ts';
import type { Platform } from '../platform/platform.ts';
import { requireSpace } from './free-space.ts';

const MIB = 1024 * 1024;
let guest: FakeGuest;

beforeEach(() => {
  guest = new FakeGuest();
  for (const folder of ['usr', 'var', 'boot']) mkdirSync(join(guest.folder, folder));
  const status = 'Package: big\nStatus: install ok installed\nVersion: 1\nInstalled-Size: 102400\n';
  writeFileSync(join(guest.paths.dpkg, 'status'), status);
  // Every package says that it takes 200 MiB.
  writeFileSync(join(guest.folder, 'bin/dpkg-deb'), '#!/bin/sh\necho 204800\n');
  chmodSync(join(guest.folder, 'bin/dpkg-deb'), 0o755);
});
afterEach(() => guest.remove());

function ask(products: readonly string[], freeMiB: Readonly<Record<string, number>>): Promise<void> {
  const node = nodePlatform(systemClock);
  const freeBytes = (path: string): number => (freeMiB[path.slice(guest.folder.length)] ?? 10_000) * MIB;
  const platform: Platform = { ...node, files: { ...node.files, freeBytes } };
  const items = products.map((product): ManifestItem => {
    const files = [{ path: `/packages/${product}.deb`, digest: asDigest('1'.repeat(64)), sizeBytes: 40 * MIB }];
    return { id: product, ecosystem: 'debian', product, version: '2', install: { action: 'debian-package' }, files };
  });
  return requireSpace({ platform, paths: guest.paths, drive: '/drive', items });
}

test('packages need what they grow by, the largest of them once more, and a reserve', async () => {
  // big grows by 100 MiB; while it is unpacked its 200 MiB are there beside the old ones; 32 MiB stay free.
  await ask(['big'], { '/usr': 332 });
  await assert.rejects(ask(['big'], { '/usr': 331 }), {
    code: 'guest-fault/no-space',
    message: 'the packages need 332.0 MiB on the file system of /usr, 331.0 MiB are free',
  });
  await assert.rejects(ask(['big', 'new'], { '/usr': 500 }), /need 532\.0 MiB/);
  await assert.rejects(ask(['big'], { '/var': 31 }), /of \/var, 31\.0 MiB are free/);
});

test('a kernel also needs room in /boot for itself and an initramfs like the largest there', async () => {
  await ask(['big'], { '/boot': 1 });
  const kernel = 'linux-image-6.1.0-41-amd64';
  await assert.rejects(ask([kernel], { '/boot': 79 }), /need 80\.0 MiB on the file system of \/boot/);
  writeFileSync(join(guest.folder, 'boot/initrd.img-6.1.0-37-amd64'), Buffer.alloc(10 * MIB));
  await ask([kernel], { '/boot': 28 });
  await assert.rejects(ask([kernel], { '/boot': 27 }), /need 28\.0 MiB/);
});

test('a package that does not say counts as a multiple of its own size', async () => {
  writeFileSync(join(guest.folder, 'bin/dpkg-deb'), '#!/bin/sh\nexit 2\n');
  // 40 MiB, five times: 200 for its growth, 200 for its unpacking, 32 in reserve.
  await ask(['other'], { '/usr': 432 });
  await assert.rejects(ask(['other'], { '/usr': 431 }), /need 432\.0 MiB/);
});
