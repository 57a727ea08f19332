// Every state of a run × everything that may fall over in it, on real VMs: afterwards each VM is as before or updated, plugged in for
// evidence only, and its run went on by itself. A seeded sample by default; every cell with PRATIQUE_TEST_FULL=1.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { waitUntil } from '../../proxy/demo/demo-network.ts';
import type { RunStateName } from '../../proxy/service.ts';
import { systemClock } from '../../src/base/clock.ts';
import { isAlive, type ProcessId } from '../../src/base/process-id.ts';
import { crash, type House, makeHouse, type TestVm } from '../e2e/harness.ts';
import { printTable } from '../fakes/result-table.ts';
import { isFull, makeRandom, seed } from './chance.ts';

/** Every state that a run passes on its way from off to plugged in, in order. */
const STATES = [
  'booting',
  'reporting',
  'planning',
  'offering',
  'installing',
  'rebooting',
  'judging',
  'opening',
  'connected',
] as const satisfies readonly RunStateName[];

const FAULTS = ['daemon killed', 'QEMU killed', 'guest reset', 'both killed'] as const;
type Fault = (typeof FAULTS)[number];
/** `disk`: what the update is installed on. */
type Cell = {
  readonly state: (typeof STATES)[number] | 'rolling-back';
  readonly fault: Fault;
  readonly disk: 'itself' | 'overlay';
};

/** States in which an overlay is on trial, accepted or being merged. */
const OVERLAY_STATES = ['offering', 'installing', 'rebooting', 'judging', 'opening', 'connected'] as const;
const CELLS: readonly Cell[] = [
  ...FAULTS.flatMap((fault) => [
    ...STATES.map((state) => ({ state, fault, disk: 'itself' as const })),
    ...OVERLAY_STATES.map((state) => ({ state, fault, disk: 'overlay' as const })),
  ]),
  // Its QEMU is being ended by us: only the daemon can fall over, alone or with the host.
  { state: 'rolling-back', fault: 'daemon killed', disk: 'overlay' },
  { state: 'rolling-back', fault: 'both killed', disk: 'overlay' },
];
const SAMPLE_SIZE = 4;

/** Distinct cells, one of each fault, chosen by the seed. */
function sampleCells(): readonly Cell[] {
  const next = makeRandom();
  return FAULTS.slice(0, SAMPLE_SIZE).map((fault) => {
    const cells = CELLS.filter((cell) => cell.fault === fault);
    const chosen = cells[Math.floor(next() * cells.length)];
    assert(chosen !== undefined);
    return chosen;
  });
}

type Row = Cell & { readonly hit: RunStateName; readonly end: string; readonly frames: number };

/** The release of a house: one that asks for a reboot is the only one that passes `rebooting`. */
const VERSION = '1.1.0';
const SEEDED_VERSION = '1.0.0';
const BEGUN = /updates on a disk overlay/;

async function strike(house: House, vm: TestVm, { fault }: Cell): Promise<RunStateName> {
  const hit = async () => (await house.service.showVm(vm.vm)).state;
  switch (fault) {
    case 'daemon killed': {
      await house.daemon.kill();
      const state = vm.journaledState();
      await house.daemon.start();
      return state;
    }
    case 'QEMU killed': {
      const state = await hit();
      await killQemu(vm);
      await vm.hear(/QEMU ended/);
      return state;
    }
    case 'both killed': {
      await house.daemon.kill();
      const state = vm.journaledState();
      await killQemu(vm);
      await house.daemon.start();
      return state;
    }
    case 'guest reset': {
      await vm.order('reset');
      return (await vm.hear(/the guest reset itself/)).state;
    }
    default:
      return fault satisfies never;
  }
}

/** A QEMU that is only just being started has no pid yet: then there is nothing to kill. */
async function killQemu(vm: TestVm): Promise<void> {
  const qemu = await vm.qemu().catch(() => null);
  if (qemu !== null && (await isAlive(qemu))) await crash(qemu);
}

/** Brings a VM to the cell's state, strikes, and holds what comes after against the promises. */
async function runCell(house: House, cell: Cell): Promise<Row> {
  const vm = await house.addVm({ policy: { overlay: cell.disk === 'overlay' } });
  await vm.start();
  await vm.reach(cell.state);
  if (cell.state === 'booting') await vm.hear(/^closed: start/);
  const qemu = await vm.qemu();
  const hit = await strike(house, vm, cell);
  const isRolledBack = cell.state === 'rolling-back';
  const end = isRolledBack ? await endOfRollBack(house, vm) : await endOf(house, vm, { hit, fault: cell.fault });
  assert.deepEqual(await vm.strayFrames(), [], 'frames arrived while nothing had opened the gate');
  if (!isRolledBack) await assertSame(vm, qemu, cell.fault);
  await assertSettled(house, vm);
  const frames = (await vm.frames()).length;
  await house.service.stopVm(vm.vm, { force: true });
  return { ...cell, hit, end, frames };
}

