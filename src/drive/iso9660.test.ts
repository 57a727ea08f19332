// The image is judged by xorriso, libarchive, cdrkit and 7-Zip: each must find exactly what was put in.
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { chmod, mkdtemp, rm, utimes } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import fc from 'fast-check';
import {
  brief,
  contentOf,
  contents,
  expected,
  file,
  hostileName,
  inline,
  isJolietName,
  treeOf,
  withoutLinks,
} from '../../test/fakes/drive-trees.ts';
import {
  extractImage,
  type ImageReader,
  listImage,
  type SeenTree,
  writePlainImage,
} from '../../test/fakes/image-readers.ts';
import { digestOf } from '../base/digest.ts';
import { runCommand, tryCommand } from '../base/run-command.ts';
import { DriveError } from './drive-error.ts';
import { buildIso, type IsoEntry, type IsoOptions, SECTOR_BYTES } from './iso9660.ts';

let scratch = '';
before(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'pratique-iso-'));
});
after(async () => {
  await rm(scratch, { recursive: true, force: true });
});

let lastNumber = 0;
function freshPath(): string {
  lastNumber += 1;
  return join(scratch, String(lastNumber));
}

async function writeImage(entries: readonly IsoEntry[], options: IsoOptions = {}): Promise<string> {
  const image = `${freshPath()}.iso`;
  await writePlainImage(image, buildIso(entries, options), contentOf);
  return image;
}

/** What xorriso says of a command, with its complaints. */
async function xorriso(args: readonly string[]): Promise<string> {
  const { stdout, stderr } = await tryCommand(['xorriso', ...args], { env: { ...process.env, LC_ALL: 'C.UTF-8' } });
  return stdout + stderr;
}

async function extract(reader: ImageReader, image: string): Promise<SeenTree> {
  const folder = freshPath();
  try {
    return await extractImage(reader, image, folder);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function refusal(code: string, says: RegExp): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof DriveError, String(error));
    assert.equal(error.code, code);
    assert.match(error.message, says);
    return true;
  };
}

/** A seed that is said, so that a failure can be repeated: PRATIQUE_SEED=… node --test. */
function seedOf(t: TestContext): number {
  const seed = Number(process.env.PRATIQUE_SEED ?? randomInt(2 ** 31));
  t.diagnostic(`seed ${seed}`);
  return seed;
}

const WELL_FORMED_TREE: IsoEntry[] = [
  inline('/manifest.json', '{"format":"x"}'),
  file('/packages/01-jq_1.6-2.1+deb12u2_amd64.deb', 'a'.repeat(5000), { mode: 0o640, mtimeMs: 1_700_000_000_000 }),
  file('/packages/02-Größe 大きい 🚢.tar.gz', 'b'.repeat(2048)),
  file('/packages/03-empty', ''),
  // libarchive takes files that share their bytes for hard links, so this one has the same mode and time.
  file('/packages/04-same-as-01', 'a'.repeat(5000), { mode: 0o640, mtimeMs: 1_700_000_000_000 }),
  { kind: 'folder', path: '/empty', mode: 0o750, mtimeMs: 1_600_000_000_000 },
  { kind: 'symlink', path: '/latest', target: 'packages/02-Größe 大きい 🚢.tar.gz' },
  { kind: 'symlink', path: '/packages/up', target: '.././empty' },
  file(`/${'deep/'.repeat(30)}bottom`, 'far down'),
  file(`/${'n'.repeat(103)}`, 'longest Joliet name'),
];

