// A clock that stands still until it is told to move: timers fire in the order of their times, then of their making.
import type { Clock } from '../../src/base/clock.ts';

/** The clock of one process: what it had planned ends with it. */
export type ProcessClock = Clock & { readonly kill: () => void; readonly timers: () => number };

export type FakeClock = Clock & {
  /** Monotonic time of the next timer; null when there is none. */
  readonly nextMs: () => number | null;
  /** Moves on to a monotonic time and fires what is due by then, one timer after the other. */
  readonly moveTo: (ms: number) => void;
  readonly timers: () => number;
  /** The wall time jumps; what is measured does not. */
  readonly jump: (ms: number) => void;
  readonly fork: () => ProcessClock;
};

type Timer = { readonly atMs: number; readonly order: number; readonly callback: () => void };

/** The wall time at which every life begins. */
export const START_MS = 1_700_000_000_000;

/** A clock whose monotonic time begins at 0. */
export function makeFakeClock(): FakeClock {
  let nowMs = 0;
  let offsetMs = START_MS;
  let made = 0;
  const timers = new Set<Timer>();
  const next = (): Timer | null => {
    let first: Timer | null = null;
    for (const timer of timers) {
      if (first === null || timer.atMs < first.atMs || (timer.atMs === first.atMs && timer.order < first.order))
        first = timer;
    }
    return first;
  };
  const fork = (): ProcessClock => {
    const mine = new Set<Timer>();
    let isDead = false;
    const after: Clock['after'] = (durationMs, callback) => {
      if (isDead) return () => {};
      made += 1;
      const fire = (): void => {
        mine.delete(timer);
        callback();
      };
      const timer: Timer = { atMs: nowMs + Math.max(0, durationMs), order: made, callback: fire };
      timers.add(timer);
      mine.add(timer);
      return () => {
        timers.delete(timer);
        mine.delete(timer);
      };
    };
    return {
      nowMs: () => nowMs + offsetMs,
      monotonicMs: () => nowMs,
      after,
      sleep: makeSleep(after),
      timers: () => mine.size,
      kill: () => {
        isDead = true;
        for (const timer of mine) timers.delete(timer);
        mine.clear();
      },
    };
  };
  return {
    ...fork(),
    fork,
    timers: () => timers.size,
    jump: (ms) => {
      offsetMs += ms;
    },
    nextMs: () => next()?.atMs ?? null,
    moveTo: (ms) => {
      for (let timer = next(); timer !== null && timer.atMs <= ms; timer = next()) {
        timers.delete(timer);
        nowMs = Math.max(nowMs, timer.atMs);
        timer.callback();
      }
      nowMs = Math.max(nowMs, ms);
    },
  };
}

function makeSleep(after: Clock['after']): Clock['sleep'] {
  return (durationMs, signal) =>
    new Promise((resolve, reject) => {
      if (signal?.aborted === true) return reject(signal.reason);
      const onAbort = (): void => {
        cancel();
        reject(signal?.reason);
      };
      const cancel = after(durationMs, () => {
        signal?.removeEventListener('abort', onAbort);
        resolve();
      });
      signal?.addEventListener('abort', onAbort, { once: true });
    });
}
