// Keeps the end of what a program prints, within a bound.
import { OUTPUT_TAIL_CHARS_MAX } from '../../src/base/limits.ts';
import { printableBlock } from '../../src/base/printable.ts';

/** Bytes kept: a character has at most four. */
const KEPT_BYTES_MAX = 4 * OUTPUT_TAIL_CHARS_MAX;

export type OutputTail = {
  readonly add: (bytes: Uint8Array<ArrayBuffer>) => void;
  /** The end of the output, fit to show. */
  readonly text: () => string;
};

/** A tail that forgets the beginning once there is more than an output may hold. */
export function makeOutputTail(decode: (bytes: Uint8Array<ArrayBuffer>) => string): OutputTail {
  let kept = new Uint8Array(0);
  return {
    add: (bytes) => {
      const joined = new Uint8Array(kept.length + bytes.length);
      joined.set(kept);
      joined.set(bytes, kept.length);
      kept = joined.slice(Math.max(0, joined.length - KEPT_BYTES_MAX));
    },
    text: () => printableBlock(decode(kept), OUTPUT_TAIL_CHARS_MAX),
  };
}
