// Copies small blobs behind the metadata, so that a drive of many small files needs few open files.
import { createHash, hash } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { setImmediate as turn } from 'node:timers/promises';
import type { Digest } from '../base/digest-text.ts';
import { type BlobFiles, damagedBlob, missingBlob, wrongSize } from './blob-files.ts';
import { systemCode } from './drive-error.ts';
import { type IsoExtent, SECTOR_BYTES } from './iso9660.ts';

/** Bytes collected before they are written, and the size up to which a blob is read at once. */
const BUFFER_BYTES = 1024 * 1024;

/**
 * Appends the blobs, each filled up to a whole sector, and checks the digest of what it copies. Throws DriveError
 * `host-fault/blob-missing` or `blob-damaged`.
 */
export async function packBlobs(out: FileHandle, packed: readonly IsoExtent[], blobs: BlobFiles): Promise<void> {
  const buffer = Buffer.alloc(BUFFER_BYTES);
  let used = 0;
  const flush = async () => {
    await writeAll(out, buffer.subarray(0, used));
    buffer.fill(0, 0, used);
    used = 0;
    // A drive of many small files is not to keep the other VMs waiting.
    await turn();
  };
  for (const extent of packed) {
    const paddedBytes = Math.ceil(extent.lengthBytes / SECTOR_BYTES) * SECTOR_BYTES;
    // Strictly less: reading looks one byte further.
    if (used + paddedBytes >= buffer.length) await flush();
    if (paddedBytes >= buffer.length) {
      await copyLargeBlob(out, extent, blobs, buffer);
    } else {
      readSmallBlob(extent, blobs, buffer.subarray(used));
      used += paddedBytes;
    }
  }
  await flush();
}

/** Writes all of the bytes at the file's position. */
export async function writeAll(out: FileHandle, bytes: Uint8Array): Promise<void> {
  let done = 0;
  while (done < bytes.length) done += (await out.write(bytes, done, bytes.length - done)).bytesWritten;
}

/**
 * Reads a blob into the start of `space`, which has room for at least one byte more: a blob that is too long shows
 * there. Synchronous, because opening a hundred thousand files one by one through the thread pool takes several times
 * as long.
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
    throw systemCode(error) === 'ENOENT' ? missingBlob(digest) : error;
  }
}

function checkSize(digest: Digest, foundBytes: number, expectedBytes: number): void {
  if (foundBytes !== expectedBytes) throw wrongSize(digest, foundBytes, expectedBytes);
}

/** In pieces through the empty buffer, which is zero again afterwards. */
async function copyLargeBlob(out: FileHandle, extent: IsoExtent, blobs: BlobFiles, buffer: Buffer): Promise<void> {
  const { lengthBytes, source } = extent;
  const handle = await open(blobs.path(source.digest), 'r');
  const sum = createHash('sha256');
  try {
    checkSize(source.digest, (await handle.stat()).size, lengthBytes);
    for (let done = 0; done < lengthBytes; ) {
      const { bytesRead } = await handle.read(buffer, 0, Math.min(buffer.length, lengthBytes - done), done);
      if (bytesRead === 0) throw wrongSize(source.digest, done, lengthBytes);
      sum.update(buffer.subarray(0, bytesRead));
      await writeAll(out, buffer.subarray(0, bytesRead));
      done += bytesRead;
    }
  } finally {
    await handle.close();
  }
  if (sum.digest('hex') !== source.digest) throw damagedBlob(source.digest);
  buffer.fill(0);
  const fillBytes = (SECTOR_BYTES - (lengthBytes % SECTOR_BYTES)) % SECTOR_BYTES;
  await writeAll(out, buffer.subarray(0, fillBytes));
}
