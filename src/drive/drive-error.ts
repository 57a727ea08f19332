// The error class of this folder.
import type { Digest } from '../base/digest-text.ts';
import { type ErrorCode, type ErrorOptions, PratiqueError } from '../base/errors.ts';

/** A drive that cannot be built or written. `digest` names the blob to fetch again where one is missing or damaged. */
export class DriveError extends PratiqueError {
  readonly digest: Digest | undefined;

  constructor(code: ErrorCode, message: string, options: ErrorOptions & { readonly digest?: Digest } = {}) {
    super(code, message, options);
    this.digest = options.digest;
  }
}

/** The system's error word (`ENOENT`) of anything thrown, undefined when it has none. */
export function systemCode(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined;
}