describe('what an image carries [A4]', () => {
  for (const reader of ['bsdtar', 'xorriso'] as const) {
    test(`${reader} finds every file, mode, time and symlink by Rock Ridge`, async () => {
      const image = await writeImage(WELL_FORMED_TREE);
      assert.deepEqual(await extract(reader, image), expected(WELL_FORMED_TREE));
    });
  }
  for (const reader of ['bsdtar-joliet', 'xorriso-joliet', '7z'] as const) {
    test(`${reader} finds every file by Joliet, and no symlink`, async () => {
      const image = await writeImage(WELL_FORMED_TREE);
      const found = contents(await extract(reader, image));
      assert.deepEqual(found, contents(withoutLinks(expected(WELL_FORMED_TREE))));
    });
  }

  test('isoinfo lists the same paths by Rock Ridge and by Joliet, and unique short names without either', async () => {
    const entries = ['/a long name.txt', '/a long name too.txt', '/A LONG NAME.TXT'].map((path) => file(path, path));
    const image = await writeImage(entries);
    const paths = entries.map((entry) => entry.path).sort();
    assert.deepEqual((await listImage('rock-ridge', image)).sort(), paths);
    assert.deepEqual(
      (await listImage('joliet', image)).sort(),
      paths.map((path) => `${path};1`),
    );
    const plain = await listImage('plain', image);
    assert.equal(new Set(plain).size, 3);
    for (const path of plain) assert.match(path, /^\/[A-Z0-9_]{1,8}\.[A-Z0-9_]{0,3};1$/);
  });

  test('the volume says its label and size, and every sector is readable', async () => {
    const image = await writeImage(WELL_FORMED_TREE, { label: 'CIDATA' });
    const said = await runCommand(['isoinfo', '-d', '-i', image]);
    assert.match(said, /^Volume id: CIDATA$/m);
    assert.match(said, /^Joliet with UCS level 3 found$/m);
    assert.match(said, /^Rock Ridge signatures version 1 found$/m);
    assert.match(said, new RegExp(`^Volume size is: ${buildIso(WELL_FORMED_TREE).totalSectors}$`, 'm'));
    assert.match(await runCommand(['blkid', '-p', image]), /LABEL="CIDATA".*TYPE="iso9660"/);
  });

  test('xorriso reads every block, and finds no difference from the same tree in a folder but one that was made', async () => {
    const image = await writeImage(WELL_FORMED_TREE);
    const sectors = buildIso(WELL_FORMED_TREE).totalSectors;
    const checked = await xorriso(['-indev', image, '-check_media', 'use=indev', '--']);
    assert.deepEqual(checked.match(/^Media region : .*/gm), [
      `Media region : ${'0'.padStart(10)} , ${String(sectors).padStart(10)} , + good`,
    ]);
    const folder = `${image}.d`;
    await extractImage('bsdtar', image, folder);
    // Extractors leave the folder itself as it was.
    await utimes(folder, 0, 0);
    // Extracting cannot set the time of the inode's own change, and an image has none of its own.
    const differences = async () => {
      const said = await xorriso(['-indev', image, '-compare_r', folder, '/', '--']);
      return said.split('\n').filter((line) => / \(DISK|ISO\) : /.test(line) && !line.includes(': st_ctime :'));
    };
    assert.deepEqual(await differences(), []);
    await chmod(join(folder, 'packages/03-empty'), 0o400);
    const [found, ...more] = await differences();
    assert.match(String(found), /packages\/03-empty.*st_mode/);
    assert.deepEqual(more, []);
  });

  test('names of 253 bytes with symlinks of 1,024 bytes survive, over continuation areas', async () => {
    const long = 'ü'.repeat(126);
    const folders = `${'x'.repeat(250)}/${'y'.repeat(253)}/${'z'.repeat(249)}`;
    const entries: IsoEntry[] = [
      file(`/${folders}/${long}a`, 'content'),
      { kind: 'symlink', path: `/${'l'.repeat(253)}`, target: `${folders}/${long}a` },
      { kind: 'symlink', path: '/dots', target: `${'./'.repeat(500)}${'x'.repeat(16)}` },
      file(`/${'x'.repeat(16)}`, 'end of the dots'),
      ...Array.from({ length: 60 }, (_, index) => file(`/${String(index).padStart(253, 'n')}`, String(index))),
    ];
    const image = await writeImage(entries, { joliet: false });
    assert.deepEqual(await extract('xorriso', image), expected(entries));
    // libarchive forgets the slash where a target of over 250 bytes goes on in another entry; Linux and xorriso do not.
    assert.deepEqual(withoutLinks(await extract('bsdtar', image)), withoutLinks(expected(entries)));
  });

  test('a folder counts its subfolders as links, which is how find(1) knows where to look', async () => {
    const entries = ['/a/b/x', '/a/c/x', '/a/y'].map((path) => file(path, path));
    const said = await runCommand(['isoinfo', '-R', '-l', '-i', await writeImage(entries)]);
    assert.match(said, /Directory listing of \/a\/\ndr-xr-xr-x +4 .* \. \n/);
  });

  test('even the smallest image is believed in by libarchive', async () => {
    assert.deepEqual(await extract('bsdtar', await writeImage([inline('/a', '')], { joliet: false })), {
      '/a': { kind: 'file', content: '', mode: 0o444, mtimeS: 0 },
    });
  });

  test('an empty folder as the last thing of an image is read by xorriso, however long the image is', async () => {
    for (let depth = 1; depth <= 20; depth += 1) {
      const entries: IsoEntry[] = [{ kind: 'folder', path: '/a'.repeat(depth) }];
      assert.deepEqual(
        contents(await extract('xorriso-joliet', await writeImage(entries))),
        contents(expected(entries)),
      );
    }
  });

  test('three thousand files in one folder and in many are all found', async () => {
    const entries = Array.from({ length: 3000 }, (_, index) => {
      const folder = index % 2 === 0 ? '/flat' : `/many/${index % 97}/${index % 7}`;
      return file(`${folder}/package-with-the-same-beginning-${index}.deb`, `content ${index}`);
    });
    const image = await writeImage(entries);
    assert.deepEqual(await extract('bsdtar', image), expected(entries));
    assert.deepEqual(contents(await extract('xorriso-joliet', image)), contents(expected(entries)));
  });

  test('records stand in the order of ECMA-119, 9.3: name, then extension, the shorter one first', async () => {
    const paths = ['/A.A1', '/A.A', '/A', '/A1.A', '/A1/x', '/A0', '/_.B', '/B.C'];
    const image = await writeImage(
      paths.map((path) => file(path, path)),
      { joliet: false },
    );
    const listed = await runCommand(['isoinfo', '-l', '-i', image]);
    const root = listed.slice(0, listed.indexOf('Directory listing of /A'));
    const names = [...root.matchAll(/ ([A-Z0-9_]+(?:\.[A-Z0-9_]*;1)?) *$/gm)].map(([, name]) => name);
    assert.deepEqual(names, ['A.;1', 'A.A;1', 'A.A1;1', 'A0.;1', 'A1', 'A1.A;1', 'B.C;1', '_.B;1']);
  });

  test('a file and a folder do not share a name when a reader drops the dot of an empty extension', async () => {
    const image = await writeImage([file('/same name', 'x'), file('/same name too/x', 'y')], { joliet: false });
    const names = (await listImage('plain', image)).map((path) => path.replace(/\.?;1$/, ''));
    assert.equal(new Set(names).size, 3, names.join(' '));
  });

  test('symlinks to symlinks to symlinks are resolved once each', () => {
    const entries: IsoEntry[] = [{ kind: 'folder', path: '/0' }];
    // Followed anew each time, the last of them would take a million steps, and with 40 levels a host would hang.

    for (let level = 1; level <= 20; level += 1) {
      entries.push({ kind: 'symlink', path: `/${level}`, target: `${level - 1}/../${level - 1}` });
    }
    assert.throws(() => buildIso(entries), refusal('usage/drive-link', /too many symlinks/));
    const many = Array.from({ length: 50_000 }, (_, index): IsoEntry => {
      const target = index % 30 === 0 ? `${'./'.repeat(500)}top` : `link-${index - 1}`;
      return { kind: 'symlink', path: `/link-${index}`, target };
    });
    assert.ok(buildIso([{ kind: 'folder', path: '/top' }, ...many]).totalSectors > 0);
  });

  test('equal entries give equal bytes in whatever order they come', () => {
    const one = buildIso(WELL_FORMED_TREE);
    const other = buildIso(WELL_FORMED_TREE.toReversed());
    assert.deepEqual(digestOf(one.metadata), digestOf(other.metadata));
    assert.deepEqual(one.extents, other.extents);
  });

  test('the extents follow the metadata without a gap, smallest first, each blob once', () => {
    const { metadata, extents, totalSectors } = buildIso(WELL_FORMED_TREE);
    let sector = metadata.length / SECTOR_BYTES;
    for (const { startSector, lengthBytes } of extents) {
      assert.equal(startSector, sector);
      sector += Math.ceil(lengthBytes / SECTOR_BYTES);
    }
    assert.equal(totalSectors, sector);
    const sizes = extents.map((extent) => extent.lengthBytes);
    assert.deepEqual(
      sizes,
      sizes.toSorted((a, b) => a - b),
    );
    assert.equal(new Set(extents.map((extent) => extent.source.digest)).size, extents.length);
  });
});

