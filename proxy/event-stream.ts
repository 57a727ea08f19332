// The live end of GET /v1/events: a WebSocket that sends each event as one JSON frame and can be resumed by its seq.
import type { IncomingMessage, Server } from 'node:http';
import type { Duplex } from 'node:stream';
import { type WebSocket, WebSocketServer } from 'ws';
import type { Clock } from '../src/base/clock.ts';
import { API_STREAM_PING_MS, API_STREAM_STALL_MS, API_STREAMS_MAX } from '../src/base/limits.ts';
import type { Log } from '../src/base/log.ts';
import { isVmId } from '../src/model/ids.ts';
import { ApiError, type Problem, problemOf } from './problem.ts';
import type { Service, VmEventRecord } from './service.ts';

/** One text frame of the stream. */
export type EventFrame = { readonly event: VmEventRecord } | { readonly problem: Problem };

type StreamOptions = { readonly service: Service; readonly log: Log; readonly clock: Clock };
type StreamQuery = { readonly afterSeq: number; readonly vm?: string };

const CLOSE_GOING_AWAY = 1001;
const CLOSE_PROBLEM = 1011;
/** A client has nothing to say on this stream. */
const INCOMING_BYTES_MAX = 1024;

/** Answers WebSocket upgrades of /v1/events on the server. Returns what closes all streams: an open one keeps its server open. */
export function serveEvents(server: Server, options: StreamOptions): () => void {
  const sockets = new WebSocketServer({ noServer: true, maxPayload: INCOMING_BYTES_MAX, perMessageDeflate: false });
  server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => socket.destroy());
    const query = streamQuery(request);
    if (query instanceof ApiError || sockets.clients.size >= API_STREAMS_MAX) {
      refuse(
        socket,
        query instanceof ApiError ? query : new ApiError('conflict/streams', 'too many event streams are open'),
      );
      return;
    }
    sockets.handleUpgrade(request, socket, head, (client) => void stream(client, query, options));
  });
  return () => {
    for (const client of sockets.clients) client.close(CLOSE_GOING_AWAY);
  };
}

function streamQuery(request: IncomingMessage): StreamQuery | ApiError {
  const url = new URL(request.url ?? '/', 'http://localhost');
  const vm = url.searchParams.get('vm');
  const after = url.searchParams.get('after') ?? '0';
  if (request.headers.origin !== undefined) return new ApiError('refused/browser', 'web pages may not use this API');
  if (url.pathname !== '/v1/events') return new ApiError('not-found/route', 'only /v1/events is an event stream');
  if (!/^\d{1,15}$/.test(after)) return new ApiError('usage/request', 'the request: `after` must be a whole number');
  if (vm !== null && !isVmId(vm)) return new ApiError('usage/request', 'the request: `vm` is no name of a VM');
  return { afterSeq: Number(after), ...(vm === null ? {} : { vm }) };
}

function refuse(socket: Duplex, error: ApiError): void {
  const problem = problemOf(error);
  const body = JSON.stringify(problem);
  socket.end(
    `HTTP/1.1 ${problem.status} Refused\r\nConnection: close\r\nContent-Type: application/problem+json\r\n` +
      `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}

async function stream(client: WebSocket, query: StreamQuery, { service, log, clock }: StreamOptions): Promise<void> {
  const ended = new AbortController();
  client.on('close', () => ended.abort());
  client.on('error', () => client.terminate());
  watchLife(client, clock);
  try {
    for await (const event of service.followEvents({ ...query, signal: ended.signal })) {
      if (ended.signal.aborted) return;
      await send(client, { event }, clock);
    }
    client.close(CLOSE_GOING_AWAY);
  } catch (error) {
    if (ended.signal.aborted) return;
    const problem = problemOf(error);
    if (problem.status === 500) log.error({ err: error }, 'event stream failed');
    await send(client, { problem }, clock).catch(() => {});
    client.close(CLOSE_PROBLEM);
  }
}

/** Sends one frame and waits until the socket took it: a slow reader slows the loop, a stuck one is cut off. */
async function send(client: WebSocket, frame: EventFrame, clock: Clock): Promise<void> {
  const cancel = clock.after(API_STREAM_STALL_MS, () => client.terminate());
  try {
    await new Promise<void>((resolve, reject) => {
      client.send(JSON.stringify(frame), (error) => (error ? reject(error) : resolve()));
    });
  } finally {
    cancel();
  }
}

/** Pings at intervals and ends a client that did not answer the last one. */
function watchLife(client: WebSocket, clock: Clock): void {
  let isAlive = true;
  let cancel = () => {};
  const beat = (): void => {
    if (!isAlive) {
      client.terminate();
      return;
    }
    isAlive = false;
    client.ping();
    cancel = clock.after(API_STREAM_PING_MS, beat);
  };
  client.on('pong', () => {
    isAlive = true;
  });
  client.on('close', () => cancel());
  cancel = clock.after(API_STREAM_PING_MS, beat);
}
