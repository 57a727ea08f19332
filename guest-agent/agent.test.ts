// The agent against a host that speaks the real bytes: every message, and what is refused.
import assert from 'node:assert/strict';
import { chmodSync, copyFileSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { digestOf } from '../src/base/digest.ts';
import type { DriveItem } from '../test/fakes/guest-agent/fake-bundle.ts';
import { FakeGuest } from '../test/fakes/guest-agent/fake-guest.ts';
import { PLAN, RUN } from '../test/fakes/guest-agent/fake-host.ts';
import { PowerCut } from '../test/fakes/guest-agent/power-supply.ts';
import { SystemError } from './platform/platform.ts';

let guest: FakeGuest;

beforeEach(() => {
  guest = new FakeGuest();
});
afterEach(() => guest.remove());

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
  await guest.started();
  await guest.host.settle();
  assert.deepEqual(guest.host.messages, []);
});

test('ping is answered by pong', async () => {
  await guest.started();
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
    await guest.started();
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
    await guest.started();
    guest.host.opensByItself = false;
    guest.host.sendRaw(line);
    const { code } = await guest.host.take('fault');
    assert.equal(code, what === 'an endless line' ? 'too-long' : 'malformed');
    await guest.host.take('hello');
  });
}

test('a new session in the middle starts both counters anew', async () => {
  await guest.started();
  await guest.host.settle();
  guest.host.open();
  await guest.host.settle();
  guest.host.open();
  await guest.inventory();
});

for (const code of ['no-session', 'stale-session'] as const) {
  test(`a refuse outside of a session (${code}) makes the agent say hello again`, async () => {
    await guest.started();
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
    await guest.started();
    await guest.host.settle();
    guest.host.send({ type: 'refuse', code, detail: 'because' });
    if (isHello) await guest.host.take('hello');
    await guest.host.settle();
    assert.equal(guest.host.count('hello'), 0);
  });
}

test('after the host side was closed and opened again the agent says hello', async () => {
  await guest.started();
  await guest.host.settle();
  guest.port.close();
  await systemClock.sleep(30);
  guest.port.isOpen = true;
  await guest.host.take('hello');
  await guest.host.settle();
});

test('a host that does not read for long delays messages but loses none', async () => {
  writeFileSync(`${guest.paths.dpkg}/status`, dpkgStatus(600));
  await guest.started();
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
  await guest.started();
  const { products: listed, os } = await guest.inventory();
  assert.equal(listed.filter(({ ecosystem }) => ecosystem === 'debian').length, 3000);
  assert.ok(guest.host.chunkLines > 100, `${guest.host.chunkLines} chunks`);
  assert.deepEqual([os.id, os.versionId, os.codename], ['debian', '12', 'bookworm']);
});

test('chunked messages of the host are put together', async () => {
  await guest.started();
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
    await guest.started();
    guest.host.sendInChunks({ type: 'ask-inventory' }, 8, change);
    await guest.host.take('fault');
    assert.equal(guest.host.count('inventory'), 0);
  });
}

test('a product whose folders and record disagree is reported as broken', async () => {
  guest.seedApp('1.0.0');
  writeFileSync(
    join(guest.paths.state, 'products/app.json'),
    JSON.stringify({ product: 'app', version: '1.1.0', prefix: join(guest.folder, 'opt/app') }),
  );
  writeFileSync(join(guest.paths.state, 'products/damaged.json'), '{"product":');
  writeFileSync(join(guest.paths.state, 'products/renamed.json'), '{"product":"x","version":"1","prefix":"/opt"}');
  await guest.started();
  assert.deepEqual(await guest.products(), ['app 1.1.0 broken']);
});

test('what was installed at the last shutdown is reported in the next boot, and only there [A6]', async () => {
  guest.seedApp('1.0.0');
  await guest.started();
  assert.equal((await guest.inventory()).lastShutdown, null);
  const before = guest.boot;
  guest.terminate();
  assert.equal((await guest.host.take('bye')).reason, 'shutdown');
  while (!guest.deeds.includes('exit 0')) await systemClock.sleep(5);
  guest.newBoot();
  await guest.started();
  const { lastShutdown } = await guest.inventory();
  assert.equal(lastShutdown?.boot, before);
  assert.ok(lastShutdown?.products.some(({ product }) => product === 'app'));
  await systemClock.sleep(200); // The boot is noted on disk by now.
  guest.cutPower();
  await guest.started();
  assert.equal((await guest.inventory()).lastShutdown?.boot, before, 'a restarted agent still knows it');
  guest.cutPower();
  guest.newBoot();
  await guest.started();
  assert.equal((await guest.inventory()).lastShutdown, null, 'a crash leaves no record');
});

// ---- Going on ------------------------------------------------------------------------------------------------------

test('a finished run that is offered again is answered with the stored results [X4]', async () => {
  await guest.started();
  const manifestDigest = guest.offer([guest.app('2.0.0')]);
  const first = await guest.host.take('installed');
  await guest.host.take('drive');
  guest.cutPower();
  guest.newBoot();
  await guest.started();
  guest.detachDrive('vdb');
  guest.offerManifest(manifestDigest);
  assert.deepEqual((await guest.host.take('installed')).results, first.results);
  assert.equal(guest.host.count('drive'), 0);
});

