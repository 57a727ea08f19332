// Percentiles, targets, and what a reader must know of the machine to judge a figure.
import { access, constants, readFile } from 'node:fs/promises';
import { availableParallelism, cpus, loadavg, totalmem } from 'node:os';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { probeAccelerator } from '../../src/hypervisor/qmp/accel.ts';

export type Distribution = {
  readonly count: number;
  readonly minMs: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
};

export type Target = {
  readonly what: string;
  readonly limit: number;
  readonly measured: number;
  /** Measured to limit; at most 1 is met. Null where the limit is 0. */
  readonly ratio: number | null;
  readonly isMet: boolean;
};

export type MachineFacts = {
  readonly cpus: number;
  readonly cpuModel: string;
  readonly memoryGB: number;
  readonly accelerator: string;
  readonly node: string;
  readonly kernel: string;
  /** Load averages over 1, 5 and 15 minutes when the bench began: others on the machine make every figure worse. */
  readonly load: readonly number[];
};

/** p50 and p99 by nearest rank. */
export function distribution(samplesMs: readonly number[]): Distribution {
  const sorted = samplesMs.toSorted((a, b) => a - b);
  const rank = (share: number) => round(sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN);
  return { count: sorted.length, minMs: rank(0), p50Ms: rank(0.5), p99Ms: rank(0.99), maxMs: rank(1) };
}

/** A promise beside what was measured. */
export function target(what: string, limit: number, measured: number): Target {
  return { what, limit, measured, ratio: limit === 0 ? null : round(measured / limit, 3), isMet: measured <= limit };
}

/** Rounds to a number of decimals. */
export function round(value: number, decimals = 1): number {
  return Number(value.toFixed(decimals));
}

/** The facts, with the accelerator that managed VMs would really get. */
export async function machineFacts(): Promise<MachineFacts> {
  const release = await readFile('/proc/sys/kernel/osrelease', 'utf8');
  return {
    cpus: availableParallelism(),
    cpuModel: cpus()[0]?.model.trim() ?? 'unknown',
    memoryGB: Math.round(totalmem() / 2 ** 30),
    accelerator: await accelerator(),
    node: process.version,
    kernel: release.trim(),
    load: loadavg().map((value) => round(value, 2)),
  };
}

async function accelerator(): Promise<string> {
  const hasQemu = await access('/usr/bin/qemu-system-x86_64', constants.X_OK).then(
    () => true,
    () => false,
  );
  return hasQemu ? await probeAccelerator('qemu-system-x86_64', systemClock, silentLog) : 'no qemu';
}

/** Undoes everything, last first, whatever fails; the first failure is thrown at the end. */
export async function undoAll(undo: readonly (() => Promise<unknown>)[]): Promise<void> {
  const failures: unknown[] = [];
  for (const step of undo.toReversed()) await step().catch((error: unknown) => failures.push(error));
  if (failures.length > 0) throw failures[0];
}
