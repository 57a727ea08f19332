// Asks the configuration server for all VMs at intervals, so that a VM that is off has its document before it starts [A1].
import { randomInt } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { everyInterval } from '../base/interval.ts';
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
  let isFirst = true;
  const waitMs = (): number => {
    if (!isFirst) return jittered(GUEST_CONFIG_POLL_MS);
    isFirst = false;
    return randomInt(GUEST_CONFIG_FIRST_POLL_MS);
  };
  const what = 'asking the configuration server';
  const works = everyInterval({ clock, log, signal, waitMs, what, work: () => server.refresh(vms(), signal) });
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
