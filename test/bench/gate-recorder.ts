// Loaded into the daemon with --import: notes when messages of the guest and of QEMU arrive and when the host's leave, to a file.
// It listens at Node's own diagnostics channel for client sockets, so the daemon itself is the one that ships.
import { subscribe } from 'node:diagnostics_channel';
import { appendFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { CONSOLE_CHARDEV } from '../../src/hypervisor/qmp/command-line.ts';

/** One line of the file; the time is wall time with fractions of milliseconds. */
export type Recorded = { readonly atMs: number; readonly what: string };

/** Often enough to place the agent's start, and only until it was seen. */
const CONSOLE_POLL_MS = 4;
const FLUSH_MS = 150;
/** No command of the daemon has it, so the daemon ignores the answer. */
const CONSOLE_READ_ID = -1;
const AGENT_STARTS = 'agent starting at';

const path = process.env.PRATIQUE_BENCH_RECORD;
let waiting: Recorded[] = [];

function note(what: string): void {
  waiting.push({ atMs: performance.timeOrigin + performance.now(), what });
}

function watch(socket: Socket): void {
  const write = socket.write.bind(socket);
  const readConsole = `${JSON.stringify({
    execute: 'ringbuf-read',
    arguments: { device: CONSOLE_CHARDEV, size: 65_536, format: 'utf8' },
    id: CONSOLE_READ_ID,
  })}\n`;
  let poll: NodeJS.Timeout | undefined;
  let linkCommand: unknown = null;
  let deviceCommand: unknown = null;
  const onOutgoing = (message: Line): void => {
    if (message.type !== undefined) note(`out:${message.type}`);
    if (message.execute === 'cont') poll = setInterval(() => write(readConsole), CONSOLE_POLL_MS).unref();
    if (message.execute === 'blockdev-add' || message.execute === 'device_add') note(`out:${message.execute}`);
    if (message.execute === 'device_add') deviceCommand = message.id;
    if (message.execute === 'set_link' && message.arguments?.up === true) {
      note('out:set_link');
      linkCommand = message.id;
    }
  };
  const onIncoming = (message: Line): void => {
    if (message.type !== undefined) note(`in:${message.type}`);
    if (message.event === 'VSERPORT_CHANGE' && message.data?.open === true) note('in:port-open');
    if (linkCommand !== null && message.id === linkCommand) note('in:linked');
    if (deviceCommand !== null && message.id === deviceCommand) note('in:device-added');
    if (message.id !== CONSOLE_READ_ID || !String(message.return).includes(AGENT_STARTS)) return;
    note('in:agent-starts');
    clearInterval(poll);
  };
  const outgoing = lines(onOutgoing);
  const incoming = lines(onIncoming);
  // The casts hold: the wrappers hand on whatever they were given. Connecting puts Node's own `write` back, so ours comes after.
  socket.once('connect', () => {
    socket.write = ((data: unknown, ...rest: unknown[]) => {
      outgoing(data);
      return Reflect.apply(write, socket, [data, ...rest]);
    }) as typeof socket.write;
  });
  const push = socket.push.bind(socket);
  socket.push = ((data: unknown, ...rest: unknown[]) => {
    incoming(data);
    return Reflect.apply(push, socket, [data, ...rest]);
  }) as typeof socket.push;
  socket.once('close', () => clearInterval(poll));
}

type Line = {
  readonly type?: string;
  readonly execute?: string;
  readonly event?: string;
  readonly id?: unknown;
  readonly return?: unknown;
  readonly arguments?: { readonly up?: unknown };
  readonly data?: { readonly open?: unknown };
};

/** Takes pieces of text and hands on each line that is a JSON object. */
function lines(onLine: (message: Line) => void): (piece: unknown) => void {
  let pending = '';
  return (piece) => {
    if (typeof piece !== 'string' && !(piece instanceof Uint8Array)) return;
    pending += typeof piece === 'string' ? piece : Buffer.from(piece).toString('utf8');
    const whole = pending.split('\n');
    pending = whole.pop() ?? '';
    for (const line of whole) {
      const message = parseLine(line);
      if (message !== null) onLine(message);
    }
  };
}

/** Null for what is no JSON object on one line: the daemon has other sockets too. */
function parseLine(line: string): Line | null {
  if (!line.startsWith('{')) return null;
  try {
    return JSON.parse(line) as Line; // Only known fields are looked at, and each is compared before use.
  } catch {
    return null;
  }
}

if (path !== undefined) {
  // The cast holds: Node documents the message of this channel.
  subscribe('net.client.socket', (message) => watch((message as { socket: Socket }).socket));
  setInterval(() => {
    if (waiting.length > 0) appendFileSync(path, waiting.map((entry) => `${JSON.stringify(entry)}\n`).join(''));
    waiting = [];
  }, FLUSH_MS).unref();
}
