// The Debian vendor against a real archive: what it offers, hands out, keeps and remembers.
import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import {
  type ArchiveRig,
  HOUR_MS,
  inventoryOf,
  MAIN,
  makeArchiveRig,
  NOON,
  OLD,
  SECURITY,
} from '../../../test/fakes/debian-archive-rig.ts';
import { systemClock } from '../../base/clock.ts';
import { digestOf } from '../../base/digest.ts';
import { makeHttpFetch } from '../../base/http-fetch.ts';
import { silentLog } from '../../base/log.ts';
import type { Vendor } from '../vendor.ts';
import { makeDebianVendor } from './index.ts';

let rig: ArchiveRig;

before(async () => {
  rig = await makeArchiveRig();
});
after(() => rig.close());

test('the newest version over all suites is offered, and why it exists [A1 A7]', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const { vendor } = await rig.makeRig(t);
  await assert.rejects(vendor.latest(OLD), { code: 'vendor-ill/never-checked' });
  const status = await vendor.refresh({});
  assert.deepEqual(status, { vendor: 'debian', checkedAtMs: NOON, isFresh: true, trouble: null });
  const { releases } = await vendor.latest(OLD);
  const brief = releases.map(({ product, version, arch, kind }) => [product, version, arch, kind].join(' ')).sort();
  assert.deepEqual(brief, ['jq 1.6-2+deb12u3 amd64 security', 'tzdata 2026a-0 all fix']);
  assert.deepEqual((await vendor.offers()).map(({ product }) => product).sort(), ['jq', 'tzdata']);
});

test('an artifact comes from its own archive, resumes, and is looked into [A9]', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const { vendor } = await rig.makeRig(t);
  await vendor.refresh({});
  const jq = (await vendor.latest(OLD)).releases.find(({ product }) => product === 'jq');
  const tzdata = (await vendor.latest(OLD)).releases.find(({ product }) => product === 'tzdata');
  assert.ok(jq !== undefined && tzdata !== undefined);
  const read = async (offsetBytes: number): Promise<Buffer> => {
    const pieces: Uint8Array[] = [];
    for await (const piece of await vendor.open(jq.artifact, offsetBytes)) pieces.push(piece);
    return Buffer.concat(pieces);
  };
  const bytes = await read(0);
  assert.equal(digestOf(bytes), jq.artifact.digest);
  assert.ok(bytes.subarray(100).equals(await read(100)));
  const path = join(rig.archive.folder, '..', 'fetched.deb');
  await writeFile(path, bytes);
  await vendor.inspect(jq, path);
  for (const other of [tzdata, { ...jq, version: '1.6-2' }, { ...jq, product: 'libjq1' }, { ...jq, arch: 'arm64' }]) {
    await assert.rejects(vendor.inspect(other, path), { code: 'vendor-ill/wrong-software' });
  }
  await writeFile(path, 'no package at all');
  await assert.rejects(vendor.inspect(jq, path), {
    code: 'vendor-ill/wrong-software',
    message: /is no Debian package$/,
  });
  await writeFile(path, '!<arch>\nbut nothing behind it');
  await assert.rejects(vendor.inspect(jq, path), { code: 'vendor-ill/wrong-software', message: /unreadable/ });
});

test('metadata survive a restart, and a second refresh downloads no index again [A1]', async (t) => {
  await rig.publish({ ...MAIN, byHash: true }, SECURITY);
  const { vendor, clock, reopen } = await rig.makeRig(t);
  await vendor.refresh({});
  const indexRequests = (): number => rig.server.requests.filter(({ path }) => path.includes('/binary-amd64/')).length;
  const requestsBefore = indexRequests();
  assert.equal(
    rig.server.requests.filter(({ path }) => path.includes('bookworm/main/binary-amd64/by-hash/')).length,
    1,
  );
  await vendor.close();
  const again = await reopen();
  assert.equal((await again.latest(OLD)).releases.length, 2);
  clock.wallMs += HOUR_MS;
  assert.equal((await again.refresh({})).checkedAtMs, NOON + HOUR_MS);
  assert.equal(indexRequests(), requestsBefore);
});

