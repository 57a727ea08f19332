// What becomes of the services that packages want restarted, through a systemctl that is a script.
import assert from 'node:assert/strict';
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { FakeGuest } from '../../test/fakes/guest-agent/fake-guest.ts';
import { nodePlatform } from '../platform/node.ts';
import { forbidStarts, renewInit, restorePolicy, settleServices, startDeferred } from './service-starts.ts';

const platform = nodePlatform(systemClock);
let guest: FakeGuest;

beforeEach(() => {
  guest = new FakeGuest();
  mkdirSync(join(guest.folder, 'run/systemd/system'), { recursive: true });
  mkdirSync(guest.paths.runtime, { recursive: true });
  writeFileSync(join(guest.folder, 'calls'), '');
});
afterEach(() => guest.remove());

type Unit = { readonly active: string; readonly file: string; readonly early?: boolean };

/** A systemctl that knows these units and notes what it is asked to do. */
function systemd(units: Readonly<Record<string, Unit>>): void {
  const cases = Object.entries(units).map(([name, { active, file, early = false }]) => {
    return `${name}) printf 'ActiveState=${active}\\nUnitFileState=${file}\\nDefaultDependencies=${early ? 'no' : 'yes'}\\n' ;;`;
  });
  const script = `#!/bin/sh
if [ "$1" != show ]; then echo "$*" >>${guest.folder}/calls; exit 0; fi
for unit; do :; done
case $unit in
${cases.join('\n')}
*) printf 'ActiveState=inactive\\nUnitFileState=\\nDefaultDependencies=yes\\n' ;;
esac
`;
  const path = join(guest.folder, 'bin/systemctl');
  writeFileSync(path, script);
  chmodSync(path, 0o755);
}

const calls = (): readonly string[] =>
  readFileSync(join(guest.folder, 'calls'), 'utf8').trim().split('\n').filter(Boolean);

/** What package scripts ask for, through the policy that they really run. */
async function want(...wishes: readonly string[]): Promise<void> {
  forbidStarts(platform, guest.paths);
  for (const wish of wishes) {
    const [name = '', action = ''] = wish.split(' ');
    await assert.rejects(runCommand([guest.paths.policy, name, action]), /exit|101/, 'nothing may start');
  }
  restorePolicy(platform, guest.paths);
}

const settle = async (further: readonly string[] = [], isAdmitted = false): Promise<void> =>
  await settleServices(platform, guest.paths, { further, isAdmitted });

test('a running service ends now and starts at the admission, without anybody waiting for it [A5]', async () => {
  systemd({ 'nginx.service': { active: 'active', file: 'enabled' } });
  await want('nginx.service stop', 'nginx.service restart');
  await settle();
  assert.deepEqual(calls(), ['stop nginx.service']);
  await startDeferred(platform, guest.paths);
  await startDeferred(platform, guest.paths);
  assert.deepEqual(calls(), ['stop nginx.service', '--no-block start nginx.service'], 'once');
});

test('a machine that is plugged in already gets its services back at once', async () => {
  systemd({ 'nginx.service': { active: 'active', file: 'enabled' } });
  await want('nginx restart');
  await settle([], true);
  assert.deepEqual(calls(), ['stop nginx.service', '--no-block start nginx.service']);
});

test('what did not run starts only if it is enabled, and what was disabled stays so', async () => {
  systemd({
    'new.service': { active: 'inactive', file: 'enabled' },
    'off.service': { active: 'inactive', file: 'disabled' },
    'gone.service': { active: 'inactive', file: '' },
  });
  await want('new.service start', 'off.service restart', 'gone.service restart');
  await settle();
  await startDeferred(platform, guest.paths);
  assert.deepEqual(calls(), ['--no-block start new.service']);
});

test('what belongs to the early boot waits for no network and is restarted at once', async () => {
  systemd({ 'udev.service': { active: 'active', file: 'static', early: true } });
  await want('udev restart');
  await settle();
  assert.deepEqual(calls(), ['--no-block restart udev.service']);
});

test('a service that runs a replaced library ends too, although no package asked for it', async () => {
  systemd({ 'web.service': { active: 'active', file: 'enabled' } });
  await settle(['web.service']);
  assert.deepEqual(calls(), ['stop web.service']);
});

test('the agent’s own unit and names that are none are not touched', async () => {
  systemd({ 'pratique-agent.service': { active: 'active', file: 'enabled' } });
  await want('pratique-agent restart', 'pratique-agent.service restart', '-x restart', '../evil restart');
  await settle();
  assert.deepEqual(calls(), []);
  assert.ok(!existsSync(guest.paths.policy));
});

test('a stale init is told to begin anew; only one that is stale all the same needs a reboot', async () => {
  systemd({});
  const maps = join(guest.paths.proc, '1/maps');
  writeFileSync(maps, '7f1c r-xp 00065000 fe:01 1234    /usr/lib/x86_64-linux-gnu/libpcre2-8.so.0 (deleted)\n');
  assert.equal(await renewInit(platform, guest.paths), false);
  assert.deepEqual(calls(), ['daemon-reexec']);
  writeFileSync(maps, '7f1c r-xp 00065000 fe:01 1234    /usr/lib/x86_64-linux-gnu/libpcre2-8.so.0\n');
  assert.equal(await renewInit(platform, guest.paths), true);
});
