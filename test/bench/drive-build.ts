// How long a drive takes to build and how much memory, beside programs that copy the same files or build the same image.
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { systemClock } from '../../src/base/clock.ts';
import { runCommand } from '../../src/base/run-command.ts';

const FILE_COUNTS = [10, 1_000, 100_000];
/** Rounds of each measurement, alternating so that a busy machine disturbs all alike; the median round is reported. */
const ROUNDS = 5;
const STEP_TIMEOUT_MS = 300_000;

/** As the daemon starts itself: V8's young generation grows to 100 MB by default, whatever is live in it. */
const NODE_FLAGS = ['--max-semi-space-size=8'];

type Measured = {
  readonly wallMs: number;
  readonly cpuMs: number;
  /** The most memory resident: of the process before, and of the whole of it. */
  readonly residentBeforeMB: number;
  readonly residentMaxMB: number;
};

/** Small blobs only: a larger one is a link and costs nothing. */
type BuildFigures = {
  readonly files: number;
  /** Metadata and extent map alone. */
  readonly iso: Measured;
  /** The whole drive on disk: manifest, metadata, small blobs packed and their digests checked, descriptor. */
  readonly drive: Measured & { readonly metadataFileMB: number };
  /** Finding that drive already built. */
  readonly driveAgain: Measured;
  /** `cat` of the same files into one, and the image builder that copies: what the bytes cost without and with a format. */
  readonly peers: { readonly catWallMs: number; readonly genisoimageWallMs: number };
  /** Wall time of the drive by the peers' in the same rounds. */
  readonly ratios: { readonly toCat: number; readonly toGenisoimage: number };
};

type Say = (line: string) => void;

/** For each count of files, each step in a process of its own. */
export async function measureBuilds(say: Say): Promise<readonly BuildFigures[]> {
  const parent = await mkdtemp(join(tmpdir(), 'pratique-bench-drive-'));
  try {
    const builds: BuildFigures[] = [];
    for (const files of FILE_COUNTS) {
      say(`drive: building one of ${files} files, ${ROUNDS} times`);
      builds.push(await measureBuild(join(parent, String(files)), files));
    }
    return builds;
  } finally {
    await rm(parent, { recursive: true, force: true });
  }
}

async function measureBuild(folder: string, files: number): Promise<BuildFigures> {
  await mkdir(folder);
  await runPart('blobs', folder, files);
  const rounds: (Omit<BuildFigures, 'files' | 'peers' | 'ratios'> & BuildFigures['peers'])[] = [];
  for (let round = 0; round < ROUNDS; round += 1) {
    // The drive's folder is left for the step that finds it, and removed before the next round.
    const iso = await measurePart('iso', folder, files);
    const drive = await measurePart('drive', folder, files);
    const driveAgain = await measurePart('drive', folder, files);
    await rm(join(folder, 'drive'), { recursive: true });
    const catWallMs = await measureShell(folder, 'xargs cat <paths >copy', 'copy');
    const build = 'genisoimage -quiet -R -J -joliet-long -graft-points -path-list grafts -o peer.iso';
    const genisoimageWallMs = await measureShell(folder, build, 'peer.iso');
    rounds.push({ iso, drive, driveAgain, catWallMs, genisoimageWallMs });
  }
  const iso = median(rounds.map((round) => round.iso));
  const drive = median(rounds.map((round) => round.drive));
  const driveAgain = median(rounds.map((round) => round.driveAgain));
  const catWallMs = middle(rounds.map((round) => round.catWallMs));
  const genisoimageWallMs = middle(rounds.map((round) => round.genisoimageWallMs));
  const ratio = (peerMs: number) => Number((drive.wallMs / peerMs).toFixed(2));
  const ratios = { toCat: ratio(catWallMs), toGenisoimage: ratio(genisoimageWallMs) };
  return { files, iso, drive, driveAgain, peers: { catWallMs, genisoimageWallMs }, ratios };
}

async function runPart(task: string, folder: string, files: number): Promise<string> {
  const script = join(import.meta.dirname, 'drive-build-part.ts');
  return await runCommand([process.execPath, ...NODE_FLAGS, script, task, folder, String(files)], {
    timeoutMs: STEP_TIMEOUT_MS,
  });
}

async function measurePart(task: 'iso' | 'drive', folder: string, files: number): Promise<BuildFigures['drive']> {
  // The cast holds: the other file of this bench prints it; only a drive has a metadata file.
  return JSON.parse(await runPart(task, folder, files)) as BuildFigures['drive'];
}

/** Wall time of a shell command; the file that it makes is removed. */
async function measureShell(folder: string, command: string, makes: string): Promise<number> {
  const startMs = systemClock.monotonicMs();
  await runCommand(['sh', '-c', `cd "$1" && ${command}`, 'sh', folder], { timeoutMs: STEP_TIMEOUT_MS });
  const wallMs = Math.round(systemClock.monotonicMs() - startMs);
  await rm(join(folder, makes));
  return wallMs;
}

/** The round of the median wall time. */
function median<T extends Measured>(rounds: readonly T[]): T {
  const sorted = rounds.toSorted((a, b) => a.wallMs - b.wallMs);
  const found = sorted[Math.floor(sorted.length / 2)];
  if (found === undefined) throw new Error('nothing was measured');
  return found;
}

function middle(numbers: readonly number[]): number {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)] ?? Number.NaN;
}
