// Tests of the commands about policies: what they print, what they ask the daemon, and what people are told that a VM goes without.
import assert from 'node:assert/strict';
import { after, before, beforeEach, test } from 'node:test';
import { type FakeDaemon, startFakeDaemon } from '../../test/fakes/daemon.ts';
import { SAMPLE_PLAN, vmId } from '../../test/fakes/service.ts';
import { makeOutput } from './output.ts';
import { runCommandLine } from './program.ts';
import { planText, whyText } from './vm-text.ts';

let daemon: FakeDaemon;
before(async () => {
  daemon = await startFakeDaemon();
});
beforeEach(() => daemon.reset());
after(async () => await daemon.close());

/** A terminal that keeps what it was told. */
function terminal() {
  const said = { stdout: '', stderr: '' };
  const stream = (name: keyof typeof said) => ({
    write: (text: string) => {
      said[name] += text;
    },
    isTTY: false,
    columns: 80,
    rows: 24,
  });
  return { said, stdout: stream('stdout'), stderr: stream('stderr'), env: daemon.env };
}

async function run(argv: readonly string[]) {
  const { said, ...streams } = terminal();
  const code = await runCommandLine(argv, { ...streams, uid: 1000, interrupted: () => new AbortController().signal });
  return { code, ...said };
}

test('vm policy shows every key with its value and where it comes from', async () => {
  const { stdout, code } = await run(['vm', 'policy', 'web']);
  assert.equal(code, 0);
  assert.match(stdout, /^web, in the group web\n/);
  assert.match(stdout, /install +security +group web\n/);
  assert.match(stdout, /holds +nginx +this VM\n/);
  assert.match(stdout, /leftOut +admit +the default\n/);
  assert.match(stdout, /metadataAge +24h +built in\n/);
  const document = JSON.parse((await run(['vm', 'policy', 'web', '--json'])).stdout);
  assert.deepEqual([document.from.install, document.policy.metadataAgeMaxMs], ['group', 86_400_000]);
});

test('vm set hands on what is set, given back and asked for, with the name of who asks; a wrong pair asks for nothing', async () => {
  assert.equal((await run(['vm', 'set', 'web', 'holds=jq,nginx', 'runDeadline=2h', 'overlay=', 'group='])).code, 0);
  const [{ args: [vm, change] = [] } = { args: [] }] = daemon.service().calls;
  assert.equal(vm, 'web');
  const { actor, ...rest } = change as Record<string, unknown>;
  assert.ok(typeof actor === 'string' && actor !== '');
  assert.deepEqual(rest, {
    set: { holds: ['jq', 'nginx'], runDeadlineMs: 7_200_000 },
    unset: ['overlay'],
    group: null,
  });
  const wrong = await run(['vm', 'set', 'web', 'instal=all']);
  assert.equal(wrong.code, 2);
  assert.match(wrong.stderr, /`instal` is no key of a policy; the nearest is `install`/);
  assert.equal(daemon.service().calls.length, 1);
});

test('a plan shows what it does without, and a reason the notes that belong to it', () => {
  const { said: _said, ...streams } = terminal();
  const output = makeOutput(streams, false);
  const left = {
    vendor: 'v',
    ecosystem: 'debian',
    product: 'nginx',
    version: '2',
    kind: 'security',
    why: 'held',
  } as const;
  const text = planText({ ...SAMPLE_PLAN, leftOut: [{ ...left, reason: 'it is held' }] }, output);
  assert.match(text, /\nLeft out: 1 version\n {2}debian\/nginx 2 \(security\) is left out: it is held/);
  assert.doesNotMatch(planText(SAMPLE_PLAN, output), /Left out/);
  const why = {
    vm: vmId('web'),
    isPlugged: true,
    state: 'connected',
    reason: 'r',
    next: 'n',
    remarks: ['x', 'y'],
  } as const;
  assert.equal(whyText([why]), 'web is connected: r\n  next: n\n  note: x\n  note: y');
});
