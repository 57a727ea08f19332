// What a guest brings about that read something else from its drive than was announced: the drive is asked back, the host looks at
// its own copies, fetches damaged ones anew and shows a drive made anew, in the same run. Pure.
import { DRIVE_DOUBTS_MAX } from '../base/limits.ts';
import { isContentCode, type Trouble } from '../model/quarantine.ts';
import { moved, type Outcome } from './outcome.ts';
import { fail, sendRelease } from './quarantine.ts';
import type { Run, RunState } from './state.ts';

type Offered = Extract<RunState, { kind: 'offering' | 'installing' }>;
type Withdrawing = Extract<RunState, { kind: 'offering' }>;

/** The guest failed with this code. A few times in a run its word is a reason to look; after that it is what is wrong. */
export function failOrDoubt(state: Offered, code: string, reason: Trouble): Outcome {
  if (!isContentCode(code)) return fail(state, reason);
  const doubts = state.run.doubts ?? 0;
  if (doubts >= DRIVE_DOUBTS_MAX) return lookedAt(fail(state, reason));
  const run: Run = { ...state.run, doubts: doubts + 1 };
  return moved({ kind: 'offering', run, session: state.session, phase: 'withdrawing' }, sendRelease(run));
}

/** For whoever tries again: what is damaged is not offered once more. */
function lookedAt(outcome: Outcome): Outcome {
  if (outcome.kind !== 'moved') return outcome;
  return { ...outcome, effects: [...outcome.effects, { kind: 'verify-blobs' }] };
}

/** The guest let go of the drive, or had its time: it is taken away before anything of it is touched. */
export function mend({ run, session }: Withdrawing): Outcome {
  const planning: RunState = { kind: 'planning', run, session, phase: 'fetching' };
  return moved(planning, { kind: 'detach-drive' }, { kind: 'verify-blobs' }, { kind: 'fetch-plan' });
}
