// Everything a hostile guest may write to its channel: refused with a code, without effect, within bounded memory.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import {
  CHANNEL_HELLOS_PER_MINUTE_MAX,
  CHANNEL_JSON_DEPTH_MAX,
  CHANNEL_LINE_BYTES_MAX,
  CHANNEL_MESSAGE_BYTES_MAX,
  CHANNEL_OUTGOING_BYTES_MAX,
  CHANNEL_REFUSALS_MAX,
} from '../../src/base/limits.ts';
import { AGENT_EXAMPLES, HOST_EXAMPLES } from '../../src/guest/examples.ts';
import { AGENT_MESSAGES, type RefuseCode } from '../../src/guest/messages.ts';
import { BOOT, type Harness, openHarness, until } from './session-harness.ts';

const IS_FULL = process.env.PRATIQUE_TEST_FULL === '1';
const FUZZED_LINES = IS_FULL ? 10_000 : 2_000;
const SEED = Number(process.env.PRATIQUE_TEST_SEED ?? 20_261_120);
const HOUR_MS = 3_600_000;

type Fields = Readonly<Record<string, unknown>>;
type Case = {
  readonly name: string;
  /** The lines, made when the session is open. Every one of them must be refused, the last one with `code`. */
  readonly lines: (harness: Harness) => readonly (string | Uint8Array)[];
  readonly code: RefuseCode;
};

/** The example of a message as the next one of the present session. */
function next(harness: Harness, type: string, change: Fields = {}): Fields {
  const example: Fields = AGENT_EXAMPLES[type as keyof typeof AGENT_EXAMPLES];
  const envelope = type === 'hello' ? {} : harness.envelope();
  return { ...example, ...envelope, ...change };
}
function line(name: string, code: RefuseCode, make: (harness: Harness) => string | Uint8Array): Case {
  return { name, code, lines: (harness) => [make(harness)] };
}
function without(fields: Fields, name: string): Fields {
  return Object.fromEntries(Object.entries(fields).filter(([key]) => key !== name));
}

const TYPES = Object.keys(AGENT_MESSAGES);
const IN_SESSION = TYPES.filter((type) => type !== 'hello');
const WRONG: readonly unknown[] = [null, {}, [], '\u0000', -1, 1.5, true];

function casesOfFields(type: string): readonly Case[] {
  const schema = AGENT_MESSAGES[type as keyof typeof AGENT_MESSAGES];
  return Object.keys(schema.properties).flatMap((field) => {
    const isOptional = !schema.required.includes(field as never);
    // A wrong nonce, boot or counter that still fits its schema is the business of casesOfEnvelope.
    const missing = line(`${type} without ${field}`, 'malformed', (h) => JSON.stringify(without(next(h, type), field)));
    const wrong = WRONG.map((value) =>
      line(`${type} with ${field} = ${JSON.stringify(value)}`, 'malformed', (h) =>
        JSON.stringify(next(h, type, { [field]: value })),
      ),
    ).filter((_, index) => !fitsAnyway(type, field, WRONG[index]));
    return isOptional ? wrong : [missing, ...wrong];
  });
}

/** The few pairs of WRONG that the schemas allow. */
function fitsAnyway(type: string, field: string, value: unknown): boolean {
  if (Array.isArray(value)) return field === 'results' || field === 'health';
  if (value === null) return type === 'confirm' && field === 'manifestDigest';
  if (value === true) return field === 'rebootRequired';
  return value === '\u0000' && (field === 'detail' || field === 'text' || field === 'item');
}

function casesOfKeys(type: string): readonly Case[] {
  const withKey = (key: string) => (h: Harness) =>
    `${JSON.stringify(next(h, type)).slice(0, -1)},"${key}":{"isAdmin":true}}`;
  return ['extra', '__proto__', 'constructor', 'prototype', 'toString', '\\u005f_proto__'].map((key) =>
    line(`${type} with the key ${key}`, 'malformed', withKey(key)),
  );
}

