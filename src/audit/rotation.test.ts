// The key changes by a record that both keys sign; whatever breaks a rotation off, one key is in force and the chain goes on.
import assert from 'node:assert/strict';
import { chmod, copyFile, cp, mkdir, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import {
  CLOSED,
  forgeLine,
  keep,
  makeAuditFolder,
  makeKeptChain,
  makeTestKey,
  OPENED,
  openTestAudit,
  payloadOfLine,
  type TestKey,
  verifyLines,
} from '../../test/fakes/audit-chain.ts';
import { digestOf } from '../base/digest.ts';
import { canonicalJson } from '../base/digest-text.ts';
import { readFolderKeys } from './host-key.ts';
import { verifyFolder } from './kept-chain.ts';
import { ZERO_HASH } from './record.ts';

test('after a rotation another key signs, the old one is gone, and the chain is verified from its first key on [X2]', async (t) => {
  const { audit, folder } = await makeKeptChain(t, { count: 2 });
  const before = await readFile(join(folder, 'audit-key.pem'), 'utf8');
  const old = audit.publicKey;
  const { seq, keyid } = await audit.rotateKey({ actor: 'ann' });
  assert.equal(seq, 3);
  await audit.append(CLOSED);
  const { lines, keys, checkpoint } = await keep(audit, folder);
  assert.deepEqual(
    keys.map(({ publicPem }) => publicPem),
    [old, audit.publicKey],
  );
  assert.equal(keys[1]?.keyid, keyid);
  const { predicate } = payloadOfLine(lines[2] ?? '') as {
    predicate: { kind: string; details: unknown; host: string };
  };
  const named = keys.map((key) => ({ keyid: key.keyid, publicKey: key.publicKey }));
  assert.deepEqual([predicate.kind, predicate.host], ['key-rotated', keys[0]?.keyid]);
  assert.deepEqual(predicate.details, { actor: 'ann', from: named[0], to: named[1] });
  assert.equal(checkpoint.keyid, keyid);
  assert.equal((await audit.verify({ checkpoint })).isIntact, true);
  assert.equal((await verifyLines(lines, { keys: keys.slice(0, 1), checkpoint })).isIntact, true, 'from the first key');
  const names = (await readdir(folder)).filter((name) => name.startsWith('audit-key'));
  assert.deepEqual(names.sort(), ['audit-key.pem', 'audit-key.pub', 'audit-keys.pub']);
  assert.notEqual(await readFile(join(folder, 'audit-key.pem'), 'utf8'), before);
  assert.equal((await stat(join(folder, 'audit-key.pem'))).mode & 0o777, 0o600);
  assert.equal(await readFile(join(folder, 'audit-key.pub'), 'utf8'), audit.publicKey);
  await audit.close();
  const again = await openTestAudit(t, folder);
  await again.append(OPENED);
  assert.equal((await again.rotateKey({ actor: 'bob' })).seq, 6);
  assert.deepEqual([(await again.verify()).isIntact, (await readFolderKeys(folder)).length], [true, 3]);
});

test('records that are appended while the key is rotated are signed by the key of their place, also in one write [X2]', async (t) => {
  const { audit, folder } = await makeKeptChain(t, { count: 1 });
  const appended: Promise<unknown>[] = [];
  const rotations = 5;
  for (let count = 0; count < rotations; count += 1) {
    let isDone = false;
    const rotating = audit.rotateKey({ actor: 'ann' }).finally(() => {
      isDone = true;
    });
    await assert.rejects(audit.rotateKey({ actor: 'bob' }), { code: 'conflict/audit-rotation' });
    // A record in every turn: while they come they are gathered into one write, with the rotation among them.
    while (!isDone) {
      appended.push(audit.append(CLOSED));
      await nextTurn();
    }
    await rotating;
  }
  await Promise.all(appended);
  const { isIntact, records, trouble } = await audit.verify();
  assert.deepEqual([isIntact, records], [true, 1 + appended.length + rotations], trouble ?? '');
  assert.equal((await readFolderKeys(folder)).length, rotations + 1);
});

/** The rotation of a kept chain as somebody without one of the two keys would write it. */
function forgeRotation(rotation: string, to: TestKey, signers: readonly Pick<TestKey, 'keyid' | 'sign'>[]): string {
  const said = payloadOfLine(rotation) as { predicate: { details: Record<string, unknown> } };
  const details = { ...said.predicate.details, to: { keyid: to.keyid, publicKey: to.publicKey } };
  return forgeLine({ ...said, predicate: { ...said.predicate, details } }, signers);
}

test('a rotation that one of the two keys did not sign is found [X2]', async (t) => {
  const { lines, keys } = await makeKeptChain(t, { count: 2, rotateAfter: [2] });
  const [first, second, rotation = ''] = lines;
  const { signatures } = JSON.parse(rotation) as { signatures: readonly { keyid: string; sig: string }[] };
  const thief = makeTestKey();
  const [old, next] = signatures.map(({ keyid, sig }) => ({ keyid, sign: () => sig }));
  assert.ok(old && next);
  const found = async (line: string) =>
    (await verifyLines([first ?? '', second ?? '', line], { keys: keys.slice(0, 1) })).trouble ?? 'nothing';
  assert.equal(await found(rotation), 'nothing', 'positive control');
  const said = payloadOfLine(rotation);
  assert.match(await found(forgeLine(said, [old])), /names a key that has not signed it/);
  assert.match(await found(forgeLine(said, [old, thief])), /names a key that has not signed it/);
  assert.match(await found(forgeLine(said, [old, old])), /names a key that has not signed it/);
  assert.match(await found(forgeLine(said, [next, old])), /is not signed by the key/);
  assert.match(await found(forgeLine(said, [thief, next])), /is not signed by the key/);
  assert.match(await found(forgeRotation(rotation, thief, [thief, thief])), /is not signed by the key/);
  assert.match(await found(forgeRotation(rotation, thief, [old, thief])), /is not signed by the key/);
});

/** Lines of a chain that `first` began, as the holders of keys can write them. */
function chainOf(first: TestKey) {
  const name = ({ keyid, publicKey }: TestKey) => ({ keyid, publicKey });
  const line = (seq: number, before: string, kind: string, details: object, signers: readonly TestKey[]) => {
    const prev = before === '' ? ZERO_HASH : digestOf(before);
    return forgeLine(
      {
        _type: 'https://in-toto.io/Statement/v1',
        predicate: { atMs: 1, details, host: first.keyid, kind, prev, seq },
        predicateType: 'urn:pratique:audit:2',
        subject: [{ digest: { sha256: digestOf('host') }, name: 'host' }],
      },
      signers,
    );
  };
  return {
    record: (seq: number, before: string, key: TestKey) =>
      line(seq, before, 'operator', { actor: 'a', action: 'b', detail: 'c' }, [key]),
    rotation: (seq: number, before: string, from: TestKey, to: TestKey, signer = from) =>
      line(seq, before, 'key-rotated', { actor: 'a', from: name(from), to: name(to) }, [signer, to]),
  };
}

test('who stole a key that was rotated since can neither go on with the chain nor bend it to a key of theirs [X2]', async () => {
  const [stolen, next, mine] = [makeTestKey(), makeTestKey(), makeTestKey()];
  const { record, rotation } = chainOf(stolen);
  const first = record(1, '', stolen);
  const honest = [first, rotation(2, first, stolen, next)];
  const second = honest[1] ?? '';
  const keys = [stolen, next];
  const says = async (lines: readonly string[], options: Omit<Parameters<typeof verifyLines>[1], 'keys'> = {}) =>
    (await verifyLines(lines, { keys, ...options })).trouble ?? 'nothing';
  assert.equal(await says([...honest, record(3, second, next)]), 'nothing', 'positive control');
  assert.match(await says([...honest, record(3, second, stolen)]), /record 3 was changed or is not signed/);
  assert.match(await says([...honest, rotation(3, second, stolen, mine, next)]), /record 3 rotates another key/);
  const bent = [first, rotation(2, first, stolen, mine)];
  assert.equal((await verifyLines(bent, { keys: [stolen] })).isIntact, true, 'the first key alone cannot tell');
  assert.match(await says(bent), new RegExp(`never came to the key ${next.keyid}`));
  const said = {
    format: 'pratique.checkpoint/2',
    records: 2,
    head: digestOf(second),
    atMs: 1,
    keyid: next.keyid,
  } as const;
  const checkpoint = { ...said, signature: next.sign(Buffer.from(canonicalJson(said))) };
  assert.equal(await says([record(3, second, next)], { checkpoint }), 'nothing', 'positive control');
  assert.match(await says([record(3, second, stolen)], { checkpoint }), /record 1 is missing/);
});

const FILES = ['audit-key.pem', 'audit-key.pub', 'audit-keys.pub', 'audit-key.next.pem'] as const;

test('a rotation broken off at any of its steps leaves one key in force, and the chain goes on [X2] [X4]', async (t) => {
  const { audit, folder } = await makeKeptChain(t, { count: 2 });
  await audit.close();
  const old = await makeAuditFolder(t);
  await cp(folder, old, { recursive: true });
  const rotated = await openTestAudit(t, folder);
  await rotated.rotateKey({ actor: 'ann' });
  await rotated.close();
  const from = (source: string, file: (typeof FILES)[number]) => join(source, file);
  /** Files of the folder after each step; `next`: the new private key still lies beside. */
  const steps: readonly {
    readonly what: string;
    readonly db: 'old' | 'new';
    readonly pem: 'old' | 'new';
    readonly next: boolean;
    readonly pubs: readonly string[];
  }[] = [
    { what: 'the new key is written', db: 'old', pem: 'old', next: true, pubs: [] },
    { what: 'the record is written', db: 'new', pem: 'old', next: true, pubs: [] },
    { what: 'the new key is in its place', db: 'new', pem: 'new', next: false, pubs: [] },
    { what: 'its public key is written', db: 'new', pem: 'new', next: false, pubs: ['audit-key.pub'] },
    {
      what: 'it is in the list of public keys',
      db: 'new',
      pem: 'new',
      next: false,
      pubs: ['audit-key.pub', 'audit-keys.pub'],
    },
  ];
  for (const { what, db, pem, next, pubs } of steps) {
    const crashed = await makeAuditFolder(t);
    await cp(old, crashed, { recursive: true });
    if (db === 'new') await copyFile(join(folder, 'audit.db'), join(crashed, 'audit.db'));
    if (pem === 'new') await copyFile(from(folder, 'audit-key.pem'), from(crashed, 'audit-key.pem'));
    if (next) await copyFile(from(folder, 'audit-key.pem'), from(crashed, 'audit-key.next.pem'));
    for (const name of pubs) await copyFile(join(folder, name), join(crashed, name));
    // A piece of a write that never came to its rename.
    await copyFile(from(folder, 'audit-key.pem'), `${from(crashed, 'audit-key.next.pem')}.new`);
    const records = db === 'new' ? 3 : 2;
    const report = await verifyFolder(crashed);
    assert.deepEqual(
      [report.isIntact, report.records],
      [true, records],
      `${what}: before the start: ${report.trouble}`,
    );
    const again = await openTestAudit(t, crashed);
    await again.append(CLOSED);
    assert.deepEqual([(await again.verify()).isIntact, (await again.verify()).records], [true, records + 1], what);
    assert.equal((await readFolderKeys(crashed)).length, db === 'new' ? 2 : 1, what);
    assert.equal((await again.rotateKey({ actor: 'ann' })).seq, records + 2, what);
    await again.append(CLOSED);
    assert.equal((await again.verify()).isIntact, true, what);
    assert.deepEqual(
      (await readdir(crashed)).filter((name) => name.includes('next')),
      [],
      what,
    );
  }
});

test('a rotation that could not be recorded leaves the old key in force, and is done by the next try [X2]', async (t) => {
  const { audit, folder } = await makeKeptChain(t, { count: 1 });
  const before = audit.publicKey;
  const db = new DatabaseSync(join(folder, 'audit.db'));
  db.exec(`CREATE TRIGGER full BEFORE INSERT ON records BEGIN SELECT RAISE(ABORT, 'disk full'); END`);
  await assert.rejects(audit.rotateKey({ actor: 'ann' }), { code: 'host-fault/audit-write' });
  const left = await readFile(join(folder, 'audit-key.next.pem'), 'utf8');
  db.exec('DROP TRIGGER full');
  db.close();
  assert.equal(audit.publicKey, before);
  await audit.append(CLOSED);
  await audit.rotateKey({ actor: 'ann' });
  assert.equal(
    await readFile(join(folder, 'audit-key.pem'), 'utf8'),
    left,
    'the key that may have been recorded is kept',
  );
  assert.deepEqual([(await audit.verify()).isIntact, (await audit.verify()).records], [true, 3]);
});

test('a new key that could not be put in its place signs all the same, and is put there at the next start [X2]', async (t) => {
  const { audit, folder } = await makeKeptChain(t, { count: 1 });
  const path = join(folder, 'audit-key.pem');
  await rename(path, `${path}.away`);
  // A folder in the key's place: the rename fails, as on a disk that has just become read-only.
  await mkdir(join(path, 'x'), { recursive: true });
  await audit.rotateKey({ actor: 'ann' });
  await audit.append(CLOSED);
  const { publicKey } = audit;
  await audit.close();
  await rm(path, { recursive: true });
  await rename(`${path}.away`, path);
  const again = await openTestAudit(t, folder);
  assert.equal(again.publicKey, publicKey);
  await again.append(CLOSED);
  assert.deepEqual([(await again.verify()).isIntact, (await again.verify()).records], [true, 4]);
});

test('a key that is not the one of the chain beside it is refused, also the one before a rotation [X2]', async (t) => {
  const { audit, folder } = await makeKeptChain(t, { count: 2 });
  const path = join(folder, 'audit-key.pem');
  await copyFile(path, join(folder, 'kept.pem'));
  await audit.rotateKey({ actor: 'ann' });
  await audit.close();
  await rename(path, join(folder, 'newest.pem'));
  await copyFile(join(folder, 'kept.pem'), path);
  await chmod(path, 0o600);
  await assert.rejects(openTestAudit(t, folder), { code: 'host-fault/audit-key-other' });
  await rm(path);
  await assert.rejects(openTestAudit(t, folder), { code: 'host-fault/audit-key-missing' });
  await rename(join(folder, 'newest.pem'), path);
  assert.equal((await (await openTestAudit(t, folder)).verify()).isIntact, true);
});

test('a lost list of public keys is made again from the chain [X2]', async (t) => {
  const { audit, folder, keys } = await makeKeptChain(t, { count: 5, rotateAfter: [1, 3] });
  await audit.close();
  await rm(join(folder, 'audit-keys.pub'));
  const again = await openTestAudit(t, folder);
  assert.deepEqual(
    (await readFolderKeys(folder)).map(({ keyid }) => keyid),
    keys.map(({ keyid }) => keyid),
  );
  assert.equal((await again.verify()).isIntact, true);
});

test('a rotation whose key could not be put into its place does not make the next one rotate to the same key [X2]', async (t) => {
  const { audit, folder } = await makeKeptChain(t, { count: 1 });
  const place = join(folder, 'audit-key.pem');
  await rename(place, `${place}.away`);
  await mkdir(join(place, 'in the way'), { recursive: true });
  const first = await audit.rotateKey({ actor: 'ann' });
  await assert.rejects(audit.rotateKey({ actor: 'ann' }), { code: 'host-fault/audit-key' });
  await rm(place, { recursive: true });
  const second = await audit.rotateKey({ actor: 'ann' });
  assert.notEqual(second.keyid, first.keyid);
  await audit.append(CLOSED);
  assert.equal((await audit.verify()).isIntact, true);
  await audit.close();
  const again = await openTestAudit(t, folder);
  await again.append(CLOSED);
  assert.deepEqual([(await again.verify()).isIntact, (await readFolderKeys(folder)).length], [true, 3]);
});
