// The agent against a host that speaks the real bytes: every message, and what is refused.
import assert from 'node:assert/strict';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { systemClock } from '../src/base/clock.ts';
import { digestOf } from '../src/base/digest.ts';
import type { Manifest } from '../src/model/manifest.ts';
import { type DriveItem, makeTar, writeDrive } from './fakes/fake-bundle.ts';
import { FakeGuest } from './fakes/fake-guest.ts';
import { asDigest, asRun, PLAN, RUN } from './fakes/fake-host.ts';
import { PowerCut } from './fakes/power-supply.ts';
import { nodePlatform } from './platform/node.ts';
import { SystemError } from './platform/platform.ts';

let guest: FakeGuest;

beforeEach(() => {
  guest = new FakeGuest();
});
afterEach(() => guest.remove());

/** A bundle whose check fails if it says so; its install entry writes what it was told. */
function app(version: string, options: { readonly check?: string; readonly install?: string } = {}): DriveItem {
  const install = {
    action: 'bundle',
    prefix: join(guest.folder, 'opt/app'),
    compression: 'none',
    install: 'install',
    check: 'check',
  } as const;
  const content = makeTar([
    { name: 'version', content: version, mode: 0o644 },
    {
      name: 'install',
      content: options.install ?? '#!/bin/sh\necho "$PRATIQUE_VERSION after $PRATIQUE_PREVIOUS" >told\n',
    },
    { name: 'check', content: options.check ?? '#!/bin/sh\ntest "$(cat version)" = "$PRATIQUE_VERSION"\n' },
  ]);
  return { item: { product: 'app', version, install }, content };
}

function currentVersion(): string {
  return readFileSync(join(guest.folder, 'opt/app/current/version'), 'utf8');
}

function seedApp(version: string): void {
  const folder = join(guest.folder, 'opt/app');
  mkdirSync(join(folder, 'versions', version), { recursive: true });
  writeFileSync(join(folder, 'versions', version, 'version'), version);
  symlinkSync(`versions/${version}`, join(folder, 'current'));
  mkdirSync(join(guest.paths.state, 'products'), { recursive: true });
  const record = { product: 'app', version, prefix: folder, digest: 'a'.repeat(64) };
  writeFileSync(join(guest.paths.state, 'products/app.json'), JSON.stringify(record));
}

async function started(): Promise<void> {
  guest.start();
  await guest.host.take('hello');
}

