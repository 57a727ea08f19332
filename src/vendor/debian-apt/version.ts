// Orders Debian versions: [epoch:]upstream[-revision], deb-version(7).
import { printable } from '../../base/printable.ts';
import { VendorError } from '../errors.ts';

type DebianVersion = { readonly epoch: string; readonly upstream: string; readonly revision: string };

/** dpkg reads an epoch with strtol(3), which takes a plus. */
const FORM = /^(?:\+?(\d+):)?([A-Za-z0-9.+:~-]+?)(?:-([A-Za-z0-9.+~]+))?$/;

function tryParse(text: string): DebianVersion | undefined {
  const parts = FORM.exec(text);
  if (parts?.[2] === undefined || (parts[1] === undefined && text.includes(':')) || text.endsWith('-'))
    return undefined;
  return { epoch: parts[1] ?? '0', upstream: parts[2], revision: parts[3] ?? '0' };
}

function parseVersion(text: string): DebianVersion {
  const version = tryParse(text);
  if (version !== undefined) return version;
  throw new VendorError('vendor-ill/version', `"${printable(text, 100)}" is no Debian version`);
}

/** Whether the text can be ordered as a Debian version at all. */
export function isDebianVersion(text: string): boolean {
  return tryParse(text) !== undefined;
}

const ZERO = 48;
const NINE = 57;

const isDigitAt = (text: string, index: number): boolean => {
  const code = text.charCodeAt(index);
  return code >= ZERO && code <= NINE;
};

/** The weight of a character in the non-digit parts: ~ before the end, the end (and digits) before letters, letters before the rest. */
function weightAt(text: string, index: number): number {
  if (index >= text.length || isDigitAt(text, index)) return 0;
  const code = text.charCodeAt(index);
  if (code === 126) return -1;
  const isLetter = (code >= 65 && code <= 90) || (code >= 97 && code <= 122);
  return isLetter ? code : code + 256;
}

/** Alternating runs of non-digits (by weight) and digits (by number), the algorithm of deb-version(7). */
function comparePart(a: string, b: string): number {
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    while ((i < a.length && !isDigitAt(a, i)) || (j < b.length && !isDigitAt(b, j))) {
      const order = weightAt(a, i) - weightAt(b, j);
      if (order !== 0) return order;
      i += 1;
      j += 1;
    }
    while (a.charCodeAt(i) === ZERO) i += 1;
    while (b.charCodeAt(j) === ZERO) j += 1;
    let firstDifference = 0;
    while (isDigitAt(a, i) && isDigitAt(b, j)) {
      if (firstDifference === 0) firstDifference = a.charCodeAt(i) - b.charCodeAt(j);
      i += 1;
      j += 1;
    }
    // The longer number is the larger one; numbers of any length compare without becoming a float.
    if (isDigitAt(a, i)) return 1;
    if (isDigitAt(b, j)) return -1;
    if (firstDifference !== 0) return firstDifference;
  }
  return 0;
}

/** Negative, zero or positive as `a` is older than, equal to or newer than `b`. Throws VendorError `vendor-ill/version`. */
export function compareDebianVersions(a: string, b: string): number {
  if (a === b) {
    parseVersion(a);
    return 0;
  }
  const [left, right] = [parseVersion(a), parseVersion(b)];
  return (
    comparePart(left.epoch, right.epoch) ||
    comparePart(left.upstream, right.upstream) ||
    comparePart(left.revision, right.revision)
  );
}
