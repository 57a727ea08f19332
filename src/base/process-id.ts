// Processes we started once and must recognise later: a pid counts only together with its start time.
import { readFile } from 'node:fs/promises';

export type ProcessId = {
  readonly pid: number;
  /** Field 22 of /proc/PID/stat (proc(5)), in clock ticks since boot. */
  readonly startTicks: number;
};

/** Parses `PID START` as launch.pl writes it; null when it is not that. */
export function parseProcessId(text: string): ProcessId | null {
  const match = /^(\d{1,10}) (\d{1,19})\n?$/.exec(text);
  return match === null ? null : { pid: Number(match[1]), startTicks: Number(match[2]) };
}

/** Whether exactly this process still runs; a zombie does not. */
export async function isAlive(process: ProcessId): Promise<boolean> {
  return (await processOf(process.pid))?.startTicks === process.startTicks;
}

/** The process that has this pid now; null when there is none, or only a zombie. */
export async function processOf(pid: number): Promise<ProcessId | null> {
  let stat: string;
  try {
    stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  } catch {
    return null;
  }
  // The name in field 2 may contain spaces and brackets; what follows its last bracket starts with field 3, the state.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return fields[0] === 'Z' || fields[0] === 'X' ? null : { pid, startTicks: Number(fields[19]) };
}

/** The id of this boot of the host; pids and start times repeat in the next one. */
export async function hostBootId(): Promise<string> {
  return (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim();
}
