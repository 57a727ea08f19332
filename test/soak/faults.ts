// What goes wrong in a storm of the soak: to one fake VM, to one real VM, or to the host.
import { readFile, rm, statfs, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { systemClock } from '../../src/base/clock.ts';
import { PratiqueError } from '../../src/base/errors.ts';
import { isAlive, type ProcessId, parseProcessId } from '../../src/base/process-id.ts';
import { tryCommand } from '../../src/base/run-command.ts';
import { enterPrefix } from '../../src/hypervisor/namespace.ts';
import type { VmSpec } from '../../src/hypervisor/vm-spec.ts';
import type { LivingVm } from '../fakes/fleet-life.ts';
import type { Behaviour } from '../fakes/scripted-agent.ts';
import type { Random } from '../simulator/random.ts';
import type { RealVm, Site } from './site.ts';

/** What operators and strangers did, and what came of it. */
export type Ledger = {
  readonly overrides: { readonly atMs: number; readonly vm: string; readonly reason: string }[];
  /** Codes that the daemon answered requests with, by how often. */
  readonly answers: Map<string, number>;
  /** What must never happen, whatever the storm does. */
  readonly outrages: string[];
};

export type Weather = { readonly site: Site; readonly ledger: Ledger; readonly random: Random };

type Fault<T> = {
  readonly name: string;
  readonly weight: number;
  readonly strike: (weather: Weather, victim: T) => Promise<void>;
};

const OUTAGE_MAX_MS = 3_000;
/** Bytes left free on the daemon's disk while it is full. */
const FULL_FREE_BYTES = 64 * 1024;
const BALLAST_STEP_BYTES = 1024 * 1024;

const fault = <T>(name: string, weight: number, strike: Fault<T>['strike']): Fault<T> => ({ name, weight, strike });

/** Asks the daemon for something that it may well refuse in this weather; what is its own fault is written down. */
export async function ask({ ledger }: Pick<Weather, 'ledger'>, work: () => Promise<unknown>): Promise<boolean> {
  try {
    await work();
    return true;
  } catch (error) {
    const code = error instanceof PratiqueError ? error.code : 'internal/not-an-answer';
    ledger.answers.set(code, (ledger.answers.get(code) ?? 0) + 1);
    if (code.startsWith('internal/')) ledger.outrages.push(`a request was answered with ${code}: ${String(error)}`);
    return false;
  }
}

const pause = async ({ random }: Weather, mostMs = OUTAGE_MAX_MS): Promise<void> =>
  await systemClock.sleep(random.between(0, mostMs));

const becomes =
  (behaviours: readonly Behaviour[]) =>
  async ({ random }: Weather, vm: LivingVm) =>
    vm.reset({ behaviour: random.pick(behaviours.map((each) => [1, each] as const)), isStale: true });

async function admit(weather: Weather, vm: string): Promise<void> {
  const { site, ledger, random } = weather;
  const reason = `soak ${random.between(0, 2 ** 40)}`;
  ledger.overrides.push({ atMs: systemClock.nowMs(), vm, reason });
  await ask(weather, () => site.house.service.admitVm(vm, { reason, actor: 'soak' }));
}

async function removeAndAdd(weather: Weather, spec: VmSpec): Promise<void> {
  const { service } = weather.site.house;
  await ask(weather, () => service.stopVm(spec.vm, { force: true }));
  await pause(weather, 500);
  await ask(weather, () => service.removeVm(spec.vm));
}

/** What an operator may ask of any VM. */
function operatorFaults<T>(specOf: (victim: T) => VmSpec): readonly Fault<T>[] {
  const asks = (work: (site: Site, vm: string) => Promise<unknown>) => async (weather: Weather, victim: T) =>
    void (await ask(weather, () => work(weather.site, specOf(victim).vm)));
  return [
    fault(
      'operator stops it',
      2,
      asks(async ({ house }, vm) => await house.service.stopVm(vm, { force: true })),
    ),
    fault(
      'operator starts it',
      1,
      asks(async ({ house }, vm) => await house.service.startVm(vm)),
    ),
    fault(
      'operator retries it',
      1,
      asks(async ({ house }, vm) => await house.service.retryVm(vm)),
    ),
    fault(
      'operator updates it',
      3,
      asks(async ({ house }, vm) => await house.service.updateVm(vm)),
    ),
    fault('operator removes it', 1, async (weather, victim) => await removeAndAdd(weather, specOf(victim))),
  ];
}

const FLEET_FAULTS: readonly Fault<LivingVm>[] = [
  fault('QEMU kill -9', 4, async (weather, vm) => {
    await vm.powerOff();
    await pause(weather);
    await vm.powerOn();
  }),
  fault('guest reset', 5, async ({ random }, vm) => vm.reset({ behaviour: 'honest', isStale: random.chance(0.6) })),
  fault('agent silent', 2, becomes(['silent', 'silent-after-inventory', 'deaf'])),
  fault('agent lies', 4, becomes(['forged-inventory', 'forged-plan-digest', 'forged-manifest-digest'])),
  fault('agent fails', 1, becomes(['install-fails', 'drive-refused'])),
  fault(
    'agent confused',
    2,
    becomes(['wrong-boot', 'wrong-nonce', 'replay', 'reorder', 'two-agents', 'confirm-unasked']),
  ),
  fault('agent floods', 2, becomes(['flood', 'rubbish', 'oversized'])),
  fault('operator admits it unproven', 2, async (weather, vm) => {
    vm.reset({ behaviour: 'silent', isStale: true });
    await pause(weather);
    await admit(weather, vm.spec.vm);
  }),
  ...operatorFaults<LivingVm>(({ spec }) => spec),
];

const REAL_FAULTS: readonly Fault<RealVm>[] = [
  fault('QEMU kill -9', 3, async (_weather, { vm }) => await kill(await vm.qemu().catch(() => null))),
  fault('guest reset', 3, async ({ random }, { vm }) => await vm.order(random.chance(0.5) ? 'reset' : 'reboot')),
  fault('guest powers off', 1, async (_weather, { vm }) => await vm.order('poweroff')),
  fault('export kill -9', 4, async (weather, { vm }) => await killExport(weather, vm.vm)),
  ...operatorFaults<RealVm>(({ spec }) => spec),
];

const HOST_FAULTS: readonly Fault<null>[] = [
  fault('nft flush by a stranger', 3, async ({ site, random }) => {
    const namespace = random.pick(site.namespaces.map((each) => [1, each] as const));
    const words = random.pick([
      [2, ['flush', 'ruleset']],
      [1, ['delete', 'table', 'bridge', 'pratique']],
      [1, ['flush', 'set', 'bridge', 'pratique', 'admitted']],
      [1, ['flush', 'chain', 'bridge', 'pratique', 'prerouting']],
    ] as const);
    await tryCommand([...enterPrefix(namespace), 'nft', ...words]);
  }),
  fault('vendor away', 2, async (weather) => {
    setVendor(weather.site, false);
    await pause(weather, 2 * OUTAGE_MAX_MS);
    setVendor(weather.site, true);
  }),
  fault('disk full', 2, async (weather) => {
    if (!weather.site.hasOwnDisk) return;
    await fillDisk(weather.site);
    await pause(weather);
    await freeDisk(weather.site);
  }),
];

/** Not among the others: nothing can be said of memory where the daemon does not live long. */
const DAEMON_FAULT: Fault<null> = fault('daemon kill -9', 0, async (weather) => {
  await weather.site.house.daemon.kill();
  await pause(weather, 1_500);
});

/** One thing that is going to happen. */
export type Strike = {
  readonly name: string;
  readonly victim: string;
  readonly afterMs: number;
  readonly run: () => Promise<void>;
};

export type StormOptions = { readonly lengthMs: number; readonly mayKillDaemon: boolean };

const VM_STRIKES = 0.55;
const REAL_STRIKES = 0.3;
const HOST_STRIKES = 0.7;
const DAEMON_STRIKES = 0.6;

/** Draws a storm: what strikes whom, and when. Killing the daemon is the caller's to undo, with the rest. */
export function drawStorm(weather: Weather, { lengthMs, mayKillDaemon }: StormOptions): readonly Strike[] {
  const { site, random } = weather;
  const strikes: Strike[] = [];
  const add = <T>({ name, strike }: Fault<T>, victim: T, label: string): void => {
    strikes.push({ name, victim: label, afterMs: random.between(0, lengthMs), run: () => strike(weather, victim) });
  };
  const draw = <T>(faults: readonly Fault<T>[]): Fault<T> =>
    random.pick(faults.map((each) => [each.weight, each] as const));
  for (const vm of site.fleet) if (random.chance(VM_STRIKES)) add(draw(FLEET_FAULTS), vm, vm.spec.vm);
  for (const vm of site.real) if (random.chance(REAL_STRIKES)) add(draw(REAL_FAULTS), vm, vm.spec.vm);
  if (random.chance(HOST_STRIKES)) add(draw(HOST_FAULTS), null, 'host');
  if (mayKillDaemon && random.chance(DAEMON_STRIKES)) add(DAEMON_FAULT, null, 'host');
  return strikes.toSorted((a, b) => a.afterMs - b.afterMs);
}

/** Everything that was broken from outside is whole again. */
export async function calmDown({ site }: Weather): Promise<void> {
  setVendor(site, true);
  await freeDisk(site);
  if (site.house.daemon.pid() === null) await site.house.daemon.start();
  for (const vm of site.fleet) {
    await vm.powerOn();
    if (vm.behaviour() !== 'honest') vm.reset({ behaviour: 'honest', isStale: false });
  }
}

function setVendor({ house }: Site, isThere: boolean): void {
  for (const path of ['/metadata/timestamp.json', '/metadata/root.json'])
    house.server.fail(path, isThere ? null : { kind: 'status', status: 503 });
}

const ballastOf = ({ dataFolder }: Site): string => join(dataFolder, 'ballast');

async function fillDisk(site: Site): Promise<void> {
  const { bavail, bsize } = await statfs(site.dataFolder);
  let leftBytes = bavail * bsize - FULL_FREE_BYTES;
  while (leftBytes > 0) {
    const bytes = Buffer.alloc(Math.min(leftBytes, BALLAST_STEP_BYTES));
    const isWritten = await writeFile(ballastOf(site), bytes, { flag: 'a' }).then(
      () => true,
      () => false,
    );
    if (!isWritten) return; // The daemon was quicker, and the disk is full all the same.
    leftBytes -= bytes.length;
  }
}

async function freeDisk(site: Site): Promise<void> {
  await rm(ballastOf(site), { force: true });
}

async function killExport({ site }: Weather, vm: string): Promise<void> {
  const pidFile = join(site.house.runFolder, 'drives', vm, 'pid');
  await kill(parseProcessId(await readFile(pidFile, 'utf8').catch(() => '')));
}

async function kill(victim: ProcessId | null): Promise<void> {
  if (victim !== null && (await isAlive(victim))) process.kill(victim.pid, 'SIGKILL');
}
