// The Service as seen from another process: each method is a request over the daemon's unix socket.
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { connect } from 'node:net';
import type { Clock } from '../src/base/clock.ts';
import {
  API_ANSWER_BYTES_MAX,
  API_ANSWER_TIMEOUT_MS,
  API_STREAM_RECONNECT_DELAY_MS,
  API_STREAM_RECONNECTS_MAX,
} from '../src/base/limits.ts';
import type { EventFrame } from './event-stream.ts';
import { licenseCalls } from './licenses-client.ts';
import { ApiError, errorOfProblem, isProblem } from './problem.ts';
import type { Service, VmEventRecord } from './service.ts';

export type ApiClientOptions = { readonly socketPath: string; readonly clock: Clock };

type Call = { readonly method: 'GET' | 'POST' | 'DELETE'; readonly path: string; readonly body?: unknown };
type EventQuery = Parameters<Service['followEvents']>[0];

/**
 * A Service behind the socket. Throws ApiError with the daemon's own code; `daemon-down/not-running` when nobody
 * listens. `followEvents` survives a restart of the daemon and goes on after the last event it gave.
 */
export function makeApiClient(options: ApiClientOptions): Service {
  const ask = async <T>(call: Call): Promise<T> => (await askDaemon(options, call)) as T; // The cast holds: the daemon's serializer sends what the schema of this route declares.
  const vmPath = (vm: string, verb = '') => `/v1/vms/${encodeURIComponent(vm)}${verb}`;
  return {
    ...licenseCalls(ask),
    addVm: async (spec, policy, options = {}) =>
      await ask({ method: 'POST', path: '/v1/vms', body: { spec, policy, ...options } }),
    vmPolicy: async (vm) => await ask({ method: 'GET', path: vmPath(vm, '/policy') }),
    setVmPolicy: async (vm, body) => await ask({ method: 'POST', path: vmPath(vm, '/policy'), body }),
    listVms: async () => await pick(ask, 'vms', { method: 'GET', path: '/v1/vms' }),
    showVm: async (vm) => await ask({ method: 'GET', path: vmPath(vm) }),
    startVm: async (vm) => await ask({ method: 'POST', path: vmPath(vm, '/start') }),
    stopVm: async (vm, body) => await ask({ method: 'POST', path: vmPath(vm, '/stop'), body }),
    retryVm: async (vm) => await ask({ method: 'POST', path: vmPath(vm, '/retry') }),
    admitVm: async (vm, body) => await ask({ method: 'POST', path: vmPath(vm, '/admit'), body }),
    removeVm: async (vm) => {
      await ask({ method: 'DELETE', path: vmPath(vm) });
    },
    planVm: async (vm) => await ask({ method: 'GET', path: vmPath(vm, '/plan') }),
    updateVm: async (vm) => await ask({ method: 'POST', path: vmPath(vm, '/update') }),
    vmConfig: async (vm) => await ask({ method: 'GET', path: vmPath(vm, '/config') }),
    whyVm: async (vm) => await ask({ method: 'GET', path: vmPath(vm, '/why') }),
    inspectVm: async (vm) => await ask({ method: 'POST', path: vmPath(vm, '/inspect') }),
    followEvents: (query) => followEvents(options, query),
    pastEvents: async (query) => await pick(ask, 'events', { method: 'GET', path: `/v1/events?${search(query)}` }),
    addVendor: async (body) => await ask({ method: 'POST', path: '/v1/vendors', body }),
    listVendors: async () => await pick(ask, 'vendors', { method: 'GET', path: '/v1/vendors' }),
    checkVendor: async (name) =>
      await pick(ask, 'vendors', { method: 'POST', path: '/v1/vendors/check', body: { name } }),
    vendorOffers: async (name) =>
      await pick(ask, 'releases', { method: 'GET', path: `/v1/vendors/${encodeURIComponent(name)}/offers` }),
    drift: async () => await pick(ask, 'drift', { method: 'GET', path: '/v1/drift' }),
    doctor: async () => await pick(ask, 'lines', { method: 'GET', path: '/v1/doctor' }),
    acceptClock: async (body) => await ask({ method: 'POST', path: '/v1/clock/accept', body }),
    startScrub: async () => await ask({ method: 'POST', path: '/v1/store/scrub' }),
    scrubView: async () => await ask({ method: 'GET', path: '/v1/store/scrub' }),
    auditEntries: async (query) => await pick(ask, 'entries', { method: 'GET', path: `/v1/audit?${search(query)}` }),
    auditCheckpoint: async () => await ask({ method: 'GET', path: '/v1/audit/checkpoint' }),
    auditLines: async (query) => await ask({ method: 'GET', path: `/v1/audit/export?${search(query)}` }),
    rotateAuditKey: async (body) => await ask({ method: 'POST', path: '/v1/audit/rotate-key', body }),
    auditVerify: async (body = {}) => await ask({ method: 'POST', path: '/v1/audit/verify', body }),
  };
}

