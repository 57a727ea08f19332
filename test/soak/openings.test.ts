// The soak's judge of openings finds each kind of wrong opening, and nothing in what is right.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeFenceReader } from './fence-watch.ts';
import { type Admission, judgeOpenings, type Recorded, type Seen } from './openings.ts';

const VM = 'web';
const TAP = 'vmtap0';
const SESSION = { run: 'a'.repeat(32), nonce: 'b'.repeat(32), boot: 'boot-1' };
const CONFIRM = { ...SESSION, vm: VM, atMs: 900, inventoryDigest: 'd1', isTruthful: true };

const opened = (seq: number, atMs: number, change: object = {}): Recorded => {
  const evidence = { vm: VM, ...SESSION, inventoryDigest: 'd1', ...change };
  return { seq, atMs, record: { kind: 'gate-opened', vm: VM, evidence } };
};
const closed = (seq: number, atMs: number): Recorded => ({ seq, atMs, record: { kind: 'gate-closed', vm: VM } });
const override = (seq: number, atMs: number, reason: string): Recorded => ({
  seq,
  atMs,
  record: { kind: 'override', vm: VM, reason },
});
const admitted = (atMs: number, tap = TAP): Admission => ({ atMs, tap, isAdmitted: true, byPid: 1 });

/** One right opening: confirmed, recorded, admitted, raised, and a frame after it. */
const RIGHT: Seen = {
  vmOfTap: new Map([[TAP, VM]]),
  admissions: [admitted(1_010), { ...admitted(5_000), isAdmitted: false }],
  raises: [{ atMs: 1_011, vm: VM }],
  confirms: [CONFIRM],
  watched: new Set([VM]),
  overrides: [],
  frames: [{ atMs: 1_500, vm: VM }],
  records: [closed(1, 100), opened(2, 1_000), closed(3, 5_001)],
};

const wrongIn = (change: Partial<Seen>): readonly string[] =>
  judgeOpenings({ ...RIGHT, ...change }).wrong.map(({ text }) => text);

test('an opening that was confirmed, recorded and then carried out is right [A11]', () => {
  assert.deepEqual(wrongIn({}), []);
  const { counts } = judgeOpenings(RIGHT);
  assert.deepEqual(counts, { admitted: 1, raised: 1, byEvidence: 1, byOverride: 0, frames: 1 });
});

test('what was read a moment late is no wrong opening, and each opening has a record of its own', () => {
  const again = { admissions: [admitted(1_010), admitted(6_500), admitted(6_510)], frames: [] };
  const records = [...RIGHT.records, opened(4, 5_900), closed(5, 6_000), opened(6, 6_505)];
  assert.deepEqual(wrongIn({ ...again, raises: [], records }), []);
});

test('an operator who asked for an override may open [A11]', () => {
  const asked = { overrides: [{ atMs: 990, vm: VM, reason: 'soak 7' }], confirms: [] };
  assert.deepEqual(
    wrongIn({ ...asked, records: [closed(1, 100), override(2, 1_000, 'soak 7'), closed(3, 5_001)] }),
    [],
  );
  assert.match(wrongIn({ ...asked, records: [override(2, 1_000, 'soak 8')] })[0] ?? '', /nobody asked for/);
});

const WRONG: readonly (readonly [string, Partial<Seen>, RegExp])[] = [
  [
    'a tap that is admitted without any record',
    { records: [], raises: [], frames: [] },
    /its tap was admitted without/,
  ],
  ['a tap that is admitted before its record', { admissions: [admitted(990)] }, /its tap was admitted without/],
  ['a tap that is admitted twice by one record', { admissions: [admitted(1_010), admitted(1_400)] }, /of its own/],
  ['a tap that is admitted long after its gate was closed', { admissions: [admitted(8_000)] }, /its tap was admitted/],
  ["a tap that is no VM's", { admissions: [admitted(1_010, 'eth9')] }, /eth9, which is no VM's/],
  ['a link that is raised without a record', { raises: [{ atMs: 500, vm: VM }] }, /its link was raised without/],
  ['a frame before the opening', { frames: [{ atMs: 950, vm: VM }] }, /1 of its frames reached the peer/],
  ['frames after the closing', { frames: [5_100, 5_200].map((atMs) => ({ atMs, vm: VM })) }, /2 of its frames/],
  ['a record without a confirmation', { confirms: [] }, /confirmed nothing in this session/],
  ['a record before its confirmation', { confirms: [{ ...CONFIRM, atMs: 1_100 }] }, /confirmed nothing/],
  ['a record by an earlier session', { confirms: [{ ...CONFIRM, nonce: 'c'.repeat(32) }] }, /confirmed nothing/],
  ['a record by another boot', { confirms: [{ ...CONFIRM, boot: 'boot-0' }] }, /confirmed nothing/],
  ['a record by another run', { confirms: [{ ...CONFIRM, run: 'f'.repeat(32) }] }, /confirmed nothing/],
  ['a record by a liar', { confirms: [{ ...CONFIRM, isTruthful: false }] }, /an agent that lied/],
  ['a record with another inventory', { confirms: [{ ...CONFIRM, inventoryDigest: 'd2' }] }, /another inventory/],
  ["a record with another VM's evidence", { records: [opened(2, 1_000, { vm: 'db' })] }, /the evidence of db/],
];
for (const [name, change, words] of WRONG) {
  test(`${name} is wrong [A11]`, () => {
    const found = wrongIn(change);
    assert.ok(
      found.some((text) => words.test(text)),
      found.join('; '),
    );
  });
}

test('a tap that goes in and out of the set within one transaction never was in it', () => {
  const seen: Admission[] = [];
  const reader = makeFenceReader((admission) => seen.push(admission));
  const take = (...lines: string[]) => {
    for (const line of lines) reader.take(line, 1);
  };
  take(
    'ready',
    '+ a',
    '- a',
    '= 2 10',
    '+ a',
    '+ b',
    '= 3 10',
    '- a',
    '+ a',
    '= 4 11',
    '0',
    '0',
    '= 5 12',
    '+ a',
    '= 6 10',
  );
  assert.deepEqual(
    seen.map(({ tap, isAdmitted, byPid }) => `${isAdmitted ? '+' : '-'}${tap} by ${byPid}`),
    ['+a by 10', '+b by 10', '-b by 12', '-a by 12', '+a by 10'],
  );
  assert.equal(reader.trouble(), null);
  take('= 8 10');
  assert.match(reader.trouble() ?? '', /transaction 6 came 8/);
});
