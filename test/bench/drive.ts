// The bench `drive`: reading a drive on the host and in a guest by every way, building it, and how soon a guest can read it.
import { access, chmod, constants, mkdir, mkdtemp, rm } from 'node:fs/promises';
import { buildAgent } from '../../guest-agent/build.ts';
import { buildImage, type GuestImage } from '../../images/images.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { describeError } from '../../src/base/errors.ts';
import { silentLog } from '../../src/base/log.ts';
import { type AttachFigures, benchAttach } from './drive-attach.ts';
import { measureBuilds } from './drive-build.ts';
import { type Readings, type ReadShape, ratioOf, summarise, targetAtLeast, type WayFigures } from './drive-figures.ts';
import { startReadingGuest } from './drive-guest.ts';
import { readInGuest } from './drive-guest-reads.ts';
import { readOnHost } from './drive-host-reads.ts';
import { DRIVE_PEERS_LIST, type DriveSite, type LeftOut, makeDriveSite } from './drive-site.ts';
import { machineFacts, type Target, target, undoAll } from './gate-figures.ts';
import type { Say } from './gate-fleet.ts';
import { installPeers } from './patch-peers.ts';
import { NotMeasured } from './patch-site.ts';

export type DriveBenchOptions = { readonly quick: boolean; readonly installPeers: boolean };

/** How much is read, built and booted. */
export type Extent = {
  readonly blobs: number;
  readonly host: { readonly rounds: number; readonly shapes: readonly ReadShape[] };
  readonly guest: { readonly rounds: number; readonly shapes: readonly ReadShape[] };
  readonly attachRounds: number;
  readonly hasBuilds: boolean;
};

/** Short readings and many rounds: what disturbs the machine for a second then spoils one round and not the median. */
const WHOLE: Extent = {
  blobs: 240,
  host: { rounds: 9, shapes: readShapes({ sequential: 556, random: 5_000, randomDeep: 8_000 }) },
  guest: { rounds: 11, shapes: readShapes({ sequential: 139, random: 500, randomDeep: 1_000 }) },
  attachRounds: 7,
  hasBuilds: true,
};
const QUICK: Extent = {
  blobs: 40,
  host: { rounds: 3, shapes: readShapes({ sequential: 200, random: 2_000, randomDeep: 4_000 }) },
  guest: { rounds: 3, shapes: readShapes({ sequential: 40, random: 200, randomDeep: 400 }) },
  attachRounds: 1,
  hasBuilds: false,
};

type BuildFigures = Awaited<ReturnType<typeof measureBuilds>>[number];
const FILES_MANY = 100_000;

/** The three shapes of the issue, with so many requests each. */
export function readShapes(counts: Readonly<Record<ReadShape['name'], number>>): readonly ReadShape[] {
  return [
    { name: 'sequential', blockBytes: 2 ** 20, depth: 1, count: counts.sequential, isRandom: false },
    { name: 'random', blockBytes: 4096, depth: 1, count: counts.random, isRandom: true },
    { name: 'randomDeep', blockBytes: 4096, depth: 16, count: counts.randomDeep, isRandom: true },
  ];
}

/** What one place of reading came to. */
type ReadFigures = Readonly<Record<string, Readonly<Record<string, WayFigures>>>>;

/** Runs the parts one after the other, so that they do not disturb each other; what cannot be measured here is named. */
export async function run(options: DriveBenchOptions, say: Say): Promise<object> {
  if (options.installPeers) await installPeers(say, DRIVE_PEERS_LIST);
  const extent = options.quick ? QUICK : WHOLE;
  const machine = await machineFacts();
  const leftOut: LeftOut[] = [];
  const attempt = async <T>(what: string, work: () => Promise<T>): Promise<T | null> => {
    try {
      return await work();
    } catch (error) {
      const next = error instanceof NotMeasured ? error.next : 'see the reason';
      leftOut.push({ what, why: describeError(error), next });
      say(`drive: ${what}: left out: ${describeError(error)}`);
      return null;
    }
  };
  const image = await attempt('reading in the guest, attaching', async () => await makeImage(say));
  const targets: Target[] = [];
  const reads = await withDriveSite(extent.blobs, say, async (site) => {
    leftOut.push(...site.leftOut);
    const host = await readOnHost(site, extent.host, say);
    targets.push(...hostTargets(host));
    const guest =
      image === null
        ? null
        : await attempt('reading in the guest', async () => {
            return await benchGuest(site, { image, extent, accelerator: machine.accelerator }, say);
          });
    if (guest !== null) targets.push(...guestTargets(guest));
    const pageCache = 'warm: every way was read through once before';
    return { sizeBytes: site.sizeBytes, pageCache, host: figuresOf(host), guest: guest && figuresOf(guest) };
  });
  const attach = image && (await attempt('attaching', () => benchAttach(image, { rounds: extent.attachRounds }, say)));
  const builds = extent.hasBuilds ? await attempt('building', async () => await measureBuilds(say)) : null;
  if (!extent.hasBuilds) leftOut.push({ what: 'building', why: 'a quick run', next: 'run it without --quick' });
  targets.push(...buildTargets(builds), ...attachTargets(attach));
  say(describe({ reads, attach, targets, leftOut }));
  return { machine, reads, attach, builds, targets, leftOut };
}

