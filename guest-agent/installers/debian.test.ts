// Debian packages through an apt-get and a dpkg that are scripts: what they are asked, and whose word counts afterwards.
import assert from 'node:assert/strict';
import { chmodSync, existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { type DriveItem, writeDrive } from '../../test/fakes/guest-agent/fake-bundle.ts';
import { FakeGuest } from '../../test/fakes/guest-agent/fake-guest.ts';
import { PLAN, RUN } from '../../test/fakes/guest-agent/fake-host.ts';

let guest: FakeGuest;

beforeEach(() => {
  guest = new FakeGuest();
  setStatus({ jq: '1.0', libjq1: '1.0' });
});
afterEach(() => guest.remove());

const deb = (product: string, version: string): DriveItem => ({
  item: { product, version, arch: 'amd64', install: { action: 'debian-package' } },
  content: Buffer.from(`the package ${product} ${version}`),
});

function statusText(versions: Readonly<Record<string, string>>, state = 'installed'): string {
  return Object.entries(versions)
    .map(
      ([name, version]) => `Package: ${name}\nStatus: install ok ${state}\nArchitecture: amd64\nVersion: ${version}\n`,
    )
    .join('\n');
}

function setStatus(versions: Readonly<Record<string, string>>, state?: string): void {
  writeFileSync(join(guest.paths.dpkg, 'status'), statusText(versions, state));
}

/** A program that notes its words and environment, and then does what the script says. */
function program(name: string, script: string): void {
  const path = join(guest.folder, 'bin', name);
  const note = `echo "${name} $*" >>${guest.folder}/calls\necho "$DEBIAN_FRONTEND $LC_ALL" >>${guest.folder}/environment\n`;
  writeFileSync(path, `#!/bin/sh\n${note}cp ${guest.paths.policy} ${guest.folder}/policy-seen 2>/dev/null\n${script}`);
  chmodSync(path, 0o755);
}

/** A script that makes dpkg's status say these versions. */
function settingStatus(versions: Readonly<Record<string, string>>): string {
  return `cat >${guest.paths.dpkg}/status <<'END'\n${statusText(versions)}END\n`;
}

const calls = (): readonly string[] => readFileSync(join(guest.folder, 'calls'), 'utf8').trim().split('\n');

async function install(items: readonly DriveItem[]) {
  const { manifestDigest } = writeDrive(guest.attachDrive('vdb'), items);
  guest.start();
  await guest.host.take('hello');
  guest.host.send({ type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
  return (await guest.host.take('installed')).results;
}

test('all packages go to apt-get in one call, quietly, without recommends, removals or downgrades [A10]', async () => {
  program('apt-get', settingStatus({ jq: '2.0', libjq1: '2.0' }));
  const results = await install([deb('jq', '2.0'), deb('libjq1', '2.0')]);
  assert.deepEqual(
    results.map(({ outcome }) => outcome),
    ['installed', 'installed'],
  );
  const [call = ''] = calls();
  assert.equal(calls().length, 1);
  assert.match(
    call,
    /^apt-get -c \S+apt\.conf -q .*force-confold.* install -y .*--no-install-recommends.*--no-remove.*allow-downgrades=false/,
  );
  assert.match(call, /Dir::Etc::sourceparts=\/dev\/null/, 'nothing but the drive is a source');
  const drive = `${guest.paths.runtime}/drive/packages`;
  assert.ok(call.endsWith(` ${drive}/jq-2.0.deb ${drive}/libjq1-2.0.deb`), call);
  assert.equal(readFileSync(join(guest.folder, 'environment'), 'utf8'), 'noninteractive C\n');
});

test('dpkg’s status decides, not the exit code: exit 0 without the version is a failure', async () => {
  program('apt-get', settingStatus({ jq: '2.0', libjq1: '1.0' }));
  const results = await install([deb('jq', '2.0'), deb('libjq1', '2.0')]);
  assert.deepEqual(
    results.map(({ outcome, code }) => [outcome, code]),
    [
      ['installed', undefined],
      ['failed', 'not-installed'],
    ],
  );
});

test('a failing apt-get is told with its exit code and the end of its output', async () => {
  program('apt-get', 'echo "Depends: libc6 (>= 99)" >&2\nexit 100\n');
  const [result] = await install([deb('jq', '2.0')]);
  assert.deepEqual([result?.outcome, result?.code, result?.exitCode], ['failed', 'install-failed', 100]);
  assert.match(result?.output ?? '', /libc6/);
});

test('packages that are installed already need no apt-get', async () => {
  program('apt-get', 'exit 1\n');
  setStatus({ jq: '2.0' });
  const [result] = await install([deb('jq', '2.0')]);
  assert.equal(result?.outcome, 'installed');
  assert.ok(!existsSync(join(guest.folder, 'calls')));
});

test('a dpkg that was broken off is ended at the start and before anything is installed [X4]', async () => {
  setStatus({ jq: '1.0' }, 'half-configured');
  program('dpkg', '');
  program('apt-get', settingStatus({ jq: '2.0' }));
  const [result] = await install([deb('jq', '2.0')]);
  assert.equal(result?.outcome, 'installed');
  assert.match(calls()[0] ?? '', /^dpkg .*--configure -a$/);
  assert.match(calls().at(-1) ?? '', /^apt-get /);
});

test('no service is started while packages are installed, and the guest’s own policy is back afterwards', async () => {
  writeFileSync(guest.paths.policy, 'the guest’s own');
  program('apt-get', settingStatus({ jq: '2.0' }));
  await install([deb('jq', '2.0')]);
  assert.match(readFileSync(join(guest.folder, 'policy-seen'), 'utf8'), /exit 101/);
  assert.equal(readFileSync(guest.paths.policy, 'utf8'), 'the guest’s own');
});

test('a policy left behind by a power cut is put right at the next start [X4]', async () => {
  program('apt-get', `cp -p ${guest.paths.policy} ${guest.folder}/left\nexit 1\n`);
  await install([deb('jq', '2.0')]);
  assert.ok(!existsSync(guest.paths.policy), 'where there was none, there is none');
  guest.cutPower();
  const left = readFileSync(join(guest.folder, 'left'));
  for (const size of [left.length, 20, 0]) {
    writeFileSync(guest.paths.policy, left.subarray(0, size));
    guest.start();
    await guest.host.take('hello');
    assert.ok(!existsSync(guest.paths.policy), `${size} bytes of ours`);
    guest.cutPower();
  }
  writeFileSync(guest.paths.policy, left);
  writeFileSync(`${guest.paths.policy}.pratique-kept`, 'the guest’s own');
  guest.start();
  await guest.host.take('hello');
  assert.equal(readFileSync(guest.paths.policy, 'utf8'), 'the guest’s own');
  assert.equal(statSync(guest.paths.policy).isFile(), true);
});

test('a guest without apt-get uses dpkg', async () => {
  program('dpkg', settingStatus({ jq: '2.0' }));
  const [result] = await install([deb('jq', '2.0')]);
  assert.equal(result?.outcome, 'installed');
  assert.match(calls()[0] ?? '', /^dpkg --force-confdef --force-confold -i .*jq-2.0.deb$/);
});

test('a guest without apt-get and dpkg says so', async () => {
  const [result] = await install([deb('jq', '2.0')]);
  assert.deepEqual([result?.outcome, result?.code], ['failed', 'no-dpkg']);
});