type Ask = <T>(call: Call) => Promise<T>;

async function pick<T>(ask: Ask, field: string, call: Call): Promise<readonly T[]> {
  const answer = await ask<Record<string, readonly T[]>>(call);
  return answer[field] ?? [];
}

function search(query: { readonly afterSeq: number; readonly limit?: number; readonly vm?: string }): string {
  const parameters = new URLSearchParams({ after: String(query.afterSeq) });
  if (query.limit !== undefined) parameters.set('limit', String(query.limit));
  if (query.vm !== undefined) parameters.set('vm', query.vm);
  return parameters.toString();
}

async function askDaemon({ socketPath, clock }: ApiClientOptions, { method, path, body }: Call): Promise<unknown> {
  const text = body === undefined ? undefined : JSON.stringify(body);
  const headers = text === undefined ? {} : { 'content-type': 'application/json' };
  return await new Promise((resolve, reject) => {
    const request = httpRequest({ socketPath, method, path, headers }, (response) => {
      readAnswer(response).then(resolve, reject).finally(cancel);
    });
    const cancel = clock.after(API_ANSWER_TIMEOUT_MS, () => {
      const next = "read the daemon's log";
      request.destroy(
        new ApiError('timeout/daemon', `${method} ${path}: the daemon took too long to answer`, { next }),
      );
    });
    request.on('error', (cause: NodeJS.ErrnoException) => {
      cancel();
      reject(cause instanceof ApiError ? cause : unreachable(socketPath, cause));
    });
    request.end(text);
  });
}

async function readAnswer(response: IncomingMessage): Promise<unknown> {
  const pieces: Buffer[] = [];
  let total = 0;
  for await (const piece of response) {
    const bytes = piece as Buffer; // The cast holds: no encoding is set on the response.
    total += bytes.length;
    if (total > API_ANSWER_BYTES_MAX) throw new ApiError('internal/answer', 'the daemon sent too long an answer');
    pieces.push(bytes);
  }
  const value = parseAnswer(Buffer.concat(pieces).toString('utf8'));
  if ((response.statusCode ?? 500) < 400) return value;
  if (isProblem(value)) throw errorOfProblem(value);
  throw new ApiError('internal/answer', `the daemon answered with HTTP status ${response.statusCode} and no reason`);
}

function parseAnswer(text: string): unknown {
  if (text === '') return undefined;
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ApiError('internal/answer', 'the daemon sent an answer that is not JSON', { cause });
  }
}

function unreachable(socketPath: string, cause: { readonly code?: string | undefined }): ApiError {
  if (cause.code === 'EACCES' || cause.code === 'EPERM') {
    return new ApiError('daemon-down/no-permission', `the daemon's socket ${socketPath} may not be used by this user`, {
      cause,
      next: 'run the command as root, or join the group pratique',
    });
  }
  return new ApiError('daemon-down/not-running', `the daemon is not running: nobody listens on ${socketPath}`, {
    next: 'start it with `pratique serve`, or `systemctl start pratique`',
  });
}

