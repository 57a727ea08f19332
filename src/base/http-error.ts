// How a fetch fails: one class, whose fault it is by its code, and what to do next.
import { type ErrorCode, type ErrorOptions, PratiqueError } from './errors.ts';
import { printable } from './printable.ts';

/**
 * A fetch that failed. `vendor-ill/http-404` (any 4xx by its number), `vendor-ill/http-5xx`, `vendor-ill/timeout`,
 * `vendor-ill/too-slow`, `vendor-ill/too-large`, `vendor-ill/cut-short`, `vendor-ill/redirect`, `vendor-ill/tls`,
 * `vendor-ill/protocol`, `vendor-ill/unreachable` (no connection to the server); `host-fault/network` (our own resolver
 * or network is down), `host-fault/proxy`, `host-fault/file`; `usage/url`.
 */
export class HttpError extends PratiqueError {
  /** The HTTP status, null when there was none. */
  readonly status: number | null;

  constructor(code: ErrorCode, message: string, options: ErrorOptions & { readonly status?: number } = {}) {
    super(code, message, options);
    this.status = options.status ?? null;
  }
}

/** Whether a failure means that the vendor could not be reached at all (as opposed to: answered wrongly). */
export function isUnreachable(error: unknown): boolean {
  if (!(error instanceof PratiqueError)) return false;
  const codes: readonly string[] = ['vendor-ill/unreachable', 'vendor-ill/timeout', 'host-fault/network'];
  return codes.includes(error.code) || isUnreachable(error.cause);
}

/** How a URL is named in messages: without its query, which may carry a secret. */
export function nameOf(url: URL): string {
  return printable(`${url.protocol}//${url.host}${url.pathname}`, 300);
}

/** The string `code` of a Node or undici error, its name when it has none (undici's parser), '' for what is no error. */
export function codeOf(error: unknown): string {
  if (!(error instanceof Error)) return '';
  return 'code' in error && typeof error.code === 'string' ? error.code : error.name;
}

/** Causes in the order they are asked: the first that matches names who has to act. */
const CAUSES: readonly { readonly pattern: RegExp; readonly code: ErrorCode; readonly says: string }[] = [
  { pattern: /^EAI_AGAIN$|^ENETDOWN$|^EADDRNOTAVAIL$|^EMFILE$/, code: 'host-fault/network', says: 'asked in vain' },
  { pattern: /^UND_ERR_PRX/, code: 'host-fault/proxy', says: 'not reached through the proxy' },
  { pattern: /CERT|^ERR_TLS|^ERR_SSL|^EPROTO$|^UNABLE_TO_/, code: 'vendor-ill/tls', says: 'not trusted' },
  { pattern: /^UND_ERR_CONNECT_TIMEOUT$|^ETIMEDOUT$/, code: 'vendor-ill/timeout', says: 'did not answer' },
  {
    pattern: /^HPE_|^HTTPParserError$|^UND_ERR_HEADERS_OVERFLOW$/,
    code: 'vendor-ill/protocol',
    says: 'did not speak HTTP',
  },
  {
    pattern: /^UND_ERR_RES_CONTENT_LENGTH_MISMATCH$|^UND_ERR_SOCKET$|^UND_ERR_ABORTED$/,
    code: 'vendor-ill/cut-short',
    says: 'broke the connection',
  },
];

const NEXT_STEPS: Partial<Record<ErrorCode, string>> = {
  'host-fault/network': "check this host's network and name server",
  'host-fault/proxy': 'check http_proxy, https_proxy and no_proxy',
  'vendor-ill/tls': "check the server's certificate and this host's clock",
  'vendor-ill/unreachable': 'check the URL and whether the server is up',
};

/** A failure of undici's or the network's as our own error; what is ours already, or an abort, as it is. */
export function httpErrorOf(cause: unknown, url: URL): unknown {
  // undici's word for a proxy that refuses to lead on, which it calls an abort.
  if (cause instanceof Error && cause.message.startsWith('Proxy response')) {
    const refused = `${nameOf(url)} not reached: the proxy refuses`;
    const next = NEXT_STEPS['host-fault/proxy'];
    return new HttpError('host-fault/proxy', refused, { cause, ...(next === undefined ? {} : { next }) });
  }
  // Our own time limits and the caller's abort arrive as they were given.
  if (cause instanceof HttpError || !(cause instanceof Error) || cause.name === 'AbortError') return cause;
  const known = CAUSES.find(({ pattern }) => pattern.test(codeOf(cause)));
  const code = known?.code ?? 'vendor-ill/unreachable';
  const next = NEXT_STEPS[code];
  const message = `${nameOf(url)} ${known === undefined ? 'could not be reached' : known.says}`;
  return new HttpError(code, message, { cause, ...(next === undefined ? {} : { next }) });
}
