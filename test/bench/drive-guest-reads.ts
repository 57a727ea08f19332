// The drive read inside one guest that sees it by every way at once, past its page cache.
import { readFile } from 'node:fs/promises';
import { systemClock } from '../../src/base/clock.ts';
import { parseStatSeconds, type Readings, type ReadShape, type Sample } from './drive-figures.ts';
import type { ReadingGuest } from './drive-guest.ts';
import { inTurn } from './drive-host-reads.ts';
import type { DriveSite, Way } from './drive-site.ts';
import type { Say } from './gate-fleet.ts';

/** Every shape by every way in turn, round after round. Throws when two ways give a guest different bytes. */
export async function readInGuest(
  site: DriveSite,
  guest: ReadingGuest,
  options: { readonly shapes: readonly ReadShape[]; readonly rounds: number },
  say: Say,
): Promise<ReadonlyMap<ReadShape, Readings>> {
  const all = new Map(options.shapes.map((shape) => [shape, new Map<string, Sample[]>()] as const));
  for (let round = 0; round < options.rounds; round += 1) {
    for (const [shape, readings] of all) {
      const checksums = new Map<string, string>();
      for (const way of inTurn(site.ways, round)) {
        const before = await cpuSeconds(guest, way);
        const { seconds, checksum } = await guest.read(way.name, shape, round + 1);
        const samples = readings.get(way.name) ?? [];
        readings.set(way.name, samples);
        samples.push({ seconds, cpuSeconds: (await cpuSeconds(guest, way)) - before });
        checksums.set(way.name, checksum);
      }
      checkAlike(shape, checksums);
    }
    say(`drive: read in the guest, round ${round + 1} of ${options.rounds}`);
  }
  return all;
}

function checkAlike(shape: ReadShape, checksums: ReadonlyMap<string, string>): void {
  if (new Set(checksums.values()).size === 1) return;
  throw new Error(`the guest read different bytes (${shape.name}): ${JSON.stringify([...checksums])}`);
}

/** What QEMU and the server used so far. */
async function cpuSeconds(guest: ReadingGuest, { serverPid }: Way): Promise<number> {
  await systemClock.sleep(2);
  let seconds = 0;
  for (const pid of [guest.pid, serverPid]) {
    if (pid !== null) seconds += parseStatSeconds(await readFile(`/proc/${pid}/stat`, 'utf8')).own;
  }
  return seconds;
}
