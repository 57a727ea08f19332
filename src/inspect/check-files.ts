// Looks on a disk for the files that installed updates have brought: which are not there, and which hold something else. Bounded:
// all are looked for, and as many are read as there are bytes for, in an order that no guest can foresee.
import { createHash, randomInt } from 'node:crypto';
import {
  INSPECT_NAMES_TOLD_MAX,
  INSPECT_TEXT_BYTES_MAX,
  VERIFY_FILE_BYTES_MAX,
  VERIFY_FILES_MAX,
  VERIFY_PART_BYTES_MAX,
  VERIFY_READ_BYTES_MAX,
} from '../base/limits.ts';
import { counted, printable } from '../base/printable.ts';
import type { ExpectedFile, ExpectedItem } from './expected-files.ts';
import type { ExtFiles, FoundFile } from './ext-files.ts';

/** What came of looking for files. */
export type FilesFinding = {
  /** Files that were read and hold what they should. */
  readonly matching: number;
  /** Files that are there and were not read: too large, too many, or named in a way that is not asked for. */
  readonly unread: number;
  /** Files that are missing or hold something else, in all, and the first of them in words. */
  readonly wrong: number;
  readonly first: readonly string[];
};

/** Names asked for in one go: each answer of debugfs about a file has a few hundred bytes. */
const STAT_AT_ONCE = 500;
/** Where minimal systems have dpkg leave out what nobody needs to run a program (dpkg(1), --path-exclude). */
const MAY_BE_LEFT_OUT =
  /^\/usr\/share\/(?:doc|doc-base|man|info|locale|groff|help|gnome\/help|lintian|linda|bug|omf)\//;
const DIVERSIONS_PATH = '/var/lib/dpkg/diversions';

type Wanted = ExpectedFile & {
  readonly item: string;
  /** Its path in the package, where dpkg has put it elsewhere. */
  readonly named: string;
};
type Found = { readonly wanted: Wanted; readonly file: FoundFile };

/** Compares the files of a system with what is expected. Throws InspectError when the disk cannot be read. */
export async function checkFiles(files: ExtFiles, expected: readonly ExpectedItem[]): Promise<FilesFinding> {
  const diverted = await readDiversions(files);
  const all = expected.flatMap(({ item, files: own }) => own.map((file) => ({ ...file, item })));
  const wanted = all.slice(0, VERIFY_FILES_MAX).map((file) => {
    // The list of diversions is the guest's: a name that is not asked for is no reason to believe it.
    const elsewhere = diverted.get(file.path);
    const path = elsewhere !== undefined && files.isAskable(elsewhere) ? elsewhere : file.path;
    return { ...file, named: file.path, path };
  });
  const wrong: string[] = [];
  const there: Found[] = [];
  let unread = all.length - wanted.length;
  for (let at = 0; at < wanted.length; at += STAT_AT_ONCE) {
    for (const { one, file } of await findAll(files, wanted.slice(at, at + STAT_AT_ONCE))) {
      if (file?.kind === 'file') there.push({ wanted: one, file });
      else if (!files.isAskable(one.path)) unread += 1;
      else if (file !== null || !MAY_BE_LEFT_OUT.test(one.path)) wrong.push(`${one.item}: ${one.path} is not there`);
    }
  }
  const read = await compareContents(files, shuffled(there));
  const resized = await findResized(read.left, expected);
  const told = [...wrong, ...read.wrong, ...resized].map((line) => printable(line, 300));
  return {
    matching: read.matching,
    unread: unread + read.left.length - resized.length,
    wrong: told.length,
    first: told.slice(0, INSPECT_NAMES_TOLD_MAX),
  };
}

