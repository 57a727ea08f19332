// A clock that stands still until it is told to move: timers fire in the order of their times, then of their making.
import type { Clock } from '../../src/base/clock.ts';

export type FakeClock = Clock & {
  /** Time of the next timer; null when there is none. */
  readonly nextMs: () => number | null;
  /** Moves on to a time and fires what is due by then, one timer after the other. */
  readonly moveTo: (ms: number) => void;
  readonly timers: () => number;
};

type Timer = { readonly atMs: number; readonly order: number; readonly callback: () => void };

/** A clock at a wall time; its monotonic time is the same. */
export function makeFakeClock(startMs = 1_700_000_000_000): FakeClock {
  let nowMs = startMs;
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
  const after: Clock['after'] = (durationMs, callback) => {
    made += 1;
    const timer: Timer = { atMs: nowMs + durationMs, order: made, callback };
    timers.add(timer);
    return () => timers.delete(timer);
  };
  return {
    nowMs: () => nowMs,
    monotonicMs: () => nowMs,
    after,
    sleep: (durationMs, signal) =>
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
      }),
    nextMs: () => next()?.atMs ?? null,
    moveTo: (ms) => {
      for (let timer = next(); timer !== null && timer.atMs <= ms; timer = next()) {
        timers.delete(timer);
        nowMs = Math.max(nowMs, timer.atMs);
        timer.callback();
      }
      nowMs = Math.max(nowMs, ms);
    },
    timers: () => timers.size,
  };
}
