// A real QEMU and its disk, without a guest: beginning, accepting and merging a disk overlay are cut off after each single command to
// QEMU, by a daemon that is gone or by a QEMU that is killed. What was accepted is in the disk in the end, what was not is not.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash, randomInt } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import type { DiskOverlay } from '../../src/hypervisor/hypervisor.ts';
import { makeOverlay } from '../../src/hypervisor/qmp/overlay.ts';
import { overlayFate, overlayFiles, settleOverlay } from '../../src/hypervisor/qmp/overlay-files.ts';
import { connectQmp, type QmpClient } from '../../src/hypervisor/qmp/qmp-client.ts';
import type { VmId } from '../../src/model/ids.ts';

const VM = 'disk' as VmId; // The form that the brand promises.
const DISK_BYTES = 16 * 1024 * 1024;
/** What the guest writes: on the disk before, on the overlay, and after the merge. */
const [OLD, NEW, LATER] = [0x11, 0x22, 0x33];
const isFull = process.env.PRATIQUE_TEST_FULL === '1';
const seed = Number(process.env.PRATIQUE_TEST_SEED ?? randomInt(1, 2 ** 31));

type Lab = {
  readonly folder: string;
  readonly disks: readonly string[];
  /** A daemon of its own; `cutAfter` commands to QEMU it is gone, without a word. */
  readonly daemon: (cutAfter?: number) => Promise<{ readonly overlay: DiskOverlay; readonly commands: () => number }>;
  /** Writes one byte's pattern over the first quarter of each disk, as the guest would. */
  readonly write: (pattern: number) => Promise<void>;
  readonly kill: () => Promise<void>;
  readonly close: () => Promise<void>;
};

let root = '';

