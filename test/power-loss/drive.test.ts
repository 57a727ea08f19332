// A real QEMU without a guest, and the drive of its VM: showing it, taking it away and putting another in its place are cut off after
// each single command to QEMU, by a daemon that is gone or by a QEMU that is killed. The next daemon shows the whole drive that was
// decided on, and when it is taken away no device, node, folder or pin is left.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { type Digest, digestOf, digestOfFile } from '../../src/base/digest.ts';
import { silentLog } from '../../src/base/log.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import { buildDrive, removeDrives } from '../../src/drive/drive.ts';
import type { RunningVm } from '../../src/hypervisor/hypervisor.ts';
import { makeDrive } from '../../src/hypervisor/qmp/drive.ts';
import { connectQmp, type QmpClient } from '../../src/hypervisor/qmp/qmp-client.ts';
import type { DriveFrontEnd } from '../../src/model/drive.ts';
import type { Plan } from '../../src/model/plan.ts';
import { DEFAULT_POLICY } from '../../src/model/policy.ts';
import type { Release } from '../../src/model/release.ts';
import { type BlobStore, openBlobStore } from '../../src/store/blob-store.ts';
import { newRun } from '../../src/update/new-run.ts';
import { RUN } from '../../src/update/samples.ts';
import type { Run } from '../../src/update/state.ts';
import { VmDrive } from '../../src/update/vm-drive.ts';
import type { VmRunDeps } from '../../src/update/vm-run-deps.ts';
import type { Vendor } from '../../src/vendor/vendor.ts';
import { printTable } from '../fakes/result-table.ts';
import { SPEC } from '../simulator/machine.ts';
import { isFull, sample, seed } from './chance.ts';

/** Those that go without a guest's word; a PCI device needs one, and is in the matrix of states and faults on real guests. */
const FRONT_ENDS = ['scsi-cd', 'ide-cd', 'usb-storage'] as const satisfies readonly DriveFrontEnd[];
const STEPS = ['attach', 'detach', 'swap'] as const;
const FAULTS = ['daemon', 'QEMU'] as const;
type Step = (typeof STEPS)[number];
const signal = new AbortController().signal;
/** Cells in the normal run; each is a QEMU or two. */
const SAMPLE_SIZE = 12;

/** One file that is shown from the store itself, and one small enough to be packed. */
const CONTENTS = new Map<Digest, Buffer>();
function planOf(version: string): Plan {
  const items = (
    [
      ['large', 200_000],
      ['small', 3_000],
    ] as const
  ).map(([product, sizeBytes]) => {
    const bytes = Buffer.alloc(sizeBytes, `${product} ${version} `);
    const digest = digestOf(bytes);
    CONTENTS.set(digest, bytes);
    const release: Release = {
      ...{ vendor: 'v', ecosystem: 'bundle', product, version, kind: 'security', requires: [], advisories: [] },
      install: { action: 'bundle', prefix: '/opt/x', compression: 'none' },
      artifact: { name: `${product}.tar`, digest, sizeBytes, location: product },
    };
    return { id: `bundle/${product}`, fromVersion: '0.0.1', release };
  });
  return { vm: SPEC.vm, run: RUN, leftOut: [], vendors: [], items };
}
const [OLD, NEW] = [planOf('1.0.0'), planOf('2.0.0')];

// The cast holds: a drive asks no more of a vendor.
const vendor = {
  name: 'v',
  open: async ({ digest }: { readonly digest: Digest }, offsetBytes: number) =>
    (async function* () {
      yield CONTENTS.get(digest)?.subarray(offsetBytes) ?? Buffer.alloc(0);
    })(),
  inspect: async () => {},
} as unknown as Vendor;

type Daemon = {
  readonly drive: VmDrive;
  readonly running: RunningVm;
  readonly qmp: QmpClient;
  /** From now on this many commands reach QEMU; then the daemon is gone, without a word. */
  readonly cutAfter: (commands: number) => void;
  readonly isGone: () => boolean;
  readonly commands: () => number;
};

type Lab = {
  readonly folder: string;
  readonly store: BlobStore;
  readonly daemon: () => Promise<Daemon>;
  readonly killQemu: () => Promise<void>;
  readonly startQemu: () => Promise<void>;
  readonly close: () => Promise<void>;
};

let root = '';
let labs = 0;

