// Loaded into the daemon with --import: on SIGUSR2 collects garbage and writes down what is left. The daemon itself is the one that ships.
import { openSync, renameSync, writeFileSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/** What is written, as one JSON document. */
export type Probed = {
  readonly pid: number;
  /** Counts up with each signal. */
  readonly turn: number;
  readonly heapBytes: number;
  /** Outside of the heap: buffers. */
  readonly externalBytes: number;
  readonly resources: Readonly<Record<string, number>>;
};

const path = process.env.PRATIQUE_SOAK_PROBE;
/** Only for the test of the soak itself: a daemon that loses descriptors and memory with each look. */
const isLeaking = process.env.PRATIQUE_SOAK_LEAK === '1';
const kept: unknown[] = [];
let turn = 0;

function probe(to: string, collectGarbage: () => void): void {
  if (isLeaking)
    kept.push(
      Array.from({ length: 3 }, () => openSync('/dev/null', 'r')),
      Array(400_000).fill(turn),
    );
  // The second finds what finalizers of the first let go of.
  collectGarbage();
  collectGarbage();
  turn += 1;
  const { heapUsed, external } = process.memoryUsage();
  const resources: Record<string, number> = {};
  for (const kind of process.getActiveResourcesInfo()) resources[kind] = (resources[kind] ?? 0) + 1;
  const probed: Probed = { pid: process.pid, turn, heapBytes: heapUsed, externalBytes: external, resources };
  writeFileSync(`${to}.new`, JSON.stringify(probed));
  renameSync(`${to}.new`, to);
}

if (path !== undefined) {
  setFlagsFromString('--expose-gc');
  const collectGarbage = runInNewContext('gc') as () => void; // The cast holds: the flag puts it there.
  process.on('SIGUSR2', () => probe(path, collectGarbage));
}
