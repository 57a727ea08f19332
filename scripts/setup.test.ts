// The set-up script, with stand-ins for dpkg-query, id, sudo and apt-get on its PATH.
import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { type CommandResult, tryCommand } from '../src/base/run-command.ts';

const SETUP = join(import.meta.dirname, 'setup.sh');
const LIST = join(import.meta.dirname, 'debian-packages.txt');

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-setup-'));
});
after(async () => {
  await rm(folder, { recursive: true, force: true });
});

type Machine = {
  readonly missing: readonly string[];
  readonly uid: number;
  /** Whether sudo asks for no password. */
  readonly sudo?: boolean;
  readonly installFails?: boolean;
};

async function runSetup(name: string, machine: Machine): Promise<CommandResult & { readonly calls: string }> {
  const bin = join(folder, name);
  await mkdir(bin);
  const calls = join(bin, 'calls');
  await writeFile(calls, '');
  const known = machine.missing.map((missing) => `${missing}) ;;`).join(' ');
  const programs = {
    'dpkg-query': `shift 3; for p in "$@"; do case $p in ${known} *) echo "installed $p" ;; esac; done; exit 1`,
    id: `echo ${machine.uid}`,
    sudo: machine.sudo === true ? 'shift; exec "$@"' : 'exit 1',
    'apt-get': `echo "$*" >>${calls}; case "$*" in *install*) exit ${machine.installFails === true ? 100 : 0} ;; esac`,
  };
  for (const [program, body] of Object.entries(programs)) {
    await writeFile(join(bin, program), `#!/bin/sh\n${body}\n`);
    await chmod(join(bin, program), 0o755);
  }
  const result = await tryCommand(['sh', SETUP], { env: { PATH: `${bin}:/usr/bin:/bin` } });
  return { ...result, calls: await readFile(calls, 'utf8') };
}

test('a machine that has everything hears nothing', async () => {
  const { exitCode, stdout, stderr, calls } = await runSetup('complete', { missing: [], uid: 0 });
  assert.deepEqual({ exitCode, stdout, stderr, calls }, { exitCode: 0, stdout: '', stderr: '', calls: '' });
});

test('root installs exactly what is missing, after printing it with its reason', async () => {
  const { exitCode, stderr, calls } = await runSetup('root', { missing: ['nftables', 'gpgv'], uid: 0 });
  assert.equal(exitCode, 0);
  assert.match(stderr, /nftables +the fence/);
  assert.match(calls, /install -y --no-install-recommends nftables gpgv\n$/);
});

test('sudo without a password will do', async () => {
  const { exitCode, calls } = await runSetup('sudo', { missing: ['cpio'], uid: 1000, sudo: true });
  assert.equal(exitCode, 0);
  assert.match(calls, /install .* cpio\n/);
});

test('an ordinary user gets the one command to run and exit code 3, and nothing is changed', async () => {
  const { exitCode, stderr, calls } = await runSetup('user', { missing: ['cpio', 'xorriso'], uid: 1000 });
  assert.equal(exitCode, 3);
  assert.match(stderr, /sudo apt-get update && sudo apt-get install -y --no-install-recommends cpio xorriso\n/);
  assert.equal(calls, '');
});

test('a failed installation is tried once more with fresh lists, then said', async () => {
  const { exitCode, stderr, calls } = await runSetup('failing', { missing: ['cpio'], uid: 0, installFails: true });
  assert.equal(exitCode, 3);
  assert.match(stderr, /could not install cpio/);
  assert.match(calls, /install[^\n]*\n-qq update\n[^\n]*install[^\n]*\n$/);
});

test('every package in the list has a reason', async () => {
  const lines = (await readFile(LIST, 'utf8')).split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  assert.ok(lines.length > 10);
  for (const line of lines) assert.match(line, /^[a-z0-9.+-]+ (\[[a-z0-9]+\] )? *\S.{5,}$/);
});
