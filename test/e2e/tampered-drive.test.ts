// A drive on which one byte is wrong, at every place where it could be: refused by whoever has to notice, named, and nothing is installed.
// Each refusal is followed by the same check that the guest is as before, and each set of cases ends with the honest drive, installed.
import assert from 'node:assert/strict';
import { appendFile, cp, mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { Clock } from '../../src/base/clock.ts';
import { systemClock } from '../../src/base/clock.ts';
import { runCommand } from '../../src/base/run-command.ts';
import type { Vendor } from '../../src/vendor/vendor.ts';
import type { DebianArchive, PackageSpec, SuiteSpec } from '../fakes/debian-archive.ts';
import { makeOffering } from './debian-offering.ts';
import type { Answer, DebianRoot, Offering } from './debian-root.ts';
import { type DebianScene, openDebianScene, SCENE_SUITE as SUITE } from './debian-scene.ts';

const DEB = 'pool/main/jq_9.0-1_amd64.deb';
const INDEX = `dists/${SUITE}/main/binary-amd64/Packages.xz`;
const IN_RELEASE = `dists/${SUITE}/InRelease`;
const DAY_MS = 24 * 60 * 60 * 1000;
const NAMES = ['jq', 'libjq1', 'tampered-new'];

let scene: DebianScene | null = null;
let scratch: string;
let archive: DebianArchive;
let vendor: Vendor;
let root: DebianRoot;
let untouched: Readonly<Record<string, string>>;
let sources: string;
/** Days by which the vendor's clock is ahead. */
let daysAhead = 0;
const clock: Clock = { ...systemClock, nowMs: () => systemClock.nowMs() + daysAhead * DAY_MS };

/** RFC 5322 as in a Release file. */
const dateOf = (atMs: number): string => new Date(atMs).toUTCString().replace('GMT', 'UTC');

/** The suite as it stands `days` from now, with jq in this version. */
function suite(version: string, days = 0): SuiteSpec {
  const atMs = systemClock.nowMs() + days * DAY_MS;
  const packages: readonly PackageSpec[] = [
    { name: 'jq', version, fields: { Depends: `libjq1 (= ${version}), tampered-new` } },
    { name: 'libjq1', version, fields: { 'Multi-Arch': 'same' } },
    { name: 'tampered-new', version: '1' },
  ];
  return { suite: SUITE, packages, date: dateOf(atMs - 60_000), validUntil: dateOf(atMs + 7 * DAY_MS) };
}

before(async () => {
  scene = await openDebianScene({ clock, keys: ['archive', 'stranger'] });
  ({ scratch, archive, vendor, root } = scene);
  await archive.publish(suite('9.0-1'));
  await vendor.refresh({});
  await root.start();
  untouched = await root.versions('jq', 'libjq1');
  sources = await readFile(root.path('etc/apt/sources.list'), 'utf8');
});
after(async () => await scene?.close());

async function offeringOf(apt: 'fast' | 'vendor-verified'): Promise<Offering> {
  root.host.send({ type: 'ask-inventory' });
  const { inventory } = await root.host.take('inventory');
  return await makeOffering({ vendor, inventory, apt, folder: join(scratch, 'debs') });
}

/** Changes one byte in the middle of a file. */
async function changeByte(path: string): Promise<void> {
  const file = await open(path, 'r+');
  const at = Math.floor((await file.stat()).size / 2);
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, at);
  byte.writeUInt8((byte.readUInt8(0) + 1) % 256);
  await file.write(byte, 0, 1, at);
  await file.close();
}

/** What was refused by which word, and that the guest is as it was. */
async function assertRefused(answer: Answer, word: string, named: RegExp): Promise<void> {
  if ('refused' in answer) assert.equal(answer.refused, word);
  else {
    const [first] = answer.installed.results;
    assert.deepEqual([first?.outcome, first?.code], ['failed', word], first?.output);
    assert.match(first?.output ?? '', named);
    assert.ok(answer.installed.results.every(({ outcome }) => outcome !== 'installed'));
  }
  assert.deepEqual(await root.versions('jq', 'libjq1'), untouched);
}

type Case = {
  readonly what: string;
  readonly apt: 'fast' | 'vendor-verified';
  readonly spoil: () => Promise<void>;
  /** Whether the host vouches for what it shows: its manifest fits the tampered bytes. */
  readonly isVouchedFor: boolean;
  readonly word: string;
  readonly named: RegExp;
};

const onDrive = (path: string): string => root.path(`drive${path}`);

