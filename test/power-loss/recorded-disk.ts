// Records what a program does to a folder, call by call, and puts the folder together again as a power cut at any of the calls leaves it.
//
// The model of the disk is the least that POSIX promises: content counts from the fsync of its file on, names from the fsync of their
// folder on; of what came later any part may be there: of content sector by sector, of names the first ones of each folder. A file that
// was moved from one folder to another may therefore be in both, or in neither.
import assert from 'node:assert/strict';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';
import { runCommand } from '../../src/base/run-command.ts';

/** Names are paths below the folder; the folder itself is the empty one. */
export type DiskCall =
  | { readonly kind: 'open'; readonly name: string; readonly isEmptied: boolean }
  | { readonly kind: 'write'; readonly name: string; readonly at: number | null; readonly bytes: Buffer }
  | { readonly kind: 'truncate'; readonly name: string; readonly sizeBytes: number }
  | { readonly kind: 'sync'; readonly name: string }
  | { readonly kind: 'sync-folder'; readonly name: string }
  | { readonly kind: 'make-folder'; readonly name: string }
  | { readonly kind: 'rename'; readonly from: string; readonly to: string }
  | { readonly kind: 'link'; readonly from: string; readonly to: string }
  | { readonly kind: 'unlink'; readonly name: string }
  /** The program said something: what it then promised has to hold from here on. */
  | { readonly kind: 'said'; readonly text: string };

/** Not every processor has the older ones. */
const CALLS = [
  ...['openat', 'write', 'pwrite64', 'ftruncate', 'fsync', 'fdatasync', '?mkdir', 'mkdirat', '?rename', '?renameat'],
  ...['renameat2', '?link', 'linkat', '?unlink', 'unlinkat', '?rmdir'],
].join();
/** Characters of one argument that strace shows: more than any single write of a test. */
const ARGUMENT_CHARS_MAX = 1_000_000;
const TIMEOUT_MS = 120_000;

/** Runs a program under strace and returns what it did to the files below a folder, and said, in order. */
export async function recordCalls(folder: string, argv: readonly [string, ...string[]]): Promise<readonly DiskCall[]> {
  const log = `${folder}.strace`;
  const tool = [
    'strace',
    '-f',
    '-y',
    '-xx',
    '-s',
    String(ARGUMENT_CHARS_MAX),
    '-e',
    `trace=${CALLS}`,
    '-e',
    'signal=none',
  ];
  await runCommand([...tool, '-o', log, ...argv] as [string, ...string[]], { timeoutMs: TIMEOUT_MS }); // The cast holds: it begins with strace.
  const text = await readFile(log, 'latin1');
  await rm(log);
  const calls = tellFolders(whole(text.split('\n')).flatMap((line) => readCall(line, folder)));
  assert.ok(
    calls.some(({ kind }) => kind === 'sync'),
    'strace shows that something was flushed',
  );
  return calls;
}

/** Puts together the two halves of calls in which another thread came in between; a call counts when it has returned. */
function whole(lines: readonly string[]): readonly string[] {
  const begun = new Map<string, string>();
  return lines.flatMap((line) => {
    const [, thread = '', rest = ''] = /^(\d+) +(.*)$/.exec(line) ?? [];
    const unfinished = / <unfinished \.\.\.>$/.exec(rest);
    if (unfinished !== null) {
      begun.set(thread, rest.slice(0, unfinished.index));
      return [];
    }
    const resumed = /^<\.\.\. \w+ resumed>/.exec(rest);
    return [resumed === null ? rest : (begun.get(thread) ?? '') + rest.slice(resumed[0].length)];
  });
}

const bytesOf = (text: string): Buffer => Buffer.from(text.replaceAll('\\x', ''), 'hex');

