// The host end of the channel with an agent that keeps the rules: handshake, counters, chunks, restarts, reconnects.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type Clock, systemClock } from '../base/clock.ts';
import { CHANNEL_HELLO_REQUESTS_MAX, CHANNEL_LINE_BYTES_MAX } from '../base/limits.ts';
import { silentLog } from '../base/log.ts';
import type { VmId } from '../model/ids.ts';
import type { Inventory } from '../model/inventory.ts';
import { cutIntoChunks } from './chunks.ts';
import { AGENT_EXAMPLES } from './examples.ts';
import { type GuestEvent, openGuestChannel } from './session.ts';

const { boot: BOOT } = AGENT_EXAMPLES.hello;
const OTHER_BOOT = BOOT.replace('0', '1');

/** Real time, except that every wait is a thousandth of what it says. */
const fastClock: Clock = {
  ...systemClock,
  after: (durationMs, callback) => systemClock.after(durationMs / 1000, callback),
};

type Line = { readonly type: string; readonly nonce: string; readonly boot: string; readonly seq: number } & Record<
  string,
  unknown
>;

/** The guest's end of the channel: a server, as QEMU is one. */
class GuestEnd {
  readonly lines: Line[] = [];
  readonly events: GuestEvent[] = [];
  readonly server: Server = createServer((socket) => this.#accept(socket));
  connections = 0;
  #socket: Socket | null = null;
  #text = '';

  #accept(socket: Socket): void {
    this.connections += 1;
    this.#socket = socket;
    socket.on('error', () => {});
    socket.setEncoding('utf8');
    socket.on('data', (piece: string) => {
      const lines = (this.#text + piece).split('\n');
      this.#text = lines.pop() ?? '';
      this.lines.push(...lines.map((line) => JSON.parse(line) as Line));
    });
  }

  say(message: object): void {
    this.#socket?.write(`${JSON.stringify(message)}\n`);
  }
  hello(boot = BOOT): void {
    this.say({ ...AGENT_EXAMPLES.hello, boot });
  }
  hangUp(): void {
    this.#socket?.destroy();
  }
  /** Event or line number `index` of the given kind or type; waits for it. */
  async event<K extends GuestEvent['kind']>(kind: K, index = 0): Promise<Extract<GuestEvent, { kind: K }>> {
    const found = () =>
      this.events.filter((event): event is Extract<GuestEvent, { kind: K }> => event.kind === kind)[index];
    return await this.#until(`event ${kind} ${index}`, found);
  }
  async line(type: string, index = 0): Promise<Line> {
    return await this.#until(`line ${type} ${index}`, () => this.lines.filter((line) => line.type === type)[index]);
  }
  async #until<T>(what: string, find: () => T | undefined): Promise<T> {
    for (let turn = 0; turn < 5000; turn += 1) {
      const found = find();
      if (found !== undefined) return found;
      await systemClock.sleep(1);
    }
    throw new Error(`waited in vain for ${what}`);
  }
}

async function open(t: TestContext, options: Partial<Parameters<typeof openGuestChannel>[0]> = {}) {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-session-'));
  const socketPath = join(folder, 'agent.sock');
  const guest = new GuestEnd();
  guest.server.listen(socketPath);
  await once(guest.server, 'listening');
  const channel = openGuestChannel({
    vm: 'web-1' as VmId,
    socketPath,
    clock: fastClock,
    log: silentLog,
    onEvent: (event) => guest.events.push(event),
    ...options,
  });
  t.after(async () => {
    channel.close();
    guest.hangUp();
    guest.server.close();
    await rm(folder, { recursive: true, force: true });
  });
  while (guest.connections === 0) await systemClock.sleep(1);
  return { guest, channel, socketPath };
}

test('a hello is answered with open, with a nonce that nobody can guess [A4]', async (t) => {
  const { guest, channel } = await open(t);
  assert.equal(channel.session(), null);
  guest.hello();
  const opened = await guest.event('opened');
  const answer = await guest.line('open');
  assert.deepEqual(answer, {
    type: 'open',
    protocols: [1],
    protocol: 1,
    nonce: opened.nonce,
    boot: BOOT,
    seq: 0,
    vm: 'web-1',
  });
  assert.match(opened.nonce, /^[0-9a-f]{32}$/);
  assert.deepEqual(channel.session(), { nonce: opened.nonce, boot: BOOT, agentVersion: '0.1.0' });
});