/** Whatever was cut off: it is not tried again by itself, the VM stays gated, and why says so, also after the next start. */
async function endOfRollBack(house: House, vm: TestVm): Promise<string> {
  assert.equal(await vm.settle(), 'quarantined');
  assert.match((await house.service.whyVm(vm.vm)).reason, /rolled back/);
  const isStartedAnew = async (): Promise<boolean> => {
    try {
      await vm.start();
      return true;
    } catch {
      // It boots again by itself, behind its gate, unless its QEMU was killed once more.
      await house.service.stopVm(vm.vm, { force: true }).catch(() => {});
      return false;
    }
  };
  assert(await waitUntil(systemClock, 60_000, isStartedAnew), 'it can be ended and started');
  await vm.reach('planning');
  await vm.reach('quarantined');
  assert.match((await house.service.whyVm(vm.vm)).reason, /failed on this VM before and was rolled back/);
  assert.deepEqual(await vm.frames(), []);
  const begun = (await vm.events()).filter(({ text }) => BEGUN.test(text));
  assert.equal(begun.length, 1, 'tried once');
  return 'quarantined, as before';
}

/** Nothing of an overlay is left, on trial or unmerged. */
async function assertSettled(house: House, vm: TestVm): Promise<void> {
  const folder = join(house.folder, 'data/overlays', vm.vm);
  const isGone = async () => !existsSync(folder);
  assert(await waitUntil(systemClock, 30_000, isGone), `${folder} is still there`);
}

/** What the run comes to by itself; a VM that was plugged in and ended is off, and comes back by a start. */
async function endOf(house: House, vm: TestVm, { hit, fault }: { hit: RunStateName; fault: Fault }): Promise<string> {
  const isEnded = fault === 'QEMU killed' || fault === 'both killed';
  let end = 'connected';
  if (hit === 'connected' && isEnded) {
    const state = await vm.settle();
    assert(state === 'off' || state === 'staged', `a VM that ended is ${state}`);
    await vm.start();
    end = 'off, started, connected';
  }
  if (hit === 'connected' && fault === 'guest reset') await vm.reach('connected');
  assert.equal(await vm.settle(), 'connected', (await house.service.whyVm(vm.vm)).reason);
  const served = await vm.served();
  assert(served === VERSION, `it serves ${served}, not ${VERSION} (and was ${SEEDED_VERSION})`);
  assert(await vm.isHeard(), 'positive control: its frames arrive now');
  return end;
}

/** Only what killed the VM's process may have replaced it: no crash of ours and no reset restarts a VM. */
async function assertSame(vm: TestVm, before: ProcessId, fault: Fault): Promise<void> {
  if (fault === 'QEMU killed' || fault === 'both killed') return assert.notDeepEqual(await vm.qemu(), before);
  assert.deepEqual(await vm.qemu(), before);
  assert(await isAlive(before));
}

/** `frames`: those that arrived in all, and every one of them after the gate was opened, or the cell has failed. */
const lineOf = ({ state, disk, fault, hit, end, frames }: Row) => ({
  ...{ state, 'installed on': disk, fault, 'hit in': hit },
  result: `${end}, 0 frames before`,
  'frames after': String(frames),
});

describe('state × fault [A2] [A11] [X4] [X5]', () => {
  const rows: Row[] = [];
  const cells = isFull ? CELLS : sampleCells();
  const houses: { plain?: House; rebooting?: House; failing?: House } = {};
  before(async () => {
    houses.plain = await makeHouse({ version: VERSION, installSeconds: 2 });
  });
  after(async () => {
    await houses.plain?.close();
    await houses.rebooting?.close();
    await houses.failing?.close();
  });

  for (const cell of cells) {
    const ends = cell.state === 'rolling-back' ? 'as before and unplugged' : 'plugged in, updated';
    test(`${cell.fault} while ${cell.state} on ${cell.disk}: it ends ${ends}, with no frame before`, async () => {
      rows.push(await runCell(await houseFor(cell), cell));
    });
  }

  async function houseFor({ state }: Cell): Promise<House> {
    if (state === 'rolling-back') {
      houses.failing ??= await makeHouse({ version: VERSION, behaviour: 'check-fails' });
      return houses.failing;
    }
    if (state === 'rebooting') {
      houses.rebooting ??= await makeHouse({ version: VERSION, behaviour: 'reboot' });
      return houses.rebooting;
    }
    assert(houses.plain !== undefined);
    return houses.plain;
  }

  test('the table', (t) => {
    const title = isFull ? `all ${cells.length} cells` : `seed ${seed}, ${cells.length} of ${CELLS.length} cells`;
    printTable(t, title, ['state', 'installed on', 'fault', 'hit in', 'result', 'frames after'], rows.map(lineOf));
    assert.equal(rows.length, cells.length, 'cells that did not come to an end have failed above');
  });
});