async function openLab(frontEnd: DriveFrontEnd): Promise<Lab> {
  labs += 1;
  const folder = join(root, String(labs));
  await mkdir(folder);
  const store = await openBlobStore({
    folder: join(folder, 'store'),
    clock: systemClock,
    log: silentLog,
    budgetBytes: 0,
  });
  const socket = join(folder, 'q');
  let qemu: ChildProcess | null = null;
  let client: QmpClient | null = null;
  const startQemu = async (): Promise<void> => {
    qemu = spawnQemu(socket);
    assert(await waitUntil(async () => existsSync(socket), systemClock, 60_000));
  };
  const killQemu = async (): Promise<void> => {
    client?.close();
    client = null;
    if (qemu === null || qemu.exitCode !== null || qemu.signalCode !== null) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    qemu.once('exit', () => resolve());
    qemu.kill('SIGKILL');
    await promise;
    await rm(socket, { force: true });
  };
  await startQemu();
  return {
    folder,
    store,
    startQemu,
    killQemu,
    daemon: async () => {
      client?.close();
      client = await connectSoon(socket);
      return makeDaemon({ folder, store, qmp: client, frontEnd });
    },
    close: async () => {
      await killQemu();
      await store.close();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** The socket is there a moment before QEMU listens on it. */
async function connectSoon(path: string): Promise<QmpClient> {
  let client: QmpClient | null = null;
  const isConnected = async (): Promise<boolean> => {
    client = await connectQmp({ path, clock: systemClock }).catch(() => null);
    return client !== null;
  };
  assert(await waitUntil(isConnected, systemClock, 20_000));
  assert(client !== null);
  return client;
}

function spawnQemu(socket: string): ChildProcess {
  const argv = ['-S', '-nodefaults', '-display', 'none', '-machine', 'q35,accel=tcg', '-m', '32'];
  const devices = ['virtio-scsi-pci,id=scsi', 'qemu-xhci,id=usb', 'ide-cd,id=tray,bus=ide.0'];
  const places = devices.flatMap((device) => ['-device', device]);
  const qmp = ['-qmp', `unix:${socket},server=on,wait=off`];
  return spawn('qemu-system-x86_64', [...argv, ...places, ...qmp], { stdio: 'ignore' });
}

function makeDaemon(parts: { folder: string; store: BlobStore; qmp: QmpClient; frontEnd: DriveFrontEnd }): Daemon {
  const { folder, store, qmp, frontEnd } = parts;
  let commands = 0;
  let limit = Number.POSITIVE_INFINITY;
  const execute: QmpClient['execute'] = async (...command) => {
    commands += 1;
    if (commands > limit) return await new Promise(() => {});
    return await qmp.execute(...command);
  };
  const slots = { port: null, scsiBus: 'scsi.0', usbBus: 'usb.0', tray: 'tray' };
  const drive = makeDrive({ vm: SPEC.vm, qmp: { ...qmp, execute }, slots, clock: systemClock });
  // The cast holds: a drive asks no more of a VM.
  const running = {
    driveFrontEnds: drive.frontEnds,
    attachDrive: drive.attach,
    reopenDrive: drive.reopen,
    detachDrive: drive.detach,
    hasDrive: drive.isAttached,
  } as RunningVm;
  // The cast holds: these are the rooms that a drive uses.
  const deps = {
    ...{
      store,
      clock: systemClock,
      vendors: () => [vendor],
      inspections: new Map(),
      audit: { append: async () => {} },
    },
    ...{ drives: { build: buildDrive, remove: removeDrives }, drivesFolder: join(folder, 'drives') },
  } as unknown as VmRunDeps;
  const owner = {
    ...{ vm: SPEC.vm, spec: { ...SPEC, drive: { frontEnd } }, uid: process.getuid?.() ?? 0, note: () => {} },
    ...{ policy: () => DEFAULT_POLICY, running: () => running, onLost: () => {} },
  };
  return {
    drive: new VmDrive(deps, owner),
    running,
    qmp,
    cutAfter: (more) => {
      limit = commands + more;
    },
    isGone: () => commands > limit,
    commands: () => commands,
  };
}

const runWith = (...manifests: readonly Digest[]): Run => ({ ...newRun({ run: RUN, atMs: 1 }), manifests });

async function show({ drive, running }: Daemon, plan: Plan, announced: readonly Digest[]): Promise<Digest> {
  assert.equal(await drive.fetch(plan, 'run', signal), null);
  return await drive.attach(runWith(...announced), plan, { running, reported: null }, signal);
}

async function takeAway({ drive, running }: Daemon): Promise<void> {
  await drive.detach(running);
  await drive.cleanUp({ keep: null, isConnected: true });
}

/** Brings a daemon to where the step begins; what it does then, which drive it is about, and what was announced before. */
async function prepare(daemon: Daemon, step: Step) {
  const announced = step === 'attach' ? [] : [await show(daemon, OLD, [])];
  const plan = step === 'swap' ? NEW : OLD;
  const work = async (): Promise<unknown> =>
    step === 'detach' ? await takeAway(daemon) : await show(daemon, plan, announced);
  return { announced, plan, work };
}

/** How many commands to QEMU the step takes. */
async function countCommands(step: Step, frontEnd: DriveFrontEnd): Promise<number> {
  const lab = await openLab(frontEnd);
  try {
    const daemon = await lab.daemon();
    const { work } = await prepare(daemon, step);
    const before = daemon.commands();
    await work();
    return daemon.commands() - before;
  } finally {
    await lab.close();
  }
}

/** What the device reads is the whole drive that was built, no more and no less. */
async function assertShown(lab: Lab, { qmp }: Daemon): Promise<void> {
  const socket = join(lab.folder, 'n');
  await qmp.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socket } } });
  await qmp.execute('block-export-add', { type: 'nbd', id: 'look', name: 'look', 'node-name': 'pratique-front' });
  const [seen, built] = [join(lab.folder, 'seen'), join(lab.folder, 'built')];
  await runCommand(['qemu-img', 'convert', '-f', 'raw', '-O', 'raw', `nbd+unix:///look?socket=${socket}`, seen]);
  await qmp.execute('nbd-server-stop');
  const image = join(lab.folder, 'drives', SPEC.vm, RUN, 'drive.vmdk');
  await runCommand(['qemu-img', 'convert', '-f', 'vmdk', '-O', 'raw', image, built]);
  assert.equal(await digestOfFile(seen), await digestOfFile(built));
}

