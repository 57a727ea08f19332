// Judges one line of a guest against the session it must belong to. Changes nothing itself: it returns what the line is.

import type { TSchema } from 'typebox';
import { Compile, type Validator } from 'typebox/compile';
import {
  CHANNEL_JSON_DEPTH_MAX,
  CHANNEL_LINE_BYTES_MAX,
  FREE_TEXT_CHARS_MAX,
  OUTPUT_TAIL_CHARS_MAX,
} from '../base/limits.ts';
import { printable, printableBlock } from '../base/printable.ts';
import type { ItemResult } from '../model/result.ts';
import type { ChannelLine } from './channel-lines.ts';
import { addChunk, type Transfer } from './chunks.ts';
import {
  AGENT_MESSAGES,
  type AgentMessage,
  type AgentMessageOf,
  type AgentReport,
  PROTOCOL_VERSIONS,
  type RefuseCode,
} from './messages.ts';

/** One session as the host knows it. Replaced, never changed. */
export type Session = {
  readonly nonce: string;
  readonly boot: string;
  readonly agentVersion: string;
  readonly protocol: number;
  /** Counter of the last message accepted from the agent; its hello was 0. */
  readonly receivedSeq: number;
  readonly transfer: Transfer | null;
  readonly transfersFinished: number;
};

export type Refusal = {
  readonly kind: 'refused';
  readonly code: RefuseCode;
  readonly detail: string;
  /** Set when a chunked message was refused as a whole: the same session without its pieces. */
  readonly session?: Session;
};

export type Hello = {
  readonly kind: 'hello';
  readonly boot: string;
  readonly agentVersion: string;
  readonly protocol: number;
};

export type Received =
  | Hello
  | { readonly kind: 'message'; readonly session: Session; readonly message: AgentReport }
  | { readonly kind: 'part'; readonly session: Session }
  | Refusal;

const VALIDATORS: ReadonlyMap<string, Validator<Record<never, never>, TSchema>> = new Map(
  Object.entries(AGENT_MESSAGES).map(([type, schema]) => [type, Compile(schema as TSchema)]),
);

/** What a line of the guest is, given the present session (null: none). */
export function receiveLine(session: Session | null, line: ChannelLine): Received {
  if (line.kind === 'too-long') return refused('too-long', `a line is longer than ${CHANNEL_LINE_BYTES_MAX} bytes`);
  if (line.kind === 'not-utf8') return refused('malformed', 'a line is not UTF-8');
  const parsed = parseMessage(line.text);
  if (parsed.kind === 'refused') return parsed;
  const { message } = parsed;
  if (message.type === 'hello') return receiveHello(message);
  const wrong = checkEnvelope(session, message);
  if (wrong !== null) return wrong;
  // checkEnvelope refuses when there is no session.
  const present = session as Session;
  if (message.type !== 'chunk') {
    return { kind: 'message', session: { ...present, receivedSeq: message.seq }, message: printableMessage(message) };
  }
  return receiveChunk(present, message);
}

function receiveHello(hello: AgentMessageOf<'hello'>): Received {
  const protocol = PROTOCOL_VERSIONS.find((version) => hello.protocols.includes(version));
  if (protocol === undefined) {
    return refused(
      'no-common-protocol',
      `the agent speaks ${hello.protocols.join(', ')}, the host ${PROTOCOL_VERSIONS.join(', ')}`,
    );
  }
  return { kind: 'hello', boot: hello.boot, agentVersion: printable(hello.agent.version), protocol };
}

type InSession = Exclude<AgentMessage, { type: 'hello' }>;

function checkEnvelope(session: Session | null, message: InSession): Refusal | null {
  if (session === null) return refused('no-session', `${message.type} came before hello`);
  if (message.nonce !== session.nonce)
    return refused('stale-session', `${message.type} carries another session's nonce`);
  if (message.boot !== session.boot) return refused('wrong-boot', `${message.type} carries another boot id`);
  if (message.seq === session.receivedSeq + 1) return null;
  return refused(
    'out-of-order',
    `${message.type} has the counter ${message.seq} where ${session.receivedSeq + 1} is next`,
  );
}

