// Whatever was removed, changed, reordered, repeated or brought in from elsewhere is found, also in an export on another machine.
import assert from 'node:assert/strict';
import { cp } from 'node:fs/promises';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  forgeLine,
  type Kept,
  keep,
  makeAuditFolder,
  makeKeptChain,
  makeTestKey,
  openTestAudit,
  payloadOfLine,
  type TestKey,
  VM,
  verifyLines,
} from '../../test/fakes/audit-chain.ts';
import { digestOf } from '../base/digest.ts';
import { canonicalJson } from '../base/digest-text.ts';
import { firstFormatLine, firstFormatSigned } from './envelope.ts';
import { ZERO_HASH } from './record.ts';

const COUNT = 12;
/** Twelve records and two rotations. */
const LENGTH = 14;
const place = fc.nat(LENGTH - 1);

async function expectFound(
  kept: Pick<Kept, 'keys'> & Partial<Kept>,
  lines: readonly string[],
  why?: RegExp,
): Promise<void> {
  const { isIntact, trouble } = await verifyLines(lines, kept);
  assert.equal(isIntact, false, 'it was not found');
  assert.match(trouble ?? '', why ?? /./);
}

const without = (lines: readonly string[], index: number) => lines.filter((_, each) => each !== index);
const insert = (lines: readonly string[], index: number, line: string) => lines.toSpliced(index, 0, line);

test('any removed, repeated, swapped or foreign record of an export is found; the whole one passes [X2]', async (t) => {
  const kept = await makeKeptChain(t, { count: COUNT, rotateAfter: [4, 8] });
  const { lines, keys } = kept;
  const bare = { lines, keys };
  const foreign = (await makeKeptChain(t, { count: COUNT, rotateAfter: [4, 8] })).lines;
  assert.equal(lines.length, LENGTH);
  assert.deepEqual(await verifyLines(lines, kept), {
    isIntact: true,
    records: LENGTH,
    head: digestOf(lines.at(-1) ?? ''),
    trouble: null,
  });
  // Only a checkpoint tells that the last one is gone.
  for (let index = 0; index < LENGTH - 1; index += 1) await expectFound(bare, without(lines, index));
  const at = (index: number): string => lines[index] ?? assert.fail();
  await fc.assert(
    fc.asyncProperty(place, place, async (from, to) => {
      await expectFound(bare, insert(lines, to, at(from)));
      if (from !== to) await expectFound(bare, lines.with(from, at(to)).with(to, at(from)));
      if (from !== to) await expectFound(bare, lines.with(from, at(to)));
      await expectFound(bare, lines.with(from, foreign[from] ?? ''));
      await expectFound(bare, insert(lines, to, foreign[from] ?? ''));
      await expectFound(kept, lines.slice(0, to));
    }),
    { numRuns: 60 },
  );
  await expectFound(bare, foreign, /record 1 was changed or is not signed/);
  await expectFound(bare, [...lines, ...foreign.slice(LENGTH - 1)]);
});

test('any changed character of an export is found, in every line and field [X2]', async (t) => {
  const { lines, keys } = await makeKeptChain(t, { count: COUNT, rotateAfter: [4, 8] });
  const kept = { lines, keys };
  await fc.assert(
    fc.asyncProperty(
      place,
      fc.nat(),
      fc.constantFrom('A', 'b', '0', '+', '"', ' ', '\\', '='),
      async (index, at, put) => {
        const line = kept.lines[index] ?? assert.fail();
        const spot = at % line.length;
        if (line[spot] === put) return;
        const changed = `${line.slice(0, spot)}${put}${line.slice(spot + 1)}`;
        await expectFound(kept, kept.lines.with(index, changed), new RegExp(`record ${index + 1}\\b`));
      },
    ),
    { numRuns: 300 },
  );
});

/** Every leaf of a document, changed: one document each. */
function variants(value: unknown): readonly unknown[] {
  if (typeof value === 'string') return [`${value}x`, '', value.replaceAll('a', 'b')].filter((each) => each !== value);
  if (typeof value === 'number') return [value + 1];
  if (value === null || typeof value !== 'object') return ['other'];
  return Object.entries(value).flatMap(([key, field]) => [
    ...variants(field).map((changed) =>
      Array.isArray(value) ? value.with(Number(key), changed) : { ...value, [key]: changed },
    ),
    Array.isArray(value) ? value.toSpliced(Number(key), 1) : { ...value, [key]: undefined },
  ]);
}

