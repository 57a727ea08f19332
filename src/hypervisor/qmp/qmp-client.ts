// Speaks QMP over a unix socket (QEMU's docs/interop/qmp-spec). QEMU may be ill or taken over: whatever it answers is parsed,
// bounded and timed, and ends in an error of ours, never in a crash.
import { connect, type Socket } from 'node:net';
import { Type } from 'typebox';
import type { Clock } from '../../base/clock.ts';
import { makeLineSplitter } from '../../base/json-lines.ts';
import { QMP_COMMAND_TIMEOUT_MS, QMP_LINE_BYTES_MAX } from '../../base/limits.ts';
import { makeParser, parseJson } from '../../base/parse.ts';
import { printable } from '../../base/printable.ts';
import { HypervisorError } from '../errors.ts';

export type QmpEvent = { readonly event: string; readonly data: Readonly<Record<string, unknown>> };

export type QmpClient = {
  /** Runs one command and returns its `return`, unparsed. Throws HypervisorError with `qemuClass` when QEMU refuses, or when it is silent or gone. */
  readonly execute: (command: string, args?: Readonly<Record<string, unknown>>) => Promise<unknown>;
  readonly onEvent: (listener: (event: QmpEvent) => void) => void;
  /** Resolves once the connection is over, with the reason. */
  readonly closed: Promise<string>;
  readonly close: () => void;
};

export type QmpOptions = {
  readonly path: string;
  readonly clock: Clock;
  /** Milliseconds for the greeting and for each answer. */
  readonly timeoutMs?: number;
};

const ANSWER = 'host-fault/qmp-answer';
const record = Type.Record(Type.String(), Type.Unknown());
const parseMessage = makeParser(record, ANSWER);
const parseEvent = makeParser(
  Type.Object({ event: Type.String({ maxLength: 128 }), data: Type.Optional(record) }),
  ANSWER,
);
const parseAnswer = makeParser(
  Type.Object({
    id: Type.Optional(Type.Integer()),
    return: Type.Optional(Type.Unknown()),
    error: Type.Optional(Type.Object({ class: Type.String(), desc: Type.String() })),
  }),
  ANSWER,
);

type Waiting = { readonly resolve: (value: unknown) => void; readonly reject: (error: HypervisorError) => void };

/** Connects, waits for the greeting and negotiates. Throws HypervisorError `host-fault/qmp-…`; nothing is left open then. */
export async function connectQmp(options: QmpOptions): Promise<QmpClient> {
  const timeoutMs = options.timeoutMs ?? QMP_COMMAND_TIMEOUT_MS;
  const socket = await openSocket(options.path);
  const session = makeSession(socket, options.path, options.clock, timeoutMs);
  try {
    await session.greeted;
    await session.client.execute('qmp_capabilities');
    return session.client;
  } catch (error) {
    session.client.close();
    throw error;
  }
}

function openSocket(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.removeAllListeners('error');
      resolve(socket);
    });
    socket.once('error', (cause) =>
      reject(new HypervisorError('host-fault/qmp-connect', `connecting to QEMU's monitor ${path}`, { cause })),
    );
  });
}

function makeSession(socket: Socket, path: string, clock: Clock, timeoutMs: number) {
  const waiting = new Map<number, Waiting>();
  const listeners: ((event: QmpEvent) => void)[] = [];
  const splitter = makeLineSplitter(QMP_LINE_BYTES_MAX);
  const greeting = Promise.withResolvers<void>();
  const closed = Promise.withResolvers<string>();
  let isOver: string | null = null;
  let lastId = 0;

  const finish = (why: string) => {
    if (isOver !== null) return;
    isOver = why;
    socket.destroy();
    const error = goneError(path, why);
    greeting.reject(error);
    for (const entry of waiting.values()) entry.reject(error);
    waiting.clear();
    closed.resolve(why);
  };
  const take = (line: string) => {
    const message = parseMessage(parseJson(line, `QEMU's answer on ${path}`, ANSWER), `QEMU's answer on ${path}`);
    if ('QMP' in message) return greeting.resolve();
    if ('event' in message) {
      const event = parseEvent(message, `QEMU's event on ${path}`);
      for (const listener of listeners) listener({ event: event.event, data: event.data ?? {} });
      return;
    }
    const answer = parseAnswer(message, `QEMU's answer on ${path}`);
    const entry = answer.id === undefined ? undefined : waiting.get(answer.id);
    if (entry === undefined) return; // Late answer of a command that was given up.
    if (answer.error !== undefined) entry.reject(refusal(path, answer.error));
    else entry.resolve(answer.return);
  };
  const feed = (text: string) => {
    const { lines, overflow } = splitter.push(text);
    try {
      for (const line of lines) if (line.trim() !== '') take(line);
    } catch (error) {
      finish(error instanceof Error ? error.message : String(error));
    }
    if (overflow) finish(`QEMU sent a line longer than ${QMP_LINE_BYTES_MAX} characters`);
  };

  greeting.promise.catch(() => {});
  const cancelGreeting = clock.after(timeoutMs, () => finish(`no QMP greeting within ${timeoutMs} ms`));
  greeting.promise.then(cancelGreeting, cancelGreeting);
  socket.setEncoding('utf8');
  socket.on('data', feed);
  socket.on('error', (error) => finish(error.message));
  socket.on('close', () => finish('QEMU closed the connection'));

  const execute = (command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown> => {
    if (isOver !== null) return Promise.reject(goneError(path, isOver));
    lastId += 1;
    const id = lastId;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    waiting.set(id, { resolve, reject });
    const cancel = clock.after(timeoutMs, () =>
      reject(
        new HypervisorError('timeout/qmp', `QEMU did not answer ${command} on ${path} within ${timeoutMs} ms`, {
          next: 'look whether the host is overloaded or the QEMU process hangs',
        }),
      ),
    );
    const line = JSON.stringify(
      args === undefined ? { execute: command, id } : { execute: command, arguments: args, id },
    );
    socket.write(`${line}\n`);
    return promise.finally(() => {
      cancel();
      waiting.delete(id);
    });
  };
  const client: QmpClient = {
    execute,
    onEvent: (listener) => listeners.push(listener),
    closed: closed.promise,
    close: () => finish('we closed the connection'),
  };
  return { client, greeted: greeting.promise };
}

function goneError(path: string, why: string): HypervisorError {
  return new HypervisorError('host-fault/qmp-closed', `the QEMU monitor ${path} is closed: ${printable(why)}`);
}

function refusal(path: string, error: { readonly class: string; readonly desc: string }): HypervisorError {
  const qemuClass = printable(error.class, 64);
  return new HypervisorError('host-fault/qmp-refused', `QEMU on ${path} refused: ${printable(error.desc, 400)}`, {
    qemuClass,
  });
}
