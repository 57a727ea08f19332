// Two benches over a fleet of fake QEMUs and scripted agents on one real daemon: opening at once, and scale.
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { HELLO_SEEDED_VERSION } from '../../images/hello-product.ts';
import { type DemoVendor, startDemoVendor } from '../../proxy/demo/demo-vendor.ts';
import { systemClock } from '../../src/base/clock.ts';
import { type Fleet, type FleetOptions, type FleetVm, startFleet } from '../fakes/fleet.ts';
import { type BenchDaemon, startBenchDaemon } from './gate-daemon.ts';
import { type Distribution, distribution, round, type Target, target, undoAll } from './gate-figures.ts';

const NEW_VERSION = '1.1.0';
/** Milliseconds for a whole fleet on a busy machine. */
const FLEET_TIMEOUT_MS = 300_000;
/** VMs that are added or started by one request after the other, side by side. */
const REQUESTS_AT_ONCE = 16;

export type Say = (line: string) => void;

/** A fleet, its vendor and its daemon. */
export type Site = { readonly fleet: Fleet; readonly vendor: DemoVendor; readonly daemon: BenchDaemon };

export type SiteOptions = Omit<FleetOptions, 'folder' | 'version'> & {
  /** Seconds a run may stay in a state. */
  readonly deadlines?: Readonly<Record<string, number>>;
  readonly nodeFlags?: readonly string[];
};

/** Sets everything up, with every VM added and its vendor checked, runs the work, and takes everything away again. */
export async function withSite<T>(options: SiteOptions, work: (site: Site) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'pqf-'));
  const undo: (() => Promise<void>)[] = [async () => await rm(folder, { recursive: true, force: true })];
  try {
    const sockets = join(folder, 's');
    await mkdir(sockets);
    const vendor = await startDemoVendor({
      folder: join(folder, 'vendor'),
      version: NEW_VERSION,
      behaviour: 'ok',
      clock: systemClock,
    });
    undo.push(vendor.close);
    const fleet = await startFleet({ ...options, folder: sockets, version: HELLO_SEEDED_VERSION });
    undo.push(fleet.close);
    const daemon = await startBenchDaemon({
      folder,
      configuration: { vendors: [vendor.config], deadlines: options.deadlines ?? {} },
      nodeFlags: options.nodeFlags ?? [],
    });
    undo.push(daemon.stop);
    await daemon.service.checkVendor(null);
    await forEachAtOnce(fleet.vms, async (vm) => await daemon.service.addVm(vm.spec, {}));
    return await work({ fleet, vendor, daemon });
  } finally {
    await undoAll(undo);
  }
}

/** Asks the daemon to start every VM. */
export async function startAll({ fleet, daemon }: Site): Promise<void> {
  await forEachAtOnce(fleet.vms, async (vm) => await daemon.service.startVm(vm.spec.vm));
}

async function forEachAtOnce(vms: readonly FleetVm[], work: (vm: FleetVm) => Promise<unknown>): Promise<void> {
  const queue = [...vms];
  const worker = async (): Promise<void> => {
    for (let vm = queue.shift(); vm !== undefined; vm = queue.shift()) await work(vm);
  };
  await Promise.all(Array.from({ length: REQUESTS_AT_ONCE }, worker));
}

/** How often each file of the vendor was sent, by whether it is an artifact or metadata. */
export function downloadsOf(vendor: DemoVendor): { readonly artifacts: readonly number[] } {
  const counts = [...vendor.downloads()].filter(([path]) => path.startsWith('/targets/')).map(([, count]) => count);
  return { artifacts: counts };
}

export type OpeningFigures = {
  readonly vms: number;
  /** The drive is detached, its image closed → `set_link up` arrived at QEMU. */
  readonly detachedToLinkUp: Distribution;
  /** The agent said that it let go → the image is closed. A fake QEMU lets go at once: this is the host's share of it. */
  readonly detach: Distribution;
  /** QEMU said that the device is gone (in the middle of the detaching) → `set_link up` arrived at QEMU. */
  readonly deviceDeletedToLinkUp: Distribution;
  /** From the agent's word to the link, all of it. */
  readonly releasedToLinkUp: Distribution;
  /** From the first agent's word to the last link. */
  readonly burstMs: number;
  readonly daemonCpuMs: number;
  readonly targets: readonly Target[];
};

