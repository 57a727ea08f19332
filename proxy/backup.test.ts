// Backups of a host at work, what they hold, and what a restore refuses.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, randomInt } from 'node:crypto';
import { once } from 'node:events';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { buffer } from 'node:stream/consumers';
import { afterEach, beforeEach, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { type Header, pack } from 'tar-stream';
import { openAudit } from '../src/audit/audit.ts';
import { systemClock } from '../src/base/clock.ts';
import { digestOf } from '../src/base/digest.ts';
import { PratiqueError } from '../src/base/errors.ts';
import { silentLog } from '../src/base/log.ts';
import { openDatabase } from '../src/base/sqlite.ts';
import { openCatalog } from '../src/store/catalog.ts';
import { type BackupOptions, type BackupReport, backUpToFile } from './backup.ts';
import { HOST_DATABASE, HOST_MIGRATIONS } from './databases.ts';
import { restore } from './restore.ts';

const ROOT = new URL('..', import.meta.url).pathname;
let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'pratique-backup-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const at = (...parts: readonly string[]): string => join(folder, ...parts);
const BLOB = 'the bytes of a package';

/** A data folder with something in each of its places, and a configuration beside it. */
async function makeHost(name = 'host'): Promise<BackupOptions> {
  const data = at(name);
  mkdirSync(join(data, 'vendors/acme'), { recursive: true });
  mkdirSync(join(data, 'store'));
  const db = openDatabase(join(data, HOST_DATABASE), HOST_MIGRATIONS);
  const added = { kind: 'tuf', name: 'extra', metadataUrl: 'x', targetsUrl: 'y', rootPath: at('extra-root.json') };
  db.prepare('INSERT INTO vendor VALUES (?, ?)').run('extra', JSON.stringify(added));
  db.close();
  const audit = await openAudit({ folder: join(data, 'audit'), clock: systemClock, log: silentLog });
  await audit.append({ kind: 'operator', actor: 'test', action: 'began', detail: '' });
  await audit.close();
  const catalog = openCatalog(join(data, 'store'));
  const digest = digestOf(BLOB);
  catalog.add(digest, BLOB.length, 1);
  catalog.close();
  mkdirSync(join(data, 'store/blobs', digest.slice(0, 2)), { recursive: true });
  writeFileSync(join(data, 'store/blobs', digest.slice(0, 2), digest), BLOB);
  writeFileSync(join(data, 'vendors/acme/trust.json'), '{"anchor":"x"}');
  writeFileSync(join(data, 'trust-time.json'), '{}');
  writeFileSync(at('pratique.toml'), '# configuration\n');
  writeFileSync(at('extra-root.json'), '{"root":true}');
  return {
    dataFolder: data,
    configFiles: [at('pratique.toml')],
    vendors: [],
    hasKeys: true,
    hasBlobs: false,
    clock: systemClock,
  };
}

const restoreTo = (name: string, file: string, digest: string | null = null) =>
  restore({ file, dataFolder: at(name), digest, clock: systemClock });

async function codeOf(work: Promise<unknown>): Promise<string> {
  const error = await work.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  assert.ok(error instanceof PratiqueError, String(error));
  return error.code;
}

/** Every file below a folder with its content, by its path. */
function treeOf(root: string): Readonly<Record<string, string>> {
  const files = readdirSync(root, { recursive: true, withFileTypes: true }).filter((each) => each.isFile());
  const named = files.map(({ parentPath, name }) => join(parentPath, name));
  return Object.fromEntries(named.sort().map((path) => [path.slice(root.length + 1), readFileSync(path, 'latin1')]));
}

/** Rows of a database, whatever its write-ahead log holds. */
function rowsOf(path: string, query: string): readonly Record<string, unknown>[] {
  const db = new DatabaseSync(path);
  try {
    return db.prepare(query).all();
  } finally {
    db.close();
  }
}

for (const name of ['a.tar', 'a.tar.gz', 'a.tar.zst']) {
  test(`${name}: what was in the data folder is in the restored one, for its owner only`, async () => {
    const options = await makeHost();
    const report = await backUpToFile(at(name), { ...options, hasBlobs: true });
    assert.equal(statSync(at(name)).mode & 0o777, 0o600);
    assert.equal(report.sizeBytes, statSync(at(name)).size);
    assert.equal(
      report.digest,
      createHash('sha256')
        .update(readFileSync(at(name)))
        .digest('hex'),
    );
    assert.match(report.remarks.join(), /key that signs the audit records/);
    assert.deepEqual(report.manifest.schemas, {
      'pratique.db': HOST_MIGRATIONS.length,
      'audit/audit.db': Number(
        rowsOf(join(options.dataFolder, 'audit/audit.db'), 'PRAGMA user_version')[0]?.user_version,
      ),
      'store/catalog.sqlite': 1,
    });
    // In the order of their moments: a decision is in the chain before the journal says that it was made.
    assert.deepEqual(Object.keys(report.manifest.schemas).slice(0, 2), ['pratique.db', 'audit/audit.db']);
    const restored = await restoreTo('restored', at(name), report.digest);
    const before = treeOf(options.dataFolder);
    const after = treeOf(at('restored'));
    for (const path of ['vendors/acme/trust.json', 'trust-time.json', 'audit/audit-key.pem', 'audit/audit-key.pub'])
      assert.equal(after[path], before[path], path);
    assert.equal(after[`store/blobs/${digestOf(BLOB).slice(0, 2)}/${digestOf(BLOB)}`], BLOB);
    assert.equal(statSync(at('restored/audit/audit-key.pem')).mode & 0o777, 0o600);
    assert.equal(statSync(at('restored')).mode & 0o777, 0o711);
    assert.deepEqual(
      restored.config.map(({ path, from }) => [readFileSync(path, 'utf8'), from]),
      [
        ['# configuration\n', at('pratique.toml')],
        ['{"root":true}', at('extra-root.json')],
      ],
    );
    const audit = await openAudit({ folder: at('restored/audit'), clock: systemClock, log: silentLog });
    assert.equal((await audit.verify()).isIntact, true);
    await audit.append({ kind: 'operator', actor: 'test', action: 'goes on', detail: '' });
    await audit.close();
    assert.equal(JSON.parse(after['restored.json'] ?? '').madeAtMs, report.manifest.madeAtMs);
    assert.deepEqual(
      readdirSync(options.dataFolder).filter((each) => each.startsWith('.backup')),
      [],
    );
    assert.deepEqual(
      readdirSync(folder).filter((each) => /\.(restore|partial)/.test(each)),
      [],
    );
  });
}

test('without blobs and without keys neither is in it, and the restore says what is left to do', async () => {
  const options = await makeHost();
  const { manifest } = await backUpToFile(at('b.tar'), { ...options, hasKeys: false });
  assert.equal(manifest.blobs, 1);
  const report = await restoreTo('restored', at('b.tar'));
  const files = Object.keys(treeOf(at('restored')));
  assert.deepEqual(
    files.filter((path) => /blobs|\.pem$/.test(path)),
    [],
  );
  assert.ok(files.includes('audit/audit-key.pub'));
  assert.match(
    report.next.join('\n'),
    /audit-key\.pem, mode 600\n.*\n.*start the daemon.*\n1 packages are fetched again/s,
  );
  assert.doesNotMatch(readFileSync(at('b.tar'), 'latin1'), /PRIVATE KEY/);
});

test('a backup never overwrites, and what is not a data folder is not backed up', async () => {
  const options = await makeHost();
  writeFileSync(at('b.tar'), 'precious');
  assert.equal(await codeOf(backUpToFile(at('b.tar'), options)), 'conflict/backup-exists');
  assert.equal(readFileSync(at('b.tar'), 'utf8'), 'precious');
  mkdirSync(at('empty'));
  assert.equal(await codeOf(backUpToFile(at('c.tar'), { ...options, dataFolder: at('empty') })), 'usage/data-folder');
  assert.equal(await codeOf(backUpToFile(at('c.tar'), { ...options, dataFolder: at('nowhere') })), 'usage/data-folder');
  assert.equal(await codeOf(backUpToFile(at('nowhere/c.tar'), options)), 'host-fault/backup');
  assert.ok(!existsSync(at('c.tar')));
});

test('a rotten blob stops the backup instead of being kept for the day it is needed', async () => {
  const options = await makeHost();
  const digest = digestOf(BLOB);
  writeFileSync(join(options.dataFolder, 'store/blobs', digest.slice(0, 2), digest), BLOB.replace('t', 'T'));
  assert.equal(await codeOf(backUpToFile(at('b.tar'), { ...options, hasBlobs: true })), 'host-fault/backup-rotten');
  assert.deepEqual(
    readdirSync(folder).filter((name) => name.startsWith('b.tar')),
    [],
  );
});

test('a restore refuses a folder with anything in it, also its own from a moment ago, and changes nothing there', async () => {
  const options = await makeHost();
  await backUpToFile(at('b.tar'), options);
  const before = treeOf(options.dataFolder);
  assert.equal(await codeOf(restoreTo('host', at('b.tar'))), 'conflict/data-folder');
  assert.deepEqual(treeOf(options.dataFolder), before);
  mkdirSync(at('waiting'));
  chmodSync(at('waiting'), 0o700);
  await restoreTo('waiting', at('b.tar'));
  assert.equal(await codeOf(restoreTo('waiting', at('b.tar'))), 'conflict/data-folder');
});

test('a file that is missing, another one than the digest says, no backup at all: each is told', async () => {
  const options = await makeHost();
  const { digest } = await backUpToFile(at('b.tar'), options);
  assert.equal(await codeOf(restoreTo('r', at('nothing.tar'))), 'usage/backup-file');
  const other = digest.startsWith('0') ? `1${digest.slice(1)}` : `0${digest.slice(1)}`;
  assert.equal(await codeOf(restoreTo('r', at('b.tar'), other)), 'usage/backup-damaged');
  for (const [name, bytes] of Object.entries({
    empty: Buffer.alloc(0),
    text: Buffer.from('not a tar at all'.repeat(100)),
    gzip: gzipSync(Buffer.from('not a tar at all'.repeat(100))),
    zeros: Buffer.alloc(4096),
  })) {
    writeFileSync(at(name), bytes);
    assert.equal(await codeOf(restoreTo('r', at(name))), 'usage/backup-damaged', name);
  }
  assert.ok(!existsSync(at('r')));
});

test('a backup cut off anywhere, or changed in any byte that matters, is refused and leaves nothing', async (t) => {
  const options = await makeHost();
  const { digest } = await backUpToFile(at('b.tar'), options);
  const whole = readFileSync(at('b.tar'));
  await restoreTo('right', at('b.tar'), digest);
  const right = treeOf(at('right'));
  const seed = randomInt(2 ** 31);
  t.diagnostic(`seed ${seed}`);
  let state = seed;
  const next = (below: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  let refused = 0;
  for (let round = 0; round < 40; round += 1) {
    const isCut = round % 4 === 0;
    const place = next(whole.length);
    const bytes = isCut ? whole.subarray(0, place) : Buffer.from(whole);
    if (!isCut) bytes[place] = (bytes[place] ?? 0) ^ (1 << next(8));
    writeFileSync(at('bad.tar'), bytes);
    const outcome = await restoreTo('bad', at('bad.tar')).then(
      () => 'restored',
      (error: unknown) => (error instanceof PratiqueError ? error.code : `bug: ${error}`),
    );
    if (outcome === 'usage/backup-damaged') {
      refused += 1;
      assert.ok(!existsSync(at('bad')), `round ${round}`);
      continue;
    }
    // Padding, times and the two empty blocks at the end say nothing of the content.
    assert.equal(outcome, 'restored', `round ${round}, byte ${place}`);
    const found = { ...treeOf(at('bad')), 'restored.json': '' };
    assert.deepEqual(found, { ...right, 'restored.json': '' }, `round ${round}, byte ${place}`);
    rmSync(at('bad'), { recursive: true });
  }
  assert.ok(refused > 10, `${refused} of 40`);
  assert.deepEqual(
    readdirSync(folder).filter((name) => name.includes('.restore-')),
    [],
  );
});

type Planted = { readonly header: Partial<Header> & { readonly name: string }; readonly content?: string };

async function tarOf(entries: readonly Planted[]): Promise<Buffer> {
  const tar = pack();
  for (const { header, content = '' } of entries) tar.entry({ mode: 0o600, ...header }, content);
  tar.finalize();
  return await buffer(tar);
}

/** A backup as somebody might forge it. */
async function forge(
  files: readonly { path: string; content: string }[],
  extra: readonly Planted[] = [],
): Promise<string> {
  const listed = files.map(({ path, content }) => ({ path, sizeBytes: content.length, digest: digestOf(content) }));
  const manifest = {
    format: 'pratique.backup/1',
    program: '1.0.0',
    madeAtMs: 1,
    hasKeys: true,
    hasBlobs: false,
    schemas: { 'pratique.db': 1 },
    files: listed,
    blobs: [],
  };
  const entries = files.map(({ path, content }) => ({ header: { name: path }, content }));
  const head = { header: { name: 'manifest.json' }, content: JSON.stringify(manifest) };
  writeFileSync(at('forged.tar'), await tarOf([head, ...entries, ...extra]));
  return at('forged.tar');
}

test('what a forged backup may not do: climb, link, fill other places, repeat, say one thing and hold another', async () => {
  const good = { path: 'data/pratique.db', content: 'x' };
  await restoreTo('control', await forge([good]));
  const cases: Readonly<Record<string, () => Promise<string>>> = {
    climbing: () => forge([good, { path: 'data/audit/../../../evil', content: 'x' }]),
    'climbing in the tar only': () => forge([good], [{ header: { name: '../evil' }, content: 'x' }]),
    absolute: () => forge([good, { path: '/etc/evil', content: 'x' }]),
    'another place': () => forge([good, { path: 'data/daemon.lock', content: 'x' }]),
    'another folder': () => forge([good, { path: 'data/vendors/a/b/c', content: 'x' }]),
    'a dot file': () => forge([good, { path: 'data/audit/.hidden', content: 'x' }]),
    'not listed': () => forge([good], [{ header: { name: 'data/trust-time.json' }, content: 'x' }]),
    twice: () => forge([good], [{ header: { name: good.path }, content: 'y' }]),
    'listed twice': () => forge([good, good]),
    'a symbolic link': () =>
      forge([good], [{ header: { name: 'data/audit/x.pem', type: 'symlink', linkname: '/etc/passwd' } }]),
    'a hard link': () =>
      forge([good], [{ header: { name: 'data/audit/x.pem', type: 'link', linkname: '/etc/passwd' } }]),
    'a device': () => forge([good], [{ header: { name: 'data/audit/x.pem', type: 'character-device' } }]),
    'a blob under another name': () => forge([good, { path: `data/store/blobs/aa/${'a'.repeat(64)}`, content: 'x' }]),
    'without a journal': () => forge([{ path: 'data/trust-time.json', content: 'x' }]),
    'without a manifest': async () => {
      writeFileSync(at('forged.tar'), await tarOf([{ header: { name: good.path }, content: 'x' }]));
      return at('forged.tar');
    },
    'a bomb': async () => {
      const forged = readFileSync(await forge([good], []));
      const zeros = Buffer.alloc(80 * 1024 * 1024);
      writeFileSync(at('forged.tar'), gzipSync(Buffer.concat([forged.subarray(0, -1024), zeros])));
      return at('forged.tar');
    },
  };
  for (const [name, make] of Object.entries(cases)) {
    const before = readdirSync(folder).sort();
    assert.equal(await codeOf(restoreTo('r', await make())), 'usage/backup-damaged', name);
    assert.deepEqual(readdirSync(folder).sort(), before, name);
  }
});

test('a backup of a newer program is refused by its number', async () => {
  const forged = readFileSync(await forge([{ path: 'data/pratique.db', content: 'x' }]), 'latin1');
  const newer = forged.replace('"pratique.db":1}', '"pratique.db":9}');
  assert.notEqual(newer, forged);
  writeFileSync(at('newer.tar'), newer, 'latin1');
  // 9 is more than this program knows; the tar's own sums are of headers only.
  assert.ok(HOST_MIGRATIONS.length < 9);
  assert.equal(await codeOf(restoreTo('r', at('newer.tar'))), 'host-unfit/schema-newer');
});

/** Opens gate after gate as the daemon does: the record is on disk, then the state. Says `begun` and goes on until it is killed. */
const OPENER = `
  const { openAudit } = await import('./src/audit/audit.ts');
  const { openDatabase } = await import('./src/base/sqlite.ts');
  const { systemClock } = await import('./src/base/clock.ts');
  const { silentLog } = await import('./src/base/log.ts');
  const { HOST_MIGRATIONS } = await import('./proxy/databases.ts');
  const data = process.argv[1];
  const audit = await openAudit({ folder: data + '/audit', clock: systemClock, log: silentLog });
  const db = openDatabase(data + '/pratique.db', HOST_MIGRATIONS);
  db.exec("INSERT INTO vm VALUES ('web', 1, '{}', '', '{}'); INSERT INTO run_state VALUES ('web', 0, 0, '{}')");
  const save = db.prepare("UPDATE run_state SET step = ? WHERE vm = 'web'");
  for (let step = 1; ; step += 1) {
    await audit.append({ kind: 'operator', actor: 'opener', action: 'opened', detail: String(step) });
    save.run(step);
    if (step === 3) console.log('begun');
  }`;

const program = (code: string, ...argv: readonly string[]) =>
  spawn(process.execPath, ['--input-type=module', '-e', code, ...argv], {
    cwd: ROOT,
    stdio: ['ignore', 'pipe', 'inherit'],
  });

test('in a backup of a host at work, whatever the journal says was opened has its record in the chain [X2]', async (t) => {
  const options = await makeHost();
  const opener = program(OPENER, options.dataFolder);
  t.after(() => opener.kill('SIGKILL'));
  await once(opener.stdout, 'data');
  const steps: number[] = [];
  for (let round = 0; round < 8; round += 1) {
    await backUpToFile(at(`${round}.tar`), options);
    await restoreTo(`r${round}`, at(`${round}.tar`));
    const step = Number(rowsOf(at(`r${round}`, HOST_DATABASE), 'SELECT step FROM run_state')[0]?.step);
    const audit = await openAudit({ folder: at(`r${round}`, 'audit'), clock: systemClock, log: silentLog });
    const { isIntact, records } = await audit.verify();
    await audit.close();
    assert.ok(isIntact, `round ${round}`);
    // The first record was made before the opener began.
    assert.ok(records - 1 >= step, `round ${round}: state ${step}, ${records} records`);
    steps.push(step);
  }
  assert.ok(new Set(steps).size > 4, `the host went on meanwhile: ${steps.join(' ')}`);
});

const BACKUP = `
  const { backUpToFile } = await import('./proxy/backup.ts');
  const { systemClock } = await import('./src/base/clock.ts');
  const [data, file] = process.argv.slice(1);
  console.log('begun');
  await backUpToFile(file, { dataFolder: data, configFiles: [], vendors: [], hasKeys: true, hasBlobs: true, clock: systemClock });
  console.log('ended');`;
const RESTORE = `
  const { restore } = await import('./proxy/restore.ts');
  const { systemClock } = await import('./src/base/clock.ts');
  const [file, dataFolder] = process.argv.slice(1);
  console.log('begun');
  await restore({ file, dataFolder, digest: null, clock: systemClock });
  console.log('ended');`;

/** Kills the program at a moment after it began; whether it was faster. */
async function killAfter(delayMs: number, code: string, ...argv: readonly string[]): Promise<boolean> {
  const child = program(code, ...argv);
  let said = '';
  child.stdout.on('data', (piece) => (said += piece));
  await once(child.stdout, 'data');
  await systemClock.sleep(delayMs);
  child.kill('SIGKILL');
  await once(child, 'close');
  return said.includes('ended');
}

test('a key that is rotated after the chain was copied stops the backup: the two would not fit together in a restored host [X2]', async () => {
  const options = await makeHost();
  const rotate = async () => {
    const audit = await openAudit({ folder: join(options.dataFolder, 'audit'), clock: systemClock, log: silentLog });
    await audit.rotateKey({ actor: 'test' });
    await audit.close();
  };
  const rotating = await rotatedMeanwhile(options, rotate);
  assert.equal(await codeOf(backUpToFile(at('a.tar'), rotating)), 'conflict/backup-rotation');
  assert.deepEqual(
    readdirSync(folder).filter((name) => name.startsWith('a.tar')),
    [],
  );
  // The chain as the rotation left it, with its keys.
  rmSync(join(options.dataFolder, 'audit'), { recursive: true });
  renameSync(at('rotated-audit'), join(options.dataFolder, 'audit'));
  await backUpToFile(at('b.tar'), options);
  await restoreTo('again', at('b.tar'));
  const audit = await openAudit({ folder: at('again/audit'), clock: systemClock, log: silentLog });
  await audit.close();
});

/** The moments of the databases are taken at once; what happens while the files beside them are read is ours to choose. */
async function rotatedMeanwhile(options: BackupOptions, rotate: () => Promise<void>): Promise<BackupOptions> {
  const other = at('other-audit');
  cpSync(join(options.dataFolder, 'audit'), other, { recursive: true });
  await rotate();
  const after = at('rotated-audit');
  renameSync(join(options.dataFolder, 'audit'), after);
  renameSync(other, join(options.dataFolder, 'audit'));
  return {
    ...options,
    get vendors() {
      for (const name of readdirSync(after)) {
        if (/[.](pem|pub)$/.test(name)) cpSync(join(after, name), join(options.dataFolder, 'audit', name));
      }
      return [];
    },
  };
}

test('a backup or a restore that is killed leaves no half of either, and the next one clears up', async () => {
  const options = { ...(await makeHost()), hasBlobs: true };
  // Large enough to be caught in the middle.
  const large = Buffer.alloc(48 * 1024 * 1024, 7);
  const digest = digestOf(large);
  mkdirSync(join(options.dataFolder, 'store/blobs', digest.slice(0, 2)), { recursive: true });
  writeFileSync(join(options.dataFolder, 'store/blobs', digest.slice(0, 2), digest), large);
  const catalog = openCatalog(join(options.dataFolder, 'store'));
  catalog.add(digest, large.length, 1);
  catalog.close();
  let caught = 0;
  for (const delayMs of [0, 60]) {
    const isDone = await killAfter(delayMs, BACKUP, options.dataFolder, at(`k${delayMs}.tar`));
    assert.equal(existsSync(at(`k${delayMs}.tar`)), isDone);
    if (!isDone) caught += 1;
  }
  assert.ok(caught > 0, 'at least one was caught in the middle');
  const report: BackupReport = await backUpToFile(at('k0.tar'), options);
  assert.deepEqual(
    readdirSync(options.dataFolder).filter((name) => name.startsWith('.backup')),
    [],
  );
  caught = 0;
  for (const delayMs of [0, 60]) {
    const isDone = await killAfter(delayMs, RESTORE, at('k0.tar'), at('r'));
    assert.equal(existsSync(at('r')), isDone);
    if (isDone) rmSync(at('r'), { recursive: true });
    else caught += 1;
  }
  assert.ok(caught > 0, 'at least one was caught in the middle');
  await restoreTo('r', at('k0.tar'), report.digest);
  assert.deepEqual(
    readdirSync(folder).filter((name) => name.includes('.restore-')),
    [],
  );
});
