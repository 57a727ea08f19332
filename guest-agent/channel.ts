// The agent's end of a session with the host: hello, open, envelope, counters, chunks. The messages are src/guest/messages.ts.
//
//   no session ──hello──► (again and again) ──open──► session ──open with another nonce──► session
//        ▲                                               │
//        └── a host message that does not fit, a refuse that asks for a hello, a new connection
import { findShapeFault } from '../src/base/json-shape.ts';
import {
  AGENT_HELLO_INTERVAL_MAX_MS,
  AGENT_HELLO_INTERVAL_MS,
  CHANNEL_CHUNK_TEXT_BYTES_MAX,
  CHANNEL_LINE_BYTES_MAX,
  CHANNEL_MESSAGE_BYTES_MAX,
  FREE_TEXT_CHARS_MAX,
} from '../src/base/limits.ts';
import { printable } from '../src/base/printable.ts';
import type { AgentBody, AgentMessageOf, HostBody, HostMessage, HostMessageOf } from '../src/guest/messages.ts';
import { asciiJson } from './ascii-json.ts';
import { ChunkCollector } from './chunks.ts';
import { type Link, makeLink } from './link.ts';
import type { Platform } from './platform/platform.ts';
import { EMBEDDED } from './schemas.ts';

/** What the agent is told; `ping` and `refuse` are answered here. */
export type HostRequest = Exclude<HostBody, { type: 'ping' | 'refuse' }>;

export type ChannelListener = {
  /** A session began. An earlier one ended with it. */
  readonly opened: (session: { readonly nonce: string; readonly vm: string }) => void;
  readonly request: (request: HostRequest) => void;
};

export type Channel = {
  /** Sends a message in the present session; returns whether there is one. */
  readonly send: (body: AgentBody) => boolean;
  readonly session: () => { readonly nonce: string; readonly vm: string } | null;
  /** Bytes the host has not taken yet. */
  readonly pendingBytes: () => number;
};

export type ChannelOptions = {
  readonly platform: Platform;
  readonly findPort: () => string | null;
  readonly boot: string;
  readonly agentVersion: string;
  readonly listener: ChannelListener;
};

/** Opens the agent's end of the channel for good. */
export function openChannel(options: ChannelOptions): Channel {
  return new AgentEnd(options);
}

/** Whether a message of the agent fits the channel. */
export function fitsChannel(platform: Platform, body: AgentBody): boolean {
  return asciiJson(platform.encode, body).length <= CHANNEL_MESSAGE_BYTES_MAX;
}

type InSession = Exclude<HostMessage, { type: 'open' }>;

type Session = {
  readonly nonce: string;
  readonly vm: string;
  sentSeq: number;
  receivedSeq: number;
  transfers: number;
  readonly chunks: ChunkCollector;
};

class AgentEnd implements Channel {
  readonly #options: ChannelOptions;
  readonly #platform: Platform;
  readonly #link: Link;
  #session: Session | null = null;
  #cancelHello = () => {};
  #lastHelloMs = Number.NEGATIVE_INFINITY;

