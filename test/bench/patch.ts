// The bench `patch`: the same stale Debian guest and the same packages, from power-on to patched and on the network, by Pratique and by others.
import { chmod, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { freemem, loadavg } from 'node:os';
import { join } from 'node:path';
import { buildAgent } from '../../guest-agent/build.ts';
import { buildImage } from '../../images/images.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { probeAccelerator } from '../../src/hypervisor/qmp/accel.ts';
import type { VmId } from '../../src/model/ids.ts';
import { machineFacts, round, type Target, target, undoAll } from './gate-figures.ts';
import type { Say } from './gate-fleet.ts';
import { makeAptCacher } from './patch-cacher.ts';
import { type Fetched, startCountingMirror } from './patch-mirror.ts';
import { makePatchNetwork } from './patch-network.ts';
import { installPeers } from './patch-peers.ts';
import { makePratique } from './patch-pratique.ts';
import { type Method, NotMeasured, type Patched, type PatchSite, type Slot, secondsBetween } from './patch-site.ts';
import { makeVirtCustomize } from './patch-virt-customize.ts';

export type PatchOptions = {
  /** One guest in each way, nothing side by side. */
  readonly quick: boolean;
  readonly installPeers: boolean;
  /** Guests in a row and side by side. */
  readonly guests: number;
  /** Only these packages and what they need; empty: everything that is pending. */
  readonly packages: readonly string[];
  /** Names of the peers to measure. */
  readonly peers: readonly string[];
};

/** Bytes that one side-by-side guest of the hungriest way takes: libguestfs' appliance, then the VM. */
const MEMORY_PER_GUEST_BYTES = 1.5 * 2 ** 30;
/** The promise of the issue: this many times faster than virt-customize. */
const TIMES_FASTER = 5;

const PEERS = [() => makeVirtCustomize('online'), () => makeVirtCustomize('local'), makeAptCacher];

type Series = {
  readonly runs: readonly Patched[];
  readonly totalSeconds: number;
  readonly fetched: Fetched;
  /** Load average over a minute when it began: others on the machine make every figure worse. */
  readonly loadBefore: number;
};

type Measured = {
  readonly status: 'measured';
  readonly title: string;
  readonly settings: readonly string[];
  readonly prepare: { readonly seconds: number; readonly fetched: Fetched };
  /** The first guest of the host, and the median of all in the row. */
  readonly one: { readonly firstSeconds: number; readonly medianSeconds: number; readonly repetitions: number };
  readonly medianPhases: Readonly<Record<string, number>>;
  readonly inARow: Series;
  readonly sideBySide: (Series & { readonly atOnce: number }) | null;
};
type Unmeasured = { readonly status: 'not measured'; readonly reason: string; readonly next: string };
type Outcome = Measured | Unmeasured;

/** Runs every way after the other. Takes about 20 minutes with ten guests where guests are emulated and the machine is quiet. */
export async function run(options: PatchOptions, say: Say): Promise<object> {
  if (process.getuid?.() !== 0) throw new Error('the bench patch makes taps and needs root');
  if (options.installPeers) await installPeers(say);
  const machine = await machineFacts();
  const interrupted = new AbortController();
  const interrupt = () => interrupted.abort(new Error('interrupted; everything is cleaned up'));
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, interrupt);
  const undo: (() => Promise<unknown>)[] = [];
  try {
    const site = await makeSite(options, say, interrupted.signal, undo);
    const outcomes: Record<string, Outcome> = {};
    const peers = PEERS.map((make) => make()).filter(({ name }) => options.peers.includes(name));
    for (const method of [makePratique(), ...peers]) outcomes[method.name] = await measure(site, method, options);
    const document = conclude(site, options, outcomes);
    return { machine, ...document };
  } finally {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.off(signal, interrupt);
    await undoAll(undo);
  }
}