async function findAll(files: ExtFiles, wanted: readonly Wanted[]) {
  const found = await files.stat(wanted.map(({ path }) => path));
  const all: { readonly one: Wanted; readonly file: FoundFile | null }[] = [];
  for (const [index, one] of wanted.entries()) {
    const file = found[index] ?? null;
    // An administrator may have put a link in a file's place: what it leads to is what counts.
    all.push({ one, file: file?.kind === 'link' ? await files.follow(one.path).catch(() => null) : file });
  }
  return all;
}

async function compareContents(files: ExtFiles, found: readonly Found[]) {
  const wrong: string[] = [];
  const left: Found[] = [];
  let [matching, readBytes] = [0, 0];
  for (const part of partsOf(found)) {
    const bytes = part.reduce((sum, { file }) => sum + file.sizeBytes, 0);
    if (bytes > VERIFY_FILE_BYTES_MAX || readBytes + bytes > VERIFY_READ_BYTES_MAX) {
      left.push(...part);
      continue;
    }
    readBytes += bytes;
    const contents = await files.readSmall(part.map(({ file }) => file));
    for (const [index, { wanted }] of part.entries()) {
      const content = contents[index] ?? null;
      const isRight = content !== null && createHash(wanted.algorithm).update(content).digest('hex') === wanted.digest;
      if (isRight) matching += 1;
      else wrong.push(`${wanted.item}: ${wanted.path} ${content === null ? 'cannot be read' : 'holds something else'}`);
    }
  }
  return { matching, left, wrong };
}

/** A guest that pads its files so that they are not read, or that others are not, does not get past their sizes. */
async function findResized(left: readonly Found[], expected: readonly ExpectedItem[]): Promise<readonly string[]> {
  const wrong: string[] = [];
  for (const [item, found] of Map.groupBy(left, ({ wanted }) => wanted.item)) {
    const sizes = await expected.find((each) => each.item === item)?.sizes?.();
    for (const { wanted, file } of found) {
      if ((sizes?.get(wanted.named) ?? file.sizeBytes) === file.sizeBytes) continue;
      wrong.push(`${item}: ${wanted.path} has another size`);
    }
  }
  return wrong;
}

/** Together at most so many bytes; a larger file alone. */
function partsOf(found: readonly Found[]): readonly (readonly Found[])[] {
  const parts: Found[][] = [];
  let bytes = Number.POSITIVE_INFINITY;
  for (const one of found) {
    bytes += one.file.sizeBytes;
    const last = parts.at(-1);
    if (last !== undefined && bytes <= VERIFY_PART_BYTES_MAX && last.length < STAT_AT_ONCE) {
      last.push(one);
      continue;
    }
    parts.push([one]);
    bytes = one.file.sizeBytes;
  }
  return parts;
}

function shuffled<T>(list: readonly T[]): readonly T[] {
  const mixed = [...list];
  for (let at = mixed.length - 1; at > 0; at -= 1) {
    const other = randomInt(at + 1);
    // The casts hold: both are indexes of the list.
    [mixed[at], mixed[other]] = [mixed[other] as T, mixed[at] as T];
  }
  return mixed;
}

/** Where dpkg has put what another package claims the place of (dpkg-divert(1)): three lines each, from, to, by whom. */
async function readDiversions(files: ExtFiles): Promise<ReadonlyMap<string, string>> {
  const content = await files.read(DIVERSIONS_PATH, INSPECT_TEXT_BYTES_MAX);
  const lines = content?.toString('utf8').split('\n') ?? [];
  const diverted = new Map<string, string>();
  for (let at = 0; at + 2 < lines.length; at += 3) {
    const [from, to] = [lines[at], lines[at + 1]];
    if (from?.startsWith('/') === true && to?.startsWith('/') === true) diverted.set(from, to);
  }
  return diverted;
}

/** What is wrong with them, in a sentence without a full stop; null when nothing is. */
export function wrongFilesText({ wrong, first }: FilesFinding): string | null {
  if (wrong === 0) return null;
  const more = wrong > first.length ? ', …' : '';
  return `${counted(wrong, 'file')} of what was installed: ${first.join(', ')}${more}`;
}
