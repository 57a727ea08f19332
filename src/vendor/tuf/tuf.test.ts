// Publisher and vendor against each other over a real HTTP server, and the attacks that TUF exists to refuse.
import assert from 'node:assert/strict';
import { chmod, copyFile, cp, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { Metadata, MetadataKind, MetaFile, Snapshot, TargetFile, Targets, Timestamp } from '@tufjs/models';
import { type FakeHttpServer, startHttpServer } from '../../../test/fakes/http-server.ts';
import { type Clock, systemClock } from '../../base/clock.ts';
import { digestOf } from '../../base/digest.ts';
import { PratiqueError } from '../../base/errors.ts';
import { type HttpFetch, makeHttpFetch } from '../../base/http-fetch.ts';
import { silentLog } from '../../base/log.ts';
import type { InstalledProduct, Inventory } from '../../model/inventory.ts';
import type { Release } from '../../model/release.ts';
import type { Vendor } from '../vendor.ts';
import { makeTufVendor } from './index.ts';
import { openKeyRing, signersFor, signWith } from './keys.ts';
import { type PublishOptions, publishFolder } from './publish.ts';

const DAY_MS = 86_400_000;

let base: string;
let server: FakeHttpServer;
let http: HttpFetch;
const vendors: Vendor[] = [];

beforeEach(async () => {
  base = await mkdtemp(join(tmpdir(), 'pratique-tuf-'));
  await mkdir(join(base, 'web'));
  server = await startHttpServer(join(base, 'web'));
  http = makeHttpFetch({
    clock: systemClock,
    headersTimeoutMs: 500,
    stallTimeoutMs: 500,
    progressWindowMs: 300,
    progressBytesMin: 1000,
  });
});
afterEach(async () => {
  await Promise.all(vendors.splice(0).map(async (vendor) => await vendor.close()));
  await http.close();
  await server.close();
  await rm(base, { recursive: true });
});

const metadataPath = (name: string) => join(base, 'web', 'metadata', name);

async function writeRelease(name: string, description: Record<string, unknown>, files = { 'bin/run': name }) {
  const folder = join(base, 'releases', name);
  await mkdir(join(folder, 'files', 'bin'), { recursive: true });
  const install = { action: 'bundle', prefix: '/opt/hello', check: 'bin/check' };
  await writeFile(
    join(folder, 'release.json'),
    JSON.stringify({ product: 'hello', kind: 'security', install, ...description }),
  );
  for (const [path, text] of Object.entries({ ...files, 'bin/check': '#!/bin/sh\nexit 0\n' })) {
    await writeFile(join(folder, 'files', path), text);
  }
  await chmod(join(folder, 'files', 'bin', 'check'), 0o755);
  return folder;
}

async function publish(source: string | null, options: Partial<PublishOptions> = {}) {
  const repository = join(base, 'web');
  return await publishFolder({ source, repository, keys: join(base, 'keys'), clock: systemClock, ...options });
}

async function publishHello(
  version: string,
  more: Record<string, unknown> = {},
  options: Partial<PublishOptions> = {},
) {
  const name = `hello-${version}-${JSON.stringify(more).length}`;
  return await publish(await writeRelease(name, { version, ...more }), options);
}

/** A vendor that trusts the first root, as the operator got it on the first day. */
async function openVendor(options: { clock?: Clock; url?: string; ageMaxMs?: number } = {}): Promise<Vendor> {
  const rootPath = join(base, 'root.json');
  await stat(rootPath).catch(async () => await copyFile(metadataPath('1.root.json'), rootPath));
  const url = options.url ?? server.url;
  const vendor = await makeTufVendor({
    name: 'acme',
    metadataUrl: `${url}/metadata`,
    targetsUrl: `${url}/targets`,
    rootPath,
    folder: join(base, 'state'),
    http,
    clock: options.clock ?? systemClock,
    metadataAgeMaxMs: options.ageMaxMs ?? DAY_MS,
    log: silentLog,
  });
  vendors.push(vendor);
  return vendor;
}

function inventoryOf(products: readonly Partial<InstalledProduct>[], os = 'tiny'): Inventory {
  return {
    os: { id: os, versionId: '1', arch: 'amd64' },
    products: products.map((product) => ({
      ecosystem: 'bundle' as const,
      product: 'hello',
      version: '1.0.0',
      state: 'installed' as const,
      ...product,
    })),
    config: [],
    agent: { version: '0.1.0', digest: null },
    abilities: { drives: ['virtio-blk'], compressions: ['gzip'] },
    freeBytes: 1,
    rebootRequired: false,
    lastShutdown: null,
  };
}

async function latestVersion(vendor: Vendor): Promise<string | undefined> {
  return (await vendor.latest(inventoryOf([{}]))).releases[0]?.version;
}

async function refusalOf(vendor: Vendor): Promise<string> {
  const error = await vendor.refresh({}).then(
    () => assert.fail('the refresh should have been refused'),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof PratiqueError, String(error));
  assert.equal(vendor.status().trouble?.code, error.code);
  return error.code;
}

async function readAll(pieces: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const list: Uint8Array[] = [];
  for await (const piece of pieces) list.push(piece);
  return Buffer.concat(list);
}

/** Signs with the vendor's real keys what the publisher would never write. */
async function forgeTargets(edit: (targets: Record<string, TargetFile>) => void): Promise<void> {
  const read = async (name: string) => JSON.parse(await readFile(metadataPath(name), 'utf8'));
  const root = Metadata.fromJSON(MetadataKind.Root, await read('1.root.json'));
  const ring = await openKeyRing([join(base, 'keys')]);
  const signAs = (role: string, metadata: Parameters<typeof signWith>[1]) => {
    for (const key of signersFor(ring, role, root.signed.roles[role] ?? assert.fail(role))) signWith(key, metadata);
  };
  const before = Metadata.fromJSON(MetadataKind.Timestamp, await read('timestamp.json'));
  const version = before.signed.version + 1;
  const old = Metadata.fromJSON(MetadataKind.Targets, await read(`${version - 1}.targets.json`));
  const terms = { version, specVersion: '1.0.31', expires: '2090-01-01T00:00:00Z' };
  const all = { ...old.signed.targets };
  edit(all);
  const targets = new Metadata(new Targets({ ...terms, targets: all }));
  signAs('targets', targets);
  const snapshot = new Metadata(new Snapshot({ ...terms, meta: { 'targets.json': new MetaFile({ version }) } }));
  signAs('snapshot', snapshot);
  const timestamp = new Metadata(new Timestamp({ ...terms, snapshotMeta: new MetaFile({ version }) }));
  signAs('timestamp', timestamp);
  await writeFile(metadataPath(`${version}.targets.json`), JSON.stringify(targets.toJSON()));
  await writeFile(metadataPath(`${version}.snapshot.json`), JSON.stringify(snapshot.toJSON()));
  await writeFile(metadataPath('timestamp.json'), JSON.stringify(timestamp.toJSON()));
}

test('what is published is refreshed, chosen, downloaded and looked into [A1 A9]', async () => {
  await publishHello('1.0.0');
  const publication = await publishHello('1.2.0', { summary: 'mends a hole', advisories: ['ACME-1'] });
  assert.equal(publication.targetsTotal, 2);
  assert.deepEqual(publication.versions, { root: 1, targets: 2, snapshot: 2, timestamp: 2 });
  const vendor = await openVendor();
  assert.equal(vendor.status().checkedAtMs, null);
  const status = await vendor.refresh({});
  assert.equal(status.isFresh, true);
  assert.equal(status.trouble, null);
  const { releases } = await vendor.latest(inventoryOf([{}]));
  assert.equal(releases.length, 1);
  // The cast holds: the length was just asserted.
  const release = releases[0] as Release;
  assert.equal(release.version, '1.2.0');
  assert.deepEqual(release.advisories, ['ACME-1']);
  const bytes = await readAll(await vendor.open(release.artifact, 0));
  assert.equal(digestOf(bytes), release.artifact.digest);
  assert.equal(bytes.length, release.artifact.sizeBytes);
  assert.deepEqual(await readAll(await vendor.open(release.artifact, 10)), bytes.subarray(10));
  const path = join(base, 'bundle');
  await writeFile(path, bytes);
  await vendor.inspect(release, path);
  await writeFile(path, bytes.subarray(0, bytes.length / 2));
  await assert.rejects(vendor.inspect(release, path), { code: 'vendor-ill/bundle-damaged' });
});

test('a VM without the product is offered nothing, all offers still list it', async () => {
  await publishHello('1.0.0');
  const vendor = await openVendor();
  await vendor.refresh({});
  assert.deepEqual(await vendor.latest(inventoryOf([])), { releases: [], leftOut: [] });
  assert.deepEqual(await vendor.latest(inventoryOf([{ ecosystem: 'debian' }])), { releases: [], leftOut: [] });
  assert.equal((await vendor.offers()).length, 1);
});

test('a rolled back timestamp is refused and the newer releases stay, also over a restart [X3]', async () => {
  await publishHello('1.0.0');
  await copyFile(metadataPath('timestamp.json'), join(base, 'old-timestamp.json'));
  await publishHello('2.0.0');
  const vendor = await openVendor();
  await vendor.refresh({});
  await copyFile(join(base, 'old-timestamp.json'), metadataPath('timestamp.json'));
  assert.equal(await refusalOf(vendor), 'vendor-ill/tuf-rollback');
  assert.equal(await latestVersion(vendor), '2.0.0');
  const reopened = await openVendor();
  assert.equal(await latestVersion(reopened), '2.0.0');
  assert.equal(await refusalOf(reopened), 'vendor-ill/tuf-rollback');
});

test('a newer timestamp counts against rollback even if the rest of that refresh failed [X3]', async () => {
  await publishHello('1.0.0');
  const vendor = await openVendor();
  await vendor.refresh({});
  await copyFile(metadataPath('timestamp.json'), join(base, 'old-timestamp.json'));
  await publishHello('2.0.0');
  server.fail('/metadata/2.snapshot.json', { kind: 'status', status: 500 });
  assert.equal(await refusalOf(vendor), 'vendor-ill/http-5xx');
  assert.equal(await latestVersion(vendor), '1.0.0');
  await copyFile(join(base, 'old-timestamp.json'), metadataPath('timestamp.json'));
  assert.equal(await refusalOf(vendor), 'vendor-ill/tuf-rollback');
});

test('frozen metadata are refused once they expire [X3]', async () => {
  const past: Clock = { ...systemClock, nowMs: () => systemClock.nowMs() - 40 * DAY_MS };
  await publishHello('1.0.0', {}, { clock: past });
  const vendor = await openVendor();
  assert.equal(await refusalOf(vendor), 'vendor-ill/tuf-expired');
  assert.equal(await latestVersion(vendor), undefined);
});

test('verified metadata stop being fresh with age and with expiry, but stay known', async () => {
  await publishHello('1.0.0');
  let aheadMs = 0;
  const clock: Clock = { ...systemClock, nowMs: () => systemClock.nowMs() + aheadMs };
  const vendor = await openVendor({ clock });
  await vendor.refresh({});
  const patient = await openVendor({ clock, ageMaxMs: 1000 * DAY_MS });
  aheadMs = 2 * DAY_MS;
  assert.equal(vendor.status().isFresh, false);
  assert.equal(patient.status().isFresh, true);
  aheadMs = 40 * DAY_MS;
  assert.equal(patient.status().isFresh, false);
  assert.equal(await latestVersion(patient), '1.0.0');
});

test('endless metadata and endless targets end at their limit [X3]', async () => {
  await publishHello('1.0.0');
  const vendor = await openVendor();
  await vendor.refresh({});
  const [release] = (await vendor.latest(inventoryOf([{}]))).releases;
  assert.ok(release !== undefined);
  server.fail(`/targets/${release.artifact.location}`, { kind: 'endless' });
  await assert.rejects(readAll(await vendor.open(release.artifact, 0)), { code: 'vendor-ill/too-large' });
  server.fail('/metadata/timestamp.json', { kind: 'endless' });
  assert.equal(await refusalOf(vendor), 'vendor-ill/tuf-endless-data');
});

test('metadata that trickle in are given up [X3]', async () => {
  await publishHello('1.0.0');
  const vendor = await openVendor();
  server.fail('/metadata/timestamp.json', { kind: 'drip', everyMs: 20 });
  assert.equal(await refusalOf(vendor), 'vendor-ill/too-slow');
});

test('software signed by other keys is refused, as is their root [X3]', async () => {
  await publishHello('1.0.0');
  const vendor = await openVendor();
  await vendor.refresh({});
  const other = { repository: join(base, 'other'), keys: join(base, 'other-keys') };
  await publishHello('6.6.6', {}, other);
  await publishHello('6.6.7', {}, { ...other, rotate: ['timestamp'] });
  await copyFile(join(base, 'other', 'metadata', 'timestamp.json'), metadataPath('timestamp.json'));
  assert.equal(await refusalOf(vendor), 'vendor-ill/tuf-signature');
  await copyFile(join(base, 'other', 'metadata', '2.root.json'), metadataPath('2.root.json'));
  assert.equal(await refusalOf(vendor), 'vendor-ill/tuf-signature');
  assert.equal(await latestVersion(vendor), '1.0.0');
});

test('targets that belong to another snapshot are refused, older or altered [X3]', async () => {
  await publishHello('1.0.0');
  await publishHello('2.0.0');
  const vendor = await openVendor();
  await copyFile(metadataPath('1.targets.json'), metadataPath('2.targets.json'));
  assert.equal(await refusalOf(vendor), 'vendor-ill/tuf-mix-and-match');
  await copyFile(metadataPath('1.snapshot.json'), metadataPath('2.snapshot.json'));
  assert.equal(await refusalOf(vendor), 'vendor-ill/tuf-mix-and-match');
  assert.equal(await latestVersion(vendor), undefined);
});

test('after a key rotation the new keys are followed and the old ones refused [X3]', async () => {
  await publishHello('1.0.0');
  const vendor = await openVendor();
  await vendor.refresh({});
  await cp(join(base, 'web'), join(base, 'stolen-web'), { recursive: true });
  await cp(join(base, 'keys'), join(base, 'stolen-keys'), { recursive: true });
  const rotated = await publishHello('2.0.0', {}, { rotate: ['root', 'targets', 'snapshot', 'timestamp'] });
  assert.equal(rotated.versions.root, 2);
  await vendor.refresh({});
  assert.equal(await latestVersion(vendor), '2.0.0');
  const stolen = { repository: join(base, 'stolen-web'), keys: join(base, 'stolen-keys') };
  await publishHello('9.0.0', {}, stolen);
  await publishHello('9.0.1', {}, stolen);
  await copyFile(join(base, 'stolen-web', 'metadata', 'timestamp.json'), metadataPath('timestamp.json'));
  assert.equal(await refusalOf(vendor), 'vendor-ill/tuf-signature');
  assert.equal(await latestVersion(vendor), '2.0.0');
});

test('a host that knows only the first root follows two rotations [X3]', async () => {
  await publishHello('1.0.0');
  await publishHello('2.0.0', {}, { rotate: ['root', 'timestamp'] });
  await publishHello('3.0.0', {}, { rotate: ['root'] });
  const vendor = await openVendor();
  await vendor.refresh({});
  assert.equal(await latestVersion(vendor), '3.0.0');
});

test('a rotation that was cut off before its key was put in place goes on with the next publish [X4]', async () => {
  await publishHello('1.0.0');
  await publishHello('2.0.0', {}, { rotate: ['timestamp'] });
  const keys = join(base, 'keys');
  await cp(join(keys, 'timestamp.pem'), join(keys, 'timestamp.next.pem'), { preserveTimestamps: true });
  await copyFile(join(keys, 'snapshot.pem'), join(keys, 'timestamp.pem'));
  await publishHello('3.0.0');
  const vendor = await openVendor();
  await vendor.refresh({});
  assert.equal(await latestVersion(vendor), '3.0.0');
});

test('metadata with very many fields are refused before they can hold up the process [X3]', async () => {
  await publishHello('1.0.0');
  const vendor = await openVendor();
  const fields = Object.fromEntries(Array.from({ length: 3000 }, (_, index) => [`f${index}`, {}]));
  const bytes = Buffer.from(JSON.stringify({ signed: { _type: 'snapshot', meta: fields }, signatures: [] }));
  await forgeTargets(() => {}); // Its timestamp names no length and no hash, so that ours is the guard that is left.
  server.fail('/metadata/2.snapshot.json', { kind: 'bytes', bytes });
  assert.equal(await refusalOf(vendor), 'vendor-ill/tuf-too-many');
});

test('what is no metadata at all is malformed, not a crash', async () => {
  await publishHello('1.0.0');
  const vendor = await openVendor();
  for (const text of ['', 'null', '[]', '{"signed":1}', '<html>', '{"signed":{"_type":"timestamp"},"signatures":[]}']) {
    server.fail('/metadata/timestamp.json', { kind: 'bytes', bytes: Buffer.from(text) });
    assert.equal(await refusalOf(vendor), 'vendor-ill/tuf-malformed', text);
  }
});

test('a target that cannot be understood is left out and breaks no other [X3]', async () => {
  await publishHello('1.0.0');
  const install = { action: 'bundle', prefix: '/opt/x', compression: 'gzip' };
  const good = { product: 'x', version: '1.0.0', kind: 'fix', install };
  const bad: Record<string, unknown> = {
    'no-custom': undefined,
    'no-semver': { ...good, version: 'latest' },
    'with-v': { ...good, version: 'v1.0.0' },
    'climbing-prefix': { ...good, install: { ...install, prefix: '/opt/../etc' } },
    'climbing-product': { ...good, product: '../x' },
    'odd-kind': { ...good, kind: 'urgent' },
    'odd-range': { ...good, requires: [{ product: 'y', range: 'whatever!' }] },
    'debian-action': { ...good, install: { action: 'debian-package' } },
    '../climbing-path': good,
    '/absolute': good,
    'a/../../b': good,
  };
  await forgeTargets((targets) => {
    for (const [path, custom] of Object.entries({ ...bad, fine: good })) {
      // The cast holds for the test's purpose: it is what a hostile vendor signs.
      const unrecognizedFields = (custom === undefined ? {} : { custom }) as Record<string, never>;
      targets[path] = new TargetFile({ path, length: 1, hashes: { sha256: 'a'.repeat(64) }, unrecognizedFields });
    }
    targets['no-digest'] = new TargetFile({ path: 'no-digest', length: 1, hashes: { md5: 'a' } });
  });
  const vendor = await openVendor();
  await vendor.refresh({});
  const offers = await vendor.offers();
  assert.deepEqual(
    offers.map(({ product }) => product),
    ['hello', 'x'],
  );
  assert.equal(offers[1]?.artifact.location, `${'a'.repeat(64)}.fine`);
});

test('a VM behind a release that this host cannot read is told so, and is not up to date [A7 A11]', async () => {
  await publishHello('1.0.0');
  const install = { action: 'from-the-future' };
  const unread: readonly unknown[] = [
    { product: 'hello', version: '9.0.0-rc.1', kind: 'security', install },
    { product: 'hello', version: '1.2.0', kind: 'fix', install },
    { product: 'hello', version: '1.1.0', kind: 'security', install },
    { product: 'hello', version: '9.0.0', kind: 'security', arch: 'm68k', install },
    { product: 'hello', version: '0.9.0', kind: 'security', install },
    { product: 'other', version: '2.0.0', kind: 'security', install },
  ];
  await forgeTargets((targets) => {
    for (const [index, custom] of unread.entries()) {
      // The cast holds for the test's purpose: it is what a vendor signs.
      const unrecognizedFields = { custom } as unknown as Record<string, never>;
      targets[`x${index}`] = new TargetFile({ path: `x${index}`, length: 1, hashes: {}, unrecognizedFields });
    }
  });
  const vendor = await openVendor();
  await vendor.refresh({});
  const told = (await vendor.latest(inventoryOf([{}]))).leftOut;
  assert.deepEqual(
    told.map(({ product, version, kind, why }) => [product, version, kind, why]),
    [['hello', '1.2.0', 'security', 'unsatisfiable']],
  );
  assert.match(told[0]?.reason ?? '', /^this host cannot read the vendor's release: .*x1/);
  assert.deepEqual((await vendor.latest(inventoryOf([{ version: '1.2.0' }]))).leftOut, []);
});

test('an unreachable repository keeps what was verified and says since when', async () => {
  await publishHello('1.0.0');
  const vendor = await openVendor();
  const { checkedAtMs } = await vendor.refresh({});
  await server.close();
  const offline = await openVendor();
  assert.equal(await refusalOf(offline), 'vendor-ill/unreachable');
  assert.equal(await latestVersion(offline), '1.0.0');
  assert.equal(offline.status().checkedAtMs, checkedAtMs);
  server = await startHttpServer(join(base, 'web'));
});

test('refreshes at the same time are one, and one caller giving up does not end it for the others', async () => {
  await publishHello('1.0.0');
  const vendor = await openVendor();
  const impatient = new AbortController();
  const all = [vendor.refresh({}), vendor.refresh({ signal: impatient.signal }), vendor.refresh({})];
  impatient.abort(new Error('no more time'));
  const results = await Promise.allSettled(all);
  assert.deepEqual(
    results.map(({ status }) => status),
    ['fulfilled', 'rejected', 'fulfilled'],
  );
  assert.equal(server.count('/metadata/timestamp.json'), 1);
  const { checkedAtMs } = vendor.status();
  await systemClock.sleep(5);
  assert.ok(((await vendor.refresh({})).checkedAtMs ?? 0) > (checkedAtMs ?? 0));
  assert.equal(await latestVersion(vendor), '1.0.0');
});

test('a repository on disk serves by file: URLs', async () => {
  await publishHello('1.0.0');
  const vendor = await openVendor({ url: `file://${join(base, 'web')}` });
  await vendor.refresh({});
  const [release] = (await vendor.latest(inventoryOf([{}]))).releases;
  assert.ok(release !== undefined);
  assert.equal(digestOf(await readAll(await vendor.open(release.artifact, 0))), release.artifact.digest);
});

test('a location that climbs out of the repository is not opened', async () => {
  await publishHello('1.0.0');
  const vendor = await openVendor();
  const artifact = { name: 'x', digest: digestOf('x'), sizeBytes: 1, location: '../keys/root.pem' };
  await assert.rejects(vendor.open(artifact, 0), { code: 'usage/location' });
});

test('a damaged state is named, an operator who gives another root begins anew', async () => {
  await publishHello('1.0.0');
  await (await openVendor()).refresh({});
  const statePath = join(base, 'state', 'trust.json');
  const kept = await readFile(statePath, 'utf8');
  await writeFile(statePath, kept.slice(0, 100));
  await assert.rejects(openVendor(), { code: 'host-fault/tuf-state' });
  await writeFile(statePath, kept.replaceAll('1.0.0', '9.9.9'));
  await assert.rejects(openVendor(), { code: 'host-fault/tuf-state' });
  await writeFile(statePath, kept);
  await publishHello('2.0.0', {}, { rotate: ['root'] });
  await copyFile(metadataPath('2.root.json'), join(base, 'root.json'));
  const vendor = await openVendor();
  assert.equal(vendor.status().checkedAtMs, null);
  await writeFile(join(base, 'root.json'), '{}');
  await assert.rejects(openVendor(), { code: 'usage/tuf-root' });
});

test('keys are private, outside of what is served, and no publish goes on without them', async () => {
  await publishHello('1.0.0');
  for (const name of await readdir(join(base, 'keys'))) {
    assert.equal((await stat(join(base, 'keys', name))).mode & 0o777, 0o600);
  }
  const inside = publishHello('1.1.0', {}, { keys: join(base, 'web', 'keys') });
  await assert.rejects(inside, { code: 'usage/tuf-key' });
  await assert.rejects(publishHello('1.1.0', {}, { keys: join(base, 'none') }), { code: 'usage/tuf-key' });
  await chmod(join(base, 'keys', 'root.pem'), 0o644);
  await assert.rejects(publishHello('1.1.0'), { code: 'usage/tuf-key' });
});

test('publishing the same version again replaces it, an empty publish only signs again', async () => {
  await publishHello('1.0.0', { summary: 'first' });
  const again = await publishHello('1.0.0', { summary: 'second time' });
  assert.equal(again.targetsTotal, 1);
  const signed = await publish(null);
  assert.deepEqual(signed.versions, { root: 1, targets: 3, snapshot: 3, timestamp: 3 });
  const vendor = await openVendor();
  await vendor.refresh({});
  assert.equal((await vendor.offers())[0]?.summary, 'second time');
});

test('a folder of releases is published at once; equal content gives equal bytes', async () => {
  await writeRelease('a', { version: '1.0.0' });
  await writeRelease('b', {
    version: '1.1.0',
    os: ['tiny', 'debian'],
    arch: 'amd64',
    install: bundle({ compression: 'zstd' }),
  });
  const first = await publish(join(base, 'releases'));
  assert.deepEqual(
    first.targets.map(({ path }) => path),
    ['hello/hello-1.0.0.tar.gz', 'hello/hello-1.1.0_tiny-debian_amd64.tar.zst'],
  );
  const second = await publish(join(base, 'releases'));
  assert.deepEqual(
    second.targets.map(({ digest }) => digest),
    first.targets.map(({ digest }) => digest),
  );
});

function bundle(more: Record<string, unknown>): Record<string, unknown> {
  return { action: 'bundle', prefix: '/opt/hello', check: 'bin/check', ...more };
}

test('bad input names file and field and changes nothing', async () => {
  await publishHello('1.0.0');
  const before = await readFile(metadataPath('timestamp.json'), 'utf8');
  const cases: readonly (readonly [Record<string, unknown>, RegExp])[] = [
    [{ version: 'one' }, /release\.json: version "one" is not a semantic version/],
    [{ version: '1.1.0', kind: 'urgent' }, /release\.json: kind/],
    [{ version: '1.1.0', colour: 'red' }, /release\.json/],
    [{ version: '1.1.0', product: 'a/b' }, /release\.json: product/],
    [{ version: '1.1.0', requires: [{ product: 'x', range: '??' }] }, /requires\.range/],
  ];
  for (const [index, [description, message]] of cases.entries()) {
    const folder = await writeRelease(`bad-${index}`, description);
    await assert.rejects(publish(folder), { code: 'usage/release-description', message }, JSON.stringify(description));
  }
  const noCheck = await writeRelease('no-check', { version: '1.1.0', install: bundle({ check: 'bin/absent' }) });
  await assert.rejects(publish(noCheck), { code: 'usage/bundle' });
  await assert.rejects(publish(join(base, 'nowhere')), { code: 'usage/release-description' });
  assert.equal(await readFile(metadataPath('timestamp.json'), 'utf8'), before);
  assert.deepEqual((await readdir(join(base, 'web'))).sort(), ['metadata', 'targets']);
});

test('the agent is one file and a release of its own kind, offered to every guest [X7]', async () => {
  const folder = join(base, 'agent');
  await mkdir(join(folder, 'files'), { recursive: true });
  const description = {
    product: 'pratique-agent',
    version: '0.2.0',
    kind: 'fix',
    arch: 'amd64',
    install: { action: 'agent' },
  };
  await writeFile(join(folder, 'release.json'), JSON.stringify(description));
  await writeFile(join(folder, 'files', 'pratique-agent'), 'ELF');
  await publish(folder);
  const vendor = await openVendor();
  await vendor.refresh({});
  // No inventory lists the agent among its products: it has a place of its own.
  const [release] = (await vendor.latest(inventoryOf([]))).releases;
  assert.equal(release?.ecosystem, 'agent');
  assert.equal(release?.artifact.name, 'pratique-agent-0.2.0_amd64');
});
