// The serial line between one VM and the host: bytes both ways, which it may lose, repeat, reorder, garble, or say again much later.
import { EventEmitter } from 'node:events';
import type { Port } from '../../guest-agent/platform/platform.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { ConnectSocket } from '../../src/guest/connection.ts';
import type { Random } from './random.ts';

type Direction = 'to-host' | 'to-guest';

/** Lines of the guest that are remembered, to be said again. */
const REMEMBERED_MAX = 60;
const WAITING_BYTES_MAX = 8 * 1024 * 1024;

export type Wire = {
  /** A host process connects; its socket knows nothing of the others. */
  readonly connect: (process: { readonly isDead: () => boolean }) => ReturnType<ConnectSocket>;
  /** The agent opens the port of this boot. What the kernel of an earlier boot held is gone. */
  readonly openPort: () => Port;
  readonly closePort: () => void;
  /** QEMU is gone, or the line is cut: whoever holds the host's end hears it. */
  readonly hangUp: () => void;
  /** A line that no agent wrote. */
  readonly inject: (line: string) => void;
  /** Says a line of any earlier session or boot again. */
  readonly replay: () => boolean;
  isLossy: boolean;
  /** The guest writes nothing, whatever it has to say. */
  isMute: boolean;
  /** Bytes that wait at the host's end. */
  readonly waitingBytes: () => number;
};

export type WireDeps = {
  readonly clock: Clock;
  readonly random: Random;
  /** Whether there is a QEMU that listens. */
  readonly isListening: () => boolean;
};

/** The host's end: what `net.connect` would give. */
class HostSocket extends EventEmitter {
  isOpen = false;
  isOver = false;
  waitingBytes = 0;
  readonly #send: (socket: HostSocket, line: string) => void;

  constructor(send: (socket: HostSocket, line: string) => void) {
    super();
    this.#send = send;
  }

  get writableLength(): number {
    return this.waitingBytes;
  }

  write(line: string): boolean {
    if (this.isOpen && !this.isOver) this.#send(this, line);
    return true;
  }

  destroy(): void {
    this.isOver = true;
  }
}

export function makeWire({ clock, random, isListening }: WireDeps): Wire {
  let host: { readonly socket: HostSocket; readonly isDead: () => boolean } | null = null;
  let port: { inbox: Buffer[]; onReadable: (() => void) | null } | null = null;
  const remembered: string[] = [];
  /** What the host said while no agent read. */
  let unread: string[] = [];
  const lastAtMs = { 'to-host': 0, 'to-guest': 0 };

  const isConnected = (): boolean => {
    if (host === null) return false;
    return host.socket.isOpen && !host.socket.isOver && !host.isDead();
  };

  const self: Wire = {
    connect: (process) => {
      const socket = new HostSocket(sendToGuest);
      const mine = { socket, isDead: process.isDead };
      clock.after(1, () => {
        if (socket.isOver || process.isDead()) return;
        if (!isListening()) {
          socket.isOver = true;
          socket.emit('close');
          return;
        }
        if (host !== null && host.socket !== socket) drop(host.socket);
        host = mine;
        socket.isOpen = true;
        socket.emit('connect');
      });
      // The cast holds: an emitter of connect, data and close with these members is all that a connection uses.
      return socket as unknown as ReturnType<ConnectSocket>;
    },
    openPort,
    closePort: () => {
      port = null;
      unread = [];
      if (host !== null) host.socket.waitingBytes = 0;
    },
    hangUp: () => {
      if (host !== null) drop(host.socket);
      host = null;
      tellAgent();
    },
    inject: (line) => carry('to-host', line),
    replay: () => {
      const line = remembered[random.between(0, remembered.length - 1)];
      if (line === undefined) return false;
      deliver('to-host', line);
      return true;
    },
    isLossy: false,
    isMute: false,
    waitingBytes: () => host?.socket.waitingBytes ?? 0,
  };

  function drop(socket: HostSocket): void {
    if (socket.isOver) return;
    const wasOpen = socket.isOpen;
    socket.isOver = true;
    if (wasOpen && host !== null && !host.isDead()) socket.emit('close');
  }

  /** A process that died holds nothing open any more. */
  function tellAgent(): void {
    port?.onReadable?.();
  }

  function openPort(): Port {
    const mine: NonNullable<typeof port> = { inbox: unread.map((line) => Buffer.from(line)), onReadable: null };
    unread = [];
    if (host !== null) host.socket.waitingBytes = 0;
    port = mine;
    return {
      isDevice: true,
      read: (buffer) => {
        if (port !== mine || !isConnected()) return 'closed';
        const first = mine.inbox.shift();
        if (first === undefined) return 'again';
        const size = Math.min(first.length, buffer.length);
        buffer.set(first.subarray(0, size));
        if (size < first.length) mine.inbox.unshift(first.subarray(size));
        if (mine.inbox.length > 0) clock.after(0, () => mine.onReadable?.());
        return size;
      },
      write: (bytes) => {
        if (port !== mine || !isConnected()) return 'closed';
        const line = Buffer.from(bytes).toString('utf8');
        remembered.push(line);
        if (remembered.length > REMEMBERED_MAX) remembered.shift();
        if (!self.isMute) carry('to-host', line);
        return bytes.length;
      },
      onReadable: (listener) => {
        mine.onReadable = listener;
      },
      onWritable: () => {},
      close: () => {
        if (port === mine) port = null;
      },
    };
  }

  function sendToGuest(socket: HostSocket, line: string): void {
    if (host?.socket !== socket) return;
    if (port !== null) {
      carry('to-guest', line);
      return;
    }
    if (socket.waitingBytes > WAITING_BYTES_MAX) return;
    unread.push(line);
    socket.waitingBytes += line.length;
  }

  /** What becomes of a line on its way. */
  function carry(direction: Direction, line: string): void {
    if (!self.isLossy) {
      deliver(direction, line);
      return;
    }
    const fate = random.pick([
      [70, 'arrives'],
      [10, 'is lost'],
      [8, 'arrives twice'],
      [8, 'arrives late'],
      [4, 'is garbled'],
    ]);
    if (fate === 'is lost') return;
    const said = fate === 'is garbled' ? garble(line) : line;
    deliver(direction, said, fate === 'arrives late' ? random.between(50, 5_000) : 0);
    if (fate === 'arrives twice') deliver(direction, line, random.between(1, 3_000));
  }

  function garble(line: string): string {
    const at = random.between(0, Math.max(0, line.length - 2));
    return `${line.slice(0, at)}${random.chance(0.5) ? '' : '\u0000'}${line.slice(at + 1)}`;
  }

  /** In order, unless it is held up on the way. */
  function deliver(direction: Direction, line: string, heldUpMs = 0): void {
    const soonestMs = clock.monotonicMs() + random.between(1, 20);
    const atMs = heldUpMs > 0 ? soonestMs + heldUpMs : Math.max(soonestMs, lastAtMs[direction]);
    if (heldUpMs === 0) lastAtMs[direction] = atMs;
    const [toSocket, toPort] = [host, port];
    clock.after(atMs - clock.monotonicMs(), () => {
      if (direction === 'to-host') {
        if (toSocket === host && isConnected()) host?.socket.emit('data', Buffer.from(line));
      } else if (toPort !== null && toPort === port) {
        toPort.inbox.push(Buffer.from(line));
        toPort.onReadable?.();
      }
    });
  }

  return self;
}
