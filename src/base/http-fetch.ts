// Fetches over HTTP(S) and from file: URLs: bounded in bytes and time, resumable, and honest about whose fault a failure is.
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { Agent, type Dispatcher, EnvHttpProxyAgent, request } from 'undici';
import type { Clock } from './clock.ts';
import type { ErrorCode } from './errors.ts';
import { codeOf, HttpError, httpErrorOf, nameOf } from './http-error.ts';
import {
  HTTP_DISCARD_BYTES_MAX,
  HTTP_HEADERS_TIMEOUT_MS,
  HTTP_PROGRESS_BYTES_MIN,
  HTTP_PROGRESS_WINDOW_MS,
  HTTP_REDIRECTS_MAX,
  HTTP_STALL_TIMEOUT_MS,
} from './limits.ts';
import type { Log } from './log.ts';
import { printable } from './printable.ts';

export { HttpError, isUnreachable } from './http-error.ts';

export type HttpHeaders = Readonly<Record<string, string>>;

/**
 * Adds headers (a license token) to a request. It is asked for the first request of a fetch only, never for one that
 * follows a redirect, so a token cannot travel further than the origin it was given for.
 */
export type RequestInterceptor = (
  request: {
    readonly origin: string;
    readonly url: string;
    /** The license that what is fetched is under; null for all that is under none, a vendor's metadata among it. */
    readonly license: string | null;
  },
  headers: HttpHeaders,
) => HttpHeaders | Promise<HttpHeaders>;

export type HttpFetchDeps = {
  readonly clock: Clock;
  readonly log?: Log;
  readonly intercept?: RequestInterceptor;
  /** A proxy for everything, instead of the ones in the environment. */
  readonly proxyUrl?: string;
  /** Bounds other than those of limits.ts, for tests. */
  readonly headersTimeoutMs?: number;
  readonly stallTimeoutMs?: number;
  readonly progressWindowMs?: number;
  readonly progressBytesMin?: number;
};

export type OpenOptions = {
  /** Resume from here; the answer's own `offsetBytes` says what the server made of it. */
  readonly offsetBytes?: number;
  /** The entity tag of the bytes already held: if the file changed since, it is sent from its beginning (If-Range, RFC 9110 13.1.5). */
  readonly ifRangeEtag?: string;
  /** Largest size of the whole file, the bytes before the offset included. */
  readonly sizeBytesMax: number;
  /** The license that the file is under, for the interceptor. */
  readonly license?: string;
  readonly headersTimeoutMs?: number;
  readonly signal?: AbortSignal;
};

export type Download = {
  /** The file's bytes from `offsetBytes` on. Read it to its end or leave the loop: either frees the connection. */
  readonly bytes: AsyncIterable<Uint8Array>;
  /** The offset the server really honoured: the one asked for (206), or 0 (200). */
  readonly offsetBytes: number;
  /** Bytes of this answer; null when the server does not say. */
  readonly contentLength: number | null;
  readonly etag: string | null;
  readonly lastModified: string | null;
};

export type FetchBytesOptions = {
  readonly sizeBytesMax: number;
  readonly ifNoneMatch?: string;
  readonly ifModifiedSince?: string;
  readonly headersTimeoutMs?: number;
  readonly signal?: AbortSignal;
};

export type FetchedBytes = {
  readonly status: 'modified' | 'not-modified';
  /** Empty when not modified. */
  readonly bytes: Uint8Array;
  readonly etag: string | null;
  readonly lastModified: string | null;
};

export type HttpFetch = {
  /** Opens a file for reading as a stream. Throws HttpError, also while its bytes are read; an abort throws the signal's reason. */
  readonly open: (url: string, options: OpenOptions) => Promise<Download>;
  /** Reads a small file whole, optionally only when it changed. Throws HttpError. */
  readonly fetchBytes: (url: string, options: FetchBytesOptions) => Promise<FetchedBytes>;
  /** Closes idle connections and ends running fetches. */
  readonly close: () => Promise<void>;
};

