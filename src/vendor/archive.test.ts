// Hostile tars against the guards, and the packer against the reader.
import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, readFile, rm, symlink, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import fc from 'fast-check';
import { type Header, pack } from 'tar-stream';
import { runCommand } from '../base/run-command.ts';
import { type ArchiveReading, packBundle, readArchive } from './archive.ts';

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-archive-'));
});
after(async () => await rm(folder, { recursive: true }));

type Member = Partial<Header> & { readonly name: string; readonly text?: string };

async function tarOf(members: readonly Member[]): Promise<Buffer> {
  const tar = pack();
  for (const { text, ...header } of members) tar.entry({ mode: 0o644, ...header }, text ?? '');
  tar.finalize();
  const list: Buffer[] = [];
  // The cast holds: a tar stream gives Buffers.
  for await (const piece of tar) list.push(piece as Buffer);
  return Buffer.concat(list);
}

async function read(bytes: Uint8Array, reading: Partial<ArchiveReading> = {}) {
  const path = join(folder, 'archive');
  await writeFile(path, bytes);
  return await readArchive(path, { compression: 'none', ...reading });
}

async function assertRefused(members: readonly Member[], detail: string): Promise<void> {
  await assert.rejects(read(await tarOf(members)), { code: `vendor-ill/bundle-${detail}` }, JSON.stringify(members));
}

const file = (name: string): Member => ({ name, text: 'x' });

test('an honest bundle passes and is counted, in each compression', async () => {
  const tar = await tarOf([
    { name: './', type: 'directory' },
    { name: './bin/', type: 'directory' },
    { name: './bin/run', text: 'hello', mode: 0o755 },
    { name: 'bin/alias', type: 'symlink', linkname: 'run' },
    { name: 'lib/a/up', type: 'symlink', linkname: '../../bin/run' },
    { name: 'bin/same', type: 'link', linkname: 'bin/run' },
    { name: 'lib', type: 'directory' },
  ]);
  const expected = { entries: 7, unpackedBytes: 5 };
  const executables = ['bin/run', 'bin/same'];
  assert.deepEqual(await read(tar, { executables }), expected);
  assert.deepEqual(await read(gzipSync(tar), { executables, compression: 'gzip' }), expected);
  assert.deepEqual(await read(zstdCompressSync(tar), { executables, compression: 'zstd' }), expected);
});

test('no path leads out of the tree [X3]', async () => {
  const paths = [
    '/etc/passwd',
    '../evil',
    'a/../../evil',
    'a/..',
    '..',
    'a//b',
    'a/./b',
    './../b',
    'a\\b',
    'a\u0007b',
    'x/',
  ];
  for (const name of paths) await assertRefused([{ name, text: 'x', type: 'file' }], 'path');
  await assertRefused([file('a'.repeat(256))], 'path');
  await assertRefused([file(`${'a/'.repeat(1100)}b`)], 'path');
});

test('no name that climbs survives, however it is written [X3]', async () => {
  const part = fc.constantFrom('..', '.', '', 'a', 'b c', '...', '..a', 'é', '\\', '\u202e');
  await fc.assert(
    fc.asyncProperty(fc.array(part, { minLength: 1, maxLength: 6 }), async (parts) => {
      const name = parts.join('/');
      const inner = name.startsWith('./') ? parts.slice(1) : parts;
      const isPlain = inner.every((one) => !['..', '.', '', '\\'].includes(one)) && inner.length > 0;
      const outcome = await read(await tarOf([{ name, text: 'x', type: 'file' }])).then(
        () => 'taken',
        () => 'refused',
      );
      assert.equal(outcome, isPlain ? 'taken' : 'refused', JSON.stringify(name));
    }),
    { numRuns: 300 },
  );
});

test('random bytes and cut tars are errors, never a hang or a crash [X3]', async () => {
  const tar = await tarOf([file('a'), file('b'), { name: 'c'.repeat(200), text: 'y' }]);
  await fc.assert(
    fc.asyncProperty(fc.nat(tar.length - 1), fc.nat(255), async (at, value) => {
      const damaged = Buffer.from(tar);
      damaged[at] = value;
      await read(damaged).catch((error: { code?: string }) => assert.match(error.code ?? '', /^vendor-ill\/bundle-/));
      await read(tar.subarray(0, at)).catch((error: { code?: string }) =>
        assert.match(error.code ?? '', /^vendor-ill\/bundle-/),
      );
    }),
    { numRuns: 100 },
  );
  await assert.rejects(read(Buffer.alloc(2000, 'z')), { code: 'vendor-ill/bundle-damaged' });
  await assert.rejects(read(tar, { compression: 'gzip' }), { code: 'vendor-ill/bundle-damaged' });
  await assert.rejects(read(tar.subarray(0, 700)), { code: 'vendor-ill/bundle-damaged' });
});

