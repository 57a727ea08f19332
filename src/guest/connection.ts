// The socket under a guest channel: connects again and again, splits bytes into bounded lines, bounds what waits to be sent.
import { connect, type Socket } from 'node:net';
import type { Clock } from '../base/clock.ts';
import {
  CHANNEL_BYTES_PER_SECOND_MAX,
  CHANNEL_CONNECT_DELAY_MAX_MS,
  CHANNEL_CONNECT_DELAY_MIN_MS,
  CHANNEL_LINE_BYTES_MAX,
  CHANNEL_OUTGOING_BYTES_MAX,
} from '../base/limits.ts';
import type { Log } from '../base/log.ts';
import { type Bucket, makeBucket } from './bucket.ts';
import { type ChannelLine, makeChannelLineSplitter } from './channel-lines.ts';

export type ConnectionListener = {
  readonly connected: () => void;
  readonly line: (line: ChannelLine) => void;
  /** An established connection ended; the next one is on its way unless the listener closes. */
  readonly disconnected: () => void;
  readonly overLimit: (code: 'too-many-bytes' | 'does-not-read', detail: string) => void;
};

/** Opens a unix socket, as node:net does; the simulator gives a line of its own, which loses and repeats. */
export type ConnectSocket = (path: string) => Pick<Socket, 'on' | 'write' | 'writableLength' | 'destroy'>;

export type ConnectionOptions = {
  readonly socketPath: string;
  readonly connect?: ConnectSocket;
  readonly clock: Clock;
  readonly log: Log;
  readonly listener: ConnectionListener;
};

/** A connection to a unix socket that is renewed until it is closed. */
export class Connection {
  readonly #options: ConnectionOptions;
  readonly #bytesAllowed: Bucket;
  #socket: ReturnType<ConnectSocket> | null = null;
  #isClosed = false;
  #cancelConnect = () => {};

  constructor(options: ConnectionOptions) {
    this.#options = options;
    this.#bytesAllowed = makeBucket({
      capacity: 2 * CHANNEL_BYTES_PER_SECOND_MAX,
      refillPerSecond: CHANNEL_BYTES_PER_SECOND_MAX,
      monotonicMs: options.clock.monotonicMs,
    });
    this.#connect(CHANNEL_CONNECT_DELAY_MIN_MS);
  }

  /** Bytes that wait because nobody reads them yet; null while there is no connection. */
  pendingBytes(): number | null {
    return this.#socket === null ? null : this.#socket.writableLength;
  }

  /** Sends a line; dropped while there is no connection. */
  write(line: string): void {
    const socket = this.#socket;
    if (socket === null) return;
    if (socket.writableLength + line.length <= CHANNEL_OUTGOING_BYTES_MAX) {
      socket.write(line);
      return;
    }
    const detail = `${socket.writableLength} bytes wait for a guest that does not read them`;
    this.#options.listener.overLimit('does-not-read', detail);
  }

  /** Ends the connection for good; the listener hears nothing more. */
  close(): void {
    this.#isClosed = true;
    this.#cancelConnect();
    this.#socket?.destroy();
    this.#socket = null;
  }

  #connect(nextDelayMs: number): void {
    const { log, socketPath, listener } = this.#options;
    const splitter = makeChannelLineSplitter(CHANNEL_LINE_BYTES_MAX);
    const socket = (this.#options.connect ?? connect)(socketPath);
    let wasConnected = false;
    this.#socket = socket;
    socket.on('connect', () => {
      wasConnected = true;
      if (this.#socket === socket) listener.connected();
    });
    socket.on('data', (bytes: Buffer) => this.#receive(socket, splitter.push, bytes));
    // `close` follows every error and tells the same.
    socket.on('error', (error) => log.debug({ err: error }, 'the guest channel has a socket error'));
    socket.on('close', () => {
      if (this.#socket !== socket) return;
      this.#socket = null;
      if (wasConnected) listener.disconnected();
      if (!this.#isClosed) this.#connectAfter(wasConnected ? CHANNEL_CONNECT_DELAY_MIN_MS : nextDelayMs);
    });
  }

  #connectAfter(delayMs: number): void {
    const nextDelayMs = Math.min(CHANNEL_CONNECT_DELAY_MAX_MS, 2 * delayMs);
    this.#cancelConnect = this.#options.clock.after(delayMs, () => this.#connect(nextDelayMs));
  }

  #receive(
    socket: ReturnType<ConnectSocket>,
    split: (bytes: Uint8Array) => readonly ChannelLine[],
    bytes: Buffer,
  ): void {
    if (this.#socket !== socket) return;
    if (!this.#bytesAllowed.take(bytes.length)) {
      const detail = `more than ${CHANNEL_BYTES_PER_SECOND_MAX} bytes a second`;
      this.#options.listener.overLimit('too-many-bytes', detail);
      return;
    }
    for (const line of split(bytes)) {
      // A line may have ended the channel; those after it are not looked at.
      if (this.#socket !== socket) return;
      this.#options.listener.line(line);
    }
  }
}
