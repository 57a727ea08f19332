// The Digest brand and canonical JSON, without Node, so that the guest agent can use them too.

declare const digestBrand: unique symbol;
/** A SHA-256 digest as 64 lower-case hex digits. */
export type Digest = string & { readonly [digestBrand]: true };

/** Whether the text has the form of a digest. */
export function isDigest(text: string): text is Digest {
  return /^[0-9a-f]{64}$/.test(text);
}

/** JSON with sorted keys and no spaces: equal values give equal bytes, so the text may be hashed (RFC 8785 in spirit; no floats). */
export function canonicalJson(value: unknown): string {
  const pieces: string[] = [];
  writeCanonicalJson(value, (piece) => pieces.push(piece));
  return pieces.join('');
}

/** The same text in pieces, for one so long that it should not be in memory as a whole and once more for each level. */
export function writeCanonicalJson(value: unknown, write: (piece: string) => void): void {
  if (Array.isArray(value)) {
    write('[');
    for (const [index, item] of value.entries()) {
      if (index > 0) write(',');
      writeCanonicalJson(item, write);
    }
    write(']');
  } else if (value === null || typeof value !== 'object' || isCanonical(value)) {
    write(JSON.stringify(value));
  } else {
    const fields = Object.entries(value).filter(([, field]) => field !== undefined);
    fields.sort(([a], [b]) => (a < b ? -1 : 1));
    for (const [index, [key, field]] of fields.entries()) {
      write(`${index === 0 ? '{' : ','}${JSON.stringify(key)}:`);
      writeCanonicalJson(field, write);
    }
    write(fields.length === 0 ? '{}' : '}');
  }
}

/** Whether the engine's own JSON of an object is the canonical one; it is several times as fast, and a manifest has 100,000 of them. */
function isCanonical(value: object): boolean {
  let last = '';
  for (const [key, field] of Object.entries(value)) {
    if (key < last || (field !== null && typeof field === 'object')) return false;
    last = key;
  }
  return true;
}
