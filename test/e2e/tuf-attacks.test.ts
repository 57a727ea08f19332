// TUF's attacks from a real HTTP server on the real vendor: each is refused by a code that names whose fault it is, and
// afterwards the honest repository works again.
import assert from 'node:assert/strict';
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import { classifyError, PratiqueError } from '../../src/base/errors.ts';
import { makeHttpFetch } from '../../src/base/http-fetch.ts';
import { TUF_OBJECT_FIELDS_MAX, TUF_ROOT_ROTATIONS_MAX, TUF_SIGNATURES_MAX } from '../../src/base/limits.ts';
import { silentLog } from '../../src/base/log.ts';
import type { Inventory } from '../../src/model/inventory.ts';
import { openBlobStore } from '../../src/store/blob-store.ts';
import { makeTufVendor } from '../../src/vendor/tuf/index.ts';
import type { Vendor } from '../../src/vendor/vendor.ts';
import { type FakeHttpServer, startHttpServer } from '../fakes/http-server.ts';
import {
  addTarget,
  bundle,
  copyOf,
  delegate,
  type FakeRepository,
  fakeKey,
  fakeRepository,
  fileName,
  publishAll,
  publishRoot,
  rekey,
  roleOf,
  write,
  writeAll,
} from '../fakes/tuf-repository.ts';

const DAY_MS = 86_400_000;
const past = (days: number): string => `${new Date(Date.now() - days * DAY_MS).toISOString().slice(0, 19)}Z`;

type Scene = {
  readonly base: string;
  readonly server: FakeHttpServer;
  readonly honest: FakeRepository;
  readonly vendor: Vendor;
  readonly reopen: () => Promise<Vendor>;
  /** Moves the host's clock. */
  readonly goTo: (aheadMs: number) => void;
};

/** An honest repository with a delegated product `team`, and a vendor that has seen its second version. */
async function openScene(t: TestContext): Promise<Scene> {
  const base = await mkdtemp(join(tmpdir(), 'pratique-attack-'));
  const web = join(base, 'web');
  await mkdir(web);
  const honest = fakeRepository(web);
  delegate(honest, 'targets', 'product-team', { paths: ['team/*'], terminating: true });
  await addTarget(honest, 'targets', 'hello/hello-1.0.0', { bytes: 'hello 1.0.0', custom: bundle('hello', '1.0.0') });
  await addTarget(honest, 'product-team', 'team/team-1.0.0', { bytes: 'team 1.0.0', custom: bundle('team', '1.0.0') });
  await writeAll(honest);
  await copyFile(join(web, 'metadata', '1.root.json'), join(base, 'root.json'));
  await publishAll(honest);
  const server = await startHttpServer(web);
  let aheadMs = 0;
  const clock: Clock = { ...systemClock, nowMs: () => systemClock.nowMs() + aheadMs };
  // Long enough for a machine that is busy with other tests.
  const bounds = { headersTimeoutMs: 2_000, stallTimeoutMs: 2_000, progressWindowMs: 1_000, progressBytesMin: 1000 };
  const http = makeHttpFetch({ clock: systemClock, ...bounds });
  const vendors: Vendor[] = [];
  const reopen = async () => {
    const vendor = await makeTufVendor({
      name: 'acme',
      metadataUrl: `${server.url}/metadata`,
      targetsUrl: `${server.url}/targets`,
      rootPath: join(base, 'root.json'),
      folder: join(base, 'state'),
      http,
      clock,
      metadataAgeMaxMs: DAY_MS,
      log: silentLog,
    });
    vendors.push(vendor);
    return vendor;
  };
  t.after(async () => {
    for (const vendor of vendors) await vendor.close();
    await http.close();
    await server.close();
    await rm(base, { recursive: true });
  });
  const vendor = await reopen();
  await vendor.refresh({});
  assert.deepEqual(await offered(vendor), ['hello 1.0.0', 'team 1.0.0']);
  const goTo = (ms: number) => {
    aheadMs = ms;
  };
  return { base, server, honest, vendor, reopen, goTo };
}

async function offered(vendor: Vendor): Promise<readonly string[]> {
  return (await vendor.offers()).map(({ product, version }) => `${product} ${version}`);
}

