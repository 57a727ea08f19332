// The audit chain: durable in order, and every removed, changed or moved record is found.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { type TestContext, test } from 'node:test';
import { type Clock, systemClock } from '../base/clock.ts';
import type { Digest } from '../base/digest-text.ts';
import { AUDIT_PAGE_MAX, AUDIT_QUEUE_MAX } from '../base/limits.ts';
import { silentLog } from '../base/log.ts';
import type { RunId, VmId } from '../model/ids.ts';
import { type Audit, openAudit } from './audit.ts';
import { verifyFolder } from './kept-chain.ts';
import type { AuditRecord } from './record.ts';

const VM = 'web-1' as VmId;
const OTHER = 'web-2' as VmId;
const RUN = 'a'.repeat(32) as RunId;
const CLOSED: AuditRecord = { kind: 'gate-closed', vm: VM, reason: 'start' };
const OPENED: AuditRecord = {
  kind: 'gate-opened',
  vm: VM,
  evidence: {
    vm: VM,
    run: RUN,
    nonce: 'b'.repeat(32),
    boot: '0b8c1d52-7c6e-4f0a-9a51-2f6f1f0d3c44',
    planDigest: '1'.repeat(64) as Digest,
    manifestDigests: [],
    inventoryDigest: '2'.repeat(64) as Digest,
    items: [],
    vendors: [],
    judgedAtMs: 7,
  },
};
const clock: Clock = { ...systemClock, nowMs: () => 1_700_000_000_000 };

