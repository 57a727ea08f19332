// The Debian vendor and the store against the archives that this machine's own apt uses, and against that apt's own answers.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { type HttpFetch, makeHttpFetch } from '../../src/base/http-fetch.ts';
import { silentLog } from '../../src/base/log.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { makeDpkgStatusReader } from '../../src/model/dpkg-status.ts';
import type { InstalledProduct, Inventory } from '../../src/model/inventory.ts';
import type { Release } from '../../src/model/release.ts';
import { type BlobStore, openBlobStore } from '../../src/store/blob-store.ts';
import { type DebianVendorConfig, makeDebianVendor } from '../../src/vendor/debian-apt/index.ts';
import type { SignedArchive, Vendor } from '../../src/vendor/vendor.ts';
import { installRelease, readIndexes, statusText, updateTo } from './debian-status.ts';
import { layOut, makeScratchApt } from './scratch-apt.ts';

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

/** The same verified metadata for each of them: what they differ in is the configuration. */
async function makeVendor(config: Pick<DebianVendorConfig, 'suites' | 'pins'>): Promise<Vendor> {
  const deps = { http, clock: systemClock, metadataAgeMaxMs: 86_400_000, log: silentLog };
  return await makeDebianVendor({ name: 'debian', ...config }, { ...deps, folder: join(folder, 'vendor') });
}

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-mirror-'));
  http = makeHttpFetch({ clock: systemClock });
  guest = await makeGuest(['jq', 'libjq1', 'libonig5', 'libc6', 'libexpat1', 'openssl', 'libssl3', 'libssl3t64']);
  vendor = await makeVendor({ suites: suitesOf(guest) });
  await vendor.refresh({});
  store = await openBlobStore({ folder: join(folder, 'store'), clock: systemClock, log: silentLog, budgetBytes: 1e9 });
});
after(async () => {
  await store.close();
  await vendor.close();
  await http.close();
  await rm(folder, { recursive: true, force: true });
});

