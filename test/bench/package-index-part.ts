// One refresh of the Debian index in a process of its own, and the first two VMs that ask it; prints the figures as JSON.
import { readFile } from 'node:fs/promises';
import { systemClock } from '../../src/base/clock.ts';
import { makeHttpFetch } from '../../src/base/http-fetch.ts';
import { silentLog } from '../../src/base/log.ts';
import type { InstalledProduct, Inventory } from '../../src/model/inventory.ts';
import { makeDebianVendor } from '../../src/vendor/debian-apt/index.ts';
import type { IndexPart } from './package-index.ts';

type Order = {
  readonly folder: string;
  readonly url: string;
  readonly suite: string;
  readonly keyring: string;
  readonly arch: string;
  readonly vms: readonly (readonly { product: string; version: string; arch: string }[])[];
};

// The cast holds: the other file of this bench wrote it.
const order = JSON.parse(await readFile(process.argv[2] ?? '', 'utf8')) as Order;
const { folder, url, suite, keyring, arch } = order;

const inventories = order.vms.map((packages): Inventory => {
  const products = packages.map((one): InstalledProduct => ({ ecosystem: 'debian', ...one, state: 'installed' }));
  return {
    os: { id: 'debian', versionId: '', codename: suite, arch },
    products,
    config: [],
    agent: { version: '1', digest: null },
    abilities: { drives: ['virtio-blk'], compressions: ['none'] },
    freeBytes: 1e9,
    rebootRequired: false,
    lastShutdown: null,
  };
});

/** Of this process alone; xz is one of its own. Not getrusage: its maximum counts the parent's memory before the exec, too. */
async function residentMaxMB(): Promise<number> {
  const peak = /^VmHWM:\s+(\d+) kB$/m.exec(await readFile('/proc/self/status', 'utf8'))?.[1];
  return Math.round(Number(peak) / 1024);
}

async function time<T>(work: () => Promise<T>): Promise<{ readonly result: T; readonly ms: number }> {
  const startMs = systemClock.monotonicMs();
  const result = await work();
  return { result, ms: systemClock.monotonicMs() - startMs };
}

const http = makeHttpFetch({ clock: systemClock });
const deps = { folder, http, clock: systemClock, metadataAgeMaxMs: 86_400_000, log: silentLog };
const vendor = await makeDebianVendor(
  { name: 'bench', suites: [suite], url, keyring, components: ['main'], arch },
  deps,
);
const residentBeforeMB = await residentMaxMB();
const cpuBefore = process.cpuUsage();
const refresh = await time(() => vendor.refresh({}));
const cpu = process.cpuUsage(cpuBefore);
const residentMaxOfRefreshMB = await residentMaxMB();
const [first, second] = inventories;
if (first === undefined || second === undefined) throw new Error('assertion failed: two VMs ask');
const firstVm = await time(() => vendor.latest(first));
const secondVm = await time(() => vendor.latest(second));
const part: IndexPart = {
  refreshMs: refresh.ms,
  refreshCpuMs: (cpu.user + cpu.system) / 1000,
  packages: (await vendor.offers()).length,
  residentBeforeMB,
  residentMaxMB: residentMaxOfRefreshMB,
  firstVmMs: firstVm.ms,
  secondVmMs: secondVm.ms,
  releases: secondVm.result.releases.length,
};
await vendor.close();
await http.close();
process.stdout.write(JSON.stringify(part));
