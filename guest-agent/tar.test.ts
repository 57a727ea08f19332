// Tars as tar(1) makes them are read; tars that reach out of their folder are refused, whatever trick they use.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { linkSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { makeTar, paxPart, type TarPart } from '../test/fakes/guest-agent/fake-bundle.ts';
import { AgentError, type OpenFile } from './platform/platform.ts';
import { type TarEntry, TarReader } from './tar.ts';

/** An open file in memory that gives its bytes in pieces of the given size. */
function memoryFile(bytes: Uint8Array, pieceBytes: number): OpenFile {
  let position = 0;
  const unused = (): never => assert.fail('a tar is only read');
  return {
    descriptor: -1,
    read: (buffer) => {
      const piece = bytes.subarray(position, position + Math.min(pieceBytes, buffer.length));
      buffer.set(piece);
      position += piece.length;
      return piece.length;
    },
    write: unused,
    seek: unused,
    hashInto: unused,
    sync: unused,
    setMode: unused,
    setOwner: unused,
    close: () => {},
  };
}

type Read = { readonly entry: TarEntry; readonly content: string };

function readTar(bytes: Uint8Array, pieceBytes = 65_536): readonly Read[] {
  const decoder = new TextDecoder();
  const reader = new TarReader(memoryFile(bytes, pieceBytes), (text) => decoder.decode(text));
  const found: Read[] = [];
  for (let entry = reader.next(); entry !== null; entry = reader.next()) {
    let content = '';
    for (let piece = reader.readContent(); piece !== null; piece = reader.readContent()) {
      content += Buffer.from(piece).toString('latin1');
    }
    found.push({ entry, content });
  }
  return found;
}

function refused(parts: readonly TarPart[], why: RegExp): void {
  assert.throws(
    () => readTar(makeTar(parts)),
    (error) => error instanceof AgentError && error.word === 'bad-bundle' && why.test(error.message),
  );
}

for (const format of ['pax', 'gnu', 'ustar'] as const) {
  test(`a tar in the format ${format} of tar(1) is read with names, modes, links and content`, () => {
    const folder = mkdtempSync(join(tmpdir(), 'pratique-tar-'));
    const long = format === 'ustar' ? `${'d'.repeat(90)}/${'f'.repeat(90)}` : `${'d'.repeat(120)}/${'f'.repeat(130)}ü`;
    mkdirSync(join(folder, long.slice(0, long.indexOf('/'))));
    writeFileSync(join(folder, long), 'long');
    mkdirSync(join(folder, 'bin'));
    writeFileSync(join(folder, 'bin/run'), 'x'.repeat(70_000), { mode: 0o750 });
    symlinkSync('../bin/run', join(folder, 'bin/link'));
    linkSync(join(folder, 'bin/run'), join(folder, 'bin/same'));
    const bytes = execFileSync('tar', ['-C', folder, `--format=${format}`, '--sort=name', '-c', '.'], {
      maxBuffer: 1 << 24,
    });
    rmSync(folder, { recursive: true });
    const found = readTar(bytes, 1000);
    const at = (path: string) => found.find(({ entry }) => entry.path === path);
    assert.equal(at(long)?.content, 'long');
    assert.deepEqual(at('bin/run')?.entry, { kind: 'file', path: 'bin/run', mode: 0o750, sizeBytes: 70_000 });
    assert.equal(at('bin/run')?.content, 'x'.repeat(70_000));
    assert.deepEqual(at('bin/link')?.entry, { kind: 'symlink', path: 'bin/link', target: '../bin/run' });
    assert.deepEqual(at('bin/same')?.entry, { kind: 'hardlink', path: 'bin/same', target: 'bin/run' });
    assert.equal(at('bin')?.entry.kind, 'folder');
    assert.equal(found.length, 6);
  });
}

test('set-uid bits do not pass', () => {
  const [first] = readTar(makeTar([{ name: 'x', mode: 0o6755 }]));
  assert.deepEqual(first?.entry, { kind: 'file', path: 'x', mode: 0o755, sizeBytes: 0 });
});