test('the machine’s own archives are verified and offer security updates for an old guest [A1 A7]', async () => {
  assert.equal(vendor.status().isFresh, true);
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

/** The packages of a dpkg status file, as the agent reports them. */
function inventoryOf(status: string): Inventory {
  const reader = makeDpkgStatusReader();
  const { packages } = reader.push(status);
  return { ...guest, products: [...packages, ...reader.end()] };
}

const show = ({ product, version }: { product: string; version: string }): string => `${product} ${version}`;

/** What the vendor sees as newer for this machine, installable or not: `name version`, sorted. */
async function candidatesFor(inventory: Inventory, from: Vendor): Promise<readonly string[]> {
  const { releases, leftOut } = await from.latest(inventory);
  const installed = new Map(inventory.products.map(({ product, version }) => [product, version]));
  const isNewer = ({ product, version }: Release): boolean => {
    const old = installed.get(product);
    return old !== undefined && from.compareVersions(version, old) > 0;
  };
  // Security updates that pins keep away are told too; apt says nothing of them.
  const refused = leftOut.filter(({ reason }) => !reason.startsWith('the pins'));
  return [...releases.filter(isNewer), ...refused].map(show).sort();
}

const suitesOf = ({ os: { codename } }: Inventory): readonly string[] => [
  `${codename}`,
  `${codename}-updates`,
  `${codename}-security`,
];

/** The signed files of all suites, laid out as on a drive: apt and the vendor look at the same bytes. */
async function layOutAll(): Promise<{ archive: string; archives: readonly SignedArchive[] }> {
  const offers = await vendor.offers();
  const isFrom = (suite: string) => (release: Release) => release.artifact.location.startsWith(`${suite}/`);
  const examples = suitesOf(guest).flatMap((suite) => offers.find(isFrom(suite)) ?? []);
  const archives = (await vendor.signedArchives?.(examples)) ?? [];
  const archive = join(folder, 'archive');
  await mkdir(archive, { recursive: true });
  await layOut(archives, archive);
  return { archive, archives };
}

type Machine = { readonly status: string; readonly pins?: DebianVendorConfig['pins']; readonly preferences?: string };

/** apt and the vendor, both looking at this machine. */
async function bothLookAt(name: string, { status, pins = [], preferences = '' }: Machine) {
  const { archive, archives } = await layOutAll();
  const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg';
  const own = join(folder, name);
  await mkdir(own);
  const apt = await makeScratchApt(own, { archive, archives, keyring, arch: guest.os.arch, status, preferences });
  const pinned = await makeVendor({ suites: suitesOf(guest), pins });
  const inventory = inventoryOf(status);
  const candidates = await candidatesFor(inventory, pinned);
  const { releases } = await pinned.latest(inventory);
  const installed = new Map(inventory.products.map(({ product, version }) => [product, version]));
  const news = releases.filter(({ product, version }) => {
    const old = installed.get(product);
    return old === undefined || vendor.compareVersions(version, old) > 0;
  });
  await pinned.close();
  return { apt, candidates, news };
}

const machineStatus = (): Promise<string> => readFile('/var/lib/dpkg/status', 'utf8');

test('for this machine the candidates are those of `apt list --upgradable` on the same sources [A7]', async () => {
  const { apt, candidates } = await bothLookAt('machine', { status: await machineStatus() });
  assert.deepEqual(candidates, await apt.upgradable());
});

test('for a machine at the level of the release they are the same too, some are for security, and apt agrees [A7]', async () => {
  const { archive, archives } = await layOutAll();
  const indexes = await readIndexes(archive, archives);
  const names = ['jq', 'openssl', 'curl', 'nginx', 'unzip', 'zip', 'memcached', 'redis-server', 'postgresql'];
  const installed = installRelease(indexes.get(guest.os.codename ?? '') ?? [], names);
  const { apt, candidates, news } = await bothLookAt('release', { status: statusText(installed) });
  assert.deepEqual(candidates, await apt.upgradable());
  assert.ok(candidates.length > 0, 'the release has pending updates');
  assert.ok(news.some(({ kind }) => kind === 'security'));
  // All of it: apt installs just this, and removes nothing.
  const words = news.map(({ product, version }) => `${product}=${version}`);
  assert.deepEqual(await apt.simulate('install', ...words), news.map(show).sort());
  const alone = news.find(({ requires }) => requires.length > 0);
  assert.ok(alone, 'some update requires another');
  await apt.setStatus(statusText(updateTo(installed, indexes, new Map([[alone.product, alone.version]]))));
  assert.notEqual(
    (await apt.run('apt-get', 'check')).exitCode,
    0,
    'without what it requires it leaves something broken',
  );
  // Any part that keeps to `requires` leaves nothing broken; the full run tries them all.
  const step = process.env.PRATIQUE_TEST_FULL === undefined ? Math.ceil(news.length / 8) : 1;
  for (const first of news.filter((_, number) => number % step === 0)) {
    const part = closeOver(first, news);
    await apt.setStatus(statusText(updateTo(installed, indexes, part)));
    const checked = await apt.run('apt-get', 'check');
    assert.equal(checked.exitCode, 0, `${first.product} with ${[...part.keys()]}: ${checked.stdout}${checked.stderr}`);
  }
});

/** One release and all that it requires, as the planner takes it. */
function closeOver(first: Release, news: readonly Release[]): ReadonlyMap<string, string> {
  const part = new Map([[first.product, first]]);
  for (const { requires } of part.values()) {
    for (const { product } of requires) {
      const needed = news.find((release) => release.product === product);
      assert.ok(needed, `${product} is one of the releases`);
      part.set(product, needed);
    }
  }
  return new Map([...part].map(([name, { version }]) => [name, version]));
}

test('for a machine on which everything is old, and one that pins and holds, they are the same [A7]', async () => {
  const status = await machineStatus();
  const old = status.replace(/^Version: (?:\d+:)?(.*)$/gm, 'Version: 0~$1');
  const everything = await bothLookAt('old', {
    status: old.replace(/^(Status: )install( ok installed)$/m, '$1hold$2'),
  });
  assert.deepEqual(everything.candidates, await everything.apt.upgradable());
  assert.ok(everything.candidates.length > 100, 'everything has an update');
  const suite = suitesOf(guest)[2] ?? '';
  const pins = [
    { packages: ['lib*'], suite, priority: -1 },
    { suite, priority: 400 },
    { packages: ['dpkg'], version: '0*', priority: 1001 },
  ];
  // What our pins say in apt's own words; a security suite is told apart by its label there.
  const pin = `release n=${suite}`;
  const preferences = `Package: lib*\nPin: ${pin}\nPin-Priority: -1\n\nPackage: *\nPin: ${pin}\nPin-Priority: 400\n\nPackage: dpkg\nPin: version 0*\nPin-Priority: 1001\n`;
  const pinned = await bothLookAt('pinned', { status: old, pins, preferences });
  const upgradable = await pinned.apt.upgradable();
  assert.ok(upgradable.length > 100 && upgradable.length < everything.candidates.length);
  assert.deepEqual(pinned.candidates, upgradable);
});

test('the host’s apt verifies the signed files from a folder, and fetches a package by them [A9]', async () => {
  const { releases } = await vendor.latest(guest);
  const jq = releases.find(({ product }) => product === 'jq');
  assert.ok(jq);
  const [archive] = (await vendor.signedArchives?.([jq])) ?? [];
  assert.ok(archive);
  const own = join(folder, 'drive');
  await layOut([archive], own);
  const path = archive.pool[0]?.path ?? '';
  assert.equal(archive.pool[0]?.digest, jq.artifact.digest);
  const open = (offsetBytes: number, signal: AbortSignal) => vendor.open(jq.artifact, offsetBytes, signal);
  const blob = await store.ensure({ digest: jq.artifact.digest, sizeBytes: jq.artifact.sizeBytes, open });
  await mkdir(dirname(join(own, path)), { recursive: true });
  await writeFile(join(own, path), await readFile(blob.path));
  const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg';
  const scratch = { archive: own, archives: [archive], keyring, arch: guest.os.arch, status: '' };
  await mkdir(join(folder, 'verified'));
  const apt = await makeScratchApt(join(folder, 'verified'), scratch);
  const uris = await apt.run('apt-get', '--print-uris', 'download', `jq=${jq.version}`);
  assert.match(uris.stdout, new RegExp(`${jq.artifact.digest}`));
  const packages = join(own, archive.files.find((file) => file.path.includes('Packages'))?.path ?? '');
  const bytes = await readFile(packages);
  bytes[bytes.length - 100] = (bytes[bytes.length - 100] ?? 0) ^ 1;
  await writeFile(packages, bytes);
  await mkdir(join(folder, 'tampered'));
  await assert.rejects(makeScratchApt(join(folder, 'tampered'), scratch), /Hash Sum mismatch/);
});
