// Counts what is there on the soak's host: of the daemon's process, and of everything that comes and goes with VMs.
import { existsSync } from 'node:fs';
import { readdir, readFile, readlink } from 'node:fs/promises';
import { join } from 'node:path';
import { systemClock } from '../../src/base/clock.ts';
import { runCommand, tryCommand } from '../../src/base/run-command.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import { enterPrefix } from '../../src/hypervisor/namespace.ts';
import type { Namespace } from '../../src/hypervisor/vm-spec.ts';
import type { Counts, Sample } from './leaks.ts';
import type { Probed } from './probe.ts';
import type { Site } from './site.ts';

const PROBE_TIMEOUT_MS = 30_000;
const SETTLE_LOOK_MS = 500;
/** Interfaces that the daemon makes. */
const OUR_TAP = /^pq[0-9a-z]/;

/** Measures when nothing is under way. What is more than allowed gets some time to go. */
export async function measure(
  site: Site,
  { settleMs, ...moment }: Pick<Sample, 'atMinutes' | 'life' | 'allowed'> & { readonly settleMs: number },
): Promise<Sample> {
  const pid = site.house.daemon.pid();
  if (pid === null) throw new Error('assertion failed: the daemon runs');
  let found = await countAll(site, pid);
  const isSettled = async (): Promise<boolean> => {
    if (Object.entries(found).every(([what, count]) => count <= allowanceOf(moment.allowed, what))) return true;
    found = await countAll(site, pid);
    return false;
  };
  await waitUntil(isSettled, systemClock, settleMs, SETTLE_LOOK_MS);
  return { ...moment, ...(await measureProcess(site, pid)), descriptors: await countDescriptors(pid), found };
}

/** The daemon's memory after a garbage collection, and what keeps its event loop. */
export async function measureProcess(
  site: Pick<Site, 'probePath'>,
  pid: number,
): Promise<Pick<Sample, 'memory' | 'resources'>> {
  const probed = await probe(site, pid);
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  const kB = (field: string) => Number(new RegExp(`${field}:\\s+(\\d+) kB`).exec(status)?.[1]);
  const { PipeWrap = 0, TCPSocketWrap = 0, ...others } = probed.resources;
  return {
    memory: {
      residentMB: megabytes(kB('VmRSS') * 1024),
      residentMaxMB: megabytes(kB('VmHWM') * 1024),
      heapMB: megabytes(probed.heapBytes + probed.externalBytes),
    },
    resources: Object.values(others).reduce((sum, count) => sum + count, 0),
  };
}

const megabytes = (bytes: number): number => Math.round(bytes / 1e5) / 10;
// The cast holds: both have the same keys.
const allowanceOf = (allowed: Counts, what: string): number => allowed[what as keyof Counts];

/** Asks the daemon to collect its garbage and to say what is left. */
async function probe({ probePath }: Pick<Site, 'probePath'>, pid: number): Promise<Probed> {
  const before = await readProbe(probePath);
  process.kill(pid, 'SIGUSR2');
  let now: Probed | null = null;
  const isNew = async () => {
    now = await readProbe(probePath);
    return now !== null && now.pid === pid && (before?.pid !== pid || now.turn > before.turn);
  };
  if ((await waitUntil(isNew, systemClock, PROBE_TIMEOUT_MS)) && now !== null) return now;
  throw new Error(`the daemon's probe did not answer within ${PROBE_TIMEOUT_MS} ms`);
}

async function readProbe(path: string): Promise<Probed | null> {
  const text = await readFile(path, 'utf8').catch(() => null);
  return text === null ? null : (JSON.parse(text) as Probed); // The cast holds: probe.ts wrote it.
}

async function countDescriptors(pid: number): Promise<Sample['descriptors']> {
  const names = await readdir(`/proc/${pid}/fd`);
  const targets = await Promise.all(names.map((name) => readlink(`/proc/${pid}/fd/${name}`).catch(() => 'gone')));
  const sockets = targets.filter((target) => target.startsWith('socket:')).length;
  return { sockets, others: targets.length - sockets };
}

