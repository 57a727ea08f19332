// Splits the bytes of a channel into lines whose length is bounded in bytes, and refuses what is not UTF-8.
import { isUtf8 } from 'node:buffer';

const NEWLINE = 0x0a;
const PENDING_BYTES_MIN = 1024;

export type ChannelLine =
  | { readonly kind: 'line'; readonly text: string }
  | { readonly kind: 'too-long' }
  | { readonly kind: 'not-utf8' };

export type ChannelLineSplitter = {
  /** Feeds bytes; returns the complete lines in them, in order. A line over the limit is reported once and dropped up to its newline. */
  readonly push: (bytes: Uint8Array) => readonly ChannelLine[];
};

/** A splitter that keeps at most `lineBytesMax` bytes (newline included) and copies what it keeps. */
export function makeChannelLineSplitter(lineBytesMax: number): ChannelLineSplitter {
  // One buffer that grows by doubling: pieces in a list would let a guest that sends single bytes hold an object for each.
  let pending = Buffer.alloc(0);
  let pendingBytes = 0;
  let isDropping = false;

  const keep = (piece: Uint8Array) => {
    const needed = pendingBytes + piece.length;
    if (needed > pending.length) {
      const grown = Buffer.alloc(Math.min(lineBytesMax, Math.max(PENDING_BYTES_MIN, 2 * pending.length, needed)));
      pending.copy(grown, 0, 0, pendingBytes);
      pending = grown;
    }
    pending.set(piece, pendingBytes);
    pendingBytes = needed;
  };
  const finish = (last: Uint8Array): ChannelLine => {
    if (pendingBytes === 0) return decode(last);
    keep(last);
    const line = decode(pending.subarray(0, pendingBytes));
    pendingBytes = 0;
    return line;
  };

  return {
    push: (bytes) => {
      const lines: ChannelLine[] = [];
      let start = 0;
      for (let end = bytes.indexOf(NEWLINE); end >= 0; end = bytes.indexOf(NEWLINE, start)) {
        const piece = bytes.subarray(start, end);
        start = end + 1;
        const isTooLong = pendingBytes + piece.length + 1 > lineBytesMax;
        if (isTooLong) pendingBytes = 0;
        if (isTooLong && !isDropping) lines.push({ kind: 'too-long' });
        if (!isTooLong && !isDropping) lines.push(finish(piece));
        isDropping = false;
      }
      const rest = bytes.subarray(start);
      if (isDropping) return lines;
      // The newline still has to fit, hence >=.
      if (pendingBytes + rest.length < lineBytesMax) {
        keep(rest);
        return lines;
      }
      pendingBytes = 0;
      isDropping = true;
      lines.push({ kind: 'too-long' });
      return lines;
    },
  };
}

function decode(bytes: Uint8Array): ChannelLine {
  if (!isUtf8(bytes)) return { kind: 'not-utf8' };
  return { kind: 'line', text: Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('utf8') };
}
