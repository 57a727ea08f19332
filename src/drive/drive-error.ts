// The error class of this folder.
import type { Digest } from '../base/digest-text.ts';
import { type ErrorCode, type ErrorOptions, PratiqueError } from '../base/errors.ts';

/** Which license does not cover a VM, with the license server's code. */
export type LicenseRefusal = { readonly license: string; readonly code: string };

export type DriveErrorOptions = ErrorOptions & { readonly digest?: Digest; readonly refusal?: LicenseRefusal };

/**
 * A drive that cannot be built, written or shown. `digest` names the blob to fetch again where one is missing or damaged,
 * `refusal` what stands behind `refused/license`.
 */
export class DriveError extends PratiqueError {
  readonly digest: Digest | undefined;
  readonly refusal: LicenseRefusal | undefined;

  constructor(code: ErrorCode, message: string, options: DriveErrorOptions = {}) {
    super(code, message, options);
    this.digest = options.digest;
    this.refusal = options.refusal;
  }
}

/** The system's error word (`ENOENT`) of anything thrown, undefined when it has none. */
export function systemCode(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined;
}