/** How one connection of the stream ended. */
type StreamEnd =
  | { readonly kind: 'problem'; readonly error: ApiError }
  | { readonly kind: 'lost' }
  | { readonly kind: 'unreachable'; readonly error: ApiError };

async function* followEvents(options: ApiClientOptions, query: EventQuery): AsyncGenerator<VmEventRecord> {
  let afterSeq = query.afterSeq;
  let wasConnected = false;
  let attempts = 0;
  while (!query.signal.aborted) {
    const connection = openStream(options.socketPath, { ...query, afterSeq });
    for await (const event of connection.events) {
      afterSeq = event.seq;
      attempts = 0;
      yield event;
    }
    const end = connection.end();
    wasConnected ||= end.kind === 'lost';
    if (query.signal.aborted) return;
    if (end.kind === 'problem') throw end.error;
    attempts += 1;
    if (end.kind === 'unreachable' && (!wasConnected || attempts > API_STREAM_RECONNECTS_MAX)) throw end.error;
    await options.clock.sleep(API_STREAM_RECONNECT_DELAY_MS, query.signal).catch(() => {});
  }
}

type Connection = { readonly events: AsyncIterable<VmEventRecord>; readonly end: () => StreamEnd };

function openStream(socketPath: string, query: EventQuery): Connection {
  let end: StreamEnd = { kind: 'unreachable', error: unreachable(socketPath, {}) };
  async function* events(): AsyncGenerator<VmEventRecord> {
    // Loaded here: most commands follow no events.
    const { WebSocket } = await import('ws');
    const path = `ws://localhost/v1/events?${search(query)}`;
    const socket = new WebSocket(path, {
      createConnection: () => connect(socketPath),
      maxPayload: API_ANSWER_BYTES_MAX,
    });
    const stop = (): void => socket.terminate();
    query.signal.addEventListener('abort', stop);
    socket.on('unexpected-response', (_request, response) => {
      readAnswer(response).then(stop, (error: unknown) => {
        end = {
          kind: 'problem',
          error: error instanceof ApiError ? error : new ApiError('internal/answer', 'no answer'),
        };
        stop();
      });
    });
    socket.on('open', () => {
      end = { kind: 'lost' };
    });
    socket.on('error', (cause: NodeJS.ErrnoException) => {
      if (end.kind === 'unreachable') end = { kind: 'unreachable', error: unreachable(socketPath, cause) };
    });
    try {
      for await (const frame of framesOf(socket)) {
        if ('event' in frame) yield frame.event;
        else end = { kind: 'problem', error: errorOfProblem(frame.problem) };
      }
    } finally {
      query.signal.removeEventListener('abort', stop);
      socket.terminate();
    }
  }
  return { events: events(), end: () => end };
}

/** The frames of a socket until it closes. While the reader is busy the socket is paused, so nothing piles up here. */
async function* framesOf(socket: import('ws').WebSocket): AsyncGenerator<EventFrame> {
  const waiting: string[] = [];
  let isClosed = false;
  let wake = (): void => {};
  socket.on('message', (data) => {
    waiting.push(String(data));
    if (waiting.length >= FRAMES_WAITING_MAX) socket.pause();
    wake();
  });
  socket.on('close', () => {
    isClosed = true;
    wake();
  });
  while (true) {
    const frame = waiting.shift();
    if (frame !== undefined) {
      yield parseAnswer(frame) as EventFrame; // The cast holds: the daemon sends only frames of this type.
      continue;
    }
    if (isClosed) return;
    if (socket.isPaused) socket.resume();
    await new Promise<void>((resolve) => {
      wake = resolve;
      if (waiting.length > 0 || isClosed) resolve();
    });
  }
}

/** Frames that may wait for a slow reader before the socket is paused. */
const FRAMES_WAITING_MAX = 256;
