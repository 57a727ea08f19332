// The Debian vendor and the store against the archives that this machine's own apt uses.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { type HttpFetch, makeHttpFetch } from '../../src/base/http-fetch.ts';
import { silentLog } from '../../src/base/log.ts';
import { runCommand } from '../../src/base/run-command.ts';
import type { InstalledProduct, Inventory } from '../../src/model/inventory.ts';
import { type BlobStore, openBlobStore } from '../../src/store/blob-store.ts';
import { makeDebianVendor } from '../../src/vendor/debian-apt/index.ts';
import type { Vendor } from '../../src/vendor/vendor.ts';

let folder: string;
let http: HttpFetch;
let vendor: Vendor;
let store: BlobStore;
let guest: Inventory;

/** A guest that has these packages in versions older than any archive's, of this machine's own Debian release. */
async function makeGuest(names: readonly string[]): Promise<Inventory> {
  const release = await readFile('/etc/os-release', 'utf8');
  const field = (name: string): string => new RegExp(`^${name}="?([^"\n]*)`, 'm').exec(release)?.[1] ?? '';
  const arch = (await runCommand(['dpkg', '--print-architecture'])).trim();
  const products = names.map(
    (product): InstalledProduct => ({ ecosystem: 'debian', product, version: '0~1', arch, state: 'installed' }),
  );
  return {
    os: { id: 'debian', versionId: field('VERSION_ID'), codename: field('VERSION_CODENAME'), arch },
    products,
    config: [],
    agent: { version: '1', digest: null },
    abilities: { drives: ['virtio-blk'], compressions: ['none'] },
    freeBytes: 1e9,
    rebootRequired: false,
    lastShutdown: null,
  };
}

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-mirror-'));
  http = makeHttpFetch({ clock: systemClock });
  guest = await makeGuest(['jq', 'libjq1', 'libonig5', 'libc6', 'libexpat1', 'openssl', 'libssl3', 'libssl3t64']);
  const { codename } = guest.os;
  const suites = [`${codename}`, `${codename}-updates`, `${codename}-security`];
  const deps = {
    folder: join(folder, 'vendor'),
    http,
    clock: systemClock,
    metadataAgeMaxMs: 86_400_000,
    log: silentLog,
  };
  vendor = await makeDebianVendor({ name: 'debian', suites }, deps);
  store = await openBlobStore({ folder: join(folder, 'store'), clock: systemClock, log: silentLog, budgetBytes: 1e9 });
});
after(async () => {
  await store.close();
  await vendor.close();
  await http.close();
  await rm(folder, { recursive: true, force: true });
});

test('the machine’s own archives are verified and offer security updates for an old guest [A1 A7]', async () => {
  const status = await vendor.refresh({});
  assert.equal(status.isFresh, true);
  const { releases } = await vendor.latest(guest);
  const jq = releases.find(({ product }) => product === 'jq');
  assert.ok(jq !== undefined && vendor.compareVersions(jq.version, '0~1') > 0);
  assert.ok(releases.some(({ kind }) => kind === 'security'));
});

test('a security update is downloaded into the store once, verified and looked into [A9 X6]', async () => {
  const { releases } = await vendor.latest(guest);
  const isSmall = (sizeBytes: number): boolean => sizeBytes < 2_000_000;
  const jq = releases.find(({ product, kind }) => product === 'jq' && kind === 'security');
  const release = jq ?? releases.find(({ kind, artifact }) => kind === 'security' && isSmall(artifact.sizeBytes));
  assert.ok(release);
  const { artifact } = release;
  const open = (offsetBytes: number, signal: AbortSignal) => vendor.open(artifact, offsetBytes, signal);
  const { path } = await store.ensure({ digest: artifact.digest, sizeBytes: artifact.sizeBytes, open });
  await vendor.inspect(release, path);
  const again = await store.ensure({ digest: artifact.digest, sizeBytes: artifact.sizeBytes, open });
  assert.deepEqual(again, { path, wasPresent: true });
  assert.equal(await store.verify(artifact.digest), true);
});
