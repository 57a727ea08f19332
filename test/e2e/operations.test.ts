// The daemon as operators run it: ends in order, tells no secret to anybody, and is restored from a backup with every gate closed.
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { runCommandLine } from '../../proxy/cli/program.ts';
import { systemClock } from '../../src/base/clock.ts';
import { startHttpServer } from '../fakes/http-server.ts';
import { assertConnected, openHouse } from './harness.ts';

const MAIN = new URL('../../proxy/main.ts', import.meta.url).pathname;

type Ended = { readonly code: number | null; readonly stdout: string; readonly stderr: string };

function collect(child: ChildProcess): Promise<Ended> {
  const said = { stdout: '', stderr: '' };
  child.stdout?.on('data', (piece) => (said.stdout += piece));
  child.stderr?.on('data', (piece) => (said.stderr += piece));
  return once(child, 'close').then(([code]) => ({ code, ...said }));
}

/** A folder with a configuration, and the program over it. */
function makeGround(t: TestContext, configuration: string, extra: NodeJS.ProcessEnv = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'pratique-ops-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const config = join(folder, 'pratique.toml');
  writeFileSync(
    config,
    `dataFolder = "${folder}/data"\nrunFolder = "${folder}/run"\nlogLevel = "debug"\n${configuration}`,
  );
  const env = { PATH: process.env.PATH, HOME: folder, ...extra };
  const start = (...argv: readonly string[]) =>
    spawn(process.execPath, [MAIN, ...argv, '--config', config], { env, stdio: ['ignore', 'pipe', 'pipe'] });
  return {
    folder,
    config,
    /** In this process: a start of the program costs a second. */
    run: async (...argv: readonly string[]): Promise<Ended> => {
      const said = { stdout: '', stderr: '' };
      const stream = (name: keyof typeof said) => ({
        write: (text: string) => {
          said[name] += text;
        },
      });
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
      const child = start('serve');
      t.after(() => child.kill('SIGKILL'));
      const ended = collect(child);
      let said = '';
      child.stderr.on('data', (piece) => (said += piece));
      while (!said.includes('the daemon is ready')) {
        assert.equal(child.exitCode, null, said);
        await systemClock.sleep(20);
      }
      return { child, ended };
    },
  };
}

test('SIGTERM and SIGHUP end the daemon in order and soon, also with a vendor that does not answer; it starts again', async (t) => {
  const web = mkdtempSync(join(tmpdir(), 'pratique-ops-web-'));
  const server = await startHttpServer(web);
  t.after(async () => {
    await server.close();
    rmSync(web, { recursive: true });
  });
  server.fail('/dists/bookworm/InRelease', { kind: 'silent' });
  const ground = makeGround(
    t,
    `[[vendors]]\nkind = "debian-apt"\nname = "deb"\nsuites = ["bookworm"]\nurl = "${server.url}/"\narch = "amd64"\n`,
  );
  let asked = 0;
  /** A request that waits for the vendor. */
  const ask = async () => {
    asked = server.requests.length + 1;
    const asking = ground.run('vendor', 'check');
    while (server.requests.length < asked) await systemClock.sleep(20);
    return { asking };
  };
  // Two signals, one after the other: what the first waits for is left.
  const first = await ground.serve();
  const { asking } = await ask();
  first.child.kill('SIGTERM');
  await systemClock.sleep(100);
  first.child.kill('SIGTERM');
  const { code, stderr } = await first.ended;
  assert.equal(code, 1, stderr);
  assert.doesNotMatch(stderr, /the daemon has ended/);
  assert.equal((await asking).code, 7);
  for (const signal of ['SIGTERM', 'SIGHUP'] as const) {
    const { child, ended } = await ground.serve();
    const waiting = await ask();
    const sentMs = systemClock.monotonicMs();
    child.kill(signal);
    const end = await ended;
    assert.equal(end.code, 0, end.stderr);
    assert.ok(systemClock.monotonicMs() - sentMs < 10_000, signal);
    assert.match(end.stderr, /the daemon has ended; VMs go on as they are/);
    assert.deepEqual(
      readdirSync(join(ground.folder, 'run')).filter((name) => /sock|pid/.test(name)),
      [],
    );
    await waiting.asking;
  }
});

