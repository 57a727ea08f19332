// The timeline of a run in the terminal: one line per state with its duration, and a bar for downloads and installs.
import type { Clock } from '../../src/base/clock.ts';
import { printable } from '../../src/base/printable.ts';
import type { RunStateName, VmEventRecord } from '../service.ts';
import { type Colour, hasColours, painted, type TextStream } from './output.ts';
import { cutTo } from './table.ts';
import { durationText, sizeText } from './text.ts';

export type TimelineStep = {
  readonly state: RunStateName;
  readonly startedMs: number;
  /** Null while the VM is in this state. */
  readonly endedMs: number | null;
  /** The last thing that was said in it. */
  readonly text: string;
};
export type Timeline = {
  readonly steps: readonly TimelineStep[];
  readonly progress: VmEventRecord['progress'] | null;
  /** What the last warning said; shown until the next state. */
  readonly warning: string | null;
};

export const EMPTY_TIMELINE: Timeline = { steps: [], progress: null, warning: null };

export type RenderOptions = {
  readonly nowMs: number;
  readonly columns: number;
  /** Lines at most; older states are left out. */
  readonly rows: number;
  readonly isColoured: boolean;
};

const STEPS_KEPT = 200;
const BAR_CHARS = 24;
const REDRAW_MS = 500;
/** In this phase `done` and `total` of a progress count bytes; in the others they count items. */
const BYTES_PHASE = 'download';
/** A run does not leave these by itself. */
const RESTING: readonly RunStateName[] = ['connected', 'quarantined', 'off', 'staged'];

/** The timeline after one more event. */
export function advanceTimeline(timeline: Timeline, event: VmEventRecord): Timeline {
  if (event.kind === 'progress') return { ...timeline, progress: event.progress ?? null };
  if (event.kind === 'warning') return { ...timeline, warning: event.text };
  if (event.kind === 'operator') return timeline;
  const text = saidBy(event);
  const last = timeline.steps.at(-1);
  if (last !== undefined && last.state === event.state && last.endedMs === null) {
    return text === '' ? timeline : { ...timeline, steps: [...timeline.steps.slice(0, -1), { ...last, text }] };
  }
  if (event.kind !== 'state') return timeline;
  const past = timeline.steps.map((step) => (step.endedMs === null ? { ...step, endedMs: event.atMs } : step));
  const step = { state: event.state, startedMs: event.atMs, endedMs: null, text };
  return { steps: [...past, step].slice(-STEPS_KEPT), progress: null, warning: null };
}

/** What an event says beyond its state's name. */
function saidBy({ kind, state, text }: VmEventRecord): string {
  if (kind === 'gate') return `gate ${text}`;
  return text === state ? '' : text;
}

/** The lines that show a timeline now. */
export function renderTimeline(timeline: Timeline, options: RenderOptions): readonly string[] {
  const shown = timeline.steps.slice(-Math.max(1, options.rows));
  return shown.map((step) => {
    const isCurrent = step.endedMs === null;
    const mark = markOf(step, isCurrent);
    const isResting = isCurrent && RESTING.includes(step.state);
    const duration = isResting ? '' : durationText((step.endedMs ?? options.nowMs) - step.startedMs);
    const doing = isCurrent && timeline.progress ? progressText(timeline.progress) : printable(step.text);
    const warning = isCurrent && timeline.warning !== null ? `! ${printable(timeline.warning)}` : '';
    const said = [doing, warning].filter((part) => part !== '').join('  ');
    const line = cutTo(
      `${mark.sign} ${step.state.padEnd(11)} ${duration.padStart(12)}  ${said}`.trimEnd(),
      options.columns,
    );
    return options.isColoured ? painted(mark.colour, line) : line;
  });
}

