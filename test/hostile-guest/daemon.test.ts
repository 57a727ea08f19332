// Twenty hostile guests at once on one real daemon, and an honest neighbour: what they cost the host in memory, and the neighbour in time.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import type { LivingVm } from '../fakes/fleet-life.ts';
import type { Behaviour } from '../fakes/scripted-agent.ts';
import { measureProcess } from '../soak/measure.ts';
import { openSite, type Site } from '../soak/site.ts';

const HOSTILE = 20;
/** Rounds after the one that warms the daemon up. */
const ROUNDS = process.env.PRATIQUE_TEST_FULL === '1' ? 8 : 2;
const GROWTH_MAX_MB = 20;
const SLOWER_MAX = 1.5;
/** What a neighbour's agent takes for its boot, for reading its drive and for letting it go: about 500 ms and three times this. */
const AGENT_PAUSE_MS = 700;
const USUAL_RUN_MS = 500 + 3 * AGENT_PAUSE_MS;
const TIMEOUT_MS = 90_000;
/** proc(5): utime and stime are in ticks of 10 ms. */
const TICK_MS = 10;

const KINDS: readonly Behaviour[] = [
  ...(['flood', 'rubbish', 'oversized', 'replay', 'reorder', 'two-agents', 'wrong-boot', 'wrong-nonce'] as const),
  ...(['confirm-unasked', 'silent', 'silent-after-inventory', 'deaf', 'forged-inventory', 'install-fails'] as const),
];

async function cpuMs(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) * TICK_MS;
}

async function reach(site: Site, vm: LivingVm, isIt: (state: string) => boolean): Promise<void> {
  const { service } = site.house;
  const isThere = async () => isIt((await service.showVm(vm.spec.vm)).state);
  assert(await waitUntil(isThere, systemClock, TIMEOUT_MS), `${vm.spec.vm} did not come where it should`);
}

/** One run of the neighbour, from its guest's reset to plugged in: wall time, and processor time of the daemon meanwhile. */
async function runOnce(site: Site, neighbour: LivingVm, pid: number, hostile: readonly LivingVm[], round: number) {
  const [startMs, startCpuMs] = [systemClock.monotonicMs(), await cpuMs(pid)];
  neighbour.reset({ behaviour: 'honest', isStale: true });
  for (const [index, vm] of hostile.entries())
    vm.reset({ behaviour: KINDS[(index + round) % KINDS.length] ?? 'flood', isStale: true });
  await reach(site, neighbour, (state) => state !== 'connected');
  await reach(site, neighbour, (state) => state === 'connected');
  return { wallMs: systemClock.monotonicMs() - startMs, cpuMs: (await cpuMs(pid)) - startCpuMs };
}

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;

test(`${HOSTILE} hostile guests take a bounded amount of memory from the host, and little time from a neighbour [A10] [X1]`, async (t) => {
  const site = await openSite({ vms: HOSTILE + 1, realVms: 0, seed: 1, agentPauseMs: AGENT_PAUSE_MS });
  t.after(site.close);
  const { service, daemon } = site.house;
  const [neighbour, ...hostile] = site.fleet;
  const pid = daemon.pid();
  assert(neighbour !== undefined && pid !== null);
  for (const { spec } of site.fleet) await service.startVm(spec.vm);
  for (const vm of site.fleet) await reach(site, vm, (state) => state === 'connected');

  // Side by side in time, so that whatever else the machine does meets both alike. The first of each warms the daemon up.
  const alone: Awaited<ReturnType<typeof runOnce>>[] = [];
  const beside: Awaited<ReturnType<typeof runOnce>>[] = [];
  let before = await measureProcess(site, pid);
  for (let round = 0; round <= ROUNDS; round += 1) {
    alone.push(await runOnce(site, neighbour, pid, [], round));
    beside.push(await runOnce(site, neighbour, pid, hostile, round));
    if (round === 0) before = await measureProcess(site, pid);
  }
  const after = await measureProcess(site, pid);

  const grownMB = after.memory.residentMB - before.memory.residentMB;
  const heapMB = after.memory.heapMB - before.memory.heapMB;
  t.diagnostic(
    `daemon: ${before.memory.residentMB} MB resident after warm-up, ${grownMB.toFixed(1)} MB more after ${ROUNDS} rounds of ${HOSTILE} hostile guests (heap ${heapMB.toFixed(1)} MB more), both after a garbage collection`,
  );
  assert.ok(grownMB <= GROWTH_MAX_MB, `the daemon grew by ${grownMB} MB`);

  // The daemon has one thread, so what others cost it in processor time is the most that a neighbour can wait for them; unlike
  // wall time it does not depend on what else runs on the machine.
  const [aloneCpu, besideCpu] = [alone, beside].map((runs) => median(runs.slice(1).map((run) => run.cpuMs)));
  const [aloneWall, besideWall] = [alone, beside].map((runs) => median(runs.slice(1).map((run) => run.wallMs)));
  assert(aloneCpu !== undefined && besideCpu !== undefined && aloneWall !== undefined && besideWall !== undefined);
  const slower = 1 + Math.max(0, besideCpu - aloneCpu) / USUAL_RUN_MS;
  t.diagnostic(
    `neighbour: the hostile guests cost the daemon ${besideCpu - aloneCpu} ms of processor time during its run of ${USUAL_RUN_MS} ms: at most ${slower.toFixed(2)} times as long`,
  );
  t.diagnostic(
    `neighbour: wall time on this machine, medians of ${ROUNDS}: ${Math.round(aloneWall)} ms alone, ${Math.round(besideWall)} ms beside them (${(besideWall / aloneWall).toFixed(2)} times)`,
  );
  assert.ok(slower <= SLOWER_MAX, `a neighbour takes ${slower} times as long`);

  for (const vm of hostile) assert.notEqual(vm.behaviour(), 'honest');
  const views = await service.listVms();
  const open = views.filter(({ gate, vm }) => gate === 'open' && vm !== neighbour.spec.vm).map(({ vm }) => vm);
  const mayBeOpen = hostile.filter((vm) =>
    ['replay', 'oversized', 'two-agents', 'confirm-unasked'].includes(vm.behaviour()),
  );
  const honestEnough = new Set(mayBeOpen.map(({ spec }) => spec.vm as string));
  assert.deepEqual(
    open.filter((vm) => !honestEnough.has(vm)),
    [],
    'none that lied or said nothing is plugged in',
  );
});
