// Looks for secrets in every byte of files, processes and texts, in all the forms in which one may have got there.
import { createReadStream, readdirSync, readFileSync } from 'node:fs';
import { open, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { systemClock } from '../../src/base/clock.ts';

/** Longer than any form: what stands on the border of two pieces is in the second one again. */
const OVERLAP_BYTES = 4 * 1024;
/** Small, for what is empty is passed over piece by piece. */
const PIECE_BYTES = 256 * 1024;

export type SecretSearch = {
  /** The forms of a secret that stand in these bytes, as `NAME: form`. */
  readonly inBytes: (bytes: Uint8Array) => readonly string[];
  readonly inText: (text: string) => readonly string[];
  /** Files below a folder that hold one, with the form. Names of files are searched, too. */
  readonly inFolder: (folder: string) => Promise<readonly string[]>;
  /** What the memory of a process holds, as far as it may be written to. */
  readonly inMemory: (pid: number) => Promise<{ readonly found: readonly string[]; readonly readBytes: number }>;
  /** Looks at the command line and environment of every process of this machine, again and again, until it is stopped. */
  readonly watchProcesses: () => { readonly stop: () => Promise<readonly string[]>; readonly looks: () => number };
};

/** Written down here once more and not taken from the program: a searcher with its mistakes would share them. */
function formsOf(secret: string): Readonly<Record<string, Buffer>> {
  const bytes = Buffer.from(secret);
  const turned = Buffer.from(bytes).reverse();
  const percent = [...bytes].map((byte) => `%${byte.toString(16).padStart(2, '0')}`).join('');
  const base64 = [0, 1, 2].flatMap((before) => {
    const text = Buffer.concat([Buffer.alloc(before, 'x'), bytes, Buffer.from('xx')]).toString('base64');
    // Without the characters that what stands around has a part in: three bytes are four of them.
    const inner = text.slice(before === 0 ? 0 : 4, Math.floor((before + bytes.length) / 3) * 4);
    return [
      [`base64+${before}`, inner],
      [`base64url+${before}`, inner.replaceAll('+', '-').replaceAll('/', '_')],
    ] as const;
  });
  const forms = {
    plain: bytes,
    reversed: turned,
    hex: Buffer.from(bytes.toString('hex')),
    HEX: Buffer.from(bytes.toString('hex').toUpperCase()),
    percent: Buffer.from(percent),
    PERCENT: Buffer.from(percent.toUpperCase()),
    url: Buffer.from(encodeURIComponent(secret)),
    utf16: Buffer.from(secret, 'utf16le'),
    ...Object.fromEntries(base64.map(([name, text]) => [name, Buffer.from(text)])),
  };
  // Many a secret looks the same in two of them.
  const once = new Map(
    Object.entries(forms)
      .reverse()
      .map(([name, form]) => [form.toString('hex'), [name, form] as const]),
  );
  return Object.fromEntries(once.values());
}

/** For secrets by the names they are told by. */
export function searchFor(secrets: Readonly<Record<string, string>>): SecretSearch {
  const wanted = Object.entries(secrets).flatMap(([name, secret]) =>
    Object.entries(formsOf(secret)).map(([form, bytes]) => ({ label: `${name}: ${form}`, bytes })),
  );
  const inBytes = (given: Uint8Array): readonly string[] => {
    const bytes = Buffer.from(given.buffer, given.byteOffset, given.byteLength);
    return wanted.filter((each) => bytes.includes(each.bytes)).map(({ label }) => label);
  };
  const inText = (text: string) => inBytes(Buffer.from(text));
  const inFile = async (path: string): Promise<readonly string[]> => {
    const found = new Set<string>();
    let tail = Buffer.alloc(0);
    for await (const piece of createReadStream(path, { highWaterMark: PIECE_BYTES })) {
      const bytes = Buffer.concat([tail, piece]);
      if (!isEmpty(bytes)) for (const label of inBytes(bytes)) found.add(label);
      tail = Buffer.from(bytes.subarray(-OVERLAP_BYTES));
    }
    return [...found].map((label) => `${path}: ${label}`);
  };
  return {
    inBytes,
    inText,
    inFolder: async (folder) => {
      const found: string[] = [];
      for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
        const path = join(entry.parentPath, entry.name);
        found.push(...inText(path).map((label) => `${path}: ${label}`));
        if (entry.isFile()) found.push(...(await inFile(path).catch(ifGone)));
      }
      return found;
    },
    inMemory: async (pid) => await searchMemory(pid, inBytes),
    watchProcesses: () => watch(inBytes),
  };
}

