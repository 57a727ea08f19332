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
  if (value === null || typeof value !== 'object' || isCanonical(value)) return JSON.stringify(value);
  const fields = Object.entries(value)
    .filter(([, field]) => field !== undefined)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, field]) => `${JSON.stringify(key)}:${canonicalJson(field)}`);
  return `{${fields.join(',')}}`;
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
