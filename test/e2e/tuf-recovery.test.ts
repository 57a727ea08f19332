// TUF's attacks that take several steps, on the real vendor: time that passes, keys that are rotated, roots in chains, delegations
// that reach for more than they have, and bundles that are swapped.
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { classifyError } from '../../src/base/errors.ts';
import { TUF_ROOT_ROTATIONS_MAX } from '../../src/base/limits.ts';
import { silentLog } from '../../src/base/log.ts';
import type { Inventory } from '../../src/model/inventory.ts';
import { openBlobStore } from '../../src/store/blob-store.ts';
import {
  addTarget,
  bundle,
  copyOf,
  delegate,
  type FakeRepository,
  fakeKey,
  fileName,
  publishAll,
  publishRoot,
  rekey,
  roleOf,
  write,
  writeAll,
} from '../fakes/tuf-repository.ts';
import { DAY_MS, honestAgain, offered, openScene, past, refusalOf } from './tuf-scene.ts';

test('freeze: an old timestamp is taken while it is valid, then refused, and a new one works again [X3]', async (t) => {
  const scene = await openScene(t);
  roleOf(scene.honest, 'timestamp').expires = past(-2);
  await publishAll(scene.honest);
  await scene.vendor.refresh({});
  scene.goTo(DAY_MS);
  await scene.vendor.refresh({});
  scene.goTo(3 * DAY_MS);
  assert.equal(scene.vendor.status().isFresh, false);
  assert.match(scene.vendor.status().trouble?.message ?? '', /its timestamp metadata expired at/);
  assert.equal(await refusalOf(scene.vendor), 'vendor-ill/tuf-expired');
  roleOf(scene.honest, 'timestamp').expires = past(-30);
  await honestAgain(scene);
});

test('expired metadata of ours still block rollback, and lock nobody out [X3]', async (t) => {
  const scene = await openScene(t);
  const old = await readFile(join(scene.honest.folder, 'metadata', 'timestamp.json'));
  roleOf(scene.honest, 'timestamp').expires = past(-2);
  await publishAll(scene.honest);
  await scene.vendor.refresh({});
  scene.goTo(5 * DAY_MS);
  // The older one does not expire for decades, which makes it no newer.
  await writeFile(join(scene.honest.folder, 'metadata', 'timestamp.json'), old);
  assert.equal(await refusalOf(scene.vendor), 'vendor-ill/tuf-rollback');
  assert.equal(await refusalOf(await scene.reopen()), 'vendor-ill/tuf-rollback');
  roleOf(scene.honest, 'timestamp').expires = past(-30);
  await honestAgain(scene);
});

test('an expired root is followed by the next one, and until then nothing goes on [X3]', async (t) => {
  const scene = await openScene(t);
  await publishAll(scene.honest);
  const old = scene.honest.bytes.get('timestamp') ?? assert.fail('it was written');
  await publishAll(scene.honest);
  await scene.vendor.refresh({});
  roleOf(scene.honest, 'root').expires = past(1);
  await publishRoot(scene.honest);
  await publishAll(scene.honest);
  const timestamp = join(scene.honest.folder, 'metadata', 'timestamp.json');
  const newest = await readFile(timestamp);
  assert.equal(await refusalOf(scene.vendor), 'vendor-ill/tuf-expired');
  roleOf(scene.honest, 'root').expires = past(-30);
  await publishRoot(scene.honest);
  await writeFile(timestamp, old);
  assert.equal(await refusalOf(scene.vendor), 'vendor-ill/tuf-rollback', 'what was known is still known');
  await writeFile(timestamp, newest);
  await honestAgain(scene);
});

test('fast-forward: stolen timestamp and snapshot keys go far ahead, and new keys recover from it [X3]', async (t) => {
  const scene = await openScene(t);
  const evil = copyOf(scene.honest);
  for (const name of ['timestamp', 'snapshot']) roleOf(evil, name).version = 2 ** 50;
  await writeAll(evil);
  await scene.vendor.refresh({});
  await publishAll(scene.honest);
  assert.equal(await refusalOf(scene.vendor), 'vendor-ill/tuf-rollback');
  rekey(scene.honest, 'timestamp');
  rekey(scene.honest, 'snapshot');
  await publishRoot(scene.honest);
  await honestAgain(scene);
});

