// Splits a stream of text into lines of bounded length. Without Node: the guest agent uses it too.

export type LineSplitter = {
  /** Feeds text; returns the complete lines in it, without their newline. Returns `overflow` once a line is too long. */
  readonly push: (text: string) => { readonly lines: readonly string[]; readonly overflow: boolean };
};

/**
 * A splitter that keeps at most `lineCharsMax` characters of an unfinished line. A longer line is dropped up to its
 * newline and reported once as `overflow`; the lines after it are whole again.
 */
export function makeLineSplitter(lineCharsMax: number): LineSplitter {
  let pending = '';
  let isDropping = false;
  return {
    push: (text) => {
      const lines: string[] = [];
      let overflow = false;
      let start = 0;
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n', start)) {
        const piece = text.slice(start, end);
        start = end + 1;
        const isTooLong = pending.length + piece.length > lineCharsMax;
        if (!isDropping && !isTooLong) lines.push(pending + piece);
        if (!isDropping && isTooLong) overflow = true;
        isDropping = false;
        pending = '';
      }
      if (isDropping) return { lines, overflow };
      pending += text.slice(start);
      if (pending.length > lineCharsMax) {
        overflow = true;
        isDropping = true;
        pending = '';
      }
      return { lines, overflow };
    },
  };
}
