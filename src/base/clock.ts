// The only file that reads the time or sleeps. Everything else takes a Clock, so that tests and the simulator own time.
import { uptime } from 'node:os';
import { setTimeout as sleepFor } from 'node:timers/promises';

export type Clock = {
  /** Wall time in milliseconds since the epoch; may jump. For records and display. */
  readonly nowMs: () => number;
  /** Milliseconds that never go back, from an arbitrary start. For durations and deadlines. */
  readonly monotonicMs: () => number;
  /** Waits; rejects with the signal's reason when aborted. */
  readonly sleep: (durationMs: number, signal?: AbortSignal) => Promise<void>;
  /** Calls back once after the duration; the returned function cancels it. */
  readonly after: (durationMs: number, callback: () => void) => () => void;
  /** Milliseconds since the machine booted, also those it was suspended; absent: `monotonicMs` does. */
  readonly uptimeMs?: () => number;
  /** What trust decisions go by: never earlier than any time this host was sure of (trust-time.ts); absent: the wall time. */
  readonly trustedMs?: () => number;
};

/** The machine's own clock. Timers do not keep the process alive on their own. */
export const systemClock: Clock = {
  nowMs: () => Date.now(),
  monotonicMs: () => performance.now(),
  sleep: async (durationMs, signal) => {
    await sleepFor(durationMs, undefined, signal === undefined ? {} : { signal });
  },
  after: (durationMs, callback) => {
    const timer = setTimeout(callback, durationMs);
    timer.unref();
    return () => clearTimeout(timer);
  },
  uptimeMs: () => uptime() * 1000,
};

/** The time for a decision about trust: expiry, freshness, age. A wall clock that was set back gains nothing by it. */
export function trustedNowMs(clock: Pick<Clock, 'nowMs' | 'trustedMs'>): number {
  return clock.trustedMs?.() ?? clock.nowMs();
}

/** ISO 8601 in UTC of a wall time in milliseconds. */
export function isoTime(wallMs: number): string {
  return new Date(wallMs).toISOString();
}
