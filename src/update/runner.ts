// One runner per VM, its only writer: events queue up, each moves the journaled state, then the move's effects run.

import type { Clock } from '../base/clock.ts';
import { describeError, PratiqueError } from '../base/errors.ts';
import { RUNNER_QUEUE_MAX, STATE_DEADLINES_MS } from '../base/limits.ts';
import type { Log } from '../base/log.ts';
import type { VmId } from '../model/ids.ts';
import type { Policy } from '../model/policy.ts';
import type { Effect } from './effect.ts';
import type { AnswerEvent, RunEvent } from './event.ts';
import type { Journal, RunNote } from './journal.ts';
import { isUnderWay, type Journaled, type RunState } from './state.ts';
import { type Outcome, transition } from './transition.ts';

export class RunError extends PratiqueError {}

/** An answer without its step; the runner adds the step of the move that asked. */
export type Answer = AnswerEvent extends infer E ? (E extends { step: number } ? Omit<E, 'step'> : never) : never;

/** Carries out one effect and returns its answer, or null if it has none. `signal` aborts when the run has moved on. */
export type PerformEffect = (effect: Effect, state: RunState, signal: AbortSignal) => Promise<Answer | null>;

export type RunnerOptions = {
  readonly vm: VmId;
  readonly policy: () => Policy;
  readonly journal: Journal;
  readonly clock: Clock;
  readonly log: Log;
  readonly perform: PerformEffect;
  /** Whether the VM's process is there, for the answer to a failed effect. */
  readonly isRunning: () => boolean;
  readonly deadlinesMs?: Readonly<Partial<Record<RunState['kind'], number>>>;
  readonly onMove?: (state: RunState) => void;
};

export type Runner = {
  readonly state: () => RunState;
  readonly sinceMs: () => number;
  /** Queues an event from guest, hypervisor or clock. */
  readonly post: (event: RunEvent) => void;
  /** Queues an operator's request and resolves when it moved the run; throws RunError with the reason when it was denied. */
  readonly request: (event: RunEvent) => Promise<void>;
  /** Takes over a recovered state: saves it, then runs its effects. */
  readonly resume: (state: RunState, effects: readonly Effect[]) => Promise<void>;
  readonly note: (kind: RunNote['kind'], text: string, progress?: RunNote['progress']) => void;
  /** Resolves once the queue is empty and all effects have ended. */
  readonly settle: () => Promise<void>;
  /** Stops taking events and aborts what can be aborted. */
  readonly close: () => Promise<void>;
};

type Queued = {
  readonly event: RunEvent;
  readonly answer?: (outcome: Outcome) => void;
  readonly fail?: (error: unknown) => void;
};

