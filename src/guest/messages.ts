// Every message of the guest channel, both ways: schema, type, example. docs/agent-protocol.md is generated from this file.
import { type Static, type TObject, Type } from 'typebox';
import {
  CHANNEL_CHUNK_TEXT_BYTES_MAX,
  FREE_TEXT_CHARS_MAX,
  HEALTH_CHECKS_MAX,
  HEALTH_TIMEOUT_MAX_MS,
  NAME_CHARS_MAX,
  PLAN_ITEMS_MAX,
} from '../base/limits.ts';
import { DigestSchema } from '../model/digest-schema.ts';
import { HealthChecksSchema, HealthResultSchema } from '../model/health.ts';
import { BootIdSchema, NonceSchema, RunIdSchema, VmIdSchema } from '../model/ids.ts';
import { InventorySchema } from '../model/inventory.ts';
import { ItemResultSchema } from '../model/result.ts';

/** Name of the virtio-serial port. */
export const CHANNEL_PORT_NAME = 'dev.pratique.agent.0';
/** Protocol versions this side speaks, newest first. */
export const PROTOCOL_VERSIONS = [1] as const;
/** Nonce and boot id of a `refuse` that the host sends while there is no session; its counter is 0. */
export const NO_SESSION_NONCE = '00000000000000000000000000000000';
export const NO_SESSION_BOOT = '00000000-0000-0000-0000-000000000000';

const strict = { additionalProperties: false } as const;
const code = Type.String({ maxLength: 64, pattern: '^[a-z][a-z0-9-]*$' });
const text = Type.String({ maxLength: FREE_TEXT_CHARS_MAX });
const name = Type.String({ minLength: 1, maxLength: NAME_CHARS_MAX });
const protocols = Type.Array(Type.Integer({ minimum: 1, maximum: 1000 }), { minItems: 1, maxItems: 16 });
const seq = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const results = Type.Array(ItemResultSchema, { maxItems: PLAN_ITEMS_MAX });
const nullableDigest = Type.Union([DigestSchema, Type.Null()]);

/** Fields of every message after the first on each side: the host's nonce, the guest's boot id, the sender's counter (1, 2, 3, …). */
const envelope = { nonce: NonceSchema, boot: BootIdSchema, seq };

const chunk = Type.Object(
  {
    type: Type.Literal('chunk'),
    ...envelope,
    /** Number of the transfer in this session, from 1. */
    transfer: Type.Integer({ minimum: 1 }),
    index: Type.Integer({ minimum: 0 }),
    total: Type.Integer({ minimum: 1, maximum: 16_384 }),
    /** A piece of the JSON text of one message without envelope. */
    text: Type.String({ maxLength: CHANNEL_CHUNK_TEXT_BYTES_MAX }),
  },
  strict,
);

/** What the agent may send. `hello` has no nonce because it asks for one. */
export const AGENT_MESSAGES = {
  hello: Type.Object(
    {
      type: Type.Literal('hello'),
      protocols,
      boot: BootIdSchema,
      seq: Type.Literal(0),
      agent: Type.Object({ version: name }, strict),
    },
    strict,
  ),
  /** The answer to `ask-inventory`; the agent does not report unasked. */
  inventory: Type.Object({ type: Type.Literal('inventory'), ...envelope, inventory: InventorySchema }, strict),
  drive: Type.Object(
    {
      type: Type.Literal('drive'),
      ...envelope,
      run: RunIdSchema,
      manifestDigest: DigestSchema,
      state: Type.Union([Type.Literal('verified'), Type.Literal('refused'), Type.Literal('released')]),
      code: Type.Optional(code),
      detail: Type.Optional(text),
    },
    strict,
  ),
  progress: Type.Object(
    {
      type: Type.Literal('progress'),
      ...envelope,
      run: RunIdSchema,
      item: name,
      phase: Type.Union([
        Type.Literal('verify'),
        Type.Literal('unpack'),
        Type.Literal('install'),
        Type.Literal('check'),
      ]),
      /** Items finished, and items in all. */
      done: Type.Integer({ minimum: 0 }),
      total: Type.Integer({ minimum: 0 }),
    },
    strict,
  ),
  installed: Type.Object(
    {
      type: Type.Literal('installed'),
      ...envelope,
      run: RunIdSchema,
      manifestDigest: DigestSchema,
      results,
      rebootRequired: Type.Boolean(),
    },
    strict,
  ),
  confirm: Type.Object(
    {
      type: Type.Literal('confirm'),
      ...envelope,
      run: RunIdSchema,
      planDigest: DigestSchema,
      /** The last manifest this agent installed in this run; null when the plan is empty. */
      manifestDigest: nullableDigest,
      results,
      inventory: InventorySchema,
      /** One answer for each check that was asked for. */
      health: Type.Optional(Type.Array(HealthResultSchema, { maxItems: HEALTH_CHECKS_MAX })),
    },
    strict,
  ),
  fault: Type.Object({ type: Type.Literal('fault'), ...envelope, code, detail: text }, strict),
  bye: Type.Object(
    {
      type: Type.Literal('bye'),
      ...envelope,
      reason: Type.Union([Type.Literal('shutdown'), Type.Literal('reboot'), Type.Literal('agent-update')]),
    },
    strict,
  ),
  pong: Type.Object({ type: Type.Literal('pong'), ...envelope }, strict),
  chunk,
} as const satisfies Record<string, TObject>;

