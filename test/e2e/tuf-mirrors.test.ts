// A TUF vendor with several mirrors: an ill one does not stop the others, and when none is left the error names each.
import assert from 'node:assert/strict';
import { copyFile, cp, mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import { PratiqueError } from '../../src/base/errors.ts';
import { makeHttpFetch } from '../../src/base/http-fetch.ts';
import { silentLog } from '../../src/base/log.ts';
import type { Release } from '../../src/model/release.ts';
import { openBlobStore } from '../../src/store/blob-store.ts';
import { makeTufVendor } from '../../src/vendor/tuf/index.ts';
import type { Vendor } from '../../src/vendor/vendor.ts';
import { type FakeHttpServer, startHttpServer } from '../fakes/http-server.ts';
import {
  addTarget,
  bundle,
  type FakeRepository,
  fakeRepository,
  publishAll,
  roleOf,
  writeAll,
} from '../fakes/tuf-repository.ts';

const HOUR_MS = 3_600_000;

type Scene = {
  readonly repository: FakeRepository;
  readonly first: FakeHttpServer;
  readonly second: FakeHttpServer;
  readonly vendor: Vendor;
  readonly reopen: () => Promise<Vendor>;
  /** Publishes a version on the second mirror; on the first one only if it is told to. */
  readonly publish: (version: string, isOnBoth?: boolean) => Promise<void>;
  readonly copyToFirst: () => Promise<void>;
  readonly goTo: (aheadMs: number) => void;
  readonly base: string;
};

async function openScene(t: TestContext): Promise<Scene> {
  const base = await mkdtemp(join(tmpdir(), 'pratique-mirrors-'));
  const folders = [join(base, 'first'), join(base, 'second')] as const;
  for (const folder of folders) await mkdir(folder);
  const [first, second] = [await startHttpServer(folders[0]), await startHttpServer(folders[1])];
  const repository = fakeRepository(folders[1]);
  const copyToFirst = async () => await cp(folders[1], folders[0], { recursive: true });
  const publish = async (version: string, isOnBoth = true) => {
    await addTarget(repository, 'targets', `hello/hello-${version}`, {
      bytes: version,
      custom: bundle('hello', version),
    });
    await publishAll(repository);
    if (isOnBoth) await copyToFirst();
  };
  await writeAll(repository);
  await publish('1.0.0');
  await copyFile(join(folders[1], 'metadata', '1.root.json'), join(base, 'root.json'));
  let aheadMs = 0;
  const clock: Clock = { ...systemClock, nowMs: () => systemClock.nowMs() + aheadMs };
  const bounds = { headersTimeoutMs: 1_000, stallTimeoutMs: 1_000, progressWindowMs: 500, progressBytesMin: 1000 };
  const http = makeHttpFetch({ clock: systemClock, ...bounds });
  const vendors: Vendor[] = [];
  const placeOf = ({ url }: FakeHttpServer) => ({ metadataUrl: `${url}/metadata`, targetsUrl: `${url}/targets` });
  const reopen = async () => {
    const vendor = await makeTufVendor({
      name: 'acme',
      ...placeOf(first),
      mirrors: [placeOf(second)],
      rootPath: join(base, 'root.json'),
      folder: join(base, 'state'),
      http,
      clock,
      metadataAgeMaxMs: 24 * HOUR_MS,
      log: silentLog,
    });
    vendors.push(vendor);
    return vendor;
  };
  t.after(async () => {
    for (const vendor of vendors) await vendor.close();
    await http.close();
    for (const server of [first, second]) await server.close();
    await rm(base, { recursive: true });
  });
  const goTo = (ms: number) => {
    aheadMs = ms;
  };
  return { repository, first, second, vendor: await reopen(), reopen, publish, copyToFirst, goTo, base };
}

const offered = async (vendor: Vendor): Promise<readonly string[]> =>
  (await vendor.offers()).map(({ version }) => version);

type Illness = { readonly name: string; readonly strike: (scene: Scene) => void | Promise<void> };

const TIMESTAMP = '/metadata/timestamp.json';
const ILLNESSES: readonly Illness[] = [
  { name: 'answers with errors', strike: ({ first }) => first.fail(TIMESTAMP, { kind: 'status', status: 503 }) },
  { name: 'is empty', strike: ({ first }) => first.fail(TIMESTAMP, { kind: 'status', status: 404 }) },
  { name: 'never answers', strike: ({ first }) => first.fail(TIMESTAMP, { kind: 'silent' }) },
  { name: 'trickles', strike: ({ first }) => first.fail(TIMESTAMP, { kind: 'drip', everyMs: 20 }) },
  { name: 'sends bytes without end', strike: ({ first }) => first.fail(TIMESTAMP, { kind: 'endless' }) },
  {
    name: 'sends a web page',
    strike: ({ first }) => first.fail(TIMESTAMP, { kind: 'bytes', bytes: Buffer.from('<html>') }),
  },
  {
    name: 'lacks the snapshot of its timestamp',
    strike: async ({ base, copyToFirst }) => {
      await copyToFirst();
      const folder = join(base, 'first', 'metadata');
      for (const name of await readdir(folder)) if (name.endsWith('snapshot.json')) await rm(join(folder, name));
    },
  },
  { name: 'is gone', strike: async ({ first }) => await first.close() },
];

for (const { name, strike } of ILLNESSES) {
  test(`a mirror that ${name} does not stop the other one`, async (t) => {
    const scene = await openScene(t);
    await scene.vendor.refresh({});
    await scene.publish('2.0.0', false);
    await strike(scene);
    await scene.vendor.refresh({});
    assert.deepEqual(await offered(scene.vendor), ['2.0.0']);
    const { isFresh, trouble } = scene.vendor.status();
    assert.deepEqual([isFresh, trouble], [true, null]);
  });
}

test('a mirror that is behind what is known is passed over, and taken again when it has caught up [X3]', async (t) => {
  const scene = await openScene(t);
  await scene.publish('2.0.0', false);
  scene.first.fail(TIMESTAMP, { kind: 'status', status: 503 });
  await scene.vendor.refresh({});
  scene.first.fail(TIMESTAMP, null);
  await scene.vendor.refresh({});
  assert.deepEqual(await offered(scene.vendor), ['2.0.0'], 'the old one is a rollback');
  await scene.publish('3.0.0');
  const before = scene.second.count(TIMESTAMP);
  await scene.vendor.refresh({});
  assert.deepEqual(await offered(scene.vendor), ['3.0.0']);
  assert.equal(scene.second.count(TIMESTAMP), before, 'the first one was enough');
});

test('when no mirror is left the error names each with its reason, and has the code that says most', async (t) => {
  const { vendor, first, second, publish } = await openScene(t);
  await vendor.refresh({});
  await first.close();
  await publish('2.0.0', false);
  second.fail(TIMESTAMP, { kind: 'endless' });
  const error = await vendor.refresh({}).then(
    () => assert.fail('there is no mirror'),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof PratiqueError);
  assert.equal(error.code, 'vendor-ill/tuf-endless-data');
  for (const { url } of [first, second]) assert.ok(error.message.includes(`${url}/metadata: `), error.message);
  assert.equal(vendor.status().trouble?.code, error.code);
  assert.deepEqual(await offered(vendor), ['1.0.0']);
});

test('without a network a vendor says when it was verified last, and why that is not fresh any more', async (t) => {
  const { vendor, reopen, first, second, goTo, repository, publish } = await openScene(t);
  assert.deepEqual(vendor.status().trouble?.code, 'vendor-ill/never-checked');
  await publish('1.0.1');
  roleOf(repository, 'timestamp').expires = new Date(Date.now() + 40 * HOUR_MS).toISOString();
  await publish('1.1.0');
  const { checkedAtMs } = await vendor.refresh({});
  for (const server of [first, second]) await server.close();
  const offline = await reopen();
  assert.deepEqual(offline.status(), { vendor: 'acme', checkedAtMs, isFresh: true, trouble: null });
  goTo(30 * HOUR_MS);
  assert.equal(offline.status().isFresh, false);
  assert.match(offline.status().trouble?.message ?? '', /^verified last at \S+Z; more than 24 hours ago$/);
  goTo(41 * HOUR_MS);
  assert.match(offline.status().trouble?.message ?? '', /; its timestamp metadata expired at /);
  await assert.rejects(offline.refresh({}), { code: 'vendor-ill/unreachable' });
  assert.equal(offline.status().checkedAtMs, checkedAtMs);
  assert.equal(offline.status().trouble?.code, 'vendor-ill/unreachable');
  assert.deepEqual(await offered(offline), ['1.1.0']);
});

test('a bundle comes from the next mirror when the first has it not, has it wrong, or stops in the middle [A9]', async (t) => {
  const { base, vendor, first, second } = await openScene(t);
  await vendor.refresh({});
  const [release] = await vendor.offers();
  assert.ok(release !== undefined);
  const path = `/targets/${release.artifact.location}`;
  const faults = [
    { kind: 'status', status: 404 },
    { kind: 'bytes', bytes: Buffer.from('1.0.9') },
    { kind: 'stall', afterBytes: 2 },
    { kind: 'silent' },
  ] as const;
  for (const [index, fault] of faults.entries()) {
    first.fail(path, fault);
    const before = second.count(path);
    await fetchOnce(vendor, release, join(base, `store-${index}`));
    assert.ok(second.count(path) > before, fault.kind);
  }
  second.fail(path, { kind: 'status', status: 404 });
  first.fail(path, { kind: 'status', status: 500 });
  await assert.rejects(vendor.open(release.artifact, 0), (error: unknown) => {
    assert.ok(error instanceof PratiqueError);
    for (const { url } of [first, second]) assert.ok(error.message.includes(`${url}/targets: `), error.message);
    return true;
  });
});

/** As a run does it: a download that came out wrong is asked for again, at most twice. */
async function fetchOnce(vendor: Vendor, { artifact }: Release, folder: string): Promise<void> {
  const store = await openBlobStore({ folder, budgetBytes: 0, clock: systemClock, log: silentLog });
  const { digest, sizeBytes } = artifact;
  const ensure = async () =>
    await store.ensure({ digest, sizeBytes, open: (offset, signal) => vendor.open(artifact, offset, signal) });
  try {
    await ensure().catch(ensure);
    assert.equal(await store.verify(digest), true);
  } finally {
    await store.close();
  }
}

test('more mirrors than anybody needs are refused before any is asked', async (t) => {
  const { base } = await openScene(t);
  const place = { metadataUrl: 'http://127.0.0.1:9/m', targetsUrl: 'http://127.0.0.1:9/t' };
  const http = makeHttpFetch({ clock: systemClock });
  t.after(() => http.close());
  const terms = { http, clock: systemClock, metadataAgeMaxMs: HOUR_MS, log: silentLog };
  const many = makeTufVendor({
    name: 'many',
    ...place,
    mirrors: Array.from({ length: 16 }, () => place),
    rootPath: join(base, 'root.json'),
    folder: join(base, 'many'),
    ...terms,
  });
  await assert.rejects(many, { code: 'usage/mirrors' });
});