test('a session that begins in the middle of an install gets the answer when it offers again [X4]', async () => {
  await guest.started();
  const slow = guest.app('2.0.0', {
    install: '#!/bin/sh\nwhile ! [ -e "$PRATIQUE_PREFIX/go" ]; do sleep 0.02; done\n',
  });
  const manifestDigest = guest.offer([slow]);
  assert.equal((await guest.host.take('drive')).state, 'verified');
  guest.host.open();
  await guest.inventory();
  guest.offerManifest(manifestDigest);
  assert.equal((await guest.host.take('drive')).state, 'verified');
  mkdirSync(join(guest.folder, 'opt/app'), { recursive: true });
  writeFileSync(join(guest.folder, 'opt/app/go'), '');
  await guest.host.take('installed');
  await guest.host.settle();
  assert.equal(guest.host.count('installed'), 0, 'it was installed once and told once');
});

test('a session that has not offered yet is not told of an install', async () => {
  await guest.started();
  const slow = guest.app('2.0.0', {
    install: '#!/bin/sh\nwhile ! [ -e "$PRATIQUE_PREFIX/go" ]; do sleep 0.02; done\n',
  });
  const manifestDigest = guest.offer([slow]);
  await guest.host.take('drive');
  guest.host.open();
  await guest.host.settle();
  mkdirSync(join(guest.folder, 'opt/app'), { recursive: true });
  writeFileSync(join(guest.folder, 'opt/app/go'), '');
  while (!existsSync(join(guest.folder, 'opt/app/current'))) await systemClock.sleep(5);
  await systemClock.sleep(100);
  assert.equal(guest.host.count('installed'), 0);
  guest.offerManifest(manifestDigest);
  assert.equal((await guest.host.take('installed')).results[0]?.outcome, 'installed');
});

test('items of an earlier manifest of the same run stay in the confirmation', async () => {
  await guest.started();
  guest.offer([guest.app('2.0.0')]);
  await guest.host.take('installed');
  const other: DriveItem = { ...guest.app('3.0.0'), item: { ...guest.app('3.0.0').item, id: 'bundle/other' } };
  const manifestDigest = guest.offer([other]);
  await guest.host.take('installed');
  guest.host.send({ type: 'ask-confirm', run: RUN, planDigest: PLAN, manifestDigest });
  const { results } = await guest.host.take('confirm');
  assert.deepEqual(
    results.map(({ item }) => item),
    ['bundle/app', 'bundle/other'],
  );
});

test('a due reboot is reported, done on request, and over in the next boot', async () => {
  await guest.started();
  const { item, content } = guest.app('2.0.0');
  assert.ok(item.install.action === 'bundle');
  const manifestDigest = guest.offer([{ item: { ...item, install: { ...item.install, reboot: true } }, content }]);
  assert.equal((await guest.host.take('installed')).rebootRequired, true);
  assert.equal((await guest.inventory()).rebootRequired, true);
  guest.host.send({ type: 'reboot', run: RUN });
  assert.equal((await guest.host.take('bye')).reason, 'reboot');
  while (!guest.deeds.includes('restart')) await systemClock.sleep(5);
  guest.cutPower();
  const before = guest.boot;
  guest.newBoot();
  await guest.started();
  const { rebootRequired, lastShutdown } = await guest.inventory();
  assert.deepEqual([rebootRequired, lastShutdown?.boot], [false, before]);
  guest.host.send({ type: 'ask-confirm', run: RUN, planDigest: PLAN, manifestDigest });
  assert.equal((await guest.host.take('confirm')).results.length, 1);
});

test('under busybox the reboot goes through init', async () => {
  symlinkSync('/bin/busybox', join(guest.paths.proc, '1/exe'));
  await guest.started();
  guest.host.send({ type: 'reboot', run: RUN });
  await guest.host.take('bye');
  while (guest.deeds.length === 0) await systemClock.sleep(5);
  assert.deepEqual(guest.deeds, ['signal init']);
});

test('admitted and hold are told in the state file, and forgotten in the next boot', async () => {
  await guest.started();
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
  await guest.started();
  assert.equal(state(), `admitted ${guest.boot}\n`, 'a restarted agent keeps it');
  guest.cutPower();
  guest.newBoot();
  await guest.started();
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
  await guest.started();
  const manifestDigest = guest.offer([newAgent('9.9.9'), guest.app('2.0.0')]);
  assert.equal((await guest.host.take('bye')).reason, 'agent-update');
  while (guest.deeds.length < 2) await systemClock.sleep(5);
  assert.deepEqual(guest.deeds, ['mount vdb', 'start /bin/pratique-agent --test']);
  assert.match(readFileSync(path, 'utf8'), /9\.9\.9/);
  assert.ok(existsSync(`${path}.previous`));
  await guest.started();
  assert.equal((await guest.inventory()).agent.digest, digestOf(readFileSync(path)));
  guest.offerManifest(manifestDigest);
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
    await guest.started();
    guest.offer([{ ...newAgent('9.9.9'), content: Buffer.from(content) }]);
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
  await guest.started();
  guest.offer([newAgent('9.9.9')]);
  const [result] = (await guest.host.take('installed')).results;
  assert.deepEqual([result?.outcome, digestOf(readFileSync(path))], ['failed', before]);
});
