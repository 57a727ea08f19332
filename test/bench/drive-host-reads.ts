// The drive read on the host by every way, with one reader for all of them: `qemu-img bench`.
import { readFile } from 'node:fs/promises';
import { systemClock } from '../../src/base/clock.ts';
import { runCommand } from '../../src/base/run-command.ts';
import {
  median,
  parseBenchSeconds,
  parseStatSeconds,
  type Readings,
  type ReadShape,
  type Sample,
  spreadStepBytes,
} from './drive-figures.ts';
import { type DriveSite, imageArguments, type Way } from './drive-site.ts';
import type { Say } from './gate-fleet.ts';

/** Milliseconds for one reading on a busy machine. */
const READ_TIMEOUT_MS = 120_000;
/** The reader's own start is measured so often, and taken off. */
const START_ROUNDS = 3;

/** Every shape by every way in turn, round after round, so that whatever else the machine does disturbs all alike. */
export async function readOnHost(
  site: DriveSite,
  options: { readonly shapes: readonly ReadShape[]; readonly rounds: number },
  say: Say,
): Promise<ReadonlyMap<ReadShape, Readings>> {
  const startSeconds = new Map<Way, number>();
  for (const way of site.ways) startSeconds.set(way, await startCost(way));
  const all = new Map(options.shapes.map((shape) => [shape, new Map<string, Sample[]>()] as const));
  for (let round = 0; round < options.rounds; round += 1) {
    for (const [shape, readings] of all) {
      for (const way of inTurn(site.ways, round)) {
        const samples = readings.get(way.name) ?? [];
        readings.set(way.name, samples);
        samples.push(
          await readOnce(way, shape, { sizeBytes: site.sizeBytes, startSeconds: startSeconds.get(way) ?? 0 }),
        );
      }
    }
    say(`drive: read on the host, round ${round + 1} of ${options.rounds}`);
  }
  return all;
}

/** The list from another beginning in each round: nobody is always the first, or always after the same neighbour's cache. */
export function inTurn<T>(list: readonly T[], round: number): readonly T[] {
  const start = round % Math.max(1, list.length);
  return [...list.slice(start), ...list.slice(0, start)];
}

async function readOnce(
  way: Way,
  shape: ReadShape,
  { sizeBytes, startSeconds }: { readonly sizeBytes: number; readonly startSeconds: number },
): Promise<Sample> {
  const before = await cpuSeconds(way);
  const seconds = parseBenchSeconds(await runBench(way, shape, sizeBytes));
  const spent = (await cpuSeconds(way)) - before - startSeconds;
  return { seconds, cpuSeconds: Math.max(0, spent) };
}

async function runBench(way: Way, shape: Omit<ReadShape, 'name'>, sizeBytes: number): Promise<string> {
  const { blockBytes, count, depth } = shape;
  const step = shape.isRandom ? spreadStepBytes(sizeBytes, blockBytes) : blockBytes;
  const what = ['-c', String(count), '-d', String(depth), '-s', String(blockBytes), '-S', String(step)];
  const argv = ['qemu-img', 'bench', '-U', '-t', 'writeback', ...what, ...imageArguments(way)];
  return await runCommand(argv, { purpose: `reading ${way.name}`, timeoutMs: READ_TIMEOUT_MS });
}

/** Processor time of starting the reader and opening the image. */
async function startCost(way: Way): Promise<number> {
  const one = { blockBytes: 4096, count: 1, depth: 1, isRandom: false };
  const costs: number[] = [];
  for (let round = 0; round < START_ROUNDS; round += 1) {
    const before = await cpuSeconds(way);
    await runBench(way, one, 2 ** 20);
    costs.push((await cpuSeconds(way)) - before);
  }
  return median(costs);
}

/** What the server and all children of ours that have ended used so far. The kernel counts it to the server a moment later. */
async function cpuSeconds({ serverPid }: Way): Promise<number> {
  await systemClock.sleep(2);
  const ours = parseStatSeconds(await readFile('/proc/self/stat', 'utf8')).children;
  if (serverPid === null) return ours;
  return ours + parseStatSeconds(await readFile(`/proc/${serverPid}/stat`, 'utf8')).own;
}
