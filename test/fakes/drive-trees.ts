// Trees to build images from, what a reader has to find in them, and random ones with names that have broken programs.
import fc from 'fast-check';
import { digestOf } from '../../src/base/digest.ts';
import type { IsoEntry } from '../../src/drive/iso9660.ts';
import type { Seen, SeenTree } from './image-readers.ts';

/** Blobs by digest, for images that are written out. */
const blobs = new Map<string, Buffer>();

/** The bytes of a blob that `file` made. */
export function contentOf(digest: string): Buffer {
  return blobs.get(digest) ?? Buffer.alloc(0);
}

export function file(path: string, content: string | Buffer, rest: { mode?: number; mtimeMs?: number } = {}): IsoEntry {
  const bytes = Buffer.from(content);
  const digest = digestOf(bytes);
  blobs.set(digest, bytes);
  return { path, sizeBytes: bytes.length, source: { kind: 'blob', digest }, ...rest };
}

export function inline(path: string, content: string): IsoEntry {
  const bytes = Buffer.from(content);
  return { path, sizeBytes: bytes.length, source: { kind: 'inline', bytes } };
}

/** What a reader of the image has to find. */
export function expected(entries: readonly IsoEntry[]): SeenTree {
  const seen: Record<string, Seen> = {};
  for (const entry of entries) {
    const parts = entry.path.split('/');
    for (let depth = 2; depth < parts.length; depth += 1) {
      seen[parts.slice(0, depth).join('/')] ??= { kind: 'folder', mode: 0o555, mtimeS: 0 };
    }
    seen[entry.path] = expectedNode(entry);
  }
  return seen;
}

function expectedNode(entry: IsoEntry): Seen {
  if (entry.kind === 'symlink') return { kind: 'symlink', target: entry.target };
  const mtimeS = Math.floor((entry.mtimeMs ?? 0) / 1000);
  if (entry.kind === 'folder') return { kind: 'folder', mode: entry.mode ?? 0o555, mtimeS };
  const bytes = entry.source.kind === 'inline' ? Buffer.from(entry.source.bytes) : blobs.get(entry.source.digest);
  return { kind: 'file', content: bytes?.toString('latin1') ?? 'no such blob', mode: entry.mode ?? 0o444, mtimeS };
}

/** The tree with a digest in the place of each long content, so that a difference can be read. */
export function brief(tree: SeenTree): SeenTree {
  const shorten = (content: string) =>
    content.length <= 64 ? content : `${content.length} bytes, ${digestOf(Buffer.from(content, 'latin1'))}`;
  const nodes = Object.entries(tree).map(([path, seen]) => [
    path,
    seen.kind === 'file' ? { ...seen, content: shorten(seen.content) } : seen,
  ]);
  return Object.fromEntries(nodes);
}

/** Names and contents only: what Joliet carries, and what every extractor restores. */
export function contents(tree: SeenTree): Record<string, string> {
  const nodes = Object.entries(brief(tree));
  return Object.fromEntries(nodes.map(([path, seen]) => [path, seen.kind === 'file' ? seen.content : seen.kind]));
}

export function withoutLinks(tree: SeenTree): SeenTree {
  return Object.fromEntries(Object.entries(tree).filter(([, seen]) => seen.kind !== 'symlink'));
}

/** Names that POSIX allows and that have broken programs before. */
export const hostileName: fc.Arbitrary<string> = fc
  .oneof(
    fc.string({ unit: 'grapheme', minLength: 1, maxLength: 12 }),
    fc.string({ unit: 'binary', minLength: 1, maxLength: 12 }),
    fc.stringMatching(/^[a-zA-Z0-9._+~-]{1,253}$/),
    fc.constantFrom(
      '-rf',
      '...',
      ' ',
      'a"b',
      "a'b",
      'a\nRW 1 FLAT "x" 0',
      '\\',
      '*',
      'nul',
      ';1',
      'a;1',
      'a.',
      '\u202e',
      'é',
      'e\u0301',
    ),
    fc.string({ unit: fc.constantFrom('ß', '大', '🚢', 'a'), minLength: 60, maxLength: 63 }),
  )
  .filter((name) => isPosixName(name));

function isPosixName(name: string): boolean {
  if (name === '.' || name === '..' || /[/\0]/.test(name) || !name.isWellFormed()) return false;
  return Buffer.byteLength(name) <= 253;
}

export function isJolietName(name: string): boolean {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for.
  return name.length <= 103 && !/[\u0000-\u001f*:;?\\]/.test(name) && !name.endsWith('.');
}

/** A tree without conflicts, with symlinks to some of its files and folders: the first of two entries that clash stays. */
export function treeOf(name: fc.Arbitrary<string>): fc.Arbitrary<IsoEntry[]> {
  const path = fc.array(name, { minLength: 1, maxLength: 5 }).map((parts) => `/${parts.join('/')}`);
  const content = fc.oneof(
    fc.string({ maxLength: 40 }),
    fc.nat(70_000).map((size) => 'z'.repeat(size)),
  );
  const mtimeS = fc.nat(MTIME_S_MAX);
  const entry = fc.record({ path, content, mode: fc.constantFrom(0o444, 0o400, 0o755), mtimeS });
  const folder = fc.record({ path, mode: fc.constantFrom(0o555, 0o700), mtimeS });
  const link = fc.record({ path, to: fc.nat(), mtimeS });
  const parts = fc.record({
    files: fc.array(entry, { maxLength: 25 }),
    folders: fc.array(folder, { maxLength: 4 }),
    links: fc.array(link, { maxLength: 6 }),
  });
  return parts.map(({ files, folders, links }) => {
    const tree = makeTaker();
    for (const { path: at, content: text, mode, mtimeS: second } of files) {
      // No two files share their bytes, or libarchive would take them for hard links.
      tree.take(at, () => file(at, text === '' ? '' : `${at} ${text}`, { mode, mtimeMs: second * 1000 }));
    }
    for (const { path: at, mode, mtimeS: second } of folders) {
      tree.take(at, () => ({ kind: 'folder', path: at, mode, mtimeMs: second * 1000 }));
    }
    const targets = tree.entries().map((kept) => kept.path);
    for (const { path: at, to, mtimeS: second } of links) {
      const wanted = targets[to % Math.max(1, targets.length)];
      if (wanted === undefined) continue;
      const target = `${'../'.repeat(at.split('/').length - 2)}${wanted.slice(1)}`;
      // libarchive forgets the slash where a target of over 250 bytes goes on in another entry.
      if (Buffer.byteLength(target) > 200) continue;
      tree.take(at, () => ({ kind: 'symlink', path: at, target, mtimeMs: second * 1000 }));
    }
    return tree.entries();
  });
}

/** The last second that isofs of Linux before 6.16 reads as it was written: it counts in 32 bits. */
const MTIME_S_MAX = 2 ** 31 - 1;

/** Takes an entry unless its path is taken, or leads through something that is no folder. */
function makeTaker() {
  const leaves = new Set<string>();
  const folders = new Set<string>();
  const kept: IsoEntry[] = [];
  return {
    entries: () => kept,
    take: (path: string, make: () => IsoEntry) => {
      const parts = path.split('/').slice(1, -1);
      const parents = parts.map((_, index) => `/${parts.slice(0, index + 1).join('/')}`);
      if (leaves.has(path) || folders.has(path) || parents.some((parent) => leaves.has(parent))) return;
      const entry = make();
      kept.push(entry);
      for (const parent of parents) folders.add(parent);
      (entry.kind === 'folder' ? folders : leaves).add(path);
    },
  };
}
