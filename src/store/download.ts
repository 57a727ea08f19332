// Turns a vendor's byte stream into a verified file: bounded, resumed, hashed, synced, and only then renamed into place.
import { createHash, type Hash } from 'node:crypto';
import { constants } from 'node:fs';
import { chmod, type FileHandle, mkdir, open, rename, statfs, unlink } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Clock } from '../base/clock.ts';
import type { Digest } from '../base/digest.ts';
import { syncFolder } from '../base/durable-file.ts';
import { errorFamily, PratiqueError } from '../base/errors.ts';
import { DOWNLOAD_ATTEMPTS_MAX, DOWNLOAD_RETRY_FIRST_MS, SCRUB_PIECE_BYTES } from '../base/limits.ts';
import type { Log } from '../base/log.ts';
import { diskError, ignoreMissing, StoreError, systemErrorCode } from './errors.ts';

/** The disk operations whose order makes a blob durable; a power-loss test cuts the power at any of them. */
export type Disk = {
  readonly write: (file: FileHandle, piece: Uint8Array, position: number) => Promise<void>;
  readonly syncFile: (file: FileHandle) => Promise<void>;
  readonly rename: (from: string, to: string) => Promise<void>;
  readonly syncFolder: (folder: string) => Promise<void>;
  readonly freeBytes: (folder: string) => Promise<number>;
};

export const realDisk: Disk = {
  write: async (file, piece, position) => {
    for (let done = 0; done < piece.length; ) {
      const { bytesWritten } = await file.write(piece, done, piece.length - done, position + done);
      done += bytesWritten;
    }
  },
  syncFile: (file) => file.sync(),
  rename,
  syncFolder,
  freeBytes: async (folder) => {
    const space = await statfs(folder);
    return space.bavail * space.bsize;
  },
};

export type Source = (offsetBytes: number, signal: AbortSignal) => Promise<AsyncIterable<Uint8Array>>;

export type Download = {
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly open: Source;
  readonly partialPath: string;
  readonly blobPath: string;
  readonly signal: AbortSignal;
  readonly onProgress: (doneBytes: number) => void;
};

export type DownloadTools = {
  readonly disk: Disk;
  readonly clock: Clock;
  readonly log: Log;
  /** Runs the work when one of the host's download slots is free. */
  readonly withSlot: <T>(signal: AbortSignal, work: () => Promise<T>) => Promise<T>;
};

/** Content that the vendor's signed metadata does not describe; what lies on the disk of it is worthless. */
class WrongContent extends StoreError {
  readonly resumedBytes: number;

  constructor(code: 'vendor-ill/digest-mismatch' | 'vendor-ill/oversize', message: string, resumedBytes: number) {
    super(code, message, {
      next: 'try again later; if it stays, the mirror serves other content than its metadata says',
    });
    this.resumedBytes = resumedBytes;
  }
}

/** Rejects as soon as the signal aborts, even when the work itself does not listen. */
async function orAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  // It may have failed by the abort itself, and nobody would hear it: that would end the process.
  work.catch(() => {});
  signal.throwIfAborted();
  let stop = (): void => {};
  const aborted = new Promise<never>((_resolve, reject) => {
    stop = () => reject(signal.reason);
    signal.addEventListener('abort', stop, { once: true });
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    signal.removeEventListener('abort', stop);
  }
}

/** The source's pieces. Its own errors become the vendor's fault here, so that whatever else fails is our disk's. */
async function* piecesFromSource(download: Download, offsetBytes: number): AsyncGenerator<Uint8Array> {
  const { signal } = download;
  let iterator: AsyncIterator<Uint8Array> | undefined;
  try {
    const stream = await orAborted(download.open(offsetBytes, signal), signal);
    iterator = stream[Symbol.asyncIterator]();
    for (;;) {
      const step = await orAborted(iterator.next(), signal);
      if (step.done === true) return;
      yield step.value;
    }
  } catch (cause) {
    if (signal.aborted || cause instanceof PratiqueError) throw cause;
    throw new StoreError('vendor-ill/stream', `blob ${download.digest}: the vendor's stream broke`, {
      cause,
      next: 'try again; the download goes on where it stopped',
    });
  } finally {
    // Not awaited: a source that hangs would hang us; and what it says now no longer matters.
    void iterator?.return?.()?.catch(() => {});
  }
}

/** Hashes what an earlier attempt (or an earlier life of this process) left; a part that is too long is dropped. */
async function hashPart(file: FileHandle, sizeBytes: number): Promise<{ hash: Hash; partBytes: number }> {
  const hash = createHash('sha256');
  const { size } = await file.stat();
  if (size > sizeBytes) {
    await file.truncate(0);
    return { hash, partBytes: 0 };
  }
  const piece = Buffer.allocUnsafe(SCRUB_PIECE_BYTES);
  let partBytes = 0;
  while (partBytes < size) {
    const { bytesRead } = await file.read(piece, 0, Math.min(piece.length, size - partBytes), partBytes);
    if (bytesRead === 0) break;
    hash.update(piece.subarray(0, bytesRead));
    partBytes += bytesRead;
  }
  return { hash, partBytes };
}

