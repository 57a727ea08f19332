// Re-reads blobs to find the ones that rotted on the disk after they had been verified.
import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Clock } from '../base/clock.ts';
import type { Digest } from '../base/digest.ts';
import { SCRUB_PIECE_BYTES } from '../base/limits.ts';
import { diskError, systemErrorCode } from './errors.ts';

export type ScrubOptions = {
  /** Reading speed at most, so that the VMs on the same disk do not feel it; unlimited when absent. */
  readonly bytesPerSecond?: number;
  /** Only blobs that were verified last before this wall time, or, by a clock that was wrong, after now; all when absent. */
  readonly verifiedBeforeMs?: number;
  readonly signal?: AbortSignal;
};

export type RottenBlob = {
  readonly digest: Digest;
  /** What is wrong with it: other content, unreadable, or gone. */
  readonly fault: 'altered' | 'unreadable' | 'missing';
  /** Who had pinned it, and therefore may have it on a drive. */
  readonly owners: readonly string[];
  /** Where the bad file lies now; null when there is none. */
  readonly quarantinePath: string | null;
};

export type ScrubReport = {
  readonly checkedBlobs: number;
  readonly checkedBytes: number;
  readonly rotten: readonly RottenBlob[];
};

export type BlobHealth = 'sound' | 'altered' | 'unreadable' | 'missing';

async function hashPieces(handle: FileHandle, clock: Clock, options: ScrubOptions): Promise<string> {
  const hash = createHash('sha256');
  const piece = Buffer.allocUnsafe(SCRUB_PIECE_BYTES);
  const startedMs = clock.monotonicMs();
  let doneBytes = 0;
  for (;;) {
    options.signal?.throwIfAborted();
    const { bytesRead } = await handle.read(piece, 0, piece.length, doneBytes);
    if (bytesRead === 0) return hash.digest('hex');
    hash.update(piece.subarray(0, bytesRead));
    doneBytes += bytesRead;
    if (options.bytesPerSecond === undefined) continue;
    const dueMs = startedMs + (doneBytes / options.bytesPerSecond) * 1000;
    const aheadMs = dueMs - clock.monotonicMs();
    if (aheadMs > 0) await clock.sleep(aheadMs, options.signal);
  }
}

/** What the host has too little of at the moment: that says nothing about a blob. */
const SHORTAGES: ReadonlySet<string | undefined> = new Set(['EMFILE', 'ENFILE', 'ENOMEM', 'EAGAIN']);

/** Hashes one blob file and says how it is. Rejects when aborted, and with StoreError when this process cannot look now. */
export async function examineBlob(
  path: string,
  digest: Digest,
  clock: Clock,
  options: ScrubOptions,
): Promise<BlobHealth> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(path, 'r');
    const found = await hashPieces(handle, clock, options);
    return found === digest ? 'sound' : 'altered';
  } catch (error) {
    options.signal?.throwIfAborted();
    if (SHORTAGES.has(systemErrorCode(error)))
      throw diskError(error, `reading the blob ${digest} again`, dirname(path));
    return systemErrorCode(error) === 'ENOENT' ? 'missing' : 'unreadable';
  } finally {
    await handle?.close();
  }
}