/** A download's bytes from exactly `offsetBytes` on, whatever the server made of the offset: what comes before is read and dropped. */
export async function* bytesFrom(download: Download, offsetBytes: number): AsyncGenerator<Uint8Array> {
  let toSkip = offsetBytes - download.offsetBytes;
  for await (const piece of download.bytes) {
    if (toSkip >= piece.length) {
      toSkip -= piece.length;
      continue;
    }
    yield toSkip === 0 ? piece : piece.subarray(toSkip);
    toSkip = 0;
  }
}

/** Bytes read from a local file at a time. */
const LOCAL_PIECE_BYTES = 1024 * 1024;

type Bounds = {
  readonly headersTimeoutMs: number;
  readonly stallTimeoutMs: number;
  readonly progressWindowMs: number;
  readonly progressBytesMin: number;
};

type Answer = {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: AsyncIterable<Uint8Array>;
  readonly url: URL;
  /** The caller's own; its reason is what an aborted read throws. */
  readonly callerSignal: AbortSignal | undefined;
  /** Ends the exchange, also in the middle of the body. */
  readonly abort: (reason: unknown) => void;
};

/** Makes the fetcher. Proxies come from http_proxy, https_proxy and no_proxy in the environment, read once, now. */
export function makeHttpFetch(deps: HttpFetchDeps): HttpFetch {
  const bounds: Bounds = {
    headersTimeoutMs: deps.headersTimeoutMs ?? HTTP_HEADERS_TIMEOUT_MS,
    stallTimeoutMs: deps.stallTimeoutMs ?? HTTP_STALL_TIMEOUT_MS,
    progressWindowMs: deps.progressWindowMs ?? HTTP_PROGRESS_WINDOW_MS,
    progressBytesMin: deps.progressBytesMin ?? HTTP_PROGRESS_BYTES_MIN,
  };
  // Our own clock owns the time limits, so undici's are off; the connection is part of the wait for headers.
  const { proxyUrl } = deps;
  // Without a value of its own undici would read no_proxy again at every request.
  const noProxy = process.env.no_proxy ?? process.env.NO_PROXY ?? '';
  const proxies = proxyUrl === undefined ? { noProxy } : { httpProxy: proxyUrl, httpsProxy: proxyUrl, noProxy: '' };
  const limits = { headersTimeout: 0, bodyTimeout: 0 };
  const dispatcher = new EnvHttpProxyAgent({ ...limits, connect: VERIFIED, requestTls: VERIFIED, ...proxies });
  const direct = new Agent(limits);
  const wire: Wire = { ...deps, bounds, dispatcher, direct };
  return {
    open: async (url, options) => {
      const parsed = parseUrl(url);
      if (parsed.protocol === 'file:') return await openLocal(parsed, options);
      return await openRemote(wire, parsed, options);
    },
    fetchBytes: async (url, options) => {
      const parsed = parseUrl(url);
      if (parsed.protocol === 'file:') return await fetchLocal(parsed, options);
      return await fetchRemote(wire, parsed, options);
    },
    close: async () => void (await Promise.all([dispatcher.destroy(), direct.destroy()])),
  };
}

/** Also where the environment asks Node not to verify certificates. */
const VERIFIED = { rejectUnauthorized: true };

type Wire = HttpFetchDeps & {
  readonly bounds: Bounds;
  readonly dispatcher: Dispatcher;
  /** Past every proxy. */
  readonly direct: Dispatcher;
};

function parseUrl(url: string): URL {
  const parsed = URL.canParse(url) ? new URL(url) : null;
  const where = printable(url.replace(/\/\/[^/@]*@/, '//').replace(/\?.*$/s, ''));
  if (parsed === null || !['http:', 'https:', 'file:'].includes(parsed.protocol)) {
    throw new HttpError('usage/url', `"${where}" is not an http, https or file URL`, { next: 'correct the URL' });
  }
  if (parsed.username !== '' || parsed.password !== '') {
    throw new HttpError('usage/url', `the URL of ${where} carries a user name or password`, {
      next: 'take it out and add it with `pratique license add`',
    });
  }
  return parsed;
}

