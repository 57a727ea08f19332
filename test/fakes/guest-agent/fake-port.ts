// The guest's end of a channel in memory: whole of Port, with a host side that can be closed and a line that can be full.
import type { Port } from '../../../guest-agent/platform/platform.ts';

export class FakePort {
  readonly port: Port;
  /** False: the host side is closed, as QEMU's is while nobody is connected. */
  isOpen = true;
  /** Bytes the line takes before it says `again`. */
  capacityBytes = Number.POSITIVE_INFINITY;
  /** At most so many bytes are taken or given at once, so that lines come in pieces. */
  pieceBytes = 700;
  readonly #toHost: (text: string) => void;
  #inbox = Buffer.alloc(0);
  #onReadable: (() => void) | null = null;
  #onWritable: (() => void) | null = null;
  readonly #isAlive: () => boolean;
  readonly #decoder = new TextDecoder();

  /** `isAlive`: whether somebody in the guest still reads. */
  constructor(toHost: (text: string) => void, isAlive: () => boolean = () => true, isDevice = true) {
    this.#toHost = toHost;
    this.#isAlive = isAlive;
    this.port = {
      isDevice,
      read: (buffer) => this.#read(buffer),
      write: (bytes) => this.#write(bytes),
      onReadable: (listener) => {
        this.#onReadable = listener;
        this.#wake();
      },
      onWritable: (listener) => {
        this.#onWritable = listener;
        this.#wake();
      },
      close: () => {},
    };
  }

  /** Bytes from the host. */
  give(text: string): void {
    if (!this.isOpen) return;
    this.#inbox = Buffer.concat([this.#inbox, Buffer.from(text)]);
    this.#wake();
  }

  close(): void {
    this.isOpen = false;
    this.#inbox = Buffer.alloc(0);
    this.#wake();
  }

  makeRoom(bytes: number): void {
    this.capacityBytes = bytes;
    this.#wake();
  }

  #read(buffer: Uint8Array): number | 'again' | 'closed' {
    if (!this.isOpen) return 'closed';
    const size = Math.min(buffer.length, this.#inbox.length, this.pieceBytes);
    if (size === 0) return 'again';
    buffer.set(this.#inbox.subarray(0, size));
    this.#inbox = this.#inbox.subarray(size);
    return size;
  }

  #write(bytes: Uint8Array): number | 'again' | 'closed' {
    if (!this.isOpen || this.capacityBytes === 0) return 'again';
    const size = Math.min(bytes.length, this.capacityBytes, this.pieceBytes);
    this.capacityBytes -= size;
    this.#toHost(this.#decoder.decode(bytes.slice(0, size), { stream: true }));
    return size;
  }

  /** Calls the listeners like a poll: later, and as long as there is something to do. */
  #wake(): void {
    setImmediate(() => {
      if (!this.#isAlive()) return;
      if (this.#onReadable !== null && (this.#inbox.length > 0 || !this.isOpen)) {
        this.#onReadable();
        this.#wake();
      }
      if (this.#onWritable !== null && this.isOpen && this.capacityBytes > 0) this.#onWritable();
    });
  }
}