describe('what an image cannot carry is refused, never cut [A4]', () => {
  const x = (path: string): IsoEntry => inline(path, 'x');
  const cases: readonly [string, readonly IsoEntry[], string, RegExp][] = [
    ['a relative path', [x('a')], 'usage/drive-path', /does not start with a slash/],
    ['an empty path', [x('')], 'usage/drive-path', /does not start with a slash/],
    ['a folder without a path', [{ kind: 'folder', path: '' }], 'usage/drive-path', /does not start with a slash/],
    ['a path of ten thousand characters', [x(`/${'ü'.repeat(10_000)}`)], 'usage/drive-path', /over 4095 bytes/],
    ['the root as a file', [x('/')], 'usage/drive-path', /empty component/],
    ['an empty component', [x('/a//b')], 'usage/drive-path', /empty component/],
    ['a slash at the end', [x('/a/')], 'usage/drive-path', /empty component/],
    ['a climbing path', [x('/a/../b')], 'usage/drive-path', /component "\.\."/],
    ['a dot component', [x('/./b')], 'usage/drive-path', /component "\."/],
    ['a NUL', [x('/a\0b')], 'usage/drive-path', /NUL/],
    ['half a surrogate pair', [x('/a\ud800')], 'usage/drive-path', /not valid Unicode/],
    ['a name of 254 bytes, which Linux would cut', [x(`/${'ü'.repeat(127)}`)], 'usage/drive-path', /over 253 bytes/],
    ['a path over PATH_MAX', [x(`/${'a/'.repeat(2048)}b`)], 'usage/drive-path', /over 4095 bytes/],
    ['two files at one path', [x('/a'), x('/a')], 'usage/drive-conflict', /want the path "\/a"/],
    ['a file that is also a folder', [x('/a'), x('/a/b')], 'usage/drive-conflict', /want the path "\/a"/],
    ['a folder that is also a file', [x('/a/b'), x('/a')], 'usage/drive-conflict', /want the path "\/a"/],
    [
      'one folder twice',
      [
        { kind: 'folder', path: '/f' },
        { kind: 'folder', path: '/f' },
      ],
      'usage/drive-conflict',
      /\/f/,
    ],
    ['a size that is not the content', [{ ...x('/a'), sizeBytes: 2 } as IsoEntry], 'usage/drive-entry', /brings 1/],
    ['a negative size', [{ ...file('/a', 'x'), sizeBytes: -1 } as IsoEntry], 'usage/drive-entry', /-1 bytes/],
    ['a size of no number', [{ ...file('/a', 'x'), sizeBytes: Number.NaN } as IsoEntry], 'usage/drive-entry', /NaN/],
    [
      'a file of 64 sections and a byte, which Linux might cut',
      [{ ...file('/a', 'x'), sizeBytes: 64 * 0xffff_f800 + 1 } as IsoEntry],
      'usage/drive-entry',
      /that Linux reads/,
    ],
    ['a mode with a file type in it', [{ ...x('/a'), mode: 0o100644 } as IsoEntry], 'usage/drive-entry', /mode/],
    ['a time before 1970', [{ ...x('/a'), mtimeMs: -1 }], 'usage/drive-entry', /1970/],
    ['a time that is no number', [{ ...x('/a'), mtimeMs: Number.NaN }], 'usage/drive-entry', /1970/],
    [
      'a blob with two sizes',
      [file('/a', 'x'), { ...file('/b', 'x'), sizeBytes: 3 } as IsoEntry],
      'usage/drive-entry',
      /two different/,
    ],
    ['a Joliet name of 104 units', [x(`/${'n'.repeat(104)}`)], 'usage/drive-joliet', /more than 103/],
    ['a Joliet name with a colon', [x('/a:b')], 'usage/drive-joliet', /one of the characters/],
    ['a Joliet name that ends with a dot', [x('/a.')], 'usage/drive-joliet', /ends with a dot/],
  ];
  for (const [what, entries, code, says] of cases) {
    test(what, () => {
      assert.throws(() => buildIso(entries), refusal(code, says));
    });
  }

  const links: readonly [string, string, RegExp][] = [
    ['an absolute symlink', '/etc/passwd', /not a relative path/],
    ['a climbing symlink', '../../x', /climbs out/],
    ['a symlink that climbs through another one', 'loop-free/../../..', /climbs out/],
    ['a dangling symlink', 'nowhere', /not on the drive/],
    ['a symlink to itself', 'link', /too many symlinks/],
    ['a symlink through a file', 'file/x', /as a folder/],
    ['an empty symlink', '', /not a relative path/],
    ['a symlink over 1,024 bytes', `${'./'.repeat(512)}f`, /over 1024 bytes/],
  ];
  for (const [what, target, says] of links) {
    test(what, () => {
      const entries: IsoEntry[] = [
        inline('/d/file', 'x'),
        // Lexically `loop-free/..` is /d; really it is the parent of the root's folder /top.
        { kind: 'symlink', path: '/d/loop-free', target: '../top' },
        { kind: 'folder', path: '/top' },
        { kind: 'symlink', path: '/d/link', target },
      ];
      assert.throws(() => buildIso(entries), refusal('usage/drive-link', says));
    });
  }

  for (const label of ['', 'lower', 'WITH SPACE', 'SEVENTEEN_LETTERS', 'A\nB']) {
    test(`the label ${JSON.stringify(label)}`, () => {
      assert.throws(() => buildIso([], { label }), refusal('usage/drive-label', /volume label/));
    });
  }

  for (const createdAtMs of [-1, Number.NaN, Number.POSITIVE_INFINITY, Date.UTC(2156, 0)]) {
    test(`a volume created at ${createdAtMs}`, () => {
      assert.throws(() => buildIso([], { createdAtMs }), refusal('usage/drive-time', /1970 and 2155/));
    });
  }

  test('more entries than a drive can have, before anything is made of them', () => {
    const entries = new Array<IsoEntry>(250_001).fill(x('/a'));
    assert.throws(() => buildIso(entries), refusal('usage/drive-files', /more than 250000/));
  });

  test('more folders than path tables can count', () => {
    const entries = Array.from({ length: 65_535 }, (_, index): IsoEntry => ({ kind: 'folder', path: `/${index}` }));
    assert.throws(() => buildIso(entries), refusal('usage/drive-folders', /more than 65535/));
    assert.ok(buildIso(entries.slice(1)).totalSectors > 65_535);
  });

  test('a volume of more sectors than ISO 9660 can count', () => {
    const entries = Array.from({ length: 33 }, (_, index): IsoEntry => {
      return {
        path: `/${index}`,
        sizeBytes: 2 ** 38 - 2 ** 17,
        source: { kind: 'blob', digest: digestOf(String(index)) },
      };
    });
    assert.throws(() => buildIso(entries), refusal('usage/drive-size', /more than ISO 9660 can count/));
  });
});