test('a newer InRelease with the same packages costs no index either [A1]', async (t) => {
  await rig.publish(MAIN);
  const { vendor, clock } = await rig.makeRig(t, { suites: ['bookworm'] });
  await vendor.refresh({});
  const requestsBefore = rig.server.count('/dists/bookworm/main/binary-amd64/Packages.xz');
  await rig.publish({ ...MAIN, date: 'Sat, 10 Jan 2026 11:00:00 UTC' });
  clock.wallMs += HOUR_MS;
  assert.equal((await vendor.refresh({})).checkedAtMs, NOON + HOUR_MS);
  assert.equal(rig.server.count('/dists/bookworm/main/binary-amd64/Packages.xz'), requestsBefore);
  await rig.publish({ ...MAIN, date: 'Sat, 10 Jan 2026 10:30:00 UTC' });
  await assert.rejects(vendor.refresh({}), { code: 'vendor-ill/rollback' });
});

test('what the archive took back is no longer offered', async (t) => {
  await rig.publish(MAIN);
  const { vendor } = await rig.makeRig(t, { suites: ['bookworm'] });
  await vendor.refresh({});
  await rig.publish({ ...MAIN, packages: [{ name: 'jq', version: '1.6-1' }], date: 'Sat, 10 Jan 2026 11:00:00 UTC' });
  await vendor.refresh({});
  assert.deepEqual(
    (await vendor.offers()).map(({ product, version }) => `${product} ${version}`),
    ['jq 1.6-1'],
  );
});

test('every index format is read', async (t) => {
  for (const compression of ['gzip', 'none', 'xz'] as const) {
    await rig.publish({ ...MAIN, compression });
    const { vendor } = await rig.makeRig(t, { suites: ['bookworm'] });
    await vendor.refresh({});
    assert.equal((await vendor.offers()).length, 2, compression);
  }
});

test('one suite that fails does not keep the others from being refreshed', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const { vendor } = await rig.makeRig(t);
  await vendor.refresh({});
  await rig.publish({
    ...SECURITY,
    packages: [{ name: 'jq', version: '1.6-2+deb12u5' }],
    date: 'Sat, 10 Jan 2026 13:00:00 UTC',
  });
  rig.server.fail('/dists/bookworm/InRelease', { kind: 'status', status: 503 });
  t.after(() => rig.server.fail('/dists/bookworm/InRelease', null));
  await assert.rejects(vendor.refresh({}), { code: 'vendor-ill/http-5xx' });
  assert.equal((await vendor.latest(OLD)).releases.find(({ product }) => product === 'jq')?.version, '1.6-2+deb12u5');
});

test('a guest of another release or architecture gets nothing from these suites', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const { vendor } = await rig.makeRig(t);
  await vendor.refresh({});
  for (const os of [{ id: 'tiny' }, { codename: 'trixie' }, { arch: 'arm64' }]) {
    assert.deepEqual(await vendor.latest({ ...OLD, os: { ...OLD.os, ...os } }), { releases: [], leftOut: [] });
  }
});

test('a suite that the host’s apt does not know is named in the error', async (t) => {
  const { vendor } = await rig.makeRig(t, { suites: ['no-such-suite'] });
  await vendor.close();
  const folder = await mkdtemp(join(rig.archive.folder, '..', 'vendor-'));
  const deps = {
    folder,
    http: makeHttpFetch({ clock: systemClock }),
    clock: systemClock,
    metadataAgeMaxMs: HOUR_MS,
    log: silentLog,
  };
  const lost = await makeDebianVendor({ name: 'debian', suites: ['no-such-suite'] }, deps);
  await assert.rejects(lost.refresh({}), (error: unknown) => {
    assert.ok(error instanceof Error && /no-such-suite/.test(error.message));
    return 'code' in error && error.code === 'host-unfit/no-apt-source';
  });
  await lost.close();
  await deps.http.close();
});

test('armored keyrings, and keys that stand in a source, verify as binary ones do', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const path = join(rig.archive.folder, '..', 'armored.asc');
  await writeFile(path, await rig.archive.armored('thief', 'archive'));
  const { vendor } = await rig.makeRig(t, { keyring: path });
  assert.equal((await vendor.refresh({})).trouble, null);
  await writeFile(path, await rig.archive.armored('thief'));
  const other = await rig.makeRig(t, { keyring: path });
  await assert.rejects(other.vendor.refresh({}), { code: 'vendor-ill/signature' });
});

test('packages for all architectures with an index of their own are offered too', async (t) => {
  await rig.publish({ ...MAIN, indexOfAll: true }, SECURITY);
  const { vendor } = await rig.makeRig(t);
  await vendor.refresh({});
  assert.deepEqual((await vendor.offers()).map(({ product, arch }) => `${product} ${arch}`).sort(), [
    'jq amd64',
    'tzdata all',
  ]);
});

