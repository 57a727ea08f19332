// Whether a guest has a newer kernel than it runs, and that one restart for it is tried once.
import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import type { InstalledProduct } from '../src/model/inventory.ts';
import { FakeGuest } from '../test/fakes/guest-agent/fake-guest.ts';
import { findNewerKernel, isKernelDue, noteKernelTried, runningKernelVersion } from './kernel-state.ts';
import { nodePlatform } from './platform/node.ts';
import type { Platform } from './platform/platform.ts';

const RUNNING = '6.1.0-37-amd64';
let guest: FakeGuest;
let platform: Platform;

beforeEach(() => {
  guest = new FakeGuest();
  platform = { ...nodePlatform(systemClock), kernel: () => ({ release: RUNNING, machine: 'x86_64' }) };
  mkdirSync(join(guest.folder, 'boot'));
  setVersion('6.1.140-1');
});
afterEach(() => guest.remove());

/** /proc/version of Debian 12, shortened in the middle. */
function setVersion(version: string): void {
  const text = `Linux version ${RUNNING} (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC Debian ${version} (2025-05-22)\n`;
  writeFileSync(join(guest.paths.proc, 'version'), text);
}

/** Installed, with its image in /boot. */
function kernel(release: string, version: string): InstalledProduct {
  writeFileSync(join(guest.folder, 'boot', `vmlinuz-${release}`), 'kernel');
  return { ecosystem: 'debian', product: `linux-image-${release}`, version, arch: 'amd64', state: 'installed' };
}

test('the running kernel tells the version of its package; one that is no Debian kernel tells none', () => {
  assert.equal(runningKernelVersion(platform, guest.paths), '6.1.140-1');
  writeFileSync(join(guest.paths.proc, 'version'), 'Linux version 6.18.0 (me@here) #1 SMP\n');
  assert.equal(runningKernelVersion(platform, guest.paths), null);
});

test('the newest installed kernel of the same kind, by its release, is the one that should run', () => {
  const own = kernel(RUNNING, '6.1.140-1');
  const others = [
    kernel('6.1.0-41-amd64', '6.1.158-1'),
    kernel('6.1.0-9-amd64', '6.1.27-1'),
    kernel('6.1.0-41-cloud-amd64', '6.1.158-1'),
  ];
  assert.equal(findNewerKernel(platform, guest.paths, [own, ...others]), 'linux-image-6.1.0-41-amd64 6.1.158-1');
  assert.equal(findNewerKernel(platform, guest.paths, [own, kernel('6.1.0-9-amd64', '6.1.27-1')]), null);
});

test('a kernel rebuilt under the same name is newer than the one in memory', () => {
  assert.equal(findNewerKernel(platform, guest.paths, [kernel(RUNNING, '6.1.140-1')]), null);
  assert.equal(
    findNewerKernel(platform, guest.paths, [kernel(RUNNING, '6.1.147-1')]),
    `linux-image-${RUNNING} 6.1.147-1`,
  );
});

test('a guest whose kernel comes from its host has no newer one, whatever is installed', () => {
  assert.equal(findNewerKernel(platform, guest.paths, [kernel('6.1.0-41-amd64', '6.1.158-1')]), null);
});

test('a restart is due for a kernel once: a boot loader that takes the old one again does not make it loop', () => {
  const products = [kernel(RUNNING, '6.1.140-1'), kernel('6.1.0-41-amd64', '6.1.158-1')];
  mkdirSync(guest.paths.state, { recursive: true });
  assert.equal(isKernelDue(platform, guest.paths, products), true);
  noteKernelTried(platform, guest.paths, products);
  assert.equal(isKernelDue(platform, guest.paths, products), false);
  assert.equal(
    isKernelDue(platform, guest.paths, [...products, kernel('6.1.0-42-amd64', '6.1.159-1')]),
    true,
    'the next one',
  );
});
