// Sealing against the real systemd-creds where it is, against one that is missing or ill, and with the key file.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { systemClock } from '../base/clock.ts';
import { waitUntil } from '../base/wait-until.ts';
import { LicenseError } from './license-error.ts';
import {
  makeKeyFileSealer,
  makeSystemdSealer,
  probeSystemdSealer,
  type RunSealer,
  runSystemdCreds,
  withoutCoreDump,
} from './seal.ts';

const TOKEN = 'tok-3f9a6c1e77d04b52';
const plain = () => Buffer.from(TOKEN);
/** Root has a host key to seal with; the doctor says so where it is missing. */
const hasSystemdCreds = (await probeSystemdSealer()) === null;

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-seal-'));
});
after(async () => await rm(folder, { recursive: true }));

const fault = { name: 'LicenseError', code: 'host-fault/vault' };

test('a key file opens what it sealed, by the same name only, and not when a bit was changed [A15]', async () => {
  const sealer = makeKeyFileSealer(folder);
  const sealed = await sealer.seal('one', plain());
  assert.equal((await sealer.open('one', sealed)).toString(), TOKEN);
  await assert.rejects(sealer.open('two', sealed), fault);
  const bytes = Buffer.from(sealed, 'base64');
  for (const at of [0, 13, bytes.length - 1]) {
    const changed = Buffer.from(bytes);
    changed[at] = (changed[at] ?? 0) ^ 1;
    await assert.rejects(sealer.open('one', changed.toString('base64')), fault);
  }
  for (const cut of ['', sealed.slice(0, 20), 'not base64 at all'])
    await assert.rejects(sealer.open('one', cut), fault);
  assert.notEqual(await sealer.seal('one', plain()), sealed, 'a nonce is used once');
});

test('the key file is the owner’s only, is made once, and its loss is said [A15]', async () => {
  const own = await mkdtemp(join(folder, 'own-'));
  const sealer = makeKeyFileSealer(own);
  const sealed = await sealer.seal('one', plain());
  const key = join(own, 'key');
  assert.equal((await stat(key)).mode & 0o777, 0o600);
  const bytes = await readFile(key);
  await chmod(key, 0o644);
  await sealer.seal('two', plain());
  assert.equal((await stat(key)).mode & 0o777, 0o600, 'one that others could read is closed to them');
  assert.deepEqual(await readFile(key), bytes);
  await rm(key);
  await assert.rejects(sealer.open('one', sealed), { ...fault, message: /is gone/ });
  await writeFile(key, 'short');
  await assert.rejects(sealer.seal('one', plain()), fault);
  assert.deepEqual(await readdir(own), ['key']);
});

test('systemd-creds seals by name, and nothing of a token is in its arguments or environment [A15]', async (t) => {
  const seen: string[] = [];
  const run: RunSealer = async (argv, input) => {
    seen.push(argv.join(' '));
    return await runSystemdCreds(argv, input);
  };
  if (!hasSystemdCreds) {
    t.diagnostic('systemd-creds does not work on this machine: only that this is found out is tested');
    assert.notEqual(await probeSystemdSealer(run), null);
    return;
  }
  assert.equal(await probeSystemdSealer(run), null);
  const sealer = makeSystemdSealer(run);
  const sealed = await sealer.seal('pratique-license-a-1', plain());
  assert.ok(!sealed.includes(TOKEN));
  assert.equal((await sealer.open('pratique-license-a-1', sealed)).toString(), TOKEN);
  const error = await sealer.open('pratique-license-b-1', sealed).catch((reason: unknown) => reason);
  assert.ok(error instanceof LicenseError && error.code === 'host-fault/vault', String(error));
  assert.doesNotMatch(error.message, new RegExp(TOKEN));
  assert.ok(seen.length >= 5);
  assert.doesNotMatch(seen.join('\n'), new RegExp(TOKEN));
});

test('a host without systemd-creds, or with one that lies, is found out [A15]', async () => {
  const missing: RunSealer = async () => {
    throw new Error('ENOENT');
  };
  assert.match((await probeSystemdSealer(missing)) ?? '', /could not encrypt/);
  const answer = (stdout: string, exitCode = 0) => ({ exitCode, signal: null, stdout, stderr: 'no key' });
  assert.match((await probeSystemdSealer(async () => answer('', 1))) ?? '', /no key/);
  assert.match((await probeSystemdSealer(async () => answer('another text'))) ?? '', /give back/);
  // One that "seals" by handing everything through keeps nothing secret.
  const through: RunSealer = async (_argv, input) => answer(Buffer.from(input).toString());
  assert.match((await probeSystemdSealer(through)) ?? '', /give back/);
  const forgetful: RunSealer = async (argv, input) => {
    const [verb] = argv;
    return answer(
      Buffer.from(Buffer.from(input).toString(), verb === 'encrypt' ? 'utf8' : 'base64').toString(
        verb === 'encrypt' ? 'base64' : 'utf8',
      ),
    );
  };
  assert.match((await probeSystemdSealer(forgetful)) ?? '', /names/);
});

test('an ill systemd-creds that prints a token and fails gets it into no error [A15]', async () => {
  const leaking: RunSealer = async () => ({ exitCode: 1, signal: null, stdout: TOKEN, stderr: 'broken' });
  const error = await makeSystemdSealer(leaking)
    .open('x', 'sealed')
    .catch((reason: unknown) => reason);
  assert.ok(error instanceof LicenseError);
  assert.doesNotMatch(`${error.message} ${error.stack} ${JSON.stringify(error)}`, new RegExp(TOKEN));
});

test('a program started as systemd-creds is leaves no core dump, and one started otherwise does [A15]', async (t) => {
  const pattern = (await readFile('/proc/sys/kernel/core_pattern', 'utf8')).trim();
  if (/[|/%]/.test(pattern)) {
    t.diagnostic(`core dumps go to "${pattern}" on this machine: only the limit itself is looked at`);
  }
  const [program = '', ...args] = withoutCoreDump(['prlimit', '--core', '--raw', '--noheadings', '-o', 'SOFT,HARD']);
  assert.match(execFileSync(program, args, { encoding: 'utf8' }), /^\s*1\s+1\s*$/);
  const dies = async (argv: readonly string[]): Promise<boolean> => {
    const cwd = await mkdtemp(join(folder, 'core-'));
    const [program = '', ...args] = argv;
    const child = spawn(program, args, { cwd, stdio: ['pipe', 'ignore', 'ignore'] });
    // Only when the last program of the row is there is it the one that the signal ends.
    await waitUntil(
      async () => (await readFile(`/proc/${child.pid}/comm`, 'utf8')).startsWith('cat'),
      systemClock,
      5_000,
    );
    child.kill('SIGABRT');
    await once(child, 'exit');
    return (await readdir(cwd)).some((name) => name.startsWith('core'));
  };
  assert.equal(await dies(withoutCoreDump(['cat'])), false);
  if (!/[|/%]/.test(pattern)) assert.equal(await dies(['prlimit', '--core=unlimited:unlimited', 'cat']), true);
});
