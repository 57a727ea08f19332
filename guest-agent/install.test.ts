// Installing from a drive: what is verified, what is refused, and what comes back after a failure.
import assert from 'node:assert/strict';
import { existsSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { systemClock } from '../src/base/clock.ts';
import type { Manifest } from '../src/model/manifest.ts';
import { type DriveItem, makeTar, writeDrive } from '../test/fakes/guest-agent/fake-bundle.ts';
import { FakeGuest } from '../test/fakes/guest-agent/fake-guest.ts';
import { asDigest, asRun, PLAN, RUN } from '../test/fakes/guest-agent/fake-host.ts';
import { nodePlatform } from './platform/node.ts';
import { SystemError } from './platform/platform.ts';

let guest: FakeGuest;

beforeEach(() => {
  guest = new FakeGuest();
});
afterEach(() => guest.remove());

// ---- The drive -----------------------------------------------------------------------------------------------------

test('a bundle is verified, installed, confirmed by a fresh inventory, and the drive is let go [A10]', async () => {
  guest.seedApp('1.0.0');
  await guest.started();
  assert.deepEqual(await guest.products(), ['app 1.0.0 installed']);
  const manifestDigest = guest.offer([guest.app('2.0.0')]);
  assert.deepEqual((await guest.host.take('drive')).state, 'verified');
  const { results, rebootRequired } = await guest.host.take('installed');
  assert.deepEqual(
    results.map(({ item, outcome, checkPassed }) => [item, outcome, checkPassed]),
    [['bundle/app', 'installed', true]],
  );
  assert.equal(rebootRequired, false);
  const phases = guest.host.messages.map((message) => (message.type === 'progress' ? message.phase : message.type));
  assert.deepEqual(phases, ['verify', 'unpack', 'install', 'check']);
  assert.equal(guest.appVersion(), '2.0.0');
  assert.equal(
    readFileSync(join(guest.folder, 'opt/app/current/told'), 'utf8'),
    `2.0.0 after ${guest.folder}/opt/app/versions/1.0.0\n`,
  );
  assert.ok(existsSync(join(guest.folder, 'opt/app/versions/1.0.0')), 'the version before is kept');
  guest.host.send({ type: 'release', run: RUN, manifestDigest });
  assert.equal((await guest.host.take('drive')).state, 'released');
  assert.deepEqual(guest.deeds, ['mount vdb', 'unmount']);
  guest.host.send({ type: 'ask-confirm', run: RUN, planDigest: PLAN, manifestDigest });
  const confirm = await guest.host.take('confirm');
  assert.deepEqual([confirm.run, confirm.planDigest, confirm.manifestDigest], [RUN, PLAN, manifestDigest]);
  assert.deepEqual(confirm.results, results);
  assert.ok(confirm.inventory.products.some(({ product, version }) => product === 'app' && version === '2.0.0'));
});

test('a run without a drive is confirmed with no manifest and no results', async () => {
  await guest.started();
  guest.host.send({ type: 'ask-confirm', run: RUN, planDigest: PLAN, manifestDigest: null });
  const confirm = await guest.host.take('confirm');
  assert.deepEqual([confirm.planDigest, confirm.manifestDigest, confirm.results], [PLAN, null, []]);
});

test('a release of a drive that is not there is answered all the same', async () => {
  await guest.started();
  guest.host.send({ type: 'release', run: RUN, manifestDigest: asDigest('3'.repeat(64)) });
  assert.equal((await guest.host.take('drive')).state, 'released');
});

for (const [what, code, spoil] of [
  ['of another run', 'manifest-wrong-run', { run: asRun('9'.repeat(32)) }],
  ['of another plan', 'manifest-wrong-plan', { planDigest: asDigest('9'.repeat(64)) }],
  ['for another VM', 'manifest-wrong-vm', { vm: 'vm-2' as Manifest['vm'] }],
  ['in another format', 'manifest-malformed', { format: 'other' as Manifest['format'] }],
] as const) {
  test(`a manifest ${what} is refused, and nothing is installed`, async () => {
    await guest.started();
    guest.offer([guest.app('2.0.0')], spoil);
    const drive = await guest.host.take('drive');
    assert.deepEqual([drive.state, drive.code], ['refused', code]);
    assert.ok(!existsSync(join(guest.folder, 'opt/app')));
    assert.equal(guest.deeds.at(-1), 'unmount', 'a refused drive is let go');
  });
}

test('a manifest that is not the announced one is refused', async () => {
  await guest.started();
  const folder = guest.attachDrive('vdb');
  const { manifestDigest } = writeDrive(folder, [guest.app('2.0.0')]);
  writeFileSync(`${folder}/manifest.json`, `${readFileSync(`${folder}/manifest.json`, 'utf8')} `);
  guest.offerManifest(manifestDigest);
  assert.equal((await guest.host.take('drive')).code, 'manifest-digest');
});

test('a drive without a manifest, and no drive at all, are refused after a wait', async () => {
  await guest.started();
  guest.attachDrive('vdb');
  const manifestDigest = asDigest('3'.repeat(64));
  guest.offerManifest(manifestDigest);
  assert.equal((await guest.host.take('drive')).code, 'manifest-missing');
  guest.offerManifest(manifestDigest, 'OTHER');
  assert.equal((await guest.host.take('drive')).code, 'no-drive');
});

test('a drive that comes late, beside an older one of the same label, is found', async () => {
  await guest.started();
  writeDrive(guest.attachDrive('vda'), [guest.app('1.5.0')]);
  const { manifestDigest } = writeDrive(guest.attachDrive('vdb'), [guest.app('2.0.0')]);
  guest.detachDrive('vdb');
  guest.offerManifest(manifestDigest);
  await systemClock.sleep(20);
  guest.attachDrive('vdb');
  assert.equal((await guest.host.take('drive')).state, 'verified');
  await guest.host.take('installed');
  assert.equal(guest.appVersion(), '2.0.0');
});

test('a drive that cannot be mounted is refused', async () => {
  guest.overrides = {
    mount: (device) => {
      throw new SystemError('ENODEV', `mounting ${device}`);
    },
  };
  await guest.started();
  guest.offer([guest.app('2.0.0')]);
  const drive = await guest.host.take('drive');
  assert.deepEqual([drive.state, drive.code], ['refused', 'mount-failed']);
});

// ---- Items that fail -----------------------------------------------------------------------------------------------

test('a drive that was damaged is begun anew when the same one is offered again, mended [X4]', async () => {
  guest.seedApp('1.0.0');
  await guest.started();
  const folder = guest.attachDrive('vdb');
  const { manifestDigest } = writeDrive(folder, [guest.app('2.0.0')]);
  const sound = readFileSync(`${folder}/packages/app-2.0.0.bin`);
  writeFileSync(`${folder}/packages/app-2.0.0.bin`, sound.subarray(1));
  guest.offerManifest(manifestDigest);
  assert.equal((await guest.host.take('installed')).results[0]?.code, 'size-mismatch');
  guest.cutPower();
  guest.newBoot();
  await guest.started();
  guest.host.send({ type: 'release', run: RUN, manifestDigest });
  assert.equal((await guest.host.take('drive')).state, 'released');
  writeFileSync(`${folder}/packages/app-2.0.0.bin`, sound);
  guest.offerManifest(manifestDigest);
  const { results } = await guest.host.take('installed');
  assert.deepEqual(
    results.map(({ item, outcome }) => [item, outcome]),
    [['bundle/app', 'installed']],
  );
  // What it said of the damaged drive is not part of its word any more.
  guest.host.send({ type: 'ask-confirm', run: RUN, planDigest: PLAN, manifestDigest });
  assert.deepEqual(
    (await guest.host.take('confirm')).results.map(({ outcome }) => outcome),
    ['installed'],
  );
});

test('one changed byte in one file: nothing at all is installed', async () => {
  guest.seedApp('1.0.0');
  await guest.started();
  const folder = guest.attachDrive('vdb');
  const other: DriveItem = { ...guest.app('1.0.0'), item: { ...guest.app('1.0.0').item, product: 'other' } };
  const { manifestDigest } = writeDrive(folder, [guest.app('2.0.0'), other]);
  const tampered = readFileSync(`${folder}/packages/other-1.0.0.bin`);
  tampered[600] = 1;
  writeFileSync(`${folder}/packages/other-1.0.0.bin`, tampered);
  guest.offerManifest(manifestDigest);
  const { results } = await guest.host.take('installed');
  assert.deepEqual(
    results.map(({ item, outcome, code }) => [item, outcome, code]),
    [
      ['bundle/other', 'failed', 'digest-mismatch'],
      ['bundle/app', 'skipped', 'earlier-failed'],
    ],
  );
  assert.equal(guest.appVersion(), '1.0.0');
});

for (const [what, code, change] of [
  ['is missing', 'file-missing', () => {}],
  ['is longer', 'size-mismatch', (path: string) => writeFileSync(path, 'x'.repeat(9_999))],
  ['is a link', 'file-missing', (path: string) => symlinkSync('/etc/hostname', path)],
] as const) {
  test(`a file that ${what} fails its item`, async () => {
    await guest.started();
    const folder = guest.attachDrive('vdb');
    const { manifestDigest } = writeDrive(folder, [guest.app('2.0.0')]);
    rmSync(`${folder}/packages/app-2.0.0.bin`);
    change(`${folder}/packages/app-2.0.0.bin`);
    guest.offerManifest(manifestDigest);
    assert.equal((await guest.host.take('installed')).results[0]?.code, code);
  });
}

test('a failing check brings the version before back and says why [A10]', async () => {
  guest.seedApp('1.0.0');
  await guest.started();
  guest.offer([guest.app('2.0.0', { check: '#!/bin/sh\necho "the port is taken"\nexit 3\n' })]);
  const [result] = (await guest.host.take('installed')).results;
  assert.deepEqual(
    [result?.outcome, result?.code, result?.exitCode, result?.checkPassed],
    ['failed', 'check-failed', 3, false],
  );
  assert.match(result?.output ?? '', /the port is taken/);
  assert.equal(guest.appVersion(), '1.0.0');
  assert.deepEqual(await guest.products(), ['app 1.0.0 installed']);
  assert.ok(!existsSync(join(guest.folder, 'opt/app/versions/2.0.0')));
});

test('an install entry that hangs is killed with all its children', async () => {
  guest.seedApp('1.0.0');
  await guest.started();
  const hang = guest.app('2.0.0', { install: '#!/bin/sh\nsleep 77 &\necho $! >"$PRATIQUE_PREFIX/child"\nwait\n' });
  const install = { ...hang.item.install, timeoutMs: 1000 };
  guest.offer([{ ...hang, item: { ...hang.item, install } }]);
  const [result] = (await guest.host.take('installed')).results;
  assert.deepEqual([result?.outcome, result?.code], ['failed', 'timeout']);
  const child = readFileSync(join(guest.folder, 'opt/app/child'), 'utf8').trim();
  const isGone = !existsSync(`/proc/${child}`) || /^State:\s+Z/m.test(readFileSync(`/proc/${child}/status`, 'utf8'));
  assert.ok(isGone, `process ${child} was killed with its group`);
  assert.equal(guest.appVersion(), '1.0.0');
});

test('a compressed bundle is unpacked by the guest’s own gzip; without one it says so', async () => {
  await guest.started();
  const { item, content } = guest.app('2.0.0');
  const { install } = item;
  assert.ok(install.action === 'bundle');
  const compressed = (compression: 'gzip' | 'zstd', bytes: Uint8Array): DriveItem => ({
    item: { ...item, install: { ...install, compression } },
    content: bytes,
  });
  assert.deepEqual((await guest.inventory()).abilities.compressions, ['none', 'gzip']);
  guest.offer([compressed('gzip', gzipSync(content))]);
  const [result] = (await guest.host.take('installed')).results;
  assert.equal(result?.outcome, 'installed', result?.output);
  assert.equal(guest.appVersion(), '2.0.0');
  guest.offer([compressed('zstd', content)], { extraFiles: [] });
  assert.equal((await guest.host.take('installed')).results[0]?.code, 'unsupported-compression');
  guest.offer([compressed('gzip', Buffer.from('no gzip at all'))]);
  assert.equal((await guest.host.take('installed')).results[0]?.code, 'unpack-failed');
  assert.equal(guest.appVersion(), '2.0.0');
});

test('a bundle without the entry its action names fails', async () => {
  await guest.started();
  const { item } = guest.app('2.0.0');
  guest.offer([{ item, content: makeTar([{ name: 'version', content: '2.0.0' }]) }]);
  assert.equal((await guest.host.take('installed')).results[0]?.code, 'install-failed');
});

for (const [what, change] of [
  ['a product', { product: '../../etc/app' }],
  ['a version', { version: '..' }],
  ['a version', { version: '2.0.0.tmp' }],
] as const) {
  test(`${what} that cannot name a folder (${Object.values(change)[0]}) is refused`, async () => {
    await guest.started();
    const { manifest } = writeDrive(guest.attachDrive('vdb'), [guest.app('2.0.0')]);
    guest.offer([], { items: manifest.items.map((item) => ({ ...item, ...change })) });
    assert.equal((await guest.host.take('installed')).results[0]?.code, 'bad-name');
    assert.ok(!existsSync(join(guest.folder, 'opt/app/current')));
  });
}

test('a full disk fails the item with its own word and leaves the old version', async () => {
  guest.seedApp('1.0.0');
  const { files } = nodePlatform(systemClock);
  guest.overrides = {
    files: {
      ...files,
      create: (path, mode) => {
        if (path.includes('2.0.0.tmp')) throw new SystemError('ENOSPC', `making ${path}`);
        return files.create(path, mode);
      },
    },
  };
  await guest.started();
  guest.offer([guest.app('2.0.0')]);
  const [result] = (await guest.host.take('installed')).results;
  assert.deepEqual([result?.outcome, result?.code], ['failed', 'no-space']);
  assert.equal(guest.appVersion(), '1.0.0');
});
