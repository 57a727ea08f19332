// A view of a disk on a real QEMU: it shows one moment while writes go on, and where more is overwritten than is kept, the view
// breaks and the writes do not.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, chmod, chown, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { tryCommand } from '../../src/base/run-command.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import { parseNodes } from '../../src/hypervisor/qmp/answers.ts';
import { closeView, type DiskViewParts, openView } from '../../src/hypervisor/qmp/disk-view.ts';
import { connectQmp } from '../../src/hypervisor/qmp/qmp-client.ts';
import type { VmId } from '../../src/model/ids.ts';
import { uid } from './gate-house.ts';

const MIB = 1024 * 1024;
const DISK_BYTES = 16 * MIB;

/** A QEMU whose processor never runs, confined as ours are: what a guest writes is written by hand. */
async function machine(t: TestContext) {
  const folder = await mkdtemp(join(tmpdir(), 'pqview-'));
  await chmod(folder, 0o711);
  const disk = join(folder, 'disk.raw');
  await writeFile(disk, Buffer.alloc(DISK_BYTES, 1));
  const qmpFolder = await mkdtemp(join(folder, 'qmp-'));
  if (uid !== null) for (const path of [disk, qmpFolder]) await chown(path, uid, uid);
  const qmpSocket = join(qmpFolder, 'qmp');
  const node = { driver: 'raw', 'node-name': 'disk0', file: { driver: 'file', filename: disk } };
  const rights = uid === null ? [] : ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--'];
  const [program = '', ...args] = [
    ...rights,
    ...['qemu-system-x86_64', '-S', '-nodefaults', '-display', 'none', '-machine', 'q35', '-accel', 'tcg', '-m', '32'],
    ...['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
    ...['-qmp', `unix:${qmpSocket},server=on,wait=off`, '-blockdev', JSON.stringify(node)],
    ...['-device', 'virtio-blk-pci,id=disk-root,drive=disk0'],
  ];
  const qemu: ChildProcess = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let said = '';
  qemu.stdout?.on('data', (piece: Buffer) => {
    said += piece.toString('latin1');
  });
  t.after(async () => {
    qemu.kill('SIGKILL');
    if (qemu.exitCode === null && qemu.signalCode === null) await once(qemu, 'close');
    await rm(folder, { recursive: true });
  });
  const isThere = () =>
    access(qmpSocket).then(
      () => true,
      () => false,
    );
  assert(await waitUntil(isThere, systemClock, 20_000));
  const qmp = await connectQmp({ path: qmpSocket, clock: systemClock });
  t.after(qmp.close);
  const parts: DiskViewParts = {
    ...{ vm: 'web' as VmId, qmp, clock: systemClock, uid }, // Letters are a VM's name.
    spaceFolder: join(folder, 'space'),
    socketFolder: join(folder, 'views/web'),
    devices: new Map([['root', 'disk-root']]),
    oldBytesMax: 4 * MIB,
  };
  /** As the guest would: by its device. What came of it, which QEMU says on its own output. */
  const write = async (words: string): Promise<string> => {
    said = '';
    const line = `qemu-io -d disk-root/virtio-backend "write ${words}"`;
    await qmp.execute('human-monitor-command', { 'command-line': line });
    assert(await waitUntil(async () => said.includes('\n'), systemClock, 20_000));
    return said;
  };
  const nodes = async () =>
    parseNodes(await qmp.execute('query-named-block-nodes', { flat: true }), 'nodes').map((one) => one['node-name']);
  return { folder, disk, parts, write, nodes };
}

/** The first byte of each mebibyte that a reader of the view sees; null where the view is broken. */
async function readView(folder: string, view: { readonly socket: string; readonly exportName: string }) {
  const target = join(folder, 'seen.raw');
  const uri = `nbd+unix:///${view.exportName}?socket=${view.socket}`;
  const { exitCode } = await tryCommand(['qemu-img', 'convert', '-f', 'raw', '-O', 'raw', uri, target]);
  if (exitCode !== 0) return null;
  const seen = await readFile(target);
  return Array.from({ length: DISK_BYTES / MIB }, (_, index) => seen[index * MIB]);
}

test('a view shows one moment while the guest writes, breaks before the guest does, and leaves nothing behind [A3]', async (t) => {
  const { folder, disk, parts, write, nodes } = await machine(t);
  const before = await nodes();
  const view = await openView(parts, 'root');
  assert.match(await write('-P 7 0 1M'), /wrote/);
  const sixteenOnes = Array.from({ length: 16 }, () => 1);
  assert.deepEqual(await readView(folder, view), sixteenOnes);
  assert.equal((await readFile(disk))[0], 7, 'the guest wrote, to its own disk');

  assert.match(await write('-P 8 1M 12M'), /wrote/, 'more than is kept: the write goes through');
  assert.equal(await readView(folder, view), null, 'and the view is broken');
  await view.close();
  assert.deepEqual(await nodes(), before);
  assert.deepEqual(await readdir(parts.spaceFolder), []);
  await assert.rejects(access(parts.socketFolder), { code: 'ENOENT' });

  const next = await openView(parts, 'root');
  assert.deepEqual((await readView(folder, next))?.slice(0, 2), [7, 8], 'the next one shows its own moment');
  // A daemon that was killed: whoever comes next knows nothing of it.
  await closeView(parts);
  assert.deepEqual(await nodes(), before);
  assert.match(await write('-P 9 0 1M'), /wrote/);
});
