// The drive's steps on a real QEMU without a guest: each front-end comes and goes, QEMU tells sources by the names we expect, and a
// source is opened anew whatever its kind and wherever our process ends meanwhile.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import { attachedSlots } from '../../src/hypervisor/qmp/attached-drive.ts';
import { makeDrive } from '../../src/hypervisor/qmp/drive.ts';
import { connectQmp, type QmpClient } from '../../src/hypervisor/qmp/qmp-client.ts';
import type { AttachedVm } from '../../src/hypervisor/vm-spec.ts';
import { DRIVE_FRONT_ENDS, type DriveSource } from '../../src/model/drive.ts';
import type { VmId } from '../../src/model/ids.ts';
import { dying, OurEnd } from '../fakes/dying-monitor.ts';

const SLOTS = { port: 'spare', scsiBus: 'scsi.0', usbBus: 'usb.0', tray: 'tray' } as const;
const SECTORS = 64;
/** A name with everything that a URI, a shell or a QEMU option would take apart. */
const ODD = 'a b,c=%20&?d:ü"';

let folder = '';
let qmp: QmpClient;
const processes: ChildProcess[] = [];
const sources: Record<DriveSource['kind'], DriveSource> = {
  vmdk: { kind: 'vmdk', path: '' },
  raw: { kind: 'raw', path: '' },
  nbd: { kind: 'nbd', socket: '', exportName: '' },
};

async function begin(program: string, args: readonly string[], socket: string): Promise<void> {
  processes.push(spawn(program, args, { stdio: ['ignore', 'inherit', 'inherit'] }));
  assert(await waitUntil(async () => existsSync(socket), systemClock, 20_000), `${program} does not come up`);
}

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pq-qmp-'));
  const at = (name: string) => join(folder, name);
  await writeFile(at(ODD), Buffer.alloc(SECTORS * 512, 'pq'));
  await writeFile(at('flat'), Buffer.alloc(SECTORS * 512, 'pq'));
  const head = '# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="twoGbMaxExtentFlat"\n';
  await writeFile(
    at(`${ODD}.vmdk`),
    `${head}# Extent description\nRW ${SECTORS} FLAT "flat" 0\n\nddb.adapterType = "ide"\n`,
  );
  sources.vmdk = { kind: 'vmdk', path: at(`${ODD}.vmdk`) };
  sources.raw = { kind: 'raw', path: at(ODD) };
  sources.nbd = { kind: 'nbd', socket: at(`${ODD}.sock`), exportName: 'drive & more/1?' };
  const file = { driver: 'file', filename: at('flat'), 'read-only': true };
  const node = { driver: 'raw', 'node-name': 'n', 'read-only': true, file };
  const server = { addr: { type: 'unix', path: sources.nbd.socket } };
  const shown = { type: 'nbd', id: 'e', 'node-name': 'n', name: sources.nbd.exportName };
  const words = ['--blockdev', node, '--nbd-server', server, '--export', shown];
  const args = words.map((word) => (typeof word === 'string' ? word : JSON.stringify(word)));
  await begin('qemu-storage-daemon', args, sources.nbd.socket);
  const devices = [
    'pcie-root-port,id=spare,chassis=1,slot=1',
    'pcie-root-port,id=taken,chassis=2,slot=2',
    'virtio-rng-pci,bus=taken',
    'virtio-scsi-pci,id=scsi',
    'qemu-xhci,id=usb',
    'ide-cd,id=tray,bus=ide.4',
  ].flatMap((device) => ['-device', device]);
  const machine = ['-S', '-nodefaults', '-display', 'none', '-machine', 'q35', '-accel', 'tcg', '-m', '32'];
  await begin('qemu-system-x86_64', [...machine, ...devices, '-qmp', `unix:${at('q')},server=on,wait=off`], at('q'));
  qmp = await connectQmp({ path: at('q'), clock: systemClock });
});
after(async () => {
  qmp?.close();
  for (const one of processes) one.kill('SIGKILL');
  await rm(folder, { recursive: true, force: true });
});

