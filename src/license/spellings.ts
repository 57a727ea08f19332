// How a secret looks in other people's texts: what is to be recognised when it comes back.

/** The text as it is, and in URLs, JSON, hexadecimal and base64 (wherever it begins in what is encoded). */
export function spellingsOf(secret: string): readonly string[] {
  const bytes = Buffer.from(secret);
  const hex = bytes.toString('hex');
  const base64 = [0, 1, 2].flatMap((before) => {
    const encoded = Buffer.concat([Buffer.alloc(before), bytes]).toString('base64');
    // The characters at both ends also hold bits of what stands before and behind.
    const first = Math.ceil((before * 8) / 6);
    const inner = encoded.slice(first, Math.floor(((before + bytes.length) * 8) / 6));
    return [inner, inner.replaceAll('+', '-').replaceAll('/', '_')];
  });
  const json = JSON.stringify(secret).slice(1, -1);
  return [...new Set([secret, encodeURIComponent(secret), json, hex, hex.toUpperCase(), ...base64])];
}