test('any changed field of what a record says is found, signed anew by another key or not at all [X2]', async (t) => {
  const { lines, keys } = await makeKeptChain(t, { count: 4, rotateAfter: [2] });
  const kept = { lines, keys };
  const thief = makeTestKey();
  let tried = 0;
  for (const [index, line] of kept.lines.entries()) {
    const { signatures } = JSON.parse(line) as { signatures: readonly { keyid: string; sig: string }[] };
    const asBefore = signatures.map(({ keyid, sig }) => ({ keyid, sign: () => sig }));
    const misnamed = signatures.map(({ sig }) => ({ keyid: thief.keyid, sign: () => sig }));
    await expectFound(kept, kept.lines.with(index, forgeLine(payloadOfLine(line), misnamed)));
    await expectFound(kept, kept.lines.with(index, forgeLine(payloadOfLine(line), [...asBefore, thief])));
    const asKnown = signatures.map(({ keyid }) => ({ keyid, sign: thief.sign }));
    for (const said of variants(payloadOfLine(line))) {
      for (const signers of [asBefore, asKnown, [thief]]) {
        await expectFound(kept, kept.lines.with(index, forgeLine(said, signers)), new RegExp(`record ${index + 1}\\b`));
        tried += 1;
      }
    }
  }
  assert.ok(tried > 300, `${tried} forgeries`);
});

test('a whole foreign chain, made to look as long and as old, is not this one [X2]', async (t) => {
  const kept = await makeKeptChain(t, { count: 6 });
  const other = await makeKeptChain(t, { count: 6 });
  assert.equal((await verifyLines(other.lines, { keys: other.keys })).isIntact, true, 'positive control');
  await expectFound({ ...other, keys: kept.keys }, other.lines, /not signed by the key of this chain/);
  const both = { ...other, keys: [...kept.keys, ...other.keys] };
  await expectFound(both, other.lines, /the chain never came to the key [0-9a-f]{64}/);
});

test('a genuine record of another history of the same host does not fit into this one [X2]', async (t) => {
  const { audit, folder } = await makeKeptChain(t, { count: 3 });
  const copy = await makeAuditFolder(t);
  await audit.close();
  await cp(folder, copy, { recursive: true });
  const histories = await Promise.all(
    [folder, copy].map(async (where, index) => {
      const again = await openTestAudit(t, where);
      for (const reason of ['a', 'b']) await again.append({ kind: 'gate-closed', vm: VM, reason: `${reason}${index}` });
      return await keep(again, where);
    }),
  );
  const [one, other] = histories;
  assert.ok(one && other);
  for (const kept of histories) assert.equal((await verifyLines(kept.lines, kept)).isIntact, true, 'positive control');
  await expectFound(
    { ...one, checkpoint: other.checkpoint },
    one.lines,
    /record 5 is not the one that the checkpoint saw/,
  );
  const { lines, keys } = one;
  for (const spliced of [lines.with(4, other.lines[4] ?? ''), lines.with(3, other.lines[3] ?? '')]) {
    assert.match((await verifyLines(spliced, { keys })).trouble ?? '', /record 5 does not follow record 4/);
  }
});

/** A line of a chain whose key the test has: what only the holder of the key could write. */
function ownLine(key: TestKey, seq: number, prev: string, host = key.keyid): string {
  const said = {
    _type: 'https://in-toto.io/Statement/v1',
    predicate: { atMs: 1, details: { reason: 'x', vm: 'web' }, host, kind: 'gate-closed', prev, seq },
    predicateType: 'urn:pratique:audit:2',
    subject: [{ digest: { sha256: digestOf('vm:web') }, name: 'vm:web' }],
  };
  return forgeLine(said, [key]);
}

test('a record of another host that the same key signed does not fit in [X2]', async () => {
  const key = makeTestKey();
  const first = ownLine(key, 1, ZERO_HASH);
  const second = (host: string) => ownLine(key, 2, digestOf(first), host);
  assert.equal((await verifyLines([first, second(key.keyid)], { keys: [key] })).isIntact, true, 'positive control');
  const strange = await verifyLines([first, second('e'.repeat(64))], { keys: [key] });
  assert.match(strange.trouble ?? '', /record 2 is of another host/);
  const begun = await verifyLines([ownLine(key, 1, ZERO_HASH, 'e'.repeat(64))], { keys: [key] });
  assert.match(begun.trouble ?? '', /record 1 is of another host/);
});

