// Every change of the kernel's set of admitted taps, as the kernel itself tells it, one transaction after the other.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { systemClock } from '../../src/base/clock.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import { enterPrefix } from '../../src/hypervisor/namespace.ts';
import type { Namespace } from '../../src/hypervisor/vm-spec.ts';
import type { Admission } from './openings.ts';

const PROGRAM = join(import.meta.dirname, 'watch-admitted.pl');
const READY_TIMEOUT_MS = 10_000;

export type FenceWatch = {
  readonly admissions: readonly Admission[];
  /** Why the record cannot be trusted; null when it is whole. */
  readonly trouble: () => string | null;
  readonly close: () => Promise<void>;
};

/** Takes the lines of watch-admitted.pl and writes down what each transaction came to: a tap that goes in and out in one never was in. */
export function makeFenceReader(write: (admission: Admission) => void) {
  const inside = new Set<string>();
  /** Whether a tap that this transaction speaks of was in before it. */
  const before = new Map<string, boolean>();
  let lastGeneration: number | null = null;
  let missed: string | null = null;
  const note = (tap: string): void => {
    if (!before.has(tap)) before.set(tap, inside.has(tap));
  };
  const commit = (generation: number, byPid: number, atMs: number): void => {
    if (lastGeneration !== null && generation !== lastGeneration + 1)
      missed = `after the kernel's transaction ${lastGeneration} came ${generation}`;
    lastGeneration = generation;
    for (const [tap, wasInside] of before)
      if (wasInside !== inside.has(tap)) write({ atMs, tap, isAdmitted: inside.has(tap), byPid });
    before.clear();
  };
  return {
    take: (line: string, atMs: number): void => {
      const [sign, what = '', pid] = line.split(' ');
      if (sign === '+' || sign === '-') note(what);
      if (sign === '+') inside.add(what);
      if (sign === '-') inside.delete(what);
      if (sign === '=') commit(Number(what), Number(pid), atMs);
      if (sign !== '0') return;
      for (const tap of inside) note(tap);
      inside.clear();
    },
    trouble: () => missed,
  };
}

/** Watches from now on. */
export async function watchFence(namespace: Namespace): Promise<FenceWatch> {
  const admissions: Admission[] = [];
  const reader = makeFenceReader((admission) => admissions.push(admission));
  const [program = 'perl', ...args] = [...enterPrefix(namespace), 'perl', PROGRAM];
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  let pending = '';
  let isListening = false;
  let hasEnded = false;
  child.stdout.setEncoding('utf8').on('data', (piece: string) => {
    const lines = (pending + piece).split('\n');
    pending = lines.pop() ?? '';
    const atMs = systemClock.nowMs();
    isListening ||= lines.includes('ready');
    for (const line of lines) reader.take(line, atMs);
  });
  child.once('exit', () => {
    hasEnded = true;
  });
  if (!(await waitUntil(async () => isListening || hasEnded, systemClock, READY_TIMEOUT_MS)) || hasEnded)
    throw new Error('nobody tells of changes of the fence');
  return {
    admissions,
    trouble: () => (hasEnded ? 'it ended before the soak did' : reader.trouble()),
    close: async () => {
      if (hasEnded) return;
      const ended = once(child, 'exit');
      child.kill('SIGTERM');
      await ended;
    },
  };
}