/** All VMs confirm, wait, and let go of their drives at the same moment. */
export async function benchOpening(
  options: { readonly vms: number; readonly nodeFlags?: readonly string[] },
  say: Say,
): Promise<OpeningFigures> {
  say(`opening: ${options.vms} VMs that let go of their drives at once`);
  const site = {
    count: options.vms,
    holdsRelease: true,
    deadlines: { opening: 3_600 },
    nodeFlags: options.nodeFlags ?? [],
  };
  return await withSite(site, async (place) => {
    const { fleet, daemon } = place;
    await startAll(place);
    const until = systemClock.monotonicMs() + FLEET_TIMEOUT_MS;
    while (fleet.waiting() < options.vms) {
      if (systemClock.monotonicMs() > until) throw new Error(`only ${fleet.waiting()} VMs came to the barrier`);
      await systemClock.sleep(100);
    }
    await systemClock.sleep(1_000); // What is left of the way there is no part of the figure.
    const cpuBefore = await daemon.cpuMs();
    fleet.letGo();
    if (!(await fleet.allTold(fleet.vms, FLEET_TIMEOUT_MS))) throw new Error('not every VM was admitted');
    return openingFigures(fleet.vms, (await daemon.cpuMs()) - cpuBefore);
  });
}

function openingFigures(vms: readonly FleetVm[], daemonCpuMs: number): OpeningFigures {
  const times = vms.map((vm) => vm.times);
  const deviceDeletedToLinkUp = distribution(times.map((time) => time.linkUpMs - time.deletedMs));
  const detachedToLinkUp = distribution(times.map((time) => time.linkUpMs - time.closedMs));
  const first = Math.min(...times.map((time) => time.releasedMs));
  return {
    vms: vms.length,
    detachedToLinkUp,
    detach: distribution(times.map((time) => time.closedMs - time.releasedMs)),
    deviceDeletedToLinkUp,
    releasedToLinkUp: distribution(times.map((time) => time.linkUpMs - time.releasedMs)),
    burstMs: round(Math.max(...times.map((time) => time.linkUpMs)) - first),
    daemonCpuMs,
    targets: [
      target('drive detached (image closed) to link up, p99, ms', 20, detachedToLinkUp.p99Ms),
      target('device deleted (in the middle of the detaching) to link up, p99, ms', 20, deviceDeletedToLinkUp.p99Ms),
    ],
  };
}

export type ScaleFigures = {
  readonly vms: number;
  readonly connected: number;
  /** From the first start request to the last word of admission. */
  readonly wallMs: number;
  readonly daemonCpuMs: number;
  readonly daemonResidentMaxMB: number;
  readonly downloadsPerArtifact: readonly number[];
  readonly targets: readonly Target[];
};

/** All VMs at once, from start to connected. */
export async function benchScale(
  options: { readonly vms: number; readonly nodeFlags?: readonly string[] },
  say: Say,
): Promise<ScaleFigures> {
  say(`scale: ${options.vms} VMs at once from start to connected`);
  return await withSite({ count: options.vms, nodeFlags: options.nodeFlags ?? [] }, async (site) => {
    const startedMs = systemClock.monotonicMs();
    const cpuBefore = await site.daemon.cpuMs();
    await startAll(site);
    await site.fleet.allTold(site.fleet.vms, FLEET_TIMEOUT_MS);
    const wallMs = Math.round(systemClock.monotonicMs() - startedMs);
    const views = await site.daemon.service.listVms();
    const connected = views.filter((view) => view.state === 'connected').length;
    const resident = await site.daemon.residentMaxMB();
    const { artifacts } = downloadsOf(site.vendor);
    return {
      vms: options.vms,
      connected,
      wallMs,
      daemonCpuMs: (await site.daemon.cpuMs()) - cpuBefore,
      daemonResidentMaxMB: resident,
      downloadsPerArtifact: artifacts,
      targets: [
        target('VMs that did not end connected', 0, options.vms - connected),
        target('daemon resident at most, MB', 250, resident),
        target('downloads per artifact', 1, Math.max(...artifacts)),
      ],
    };
  });
}
