// The fence is looked at again and again: what somebody else did to it is told to every VM that it concerns.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { silentLog } from '../src/base/log.ts';
import type { FenceState } from '../src/hypervisor/fence.ts';
import type { VmId } from '../src/model/ids.ts';
import type { RunEvent } from '../src/update/event.ts';
import { STATES } from '../src/update/samples.ts';
import { watchFences } from './maintenance.ts';

/** One VM in a namespace of its own, whose fence shows what is given; resolves with the events it was sent. */
async function watch(kind: 'connected' | 'installing', fence: FenceState | Error): Promise<readonly RunEvent[]> {
  const state = STATES.find((each) => each.kind === kind) ?? assert.fail(kind);
  const events: RunEvent[] = [];
  const run = {
    runner: { state: () => state, post: (event: RunEvent) => void events.push(event), settle: async () => {} },
    running: { namespace: { kind: 'named', name: 'n' } as const, taps: [{ name: 'pqa', nic: 'net0' }] },
  };
  await watchFences({
    clock: systemClock,
    log: silentLog,
    store: { collect: async () => assert.fail(), scrub: async () => assert.fail() },
    fenceFor: async () => ({
      verify: async () => {
        if (fence instanceof Error) throw fence;
        return fence;
      },
    }),
    runs: new Map([['web' as VmId, run]]), // "web" has the form of a VmId.
  });
  return events;
}

const kinds = (events: readonly RunEvent[]): readonly string[] => events.map(({ kind }) => kind);
const none: ReadonlySet<string> = new Set();

test('a fence as it was left concerns nobody', async () => {
  assert.deepEqual(kinds(await watch('connected', { fault: null, admitted: new Set(['pqa']), gated: none })), []);
  assert.deepEqual(kinds(await watch('installing', { fault: null, admitted: none, gated: none })), []);
});

test('rules that are gone concern every VM, open or gated [X1]', async () => {
  for (const kind of ['connected', 'installing'] as const) {
    assert.deepEqual(
      kinds(await watch(kind, { fault: 'no table', admitted: none, gated: none })),
      ['fence-changed'],
      kind,
    );
  }
});

test('a connected VM that is no longer admitted is not left cut off [X8]', async () => {
  assert.deepEqual(kinds(await watch('connected', { fault: null, admitted: none, gated: none })), ['fence-changed']);
});

test('a fence that cannot be read is said, and is no reason to stop looking', async () => {
  assert.deepEqual(kinds(await watch('connected', new Error('nft is gone'))), []);
});
