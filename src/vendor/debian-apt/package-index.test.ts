// The package index alone: what is found in an unpacked file, and what is left of it after an abort, a crash or a lost file.
import assert from 'node:assert/strict';
import { mkdtemp, readdir, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { systemClock } from '../../base/clock.ts';
import { STANZA_BYTES_MAX } from '../../base/limits.ts';
import { openPackageIndex, type PackageIndex, type SuiteState } from './package-index.ts';
import { findStanzas, readPackage } from './packages-file.ts';

const STATE: SuiteState = {
  suite: 'bookworm',
  codename: 'bookworm',
  repoUri: 'http://archive.example/',
  dateMs: 1_000,
  validUntilMs: null,
  checkedAtMs: 2_000,
  etag: '"1"',
  fingerprints: ['A'],
  automatic: 'yes',
  indexKey: 'one',
  files: [],
};

const stanza = (name: string, more = ''): string =>
  `Package: ${name}\nVersion: 1.0\nArchitecture: all\n${more}Size: 1\nFilename: pool/${name}.deb\nSHA256: ${'a'.repeat(64)}\n`;

async function makeIndex(t: TestContext) {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-index-'));
  const path = join(folder, 'packages.sqlite');
  let index: PackageIndex | undefined;
  const open = (): PackageIndex => {
    index?.close();
    index = openPackageIndex(path, systemClock);
    return index;
  };
  t.after(async () => {
    index?.close();
    await rm(folder, { recursive: true });
  });
  const packed = async (text: string) => {
    await writeFile(join(folder, 'Packages'), text);
    const unpackedBytesMax = Buffer.byteLength(text);
    return [{ path: join(folder, 'Packages'), component: 'main', compression: 'none', unpackedBytesMax } as const];
  };
  const unpacked = join(folder, 'packages.sqlite-unpacked');
  return { open, packed, unpacked };
}

test('a stanza is found with its name and provides however its fields are written and wherever a read ends', () => {
  const texts = [
    stanza('a'),
    stanza('b', 'provides: x (= 1),\n y,\n\tz\n'),
    `Provides: v\n${stanza('c')}`,
    stanza('d', 'PROVIDES: old\nProvides: w\nX-Provides: no\n'),
    stanza('e', 'Description: Package: none\n .\n Provides: none\n'),
    stanza('f', 'Provides:\n late\n').trimEnd(),
  ];
  const text = `\n${texts.join('\n\n')}`;
  const { places } = findStanzas(text, true, 'the index');
  const parsed = places.map(({ start, length }) =>
    readPackage(Buffer.from(text.slice(start, start + length)), 'bookworm', 'main'),
  );
  assert.deepEqual(
    places.map(({ name, provides }) => ({ name, provides })),
    parsed.map(({ name, provides }) => ({ name, provides })),
  );
  assert.deepEqual(
    places.map(({ name, provides }) => `${name} ${provides}`),
    ['a ', 'b x (= 1), y, z', 'c v', 'd w', 'e ', 'f  late'],
  );
  for (let cut = 0; cut <= text.length; cut += 1) {
    const first = findStanzas(text.slice(0, cut), false, 'the index');
    const rest = findStanzas(text.slice(first.used), true, 'the index');
    const later = rest.places.map((place) => ({ ...place, start: place.start + first.used }));
    assert.deepEqual([...first.places, ...later], places, `cut at ${cut}`);
  }
});

test('an index longer than many reads is found whole, and each package by its name', async (t) => {
  const { open, packed } = await makeIndex(t);
  const names = Array.from({ length: 2_000 }, (_, number) => `p${number}`);
  const text = names
    .map((name) => stanza(name, `Description: ${'é'.repeat(400)}\nProvides: virtual-${name}\n`))
    .join('\n');
  const index = open();
  assert.equal(await index.replace(STATE, await packed(text)), 2_000);
  for (const name of names)
    assert.deepEqual(
      index.byName(name).map((one) => one.provides),
      [`virtual-${name}`],
    );
  assert.deepEqual(
    index
      .mentioning('virtual-p77')
      .map((one) => one.name)
      .includes('p77'),
    true,
  );
  assert.equal([...index.all()].length, 2_000);
});

test('an unpacked file that is lost or cut short costs its suite the packages, never its date, until they come again [X3]', async (t) => {
  const { open, packed, unpacked } = await makeIndex(t);
  const files = await packed(stanza('jq'));
  for (const spoil of [(path: string) => rm(path), (path: string) => truncate(path, 10)]) {
    await open().replace(STATE, files);
    assert.equal(open().byName('jq').length, 1);
    const [name = ''] = await readdir(unpacked);
    await spoil(join(unpacked, name));
    const index = open();
    assert.deepEqual(index.byName('jq'), []);
    assert.deepEqual(index.suites(), [{ ...STATE, indexKey: '', etag: null }]);
    assert.deepEqual(await readdir(unpacked), []);
    await index.replace(STATE, files);
    assert.equal(index.byName('jq').length, 1);
  }
});

test('an import that is aborted, too long or malformed at its end changes nothing and leaves no file [X3]', async (t) => {
  const { open, packed, unpacked } = await makeIndex(t);
  const index = open();
  await index.replace(STATE, await packed(stanza('jq')));
  const kept = await readdir(unpacked);
  const next = { ...STATE, indexKey: 'two' };
  const [good] = await packed(`${stanza('a')}\n${stanza('b')}`);
  assert.ok(good !== undefined);
  await assert.rejects(index.replace(next, [good], AbortSignal.abort()), { name: 'AbortError' });
  const short = [{ ...good, unpackedBytesMax: good.unpackedBytesMax - 1 }];
  await assert.rejects(index.replace(next, short), { code: 'vendor-ill/too-large' });
  await assert.rejects(index.replace(next, [{ ...good, compression: 'gzip' }]), { code: 'vendor-ill/malformed' });
  const long = await packed(`${stanza('a')}\n${stanza('b', `X: ${'y'.repeat(STANZA_BYTES_MAX)}\n`)}`);
  await assert.rejects(index.replace(next, long), { code: 'vendor-ill/malformed', message: /longer than/ });
  const nameless = await packed(`${stanza('a')}\nVersion: 1\n`);
  await assert.rejects(index.replace(next, nameless), { code: 'vendor-ill/malformed', message: /without a name/ });
  assert.deepEqual(index.suites(), [STATE]);
  assert.deepEqual([index.byName('jq').length, index.byName('a').length], [1, 0]);
  assert.deepEqual(await readdir(unpacked), kept);
  await index.replace(next, await packed(stanza('a')));
  assert.deepEqual([index.byName('jq').length, index.byName('a').length], [0, 1]);
  assert.equal((await readdir(unpacked)).length, 1);
});

test('what an import that was cut off left in the folder is removed at the next start', async (t) => {
  const { open, packed, unpacked } = await makeIndex(t);
  await open().replace(STATE, await packed(stanza('jq')));
  await writeFile(join(unpacked, 'half'), 'Package: half');
  assert.equal(open().byName('jq').length, 1);
  assert.equal((await readdir(unpacked)).length, 1);
});
