// The host end of one VM's channel. Everything from the guest is hostile: bounded, validated, counted, refused.
//
//   connecting ─► no session ──hello──► session(nonce, boot) ──hello──► session(new nonce)
//        ▲             ▲                    │ a message that does not fit: refuse, nothing changes
//        └── closed ◄──┴────────────────────┘ too much, or too often wrong: misbehaved, cut for good
import type { Clock } from '../base/clock.ts';
import { randomToken } from '../base/digest.ts';
import {
  CHANNEL_HELLO_REQUESTS_MAX,
  CHANNEL_HELLO_WAIT_MS,
  CHANNEL_HELLOS_PER_MINUTE_MAX,
  CHANNEL_LINES_PER_SECOND_MAX,
  CHANNEL_REFUSALS_FORGIVEN_PER_HOUR,
  CHANNEL_REFUSALS_MAX,
} from '../base/limits.ts';
import type { Log } from '../base/log.ts';
import type { VmId } from '../model/ids.ts';
import { makeBucket } from './bucket.ts';
import type { ChannelLine } from './channel-lines.ts';
import { Connection, type ConnectSocket } from './connection.ts';
import { type Hello, type Refusal, receiveLine, type Session } from './inbound.ts';
import type { AgentReport, HostBody, RefuseCode } from './messages.ts';
import { encodeBody, encodeOpen, encodeRefuseOutsideSession, type Numbering } from './outbound.ts';

export type GuestEvent =
  /** The agent said hello and has a session. An earlier one ended with it, without an event of its own. */
  | { readonly kind: 'opened'; readonly nonce: string; readonly boot: string; readonly agentVersion: string }
  | { readonly kind: 'message'; readonly nonce: string; readonly boot: string; readonly body: AgentReport }
  /** The connection is gone and the session with it. Unless the guest misbehaved, the channel connects again by itself. */
  | { readonly kind: 'closed' }
  /** A line was refused and changed nothing; `count` is the number of refusals since the channel was opened. */
  | { readonly kind: 'refused'; readonly code: RefuseCode; readonly detail: string; readonly count: number }
  /** The guest went over a limit: the channel is cut for good, `closed` follows. */
  | { readonly kind: 'misbehaved'; readonly code: MisbehaviourCode; readonly detail: string };

export type MisbehaviourCode =
  | 'too-many-lines'
  | 'too-many-bytes'
  | 'too-many-refusals'
  | 'too-many-hellos'
  | 'does-not-read';

export type GuestChannel = {
  /** Sends a message in the present session; without one it is dropped, because the next session starts anew. */
  readonly send: (body: HostBody) => void;
  readonly session: () => { readonly nonce: string; readonly boot: string; readonly agentVersion: string } | null;
  /** Monotonic time of the last accepted message of the agent; null before the first. */
  readonly lastHeardMs: () => number | null;
  /**
   * Begins anew with an agent that runs: what it has of a session ends without an event, and it is asked for a hello. For an agent
   * that rests in a session of which its run knows nothing.
   */
  readonly askForHello: () => void;
  /** Ends the channel for good. No event follows. */
  readonly close: () => void;
};

export type GuestChannelOptions = {
  readonly vm: VmId;
  readonly socketPath: string;
  /** Absent: node:net's. */
  readonly connect?: ConnectSocket;
  readonly clock: Clock;
  readonly log: Log;
  readonly onEvent: (event: GuestEvent) => void;
  /** 32 hex digits nobody can guess; tests give their own. */
  readonly randomNonce?: () => string;
  /** An agent may be running already (the VM was adopted): ask it for a hello if it does not say one by itself. */
  readonly isAgentExpected?: boolean;
  /** Sends a ping after so much silence. Absent: never. */
  readonly pingAfterMs?: number;
};

/** Opens the host end of a VM's channel; it connects by itself, again and again, until it is closed or the guest misbehaves. */
export function openGuestChannel(options: GuestChannelOptions): GuestChannel {
  return new HostEnd(options);
}

class HostEnd implements GuestChannel {
  readonly #options: GuestChannelOptions;
  readonly #log: Log;
  readonly #limits: ReturnType<typeof makeLimits>;
  readonly #connection: Connection;
  #isOver = false;
  #session: Session | null = null;
  #numbering: Numbering = { seq: 0, transfers: 0 };
  #refusals = 0;
  #lastHeardMs: number | null = null;
  #mayHaveAgent: boolean;
  #cancelHelloTimer = () => {};
  #cancelPing = () => {};

