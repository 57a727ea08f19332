// The real executable, built here, speaks to a host over a unix socket: the whole path without a VM.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { systemClock } from '../src/base/clock.ts';
import type { Digest } from '../src/base/digest-text.ts';
import { silentLog } from '../src/base/log.ts';
import type { InstallAction } from '../src/model/release.ts';
import { type DriveItem, makeTar, type TarPart, writeDrive } from '../test/fakes/guest-agent/fake-bundle.ts';
import { asRun, FakeHost, PLAN } from '../test/fakes/guest-agent/fake-host.ts';
import { type AgentBuild, buildAgent } from './build.ts';

const folder = mkdtempSync(join(tmpdir(), 'pratique-agent-'));
const prefix = join(folder, 'app');
const socketPath = join(folder, 'port.sock');
let build: AgentBuild;
let agent: ChildProcess;
let server: Server;
/** The host of the present connection; a new one each time the agent connects. */
let host: FakeHost | null = null;
let runs = 0;

before(async () => {
  build = await buildAgent({ log: silentLog });
  copyFileSync(build.path, join(folder, 'pratique-agent'));
  mkdirSync(join(folder, 'drive'));
  await new Promise<void>((resolve) => {
    server = createServer(connect).listen(socketPath, resolve);
  });
  start();
});

after(() => {
  agent.kill('SIGKILL');
  server.close();
  rmSync(folder, { recursive: true });
});

function connect(socket: Socket): void {
  const own = new FakeHost((text) => socket.write(text));
  host = own;
  socket.setEncoding('utf8').on('data', (text: string) => own.receive(text));
  socket.on('error', () => {}); // The agent was killed.
}

function start(): void {
  const args = ['--port', socketPath, '--state', join(folder, 'state'), '--runtime', join(folder, 'run')];
  agent = spawn(join(folder, 'pratique-agent'), [...args, '--drive', join(folder, 'drive')], {
    stdio: 'ignore',
    env: {},
  });
}

/** The host of a connection whose agent has said hello. */
async function connected(): Promise<FakeHost> {
  while (host === null) await systemClock.sleep(5);
  const present = host;
  await present.take('hello');
  return present;
}

const present = (): FakeHost => {
  assert.ok(host !== null, 'the agent is connected');
  return host;
};

