// The Debian vendor against a real archive that is tampered with, old, expired, oversized, or signed by somebody else.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, type TestContext, test } from 'node:test';
import { type DebianArchive, makeDebianArchive, type SuiteSpec } from '../../../test/fakes/debian-archive.ts';
import { type FakeHttpServer, startHttpServer } from '../../../test/fakes/http-server.ts';
import { type Clock, systemClock } from '../../base/clock.ts';
import { digestOf } from '../../base/digest.ts';
import { makeHttpFetch } from '../../base/http-fetch.ts';
import { silentLog } from '../../base/log.ts';
import { runCommand } from '../../base/run-command.ts';
import type { InstalledProduct, Inventory } from '../../model/inventory.ts';
import type { Vendor } from '../vendor.ts';
import { type DebianVendorConfig, makeDebianVendor } from './index.ts';

const NOON = Date.parse('Sat, 10 Jan 2026 12:00:00 UTC');
const HOUR_MS = 3_600_000;
const JQ = { name: 'jq', version: '1.6-2+deb12u2' };
const MAIN: SuiteSpec = {
  suite: 'bookworm',
  packages: [JQ, { name: 'tzdata', version: '2026a-0', arch: 'all' }],
  date: 'Sat, 10 Jan 2026 10:00:00 UTC',
};
const SECURITY: SuiteSpec = {
  suite: 'bookworm-security',
  packages: [{ name: 'jq', version: '1.6-2+deb12u3' }],
  date: 'Sat, 10 Jan 2026 10:00:00 UTC',
  validUntil: 'Sat, 17 Jan 2026 10:00:00 UTC',
};

// Making keys and packages takes most of the time, so all tests publish to one archive, each its own suites anew.
let archive: DebianArchive;
let server: FakeHttpServer;

before(async () => {
  archive = await makeDebianArchive(await mkdtemp(join(tmpdir(), 'pratique-debian-')), ['archive', 'second', 'thief']);
  server = await startHttpServer(archive.folder);
});
after(async () => {
  await server.close();
  await archive.close();
});

type Rig = {
  readonly vendor: Vendor;
  readonly clock: Clock & { wallMs: number };
  readonly reopen: () => Promise<Vendor>;
};

async function makeRig(t: TestContext, config: Partial<DebianVendorConfig> = {}): Promise<Rig> {
  const folder = await mkdtemp(join(archive.folder, '..', 'vendor-'));
  const clock = { ...systemClock, wallMs: NOON, nowMs: () => clock.wallMs };
  const http = makeHttpFetch({ clock: systemClock });
  const keyring = await archive.keyring('archive', 'second');
  const make = async (): Promise<Vendor> => {
    const full = {
      name: 'debian',
      suites: ['bookworm', 'bookworm-security'],
      url: server.url,
      keyring,
      arch: 'amd64',
      ...config,
    };
    const vendor = await makeDebianVendor(full, {
      folder,
      http,
      clock,
      metadataAgeMaxMs: 24 * HOUR_MS,
      log: silentLog,
    });
    t.after(() => vendor.close().catch(() => {}));
    return vendor;
  };
  t.after(() => http.close());
  return { vendor: await make(), clock, reopen: make };
}

async function publish(...specs: readonly SuiteSpec[]): Promise<void> {
  for (const spec of specs) await archive.publish(spec);
}

function inventoryOf(products: Readonly<Record<string, string>>, more: Partial<InstalledProduct> = {}): Inventory {
  return {
    os: { id: 'debian', versionId: '12', codename: 'bookworm', arch: 'amd64' },
    products: Object.entries(products).map(([product, version]) => ({
      ecosystem: 'debian',
      product,
      version,
      arch: product === 'tzdata' ? 'all' : 'amd64',
      state: 'installed',
      ...more,
    })),
    config: [],
    agent: { version: '1', digest: null },
    abilities: { drives: ['virtio-blk'], compressions: ['none'] },
    freeBytes: 1e9,
    rebootRequired: false,
    lastShutdown: null,
  };
}

const OLD = inventoryOf({ jq: '1.6-2', tzdata: '2026a-0' });