function readCall(line: string, folder: string): readonly DiskCall[] {
  const [, call = '', rest = ''] = /^(\w+)\((.*)\) += \d+/.exec(line) ?? [];
  const strings = [...rest.matchAll(/"((?:\\x[0-9a-f]{2})*)"/g)].map(([, text = '']) => bytesOf(text));
  const paths = strings.map((bytes) => bytes.toString());
  // A file that was removed while it was open is nobody's any more: strace says so behind its path.
  const descriptor = /^(\d+)<([^>]*)>(?!\(deleted\))/.exec(rest);
  const path = descriptor?.[2] === undefined ? '' : unescapePath(descriptor[2]);
  const isOurs = (each: string | undefined) => each?.startsWith(`${folder}/`) === true;
  const nameOf = (each: string | undefined) => relative(folder, each ?? '');
  const numbers = rest
    .split(', ')
    .slice(-2)
    .map((word) => Number.parseInt(word, 10));
  const name = nameOf(path);
  const [bytes = Buffer.alloc(0)] = strings;
  const only = (isSo: boolean, made: () => DiskCall): readonly DiskCall[] => (isSo ? [made()] : []);
  switch (call) {
    case 'write':
      if (descriptor?.[1] === '1') return [{ kind: 'said', text: String(paths[0]) }];
      return only(isOurs(path), () => ({ kind: 'write', name, at: null, bytes }));
    case 'pwrite64':
      return only(isOurs(path), () => ({ kind: 'write', name, at: numbers[1] ?? 0, bytes }));
    case 'ftruncate':
      return only(isOurs(path), () => ({ kind: 'truncate', name, sizeBytes: numbers[1] ?? 0 }));
    case 'fsync':
    case 'fdatasync':
      return only(isOurs(path) || path === folder, () => ({ kind: 'sync', name }));
    case 'openat':
      return only(isOurs(paths.at(-1)) && rest.includes('O_CREAT'), () => {
        return { kind: 'open', name: nameOf(paths.at(-1)), isEmptied: rest.includes('O_TRUNC') };
      });
    case 'mkdir':
    case 'mkdirat':
      return only(isOurs(paths[0]), () => ({ kind: 'make-folder', name: nameOf(paths[0]) }));
    case 'rename':
    case 'renameat':
    case 'renameat2':
      return only(isOurs(paths[0]), () => ({ kind: 'rename', from: nameOf(paths[0]), to: nameOf(paths[1]) }));
    case 'link':
    case 'linkat':
      return only(isOurs(paths[0]), () => ({ kind: 'link', from: nameOf(paths[0]), to: nameOf(paths[1]) }));
    case 'unlink':
    case 'unlinkat':
    case 'rmdir':
      return only(isOurs(paths[0]), () => ({ kind: 'unlink', name: nameOf(paths[0]) }));
    default:
      return [];
  }
}

/** A path beside a descriptor is escaped as strings are. */
function unescapePath(text: string): string {
  return text.startsWith('\\x') ? bytesOf(text).toString() : text;
}

/** fsync of a folder and of a file look alike; which it is shows when the calls are replayed. */
function tellFolders(calls: readonly DiskCall[]): readonly DiskCall[] {
  const folders = new Set(['']);
  return calls.map((call) => {
    if (call.kind === 'make-folder') folders.add(call.name);
    return call.kind === 'sync' && folders.has(call.name) ? { kind: 'sync-folder', name: call.name } : call;
  });
}

type Change = { readonly at: number; readonly bytes: Buffer } | { readonly sizeBytes: number };
type File = { readonly kind: 'file'; now: Buffer; flushed: Buffer; later: Change[]; position: number };
type Names = ReadonlyMap<string, Node>;
/** `history`: what its names were since it was flushed last, the flushed ones first, those of now last. */
type Folder = { readonly kind: 'folder'; history: [Names, ...Names[]] };
type Node = File | Folder;

const emptyFolder = (): Folder => ({ kind: 'folder', history: [new Map()] });
const namesNow = ({ history }: Folder): Names => history.at(-1) ?? history[0];

/** `killed`: all that was written is there. `cut`: only what was flushed. `torn`: of the rest what the chance gives. */
export type Ending = 'killed' | 'cut' | 'torn';
export const ENDINGS: readonly Ending[] = ['killed', 'cut', 'torn'];

const SECTOR_BYTES = 512;
/** SQLite's index of its log lies in memory only; who opens the database first after a crash makes it anew. */
const isInMemory = (name: string) => name.endsWith('-shm');

/** The folder as the first `count` calls leave it, then written to `target`. */
export async function replayCalls(
  calls: readonly DiskCall[],
  { count, ending, random, target }: { count: number; ending: Ending; random: () => number; target: string },
): Promise<void> {
  const root = emptyFolder();
  for (const call of calls.slice(0, count)) apply(call, root);
  await rm(target, { recursive: true, force: true });
  await writeFolder(root, { ending, random, target });
}

type Left = { readonly ending: Ending; readonly random: () => number; readonly target: string };

async function writeFolder(folder: Folder, { ending, random, target }: Left): Promise<void> {
  await mkdir(target, { mode: 0o700 });
  for (const [name, node] of namesLeft(folder, ending, random)) {
    const path = join(target, name);
    if (node.kind === 'folder') await writeFolder(node, { ending, random, target: path });
    else if (!isInMemory(name)) await writeFile(path, contentOf(node, ending, random), { mode: 0o600 });
  }
}