async function openRemote(wire: Wire, url: URL, options: OpenOptions): Promise<Download> {
  const offset = options.offsetBytes ?? 0;
  const answer = await follow(wire, url, rangeHeaders(offset, options.ifRangeEtag), options);
  if (answer.status === 206 && !isContinuation(answer, offset, options.ifRangeEtag)) {
    answer.abort(null);
    return await openRemote(wire, url, withoutOffset(options));
  }
  // 416: the file is shorter than what we hold, so what we hold is not its beginning. Once from the start.
  if (answer.status === 416 && offset > 0) {
    answer.abort(null);
    return await openRemote(wire, url, withoutOffset(options));
  }
  if (answer.status !== 200 && answer.status !== 206) throw refusal(answer);
  const honoured = answer.status === 206 ? offset : 0;
  const contentLength = lengthOf(answer);
  const download = { offsetBytes: honoured, contentLength, ...validatorsOf(answer) };
  const rest = options.sizeBytesMax - honoured;
  if (rest < 0 || (contentLength ?? 0) > rest) throw tooLarge(answer, options.sizeBytesMax);
  return { ...download, bytes: bounded(wire, answer, rest, options.sizeBytesMax) };
}

async function fetchRemote(wire: Wire, url: URL, options: FetchBytesOptions): Promise<FetchedBytes> {
  const conditions = {
    ...(options.ifNoneMatch === undefined ? {} : { 'if-none-match': options.ifNoneMatch }),
    ...(options.ifModifiedSince === undefined ? {} : { 'if-modified-since': options.ifModifiedSince }),
  };
  const answer = await follow(wire, url, conditions, options);
  const validators = validatorsOf(answer);
  if (answer.status === 304 && Object.keys(conditions).length > 0) {
    answer.abort(null);
    return { status: 'not-modified', bytes: new Uint8Array(0), ...validators };
  }
  if (answer.status !== 200) throw refusal(answer);
  if ((lengthOf(answer) ?? 0) > options.sizeBytesMax) throw tooLarge(answer, options.sizeBytesMax);
  const bytes = await collect(bounded(wire, answer, options.sizeBytesMax, options.sizeBytesMax));
  return { status: 'modified', bytes, ...validators };
}

function withoutOffset(options: OpenOptions): OpenOptions {
  const { offsetBytes: _offset, ifRangeEtag: _etag, ...rest } = options;
  return rest;
}

function rangeHeaders(offsetBytes: number, etag: string | undefined): HttpHeaders {
  if (offsetBytes === 0) return {};
  // A weak tag may not stand in If-Range (RFC 9110 13.1.5); without it our own comparison of tags below decides.
  const isStrong = etag?.startsWith('"') === true;
  return { range: `bytes=${offsetBytes}-`, ...(isStrong && etag !== undefined ? { 'if-range': etag } : {}) };
}

/** Whether a 206 really continues what we hold: right start, same entity. Servers lie about both. */
function isContinuation(answer: Answer, offsetBytes: number, etag: string | undefined): boolean {
  const start = /^bytes (\d+)-/.exec(headerOf(answer, 'content-range') ?? '')?.[1];
  if (start === undefined || Number(start) !== offsetBytes || offsetBytes === 0) return false;
  const sent = headerOf(answer, 'etag');
  return etag === undefined || sent === null || sent === etag;
}