test('the highest protocol version that both speak is chosen [A4]', async (t) => {
  const { guest } = await open(t);
  guest.say({ ...AGENT_EXAMPLES.hello, protocols: [900, 1, 2] });
  assert.equal((await guest.line('open')).protocol, 1);
});

test('messages of the host carry nonce, boot and a counter from 1 [A4]', async (t) => {
  const { guest, channel } = await open(t);
  channel.send({ type: 'ask-inventory' }); // Before any session: dropped.
  guest.hello();
  const { nonce } = await guest.event('opened');
  channel.send({ type: 'ask-inventory' });
  channel.send({ type: 'hold', code: 'x', detail: 'y' });
  assert.deepEqual(await guest.line('hold'), { type: 'hold', nonce, boot: BOOT, seq: 2, code: 'x', detail: 'y' });
  assert.deepEqual(
    guest.lines.map(({ type, seq }) => [type, seq]),
    [
      ['open', 0],
      ['ask-inventory', 1],
      ['hold', 2],
    ],
  );
});

test('a second hello of the same boot is a restarted agent: new nonce, the old session ends [A5]', async (t) => {
  const { guest, channel } = await open(t);
  guest.hello();
  const first = await guest.event('opened');
  channel.send({ type: 'ask-inventory' });
  guest.hello();
  const second = await guest.event('opened', 1);
  assert.notEqual(second.nonce, first.nonce);
  channel.send({ type: 'ask-inventory' });
  assert.equal((await guest.line('ask-inventory', 1)).seq, 1);
  guest.say({ type: 'pong', nonce: first.nonce, boot: BOOT, seq: 1 });
  assert.equal((await guest.event('refused')).code, 'stale-session');
  assert.equal((await guest.line('refuse')).nonce, second.nonce);
});

test('a hello of another boot begins a session of that boot [A2]', async (t) => {
  const { guest, channel } = await open(t);
  guest.hello();
  await guest.event('opened');
  guest.hello(OTHER_BOOT);
  await guest.event('opened', 1);
  assert.equal(channel.session()?.boot, OTHER_BOOT);
});

/** An inventory of about 3.9 MiB with every kind of character in it. */
function largeInventory(): Inventory {
  const products = Array.from({ length: 18_000 }, (_, index) => ({
    ecosystem: 'debian' as const,
    product: `lib-é€😀"\\-${index}-${'x'.repeat(110)}`,
    version: `1.${index}`,
    arch: 'amd64',
    state: 'installed' as const,
  }));
  return { ...AGENT_EXAMPLES.inventory.inventory, products };
}

test('an inventory of nearly 4 MiB arrives whole in chunks, other messages between them [A6]', async (t) => {
  const { guest } = await open(t);
  guest.hello();
  const { nonce } = await guest.event('opened');
  const inventory = largeInventory();
  const text = JSON.stringify({ type: 'inventory', inventory });
  assert.ok(Buffer.byteLength(text) > 3.5 * 1024 * 1024);
  const pieces = cutIntoChunks(text);
  let seq = 0;
  for (const [index, piece] of pieces.entries()) {
    seq += 1;
    guest.say({ type: 'chunk', nonce, boot: BOOT, seq, transfer: 1, index, total: pieces.length, text: piece });
    if (index !== 7) continue;
    seq += 1;
    guest.say({ type: 'pong', nonce, boot: BOOT, seq });
  }
  const { body } = await guest.event('message');
  assert.equal(body.seq, seq);
  assert.ok(body.type === 'inventory');
  assert.deepEqual(body.inventory, inventory);
  guest.say({
    type: 'chunk',
    nonce,
    boot: BOOT,
    seq: seq + 1,
    transfer: 2,
    index: 0,
    total: 1,
    text: '{"type":"bye","reason":"shutdown"}',
  });
  assert.equal((await guest.event('message', 1)).body.type, 'bye');
  assert.equal(guest.events.filter((event) => event.kind === 'refused').length, 0);
});