const CASES: readonly Case[] = [
  {
    what: 'one byte in a package (fast)',
    apt: 'fast',
    spoil: async () => await changeByte(onDrive('/packages/01-jq_9.0-1_amd64.deb')),
    isVouchedFor: false,
    word: 'digest-mismatch',
    named: /packages\/01-jq_9\.0-1_amd64\.deb/,
  },
  {
    what: 'one byte in a package',
    apt: 'vendor-verified',
    spoil: async () => await changeByte(onDrive(`/apt/1/${DEB}`)),
    isVouchedFor: false,
    word: 'digest-mismatch',
    named: /apt\/1\/pool\/main\/jq_9\.0-1_amd64\.deb/,
  },
  {
    what: 'one byte in a package that the host vouches for',
    apt: 'vendor-verified',
    spoil: async () => await changeByte(onDrive(`/apt/1/${DEB}`)),
    isVouchedFor: true,
    word: 'signed-digest-mismatch',
    named: /Hash Sum mismatch/i,
  },
  {
    what: 'one byte in Packages',
    apt: 'vendor-verified',
    spoil: async () => await changeByte(onDrive(`/apt/1/${INDEX}`)),
    isVouchedFor: false,
    word: 'digest-mismatch',
    named: /binary-amd64\/Packages\.xz/,
  },
  {
    what: 'one byte in Packages that the host vouches for',
    apt: 'vendor-verified',
    spoil: async () => await changeByte(onDrive(`/apt/1/${INDEX}`)),
    isVouchedFor: true,
    word: 'signed-digest-mismatch',
    named: /Hash Sum mismatch/i,
  },
  {
    what: 'one byte in InRelease',
    apt: 'vendor-verified',
    spoil: async () => await changeInRelease(),
    isVouchedFor: false,
    word: 'digest-mismatch',
    named: /InRelease/,
  },
  {
    what: 'one byte in InRelease that the host vouches for',
    apt: 'vendor-verified',
    spoil: async () => await changeInRelease(),
    isVouchedFor: true,
    word: 'bad-signature',
    named: /BADSIG/,
  },
  {
    what: 'an InRelease by a key that the guest does not trust, vouched for by the host',
    apt: 'vendor-verified',
    spoil: async () => await showArchive({ ...suite('9.0-1'), signers: ['stranger'] }),
    isVouchedFor: true,
    word: 'bad-signature',
    named: /NO_PUBKEY/,
  },
  {
    what: 'an older InRelease, validly signed, vouched for by the host',
    apt: 'vendor-verified',
    spoil: async () => await showArchive(suite('8.0-1', -1)),
    isVouchedFor: true,
    word: 'not-in-archive',
    named: /Version '9\.0-1' for 'jq.*' was not found/,
  },
  {
    what: 'an InRelease without its signature, vouched for by the host',
    apt: 'vendor-verified',
    spoil: async () => await writeFile(onDrive(`/apt/1/${IN_RELEASE}`), 'Suite: bookworm-security\n'),
    isVouchedFor: true,
    word: 'bad-signature',
    named: /./,
  },
  {
    what: 'one byte in the manifest',
    apt: 'vendor-verified',
    spoil: async () => await appendFile(onDrive('/manifest.json'), ' '),
    isVouchedFor: false,
    word: 'manifest-digest',
    named: /./,
  },
];

/** A letter in the text that the signature is over. */
async function changeInRelease(): Promise<void> {
  const path = onDrive(`/apt/1/${IN_RELEASE}`);
  await writeFile(path, (await readFile(path, 'utf8')).replace('Origin: Test', 'Origin: Tesu'));
}

/** Puts the signed files of another state of the archive onto the drive; the packages stay. */
async function showArchive(spec: SuiteSpec): Promise<void> {
  const other = await makeOtherState(spec);
  await rm(onDrive('/apt/1/dists'), { recursive: true });
  await cp(join(other, 'dists'), onDrive('/apt/1/dists'), { recursive: true });
}

/** The archive in another state, signed by the same keys, beside the one that is served. */
async function makeOtherState(spec: SuiteSpec): Promise<string> {
  const keep = join(scratch, 'kept');
  await cp(archive.folder, keep, { recursive: true });
  await archive.publish(spec);
  const other = await mkdtemp(join(scratch, 'other-'));
  await cp(archive.folder, other, { recursive: true });
  await rm(archive.folder, { recursive: true });
  await cp(keep, archive.folder, { recursive: true });
  await rm(keep, { recursive: true });
  return other;
}