async function makeFolder(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-audit-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

async function open(t: TestContext, folder: string): Promise<Audit> {
  const audit = await openAudit({ folder, clock, log: silentLog });
  t.after(() => audit.close());
  return audit;
}

test('records are numbered, chained, signed and read back by VM [X2]', async (t) => {
  const folder = await makeFolder(t);
  const audit = await open(t, folder);
  const records: AuditRecord[] = [
    CLOSED,
    { kind: 'operator', actor: 'ann', action: 'vendor-added', detail: 'own' },
    { kind: 'offer', vm: VM, run: RUN, planDigest: '1'.repeat(64) as Digest, manifestDigest: '3'.repeat(64) as Digest },
    { kind: 'refusal', vm: OTHER, run: RUN, code: 'wrong-run', detail: 'x' },
    { kind: 'quarantine', vm: OTHER, run: null, reason: { kind: 'too-many-reboots', reboots: 4 } },
    { kind: 'override', vm: OTHER, run: null, actor: 'ann', reason: 'the router' },
    OPENED,
  ];
  for (const [index, record] of records.entries()) assert.equal((await audit.append(record)).seq, index + 1);
  const entries = audit.entries({ afterSeq: 0, limit: 100 });
  assert.deepEqual(
    entries.map((entry) => entry.record),
    records,
  );
  for (const [index, entry] of entries.entries()) {
    assert.equal(entry.prev, entries[index - 1]?.hash ?? '0'.repeat(64));
    assert.equal(entry.atMs, clock.nowMs());
  }
  assert.deepEqual(
    audit.entries({ afterSeq: 1, limit: 100, vm: VM }).map((entry) => entry.seq),
    [3, 7],
  );
  assert.deepEqual(
    audit.entries({ afterSeq: 2, limit: 2 }).map((entry) => entry.seq),
    [3, 4],
  );
  assert.deepEqual(await audit.verify(), {
    isIntact: true,
    records: 7,
    head: entries.at(-1)?.hash,
    trouble: null,
  });
});

test('the chain goes on after the program was started again, with the same key [X2]', async (t) => {
  const folder = await makeFolder(t);
  const first = await open(t, folder);
  await first.append(CLOSED);
  const { publicKey } = first;
  await first.close();
  const second = await open(t, folder);
  assert.equal(second.publicKey, publicKey);
  assert.equal((await second.append(OPENED)).seq, 2);
  assert.deepEqual([(await second.verify()).isIntact, (await second.verify()).records], [true, 2]);
});

test('the key can be read by its owner only, and one that others can read is refused [X2]', async (t) => {
  const folder = await makeFolder(t);
  await (await open(t, folder)).close();
  const path = join(folder, 'audit-key.pem');
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  await chmod(path, 0o640);
  await assert.rejects(openAudit({ folder, clock, log: silentLog }), { code: 'host-unfit/audit-key-open' });
});

test('a chain whose key is gone is not continued with another key [X2]', async (t) => {
  const folder = await makeFolder(t);
  const audit = await open(t, folder);
  await audit.append(CLOSED);
  await audit.close();
  await rm(join(folder, 'audit-key.pem'));
  await assert.rejects(openAudit({ folder, clock, log: silentLog }), { code: 'host-fault/audit-key-missing' });
});

test('a chain whose last record cannot be read is not continued, and verify still says where it breaks [X2]', async (t) => {
  const folder = await makeFolder(t);
  const audit = await open(t, folder);
  for (const record of [CLOSED, OPENED]) await audit.append(record);
  await audit.close();
  const db = new DatabaseSync(join(folder, 'audit.db'));
  db.exec(`UPDATE records SET body = substr(body, 1, 99) WHERE seq = 2`);
  db.close();
  await assert.rejects(openAudit({ folder, clock, log: silentLog }), { code: 'host-fault/audit-damaged' });
  const { records, trouble } = await verifyFolder(folder);
  assert.deepEqual([records, trouble], [1, 'record 2 was changed or is not signed by the key of this chain']);
});

const TAMPERED: readonly (readonly [string, string, RegExp])[] = [
  ['removed from the middle', 'DELETE FROM records WHERE seq = 3', /record 3 is missing/],
  ['removed from the start', 'DELETE FROM records WHERE seq = 1', /record 1 is missing/],
  ['changed', `UPDATE records SET body = replace(body, 'start', 'other') WHERE seq = 2`, /record 2 was changed/],
  ['given another hash', `UPDATE records SET hash = '${'0'.repeat(64)}' WHERE seq = 2`, /record 2 was changed/],
  [
    'given the signature of another',
    'UPDATE records SET signature = (SELECT signature FROM records WHERE seq = 1) WHERE seq = 2',
    /record 2 was changed or is not signed/,
  ],
  [
    'given no signature',
    `UPDATE records SET signature = '[]' WHERE seq = 2`,
    /record 2: signatures must not have fewer/,
  ],
  ['filed under another VM', `UPDATE records SET vm = 'web-2' WHERE seq = 2`, /record 2 is filed under another VM/],
  [
    'swapped with its neighbour',
    'UPDATE records SET seq = -2 WHERE seq = 2; UPDATE records SET seq = 2 WHERE seq = 3; UPDATE records SET seq = 3 WHERE seq = -2',
    /record 2 was moved: it was written as record 3/,
  ],
  [
    'removed and the rest moved up',
    'DELETE FROM records WHERE seq = 2; UPDATE records SET seq = 2 WHERE seq = 3; UPDATE records SET seq = 3 WHERE seq = 4',
    /record 2 was moved/,
  ],
];

for (const [what, sql, trouble] of TAMPERED) {
  test(`a record that was ${what} is found [X2]`, async (t) => {
    const folder = await makeFolder(t);
    const audit = await open(t, folder);
    for (let count = 0; count < 4; count += 1) await audit.append({ ...CLOSED, reason: `start ${count}` });
    assert.equal((await audit.verify()).isIntact, true);
    const db = new DatabaseSync(join(folder, 'audit.db'));
    db.exec(sql);
    db.close();
    const report = await audit.verify();
    assert.equal(report.isIntact, false);
    assert.match(report.trouble ?? '', trouble);
    assert.ok(audit.entries({ afterSeq: 0, limit: 9 }).length >= 3, 'what is there can still be read');
  });
}

test('a tail that was cut, also one that was written anew, is found with a checkpoint kept elsewhere [X2]', async (t) => {
  const folder = await makeFolder(t);
  const audit = await open(t, folder);
  await audit.append(CLOSED);
  const early = audit.checkpoint();
  await audit.append(OPENED);
  await audit.append(CLOSED);
  const late = audit.checkpoint();
  assert.deepEqual([late.records, (await audit.verify({ checkpoint: late })).isIntact], [3, true]);
  await audit.close();
  const db = new DatabaseSync(join(folder, 'audit.db'));
  db.exec('DELETE FROM records WHERE seq > 1');
  db.close();
  const again = await open(t, folder);
  assert.match((await again.verify({ checkpoint: late })).trouble ?? '', /the tail was cut/);
  for (let count = 0; count < 3; count += 1) await again.append({ ...CLOSED, reason: 'rewritten' });
  assert.equal((await again.verify()).isIntact, true);
  assert.match((await again.verify({ checkpoint: late })).trouble ?? '', /not the one that the checkpoint saw/);
  assert.equal((await again.verify({ checkpoint: early })).isIntact, true);
  const forged = { ...early, records: 0 };
  assert.match((await again.verify({ checkpoint: forged })).trouble ?? '', /checkpoint is not signed/);
});

test('a genuine record of another history does not fit into this one [X2]', async (t) => {
  const folder = await makeFolder(t);
  const first = await open(t, folder);
  for (let count = 0; count < 3; count += 1) await first.append({ ...CLOSED, reason: `start ${count}` });
  await first.close();
  const path = join(folder, 'audit.db');
  const before = new DatabaseSync(path);
  before.exec('CREATE TABLE kept AS SELECT * FROM records WHERE seq = 3; DELETE FROM records WHERE seq > 1');
  before.close();
  const second = await open(t, folder);
  await second.append({ ...CLOSED, reason: 'another history' });
  const after = new DatabaseSync(path);
  after.exec('INSERT INTO records SELECT * FROM kept');
  after.close();
  assert.match((await second.verify()).trouble ?? '', /record 3 does not follow record 2/);
});

test('many appends at once share a write, keep their order and stay above 1,000 a second of the processor [X2]', async (t) => {
  const audit = await open(t, await makeFolder(t));
  const count = 3000;
  // The processor's time: how busy the machine is with other things does not count.
  const began = process.cpuUsage();
  const written = await Promise.all(
    Array.from({ length: count }, (_, index) => audit.append({ ...OPENED, vm: `vm-${index}` as VmId })),
  );
  const { user, system } = process.cpuUsage(began);
  const perSecond = (count / (user + system)) * 1_000_000;
  t.diagnostic(`${Math.round(perSecond)} appends a second`);
  assert.deepEqual(
    written.map(({ seq }) => seq),
    Array.from({ length: count }, (_, index) => index + 1),
  );
  const fifth = audit.entries({ afterSeq: 4, limit: 1 })[0];
  assert.ok(fifth?.record.kind === 'gate-opened' && fifth.record.vm === 'vm-4');
  assert.equal(audit.entries({ afterSeq: 0, limit: count }).length, AUDIT_PAGE_MAX);
  assert.equal((await audit.verify()).records, count);
  assert.ok(perSecond > 1000, `${perSecond} appends a second`);
});

test('an append that cannot be written says so, and the chain goes on from the last good record [X2]', async (t) => {
  const folder = await makeFolder(t);
  const audit = await open(t, folder);
  await audit.append(CLOSED);
  const db = new DatabaseSync(join(folder, 'audit.db'));
  db.exec(`CREATE TRIGGER full BEFORE INSERT ON records BEGIN SELECT RAISE(ABORT, 'disk full'); END`);
  await assert.rejects(audit.append(OPENED), { code: 'host-fault/audit-write' });
  db.exec('DROP TRIGGER full');
  db.close();
  assert.equal((await audit.append(OPENED)).seq, 2);
  assert.equal((await audit.verify()).isIntact, true);
});

test('too many records at once, too large ones and those after the close are refused, not lost in silence [X2]', async (t) => {
  const audit = await open(t, await makeFolder(t));
  const huge: AuditRecord = { ...CLOSED, reason: 'x'.repeat(3 * 1024 * 1024) };
  await assert.rejects(audit.append(huge), { code: 'internal/audit-record' });
  const waiting = Array.from({ length: AUDIT_QUEUE_MAX }, () => audit.append(CLOSED));
  await assert.rejects(audit.append(CLOSED), { code: 'host-fault/audit-busy' });
  await audit.close();
  assert.equal((await Promise.all(waiting)).length, AUDIT_QUEUE_MAX);
  await assert.rejects(audit.append(CLOSED), { code: 'host-fault/audit-closed' });
});

test('kill -9 in the middle of appending leaves an intact chain with every answered record [X2] [X4]', async (t) => {
  const folder = await makeFolder(t);
  const program = `
    const { openAudit } = await import(${JSON.stringify(new URL('./audit.ts', import.meta.url).href)});
    const { systemClock } = await import(${JSON.stringify(new URL('../base/clock.ts', import.meta.url).href)});
    const { silentLog } = await import(${JSON.stringify(new URL('../base/log.ts', import.meta.url).href)});
    const audit = await openAudit({ folder: ${JSON.stringify(folder)}, clock: systemClock, log: silentLog });
    for (;;) {
      const all = await Promise.all(Array.from({ length: 20 }, () => audit.append(${JSON.stringify(CLOSED)})));
      process.stdout.write(all.at(-1).seq + '\\n');
    }`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let said = '';
  child.stdout.setEncoding('utf8');
  for await (const piece of child.stdout) {
    said += piece;
    if (said.split('\n').length > 12) child.kill('SIGKILL');
  }
  if (child.signalCode === null) await once(child, 'exit');
  assert.equal(child.signalCode, 'SIGKILL');
  const answered = Number(said.slice(0, said.lastIndexOf('\n')).split('\n').at(-1));
  assert.ok(answered >= 200);
  const audit = await open(t, folder);
  const report = await audit.verify();
  assert.deepEqual([report.isIntact, report.trouble], [true, null]);
  assert.ok(report.records >= answered, `${report.records} records are left, ${answered} were answered`);
  assert.equal((await audit.append(OPENED)).seq, report.records + 1);
});

test('the public key stands beside the chain for whoever verifies elsewhere [X2]', async (t) => {
  const folder = await makeFolder(t);
  const audit = await open(t, folder);
  assert.equal(await readFile(join(folder, 'audit-key.pub'), 'utf8'), audit.publicKey);
});