test('after the second format no record of the first comes, and none of it changes the key [X2]', async () => {
  const key = makeTestKey();
  const firstFormat = (seq: number, prev: string, record: unknown) => {
    const body = canonicalJson({ atMs: 1, prev, record, seq });
    const hash = digestOf(body);
    return { hash, line: firstFormatLine({ body, hash, signature: key.sign(Buffer.from(firstFormatSigned(hash))) }) };
  };
  const record = { kind: 'gate-closed', reason: 'x', vm: 'web' };
  const old = firstFormat(1, ZERO_HASH, record);
  const next = ownLine(key, 2, old.hash);
  const says = async (...lines: string[]) => (await verifyLines(lines, { keys: [key] })).trouble;
  assert.equal(await says(old.line, next), null, 'positive control');
  assert.match(
    (await says(old.line, next, firstFormat(3, digestOf(next), record).line)) ?? '',
    /goes back to the first format/,
  );
  const named = { keyid: key.keyid, publicKey: key.publicKey };
  const rotation = { kind: 'key-rotated', actor: 'ann', from: named, to: named };
  assert.match((await says(firstFormat(1, ZERO_HASH, rotation).line)) ?? '', /rotates the key in the first format/);
});

test('a cut tail is found with a checkpoint made anywhere in it, and a checkpoint that is not genuine says so [X2]', async (t) => {
  const kept = await makeKeptChain(t, { count: COUNT, rotateAfter: [4, 8] });
  const { lines, keys, checkpoints } = kept;
  assert.equal(checkpoints.length, LENGTH);
  const first = keys.slice(0, 1);
  for (const checkpoint of checkpoints) {
    const { records } = checkpoint;
    assert.equal((await verifyLines(lines, { keys, checkpoint })).isIntact, true, `checkpoint ${records}`);
    const cut = lines.slice(0, records - 1);
    assert.equal((await verifyLines(cut, { keys: first })).isIntact, true, 'alone a cut tail is not seen');
    const { trouble } = await verifyLines(cut, { keys: first, checkpoint });
    // Where the rotation that named its key was cut off too, nothing is left that knows the checkpoint's key.
    assert.match(trouble ?? '', /the tail was cut|the checkpoint is not signed by the key of this chain/);
    await expectFound({ keys, lines, checkpoint: { ...checkpoint, records: records - 1 } }, lines, /checkpoint is not/);
    await expectFound({ keys, lines, checkpoint: { ...checkpoint, atMs: 1 } }, lines, /checkpoint is not signed/);
  }
  const other = await makeKeptChain(t, { count: COUNT });
  await expectFound({ keys, lines, checkpoint: other.checkpoint }, lines, /checkpoint is not signed/);
});

test('a tail written anew by another key is found, and one cut back before a rotation by the key that came later [X2]', async (t) => {
  const kept = await makeKeptChain(t, { count: 6, rotateAfter: [4] });
  const before = kept.lines.slice(0, 3);
  const anew = ownLine(makeTestKey(), 4, digestOf(before[2] ?? ''), kept.keys[0]?.keyid);
  await expectFound(kept, [...before, anew], /record 4 was changed or is not signed/);
  await expectFound(
    { ...kept, checkpoint: kept.checkpoints[1] ?? assert.fail() },
    before,
    /the chain never came to the key/,
  );
});

test('an export that begins later is verified from the checkpoint just before it, and from no other [X2]', async (t) => {
  const { lines, keys, checkpoints } = await makeKeptChain(t, { count: COUNT, rotateAfter: [4, 8] });
  for (let from = 1; from < LENGTH; from += 1) {
    const checkpoint = checkpoints[from - 1] ?? assert.fail();
    const later = lines.slice(from);
    const report = await verifyLines(later, { keys, checkpoint });
    assert.deepEqual([report.isIntact, report.records], [true, LENGTH], `${from}: ${report.trouble}`);
    const signer = keys.filter(({ keyid }) => keyid === checkpoint.keyid);
    assert.equal((await verifyLines(later, { keys: signer, checkpoint })).isIntact, true);
    await expectFound({ lines, keys, checkpoint }, later.slice(1));
    await expectFound({ lines, keys, checkpoint: { ...checkpoint, head: 'f'.repeat(64) } }, later);
    const wrong = checkpoints[from] ?? assert.fail();
    await expectFound({ lines, keys, checkpoint: wrong }, later);
    assert.equal((await verifyLines(later, { keys })).isIntact, false, 'without a checkpoint');
  }
});
