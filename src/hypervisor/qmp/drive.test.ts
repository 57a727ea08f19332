// The drive over a fake QEMU: what QEMU is told for each front-end, guests that do not let go, and our own end at any step.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { dying, OurEnd } from '../../../test/fakes/dying-monitor.ts';
import { type FakeQemu, type FakeQemuOptions, startFakeQemu } from '../../../test/fakes/qemu.ts';
import { systemClock } from '../../base/clock.ts';
import { DRIVE_FRONT_ENDS, type DriveSource } from '../../model/drive.ts';
import type { VmId } from '../../model/ids.ts';
import { type Drive, makeDrive } from './drive.ts';
import type { DriveSlots } from './drive-places.ts';
import { connectQmp, type QmpClient } from './qmp-client.ts';

const VM = 'web-1' as VmId;
const A = { kind: 'vmdk', path: '/drives/a.vmdk' } as const;
const B = { kind: 'raw', path: '/drives/b.iso' } as const;
const C = { kind: 'nbd', socket: '/run/drives/c one?.sock', exportName: 'drive' } as const;
const SLOTS: DriveSlots = { port: 'port0', scsiBus: 'scsi.0', usbBus: 'usb.0', tray: 'tray' };
/** Those that a guest's kernel locks while it has them mounted. */
const LOCKABLE = ['scsi-cd', 'ide-cd', 'usb-storage'] as const;

async function machine(t: TestContext, options: Partial<FakeQemuOptions> = {}) {
  const folder = await mkdtemp(join(tmpdir(), 'pq-drive-'));
  const qmpSocket = join(folder, 'q');
  const qemu = await startFakeQemu({ qmpSocket, nics: [], trays: ['tray'], status: 'running', ...options });
  const qmp = await connectQmp({ path: qmpSocket, clock: systemClock, timeoutMs: 2000 });
  t.after(async () => {
    qmp.close();
    await qemu.close();
    await rm(folder, { recursive: true });
  });
  const drive = (
    parts: { readonly qmp?: QmpClient; readonly unplugTimeoutMs?: number; readonly slots?: DriveSlots } = {},
  ) => makeDrive({ vm: VM, qmp, slots: SLOTS, clock: systemClock, unplugTimeoutMs: 100, ...parts });
  return { qemu, qmp, drive };
}

/** What the guest would read: the source below the front node, if a device or a tray has that. */
function shown(qemu: FakeQemu): unknown {
  if (!qemu.devices.has('pratique-drive') && qemu.inserted.get('tray') !== 'pratique-front') return null;
  const image = qemu.nodes.get(String(qemu.nodes.get('pratique-front')?.file));
  return image?.file ?? null;
}

const opened = (source: DriveSource): unknown =>
  source.kind === 'nbd'
    ? {
        driver: 'nbd',
        server: { type: 'unix', path: source.socket },
        export: source.exportName,
        'reconnect-delay': 20,
        'read-only': true,
      }
    : { driver: 'file', filename: source.path, 'read-only': true };

function told(qemu: FakeQemu, execute: RegExp): readonly unknown[] {
  return qemu.commands.filter((one) => execute.test(one.execute)).map((one) => [one.execute, one.arguments]);
}

const DEVICE = { id: 'pratique-drive', drive: 'pratique-front', serial: 'PRATIQUE' };
const SHOWING = {
  'virtio-blk': [['device_add', { driver: 'virtio-blk-pci', bus: 'port0', ...DEVICE }]],
  nvme: [['device_add', { driver: 'nvme', bus: 'port0', ...DEVICE }]],
  'scsi-cd': [['device_add', { driver: 'scsi-cd', bus: 'scsi.0', ...DEVICE }]],
  'usb-storage': [['device_add', { driver: 'usb-storage', bus: 'usb.0', removable: true, ...DEVICE }]],
  'ide-cd': [
    ['blockdev-open-tray', { id: 'tray', force: true }],
    ['blockdev-insert-medium', { id: 'tray', 'node-name': 'pratique-front' }],
    ['blockdev-close-tray', { id: 'tray' }],
  ],
};

for (const frontEnd of DRIVE_FRONT_ENDS) {
  test(`${frontEnd}: shown once however often asked, taken away without a trace, and the next one comes [A4]`, async (t) => {
    const { qemu, drive } = await machine(t);
    const one = drive();
    await one.attach({ source: A, frontEnd });
    await one.attach({ source: A, frontEnd });
    assert.deepEqual(told(qemu, /^device_add$|tray|medium/), SHOWING[frontEnd]);
    assert.deepEqual(shown(qemu), opened(A));
    assert.equal(await one.isAttached(), true);
    await assert.rejects(one.attach({ source: B, frontEnd }), { code: 'conflict/drive' });
    assert.deepEqual(await one.detach(), { surprise: false });
    assert.deepEqual(await one.detach(), { surprise: false });
    assert.equal(await one.isAttached(), false);
    assert.deepEqual([...qemu.nodes.keys(), ...qemu.devices, ...qemu.inserted], []);
    assert.equal(qemu.isTrayOpen('tray'), false);
    await one.attach({ source: B, frontEnd });
    assert.deepEqual(shown(qemu), opened(B));
  });

  test(`${frontEnd}: a VM without a place for it is refused before anything is done, and the error says what is missing`, async (t) => {
    const { qemu, drive } = await machine(t);
    const bare = drive({ slots: { port: null, scsiBus: null, usbBus: null, tray: null } });
    assert.deepEqual(bare.frontEnds, []);
    await assert.rejects(bare.attach({ source: A, frontEnd }), { code: 'usage/drive-port', next: /give it an? / });
    assert.equal(qemu.nodes.size, 0);
  });
}

