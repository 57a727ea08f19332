// The scene of an attack: an honest TUF repository on a real HTTP server, the real vendor that has seen it, and what comes after.
import assert from 'node:assert/strict';
import { copyFile, mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import { classifyError, PratiqueError } from '../../src/base/errors.ts';
import { makeHttpFetch } from '../../src/base/http-fetch.ts';
import { silentLog } from '../../src/base/log.ts';
import { makeTufVendor } from '../../src/vendor/tuf/index.ts';
import type { Vendor } from '../../src/vendor/vendor.ts';
import { type FakeHttpServer, startHttpServer } from '../fakes/http-server.ts';
import {
  addTarget,
  bundle,
  delegate,
  type FakeRepository,
  fakeRepository,
  publishAll,
  publishRoot,
  rekey,
  roleOf,
  writeAll,
} from '../fakes/tuf-repository.ts';

export const DAY_MS = 86_400_000;
/** A date as metadata write it, this many days ago; negative: to come. */
export const past = (days: number): string => `${new Date(Date.now() - days * DAY_MS).toISOString().slice(0, 19)}Z`;

/** What a test of one attack has. */
export type Scene = {
  readonly base: string;
  readonly server: FakeHttpServer;
  readonly honest: FakeRepository;
  readonly vendor: Vendor;
  readonly reopen: () => Promise<Vendor>;
  /** Moves the host's clock. */
  readonly goTo: (aheadMs: number) => void;
};

/** An honest repository with a delegated product `team`, and a vendor that has seen its second version. */
export async function openScene(t: TestContext): Promise<Scene> {
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

/** What the vendor offers now. */
export async function offered(vendor: Vendor): Promise<readonly string[]> {
  return (await vendor.offers()).map(({ product, version }) => `${product} ${version}`);
}

/** The code with which a refresh is refused; the fault must be the vendor's, and its status must say the same. */
export async function refusalOf(vendor: Vendor): Promise<string> {
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
export async function honestAgain({ honest, server, vendor }: Scene, { isSnapshotKeyNew = false } = {}): Promise<void> {
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
