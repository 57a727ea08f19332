// The states and events of a run in every shape that matters: the transition table's test and the diagram in ARCHITECTURE.md use them.
import type { Digest } from '../base/digest-text.ts';
import type { AgentMessageOf } from '../guest/messages.ts';
import type { EvidenceFacts } from '../model/evidence.ts';
import type { RunId, VmId } from '../model/ids.ts';
import type { RunEvent } from './event.ts';
import { newRun } from './new-run.ts';
import type { Grant, Run, RunState } from './state.ts';

// The casts hold: these have the form that the brands promise.
export const SAMPLE_STEP = 5;
export const RUN = '0'.repeat(32) as RunId;
export const OTHER_RUN = '1'.repeat(32) as RunId;
export const PLAN = 'a'.repeat(64) as Digest;
export const MANIFEST = 'b'.repeat(64) as Digest;
/** What the plan of one item is about. */
export const VERSIONS = [{ item: 'i', version: '2' }] as const;
export const session = { nonce: 'c'.repeat(32), boot: '00000000-0000-0000-0000-000000000001' };
export const otherBoot = { nonce: 'd'.repeat(32), boot: '00000000-0000-0000-0000-000000000002' };
export const evidence: EvidenceFacts = {
  vm: 'vm1' as VmId,
  run: RUN,
  ...session,
  planDigest: PLAN,
  manifestDigests: [MANIFEST],
  inventoryDigest: PLAN,
  items: [],
  vendors: [],
  judgedAtMs: 1,
};
export const grant: Grant = { kind: 'evidence', evidence };
export const planned: Run = {
  ...newRun({ run: RUN, atMs: 1 }),
  plan: { digest: PLAN, itemCount: 1, sizeBytes: 10, versions: VERSIONS },
};
/** A run that has a plan of so many items and nothing more. */
export const newRunWithPlan = (itemCount: number): Run => ({
  ...newRun({ run: RUN, atMs: 1 }),
  plan: { digest: PLAN, itemCount, sizeBytes: itemCount, versions: VERSIONS.slice(0, itemCount) },
});
export const offered: Run = { ...planned, manifests: [MANIFEST], offersSent: 1 };
export const live: Run = { ...offered, liveGrant: grant };

/** On a disk overlay. */
export const onTrial: Run = { ...offered, isOnTrial: true };

/** Every state in each of its phases. */
export const STATES: readonly RunState[] = [
  { kind: 'off' },
  { kind: 'staged', itemCount: 1, sizeBytes: 10 },
  { kind: 'booting', run: newRun({ run: RUN, atMs: 1 }) },
  { kind: 'reporting', run: newRun({ run: RUN, atMs: 1 }), session },
  { kind: 'planning', run: newRun({ run: RUN, atMs: 1 }), session, phase: 'comparing' },
  { kind: 'planning', run: planned, session, phase: 'fetching' },
  { kind: 'offering', run: planned, session, phase: 'attaching' },
  { kind: 'offering', run: offered, session, phase: 'offered' },
  { kind: 'offering', run: offered, session, phase: 'withdrawing' },
  { kind: 'installing', run: offered, session },
  { kind: 'installing', run: live, session },
  { kind: 'installing', run: onTrial, session },
  { kind: 'rebooting', run: offered, session, phase: 'releasing' },
  { kind: 'rebooting', run: offered, session, phase: 'detaching' },
  { kind: 'rebooting', run: offered, session, phase: 'waiting' },
  { kind: 'judging', run: offered, session, phase: 'asking' },
  { kind: 'judging', run: offered, session, phase: 'weighing' },
  { kind: 'judging', run: onTrial, session, phase: 'weighing' },
  { kind: 'opening', run: offered, session, phase: 'releasing', grant },
  { kind: 'opening', run: offered, session, phase: 'detaching', grant },
  { kind: 'opening', run: offered, session, phase: 'plugging', grant },
  { kind: 'opening', run: onTrial, session, phase: 'detaching', grant },
  {
    kind: 'rolling-back',
    run: offered,
    reason: {
      kind: 'rolled-back',
      versions: VERSIONS,
      cause: { kind: 'install-failed', item: 'i', code: 'x', detail: 'y' },
    },
  },
  { kind: 'connected', run: offered, session, grant, trouble: null },
  { kind: 'connected', run: offered, session: null, grant, trouble: null },
  {
    kind: 'quarantined',
    run: offered,
    session,
    reason: { kind: 'agent-silent', waitedMs: 1, state: 'booting' },
    isRunning: true,
  },
  {
    kind: 'quarantined',
    run: offered,
    session: null,
    reason: { kind: 'host-failure', step: 'start-vm', detail: 'x' },
    isRunning: false,
  },
];