async function refusalOf(vendor: Vendor): Promise<string> {
  const error = await vendor.refresh({}).then(
    async () => assert.fail(`the refresh should have been refused; it offers ${await offered(vendor)}`),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof PratiqueError, String(error));
  assert.equal(vendor.status().trouble?.code, error.code);
  assert.equal(classifyError(error).blame, 'vendor');
  return error.code;
}

/** What the server has to say afterwards for the vendor to go on: higher versions than the attacker had signed for him. */
async function honestAgain({ honest, server, vendor }: Scene, { isSnapshotKeyNew = false } = {}): Promise<void> {
  const metadata = join(honest.folder, 'metadata');
  for (const name of await readdir(metadata)) {
    if (name.endsWith('.root.json') && Number.parseInt(name, 10) > roleOf(honest, 'root').version)
      await rm(join(metadata, name));
  }
  if (isSnapshotKeyNew) {
    rekey(honest, 'snapshot');
    await publishRoot(honest);
  }
  for (const path of new Set(server.requests.map((request) => request.path))) server.fail(path, null);
  await addTarget(honest, 'targets', 'hello/hello-2.0.0', { bytes: 'hello 2.0.0', custom: bundle('hello', '2.0.0') });
  await addTarget(honest, 'product-team', 'team/team-2.0.0', { bytes: 'team 2.0.0', custom: bundle('team', '2.0.0') });
  await publishAll(honest, 100);
  await vendor.refresh({});
  assert.deepEqual(await offered(vendor), ['hello 2.0.0', 'team 2.0.0']);
  assert.equal(vendor.status().isFresh, true);
  assert.equal(vendor.status().trouble, null);
}

type Attack = {
  readonly name: string;
  readonly code: string;
  /** The snapshot lists roles that the honest one does not have: only a new snapshot key takes them away again. */
  readonly addsRoles?: true;
  /** Spoils what is served; the copy of the repository has all of the vendor's keys. */
  readonly strike: (evil: FakeRepository, scene: Scene) => Promise<void>;
};

/** The role signed by somebody else's key, at a version that is new. */
const arbitrary = (name: string): Attack => ({
  name: `arbitrary software: ${name} signed by an unknown key`,
  code: 'vendor-ill/tuf-signature',
  strike: async (evil) => {
    await addTarget(evil, 'targets', 'hello/hello-6.6.6', { bytes: 'evil', custom: bundle('hello', '6.6.6') });
    roleOf(evil, name).signers = [fakeKey()];
    if (name === 'root') await publishRoot(evil);
    else await publishAll(evil);
  },
});

const endless = (name: string): Attack => ({
  name: `endless data: ${name}`,
  code: 'vendor-ill/tuf-endless-data',
  strike: async (evil, { server }) => {
    evil.hasHashes = false;
    await publishAll(evil);
    if (name === 'root') roleOf(evil, 'root').version += 1;
    server.fail(`/metadata/${fileName(evil, name)}`, { kind: 'endless' });
  },
});

const expired = (name: string): Attack => ({
  name: `freeze: ${name} is expired`,
  code: 'vendor-ill/tuf-expired',
  strike: async (evil) => {
    roleOf(evil, name).expires = past(1);
    if (name === 'root') {
      // The root counts also when it is expired; only the next one, not expired, lets the rest go on.
      await publishRoot(evil);
    }
    await publishAll(evil);
  },
});

