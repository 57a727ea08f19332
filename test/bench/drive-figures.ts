// The sums of the drive bench: what qemu-img and the kernel print, medians, spreads, ratios between ways of reading in the same round.
import { round, type Target } from './gate-figures.ts';

/** What is read: blocks of one size, one after the other or spread over the drive, so many requests under way. */
export type ReadShape = {
  readonly name: 'sequential' | 'random' | 'randomDeep';
  readonly blockBytes: number;
  readonly depth: number;
  readonly count: number;
  readonly isRandom: boolean;
};

/** One reading by one way. */
export type Sample = {
  readonly seconds: number;
  /** Processor time of whoever reads and whoever serves, start of the reader not counted. */
  readonly cpuSeconds: number;
};

/** All readings of one shape: by way, in the order of the rounds. */
export type Readings = ReadonlyMap<string, readonly Sample[]>;

export type WayFigures = {
  /** Of the median reading. */
  readonly MBs: number;
  readonly requestsPerSecond: number;
  readonly microsecondsPerRequest: number;
  /** Slowest reading less fastest, of the median. */
  readonly spreadPercent: number;
  /** Processor time for each MiB, reader and server, over all rounds. */
  readonly cpuMicrosecondsPerMiB: number;
  /** Of the plain file's rate in the same round: the median of the rounds, and the middle half of them. */
  readonly ofPlain: number;
  readonly ofPlainQuartiles: readonly [number, number];
};

/** Multiplied with the number of a request, it spreads requests over all blocks: the golden ratio's part of one. */
const SPREAD = 0.618_033_988_75;

/** The middle value; the mean of both middle ones. */
export function median(numbers: readonly number[]): number {
  const sorted = numbers.toSorted((a, b) => a - b);
  const upper = sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
  const lower = sorted[Math.ceil(sorted.length / 2) - 1] ?? Number.NaN;
  return (lower + upper) / 2;
}

/** Seconds out of what `qemu-img bench` prints. Throws when it printed no time. */
export function parseBenchSeconds(printed: string): number {
  const seconds = Number(/^Run completed in ([0-9.]+) seconds\.$/m.exec(printed)?.[1] ?? Number.NaN);
  if (!(seconds > 0)) throw new Error(`qemu-img bench told no time: ${printed.slice(-200)}`);
  return seconds;
}

/** Seconds of processor time in a line of /proc/PID/stat (proc(5)): of the process, and of its children that have ended. */
export function parseStatSeconds(stat: string): { readonly own: number; readonly children: number } {
  // The second field is the name, in brackets, and may have brackets and spaces of its own.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const seconds = (index: number) => Number(fields[index] ?? Number.NaN) / 100; // In ticks of 10 ms.
  return { own: seconds(11) + seconds(12), children: seconds(13) + seconds(14) };
}

/** The answer of the reader inside the guest. Throws when it failed. */
export function parseGuestAnswer(line: string): { readonly seconds: number; readonly checksum: string } {
  const [, nanoseconds, checksum] = /^done (\d+) ([0-9a-f]+)$/.exec(line.trim()) ?? [];
  if (nanoseconds === undefined || checksum === undefined) throw new Error(`the guest's reader said: ${line.trim()}`);
  return { seconds: Number(nanoseconds) / 1e9, checksum };
}

/** Bytes from one request to the next so that they are spread over an image: whole blocks, with no small common period. */
export function spreadStepBytes(sizeBytes: number, blockBytes: number): number {
  const blocks = Math.floor(sizeBytes / blockBytes);
  let step = Math.max(1, Math.floor(blocks * SPREAD));
  while (greatestCommonDivisor(step, blocks) !== 1) step += 1;
  return step * blockBytes;
}

function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}

/** How much faster `way` is than `reference`, of each round; the median. */
export function ratioOf(readings: Readings, way: string, reference: string): number {
  return round(median(ratiosOf(readings, way, reference)), 3);
}

function ratiosOf(readings: Readings, way: string, reference: string): readonly number[] {
  const others = readings.get(reference) ?? [];
  return (readings.get(way) ?? []).flatMap((sample, index) => {
    const other = others[index];
    return other === undefined ? [] : [other.seconds / sample.seconds];
  });
}

/** The lower and the upper end of the middle half, by nearest rank. */
export function quartiles(numbers: readonly number[]): readonly [number, number] {
  const sorted = numbers.toSorted((a, b) => a - b);
  const rank = (share: number) => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;
  return [rank(0.25), rank(0.75)];
}

/** The figures of each way. */
export function summarise(shape: ReadShape, readings: Readings): Readonly<Record<string, WayFigures>> {
  const bytes = shape.blockBytes * shape.count;
  const entries = [...readings].map(([way, samples]) => {
    const seconds = samples.map((sample) => sample.seconds);
    const middle = median(seconds);
    const cpuSeconds = samples.reduce((sum, sample) => sum + sample.cpuSeconds, 0);
    const [lower, upper] = quartiles(ratiosOf(readings, way, 'plain'));
    const figures: WayFigures = {
      MBs: round(bytes / 1e6 / middle, 0),
      requestsPerSecond: round(shape.count / middle, 0),
      microsecondsPerRequest: round((middle * 1e6) / shape.count),
      spreadPercent: round((100 * (Math.max(...seconds) - Math.min(...seconds))) / middle, 0),
      cpuMicrosecondsPerMiB: round((cpuSeconds * 1e6) / ((bytes / 2 ** 20) * samples.length), 0),
      ofPlain: ratioOf(readings, way, 'plain'),
      ofPlainQuartiles: [round(lower, 3), round(upper, 3)],
    };
    return [way, figures] as const;
  });
  return Object.fromEntries(entries);
}

/** A promise of at least so much, beside what was measured. */
export function targetAtLeast(what: string, limit: number, measured: number): Target {
  return { what, limit, measured, ratio: round(measured / limit, 3), isMet: measured >= limit };
}
