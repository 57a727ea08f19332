// One runner per VM, its only writer: events queue up, each moves the journaled state, then the move's effects run.

import type { Clock } from '../base/clock.ts';
import { describeError, type ErrorCode, type ErrorOptions, PratiqueError } from '../base/errors.ts';
import {
  GATE_CLOSE_RETRY_MAX_MS,
  GATE_CLOSE_RETRY_MS,
  GUEST_NOTES_BURST_MAX,
  GUEST_NOTES_PER_SECOND_MAX,
  JOURNAL_RETRY_MS,
  RUNNER_QUEUE_MAX,
  STATE_DEADLINES_MS,
} from '../base/limits.ts';
import type { Log } from '../base/log.ts';
import { makeBucket } from '../guest/bucket.ts';
import type { VmId } from '../model/ids.ts';
import type { Policy } from '../model/policy.ts';
import type { Trouble } from '../model/quarantine.ts';
import type { Effect } from './effect.ts';
import type { AnswerEvent, RunEvent } from './event.ts';
import type { Journal, RunNote } from './journal.ts';
import type { Outcome } from './outcome.ts';
import { isGateOpen, isUnderWay, type Journaled, type Run, type RunState, runOf } from './state.ts';
import { transition } from './transition.ts';

export class RunError extends PratiqueError {
  /** What becomes of a run that fails by it, where that is not simply this host's failure. */
  readonly trouble: Trouble | undefined;

  constructor(code: ErrorCode, message: string, options: ErrorOptions & { readonly trouble?: Trouble } = {}) {
    super(code, message, options);
    this.trouble = options.trouble;
  }
}

/** An answer without its step; the runner adds the step of the move that asked. */
export type Answer = AnswerEvent extends infer E ? (E extends { step: number } ? Omit<E, 'step'> : never) : never;

/** Carries out one effect and returns its answer, or null if it has none. `signal` aborts when the run has moved on. */
export type PerformEffect = (effect: Effect, state: RunState, signal: AbortSignal) => Promise<Answer | null>;

/** Effects that were started before their turn, each with whether it went well. */
type Begun = ReadonlyMap<Effect, Promise<boolean>>;