/** Makes the runner of one VM from its journaled state. Nothing happens until an event or `resume` comes. */
export function makeRunner(options: RunnerOptions, journaled: Journaled, sinceMs: number): Runner {
  const { vm, journal, clock, log } = options;
  let current = journaled;
  let since = sinceMs;
  const queue: Queued[] = [];
  let isPumping = false;
  let isClosed = false;
  let pumping: Promise<void> = Promise.resolve();
  let effectsChain: Promise<void> = Promise.resolve();
  let stepAbort = new AbortController();
  let cancelDeadline: () => void = () => {};

  const note: Runner['note'] = (kind, text, progress) => {
    journal.note({
      vm,
      atMs: clock.nowMs(),
      kind,
      state: current.state.kind,
      text,
      ...(progress === undefined ? {} : { progress }),
    });
  };

  const armDeadline = (): void => {
    cancelDeadline();
    const { kind } = current.state;
    const limitMs =
      options.deadlinesMs?.[kind] ??
      (kind in STATE_DEADLINES_MS ? STATE_DEADLINES_MS[kind as keyof typeof STATE_DEADLINES_MS] : undefined);
    if (limitMs === undefined) return;
    const { step } = current;
    cancelDeadline = clock.after(limitMs, () => post({ kind: 'deadline', step, waitedMs: limitMs }));
  };

  const move = async (state: RunState, effects: readonly Effect[], keepsStep: boolean): Promise<void> => {
    const isOtherKind = state.kind !== current.state.kind;
    const next: Journaled = { step: keepsStep ? current.step : current.step + 1, state };
    const at = isOtherKind ? clock.nowMs() : since;
    await journal.saveState(vm, next, at);
    current = next;
    since = at;
    if (isOtherKind) note('state', state.kind === 'quarantined' ? `quarantined: ${state.reason.kind}` : state.kind);
    if (!keepsStep) {
      stepAbort.abort(new RunError('conflict/moved-on', `the run of ${vm} moved on`));
      stepAbort = new AbortController();
      armDeadline();
    }
    options.onMove?.(state);
    startEffects(effects, next, stepAbort.signal);
  };

  const startEffects = (effects: readonly Effect[], at: Journaled, signal: AbortSignal): void => {
    if (effects.length === 0) return;
    // Closing never waits behind other work: it starts now, and the effects after it wait for it.
    const closing = effects.map((effect) =>
      effect.kind === 'close-gate' && options.isRunning() ? runEffect(effect, at, signal) : null,
    );
    effectsChain = effectsChain.then(async () => {
      for (const [index, effect] of effects.entries()) {
        const isDone = await (closing[index] ?? runEffect(effect, at, signal));
        if (!isDone) return;
      }
    });
  };

  /** False when the effect failed, so that those after it must not run. */
  const runEffect = async (effect: Effect, at: Journaled, signal: AbortSignal): Promise<boolean> => {
    try {
      const answer = await options.perform(effect, at.state, signal);
      // The cast holds: Answer is AnswerEvent without `step`, which is added here.
      if (answer !== null) post({ ...answer, step: at.step } as AnswerEvent);
      return answer?.kind !== 'found-ungated';
    } catch (error) {
      if (signal.aborted) return false;
      const detail = describeError(error);
      log.warn({ vm, effect: effect.kind, detail }, 'an effect failed');
      note('warning', `${effect.kind}: ${detail}`);
      post({ kind: 'effect-failed', step: at.step, effect: effect.kind, detail, isRunning: options.isRunning() });
      return false;
    }
  };

  const handle = async ({ event, answer }: Queued): Promise<void> => {
    const outcome = transition(current, event, options.policy());
    if (outcome.kind === 'moved') await move(outcome.state, outcome.effects, outcome.keepsStep);
    else log.debug({ vm, event: event.kind, state: current.state.kind, because: outcome.because }, outcome.kind);
    if (outcome.kind === 'denied' && answer === undefined)
      note('guest', `a ${event.kind} message was refused: ${outcome.because}`);
    answer?.(outcome);
  };

  const pump = async (): Promise<void> => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      try {
        await handle(next);
      } catch (error) {
        // The journal could not be written: nothing was done. The state stands as it was, and the gate with it.
        log.error({ vm, err: error }, 'an event could not be handled');
        next.fail?.(error);
      }
    }
    isPumping = false;
  };

  const enqueue = (queued: Queued): void => {
    if (isClosed) {
      queued.fail?.(new RunError('conflict/closing', `the daemon is stopping; ${vm} takes no requests`));
      return;
    }
    queue.push(queued);
    if (isPumping) return;
    isPumping = true;
    pumping = pump();
  };

  const post = (event: RunEvent): void => {
    if (queue.length >= RUNNER_QUEUE_MAX && 'session' in event) {
      log.warn({ vm, event: event.kind }, 'a guest message was dropped: too many events wait');
      return;
    }
    enqueue({ event });
  };

  return {
    state: () => current.state,
    sinceMs: () => since,
    post,
    note,
    request: (event) =>
      new Promise((resolve, reject) => {
        const answer = (outcome: Outcome): void => {
          if (outcome.kind === 'moved') resolve();
          else
            reject(
              new RunError(
                `conflict/${outcome.kind === 'denied' ? outcome.code : 'ignored'}`,
                `${vm}: ${outcome.because}`,
              ),
            );
        };
        enqueue({ event, answer, fail: reject });
      }),
    resume: async (state, effects) => {
      await move(state, effects, false);
    },
    settle: async () => {
      for (let isQuiet = false; !isQuiet; ) {
        const [waitedPump, waitedChain] = [pumping, effectsChain];
        await waitedPump;
        await waitedChain;
        isQuiet = waitedPump === pumping && waitedChain === effectsChain && queue.length === 0;
      }
    },
    close: async () => {
      isClosed = true;
      queue.length = 0;
      cancelDeadline();
      stepAbort.abort(new RunError('conflict/closing', 'the daemon is stopping'));
      await pumping;
      await effectsChain;
      if (isUnderWay(current.state))
        log.info({ vm, state: current.state.kind }, 'the run goes on when the daemon starts again');
    },
  };
}
