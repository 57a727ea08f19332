// One guest channel over a real unix socket, with the guest's end in the hands of a test.
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import type { HostMessage } from '../../src/guest/messages.ts';
import {
  type GuestChannel,
  type GuestChannelOptions,
  type GuestEvent,
  openGuestChannel,
} from '../../src/guest/session.ts';
import type { VmId } from '../../src/model/ids.ts';

export const BOOT = '0b8c1d52-7c6e-4f0a-9a51-2f6f1f0d3c44';
const WAIT_MS = 10_000;

/** A clock whose monotonic time a test can push forward. Its timers run in real time. */
export function makeSkippingClock(): Clock & { readonly skip: (durationMs: number) => void } {
  let skippedMs = 0;
  return {
    ...systemClock,
    monotonicMs: () => systemClock.monotonicMs() + skippedMs,
    skip: (durationMs) => {
      skippedMs += durationMs;
    },
  };
}

/** A listening socket in a folder of its own, as QEMU's character device is. */
export async function listen(t: TestContext): Promise<{ readonly server: Server; readonly path: string }> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-channel-'));
  const path = join(folder, 'agent.sock');
  const server = createServer();
  server.listen(path);
  await once(server, 'listening');
  t.after(async () => {
    server.close();
    await rm(folder, { recursive: true, force: true });
  });
  return { server, path };
}

/** Resolves when the condition holds; rejects after ten seconds. */
export async function until(what: string, condition: () => boolean): Promise<void> {
  const deadlineMs = systemClock.monotonicMs() + WAIT_MS;
  while (!condition()) {
    if (systemClock.monotonicMs() > deadlineMs) throw new Error(`waited ${WAIT_MS} ms in vain: ${what}`);
    await systemClock.sleep(1);
  }
}

export class Harness {
  readonly events: GuestEvent[] = [];
  readonly heard: HostMessage[] = [];
  readonly clock = makeSkippingClock();
  readonly channel: GuestChannel;
  readonly #server: Server;
  #guest: Socket | null = null;
  #text = '';
  seq = 0;

  constructor(server: Server, socketPath: string, options: Partial<GuestChannelOptions>) {
    this.#server = server;
    this.#server.on('connection', (socket) => this.#accept(socket));
    this.channel = openGuestChannel({
      vm: 'web-1' as VmId,
      socketPath,
      clock: this.clock,
      log: silentLog,
      onEvent: (event) => this.events.push(event),
      ...options,
    });
  }

  #accept(socket: Socket): void {
    this.#guest = socket;
    this.#text = '';
    socket.on('error', () => {}); // The host may cut us off.
    socket.setEncoding('utf8');
    socket.on('data', (piece: string) => {
      const lines = (this.#text + piece).split('\n');
      this.#text = lines.pop() ?? '';
      for (const line of lines) this.heard.push(JSON.parse(line) as HostMessage);
    });
  }

  get guest(): Socket {
    if (this.#guest === null) throw new Error('assertion failed: the host has not connected');
    return this.#guest;
  }

  async connected(): Promise<this> {
    await until('the host connects', () => this.#guest !== null);
    return this;
  }

  /** Says hello and waits for the session. */
  async hello(boot = BOOT): Promise<string> {
    const before = this.count('opened');
    this.send(JSON.stringify({ type: 'hello', protocols: [1], boot, seq: 0, agent: { version: '0.1.0' } }));
    await until('the session is opened', () => this.count('opened') > before);
    this.seq = 0;
    return this.nonce;
  }

  get nonce(): string {
    return this.channel.session()?.nonce ?? '';
  }

  /** A line: text gets its newline. */
  send(line: string | Uint8Array): void {
    this.guest.write(line);
    this.guest.write('\n');
  }

  /** Fields of the next message of the present session. */
  envelope(): { readonly nonce: string; readonly boot: string; readonly seq: number } {
    return { nonce: this.nonce, boot: BOOT, seq: this.seq + 1 };
  }

  /** Sends a valid message and waits until it is handed on: everything sent before it has been read by then. */
  async sayMarker(): Promise<void> {
    const before = this.count('message');
    this.send(JSON.stringify({ type: 'bye', ...this.envelope(), reason: 'shutdown' }));
    this.seq += 1;
    await until('a valid message is accepted', () => this.count('message') > before);
  }

  count(kind: GuestEvent['kind']): number {
    return this.events.filter((event) => event.kind === kind).length;
  }

  refusals(): readonly string[] {
    return this.events.flatMap((event) => (event.kind === 'refused' ? [event.code] : []));
  }

  misbehaviour(): string | undefined {
    return this.events.flatMap((event) => (event.kind === 'misbehaved' ? [event.code] : []))[0];
  }
}

/** A channel whose host end has connected. Both ends are closed after the test. */
export async function openHarness(t: TestContext, options: Partial<GuestChannelOptions> = {}): Promise<Harness> {
  const { server, path } = await listen(t);
  const harness = new Harness(server, path, options);
  t.after(() => {
    harness.channel.close();
    harness.guest.destroy();
  });
  return await harness.connected();
}