describe('in the guest [A10] [X3]', () => {
  for (const { what, apt, spoil, isVouchedFor, word, named } of CASES) {
    test(`${what}: ${word}, and nothing is installed`, async () => {
      const { run, contents } = await root.writeDrive(await offeringOf(apt));
      await spoil();
      const digest = isVouchedFor ? await root.vouchForDrive() : contents.manifestDigest;
      await assertRefused(await root.offer(run, digest), word, named);
    });
  }
});

describe('on the host, before there is a drive [A9] [X3]', () => {
  const publishAnd = async (spec: SuiteSpec, spoil: () => Promise<void>, code: string): Promise<void> => {
    const keep = join(scratch, 'served');
    await cp(archive.folder, keep, { recursive: true });
    try {
      await archive.publish(spec);
      await spoil();
      await assert.rejects(vendor.refresh({}), { code });
      const { releases } = await vendor.latest(await inventoryOf());
      assert.equal(releases.find(({ product }) => product === 'jq')?.version, '9.0-1', 'the verified state stays');
    } finally {
      await rm(archive.folder, { recursive: true });
      await cp(keep, archive.folder, { recursive: true });
      await rm(keep, { recursive: true });
    }
  };
  const inventoryOf = async () => {
    root.host.send({ type: 'ask-inventory' });
    return (await root.host.take('inventory')).inventory;
  };
  const nothing = async (): Promise<void> => {};

  test('one byte in InRelease', async () => {
    const path = archive.path(SUITE, 'InRelease');
    const spoil = async () =>
      await writeFile(path, (await readFile(path, 'utf8')).replace('Origin: Test', 'Origin: Tesu'));
    await publishAnd(suite('9.1-1', 0.01), spoil, 'vendor-ill/signature');
  });
  test('one byte in Packages', async () => {
    const path = archive.path(SUITE, 'main/binary-amd64/Packages.xz');
    await publishAnd(suite('9.1-1', 0.01), async () => await changeByte(path), 'vendor-ill/digest-mismatch');
  });
  test('an older InRelease, validly signed', async () => {
    await publishAnd(suite('8.0-1', -1), nothing, 'vendor-ill/rollback');
  });
  test('an expired InRelease', async () => {
    const now = systemClock.nowMs();
    const expired = { ...suite('9.1-1'), date: dateOf(now - 1_000), validUntil: dateOf(now - 500) };
    await publishAnd(expired, nothing, 'vendor-ill/expired');
  });
});

describe('the honest drive installs [A10]', () => {
  test('metadata that the host has accepted and that have expired since do for the guest, whatever its clock says', async () => {
    // What the host verified a month ago, shown by a policy that goes by old metadata.
    const stale: SuiteSpec = { ...suite('9.0-1', -30), date: dateOf(systemClock.nowMs() - 30 * DAY_MS) };
    const offering = await offeringOf('vendor-verified');
    const { run } = await root.writeDrive(offering);
    await showArchive(stale);
    const answer = await root.offer(run, await root.vouchForDrive());
    assert.ok('installed' in answer, JSON.stringify(answer));
    assert.deepEqual(
      answer.installed.results.map(({ outcome }) => outcome),
      ['installed', 'installed', 'installed'],
      answer.installed.results[0]?.output,
    );
    assert.deepEqual(await root.versions(...NAMES), {
      jq: '9.0-1 installed',
      libjq1: '9.0-1 installed',
      'tampered-new': '1 installed',
    });
    const automatic = (await root.run('apt-mark', 'showauto')).split('\n');
    assert.ok(automatic.includes('tampered-new'), 'what came as a need of others may go with them');
    assert.ok(automatic.includes('libjq1') && !automatic.includes('jq'), 'what was noted before is noted still');
    assert.equal(
      await readFile(root.path('etc/apt/sources.list'), 'utf8'),
      sources,
      'its own sources are as they were',
    );
  });

  test('and so does the fast way, from the next version on', async () => {
    // Another version than above: the archive keeps what it has built, and its folder was put back since.
    await archive.publish(suite('9.2-1', 0.02));
    daysAhead = 0.1;
    await vendor.refresh({});
    const { run, contents } = await root.writeDrive(await offeringOf('fast'));
    const answer = await root.offer(run, contents.manifestDigest);
    assert.ok('installed' in answer);
    assert.ok(
      answer.installed.results.every(({ outcome }) => outcome === 'installed'),
      JSON.stringify(answer),
    );
    assert.deepEqual(await root.versions('jq'), { jq: '9.2-1 installed' });
    assert.equal(await runCommand(['chroot', root.folder, 'dpkg', '--audit']), '');
  });
});
