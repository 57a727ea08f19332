// Writes the metadata and copies small blobs behind it, so that a drive of many small files needs few open files.
import { createHash, hash } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import type { Digest } from '../base/digest-text.ts';
import { type BlobFiles, damagedBlob, missingBlob, wrongSize } from './blob-files.ts';
import { systemCode } from './drive-error.ts';
import { type IsoExtent, SECTOR_BYTES, sectorsOf } from './iso9660.ts';

/** Bytes written at once, whole sectors; a smaller blob is read at once. */
const PIECE_BYTES = 512 * SECTOR_BYTES;

export type PackedFile = {
  readonly metadata: Uint8Array;
  /** In the order of their place: right behind the metadata. */
  readonly packed: readonly IsoExtent[];
  readonly blobs: BlobFiles;
};

/**
 * Writes the metadata, then the blobs, each filled up to a whole sector, and checks the digest of what it copies. Throws
 * DriveError `host-fault/blob-missing` or `blob-damaged`.
 */
export async function writePacked(out: FileHandle, { metadata, packed, blobs }: PackedFile): Promise<void> {
  const pieces = makePieces(out, metadata);
  try {
    for (const extent of packed) {
      if (extent.lengthBytes >= PIECE_BYTES) {
        await copyLargeBlob(extent, blobs, pieces);
      } else {
        // One byte more than the blob should have: a blob that is too long shows there.
        if (pieces.room().length <= extent.lengthBytes) await pieces.write();
        readSmallBlob(extent, blobs, pieces.room());
        pieces.take(extent.lengthBytes);
      }
      pieces.fillSector();
    }
    await pieces.write();
  } finally {
    await pieces.end();
  }
}

/** Two buffers, one filled while the other is written: the kernel takes as long for writing as for reading. */
type Pieces = {
  /** The free part of the buffer. */
  readonly room: () => Buffer;
  /** So many bytes at the start of the room are now wanted. */
  readonly take: (bytes: number) => void;
  /** Zeros up to the end of the sector. */
  readonly fillSector: () => void;
  /** Begins to write what was taken, once the piece before is written. */
  readonly write: () => Promise<void>;
  /** Resolves when nothing is being written any more; rejects if that failed. */
  readonly end: () => Promise<void>;
};

/** The waiting in `write` gives everyone else a turn: a drive of many small files does not keep the other VMs waiting. */
function makePieces(out: FileHandle, first: Uint8Array): Pieces {
  let filling = Buffer.allocUnsafe(PIECE_BYTES);
  let other = Buffer.allocUnsafe(PIECE_BYTES);
  let used = 0;
  let writing = startWriting(out, first);
  return {
    room: () => filling.subarray(used),
    take: (bytes) => {
      used += bytes;
    },
    fillSector: () => {
      const end = sectorsOf(used) * SECTOR_BYTES;
      filling.fill(0, used, end);
      used = end;
    },
    write: async () => {
      await writing;
      writing = startWriting(out, filling.subarray(0, used));
      [filling, other] = [other, filling];
      used = 0;
    },
    end: async () => {
      await writing;
    },
  };
}

function startWriting(out: FileHandle, bytes: Uint8Array): Promise<void> {
  const writing = writeAll(out, bytes);
  // Whoever waits for it hears of its failure; until then it must not count as one that nobody handles.
  writing.catch(() => {});
  return writing;
}

/** Writes all of the bytes at the file's position. */
async function writeAll(out: FileHandle, bytes: Uint8Array): Promise<void> {
  let done = 0;
  while (done < bytes.length) done += (await out.write(bytes, done, bytes.length - done)).bytesWritten;
}

/**
 * Reads a blob into the start of `space`, which has room for at least one byte more. Synchronous, because opening a
 * hundred thousand files one by one through the thread pool takes several times as long.
 */
function readSmallBlob({ source, lengthBytes }: IsoExtent, blobs: BlobFiles, space: Buffer): void {
  const { digest } = source;
  const descriptor = openBlob(blobs.path(digest), digest);
  let foundBytes = 0;
  try {
    foundBytes = readSync(descriptor, space, 0, lengthBytes + 1, 0);
  } finally {
    closeSync(descriptor);
  }
  checkSize(digest, foundBytes, lengthBytes);
  if (hash('sha256', space.subarray(0, lengthBytes), 'hex') !== digest) throw damagedBlob(digest);
}

function openBlob(path: string, digest: Digest): number {
  try {
    return openSync(path, 'r');
  } catch (error) {
    throw openError(error, digest);
  }
}

function openError(error: unknown, digest: Digest): unknown {
  return systemCode(error) === 'ENOENT' ? missingBlob(digest) : error;
}

function checkSize(digest: Digest, foundBytes: number, expectedBytes: number): void {
  if (foundBytes !== expectedBytes) throw wrongSize(digest, foundBytes, expectedBytes);
}

async function copyLargeBlob({ lengthBytes, source }: IsoExtent, blobs: BlobFiles, pieces: Pieces): Promise<void> {
  const handle = await open(blobs.path(source.digest), 'r').catch((error: unknown) => {
    throw openError(error, source.digest);
  });
  const sum = createHash('sha256');
  try {
    checkSize(source.digest, (await handle.stat()).size, lengthBytes);
    for (let done = 0; done < lengthBytes; ) {
      if (pieces.room().length === 0) await pieces.write();
      const room = pieces.room();
      const { bytesRead } = await handle.read(room, 0, Math.min(room.length, lengthBytes - done), done);
      if (bytesRead === 0) throw wrongSize(source.digest, done, lengthBytes);
      sum.update(room.subarray(0, bytesRead));
      pieces.take(bytesRead);
      done += bytesRead;
    }
  } finally {
    await handle.close();
  }
  if (sum.digest('hex') !== source.digest) throw damagedBlob(source.digest);
}
