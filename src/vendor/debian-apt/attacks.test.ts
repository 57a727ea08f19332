// The Debian vendor against an archive that is tampered with, old, expired, oversized, slow, or signed by somebody else.
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { SuiteSpec } from '../../../test/fakes/debian-archive.ts';
import {
  type ArchiveRig,
  HOUR_MS,
  inventoryOf,
  MAIN,
  makeArchiveRig,
  OLD,
  SECURITY,
} from '../../../test/fakes/debian-archive-rig.ts';
import { runCommand } from '../../base/run-command.ts';

let rig: ArchiveRig;

before(async () => {
  rig = await makeArchiveRig();
});
after(() => rig.close());

async function edit(path: string, change: (text: string) => string): Promise<void> {
  const text = await readFile(path, 'latin1');
  assert.notEqual(change(text), text, 'the edit changes something');
  await writeFile(path, change(text), 'latin1');
}

const inRelease = (): string => rig.archive.path('bookworm', 'InRelease');

test('a changed InRelease is refused and the last good one kept [X3]', async (t) => {
  await rig.assertRefused(t, 'vendor-ill/signature', () =>
    edit(inRelease(), (text) => text.replace('Origin: Test', 'Origin: Evil')),
  );
});

test('an InRelease without a signature is refused [X3]', async (t) => {
  await rig.assertRefused(t, 'vendor-ill/signature', () => writeFile(inRelease(), 'Codename: bookworm\n'));
});

test('text before and after the signed block is never read [X3]', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const forged = `Codename: bookworm\nDate: Sat, 10 Jan 2026 11:30:00 UTC\nSHA256:\n ${'0'.repeat(64)} 1 main/binary-amd64/Packages\n\n`;
  await edit(inRelease(), (text) => forged + text + forged);
  const { vendor } = await rig.makeRig(t);
  await vendor.refresh({});
  assert.equal((await vendor.offers()).length, 2);
});

test('two signed messages in one file are refused, though both are validly signed [X3]', async (t) => {
  await rig.assertRefused(t, 'vendor-ill/signature', async () => {
    const old = await readFile(inRelease(), 'latin1');
    await rig.publish({ ...MAIN, date: 'Sat, 10 Jan 2026 12:30:00 UTC' });
    await edit(inRelease(), (text) => old + text);
  });
});

test('a signature by a key outside the keyring is refused [X3]', async (t) => {
  await rig.assertRefused(t, 'vendor-ill/signature', () => rig.publish({ ...MAIN, signers: ['thief'] }));
});

test('another key of the same keyring is refused too, until a known key vouches for it [X3]', async (t) => {
  const newer = { ...MAIN, date: 'Sat, 10 Jan 2026 12:30:00 UTC' };
  const { vendor } = await rig.assertRefused(
    t,
    'vendor-ill/key-changed',
    () => rig.publish({ ...newer, signers: ['second'] }),
    {
      recovers: false,
    },
  );
  await rig.publish({ ...newer, signers: ['archive', 'second'] });
  await vendor.refresh({});
  await rig.publish({ ...newer, date: 'Sat, 10 Jan 2026 12:40:00 UTC', signers: ['second'] });
  await vendor.refresh({});
});

test('fingerprints from the configuration are pinned from the first refresh on [X3]', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const wrong = await rig.makeRig(t, { fingerprints: [await rig.archive.fingerprint('second')] });
  await assert.rejects(wrong.vendor.refresh({}), { code: 'vendor-ill/key-changed' });
  const written = (await rig.archive.fingerprint('archive')).toLowerCase().replace(/(.{4})/g, '$1 ');
  const right = await rig.makeRig(t, { fingerprints: [written] });
  await right.vendor.refresh({});
});

test('an older InRelease is refused, validly signed as it is, also after a restart [X3]', async (t) => {
  const older = { ...MAIN, packages: [{ name: 'jq', version: '1.6-1' }], date: 'Fri, 09 Jan 2026 10:00:00 UTC' };
  const { vendor, reopen } = await rig.assertRefused(t, 'vendor-ill/rollback', () => rig.publish(older), {
    recovers: false,
  });
  assert.match(
    vendor.status().trouble?.message ?? '',
    /of 2026-01-09T10:00:00.000Z, and one of 2026-01-10T10:00:00.000Z was verified before/,
  );
  await vendor.close();
  await assert.rejects((await reopen()).refresh({}), { code: 'vendor-ill/rollback' });
});

test('an InRelease for another suite is refused [X3]', async (t) => {
  await rig.assertRefused(t, 'vendor-ill/wrong-suite', () => rig.publish({ ...MAIN, codename: 'bullseye' }));
});