for (const frontEnd of LOCKABLE) {
  test(`${frontEnd}: what the guest has locked stays until it unmounts [A4]`, async (t) => {
    const { qemu, drive } = await machine(t, { locksDrives: true });
    const one = drive({ unplugTimeoutMs: 5000 });
    await one.attach({ source: A, frontEnd });
    const detaching = one.detach();
    await systemClock.sleep(150);
    assert.deepEqual(shown(qemu), opened(A));
    qemu.setLocked(false);
    assert.deepEqual(await detaching, { surprise: false });
    assert.equal(qemu.nodes.size, 0);
  });

  test(`${frontEnd}: a guest that never unmounts loses it by surprise, and the next one comes [A4]`, async (t) => {
    const { qemu, drive } = await machine(t, { locksDrives: true });
    const one = drive();
    await one.attach({ source: A, frontEnd });
    assert.deepEqual(await one.detach(), { surprise: true });
    assert.deepEqual([...qemu.nodes.keys(), ...qemu.devices, ...qemu.inserted], []);
    await one.attach({ source: B, frontEnd });
    assert.deepEqual(shown(qemu), opened(B));
  });

  test(`${frontEnd}: a stopped guest cannot let go, and is not waited for`, async (t) => {
    const { qemu, drive } = await machine(t, { locksDrives: true, status: 'paused' });
    const one = drive({ unplugTimeoutMs: 60_000 });
    await one.attach({ source: A, frontEnd });
    await one.detach();
    assert.equal(qemu.nodes.size, 0);
  });
}

for (const frontEnd of ['virtio-blk', 'nvme'] as const) {
  test(`${frontEnd}: a guest that keeps the device reads nothing from it any more, and the next one says why it cannot come`, async (t) => {
    const { qemu, drive } = await machine(t, { holdsDevices: true });
    const one = drive();
    await one.attach({ source: A, frontEnd });
    assert.deepEqual(await one.detach(), { surprise: true });
    assert.deepEqual([...qemu.nodes.keys()], ['pratique-front', 'pratique-empty']);
    assert.equal(await one.isAttached(), false);
    await assert.rejects(one.attach({ source: A, frontEnd }), { code: 'host-fault/drive-held', next: /reset/ });
    await assert.rejects(one.reopen(A), { code: 'conflict/drive' });
  });
}

test('a guest that refuses to let go is not waited for any longer', async (t) => {
  const { qemu, drive } = await machine(t, { holdsDevices: true });
  const one = drive({ unplugTimeoutMs: 60_000 });
  await one.attach({ source: A, frontEnd: 'virtio-blk' });
  const detaching = one.detach();
  await systemClock.sleep(50);
  qemu.emit('DEVICE_UNPLUG_GUEST_ERROR', { device: 'other', path: '/machine/peripheral/other' });
  qemu.emit('DEVICE_UNPLUG_GUEST_ERROR', { device: 'pratique-drive', path: '/machine/peripheral/pratique-drive' });
  assert.deepEqual(await detaching, { surprise: true });
});

test('a tray that the guest has opened by itself is closed when its drive is offered again', async (t) => {
  const { qemu, drive } = await machine(t);
  await drive().attach({ source: A, frontEnd: 'ide-cd' });
  qemu.openTray('tray');
  await drive().attach({ source: A, frontEnd: 'ide-cd' });
  assert.equal(qemu.isTrayOpen('tray'), false);
  assert.deepEqual(shown(qemu), opened(A));
});

test('the source is exchanged under the device, to and fro, whatever its kind', async (t) => {
  const { qemu, drive } = await machine(t);
  const one = drive();
  await assert.rejects(one.reopen(A), { code: 'conflict/drive', next: 'attach it' });
  await one.attach({ source: A, frontEnd: 'virtio-blk' });
  for (const source of [B, C, C, A]) {
    await one.reopen(source);
    assert.deepEqual(shown(qemu), opened(source));
    assert.equal(qemu.nodes.size, 2, 'the old image is closed');
    await one.attach({ source, frontEnd: 'virtio-blk' });
  }
  assert.equal(told(qemu, /^device_add$/).length, 1, 'it was known each time');
});