function casesOfEnvelope(type: string): readonly Case[] {
  const changed = (name: string, code: RefuseCode, change: (h: Harness) => Fields) =>
    line(`${type} with ${name}`, code, (h) => JSON.stringify(next(h, type, change(h))));
  return [
    changed("another session's nonce", 'stale-session', () => ({ nonce: '0'.repeat(32) })),
    changed('the nonce in capitals', 'malformed', (h) => ({ nonce: `${h.nonce.slice(0, 31)}A` })),
    changed("another boot's id", 'wrong-boot', () => ({ boot: BOOT.replace('0', '1') })),
    changed('the counter of the last message', 'out-of-order', (h) => ({ seq: h.seq })),
    changed('the counter of hello', 'out-of-order', () => ({ seq: 0 })),
    changed('a counter too far ahead', 'out-of-order', (h) => ({ seq: h.seq + 2 })),
    changed('the largest counter', 'out-of-order', () => ({ seq: Number.MAX_SAFE_INTEGER })),
    changed('a counter beyond the largest', 'malformed', () => ({ seq: Number.MAX_SAFE_INTEGER + 1 })),
    changed('a counter that is text', 'malformed', (h) => ({ seq: String(h.seq + 1) })),
  ];
}

const deep = (levels: number) => '['.repeat(levels) + ']'.repeat(levels);
const RAW: readonly (readonly [string, string | Uint8Array])[] = [
  ['an empty line', ''],
  ['spaces', '   '],
  ['no JSON', 'hello'],
  ['null', 'null'],
  ['a number', '1e999'],
  ['a text', '"hello"'],
  ['an array', '[]'],
  ['an array with a message', '[{"type":"pong"}]'],
  ['an object without type', '{}'],
  ['a type that is a number', '{"type":1}'],
  ['a type that is an object', '{"type":{}}'],
  ['a type in the prototype only', '{"__proto__":{"type":"pong"}}'],
  ['the type __proto__', '{"type":"__proto__"}'],
  ['the type constructor', '{"type":"constructor"}'],
  ['the type toString', '{"type":"toString"}'],
  ['an unknown type', '{"type":"run-command","command":"id"}'],
  ['two objects on a line', '{"type":"pong"}{"type":"pong"}'],
  ['a cut-off object', '{"type":"pong","nonce":"'],
  ['a trailing comma', '{"type":"pong",}'],
  ['a comment', '/* */{"type":"pong"}'],
  ['a byte order mark', '\ufeff{"type":"pong"}'],
  ['NaN', '{"type":"pong","seq":NaN}'],
  ['nesting just over the limit', deep(CHANNEL_JSON_DEPTH_MAX + 1)],
  ['nesting as deep as a line holds', deep(8_000)],
  ['opening brackets only', '['.repeat(16_000)],
  ['NUL bytes', Buffer.alloc(100)],
  ['a lone continuation byte', Buffer.from([0x22, 0x80, 0x22])],
  ['an overlong encoding of a slash', Buffer.from([0x22, 0xc0, 0xaf, 0x22])],
  ['an encoded surrogate', Buffer.from([0x22, 0xed, 0xa0, 0x80, 0x22])],
  ['a cut-off character', Buffer.from([0x22, 0xe2, 0x82])],
  ['a byte that is never UTF-8', Buffer.from([0xff])],
  ['UTF-16', Buffer.from('{"type":"pong"}', 'utf16le')],
  ['a carriage return in the middle', '{"type":\r\r"po\rng"}'],
];
const LONG: readonly (readonly [string, () => string | Uint8Array])[] = [
  ['one byte over the limit', () => 'x'.repeat(CHANNEL_LINE_BYTES_MAX)],
  ['a megabyte', () => 'x'.repeat(1024 * 1024)],
  ['a megabyte of valid JSON', () => JSON.stringify({ type: 'pong', x: 'y'.repeat(1024 * 1024) })],
  ['over the limit in bytes, under it in characters', () => `"${'é'.repeat(CHANNEL_LINE_BYTES_MAX / 2)}"`],
];

const chunkLine = (h: Harness, offset: number, change: Fields): string =>
  JSON.stringify({ ...next(h, 'chunk'), seq: h.seq + 1 + offset, transfer: 1, index: 0, total: 1, ...change });
