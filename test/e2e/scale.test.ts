// Many VMs at once on one real daemon with a real fence: the honest ones are plugged in, the others are not, and it stays small.
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { downloadsOf, type Site, startAll, withSite } from '../bench/gate-fleet.ts';
import type { FleetVm } from '../fakes/fleet.ts';
import type { Behaviour } from '../fakes/scripted-agent.ts';

const FULL_COUNT = 500;
const isFull = process.env.PRATIQUE_TEST_FULL === '1';
const COUNT = isFull ? FULL_COUNT : 150;
const SEED = Number(process.env.PRATIQUE_TEST_SEED ?? randomInt(2 ** 31));
/** Who else is among them, and what the reason of each quarantine says. */
const MISFITS: readonly (readonly [Behaviour, RegExp])[] = [
  ['forged-inventory', /not believed/],
  ['forged-plan-digest', /not believed/],
  ['forged-manifest-digest', /not believed/],
  ['install-fails', /failed/],
  ['silent', /said nothing/],
  ['silent', /said nothing/],
];
/** Seconds: long enough for the last of the fleet to boot on a busy machine, short enough to wait for the silent. */
const BOOTING_DEADLINE_S = isFull ? 60 : 30;
const TIMEOUT_MS = 240_000;
const RESIDENT_MAX_MB = 250;

test(`${COUNT} VMs at once on one daemon: every honest one is plugged in and no other [A11] [X1] [X2] [X6]`, async (t) => {
  t.diagnostic(`${COUNT} of ${FULL_COUNT} VMs (all with PRATIQUE_TEST_FULL=1), seed ${SEED} (PRATIQUE_TEST_SEED)`);
  const misfits = placeMisfits();
  const deadlines = { booting: BOOTING_DEADLINE_S };
  const behaviourOf = (index: number): Behaviour => misfits.get(index)?.[0] ?? 'honest';
  await withSite({ count: COUNT, behaviourOf, deadlines }, async (site) => {
    const honest = site.fleet.vms.filter((vm) => vm.behaviour === 'honest');
    await startAll(site);
    assert.ok(await site.fleet.allTold(honest, TIMEOUT_MS), 'not every honest agent was told that it is admitted');
    await everyMisfitIsHeld(site, COUNT - honest.length);

    const views = new Map((await site.daemon.service.listVms()).map((view) => [view.vm, view]));
    const stateOf = (vm: FleetVm) => views.get(vm.spec.vm)?.state;
    assert.deepEqual(
      honest.filter((vm) => stateOf(vm) !== 'connected' || !isLinkUp(vm) || versionOf(vm) !== '1.1.0').map(nameOf),
      [],
    );
    for (const [index, [behaviour, reason]] of misfits) {
      const vm = site.fleet.vms[index];
      assert.ok(vm !== undefined);
      assert.equal(stateOf(vm), 'quarantined', behaviour);
      assert.equal(isLinkUp(vm), false, behaviour);
      assert.match(views.get(vm.spec.vm)?.why.reason ?? '', reason);
    }
    const tapsOf = (vms: readonly FleetVm[]) => vms.flatMap((vm) => vm.spec.nics.map((nic) => nic.tap)).sort();
    assert.deepEqual([...(await site.fleet.admittedTaps())].sort(), tapsOf(honest), 'taps admitted in the kernel');

    assert.deepEqual(downloadsOf(site.vendor).artifacts, [1], 'one artifact, downloaded once');
    assert.equal((await site.daemon.service.auditVerify()).isIntact, true);
    const residentMB = await site.daemon.residentMaxMB();
    t.diagnostic(`the daemon had ${residentMB} MB resident at most`);
    assert.ok(residentMB <= RESIDENT_MAX_MB, `${residentMB} MB`);
  });
});

const nameOf = (vm: FleetVm): string => vm.spec.vm;
const isLinkUp = (vm: FleetVm): boolean => [...vm.qemu.links.values()].some((isUp) => isUp);
const versionOf = (vm: FleetVm) => vm.disk.inventory.products.find(({ product }) => product === 'hello')?.version;

/** A place for each of them that the seed decides. */
function placeMisfits(): ReadonlyMap<number, (typeof MISFITS)[number]> {
  const places = new Map<number, (typeof MISFITS)[number]>();
  let state = SEED;
  for (const misfit of MISFITS) {
    do state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff;
    while (places.has(state % COUNT));
    places.set(state % COUNT, misfit);
  }
  return places;
}

/** The silent ones are given up only after their deadline. */
async function everyMisfitIsHeld({ daemon }: Site, count: number): Promise<void> {
  const until = systemClock.monotonicMs() + TIMEOUT_MS;
  const held = async () => (await daemon.service.listVms()).filter((view) => view.state === 'quarantined').length;
  while ((await held()) < count && systemClock.monotonicMs() < until) await systemClock.sleep(500);
  assert.equal(await held(), count);
}
