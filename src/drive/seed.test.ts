// The NoCloud seed, as the programs that look for one see it.
import assert from 'node:assert/strict';
import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { extractImage, listImage } from '../../test/fakes/image-readers.ts';
import { SEED_FILE_BYTES_MAX } from '../base/limits.ts';
import { runCommand, tryCommand } from '../base/run-command.ts';
import { DriveError } from './drive-error.ts';
import { buildSeed, type SeedFiles, writeSeed } from './seed.ts';

let scratch = '';
let seeds = 0;
before(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'pratique-seed-'));
  await chmod(scratch, 0o711);
});
after(async () => await rm(scratch, { recursive: true, force: true }));

function freshPath(): string {
  seeds += 1;
  return join(scratch, `seed-${seeds}.iso`);
}

const FILES: SeedFiles = {
  userData: '#cloud-config\nhostname: größe\n',
  metaData: 'instance-id: web-1-a\nlocal-hostname: web-1\n',
  vendorData: gzipSync('#!/bin/sh\ntrue\n'),
  networkConfig: 'version: 2\n',
};

describe('a NoCloud seed [A14]', () => {
  test('has the label and the file system that cloud-init asks blkid for', async () => {
    const path = freshPath();
    await writeSeed({ files: FILES, path });
    const said = await runCommand(['blkid', '-p', '-o', 'export', path]);
    assert.match(said, /^LABEL=CIDATA$/m);
    assert.match(said, /^TYPE=iso9660$/m);
  });

  test('holds the four files byte for byte at its root, by Rock Ridge and by Joliet, for root alone', async () => {
    const path = freshPath();
    await writeSeed({ files: FILES, path });
    const bytesOf = (content: Uint8Array | string | undefined) => Buffer.from(content ?? '').toString('latin1');
    const wanted = Object.entries({
      'user-data': FILES.userData,
      'meta-data': FILES.metaData,
      'vendor-data': FILES.vendorData,
      'network-config': FILES.networkConfig,
    }).map(([name, content]) => [`/${name}`, { kind: 'file', content: bytesOf(content), mode: 0o400, mtimeS: 0 }]);
    assert.deepEqual(await extractImage('xorriso', path, `${path}.d`), Object.fromEntries(wanted));
    const names = wanted.map(([name]) => String(name)).sort();
    assert.deepEqual((await listImage('rock-ridge', path)).sort(), names);
    assert.deepEqual(
      (await listImage('joliet', path)).sort(),
      names.map((name) => `${name};1`),
    );
  });

  test('without the files that may be missing has only the two that must be there, of which user-data may be empty', async () => {
    const path = freshPath();
    await writeSeed({ files: { userData: '', metaData: '{"instance-id": "i-1"}' }, path });
    assert.deepEqual((await listImage('rock-ridge', path)).sort(), ['/meta-data', '/user-data']);
  });

  test('of equal files has equal bytes, and is written once', async () => {
    const path = freshPath();
    await writeSeed({ files: FILES, path });
    const first = await stat(path);
    await writeSeed({ files: { ...FILES }, path });
    assert.equal((await stat(path)).ino, first.ino);
    await writeSeed({ files: { ...FILES, userData: 'other' }, path });
    assert.notEqual((await stat(path)).ino, first.ino);
    assert.deepEqual(await readFile(path), Buffer.from(buildSeed({ ...FILES, userData: 'other' })));
    assert.deepEqual(
      (await readdir(scratch)).filter((name) => name.endsWith('.new')),
      [],
    );
  });

  test("is read by QEMU's group and by nobody else", async (t) => {
    const isRoot = process.getuid?.() === 0;
    const owner = { uid: 61_003, gid: 61_003 };
    const path = freshPath();
    await writeSeed({ files: FILES, path });
    assert.equal((await stat(path)).mode & 0o7777, 0o400);
    if (!isRoot) {
      t.diagnostic('not root: only the mode was checked');
      return;
    }
    await writeSeed({ files: FILES, path, owner });
    assert.equal((await stat(path)).mode & 0o7777, 0o440);
    const readAs = (id: number) => ['setpriv', `--reuid=${id}`, `--regid=${id}`, '--clear-groups', 'cat', path];
    assert.equal((await tryCommand(readAs(owner.uid))).exitCode, 0);
    assert.notEqual((await tryCommand(readAs(61_004))).exitCode, 0);
  });
});

describe('what is no seed [A14]', () => {
  const refused: readonly string[] = [
    '',
    'local-hostname: web-1\n',
    'instance-id:\nlocal-hostname: x\n',
    'instance-id: ""\n',
    'instance-id: ~ \n',
    'instance-id: # none\n',
    'instance-id: null\n',
    'nested:\n  instance-id: x\n',
    '# instance-id: x\n',
    '{"instance-id": ""}',
    '{"instance-id": null}',
    '{"nested": {"instance-id": "x"}}',
    '{"instance-id": "x"',
  ];
  for (const metaData of refused) {
    test(`meta-data without an instance-id: ${JSON.stringify(metaData)}`, () => {
      assert.throws(
        () => buildSeed({ userData: '', metaData }),
        (error: unknown) =>
          error instanceof DriveError && error.code === 'usage/seed' && /no instance-id/.test(error.message),
      );
    });
  }

  for (const metaData of [
    'instance-id: a\r\n',
    '"instance-id": a',
    "x: 1\n'instance-id' : 'a b'",
    '\n{ "instance-id": 7 }',
  ]) {
    test(`but ${JSON.stringify(metaData)} has one`, () => {
      assert.ok(buildSeed({ userData: '', metaData }).length > 0);
    });
  }

  test('a file over the limit, which leaves the seed as it was', async () => {
    const path = freshPath();
    await writeFile(path, 'before');
    const files = { ...FILES, userData: Buffer.alloc(SEED_FILE_BYTES_MAX + 1) };
    await assert.rejects(writeSeed({ files, path }), { code: 'usage/seed' });
    assert.equal(await readFile(path, 'utf8'), 'before');
    assert.ok(buildSeed({ ...FILES, userData: Buffer.alloc(SEED_FILE_BYTES_MAX) }).length > SEED_FILE_BYTES_MAX);
  });
});
