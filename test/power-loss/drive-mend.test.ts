// A blob has rotted under a guest, and while its host takes the drive back, looks at its copies, fetches and shows a drive made anew,
// the daemon, QEMU or both are killed: the run ends plugged in by itself, and nothing of a drive is left. A seeded sample by default.
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { existsSync } from 'node:fs';
import { chmod, open, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import { assertConnected, crash, type House, openHouse, type TestVm } from '../e2e/harness.ts';

/** What is told on the way, in order. */
const MOMENTS = [
  /^the agent reports 1 result/,
  /^the agent released the drive/,
  /^damaged on this host/,
  /is attached \(/,
  /^the agent verified the drive/,
] as const;
/** A guest needs a second to read it to its end, where it rots as soon as it is shown. */
const PADDING_BYTES = 16_000_000;
const FAULTS = ['daemon', 'QEMU', 'both'] as const;
const CELLS = MOMENTS.flatMap((moment, index) => FAULTS.map((fault) => ({ moment, index, fault })));
type Cell = (typeof CELLS)[number];
const isFull = process.env.PRATIQUE_TEST_FULL === '1';
const seed = Number(process.env.PRATIQUE_TEST_SEED ?? randomInt(1, 2 ** 31));

async function rotBlob({ folder, service }: House, version: string): Promise<void> {
  const offer = (await service.vendorOffers('demo')).find((each) => each.version === version);
  assert(offer !== undefined);
  const { digest } = offer.artifact;
  const path = join(folder, 'data/store/blobs', digest.slice(0, 2), digest);
  const { size, mode } = await stat(path);
  await chmod(path, 0o600);
  const file = await open(path, 'r+');
  const byte = Buffer.alloc(1);
  const at = Math.floor(size * 0.97);
  await file.read(byte, 0, 1, at);
  await file.write(Buffer.from([(byte[0] ?? 0) ^ 1]), 0, 1, at);
  await file.close();
  await chmod(path, mode & 0o777);
}

/** Hears the moment; those of the first, damaged drive are the ones that tell the same before. */
async function reachMoment(house: House, vm: TestVm, { moment, index }: Cell): Promise<void> {
  await vm.start();
  await vm.hear(/is attached \(/);
  await rotBlob(house, '1.1.0');
  if (index > 0) await vm.hear(MOMENTS[0]);
  await vm.hear(moment);
}

async function strike(house: House, vm: TestVm, { fault }: Cell): Promise<void> {
  const qemu = await vm.qemu();
  if (fault !== 'QEMU') await house.daemon.kill();
  if (fault !== 'daemon') await crash(qemu);
  if (fault !== 'QEMU') await house.daemon.start();
}

async function assertNothingLeft({ folder, runFolder }: House, { vm }: TestVm): Promise<void> {
  const left = [join(folder, 'data/drives', vm), join(runFolder, 'drives', vm)];
  const isGone = async () => !left.some((path) => existsSync(path));
  assert(await waitUntil(isGone, systemClock, 30_000), `a drive of ${vm} is left`);
  const catalog = new DatabaseSync(join(folder, 'data/store/catalog.sqlite'), { readOnly: true });
  try {
    assert.deepEqual(catalog.prepare('SELECT owner FROM pins WHERE owner LIKE ?').all(`%:${vm}`), [], 'a pin is left');
  } finally {
    catalog.close();
  }
}

const chosen = isFull ? CELLS : [CELLS[seed % CELLS.length]].filter((cell) => cell !== undefined);
test('a run whose damaged drive is being mended ends plugged in by itself, whatever is killed meanwhile [A9] [X4]', async (t) => {
  t.diagnostic(isFull ? `all ${CELLS.length} cells` : `seed ${seed}, 1 of ${CELLS.length} cells`);
  const house = await openHouse(t, { version: '1.1.0', paddingBytes: PADDING_BYTES, installSeconds: 1 });
  for (const cell of chosen) {
    const what = `${cell.fault} killed at ${cell.moment}`;
    const vm = await house.addVm();
    await reachMoment(house, vm, cell);
    await strike(house, vm, cell);
    await vm.reach('connected');
    await assertConnected(vm, '1.1.0');
    await assertNothingLeft(house, vm);
    assert(!(await vm.events()).some(({ text }) => text.startsWith('quarantined')), what);
    await house.service.stopVm(vm.vm, { force: true });
    t.diagnostic(`${what}: connected`);
  }
});
