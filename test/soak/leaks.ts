// The soak's judge of leaks. Pure: from what was counted in each calm, when every VM is plugged in and nothing is under way, and
// after everything was taken away, it says what is left that should not be, and what grows.

/** Counted at one moment. */
export type Sample = {
  /** Minutes since the soak began. */
  readonly atMinutes: number;
  /** Which daemon process it was, from 1. */
  readonly life: number;
  /** Of the daemon, after a garbage collection that we asked for. */
  readonly memory: { readonly residentMB: number; readonly residentMaxMB: number; readonly heapMB: number };
  readonly descriptors: { readonly sockets: number; readonly others: number };
  /** Resources that keep the daemon's event loop: timers and the like, by Node's own list, without sockets. */
  readonly resources: number;
  readonly found: Counts;
  /** What may be there by what was asked for. */
  readonly allowed: Counts;
};

/** Things on the host that come and go with VMs; each is one kind of leak. */
export type Counts = {
  /** Interfaces of our prefix. */
  readonly taps: number;
  readonly admitted: number;
  readonly gated: number;
  /** Counters of the fence for taps. */
  readonly fenceCounters: number;
  /** Sockets and records of VMs in the run folder. */
  readonly runFolders: number;
  readonly exportFolders: number;
  readonly driveFolders: number;
  readonly overlays: number;
  readonly qemus: number;
  readonly exportProcesses: number;
  /** Processes that the daemon started and did not end: nft and the like. */
  readonly children: number;
  readonly mounts: number;
  readonly scopes: number;
  /** Half-written files in the store. */
  readonly temporaryFiles: number;
};

/** None of anything. */
export const NO_COUNTS: Counts = {
  taps: 0,
  admitted: 0,
  gated: 0,
  fenceCounters: 0,
  runFolders: 0,
  exportFolders: 0,
  driveFolders: 0,
  overlays: 0,
  qemus: 0,
  exportProcesses: 0,
  children: 0,
  mounts: 0,
  scopes: 0,
  temporaryFiles: 0,
};

export type LeakLimits = {
  /** Calms of a daemon's life before anything counts: caches fill, code is compiled. */
  readonly warmUpCalms: number;
  /** Calms after that below which nothing can be said of growth. */
  readonly calmsMin: number;
  readonly heapGrowthMaxMB: number;
  readonly residentGrowthMaxMB: number;
  /** Descriptors and resources are whole things: more than a few is a leak. */
  readonly descriptorsGrowthMax: number;
};

export const LEAK_LIMITS: LeakLimits = {
  warmUpCalms: 3,
  calmsMin: 6,
  heapGrowthMaxMB: 5,
  residentGrowthMaxMB: 20,
  descriptorsGrowthMax: 4,
};

export type Leak = { readonly what: string; readonly text: string };

/** How one figure moved in the longest life of a daemon: between the middles of the first and of the last third after warm-up. */
export type Trend = { readonly what: string; readonly from: number; readonly to: number; readonly limit: number };

export type LeakVerdict = {
  readonly leaks: readonly Leak[];
  /** Empty when no daemon lived long enough. */
  readonly trends: readonly Trend[];
  /** What the trends rest on. */
  readonly basis: { readonly life: number; readonly calms: number; readonly minutes: number } | null;
};

/** Finds every leak in the samples of the calms, in the order of time, and in the one after all VMs were removed. */
export function judgeLeaks(samples: readonly Sample[], end: Sample, limits: LeakLimits = LEAK_LIMITS): LeakVerdict {
  const surplus = [...samples, end].flatMap(surplusOf);
  const lives = [...Map.groupBy(samples, ({ life }) => life).values()].map((life) => life.slice(limits.warmUpCalms));
  const longest = lives.reduce<readonly Sample[]>((best, life) => (life.length > best.length ? life : best), []);
  const [first, last] = [longest[0], longest.at(-1)];
  if (first === undefined || last === undefined || longest.length < limits.calmsMin)
    return { leaks: surplus, trends: [], basis: null };
  const trends = trendsOf(longest, limits);
  const growing = trends
    .filter(({ from, to, limit }) => to - from > limit)
    .map(({ what, from, to, limit }) => ({
      what,
      text: `${what} grew from ${from} to ${to} within ${longest.length} calms; at most ${limit} more is no leak`,
    }));
  const basis = { life: first.life, calms: longest.length, minutes: round(last.atMinutes - first.atMinutes) };
  return { leaks: [...surplus, ...growing], trends, basis };
}

function surplusOf({ atMinutes, found, allowed }: Sample): readonly Leak[] {
  // The cast holds: a mapped type's keys are these.
  return (Object.keys(found) as (keyof Counts)[])
    .filter((what) => found[what] > allowed[what])
    .map((what) => ({
      what,
      text: `minute ${round(atMinutes)}: ${found[what]} ${wordsOf(what)}, where ${allowed[what]} may be`,
    }));
}

const wordsOf = (what: string): string => what.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);

function trendsOf(samples: readonly Sample[], limits: LeakLimits): readonly Trend[] {
  const third = Math.max(1, Math.floor(samples.length / 3));
  const [head, tail] = [samples.slice(0, third), samples.slice(-third)];
  const trend = (what: string, limit: number, read: (sample: Sample) => number): Trend => ({
    what,
    from: median(head.map(read)),
    to: median(tail.map(read)),
    limit,
  });
  const few = limits.descriptorsGrowthMax;
  return [
    trend('heap (MB)', limits.heapGrowthMaxMB, ({ memory }) => memory.heapMB),
    trend('resident memory (MB)', limits.residentGrowthMaxMB, ({ memory }) => memory.residentMB),
    trend('sockets open', few, ({ descriptors }) => descriptors.sockets),
    trend('other descriptors open', few, ({ descriptors }) => descriptors.others),
    trend('timers and the like', few, ({ resources }) => resources),
  ];
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return round(sorted[Math.floor(sorted.length / 2)] ?? Number.NaN);
}

const round = (value: number): number => Math.round(value * 10) / 10;
