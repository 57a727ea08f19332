// Asks the configuration server for all VMs at intervals, so that a VM that is off has its document before it starts [A1].
import { randomInt } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { describeError } from '../base/errors.ts';
import { GUEST_CONFIG_FIRST_POLL_MS, GUEST_CONFIG_POLL_JITTER, GUEST_CONFIG_POLL_MS } from '../base/limits.ts';
import type { Log } from '../base/log.ts';
import type { ConfigServer } from './server.ts';

export type PollOptions = {
  readonly server: Pick<ConfigServer, 'refresh'>;
  readonly vms: () => readonly string[];
  readonly clock: Clock;
  readonly log: Log;
};

/** Begins soon, and goes on until `close`, which waits for the round that is under way. */
export function startPolling({ server, vms, clock, log }: PollOptions): { readonly close: () => Promise<void> } {
  const ending = new AbortController();
  const { signal } = ending;
  const works = (async () => {
    let waitMs = randomInt(GUEST_CONFIG_FIRST_POLL_MS);
    for (;;) {
      try {
        await clock.sleep(waitMs, signal);
      } catch {
        return; // Only the abort ends a sleep.
      }
      try {
        await server.refresh(vms(), signal);
      } catch (error) {
        if (!signal.aborted) log.error({ detail: describeError(error) }, 'asking the configuration server failed');
      }
      waitMs = jittered(GUEST_CONFIG_POLL_MS);
    }
  })();
  return {
    close: async () => {
      ending.abort();
      await works;
    },
  };
}

/** Hosts that were started together do not ask together for ever. */
function jittered(intervalMs: number): number {
  const spreadMs = Math.trunc(intervalMs * GUEST_CONFIG_POLL_JITTER);
  return intervalMs - spreadMs + randomInt(2 * spreadMs);
}
