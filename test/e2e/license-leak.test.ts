// A known token goes through a whole licensed run, and then every byte that is left of it is searched: it is nowhere but sealed.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, readdir, readFile, readlink, rm, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import openapi from '../../docs/openapi.json' with { type: 'json' };
import { makeHelloBundle } from '../../images/hello-product.ts';
import { runCommandLine } from '../../proxy/cli/program.ts';
import { systemClock } from '../../src/base/clock.ts';
import { tryCommand } from '../../src/base/run-command.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import { startLicenseServer, type TestLicenseServer } from '../fakes/license-server.ts';
import { processesOf, type SecretSearch, searchFor } from '../fakes/secret-search.ts';
import { assertConnected, type House, makeHouse, type TestVm } from './harness.ts';

const MAIN = new URL('../../proxy/main.ts', import.meta.url).pathname;
const LICENSE = 'acme-2026';
/** Goes where words of an operator go: what proves that the searcher looks there. */
const MARK = 'mark-7c1e90b24f5d8a36';
/** A token that no server knows. */
const WRONG = 'wrong-token-55d0c3a19e7b';

type Said = { readonly code: number | null; readonly text: string };

const configOf = (house: House): readonly string[] => ['--config', join(house.folder, 'pratique.toml')];

/** The real command line in this process: a start of the program costs a second. */
async function run(house: House, ...argv: readonly string[]): Promise<Said> {
  let text = '';
  const write = (piece: string) => {
    text += piece;
  };
  const interrupted = () => new AbortController().signal;
  const surroundings = {
    stdout: { write },
    stderr: { write },
    env: process.env,
    uid: process.getuid?.() ?? 0,
    interrupted,
  };
  const code = await runCommandLine([...argv, ...configOf(house)], surroundings);
  return { code, text };
}

/** The same in a process of its own: a token goes through its stdin. */
async function runApart(house: House, argv: readonly string[], stdin: string): Promise<Said> {
  const child = spawn(process.execPath, [MAIN, ...argv, ...configOf(house)], { stdio: ['pipe', 'pipe', 'pipe'] });
  let text = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (piece: Buffer) => (text += piece.toString('latin1')));
  child.stdin.end(stdin);
  const [code] = await once(child, 'close');
  return { code, text };
}

/** Everything the API tells about these, by the routes of its own description. */
async function allAnswers(house: House, vm: string): Promise<ReadonlyMap<string, string>> {
  const values: Readonly<Record<string, string>> = { vm, license: LICENSE, vendor: 'demo' };
  const from: Readonly<Record<string, string>> = { after: '0', limit: '500', since: '0' };
  const answers = new Map<string, string>();
  for (const [path, methods] of Object.entries(openapi.paths)) {
    if (!('get' in methods)) continue;
    const filled = path.replace(/\{(\w+)\}/g, (_all, name: string) => values[name] ?? name);
    const { get: asked } = methods;
    const names = 'parameters' in asked ? asked.parameters.map(({ name }) => name) : [];
    const query = names.flatMap((name) => (name in from ? [`${name}=${from[name]}`] : [])).join('&');
    const text = await get(join(house.runFolder, 'pratique.sock'), query === '' ? filled : `${filled}?${query}`);
    assert.match(text, /^200 /, filled);
    answers.set(filled, text);
  }
  return answers;
}

async function get(socketPath: string, path: string): Promise<string> {
  return await new Promise((resolve, reject) => {
    request({ socketPath, path }, (answer) => {
      let text = `${answer.statusCode} ${JSON.stringify(answer.headers)}\n`;
      answer.on('data', (piece: Buffer) => {
        text += piece.toString('latin1');
      });
      answer.on('end', () => resolve(text));
    })
      .on('error', reject)
      .end();
  });
}

