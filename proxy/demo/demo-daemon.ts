// Starts, kills and restarts a real daemon process for the demonstration, with a configuration and folders of its own.
import { type ChildProcess, spawn } from 'node:child_process';
import { openSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { stringify } from 'smol-toml';
import type { Clock } from '../../src/base/clock.ts';
import { PratiqueError } from '../../src/base/errors.ts';
import { makeApiClient } from '../api-client.ts';
import { socketPathOf } from '../config.ts';
import type { Service } from '../service.ts';
import { waitUntil } from './demo-network.ts';

const MAIN = join(import.meta.dirname, '..', 'main.ts');
/** Milliseconds until a started daemon must answer. */
const START_TIMEOUT_MS = 30_000;

export type DemoDaemon = {
  readonly service: Service;
  readonly logPath: string;
  /** The process that runs now; null when none was started, or it was ended. */
  readonly pid: () => number | null;
  /** kill -9, as a crash would; the VM goes on. */
  readonly kill: () => Promise<void>;
  readonly start: () => Promise<void>;
  readonly stop: () => Promise<void>;
};

/** A daemon over the given folder; `configuration` is what its pratique.toml says. Not started yet. */
export async function makeDemoDaemon(options: {
  readonly folder: string;
  readonly runFolder: string;
  readonly configuration: Record<string, unknown>;
  readonly clock: Clock;
  /** Words for Node before the program. */
  readonly nodeFlags?: readonly string[];
}): Promise<DemoDaemon> {
  const { folder, runFolder, clock, nodeFlags = [] } = options;
  const configPath = join(folder, 'pratique.toml');
  const logPath = join(folder, 'daemon.log');
  await mkdir(runFolder, { recursive: true, mode: 0o711 });
  await writeFile(
    configPath,
    stringify({ dataFolder: join(folder, 'data'), runFolder, logLevel: 'info', ...options.configuration }),
  );
  const service = makeApiClient({ socketPath: socketPathOf(runFolder), clock });
  let child: ChildProcess | null = null;
  const end = async (signal: NodeJS.Signals): Promise<void> => {
    const ending = child;
    child = null;
    if (ending === null || ending.exitCode !== null || ending.signalCode !== null) return;
    const ended = new Promise<void>((resolve) => ending.once('exit', () => resolve()));
    ending.kill(signal);
    await ended;
  };
  return {
    service,
    logPath,
    pid: () => child?.pid ?? null,
    start: async () => {
      const log = openSync(logPath, 'a');
      // In a process group of its own: Ctrl-C is for the demonstration, which then stops VMs and daemon in order.
      const argv = [...nodeFlags, MAIN, 'serve', '--config', configPath];
      const started = spawn(process.execPath, argv, { stdio: ['ignore', log, log], detached: true });
      child = started;
      const isUp = await waitUntil(
        clock,
        START_TIMEOUT_MS,
        async () => started.exitCode !== null || (await answers(service)),
      );
      if (isUp && started.exitCode === null) return;
      throw new PratiqueError('host-fault/daemon', 'the daemon of the demonstration did not start', {
        next: `read ${logPath}`,
      });
    },
    kill: async () => await end('SIGKILL'),
    stop: async () => await end('SIGTERM'),
  };
}

async function answers(service: Service): Promise<boolean> {
  return await service.listVms().then(
    () => true,
    () => false,
  );
}