test('a suite that is not automatic upgrades nothing until a pin says so', async (t) => {
  const backports = {
    suite: 'bookworm-backports',
    packages: [{ name: 'jq', version: '1.7-1~bpo12+1' }],
    date: MAIN.date,
    headers: ['NotAutomatic: yes', 'ButAutomaticUpgrades: yes'],
  };
  await rig.publish(MAIN, backports);
  const suites = ['bookworm', 'bookworm-backports'];
  const { vendor, reopen } = await rig.makeRig(t, { suites });
  await vendor.refresh({});
  const versionOf = async (of: Vendor) =>
    (await of.latest(OLD)).releases.find(({ product }) => product === 'jq')?.version;
  assert.equal(await versionOf(vendor), '1.6-2+deb12u2');
  const pinned = await reopen({ pins: [{ packages: ['jq'], suite: 'bookworm-backports', priority: 500 }] });
  assert.equal(await versionOf(pinned), '1.7-1~bpo12+1');
});

test('pins that can never mean anything are refused when the vendor is opened', async (t) => {
  for (const pin of [
    { priority: 1 },
    { version: '1', priority: 1 },
    { suite: 'sid', priority: 1 },
    { packages: ['a'], priority: 0 },
  ]) {
    await assert.rejects(rig.makeRig(t, { pins: [pin] }), { code: 'usage/pins' }, JSON.stringify(pin));
  }
});

test('a suite that is no longer configured offers nothing any more, and comes back when it is again', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const { vendor, reopen } = await rig.makeRig(t);
  await vendor.refresh({});
  const version = async (of: Vendor) =>
    (await of.latest(OLD)).releases.find(({ product }) => product === 'jq')?.version;
  assert.equal(await version(vendor), '1.6-2+deb12u3');
  const less = await reopen({ suites: ['bookworm'] });
  assert.equal(await version(less), '1.6-2+deb12u2');
});

test('a guest that reports what is no version is told apart from an ill vendor', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const { vendor } = await rig.makeRig(t);
  await vendor.refresh({});
  await assert.rejects(vendor.latest(inventoryOf({ jq: 'newest!' })), { code: 'guest-fault/version' });
});

test('the signed files of the suites that releases come from are handed out as they were verified [A9]', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const around = 'not signed\n';
  const path = rig.archive.path('bookworm', 'InRelease');
  const signed = await readFile(path, 'utf8');
  await writeFile(path, around + signed + around);
  const { vendor } = await rig.makeRig(t);
  await vendor.refresh({});
  const { releases } = await vendor.latest(OLD);
  const archives = (await vendor.signedArchives?.(releases)) ?? [];
  assert.deepEqual(
    archives.map(({ suite, components, files, pool }) => [
      suite,
      components,
      files.map((file) => file.path),
      pool.map((one) => one.path),
    ]),
    [
      [
        'bookworm',
        ['main'],
        ['dists/bookworm/InRelease', 'dists/bookworm/main/binary-amd64/Packages.xz'],
        ['pool/main/tzdata_2026a-0_all.deb'],
      ],
      [
        'bookworm-security',
        ['main'],
        ['dists/bookworm-security/InRelease', 'dists/bookworm-security/main/binary-amd64/Packages.xz'],
        ['pool/main/jq_1.6-2+deb12u3_amd64.deb'],
      ],
    ],
  );
  for (const file of archives.flatMap(({ files }) => files)) {
    const bytes = await readFile(file.sourcePath);
    assert.equal(digestOf(bytes), file.digest);
    assert.equal(bytes.length, file.sizeBytes);
    assert.ok(!bytes.includes(around), 'only the signed message is handed on');
  }
  await rig.publish({ ...SECURITY, packages: [], date: 'Sat, 10 Jan 2026 11:00:00 UTC' });
  await vendor.refresh({});
  await assert.rejects(vendor.signedArchives?.(releases) ?? Promise.resolve(), { code: 'conflict/release' });
});

test('signed files that were lost are fetched again, and what no suite names is removed', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const { vendor, folder } = await rig.makeRig(t);
  await vendor.refresh({});
  const kept = join(folder, 'signed');
  const before = await readdir(kept);
  await writeFile(join(kept, '0'.repeat(64)), 'left over');
  await rm(join(kept, before[0] ?? ''));
  await vendor.refresh({});
  assert.deepEqual((await readdir(kept)).sort(), before.sort());
});

