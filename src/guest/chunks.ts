// Messages longer than a line: cut into numbered chunks, and put together again within bounds.
import { CHANNEL_CHUNK_TEXT_BYTES_MAX, CHANNEL_MESSAGE_BYTES_MAX } from '../base/limits.ts';

/** Cuts JSON text into pieces of at most CHANNEL_CHUNK_TEXT_BYTES_MAX bytes of UTF-8, never inside a character. */
export function cutIntoChunks(text: string): readonly string[] {
  const bytes = Buffer.from(text, 'utf8');
  const pieces: string[] = [];
  for (let start = 0; start < bytes.length; ) {
    let end = Math.min(bytes.length, start + CHANNEL_CHUNK_TEXT_BYTES_MAX);
    // A byte 10xxxxxx continues a character; four bytes are the longest, so this steps back three times at most.
    while (end < bytes.length && ((bytes[end] ?? 0) & 0xc0) === 0x80) end -= 1;
    pieces.push(bytes.toString('utf8', start, end));
    start = end;
  }
  return pieces;
}

/** A chunked message on its way in. Its bytes are kept outside the JavaScript heap. */
export type Transfer = {
  readonly transfer: number;
  readonly total: number;
  readonly pieces: Buffer[];
  readonly sizeBytes: number;
};

export type Chunk = {
  readonly transfer: number;
  readonly index: number;
  readonly total: number;
  readonly text: string;
};

export type ChunkOutcome =
  | { readonly kind: 'more'; readonly transfer: Transfer }
  | { readonly kind: 'complete'; readonly text: string }
  | { readonly kind: 'refused'; readonly code: 'out-of-order' | 'too-long'; readonly detail: string };

/** Adds a chunk to the transfer under way (null: none), which must not be used afterwards. `finished` is the number of transfers completed in this session. */
export function addChunk(current: Transfer | null, finished: number, chunk: Chunk): ChunkOutcome {
  const expected: Transfer = current ?? { transfer: finished + 1, total: chunk.total, pieces: [], sizeBytes: 0 };
  const isNext =
    chunk.transfer === expected.transfer && chunk.total === expected.total && chunk.index === expected.pieces.length;
  if (!isNext) {
    const wanted = `transfer ${expected.transfer}, chunk ${expected.pieces.length} of ${expected.total}`;
    return {
      kind: 'refused',
      code: 'out-of-order',
      detail: `chunk ${chunk.index} of ${chunk.total} of transfer ${chunk.transfer} came where ${wanted} is next`,
    };
  }
  const piece = Buffer.from(chunk.text, 'utf8');
  const sizeBytes = expected.sizeBytes + piece.length;
  if (sizeBytes > CHANNEL_MESSAGE_BYTES_MAX)
    return {
      kind: 'refused',
      code: 'too-long',
      detail: `the chunks of transfer ${chunk.transfer} are more than ${CHANNEL_MESSAGE_BYTES_MAX} bytes together`,
    };
  // Pushed, not copied: copying would be quadratic in chunks that the guest chooses the size of.
  expected.pieces.push(piece);
  if (expected.pieces.length === expected.total)
    return { kind: 'complete', text: Buffer.concat(expected.pieces).toString('utf8') };
  return { kind: 'more', transfer: { ...expected, sizeBytes } };
}
