// The configuration of the scenario `configured`: an address and a file that nothing else gives the guest, and who asks for them.
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../../src/base/clock.ts';
import type { DemoNetwork } from './demo-network.ts';

/** Where the image alone would be: it sends from there all the time, so that a leak would be seen. */
export const STALE_ADDRESS = '10.77.0.99';
/** What the configured file says. */
const GREETING = 'configured by the host, before the cable was plugged in';

const PROBE_INTERVAL_MS = 2_000;
const ANSWER_TIMEOUT_MS = 90_000;

/** Writes what the host configures its VM with; returns the folder. */
export async function writeGuestConfiguration(
  folder: string,
  guest: { readonly vm: string; readonly mac: string; readonly address: string },
): Promise<string> {
  const guests = join(folder, 'guests');
  await mkdir(guests, { recursive: true, mode: 0o700 });
  const items = {
    name: { kind: 'hostname', hostname: `${guest.vm}.example.org` },
    lan: { kind: 'network', interfaces: [{ mac: guest.mac, addresses: [`${guest.address}/24`] }] },
    greeting: { kind: 'file', path: '/srv/www/greeting', content: `${GREETING}\n` },
  };
  await writeFile(join(guests, `vm-${guest.vm}.json`), JSON.stringify({ items }));
  return guests;
}

/** One question for the file at the address: when, and whether it was answered with the file. */
export type Probe = { readonly atMs: number; readonly isAnswered: boolean };

export type Probing = {
  /** Asks until there is an answer, if there is to be one, and ends. */
  readonly end: (isAnswerExpected: boolean) => Promise<readonly Probe[]>;
};

/** Asks from the bridge again and again: before the plug nobody may answer, and after it the same question is answered. */
export function startProbing(network: DemoNetwork, address: string, clock: Clock): Probing {
  const probes: Probe[] = [];
  const ending = new AbortController();
  const ask = async (): Promise<boolean> => {
    const atMs = clock.nowMs();
    const page = await network.fetchPage(`http://${address}/greeting`, 0);
    const isAnswered = page?.includes(GREETING) === true;
    probes.push({ atMs, isAnswered });
    return isAnswered;
  };
  const probing = (async () => {
    while (!ending.signal.aborted) {
      await ask();
      await clock.sleep(PROBE_INTERVAL_MS, ending.signal).catch(() => {});
    }
  })();
  return {
    end: async (isAnswerExpected) => {
      ending.abort();
      await probing;
      const until = clock.monotonicMs() + ANSWER_TIMEOUT_MS;
      while (isAnswerExpected && clock.monotonicMs() < until) if (await ask()) break;
      return probes;
    },
  };
}
