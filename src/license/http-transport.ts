// Speaks to one license's server over HTTPS: its token and nobody else's, its one origin, no redirect followed, all bounded.
import { Agent, type Dispatcher, EnvHttpProxyAgent, request } from 'undici';
import type { Clock } from '../base/clock.ts';
import { LICENSE_ANSWER_BYTES_MAX, LICENSE_ANSWER_TIMEOUT_MS } from '../base/limits.ts';
import { printable } from '../base/printable.ts';
import { LicenseError } from './license-error.ts';
import { checkTokenOrigins, type TokenPlace } from './token-place.ts';
import type { LicenseHttpAnswer, LicenseHttpRequest, LicenseTransport } from './transport.ts';
import type { SlotName, TokenRequest, Vault } from './vault.ts';

export type LicenseTransportOptions = {
  readonly vault: Pick<Vault, 'attach'>;
  readonly license: string;
  /** `next` to try a new token before it is promoted. */
  readonly slot?: SlotName;
  /** `https://licenses.example.com/api`; requests go below it. */
  readonly serverUrl: string;
  /** The only authorities (PEM) whose certificates of the server are believed, in the place of the system's. */
  readonly ca?: string;
  /** For labs: `http://127.0.0.1:8080`. */
  readonly isLoopbackHttpAllowed?: boolean;
  readonly clock: Clock;
  /** Other than that of limits.ts, for tests. */
  readonly timeoutMs?: number;
};

/** Makes it; `close` ends what is under way. Throws LicenseError `usage/license-server` or `usage/license-origin`. */
export function makeLicenseTransport(
  options: LicenseTransportOptions,
): LicenseTransport & { readonly close: () => Promise<void> } {
  const server = parseServerUrl(options);
  const dispatcher = dispatcherFor(server, options.ca);
  const transport: LicenseTransport = async (asked) => await exchange({ options, server, dispatcher }, asked);
  return Object.assign(transport, { close: async () => await dispatcher.destroy() });
}

type Wire = { readonly options: LicenseTransportOptions; readonly server: URL; readonly dispatcher: Dispatcher };

function parseServerUrl({ serverUrl, isLoopbackHttpAllowed = false }: LicenseTransportOptions): URL {
  const url = URL.canParse(serverUrl) ? new URL(serverUrl) : null;
  const isPlain = url !== null && url.username === '' && url.password === '' && url.search === '' && url.hash === '';
  if (!isPlain) {
    throw new LicenseError('usage/license-server', 'the URL of the license server is none, or has more than a path', {
      next: 'give it as https://licenses.example.com or https://licenses.example.com/path',
    });
  }
  checkTokenOrigins({ origins: [url.origin], isLoopbackHttpAllowed });
  return url;
}

/** Over plain http (on this machine) past every proxy: a proxy would see the token. Over TLS a proxy sees only where it goes. */
function dispatcherFor(server: URL, ca: string | undefined): Dispatcher {
  // Also where the environment asks Node not to verify certificates.
  const verified = { rejectUnauthorized: true, ...(ca === undefined ? {} : { ca }) };
  // Our own clock owns the time limits, so undici's are off.
  const limits = { headersTimeout: 0, bodyTimeout: 0, allowH2: false };
  if (server.protocol === 'http:') return new Agent(limits);
  const noProxy = process.env.no_proxy ?? process.env.NO_PROXY ?? '';
  return new EnvHttpProxyAgent({ ...limits, connect: verified, requestTls: verified, noProxy });
}

async function exchange(wire: Wire, asked: LicenseHttpRequest): Promise<LicenseHttpAnswer> {
  const { options } = wire;
  const url = urlOf(wire, asked.path);
  const place: TokenPlace = asked.token ?? { kind: 'header', scheme: 'Bearer' };
  const limitMs = options.timeoutMs ?? LICENSE_ANSWER_TIMEOUT_MS;
  const ours = new AbortController();
  const signal = asked.signal === undefined ? ours.signal : AbortSignal.any([asked.signal, ours.signal]);
  const stopWaiting = options.clock.after(limitMs, () => {
    ours.abort(ill(wire, `did not answer within ${limitMs} ms`));
  });
  try {
    // Before the token is opened: nobody waits for the answer any more.
    signal.throwIfAborted();
    const { slot = 'current', isLoopbackHttpAllowed = false } = options;
    const hasBody = asked.body !== undefined || place.kind === 'body';
    const type: Record<string, string> = hasBody ? { 'content-type': 'application/json' } : {};
    const headers = { accept: 'application/json', 'user-agent': 'pratique', ...type, ...asked.headers };
    const signed = await options.vault.attach(
      options.license,
      { origins: [wire.server.origin], isLoopbackHttpAllowed },
      { slot, origin: url.origin, place, headers, body: asked.body },
    );
    return await send(wire, url, asked, signed, signal);
  } catch (cause) {
    if (asked.signal?.aborted === true) throw asked.signal.reason;
    if (cause instanceof LicenseError) throw cause;
    throw ill(wire, 'could not be reached', cause);
  } finally {
    stopWaiting();
  }
}

/** Below the server's own path; a path that names another host or climbs out is our own bug or a server's word, and refused. */
function urlOf({ server }: Wire, path: string): URL {
  const base = server.href.replace(/\/$/, '');
  const url = URL.canParse(`${base}${path}`) ? new URL(`${base}${path}`) : null;
  const root = server.pathname.replace(/\/$/, '');
  if (path.startsWith('/') && url?.origin === server.origin && url.pathname.startsWith(`${root}/`)) return url;
  throw new LicenseError('usage/license-server', `"${printable(path)}" is no path of the license server`);
}

async function send(
  wire: Wire,
  url: URL,
  { method, mayHoldToken = false }: LicenseHttpRequest,
  { headers, body, isEchoed }: TokenRequest,
  signal: AbortSignal,
): Promise<LicenseHttpAnswer> {
  const sent = body === undefined ? {} : { body };
  const answer = await request(url, { dispatcher: wire.dispatcher, method, headers, signal, ...sent });
  const bytes = await collect(wire, answer.body);
  const received = plainHeaders(answer.headers);
  const text = `${Object.values(received).join('\n')}\n${Buffer.from(bytes).toString('latin1')}`;
  if (!mayHoldToken && isEchoed(text)) throw ill(wire, 'sent its token back, so its answer is not used');
  return { status: answer.statusCode, headers: received, body: bytes };
}

async function collect(wire: Wire, body: AsyncIterable<Uint8Array> & { destroy: () => void }): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  let sizeBytes = 0;
  for await (const piece of body) {
    sizeBytes += piece.length;
    if (sizeBytes > LICENSE_ANSWER_BYTES_MAX) throw ill(wire, `answered more than ${LICENSE_ANSWER_BYTES_MAX} bytes`);
    pieces.push(piece);
  }
  return Buffer.concat(pieces);
}

function plainHeaders(headers: Readonly<Record<string, string | string[] | undefined>>): Record<string, string> {
  const entries = Object.entries(headers).flatMap(([name, value]) =>
    value === undefined ? [] : [[name.toLowerCase(), Array.isArray(value) ? value.join(', ') : value] as const],
  );
  return Object.fromEntries(entries);
}

function ill({ options, server }: Wire, what: string, cause?: unknown): LicenseError {
  return new LicenseError(
    'vendor-ill/license-server',
    `the license server ${printable(server.origin)} of ${options.license} ${what}`,
    {
      ...(cause === undefined ? {} : { cause }),
      next: 'leases that hold go on holding; check the network and its certificate',
    },
  );
}
