// A guest that finds its drive damaged: what the host does about it in the same run, and when it is enough.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DRIVE_DOUBTS_MAX } from '../base/limits.ts';
import { DEFAULT_POLICY } from '../model/policy.ts';
import type { RunEvent } from './event.ts';
import type { Outcome } from './outcome.ts';
import { grant, live, MANIFEST, offered, onTrial, SAMPLE_STEP, session } from './samples.ts';
import { isGateOpen, type RunState, type RunStateKind, runOf } from './state.ts';
import { transition } from './transition.ts';

const next = (state: RunState, event: RunEvent): Outcome =>
  transition({ step: SAMPLE_STEP, state }, event, DEFAULT_POLICY);

function movedTo(outcome: Outcome, kind: RunStateKind): RunState {
  assert(outcome.kind === 'moved', JSON.stringify(outcome));
  assert.equal(outcome.state.kind, kind);
  return outcome.state;
}

const effectsOf = (outcome: Outcome): readonly string[] =>
  outcome.kind === 'moved'
    ? outcome.effects.map((effect) => (effect.kind === 'send' ? `send ${effect.body.type}` : effect.kind))
    : [];

test('what a guest finds damaged on its drive is looked at, fetched anew and offered again in the same run [X4]', () => {
  const report = (code: string): RunEvent => ({
    kind: 'installed',
    session,
    manifestDigest: MANIFEST,
    results: [{ item: 'bundle/hello', outcome: 'failed', code, durationMs: 1 }],
    rebootRequired: false,
  });
  const refused: RunEvent = {
    kind: 'drive',
    session,
    state: 'refused',
    manifestDigest: MANIFEST,
    code: 'manifest-digest',
    detail: '',
  };
  const released: RunEvent = {
    kind: 'drive',
    session,
    state: 'released',
    manifestDigest: MANIFEST,
    code: '',
    detail: '',
  };
  const late: RunEvent = { kind: 'deadline', step: SAMPLE_STEP, waitedMs: 1 };
  for (const [run, complaint, letsGo] of [
    [offered, report('digest-mismatch'), released],
    [offered, refused, late],
    [live, report('drive-unreadable'), released],
    [onTrial, report('size-mismatch'), late],
  ] as const) {
    const before: RunState =
      complaint === refused
        ? { kind: 'offering', run, session, phase: 'offered' }
        : { kind: 'installing', run, session };
    const asked = next(before, complaint);
    const withdrawing = movedTo(asked, 'offering');
    assert.deepEqual(effectsOf(asked), ['send release']);
    assert.equal(next(withdrawing, report('digest-mismatch')).kind, 'denied', 'said once is enough');
    const mended = next(withdrawing, letsGo);
    // Nothing of the drive is touched while the guest has it, and nothing is fetched before the damaged copy is out of the way.
    assert.deepEqual(effectsOf(mended), ['detach-drive', 'verify-blobs', 'fetch-plan']);
    const planning = movedTo(mended, 'planning');
    assert.equal(runOf(planning)?.run, run.run, 'it is the same run');
    assert.equal(isGateOpen(planning), run === live, 'an update of a VM that is plugged in leaves it so');
    assert.ok(effectsOf(next(planning, { kind: 'fetched', step: SAMPLE_STEP })).includes('attach-drive'));
  }
  const other = next({ kind: 'installing', run: offered, session }, report('install-failed'));
  movedTo(other, 'quarantined');
  assert.ok(!effectsOf(other).includes('verify-blobs'), 'positive control: any other failure is the end of the run');
});

test('a guest that finds its drive damaged again and again is quarantined with what it says, and the copies are looked at for the next one [X4 X8]', () => {
  const report: RunEvent = {
    kind: 'installed',
    session,
    manifestDigest: MANIFEST,
    results: [{ item: 'bundle/hello', outcome: 'failed', code: 'digest-mismatch', durationMs: 1 }],
    rebootRequired: false,
  };
  let run = offered;
  for (let doubts = 1; doubts <= DRIVE_DOUBTS_MAX; doubts += 1) {
    const withdrawing = movedTo(next({ kind: 'installing', run, session }, report), 'offering');
    run = runOf(withdrawing) ?? run;
    assert.equal(run.doubts, doubts);
  }
  const outcome = next({ kind: 'installing', run, session }, report);
  const quarantined = movedTo(outcome, 'quarantined');
  assert.deepEqual(quarantined.kind === 'quarantined' && quarantined.reason, {
    kind: 'install-failed',
    item: 'bundle/hello',
    code: 'digest-mismatch',
    detail: '',
  });
  const effects = effectsOf(outcome);
  assert.ok(effects.indexOf('close-gate') >= 0 && effects.indexOf('close-gate') < effects.indexOf('verify-blobs'));
  const exhausted = { ...run, liveGrant: grant };
  const left = next({ kind: 'installing', run: exhausted, session }, report);
  movedTo(left, 'connected');
  assert.ok(effectsOf(left).includes('verify-blobs'));
});