type Way = {
  readonly name: string;
  readonly before: (drive: Drive) => Promise<void>;
  readonly step: (drive: Drive) => Promise<unknown>;
};

/** Ends us at each command of a step, until the step is through; then lets the next one of us look. */
async function dieAtEach(
  t: TestContext,
  way: Way,
  look: (next: Drive, qemu: FakeQemu) => Promise<void>,
): Promise<number> {
  let deaths = 0;
  for (let at = 1; ; at += 1) {
    for (const isDone of [false, true]) {
      const { qemu, qmp, drive } = await machine(t);
      await way.before(drive());
      const end = dying(qmp, at, isDone);
      await way.step(drive({ qmp: end.qmp })).catch((error: unknown) => assert(error instanceof OurEnd));
      if (!end.hasDied()) return deaths;
      deaths += 1;
      await look(drive(), qemu);
    }
  }
}

for (const frontEnd of ['virtio-blk', 'usb-storage', 'ide-cd'] as const) {
  test(`${frontEnd}: wherever we end in an attach, the next one of us shows the drive or takes it away [X4]`, async (t) => {
    const way: Way = { name: 'attach', before: async () => {}, step: (drive) => drive.attach({ source: A, frontEnd }) };
    const deaths = await dieAtEach(t, way, async (next, qemu) => {
      await next.attach({ source: A, frontEnd });
      assert.deepEqual(shown(qemu), opened(A));
      assert.equal(qemu.isTrayOpen('tray'), false);
      assert.deepEqual(await next.detach(), { surprise: false });
      assert.equal(qemu.nodes.size, 0);
    });
    assert(deaths >= 6);
    await dieAtEach(t, way, async (next, qemu) => {
      await next.detach();
      assert.deepEqual([...qemu.nodes.keys(), ...qemu.devices, ...qemu.inserted], []);
      await next.attach({ source: B, frontEnd });
      assert.deepEqual(shown(qemu), opened(B));
    });
  });

  test(`${frontEnd}: wherever we end in a detach, the next one of us ends it [X4]`, async (t) => {
    const before = (drive: Drive) => drive.attach({ source: A, frontEnd });
    const deaths = await dieAtEach(
      t,
      { name: 'detach', before, step: (drive) => drive.detach() },
      async (next, qemu) => {
        await systemClock.sleep(20); // The guest lets go meanwhile.
        await next.detach();
        assert.deepEqual([...qemu.nodes.keys(), ...qemu.devices, ...qemu.inserted], []);
        await next.attach({ source: B, frontEnd });
        assert.deepEqual(shown(qemu), opened(B));
      },
    );
    assert(deaths >= 6);
  });

  test(`${frontEnd}: wherever we end while the source is opened anew, the guest has the old or the new one, and the next one of us goes on [X4]`, async (t) => {
    const before = (drive: Drive) => drive.attach({ source: A, frontEnd });
    const way: Way = { name: 'reopen', before, step: (drive) => drive.reopen(C) };
    const deaths = await dieAtEach(t, way, async (next, qemu) => {
      const now = JSON.stringify(shown(qemu));
      assert([A, C].some((source) => JSON.stringify(opened(source)) === now));
      await next.reopen(C);
      assert.deepEqual(shown(qemu), opened(C));
      assert.equal(qemu.nodes.size, 2);
    });
    assert(deaths >= 6);
    await dieAtEach(t, way, async (next, qemu) => {
      const source = JSON.stringify(shown(qemu)) === JSON.stringify(opened(A)) ? A : C;
      await next.attach({ source, frontEnd });
      assert.equal(qemu.nodes.size, 2, 'the leftover is closed');
      await next.detach();
      assert.equal(qemu.nodes.size, 0);
    });
  });
}

test('a surprise removal that we broke off is ended by the next one of us, and nobody takes the empty device for a drive [X4]', async (t) => {
  for (let at = 1, isOver = false; !isOver; at += 1) {
    const { qemu, qmp, drive } = await machine(t, { holdsDevices: true });
    await drive().attach({ source: A, frontEnd: 'virtio-blk' });
    const end = dying(qmp, at, true);
    await drive({ qmp: end.qmp })
      .detach()
      .catch((error: unknown) => assert(error instanceof OurEnd));
    isOver = !end.hasDied();
    const next = drive();
    // Either the guest still reads the drive, or the next one says that it is held.
    if (shown(qemu) === null)
      await assert.rejects(next.attach({ source: A, frontEnd: 'virtio-blk' }), { code: 'host-fault/drive-held' });
    else await next.attach({ source: A, frontEnd: 'virtio-blk' });
    assert.deepEqual(await next.detach(), { surprise: true });
    assert.equal(shown(qemu), null);
    assert.deepEqual([...qemu.nodes.keys()].toSorted(), ['pratique-empty', 'pratique-front']);
  }
});
