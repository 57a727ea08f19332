// What the command line says of the configuration of guests: a VM's as it would get it, and the mistakes in its files.
import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { makePrivatePem } from '../../src/base/dsse.ts';
import { openDocument, readEnvelope, verifyKeysOf } from '../../src/guest-config/server-document.ts';
import { type FakeDaemon, startFakeDaemon } from '../../test/fakes/daemon.ts';
import { runCommandLine } from './program.ts';

let daemon: FakeDaemon;
before(async () => {
  daemon = await startFakeDaemon();
});
after(async () => await daemon.close());

async function run(argv: readonly string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const said = { stdout: '', stderr: '' };
  const stream = (name: keyof typeof said) => ({ write: (text: string) => (said[name] += text), isTTY: false });
  const code = await runCommandLine(argv, {
    stdout: stream('stdout'),
    stderr: stream('stderr'),
    env: daemon.env,
    uid: 1000,
    interrupted: () => new AbortController().signal,
  });
  return { code, ...said };
}

test('config show with a name tells what a VM will get and from which line, with secrets blanked [A14]', async () => {
  const { code, stdout } = await run(['config', 'show', 'web']);
  assert.equal(code, 0);
  assert.equal(
    stdout,
    [
      '# web',
      '',
      '# from default, /etc/pratique/guests/default.toml:4; version 3+0123456789abcdef',
      '# password = "(secret)"  from default, /etc/pratique/guests/default.toml:4',
      '[items.app]',
      'kind = "file"',
      'path = "/etc/app.conf"',
      'content = "password=(secret)\\n"',
      'mode = "0600"',
      '',
      '[[items.app.apply]]',
      'restart = "app.service"',
      "# remark: the VM's spec has no NIC 52:54:00:00:00:02",
      '',
    ].join('\n'),
  );
  const asJson = JSON.parse((await run(['config', 'show', 'web', '--json'])).stdout);
  assert.equal(asJson.items[0].origin.layer, 'default');
  const nobody = await run(['config', 'show', 'nobody']);
  assert.equal(nobody.code, 2);
});

const HOST = '[groups.web]\nvms = ["web-*"]\n';
const BAD_FILES: readonly (readonly [string, string, RegExp])[] = [
  ['default.toml', '[items.x]\nkind = "hostname"\nhostnam = "x"\n', /default.toml:3: `items.x.hostnam`.*`hostname`/],
  ['default.toml', `[items.x]\nkind = "hostname"\nhostname = "\${vn}"\n`, /default.toml:1: item x names `vn`.*`vm`/],
  ['group-wbe.toml', '', /group-wbe: the host's configuration has no such group; the nearest known group is web/],
  ['web-1.toml', '', /web-1.toml: its name is not default, group-NAME or vm-NAME/],
  ['vm-web-1.toml', '[items.x]\nremove = true\n', /VM web-1: .*vm-web-1.toml:1: there is no inherited item `x`/],
];

test('config check finds mistakes in the files of guests without a daemon, and exits with 2', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'config-check-'));
  t.after(() => rm(folder, { recursive: true }));
  const path = join(folder, 'pratique.toml');
  await writeFile(path, HOST);
  const check = () => run(['config', 'check', '--config', path]);
  assert.deepEqual(await check(), { code: 0, stdout: `Correct: ${path}\n`, stderr: '' });
  const guests = join(folder, 'guests');
  await mkdir(guests);
  // A value that a VM's own file gives may be named by the layer that all VMs have.
  await writeFile(join(guests, 'default.toml'), `[items.x]\nkind = "hostname"\nhostname = "\${name}"\n`);
  await writeFile(join(guests, 'vm-web-2.toml'), '[values]\nname = "two"\n');
  assert.equal((await check()).code, 0);
  await rm(join(guests, 'default.toml'));
  for (const [name, text, expected] of BAD_FILES) {
    await writeFile(join(guests, name), text);
    const { code, stdout } = await check();
    assert.equal(code, 2, name);
    assert.match(stdout, expected);
    const asJson = JSON.parse((await run(['config', 'check', '--config', path, '--json'])).stdout);
    assert.equal(asJson.ok, false);
    await rm(join(guests, name));
  }
});

test('config sign makes a document that a host believes, and refuses what no host would', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'config-sign-'));
  t.after(() => rm(folder, { recursive: true }));
  const at = (name: string) => join(folder, name);
  const key = makePrivatePem();
  await writeFile(at('key.pem'), key, { mode: 0o600 });
  await writeFile(at('web1.toml'), '[items.h]\nkind = "hostname"\nhostname = "web1"\n');
  const sign = (file: string, ...more: readonly string[]) =>
    run([
      'config',
      'sign',
      at(file),
      '--key',
      at('key.pem'),
      '--vm',
      'web1',
      '--out',
      at('web1.json'),
      ...more,
      '--json',
    ]);
  const signed = JSON.parse((await sign('web1.toml', '--serial', '7')).stdout);
  const envelope = readEnvelope(await readFile(at('web1.json'), 'utf8'), 'x');
  const { document } = openDocument(envelope, { url: 'x', vm: 'web1', keys: verifyKeysOf([signed.publicKey]) });
  assert.deepEqual([document.serial, document.vm, signed.serial], [7, 'web1', 7]);
  assert.equal((await stat(at('web1.json'))).mode & 0o777, 0o600);
  await writeFile(at('bad.toml'), '[items.h]\nkind = "hostname"\nhostnam = "web1"\n');
  const refused = await sign('bad.toml');
  assert.equal(refused.code, 2);
  assert.match(refused.stderr, /`items.h.hostnam` is not a known key/);
  await chmod(at('key.pem'), 0o644);
  assert.match((await sign('web1.toml')).stderr, /is open to others/);
});

test('what config show prints is a file that says the same', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'config-show-'));
  t.after(() => rm(folder, { recursive: true }));
  const path = join(folder, 'pratique.toml');
  const key = 'MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=';
  const server = `[guestConfigServer]\nurl = "https://x.example/c"\npublicKeys = ["${key}"]\ngrace = "72h"\n`;
  await writeFile(path, `guestConfigFolder = "${folder}/guests"\n${HOST}${server}[licenses]\npoll = "45s"\n`);
  const show = async (...more: readonly string[]) => (await run(['config', 'show', '--config', path, ...more])).stdout;
  const before = JSON.parse(await show('--json')).config;
  assert.equal(before.guestConfigServer.graceMs, 72 * 3_600_000);
  await writeFile(path, await show());
  assert.deepEqual(JSON.parse(await show('--json')).config, { ...before, policyOfFiles: before.policy });
});
