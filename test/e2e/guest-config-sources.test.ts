// What guests are configured with, through a real daemon: files, a configuration server over TLS, and secrets that nobody sees.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { runCommandLine } from '../../proxy/cli/program.ts';
import type { VmConfigView } from '../../proxy/service.ts';
import { systemClock } from '../../src/base/clock.ts';
import { startConfigServer } from '../fakes/config-server.ts';

const MAIN = new URL('../../proxy/main.ts', import.meta.url).pathname;
const FILE_SECRET = 'correct-horse-battery';
const SERVER_SECRET = 'staple-of-the-server';

type Ended = { readonly code: number | null; readonly stdout: string; readonly stderr: string };
type Ground = {
  readonly folder: string;
  readonly run: (...argv: readonly string[]) => Promise<Ended>;
  readonly serve: () => Promise<{ readonly end: () => Promise<string> }>;
};

function makeGround(t: TestContext, configuration: string): Ground {
  const folder = mkdtempSync(join(tmpdir(), 'pratique-config-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const config = join(folder, 'pratique.toml');
  const folders = `dataFolder = "${folder}/data"\nrunFolder = "${folder}/run"\n`;
  writeFileSync(config, `${folders}logLevel = "debug"\n${configuration}`);
  const env = { PATH: process.env.PATH, HOME: folder };
  return {
    folder,
    run: async (...argv) => {
      const said = { stdout: '', stderr: '' };
      const stream = (name: keyof typeof said) => ({ write: (text: string) => (said[name] += text) });
      const code = await runCommandLine([...argv, '--config', config], {
        stdout: stream('stdout'),
        stderr: stream('stderr'),
        env,
        uid: process.getuid?.() ?? 0,
        interrupted: () => new AbortController().signal,
      });
      return { code, ...said };
    },
    serve: async () => {
      const child = spawn(process.execPath, [MAIN, 'serve', '--config', config], {
        env,
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      t.after(() => child.kill('SIGKILL'));
      return await whenReady(child);
    },
  };
}

async function whenReady(child: ChildProcess): Promise<{ end: () => Promise<string> }> {
  let said = '';
  child.stdout?.on('data', (piece) => (said += piece));
  child.stderr?.on('data', (piece) => (said += piece));
  while (!said.includes('the daemon is ready')) {
    assert.equal(child.exitCode, null, said);
    await systemClock.sleep(20);
  }
  return {
    end: async () => {
      child.kill('SIGTERM');
      await once(child, 'close');
      return said;
    },
  };
}

const SPEC = {
  format: 'pratique.vm/1',
  kind: 'managed',
  vm: 'web1',
  machine: 'q35',
  memoryMiB: 64,
  cpus: 1,
  disks: [],
  nics: [{ id: 'net0', model: 'virtio-net-pci', mac: '52:54:00:00:00:01', bridge: 'pqc0' }],
};

const DEFAULT = `
[values]
domain = "example.org"
password = { secret = "db" }

[items.hostname]
kind = "hostname"
hostname = "\${vm}.\${domain}"

[items.app]
kind = "file"
path = "/etc/app.conf"
mode = "0600"
content = "password=\${password}"
apply = [{ restart = "app.service" }]
`;

/** What the server says of the VM: its address [A14], and a secret of its own. */
const DOCUMENT = {
  values: { domain: 'served.example.org' },
  items: {
    lan: {
      kind: 'network',
      interfaces: [{ mac: '52:54:00:00:00:01', addresses: ['192.0.2.10/24'], gateway4: '192.0.2.1' }],
    },
    token: { kind: 'file', path: '/etc/token', mode: '0600', content: { secretText: SERVER_SECRET } },
  },
};

async function shown(ground: Ground): Promise<VmConfigView> {
  const { stdout, stderr } = await ground.run('config', 'show', 'web1', '--json');
  assert.ok(stdout !== '', stderr);
  return JSON.parse(stdout) as VmConfigView; // The cast holds: a test of the API checks its answers.
}

/** Files below a folder whose bytes hold the text. */
function holdersOf(folder: string, text: string): readonly string[] {
  const names = readdirSync(folder, { recursive: true, encoding: 'utf8' });
  const files = names
    .map((name) => join(folder, name))
    .filter((path) => statSync(path, { throwIfNoEntry: false })?.isFile());
  return files.filter((path) => readFileSync(path).includes(text)).map((path) => path.slice(folder.length + 1));
}

test('a VM gets its files, its group and its server in one, and goes on with the last good document [A1] [A14]', async (t) => {
  const certificates = mkdtempSync(join(tmpdir(), 'config-server-'));
  const server = await startConfigServer({ folder: certificates });
  let isServing = true;
  t.after(async () => {
    if (isServing) await server.close();
    rmSync(certificates, { recursive: true });
  });
  const { url, key, caPath } = server;
  const configServer = `url = "${url}"\npublicKeys = ["${key.publicKey}"]\ncaPath = "${caPath}"\n`;
  const ground = makeGround(t, `[groups.web]\nvms = ["web*"]\n[guestConfigServer]\n${configServer}`);
  const guests = join(ground.folder, 'guests');
  mkdirSync(join(guests, 'secrets'), { recursive: true });
  writeFileSync(join(guests, 'default.toml'), DEFAULT);
  const motd = `items:\n  motd: {kind: file, path: /etc/motd, content: "of \${group}"}\n`;
  writeFileSync(join(guests, 'group-web.yaml'), motd);
  writeFileSync(join(guests, 'secrets/db'), `${FILE_SECRET}\n`, { mode: 0o600 });
  server.publish('web1', DOCUMENT);
  writeFileSync(join(ground.folder, 'web1.json'), JSON.stringify(SPEC));
  const first = await ground.serve();
  assert.equal((await ground.run('vm', 'add', join(ground.folder, 'web1.json'))).code, 0);

  const view = await shown(ground);
  assert.deepEqual([view.trouble, view.remarks], [[], []]);
  const sources = Object.fromEntries(view.items.map(({ item, origin }) => [item, `${origin.source}, ${origin.layer}`]));
  assert.deepEqual(sources, {
    app: 'file, default',
    hostname: 'file, default',
    lan: 'server, vm web1',
    motd: 'file, group web',
    token: 'server, vm web1',
  });
  const hostname = view.items.find(({ item }) => item === 'hostname');
  assert.deepEqual(hostname?.setting, { kind: 'hostname', hostname: 'web1.served.example.org' });
  assert.deepEqual(
    hostname?.values.map(({ name, origin }) => [name, origin.at]),
    [
      ['vm', 'built in'],
      ['domain', `${server.url}/v1/vms/web1 serial 1`],
    ],
  );

  await server.close();
  isServing = false;
  const saidFirst = await first.end();
  const second = await ground.serve();
  const away = await shown(ground);
  assert.match(away.remarks.join(), /the configuration server is away; its document of serial 1/);
  assert.deepEqual(
    [away.trouble, away.items.map(({ version }) => version)],
    [[], view.items.map(({ version }) => version)],
  );

  // A mistake gates the VM with the line that makes it, and `config check` finds it without the daemon.
  writeFileSync(join(guests, 'vm-web1.toml'), '[items.app]\nkind = "file"\npaht = "/etc/app.conf"\n');
  assert.match((await shown(ground)).trouble.join(), /vm-web1.toml:3: `items.app.paht` is not a known key.*`path`/);
  assert.equal((await ground.run('config', 'check')).code, 2);

  assert.equal((await ground.run('vm', 'remove', 'web1')).code, 0);
  const said = saidFirst + (await second.end()) + JSON.stringify([view, away]);
  for (const secret of [FILE_SECRET, SERVER_SECRET]) assert.ok(!said.includes(secret));
  // The control: the search finds the one place where the first has to be; the other went with its VM.
  assert.deepEqual(holdersOf(ground.folder, FILE_SECRET), ['guests/secrets/db']);
  assert.deepEqual(holdersOf(ground.folder, SERVER_SECRET), []);
  const kept = readFileSync(join(ground.folder, 'data/guest-config/server/web1.json'), 'utf8');
  assert.match(kept, /"serial":1,.*"envelope":null/);
});