test('the newest version over all suites is offered, and why it exists [A1 A7]', async (t) => {
  await publish(MAIN, SECURITY);
  const { vendor } = await makeRig(t);
  await assert.rejects(vendor.latest(OLD), { code: 'vendor-ill/never-checked' });
  const status = await vendor.refresh({});
  assert.deepEqual(status, { vendor: 'debian', checkedAtMs: NOON, isFresh: true, trouble: null });
  const { releases } = await vendor.latest(OLD);
  const brief = releases.map(({ product, version, arch, kind }) => [product, version, arch, kind].join(' ')).sort();
  assert.deepEqual(brief, ['jq 1.6-2+deb12u3 amd64 security', 'tzdata 2026a-0 all fix']);
  assert.deepEqual((await vendor.offers()).map(({ product }) => product).sort(), ['jq', 'tzdata']);
});

test('an artifact comes from its own archive, resumes, and is looked into [A9]', async (t) => {
  await publish(MAIN, SECURITY);
  const { vendor } = await makeRig(t);
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
  const path = join(archive.folder, '..', 'fetched.deb');
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
  await publish({ ...MAIN, byHash: true }, SECURITY);
  const { vendor, clock, reopen } = await makeRig(t);
  await vendor.refresh({});
  const indexRequests = (): number => server.requests.filter(({ path }) => path.includes('/binary-amd64/')).length;
  const requestsBefore = indexRequests();
  assert.equal(server.requests.filter(({ path }) => path.includes('bookworm/main/binary-amd64/by-hash/')).length, 1);
  await vendor.close();
  const again = await reopen();
  assert.equal((await again.latest(OLD)).releases.length, 2);
  clock.wallMs += HOUR_MS;
  assert.equal((await again.refresh({})).checkedAtMs, NOON + HOUR_MS);
  assert.equal(indexRequests(), requestsBefore);
});

test('a newer InRelease with the same packages costs no index either [A1]', async (t) => {
  await publish(MAIN);
  const { vendor, clock } = await makeRig(t, { suites: ['bookworm'] });
  await vendor.refresh({});
  const requestsBefore = server.count('/dists/bookworm/main/binary-amd64/Packages.xz');
  await publish({ ...MAIN, date: 'Sat, 10 Jan 2026 11:00:00 UTC' });
  clock.wallMs += HOUR_MS;
  assert.equal((await vendor.refresh({})).checkedAtMs, NOON + HOUR_MS);
  assert.equal(server.count('/dists/bookworm/main/binary-amd64/Packages.xz'), requestsBefore);
  await publish({ ...MAIN, date: 'Sat, 10 Jan 2026 10:30:00 UTC' });
  await assert.rejects(vendor.refresh({}), { code: 'vendor-ill/rollback' });
});

test('what the archive took back is no longer offered', async (t) => {
  await publish(MAIN);
  const { vendor } = await makeRig(t, { suites: ['bookworm'] });
  await vendor.refresh({});
  await publish({ ...MAIN, packages: [{ name: 'jq', version: '1.6-1' }], date: 'Sat, 10 Jan 2026 11:00:00 UTC' });
  await vendor.refresh({});
  assert.deepEqual(
    (await vendor.offers()).map(({ product, version }) => `${product} ${version}`),
    ['jq 1.6-1'],
  );
});

test('every index format is read', async (t) => {
  for (const compression of ['gzip', 'none', 'xz'] as const) {
    await publish({ ...MAIN, compression });
    const { vendor } = await makeRig(t, { suites: ['bookworm'] });
    await vendor.refresh({});
    assert.equal((await vendor.offers()).length, 2, compression);
  }
});

/** Refreshes once well, spoils the archive, refreshes again: it must be refused with the code, and the first state stay. */
async function assertRefused(t: TestContext, code: string, spoil: () => Promise<void>, config = {}): Promise<Rig> {
  await publish(MAIN, SECURITY);
  const rig = await makeRig(t, config);
  await rig.vendor.refresh({});
  const known = await rig.vendor.latest(OLD);
  await spoil();
  rig.clock.wallMs += HOUR_MS;
  await assert.rejects(rig.vendor.refresh({}), { code });
  assert.equal(rig.vendor.status().trouble?.code, code);
  assert.equal(rig.vendor.status().checkedAtMs, NOON);
  assert.deepEqual(await rig.vendor.latest(OLD), known);
  return rig;
}

async function edit(path: string, change: (text: string) => string): Promise<void> {
  const text = await readFile(path, 'latin1');
  assert.notEqual(change(text), text, 'the edit changes something');
  await writeFile(path, change(text), 'latin1');
}

const inRelease = (): string => archive.path('bookworm', 'InRelease');