function inOneChunk(name: string, text: string): Case {
  return line(`a chunk with ${name}`, 'malformed', (h) => chunkLine(h, 0, { text }));
}
const CHUNKS: readonly Case[] = [
  line('a chunk that begins in the middle', 'out-of-order', (h) => chunkLine(h, 0, { index: 1, total: 2 })),
  line('a chunk of the second transfer first', 'out-of-order', (h) => chunkLine(h, 0, { transfer: 2 })),
  line('a chunk beyond its total', 'out-of-order', (h) => chunkLine(h, 0, { index: 5, total: 1 })),
  line('a chunk of more chunks than allowed', 'malformed', (h) => chunkLine(h, 0, { total: 16_385 })),
  line('a chunk of transfer 0', 'malformed', (h) => chunkLine(h, 0, { transfer: 0 })),
  line('a chunk with a total of 0', 'malformed', (h) => chunkLine(h, 0, { total: 0 })),
  line('a chunk longer than a chunk', 'malformed', (h) => chunkLine(h, 0, { text: 'x'.repeat(2_049) })),
  inOneChunk('no text', ''),
  inOneChunk('no JSON', '{'),
  inOneChunk('a hello', JSON.stringify(AGENT_EXAMPLES.hello)),
  inOneChunk('a hello without what an envelope has', '{"type":"hello","protocols":[1],"agent":{"version":"1"}}'),
  inOneChunk('a chunk', '{"type":"chunk","transfer":2,"index":0,"total":1,"text":""}'),
  inOneChunk('a message with an envelope', JSON.stringify(AGENT_EXAMPLES.pong)),
  inOneChunk('a counter of its own', '{"type":"pong","seq":1}'),
  inOneChunk('a host message', '{"type":"ping"}'),
  inOneChunk('a key __proto__', '{"type":"pong","__proto__":{"isAdmin":true}}'),
  inOneChunk('deep nesting', `{"type":"inventory","inventory":${deep(500)}}`),
  inOneChunk('an array', '[]'),
  inOneChunk('null', 'null'),
];

const BEFORE_HELLO: readonly Case[] = IN_SESSION.map((type) => ({
  name: `${type} before hello`,
  code: 'no-session' as const,
  lines: () => [JSON.stringify(AGENT_EXAMPLES[type as keyof typeof AGENT_EXAMPLES])],
}));
const FROM_HOST: readonly Case[] = Object.entries(HOST_EXAMPLES)
  .filter(([type]) => type !== 'chunk')
  .map(([type, example]) =>
    line(`the host's own ${type}`, 'malformed', (h) => JSON.stringify({ ...example, ...h.envelope() })),
  );
const HELLOS: readonly Case[] = [
  line('a hello without a protocol in common', 'no-common-protocol', (h) =>
    JSON.stringify(next(h, 'hello', { protocols: [2, 3] })),
  ),
  line('a hello with a nonce', 'malformed', (h) => JSON.stringify(next(h, 'hello', { nonce: h.nonce }))),
  line('a hello with a counter', 'malformed', (h) => JSON.stringify(next(h, 'hello', { seq: 1 }))),
  line('a hello with no protocol', 'malformed', (h) => JSON.stringify(next(h, 'hello', { protocols: [] }))),
  line('a hello with 17 protocols', 'malformed', (h) =>
    JSON.stringify(next(h, 'hello', { protocols: Array(17).fill(1) })),
  ),
];

const CASES: readonly Case[] = [
  ...TYPES.flatMap(casesOfFields),
  ...TYPES.flatMap(casesOfKeys),
  ...IN_SESSION.flatMap(casesOfEnvelope),
  ...RAW.map(([name, bytes]) => line(name, 'malformed', () => bytes)),
  ...LONG.map(([name, make]) => line(`a line of ${name}`, 'too-long', make)),
  ...CHUNKS,
  ...FROM_HOST,
  ...HELLOS,
];

/** What one channel goes through, one case after the other; each must leave the session as it was. */
async function refuseAll(harness: Harness, cases: readonly Case[]): Promise<void> {
  for (const { name, lines, code } of cases) {
    // An hour passes, so that the refusals of the cases before are forgiven.
    harness.clock.skip(HOUR_MS);
    const before = {
      session: harness.channel.session(),
      refusals: harness.refusals().length,
      messages: harness.count('message'),
    };
    const sent = lines(harness);
    for (const one of sent) harness.send(one);
    await until(`${name} is refused`, () => harness.refusals().length >= before.refusals + sent.length);
    assert.equal(harness.refusals().at(-1), code, name);
    assert.equal(harness.count('message'), before.messages, `${name} was handed on`);
    assert.deepEqual(harness.channel.session(), before.session, `${name} changed the session`);
    if (before.session !== null) await harness.sayMarker();
  }
}

test(`${CASES.length} hostile lines in a session are each refused with their code and change nothing [A10] [A11]`, async (t) => {
  assert.ok(CASES.length >= 200);
  const harness = await openHarness(t);
  await harness.hello();
  await harness.sayMarker();
  await refuseAll(harness, CASES);
  assert.equal(harness.misbehaviour(), undefined);
  assert.equal(({} as { isAdmin?: boolean }).isAdmin, undefined, 'a prototype was polluted');
});