/** In the place of systemd-creds: writes down what it was called with, and calls the real one. Null where there is none. */
async function spyOnSealing(folder: string): Promise<string | null> {
  const { stdout, exitCode } = await tryCommand(['sh', '-c', 'command -v systemd-creds']);
  if (exitCode !== 0) return null;
  const bin = join(folder, 'bin');
  const notes = join(folder, 'notes');
  await mkdir(bin);
  const script = `#!/bin/sh\n{ tr '\\0' ' ' </proc/$$/cmdline; tr '\\0' '\\n' </proc/$$/environ; } >>${notes}\nexec ${stdout.trim()} "$@"\n`;
  await writeFile(join(bin, 'systemd-creds'), script);
  await chmod(join(bin, 'systemd-creds'), 0o755);
  process.env.PATH = `${bin}:${process.env.PATH}`;
  return notes;
}

/** A release of hello that the vendor gives to whoever has the token, and to nobody else. */
async function publishLicensed(house: House, token: string): Promise<string> {
  const source = join(house.folder, 'licensed');
  await makeHelloBundle({ version: '1.2.0', folder: source, behaviour: 'ok' });
  // The cast holds: the line above wrote it.
  const description = JSON.parse(await readFile(join(source, 'release.json'), 'utf8')) as Record<string, unknown>;
  await writeFile(join(source, 'release.json'), JSON.stringify({ ...description, license: LICENSE }));
  await house.publishFolder(source);
  const targets = join(house.folder, 'repository/targets');
  const files = await readdir(targets, { recursive: true });
  const path = files.find((name) => name.includes('1.2.0'));
  assert.ok(path !== undefined, files.join(' '));
  house.server.fail(`/targets/${path}`, { kind: 'needs', authorization: `Bearer ${token}` });
  return `/targets/${path}`;
}

async function makeScene(t: TestContext) {
  const server = await startLicenseServer({ licenses: { [LICENSE]: 2 } });
  t.after(server.close);
  const own = await mkdtemp(join(tmpdir(), 'pratique-leak-'));
  t.after(async () => await rm(own, { recursive: true }));
  const notes = await spyOnSealing(own);
  // What is started from here on may dump its core, as far as this machine lets it.
  await tryCommand(['prlimit', '--core=unlimited:', '--pid', String(process.pid)]);
  const house = await makeHouse({ version: '1.1.0' }, 'cloud', { configuration: { logLevel: 'debug' } });
  t.after(house.close);
  return { server, own, notes, house };
}

/** Adds the license as an operator does, wrongly first. */
async function addLicense(house: House, server: TestLicenseServer, own: string): Promise<string> {
  const key = join(own, 'server.pem');
  await writeFile(key, server.publicKey);
  const where = ['--server', server.url, '--public-key', key, '--origin', house.server.url, '--lab'];
  const add = ['license', 'add', LICENSE, ...where];
  const file = join(own, 'token');
  await writeFile(file, WRONG);
  const wrong = await run(house, ...add, '--token-file', file);
  assert.notEqual(wrong.code, 0, wrong.text);
  await writeFile(file, `${server.token()}\n${WRONG}\n`);
  const twoLines = await run(house, ...add, '--token-file', file);
  assert.equal(twoLines.code, 2, twoLines.text);
  const right = await runApart(house, add, `${server.token()}\n`);
  assert.equal(right.code, 0, right.text);
  return wrong.text + twoLines.text + right.text;
}

async function runLicensed(house: House, vm: TestVm, artifact: string, token: string): Promise<void> {
  await vm.start();
  await assertConnected(vm, '1.2.0');
  const asked = house.server.requests.filter(({ headers }) => headers.authorization !== undefined);
  assert.deepEqual(
    asked.map(({ path, headers }) => [path, headers.authorization]),
    [[artifact, `Bearer ${token}`]],
    'the artifact was fetched with the token, and nothing else was',
  );
}