const driveOver = (client: QmpClient) => makeDrive({ vm: 'x' as VmId, qmp: client, slots: SLOTS, clock: systemClock });

async function ourNodes(): Promise<readonly string[]> {
  // The cast holds for QEMU's own answer.
  const nodes = (await qmp.execute('query-named-block-nodes', { flat: true })) as { 'node-name': string }[];
  return nodes.map((node) => node['node-name']).filter((name) => name.startsWith('pratique-'));
}

for (const frontEnd of DRIVE_FRONT_ENDS) {
  test(`QEMU takes a drive as ${frontEnd}, knows its source again by name, and gives it back [A4]`, async () => {
    const drive = driveOver(qmp);
    assert(drive.frontEnds.includes(frontEnd));
    for (const source of Object.values(sources)) {
      await drive.attach({ source, frontEnd });
      await drive.attach({ source, frontEnd });
      const { surprise } = await drive.detach();
      if (frontEnd === 'virtio-blk' || frontEnd === 'nvme') {
        // Nobody is there to let go of it; a reset removes it.
        assert.equal(surprise, true);
        await assert.rejects(drive.attach({ source, frontEnd }), { code: 'host-fault/drive-held' });
        await qmp.execute('system_reset');
        assert(await waitUntil(async () => !(await drive.detach()).surprise, systemClock, 5_000));
      } else {
        assert.equal(surprise, false);
      }
      assert.deepEqual(await ourNodes(), []);
    }
  });
}

test('wherever we end while a source is opened anew, the next one of us goes on, on a real QEMU too [X4]', async () => {
  let deaths = 0;
  for (const to of Object.values(sources)) {
    for (let at = 1, isOver = false; !isOver; at += 1) {
      await driveOver(qmp).attach({ source: sources.vmdk, frontEnd: 'scsi-cd' });
      const end = dying(qmp, at, true);
      await driveOver(end.qmp)
        .reopen(to)
        .catch((error: unknown) => assert(error instanceof OurEnd));
      isOver = !end.hasDied();
      deaths += isOver ? 0 : 1;
      const next = driveOver(qmp);
      await next.reopen(to);
      await next.attach({ source: to, frontEnd: 'scsi-cd' });
      assert.equal((await ourNodes()).length, 2);
      assert.deepEqual(await next.detach(), { surprise: false });
      assert.deepEqual(await ourNodes(), []);
    }
  }
  assert(deaths >= 9);
});

test("the places of somebody else's VM are found on a real QEMU, with our drive in them too, and one that is not there is not [A4] [A16]", async () => {
  const spec: AttachedVm = {
    format: 'pratique.vm/1',
    kind: 'attached',
    vm: 'x' as VmId,
    qmpSocket: '/q',
    channelSocket: '/a',
    nics: [],
  };
  const find = (places: Partial<AttachedVm>) => attachedSlots({ ...spec, ...places }, qmp);
  const all = { drivePort: 'spare', driveScsiBus: 'scsi.0', driveUsbBus: 'usb.0', driveTray: 'tray' };
  assert.deepEqual(await find(all), SLOTS);
  const drive = driveOver(qmp);
  for (const frontEnd of ['scsi-cd', 'usb-storage', 'ide-cd'] as const) {
    await drive.attach({ source: sources.raw, frontEnd });
    assert.deepEqual(await find(all), SLOTS);
    await drive.detach();
  }
  for (const places of [
    { drivePort: 'taken' },
    { drivePort: 'scsi' },
    { drivePort: 'none' },
    { driveScsiBus: 'usb.0' },
    { driveUsbBus: 'usb' },
    { driveTray: 'usb' },
  ]) {
    await assert.rejects(find(places), { code: 'refused/attached' }, JSON.stringify(places));
  }
});
