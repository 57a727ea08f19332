// Whose program or library was replaced on disk while it ran, told apart by what renews it: a unit's restart, or only a reboot.
import assert from 'node:assert/strict';
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { FakeGuest } from '../test/fakes/guest-agent/fake-guest.ts';
import { nodePlatform } from './platform/node.ts';
import { findStaleProcesses } from './stale-processes.ts';

let guest: FakeGuest;
beforeEach(() => {
  guest = new FakeGuest();
});
afterEach(() => guest.remove());

/** As proc(5) has them, from a Debian 12 whose libssl3 was just upgraded. */
const REPLACED = '7f1c r-xp 00065000 fe:01 1234    /usr/lib/x86_64-linux-gnu/libssl.so.3 (deleted)';
const LIBC = '7f1d r-xp 00026000 fe:01 1236    /usr/lib/x86_64-linux-gnu/libc.so.6 (deleted)';
const PRESENT = '7f2a r-xp 00026000 fe:01 1235    /usr/lib/x86_64-linux-gnu/libc.so.6';
const DATA_ONLY = '7f2b r--p 00026000 fe:01 1235    /usr/lib/locale/locale-archive (deleted)';
const MEMORY = '7f2c r-xp 00000000 00:01 99      /memfd:doublemapper (deleted)';

type Process = {
  readonly maps: readonly string[];
  readonly group: string;
  readonly name?: string;
  readonly exe?: string;
};

function find(processes: Readonly<Record<string, Process>>) {
  for (const [id, { maps, group, name = 'daemon', exe = '/usr/sbin/daemon' }] of Object.entries(processes)) {
    const folder = join(guest.paths.proc, id);
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'maps'), maps.map((line) => `${line}\n`).join(''));
    writeFileSync(join(folder, 'cgroup'), `0::${group}\n`);
    writeFileSync(join(folder, 'comm'), `${name}\n`);
    symlinkSync(exe, join(folder, 'exe'));
  }
  return findStaleProcesses({ ...nodePlatform(systemClock), selfPath: '/usr/sbin/pratique-agent' }, guest.paths);
}

test('a service with a replaced library is named by its unit, once, and one without is not', () => {
  const nginx = { maps: [PRESENT, REPLACED], group: '/system.slice/nginx.service' };
  const found = find({ 10: nginx, 11: nginx, 12: { maps: [PRESENT], group: '/system.slice/cron.service' } });
  assert.deepEqual(found, { units: ['nginx.service'], isInitStale: false, rebootFor: [] });
});

test('init is told apart; the message bus with another C library and what has no unit need a reboot', () => {
  const found = find({
    1: { maps: [REPLACED], group: '/init.scope', name: 'systemd' },
    20: { maps: [REPLACED, LIBC], group: '/system.slice/dbus.service', name: 'dbus-daemon' },
    21: { maps: [REPLACED], group: '/system.slice/dbus-broker.service', name: 'dbus-broker' },
    30: { maps: [REPLACED], group: '/', name: 'httpd' },
  });
  assert.deepEqual(found, { units: [], isInitStale: true, rebootFor: ['dbus-daemon', 'httpd'] });
});

test('logins, the agent itself and maps that are no programs are left alone', () => {
  const found = find({
    40: { maps: [REPLACED], group: '/user.slice/user-0.slice/session-1.scope' },
    41: { maps: [REPLACED], group: '/system.slice/system-getty.slice/getty@tty1.service' },
    42: { maps: [REPLACED], group: '/system.slice/pratique-agent.service' },
    43: { maps: [REPLACED], group: '/', exe: '/usr/sbin/pratique-agent (deleted)' },
    44: { maps: [DATA_ONLY, MEMORY], group: '/system.slice/cron.service' },
  });
  assert.deepEqual(found, { units: [], isInitStale: false, rebootFor: [] });
});
