// The store's error class, and how the file system's own errors become it.
import { PratiqueError } from '../base/errors.ts';

export class StoreError extends PratiqueError {}

/** The code of a Node system error (`ENOSPC`), or undefined for anything else. */
export function systemErrorCode(error: unknown): string | undefined {
  if (!(error instanceof Error) || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

/** A failed disk operation as a StoreError: a full disk (SQLite's word for it included) is told apart from the rest. */
export function diskError(error: unknown, doing: string, folder: string): PratiqueError {
  if (error instanceof PratiqueError) return error;
  const isFull =
    ['ENOSPC', 'EDQUOT'].includes(systemErrorCode(error) ?? '') ||
    (error instanceof Error && error.message.includes('database or disk is full'));
  if (!isFull) {
    return new StoreError('host-fault/store', `${doing} in ${folder}`, {
      cause: error,
      next: 'check the folder, its permissions and the disk under it',
    });
  }
  return new StoreError('host-fault/disk-full', `${doing}: the disk that holds ${folder} is full`, {
    cause: error,
    next: 'free space there or lower the store budget; what was stored before is intact',
  });
}

/** Waits for a file operation for which a missing file is as good as done. */
export async function ignoreMissing(work: Promise<unknown>): Promise<void> {
  try {
    await work;
  } catch (error) {
    if (systemErrorCode(error) !== 'ENOENT') throw error;
  }
}
