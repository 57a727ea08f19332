// What the drive asks of the store, and what it says when a blob is not as the manifest has it.
import type { Digest } from '../base/digest-text.ts';
import { DriveError } from './drive-error.ts';

/** The store's verified blobs as files. */
export type BlobFiles = {
  readonly path: (digest: Digest) => string;
  readonly has: (digest: Digest) => boolean;
};

const FETCH_AGAIN = 'fetch the blob again';

/** The store lacks a blob of the drive. */
export function missingBlob(digest: Digest): DriveError {
  return new DriveError('host-fault/blob-missing', `the blob ${digest} is not in the store`, {
    digest,
    next: FETCH_AGAIN,
  });
}

/** The blob's file does not have the size that the vendor signed. */
export function wrongSize(digest: Digest, foundBytes: number, expectedBytes: number): DriveError {
  const message = `the blob ${digest} has ${foundBytes} bytes instead of ${expectedBytes}`;
  return new DriveError('host-fault/blob-damaged', message, { digest, next: FETCH_AGAIN });
}

/** The blob's bytes are no longer those that were verified. */
export function damagedBlob(digest: Digest): DriveError {
  const message = `the blob ${digest} has changed on disk since it was verified`;
  return new DriveError('host-fault/blob-damaged', message, { digest, next: FETCH_AGAIN });
}