/** Sends the request and follows redirects; the answer's status is whatever the last server said. */
async function follow(
  wire: Wire,
  start: URL,
  extra: HttpHeaders,
  options: { readonly license?: string; readonly headersTimeoutMs?: number; readonly signal?: AbortSignal },
): Promise<Answer> {
  const plain: HttpHeaders = { 'user-agent': 'pratique', 'accept-encoding': 'identity', ...extra };
  let headers = plain;
  const { license = null } = options;
  if (wire.intercept !== undefined) {
    headers = await wire.intercept({ origin: start.origin, url: start.href, license }, plain);
  }
  let url = start;
  for (let redirects = 0; redirects <= HTTP_REDIRECTS_MAX; redirects += 1) {
    // A proxy sees what plain http carries: what was added is for the origin alone.
    const isForOriginAlone = headers !== plain && url.protocol === 'http:';
    const answer = await exchange(
      isForOriginAlone ? { ...wire, dispatcher: wire.direct } : wire,
      url,
      headers,
      options,
    );
    const target = redirectTarget(answer);
    if (target === null) return answer;
    wire.log?.debug({ from: nameOf(url), to: nameOf(target) }, 'redirected');
    answer.abort(null);
    url = target;
    headers = plain;
  }
  throw new HttpError('vendor-ill/redirect', `${nameOf(start)} redirects more than ${HTTP_REDIRECTS_MAX} times`);
}

function redirectTarget(answer: Answer): URL | null {
  if (![301, 302, 303, 307, 308].includes(answer.status)) return null;
  const location = headerOf(answer, 'location');
  const target = location !== null && URL.canParse(location, answer.url.href) ? new URL(location, answer.url) : null;
  const from = answer.url.protocol;
  const isAllowed = target !== null && (target.protocol === from || (from === 'http:' && target.protocol === 'https:'));
  if (isAllowed && target.username === '' && target.password === '') return target;
  answer.abort(null);
  const to = target === null ? 'nowhere' : nameOf(target);
  throw new HttpError('vendor-ill/redirect', `${nameOf(answer.url)} redirects to ${to}, which is not followed`, {
    status: answer.status,
    next: 'ask the vendor, or give the final URL yourself',
  });
}

/** One request up to its headers. A connection the server closed while it lay idle is tried again once: a GET may be. */
async function exchange(
  wire: Wire,
  url: URL,
  headers: HttpHeaders,
  options: { readonly headersTimeoutMs?: number; readonly signal?: AbortSignal },
): Promise<Answer> {
  try {
    return await exchangeOnce(wire, url, headers, options);
  } catch (error) {
    const isStale = error instanceof HttpError && codeOf(error.cause) === 'UND_ERR_SOCKET';
    if (!isStale || options.signal?.aborted === true) throw error;
    return await exchangeOnce(wire, url, headers, options);
  }
}

async function exchangeOnce(
  wire: Wire,
  url: URL,
  headers: HttpHeaders,
  options: { readonly headersTimeoutMs?: number; readonly signal?: AbortSignal },
): Promise<Answer> {
  const ours = new AbortController();
  const signal = options.signal === undefined ? ours.signal : AbortSignal.any([options.signal, ours.signal]);
  const limitMs = options.headersTimeoutMs ?? wire.bounds.headersTimeoutMs;
  const stopWaiting = wire.clock.after(limitMs, () => {
    ours.abort(new HttpError('vendor-ill/timeout', `${nameOf(url)} did not answer within ${limitMs} ms`));
  });
  try {
    const answer = await request(url, { dispatcher: wire.dispatcher, headers, signal });
    const { statusCode: status, body } = answer;
    // The body reports an abort to whoever reads it; unread, its error event must not end the process.
    body.on('error', () => {});
    const abort = (reason: unknown) => {
      // A short rest is drained so that the connection serves again; a long one costs less to cut.
      if (reason === null && status >= 300) void body.dump({ limit: HTTP_DISCARD_BYTES_MAX }).catch(() => {});
      else ours.abort(reason ?? new HttpError('vendor-ill/cut-short', `reading ${nameOf(url)} was given up`));
    };
    return { status, headers: answer.headers, body, url, callerSignal: options.signal, abort };
  } catch (cause) {
    if (options.signal?.aborted === true) throw options.signal.reason;
    throw httpErrorOf(cause, url);
  } finally {
    stopWaiting();
  }
}

/**
 * The body, with at most `restBytes`, no silence longer than the stall limit, and the least progress in every window.
 * Only time spent waiting for the server counts: a slow reader of ours (a busy disk) is not the vendor's fault.
 */