const IS_FULL = process.env.PRATIQUE_TEST_FULL === '1';

describe('random trees, compared file by file [A4]', () => {
  test('hostile names come out of bsdtar and xorriso as they went in', async (t) => {
    await fc.assert(
      fc.asyncProperty(treeOf(hostileName), async (entries) => {
        const image = await writeImage(entries, { joliet: false });
        const wanted = brief(expected(entries));
        assert.deepEqual(brief(await extract('bsdtar', image)), wanted);
        assert.deepEqual(brief(await extract('xorriso', image)), wanted);
        await rm(image);
      }),
      { seed: seedOf(t), numRuns: IS_FULL ? 400 : 15, endOnFailure: !IS_FULL },
    );
  });

  test('names that Joliet allows come out of the Joliet tree as they went in', async (t) => {
    await fc.assert(
      fc.asyncProperty(treeOf(hostileName.filter(isJolietName)), async (entries) => {
        const image = await writeImage(entries);
        const shown = contents(withoutLinks(expected(entries)));
        assert.deepEqual(contents(await extract('xorriso-joliet', image)), shown);
        // Not bsdtar: it composes accents of Joliet names (to NFC), so that other names come out.
        assert.deepEqual(brief(await extract('bsdtar', image)), brief(expected(entries)));
        await rm(image);
      }),
      { seed: seedOf(t), numRuns: IS_FULL ? 400 : 15, endOnFailure: !IS_FULL },
    );
  });

  test('any text as path, target or label either builds or is refused with a code', (t) => {
    const text = fc.oneof(
      fc.string({ unit: 'binary', maxLength: 30 }),
      fc
        .array(fc.constantFrom('/', '..', '.', 'a', 'b', '\0', '\ud800', 'x'.repeat(200)), { maxLength: 30 })
        .map((p) => p.join('')),
    );
    const entry = fc.oneof(
      text.map((path): IsoEntry => inline(path, 'x')),
      text.map((path): IsoEntry => ({ kind: 'folder', path })),
      fc.tuple(text, text).map(([path, target]): IsoEntry => ({ kind: 'symlink', path, target })),
    );
    const any = fc.tuple(fc.array(entry, { maxLength: 8 }), fc.option(text, { nil: undefined }), fc.boolean());
    fc.assert(
      fc.property(any, ([entries, label, joliet]) => {
        try {
          const iso = buildIso(entries, { ...(label === undefined ? {} : { label }), joliet });
          assert.equal(iso.metadata.length % SECTOR_BYTES, 0);
        } catch (error) {
          assert.ok(error instanceof DriveError, String(error));
          assert.match(error.code, /^usage\/drive-/);
        }
      }),
      { seed: seedOf(t), numRuns: IS_FULL ? 100_000 : 3_000 },
    );
  });
});
