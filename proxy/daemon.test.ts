// Tests of the daemon around the host: one at a time, what a dead one left, the page for bad days, the orderly end.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { PratiqueError } from '../src/base/errors.ts';
import { API_DRAIN_MS } from '../src/base/limits.ts';
import { silentLog } from '../src/base/log.ts';
import { makeFakeService, SAMPLE_SPEC, vmId } from '../test/fakes/service.ts';
import { makeApiClient } from './api-client.ts';
import { loadConfig, socketPathOf } from './config.ts';
import { type DaemonOptions, startDaemon } from './daemon.ts';

let folder = '';
let closed = 0;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-daemon-'));
  closed = 0;
});
afterEach(async () => await rm(folder, { recursive: true, force: true }));

const optionsFor = async (data: string, run: string): Promise<DaemonOptions> => {
  const env = { HOME: folder, PRATIQUE_DATA: join(folder, data), PRATIQUE_RUN: join(folder, run) };
  const { config } = await loadConfig({ env, uid: 1 });
  const close = async () => {
    closed += 1;
  };
  const startHost = async () => ({ service: makeFakeService(), close });
  return { config, log: silentLog, clock: systemClock, env: {}, uid: 1, startHost };
};
const codeOf = async (work: Promise<unknown>): Promise<string> => {
  const error = await work.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof PratiqueError, String(error));
  return error.code;
};

test('the daemon serves its socket and ends by closing the host, leaving neither socket nor pid', async () => {
  const options = await optionsFor('data', 'run');
  const daemon = await startDaemon(options);
  const client = makeApiClient({ socketPath: daemon.socketPath, clock: systemClock });
  assert.equal((await client.listVms()).length, 1);
  assert.equal((await readFile(join(folder, 'run/daemon.pid'), 'utf8')).trim(), String(process.pid));
  await daemon.close();
  assert.equal(closed, 1);
  assert.equal(await codeOf(client.listVms()), 'daemon-down/not-running');
  await assert.rejects(stat(join(folder, 'run/daemon.pid')));
});

test('a second daemon on the same data or the same socket is refused, and the first goes on', async () => {
  const first = await startDaemon(await optionsFor('data', 'run'));
  assert.equal(await codeOf(startDaemon(await optionsFor('data', 'run'))), 'conflict/daemon-running');
  assert.equal(await codeOf(startDaemon(await optionsFor('data', 'run2'))), 'conflict/daemon-running');
  assert.equal(await codeOf(startDaemon(await optionsFor('data2', 'run'))), 'conflict/daemon-running');
  const client = makeApiClient({ socketPath: first.socketPath, clock: systemClock });
  assert.equal((await client.listVms()).length, 1);
  await first.close();
  await (await startDaemon(await optionsFor('data', 'run'))).close();
});

test('the socket that a killed daemon left is no hindrance', async () => {
  const options = await optionsFor('data', 'run');
  await (await startDaemon(options)).close();
  const socketPath = socketPathOf(options.config.runFolder);
  const listen = 'net.createServer().listen(process.argv[1], () => console.log("listening"))';
  const dead = spawn(process.execPath, ['-e', listen, socketPath], { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(dead.stdout, 'data');
  assert.equal(await codeOf(startDaemon(options)), 'conflict/daemon-running');
  dead.kill('SIGKILL');
  await once(dead, 'close');
  assert.ok((await stat(socketPath)).isSocket());
  await (await startDaemon(options)).close();
});

test('a host that does not start leaves the data folder free for the next try', async () => {
  const options = await optionsFor('data', 'run');
  const broken = async () => {
    throw new PratiqueError('host-unfit/nft', 'no fence');
  };
  assert.equal(await codeOf(startDaemon({ ...options, startHost: broken })), 'host-unfit/nft');
  await (await startDaemon(options)).close();
});

test("a folder that cannot be made or locked is told as the host's fault, with the path", async () => {
  await writeFile(join(folder, 'file'), '');
  assert.equal(await codeOf(startDaemon(await optionsFor('file/data', 'run'))), 'host-unfit/folder');
  await mkdir(join(folder, 'odd/daemon.lock'), { recursive: true });
  assert.equal(await codeOf(startDaemon(await optionsFor('odd', 'run'))), 'host-unfit/lock');
});

test('the break-glass page is there from the start and follows the VMs', async () => {
  const daemon = await startDaemon(await optionsFor('data', 'run'));
  const page = async () => await readFile(join(folder, 'data/break-glass.txt'), 'utf8');
  assert.match(await page(), /# VM web\n/);
  const client = makeApiClient({ socketPath: daemon.socketPath, clock: systemClock });
  await client.addVm({ ...SAMPLE_SPEC, vm: vmId('db') }, {});
  assert.match(await page(), /# VM db\n/);
  await client.removeVm('web');
  assert.doesNotMatch(await page(), /# VM web\n/);
  await daemon.close();
});

test('VMs that are added at the same moment are all answered, and all are on the break-glass page', async () => {
  const daemon = await startDaemon(await optionsFor('data', 'run'));
  try {
    const client = makeApiClient({ socketPath: daemon.socketPath, clock: systemClock });
    const names = Array.from({ length: 20 }, (_, index) => vmId(`at-once-${index}`));
    await Promise.all(names.map((vm) => client.addVm({ ...SAMPLE_SPEC, vm }, {})));
    const page = await readFile(join(folder, 'data/break-glass.txt'), 'utf8');
    assert.deepEqual(
      names.filter((vm) => !page.includes(`# VM ${vm}\n`)),
      [],
    );
  } finally {
    await daemon.close();
  }
});

test('a request under way is answered before the daemon ends; one that hangs holds it up for a moment only', async () => {
  const options = await optionsFor('data', 'run');
  const service = makeFakeService();
  const release = Promise.withResolvers<void>();
  const slow = { ...service, listVendors: async () => await systemClock.sleep(300).then(() => service.listVendors()) };
  const stuck = { ...slow, drift: async () => await release.promise.then(() => service.drift()) };
  const order: string[] = [];
  const close = async () => void order.push('host closed');
  const daemon = await startDaemon({ ...options, startHost: async () => ({ service: stuck, close }) });
  const client = makeApiClient({ socketPath: daemon.socketPath, clock: systemClock });
  const answered = client.listVendors().then(({ length }) => order.push(`answered ${length}`));
  const hanging = codeOf(client.drift());
  await systemClock.sleep(100);
  const startedMs = systemClock.monotonicMs();
  await daemon.close();
  await answered;
  assert.deepEqual(order, ['answered 2', 'host closed']);
  assert.equal(await hanging, 'daemon-down/not-running');
  assert.ok(systemClock.monotonicMs() - startedMs < API_DRAIN_MS + 5_000);
  release.resolve();
  await (await startDaemon(options)).close();
});
