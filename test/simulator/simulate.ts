// Lives a seed, replays it with acts left out, and shrinks what broke to the acts that matter.
import { Life } from './life.ts';
import type { Mutation } from './mutations.ts';
import { makeSchedule, type Schedule } from './schedule.ts';
import { Broken, type Tally } from './world.ts';

export type SimOptions = {
  readonly seed: number;
  readonly steps?: number;
  readonly mutation?: Mutation;
  /** Numbers of the only steps whose acts are done; absent: all. */
  readonly only?: ReadonlySet<number>;
};

export type SimResult = Tally & {
  readonly seed: number;
  /** The invariant that was broken; null for a life that went well. */
  readonly broken: string | null;
  /** What happened last, oldest first. */
  readonly story: readonly string[];
  readonly steps: number;
  /** `fault, state` to how often the one met the other. */
  readonly coverage: ReadonlyMap<string, number>;
};

export const STEPS = 90;
const STORY_LINES_KEPT = 60;
/** Lives that a shrinking may take. */
const SHRINK_LIVES_MAX = 120;

/** Lives one life. Never throws for a broken invariant: that is in the result. */
export async function simulate(options: SimOptions): Promise<SimResult> {
  return await liveSchedule(options.seed, scheduleOf(options));
}

function scheduleOf({ seed, steps = STEPS, mutation, only }: SimOptions): Schedule {
  const { setup, steps: planned } = makeSchedule(seed, steps, mutation ?? null);
  if (only === undefined) return { setup, steps: planned };
  return { setup, steps: planned.map((step, index) => (only.has(index) ? step : { ...step, name: null })) };
}

async function liveSchedule(seed: number, schedule: Schedule): Promise<SimResult> {
  const life = new Life(schedule);
  let broken: string | null = null;
  try {
    await life.live();
  } catch (error) {
    if (!(error instanceof Broken)) throw error;
    broken = error.message;
  } finally {
    await life.end();
  }
  const { tally, story, coverage } = life.world;
  return { seed, broken, ...tally, story: story.slice(-STORY_LINES_KEPT), steps: life.steps, coverage };
}

/** A sentence without what differs from life to life. */
const kindOf = (broken: string): string => broken.replaceAll(/vm\d|\d+/g, '#');

export type Shrunk = { readonly result: SimResult; readonly only: ReadonlySet<number>; readonly lives: number };

/** Leaves out acts, large parts first and then one at a time, as long as the same invariant breaks. */
export async function shrink(options: SimOptions, broken: string): Promise<Shrunk> {
  const { steps } = makeSchedule(options.seed, options.steps ?? STEPS, options.mutation ?? null);
  let only: ReadonlySet<number> = new Set(steps.flatMap(({ name }, index) => (name === null ? [] : [index])));
  let best = await simulate({ ...options, only });
  let lives = 1;
  for (let size = Math.ceil(only.size / 2); size >= 1 && lives < SHRINK_LIVES_MAX; ) {
    const before = only.size;
    const numbers = [...only];
    for (let start = 0; start < numbers.length && lives < SHRINK_LIVES_MAX; start += size) {
      const part = new Set(numbers.slice(start, start + size));
      const fewer = new Set([...only].filter((each) => !part.has(each)));
      const result = await simulate({ ...options, only: fewer });
      lives += 1;
      if (result.broken === null || kindOf(result.broken) !== kindOf(broken)) continue;
      only = fewer;
      best = result;
    }
    if (size === 1 && only.size === before) break;
    size = size === 1 ? 1 : Math.ceil(size / 2);
  }
  return { result: best, only, lives };
}