test('a stale mirror keeps what was verified, says since when, and is no longer fresh [X3]', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const { vendor, clock } = await rig.makeRig(t);
  await vendor.refresh({});
  clock.wallMs = Date.parse('Sat, 17 Jan 2026 09:59:00 UTC');
  assert.equal((await vendor.refresh({})).isFresh, true);
  clock.wallMs = Date.parse('Sat, 17 Jan 2026 10:01:00 UTC');
  await assert.rejects(vendor.refresh({}), { code: 'vendor-ill/expired' });
  const { isFresh, trouble } = vendor.status();
  assert.equal(isFresh, false);
  assert.match(
    trouble?.message ?? '',
    /bookworm-security: the mirror is stale: .* is of 2026-01-10T10:00:00.000Z and was valid until 2026-01-17T10:00:00.000Z; what was verified on 2026-01-17T09:59:00.000Z is kept/,
  );
  assert.equal((await vendor.latest(OLD)).releases.length, 2);
  await rig.publish({
    ...SECURITY,
    date: 'Sat, 17 Jan 2026 10:00:00 UTC',
    validUntil: 'Sat, 24 Jan 2026 10:00:00 UTC',
  });
  assert.equal((await vendor.refresh({})).isFresh, true);
});

test('an InRelease that is newer but already expired is refused, also as the first one [X3]', async (t) => {
  const expired = { ...MAIN, date: 'Sat, 10 Jan 2026 11:00:00 UTC', validUntil: 'Sat, 10 Jan 2026 11:30:00 UTC' };
  await rig.assertRefused(t, 'vendor-ill/expired', () => rig.publish(expired));
  await rig.publish(expired);
  const { vendor } = await rig.makeRig(t, { suites: ['bookworm'] });
  await assert.rejects(vendor.refresh({}), { code: 'vendor-ill/expired', message: /nothing older to keep/ });
  await assert.rejects(vendor.latest(OLD), { code: 'vendor-ill/never-checked' });
});

test('an InRelease from the future is refused: it would forbid every honest one after it [X3]', async (t) => {
  const spoil = () => rig.publish({ ...MAIN, date: 'Sat, 10 Jan 2026 15:00:00 UTC' });
  await rig.assertRefused(t, 'vendor-ill/not-yet-valid', spoil);
});

test('an InRelease without end is cut off [X3]', async (t) => {
  const spoil = () => rig.server.fail('/dists/bookworm/InRelease', { kind: 'endless' });
  await rig.assertRefused(t, 'vendor-ill/too-large', spoil);
});

test('an InRelease and an index that come a byte at a time are given up [X3]', async (t) => {
  const bounds = { progressWindowMs: 300, progressBytesMin: 1000 };
  const slow = { kind: 'drip', everyMs: 20 } as const;
  const spoil = () => rig.server.fail('/dists/bookworm/InRelease', slow);
  await rig.assertRefused(t, 'vendor-ill/too-slow', spoil, { bounds });
  const spoilIndex = async () => {
    await rig.publish(NEWER);
    rig.server.fail('/dists/bookworm/main/binary-amd64/Packages.xz', slow);
  };
  await rig.assertRefused(t, 'vendor-ill/too-slow', spoilIndex, { bounds });
});

test('an index without end is cut off at the signed size [X3]', async (t) => {
  await rig.assertRefused(t, 'vendor-ill/too-large', async () => {
    await rig.publish(NEWER);
    rig.server.fail('/dists/bookworm/main/binary-amd64/Packages.xz', { kind: 'endless' });
  });
});

test('a packed index with one changed byte is refused [X3]', async (t) => {
  await rig.assertRefused(t, 'vendor-ill/digest-mismatch', async () => {
    await rig.publish(NEWER);
    const path = rig.archive.path('bookworm', 'main/binary-amd64/Packages.xz');
    const bytes = await readFile(path);
    bytes[40] = (bytes[40] ?? 0) ^ 1;
    await writeFile(path, bytes);
  });
});

test('a keyring that is not there is this host’s fault, and named', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const { vendor } = await rig.makeRig(t, { keyring: '/no/such/keyring.gpg' });
  await assert.rejects(vendor.refresh({}), { code: 'host-unfit/no-keyring', message: /\/no\/such\/keyring\.gpg/ });
});

test('without gpgv nothing is believed, and the package to install is named', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const { vendor } = await rig.makeRig(t);
  const { PATH } = process.env;
  t.after(() => {
    process.env.PATH = PATH;
  });
  process.env.PATH = '/nowhere';
  await assert.rejects(vendor.refresh({}), { code: 'host-unfit/no-gpgv', message: /install the package gpgv/ });
  process.env.PATH = PATH;
  assert.equal((await vendor.refresh({})).trouble, null);
});