function markOf(step: TimelineStep, isCurrent: boolean): { readonly sign: string; readonly colour: Colour } {
  if (step.state === 'quarantined') return { sign: '✗', colour: 'red' };
  if (isCurrent && step.state === 'connected') return { sign: '✓', colour: 'green' };
  return isCurrent ? { sign: '▸', colour: 'bold' } : { sign: '✓', colour: 'dim' };
}

/** `[######------------------] 2/8 install shop`, or bytes while downloading. */
export function progressText(progress: NonNullable<VmEventRecord['progress']>): string {
  const total = Math.max(progress.total, progress.done, 1);
  const filled = Math.floor((Math.max(0, progress.done) / total) * BAR_CHARS);
  const bar = `[${'#'.repeat(filled)}${'-'.repeat(BAR_CHARS - filled)}]`;
  const isBytes = progress.phase === BYTES_PHASE;
  const amount = isBytes
    ? `${sizeText(progress.done)} of ${sizeText(progress.total)}`
    : `${progress.done}/${progress.total}`;
  return `${bar} ${amount} ${doingText(progress)}`;
}

/** `install shop`; one word where phase and item are the same, as for the download of a whole plan. */
function doingText({ phase, item }: NonNullable<VmEventRecord['progress']>): string {
  return phase === item ? printable(phase) : `${printable(phase)} ${printable(item)}`;
}

/** The event as one plain line for logs; null when it adds nothing to what was printed before. */
export function plainEventLine(before: Timeline, event: VmEventRecord): string | null {
  const last = before.steps.at(-1);
  if (event.kind === 'progress') {
    const isNew = event.progress?.item !== before.progress?.item || event.progress?.phase !== before.progress?.phase;
    if (!isNew || event.progress === undefined) return null;
    return `${printable(event.vm)}: ${event.state}: ${doingText(event.progress)}`;
  }
  const lasted =
    event.kind === 'state' && last !== undefined && last.endedMs === null && last.state !== event.state
      ? ` (${last.state} took ${durationText(event.atMs - last.startedMs)})`
      : '';
  const word = event.kind === 'state' ? event.state : `${event.state}: ${event.kind}`;
  const said = event.kind === 'state' ? saidBy(event) : event.text;
  return `${printable(event.vm)}: ${word}${said === '' ? '' : `: ${printable(said)}`}${lasted}`;
}

export type TimelinePrinter = {
  readonly push: (event: VmEventRecord) => void;
  /** Draws the last time and stops redrawing. */
  readonly end: () => void;
};

/** Shows a run while it happens: redrawn in place on a terminal, plain lines otherwise. */
export function makeTimelinePrinter(stream: TextStream, clock: Clock, env: NodeJS.ProcessEnv): TimelinePrinter {
  let timeline = EMPTY_TIMELINE;
  if (stream.isTTY !== true) {
    return {
      push: (event) => {
        const line = plainEventLine(timeline, event);
        timeline = advanceTimeline(timeline, event);
        if (line !== null) stream.write(`${line}\n`);
      },
      end: () => {},
    };
  }
  let drawn = 0;
  let cancel = (): void => {};
  const draw = (): void => {
    const lines = renderTimeline(timeline, {
      nowMs: clock.nowMs(),
      columns: (stream.columns ?? 80) - 1,
      rows: (stream.rows ?? 24) - 2,
      isColoured: hasColours(stream, env),
    });
    const back = drawn === 0 ? '' : `\u001b[${drawn}A\u001b[J`;
    stream.write(back + lines.map((line) => `${line}\n`).join(''));
    drawn = lines.length;
  };
  const tick = (): void => {
    draw();
    cancel = clock.after(REDRAW_MS, tick);
  };
  return {
    push: (event) => {
      timeline = advanceTimeline(timeline, event);
      cancel();
      tick();
    },
    end: () => {
      cancel();
      if (timeline.steps.length > 0) draw();
      // What is written after this stands below the last drawing; a later event starts a new one.
      timeline = EMPTY_TIMELINE;
      drawn = 0;
    },
  };
}
