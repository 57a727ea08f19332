// The real executable, built here, speaks to a host over a unix socket: the whole path without a VM.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { silentLog } from '../src/base/log.ts';
import { makeTar, writeDrive } from '../test/fakes/guest-agent/fake-bundle.ts';
import { FakeHost, PLAN, RUN } from '../test/fakes/guest-agent/fake-host.ts';
import { type AgentBuild, buildAgent } from './build.ts';

const folder = mkdtempSync(join(tmpdir(), 'pratique-agent-'));
let build: AgentBuild;
let agent: ChildProcess;
let server: Server;
let host: FakeHost;
let stderr = '';

before(async () => {
  build = await buildAgent({ log: silentLog });
  copyFileSync(build.path, join(folder, 'pratique-agent'));
  mkdirSync(join(folder, 'drive'));
  const socket = join(folder, 'port.sock');
  await new Promise<void>((resolve) => {
    server = createServer(connect).listen(socket, resolve);
  });
  agent = start(socket);
});

after(() => {
  agent.kill('SIGKILL');
  server.close();
  rmSync(folder, { recursive: true });
});

function connect(socket: Socket): void {
  const earlier = host;
  host = new FakeHost((text) => socket.write(text));
  if (earlier !== undefined) host.messages.push(...earlier.messages);
  socket.setEncoding('utf8').on('data', (text: string) => host.receive(text));
}

function start(socket: string): ChildProcess {
  const args = ['--port', socket, '--state', join(folder, 'state'), '--runtime', join(folder, 'run')];
  const child = spawn(join(folder, 'pratique-agent'), [...args, '--drive', join(folder, 'drive')], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: {},
  });
  child.stderr?.on('data', (text: Buffer) => {
    stderr += text.toString();
  });
  return child;
}

function statusField(name: string): number {
  const status = readFileSync(`/proc/${agent.pid}/status`, 'utf8');
  return Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1]);
}

test('the executable is one static file under 1 MB [X7]', () => {
  assert.ok(build.sizeBytes < 1_000_000, `${build.sizeBytes} bytes`);
  assert.ok(!readFileSync(build.path).includes('ld-linux'), 'it names no dynamic loader');
});

test('it says hello and stays under 2 MB resident while it waits [X7]', async () => {
  while (host === undefined) await systemClock.sleep(10);
  await host.take('hello');
  await host.settle();
  const residentKb = statusField('VmRSS');
  assert.ok(residentKb < 2048, `${residentKb} kB resident`);
});

test('it reports its inventory on being asked [A6]', async () => {
  host.send({ type: 'ask-inventory' });
  const { inventory } = await host.take('inventory');
  assert.equal(inventory.agent.digest, build.digest);
  assert.ok(inventory.abilities.compressions.includes('gzip'));
  assert.ok(inventory.freeBytes > 0);
});

test('it installs a bundle from the drive and confirms it [A10]', async () => {
  const prefix = join(folder, 'app');
  const content = makeTar([
    { name: './', type: '5' },
    { name: './bin/', type: '5' },
    { name: './bin/install', content: '#!/bin/sh\necho "installing $PRATIQUE_VERSION"\npwd >where\n' },
    { name: './bin/check', content: '#!/bin/sh\ntest "$(cat where)" = "$PWD" && test -z "$PRATIQUE_PREVIOUS"\n' },
  ]);
  const install = {
    action: 'bundle',
    prefix,
    compression: 'none',
    install: 'bin/install',
    check: 'bin/check',
  } as const;
  const { manifestDigest } = writeDrive(join(folder, 'drive'), [
    { item: { product: 'app', version: '2.0.0', install }, content },
  ]);
  host.send({ type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
  assert.equal((await host.take('drive')).state, 'verified');
  const installed = await host.take('installed');
  assert.deepEqual(
    installed.results.map(({ item, outcome, checkPassed }) => ({ item, outcome, checkPassed })),
    [{ item: 'bundle/app', outcome: 'installed', checkPassed: true }],
    JSON.stringify(installed.results) + stderr,
  );
  assert.equal(readlinkSync(`${prefix}/current`), 'versions/2.0.0');
  host.send({ type: 'release', run: RUN, manifestDigest });
  assert.equal((await host.take('drive')).state, 'released');
  host.send({ type: 'ask-confirm', run: RUN, planDigest: PLAN, manifestDigest });
  const confirm = await host.take('confirm');
  assert.equal(confirm.manifestDigest, manifestDigest);
  assert.ok(
    confirm.inventory.products.some(({ product, version }) => product === 'app' && version === '2.0.0'),
    'the fresh inventory shows the new version',
  );
});