for (const [what, parts, why] of [
  ['an absolute path', [{ name: '/etc/passwd' }], /absolute/],
  ['a path that climbs', [{ name: 'a/../../etc' }], /climbs/],
  ['a path that is only ..', [{ name: '..', type: '5' }], /climbs/],
  ['a climbing path in a pax header', [paxPart({ path: '../evil' }), { name: 'good' }], /climbs/],
  ['an absolute path in a GNU header', [{ name: 'L', type: 'L', content: '/evil\0' }, { name: 'good' }], /absolute/],
  ['a link to an absolute path', [{ name: 'a', type: '2', target: '/etc' }], /links to/],
  ['a link out of the bundle', [{ name: 'a/b', type: '2', target: '../../etc' }], /links out/],
  ['a link out by a pax header', [paxPart({ linkpath: '../x' }), { name: 'a', type: '2', target: 'b' }], /links out/],
  ['a link that goes down and up', [{ name: 'a', type: '2', target: 'b/../../c' }], /up and down/],
  ['a link to nothing', [{ name: 'a', type: '2', target: '' }], /links to nothing/],
  ['a file below a link', [{ name: 'a', type: '2', target: 'b' }, { name: 'a/x' }], /no folder/],
  ['a file below a file', [{ name: 'a' }, { name: 'a/x' }], /no folder/],
  [
    'a hard link to what is not in the bundle',
    [{ name: 'a', type: '1', target: 'etc/shadow' }],
    /no file of the bundle/,
  ],
  [
    'a hard link to a link',
    [
      { name: 's', type: '2', target: 'x' },
      { name: 'h', type: '1', target: 's' },
    ],
    /no file/,
  ],
  ['a hard link that climbs', [{ name: 'h', type: '1', target: '../x' }], /climbs/],
  ['a character device', [{ name: 'null', type: '3' }], /device/],
  ['a block device', [{ name: 'sda', type: '4' }], /device/],
  ['a pipe', [{ name: 'p', type: '6' }], /device/],
  ['a type nobody knows', [{ name: 'p', type: 'Z' }], /device/],
  ['a file twice', [{ name: 'a' }, { name: './a' }], /twice/],
  ['a file where a folder was', [{ name: 'a/b' }, { name: 'a' }], /twice/],
  ['a link over a file', [{ name: 'a' }, { name: 'a', type: '2', target: 'b' }], /twice/],
  ['a control character in a name', [{ name: 'a\u001b[31m' }], /characters/],
  ['a name that is not UTF-8', [paxPart({ path: 'x' }), { name: 'x' }, { name: 'a\ufffd' }], /characters/],
  ['a wrong checksum', [{ name: 'a', isSpoiled: true }], /checksum/],
  ['a size that is no number', [{ name: 'a', sizeField: '99999999999' }], /number/],
  [
    'a size beyond every limit',
    [
      { name: 'a', sizeField: '77777777777' },
      { name: 'b', sizeField: '77777777777' },
    ],
    /ends in|unpacks/,
  ],
  ['a pax size beyond every limit', [paxPart({ size: '999999999999999' }), { name: 'a' }], /unpacks/],
  ['a pax size that is no number', [paxPart({ size: '-1' }), { name: 'a' }], /impossible/],
  ['a sparse file', [paxPart({ 'GNU.sparse.major': '1' }), { name: 'a' }], /sparse/],
  ['a malformed pax header', [{ name: 'x', type: 'x', content: '99 path=a\n' }, { name: 'a' }], /malformed/],
  ['an endless extended header', [{ name: 'x', type: 'x', content: 'x'.repeat(70_000) }, { name: 'a' }], /too long/],
  ['extended headers without end', Array.from({ length: 9 }, () => paxPart({ path: 'a' })), /too many/],
  ['too long a name', [paxPart({ path: 'a'.repeat(300) }), { name: 'a' }], /too long/],
] as const satisfies readonly (readonly [string, readonly TarPart[], RegExp])[]) {
  test(`a bundle with ${what} is refused`, () => refused(parts, why));
}

test('a tar that ends in the middle is refused', () => {
  const tar = makeTar([{ name: 'a', content: 'x'.repeat(2000) }]);
  for (const size of [100, 600, 2000]) assert.throws(() => readTar(tar.subarray(0, size)), /ends in the middle/);
});

test('whatever bytes come, the reader ends, and no entry leaves its folder', () => {
  const tar = makeTar([
    paxPart({ path: 'some/long/name' }),
    { name: 'a', content: 'content' },
    { name: 'l', type: '2', target: 'a' },
    { name: 'h', type: '1', target: 'some/long/name' },
  ]);
  let read = 0;
  fc.assert(
    fc.property(
      fc.array(fc.record({ at: fc.nat(tar.length - 1), byte: fc.nat(255) }), { maxLength: 6 }),
      fc.integer({ min: 1, max: 2000 }),
      (changes, pieceBytes) => {
        const bytes = Buffer.from(tar);
        for (const { at, byte } of changes) bytes[at] = byte;
        try {
          for (const { entry } of readTar(bytes, pieceBytes)) {
            read += 1;
            assert.ok(!entry.path.startsWith('/') && !entry.path.split('/').includes('..'));
          }
        } catch (error) {
          assert.ok(error instanceof AgentError, String(error));
        }
      },
    ),
    { numRuns: 500 },
  );
  assert.ok(read > 100, 'some changes leave a readable tar');
});
