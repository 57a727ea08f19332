// Starts a VM and follows its run by the daemon's event stream until it is connected or quarantined, through a crash of the daemon.
import type { Clock } from '../../src/base/clock.ts';
import { PratiqueError } from '../../src/base/errors.ts';
import type { VmId } from '../../src/model/ids.ts';
import type { RunStateName, VmEventRecord } from '../service.ts';
import type { DemoDaemon } from './demo-daemon.ts';

export type FollowedRun = {
  readonly state: 'connected' | 'quarantined';
  readonly events: readonly VmEventRecord[];
  /** Wall time of the start request. */
  readonly startedAtMs: number;
  readonly wasKilled: boolean;
};

export type FollowOptions = {
  readonly daemon: DemoDaemon;
  readonly vm: VmId;
  readonly clock: Clock;
  readonly timeoutMs: number;
  readonly killDaemonIn: RunStateName | null;
  readonly signal: AbortSignal;
  readonly onEvent: (event: VmEventRecord) => void;
};

/** Follows the run to its end. Throws `timeout/demo` when it does not end in time. */
export async function followRun(options: FollowOptions): Promise<FollowedRun> {
  const { daemon, vm, clock } = options;
  const events: VmEventRecord[] = [];
  const startedAtMs = clock.nowMs();
  await daemon.service.startVm(vm);
  let wasKilled = false;
  const until = clock.monotonicMs() + options.timeoutMs;
  while (clock.monotonicMs() < until) {
    if (options.signal.aborted)
      throw new PratiqueError('conflict/interrupted', 'the demonstration was interrupted; everything is cleaned up');
    const mayKill = options.killDaemonIn !== null && !wasKilled;
    const end = await followOnce(options, events, mayKill, until);
    if (end === 'killed') {
      wasKilled = true;
      await daemon.kill();
      await daemon.start();
    } else if (end !== 'lost') return { state: end, events, startedAtMs, wasKilled };
  }
  throw new PratiqueError('timeout/demo', `${vm} was neither connected nor quarantined after ${options.timeoutMs} ms`, {
    next: `read ${daemon.logPath}`,
  });
}

type End = 'connected' | 'quarantined' | 'killed' | 'lost';

/** One connection to the event stream; `lost` when it ended before the run did. */
async function followOnce(
  options: FollowOptions,
  events: VmEventRecord[],
  mayKill: boolean,
  untilMs: number,
): Promise<End> {
  const { daemon, vm, clock } = options;
  const abort = new AbortController();
  const stop = () => abort.abort();
  options.signal.addEventListener('abort', stop);
  const cancel = clock.after(Math.max(0, untilMs - clock.monotonicMs()), () => abort.abort());
  try {
    const afterSeq = events.at(-1)?.seq ?? 0;
    for await (const event of daemon.service.followEvents({ vm, afterSeq, signal: abort.signal })) {
      events.push(event);
      options.onEvent(event);
      if (event.kind !== 'state') continue;
      if (mayKill && event.state === options.killDaemonIn) return 'killed';
      if (event.state === 'connected' || event.state === 'quarantined') return event.state;
    }
    return 'lost';
  } catch (error) {
    if (abort.signal.aborted) return 'lost';
    throw error;
  } finally {
    cancel();
    options.signal.removeEventListener('abort', stop);
    abort.abort();
  }
}
