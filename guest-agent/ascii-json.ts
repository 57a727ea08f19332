// JSON in ASCII only: its length in characters is its length in bytes, and it may be cut anywhere.

/** JSON text with everything beyond ASCII escaped. */
export function asciiJson(encode: (text: string) => Uint8Array, value: unknown): string {
  const text = JSON.stringify(value);
  if (encode(text).length === text.length) return text;
  return text.replace(/[\u0080-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);
}
