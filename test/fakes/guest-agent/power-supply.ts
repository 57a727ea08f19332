// A file system whose power can fail before any durable step, and which then forgets what was not flushed.
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { dirname } from 'node:path';
import type { Files, OpenFile } from '../../../guest-agent/platform/platform.ts';

/** Not an AgentError: no code of the agent may take it for a failure it can handle. */
export class PowerCut extends Error {}

/** What the disk has of unflushed changes after the cut: all, none, or the first half (a journal keeps their order). */
export type Loss = 'kept' | 'lost' | 'half';

type Change = { readonly folders: readonly string[]; readonly undo: () => void };

export class PowerSupply {
  /** Steps made so far. */
  steps = 0;
  isOff = false;
  readonly #cutAt: number;
  readonly #loss: Loss;
  /** Files with content that was not flushed. */
  #unflushed = new Set<string>();
  #changes: Change[] = [];

  constructor(cutAt = Number.POSITIVE_INFINITY, loss: Loss = 'kept') {
    this.#cutAt = cutAt;
    this.#loss = loss;
  }

  /** Counts a step; cuts the power instead if it is the one. */
  #step(): void {
    this.demand();
    if (this.steps === this.#cutAt) {
      this.isOff = true;
      this.#lose();
      throw new PowerCut('the power failed');
    }
    this.steps += 1;
  }

  demand(): void {
    if (this.isOff) throw new PowerCut('the power is off');
  }

  #lose(): void {
    if (this.#loss === 'kept') return;
    const first = this.#loss === 'lost' ? 0 : Math.floor(this.#changes.length / 2);
    for (const path of this.#unflushed) if (existsSync(path)) truncateSync(path, 0);
    for (const change of this.#changes.slice(first).reverse()) change.undo();
  }

  #flushed(isFlushed: (folder: string) => boolean): void {
    this.#changes = this.#changes.filter(({ folders }) => !folders.every(isFlushed));
  }

  wrap(files: Files): Files {
    const change = (paths: readonly string[], undo: () => void): void => {
      this.#changes.push({ folders: paths.map((path) => dirname(path)), undo });
    };
    const guarded = <A extends readonly unknown[], R>(read: (...args: A) => R) => {
      return (...args: A): R => {
        this.demand();
        return read(...args);
      };
    };
    return {
      open: guarded(files.open),
      openPlain: guarded(files.openPlain),
      stat: guarded(files.stat),
      list: guarded(files.list),
      readLink: guarded(files.readLink),
      freeBytes: guarded(files.freeBytes),
      overwrite: guarded(files.overwrite),
      openFolder: guarded(files.openFolder),
      create: (given, mode) => {
        this.#step();
        const path = real(given);
        const restore = keep(path);
        const file = files.create(path, mode);
        change([path], restore);
        this.#unflushed.add(path);
        return this.#wrapFile(file, path);
      },
      makeFolder: (given, mode) => {
        this.#step();
        const path = real(given);
        files.makeFolder(path, mode);
        change([path], () => rmSync(path, { recursive: true }));
      },
      remove: (given) => {
        this.#step();
        const path = real(given);
        const restore = keep(path);
        files.remove(path);
        change([path], restore);
      },
      rename: (givenFrom, givenTo) => {
        this.#step();
        const [from, to] = [real(givenFrom), real(givenTo)];
        const restore = keep(to);
        files.rename(from, to);
        const moved = (file: string): string => (isBelow(from, file) ? to + file.slice(from.length) : file);
        this.#unflushed = new Set([...this.#unflushed].map(moved));
        change([from, to], () => {
          renameSync(to, from);
          restore();
        });
      },
      symlink: (target, given) => {
        this.#step();
        const path = real(given);
        files.symlink(target, path);
        change([path], () => rmSync(path));
      },
      hardLink: (from, to) => {
        this.#step();
        files.hardLink(from, to);
        change([to], () => rmSync(to));
      },
      syncFolder: (given) => {
        this.#step();
        const path = real(given);
        files.syncFolder(path);
        this.#flushed((folder) => folder === path);
      },
      syncTree: (path) => {
        this.#step();
        files.syncTree(path);
        this.#flushed((folder) => isBelow(path, folder));
        this.#unflushed = new Set([...this.#unflushed].filter((file) => !isBelow(path, file)));
      },
    };
  }

  #wrapFile(file: OpenFile, path: string): OpenFile {
    return {
      ...file,
      write: (bytes) => {
        this.#step();
        file.write(bytes);
      },
      setMode: (mode) => {
        this.#step();
        file.setMode(mode);
      },
      setOwner: (uid, gid) => {
        this.#step();
        file.setOwner(uid, gid);
      },
      sync: () => {
        this.#step();
        file.sync();
        this.#unflushed.delete(path);
      },
    };
  }
}

/** The path behind a folder held open: its number means something else as soon as it is closed. */
function real(path: string): string {
  const [, link = '', rest = ''] = /^(\/proc\/self\/fd\/\d+)(.*)$/.exec(path) ?? [];
  return link === '' ? path : readlinkSync(link) + rest;
}

function isBelow(folder: string, path: string): boolean {
  return path === folder || path.startsWith(`${folder}/`);
}

/** Remembers what is at a path; the returned function brings it back, or removes what came since. */
function keep(path: string): () => void {
  const found = lstatSync(path, { throwIfNoEntry: false });
  const clear = (): void => rmSync(path, { recursive: true, force: true });
  if (found === undefined) return clear;
  if (found.isDirectory()) return () => mkdirSync(path);
  if (found.isSymbolicLink()) {
    const target = readlinkSync(path);
    return () => {
      clear();
      symlinkSync(target, path);
    };
  }
  const content = readFileSync(path);
  return () => {
    clear();
    writeFileSync(path, content, { mode: found.mode });
  };
}