test('a changed InRelease is refused and the last good one kept [X3]', async (t) => {
  await assertRefused(t, 'vendor-ill/signature', () =>
    edit(inRelease(), (text) => text.replace('Origin: Test', 'Origin: Evil')),
  );
});

test('an InRelease without a signature is refused [X3]', async (t) => {
  await assertRefused(t, 'vendor-ill/signature', () => writeFile(inRelease(), 'Codename: bookworm\n'));
});

test('text before and after the signed block is never read [X3]', async (t) => {
  await publish(MAIN, SECURITY);
  const forged = `Codename: bookworm\nDate: Sat, 10 Jan 2026 11:30:00 UTC\nSHA256:\n ${'0'.repeat(64)} 1 main/binary-amd64/Packages\n\n`;
  await edit(inRelease(), (text) => forged + text + forged);
  const { vendor } = await makeRig(t);
  await vendor.refresh({});
  assert.equal((await vendor.offers()).length, 2);
});

test('two signed messages in one file are refused, though both are validly signed [X3]', async (t) => {
  await assertRefused(t, 'vendor-ill/signature', async () => {
    const old = await readFile(inRelease(), 'latin1');
    await publish({ ...MAIN, date: 'Sat, 10 Jan 2026 12:30:00 UTC' });
    await edit(inRelease(), (text) => old + text);
  });
});

test('a signature by a key outside the keyring is refused [X3]', async (t) => {
  await assertRefused(t, 'vendor-ill/signature', () => publish({ ...MAIN, signers: ['thief'] }));
});

test('another key of the same keyring is refused too, until a known key vouches for it [X3]', async (t) => {
  const newer = { ...MAIN, date: 'Sat, 10 Jan 2026 12:30:00 UTC' };
  const { vendor } = await assertRefused(t, 'vendor-ill/key-changed', () => publish({ ...newer, signers: ['second'] }));
  await publish({ ...newer, signers: ['archive', 'second'] });
  await vendor.refresh({});
  await publish({ ...newer, date: 'Sat, 10 Jan 2026 12:40:00 UTC', signers: ['second'] });
  await vendor.refresh({});
});

test('fingerprints from the configuration are pinned from the first refresh on [X3]', async (t) => {
  await publish(MAIN, SECURITY);
  const wrong = await makeRig(t, { fingerprints: [await archive.fingerprint('second')] });
  await assert.rejects(wrong.vendor.refresh({}), { code: 'vendor-ill/key-changed' });
  const written = (await archive.fingerprint('archive')).toLowerCase().replace(/(.{4})/g, '$1 ');
  const right = await makeRig(t, { fingerprints: [written] });
  await right.vendor.refresh({});
});

test('an older InRelease is refused, validly signed as it is, also after a restart [X3]', async (t) => {
  const older = { ...MAIN, packages: [{ name: 'jq', version: '1.6-1' }], date: 'Fri, 09 Jan 2026 10:00:00 UTC' };
  const { vendor, reopen } = await assertRefused(t, 'vendor-ill/rollback', () => publish(older));
  await vendor.close();
  await assert.rejects((await reopen()).refresh({}), { code: 'vendor-ill/rollback' });
});

test('an InRelease for another suite is refused [X3]', async (t) => {
  await assertRefused(t, 'vendor-ill/wrong-suite', () => publish({ ...MAIN, codename: 'bullseye' }));
});

test('an expired archive keeps its last good state but is no longer fresh [X3]', async (t) => {
  await publish(MAIN, SECURITY);
  const { vendor, clock } = await makeRig(t);
  await vendor.refresh({});
  clock.wallMs = Date.parse('Sat, 17 Jan 2026 09:59:00 UTC');
  assert.equal((await vendor.refresh({})).isFresh, true);
  clock.wallMs = Date.parse('Sat, 17 Jan 2026 10:01:00 UTC');
  await assert.rejects(vendor.refresh({}), { code: 'vendor-ill/expired' });
  assert.equal(vendor.status().isFresh, false);
  assert.equal((await vendor.latest(OLD)).releases.length, 2);
});

test('a suite without Valid-Until is fresh as long as our own last check is young', async (t) => {
  await publish(MAIN);
  const { vendor, clock } = await makeRig(t, { suites: ['bookworm'] });
  await vendor.refresh({});
  clock.wallMs += 24 * HOUR_MS;
  assert.equal(vendor.status().isFresh, true);
  clock.wallMs += 1;
  assert.equal(vendor.status().isFresh, false);
});

