// A view of a running VM's disk: what it asks of QEMU, that nothing of it stays whatever is in its way, and whose turn it is.
import assert from 'node:assert/strict';
import { access, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type FakeQemu, startFakeQemu } from '../../../test/fakes/qemu.ts';
import { systemClock } from '../../base/clock.ts';
import type { VmId } from '../../model/ids.ts';
import type { DiskOverlay } from '../hypervisor.ts';
import { takeTurns } from './disk-turns.ts';
import { closeView, type DiskViewParts, openView } from './disk-view.ts';
import { connectQmp } from './qmp-client.ts';

const WEB = 'web' as VmId; // Letters are a VM's name.

type Scene = { readonly qemu: FakeQemu; readonly parts: DiskViewParts; readonly folder: string };

/** Where `failsAt` is given, QEMU refuses that command the first time it comes. */
async function scene(t: TestContext, failsAt?: string): Promise<Scene> {
  const folder = await mkdtemp(join(tmpdir(), 'pqv-'));
  t.after(() => rm(folder, { recursive: true }));
  let hasFailed = false;
  const qemu = await startFakeQemu({
    qmpSocket: join(folder, 'qmp'),
    nics: [],
    status: 'running',
    disks: [
      { id: 'disk-root', node: 'overlay0' },
      { id: 'disk-root2', node: 'disk1' },
    ],
    answer: ({ execute, id }) => {
      if (execute !== failsAt || hasFailed) return null;
      hasFailed = true;
      return [`${JSON.stringify({ id, error: { class: 'GenericError', desc: 'no' } })}\r\n`];
    },
  });
  t.after(qemu.close);
  const qmp = await connectQmp({ path: join(folder, 'qmp'), clock: systemClock });
  t.after(qmp.close);
  const parts: DiskViewParts = {
    ...{ vm: WEB, qmp, clock: systemClock, uid: null },
    spaceFolder: join(folder, 'space'),
    socketFolder: join(folder, 'views/web'),
    devices: new Map([
      ['root', 'disk-root'],
      ['root2', 'disk-root2'],
    ]),
  };
  return { qemu, parts, folder };
}

async function assertAsBefore({ qemu, parts, folder }: Scene): Promise<void> {
  assert.deepEqual([...qemu.nodes.keys()].toSorted(), ['disk1', 'overlay0']);
  assert.deepEqual([qemu.nodeOf('disk-root'), qemu.nodeOf('disk-root2')], ['overlay0', 'disk1']);
  assert.deepEqual([qemu.nbdServer(), qemu.exports.size], [null, 0]);
  assert.deepEqual(await readdir(join(folder, 'space')).catch(() => []), []);
  await assert.rejects(access(parts.socketFolder), { code: 'ENOENT' });
}

test('a view stands over what the device has, breaks before the guest does, and is gone when it is closed [A3]', async (t) => {
  const made = await scene(t);
  const { qemu, parts } = made;
  const view = await openView(parts, 'root');
  assert.equal(qemu.nodeOf('disk-root'), 'view-of.overlay0');
  assert.equal(qemu.nodeOf('disk-root2'), 'disk1');
  const filter = qemu.nodes.get('view-of.overlay0');
  assert.deepEqual(
    [filter?.file, filter?.target, filter?.['on-cbw-error']],
    ['overlay0', 'view-old', 'break-snapshot'],
  );
  assert.deepEqual([...qemu.exports], [[view.exportName, 'view-disk']]);
  assert.equal(qemu.nbdServer(), view.socket);
  const shown = qemu.commands.find(({ execute }) => execute === 'block-export-add');
  assert.equal(shown?.arguments.writable, false);
  assert.deepEqual(await readdir(parts.spaceFolder), [], 'what is kept has no name');
  await view.close();
  await assertAsBefore(made);
  await view.close();
  await assertAsBefore(made);
});

test('whatever QEMU refuses on the way, everything is as before [A3]', async (t) => {
  for (const step of ['blockdev-add', 'qom-set', 'nbd-server-start', 'block-export-add']) {
    const made = await scene(t, step);
    await assert.rejects(openView(made.parts, 'root'), { code: 'host-fault/qmp-refused' }, step);
    await assertAsBefore(made);
    await (await openView(made.parts, 'root')).close();
    await assertAsBefore(made);
  }
});

test('what a daemon left that was killed while it read is taken away by the next [X4]', async (t) => {
  const made = await scene(t);
  await openView(made.parts, 'root2');
  assert.equal(made.qemu.nodeOf('disk-root2'), 'view-of.disk1');
  await closeView(made.parts);
  await assertAsBefore(made);
});

test('a disk that is not there is refused by name', async (t) => {
  const { parts } = await scene(t);
  await assert.rejects(openView(parts, 'data'), { code: 'usage/disk', message: /web: it has no disk "data"/ });
});

test('a merge waits for the end of a view, and a view is refused while one is under way [X5]', async (t) => {
  const { parts } = await scene(t);
  const merge = Promise.withResolvers<boolean>();
  const order: string[] = [];
  const overlay: DiskOverlay = {
    fate: async () => 'accepted',
    begin: async () => {},
    accept: async () => {},
    commit: () => {
      order.push('merging');
      return merge.promise;
    },
  };
  const turns = takeTurns(overlay, parts);
  const view = await turns.viewDisk('root');
  await assert.rejects(turns.viewDisk('root'), { code: 'conflict/overlay', message: /reads it already/ });
  const merged = turns.overlay.commit();
  await systemClock.sleep(20);
  assert.deepEqual(order, []);
  await view.close();
  await systemClock.sleep(20);
  assert.deepEqual(order, ['merging']);
  await assert.rejects(turns.viewDisk('root'), { code: 'conflict/overlay', message: /merged into it/ });
  merge.resolve(true);
  assert.equal(await merged, true);
  await (await turns.viewDisk('root')).close();
});
