// What systemd is told: that the daemon is ready, that it is ending, and, where a watchdog watches it, that it still answers.
import type { Clock } from '../src/base/clock.ts';
import { describeError } from '../src/base/errors.ts';
import type { Log } from '../src/base/log.ts';
import { tryCommand } from '../src/base/run-command.ts';

export type Systemd = {
  readonly ready: () => Promise<void>;
  readonly stopping: () => Promise<void>;
};

export type SystemdOptions = {
  readonly env: NodeJS.ProcessEnv;
  readonly clock: Clock;
  readonly log: Log;
  /** Asked before each sign of life: a daemon that no longer answers is to be started again. */
  readonly answers: () => Promise<unknown>;
};

/** Speaks to systemd where it started us (sd_notify(3)), and to nobody elsewhere. */
export function openSystemd({ env, clock, log, answers }: SystemdOptions): Systemd {
  let cancel = (): void => {};
  let isStopping = false;
  const watch = (everyMs: number): void => {
    cancel = clock.after(everyMs, () => {
      void (async () => {
        try {
          await answers();
          if (!isStopping) await notify(env, 'WATCHDOG=1', log);
        } catch (error) {
          log.error({ detail: describeError(error) }, 'the daemon does not answer; systemd is given no sign of life');
        }
        if (!isStopping) watch(everyMs);
      })();
    });
  };
  return {
    ready: async () => {
      await notify(env, 'READY=1', log);
      const everyMs = watchdogMs(env);
      if (everyMs !== null) watch(everyMs);
    },
    stopping: async () => {
      isStopping = true;
      cancel();
      await notify(env, 'STOPPING=1', log);
    },
  };
}

/** Half of what sd_watchdog_enabled(3) allows; null: nobody watches us. */
function watchdogMs({ NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID }: NodeJS.ProcessEnv): number | null {
  if (NOTIFY_SOCKET === undefined || !/^[1-9][0-9]{0,15}$/.test(WATCHDOG_USEC ?? '')) return null;
  if (WATCHDOG_PID !== undefined && WATCHDOG_PID !== String(process.pid)) return null;
  return Math.max(1, Number(WATCHDOG_USEC) / 2000);
}

/** Node has no datagram sockets for the unix domain, so systemd's own program speaks for us; Debian 12's has no `--stopping`. */
async function notify(env: NodeJS.ProcessEnv, what: string, log: Log): Promise<void> {
  if (env.NOTIFY_SOCKET === undefined) return;
  try {
    const { exitCode, stderr } = await tryCommand(['systemd-notify', what, `--pid=${process.pid}`], { env });
    if (exitCode !== 0) log.warn({ stderr }, 'systemd was not told about our state');
  } catch (error) {
    log.warn({ detail: describeError(error) }, 'systemd was not told about our state');
  }
}