async function makeSite(
  options: PatchOptions,
  say: Say,
  signal: AbortSignal,
  undo: (() => Promise<unknown>)[],
): Promise<PatchSite> {
  const cacheFolder = defaultCacheFolder();
  await mkdir(cacheFolder, { recursive: true });
  say('building agent and Debian image (once; cached)');
  const agent = await buildAgent({ cacheFolder, log: silentLog });
  const image = await buildImage({ name: 'debian', agentPath: agent.path, cacheFolder, log: silentLog });
  const suite = image.debian?.suite;
  if (suite === undefined) throw new Error('the image does not say of which Debian release it is');
  const folder = await mkdtemp('/var/tmp/pqb-');
  undo.push(async () => await rm(folder, { recursive: true, force: true }));
  await chmod(folder, 0o711);
  const socketPath = join(folder, 'relay');
  const mirror = await startCountingMirror({ suite, socketPath });
  undo.push(mirror.close);
  const network = await makePatchNetwork({ folder, relaySocket: socketPath });
  undo.push(network.close);
  const accelerator = await probeAccelerator('qemu-system-x86_64', systemClock, silentLog);
  const wanted = options.packages;
  return { folder, image, suite, mirror, network, accelerator, signal, say, wanted, updates: [] };
}

/** One way: prepared once, then all guests in a row, then side by side. Without Pratique's list nothing can be compared: it throws. */
async function measure(site: PatchSite, method: Method, options: PatchOptions): Promise<Outcome> {
  site.say(`${method.name}: ${method.title}`);
  site.mirror.take();
  try {
    const startMs = systemClock.monotonicMs();
    await method.prepare(site);
    const prepare = { seconds: secondsBetween(startMs, systemClock.monotonicMs()), fetched: site.mirror.take() };
    site.say(`${method.name}: ready after ${prepare.seconds} s`);
    const count = options.quick ? 1 : options.guests;
    const inARow = await runSeries(site, method, { series: 'row', count, atOnce: 1 });
    const atOnce = Math.max(1, Math.min(count, Math.floor(freemem() / MEMORY_PER_GUEST_BYTES)));
    const sideBySide = options.quick
      ? null
      : { ...(await runSeries(site, method, { series: 'side', count, atOnce })), atOnce };
    return summarise(method, { prepare, inARow, sideBySide });
  } catch (error) {
    if (method.name === 'pratique' || site.signal.aborted) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    const next = error instanceof NotMeasured ? error.next : 'read the reason; the other figures stand';
    site.say(`${method.name}: NOT MEASURED: ${reason}; ${next}`);
    return { status: 'not measured', reason, next };
  } finally {
    await method.close();
  }
}