const SECRETS = [
  'Pl4nted-in-url',
  'Pl4nted-in-query',
  'Pl4nted-in-proxy',
  'Pl4nted-in-redirect',
  'Pl4nted-in-reason',
  'Pl4nted-in-env',
];
const isTold = (text: string): readonly string[] => SECRETS.filter((secret) => text.includes(secret));

/** Every file below a folder that holds one of the secrets. */
function filesWithSecrets(folder: string): readonly string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => join(parentPath, name))
    .filter((path) => isTold(readFileSync(path, 'latin1')).length > 0);
}

/** Command lines of all processes of this machine, read again and again until it is stopped. */
function watchCommandLines(): { readonly stop: () => readonly string[] } {
  const seen = new Set<string>();
  const ending = new AbortController();
  const look = async (): Promise<void> => {
    while (!ending.signal.aborted) {
      for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
        try {
          const line = readFileSync(`/proc/${pid}/cmdline`, 'utf8');
          if (isTold(line).length > 0) seen.add(line.replaceAll('\0', ' '));
        } catch {
          // It has ended.
        }
      }
      await systemClock.sleep(20);
    }
  };
  void look();
  return {
    stop: () => {
      ending.abort();
      return [...seen];
    },
  };
}

test('credentials that people put into URLs, proxies, reasons and the environment are told nowhere and kept nowhere', async (t) => {
  const web = mkdtempSync(join(tmpdir(), 'pratique-ops-web-'));
  const server = await startHttpServer(web);
  t.after(async () => {
    await server.close();
    rmSync(web, { recursive: true });
  });
  const ground = makeGround(
    t,
    `[[vendors]]\nkind = "debian-apt"\nname = "proxied"\nsuites = ["bookworm"]\nurl = "http://archive.invalid/debian/"\narch = "amd64"\n` +
      `[[vendors]]\nkind = "debian-apt"\nname = "moved"\nsuites = ["bookworm"]\nurl = "${server.url}/"\narch = "amd64"\n`,
    {
      http_proxy: `http://ann:${SECRETS[2]}@127.0.0.1:9/`,
      no_proxy: '127.0.0.1',
      MIRROR_PASSWORD: SECRETS[5],
    },
  );
  server.fail('/dists/bookworm/InRelease', {
    kind: 'redirect',
    to: `http://ann:${SECRETS[3]}@127.0.0.1:9/?token=${SECRETS[3]}`,
  });
  const { child, ended } = await ground.serve();
  const lines = watchCommandLines();
  const answers: Ended[] = [];
  // What people type into a form: over the API, because an own command line is theirs.
  const post = async (path: string, body: unknown): Promise<string> => {
    const { request } = await import('node:http');
    return await new Promise((resolve, reject) => {
      const text = JSON.stringify(body);
      const headers = { 'content-type': 'application/json', authorization: `Bearer ${SECRETS[0]}` };
      const sent = request(
        { socketPath: join(ground.folder, 'run/pratique.sock'), method: 'POST', path, headers },
        (answer) => {
          let said = '';
          answer.on('data', (piece) => (said += piece));
          answer.on('end', () => resolve(`${answer.statusCode} ${said}`));
        },
      );
      sent.on('error', reject);
      sent.end(text);
    });
  };
  const vendor = (url: string) => ({ kind: 'debian-apt', name: 'typed', suites: ['bookworm'], url, arch: 'amd64' });
  const refusals = [
    await post('/v1/vendors', vendor(`http://ann:${SECRETS[0]}@archive.invalid/`)),
    await post('/v1/vendors', vendor(`http://archive.invalid/?token=${SECRETS[1]}`)),
  ];
  for (const refusal of refusals) assert.match(refusal, /^400 .*url/);
  const accepted = await post('/v1/clock/accept', {
    reason: `see https://ann:${SECRETS[4]}@wiki.example/`,
    actor: 'ann',
  });
  assert.match(accepted, /^200 /);
  const backup = join(ground.folder, 'b.tar');
  answers.push(await ground.run('vendor', 'check'));
  const asked = [
    'vendor list --json',
    'doctor --json',
    'audit show',
    'audit export --to -',
    'config show',
    'vm list --json',
  ];
  const all = [...asked.map((words) => words.split(' ')), ['backup', '--to', backup, '--json']];
  answers.push(...(await Promise.all(all.map((argv) => ground.run(...argv)))));
  child.kill('SIGTERM');
  const daemon = await ended;
  const told = [daemon, ...answers].flatMap(({ stdout, stderr }) => isTold(stdout + stderr));
  assert.deepEqual(told, []);
  assert.deepEqual(refusals.flatMap(isTold), []);
  assert.deepEqual(lines.stop(), []);
  assert.deepEqual(filesWithSecrets(ground.folder), []);
  // That the vendors were asked at all, and that the search would have found something.
  const checked = answers[0]?.stdout ?? '';
  assert.match(checked, /proxied.*vendor-ill|moved.*vendor-ill/s, checked);
  assert.match(answers.map(({ stdout }) => stdout).join(), /clock-accepted.*https:\/\/\[redacted\]@wiki\.example/);
  const control = join(ground.folder, 'control');
  mkdirSync(control);
  writeFileSync(join(control, 'x'), `left behind: ${SECRETS[0]}`);
  assert.equal(filesWithSecrets(ground.folder).length, 1);
});