const ATTACKS: readonly Attack[] = [
  ...['root', 'timestamp', 'snapshot', 'targets', 'product-team'].map(arbitrary),
  ...['timestamp', 'snapshot', 'targets', 'product-team'].map(expired),
  ...['root', 'timestamp', 'snapshot', 'targets', 'product-team'].map(endless),
  {
    name: 'rollback of the timestamp',
    code: 'vendor-ill/tuf-rollback',
    strike: async (evil) => {
      roleOf(evil, 'timestamp').version = 1;
      await write(evil, 'timestamp');
    },
  },
  {
    name: 'rollback of the snapshot behind a newer timestamp',
    code: 'vendor-ill/tuf-rollback',
    strike: async (evil) => {
      roleOf(evil, 'snapshot').version = 1;
      roleOf(evil, 'timestamp').version += 1;
      await write(evil, 'snapshot', 'timestamp');
    },
  },
  ...['targets', 'product-team'].map(
    (name): Attack => ({
      name: `rollback of ${name} behind a newer snapshot`,
      code: 'vendor-ill/tuf-rollback',
      strike: async (evil) => {
        roleOf(evil, name).version = 1;
        roleOf(evil, 'snapshot').version += 1;
        roleOf(evil, 'timestamp').version += 1;
        await write(evil, name, 'snapshot', 'timestamp');
      },
    }),
  ),
  {
    name: 'a role that the snapshot no longer lists',
    code: 'vendor-ill/tuf-rollback',
    strike: async (evil) => {
      evil.listed.set('product-team', null);
      await publishAll(evil);
    },
  },
  {
    name: 'a root that skips a version',
    code: 'vendor-ill/tuf-rollback',
    strike: async (evil) => {
      roleOf(evil, 'root').version = 3;
      await write(evil, 'root');
      await copyFile(join(evil.folder, 'metadata', '3.root.json'), join(evil.folder, 'metadata', '2.root.json'));
      await rm(join(evil.folder, 'metadata', '3.root.json'));
    },
  },
  ...['targets', 'product-team', 'snapshot'].map(
    (name): Attack => ({
      name: `mix and match: ${name} of another time`,
      code: 'vendor-ill/tuf-mix-and-match',
      strike: async (evil) => {
        const old = await readFile(join(evil.folder, 'metadata', fileName(evil, name)));
        await publishAll(evil);
        await writeFile(join(evil.folder, 'metadata', fileName(evil, name)), old);
      },
    }),
  ),
  {
    name: 'mix and match: the same version with other content',
    code: 'vendor-ill/tuf-mix-and-match',
    strike: async (evil) => {
      await publishAll(evil);
      // Of the same length: the length alone would give it away.
      roleOf(evil, 'targets').expires = '2091-01-01T00:00:00Z';
      await write(evil, 'targets');
    },
  },
  ...['timestamp', 'targets'].map(
    (name): Attack => ({
      name: `slow retrieval: ${name} trickles in`,
      code: 'vendor-ill/too-slow',
      strike: async (evil, { server }) => {
        evil.hasHashes = false;
        await publishAll(evil);
        server.fail(`/metadata/${fileName(evil, name)}`, { kind: 'drip', everyMs: 20 });
      },
    }),
  ),
  {
    name: 'slow retrieval: no answer at all',
    code: 'vendor-ill/timeout',
    strike: async (_evil, { server }) => server.fail('/metadata/timestamp.json', { kind: 'silent' }),
  },
  {
    name: 'key compromise below the threshold of targets',
    code: 'vendor-ill/tuf-signature',
    strike: async (evil, scene) => {
      await raiseThreshold(scene, 'targets');
      Object.assign(evil.roles, copyOf(scene.honest).roles);
      const [stolen] = roleOf(scene.honest, 'targets').keys;
      const spoilt = copyOf(scene.honest);
      roleOf(spoilt, 'targets').signers = stolen === undefined ? [] : [stolen];
      await addTarget(spoilt, 'targets', 'hello/hello-6.6.6', { bytes: 'evil', custom: bundle('hello', '6.6.6') });
      await publishAll(spoilt);
    },
  },
  {
    name: 'key compromise below the threshold of a delegation',
    code: 'vendor-ill/tuf-signature',
    strike: async (_evil, scene) => {
      await raiseThreshold(scene, 'product-team');
      const spoilt = copyOf(scene.honest);
      const [stolen] = roleOf(spoilt, 'product-team').keys;
      roleOf(spoilt, 'product-team').signers = stolen === undefined ? [] : [stolen];
      await addTarget(spoilt, 'product-team', 'team/team-6.6.6', { bytes: 'evil', custom: bundle('team', '6.6.6') });
      await publishAll(spoilt);
    },
  },
  {
    name: 'one stolen key that stands twice under two ids',
    code: 'vendor-ill/tuf-malformed',
    strike: async (evil) => {
      const [key] = roleOf(evil, 'product-team').keys;
      assert.ok(key !== undefined);
      const twin = { ...key, id: 'f'.repeat(64) };
      rekey(evil, 'product-team', [key, twin]);
      roleOf(evil, 'product-team').threshold = 2;
      await publishAll(evil);
    },
  },
  {
    name: 'delegations deeper than anybody needs',
    addsRoles: true,
    code: 'vendor-ill/tuf-delegations',
    strike: async (evil) => {
      for (let depth = 0; depth < 12; depth += 1) {
        delegate(evil, depth === 0 ? 'product-team' : `deep${depth - 1}`, `deep${depth}`);
      }
      await publishAll(evil);
    },
  },
  {
    name: 'more delegated roles than anybody needs',
    addsRoles: true,
    code: 'vendor-ill/tuf-delegations',
    strike: async (evil) => {
      const keys = [fakeKey()];
      for (const parent of ['targets', 'product-team']) {
        for (let index = 0; index < 150; index += 1) delegate(evil, parent, `${parent}${index}`, { keys });
      }
      await publishAll(evil);
    },
  },
  {
    name: 'a delegated role that bears the name of something that every object has',
    addsRoles: true,
    code: 'vendor-ill/tuf-malformed',
    strike: async (evil) => {
      delegate(evil, 'product-team', 'constructor');
      await publishAll(evil);
    },
  },
  {
    name: 'more targets in a delegated role than can be read in time',
    code: 'vendor-ill/tuf-too-many',
    strike: async (evil, { server }) => {
      evil.hasHashes = false;
      await publishAll(evil);
      const fields = Object.fromEntries(Array.from({ length: TUF_OBJECT_FIELDS_MAX + 1 }, (_, at) => [`f${at}`, {}]));
      const bytes = Buffer.from(JSON.stringify({ signed: { _type: 'targets', targets: fields }, signatures: [] }));
      server.fail(`/metadata/${fileName(evil, 'product-team')}`, { kind: 'bytes', bytes });
    },
  },
  {
    name: 'more signatures than can be verified in time',
    code: 'vendor-ill/tuf-too-many',
    strike: async (evil) => {
      roleOf(evil, 'snapshot').signers = Array.from({ length: TUF_SIGNATURES_MAX + 1 }, fakeKey);
      await publishAll(evil);
    },
  },
  {
    name: 'a version beyond all counting',
    code: 'vendor-ill/tuf-malformed',
    strike: async (evil) => {
      roleOf(evil, 'timestamp').version = 2 ** 60;
      await write(evil, 'timestamp');
    },
  },
  {
    name: 'JSON nested without end',
    code: 'vendor-ill/tuf-too-many',
    strike: async (_evil, { server }) => {
      const bytes = Buffer.from(`{"signed":${'['.repeat(5_000)}${']'.repeat(5_000)}}`);
      server.fail('/metadata/timestamp.json', { kind: 'bytes', bytes });
    },
  },
];

/** An honest change to two of three keys, which the vendor follows. */
async function raiseThreshold({ honest, vendor }: Scene, name: string): Promise<void> {
  rekey(honest, name, [...roleOf(honest, name).keys, fakeKey(), fakeKey()]);
  roleOf(honest, name).threshold = 2;
  await publishRoot(honest);
  await publishAll(honest);
  await vendor.refresh({});
}

for (const { name, code, addsRoles = false, strike } of ATTACKS) {
  test(`${name}: refused, and the honest repository works again [X3]`, async (t) => {
    const scene = await openScene(t);
    const { checkedAtMs } = scene.vendor.status();
    await strike(copyOf(scene.honest), scene);
    const before = await offered(scene.vendor);
    assert.equal(await refusalOf(scene.vendor), code);
    assert.deepEqual(await offered(scene.vendor), before, 'what was verified stays');
    assert.ok((scene.vendor.status().checkedAtMs ?? 0) >= (checkedAtMs ?? 0));
    assert.equal(await refusalOf(await scene.reopen()), code, 'also after a restart');
    await honestAgain(scene, { isSnapshotKeyNew: addsRoles });
  });
}

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
