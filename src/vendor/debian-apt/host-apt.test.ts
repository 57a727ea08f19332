// Reading the host's apt configuration: a configuration of the test's own, read by the real apt.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { defaultKeys, readAptProxy, readAptSources } from './host-apt.ts';
import { dearmor } from './keyrings.ts';

/** Points apt at a configuration made of these files for the length of one test. */
async function useApt(t: TestContext, files: Readonly<Record<string, string>>, settings = ''): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-apt-'));
  await mkdir(join(folder, 'parts'));
  for (const [name, text] of Object.entries(files)) await writeFile(join(folder, 'parts', name), text);
  const dirs = `Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "${folder}/parts";\nDir::State::lists "${folder}";\n`;
  await writeFile(join(folder, 'apt.conf'), `${dirs}APT::Architecture "amd64";\n${settings}`);
  const before = process.env.APT_CONFIG;
  process.env.APT_CONFIG = join(folder, 'apt.conf');
  t.after(async () => {
    if (before === undefined) delete process.env.APT_CONFIG;
    else process.env.APT_CONFIG = before;
    await rm(folder, { recursive: true });
  });
  return folder;
}

test('archives, components and keys are read from both formats of apt sources', async (t) => {
  await useApt(t, {
    'new.sources':
      '# a remark\nTypes: deb\nURIs: http://a.example/debian\nSuites: one one-updates\nComponents: main extra\nSigned-By: /keys/a.gpg\n\n' +
      'Types: deb\nURIs: http://b.example/debian-security/\nSuites: one-security\nComponents: main\nSigned-By:\n /keys/b.gpg\n# a remark in between\n /keys/c.gpg\n',
    'old.list': 'deb [arch=amd64 signed-by=/keys/d.gpg] http://d.example/debian two main\n',
  });
  const keys = (...paths: readonly string[]) => ({ paths, embedded: [], fingerprints: [] });
  const { sources, missing } = await readAptSources(['one', 'one-security', 'two'], 'amd64', undefined);
  assert.equal(missing, null);
  assert.deepEqual(sources, [
    { suite: 'one', repoUri: 'http://a.example/debian/', components: ['main', 'extra'], keys: keys('/keys/a.gpg') },
    {
      suite: 'one-security',
      repoUri: 'http://b.example/debian-security/',
      components: ['main'],
      keys: keys('/keys/b.gpg', '/keys/c.gpg'),
    },
    { suite: 'two', repoUri: 'http://d.example/debian/', components: ['main'], keys: keys('/keys/d.gpg') },
  ]);
  const some = await readAptSources(['one-updates'], 'amd64', ['extra']);
  assert.deepEqual(some.sources[0]?.components, ['extra']);
});

test('keys embedded in a source and fingerprints are read as apt reads them', async (t) => {
  const fingerprint = 'a'.repeat(40);
  await useApt(t, {
    'new.sources':
      'Types: deb\nURIs: http://a.example/debian\nSuites: one\nComponents: main\nSigned-By:\n' +
      ' -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n AAEC\n =abcd\n -----END PGP PUBLIC KEY BLOCK-----\n\n' +
      `Types: deb\nURIs: http://b.example/debian\nSuites: two\nComponents: main\nSigned-By: ${fingerprint}!\n`,
  });
  const { sources } = await readAptSources(['one', 'two'], 'amd64', undefined);
  const [embedded, named] = sources.map(({ keys }) => keys);
  assert.deepEqual(embedded?.paths, []);
  assert.deepEqual([...(dearmor(embedded?.embedded[0] ?? '') ?? [])], [0, 1, 2]);
  assert.deepEqual(named?.fingerprints, [`${'A'.repeat(40)}!`]);
  assert.deepEqual(named?.paths, (await defaultKeys()).paths);
});

test('suites that apt does not have are named, also for an architecture it does not fetch', async (t) => {
  await useApt(t, {
    'old.list': '# deb http://d.example/debian three main\ndeb [arch=amd64] http://d.example/debian two main\n',
    'off.sources': 'Types: deb\nURIs: http://a.example/\nSuites: four\nComponents: main\nEnabled: no\n',
  });
  const some = await readAptSources(['two', 'three', 'four'], 'amd64', undefined);
  assert.deepEqual(
    some.sources.map(({ suite }) => suite),
    ['two'],
  );
  assert.equal(some.missing?.code, 'host-unfit/no-apt-source');
  assert.match(some.missing?.message ?? '', /three, four/);
  const none = await readAptSources(['two'], 'arm64', undefined);
  assert.match(none.missing?.message ?? '', /two \(arm64\)/);
});

test('apt’s proxy is taken, the one for a single host before the general one, and DIRECT means none', async (t) => {
  await useApt(
    t,
    {},
    'Acquire::http::Proxy "http://proxy.example:3142";\nAcquire::http::Proxy::a.example "DIRECT";\nAcquire::http::Proxy::b.example "http://other.example:1";\n',
  );
  assert.equal(await readAptProxy('http://c.example/debian/'), 'http://proxy.example:3142');
  assert.equal(await readAptProxy('http://b.example/debian/'), 'http://other.example:1');
  assert.equal(await readAptProxy('http://a.example/debian/'), undefined);
});