/** Two disks, so that one may be ahead of the other. */
async function openLab(name: string): Promise<Lab> {
  const folder = join(root, name);
  await mkdir(folder);
  const disks = [join(folder, 'a.raw'), join(folder, 'b.raw')];
  for (const disk of disks) await writeFile(disk, Buffer.alloc(DISK_BYTES, OLD));
  const [qmpSocket, nbdSocket] = [join(folder, 'q'), join(folder, 'n')];
  const qemu = startQemu(disks, qmpSocket);
  assert(await waitUntil(async () => existsSync(qmpSocket), systemClock, 20_000));
  const clients: QmpClient[] = [];
  const connect = async (): Promise<QmpClient> => {
    for (const client of clients.splice(0)) client.close();
    const client = await connectQmp({ path: qmpSocket, clock: systemClock });
    clients.push(client);
    return client;
  };
  const first = await connect();
  await first.execute('nbd-server-start', { addr: { type: 'unix', data: { path: nbdSocket } } });
  for (const index of disks.keys()) {
    const node = `disk${index}`;
    await first.execute('block-export-add', { type: 'nbd', id: node, name: node, 'node-name': node, writable: true });
  }
  const files = overlayFiles(join(folder, 'overlays'), VM);
  const kill = async (): Promise<void> => {
    for (const client of clients.splice(0)) client.close();
    if (qemu.exitCode !== null || qemu.signalCode !== null) return;
    const ended = new Promise((resolve) => qemu.once('exit', resolve));
    qemu.kill('SIGKILL');
    await ended;
  };
  return {
    folder,
    disks,
    daemon: async (cutAfter = Number.POSITIVE_INFINITY) => {
      const qmp = await connect();
      let commands = 0;
      const execute: QmpClient['execute'] = async (...command) => {
        commands += 1;
        if (commands > cutAfter) return await new Promise(() => {});
        return await qmp.execute(...command);
      };
      const bases = disks.map((base, index) => ({
        node: `disk${index}`,
        base: { path: base, format: 'raw' as const },
      }));
      const overlay = makeOverlay({ qmp: { ...qmp, execute }, clock: systemClock, files, disks: bases, uid: null });
      return { overlay, commands: () => commands };
    },
    write: async (pattern) => {
      for (const index of disks.keys()) {
        const order = `write -P ${pattern} 0 ${DISK_BYTES / 4}`;
        await runCommand(['qemu-io', '-f', 'raw', '-c', order, `nbd+unix:///disk${index}?socket=${nbdSocket}`]);
      }
    },
    kill,
    close: async () => {
      await kill();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

function startQemu(disks: readonly string[], qmpSocket: string): ChildProcess {
  const nodes = disks.flatMap((filename, index) => {
    const node = { driver: 'raw', 'node-name': `disk${index}`, discard: 'unmap', file: { driver: 'file', filename } };
    // share-rw: what stands in for the guest writes beside the device.
    const device = { driver: 'virtio-blk-pci', id: `d${index}`, drive: `disk${index}`, 'share-rw': true };
    return ['-blockdev', JSON.stringify(node), '-device', JSON.stringify(device)];
  });
  const argv = ['-S', '-nodefaults', '-display', 'none', '-machine', 'q35,accel=tcg', '-m', '32', ...nodes];
  return spawn('qemu-system-x86_64', [...argv, '-qmp', `unix:${qmpSocket},server=on,wait=off`], { stdio: 'ignore' });
}

/** What each disk holds, as far as the guest wrote: one pattern, or a mixture. */
async function patterns({ disks }: Lab): Promise<readonly string[]> {
  return await Promise.all(
    disks.map(async (disk) => {
      const bytes = await readFile(disk);
      const [head, rest] = [bytes.subarray(0, DISK_BYTES / 4), bytes.subarray(DISK_BYTES / 4)];
      const isWhole = head.every((byte) => byte === head[0]) && rest.every((byte) => byte === OLD);
      return isWhole ? `0x${head[0]?.toString(16)}` : `a mixture, ${createHash('sha256').update(bytes).digest('hex')}`;
    }),
  );
}

const settle = async (lab: Lab) => await settleOverlay(overlayFiles(join(lab.folder, 'overlays'), VM));
const fate = async (lab: Lab) => await overlayFate(overlayFiles(join(lab.folder, 'overlays'), VM));
const both = (pattern: number): readonly string[] => [`0x${pattern.toString(16)}`, `0x${pattern.toString(16)}`];

async function accepted(lab: Lab): Promise<void> {
  const { overlay } = await lab.daemon();
  await overlay.begin(0);
  await lab.write(NEW);
  await overlay.accept();
}

/** Runs work in a daemon that is cut off; resolves when it is done, or stands still for good. */
async function cutOff(lab: Lab, cutAfter: number, work: (overlay: DiskOverlay) => Promise<unknown>): Promise<void> {
  const { overlay, commands } = await lab.daemon(cutAfter);
  let isDone = false;
  const finish = () => {
    isDone = true;
  };
  work(overlay).then(finish, finish);
  await waitUntil(async () => isDone || commands() > cutAfter, systemClock, 60_000, 5);
}

describe('a disk overlay, cut off after each command [X4] [X5]', () => {
  before(async () => {
    root = await mkdtemp(join(tmpdir(), 'pqov'));
  });
  after(async () => await rm(root, { recursive: true, force: true }));

  /** Distinct places, all of them in the full run. */
  const places = (count: number): readonly number[] => {
    const all = Array.from({ length: count }, (_, place) => place);
    if (isFull) return all;
    return [...new Set([0, seed % count, (seed >>> 8) % count, count - 1])];
  };

  test('what is written on trial is not in the disk, and is gone when the VM is off; a second beginning is the same one', async () => {
    const lab = await openLab('trial');
    try {
      const { overlay } = await lab.daemon();
      await overlay.begin(0);
      await lab.write(NEW);
      assert.deepEqual(await patterns(lab), both(OLD));
      await (await lab.daemon()).overlay.begin(0);
      assert.equal(await (await lab.daemon()).overlay.commit(), false, 'nobody merges what is on trial');
      await lab.kill();
      assert.equal(await settle(lab), 'discarded');
      assert.deepEqual(await patterns(lab), both(OLD));
      assert.equal(await settle(lab), 'none');
    } finally {
      await lab.close();
    }
  });

  test('an accepted overlay is merged while the VM runs, and what is written later goes to the disk itself', async () => {
    const lab = await openLab('accepted');
    try {
      await accepted(lab);
      const { overlay } = await lab.daemon();
      assert.equal(await overlay.commit(), true);
      assert.deepEqual(await patterns(lab), both(NEW));
      await lab.write(LATER);
      assert.deepEqual(await patterns(lab), both(LATER));
      assert.equal(existsSync(join(lab.folder, 'overlays', VM)), false);
      assert.equal(await overlay.commit(), false);
      await overlay.begin(0);
      assert.equal(await fate(lab), 'trial', 'and the next update begins another');
    } finally {
      await lab.close();
    }
  });

  test('an overlay for which there is no space is not begun, and nothing has changed', async () => {
    const lab = await openLab('space');
    try {
      const { overlay } = await lab.daemon();
      await assert.rejects(overlay.begin(2 ** 52), /may need \d+ MiB, and .* MiB left/);
      assert.equal(await fate(lab), 'none');
      await lab.write(NEW);
      assert.deepEqual(await patterns(lab), both(NEW), 'the guest writes to its disk as before');
    } finally {
      await lab.close();
    }
  });

  test('cut off while it begins: begun once, or not at all', async (t) => {
    const counted = await openLab('begin-count');
    const { overlay, commands } = await counted.daemon();
    await overlay.begin(0).finally(counted.close);
    for (const place of places(commands())) {
      for (const fault of ['daemon', 'QEMU'] as const) {
        const lab = await openLab(`begin-${place}-${fault}`);
        try {
          await cutOff(lab, place, (each) => each.begin(0));
          if (fault === 'daemon') {
            await (await lab.daemon()).overlay.begin(0);
            await lab.write(NEW);
          }
          await lab.kill();
          await settle(lab);
          assert.deepEqual(await patterns(lab), both(OLD), `${fault} after ${place} commands`);
        } finally {
          await lab.close();
        }
      }
    }
    t.diagnostic(`seed ${seed}, ${places(commands()).length} of ${commands()} places`);
  });

  test('cut off while it is merged: it is in the disk in the end, and nothing older comes back', async (t) => {
    const counted = await openLab('merge-count');
    await accepted(counted);
    const { overlay, commands } = await counted.daemon();
    await overlay.commit().finally(counted.close);
    for (const place of places(commands())) {
      for (const fault of ['daemon', 'QEMU'] as const) {
        const lab = await openLab(`merge-${place}-${fault}`);
        try {
          await accepted(lab);
          await cutOff(lab, place, (each) => each.commit());
          if (fault === 'daemon') {
            await (await lab.daemon()).overlay.commit();
            await lab.write(LATER);
          }
          await lab.kill();
          await settle(lab);
          assert.deepEqual(
            await patterns(lab),
            both(fault === 'daemon' ? LATER : NEW),
            `${fault} after ${place} commands`,
          );
        } finally {
          await lab.close();
        }
      }
    }
    t.diagnostic(`seed ${seed}, ${places(commands()).length} of ${commands()} places`);
  });
});