test('what is not reachable and what is wrong are told together, the wrong one first [X3]', async (t) => {
  await rig.publish(MAIN, SECURITY);
  const { vendor } = await rig.makeRig(t);
  await vendor.refresh({});
  await rig.publish({ ...SECURITY, signers: ['thief'] });
  rig.server.fail('/dists/bookworm/InRelease', { kind: 'status', status: 503 });
  t.after(() => rig.server.fail('/dists/bookworm/InRelease', null));
  await assert.rejects(vendor.refresh({}), (error: Error) => {
    assert.match(
      error.message,
      /^2 of 2 suites could not be refreshed: bookworm: .*503.*; bookworm-security: .*signature/,
    );
    return true;
  });
});

test('a suite without Valid-Until is fresh as long as our own last check is young', async (t) => {
  await rig.publish(MAIN);
  const { vendor, clock } = await rig.makeRig(t, { suites: ['bookworm'] });
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
  await rig.assertRefused(t, 'vendor-ill/digest-mismatch', async () => {
    await rig.publish({ ...NEWER, compression: 'none' });
    await edit(rig.archive.path('bookworm', 'main/binary-amd64/Packages'), (text) =>
      text.replace('deb12u4', 'deb12u9'),
    );
  });
});

test('an index longer than the signed Release says is refused [X3]', async (t) => {
  await rig.assertRefused(t, 'vendor-ill/too-large', async () => {
    await rig.publish({ ...NEWER, compression: 'none' });
    await edit(rig.archive.path('bookworm', 'main/binary-amd64/Packages'), (text) => `${text}x`);
  });
});

test('an index that unpacks to more than was signed is refused, and nothing of it is kept [X3]', async (t) => {
  await rig.assertRefused(t, 'vendor-ill/too-large', async () => {
    await rig.publish(NEWER);
    const signed = await readFile(inRelease(), 'latin1');
    const body = signed.replace(/^ [0-9a-f]{64} \d+ (main\/binary-amd64\/Packages)$/m, ` ${'0'.repeat(64)} 10 $1`);
    await resign(body);
  });
});

/** Signs a changed body again with the archive's own key: an archive that is itself wrong. */
async function resign(signedText: string): Promise<void> {
  const body = /Hash: [^\n]*\n\n([\s\S]*?)-----BEGIN PGP SIGNATURE/.exec(signedText)?.[1] ?? '';
  const home = join(rig.archive.folder, '..', 'gnupg');
  const options = ['--homedir', home, '--batch', '--yes', '--local-user', 'archive@example.org'];
  await runCommand(['gpg', ...options, '--clearsign', '--output', inRelease()], { input: body });
}

for (const [what, from, to] of [
  ['a path that climbs out', 'Filename: pool/', 'Filename: pool/../../'],
  ['a digest that is none', /SHA256: ..../, 'SHA256: zzzz'],
  ['no size', /^Size: .*\n/m, ''],
] as const) {
  test(`a package whose signed index names ${what} is refused to the VM that has it, and the others go on [X3]`, async (t) => {
    const packages = [
      { name: 'jq', version: '1.6-2+deb12u4' },
      { name: 'tzdata', version: '2026b-0', arch: 'all' },
    ];
    await rig.publish({ ...NEWER, packages, editIndex: (text) => text.replace(from, to) });
    const { vendor } = await rig.makeRig(t, { suites: ['bookworm'] });
    await vendor.refresh({});
    await assert.rejects(vendor.latest(OLD), {
      code: 'vendor-ill/malformed',
      message: /bookworm describes the package jq/,
    });
    const versions = (of: readonly { product: string; version: string }[]) =>
      of.map((one) => `${one.product} ${one.version}`);
    const { releases } = await vendor.latest(inventoryOf({ tzdata: '2026a-0' }));
    assert.deepEqual(versions(releases), ['tzdata 2026b-0']);
    assert.deepEqual(versions(await vendor.offers()), ['tzdata 2026b-0']);
    await rig.publish({ ...NEWER, packages, date: 'Sat, 10 Jan 2026 12:40:00 UTC' });
    await vendor.refresh({});
    assert.deepEqual(versions((await vendor.latest(OLD)).releases).sort(), ['jq 1.6-2+deb12u4', 'tzdata 2026b-0']);
  });
}

test('garbage where an index should be is the vendor’s fault', async (t) => {
  await rig.assertRefused(t, 'vendor-ill/malformed', () =>
    rig.publish({ ...NEWER, compression: 'none', editIndex: () => '\u0000\u0001 no: stanza\n\nPackage: x\n' }),
  );
});