test('links stay in the tree, also by way of each other [X3]', async () => {
  const link = (name: string, linkname: string): Member => ({ name, type: 'symlink', linkname });
  for (const target of ['/etc', '../x', 'a/../../x', '..', 'a\\b']) await assertRefused([link('l', target)], 'link');
  await assertRefused([link('a/b/l', '../../../x')], 'link');
  // `deep` leads to the top; `..` behind it would lead above, though the text alone stays inside.
  await assertRefused([link('a/b/deep', '../..'), link('out', 'a/b/deep/../x')], 'link');
  await assertRefused([link('l', 'a'), file('l/x')], 'path');
  await assertRefused([file('f'), file('f/x')], 'path');
  await assertRefused([{ name: 'h', type: 'link', linkname: '../x' }], 'path');
  await assertRefused([{ name: 'h', type: 'link', linkname: 'later' }, file('later')], 'link');
  await assertRefused([link('s', 'x'), { name: 'h', type: 'link', linkname: 's' }], 'link');
});

test('devices, pipes and setuid files are refused [X3]', async () => {
  for (const type of ['character-device', 'block-device', 'fifo'] as const)
    await assertRefused([{ name: 'd', type }], 'entry');
  await assertRefused([{ name: 'f', mode: 0o4755 }], 'entry');
  await assertRefused([{ name: 'f', mode: 0o2755 }], 'entry');
});

test('nothing stands in it twice, not as a file and a folder either [X3]', async () => {
  await assertRefused([file('a'), file('a')], 'duplicate');
  await assertRefused([file('a'), file('./a')], 'duplicate');
  await assertRefused([file('a/b'), file('a')], 'duplicate');
  await assertRefused([{ name: 'a/', type: 'directory' }, file('a')], 'duplicate');
  await assertRefused(
    [
      { name: 'a/', type: 'directory' },
      { name: 'a', type: 'directory' },
    ],
    'duplicate',
  );
});

test('entries and bytes are counted, so that a bomb ends early [X3]', async () => {
  const many = await tarOf(Array.from({ length: 11 }, (_, index) => file(`f${index}`)));
  await assert.rejects(read(many, { entriesMax: 10 }), { code: 'vendor-ill/bundle-too-large' });
  const bomb = await tarOf([{ name: 'zeros', text: '\0'.repeat(20_000_000) }]);
  for (const [compression, bytes] of [
    ['gzip', gzipSync(bomb)],
    ['zstd', zstdCompressSync(bomb)],
  ] as const) {
    assert.ok(bytes.length < 100_000);
    const reading = read(bytes, { compression, unpackedBytesMax: 1_000_000 });
    await assert.rejects(reading, { code: 'vendor-ill/bundle-too-large' });
  }
});

test('the entries that the install action names must be there and executable', async () => {
  const tar = await tarOf([file('plain'), { name: 'run', text: 'x', mode: 0o755 }, { name: 'd/', type: 'directory' }]);
  await read(tar, { executables: ['run'] });
  for (const path of ['absent', 'plain', 'd']) {
    await assert.rejects(read(tar, { executables: [path] }), { code: 'vendor-ill/bundle-incomplete' });
  }
});

test('packing is deterministic, keeps what matters, and other tars can read it', async () => {
  const source = join(folder, 'source');
  await mkdir(join(source, 'bin'), { recursive: true });
  await mkdir(join(source, 'empty'));
  await writeFile(join(source, 'bin', 'run'), '#!/bin/sh\n');
  await chmod(join(source, 'bin', 'run'), 0o700);
  await writeFile(join(source, 'großer Name'.padEnd(120, 'x')), 'y');
  await symlink('bin/run', join(source, 'run'));
  const target = join(folder, 'packed');
  const reading = { compression: 'gzip', executables: ['bin/run'] } as const;
  assert.deepEqual(await packBundle(source, target, reading), { entries: 5, unpackedBytes: 11 });
  const first = await readFile(target);
  await utimes(join(source, 'bin', 'run'), 1, 1);
  await packBundle(source, target, reading);
  assert.deepEqual(await readFile(target), first);
  assert.match(await runCommand(['tar', '-tvzf', target]), /-rwxr-xr-x 0\/0 +10 1970-01-01 \d\d:\d\d bin\/run/);
});

test('what a bundle may not hold is not packed', async () => {
  const source = join(folder, 'outlaw');
  await mkdir(source);
  await symlink('/etc/passwd', join(source, 'link'));
  await assert.rejects(packBundle(source, join(folder, 'x'), { compression: 'none' }), {
    code: 'vendor-ill/bundle-link',
  });
  await rm(join(source, 'link'));
  await runCommand(['mkfifo', join(source, 'pipe')]);
  await assert.rejects(packBundle(source, join(folder, 'x'), { compression: 'none' }), { code: 'usage/bundle' });
});
