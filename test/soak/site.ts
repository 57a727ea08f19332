// The soak's host: a real daemon on a small disk of its own, a fleet of fake QEMUs with scripted agents on real taps, a few real VMs,
// and whoever watches from outside.
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runCommand, tryCommand } from '../../src/base/run-command.ts';
import { HOST_NAMESPACE, namespaceKey } from '../../src/hypervisor/namespace.ts';
import { tapName } from '../../src/hypervisor/network.ts';
import { gatedNics, type Namespace, type VmSpec } from '../../src/hypervisor/vm-spec.ts';
import type { DriveTransport } from '../../src/model/drive.ts';
import type { Policy } from '../../src/model/policy.ts';
import { type House, makeHouse, type TestVm } from '../e2e/harness.ts';
import { makeTaps } from '../fakes/fleet.ts';
import { type FleetDiary, type LivingVm, makeLivingVm } from '../fakes/fleet-life.ts';
import { makeNamespace, type TestNamespace } from '../fakes/namespace.ts';
import { makeRandom, seedFor } from '../simulator/random.ts';
import { type FenceWatch, watchFence } from './fence-watch.ts';

export const FIRST_VERSION = '1.1.0';
const STALE_VERSION = '1.0.0';
const PROBE = join(import.meta.dirname, 'probe.ts');
/** The daemon's disk: large enough for databases, a store of small releases and a disk overlay, small enough to be filled. */
export const DATA_BYTES = 640 * 1024 * 1024;
/** Seconds: an agent that says nothing is given up within one storm and its calm. */
const DEADLINES = { booting: 45, reporting: 20, offering: 20, judging: 20, rebooting: 45, opening: 30 };
/** Milliseconds at most that an agent takes for what a real one needs time for. */
const AGENT_PAUSE_MAX_MS = 1_200;

export type RealVm = { readonly vm: TestVm; readonly spec: VmSpec; readonly policy: Partial<Policy> };

export type Site = {
  readonly house: House;
  readonly fleet: readonly LivingVm[];
  readonly real: readonly RealVm[];
  readonly diary: FleetDiary;
  readonly namespaces: readonly Namespace[];
  /** Which VM a tap belongs to. */
  readonly vmOfTap: ReadonlyMap<string, string>;
  readonly watches: readonly FenceWatch[];
  readonly dataFolder: string;
  /** Whether the data folder is a disk of its own, which may be filled. */
  readonly hasOwnDisk: boolean;
  readonly probePath: string;
  readonly fleetNet: TestNamespace;
  readonly close: () => Promise<void>;
};

export type SiteOptions = {
  readonly vms: number;
  readonly realVms: number;
  readonly seed: number;
  /** Instead of a random time that an agent takes for what a real one needs time for, in milliseconds. */
  readonly agentPauseMs?: number;
};

/** Makes it; nothing is left of it when that fails. */
export async function openSite(options: SiteOptions): Promise<Site> {
  const sockets = await mkdtemp(join(tmpdir(), 'pqs-'));
  const undo: (() => Promise<unknown>)[] = [async () => await rm(sockets, { recursive: true, force: true })];
  const close = async (): Promise<void> => {
    for (let end = undo.pop(); end !== undefined; end = undo.pop()) await end();
  };
  try {
    return { ...(await furnish(options, sockets, undo)), close };
  } catch (error) {
    await close();
    throw error;
  }
}