test('a token is found nowhere but sealed: logs, folders, drives, answers, processes, memories, audit export, backup [A15]', async (t) => {
  const { server, own, notes, house } = await makeScene(t);
  const token = server.token();
  const next = server.admin.addToken(LICENSE, { isOnly: false });
  const search = searchFor({ token, next, wrong: WRONG });
  const marks = searchFor({ mark: MARK });
  const watching = searchFor({ token, next, wrong: WRONG, mark: MARK }).watchProcesses();
  t.after(async () => void (await watching.stop()));
  let said = await addLicense(house, server, own);
  const artifact = await publishLicensed(house, token);
  const vm = await house.addVm();
  await runLicensed(house, vm, artifact, token);

  const children = processesOf(house.daemon.pid() ?? 0, house.folder, house.runFolder);
  assert.ok(children.length > 0, 'its QEMU is one of them');
  let readBytes = 0;
  for (const pid of children) {
    const memory = await search.inMemory(pid).catch(() => ({ found: [], readBytes: 0 }));
    assert.deepEqual(memory.found, [], `the memory of ${pid}: ${await readFile(`/proc/${pid}/cmdline`, 'latin1')}`);
    readBytes += memory.readBytes;
  }
  assert.ok(readBytes > 64 * 1024 * 1024, `only ${readBytes} bytes of memory were read`);

  await writeFile(join(own, 'next'), next);
  const rotated = await run(house, 'license', 'rotate', LICENSE, '--token-file', join(own, 'next'));
  assert.equal(rotated.code, 0, rotated.text);
  const revoked = await run(house, 'license', 'revoke', LICENSE, '--reason', `told ${MARK}`);
  assert.equal(revoked.code, 0, revoked.text);
  said += rotated.text;
  for (const verb of [['list'], ['show', LICENSE], ['check'], ['leases'], ['usage']])
    said += (await run(house, 'license', ...verb, '--json')).text;
  for (const words of [['vm', 'show', vm.vm], ['vm', 'events', '--vm', vm.vm], ['doctor'], ['audit', 'show']])
    said += (await run(house, ...words)).text;
  const exported = await run(house, 'audit', 'export');
  const backup = join(own, 'backup.tar');
  const backedUp = await run(house, 'backup', '--to', backup, '--with-blobs');
  assert.equal(backedUp.code, 0, backedUp.text);
  const answers = await allAnswers(house, vm.vm);

  await t.test('the operator is told nothing of it', () => assert.deepEqual(search.inText(said + backedUp.text), []));
  await t.test('no answer of the API has it, and a reason an operator gave is in one', () => {
    for (const [path, text] of answers) assert.deepEqual(search.inText(text), [], path);
    assert.ok(answers.size > 10);
    assert.match(answers.get(`/v1/licenses/${LICENSE}`) ?? '', new RegExp(next.slice(-4)));
    assert.ok([...answers.values()].some((text) => marks.inText(text).length > 0));
  });
  await t.test('no exported audit record has it, and the reason is in one', () => {
    assert.equal(exported.code, 0, exported.text);
    assert.deepEqual(search.inText(exported.text), []);
    assert.notDeepEqual(marks.inText(exported.text), []);
  });
  await t.test('no backup has it, and the reason is in it', async () => {
    const bytes = await readFile(backup);
    assert.deepEqual(search.inBytes(bytes), []);
    assert.notDeepEqual(marks.inBytes(bytes), []);
    assert.ok(!bytes.includes('pratique.vault/1'), 'not even sealed');
    assert.match(backedUp.text, /tokens are not in it.*acme-2026/);
  });
  await t.test('no file of the host has it: log, data and run folder, drives, blobs, disks', async () => {
    for (const folder of [house.folder, house.runFolder]) assert.deepEqual(await search.inFolder(folder), []);
    const sealed = await readFile(join(house.folder, 'data/licenses', `${LICENSE}.json`), 'utf8');
    assert.match(sealed, /"sealed":/);
    assert.notDeepEqual(await marks.inFolder(join(house.folder, 'data')), [], 'the reason is in the audit chain');
    // What is planted is found, in each of these places.
    const drives = join(house.folder, 'data/drives');
    await mkdir(drives, { recursive: true });
    const planted = [
      join(drives, 'planted'),
      join(house.runFolder, 'planted'),
      join(house.folder, 'data/licenses/planted'),
    ];
    for (const path of planted) await writeFile(path, `x${Buffer.from(`ab${token}`).toString('base64')}`);
    await writeFile(house.daemon.logPath, `${Buffer.from(token).toString('hex')}\n`, { flag: 'a' });
    const found = [...(await search.inFolder(house.folder)), ...(await search.inFolder(house.runFolder))];
    for (const path of [...planted, house.daemon.logPath])
      assert.ok(
        found.some((each) => each.startsWith(path)),
        path,
      );
    for (const path of planted) await rm(path);
  });
  await t.test('no program had it in its arguments or environment; one that does is seen', async () => {
    const victim = spawn('sh', ['-c', 'sleep 60', MARK], {
      env: { PATH: process.env.PATH, HELD: MARK },
      stdio: 'ignore',
    });
    const before = watching.looks();
    while (watching.looks() < before + 2) await systemClock.sleep(20);
    victim.kill('SIGKILL');
    const seen = await watching.stop();
    for (const file of ['cmdline', 'environ'])
      assert.ok(seen.includes(`/proc/${victim.pid}/${file}: mark: plain`), seen.join('\n'));
    assert.deepEqual(
      seen.filter((each) => !each.includes(': mark: ')),
      [],
    );
    assert.ok(watching.looks() > 10);
  });
  await t.test('systemd-creds gets it through its standard input only', async (each) => {
    if (notes === null) return each.diagnostic('there is no systemd-creds on this machine; nothing to look at');
    const text = await readFile(notes, 'latin1');
    assert.match(text, /encrypt .*pratique-license-acme-2026/);
    assert.match(text, /decrypt .*pratique-license-acme-2026/);
    assert.deepEqual(search.inText(text), []);
  });
  await t.test(
    'no memory of a child has it; a program that was told it has, and so has its core dump',
    async (each) => {
      const cores = join(own, 'cores');
      await mkdir(cores);
      const argv = ['--core=unlimited', 'sh', '-c', 'read held; echo ready; read more'];
      const victim = spawn('prlimit', argv, { cwd: cores, stdio: ['pipe', 'pipe', 'ignore'] });
      victim.stdin.write(`${token}\n`);
      await once(victim.stdout, 'data');
      const { found } = await search.inMemory(victim.pid ?? 0);
      assert.ok(found.includes('token: plain'), found.join());
      victim.kill('SIGABRT');
      await once(victim, 'exit');
      const pattern = (await readFile('/proc/sys/kernel/core_pattern', 'utf8')).trim();
      if (/[|/%]/.test(pattern)) return each.diagnostic(`core dumps go to "${pattern}" on this machine: none is read`);
      assert.ok(
        (await search.inFolder(cores)).some((one) => one.endsWith('token: plain')),
        'its core dump has it',
      );
      each.diagnostic(await dumpQemu(vm, search));
    },
  );
});

/** Ends the VM's QEMU so that it dumps its core where that may be, and searches it; says what there was. */
async function dumpQemu(vm: TestVm, search: SecretSearch): Promise<string> {
  const { pid } = await vm.qemu();
  const folder = await readlink(`/proc/${pid}/cwd`);
  const before = new Set(await readdir(folder));
  process.kill(pid, 'SIGABRT');
  assert.ok(await waitUntil(async () => !existsSync(`/proc/${pid}`), systemClock, 60_000), 'QEMU has ended');
  const cores = (await readdir(folder)).filter((name) => name.startsWith('core') && !before.has(name));
  for (const name of cores) {
    const path = join(folder, name);
    assert.deepEqual(search.inBytes(await readFile(path)), [], path);
    await rm(path);
  }
  return cores.length === 0
    ? 'QEMU left no core dump here: its memory was searched instead'
    : "QEMU's core dump was searched";
}