/** Files of a program at work come and go. */
function ifGone(error: unknown): readonly string[] {
  if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return [];
  throw error;
}

const EMPTY = Buffer.alloc(PIECE_BYTES + OVERLAP_BYTES);
const isEmpty = (bytes: Buffer): boolean => bytes.equals(EMPTY.subarray(0, bytes.length));

async function searchMemory(pid: number, inBytes: SecretSearch['inBytes']) {
  const found = new Set<string>();
  let readBytes = 0;
  const memory = await open(`/proc/${pid}/mem`, 'r');
  try {
    const piece = Buffer.alloc(PIECE_BYTES + OVERLAP_BYTES);
    for (const { start, end } of writableRanges(await readFile(`/proc/${pid}/maps`, 'utf8'))) {
      for (let at = start; at < end; at += PIECE_BYTES) {
        const length = Math.min(piece.length, end - at);
        // Some of it is a device's, or given back meanwhile.
        const read = await memory.read(piece, 0, length, at).catch(() => ({ bytesRead: 0 }));
        readBytes += Math.min(read.bytesRead, PIECE_BYTES);
        const bytes = piece.subarray(0, read.bytesRead);
        if (!isEmpty(bytes)) for (const label of inBytes(bytes)) found.add(label);
      }
    }
  } finally {
    await memory.close();
  }
  return { found: [...found], readBytes };
}

function writableRanges(maps: string): readonly { readonly start: number; readonly end: number }[] {
  return maps.split('\n').flatMap((line) => {
    const [, start, end] = /^([0-9a-f]+)-([0-9a-f]+) rw/.exec(line) ?? [];
    return start === undefined || end === undefined
      ? []
      : [{ start: Number.parseInt(start, 16), end: Number.parseInt(end, 16) }];
  });
}

function watch(inBytes: SecretSearch['inBytes']) {
  const seen = new Set<string>();
  const known = new Set<string>();
  let isOver = false;
  let looks = 0;
  const lookAt = (pid: string, file: 'cmdline' | 'environ'): void => {
    try {
      for (const label of inBytes(readFileSync(`/proc/${pid}/${file}`))) seen.add(`/proc/${pid}/${file}: ${label}`);
    } catch {
      // It has ended, or is not ours to read.
    }
  };
  const looking = (async () => {
    while (!isOver) {
      // A number may be another process's by now, and a process may change what it shows: all of them again once in a while.
      if (looks % 20 === 0) known.clear();
      for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name) && !known.has(name))) {
        known.add(pid);
        lookAt(pid, 'cmdline');
        lookAt(pid, 'environ');
      }
      looks += 1;
      await systemClock.sleep(50);
    }
  })();
  return {
    looks: () => looks,
    stop: async () => {
      isOver = true;
      await looking;
      return [...seen];
    },
  };
}

/** All processes that descend from one, and those whose command line names one of these texts. */
export function processesOf(root: number, ...named: readonly string[]): readonly number[] {
  const all = readdirSync('/proc').flatMap((name) => {
    if (!/^\d+$/.test(name)) return [];
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'utf8');
      const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
      return [{ pid: Number(name), parent, line: readFileSync(`/proc/${name}/cmdline`, 'latin1') }];
    } catch {
      return [];
    }
  });
  const family = new Set([root]);
  for (let before = 0; before !== family.size; ) {
    before = family.size;
    for (const { pid, parent } of all) if (family.has(parent)) family.add(pid);
  }
  const others = all.filter(({ line }) => named.some((text) => line.includes(text)));
  return [...new Set([...family, ...others.map(({ pid }) => pid)])].filter(
    (pid) => pid !== root && pid !== process.pid,
  );
}