/** Offers a drive with these items and returns the manifest's digest. */
function offer(items: readonly DriveItem[], overrides: Partial<Manifest> = {}) {
  const { manifestDigest } = writeDrive(guest.attachDrive('vdb'), items, overrides);
  guest.host.send({ type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
  return manifestDigest;
}

async function inventory() {
  guest.host.send({ type: 'ask-inventory' });
  return (await guest.host.take('inventory')).inventory;
}

async function products(): Promise<readonly string[]> {
  return (await inventory()).products.map(({ product, version, state }) => `${product} ${version} ${state}`);
}

// ---- Handshake -----------------------------------------------------------------------------------------------------

test('hello carries versions, boot id and counter 0, and is repeated until the host opens [A6]', async () => {
  guest.start();
  guest.host.opensByItself = false;
  const first = await guest.host.take('hello');
  assert.deepEqual(
    { protocols: first.protocols, boot: first.boot, seq: first.seq, version: first.agent.version },
    {
      protocols: [1],
      boot: guest.boot,
      seq: 0,
      version: '0.1.0',
    },
  );
  await guest.host.take('hello');
  guest.host.open();
  await guest.host.settle();
  const hellos = guest.host.count('hello');
  await systemClock.sleep(200);
  assert.equal(guest.host.count('hello'), hellos, 'no hello in a session');
});

test('an open for another boot or an unknown protocol is ignored', async () => {
  guest.start();
  guest.host.opensByItself = false;
  await guest.host.take('hello');
  guest.host.open({ boot: '00000000-1111-2222-3333-444444444444' });
  guest.host.open({ protocol: 7 });
  await guest.host.take('hello');
  assert.equal(guest.host.count('fault'), 0);
});

test('the agent does not report unasked', async () => {
  await started();
  await guest.host.settle();
  assert.deepEqual(guest.host.messages, []);
});

test('ping is answered by pong', async () => {
  await started();
  guest.host.send({ type: 'ping' });
  await guest.host.take('pong');
});

for (const [what, envelope, code] of [
  ['a counter that skips', { seq: 3 }, 'out-of-order'],
  ['a counter that repeats', { seq: 0 }, 'out-of-order'],
  ['a nonce of another session', { nonce: 'f'.repeat(32) }, 'stale-session'],
  ['a boot id of another boot', { boot: '00000000-1111-2222-3333-444444444444' }, 'wrong-boot'],
] as const) {
  test(`a host message with ${what} is refused with a fault, and the agent says hello again`, async () => {
    await started();
    guest.host.opensByItself = false;
    guest.host.sendWith({ type: 'ask-inventory' }, envelope);
    assert.equal((await guest.host.take('fault')).code, code);
    await guest.host.take('hello');
    assert.equal(guest.host.count('inventory'), 0, 'it changed nothing');
  });
}

for (const [what, line] of [
  ['no JSON', '{'],
  ['no object', '[1]'],
  ['an unknown type', '{"type":"run-command","command":"id"}'],
  ['a field too many', '{"type":"ping","nonce":"0","boot":"0","seq":1,"more":1}'],
  ['an endless line', `{"type":"ping","x":"${'x'.repeat(20_000)}"}`],
] as const) {
  test(`a host line with ${what} is refused with a fault, and the agent says hello again`, async () => {
    await started();
    guest.host.opensByItself = false;
    guest.host.sendRaw(line);
    const { code } = await guest.host.take('fault');
    assert.equal(code, what === 'an endless line' ? 'too-long' : 'malformed');
    await guest.host.take('hello');
  });
}

test('a new session in the middle starts both counters anew', async () => {
  await started();
  await guest.host.settle();
  guest.host.open();
  await guest.host.settle();
  guest.host.open();
  await inventory();
});

for (const code of ['no-session', 'stale-session'] as const) {
  test(`a refuse outside of a session (${code}) makes the agent say hello again`, async () => {
    await started();
    await guest.host.settle();
    const refuse = { type: 'refuse', seq: 0, code, detail: '' };
    const outside = { nonce: '0'.repeat(32), boot: '00000000-0000-0000-0000-000000000000' };
    guest.host.sendRaw(JSON.stringify({ ...refuse, ...outside }));
    await guest.host.take('hello');
    await guest.host.settle();
  });
}

for (const [code, isHello] of [
  ['malformed', true],
  ['out-of-order', true],
  ['too-long', true],
  ['unexpected', false],
  ['stale-session', false],
] as const) {
  test(`a refuse in the session with ${code} ${isHello ? 'makes the agent say hello' : 'ends nothing'}`, async () => {
    await started();
    await guest.host.settle();
    guest.host.send({ type: 'refuse', code, detail: 'because' });
    if (isHello) await guest.host.take('hello');
    await guest.host.settle();
    assert.equal(guest.host.count('hello'), 0);
  });
}

test('after the host side was closed and opened again the agent says hello', async () => {
  await started();
  await guest.host.settle();
  guest.port.close();
  await systemClock.sleep(30);
  guest.port.isOpen = true;
  await guest.host.take('hello');
  await guest.host.settle();
});

test('a host that does not read for long delays messages but loses none', async () => {
  writeFileSync(`${guest.paths.dpkg}/status`, dpkgStatus(600));
  await started();
  await guest.host.settle();
  guest.port.makeRoom(50);
  guest.host.send({ type: 'ask-inventory' });
  guest.host.send({ type: 'ping' });
  await systemClock.sleep(50);
  assert.equal(guest.host.count('pong'), 0);
  guest.port.makeRoom(Number.POSITIVE_INFINITY);
  await guest.host.take('inventory');
  await guest.host.take('pong');
});

// ---- Inventory -----------------------------------------------------------------------------------------------------

function dpkgStatus(count: number): string {
  const stanzas = Array.from({ length: count }, (_, index) =>
    [
      `Package: package-${index}`,
      'Status: install ok installed',
      'Maintainer: Łukasz Ünal <someone@example.org>',
      'Architecture: amd64',
      `Version: 1:${index}.0-1`,
      'Description: something',
      ' with a longer text',
      '',
    ].join('\n'),
  );
  return stanzas.join('\n');
}

test('an inventory longer than a line travels in chunks [A6]', async () => {
  writeFileSync(`${guest.paths.dpkg}/status`, dpkgStatus(3000));
  await started();
  const { products: listed, os } = await inventory();
  assert.equal(listed.filter(({ ecosystem }) => ecosystem === 'debian').length, 3000);
  assert.ok(guest.host.chunkLines > 100, `${guest.host.chunkLines} chunks`);
  assert.deepEqual([os.id, os.versionId, os.codename], ['debian', '12', 'bookworm']);
});

test('chunked messages of the host are put together', async () => {
  await started();
  guest.host.sendInChunks({ type: 'ask-inventory' }, 5);
  await guest.host.take('inventory');
  guest.host.sendInChunks({ type: 'ask-inventory' }, 7);
  await guest.host.take('inventory');
});

for (const [what, change] of [
  ['out of order', (chunk: object, index: number) => ({ ...chunk, index: 3 - index })],
  ['of another transfer', (chunk: object) => ({ ...chunk, transfer: 9 })],
  [
    'that carry an envelope',
    (chunk: object, index: number) => (index === 0 ? { ...chunk, text: '{"nonce":1,"ty' } : chunk),
  ],
] as const) {
  test(`chunks ${what} are refused with a fault`, async () => {
    await started();
    guest.host.sendInChunks({ type: 'ask-inventory' }, 8, change);
    await guest.host.take('fault');
    assert.equal(guest.host.count('inventory'), 0);
  });
}

test('a product whose folders and record disagree is reported as broken', async () => {
  seedApp('1.0.0');
  writeFileSync(
    join(guest.paths.state, 'products/app.json'),
    JSON.stringify({ product: 'app', version: '1.1.0', prefix: join(guest.folder, 'opt/app') }),
  );
  writeFileSync(join(guest.paths.state, 'products/damaged.json'), '{"product":');
  writeFileSync(join(guest.paths.state, 'products/renamed.json'), '{"product":"x","version":"1","prefix":"/opt"}');
  await started();
  assert.deepEqual(await products(), ['pratique-agent 0.1.0 installed', 'app 1.1.0 broken']);
});

test('what was installed at the last shutdown is reported in the next boot, and only there [A6]', async () => {
  seedApp('1.0.0');
  await started();
  assert.equal((await inventory()).lastShutdown, null);
  const before = guest.boot;
  guest.terminate();
  assert.equal((await guest.host.take('bye')).reason, 'shutdown');
  while (!guest.deeds.includes('exit 0')) await systemClock.sleep(5);
  guest.newBoot();
  await started();
  const { lastShutdown } = await inventory();
  assert.equal(lastShutdown?.boot, before);
  assert.ok(lastShutdown?.products.some(({ product }) => product === 'app'));
  await systemClock.sleep(200); // The boot is noted on disk by now.
  guest.cutPower();
  await started();
  assert.equal((await inventory()).lastShutdown?.boot, before, 'a restarted agent still knows it');
  guest.cutPower();
  guest.newBoot();
  await started();
  assert.equal((await inventory()).lastShutdown, null, 'a crash leaves no record');
});

// ---- The drive -----------------------------------------------------------------------------------------------------

test('a bundle is verified, installed, confirmed by a fresh inventory, and the drive is let go [A10]', async () => {
  seedApp('1.0.0');
  await started();
  assert.deepEqual(await products(), ['pratique-agent 0.1.0 installed', 'app 1.0.0 installed']);
  const manifestDigest = offer([app('2.0.0')]);
  assert.deepEqual((await guest.host.take('drive')).state, 'verified');
  const { results, rebootRequired } = await guest.host.take('installed');
  assert.deepEqual(
    results.map(({ item, outcome, checkPassed }) => [item, outcome, checkPassed]),
    [['bundle/app', 'installed', true]],
  );
  assert.equal(rebootRequired, false);
  const phases = guest.host.messages.map((message) => (message.type === 'progress' ? message.phase : message.type));
  assert.deepEqual(phases, ['verify', 'unpack', 'install', 'check']);
  assert.equal(currentVersion(), '2.0.0');
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
  await started();
  guest.host.send({ type: 'ask-confirm', run: RUN, planDigest: PLAN, manifestDigest: null });
  const confirm = await guest.host.take('confirm');
  assert.deepEqual([confirm.planDigest, confirm.manifestDigest, confirm.results], [PLAN, null, []]);
});

test('a release of a drive that is not there is answered all the same', async () => {
  await started();
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
    await started();
    offer([app('2.0.0')], spoil);
    const drive = await guest.host.take('drive');
    assert.deepEqual([drive.state, drive.code], ['refused', code]);
    assert.ok(!existsSync(join(guest.folder, 'opt/app')));
    assert.equal(guest.deeds.at(-1), 'unmount', 'a refused drive is let go');
  });
}

test('a manifest that is not the announced one is refused', async () => {
  await started();
  const folder = guest.attachDrive('vdb');
  const { manifestDigest } = writeDrive(folder, [app('2.0.0')]);
  writeFileSync(`${folder}/manifest.json`, `${readFileSync(`${folder}/manifest.json`, 'utf8')} `);
  guest.host.send({ type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
  assert.equal((await guest.host.take('drive')).code, 'manifest-digest');
});

test('a drive without a manifest, and no drive at all, are refused after a wait', async () => {
  await started();
  guest.attachDrive('vdb');
  const manifestDigest = asDigest('3'.repeat(64));
  guest.host.send({ type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
  assert.equal((await guest.host.take('drive')).code, 'manifest-missing');
  guest.host.send({ type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label: 'OTHER' });
  assert.equal((await guest.host.take('drive')).code, 'no-drive');
});

test('a drive that comes late, beside an older one of the same label, is found', async () => {
  await started();
  writeDrive(guest.attachDrive('vda'), [app('1.5.0')]);
  const { manifestDigest } = writeDrive(guest.attachDrive('vdb'), [app('2.0.0')]);
  guest.detachDrive('vdb');
  guest.host.send({ type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
  await systemClock.sleep(20);
  guest.attachDrive('vdb');
  assert.equal((await guest.host.take('drive')).state, 'verified');
  await guest.host.take('installed');
  assert.equal(currentVersion(), '2.0.0');
});

test('a drive that cannot be mounted is refused', async () => {
  guest.overrides = {
    mount: (device) => {
      throw new SystemError('ENODEV', `mounting ${device}`);
    },
  };
  await started();
  offer([app('2.0.0')]);
  const drive = await guest.host.take('drive');
  assert.deepEqual([drive.state, drive.code], ['refused', 'mount-failed']);
});

// ---- Items that fail -----------------------------------------------------------------------------------------------

test('one changed byte in one file: nothing at all is installed', async () => {
  seedApp('1.0.0');
  await started();
  const folder = guest.attachDrive('vdb');
  const other: DriveItem = { ...app('1.0.0'), item: { ...app('1.0.0').item, product: 'other' } };
  const { manifestDigest } = writeDrive(folder, [app('2.0.0'), other]);
  const tampered = readFileSync(`${folder}/packages/other-1.0.0.bin`);
  tampered[600] = 1;
  writeFileSync(`${folder}/packages/other-1.0.0.bin`, tampered);
  guest.host.send({ type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
  const { results } = await guest.host.take('installed');
  assert.deepEqual(
    results.map(({ item, outcome, code }) => [item, outcome, code]),
    [
      ['bundle/other', 'failed', 'digest-mismatch'],
      ['bundle/app', 'skipped', 'earlier-failed'],
    ],
  );
  assert.equal(currentVersion(), '1.0.0');
});

for (const [what, code, change] of [
  ['is missing', 'file-missing', () => {}],
  ['is longer', 'size-mismatch', (path: string) => writeFileSync(path, 'x'.repeat(9_999))],
  ['is a link', 'file-missing', (path: string) => symlinkSync('/etc/hostname', path)],
] as const) {
  test(`a file that ${what} fails its item`, async () => {
    await started();
    const folder = guest.attachDrive('vdb');
    const { manifestDigest } = writeDrive(folder, [app('2.0.0')]);
    rmSync(`${folder}/packages/app-2.0.0.bin`);
    change(`${folder}/packages/app-2.0.0.bin`);
    guest.host.send({ type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
    assert.equal((await guest.host.take('installed')).results[0]?.code, code);
  });
}

test('a failing check brings the version before back and says why [A10]', async () => {
  seedApp('1.0.0');
  await started();
  offer([app('2.0.0', { check: '#!/bin/sh\necho "the port is taken"\nexit 3\n' })]);
  const [result] = (await guest.host.take('installed')).results;
  assert.deepEqual(
    [result?.outcome, result?.code, result?.exitCode, result?.checkPassed],
    ['failed', 'check-failed', 3, false],
  );
  assert.match(result?.output ?? '', /the port is taken/);
  assert.equal(currentVersion(), '1.0.0');
  assert.deepEqual(await products(), ['pratique-agent 0.1.0 installed', 'app 1.0.0 installed']);
  assert.ok(!existsSync(join(guest.folder, 'opt/app/versions/2.0.0')));
});

test('an install entry that hangs is killed with all its children', async () => {
  seedApp('1.0.0');
  await started();
  const hang = app('2.0.0', { install: '#!/bin/sh\nsleep 77 &\necho $! >"$PRATIQUE_PREFIX/child"\nwait\n' });
  const install = { ...hang.item.install, timeoutMs: 1000 };
  offer([{ ...hang, item: { ...hang.item, install } }]);
  const [result] = (await guest.host.take('installed')).results;
  assert.deepEqual([result?.outcome, result?.code], ['failed', 'timeout']);
  const child = readFileSync(join(guest.folder, 'opt/app/child'), 'utf8').trim();
  const isGone = !existsSync(`/proc/${child}`) || /^State:\s+Z/m.test(readFileSync(`/proc/${child}/status`, 'utf8'));
  assert.ok(isGone, `process ${child} was killed with its group`);
  assert.equal(currentVersion(), '1.0.0');
});

test('a compressed bundle is unpacked by the guest’s own gzip; without one it says so', async () => {
  await started();
  const { item, content } = app('2.0.0');
  const { install } = item;
  assert.ok(install.action === 'bundle');
  const compressed = (compression: 'gzip' | 'zstd', bytes: Uint8Array): DriveItem => ({
    item: { ...item, install: { ...install, compression } },
    content: bytes,
  });
  assert.deepEqual((await inventory()).abilities.compressions, ['none', 'gzip']);
  offer([compressed('gzip', gzipSync(content))]);
  const [result] = (await guest.host.take('installed')).results;
  assert.equal(result?.outcome, 'installed', result?.output);
  assert.equal(currentVersion(), '2.0.0');
  offer([compressed('zstd', content)], { extraFiles: [] });
  assert.equal((await guest.host.take('installed')).results[0]?.code, 'unsupported-compression');
  offer([compressed('gzip', Buffer.from('no gzip at all'))]);
  assert.equal((await guest.host.take('installed')).results[0]?.code, 'unpack-failed');
  assert.equal(currentVersion(), '2.0.0');
});

test('a bundle without the entry its action names fails', async () => {
  await started();
  const { item } = app('2.0.0');
  offer([{ item, content: makeTar([{ name: 'version', content: '2.0.0' }]) }]);
  assert.equal((await guest.host.take('installed')).results[0]?.code, 'install-failed');
});

for (const [what, change] of [
  ['a product', { product: '../../etc/app' }],
  ['a version', { version: '..' }],
  ['a version', { version: '2.0.0.tmp' }],
] as const) {
  test(`${what} that cannot name a folder (${Object.values(change)[0]}) is refused`, async () => {
    await started();
    const { manifest } = writeDrive(guest.attachDrive('vdb'), [app('2.0.0')]);
    offer([], { items: manifest.items.map((item) => ({ ...item, ...change })) });
    assert.equal((await guest.host.take('installed')).results[0]?.code, 'bad-name');
    assert.ok(!existsSync(join(guest.folder, 'opt/app/current')));
  });
}

test('a full disk fails the item with its own word and leaves the old version', async () => {
  seedApp('1.0.0');
  const { files } = nodePlatform();
  guest.overrides = {
    files: {
      ...files,
      create: (path, mode) => {
        if (path.includes('2.0.0.tmp')) throw new SystemError('ENOSPC', `making ${path}`);
        return files.create(path, mode);
      },
    },
  };
  await started();
  offer([app('2.0.0')]);
  const [result] = (await guest.host.take('installed')).results;
  assert.deepEqual([result?.outcome, result?.code], ['failed', 'no-space']);
  assert.equal(currentVersion(), '1.0.0');
});

// ---- Going on ------------------------------------------------------------------------------------------------------

test('a finished run that is offered again is answered with the stored results [X4]', async () => {
  await started();
  const manifestDigest = offer([app('2.0.0')]);
  const first = await guest.host.take('installed');
  await guest.host.take('drive');
  guest.cutPower();
  guest.newBoot();
  await started();
  guest.detachDrive('vdb');
  guest.host.send({ type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
  assert.deepEqual((await guest.host.take('installed')).results, first.results);
  assert.equal(guest.host.count('drive'), 0);
});

test('a session that begins in the middle of an install gets the answer when it offers again [X4]', async () => {
  await started();
  const slow = app('2.0.0', { install: '#!/bin/sh\nwhile ! [ -e "$PRATIQUE_PREFIX/go" ]; do sleep 0.02; done\n' });
  const manifestDigest = offer([slow]);
  assert.equal((await guest.host.take('drive')).state, 'verified');
  guest.host.open();
  await inventory();
  const again = { type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' } as const;
  guest.host.send(again);
  assert.equal((await guest.host.take('drive')).state, 'verified');
  mkdirSync(join(guest.folder, 'opt/app'), { recursive: true });
  writeFileSync(join(guest.folder, 'opt/app/go'), '');
  await guest.host.take('installed');
  await guest.host.settle();
  assert.equal(guest.host.count('installed'), 0, 'it was installed once and told once');
});

test('a session that has not offered yet is not told of an install', async () => {
  await started();
  const slow = app('2.0.0', { install: '#!/bin/sh\nwhile ! [ -e "$PRATIQUE_PREFIX/go" ]; do sleep 0.02; done\n' });
  const manifestDigest = offer([slow]);
  await guest.host.take('drive');
  guest.host.open();
  await guest.host.settle();
  mkdirSync(join(guest.folder, 'opt/app'), { recursive: true });
  writeFileSync(join(guest.folder, 'opt/app/go'), '');
  while (!existsSync(join(guest.folder, 'opt/app/current'))) await systemClock.sleep(5);
  await systemClock.sleep(100);
  assert.equal(guest.host.count('installed'), 0);
  guest.host.send({ type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
  assert.equal((await guest.host.take('installed')).results[0]?.outcome, 'installed');
});

test('items of an earlier manifest of the same run stay in the confirmation', async () => {
  await started();
  offer([app('2.0.0')]);
  await guest.host.take('installed');
  const other: DriveItem = { ...app('3.0.0'), item: { ...app('3.0.0').item, id: 'bundle/other' } };
  const manifestDigest = offer([other]);
  await guest.host.take('installed');
  guest.host.send({ type: 'ask-confirm', run: RUN, planDigest: PLAN, manifestDigest });
  const { results } = await guest.host.take('confirm');
  assert.deepEqual(
    results.map(({ item }) => item),
    ['bundle/app', 'bundle/other'],
  );
});

test('a due reboot is reported, done on request, and over in the next boot', async () => {
  await started();
  const { item, content } = app('2.0.0');
  assert.ok(item.install.action === 'bundle');
  const manifestDigest = offer([{ item: { ...item, install: { ...item.install, reboot: true } }, content }]);
  assert.equal((await guest.host.take('installed')).rebootRequired, true);
  assert.equal((await inventory()).rebootRequired, true);
  guest.host.send({ type: 'reboot', run: RUN });
  assert.equal((await guest.host.take('bye')).reason, 'reboot');
  while (!guest.deeds.includes('restart')) await systemClock.sleep(5);
  guest.cutPower();
  const before = guest.boot;
  guest.newBoot();
  await started();
  const { rebootRequired, lastShutdown } = await inventory();
  assert.deepEqual([rebootRequired, lastShutdown?.boot], [false, before]);
  guest.host.send({ type: 'ask-confirm', run: RUN, planDigest: PLAN, manifestDigest });
  assert.equal((await guest.host.take('confirm')).results.length, 1);
});

test('under busybox the reboot goes through init', async () => {
  symlinkSync('/bin/busybox', join(guest.paths.proc, '1/exe'));
  await started();
  guest.host.send({ type: 'reboot', run: RUN });
  await guest.host.take('bye');
  while (guest.deeds.length === 0) await systemClock.sleep(5);
  assert.deepEqual(guest.deeds, ['signal init']);
});

test('admitted and hold are told in the state file, and forgotten in the next boot', async () => {
  await started();
  const state = () => readFileSync(join(guest.paths.runtime, 'state'), 'utf8');
  await guest.host.settle();
  assert.equal(state(), `waiting ${guest.boot}\n`);
  guest.host.send({ type: 'hold', code: 'install-failed', detail: 'see \u001b[31mthe host' });
  await guest.host.settle();
  assert.equal(state(), `hold ${guest.boot}\ninstall-failed\nsee [31mthe host\n`);
  guest.host.send({ type: 'admitted', run: RUN });
  await guest.host.settle();
  assert.equal(state(), `admitted ${guest.boot}\n`);
  guest.cutPower();
  await started();
  assert.equal(state(), `admitted ${guest.boot}\n`, 'a restarted agent keeps it');
  guest.cutPower();
  guest.newBoot();
  await started();
  assert.equal(state(), `waiting ${guest.boot}\n`);
});

// ---- The agent itself ----------------------------------------------------------------------------------------------

function newAgent(version: string): DriveItem {
  const content = Buffer.from(`#!/bin/sh\necho "pratique-agent ${version}"\n`);
  return { item: { product: 'pratique-agent', version, install: { action: 'agent' } }, content };
}

function useOwnExecutable(): string {
  const path = join(guest.folder, 'bin/pratique-agent');
  copyFileSync('/bin/true', path);
  chmodSync(path, 0o755);
  guest.overrides = {
    selfPath: path,
    replaceSelf: (program, args) => {
      guest.deeds.push(`start ${program.slice(guest.folder.length)} ${args.join(' ')}`);
      guest.cutPower();
      throw new PowerCut('the agent was replaced');
    },
  };
  return path;
}

test('the agent replaces itself last, says goodbye, and the new one ends the run [X7]', async () => {
  const path = useOwnExecutable();
  await started();
  const manifestDigest = offer([newAgent('9.9.9'), app('2.0.0')]);
  assert.equal((await guest.host.take('bye')).reason, 'agent-update');
  while (guest.deeds.length < 2) await systemClock.sleep(5);
  assert.deepEqual(guest.deeds, ['mount vdb', 'start /bin/pratique-agent --test']);
  assert.match(readFileSync(path, 'utf8'), /9\.9\.9/);
  assert.ok(existsSync(`${path}.previous`));
  await started();
  assert.equal((await inventory()).agent.digest, digestOf(readFileSync(path)));
  guest.host.send({ type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
  const { results } = await guest.host.take('installed');
  assert.deepEqual(
    results.map(({ item, outcome }) => [item, outcome]),
    [
      ['bundle/app', 'installed'],
      ['agent/pratique-agent', 'installed'],
    ],
  );
});

for (const [what, content] of [
  ['says another version', '#!/bin/sh\necho "pratique-agent 1.0.0"\n'],
  ['cannot run', 'not a program'],
] as const) {
  test(`a new agent that ${what} does not replace the running one`, async () => {
    const path = useOwnExecutable();
    const before = digestOf(readFileSync(path));
    await started();
    offer([{ ...newAgent('9.9.9'), content: Buffer.from(content) }]);
    const [result] = (await guest.host.take('installed')).results;
    assert.equal(result?.outcome, 'failed');
    assert.equal(digestOf(readFileSync(path)), before);
  });
}

test('a new agent that cannot be started leaves the old one in place', async () => {
  const path = useOwnExecutable();
  const before = digestOf(readFileSync(path));
  guest.overrides = {
    ...guest.overrides,
    replaceSelf: () => {
      throw new SystemError('ENOMEM', 'starting the new agent');
    },
  };
  await started();
  offer([newAgent('9.9.9')]);
  const [result] = (await guest.host.take('installed')).results;
  assert.deepEqual([result?.outcome, digestOf(readFileSync(path))], ['failed', before]);
});