test('a URL with a credential in the configuration is refused by its place, and its value is not repeated', async (t) => {
  const ground = makeGround(
    t,
    `[[vendors]]\nkind = "debian-apt"\nname = "x"\nsuites = ["bookworm"]\nurl = "https://ann:${SECRETS[0]}@archive.invalid/"\n`,
  );
  for (const argv of [['config', 'check'], ['config', 'show'], ['serve']]) {
    const { code, stdout, stderr } = await ground.run(...argv);
    assert.equal(code, 2, stderr);
    assert.match(stderr, /pratique\.toml:\d+: `vendors/);
    assert.deepEqual(isTold(stdout + stderr), []);
  }
});

test('a host restored from a backup closes the gate of a VM that went on, and plugs it in anew [A11]', async (t) => {
  const { folder, daemon, addVm } = await openHouse(t, { version: '1.1.0' });
  const vm = await addVm();
  await vm.start();
  await assertConnected(vm, '1.1.0');
  const qemu = await vm.qemu();
  await systemClock.sleep(500); // The journal's last notes.
  const pratique = (...argv: readonly string[]) =>
    collect(spawn(process.execPath, [MAIN, ...argv], { stdio: ['ignore', 'pipe', 'pipe'] }));
  const backup = join(folder, 'host.tar.zst');
  const made = await pratique('backup', '--to', backup, '--config', join(folder, 'pratique.toml'), '--json');
  assert.equal(made.code, 0, made.stderr);
  const data = join(folder, 'data');
  const early = await pratique('restore', '--from', backup, '--data', data);
  assert.equal(early.code, 1, 'not into the folder of a daemon at work');
  await daemon.stop();
  renameSync(data, join(folder, 'lost'));
  const restored = await pratique('restore', '--from', backup, '--data', data);
  assert.equal(restored.code, 0, restored.stderr);
  await daemon.start();
  await vm.hear(/^closed: daemon restart/);
  await vm.reach('connected');
  await assertConnected(vm, '1.1.0');
  assert.deepEqual(await vm.qemu(), qemu, 'the VM itself went on');
  const records = (await daemon.service.auditEntries({ afterSeq: 0, limit: 1000 })).map(({ record }) => record);
  assert.ok(records.some((record) => record.action === 'restored'));
  assert.equal((await daemon.service.auditVerify()).isIntact, true);
  assert.ok(!existsSync(join(data, 'restored.json')));
  assert.deepEqual(await vm.strayFrames(), []);
});