/** What the host may send. There is no "run this command". */
export const HOST_MESSAGES = {
  open: Type.Object(
    {
      type: Type.Literal('open'),
      protocols,
      /** The version chosen for this session. */
      protocol: Type.Integer({ minimum: 1, maximum: 1000 }),
      nonce: NonceSchema,
      boot: BootIdSchema,
      seq: Type.Literal(0),
      vm: VmIdSchema,
    },
    strict,
  ),
  'ask-inventory': Type.Object({ type: Type.Literal('ask-inventory'), ...envelope }, strict),
  /** A drive is attached: mount it, accept only this manifest, verify, install, answer `installed`. */
  offer: Type.Object(
    {
      type: Type.Literal('offer'),
      ...envelope,
      run: RunIdSchema,
      planDigest: DigestSchema,
      manifestDigest: DigestSchema,
      label: name,
    },
    strict,
  ),
  /** Unmount the drive and answer `drive` with state `released`. */
  release: Type.Object(
    { type: Type.Literal('release'), ...envelope, run: RunIdSchema, manifestDigest: DigestSchema },
    strict,
  ),
  reboot: Type.Object({ type: Type.Literal('reboot'), ...envelope, run: RunIdSchema }, strict),
  'ask-confirm': Type.Object(
    {
      type: Type.Literal('ask-confirm'),
      ...envelope,
      run: RunIdSchema,
      planDigest: DigestSchema,
      manifestDigest: nullableDigest,
      /** What must work before the answer; sent only to agents that know it. */
      health: Type.Optional(
        Type.Object(
          { checks: HealthChecksSchema, timeoutMs: Type.Integer({ minimum: 0, maximum: HEALTH_TIMEOUT_MAX_MS }) },
          strict,
        ),
      ),
    },
    strict,
  ),
  admitted: Type.Object({ type: Type.Literal('admitted'), ...envelope, run: RunIdSchema }, strict),
  /** The VM stays unplugged; for the guest's log and console. */
  hold: Type.Object({ type: Type.Literal('hold'), ...envelope, code, detail: text }, strict),
  /** A message of the agent was refused and changed nothing; REFUSE_CODES says what the agent does then. */
  refuse: Type.Object({ type: Type.Literal('refuse'), ...envelope, code, detail: text }, strict),
  ping: Type.Object({ type: Type.Literal('ping'), ...envelope }, strict),
  chunk,
} as const satisfies Record<string, TObject>;

export type AgentMessageType = keyof typeof AGENT_MESSAGES;
export type HostMessageType = keyof typeof HOST_MESSAGES;
export type AgentMessage = { readonly [K in AgentMessageType]: Static<(typeof AGENT_MESSAGES)[K]> }[AgentMessageType];
export type HostMessage = { readonly [K in HostMessageType]: Static<(typeof HOST_MESSAGES)[K]> }[HostMessageType];
export type AgentMessageOf<K extends AgentMessageType> = Static<(typeof AGENT_MESSAGES)[K]>;
export type HostMessageOf<K extends HostMessageType> = Static<(typeof HOST_MESSAGES)[K]>;

type WithoutEnvelope<M> = M extends unknown ? Omit<M, 'nonce' | 'boot' | 'seq'> : never;
/** A message as a room writes it; the session adds nonce, boot id and counter. */
export type HostBody = WithoutEnvelope<Exclude<HostMessage, { type: 'open' | 'chunk' }>>;
export type AgentBody = WithoutEnvelope<Exclude<AgentMessage, { type: 'hello' | 'chunk' }>>;
/** What the session hands on once nonce, boot and counter were checked. */
export type AgentReport = Exclude<AgentMessage, { type: 'hello' | 'chunk' }>;
export type HostBodyOf<K extends HostBody['type']> = Extract<HostBody, { type: K }>;
export type AgentBodyOf<K extends AgentBody['type']> = Extract<AgentBody, { type: K }>;

/**
 * Codes of `refuse`, with their meaning. The agent says hello again, except after `unexpected` and `no-common-protocol`, and
 * after `stale-session` and `wrong-boot`: said in the agent's present session, they are about a message from before it.
 */
export const REFUSE_CODES = {
  malformed: 'not a message of the table, or a field does not fit its schema',
  'too-long': 'the line or the chunked message is over its limit',
  'stale-session': 'the nonce is of another session',
  'wrong-boot': 'the boot id is not the one of this session',
  'out-of-order': 'the counter, or the number of the chunk, is not the next one',
  'no-session': 'a message before hello and open, or the host asks for a hello',
  'no-common-protocol': 'no protocol version in common',
  unexpected: 'the message is not expected in this state of the run; the session goes on',
} as const;
export type RefuseCode = keyof typeof REFUSE_CODES;