  constructor(options: GuestChannelOptions) {
    const { clock, socketPath, connect } = options;
    this.#options = options;
    this.#log = options.log.child({ vm: options.vm });
    this.#limits = makeLimits(clock);
    this.#mayHaveAgent = options.isAgentExpected ?? false;
    const listener = {
      connected: () => this.#connected(),
      line: (line: ChannelLine) => this.#receive(line),
      disconnected: () => this.#disconnected(),
      overLimit: (code: MisbehaviourCode, detail: string) => this.#cut(code, detail),
    };
    this.#connection = new Connection({
      socketPath,
      clock,
      log: this.#log,
      listener,
      ...(connect === undefined ? {} : { connect }),
    });
  }

  session() {
    if (this.#session === null) return null;
    const { nonce, boot, agentVersion } = this.#session;
    return { nonce, boot, agentVersion };
  }

  lastHeardMs() {
    return this.#lastHeardMs;
  }

  askForHello(): void {
    if (this.#isOver) return;
    this.#endSession();
    this.#mayHaveAgent = true;
    this.#askForHello(CHANNEL_HELLO_REQUESTS_MAX);
  }

  close(): void {
    this.#isOver = true;
    this.#endSession();
    this.#connection.close();
  }

  send(body: HostBody): void {
    if (this.#session === null) {
      this.#log.debug({ type: body.type }, 'not sent: there is no session');
      return;
    }
    for (const line of encodeBody(this.#session, this.#numbering, body)) this.#connection.write(line);
  }

  #emit(event: GuestEvent): void {
    try {
      this.#options.onEvent(event);
    } catch (error) {
      this.#log.error({ err: error, event: event.kind }, 'an event of the guest channel could not be handled');
    }
  }

  #endSession(): void {
    this.#session = null;
    this.#cancelHelloTimer();
    this.#cancelPing();
  }

  #cut(code: MisbehaviourCode, detail: string): void {
    if (this.#isOver) return;
    this.close();
    this.#log.warn({ code, detail }, 'the guest misbehaved: its channel is cut');
    this.#emit({ kind: 'misbehaved', code, detail });
    this.#emit({ kind: 'closed' });
  }

  #connected(): void {
    if (this.#mayHaveAgent) this.#askForHello(CHANNEL_HELLO_REQUESTS_MAX);
  }

  #disconnected(): void {
    this.#endSession();
    this.#emit({ kind: 'closed' });
  }

  /** Asks an agent that runs since before this connection for a hello: it may not have noticed that the host went away. */
  #askForHello(timesLeft: number): void {
    this.#cancelHelloTimer();
    this.#cancelHelloTimer = this.#options.clock.after(CHANNEL_HELLO_WAIT_MS, () => {
      // Bytes that wait mean that nobody reads the port yet; whoever opens it will say hello by itself.
      if (this.#session !== null || this.#connection.pendingBytes() !== 0) return;
      this.#connection.write(encodeRefuseOutsideSession('no-session', 'the host has no session: say hello'));
      if (timesLeft > 1) this.#askForHello(timesLeft - 1);
    });
  }

  #schedulePing(): void {
    const { pingAfterMs, clock } = this.#options;
    this.#cancelPing();
    if (pingAfterMs === undefined) return;
    this.#cancelPing = clock.after(pingAfterMs, () => {
      this.send({ type: 'ping' });
      this.#schedulePing();
    });
  }

  #receive(line: ChannelLine): void {
    if (!this.#limits.lines.take(1)) {
      this.#cut('too-many-lines', `more than ${CHANNEL_LINES_PER_SECOND_MAX} lines a second`);
      return;
    }
    const received = receiveLine(this.#session, line);
    switch (received.kind) {
      case 'refused':
        this.#refuse(received);
        return;
      case 'hello':
        this.#begin(received);
        return;
      case 'part':
        this.#hear(received.session);
        return;
      case 'message':
        this.#hear(received.session);
        if (received.message.type === 'pong') return;
        this.#emit({
          kind: 'message',
          nonce: received.session.nonce,
          boot: received.session.boot,
          body: received.message,
        });
        return;
      default:
        received satisfies never;
    }
  }

  #hear(session: Session): void {
    this.#session = session;
    this.#lastHeardMs = this.#options.clock.monotonicMs();
    this.#schedulePing();
  }

  #refuse(refusal: Refusal): void {
    const { code, detail } = refusal;
    if (refusal.session !== undefined) this.#session = refusal.session;
    this.#refusals += 1;
    this.#log.debug({ code, detail, count: this.#refusals }, 'a line of the guest was refused');
    // Answered before it is told: the listener may send, and the answer belongs to the line just read.
    if (this.#session === null) this.#connection.write(encodeRefuseOutsideSession(code, detail));
    else this.send({ type: 'refuse', code, detail });
    this.#emit({ kind: 'refused', code, detail, count: this.#refusals });
    if (this.#limits.refusals.take(1)) return;
    this.#cut('too-many-refusals', `${this.#refusals} lines were refused, the last one because: ${detail}`);
  }

  #begin(hello: Hello): void {
    if (!this.#limits.hellos.take(1)) {
      this.#cut('too-many-hellos', `more than ${CHANNEL_HELLOS_PER_MINUTE_MAX} hellos in a minute`);
      return;
    }
    this.#cancelHelloTimer();
    this.#mayHaveAgent = true;
    const { boot, agentVersion, protocol } = hello;
    const nonce = (this.#options.randomNonce ?? randomToken)();
    const session = { nonce, boot, agentVersion, protocol, receivedSeq: 0, transfer: null, transfersFinished: 0 };
    this.#numbering = { seq: 0, transfers: 0 };
    this.#hear(session);
    this.#connection.write(encodeOpen(this.#options.vm, session));
    this.#emit({ kind: 'opened', nonce, boot, agentVersion });
  }
}

function makeLimits({ monotonicMs }: Clock) {
  return {
    lines: makeBucket({
      capacity: 2 * CHANNEL_LINES_PER_SECOND_MAX,
      refillPerSecond: CHANNEL_LINES_PER_SECOND_MAX,
      monotonicMs,
    }),
    hellos: makeBucket({
      capacity: CHANNEL_HELLOS_PER_MINUTE_MAX,
      refillPerSecond: CHANNEL_HELLOS_PER_MINUTE_MAX / 60,
      monotonicMs,
    }),
    refusals: makeBucket({
      capacity: CHANNEL_REFUSALS_MAX,
      refillPerSecond: CHANNEL_REFUSALS_FORGIVEN_PER_HOUR / 3600,
      monotonicMs,
    }),
  };
}
