// Records what a program does to a folder, call by call, and puts the folder together again as a power cut at any of the calls leaves it.
//
// The model of the disk is the least that POSIX promises: content counts from the fsync of its file on, names from the fsync of their
// folder on; of what came later any part may be there, sector by sector.
import assert from 'node:assert/strict';
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { runCommand } from '../../src/base/run-command.ts';

export type DiskCall =
  | { readonly kind: 'open'; readonly name: string; readonly isEmptied: boolean }
  | { readonly kind: 'write'; readonly name: string; readonly at: number | null; readonly bytes: Buffer }
  | { readonly kind: 'truncate'; readonly name: string; readonly sizeBytes: number }
  | { readonly kind: 'sync'; readonly name: string }
  | { readonly kind: 'sync-folder' }
  | { readonly kind: 'rename'; readonly from: string; readonly to: string }
  | { readonly kind: 'unlink'; readonly name: string }
  /** The program said something: what it then promised has to hold from here on. */
  | { readonly kind: 'said'; readonly text: string };

const CALLS = 'openat,write,pwrite64,ftruncate,fsync,fdatasync,rename,unlink';
/** Characters of one argument that strace shows: more than any single write of a test. */
const ARGUMENT_CHARS_MAX = 1_000_000;
const TIMEOUT_MS = 120_000;

/** Runs a program under strace and returns what it did to the files of one flat folder, and said, in order. */
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
  const calls = whole(text.split('\n')).flatMap((line) => readCall(line, folder));
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
  const descriptor = /^(\d+)<([^>]*)>/.exec(rest);
  const path = descriptor?.[2] === undefined ? '' : unescapePath(descriptor[2]);
  const isOurs = (each: string) => dirname(each) === folder;
  const numbers = rest
    .split(', ')
    .slice(-2)
    .map((word) => Number.parseInt(word, 10));
  const name = basename(path);
  switch (call) {
    case 'write':
      if (descriptor?.[1] === '1') return [{ kind: 'said', text: String(paths[0]) }];
      return isOurs(path) ? [{ kind: 'write', name, at: null, bytes: strings[0] ?? Buffer.alloc(0) }] : [];
    case 'pwrite64':
      return isOurs(path) ? [{ kind: 'write', name, at: numbers[1] ?? 0, bytes: strings[0] ?? Buffer.alloc(0) }] : [];
    case 'ftruncate':
      return isOurs(path) ? [{ kind: 'truncate', name, sizeBytes: numbers[1] ?? 0 }] : [];
    case 'fsync':
    case 'fdatasync':
      if (path === folder) return [{ kind: 'sync-folder' }];
      return isOurs(path) ? [{ kind: 'sync', name }] : [];
    case 'openat':
      if (!isOurs(paths.at(-1) ?? '') || !rest.includes('O_CREAT')) return [];
      return [{ kind: 'open', name: basename(paths.at(-1) ?? ''), isEmptied: rest.includes('O_TRUNC') }];
    case 'rename':
      if (!isOurs(paths[0] ?? '')) return [];
      return [{ kind: 'rename', from: basename(paths[0] ?? ''), to: basename(paths[1] ?? '') }];
    case 'unlink':
      return isOurs(paths[0] ?? '') ? [{ kind: 'unlink', name: basename(paths[0] ?? '') }] : [];
    default:
      return [];
  }
}

/** A path beside a descriptor is escaped as strings are. */
function unescapePath(text: string): string {
  return text.startsWith('\\x') ? bytesOf(text).toString() : text;
}

type Change = { readonly at: number; readonly bytes: Buffer } | { readonly sizeBytes: number };
type Inode = { now: Buffer; flushed: Buffer; later: Change[]; position: number };
type Names = ReadonlyMap<string, Inode>;

/** `killed`: all that was written is there. `cut`: only what was flushed. `torn`: of the rest what the chance gives. */
export type Ending = 'killed' | 'cut' | 'torn';

const SECTOR_BYTES = 512;
/** SQLite's index of its log lies in memory only; who opens the database first after a crash makes it anew. */
const isInMemory = (name: string) => name.endsWith('-shm');

/** The folder as the first `count` calls leave it, then written to `target`. */
export async function replayCalls(
  calls: readonly DiskCall[],
  { count, ending, random, target }: { count: number; ending: Ending; random: () => number; target: string },
): Promise<void> {
  let names: Names = new Map();
  let history: Names[] = [names];
  for (const call of calls.slice(0, count)) {
    const before = names;
    names = apply(call, names);
    if (names !== before) history.push(names);
    if (call.kind === 'sync-folder') history = [names];
  }
  const seen = ending === 'cut' ? history[0] : history[Math.floor(random() * history.length)];
  await rm(target, { recursive: true, force: true });
  await mkdir(target, { mode: 0o700 });
  for (const [name, inode] of (ending === 'killed' ? names : seen) ?? names) {
    if (isInMemory(name)) continue;
    await writeFile(join(target, name), contentOf(inode, ending, random), { mode: 0o600 });
  }
}

function contentOf({ now, flushed, later }: Inode, ending: Ending, random: () => number): Buffer {
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

/** Changes inodes in place; names are another map when they change. */
function apply(call: DiskCall, names: Names): Names {
  if (call.kind === 'said' || call.kind === 'sync-folder') return names;
  if (call.kind === 'rename' || call.kind === 'unlink') {
    const from = call.kind === 'rename' ? call.from : call.name;
    const inode = names.get(from) ?? assert.fail(`${from} is there`);
    const next = new Map([...names].filter(([name]) => name !== from));
    return call.kind === 'rename' ? next.set(call.to, inode) : next;
  }
  const known = names.get(call.name);
  const inode = known ?? { now: Buffer.alloc(0), flushed: Buffer.alloc(0), later: [], position: 0 };
  const change = (made: Change) => {
    inode.now = changed(inode.now, made);
    inode.later.push(made);
  };
  if (call.kind === 'open') {
    inode.position = 0;
    if (call.isEmptied && known !== undefined) change({ sizeBytes: 0 });
  }
  if (call.kind === 'truncate') change({ sizeBytes: call.sizeBytes });
  if (call.kind === 'sync') {
    inode.flushed = inode.now;
    inode.later = [];
  }
  if (call.kind === 'write') {
    const at = call.at ?? inode.position;
    if (call.at === null) inode.position = at + call.bytes.length;
    change({ at, bytes: call.bytes });
  }
  return known === undefined ? new Map(names).set(call.name, inode) : names;
}
