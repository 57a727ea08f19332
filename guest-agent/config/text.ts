// Bytes of files that others write to, too: what is not ours in them stays as it is, in whatever encoding.
import { AgentError, type Platform } from '../platform/platform.ts';

/** One character a byte. */
export type Binary = string;

const SLICE = 8_192;

export function toBinary(bytes: Uint8Array<ArrayBuffer>): Binary {
  const pieces: string[] = [];
  for (let at = 0; at < bytes.length; at += SLICE) pieces.push(String.fromCharCode(...bytes.subarray(at, at + SLICE)));
  return pieces.join('');
}

export function fromBinary(text: Binary): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += 1) bytes[at] = text.charCodeAt(at);
  return bytes;
}

/** Text of ours, as it stands in such a file. */
export function encoded(platform: Platform, text: string): Binary {
  return toBinary(platform.encode(text));
}

const DIGITS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';

/** RFC 4648, 4, with white space between the digits. Throws AgentError `bad-base64`. */
export function fromBase64(text: string): Uint8Array<ArrayBuffer> {
  const digits = text.replace(/\s+/g, '');
  if (digits.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(digits))
    throw new AgentError('bad-base64', 'the content is no base64');
  const padding = digits.endsWith('==') ? 2 : digits.endsWith('=') ? 1 : 0;
  const bytes = new Uint8Array((digits.length / 4) * 3 - padding);
  let at = 0;
  for (let index = 0; index < digits.length; index += 4) {
    const [a = 0, b = 0, c = 0, d = 0] = [0, 1, 2, 3].map((step) =>
      Math.max(0, DIGITS.indexOf(digits.charAt(index + step))),
    );
    const word = (a << 18) | (b << 12) | (c << 6) | d;
    for (const shift of [16, 8, 0]) if (at < bytes.length) bytes[at++] = (word >> shift) & 255;
  }
  return bytes;
}

const beginOf = (item: string) => `# pratique ${item}: begin`;
const endOf = (item: string) => `# pratique ${item}: end`;

/** An item's own lines in a file; null if it has none. */
export function findBlock(text: Binary, item: string): Binary | null {
  const [begin, end] = bounds(text, item);
  return begin < 0 ? null : text.slice(begin, end);
}

/** The file without the item's lines. */
export function withoutBlock(text: Binary, item: string): Binary {
  const [begin, end] = bounds(text, item);
  return begin < 0 ? text : text.slice(0, begin) + text.slice(end);
}

/** The file with the item's lines, where they stood before or at its end. */
export function withBlock(text: Binary, item: string, lines: readonly Binary[]): Binary {
  const block = `${[beginOf(item), ...lines, endOf(item)].join('\n')}\n`;
  const [begin, end] = bounds(text, item);
  if (begin >= 0) return text.slice(0, begin) + block + text.slice(end);
  return text + (text === '' || text.endsWith('\n') ? '' : '\n') + block;
}

/** From the first line of a block to behind its last; a block whose end somebody removed ends with its first line. */
function bounds(text: Binary, item: string): readonly [number, number] {
  const lines = text.split('\n');
  const first = lines.indexOf(beginOf(item));
  if (first < 0) return [-1, -1];
  const last = Math.max(first, lines.indexOf(endOf(item), first));
  const length = (count: number) => lines.slice(0, count).reduce((sum, line) => sum + line.length + 1, 0);
  return [length(first), Math.min(text.length, length(last + 1))];
}