async function requireSpace(download: Download, missingBytes: number, disk: Disk): Promise<void> {
  const folder = dirname(download.partialPath);
  const freeBytes = await disk.freeBytes(folder);
  if (freeBytes >= missingBytes) return;
  throw new StoreError(
    'host-fault/disk-full',
    `blob ${download.digest} needs ${missingBytes} more bytes, the disk that holds ${folder} has ${freeBytes} free`,
    { next: 'free space there or lower the store budget; what was stored before is intact' },
  );
}

/** Writes a piece; on a full disk gives back what this attempt took, so that the host itself can go on. */
async function writePiece(
  download: Download,
  file: FileHandle,
  piece: Uint8Array,
  position: number,
  resumedBytes: number,
  disk: Disk,
): Promise<void> {
  try {
    await disk.write(file, piece, position);
  } catch (cause) {
    const error = diskError(cause, `storing blob ${download.digest}`, dirname(download.partialPath));
    if (error.code === 'host-fault/disk-full') await file.truncate(resumedBytes);
    throw error;
  }
}

/** Fills the partial file up to its promised size and returns the hash of all of it. */
async function fillPart(
  download: Download,
  file: FileHandle,
  disk: Disk,
): Promise<{ found: string; resumedBytes: number }> {
  const { hash, partBytes } = await hashPart(file, download.sizeBytes);
  let doneBytes = partBytes;
  download.onProgress(doneBytes);
  if (doneBytes < download.sizeBytes) {
    await requireSpace(download, download.sizeBytes - doneBytes, disk);
    for await (const piece of piecesFromSource(download, doneBytes)) {
      if (doneBytes + piece.length > download.sizeBytes) {
        const message = `blob ${download.digest}: the vendor sent more than the promised ${download.sizeBytes} bytes`;
        throw new WrongContent('vendor-ill/oversize', message, partBytes);
      }
      await writePiece(download, file, piece, doneBytes, partBytes, disk);
      hash.update(piece);
      doneBytes += piece.length;
      download.onProgress(doneBytes);
    }
  }
  if (doneBytes === download.sizeBytes) return { found: hash.digest('hex'), resumedBytes: partBytes };
  throw new StoreError(
    'vendor-ill/truncated',
    `blob ${download.digest}: the vendor's stream ended after ${doneBytes} of ${download.sizeBytes} bytes`,
    { next: 'try again; the download goes on where it stopped' },
  );
}

async function attempt(download: Download, disk: Disk): Promise<void> {
  // A crash just before the rename leaves the part read-only.
  await ignoreMissing(chmod(download.partialPath, 0o600));
  const file = await open(download.partialPath, constants.O_RDWR | constants.O_CREAT, 0o600);
  try {
    const { found, resumedBytes } = await fillPart(download, file, disk);
    if (found !== download.digest) {
      const message = `blob ${download.digest}: the vendor sent content with the digest ${found}`;
      throw new WrongContent('vendor-ill/digest-mismatch', message, resumedBytes);
    }
    await file.chmod(0o444);
    await disk.syncFile(file);
  } finally {
    await file.close();
  }
  const folder = dirname(download.blobPath);
  await mkdir(folder, { recursive: true, mode: 0o700 });
  await disk.rename(download.partialPath, download.blobPath);
  await disk.syncFolder(folder);
  await disk.syncFolder(dirname(folder)); // The two-digit folder itself may be new.
}

/** Answers that stay the same however often one asks: a 4xx (but not "later", "too many"), a refused redirect, a bad certificate. */
const LASTING = /^vendor-ill\/(http-4(?!08|25|29)\d\d|redirect|tls|too-large)$/;

function mayRetry(error: unknown): boolean {
  if (!(error instanceof PratiqueError) || LASTING.test(error.code)) return false;
  return ['vendor-ill', 'timeout'].includes(errorFamily(error.code)) || error.code === 'host-fault/network';
}

/** An attempt whose expected errors are all PratiqueErrors; anything else is a bug and passes. */
async function attemptOnce(download: Download, disk: Disk): Promise<void> {
  try {
    await attempt(download, disk);
  } catch (error) {
    if (error instanceof PratiqueError || systemErrorCode(error) === undefined) throw error;
    throw diskError(error, `storing blob ${download.digest}`, dirname(download.partialPath));
  }
}

/**
 * Downloads one blob until it lies verified at its place. Failed attempts are repeated with growing pauses, each going
 * on where the last one stopped. Content that does not match is thrown away; if part of it came from an earlier
 * attempt, that part may have been the bad one, so it is fetched whole once more.
 * Throws `vendor-ill/…` (the source's own error, or digest-mismatch, oversize, truncated), `host-fault/disk-full`,
 * `host-fault/store`, or the signal's reason.
 */
export async function downloadBlob(download: Download, tools: DownloadTools): Promise<void> {
  for (let failures = 0; ; ) {
    try {
      await tools.withSlot(download.signal, () => attemptOnce(download, tools.disk));
      return;
    } catch (error) {
      download.signal.throwIfAborted();
      failures += 1;
      if (error instanceof WrongContent) {
        await ignoreMissing(unlink(download.partialPath));
        if (error.resumedBytes === 0) throw error;
      }
      if (!mayRetry(error) || failures >= DOWNLOAD_ATTEMPTS_MAX) throw error;
      const pauseMs = DOWNLOAD_RETRY_FIRST_MS * 2 ** (failures - 1);
      tools.log.warn({ digest: download.digest, failures, pauseMs, err: error }, 'download failed, trying again');
      await tools.clock.sleep(pauseMs, download.signal);
    }
  }
}
