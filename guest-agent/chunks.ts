// Messages of the host that are longer than a line, put together again within bounds.
import { CHANNEL_MESSAGE_BYTES_MAX } from '../src/base/limits.ts';
import type { HostMessageOf } from '../src/guest/messages.ts';

export type ChunkOutcome =
  | { readonly kind: 'more' }
  | { readonly kind: 'complete'; readonly text: string }
  | { readonly kind: 'refused'; readonly code: 'out-of-order' | 'too-long'; readonly detail: string };

/** Collects the chunks of one session. */
export class ChunkCollector {
  #transfersFinished = 0;
  #pieces: string[] = [];
  #total = 0;
  #chars = 0;

  add(chunk: HostMessageOf<'chunk'>): ChunkOutcome {
    const isFirst = this.#pieces.length === 0;
    const isNext =
      chunk.transfer === this.#transfersFinished + 1 &&
      chunk.index === this.#pieces.length &&
      (isFirst || chunk.total === this.#total);
    if (!isNext) {
      return { kind: 'refused', code: 'out-of-order', detail: `chunk ${chunk.index} of transfer ${chunk.transfer}` };
    }
    this.#total = chunk.total;
    this.#chars += chunk.text.length;
    if (this.#chars > CHANNEL_MESSAGE_BYTES_MAX) {
      return { kind: 'refused', code: 'too-long', detail: `transfer ${chunk.transfer}` };
    }
    this.#pieces.push(chunk.text);
    if (this.#pieces.length < this.#total) return { kind: 'more' };
    const text = this.#pieces.join('');
    this.#transfersFinished += 1;
    this.#pieces = [];
    this.#chars = 0;
    return { kind: 'complete', text };
  }
}