  constructor(options: ChannelOptions) {
    this.#options = options;
    this.#platform = options.platform;
    this.#link = makeLink(options.platform, options.findPort, {
      connected: () => this.#beginHello(),
      line: (line) => this.#receive(line),
      tooLong: () => this.#violated('too-long', `a line is longer than ${CHANNEL_LINE_BYTES_MAX} bytes`),
      disconnected: () => this.#endSession(),
    });
    // Not at once: what arrives must find the owner of this channel complete.
    options.platform.clock.after(0, () => this.#link.start());
  }

  session() {
    return this.#session;
  }

  pendingBytes(): number {
    return this.#link.pendingBytes();
  }

  send(body: AgentBody): boolean {
    const session = this.#session;
    if (session === null) return false;
    const { type, ...fields } = body;
    const whole = this.#json({ type, ...this.#nextEnvelope(session), ...fields });
    if (whole.length + 1 <= CHANNEL_LINE_BYTES_MAX) {
      session.sentSeq += 1;
      this.#link.write(whole);
      return true;
    }
    this.#sendChunks(session, this.#json(body));
    return true;
  }

  #sendChunks(session: Session, text: string): void {
    const total = Math.ceil(text.length / CHANNEL_CHUNK_TEXT_BYTES_MAX);
    session.transfers += 1;
    for (let index = 0; index < total; index += 1) {
      const start = index * CHANNEL_CHUNK_TEXT_BYTES_MAX;
      const chunk = {
        type: 'chunk',
        ...this.#nextEnvelope(session),
        transfer: session.transfers,
        index,
        total,
        text: text.slice(start, start + CHANNEL_CHUNK_TEXT_BYTES_MAX),
      } as const satisfies AgentMessageOf<'chunk'>;
      session.sentSeq += 1;
      this.#link.write(this.#json(chunk));
    }
  }

  #json(value: unknown): string {
    return asciiJson(this.#platform.encode, value);
  }

  #nextEnvelope(session: Session) {
    return { nonce: session.nonce, boot: this.#options.boot, seq: session.sentSeq + 1 };
  }

  #endSession(): void {
    this.#session = null;
    this.#cancelHello();
  }

  /** Says hello, at once unless one was said just now, and again until the host opens a session. */
  #beginHello(): void {
    this.#endSession();
    const sinceLastMs = this.#platform.clock.monotonicMs() - this.#lastHelloMs;
    const waitMs = Math.max(0, AGENT_HELLO_INTERVAL_MS - sinceLastMs);
    if (waitMs === 0) this.#hello(AGENT_HELLO_INTERVAL_MS);
    else this.#cancelHello = this.#platform.clock.after(waitMs, () => this.#hello(AGENT_HELLO_INTERVAL_MS));
  }

  #hello(nextMs: number): void {
    const { boot, agentVersion } = this.#options;
    const hello: AgentMessageOf<'hello'> = {
      type: 'hello',
      protocols: [...EMBEDDED.protocols],
      boot,
      seq: 0,
      agent: { version: agentVersion },
    };
    this.#lastHelloMs = this.#platform.clock.monotonicMs();
    // The host may open a session the moment it reads this, so the next hello is planned first.
    this.#cancelHello = this.#platform.clock.after(nextMs, () =>
      this.#hello(Math.min(2 * nextMs, AGENT_HELLO_INTERVAL_MAX_MS)),
    );
    this.#link.write(this.#json(hello));
  }

  /** The host said something that cannot be: this session is worth nothing any more. */
  #violated(code: string, detail: string): void {
    if (this.#session === null) return;
    this.#platform.log(`the host's message is refused (${code}): ${printable(detail)}`);
    this.send({ type: 'fault', code, detail: printable(detail, FREE_TEXT_CHARS_MAX) });
    this.#beginHello();
  }

  #receive(line: string): void {
    const parsed = parseHostMessage(line);
    if (parsed.kind === 'malformed') {
      this.#violated('malformed', parsed.detail);
      return;
    }
    const { message } = parsed;
    if (message.type === 'open') this.#open(message);
    else if (message.type === 'refuse' && message.nonce === EMBEDDED.noSessionNonce) this.#refusedOutside(message);
    else if (this.#session !== null) this.#receiveInSession(this.#session, message);
  }

  #open(open: HostMessageOf<'open'>): void {
    if (open.boot !== this.#options.boot || !EMBEDDED.protocols.some((known) => known === open.protocol)) {
      this.#platform.log('the host opened a session for another boot or protocol; it is ignored');
      return;
    }
    if (this.#session?.nonce === open.nonce) return;
    this.#endSession();
    // What is queued belongs to an earlier session; the host would only refuse it.
    this.#link.clear();
    const { nonce, vm } = open;
    this.#session = { nonce, vm, sentSeq: 0, receivedSeq: 0, transfers: 0, chunks: new ChunkCollector() };
    this.#options.listener.opened({ nonce, vm });
  }

  /** The host has no session and wants a hello, or speaks no protocol of ours. */
  #refusedOutside(refuse: HostMessageOf<'refuse'>): void {
    this.#platform.log(`the host refused (${refuse.code}): ${printable(refuse.detail)}`);
    if (this.#session !== null) this.#beginHello();
  }

  #receiveInSession(session: Session, message: InSession): void {
    const wrong = this.#findMisfit(session, message);
    if (wrong !== null) {
      this.#violated(wrong.code, wrong.detail);
      return;
    }
    session.receivedSeq = message.seq;
    if (message.type === 'chunk') this.#receiveChunk(session, message);
    else this.#deliver(message);
  }

  #findMisfit(session: Session, message: InSession): { readonly code: string; readonly detail: string } | null {
    if (message.nonce !== session.nonce) {
      return { code: 'stale-session', detail: `${message.type} of another session` };
    }
    if (message.boot !== this.#options.boot) return { code: 'wrong-boot', detail: `${message.type} for another boot` };
    if (message.seq === session.receivedSeq + 1) return null;
    return { code: 'out-of-order', detail: `${message.type} has ${message.seq} after ${session.receivedSeq}` };
  }

  #receiveChunk(session: Session, message: HostMessageOf<'chunk'>): void {
    const outcome = session.chunks.add(message);
    if (outcome.kind === 'more') return;
    if (outcome.kind === 'refused') {
      this.#violated(outcome.code, outcome.detail);
      return;
    }
    const { nonce, boot, seq } = message;
    const parsed = parseHostMessage(outcome.text, { nonce, boot, seq });
    if (parsed.kind === 'malformed') this.#violated('malformed', parsed.detail);
    else if (parsed.message.type === 'open' || parsed.message.type === 'chunk') {
      this.#violated('malformed', `${parsed.message.type} in chunks`);
    } else this.#deliver(parsed.message);
  }

  #deliver(message: Exclude<HostMessage, { type: 'open' | 'chunk' }>): void {
    switch (message.type) {
      case 'ping':
        this.send({ type: 'pong' });
        return;
      case 'refuse':
        this.#refused(message);
        return;
      default: {
        const { nonce: _nonce, boot: _boot, seq: _seq, ...request } = message;
        this.#options.listener.request(request);
      }
    }
  }

  #refused(refuse: HostMessageOf<'refuse'>): void {
    this.#platform.log(`the host refused a message (${refuse.code}): ${printable(refuse.detail)}`);
    // These two, said in our present session, are about a message sent before we entered it; `unexpected` ends nothing.
    if (['unexpected', 'stale-session', 'wrong-boot'].includes(refuse.code)) return;
    this.#beginHello();
  }
}

type Envelope = { readonly nonce: string; readonly boot: string; readonly seq: number };
type Parsed =
  | { readonly kind: 'message'; readonly message: HostMessage }
  | { readonly kind: 'malformed'; readonly detail: string };

/** Parses one message of the host; with an envelope given, the text carries none. */
function parseHostMessage(text: string, envelope?: Envelope): Parsed {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return { kind: 'malformed', detail: 'not JSON' };
  }
  if (typeof value !== 'object' || value === null || !('type' in value) || typeof value.type !== 'string') {
    return { kind: 'malformed', detail: 'not a message' };
  }
  const schema = Object.hasOwn(EMBEDDED.hostMessages, value.type) ? EMBEDDED.hostMessages[value.type] : undefined;
  if (schema === undefined)
    return { kind: 'malformed', detail: `no message has the type ${printable(value.type, 40)}` };
  const whole = envelope === undefined ? value : { ...value, ...envelope };
  const fault = findShapeFault(schema, whole);
  if (fault !== null) return { kind: 'malformed', detail: `${value.type}: ${fault.field} ${fault.why}` };
  // The cast holds: the value fits the schema of its type, from which HostMessage is derived.
  return { kind: 'message', message: whole as HostMessage };
}