async function furnish(
  options: SiteOptions,
  sockets: string,
  undo: (() => Promise<unknown>)[],
): Promise<Omit<Site, 'close'>> {
  const probePath = join(sockets, 'probe.json');
  // The daemon inherits it; its probe writes there.
  process.env.PRATIQUE_SOAK_PROBE = probePath;
  const isRoot = process.getuid?.() === 0;
  const house = await makeHouse({ version: FIRST_VERSION }, 'cloud', {
    configuration: { deadlines: DEADLINES },
    nodeFlags: ['--import', PROBE],
    ...(isRoot ? { prepare: mountData } : {}),
  });
  undo.push(house.close);
  const fleetNet = await makeNamespace();
  undo.push(fleetNet.close);
  const diary: FleetDiary = { confirms: [], raises: [] };
  const fleet = await makeFleet(options, { sockets, fleetNet, diary });
  undo.push(async () => await Promise.all(fleet.map((vm) => vm.powerOff())));
  const real = await addRealVms(house, options.realVms);
  for (const vm of fleet) {
    await vm.powerOn();
    await house.service.addVm(vm.spec, {});
  }
  const specs = [...fleet, ...real].map(({ spec }) => spec);
  const every = [fleetNet.namespace, ...real.map(({ spec }) => spec.namespace ?? HOST_NAMESPACE)];
  const namespaces = [...new Map(every.map((each) => [namespaceKey(each), each])).values()];
  const watches: FenceWatch[] = [];
  for (const namespace of namespaces) {
    const watch = await watchFence(namespace);
    undo.push(watch.close);
    watches.push(watch);
  }
  return {
    house,
    fleet,
    real,
    diary,
    namespaces,
    vmOfTap: new Map(specs.flatMap((spec) => tapsOf(spec).map((tap) => [tap, spec.vm] as const))),
    watches,
    dataFolder: join(house.folder, 'data'),
    hasOwnDisk: isRoot,
    probePath,
    fleetNet,
  };
}

/** The names of a VM's gated taps. */
export function tapsOf(spec: VmSpec): readonly string[] {
  return spec.kind === 'attached'
    ? gatedNics(spec.nics).map(({ tap }) => tap)
    : gatedNics(spec.nics).map(({ id }) => tapName(spec.vm, id));
}

/** A small disk under the data folder, so that it can be filled without anybody else noticing. */
async function mountData(folder: string): Promise<() => Promise<void>> {
  const data = join(folder, 'data');
  await mkdir(data);
  await runCommand(['mount', '-t', 'tmpfs', '-o', `size=${DATA_BYTES},mode=0711`, 'pratique-soak', data]);
  return async () => void (await tryCommand(['umount', data]));
}

async function makeFleet(
  { vms, realVms, seed, agentPauseMs }: SiteOptions,
  { sockets, fleetNet, diary }: { sockets: string; fleetNet: TestNamespace; diary: FleetDiary },
): Promise<readonly LivingVm[]> {
  const indexes = Array.from({ length: vms - realVms }, (_, index) => index);
  // Names of somebody else's choice, as attached VMs have them.
  const tapOf = (index: number) => `vmtap${index}`;
  await makeTaps(fleetNet, indexes.map(tapOf));
  const random = makeRandom(seedFor(seed, 'pauses'));
  return indexes.map((index) =>
    makeLivingVm({
      index,
      folder: sockets,
      tap: tapOf(index),
      namespace: fleetNet.namespace,
      transport: index % 8 === 7 ? 'file' : 'direct',
      staleVersion: STALE_VERSION,
      pauseMs: () => agentPauseMs ?? random.between(0, AGENT_PAUSE_MAX_MS),
      diary,
    }),
  );
}

const TRANSPORTS: readonly DriveTransport[] = ['nbd', 'direct', 'file'];

/** Tiny guests on QEMU; the second of them is updated on a disk overlay. */
async function addRealVms(house: House, count: number): Promise<readonly RealVm[]> {
  const real: RealVm[] = [];
  for (let index = 0; index < count; index += 1) {
    const transport = TRANSPORTS[index % TRANSPORTS.length] ?? 'direct';
    const policy = index % TRANSPORTS.length === 1 ? { overlay: true } : {};
    const vm = await house.addVm({ policy, change: (spec) => ({ ...spec, drive: { transport } }) });
    real.push({ vm, spec: (await house.service.showVm(vm.vm)).spec, policy });
  }
  return real;
}