test('every message before hello is refused and opens nothing [A10]', async (t) => {
  const harness = await openHarness(t);
  await refuseAll(harness, BEFORE_HELLO);
  assert.equal(harness.channel.session(), null);
  // The host has said them all; the last may still be under way.
  await until('the last refusal arrives', () => harness.heard.length >= BEFORE_HELLO.length);
  assert.equal(harness.heard.length, BEFORE_HELLO.length);
  assert.ok(harness.heard.every((message) => message.type === 'refuse' && message.code === 'no-session'));
});

for (const type of IN_SESSION.filter((type) => type !== 'chunk')) {
  test(`positive control: the example of ${type} is accepted as it stands [A10]`, async (t) => {
    const harness = await openHarness(t);
    await harness.hello();
    harness.send(JSON.stringify(next(harness, type)));
    harness.seq += 1;
    await harness.sayMarker();
    assert.deepEqual(harness.refusals(), []);
    const handedOn = harness.events.flatMap((event) => (event.kind === 'message' ? [event.body.type as string] : []));
    assert.deepEqual(handedOn, type === 'pong' ? ['bye'] : [type, 'bye']);
  });
}

test('a message that is replayed within its session is refused [A11]', async (t) => {
  const harness = await openHarness(t);
  await harness.hello();
  const confirm = JSON.stringify(next(harness, 'confirm'));
  harness.send(confirm);
  harness.seq += 1;
  harness.send(confirm);
  await harness.sayMarker();
  assert.deepEqual(harness.refusals(), ['out-of-order']);
  assert.equal(harness.events.filter((event) => event.kind === 'message' && event.body.type === 'confirm').length, 1);
});

test('a message of an earlier session, as a restored snapshot sends it, is refused [A2] [A11]', async (t) => {
  const harness = await openHarness(t);
  await harness.hello();
  const confirm = JSON.stringify(next(harness, 'confirm'));
  await harness.hello();
  harness.send(confirm);
  await harness.sayMarker();
  assert.deepEqual(harness.refusals(), ['stale-session']);
  assert.equal(harness.count('message'), 1);
});

test('a transfer over 4 MiB is refused as a whole, and its memory let go [A10]', async (t) => {
  const harness = await openHarness(t);
  await harness.hello();
  const total = CHANNEL_MESSAGE_BYTES_MAX / 2_048 + 1;
  const text = 'x'.repeat(2_048);
  for (let index = 0; index < total; index += 1) {
    harness.send(JSON.stringify(next(harness, 'chunk', { transfer: 1, index, total, text })));
    harness.seq += 1;
    if (index % 100 === 0) await until('the guest can write', () => harness.guest.writableLength < 65_536);
  }
  await until('the transfer is refused', () => harness.refusals().length > 0);
  assert.deepEqual(harness.refusals(), ['too-long']);
  harness.seq -= 1; // The last chunk did not count.
  await harness.sayMarker();
});

test('a guest that sends rubbish is cut off after a bounded number of refusals [A10]', async (t) => {
  const harness = await openHarness(t);
  await harness.hello();
  for (let count = 0; count < 1_000; count += 1) harness.send('rubbish');
  await until('the guest is cut off', () => harness.misbehaviour() !== undefined);
  assert.equal(harness.misbehaviour(), 'too-many-refusals');
  assert.equal(harness.refusals().length, CHANNEL_REFUSALS_MAX + 1);
  await cutForGood(harness);
});

test('hellos do not renew the refusals that a guest has [A10]', async (t) => {
  const harness = await openHarness(t);
  for (let round = 0; round < 10 && harness.misbehaviour() === undefined; round += 1) {
    await harness.hello();
    for (let count = 0; count < 10; count += 1) harness.send('rubbish');
    await until(
      'they are refused',
      () => harness.refusals().length >= Math.min(10 * (round + 1), CHANNEL_REFUSALS_MAX + 1),
    );
  }
  assert.equal(harness.misbehaviour(), 'too-many-refusals');
});

test('a guest that says hello again and again is cut off [A10]', async (t) => {
  const harness = await openHarness(t);
  for (let count = 0; count < 2 * CHANNEL_HELLOS_PER_MINUTE_MAX; count += 1)
    harness.send(JSON.stringify(AGENT_EXAMPLES.hello));
  await until('the guest is cut off', () => harness.misbehaviour() !== undefined);
  assert.equal(harness.misbehaviour(), 'too-many-hellos');
  assert.equal(harness.count('opened'), CHANNEL_HELLOS_PER_MINUTE_MAX);
  await cutForGood(harness);
});

