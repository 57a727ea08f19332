// Writes the host's messages as lines: envelope, counter, chunks when one line is too short.

import { assert } from '../base/errors.ts';
import { CHANNEL_LINE_BYTES_MAX, CHANNEL_MESSAGE_BYTES_MAX } from '../base/limits.ts';
import { cutIntoChunks } from './chunks.ts';
import type { Session } from './inbound.ts';
import {
  type HostBody,
  type HostMessage,
  type HostMessageOf,
  NO_SESSION_BOOT,
  NO_SESSION_NONCE,
  PROTOCOL_VERSIONS,
  type RefuseCode,
} from './messages.ts';

/** Numbers the lines of one session: counters start after `open`, which is 0; transfers start with 1. */
export type Numbering = { seq: number; transfers: number };

/** The lines of one message in a session, each with its newline. Advances the numbering. */
export function encodeBody(session: Session, numbering: Numbering, body: HostBody): readonly string[] {
  const { type, ...fields } = body;
  const envelope = { nonce: session.nonce, boot: session.boot };
  const whole = lineOf({ type, ...envelope, seq: numbering.seq + 1, ...fields });
  if (Buffer.byteLength(whole) <= CHANNEL_LINE_BYTES_MAX) {
    numbering.seq += 1;
    return [whole];
  }
  const text = JSON.stringify(body);
  assert(Buffer.byteLength(text) <= CHANNEL_MESSAGE_BYTES_MAX, `the host's ${type} is longer than a message may be`);
  const pieces = cutIntoChunks(text);
  numbering.transfers += 1;
  return pieces.map((piece, index) => {
    numbering.seq += 1;
    const place = { transfer: numbering.transfers, index, total: pieces.length };
    return lineOf({ type: 'chunk', ...envelope, seq: numbering.seq, ...place, text: piece });
  });
}

/** The answer to a hello. */
export function encodeOpen(vm: HostMessageOf<'open'>['vm'], session: Session): string {
  const open: HostMessageOf<'open'> = {
    type: 'open',
    protocols: [...PROTOCOL_VERSIONS],
    protocol: session.protocol,
    nonce: session.nonce,
    boot: session.boot,
    seq: 0,
    vm,
  };
  return lineOf(open);
}

/** A refuse while there is no session. */
export function encodeRefuseOutsideSession(code: RefuseCode, detail: string): string {
  const refuse: HostMessageOf<'refuse'> = {
    type: 'refuse',
    nonce: NO_SESSION_NONCE,
    boot: NO_SESSION_BOOT,
    seq: 0,
    code,
    detail,
  };
  return lineOf(refuse);
}

function lineOf(message: HostMessage | Readonly<Record<string, unknown>>): string {
  return `${JSON.stringify(message)}\n`;
}