function residentKb(): number {
  const status = readFileSync(`/proc/${agent.pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1]);
}

type Bundle = Partial<Extract<InstallAction, { action: 'bundle' }>>;

function bundle(version: string, parts: readonly TarPart[], action: Bundle = {}): DriveItem {
  const install = { action: 'bundle', prefix, compression: 'none', install: 'install', ...action } as const;
  const tar = makeTar([...parts, { name: 'version', content: version, mode: 0o644 }]);
  return { item: { product: 'app', version, install }, content: install.compression === 'gzip' ? gzipSync(tar) : tar };
}

/** Offers items as a new run; returns what an offer of the same run again needs. */
function offer(items: readonly DriveItem[]) {
  runs += 1;
  const run = asRun(String(runs).padStart(32, '0'));
  const { manifestDigest } = writeDrive(join(folder, 'drive'), items, { run });
  const offered = { run, manifestDigest };
  sendOffer(offered);
  return offered;
}

function sendOffer({
  run,
  manifestDigest,
}: {
  readonly run: ReturnType<typeof asRun>;
  readonly manifestDigest: Digest;
}) {
  present().send({ type: 'offer', run, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
}

async function installed() {
  const { results } = await present().take('installed');
  assert.equal(results.length, 1);
  const [result] = results;
  assert.ok(result !== undefined);
  return result;
}

const script = (name: string, text: string): TarPart => ({ name, content: `#!/bin/sh\n${text}` });

test('the executable is one static file under 1 MB [X7]', () => {
  assert.ok(build.sizeBytes < 1_000_000, `${build.sizeBytes} bytes`);
  assert.ok(!readFileSync(build.path).includes('/ld-'), 'it names no dynamic loader');
});

test('it says hello and stays under 2 MB resident while it waits [X7]', async () => {
  await connected();
  await present().settle();
  assert.ok(residentKb() < 2048, `${residentKb()} kB resident`);
});

test('it reports its inventory on being asked [A6]', async () => {
  present().send({ type: 'ask-inventory' });
  const { inventory } = await present().take('inventory');
  assert.equal(inventory.agent.digest, build.digest);
  assert.ok(inventory.abilities.compressions.includes('gzip'));
  assert.ok(inventory.freeBytes > 0);
});

test('it installs a bundle from the drive and confirms it [A10]', async () => {
  const parts = [
    script('bin/install', 'echo "installing $PRATIQUE_VERSION"\npwd >where\n'),
    script('bin/check', 'test "$(cat where)" = "$PWD" && test -z "$PRATIQUE_PREVIOUS"\n'),
  ];
  const { run, manifestDigest } = offer([bundle('2.0.0', parts, { install: 'bin/install', check: 'bin/check' })]);
  assert.equal((await present().take('drive')).state, 'verified');
  const result = await installed();
  assert.deepEqual([result.outcome, result.checkPassed], ['installed', true], result.output);
  assert.equal(readlinkSync(`${prefix}/current`), 'versions/2.0.0');
  present().send({ type: 'release', run, manifestDigest });
  assert.equal((await present().take('drive')).state, 'released');
  present().send({ type: 'ask-confirm', run, planDigest: PLAN, manifestDigest });
  const confirm = await present().take('confirm');
  assert.equal(confirm.manifestDigest, manifestDigest);
  const app = confirm.inventory.products.find(({ product }) => product === 'app');
  assert.deepEqual([app?.version, app?.state], ['2.0.0', 'installed'], 'the fresh inventory shows the new version');
});

test('it unpacks a gzip bundle with the guest’s gzip', async () => {
  const parts = [script('install', ''), { name: 'large', content: 'x'.repeat(3_000_000) }];
  offer([bundle('2.1.0', parts, { compression: 'gzip' })]);
  const result = await installed();
  assert.equal(result.outcome, 'installed', result.output);
  assert.equal(readFileSync(`${prefix}/current/large`).length, 3_000_000);
});

test('a hanging entry is killed with its whole group, and its output is told', async () => {
  const hang = script('install', 'echo before\nsleep 55 &\necho $! >"$PRATIQUE_PREFIX/child"\nwait\n');
  offer([bundle('2.2.0', [hang], { timeoutMs: 1000 })]);
  const result = await installed();
  assert.deepEqual([result.outcome, result.code, result.output], ['failed', 'timeout', 'before\n']);
  const status = `/proc/${readFileSync(`${prefix}/child`, 'utf8').trim()}/status`;
  assert.ok(!existsSync(status) || /^State:\s+Z/m.test(readFileSync(status, 'utf8')), 'the child is gone');
  assert.equal(readlinkSync(`${prefix}/current`), 'versions/2.1.0');
});

test('a background process that keeps the output open does not hold the install up', async () => {
  const parts = [script('install', 'sleep 30 &\necho $! >"$PRATIQUE_PREFIX/child"\nexit 0\n')];
  offer([bundle('2.3.0', parts)]);
  assert.equal((await installed()).outcome, 'installed');
  process.kill(Number(readFileSync(`${prefix}/child`, 'utf8')), 'SIGKILL');
});

test('output is kept to its end, and its control characters do not travel', async () => {
  offer([
    bundle('2.4.0', [
      script('install', 'yes 0123456789 | head -c 300000\nprintf "\\033[31mthe end\\377\\n"\nexit 7\n'),
    ]),
  ]);
  const result = await installed();
  assert.deepEqual([result.code, result.exitCode], ['install-failed', 7]);
  assert.ok((result.output?.length ?? 0) <= 4000);
  assert.match(result.output ?? '', /\d\[31mthe end\ufffd\n$/);
});

test('while it installs it answers pings and takes inventories', async () => {
  const wait = script('install', 'while ! [ -e "$PRATIQUE_PREFIX/go" ]; do sleep 0.05; done\n');
  offer([bundle('2.5.0', [wait])]);
  await present().take('drive');
  await present().settle();
  present().send({ type: 'ask-inventory' });
  await present().take('inventory');
  assert.equal(present().count('installed'), 0);
  copyFileSync('/dev/null', `${prefix}/go`);
  assert.equal((await installed()).outcome, 'installed');
});

test('killed in the middle of an install and started again, it has the old version, and goes on [X4]', async () => {
  rmSync(`${prefix}/go`);
  const wait = script('install', 'while ! [ -e "$PRATIQUE_PREFIX/go" ]; do sleep 0.05; done\n');
  const offered = offer([bundle('2.6.0', [wait])]);
  while (!existsSync(`${prefix}/versions/2.6.0`)) await systemClock.sleep(5);
  agent.kill('SIGKILL');
  host = null;
  start();
  await connected();
  await present().settle();
  assert.equal(readlinkSync(`${prefix}/current`), 'versions/2.5.0');
  assert.ok(!existsSync(`${prefix}/versions/2.6.0`), 'what was broken off is cleared away');
  copyFileSync('/dev/null', `${prefix}/go`);
  sendOffer(offered);
  assert.equal((await installed()).outcome, 'installed');
  assert.equal(readlinkSync(`${prefix}/current`), 'versions/2.6.0');
});

test('it replaces itself under the same process id, and the run goes on [X7]', async () => {
  const next = await buildAgent({ log: silentLog, version: '9.9.9' });
  const agentItem = { product: 'pratique-agent', version: '9.9.9', install: { action: 'agent' } } as const;
  const before = present();
  host = null;
  runs += 1;
  const run = asRun(String(runs).padStart(32, '0'));
  const items = [{ item: agentItem, content: readFileSync(next.path) }];
  const { manifestDigest } = writeDrive(join(folder, 'drive'), items, { run });
  before.send({ type: 'offer', run, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
  assert.equal((await before.take('bye')).reason, 'agent-update');
  while (host === null) await systemClock.sleep(5);
  assert.equal((await present().take('hello')).agent.version, '9.9.9');
  assert.ok(agent.exitCode === null && agent.signalCode === null, 'it is the same process');
  sendOffer({ run, manifestDigest });
  assert.equal((await installed()).outcome, 'installed');
  present().send({ type: 'ask-confirm', run, planDigest: PLAN, manifestDigest });
  assert.equal((await present().take('confirm')).inventory.agent.digest, next.digest);
});

test('after all this it is under 2 MB resident again [X7]', async () => {
  await present().settle();
  assert.ok(residentKb() < 2048, `${residentKb()} kB resident`);
});

test('SIGTERM makes it record the versions, say goodbye and end [A6]', async () => {
  const ended = new Promise((resolve) => agent.on('exit', resolve));
  agent.kill('SIGTERM');
  assert.equal((await present().take('bye')).reason, 'shutdown');
  assert.equal(await ended, 0);
  const record = JSON.parse(readFileSync(join(folder, 'state/shutdown.json'), 'utf8'));
  assert.ok(record.products.some(({ product }: { readonly product: string }) => product === 'app'));
});

test('a port on which nobody listens does not answer itself, also where the kernel speaks to it from the same one [A11]', async () => {
  const own = 40_000;
  // With one port to speak from, every connection to it is to itself; by chance it is one of some thousands.
  const setUp = `ip link set lo up && echo "${own} ${own}" >/proc/sys/net/ipv4/ip_local_port_range && exec "$@"`;
  const user = process.getuid?.() === 0 ? [] : ['--user', '--map-root-user'];
  const args = ['--port', socketPath, '--state', join(folder, 'state'), '--runtime', join(folder, 'run')];
  const command = ['sh', '-c', setUp, 'sh', join(folder, 'pratique-agent'), ...args];
  // The one outside is to be gone, also where the tests before were not run.
  if (agent.exitCode === null && agent.signalCode === null) {
    const ended = once(agent, 'exit');
    agent.kill('SIGKILL');
    await ended;
  }
  host = null;
  const child = spawn('unshare', ['--net', ...user, '--', ...command], { stdio: 'ignore' });
  try {
    const health = { checks: [`port:${own}`], timeoutMs: 1_000 };
    const before = await connected();
    before.send({ type: 'ask-confirm', run: asRun('1'.repeat(32)), planDigest: PLAN, manifestDigest: null, health });
    assert.deepEqual((await before.take('confirm')).health, [
      { check: `port:${own}`, isHealthy: false, detail: 'nothing answers on loopback (ECONNREFUSED)' },
    ]);
  } finally {
    child.kill('SIGKILL');
  }
});

test('a wrong command line ends with a usage message and exit code 2', async () => {
  for (const args of [['--port'], ['--port', 'relative'], ['--nonsense', '/x'], ['word']]) {
    const child = spawn(build.path, args);
    let text = '';
    child.stderr.on('data', (piece: Buffer) => {
      text += piece.toString();
    });
    assert.equal(await new Promise((resolve) => child.on('close', resolve)), 2);
    assert.match(text, /usage: pratique-agent/);
  }
});