async function runSeries(
  site: PatchSite,
  method: Method,
  { series, count, atOnce }: { readonly series: string; readonly count: number; readonly atOnce: number },
): Promise<Series> {
  const loadBefore = round(loadavg()[0] ?? Number.NaN, 2);
  // The cast holds: words, a dash and digits are a VM's name.
  const slotOf = (index: number): Slot => ({ name: `${method.name}-${series}-${index}` as VmId, number: index });
  const queue = Array.from({ length: count }, (_, index) => slotOf(index + 1));
  const runs: Patched[] = [];
  const startMs = systemClock.monotonicMs();
  const worker = async (): Promise<void> => {
    for (let slot = queue.shift(); slot !== undefined; slot = queue.shift()) {
      site.signal.throwIfAborted();
      const patched = await method.patch(site, slot);
      runs.push(patched);
      site.say(`${slot.name}: ${patched.seconds} s ${JSON.stringify(patched.phases)}`);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  return {
    runs,
    totalSeconds: secondsBetween(startMs, systemClock.monotonicMs()),
    fetched: site.mirror.take(),
    loadBefore,
  };
}

function summarise(method: Method, series: Pick<Measured, 'prepare' | 'inARow' | 'sideBySide'>): Measured {
  const { runs } = series.inARow;
  const phases = new Set(runs.flatMap((each) => Object.keys(each.phases)));
  const medianPhases = Object.fromEntries(
    [...phases].map((phase) => [phase, median(runs.map((each) => each.phases[phase] ?? 0))]),
  );
  return {
    status: 'measured',
    title: method.title,
    settings: method.settings,
    one: {
      firstSeconds: runs[0]?.seconds ?? Number.NaN,
      medianSeconds: median(runs.map(({ seconds }) => seconds)),
      repetitions: runs.length,
    },
    medianPhases,
    ...series,
  };
}

function median(numbers: readonly number[]): number {
  const sorted = numbers.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  const [low, high] = [sorted[Math.ceil(middle) - 1] ?? Number.NaN, sorted[Math.floor(middle)] ?? Number.NaN];
  return round((low + high) / 2, 2);
}

/** Times of a peer as multiples of Pratique's. */
type Ratio = {
  readonly one: number;
  readonly first: number;
  readonly inARow: number;
  readonly sideBySide: number | null;
};

function ratioTo(pratique: Measured, peer: Measured): Ratio {
  const times = (of: number, to: number) => round(of / to, 2);
  return {
    one: times(peer.one.medianSeconds, pratique.one.medianSeconds),
    first: times(peer.one.firstSeconds, pratique.one.firstSeconds),
    inARow: times(peer.inARow.totalSeconds, pratique.inARow.totalSeconds),
    sideBySide:
      peer.sideBySide === null || pratique.sideBySide === null
        ? null
        : times(peer.sideBySide.totalSeconds, pratique.sideBySide.totalSeconds),
  };
}

function conclude(site: PatchSite, options: PatchOptions, methods: Readonly<Record<string, Outcome>>): object {
  const { pratique } = methods;
  if (pratique?.status !== 'measured') throw new Error('assertion failed: Pratique was measured');
  const ratios: Record<string, Ratio> = {};
  const targets: Target[] = [];
  for (const [name, outcome] of Object.entries(methods)) {
    if (outcome === pratique || outcome.status !== 'measured') continue;
    ratios[name] = ratioTo(pratique, outcome);
    if (name.startsWith('virt-customize')) targets.push(...targetsAgainst(name, pratique, outcome));
  }
  const series = [pratique.prepare, pratique.inARow, pratique.sideBySide].map((each) => each?.fetched);
  const transfers = series.reduce((sum, fetched) => sum + (fetched?.packageTransfers ?? 0), 0);
  const files = Math.max(...series.map((fetched) => fetched?.packageFiles ?? 0));
  targets.push(target('downloads per artifact, all guests of Pratique', 1, transfers / files));
  site.say(inWords(site, options, methods, ratios));
  return {
    options,
    guest: { image: site.image.name, digest: site.image.digest, memoryMiB: site.image.memoryMiB, cpus: 1 },
    packages: site.updates,
    methods,
    ratios,
    targets,
  };
}

function targetsAgainst(name: string, pratique: Measured, peer: Measured): readonly Target[] {
  const limit = (seconds: number) => round(seconds / TIMES_FASTER, 2);
  const words = `seconds, at most 1/${TIMES_FASTER} of ${name}`;
  return [
    target(`one guest, ${words}`, limit(peer.one.medianSeconds), pratique.one.medianSeconds),
    target(
      `${peer.inARow.runs.length} in a row, ${words}`,
      limit(peer.inARow.totalSeconds),
      pratique.inARow.totalSeconds,
    ),
  ];
}

function inWords(
  site: PatchSite,
  options: PatchOptions,
  methods: Readonly<Record<string, Outcome>>,
  ratios: Readonly<Record<string, Ratio>>,
): string {
  const lines = Object.entries(methods).map(([name, outcome]) => {
    if (outcome.status !== 'measured') return `  ${name}: not measured (${outcome.reason.split('\n')[0]})`;
    const { one, inARow, sideBySide, prepare } = outcome;
    const bytes = [prepare.fetched, inARow.fetched].reduce((sum, fetched) => sum + fetched.bytes, 0);
    const ratio = ratios[name];
    const times = ratio === undefined ? '' : `, ${ratio.one} times Pratique's`;
    const side =
      sideBySide === null ? '' : `; side by side (${sideBySide.atOnce} at once) ${sideBySide.totalSeconds} s`;
    const row = `${inARow.runs.length} in a row ${inARow.totalSeconds} s`;
    return `  ${name}: one guest ${one.medianSeconds} s${times}; ${row}${side}; ${round(bytes / 1e6)} MB fetched`;
  });
  const what = `${site.updates.length} packages, ${options.quick ? 'quick run' : `${options.guests} guests`}`;
  return [`power-on to patched and on the network (${what}, ${site.accelerator}):`, ...lines].join('\n');
}
