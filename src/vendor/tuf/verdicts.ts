// What a refusal of tuf-js means, as an error that says whose fault it is and what to do.
import { type ErrorCode, PratiqueError } from '../../base/errors.ts';
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';

/**
 * tuf-js has few error classes of its own and does not export them, so its wording tells them apart (the version is pinned,
 * and the attack tests see each of these). First match wins.
 */
const VERDICTS: readonly { readonly pattern: RegExp; readonly code: ErrorCode; readonly next: string }[] = [
  {
    pattern: /is expired/,
    code: 'vendor-ill/tuf-expired',
    next: "check this host's clock; otherwise the vendor has stopped signing, or somebody holds its new metadata back",
  },
  {
    pattern: /is less than current version|Expected version \d+, got|Missing file .* in new snapshot/,
    code: 'vendor-ill/tuf-rollback',
    next: 'the server offers older metadata than before: ask the vendor, or use another mirror',
  },
  {
    pattern: /was signed by \d+\/\d+ keys/,
    code: 'vendor-ill/tuf-signature',
    next: 'the metadata are not signed by the keys you trust: ask the vendor before you trust others',
  },
  {
    pattern: /doesn't match timestamp|does not match snapshot|Expected (length|hash)|Missing .* in snapshot/,
    code: 'vendor-ill/tuf-mix-and-match',
    next: 'the metadata files do not belong together: try again later, or use another mirror',
  },
];

/** The error of a failed round. */
export function tufErrorOf(cause: unknown): PratiqueError {
  if (cause instanceof VendorError) return cause;
  if (cause instanceof PratiqueError) {
    const isEndless = cause.code === 'vendor-ill/too-large';
    const code = isEndless ? 'vendor-ill/tuf-endless-data' : cause.code;
    const next = cause.next === undefined ? {} : { next: cause.next };
    return new VendorError(code, 'the TUF metadata could not be fetched', { cause, ...next });
  }
  const text = cause instanceof Error ? cause.message : String(cause);
  const verdict = VERDICTS.find(({ pattern }) => pattern.test(text));
  if (verdict === undefined) {
    return new VendorError('vendor-ill/tuf-malformed', `the TUF metadata are malformed: ${printable(text)}`, {
      next: 'ask the vendor, or use another mirror',
    });
  }
  return new VendorError(verdict.code, `the TUF metadata are refused: ${printable(text)}`, { next: verdict.next });
}