// The cast holds: the transition never looks into the confirmation, the judge does.
export const confirm = {} as AgentMessageOf<'confirm'>;
/** Every event; those that answer an effect answer step SAMPLE_STEP. */
export const EVENTS: readonly RunEvent[] = [
  { kind: 'start', run: OTHER_RUN, atMs: 2 },
  { kind: 'stop', force: false },
  { kind: 'retry', run: OTHER_RUN, atMs: 2 },
  { kind: 'admit', reason: 'r', actor: 'a' },
  { kind: 'update', run: OTHER_RUN, atMs: 2 },
  { kind: 'stage' },
  { kind: 'reset', isStopped: true, run: OTHER_RUN, atMs: 2 },
  { kind: 'reset', isStopped: false, run: OTHER_RUN, atMs: 2 },
  { kind: 'exited', detail: 'x', isGuestsWish: true },
  { kind: 'exited', detail: 'x', isGuestsWish: false },
  { kind: 'monitor-lost', detail: 'x' },
  { kind: 'disk-full' },
  { kind: 'drive-lost', reason: { kind: 'host-failure', step: 'drive-export', detail: 'd' } },
  { kind: 'fence-changed', detail: 'x', run: OTHER_RUN, atMs: 2 },
  { kind: 'agent-opened', session, run: OTHER_RUN, atMs: 2 },
  { kind: 'agent-opened', session: otherBoot, run: OTHER_RUN, atMs: 2 },
  { kind: 'inventory', session, rebootRequired: false },
  { kind: 'drive', session, state: 'verified', manifestDigest: MANIFEST, code: '', detail: '' },
  { kind: 'drive', session, state: 'refused', manifestDigest: MANIFEST, code: 'x', detail: 'y' },
  { kind: 'drive', session, state: 'released', manifestDigest: MANIFEST, code: '', detail: '' },
  { kind: 'installed', session, manifestDigest: MANIFEST, results: [], rebootRequired: false },
  { kind: 'installed', session, manifestDigest: MANIFEST, results: [], rebootRequired: true },
  {
    kind: 'installed',
    session,
    manifestDigest: MANIFEST,
    results: [{ item: 'i', outcome: 'failed', durationMs: 1 }],
    rebootRequired: false,
  },
  {
    kind: 'installed',
    session,
    manifestDigest: MANIFEST,
    results: [{ item: 'i', outcome: 'failed', code: 'digest-mismatch', durationMs: 1 }],
    rebootRequired: false,
  },
  { kind: 'confirm', session, confirm },
  { kind: 'confirm', session: otherBoot, confirm },
  { kind: 'misbehaved', code: 'x', detail: 'y' },
  {
    kind: 'planned',
    step: SAMPLE_STEP,
    plan: { digest: PLAN, itemCount: 0, sizeBytes: 0, versions: [] },
    rebootRequired: false,
  },
  {
    kind: 'planned',
    step: SAMPLE_STEP,
    plan: { digest: PLAN, itemCount: 1, sizeBytes: 1, versions: VERSIONS },
    rebootRequired: false,
  },
  { kind: 'plan-failed', step: SAMPLE_STEP, reason: { kind: 'vendor-unavailable', vendor: 'v', detail: 'd' } },
  { kind: 'found-ungated', step: SAMPLE_STEP, detail: 'x' },
  { kind: 'fetched', step: SAMPLE_STEP },
  { kind: 'staged', step: SAMPLE_STEP, itemCount: 1, sizeBytes: 1 },
  { kind: 'drive-attached', step: SAMPLE_STEP, manifestDigest: MANIFEST },
  { kind: 'config-changed', step: SAMPLE_STEP, run: OTHER_RUN, atMs: 9 },
  { kind: 'drive-detached', step: SAMPLE_STEP },
  { kind: 'judged', step: SAMPLE_STEP, evidence },
  { kind: 'judged-refused', step: SAMPLE_STEP, code: 'x', detail: 'y' },
  { kind: 'opened', step: SAMPLE_STEP },
  { kind: 'effect-failed', step: SAMPLE_STEP, effect: 'x', detail: 'y', isRunning: true },
  { kind: 'effect-failed', step: SAMPLE_STEP, effect: 'x', detail: 'y', isRunning: false },
  { kind: 'deadline', step: SAMPLE_STEP, waitedMs: 1 },
  { kind: 'run-deadline', run: RUN, waitedMs: 1 },
];
