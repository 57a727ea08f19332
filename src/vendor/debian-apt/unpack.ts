// Unpacks a package index into a file, by a program beside us and bounded, and finds its stanzas while it grows.
import { spawn } from 'node:child_process';
import { type FileHandle, open } from 'node:fs/promises';
import type { Clock } from '../../base/clock.ts';
import { STANZA_BYTES_MAX } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';
import { findStanzas, type StanzaPlace } from './packages-file.ts';

export type Compression = 'xz' | 'gzip' | 'none';

export type IndexFile = {
  /** A file whose digest has been verified. */
  readonly path: string;
  readonly component: string;
  readonly compression: Compression;
  readonly unpackedBytesMax: number;
};

/** Each reads from its standard input; and the Debian package that has it. */
const PROGRAMS: Readonly<Record<Compression, { readonly argv: readonly string[]; readonly from: string }>> = {
  xz: { argv: ['xz', '-dc'], from: 'xz-utils' },
  gzip: { argv: ['gzip', '-dc'], from: 'gzip' },
  none: { argv: ['cat'], from: 'coreutils' },
};

/** How prlimit(1) ends when there is no such program. */
const EXIT_NOT_FOUND = 127;

type Unpacking = { readonly exited: Promise<void>; readonly stop: () => void };

/**
 * The program writes into the file itself, not through a pipe to us: that is half the work for both, and it never waits for
 * us. It runs on another core, and a bomb costs it, not us: the kernel ends it one byte past the bound.
 */
function startUnpacking(
  { compression, unpackedBytesMax }: IndexFile,
  packed: FileHandle,
  target: FileHandle,
): Unpacking {
  const { argv, from } = PROGRAMS[compression];
  const child = spawn('prlimit', [`--fsize=${unpackedBytesMax + 1}`, ...argv], {
    stdio: [packed.fd, target.fd, 'pipe'],
  });
  let complaint = '';
  child.stderr?.on('data', (piece: Buffer) => {
    complaint = (complaint + piece.toString('utf8')).slice(0, 500);
  });
  const unfit = (cause: unknown): VendorError =>
    new VendorError('host-unfit/no-xz', `unpacking a package index: ${argv[0]} could not run`, {
      cause,
      next: `install the packages ${from} and util-linux`,
    });
  const exited = new Promise<void>((resolve, reject) => {
    child.on('error', (cause) => reject(unfit(cause)));
    child.on('close', (code) => {
      if (code === 0) resolve();
      else if (code === EXIT_NOT_FOUND) reject(unfit(new Error(printable(complaint))));
      else reject(new VendorError('vendor-ill/malformed', `unpacking a package index: ${printable(complaint)}`));
    });
  });
  return { exited, stop: () => void child.kill('SIGKILL') };
}

/** Bytes looked at in one go: enough that a look costs little, and nobody else waits for us more than a few milliseconds. */
const BLOCK_BYTES = 256 * 1024;
/** Milliseconds between two looks at how far the file has grown. */
const LOOK_EVERY_MS = 10;

/** Finds the stanzas of what has been written so far, from where it stopped the last time. */
function makeFollower(file: IndexFile, target: FileHandle, what: string) {
  let block = Buffer.allocUnsafe(BLOCK_BYTES);
  let at = 0;
  return async function* follow(isWhole: boolean): AsyncGenerator<readonly StanzaPlace[]> {
    for (;;) {
      const { bytesRead } = await target.read(block, 0, block.length, at);
      if (at + bytesRead > file.unpackedBytesMax) {
        throw new VendorError('vendor-ill/too-large', `${what} unpacks to more than ${file.unpackedBytesMax} bytes`);
      }
      const isLast = isWhole && bytesRead < block.length;
      if (bytesRead < block.length && !isLast) return;
      const { places, used } = findStanzas(block.toString('latin1', 0, bytesRead), isLast, what);
      const from = at;
      yield places.map((place) => ({ ...place, start: from + place.start }));
      if (isLast) return;
      at += used;
      if (used > 0) continue;
      if (block.length >= STANZA_BYTES_MAX) {
        throw new VendorError('vendor-ill/malformed', `${what}: a stanza is longer than ${STANZA_BYTES_MAX} bytes`);
      }
      block = Buffer.allocUnsafe(Math.min(block.length * 2, STANZA_BYTES_MAX));
    }
  };
}

export type UnpackDeps = {
  /** For messages: `the index of bookworm`. */
  readonly what: string;
  readonly clock: Clock;
  readonly signal?: AbortSignal | undefined;
};

/**
 * Unpacks into the empty file, and says where in it the stanzas stand. Throws VendorError, also when it unpacks to more than
 * it may. When it ends, in whichever way, nobody writes into the file any more.
 */
export async function* unpackStanzas(
  file: IndexFile,
  target: FileHandle,
  { what, clock, signal }: UnpackDeps,
): AsyncGenerator<readonly StanzaPlace[]> {
  const packed = await open(file.path, 'r');
  try {
    const { exited, stop } = startUnpacking(file, packed, target);
    const follow = makeFollower(file, target, what);
    let isOver = false;
    const over = exited.then(
      () => {
        isOver = true;
      },
      () => {
        isOver = true; // Thrown below, after a look at what there is: too much is told apart from a program that failed.
      },
    );
    try {
      for (let wasOver = false; !wasOver; ) {
        await Promise.race([over, clock.sleep(LOOK_EVERY_MS, signal)]);
        signal?.throwIfAborted();
        wasOver = isOver;
        yield* follow(false);
      }
      await exited;
      yield* follow(true);
    } finally {
      stop();
      await over;
    }
  } finally {
    await packed.close();
  }
}
