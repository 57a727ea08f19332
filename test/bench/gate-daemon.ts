// A real daemon in a process of its own, as `pratique serve` starts it, with its memory watched.
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { stringify } from 'smol-toml';
import { makeApiClient } from '../../proxy/api-client.ts';
import { socketPathOf } from '../../proxy/config.ts';
import type { Service } from '../../proxy/service.ts';
import { systemClock } from '../../src/base/clock.ts';

const MAIN = join(import.meta.dirname, '..', '..', 'proxy', 'main.ts');
/** Milliseconds until it must answer, on a busy machine. */
const START_TIMEOUT_MS = 60_000;
const LOG_TAIL_CHARS = 2_000;

export type BenchDaemon = {
  readonly service: Service;
  readonly logPath: string;
  /** The most memory it ever had resident: VmHWM of proc(5). */
  readonly residentMaxMB: () => Promise<number>;
  /** Processor time it used so far, in user and kernel mode. */
  readonly cpuMs: () => Promise<number>;
  readonly stop: () => Promise<void>;
};

/** Starts it over an empty folder and waits until it answers. `nodeFlags` go before the program: `--import`, `--cpu-prof`. */
export async function startBenchDaemon(options: {
  readonly folder: string;
  readonly configuration: Readonly<Record<string, unknown>>;
  readonly nodeFlags?: readonly string[];
  readonly env?: NodeJS.ProcessEnv;
}): Promise<BenchDaemon> {
  const { folder } = options;
  const runFolder = join(folder, 'run');
  const configPath = join(folder, 'pratique.toml');
  const logPath = join(folder, 'daemon.log');
  const configuration = { dataFolder: join(folder, 'data'), runFolder, logLevel: 'info', ...options.configuration };
  await writeFile(configPath, stringify(configuration));
  const log = openSync(logPath, 'a');
  const argv = [...(options.nodeFlags ?? []), MAIN, 'serve', '--config', configPath];
  const child = spawn(process.execPath, argv, { stdio: ['ignore', log, log], env: { ...process.env, ...options.env } });
  closeSync(log);
  const service = makeApiClient({ socketPath: socketPathOf(runFolder), clock: systemClock });
  const until = systemClock.monotonicMs() + START_TIMEOUT_MS;
  while (!(await answers(service))) {
    if (child.exitCode !== null || systemClock.monotonicMs() > until) {
      await end(child);
      throw new Error(`the daemon did not start: ${(await readFile(logPath, 'utf8')).slice(-LOG_TAIL_CHARS)}`);
    }
    await systemClock.sleep(50);
  }
  return {
    service,
    logPath,
    residentMaxMB: async () => {
      const status = await readFile(`/proc/${child.pid}/status`, 'utf8');
      return Math.round((Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1]) * 1024) / 1e6);
    },
    cpuMs: async () => {
      const stat = await readFile(`/proc/${child.pid}/stat`, 'utf8');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      return (Number(fields[11]) + Number(fields[12])) * 10; // utime and stime, in ticks of 10 ms (proc(5))
    },
    stop: () => end(child),
  };
}

async function answers(service: Service): Promise<boolean> {
  return await service.listVms().then(
    () => true,
    () => false,
  );
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  child.kill('SIGTERM');
  await ended;
}