test('a guest that floods with valid messages is cut off [A10]', async (t) => {
  const harness = await openHarness(t);
  await harness.hello();
  const lines: string[] = [];
  for (let count = 0; count < 40_000; count += 1) {
    lines.push(JSON.stringify(next(harness, 'pong')));
    harness.seq += 1;
  }
  harness.send(lines.join('\n'));
  await until('the guest is cut off', () => harness.misbehaviour() !== undefined);
  assert.equal(harness.misbehaviour(), 'too-many-lines');
  assert.deepEqual(harness.refusals(), []);
  await cutForGood(harness);
});

test('a guest that floods with one endless line is cut off [A10]', async (t) => {
  const harness = await openHarness(t);
  await harness.hello();
  const piece = Buffer.alloc(1024 * 1024, 'x');
  const pour = () => {
    while (!harness.guest.destroyed && harness.guest.write(piece));
  };
  harness.guest.on('drain', pour);
  pour();
  await until('the guest is cut off', () => harness.misbehaviour() !== undefined);
  assert.equal(harness.misbehaviour(), 'too-many-bytes');
  assert.deepEqual(harness.refusals(), ['too-long']);
});

test('a guest that does not read is cut off once too much waits for it [A10]', async (t) => {
  const harness = await openHarness(t);
  await harness.hello();
  harness.guest.pause();
  const detail = 'x'.repeat(2_000);
  for (let bytes = 0; bytes < 2 * CHANNEL_OUTGOING_BYTES_MAX; bytes += detail.length) {
    harness.channel.send({ type: 'hold', code: 'x', detail });
  }
  assert.equal(harness.misbehaviour(), 'does-not-read');
  harness.guest.resume();
  await cutForGood(harness);
});