async function countAll(site: Site, daemon: number): Promise<Counts> {
  const { house, dataFolder } = site;
  const fences = await Promise.all(site.namespaces.map(readFence));
  const sum = (read: (fence: FenceCounts) => number) => fences.reduce((total, fence) => total + read(fence), 0);
  const processes = await listProcesses();
  const ours = processes.filter(({ args }) => args.includes(house.runFolder) || args.includes(house.folder));
  const named = (name: string) => ours.filter(({ args }) => args.startsWith(name)).length;
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n');
  const isQemu = ({ args }: Process) => /^(?:qemu-|perl |setpriv )/.test(args);
  return {
    taps: sum(({ taps }) => taps),
    admitted: sum(({ admitted }) => admitted),
    gated: sum(({ gated }) => gated),
    fenceCounters: sum(({ counters }) => counters),
    runFolders: await countEntries(join(house.runFolder, 'vm')),
    exportFolders: await countEntries(join(house.runFolder, 'drives')),
    driveFolders: await countBelow(join(dataFolder, 'drives')),
    overlays: await countBelow(join(dataFolder, 'overlays')),
    qemus: named('qemu-system'),
    exportProcesses: named('qemu-storage-daemon'),
    children: processes.filter((each) => each.parent === daemon && !isQemu(each)).length,
    mounts: mounts.filter((line) => line.includes(house.runFolder)).length,
    scopes: await countScopes(),
    temporaryFiles: await countEntries(join(dataFolder, 'store', 'partial')),
  };
}

/** Processes with our folders among their arguments. */
export async function countOurProcesses({ house }: Site): Promise<number> {
  const isOurs = ({ args }: Process) => args.includes(house.runFolder) || args.includes(house.folder);
  return (await listProcesses()).filter(isOurs).length;
}

/** Taps in the kernel's sets of admitted ones. */
export async function readAdmittedTaps({ namespaces }: Site): Promise<ReadonlySet<string>> {
  const found = await Promise.all(
    namespaces.map(async (namespace) => {
      const argv = [...enterPrefix(namespace), 'nft', 'list', 'set', 'bridge', 'pratique', 'admitted'];
      return [...(await tryCommand(argv)).stdout.matchAll(/"([^"]+)"/g)].map(([, tap = '']) => tap);
    }),
  );
  return new Set(found.flat());
}

type FenceCounts = {
  readonly taps: number;
  readonly admitted: number;
  readonly gated: number;
  readonly counters: number;
};

async function readFence(namespace: Namespace): Promise<FenceCounts> {
  const enter = enterPrefix(namespace);
  const links = await runCommand([...enter, 'ip', '-br', 'link']);
  const listed = await tryCommand([...enter, 'nft', '-j', 'list', 'table', 'bridge', 'pratique']);
  // The cast holds: libnftables-json(5).
  const { nftables } = (listed.exitCode === 0 ? JSON.parse(listed.stdout) : { nftables: [] }) as {
    readonly nftables: readonly { readonly set?: { readonly name: string; readonly elem?: readonly unknown[] } }[];
  };
  const sizeOf = (name: RegExp) =>
    nftables.reduce(
      (sum, { set }) => sum + (set !== undefined && name.test(set.name) ? (set.elem?.length ?? 0) : 0),
      0,
    );
  return {
    taps: links.split('\n').filter((line) => OUR_TAP.test(line)).length,
    admitted: sizeOf(/^admitted$/),
    gated: sizeOf(/^gated$/),
    counters: sizeOf(/^dropped_/),
  };
}

type Process = { readonly pid: number; readonly parent: number; readonly args: string };

async function listProcesses(): Promise<readonly Process[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name));
  const found = await Promise.all(pids.map((pid) => readProcess(Number(pid)).catch(() => null)));
  return found.filter((each) => each !== null);
}

/** A zombie has no arguments and counts by its parent all the same. */
async function readProcess(pid: number): Promise<Process> {
  const [args, stat] = await Promise.all([
    readFile(`/proc/${pid}/cmdline`, 'utf8'),
    readFile(`/proc/${pid}/stat`, 'utf8'),
  ]);
  const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
  return { pid, parent, args: args.replaceAll('\0', ' ') };
}

async function countEntries(folder: string): Promise<number> {
  return (await readdir(folder).catch(() => [])).length;
}

/** What the folders in it hold, and they themselves where they hold nothing. */
async function countBelow(folder: string): Promise<number> {
  const names = await readdir(folder).catch(() => []);
  const sizes = await Promise.all(names.map((name) => countEntries(join(folder, name))));
  return sizes.reduce((sum, size) => sum + size, 0);
}

/** Scopes that outlive the daemon; without systemd there are none. */
async function countScopes(): Promise<number> {
  if (!existsSync('/run/systemd/system')) return 0;
  const argv = ['systemctl', 'list-units', '--type=scope', '--plain', '--no-legend', '--all', 'pratique-*'];
  return (await runCommand(argv)).split('\n').filter((line) => line !== '').length;
}