async function* read(wire: Wire, answer: Answer, restBytes: number, sizeBytesMax: number): AsyncGenerator<Uint8Array> {
  const { clock, bounds } = wire;
  const iterator = answer.body[Symbol.asyncIterator]();
  let total = 0;
  let waitedMs = 0;
  let windowBytes = 0;
  try {
    for (;;) {
      const startMs = clock.monotonicMs();
      const result = await nextPiece(wire, answer, iterator);
      if (result.done === true) break;
      total += result.value.length;
      if (total > restBytes) throw tooLarge(answer, sizeBytesMax);
      waitedMs += clock.monotonicMs() - startMs;
      windowBytes += result.value.length;
      if (waitedMs >= bounds.progressWindowMs) {
        if (windowBytes < bounds.progressBytesMin) throw tooSlow(answer, windowBytes, waitedMs);
        waitedMs = 0;
        windowBytes = 0;
      }
      yield result.value;
    }
    const promised = lengthOf(answer);
    if (promised !== null && promised !== total) throw cutShort(answer, total, promised);
  } finally {
    answer.abort(new HttpError('vendor-ill/cut-short', `reading ${nameOf(answer.url)} was given up`));
  }
}

async function nextPiece(
  wire: Wire,
  answer: Answer,
  iterator: AsyncIterator<Uint8Array>,
): Promise<IteratorResult<Uint8Array>> {
  const limitMs = wire.bounds.stallTimeoutMs;
  const stopWaiting = wire.clock.after(limitMs, () => {
    answer.abort(new HttpError('vendor-ill/timeout', `${nameOf(answer.url)} sent nothing for ${limitMs} ms`));
  });
  try {
    return await iterator.next();
  } catch (cause) {
    if (answer.callerSignal?.aborted === true) throw answer.callerSignal.reason;
    throw httpErrorOf(cause, answer.url);
  } finally {
    stopWaiting();
  }
}

/** Like `read`, and lets go of the connection if nobody begins to read within the stall limit. */
function bounded(wire: Wire, answer: Answer, restBytes: number, sizeBytesMax: number): AsyncIterable<Uint8Array> {
  const stopWaiting = wire.clock.after(wire.bounds.stallTimeoutMs, () => {
    answer.abort(new HttpError('host-fault/network', `nobody read ${nameOf(answer.url)} after it was opened`));
  });
  const pieces = read(wire, answer, restBytes, sizeBytesMax);
  return {
    [Symbol.asyncIterator]: () => {
      stopWaiting();
      return pieces;
    },
  };
}

async function collect(pieces: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const list: Uint8Array[] = [];
  for await (const piece of pieces) list.push(piece);
  return Buffer.concat(list);
}

function headerOf(answer: Answer, name: string): string | null {
  const value = answer.headers[name];
  const first = Array.isArray(value) ? value[0] : value;
  return first === undefined ? null : first;
}

function lengthOf(answer: Answer): number | null {
  const text = headerOf(answer, 'content-length');
  return text !== null && /^\d{1,15}$/.test(text) ? Number(text) : null;
}

function validatorsOf(answer: Answer): { readonly etag: string | null; readonly lastModified: string | null } {
  return { etag: headerOf(answer, 'etag'), lastModified: headerOf(answer, 'last-modified') };
}

function refusal(answer: Answer): HttpError {
  answer.abort(null);
  const { status } = answer;
  const code: ErrorCode = status >= 400 && status < 500 ? `vendor-ill/http-${status}` : 'vendor-ill/http-5xx';
  const isPlain = status >= 400 && status < 600;
  const next = status === 401 || status === 403 ? { next: 'check the license for this vendor' } : {};
  return new HttpError(isPlain ? code : 'vendor-ill/protocol', `${nameOf(answer.url)} answered ${status}`, {
    status,
    ...next,
  });
}

function tooLarge(answer: Answer, sizeBytesMax: number): HttpError {
  const error = new HttpError('vendor-ill/too-large', `${nameOf(answer.url)} is larger than ${sizeBytesMax} bytes`);
  answer.abort(error);
  return error;
}

