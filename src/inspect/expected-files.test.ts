// What releases put on a disk, from real packages and bundles.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Digest } from '../base/digest-text.ts';
import { runCommand } from '../base/run-command.ts';
import type { PlanItem } from '../model/plan.ts';
import type { InstallAction } from '../model/release.ts';
import { packBundle } from '../vendor/archive.ts';
import { expectedFiles } from './expected-files.ts';

let folder: string;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-expected-'));
});
after(async () => {
  await rm(folder, { recursive: true });
});

const itemOf = (install: InstallAction): PlanItem => ({
  id: 'x/demo',
  fromVersion: null,
  release: {
    ...{ vendor: 'v', ecosystem: 'bundle', product: 'demo', version: '2', kind: 'fix', requires: [], advisories: [] },
    // The cast holds: 64 hex digits.
    artifact: { name: 'demo', digest: '0'.repeat(64) as Digest, sizeBytes: 1, location: 'demo' },
    install,
  },
});
const hashOf = (algorithm: string, text: string) => createHash(algorithm).update(text).digest('hex');

async function tree(name: string, files: Readonly<Record<string, string>>): Promise<string> {
  const root = join(folder, name);
  for (const [path, content] of Object.entries(files)) {
    await mkdir(dirname(join(root, path)), { recursive: true });
    await writeFile(join(root, path), content);
  }
  return root;
}

test('a package names its files with their digests; one without a list names none [A10]', async () => {
  const control = 'Package: demo\nVersion: 2\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n';
  const md5sums = `${hashOf('md5', 'program')}  usr/bin/demo\n${hashOf('md5', 'x')}  usr/share/a b\nnot a line\n`;
  for (const [name, lists] of [
    ['with', { 'DEBIAN/md5sums': md5sums }],
    ['without', {}],
  ] as const) {
    const root = await tree(name, { 'DEBIAN/control': control, 'usr/bin/demo': 'program', ...lists });
    const path = join(folder, `${name}.deb`);
    await runCommand(['dpkg-deb', '--root-owner-group', '--build', root, path]);
    const { files, sizes } = await expectedFiles(itemOf({ action: 'debian-package' }), path);
    assert.deepEqual(await sizes?.(), new Map([['/usr/bin/demo', 'program'.length]]));
    const expected = [
      { path: '/usr/bin/demo', algorithm: 'md5', digest: hashOf('md5', 'program') },
      { path: '/usr/share/a b', algorithm: 'md5', digest: hashOf('md5', 'x') },
    ];
    assert.deepEqual(files, name === 'with' ? expected : []);
  }
});

test('a bundle names all its files, and only its entries where one of them may change the others [A10]', async () => {
  const root = await tree('bundle', { 'bin/check': 'c', 'bin/install': 'i', 'www/page': 'p' });
  const path = join(folder, 'bundle.tar.gz');
  await packBundle(root, path, { compression: 'gzip' });
  const plain = { action: 'bundle', prefix: '/opt/demo', compression: 'gzip', check: 'bin/check' } as const;
  const pathsOf = async (install: InstallAction) =>
    (await expectedFiles(itemOf(install), path)).files.map((file) => file.path);
  const all = ['bin/check', 'bin/install', 'www/page'].map((name) => `/opt/demo/current/${name}`);
  assert.deepEqual(await pathsOf(plain), all);
  assert.deepEqual(await pathsOf({ ...plain, install: 'bin/install' }), all.slice(0, 2));
  const { files } = await expectedFiles(itemOf(plain), path);
  assert.deepEqual(files[2], { path: all[2], algorithm: 'sha256', digest: hashOf('sha256', 'p') });
});
