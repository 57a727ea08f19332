// A real HTTP server on loopback that serves a folder and, on demand, behaves as badly as servers do.
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { join, normalize } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** How one path misbehaves. */
export type Fault =
  /** Promises the whole and closes the connection after some bytes. */
  | { readonly kind: 'cut'; readonly afterBytes: number; readonly times?: number }
  /** Sends some bytes, then nothing more, and keeps the connection. */
  | { readonly kind: 'stall'; readonly afterBytes: number }
  /** One byte at a time. */
  | { readonly kind: 'drip'; readonly everyMs: number }
  /** Never sends headers. */
  | { readonly kind: 'silent' }
  /** Bytes without end, no length given. */
  | { readonly kind: 'endless' }
  | { readonly kind: 'status'; readonly status: number }
  | { readonly kind: 'redirect'; readonly to: string; readonly status?: number }
  /** Ignores Range and sends everything. */
  | { readonly kind: 'no-range' }
  /** Answers 206 for a range that was not asked for. */
  | { readonly kind: 'wrong-range' }
  /** Announces this length whatever the file's is. */
  | { readonly kind: 'length'; readonly contentLength: number }
  /** Only for whoever comes with this header. */
  | { readonly kind: 'needs'; readonly authorization: string }
  /** Other bytes than the file's. */
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array };

export type SeenRequest = { readonly path: string; readonly headers: IncomingMessage['headers'] };

export type FakeHttpServer = {
  /** `http://127.0.0.1:port`, no slash behind. */
  readonly url: string;
  readonly requests: readonly SeenRequest[];
  /** Requests of one path, `/a/b`. */
  readonly count: (path: string) => number;
  /** Makes a path misbehave, or behave again (null). */
  readonly fail: (path: string, fault: Fault | null) => void;
  readonly close: () => Promise<void>;
};

export async function startHttpServer(folder: string): Promise<FakeHttpServer> {
  const requests: SeenRequest[] = [];
  const faults = new Map<string, Fault>();
  const server = createServer((request, response) => {
    const path = decodeURIComponent(new URL(request.url ?? '/', 'http://x').pathname);
    requests.push({ path, headers: request.headers });
    answer(folder, path, faults, request, response).catch(() => response.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('the fake server has no port');
  return {
    url: `http://127.0.0.1:${address.port}`,
    requests,
    count: (path) => requests.filter((request) => request.path === path).length,
    fail: (path, fault) => {
      if (fault === null) faults.delete(path);
      else faults.set(path, fault);
    },
    close: async () => {
      server.closeAllConnections();
      await new Promise<void>((resolve) => {
        server.close(() => resolve());
      });
    },
  };
}

async function answer(
  folder: string,
  path: string,
  faults: Map<string, Fault>,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const fault = faults.get(path);
  switch (fault?.kind) {
    case 'silent':
      return;
    case 'status':
      response.writeHead(fault.status).end('no');
      return;
    case 'needs':
      if (request.headers.authorization === fault.authorization) break;
      response.writeHead(401, { 'www-authenticate': 'Bearer' }).end('not for you');
      return;
    case 'redirect':
      response.writeHead(fault.status ?? 302, { location: fault.to }).end();
      return;
    case 'bytes':
      response.writeHead(200, { 'content-length': fault.bytes.length }).end(fault.bytes);
      return;
    case 'endless':
      response.writeHead(200);
      while (!response.destroyed) {
        if (!response.write(Buffer.alloc(65_536))) await drained(response);
      }
      return;
    case 'drip':
      response.writeHead(200);
      while (!response.destroyed) {
        response.write('x');
        await sleep(fault.everyMs);
      }
      return;
  }
  await sendFile(join(folder, normalize(path)), fault, request, response);
  if (fault?.kind === 'cut' && fault.times !== undefined) {
    if (fault.times <= 1) faults.delete(path);
    else faults.set(path, { ...fault, times: fault.times - 1 });
  }
}

async function drained(response: ServerResponse): Promise<void> {
  await new Promise<void>((resolve) => {
    const done = () => {
      response.off('drain', done);
      response.off('close', done);
      resolve();
    };
    response.on('drain', done);
    response.on('close', done);
  });
}

async function sendFile(
  file: string,
  fault: Fault | undefined,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const stats = await stat(file).catch(() => null);
  if (stats === null || !stats.isFile()) {
    response.writeHead(404).end('not here');
    return;
  }
  const etag = `"${stats.size}-${Math.trunc(stats.mtimeMs)}"`;
  const validators = { etag, 'last-modified': stats.mtime.toUTCString() };
  if (
    request.headers['if-none-match'] === etag ||
    request.headers['if-modified-since'] === validators['last-modified']
  ) {
    response.writeHead(304, validators).end();
    return;
  }
  const start = rangeStart(request, etag, fault);
  if (start >= stats.size && start > 0) {
    response.writeHead(416, { 'content-range': `bytes */${stats.size}` }).end();
    return;
  }
  const contentLength = fault?.kind === 'length' ? fault.contentLength : stats.size - start;
  const said = fault?.kind === 'wrong-range' ? start + 1 : start;
  response.writeHead(start === 0 ? 200 : 206, {
    ...validators,
    'content-length': contentLength,
    ...(start === 0 ? {} : { 'content-range': `bytes ${said}-${stats.size - 1}/${stats.size}` }),
  });
  await sendBytes(file, start, fault, response);
}

/** The offset to serve: 0 when the client asks for none, when the file changed (If-Range), or when the server knows no ranges. */
function rangeStart(request: IncomingMessage, etag: string, fault: Fault | undefined): number {
  const range = /^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1];
  const ifRange = request.headers['if-range'];
  if (range === undefined || fault?.kind === 'no-range' || (ifRange !== undefined && ifRange !== etag)) return 0;
  return Number(range);
}

async function sendBytes(
  file: string,
  start: number,
  fault: Fault | undefined,
  response: ServerResponse,
): Promise<void> {
  const limit = fault?.kind === 'cut' || fault?.kind === 'stall' ? fault.afterBytes : Number.POSITIVE_INFINITY;
  let sent = 0;
  for await (const piece of createReadStream(file, { start })) {
    // The cast holds: a stream without an encoding gives Buffers.
    const bytes = (piece as Buffer).subarray(0, limit - sent);
    sent += bytes.length;
    if (!response.write(bytes)) await drained(response);
    if (sent >= limit) break;
  }
  if (fault?.kind === 'stall') return;
  if (fault?.kind === 'cut') {
    // Let what was written leave before the connection breaks.
    await sleep(20);
    response.destroy();
    return;
  }
  response.end();
}
