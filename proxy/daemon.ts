// The daemon: one per data folder. Opens the host, serves it on the socket, tells systemd, and ends without losing anything.
import { mkdir, readFile, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { Clock } from '../src/base/clock.ts';
import { writeDurably } from '../src/base/durable-file.ts';
import { PratiqueError } from '../src/base/errors.ts';
import { API_DRAIN_MS } from '../src/base/limits.ts';
import type { Log } from '../src/base/log.ts';
import { breakGlassPage, breakGlassPath } from './break-glass.ts';
import { type Config, socketPathOf } from './config.ts';
import { listenOnSocket, makeHttpApi } from './http-api.ts';
import type { Service } from './service.ts';
import { openSystemd } from './systemd.ts';

export class DaemonError extends PratiqueError {}

export type DaemonOptions = {
  readonly config: Config;
  readonly log: Log;
  readonly clock: Clock;
  readonly env: NodeJS.ProcessEnv;
  readonly uid: number;
  readonly startHost: (options: {
    readonly config: Config;
    readonly log: Log;
    readonly clock: Clock;
  }) => Promise<{ readonly service: Service; readonly close: () => Promise<void> }>;
};

export type Daemon = { readonly socketPath: string; readonly close: () => Promise<void> };

/** sqlite3.h */
const SQLITE_BUSY = 5;

/** Starts the daemon. Throws DaemonError `conflict/daemon-running` when another one has the data folder or the socket. */
export async function startDaemon(options: DaemonOptions): Promise<Daemon> {
  const { config, log, clock, env, uid } = options;
  await makeFolder(config.dataFolder);
  await makeFolder(config.runFolder);
  const unlock = await lockFolder(config);
  const undo: (() => Promise<void>)[] = [async () => unlock()];
  try {
    const socketPath = socketPathOf(config.runFolder);
    await clearSocket(socketPath);
    await writeDurably(pidPath(config), `${process.pid}\n`, 0o644);
    undo.push(async () => await rm(pidPath(config), { force: true }));
    const host = await options.startHost({ config, log, clock });
    let endApi = async (): Promise<void> => {};
    undo.push(async () => await endApi());
    undo.push(host.close);
    const service = await withBreakGlassPage(host.service, config);
    const api = await makeHttpApi({ service, log, clock });
    await listenOnSocket(api, socketPath, uid);
    undo.push(async () => {
      // Nobody asks anything new; who waits for an answer gets it, or an error once the rooms are closed.
      const closing = api.close();
      endApi = async () => {
        api.server.closeAllConnections();
        await closing;
      };
      await settledWithin(clock, closing, API_DRAIN_MS);
    });
    const systemd = openSystemd({ env, clock, log, answers: () => service.listVms() });
    await systemd.ready();
    log.info({ socketPath, dataFolder: config.dataFolder }, 'the daemon is ready');
    return {
      socketPath,
      close: async () => {
        await systemd.stopping();
        await undoAll(undo);
        log.info('the daemon has ended; VMs go on as they are');
      },
    };
  } catch (error) {
    await undoAll(undo);
    throw error;
  }
}

/** Waits for the work, but not longer; its failure is the business of who waits to the end. */
async function settledWithin(clock: Clock, work: Promise<unknown>, limitMs: number): Promise<void> {
  const limit = Promise.withResolvers<void>();
  const cancel = clock.after(limitMs, limit.resolve);
  await Promise.race([work.catch(() => {}), limit.promise]);
  cancel();
}

/** Last opened, first closed; each one is tried, the first failure is thrown. */
async function undoAll(undo: readonly (() => Promise<void>)[]): Promise<void> {
  const failures: unknown[] = [];
  for (const step of [...undo].reverse()) await step().catch((error: unknown) => failures.push(error));
  if (failures.length > 0) throw failures[0];
}

function pidPath(config: Config): string {
  return join(config.runFolder, 'daemon.pid');
}

/**
 * An exclusive SQLite transaction is a file lock that the kernel drops when we die, however we die; Node has no flock of
 * its own.
 */
async function lockFolder(config: Config): Promise<() => void> {
  const path = join(config.dataFolder, 'daemon.lock');
  let lock: DatabaseSync | null = null;
  try {
    lock = new DatabaseSync(path);
    lock.exec('PRAGMA busy_timeout = 0; BEGIN EXCLUSIVE');
    const held = lock;
    return () => held.close();
  } catch (cause) {
    lock?.close();
    const isBusy = cause instanceof Error && 'errcode' in cause && cause.errcode === SQLITE_BUSY;
    if (!isBusy) {
      const next = 'check the permissions of the data folder and its free space';
      throw new DaemonError('host-unfit/lock', `locking ${path}`, { cause, next });
    }
    const pid = (await readFile(pidPath(config), 'utf8').catch(() => '')).trim();
    const who = /^\d+$/.test(pid) ? `process ${pid}` : 'another process';
    throw new DaemonError('conflict/daemon-running', `${who} already serves the data folder ${config.dataFolder}`, {
      next: 'use the daemon that runs, or stop it first',
    });
  }
}

/** Makes a folder that each QEMU's own user may reach its files through, without listing those of others: 0711. */
async function makeFolder(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true, mode: 0o711 });
  } catch (cause) {
    const next = 'give the daemon a folder that it may write';
    throw new DaemonError('host-unfit/folder', `making the folder ${path}`, { cause, next });
  }
}

/** Removes the socket a dead daemon left; refuses when somebody answers on it. */
async function clearSocket(socketPath: string): Promise<void> {
  const isAnswered = await new Promise<boolean>((resolve) => {
    const probe = connect(socketPath);
    probe.on('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.on('error', () => resolve(false));
  });
  if (isAnswered) {
    throw new DaemonError('conflict/daemon-running', `another daemon answers on ${socketPath}`, {
      next: 'use the daemon that runs, stop it, or configure another runFolder',
    });
  }
  await rm(socketPath, { force: true });
}

/** The service, which also keeps the page for the day on which this daemon does not start. */
async function withBreakGlassPage(service: Service, config: Config): Promise<Service> {
  const write = async (): Promise<void> => {
    const vms = await service.listVms();
    const specs = await Promise.all(vms.map(async ({ vm }) => (await service.showVm(vm)).spec));
    await writeDurably(breakGlassPath(config.dataFolder), breakGlassPage(specs, config.runFolder), 0o644);
  };
  const keep = oneAtATime(write);
  await keep();
  return {
    ...service,
    addVm: async (...given) => {
      const view = await service.addVm(...given);
      await keep();
      return view;
    },
    removeVm: async (vm) => {
      await service.removeVm(vm);
      await keep();
    },
  };
}

/** Whoever asks while the work is under way shares the one that begins after it: a fleet that is added at once costs a few. */
function oneAtATime(work: () => Promise<void>): () => Promise<void> {
  let last: Promise<void> = Promise.resolve();
  let next: Promise<void> | null = null;
  return () => {
    next ??= last
      .catch(() => {})
      .then(() => {
        next = null;
        last = work();
        return last;
      });
    return next;
  };
}
