// A host for tests of the agent: speaks the real bytes of the channel, checks every line of the agent against its schema.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import type { TSchema } from 'typebox';
import { Compile } from 'typebox/compile';
import { systemClock } from '../../../src/base/clock.ts';
import type { Digest } from '../../../src/base/digest-text.ts';
import {
  CHANNEL_CHUNK_TEXT_BYTES_MAX,
  CHANNEL_LINE_BYTES_MAX,
  CHANNEL_MESSAGE_BYTES_MAX,
} from '../../../src/base/limits.ts';
import { AGENT_MESSAGES, type AgentMessage, type AgentMessageOf, type HostBody } from '../../../src/guest/messages.ts';
import type { RunId } from '../../../src/model/ids.ts';

const VALIDATORS = new Map(
  Object.entries(AGENT_MESSAGES).map(([type, schema]) => [type, Compile(schema as TSchema)] as const),
);
const WAIT_MS = 15_000;
const LOOK_MS = 5;

export const VM = 'vm-1';
/** The casts hold: tests make ids and digests of the right form. */
export const asRun = (text: string): RunId => text as RunId;
export const asDigest = (text: string): Digest => text as Digest;
export const RUN = asRun('1'.repeat(32));
export const PLAN = asDigest('2'.repeat(64));

export class FakeHost {
  /** Every message of the agent, chunked ones put together. */
  readonly messages: AgentMessage[] = [];
  /** Length of the longest line the agent sent. */
  longestLine = 0;
  chunkLines = 0;
  /** Whether a hello is answered by a new session at once. */
  opensByItself = true;
  nonce: string | null = null;
  boot = '';
  readonly #write: (text: string) => void;
  #pending = '';
  #sentSeq = 0;
  #receivedSeq = 0;
  #transfers = 0;
  #pieces: string[] = [];

  constructor(write: (text: string) => void) {
    this.#write = write;
  }

  receive(text: string): void {
    this.#pending += text;
    const lines = this.#pending.split('\n');
    this.#pending = lines.pop() ?? '';
    for (const line of lines) this.#receiveLine(line);
  }

  #receiveLine(line: string): void {
    this.longestLine = Math.max(this.longestLine, Buffer.byteLength(line) + 1);
    assert.ok(this.longestLine <= CHANNEL_LINE_BYTES_MAX, 'no line is longer than a line may be');
    const message = validated(JSON.parse(line));
    if (message.type === 'hello') {
      this.boot = message.boot;
      this.messages.push(message);
      if (this.opensByItself) this.open();
      return;
    }
    if (message.nonce !== this.nonce) return; // Of an earlier session; a real host refuses it.
    assert.equal(message.seq, this.#receivedSeq + 1, 'the agent counts every line of a session');
    assert.equal(message.boot, this.boot);
    this.#receivedSeq = message.seq;
    if (message.type === 'chunk') this.#receiveChunk(message);
    else this.messages.push(message);
  }

  #receiveChunk(chunk: AgentMessageOf<'chunk'>): void {
    this.chunkLines += 1;
    assert.equal(chunk.index, this.#pieces.length, 'chunks come in order');
    assert.ok(Buffer.byteLength(chunk.text) <= CHANNEL_CHUNK_TEXT_BYTES_MAX);
    this.#pieces.push(chunk.text);
    if (this.#pieces.length < chunk.total) return;
    const text = this.#pieces.join('');
    this.#pieces = [];
    assert.ok(Buffer.byteLength(text) <= CHANNEL_MESSAGE_BYTES_MAX);
    const body: unknown = JSON.parse(text);
    assert.ok(typeof body === 'object' && body !== null && !('nonce' in body), 'chunked text has no envelope');
    const { nonce, boot, seq } = chunk;
    this.messages.push(validated({ ...body, nonce, boot, seq }));
  }

  /** Opens a new session with the boot of the last hello. */
  open(overrides: Readonly<Record<string, unknown>> = {}): void {
    this.nonce = randomBytes(16).toString('hex');
    this.#sentSeq = 0;
    this.#receivedSeq = 0;
    this.#transfers = 0;
    this.#pieces = [];
    const open = { type: 'open', protocols: [1], protocol: 1, nonce: this.nonce, boot: this.boot, seq: 0, vm: VM };
    this.sendRaw(JSON.stringify({ ...open, ...overrides }));
  }

  send(body: HostBody): void {
    this.sendWith(body, {});
  }

  /** Sends a message with parts of its envelope replaced. */
  sendWith(body: HostBody, envelope: Readonly<Record<string, unknown>>): void {
    this.#sentSeq += 1;
    this.sendRaw(JSON.stringify({ ...body, nonce: this.nonce, boot: this.boot, seq: this.#sentSeq, ...envelope }));
  }

  /** Sends a message in chunks of the given size, each changed by `change`. */
  sendInChunks(body: HostBody, sizeChars: number, change: (chunk: object, index: number) => object = (c) => c): void {
    const text = JSON.stringify(body);
    const total = Math.ceil(text.length / sizeChars);
    this.#transfers += 1;
    for (let index = 0; index < total; index += 1) {
      this.#sentSeq += 1;
      const piece = text.slice(index * sizeChars, (index + 1) * sizeChars);
      const place = { transfer: this.#transfers, index, total, text: piece };
      const chunk = { type: 'chunk', nonce: this.nonce, boot: this.boot, seq: this.#sentSeq, ...place };
      this.sendRaw(JSON.stringify(change(chunk, index)));
    }
  }

  sendRaw(line: string): void {
    this.#write(`${line}\n`);
  }

  count(type: AgentMessage['type']): number {
    return this.messages.filter((message) => message.type === type).length;
  }

  /** The next message of a type that was not waited for yet (others before it stay); fails after a while. */
  async take<K extends AgentMessage['type']>(type: K, waitMs = WAIT_MS): Promise<AgentMessageOf<K>> {
    const endMs = systemClock.monotonicMs() + waitMs;
    for (;;) {
      const index = this.messages.findIndex((message) => message.type === type);
      // The cast holds: the message was found by its type.
      if (index >= 0) return this.messages.splice(index, 1)[0] as AgentMessageOf<K>;
      if (systemClock.monotonicMs() > endMs) {
        const seen = this.messages.map((message) => JSON.stringify(message).slice(0, 300)).join('\n');
        assert.fail(`the agent sent no ${type}; what it sent and nobody took:\n${seen}`);
      }
      await systemClock.sleep(LOOK_MS);
    }
  }

  /** Waits until the agent is in a session and has answered a ping: everything before it is done. */
  async settle(): Promise<void> {
    if (this.nonce === null) await this.take('hello');
    this.send({ type: 'ping' });
    await this.take('pong');
  }
}

function validated(value: unknown): AgentMessage {
  const type = typeof value === 'object' && value !== null && 'type' in value ? String(value.type) : '';
  const validator = VALIDATORS.get(type);
  assert.ok(validator !== undefined, `the agent sent a message of the unknown type ${type}`);
  const [first] = validator.Errors(value);
  assert.ok(validator.Check(value), `${type}: ${first?.instancePath} ${first?.message}`);
  // The cast holds: the validator of its type was compiled from the table that AgentMessage is derived from.
  return value as AgentMessage;
}
