// A chain without its daemon: a database of the released version, one that a daemon has open, an export on another machine.
import assert from 'node:assert/strict';
import { chmod, cp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import {
  CLOSED,
  makeAuditFolder,
  makeKeptChain,
  makeTestKey,
  openTestAudit,
  VM,
  writeLines,
} from '../../test/fakes/audit-chain.ts';
import { AUDIT_LINE_CHARS_MAX } from '../base/limits.ts';
import { tryCommand } from '../base/run-command.ts';
import { readFolderKeys } from './host-key.ts';
import { linesOfFolder, verifyFile, verifyFolder } from './kept-chain.ts';
import type { AuditRecord, Checkpoint } from './record.ts';

const FIRST_FORMAT = fileURLToPath(new URL('../../test/fixtures/audit-v1', import.meta.url));
const FIRST_RECORDS = 9;

async function copyOfFirst(t: TestContext): Promise<string> {
  const folder = await makeAuditFolder(t);
  await cp(FIRST_FORMAT, folder, { recursive: true });
  // A checkout gives every file one mode; the key's own is part of the format.
  await chmod(join(folder, 'audit-key.pem'), 0o600);
  return folder;
}

// The cast holds: the released version wrote the file.
const firstCheckpoint = async () =>
  JSON.parse(await readFile(join(FIRST_FORMAT, 'kept.checkpoint'), 'utf8')) as Checkpoint;

async function collect(lines: AsyncIterable<string>): Promise<readonly string[]> {
  const all: string[] = [];
  for await (const line of lines) all.push(line);
  return all;
}

const rowsOf = (folder: string, columns: string) => {
  const db = new DatabaseSync(join(folder, 'audit.db'), { readOnly: true });
  const rows = db.prepare(`SELECT ${columns} FROM records WHERE seq <= ${FIRST_RECORDS} ORDER BY seq`).all();
  db.close();
  return rows;
};

test('a chain of the first format is verified as it lies there, also against a checkpoint of its time [X2]', async (t) => {
  const folder = await copyOfFirst(t);
  const checkpoint = await firstCheckpoint();
  assert.deepEqual(await verifyFolder(folder, { checkpoint }), {
    isIntact: true,
    records: FIRST_RECORDS,
    head: '27ecd3b51ae863d145a028fb3d0b38a2edd38bff0e925014c698eae158f1d395',
    trouble: null,
  });
  const db = new DatabaseSync(join(folder, 'audit.db'));
  db.exec(`UPDATE records SET body = replace(body, 'the router', 'the rooter') WHERE seq = ${FIRST_RECORDS}`);
  db.close();
  assert.match((await verifyFolder(folder)).trouble ?? '', /record 9 was changed/);
});

test('a chain of the first format goes on in the second, and no byte of its old records changes [X2]', async (t) => {
  const folder = await copyOfFirst(t);
  const columns = 'seq, vm, body, hash, signature';
  const before = rowsOf(folder, columns);
  const audit = await openTestAudit(t, folder);
  assert.equal((await audit.append(CLOSED)).seq, FIRST_RECORDS + 1);
  await audit.rotateKey({ actor: 'ann' });
  await audit.append(CLOSED);
  const checkpoint = audit.checkpoint();
  assert.equal((await audit.verify({ checkpoint })).isIntact, true);
  assert.equal((await audit.verify({ checkpoint: await firstCheckpoint() })).isIntact, true);
  assert.equal(audit.entries({ afterSeq: 8, limit: 2 })[1]?.prev, audit.entries({ afterSeq: 8, limit: 1 })[0]?.hash);
  const [opened] = audit.entries({ afterSeq: 6, limit: 1, vm: 'web' });
  assert.ok(opened?.record.kind === 'gate-opened' && opened.record.evidence.items.length === 1);
  const { lines } = audit.lines({ afterSeq: 0, limit: 100 });
  await audit.close();
  assert.deepEqual(rowsOf(folder, columns), before);
  const file = await writeLines(join(folder, 'export.jsonl'), lines);
  const keys = await readFolderKeys(folder);
  const whole = await verifyFile(file, { keys, checkpoint });
  assert.deepEqual([whole.isIntact, whole.records], [true, FIRST_RECORDS + 3], whole.trouble ?? '');
  for (const index of lines.keys()) {
    for (const changed of [
      lines.toSpliced(index, 1),
      lines.with(index, (lines[index] ?? '').replace(/web|prev/, 'wob')),
    ]) {
      if (changed[index] === lines[index]) continue;
      const report = await verifyFile(await writeLines(file, changed), { keys, checkpoint });
      assert.equal(report.isIntact, false, `record ${index + 1}`);
    }
  }
});

test('an export says the same with and without the daemon, and a daemon at work does not disturb a look [X2]', async (t) => {
  const { folder, audit, lines, checkpoint } = await makeKeptChain(t, { count: 6, rotateAfter: [3] });
  assert.deepEqual(await collect(linesOfFolder(folder, 0)), lines);
  assert.deepEqual(await collect(linesOfFolder(folder, 5)), lines.slice(5));
  await audit.append(CLOSED);
  assert.deepEqual([(await verifyFolder(folder, { checkpoint })).records, checkpoint.records], [8, 7]);
  await audit.append(CLOSED);
  assert.equal((await audit.verify()).records, 9);
  const strange = await verifyFolder(folder, { keys: [makeTestKey()] });
  assert.match(strange.trouble ?? '', /record 1 was changed or is not signed by the key of this chain/);
});

test('a chain that a newer version wrote is not called broken [X2]', async (t) => {
  const { folder, audit } = await makeKeptChain(t, { count: 2 });
  await audit.close();
  const db = new DatabaseSync(join(folder, 'audit.db'));
  db.exec('PRAGMA user_version = 99');
  db.close();
  await assert.rejects(verifyFolder(folder), { code: 'host-unfit/schema-newer' });
});

test('a copy that cannot be written to is verified, unless it lacks what its log holds [X2]', async (t) => {
  const { folder, audit, lines } = await makeKeptChain(t, { count: 4 });
  const withLog = await makeAuditFolder(t);
  await cp(folder, withLog, { recursive: true });
  await audit.close();
  if (process.getuid?.() === 0) {
    // Root may write anywhere but on a file system that is mounted read-only.
    const look = async (where: string) => await inReadOnlyMount(where);
    assert.deepEqual(await look(folder), { isIntact: true, records: lines.length });
    await rm(join(withLog, 'audit.db-shm'));
    assert.deepEqual(await look(withLog), { code: 'host-fault/audit-read' });
    return;
  }
  await chmod(folder, 0o500);
  t.after(() => chmod(folder, 0o700));
  assert.equal((await verifyFolder(folder)).records, lines.length);
});

/** What `verifyFolder` says in a namespace in which the folder is mounted read-only. */
async function inReadOnlyMount(folder: string): Promise<unknown> {
  const program = `
    const { verifyFolder } = await import(${JSON.stringify(new URL('./kept-chain.ts', import.meta.url).href)});
    const said = await verifyFolder(${JSON.stringify(folder)}).then(({ isIntact, records }) => ({ isIntact, records }), ({ code }) => ({ code }));
    process.stdout.write(JSON.stringify(said));`;
  const script = `mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$2" --input-type=module -e "$3"`;
  const argv = ['unshare', '-m', 'sh', '-c', script, 'sh', folder, process.execPath, program] as const;
  return JSON.parse((await tryCommand(argv)).stdout);
}

test('a folder without a chain, a file that is none and a line without an end are told apart [X2]', async (t) => {
  const folder = await makeAuditFolder(t);
  await assert.rejects(verifyFolder(folder), { code: 'not-found/audit' });
  const { keys, lines } = await makeKeptChain(t, { count: 2 });
  const path = join(folder, 'export.jsonl');
  await assert.rejects(verifyFile(path, { keys }), { code: 'usage/audit-file' });
  const whole = lines.map((line) => `${line}\n`).join('');
  const says = async (text: string) => {
    await writeFile(path, text);
    const { isIntact, records, trouble } = await verifyFile(path, { keys });
    return { isIntact, records, trouble };
  };
  assert.equal((await says(whole)).isIntact, true, 'positive control');
  assert.deepEqual(await says(whole.slice(0, -1)), {
    isIntact: false,
    records: 1,
    trouble: 'record 2: the file ends in the middle of its line',
  });
  assert.match((await says(`${whole}\n`)).trouble ?? '', /record 3: not JSON/);
  assert.match((await says(`${whole}{}\n`)).trouble ?? '', /record 3/);
  const endless = await says(whole + 'x'.repeat(AUDIT_LINE_CHARS_MAX + 100_000));
  assert.match(endless.trouble ?? '', /record 3: its line is longer than 8388608 characters/);
  await writeFile(join(folder, 'audit.db'), 'SQLite format 3\0 but not really');
  await assert.rejects(verifyFolder(folder, { keys }), { code: 'host-fault/audit-read' });
});

test('memory does not grow with the chain while it is verified [X2]', async (t) => {
  const { folder, audit } = await makeKeptChain(t, { count: 1 });
  const records = 24;
  const large: AuditRecord = { kind: 'gate-closed', vm: VM, reason: 'x'.repeat(1_900_000) };
  while ((await audit.append(large)).seq < records);
  const file = join(folder, 'export.jsonl');
  for (let page = audit.lines({ afterSeq: 0, limit: 1_000 }); page.lines.length > 0; ) {
    await writeFile(file, page.lines.map((line) => `${line}\n`).join(''), { flag: 'a' });
    page = audit.lines({ afterSeq: page.lastSeq, limit: 1_000 });
  }
  const keys = await readFolderKeys(folder);
  const program = `
    const { verifyFile, verifyFolder } = await import(${JSON.stringify(new URL('./kept-chain.ts', import.meta.url).href)});
    const { readPublicKeys } = await import(${JSON.stringify(new URL('./host-key.ts', import.meta.url).href)});
    const keys = readPublicKeys(${JSON.stringify(keys[0]?.publicPem)}, 'it');
    const file = await verifyFile(${JSON.stringify(file)}, { keys });
    const folder = await verifyFolder(${JSON.stringify(folder)});
    process.stdout.write(JSON.stringify([file.records, folder.records]));`;
  // 45 MB of records, 61 MB of lines: the heap holds the program and some of them.
  const argv = [process.execPath, '--max-old-space-size=40', '--input-type=module', '-e', program] as const;
  const { stdout, stderr } = await tryCommand(argv, { timeoutMs: 300_000 });
  assert.equal(stdout, JSON.stringify([records, records]), stderr.slice(-1_000));
  await rm(file);
});
