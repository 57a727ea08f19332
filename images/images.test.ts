// Building and handing out images, without starting a VM: refusals, the cache's place, locks, VM disks.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { digestOf } from '../src/base/digest.ts';
import { silentLog } from '../src/base/log.ts';
import { runCommand } from '../src/base/run-command.ts';
import type { VmId } from '../src/model/ids.ts';
import { withFileLock } from './file-lock.ts';
import { buildImage, type GuestImage, guestCommandLine, makeVmDisk } from './images.ts';

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-image-unit-'));
});
after(async () => {
  await rm(folder, { recursive: true, force: true });
});

// The cast holds: letters are a VM's name.
const vm = 'web' as VmId;

async function makeImage(vmDisk: 'copy' | 'overlay'): Promise<GuestImage> {
  const path = join(folder, `${vmDisk}.raw`);
  await writeFile(path, Buffer.alloc(65_536, 7));
  const files = { kernel: '/k', initrd: '/i', commandLine: 'console=ttyS0' };
  const disks = [{ id: 'root', path, format: 'raw' as const }];
  return { name: 'tiny', ...files, disks, vmDisk, memoryMiB: 128, digest: digestOf(''), debian: null };
}

test('without an agent nothing is built, and the message says what to do', async () => {
  const cacheFolder = join(folder, 'empty');
  const agentPath = join(folder, 'no-such-agent');
  await assert.rejects(buildImage({ name: 'tiny', agentPath, cacheFolder, log: silentLog }), {
    code: 'not-found/agent',
    next: /build the agent/,
  });
  assert.deepEqual(await readdir(join(cacheFolder, 'images')), []);
});

test("a copied disk is the VM's own", async () => {
  const image = await makeImage('copy');
  const disk = await makeVmDisk({ image, folder: join(folder, 'vms'), vm });
  assert.equal(disk.format, 'raw');
  await writeFile(disk.path, 'changed');
  assert.equal((await readFile(join(folder, 'copy.raw')))[0], 7);
});

test('an overlay names its backing file and format, so that nothing is probed', async () => {
  const image = await makeImage('overlay');
  const disk = await makeVmDisk({ image, folder: join(folder, 'vms'), vm });
  assert.equal(disk.format, 'qcow2');
  const shown = JSON.parse(await runCommand(['qemu-img', 'info', '--output=json', '-f', 'qcow2', disk.path]));
  assert.equal(shown['backing-filename'], join(folder, 'overlay.raw'));
  assert.equal(shown['backing-filename-format'], 'raw');
});

test("a VM's disk is never overwritten", async () => {
  const image = await makeImage('copy');
  const own = join(folder, 'twice');
  const disk = await makeVmDisk({ image, folder: own, vm });
  await writeFile(disk.path, 'kept');
  await assert.rejects(makeVmDisk({ image, folder: own, vm }), { code: 'conflict/vm-disk' });
  assert.equal(await readFile(disk.path, 'utf8'), 'kept');
});

test('wishes become words of the command line, and a bad address is refused', async () => {
  const image = await makeImage('copy');
  const line = guestCommandLine(image, { address: '10.77.0.2/24', chatter: true, mode: 'no-agent' });
  assert.equal(line, 'console=ttyS0 pq.ip=10.77.0.2/24 pq.chatter=1 pq.mode=no-agent');
  assert.equal(guestCommandLine(image, {}), 'console=ttyS0');
  assert.throws(() => guestCommandLine(image, { address: '10.77.0.2/24 init=/bin/sh' }), {
    code: 'usage/guest-address',
  });
});

test('only one holder of a lock works at a time', async () => {
  const path = join(folder, 'lock');
  let inside = 0;
  let most = 0;
  const work = async () => {
    inside += 1;
    most = Math.max(most, inside);
    await sleep(50);
    inside -= 1;
  };
  await Promise.all([1, 2, 3].map(() => withFileLock(path, work)));
  assert.equal(most, 1);
});

test('a lock ends with a holder that is killed', async () => {
  const path = join(folder, 'killed-lock');
  const program = join(folder, 'holder.ts');
  const lockFile = join(import.meta.dirname, 'file-lock.ts');
  await mkdir(folder, { recursive: true });
  await writeFile(
    program,
    `import { withFileLock } from ${JSON.stringify(lockFile)};
     await withFileLock(${JSON.stringify(path)}, async () => { process.stdout.write('held'); await new Promise(() => setInterval(() => {}, 1000)); });`,
  );
  const holder = spawn(process.execPath, [program], { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(holder.stdout, 'data');
  holder.kill('SIGKILL');
  assert.equal(await withFileLock(path, async () => 'mine'), 'mine');
});
