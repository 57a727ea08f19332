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
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`;
  if (value === null || typeof value !== 'object') return JSON.stringify(value);
  const fields = Object.entries(value)
    .filter(([, field]) => field !== undefined)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, field]) => `${JSON.stringify(key)}:${canonicalJson(field)}`);
  return `{${fields.join(',')}}`;
}