function tooSlow(answer: Answer, bytes: number, waitedMs: number): HttpError {
  const message = `${nameOf(answer.url)} sent only ${bytes} bytes in ${Math.round(waitedMs)} ms`;
  return new HttpError('vendor-ill/too-slow', message, { next: 'try later or use another mirror' });
}

function cutShort(answer: Answer, bytes: number, promised: number): HttpError {
  const message = `${nameOf(answer.url)} ended after ${bytes} of ${promised} bytes`;
  return new HttpError('vendor-ill/cut-short', message);
}

// file: URLs, for mirrors on a disk. The same bounds in bytes; a local disk needs none in time.

type LocalFile = {
  readonly path: string;
  readonly sizeBytes: number;
  readonly etag: string;
  readonly lastModified: string;
};

/** Looks without opening: opening a pipe would hang, and a download nobody reads must not hold a descriptor. */
async function findLocal(url: URL, sizeBytesMax: number): Promise<LocalFile> {
  const path = fileURLToPath(url);
  const stats = await stat(path).catch((cause: unknown) => {
    throw localErrorOf(cause, path);
  });
  if (!stats.isFile()) throw new HttpError('vendor-ill/protocol', `${printable(path)} is not a plain file`);
  if (stats.size > sizeBytesMax) {
    throw new HttpError('vendor-ill/too-large', `${printable(path)} is larger than ${sizeBytesMax} bytes`);
  }
  const etag = `"${stats.size}-${Math.trunc(stats.mtimeMs)}-${stats.ino}"`;
  return { path, sizeBytes: stats.size, etag, lastModified: stats.mtime.toUTCString() };
}

function localErrorOf(cause: unknown, path: string): HttpError {
  const isMissing = ['ENOENT', 'ENOTDIR'].includes(codeOf(cause));
  if (isMissing) return new HttpError('vendor-ill/http-404', `there is no file ${printable(path)}`, { status: 404 });
  return new HttpError('host-fault/file', `reading ${printable(path)}`, { cause, next: 'check its permissions' });
}

async function openLocal(url: URL, options: OpenOptions): Promise<Download> {
  const local = await findLocal(url, options.sizeBytesMax);
  const wanted = options.offsetBytes ?? 0;
  const isSame = options.ifRangeEtag === undefined || options.ifRangeEtag === local.etag;
  const offsetBytes = isSame && wanted < local.sizeBytes ? wanted : 0;
  return {
    bytes: readLocal(local, offsetBytes, options.signal),
    offsetBytes,
    contentLength: local.sizeBytes - offsetBytes,
    etag: local.etag,
    lastModified: local.lastModified,
  };
}

/** Reads up to the size seen before, so a file that grows meanwhile cannot become endless. */
async function* readLocal(
  local: LocalFile,
  offsetBytes: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array> {
  if (local.sizeBytes === offsetBytes) return;
  const stream = createReadStream(local.path, {
    start: offsetBytes,
    end: local.sizeBytes - 1,
    highWaterMark: LOCAL_PIECE_BYTES,
  });
  let total = offsetBytes;
  try {
    for await (const piece of stream) {
      signal?.throwIfAborted();
      // The cast holds: a stream without an encoding gives Buffers.
      const bytes = piece as Buffer;
      total += bytes.length;
      yield bytes;
    }
  } catch (cause) {
    if (signal?.aborted === true) throw signal.reason;
    throw localErrorOf(cause, local.path);
  }
  if (total === local.sizeBytes) return;
  const message = `${printable(local.path)} ended after ${total} of ${local.sizeBytes} bytes`;
  throw new HttpError('vendor-ill/cut-short', message);
}

async function fetchLocal(url: URL, options: FetchBytesOptions): Promise<FetchedBytes> {
  const local = await findLocal(url, options.sizeBytesMax);
  const validators = { etag: local.etag, lastModified: local.lastModified };
  if (options.ifNoneMatch === local.etag) return { status: 'not-modified', bytes: new Uint8Array(0), ...validators };
  return { status: 'modified', bytes: await collect(readLocal(local, 0, options.signal)), ...validators };
}
