// Work that is done again and again until somebody ends it.
import type { Clock } from './clock.ts';
import { describeError } from './errors.ts';
import type { Log } from './log.ts';

export type IntervalOptions = {
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
  /** Milliseconds before the next time; asked before each, the first one too. */
  readonly waitMs: () => number;
  /** For people: `staging`. */
  readonly what: string;
  readonly work: () => Promise<void>;
};

/** Until the signal aborts; what fails is said and tried again the next time. */
export async function everyInterval({ clock, log, signal, waitMs, what, work }: IntervalOptions): Promise<void> {
  for (;;) {
    try {
      await clock.sleep(waitMs(), signal);
    } catch {
      return; // Only the abort ends a sleep.
    }
    try {
      await work();
    } catch (error) {
      if (!signal.aborted) log.error({ detail: describeError(error) }, `${what} failed`);
    }
  }
}
