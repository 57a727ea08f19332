// Which blobs may go when the store is over its budget. Pure: the store does the removing.
import type { Digest } from '../base/digest.ts';

export type RetentionBlob = {
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly usedSequence: number;
  readonly isPinned: boolean;
};

/**
 * The blobs to remove, least recently used first, until the rest fits the budget or only pinned ones are left.
 * A pinned blob is never among them, however far over budget the store is.
 */
export function chooseExpendable(blobs: readonly RetentionBlob[], budgetBytes: number): readonly Digest[] {
  let totalBytes = blobs.reduce((sum, blob) => sum + blob.sizeBytes, 0);
  const unpinned = blobs.filter((blob) => !blob.isPinned).sort((a, b) => a.usedSequence - b.usedSequence);
  const chosen: Digest[] = [];
  for (const blob of unpinned) {
    if (totalBytes <= budgetBytes) break;
    chosen.push(blob.digest);
    totalBytes -= blob.sizeBytes;
  }
  return chosen;
}
