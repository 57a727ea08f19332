// The number and date encodings of ECMA-119.

/** A 16-bit number in both byte orders (ECMA-119, 7.2.3). */
export function putBoth16(target: Buffer, offset: number, value: number): void {
  target.writeUInt16LE(value, offset);
  target.writeUInt16BE(value, offset + 2);
}

/** A 32-bit number in both byte orders (ECMA-119, 7.3.3). */
export function putBoth32(target: Buffer, offset: number, value: number): void {
  target.writeUInt32LE(value, offset);
  target.writeUInt32BE(value, offset + 4);
}

/** The 7-byte date of a record, in UTC (ECMA-119, 9.1.5). */
export function putRecordDate(target: Buffer, offset: number, wallMs: number): void {
  target.set(recordDate(wallMs), offset);
}

/** Most records of an image have the same time. */
const lastDate = { wallMs: Number.NaN, bytes: new Uint8Array(7) };

function recordDate(wallMs: number): Uint8Array {
  if (wallMs === lastDate.wallMs) return lastDate.bytes;
  const date = new Date(wallMs);
  const day = [date.getUTCFullYear() - 1900, date.getUTCMonth() + 1, date.getUTCDate()];
  lastDate.wallMs = wallMs;
  lastDate.bytes.set([...day, date.getUTCHours(), date.getUTCMinutes(), date.getUTCSeconds(), 0]);
  return lastDate.bytes;
}

/** The 17-byte date of a volume descriptor, in UTC (ECMA-119, 8.4.26.1). */
export function putVolumeDate(target: Buffer, offset: number, wallMs: number): void {
  const digits = new Date(wallMs).toISOString().replaceAll(/[^0-9]/g, '');
  target.write(digits.slice(0, 16), offset, 'latin1');
  target[offset + 16] = 0;
}

/** A volume date that says "not given" (ECMA-119, 8.4.26.1). */
export function putNoVolumeDate(target: Buffer, offset: number): void {
  target.write('0'.repeat(16), offset, 'latin1');
  target[offset + 16] = 0;
}

/** Writes text of one byte a character. For short names this takes a third of what a call of `Buffer.write` does. */
export function putLatin1(target: Buffer, offset: number, text: string): void {
  for (let unit = 0; unit < text.length; unit += 1) target[offset + unit] = text.charCodeAt(unit);
}

/** Writes text as UTF-16 with the high byte first. */
export function putUtf16be(target: Buffer, offset: number, text: string): void {
  for (let unit = 0; unit < text.length; unit += 1) {
    const code = text.charCodeAt(unit);
    target[offset + 2 * unit] = code >>> 8;
    target[offset + 2 * unit + 1] = code;
  }
}