async function assertNothingLeft(lab: Lab, { qmp }: Daemon): Promise<void> {
  const nodes = JSON.stringify(await qmp.execute('query-named-block-nodes', { flat: true }));
  assert.doesNotMatch(nodes, /pratique-/, 'a node is left');
  const devices = JSON.stringify(await qmp.execute('qom-list', { path: '/machine/peripheral' }));
  assert.match(devices, /"tray"/, 'positive control: devices are listed');
  assert.doesNotMatch(devices, /pratique-drive/, 'a device is left');
  const drives = join(lab.folder, 'drives');
  assert.deepEqual(existsSync(drives) ? await readdir(drives) : [], [], 'a drive folder is left');
  assert.equal(lab.store.stats().pinnedBytes, 0, 'a pin is left');
}

type Cell = {
  readonly step: Step;
  readonly frontEnd: DriveFrontEnd;
  readonly fault: (typeof FAULTS)[number];
  readonly place: number;
};

async function runCell({ step, frontEnd, fault, place }: Cell): Promise<void> {
  const lab = await openLab(frontEnd);
  try {
    const first = await lab.daemon();
    const { announced, plan, work } = await prepare(first, step);
    first.cutAfter(place);
    let isDone = false;
    const finish = () => {
      isDone = true;
    };
    work().then(finish, finish);
    assert(await waitUntil(async () => isDone || first.isGone(), systemClock, 60_000, 5));
    if (fault === 'QEMU') {
      await lab.killQemu();
      await lab.startQemu();
    }
    const next = await lab.daemon();
    await next.drive.find(next.running);
    await show(next, plan, announced);
    await assertShown(lab, next);
    await takeAway(next);
    await assertNothingLeft(lab, next);
  } finally {
    await lab.close();
  }
}

/** What every cell has come to that did not fail. */
const lineOf = ({ step, frontEnd, fault, place }: Cell) => ({
  ...{ state: step, drive: frontEnd, fault: `${fault} gone`, 'after commands': String(place) },
  result: 'shown whole, nothing left',
});

describe('the drive, cut off after each command to QEMU [X4] [A4] [A9]', () => {
  before(async () => {
    root = await mkdtemp(join(tmpdir(), 'pqdr'));
  });
  after(async () => await rm(root, { recursive: true, force: true }));

  test('shown whole by the next daemon, whatever was cut off, and nothing is left of it afterwards', async (t) => {
    const cells: Cell[] = [];
    for (const frontEnd of FRONT_ENDS) {
      for (const step of STEPS) {
        const count = await countCommands(step, frontEnd);
        assert(count > 3, 'positive control: the step does something');
        for (let place = 0; place < count; place += 1)
          for (const fault of FAULTS) cells.push({ step, frontEnd, fault, place });
      }
    }
    const chosen = sample(cells, SAMPLE_SIZE);
    for (const cell of chosen) {
      try {
        await runCell(cell);
      } catch (cause) {
        throw new Error(`${cell.fault} gone after ${cell.place} commands of ${cell.step} (${cell.frontEnd})`, {
          cause,
        });
      }
    }
    const title = isFull ? `all ${cells.length} cells` : `seed ${seed}, ${chosen.length} of ${cells.length} cells`;
    printTable(t, title, ['state', 'drive', 'fault', 'after commands', 'result'], chosen.map(lineOf));
  });
});
