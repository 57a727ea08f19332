// Tests of `pratique audit`: with the daemon and without it, on the host and on another machine; and of the verifier that the page prints.
import assert from 'node:assert/strict';
import { chmod, cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { Audit } from '../../src/audit/audit.ts';
import { tryCommand } from '../../src/base/run-command.ts';
import { ADDED, CLOSED, OFFER, OPENED, openTestAudit, VM } from '../../test/fakes/audit-chain.ts';
import { startFakeDaemon } from '../../test/fakes/daemon.ts';
import { makeFakeService, SAMPLE_CHECKPOINT } from '../../test/fakes/service.ts';
import type { HostRooms } from '../host-rooms.ts';
import { makeService } from '../host-service.ts';
import { runCommandLine } from './program.ts';

const FIRST_FORMAT = fileURLToPath(new URL('../../test/fixtures/audit-v1', import.meta.url));

async function makeFolder(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-audit-cli-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

/** The program as run on a host whose data and run folders these are. */
function runnerOf(env: NodeJS.ProcessEnv) {
  return async (...argv: readonly string[]) => {
    const said = { stdout: '', stderr: '' };
    const stream = (name: keyof typeof said) => ({
      write: (text: string) => {
        said[name] += text;
      },
    });
    const streams = { stdout: stream('stdout'), stderr: stream('stderr') };
    const interrupted = () => new AbortController().signal;
    const code = await runCommandLine(argv, { ...streams, env, uid: 1000, interrupted });
    return { code, ...said };
  };
}

/** A host whose daemon is not running, with a chain that began in the first format and has had two keys. */
async function deadHost(t: TestContext) {
  const folder = await makeFolder(t);
  const audit = join(folder, 'audit');
  await cp(FIRST_FORMAT, audit, { recursive: true });
  await chmod(join(audit, 'audit-key.pem'), 0o600);
  const chain = await openTestAudit(t, audit);
  for (const record of [ADDED, CLOSED, OFFER]) await chain.append(record);
  await chain.rotateKey({ actor: 'ann' });
  await chain.append(OPENED);
  const checkpoint = join(folder, 'kept.checkpoint');
  await writeFile(checkpoint, JSON.stringify(chain.checkpoint()));
  await chain.close();
  const run = runnerOf({ HOME: folder, XDG_CONFIG_HOME: folder, PRATIQUE_RUN: folder, PRATIQUE_DATA: folder });
  return { folder, audit, checkpoint, run };
}
const RECORDS = 14;

test('audit verify and export work on a host whose daemon is not running [X2]', async (t) => {
  const { audit, checkpoint, run } = await deadHost(t);
  const whole = await run('audit', 'verify', '--checkpoint', checkpoint);
  assert.deepEqual([whole.code, whole.stderr], [0, '']);
  assert.match(whole.stdout, new RegExp(`The chain of ${RECORDS} records is intact`));
  assert.equal(JSON.parse((await run('audit', 'verify', '--json')).stdout).records, RECORDS);
  const lines = (await run('audit', 'export')).stdout.split('\n');
  assert.deepEqual([lines.length, lines.at(-1)], [RECORDS + 1, '']);
  assert.deepEqual((await run('audit', 'export', '--json', '--after', '12')).stdout.split('\n'), lines.slice(12));
  assert.equal((await run('audit', 'checkpoint')).code, 7);
  assert.equal((await run('audit', 'rotate-key')).code, 7);
  const db = new DatabaseSync(join(audit, 'audit.db'));
  db.exec(`UPDATE records SET body = replace(body, 'start', 'other') WHERE seq = 11`);
  db.close();
  const changed = await run('audit', 'verify');
  assert.equal(changed.code, 1);
  assert.match(changed.stdout, /NOT intact: record 11 was changed/);
});

test('an export is verified elsewhere by the keys and the checkpoint kept there [X2]', async (t) => {
  const { audit, checkpoint, run } = await deadHost(t);
  const elsewhere = await makeFolder(t);
  const there = runnerOf({ HOME: elsewhere, PRATIQUE_RUN: elsewhere, PRATIQUE_DATA: elsewhere });
  const file = join(elsewhere, 'host1.audit.jsonl');
  const key = join(elsewhere, 'host1.audit-keys.pub');
  await cp(join(audit, 'audit-keys.pub'), key);
  const { stdout } = await run('audit', 'export');
  await writeFile(file, stdout);
  const given = ['audit', 'verify', '--file', file, '--key', key];
  assert.equal((await there(...given, '--checkpoint', checkpoint)).code, 0);
  assert.equal((await there(...given)).code, 0);
  await writeFile(file, stdout.split('\n').slice(0, 13).join('\n').concat('\n'));
  assert.equal((await there(...given)).code, 0, 'a cut tail alone is not seen');
  const cut = await there(...given, '--checkpoint', checkpoint);
  assert.equal(cut.code, 1);
  assert.match(cut.stdout, /NOT intact: the checkpoint saw 14 records, 13 are left: the tail was cut/);
  const noKey = await there('audit', 'verify', '--file', file);
  assert.deepEqual([noKey.code, /add --key with a copy of audit-keys\.pub/.test(noKey.stderr)], [2, true]);
  assert.equal((await there('audit', 'verify', '--file', join(elsewhere, 'none'), '--key', key)).code, 2);
  await writeFile(join(elsewhere, 'bad.pub'), '-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n');
  for (const name of ['bad.pub', 'host1.audit.jsonl', 'nothing']) {
    const bad = await there('audit', 'verify', '--file', file, '--key', join(elsewhere, name));
    assert.equal(bad.code, 2, bad.stderr);
    assert.match(bad.stderr, new RegExp(name.replaceAll('.', '\\.')));
  }
  for (const verb of ['verify', 'export'])
    assert.equal((await there('audit', verb)).code, 7, 'neither daemon nor chain');
  const strange = await makeFolder(t);
  await (await openTestAudit(t, strange)).close();
  const other = await run('audit', 'verify', '--key', join(strange, 'audit-key.pub'));
  assert.equal(other.code, 1);
  assert.match(other.stdout, /record 1 was changed or is not signed by the key of this chain/);
});

/** A daemon whose audit room is real, and everything else a fake. */
async function auditDaemon(
  t: TestContext,
): Promise<{ audit: Audit; folder: string; run: ReturnType<typeof runnerOf> }> {
  const daemon = await startFakeDaemon();
  t.after(() => daemon.close());
  const folder = join(daemon.folder, 'audit');
  await mkdir(folder);
  const audit = await openTestAudit(t, folder);
  // The cast holds for the methods taken here: they work with no other room.
  const { auditLines, auditCheckpoint, auditVerify, auditEntries, rotateAuditKey } = makeService({
    audit,
  } as HostRooms);
  daemon.reset({ ...makeFakeService(), auditLines, auditCheckpoint, auditVerify, auditEntries, rotateAuditKey });
  return { audit, folder, run: runnerOf(daemon.env) };
}

test('audit verify ends with 1 when the chain was changed', async (t) => {
  const report = { isIntact: false, records: 3, head: 'x', trouble: 'record 2 was changed' };
  const daemon = await startFakeDaemon();
  t.after(() => daemon.close());
  daemon.reset({ ...makeFakeService(), auditVerify: async () => report });
  const { code, stdout } = await runnerOf(daemon.env)('audit', 'verify');
  assert.equal(code, 1);
  assert.match(stdout, /NOT intact: record 2 was changed/);
});

test('a tail that was cut off the chain passes audit verify, and not with a checkpoint kept elsewhere [X2]', async (t) => {
  const { audit, folder, run } = await auditDaemon(t);
  for (const reason of ['one', 'two', 'three']) await audit.append({ kind: 'gate-closed', vm: VM, reason });
  const path = join(folder, 'kept.checkpoint');
  const kept = await run('audit', 'checkpoint');
  assert.deepEqual(kept, await run('audit', 'checkpoint', '--json'));
  await writeFile(path, kept.stdout);
  const whole = await run('audit', 'verify', '--checkpoint', path);
  assert.equal(whole.code, 0);
  assert.match(whole.stdout, /The 3 records that the checkpoint saw are all there/);
  const db = new DatabaseSync(join(folder, 'audit.db'));
  db.exec('DELETE FROM records WHERE seq = 3');
  db.close();
  assert.equal((await run('audit', 'verify')).code, 0);
  const cut = await run('audit', 'verify', '--checkpoint', path);
  assert.equal(cut.code, 1);
  assert.match(cut.stdout, /NOT intact: the checkpoint saw 3 records, 2 are left: the tail was cut/);
});

test('a checkpoint that is none is a usage error with file and field, and the daemon is not asked', async (t) => {
  const daemon = await startFakeDaemon();
  t.after(() => daemon.close());
  const run = runnerOf(daemon.env);
  const path = join(daemon.folder, 'bad.checkpoint');
  const cases = [
    ['', /bad\.checkpoint: not JSON/],
    [JSON.stringify({ ...SAMPLE_CHECKPOINT, records: 'all' }), /bad\.checkpoint: `records` must be a whole number/],
    [JSON.stringify({ ...SAMPLE_CHECKPOINT, head: 'x' }), /bad\.checkpoint: `head` must match/],
    [JSON.stringify({ ...SAMPLE_CHECKPOINT, format: 'x' }), /bad\.checkpoint: `format` must be/],
    [JSON.stringify(SAMPLE_CHECKPOINT).padEnd(5_000), /bad\.checkpoint: larger than 4096 bytes/],
  ] as const;
  for (const [text, expected] of cases) {
    await writeFile(path, text);
    const { code, stderr } = await run('audit', 'verify', '--checkpoint', path);
    assert.equal(code, 2, text);
    assert.match(stderr, expected);
  }
  const missing = await run('audit', 'verify', '--checkpoint', join(daemon.folder, 'nothing'));
  assert.equal(missing.code, 2);
  assert.match(missing.stderr, /nothing: cannot be read/);
  assert.deepEqual(daemon.service().calls, []);
});

test('audit rotate-key makes another key sign, by a record that names who asked [X2]', async (t) => {
  const { audit, folder, run } = await auditDaemon(t);
  await audit.append(CLOSED);
  const before = JSON.parse((await run('audit', 'checkpoint')).stdout);
  const rotated = await run('audit', 'rotate-key', '--json');
  assert.deepEqual([rotated.code, rotated.stderr], [0, '']);
  const { seq, keyid } = JSON.parse(rotated.stdout);
  await audit.append(OPENED);
  const after = JSON.parse((await run('audit', 'checkpoint')).stdout);
  assert.deepEqual([seq, after.keyid, before.keyid === keyid], [2, keyid, false]);
  const [, shown] = (await run('audit', 'show', '--json')).stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  assert.deepEqual([shown.record.kind, shown.record.to.keyid], ['key-rotated', keyid]);
  assert.ok(shown.record.actor.length > 0);
  for (const checkpoint of [before, after]) {
    await writeFile(join(folder, 'kept'), JSON.stringify(checkpoint));
    assert.equal((await run('audit', 'verify', '--checkpoint', join(folder, 'kept'))).code, 0);
    const own = ['--key', join(folder, 'audit-keys.pub'), '--checkpoint', join(folder, 'kept')];
    assert.equal((await run('audit', 'verify', ...own)).code, 0, 'beside the daemon, with a key of ours');
  }
  const exported = (await run('audit', 'export')).stdout;
  assert.equal(exported.split('\n').length, 4);
  const db = new DatabaseSync(join(folder, 'audit.db'));
  db.exec('UPDATE records SET seq = 4000000000 WHERE seq = 3; DELETE FROM records WHERE seq = 1');
  db.close();
  const torn = exported.split('\n').slice(1).join('\n');
  assert.equal((await run('audit', 'export')).stdout, torn, 'each record once, however far apart they were put');
});

const page = await readFile(new URL('../../docs/audit.md', import.meta.url), 'utf8');

test('the verifier that the page prints agrees with ours, on whole chains and on broken ones [X2]', async (t) => {
  const { folder, audit, checkpoint, run } = await deadHost(t);
  const program = join(folder, 'audit-verify.mjs');
  await writeFile(program, /```js\n([\s\S]*?)```/.exec(page)?.[1] ?? assert.fail('the page has no program'));
  const file = join(folder, 'export.jsonl');
  const keys = join(audit, 'audit-keys.pub');
  const whole = (await run('audit', 'export')).stdout.trimEnd().split('\n');
  const says = async (lines: readonly string[]) => {
    await writeFile(file, `${lines.join('\n')}\n`);
    const theirs = await tryCommand([process.execPath, program, file, keys, checkpoint]);
    const ours = await run('audit', 'verify', '--file', file, '--key', keys, '--checkpoint', checkpoint);
    assert.equal(theirs.exitCode, ours.code, `${theirs.stderr} / ${ours.stdout}`);
    return theirs;
  };
  assert.match((await says(whole)).stdout, /^14 records, head [0-9a-f]{64}\n$/);
  const at = (index: number): string => whole[index] ?? assert.fail();
  const swapped = whole.with(1, at(2)).with(2, at(1));
  const altered = whole.with(10, at(10).replace('"payload":"eyJf', '"payload":"eyJg'));
  for (const broken of [whole.slice(0, -1), whole.slice(0, 12), whole.slice(1), swapped, altered]) {
    assert.equal((await says(broken)).exitCode, 1);
  }
});

test('a single record is verified with the commands of the page, by OpenSSL [X2]', async (t) => {
  const { audit, folder, run } = await auditDaemon(t);
  for (const record of [ADDED, OFFER, OPENED]) await audit.append(record);
  await writeFile(join(folder, 'host1.audit.jsonl'), (await run('audit', 'export')).stdout);
  const blocks = [...page.matchAll(/```sh\n([\s\S]*?)```/g)].map(([, text = '']) => text);
  const script = blocks.find((text) => text.includes('openssl')) ?? assert.fail('the page has no such commands');
  const runScript = async () => await tryCommand(['sh', '-ec', script], { cwd: folder });
  const { exitCode, stdout, stderr } = await runScript();
  assert.equal(exitCode, 0, stderr);
  assert.match(stdout, /Signature Verified Successfully/);
  assert.ok(stdout.includes(audit.entries({ afterSeq: 2, limit: 1 })[0]?.prev ?? 'nothing'), stdout);
  await writeFile(
    join(folder, 'host1.audit.jsonl'),
    `\n${audit.lines({ afterSeq: 0, limit: 1 }).lines[0]?.replace('LCJ', 'LDJ')}\n`,
  );
  assert.notEqual((await runScript()).exitCode, 0, 'positive control');
});

test('the page names every kind of record that is made [X2]', async () => {
  const source = await readFile(new URL('../../src/audit/record.ts', import.meta.url), 'utf8');
  const kinds = [...source.matchAll(/kind: '([a-z-]+)'/g)].map(([, kind = '']) => kind);
  assert.ok(kinds.length >= 9);
  for (const kind of kinds) assert.ok(page.includes(`| \`${kind}\` |`), kind);
});