async function makeImage(say: Say): Promise<GuestImage> {
  await access('/usr/bin/qemu-system-x86_64', constants.X_OK).catch(() => {
    throw new NotMeasured('there is no qemu-system-x86_64', 'run it on an x86-64 machine with QEMU');
  });
  const cacheFolder = defaultCacheFolder();
  await mkdir(cacheFolder, { recursive: true });
  say('drive: building agent and tiny image (once; cached)');
  const agent = await buildAgent({ cacheFolder, log: silentLog });
  return await buildImage({ name: 'tiny', agentPath: agent.path, cacheFolder, log: silentLog });
}

/** A drive with all ways to it, taken away again afterwards. */
export async function withDriveSite<T>(blobs: number, say: Say, work: (site: DriveSite) => Promise<T>): Promise<T> {
  // Sockets live below it, and their paths are short.
  const folder = await mkdtemp('/tmp/pqd-');
  await chmod(folder, 0o711);
  const undo: (() => Promise<unknown>)[] = [async () => await rm(folder, { recursive: true, force: true })];
  try {
    const site = await makeDriveSite({ folder, blobs, say });
    undo.push(site.close);
    return await work(site);
  } finally {
    await undoAll(undo);
  }
}

async function benchGuest(
  site: DriveSite,
  options: { readonly image: GuestImage; readonly extent: Extent; readonly accelerator: string },
  say: Say,
): Promise<ReadonlyMap<ReadShape, Readings>> {
  const { image, extent, accelerator } = options;
  const guest = await startReadingGuest({ site, image, accelerator });
  try {
    return await readInGuest(site, guest, extent.guest, say);
  } finally {
    await guest.close();
  }
}

function figuresOf(all: ReadonlyMap<ReadShape, Readings>): ReadFigures {
  return Object.fromEntries([...all].map(([shape, readings]) => [shape.name, summarise(shape, readings)]));
}

function hostTargets(all: ReadonlyMap<ReadShape, Readings>): readonly Target[] {
  return [...all].flatMap(([{ name }, readings]) => [
    ...compared(readings, { way: 'zero-copy', reference: 'nbdkit', limit: 1, where: `on the host, ${name}` }),
    ...compared(readings, { way: 'nbd', reference: 'qemu-nbd', limit: 0.9, where: `on the host, ${name}` }),
  ]);
}

function guestTargets(all: ReadonlyMap<ReadShape, Readings>): readonly Target[] {
  return [...all].flatMap(([{ name }, readings]) =>
    compared(readings, { way: 'zero-copy', reference: 'plain', limit: 0.97, where: `in the guest, ${name}` }),
  );
}

/** A promise about two ways, where both were read. */
function compared(
  readings: Readings,
  promise: { readonly way: string; readonly reference: string; readonly limit: number; readonly where: string },
): readonly Target[] {
  const { way, reference, limit, where } = promise;
  if (!readings.has(way) || !readings.has(reference)) return [];
  return [targetAtLeast(`${where}: ${way} of ${reference}`, limit, ratioOf(readings, way, reference))];
}

function buildTargets(builds: readonly BuildFigures[] | null): readonly Target[] {
  const many = builds?.find(({ files }) => files === FILES_MANY);
  if (many === undefined) return [];
  return [
    target(`a drive of ${FILES_MANY} files built, ms`, 2_000, many.drive.wallMs),
    target(`memory resident at most meanwhile, MB`, 300, many.drive.residentMaxMB),
  ];
}

function attachTargets(attach: AttachFigures | null): readonly Target[] {
  return attach === null ? [] : [target('attach to readable on the tiny guest, ms', 400, attach.attachToReadableMs)];
}

/** For people, on stderr. */
function describe(all: {
  readonly reads: { readonly host: ReadFigures; readonly guest: ReadFigures | null };
  readonly attach: AttachFigures | null;
  readonly targets: readonly Target[];
  readonly leftOut: readonly LeftOut[];
}): string {
  const { reads, attach, targets, leftOut } = all;
  return [
    ...table('on the host', reads.host),
    ...(reads.guest === null ? [] : table('in the guest', reads.guest)),
    ...(attach === null ? [] : [`attach: ${JSON.stringify(attach.steps)} ms`]),
    ...targets.map(
      ({ what, limit, measured, isMet }) => `${isMet ? 'met   ' : 'MISSED'} ${what}: ${measured} (${limit})`,
    ),
    ...leftOut.map(({ what, why, next }) => `left out: ${what}: ${why}; ${next}`),
  ].join('\n');
}

function table(title: string, figures: ReadFigures): readonly string[] {
  return Object.entries(figures).flatMap(([shape, ways]) => [
    `${title}, ${shape}:`,
    ...Object.entries(ways).map(([way, each]) => {
      const [lower, upper] = each.ofPlainQuartiles;
      const ratio = `${each.ofPlain} of plain (${lower}-${upper})`;
      return `  ${way.padEnd(10)} ${each.MBs} MB/s, ${each.microsecondsPerRequest} us each, ${each.cpuMicrosecondsPerMiB} us of processor per MiB, ${ratio}`;
    }),
  ]);
}
