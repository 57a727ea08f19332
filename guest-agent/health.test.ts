// Health checks against a guest with services, ports and bundles of its own.
import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { FakeGuest } from '../test/fakes/guest-agent/fake-guest.ts';
import { PLAN, RUN } from '../test/fakes/guest-agent/fake-host.ts';
import { checkHealth } from './health.ts';
import { nodePlatform } from './platform/node.ts';

const platform = nodePlatform(systemClock);
let guest: FakeGuest;

beforeEach(() => {
  guest = new FakeGuest();
  mkdirSync(join(guest.folder, 'run/systemd/system'), { recursive: true });
  mkdirSync(guest.paths.runtime, { recursive: true });
});
afterEach(() => guest.remove());

/** A systemctl of which every unit becomes active once it was started. */
function systemd(shown: string): void {
  const path = join(guest.folder, 'bin/systemctl');
  const started = join(guest.folder, 'started');
  writeFileSync(
    path,
    `#!/bin/sh
if [ "$1" != show ]; then echo "$*" >>${started}; exit 0; fi
if [ -e ${started} ]; then printf 'LoadState=loaded\\nActiveState=active\\nSubState=running\\n'; else printf '${shown}'; fi
`,
  );
  chmodSync(path, 0o755);
}

const check = async (word: string, timeoutMs = 0) => {
  const [result] = await checkHealth(platform, guest.paths, { checks: [word], timeoutMs });
  return result;
};

async function listen(): Promise<{ readonly server: Server; readonly port: number }> {
  const server = createServer((socket) => socket.end());
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  assert.ok(typeof address === 'object' && address !== null);
  return { server, port: address.port };
}

test('a service counts if systemd says that it is active, and its state is told if not [A11]', async () => {
  systemd('LoadState=loaded\\nActiveState=active\\nSubState=running\\n');
  assert.deepEqual(await check('service:web.service'), { check: 'service:web.service', isHealthy: true });
  systemd('LoadState=loaded\\nActiveState=failed\\nSubState=failed\\n');
  assert.equal((await check('service:web.service'))?.detail, 'it is failed (failed)');
  systemd('LoadState=not-found\\nActiveState=inactive\\nSubState=dead\\n');
  assert.match((await check('service:web.service'))?.detail ?? '', /systemd does not know it \(not-found\)/);
});

test('a service that was held back until the admission is started to be checked; the others stay held back', async () => {
  systemd('LoadState=loaded\\nActiveState=inactive\\nSubState=dead\\n');
  const deferred = join(guest.paths.runtime, 'deferred-services');
  writeFileSync(deferred, 'other.service\n');
  assert.equal((await check('service:web.service'))?.isHealthy, false, 'nobody starts what was not held back');
  writeFileSync(deferred, 'other.service\nweb.service\n');
  assert.equal((await check('service:web'))?.isHealthy, true);
  assert.deepEqual(readFileSync(join(guest.folder, 'started'), 'utf8'), '--no-block start web\n');
  assert.deepEqual(readFileSync(deferred, 'utf8'), 'other.service\n');
});

test('a port counts if something accepts a connection to it on loopback [A11]', async () => {
  const { server, port } = await listen();
  assert.deepEqual(await check(`port:${port}`), { check: `port:${port}`, isHealthy: true });
  await new Promise((resolve) => server.close(resolve));
  assert.match((await check(`port:${port}`))?.detail ?? '', /nothing answers on loopback \(ECONNREFUSED\)/);
});

test('a check that fails is tried again while there is time', async () => {
  const { server, port } = await listen();
  await new Promise((resolve) => server.close(resolve));
  const again = createServer((socket) => socket.end());
  const checking = check(`port:${port}`, 20_000);
  await systemClock.sleep(700);
  await new Promise<void>((resolve) => again.listen(port, '127.0.0.1', resolve));
  assert.equal((await checking)?.isHealthy, true);
  await new Promise((resolve) => again.close(resolve));
});

test("a bundle's own check is run again before the confirmation, and its failure is told [A11]", async () => {
  await guest.started();
  const manifestDigest = guest.offer([guest.app('2.0.0')]);
  await guest.host.take('installed');
  const ask = async () => {
    const health = { checks: ['bundle:app', 'bundle:other'], timeoutMs: 0 };
    guest.host.send({ type: 'ask-confirm', run: RUN, planDigest: PLAN, manifestDigest, health });
    return (await guest.host.take('confirm')).health;
  };
  assert.deepEqual(await ask(), [
    { check: 'bundle:app', isHealthy: true },
    { check: 'bundle:other', isHealthy: false, detail: 'the bundle other is not installed' },
  ]);
  writeFileSync(join(guest.folder, 'opt/app/current/check'), '#!/bin/sh\necho the database is away\nexit 3\n');
  assert.match((await ask())?.[0]?.detail ?? '', /the database is away/);
});

test('a confirmation that was asked for no checks has none', async () => {
  await guest.started();
  guest.host.send({ type: 'ask-confirm', run: RUN, planDigest: PLAN, manifestDigest: null });
  assert.equal((await guest.host.take('confirm')).health, undefined);
});

test('a check of a kind that a later host may know is not taken for healthy', async () => {
  assert.match((await check('moon:full'))?.detail ?? '', /does not know such a check/);
});