test('fast-forward of targets: a new snapshot key recovers from it [X3]', async (t) => {
  const scene = await openScene(t);
  const evil = copyOf(scene.honest);
  for (const name of ['targets', 'product-team']) roleOf(evil, name).version = 2 ** 50;
  await publishAll(evil);
  await scene.vendor.refresh({});
  roleOf(scene.honest, 'timestamp').version += 5;
  roleOf(scene.honest, 'snapshot').version += 5;
  await publishAll(scene.honest);
  assert.equal(await refusalOf(scene.vendor), 'vendor-ill/tuf-rollback');
  rekey(scene.honest, 'snapshot');
  await publishRoot(scene.honest);
  await honestAgain(scene);
});

test('a stolen key signs nothing any more once it is rotated away, also in a delegation [X3]', async (t) => {
  const scene = await openScene(t);
  const thief = copyOf(scene.honest);
  const old = roleOf(scene.honest, 'root').keys;
  for (const name of scene.honest.roles.keys()) rekey(scene.honest, name);
  await publishRoot(scene.honest, old);
  await publishAll(scene.honest);
  await scene.vendor.refresh({});
  await publishAll(thief, 50);
  assert.equal(await refusalOf(scene.vendor), 'vendor-ill/tuf-signature');
  await honestAgain(scene);
});

test('a chain of roots is followed, each signed by the one before it, and no further than its bound at once [X3]', async (t) => {
  const scene = await openScene(t);
  const total = TUF_ROOT_ROTATIONS_MAX + 10;
  for (let version = 2; version <= total + 1; version += 1) {
    const old = roleOf(scene.honest, 'root').keys;
    if (version % 20 === 0) rekey(scene.honest, 'root');
    await publishRoot(scene.honest, old);
  }
  const asked = () =>
    new Set(scene.server.requests.map(({ path }) => path).filter((path) => path.endsWith('root.json')));
  await scene.vendor.refresh({});
  const first = asked().size;
  assert.ok(first <= TUF_ROOT_ROTATIONS_MAX + 2, `${first}`);
  await scene.vendor.refresh({});
  assert.ok(asked().has(`/metadata/${total + 2}.root.json`));
  await honestAgain(scene);
});

test('wrong software: a file of another name, or altered on the way, is not stored, and the right one is [X3]', async (t) => {
  const { base, server, vendor, honest } = await openScene(t);
  const store = await openBlobStore({
    folder: join(base, 'store'),
    budgetBytes: 0,
    clock: systemClock,
    log: silentLog,
  });
  t.after(() => store.close());
  const inventory = inventoryOf({ hello: '0.9.0', team: '0.9.0' });
  const { releases } = await vendor.latest(inventory);
  const [hello, team] = releases.map(({ artifact }) => artifact);
  assert.ok(hello !== undefined && team !== undefined);
  const fetch = async () => {
    const { digest, sizeBytes } = hello;
    return await store.ensure({ digest, sizeBytes, open: (offset, signal) => vendor.open(hello, offset, signal) });
  };
  const teamBytes = await readFile(join(honest.folder, 'targets', team.location));
  server.fail(`/targets/${hello.location}`, { kind: 'bytes', bytes: teamBytes });
  await assert.rejects(fetch(), (error: unknown) => classifyError(error).blame === 'vendor');
  server.fail(`/targets/${hello.location}`, { kind: 'bytes', bytes: Buffer.from('HELLO 1.0.0') });
  await assert.rejects(fetch(), { code: 'vendor-ill/digest-mismatch' });
  server.fail(`/targets/${hello.location}`, null);
  assert.equal((await fetch()).wasPresent, false);
});