/** What is worth nothing once the run has moved on; and an opening that came late would open behind a close. */
const ONLY_AT_ITS_STEP: ReadonlySet<Effect['kind']> = new Set([
  'open-gate',
  'judge',
  'make-plan',
  'fetch-plan',
  'begin-overlay',
  'attach-drive',
  'stage',
  'send',
]);

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
  let cancelRunDeadline: () => void = () => {};
  let isClosingLater = false;
  const ending = new AbortController();

  const allowance = makeBucket({
    capacity: GUEST_NOTES_BURST_MAX,
    refillPerSecond: GUEST_NOTES_PER_SECOND_MAX,
    monotonicMs: clock.monotonicMs,
  });

  const note: Runner['note'] = (kind, text, progress) => {
    // What a guest makes us write is bounded: each note is a row on the disk that all VMs share.
    if ((kind === 'guest' || kind === 'progress') && !allowance.take(1)) return;
    journal.note({
      vm,
      atMs: clock.nowMs(),
      kind,
      state: current.state.kind,
      text,
      ...(progress === undefined ? {} : { progress }),
    });
  };

  /**
   * How long the run has taken. The wall clock is asked once, for a run that an earlier daemon began; from then on the one that nobody
   * can set counts: a jump of years must not end every run under way.
   */
  let measured = { run: '', monotonicStartMs: 0 };
  const tookMsOf = ({ run, startedAtMs }: Run): number => {
    if (measured.run !== run) {
      const beforeMs = Math.max(0, clock.nowMs() - startedAtMs);
      measured = { run, monotonicStartMs: clock.monotonicMs() - beforeMs };
    }
    return clock.monotonicMs() - measured.monotonicStartMs;
  };

  /** Of the whole run, as its policy says at this moment; a wall clock that was set back lengthens no run beyond that. */
  const armRunDeadline = (): void => {
    cancelRunDeadline();
    const run = runOf(current.state);
    if (run === null || !isUnderWay(current.state)) return;
    const { runDeadlineMs } = options.policy();
    cancelRunDeadline = clock.after(Math.max(0, runDeadlineMs - tookMsOf(run)), () =>
      post({ kind: 'run-deadline', run: run.run, waitedMs: runDeadlineMs }),
    );
  };

  const armDeadline = (): void => {
    cancelDeadline();
    // A move whose state was being saved when everything ended: nobody is there to hear of a deadline.
    if (isClosed) return;
    armRunDeadline();
    const { kind } = current.state;
    const limitMs =
      options.deadlinesMs?.[kind] ??
      (kind in STATE_DEADLINES_MS ? STATE_DEADLINES_MS[kind as keyof typeof STATE_DEADLINES_MS] : undefined);
    if (limitMs === undefined) return;
    const { step } = current;
    cancelDeadline = clock.after(limitMs, () => post({ kind: 'deadline', step, waitedMs: limitMs }));
  };

  /**
   * Saves a state. What happened cannot be undone, so it is tried until the disk takes it; what an operator asks for is refused
   * instead. Closing does not wait for a disk: whatever is then in the journal, a gate that is closed is never wrong.
   */
  const save = async (next: Journaled, atMs: number, effects: readonly Effect[], mayRefuse: boolean): Promise<void> => {
    let isCloseDone = false;
    for (let isFirst = true; ; isFirst = false) {
      try {
        await journal.saveState(vm, next, atMs);
        return;
      } catch (error) {
        const close = findClose(effects) ?? findCloseInQueue();
        if (close !== undefined && !isCloseDone) isCloseDone = await runEffect(close, next, stepAbort.signal);
        if (mayRefuse || isClosed) throw error;
        if (isFirst) log.error({ vm, err: error }, 'a state could not be saved; it is tried again');
        await clock.sleep(JOURNAL_RETRY_MS, ending.signal);
      }
    }
  };

  const findClose = (effects: readonly Effect[]) => effects.find((effect) => effect.kind === 'close-gate');

  /** A close that an event asks for which waits behind one that cannot be saved. */
  const findCloseInQueue = (): Effect | undefined => {
    for (const { event } of queue) {
      const outcome = transition(current, event, options.policy());
      const close = outcome.kind === 'moved' ? findClose(outcome.effects) : undefined;
      if (close !== undefined) return close;
    }
    return undefined;
  };

  const move = async (
    state: RunState,
    effects: readonly Effect[],
    how: { readonly keepsStep: boolean; readonly mayRefuse: boolean },
  ): Promise<void> => {
    const { keepsStep } = how;
    const isOtherKind = state.kind !== current.state.kind;
    const next: Journaled = { step: keepsStep ? current.step : current.step + 1, state };
    const at = isOtherKind ? clock.nowMs() : since;
    // What happened has happened: a gate that it closes does not wait for the disk to take it.
    const early = how.mayRefuse ? null : beginClosing(effects, next, stepAbort.signal);
    await save(
      next,
      at,
      effects.filter((effect) => early?.has(effect) !== true),
      how.mayRefuse,
    );
    current = next;
    since = at;
    if (isOtherKind) note('state', state.kind === 'quarantined' ? `quarantined: ${state.reason.kind}` : state.kind);
    if (!keepsStep) {
      stepAbort.abort(new RunError('conflict/moved-on', `the run of ${vm} moved on`));
      stepAbort = new AbortController();
      armDeadline();
    }
    options.onMove?.(state);
    startEffects(effects, next, stepAbort.signal, early ?? beginClosing(effects, next, stepAbort.signal));
  };

  /** Starts the closings of a move that need no VM of the same move's making. */
  const beginClosing = (effects: readonly Effect[], at: Journaled, signal: AbortSignal): Begun => {
    const startsAt = effects.findIndex((effect) => effect.kind === 'start-vm' || effect.kind === 'hold-vm');
    const before = startsAt === -1 ? effects : effects.slice(0, startsAt);
    const closings = before.filter((effect) => effect.kind === 'close-gate');
    return new Map(closings.map((effect) => [effect, runEffect(effect, at, signal)]));
  };

  const startEffects = (effects: readonly Effect[], at: Journaled, signal: AbortSignal, closings: Begun): void => {
    if (effects.length === 0) return;
    // Closing never waits behind other work: it starts now, and the effects after it wait for it. Nor does ending the VM,
    // which may take a minute, and which nothing waits for.
    const begun = new Map(closings);
    for (const effect of effects) {
      if (effect.kind === 'stop-vm' && options.isRunning()) begun.set(effect, runEffect(effect, at, signal));
    }
    effectsChain = effectsChain.then(async () => {
      for (const effect of effects) {
        const running = begun.get(effect);
        if (effect.kind === 'stop-vm' && running !== undefined) continue;
        if (!(await (running ?? runEffect(effect, at, signal)))) return;
      }
    });
  };

  /** False when the effect failed, so that those after it must not run. */
  const runEffect = async (effect: Effect, at: Journaled, signal: AbortSignal): Promise<boolean> => {
    if (signal.aborted && ONLY_AT_ITS_STEP.has(effect.kind)) return true;
    try {
      const answer = await options.perform(effect, at.state, signal);
      // The cast holds: Answer is AnswerEvent without `step`, which is added here.
      if (answer !== null) post({ ...answer, step: at.step } as AnswerEvent);
      return answer?.kind !== 'found-ungated';
    } catch (error) {
      const detail = describeError(error);
      if (signal.aborted && ONLY_AT_ITS_STEP.has(effect.kind)) return false;
      log.warn({ vm, effect: effect.kind, detail }, 'an effect failed');
      if (effect.kind === 'close-gate') closeLater(effect, GATE_CLOSE_RETRY_MS);
      note('warning', `${effect.kind}: ${detail}`);
      const trouble = error instanceof RunError && error.trouble !== undefined ? { trouble: error.trouble } : {};
      const isRunning = options.isRunning();
      post({ kind: 'effect-failed', step: at.step, effect: effect.kind, detail, ...trouble, isRunning });
      return false;
    }
  };

  /**
   * A gate that could not be closed is closed again and again, until it is, or is meant to be open, or the VM has ended. However
   * many closings failed, one is tried again: they would stand in each other's way.
   */
  const closeLater = (effect: Effect, afterMs: number): void => {
    if (isClosingLater) return;
    isClosingLater = true;
    clock.after(afterMs, async () => {
      isClosingLater = false;
      const { state } = current;
      if (isClosed || !options.isRunning() || isGateOpen(state) || state.kind === 'opening') return;
      try {
        await options.perform(effect, state, ending.signal);
      } catch (error) {
        log.error({ vm, detail: describeError(error) }, 'the gate could not be closed again');
        closeLater(effect, Math.min(2 * afterMs, GATE_CLOSE_RETRY_MAX_MS));
      }
    });
  };

  const handle = async ({ event, answer }: Queued): Promise<void> => {
    const outcome = transition(current, event, options.policy());
    if (outcome.kind === 'moved') {
      const { state, effects, keepsStep } = outcome;
      await move(state, effects, { keepsStep, mayRefuse: answer !== undefined });
    } else log.debug({ vm, event: event.kind, state: current.state.kind, because: outcome.because }, outcome.kind);
    if (outcome.kind === 'denied' && answer === undefined)
      note('guest', `a ${event.kind} message was refused: ${outcome.because}`);
    answer?.(outcome);
  };

  const pump = async (): Promise<void> => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
      try {
        await handle(next);
      } catch (error) {
        // A bug, or a request that could not be saved: it is refused, and the state stands as it was.
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
    // A new session is never dropped: it may be a boot that nothing else announces. The channel bounds how many there are.
    if (queue.length >= RUNNER_QUEUE_MAX && 'session' in event && event.kind !== 'agent-opened') {
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
      // Nothing else moves meanwhile: what is queued is about the state that comes out of this.
      await pumping;
      isPumping = true;
      await move(state, effects, { keepsStep: false, mayRefuse: true }).finally(() => {
        pumping = pump();
      });
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
      cancelRunDeadline();
      const reason = new RunError('conflict/closing', 'the daemon is stopping');
      stepAbort.abort(reason);
      ending.abort(reason);
      await pumping;
      await effectsChain;
      if (isUnderWay(current.state))
        log.info({ vm, state: current.state.kind }, 'the run goes on when the daemon starts again');
    },
  };
}