test('a host message longer than a line goes in chunks that fit a line [A4]', async (t) => {
  const { guest, channel } = await open(t);
  guest.hello();
  const { nonce } = await guest.event('opened');
  const detail = '\u0001"é😀'.repeat(4_000);
  channel.send({ type: 'hold', code: 'x', detail });
  channel.send({ type: 'ping' });
  const last = await guest.line('ping');
  const chunks = guest.lines.filter((line) => line.type === 'chunk');
  assert.ok(chunks.length > 1);
  for (const [index, chunk] of chunks.entries()) {
    assert.deepEqual(
      [chunk.nonce, chunk.seq, chunk.transfer, chunk.index, chunk.total],
      [nonce, index + 1, 1, index, chunks.length],
    );
    assert.ok(Buffer.byteLength(JSON.stringify(chunk)) < CHANNEL_LINE_BYTES_MAX);
  }
  assert.deepEqual(JSON.parse(chunks.map((chunk) => chunk.text).join('')), { type: 'hold', code: 'x', detail });
  assert.equal(last.seq, chunks.length + 1);
});

test('the channel connects again when the connection ends, and the session ends with it [A12]', async (t) => {
  const { guest, channel } = await open(t);
  guest.hello();
  await guest.event('opened');
  guest.hangUp();
  await guest.event('closed');
  assert.equal(channel.session(), null);
  while (guest.connections < 2) await systemClock.sleep(1);
  guest.hello();
  await guest.event('opened', 1);
});

test('the channel waits for a socket that is not there yet [A4]', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-session-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const socketPath = join(folder, 'late.sock');
  const events: GuestEvent[] = [];
  const onEvent = (event: GuestEvent) => events.push(event);
  const channel = openGuestChannel({ vm: 'web-1' as VmId, socketPath, clock: fastClock, log: silentLog, onEvent });
  t.after(() => channel.close());
  await systemClock.sleep(20);
  const server = createServer();
  t.after(() => server.close());
  server.listen(socketPath);
  const [socket] = (await once(server, 'connection')) as [Socket];
  t.after(() => socket.destroy());
  assert.deepEqual(events, []);
});

test('an agent that rests in a session of which its run knows nothing is asked for a hello, and begins another [A11]', async (t) => {
  const { guest, channel } = await open(t);
  guest.hello();
  await guest.event('opened');
  channel.askForHello();
  assert.equal(channel.session(), null);
  const asked = await guest.line('refuse');
  assert.deepEqual([asked.code, asked.nonce], ['no-session', '0'.repeat(32)]);
  guest.hello();
  await guest.event('opened', 1);
  assert.notEqual(channel.session(), null);
});

test('an agent that runs since before the host came is asked for a hello, a few times [A12]', async (t) => {
  const { guest, channel } = await open(t, { isAgentExpected: true });
  const asked = await guest.line('refuse', CHANNEL_HELLO_REQUESTS_MAX - 1);
  assert.deepEqual([asked.code, asked.nonce, asked.seq], ['no-session', '0'.repeat(32), 0]);
  await systemClock.sleep(20);
  assert.equal(guest.lines.length, CHANNEL_HELLO_REQUESTS_MAX);
  guest.hello();
  await guest.event('opened');
  assert.notEqual(channel.session(), null);
});

test('an agent that is not expected yet is not asked for anything [A4]', async (t) => {
  const { guest } = await open(t);
  await systemClock.sleep(30);
  assert.deepEqual(guest.lines, []);
});

test('a silent agent is pinged, and its pong is heard without being handed on [A6]', async (t) => {
  const { guest, channel } = await open(t, { pingAfterMs: 5_000 });
  guest.hello();
  const { nonce } = await guest.event('opened');
  const heardMs = channel.lastHeardMs();
  await guest.line('ping', 1);
  guest.say({ type: 'pong', nonce, boot: BOOT, seq: 1 });
  guest.say({ type: 'bye', nonce, boot: BOOT, seq: 2, reason: 'shutdown' });
  assert.equal((await guest.event('message')).body.type, 'bye');
  assert.ok((channel.lastHeardMs() ?? 0) > (heardMs ?? 0));
});

test('a listener that throws does not end the channel [A4]', async (t) => {
  let thrown = 0;
  const onEvent = () => {
    thrown += 1;
    throw new Error('a bug of the listener');
  };
  const { guest } = await open(t, { onEvent });
  guest.hello();
  await guest.line('open');
  guest.hello();
  await guest.line('open', 1);
  assert.equal(thrown, 2);
});

test('a closed channel says nothing more and does not come back [A4]', async (t) => {
  const { guest, channel } = await open(t);
  guest.hello();
  await guest.event('opened');
  channel.close();
  await systemClock.sleep(20);
  assert.equal(guest.connections, 1);
  assert.deepEqual(
    guest.events.map((event) => event.kind),
    ['opened'],
  );
});
