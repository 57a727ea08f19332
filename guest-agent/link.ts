// The line to the host: finds and opens the port, splits and queues lines, and waits politely while the host side is closed.
import {
  AGENT_PORT_RETRY_MAX_MS,
  AGENT_PORT_RETRY_MIN_MS,
  AGENT_QUEUE_BYTES_MAX,
  CHANNEL_LINE_BYTES_MAX,
} from '../src/base/limits.ts';
import type { Platform, Port } from './platform/platform.ts';

export type LinkListener = {
  /** The host side is open (again): whatever was said before is lost. */
  readonly connected: () => void;
  readonly line: (line: string) => void;
  /** A line was longer than a line may be; it was dropped. */
  readonly tooLong: () => void;
  readonly disconnected: () => void;
};

export type Link = {
  /** Begins to look for the port. Once. */
  readonly start: () => void;
  /** Queues a line, given without its newline. Dropped while there is no host. */
  readonly write: (line: string) => void;
  /** Forgets what is queued, but for a line that is half sent. */
  readonly clear: () => void;
  readonly pendingBytes: () => number;
};

/** A line that, once started, keeps itself open for good. `findPort` returns the port's path, or null while there is none. */
export function makeLink(platform: Platform, findPort: () => string | null, listener: LinkListener): Link {
  return new PortLink(platform, findPort, listener);
}

const NEWLINE = 10;

class PortLink implements Link {
  readonly #platform: Platform;
  readonly #findPort: () => string | null;
  readonly #listener: LinkListener;
  readonly #buffer = new Uint8Array(CHANNEL_LINE_BYTES_MAX);
  #port: Port | null = null;
  #isConnected = false;
  #retryMs = AGENT_PORT_RETRY_MIN_MS;
  #lastTrouble = '';
  /** The beginning of a line that has not ended yet; `#isDropping` when it is too long already. */
  #partial = new Uint8Array(CHANNEL_LINE_BYTES_MAX);
  #partialSize = 0;
  #isDropping = false;
  #queue: Uint8Array<ArrayBuffer>[] = [];
  #queuedBytes = 0;
  /** Bytes of the queue's first line that are sent. */
  #sentBytes = 0;

  constructor(platform: Platform, findPort: () => string | null, listener: LinkListener) {
    this.#platform = platform;
    this.#findPort = findPort;
    this.#listener = listener;
  }

  start(): void {
    const path = this.#findPort();
    if (path === null) {
      this.#trouble('the port of the host is not there yet');
      this.#retry(() => this.start());
      return;
    }
    try {
      this.#port = this.#platform.openPort(path);
    } catch (error) {
      this.#trouble(error instanceof Error ? error.message : String(error));
      this.#retry(() => this.start());
      return;
    }
    this.#look();
  }

  write(line: string): void {
    if (!this.#isConnected) return;
    const bytes = this.#platform.encode(`${line}\n`);
    if (this.#queuedBytes + bytes.length > AGENT_QUEUE_BYTES_MAX) {
      // A host that reads nothing for so long has given the session up; the next hello starts anew.
      this.#trouble('the host does not read; what was queued for it is dropped');
      this.clear();
      return;
    }
    this.#queue.push(bytes);
    this.#queuedBytes += bytes.length;
    this.#flush();
  }

  clear(): void {
    const first = this.#queue[0];
    const keep = first !== undefined && this.#sentBytes > 0 ? [first] : [];
    this.#queue = keep;
    this.#queuedBytes = keep.reduce((sum, bytes) => sum + bytes.length, 0);
  }

  pendingBytes(): number {
    return this.#queuedBytes - this.#sentBytes;
  }

  /** Says a trouble once, not at every retry. */
  #trouble(text: string): void {
    if (text !== this.#lastTrouble) this.#platform.log(text);
    this.#lastTrouble = text;
  }

  #retry(step: () => void): void {
    this.#platform.clock.after(this.#retryMs, step);
    this.#retryMs = Math.min(2 * this.#retryMs, AGENT_PORT_RETRY_MAX_MS);
  }

  /** Looks whether the host side is open; a closed one reads as the end of the file, again and again. */
  #look(): void {
    const got = this.#port?.read(this.#buffer) ?? 'closed';
    if (got === 'closed') {
      this.#closed();
      return;
    }
    this.#isConnected = true;
    this.#retryMs = AGENT_PORT_RETRY_MIN_MS;
    this.#lastTrouble = '';
    this.#port?.onReadable(() => this.#readAll());
    this.#listener.connected();
    if (got !== 'again') this.#receive(this.#buffer.subarray(0, got));
  }

  #readAll(): void {
    const port = this.#port;
    if (port === null) return;
    const got = port.read(this.#buffer);
    if (got === 'again') return;
    if (got === 'closed') this.#closed();
    else this.#receive(this.#buffer.subarray(0, got));
  }

  #closed(): void {
    const port = this.#port;
    port?.onReadable(null);
    port?.onWritable(null);
    this.#partialSize = 0;
    this.#isDropping = false;
    this.#queue = [];
    this.#queuedBytes = 0;
    this.#sentBytes = 0;
    const wasConnected = this.#isConnected;
    this.#isConnected = false;
    if (port?.isDevice === true) {
      this.#retry(() => this.#look());
    } else {
      port?.close();
      this.#port = null;
      this.#retry(() => this.start());
    }
    if (wasConnected) this.#listener.disconnected();
  }

  #flush(): void {
    const port = this.#port;
    if (port === null) return;
    for (let first = this.#queue[0]; first !== undefined; first = this.#queue[0]) {
      const taken = port.write(first.subarray(this.#sentBytes));
      if (taken === 'again') {
        port.onWritable(() => this.#flush());
        return;
      }
      if (taken === 'closed') {
        this.#closed();
        return;
      }
      this.#sentBytes += taken;
      if (this.#sentBytes < first.length) continue;
      this.#queue.shift();
      this.#queuedBytes -= first.length;
      this.#sentBytes = 0;
    }
    port.onWritable(null);
  }

  #receive(bytes: Uint8Array<ArrayBuffer>): void {
    let start = 0;
    for (let end = bytes.indexOf(NEWLINE); end >= 0; end = bytes.indexOf(NEWLINE, start)) {
      this.#keep(bytes.subarray(start, end));
      start = end + 1;
      const isTooLong = this.#isDropping;
      const line = isTooLong ? '' : this.#platform.decode(this.#partial.subarray(0, this.#partialSize));
      this.#partialSize = 0;
      this.#isDropping = false;
      if (isTooLong) this.#listener.tooLong();
      else this.#listener.line(line);
    }
    this.#keep(bytes.subarray(start));
  }

  #keep(piece: Uint8Array<ArrayBuffer>): void {
    // The newline counts too, hence not the whole of the buffer.
    if (this.#partialSize + piece.length >= this.#partial.length) this.#isDropping = true;
    if (this.#isDropping) return;
    this.#partial.set(piece, this.#partialSize);
    this.#partialSize += piece.length;
  }
}