const NEWER: SuiteSpec = {
  ...MAIN,
  packages: [{ name: 'jq', version: '1.6-2+deb12u4' }],
  date: 'Sat, 10 Jan 2026 12:30:00 UTC',
};

test('an index that does not match the signed Release is refused [X3]', async (t) => {
  await assertRefused(t, 'vendor-ill/digest-mismatch', async () => {
    await publish({ ...NEWER, compression: 'none' });
    await edit(archive.path('bookworm', 'main/binary-amd64/Packages'), (text) => text.replace('deb12u4', 'deb12u9'));
  });
});

test('an index longer than the signed Release says is refused [X3]', async (t) => {
  await assertRefused(t, 'vendor-ill/too-large', async () => {
    await publish({ ...NEWER, compression: 'none' });
    await edit(archive.path('bookworm', 'main/binary-amd64/Packages'), (text) => `${text}x`);
  });
});

test('an index that unpacks to more than was signed is refused, and nothing of it is kept [X3]', async (t) => {
  await assertRefused(t, 'vendor-ill/too-large', async () => {
    await publish(NEWER);
    const signed = await readFile(inRelease(), 'latin1');
    const body = signed.replace(/^ [0-9a-f]{64} \d+ (main\/binary-amd64\/Packages)$/m, ` ${'0'.repeat(64)} 10 $1`);
    await resign(body);
  });
});

/** Signs a changed body again with the archive's own key: an archive that is itself wrong. */
async function resign(signedText: string): Promise<void> {
  const body = /Hash: [^\n]*\n\n([\s\S]*?)-----BEGIN PGP SIGNATURE/.exec(signedText)?.[1] ?? '';
  const home = join(archive.folder, '..', 'gnupg');
  const options = ['--homedir', home, '--batch', '--yes', '--local-user', 'archive@example.org'];
  await runCommand(['gpg', ...options, '--clearsign', '--output', inRelease()], { input: body });
}

for (const [what, from, to] of [
  ['a path that climbs out', 'Filename: pool/', 'Filename: pool/../../'],
  ['a digest that is none', /SHA256: ..../, 'SHA256: zzzz'],
  ['no size', /^Size: .*\n/m, ''],
] as const) {
  test(`a signed index that names ${what} is refused whole [X3]`, async (t) => {
    await assertRefused(t, 'vendor-ill/malformed', () =>
      publish({ ...NEWER, editIndex: (text) => text.replace(from, to) }),
    );
  });
}

test('garbage where an index should be is the vendor’s fault', async (t) => {
  await assertRefused(t, 'vendor-ill/malformed', () =>
    publish({ ...NEWER, compression: 'none', editIndex: () => '\u0000\u0001 no: stanza\n\nPackage: x\n' }),
  );
});

test('one suite that fails does not keep the others from being refreshed', async (t) => {
  await publish(MAIN, SECURITY);
  const { vendor } = await makeRig(t);
  await vendor.refresh({});
  await publish({
    ...SECURITY,
    packages: [{ name: 'jq', version: '1.6-2+deb12u5' }],
    date: 'Sat, 10 Jan 2026 13:00:00 UTC',
  });
  server.fail('/dists/bookworm/InRelease', { kind: 'status', status: 503 });
  t.after(() => server.fail('/dists/bookworm/InRelease', null));
  await assert.rejects(vendor.refresh({}), { code: 'vendor-ill/http-5xx' });
  assert.equal((await vendor.latest(OLD)).releases.find(({ product }) => product === 'jq')?.version, '1.6-2+deb12u5');
});

test('a guest of another release or architecture gets nothing from these suites', async (t) => {
  await publish(MAIN, SECURITY);
  const { vendor } = await makeRig(t);
  await vendor.refresh({});
  for (const os of [{ id: 'tiny' }, { codename: 'trixie' }, { arch: 'arm64' }]) {
    assert.deepEqual(await vendor.latest({ ...OLD, os: { ...OLD.os, ...os } }), { releases: [], leftOut: [] });
  }
});

test('a suite that the host’s apt does not know is named in the error', async (t) => {
  const { vendor } = await makeRig(t, { suites: ['no-such-suite'] });
  await vendor.close();
  const folder = await mkdtemp(join(archive.folder, '..', 'vendor-'));
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
