// Asks a configuration server for one document: over TLS only, past no redirect, bounded in bytes and time.
import { type Dispatcher, EnvHttpProxyAgent, request } from 'undici';
import type { Clock } from '../base/clock.ts';
import { ETAG_CHARS_MAX, GUEST_CONFIG_ANSWER_BYTES_MAX, GUEST_CONFIG_ANSWER_TIMEOUT_MS } from '../base/limits.ts';
import { GuestConfigError } from './error.ts';

export type TransportOptions = {
  readonly clock: Clock;
  /** Certificates (PEM) that vouch for the server, instead of the public ones. */
  readonly ca?: string;
  /** By which the server knows this host. */
  readonly identity?: { readonly certificate: string; readonly key: string };
  /** Other than that of limits.ts, for tests. */
  readonly timeoutMs?: number;
};

export type DocumentAnswer =
  | { readonly kind: 'document'; readonly text: string; readonly etag: string | null }
  | { readonly kind: 'not-modified' }
  /** The server knows no document for this VM. */
  | { readonly kind: 'none' };

export type ServerTransport = {
  /** Throws GuestConfigError `vendor-ill/guest-config-away` when there is no answer, `vendor-ill/guest-config-server` for any other than these. */
  readonly get: (url: string, etag: string | null, signal: AbortSignal) => Promise<DocumentAnswer>;
  readonly close: () => Promise<void>;
};

/** Makes it. */
export function makeServerTransport(options: TransportOptions): ServerTransport {
  const { ca, identity } = options;
  // Also where the environment asks Node not to verify certificates.
  const verified = {
    rejectUnauthorized: true,
    ...(ca === undefined ? {} : { ca }),
    ...(identity === undefined ? {} : { cert: identity.certificate, key: identity.key }),
  };
  const noProxy = process.env.no_proxy ?? process.env.NO_PROXY ?? '';
  // Our own clock owns the time limits, so undici's are off.
  const limits = { headersTimeout: 0, bodyTimeout: 0, allowH2: false, noProxy };
  const dispatcher = new EnvHttpProxyAgent({ ...limits, connect: verified, requestTls: verified });
  return {
    get: async (url, etag, signal) => await get({ ...options, dispatcher }, { url, etag, signal }),
    close: async () => await dispatcher.destroy(),
  };
}

const NEXT = 'check the server, and guestConfigServer in the configuration';

type Asked = { readonly url: string; readonly etag: string | null; readonly signal: AbortSignal };

async function get(
  { clock, dispatcher, timeoutMs = GUEST_CONFIG_ANSWER_TIMEOUT_MS }: TransportOptions & { dispatcher: Dispatcher },
  { url, etag, signal }: Asked,
): Promise<DocumentAnswer> {
  const ours = new AbortController();
  const stopWaiting = clock.after(timeoutMs, () => ours.abort(ill(url, `did not answer within ${timeoutMs} ms`)));
  try {
    const condition: Record<string, string> = etag === null ? {} : { 'if-none-match': etag };
    const { statusCode, headers, body } = await request(url, {
      dispatcher,
      headers: { accept: 'application/json', 'user-agent': 'pratique', ...condition },
      signal: AbortSignal.any([signal, ours.signal]),
    });
    if (statusCode === 200) {
      // One that could not be kept is left out: then the document is merely asked for as a whole again.
      const tag = typeof headers.etag === 'string' && headers.etag.length <= ETAG_CHARS_MAX ? headers.etag : null;
      return { kind: 'document', text: await readBounded(body, url), etag: tag };
    }
    await body.dump({ limit: 64 * 1024 });
    if (statusCode === 304 && etag !== null) return { kind: 'not-modified' };
    if (statusCode === 404) return { kind: 'none' };
    throw new GuestConfigError('vendor-ill/guest-config-server', `${url} answered ${statusCode}`, { next: NEXT });
  } catch (cause) {
    if (signal.aborted) throw signal.reason;
    if (ours.signal.aborted) throw ours.signal.reason;
    throw cause instanceof GuestConfigError ? cause : ill(url, 'could not be asked', cause);
  } finally {
    stopWaiting();
  }
}

async function readBounded(body: AsyncIterable<Buffer>, url: string): Promise<string> {
  const pieces: Buffer[] = [];
  let sizeBytes = 0;
  for await (const piece of body) {
    sizeBytes += piece.length;
    if (sizeBytes > GUEST_CONFIG_ANSWER_BYTES_MAX)
      throw ill(url, `sent more than ${GUEST_CONFIG_ANSWER_BYTES_MAX} bytes`);
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString('utf8');
}

/** No answer at all, or none that ends. */
function ill(url: string, what: string, cause?: unknown): GuestConfigError {
  const of = cause === undefined ? {} : { cause };
  return new GuestConfigError('vendor-ill/guest-config-away', `${url} ${what}`, { ...of, next: NEXT });
}