const CHANGELOG = `jq (1.6-2+deb12u3) bookworm-security; urgency=high

  * Fix an overflow (CVE-2024-23337, CVE-2025-48060)

 -- Nobody <nobody@example.org>  Sat, 10 Jan 2026 10:00:00 +0000

jq (1.6-2+deb12u1) bookworm; urgency=medium

  * CVE-2023-50246: another one

 -- Nobody <nobody@example.org>  Fri, 09 Jan 2026 10:00:00 +0000

jq (1.6-1) bookworm; urgency=medium

  * CVE-2015-8863: long mended

 -- Nobody <nobody@example.org>  Fri, 09 Jan 2015 10:00:00 +0000
`;

test('the holes a release mends are read from its changelog after the download, for this VM and later ones [B4]', async (t) => {
  const files = { 'usr/share/doc/jq/changelog.Debian.gz': gzipSync(CHANGELOG) };
  await rig.publish(MAIN, { ...SECURITY, packages: [{ name: 'jq', version: '1.6-2+deb12u3', files }] });
  const { vendor } = await rig.makeRig(t);
  await vendor.refresh({});
  const jqOf = async (version: string) =>
    (await vendor.latest(inventoryOf({ jq: version }))).releases.find(({ product }) => product === 'jq');
  const jq = await jqOf('1.6-2');
  assert.ok(jq !== undefined && jq.advisories.length === 0);
  const path = join(rig.archive.folder, 'pool/main/jq_1.6-2+deb12u3_amd64.deb');
  await vendor.inspect(jq, path);
  while ((await jqOf('1.6-2'))?.advisories.length === 0) await systemClock.sleep(10, t.signal);
  assert.deepEqual((await jqOf('1.6-2'))?.advisories, ['CVE-2023-50246', 'CVE-2024-23337', 'CVE-2025-48060']);
  assert.deepEqual((await jqOf('1.6-2+deb12u1'))?.advisories, ['CVE-2024-23337', 'CVE-2025-48060']);
  assert.deepEqual((await jqOf('1.6-2+deb12u3'))?.advisories, []);
  const [offer] = (await vendor.offers()).filter(({ product }) => product === 'jq');
  assert.deepEqual(offer?.advisories, ['CVE-2024-23337', 'CVE-2025-48060']);
});

test('a suite asked for as `stable` fits guests of the release that it is now', async (t) => {
  await rig.publish({ ...MAIN, suite: 'stable', codename: 'bookworm', headers: ['Suite: stable'] });
  const { vendor } = await rig.makeRig(t, { suites: ['stable'] });
  await vendor.refresh({});
  assert.equal((await vendor.latest(OLD)).releases.length, 2);
  const next = { ...OLD, os: { ...OLD.os, codename: 'trixie' } };
  assert.deepEqual(await vendor.latest(next), { releases: [], leftOut: [] });
});

test('an index of the first format is fetched anew, and its dates still forbid going back [X3]', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const { vendor, folder, reopen } = await rig.makeRig(t);
  await vendor.close();
  const path = join(folder, 'packages-amd64.sqlite');
  await rm(path);
  const old = new DatabaseSync(path);
  old.exec(`
    CREATE TABLE suites (suite TEXT PRIMARY KEY, repo_uri TEXT NOT NULL, date_ms INTEGER NOT NULL,
      valid_until_ms INTEGER, checked_at_ms INTEGER NOT NULL, etag TEXT, fingerprints TEXT NOT NULL, index_key TEXT NOT NULL) STRICT;
    CREATE TABLE packages (suite TEXT NOT NULL) STRICT;
    INSERT INTO suites VALUES ('bookworm', '${rig.server.url}/', ${NOON - HOUR_MS}, NULL, ${NOON}, '"x"', '${await rig.archive.fingerprint('archive')}', 'x');
    PRAGMA user_version = 1;
  `);
  old.close();
  const again = await reopen();
  assert.equal(again.status().checkedAtMs, null);
  await assert.rejects(again.latest(OLD), { code: 'vendor-ill/never-checked' });
  await assert.rejects(again.refresh({}), { code: 'vendor-ill/rollback' });
  await rig.publish({ ...MAIN, date: 'Sat, 10 Jan 2026 11:00:00 UTC' });
  assert.equal((await again.refresh({})).isFresh, true);
  assert.equal((await again.latest(OLD)).releases.length, 2);
});
