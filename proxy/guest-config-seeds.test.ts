// The seeds of VMs with cloud-init: there while they are needed, wiped under a running guest afterwards.
import assert from 'node:assert/strict';
import { mkdtemp, open, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { ResolvedGuestConfig } from '../src/model/guest-config.ts';
import { vmId } from '../test/fakes/service.ts';
import { makeSeeds } from './guest-config-seeds.ts';

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
  return { folder, found, seeds: makeSeeds(join(folder, 'seeds'), async () => found.config) };
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

test('a guest that has the seed open reads zeros once it was admitted', async (t) => {
  const { seeds } = await site(t);
  const path = await seeds.seedFor(WEB, null);
  assert.ok(path !== null);
  const held = await open(path, 'r');
  t.after(() => held.close());
  const { size } = await held.stat();
  const read = async () => (await held.read(Buffer.alloc(size), 0, size, 0)).buffer;
  assert.ok((await read()).includes(SECRET));
  await seeds.finish(WEB);
  assert.ok((await read()).equals(Buffer.alloc(size)));
  await assert.rejects(stat(path), { code: 'ENOENT' });
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