test("a delegation speaks for its own product only, whatever it signs, and breaks nobody else's [X3]", async (t) => {
  const scene = await openScene(t);
  const { honest, vendor } = scene;
  const add = async (path: string, custom: Record<string, unknown>) =>
    await addTarget(honest, 'product-team', path, { bytes: path, custom });
  // Outside of the paths that are delegated to it.
  await add('hello/hello-9.9.9', bundle('hello', '9.9.9'));
  // Within them, but about another product.
  await add('team/hello-9.9.8', bundle('hello', '9.9.8'));
  await add('team/agent', { ...bundle('team', '9.9.7'), install: { action: 'agent' } });
  await add('team/team-1.5.0', bundle('team', '1.5.0'));
  await publishAll(honest);
  await vendor.refresh({});
  assert.deepEqual(await offered(vendor), ['hello 1.0.0', 'team 1.5.0']);
  await honestAgain(scene);
});

test('delegations that go round in a circle end, and what they sign is found [X3]', async (t) => {
  const scene = await openScene(t);
  delegate(scene.honest, 'product-team', 'second', { paths: ['team/*'] });
  delegate(scene.honest, 'second', 'third', { paths: ['team/*'] });
  delegate(scene.honest, 'third', 'second', { paths: ['team/*'] });
  delegate(scene.honest, 'third', 'product-team', { paths: ['*/*'] });
  await addTarget(scene.honest, 'third', 'team/team-1.7.0', { bytes: 'x', custom: bundle('team', '1.7.0') });
  await publishAll(scene.honest);
  await scene.vendor.refresh({});
  assert.deepEqual(await offered(scene.vendor), ['hello 1.0.0', 'team 1.7.0']);
  await honestAgain(scene);
});

test('a role that two roles delegate to with different keys must satisfy both [X3]', async (t) => {
  const scene = await openScene(t);
  const evil = copyOf(scene.honest);
  // A second team lets the first one's role speak for its own product, with a key of its own that never signed it.
  delegate(evil, 'targets', 'product-other', { paths: ['other/*'] });
  delegate(evil, 'product-other', 'product-team', { paths: ['other/*'] });
  await publishAll(evil);
  const file = join(evil.folder, 'metadata', fileName(evil, 'product-other'));
  const parsed = JSON.parse(await readFile(file, 'utf8'));
  const stranger = fakeKey();
  parsed.signed.delegations.keys = { [stranger.id]: stranger.shown.toJSON() };
  parsed.signed.delegations.roles[0].keyids = [stranger.id];
  await resign(evil, 'product-other', parsed.signed);
  assert.equal(await refusalOf(scene.vendor), 'vendor-ill/tuf-signature');
  await honestAgain(scene, { isSnapshotKeyNew: true });
});

/** Signs altered content of a role with its own key, and whatever names its hash. */
async function resign(repository: FakeRepository, name: string, content: unknown): Promise<void> {
  const { Metadata, MetadataKind } = await import('../../src/vendor/tuf/models.ts');
  const { Signature } = await import('@tufjs/models');
  // The cast holds: this is JSON that was parsed, and it is parsed again.
  const metadata = Metadata.fromJSON(MetadataKind.Targets, { signed: content, signatures: [] } as never);
  for (const key of roleOf(repository, name).signers) {
    metadata.sign((data) => new Signature({ keyID: key.id, sig: key.sign(data) }));
  }
  const bytes = Buffer.from(JSON.stringify(metadata.toJSON()));
  repository.bytes.set(name, bytes);
  await writeFile(join(repository.folder, 'metadata', fileName(repository, name)), bytes);
  await write(repository, 'snapshot', 'timestamp');
}

function inventoryOf(installed: Readonly<Record<string, string>>): Inventory {
  return {
    os: { id: 'tiny', versionId: '1', arch: 'amd64' },
    products: Object.entries(installed).map(([product, version]) => ({
      ecosystem: 'bundle' as const,
      product,
      version,
      state: 'installed' as const,
    })),
    config: [],
    agent: { version: '0.1.0', digest: null },
    abilities: { drives: ['virtio-blk'], compressions: ['none'] },
    freeBytes: 1,
    rebootRequired: false,
    lastShutdown: null,
  };
}