function namesLeft(folder: Folder, ending: Ending, random: () => number): Names {
  const { history } = folder;
  if (ending === 'killed') return namesNow(folder);
  if (ending === 'cut') return history[0];
  return history[Math.floor(random() * history.length)] ?? history[0];
}

function contentOf({ now, flushed, later }: File, ending: Ending, random: () => number): Buffer {
  if (ending === 'killed') return now;
  if (ending === 'cut') return flushed;
  let content = flushed;
  for (const change of later) {
    if ('sizeBytes' in change) {
      if (random() < 0.5) content = changed(content, change);
      continue;
    }
    for (let start = 0; start < change.bytes.length; start += SECTOR_BYTES) {
      if (random() < 0.5) continue;
      const bytes = change.bytes.subarray(start, start + SECTOR_BYTES);
      content = changed(content, { at: change.at + start, bytes });
    }
  }
  return content;
}

function changed(content: Buffer, change: Change): Buffer {
  const length = 'sizeBytes' in change ? change.sizeBytes : Math.max(content.length, change.at + change.bytes.length);
  const made = Buffer.alloc(length);
  content.copy(made);
  if ('bytes' in change) change.bytes.copy(made, change.at);
  return made;
}

/** Changes what lies below the root in place. */
function apply(call: DiskCall, root: Folder): void {
  switch (call.kind) {
    case 'said':
      break;
    case 'sync-folder': {
      const folder = folderAt(root, call.name);
      folder.history = [namesNow(folder)];
      break;
    }
    case 'make-folder':
      putName(root, call.name, emptyFolder());
      break;
    case 'link':
      putName(root, call.to, nodeAt(root, call.from));
      break;
    case 'unlink':
      dropName(root, call.name);
      break;
    case 'rename':
      move(root, call);
      break;
    case 'open':
    case 'write':
    case 'truncate':
    case 'sync':
      changeFile(call, root);
      break;
    default:
      call satisfies never;
  }
}

function changeFile(call: DiskCall & { readonly kind: 'open' | 'write' | 'truncate' | 'sync' }, root: Folder): void {
  const known = nodeFound(root, call.name);
  const file: Node = known ?? { kind: 'file', now: Buffer.alloc(0), flushed: Buffer.alloc(0), later: [], position: 0 };
  assert.ok(file.kind === 'file', `${call.name} is a file`);
  if (known === undefined) putName(root, call.name, file);
  const change = (made: Change) => {
    file.now = changed(file.now, made);
    file.later.push(made);
  };
  if (call.kind === 'open') {
    file.position = 0;
    if (call.isEmptied && known !== undefined) change({ sizeBytes: 0 });
  }
  if (call.kind === 'truncate') change({ sizeBytes: call.sizeBytes });
  if (call.kind === 'sync') {
    file.flushed = file.now;
    file.later = [];
  }
  if (call.kind === 'write') {
    const at = call.at ?? file.position;
    if (call.at === null) file.position = at + call.bytes.length;
    change({ at, bytes: call.bytes });
  }
}

/** Within one folder a move is one change: the old name or the new one. */
function move(root: Folder, { from, to }: { readonly from: string; readonly to: string }): void {
  const node = nodeAt(root, from);
  if (dirname(from) === dirname(to)) {
    const folder = folderAt(root, dirname(from));
    const others = [...namesNow(folder)].filter(([name]) => name !== basename(from));
    folder.history.push(new Map([...others, [basename(to), node]]));
  } else {
    putName(root, to, node);
    dropName(root, from);
  }
}

function putName(root: Folder, path: string, node: Node): void {
  const folder = folderAt(root, dirname(path));
  folder.history.push(new Map(namesNow(folder)).set(basename(path), node));
}

function dropName(root: Folder, path: string): void {
  const folder = folderAt(root, dirname(path));
  folder.history.push(new Map([...namesNow(folder)].filter(([name]) => name !== basename(path))));
}

function nodeFound(root: Folder, path: string): Node | undefined {
  let node: Node | undefined = root;
  for (const name of path.split('/').filter((each) => each !== '' && each !== '.')) {
    if (node?.kind !== 'folder') return undefined;
    node = namesNow(node).get(name);
  }
  return node;
}

const nodeAt = (root: Folder, path: string): Node => nodeFound(root, path) ?? assert.fail(`${path} is there`);

function folderAt(root: Folder, path: string): Folder {
  const node = nodeAt(root, path);
  assert.ok(node.kind === 'folder', `${path} is a folder`);
  return node;
}