test('a line in a thousand pieces is one line, also across its characters [A10]', async (t) => {
  const harness = await openHarness(t);
  await harness.hello();
  const whole = Buffer.from(`${JSON.stringify(next(harness, 'fault', { detail: 'é€😀'.repeat(50) }))}\n`);
  for (const byte of whole) {
    harness.guest.write(Buffer.of(byte));
    if (byte % 16 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  harness.seq += 1;
  await harness.sayMarker();
  const fault = harness.events.find((event) => event.kind === 'message' && event.body.type === 'fault');
  assert.ok(fault?.kind === 'message' && fault.body.type === 'fault' && fault.body.detail === 'é€😀'.repeat(50));
});

test('control and direction characters of a guest do not reach who shows its text [X8]', async (t) => {
  const harness = await openHarness(t);
  harness.send(JSON.stringify({ ...AGENT_EXAMPLES.hello, agent: { version: '1\u001b[2J\u202e' } }));
  await until('the session is opened', () => harness.count('opened') === 1);
  const ugly = 'a\u001b[31mb\u202ec\u0000d';
  const results = [{ item: 'x', outcome: 'failed', output: ugly, durationMs: 1 }];
  harness.send(JSON.stringify(next(harness, 'fault', { detail: ugly })));
  harness.seq += 1;
  harness.send(JSON.stringify(next(harness, 'installed', { results })));
  harness.seq += 1;
  harness.send(JSON.stringify(next(harness, 'bye', { [ugly]: 1 })));
  await harness.sayMarker();
  assert.equal(harness.count('refused'), 1);
  const shown = harness.events.map((event) =>
    event.kind === 'message' && event.body.type === 'bye' ? '' : Object.values(event).map(allText).join(''),
  );
  for (const text of shown) assert.doesNotMatch(text, /[\p{Cc}\p{Cf}]/u);
});

function allText(value: unknown): string {
  if (typeof value !== 'object' || value === null) return String(value);
  return Object.values(value).map(allText).join('');
}

async function cutForGood(harness: Harness): Promise<void> {
  await until(
    'the guest end closes',
    () => harness.guest.destroyed || harness.guest.readableEnded || harness.guest.closed,
  );
  assert.equal(harness.channel.session(), null);
  assert.equal(harness.events.at(-1)?.kind, 'closed');
  assert.equal(harness.count('misbehaved'), 1);
}

/** A line near a valid one: the example with a value replaced, a key renamed, bytes changed, or cut. */
function fuzzedLine(type: string): fc.Arbitrary<(harness: Harness) => Uint8Array> {
  const byte = fc.nat(255).filter((value) => value !== 0x0a);
  const edit = fc.record({
    at: fc.nat(),
    value: byte,
    kind: fc.constantFrom('set', 'insert', 'delete', 'cut', 'double'),
  });
  const field = fc.record({ at: fc.nat(), value: fc.jsonValue({ maxDepth: 3 }), isRename: fc.boolean() });
  return fc
    .record({ edits: fc.array(edit, { maxLength: 4 }), fields: fc.array(field, { maxLength: 2 }) })
    .map(({ edits, fields }) => (harness: Harness) => {
      let message: Fields = next(harness, type);
      for (const { at, value, isRename } of fields) {
        const key = Object.keys(message)[at % Object.keys(message).length] ?? 'type';
        message = isRename
          ? { ...without(message, key), [JSON.stringify(value)]: message[key] }
          : { ...message, [key]: value };
      }
      let bytes = Buffer.from(JSON.stringify(message));
      for (const { at, value, kind } of edits) bytes = editBytes(bytes, at % (bytes.length + 1), value, kind);
      return bytes.filter((one) => one !== 0x0a);
    });
}

function editBytes(bytes: Buffer<ArrayBuffer>, at: number, value: number, kind: string): Buffer<ArrayBuffer> {
  const [head, tail] = [bytes.subarray(0, at), bytes.subarray(at)];
  switch (kind) {
    case 'set':
      return Buffer.concat([head, Buffer.of(value), tail.subarray(1)]);
    case 'insert':
      return Buffer.concat([head, Buffer.of(value), tail]);
    case 'delete':
      return Buffer.concat([head, tail.subarray(1)]);
    case 'double':
      return Buffer.concat([head, tail, tail]);
    default:
      return head;
  }
}

const collectGarbage: () => void = (() => {
  setFlagsFromString('--expose-gc');
  return runInNewContext('gc') as () => void;
})();

/** Heap and what buffers hold outside it. */
function memoryBytes(): number {
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

for (const type of TYPES) {
  test(`${FUZZED_LINES} fuzzed lines of ${type} (seed ${SEED}) end in acceptance or refusal, in bounded memory [A10]`, async (t) => {
    const harness = await openHarness(t);
    await harness.hello();
    await harness.sayMarker();
    const makers = fc.sample(fuzzedLine(type), { seed: SEED, numRuns: FUZZED_LINES });
    collectGarbage();
    const before = memoryBytes();
    const outcomes = { accepted: 0, refused: 0, opened: 0 };
    for (const make of makers) {
      harness.clock.skip(HOUR_MS);
      const nonce = harness.nonce;
      const seen = harness.events.length;
      harness.send(make(harness));
      await settleOne(harness, seen);
      const event = harness.events[seen];
      if (event?.kind === 'refused') {
        outcomes.refused += 1;
        assert.equal(harness.nonce, nonce, 'a refused line changed the session');
      } else if (event?.kind === 'opened') {
        outcomes.opened += 1;
        harness.seq = 0;
      } else {
        outcomes.accepted += 1;
        harness.seq += 1;
      }
      harness.events.length = 0;
      harness.heard.length = 0;
      // A lucky line may have changed the counter or begun a transfer; a new session puts both right.
      if (event?.kind !== 'refused') await harness.hello();
    }
    await harness.sayMarker();
    collectGarbage();
    const grownMiB = (memoryBytes() - before) / 1024 / 1024;
    t.diagnostic(`${JSON.stringify(outcomes)}, memory ${grownMiB.toFixed(1)} MiB`);
    assert.ok(grownMiB <= 20, `memory grew by ${grownMiB} MiB`);
    assert.ok(outcomes.refused > FUZZED_LINES / 2);
    assert.equal(harness.misbehaviour(), undefined);
  });
}

/** Waits for the event of one line; a pong and a chunk have none, so their acceptance shows in the time the agent was heard. */
async function settleOne(harness: Harness, eventsBefore: number): Promise<void> {
  const heardBefore = harness.channel.lastHeardMs();
  const hasSettled = () => harness.events.length > eventsBefore || harness.channel.lastHeardMs() !== heardBefore;
  for (let turn = 0; turn < 50 && !hasSettled(); turn += 1) await new Promise((resolve) => setImmediate(resolve));
  await until('the line is judged', hasSettled);
}