function receiveChunk(session: Session, chunk: AgentMessageOf<'chunk'>): Received {
  const outcome = addChunk(session.transfer, session.transfersFinished, chunk);
  const withoutPieces = { ...session, transfer: null };
  if (outcome.kind === 'refused') return outcome.code === 'too-long' ? { ...outcome, session: withoutPieces } : outcome;
  const next = { ...session, receivedSeq: chunk.seq };
  if (outcome.kind === 'more') return { kind: 'part', session: { ...next, transfer: outcome.transfer } };
  const { nonce, boot, seq } = chunk;
  const parsed = parseMessage(outcome.text, { nonce, boot, seq });
  if (parsed.kind === 'refused') return { ...parsed, session: withoutPieces };
  const { message } = parsed;
  if (message.type === 'hello' || message.type === 'chunk') {
    return { ...refused('malformed', `${message.type} came in chunks`), session: withoutPieces };
  }
  const finished = { ...next, transfer: null, transfersFinished: session.transfersFinished + 1 };
  return { kind: 'message', session: finished, message: printableMessage(message) };
}

type Envelope = { readonly nonce: string; readonly boot: string; readonly seq: number };
type Parsed = { readonly kind: 'parsed'; readonly message: AgentMessage } | Refusal;

/** Parses and validates one message; with an envelope given, the text must carry none. */
function parseMessage(text: string, envelope?: Envelope): Parsed {
  if (!isShallow(text)) return refused('malformed', `nested deeper than ${CHANNEL_JSON_DEPTH_MAX} levels`);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return refused('malformed', 'not JSON');
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value)) return refused('malformed', 'not an object');
  const type = Object.hasOwn(value, 'type') && 'type' in value ? value.type : undefined;
  const validator = typeof type === 'string' ? VALIDATORS.get(type) : undefined;
  if (validator === undefined) return refused('malformed', 'the type is not one of the table of messages');
  if (envelope !== undefined && ['nonce', 'boot', 'seq'].some((field) => Object.hasOwn(value, field))) {
    return refused('malformed', `${type}: a message in chunks carries no envelope of its own`);
  }
  const whole = envelope === undefined ? value : { ...value, ...envelope };
  // The cast holds: the validator was compiled from the schema that AgentMessage is derived from.
  if (validator.Check(whole)) return { kind: 'parsed', message: whole as AgentMessage };
  const first = validator.Errors(whole)[0];
  const field = first?.instancePath ? first.instancePath.slice(1).replaceAll('/', '.') : 'the message';
  return refused('malformed', `${type}: ${field} ${first?.message ?? 'does not fit'}`);
}

/** Whether brackets nest at most CHANNEL_JSON_DEPTH_MAX deep: 4 MiB of them keep JSON.parse busy for half a second. */
function isShallow(text: string): boolean {
  let depth = 0;
  let isInString = false;
  for (let index = 0; index < text.length; index += 1) {
    const char = text.charCodeAt(index);
    if (isInString) {
      if (char === 0x5c) index += 1;
      else if (char === 0x22) isInString = false;
    } else if (char === 0x22) {
      isInString = true;
    } else if (char === 0x5b || char === 0x7b) {
      depth += 1;
      if (depth > CHANNEL_JSON_DEPTH_MAX) return false;
    } else if (char === 0x5d || char === 0x7d) {
      depth -= 1;
    }
  }
  return true;
}

/** The message with its free text fit to show. */
function printableMessage(message: AgentReport): AgentReport {
  switch (message.type) {
    case 'drive':
      if (message.detail === undefined) return message;
      return { ...message, detail: printable(message.detail, FREE_TEXT_CHARS_MAX) };
    case 'fault':
      return { ...message, detail: printable(message.detail, FREE_TEXT_CHARS_MAX) };
    case 'installed':
    case 'confirm':
      return { ...message, results: message.results.map(printableResult) };
    default:
      return message;
  }
}

function printableResult(result: ItemResult): ItemResult {
  if (result.output === undefined) return result;
  return { ...result, output: printableBlock(result.output, OUTPUT_TAIL_CHARS_MAX) };
}

function refused(code: RefuseCode, detail: string): Refusal {
  return { kind: 'refused', code, detail: printable(detail) };
}
