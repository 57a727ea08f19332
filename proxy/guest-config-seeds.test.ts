// The seeds of VMs with cloud-init: there while they are needed, wiped under a running guest afterwards.
import assert from 'node:assert/strict';
import { mkdtemp, open, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { silentLog } from '../src/base/log.ts';
import { waitUntil } from '../src/base/wait-until.ts';
import type { ResolvedGuestConfig } from '../src/model/guest-config.ts';
import { vmId } from '../test/fakes/service.ts';
import { openSeeds } from './guest-config-seeds.ts';

const SECRET = 'open-sesame';
const WEB = vmId('web1');

function configOf(version: string): ResolvedGuestConfig {
  const origin = { source: 'file', at: 'x:1', layer: 'default' } as const;
  const file = { path: '/etc/x', content: SECRET };
  const item = { item: 'x', version, setting: { kind: 'file', file }, origin, hasSecret: true } as const;
  return { items: [item], trouble: [], remarks: [] };
}

async function site(t: TestContext) {
  const folder = await mkdtemp(join(tmpdir(), 'seeds-'));
  t.after(() => rm(folder, { recursive: true }));
  const found: { config: ResolvedGuestConfig | null } = { config: configOf('v1') };
  const timers: (() => void)[] = [];
  const clock = {
    after: (_ms: number, callback: () => void) => {
      timers.push(callback);
      return () => void timers.splice(timers.indexOf(callback), 1);
    },
  };
  const open = () =>
    openSeeds({ folder: join(folder, 'seeds'), guestConfigOf: async () => found.config, clock, log: silentLog });
  return { folder, found, timers, open, seeds: await open() };
}

test('a seed is there until its VM was admitted, and again only when its configuration changed [A14]', async (t) => {
  const { found, seeds } = await site(t);
  const first = await seeds.seedFor(WEB, null);
  assert.ok(first !== null && (await readFile(first)).includes(SECRET));
  assert.equal((await stat(first)).mode & 0o777, 0o400);
  // It was ended before its agent said anything: it is still to be set up.
  assert.equal(await seeds.seedFor(WEB, null), first);
  await seeds.finish(WEB);
  assert.equal(await seeds.seedFor(WEB, null), null);
  found.config = configOf('v2');
  assert.equal(await seeds.seedFor(WEB, null), first);
  found.config = null;
  assert.equal(await seeds.seedFor(WEB, null), null);
});

test('a guest that has the seed open reads zeros a while after it was admitted, also if the daemon was restarted', async (t) => {
  const { timers, open: openAgain, seeds } = await site(t);
  const path = await seeds.seedFor(WEB, null);
  assert.ok(path !== null);
  const held = await open(path, 'r');
  t.after(() => held.close());
  const { size } = await held.stat();
  const read = async () => (await held.read(Buffer.alloc(size), 0, size, 0)).buffer;
  await seeds.finish(WEB);
  // Its agent may be done before its cloud-init has begun.
  assert.ok((await read()).includes(SECRET));
  assert.equal(timers.length, 1);
  seeds.close();
  assert.equal(timers.length, 0);
  await openAgain();
  assert.equal(timers.length, 1);
  timers[0]?.();
  const isGone = async () => (await stat(path).catch(() => null)) === null;
  assert.ok(await waitUntil(isGone, systemClock, 5_000));
  assert.ok((await read()).equals(Buffer.alloc(size)));
});

test('a VM whose configuration is in trouble is not started with half of it, and a VM that is gone leaves nothing', async (t) => {
  const { folder, found, seeds } = await site(t);
  found.config = { ...configOf('v1'), trouble: ['default.toml:3: wrong'] };
  await assert.rejects(seeds.seedFor(WEB, null), /web1 gets no seed: default.toml:3: wrong/);
  found.config = configOf('v1');
  const path = await seeds.seedFor(WEB, null);
  await seeds.forget(WEB);
  await assert.rejects(stat(path ?? ''), { code: 'ENOENT' });
  await assert.rejects(stat(join(folder, 'seeds/web1.json')), { code: 'ENOENT' });
});

test('nothing of a seed stays when nothing is configured any more, or when the daemon died while it wrote one', async (t) => {
  const { folder, found, open: openAgain, seeds } = await site(t);
  const list = async () => await readdir(join(folder, 'seeds'));
  assert.ok((await seeds.seedFor(WEB, null)) !== null);
  found.config = null;
  assert.equal(await seeds.seedFor(WEB, null), null);
  assert.deepEqual(await list(), ['web1.json']);
  seeds.close();
  // Half written, and written but not noted: no QEMU was started with either.
  await writeFile(join(folder, 'seeds/web2.iso.new'), SECRET);
  await writeFile(join(folder, 'seeds/web3.iso'), SECRET);
  (await openAgain()).close();
  assert.deepEqual(await list(), ['web1.json']);
});
