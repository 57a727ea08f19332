// The reference license server for tests: on loopback, in this process or in one of its own that can be killed; and a way to speak to it.
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { request as plainRequest } from 'node:http';
import { request as tlsRequest } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { listen, makeLicenseApi } from '../../proxy/license-server/http.ts';
import { type LicenseRow, LicenseStore, type LicenseTerms } from '../../proxy/license-server/license-store.ts';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import type { VerifyKey } from '../../src/base/dsse.ts';
import { LICENSE_ANSWER_BYTES_MAX } from '../../src/base/limits.ts';
import { silentLog } from '../../src/base/log.ts';
import { LicenseError } from '../../src/license/license-error.ts';
import { readServerKeys } from '../../src/license/signed-answer.ts';
import type { LicenseHttpAnswer, LicenseHttpRequest, LicenseTransport } from '../../src/license/transport.ts';

export type FakeTerms = Partial<LicenseTerms> & { readonly seats: number };

export type TestLicenseServerOptions = {
  /** Licenses by id; a number is its seats. Default: `acme-2026` with 2 seats. */
  readonly licenses?: Readonly<Record<string, number | FakeTerms>>;
  readonly clock?: Clock;
  readonly tls?: boolean;
  /** In a process of its own, which `kill` ends like a power cut. */
  readonly child?: boolean;
  readonly ratePerSecond?: number;
};

/** What an administrator does; each holds for the next request. */
export type LicenseAdmin = Pick<
  LicenseStore,
  | 'addToken'
  | 'change'
  | 'create'
  | 'expire'
  | 'list'
  | 'log'
  | 'reinstate'
  | 'reinstateLease'
  | 'revoke'
  | 'revokeLease'
  | 'rotateKey'
  | 'seats'
  | 'show'
  | 'suspend'
>;

export type TestLicenseServer = {
  /** `http://127.0.0.1:port`; stays the same over `kill` and `restart`. */
  readonly url: string;
  /** PEM text of the public keys. */
  readonly publicKey: string;
  readonly keys: readonly VerifyKey[];
  /** PEM text of the certificate that clients trust; null without TLS. */
  readonly ca: string | null;
  /** The token of a license, by its id. */
  readonly token: (license?: string) => string;
  readonly admin: LicenseAdmin;
  /** Where its database is. */
  readonly path: string;
  /** A transport to it with the license's token. */
  readonly transport: (license?: string) => LicenseTransport;
  /** Ends the serving process at once, or stops to listen: nothing answers any more. */
  readonly kill: () => Promise<void>;
  /** Serves again, on the same port. */
  readonly restart: () => Promise<void>;
  readonly close: () => Promise<void>;
};

const DEFAULT_LICENSE = 'acme-2026';
const HOUR_MS = 3_600_000;
const MAIN = fileURLToPath(new URL('../../proxy/main.ts', import.meta.url));

export async function startLicenseServer(options: TestLicenseServerOptions = {}): Promise<TestLicenseServer> {
  const { licenses = { [DEFAULT_LICENSE]: 2 }, clock = systemClock } = options;
  const folder = mkdtempSync(join(tmpdir(), 'pratique-license-server-'));
  const path = join(folder, 'licenses.db');
  const store = new LicenseStore(path, clock);
  const tokens = new Map<string, string>();
  for (const [id, terms] of Object.entries(licenses)) tokens.set(id, store.create(id, termsOf(terms)).token);
  const tls = options.tls === true ? makeCertificate(folder) : null;
  const serve = options.child === true ? serveInChild(path, tls, options) : serveHere(store, clock, tls, options);
  let serving = await serve('127.0.0.1:0');
  const { url } = serving;
  const publicKey = store
    .signingKeys()
    .map(({ publicPem }) => publicPem)
    .join('');
  const token = (license: string = [...tokens.keys()][0] ?? DEFAULT_LICENSE): string => {
    const found = tokens.get(license);
    if (found === undefined) throw new Error(`the test has no license ${license}`);
    return found;
  };
  const ca = tls === null ? null : readFileSync(tls.cert, 'utf8');
  return {
    url,
    publicKey,
    keys: readServerKeys(publicKey, 'the test server'),
    ca,
    token,
    admin: store,
    path,
    transport: (license) => makeTestTransport({ url, token: token(license), ca }),
    kill: async () => await serving.kill(),
    restart: async () => {
      serving = await serve(new URL(url).host);
    },
    close: async () => {
      await serving.kill();
      store.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

function termsOf(terms: number | FakeTerms): LicenseTerms {
  const given = typeof terms === 'number' ? { seats: terms } : terms;
  const usual = {
    product: null,
    tenant: null,
    expiresAtMs: null,
    leaseMaxMs: 24 * HOUR_MS,
    checkoutMaxMs: 30 * 24 * HOUR_MS,
  };
  return { ...usual, ...given };
}

type Tls = { readonly cert: string; readonly key: string };
type Serving = { readonly url: string; readonly kill: () => Promise<void> };
type Serve = (address: string) => Promise<Serving>;

function serveHere(
  store: LicenseStore,
  clock: Clock,
  tls: Tls | null,
  { ratePerSecond }: TestLicenseServerOptions,
): Serve {
  return async (address) => {
    const app = makeLicenseApi({
      store,
      clock,
      log: silentLog,
      ...(tls === null ? {} : { tls: { cert: readFileSync(tls.cert, 'utf8'), key: readFileSync(tls.key, 'utf8') } }),
      ...(ratePerSecond === undefined ? {} : { ratePerSecond }),
    });
    const [host = '', port = '0'] = address.split(':');
    const url = await listen(app, { host, port: Number(port) }, tls !== null);
    return { url, kill: async () => await app.close() };
  };
}

function serveInChild(path: string, tls: Tls | null, { ratePerSecond }: TestLicenseServerOptions): Serve {
  return async (address) => {
    const argv = [MAIN, 'license-server', 'serve', '--json', '--data', path, '--listen', address];
    if (tls !== null) argv.push('--tls-cert', tls.cert, '--tls-key', tls.key);
    if (ratePerSecond !== undefined) argv.push('--rate', String(ratePerSecond));
    const child = spawn(process.execPath, argv, { stdio: ['ignore', 'pipe', 'inherit'] });
    const end = (): void => void child.kill('SIGKILL');
    process.once('exit', end);
    child.once('exit', () => process.off('exit', end));
    const url = await firstUrl(child);
    return { url, kill: async () => await killed(child) };
  };
}

async function firstUrl(child: ChildProcess): Promise<string> {
  if (child.stdout === null) throw new Error('the license server has no output');
  for await (const line of createInterface({ input: child.stdout })) {
    const said = JSON.parse(line) as { url: string }; // The cast holds: `serve --json` prints this first.
    return said.url;
  }
  throw new Error('the license server ended before it listened');
}

async function killed(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  child.kill('SIGKILL');
  await gone;
}

/** A certificate for 127.0.0.1 that signs itself. */
function makeCertificate(folder: string): Tls {
  const cert = join(folder, 'cert.pem');
  const key = join(folder, 'key.pem');
  const subject = ['-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1'];
  const kind = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'];
  execFileSync('openssl', ['req', '-x509', ...kind, '-keyout', key, '-out', cert, ...subject], { stdio: 'ignore' });
  return { cert, key };
}

export type TestTransportOptions = {
  readonly url: string;
  readonly token: string;
  readonly ca?: string | null;
  readonly timeoutMs?: number;
  /** Sees and may exchange what came from the network. */
  readonly onAnswer?: (
    answer: LicenseHttpAnswer,
    request: LicenseHttpRequest,
  ) => LicenseHttpAnswer | Promise<LicenseHttpAnswer>;
};

/** A small transport for tests, with the contract of the vault's own. */
export function makeTestTransport(options: TestTransportOptions): LicenseTransport {
  return async (request) => {
    const answer = await send(options, request);
    return options.onAnswer === undefined ? answer : await options.onAnswer(answer, request);
  };
}

async function send(options: TestTransportOptions, request: LicenseHttpRequest): Promise<LicenseHttpAnswer> {
  const { url, token, ca, timeoutMs = 10_000 } = options;
  const place = request.token ?? { kind: 'header', scheme: 'Bearer' };
  const body = withToken(request.body, place.kind === 'body' ? place.field : [], token);
  const text = body === undefined ? '' : JSON.stringify(body);
  const headers = {
    ...(place.kind === 'header' ? { authorization: `${place.scheme} ${token}` } : {}),
    ...(body === undefined
      ? {}
      : { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(text)) }),
    ...request.headers,
  };
  const signals = [AbortSignal.timeout(timeoutMs), ...(request.signal === undefined ? [] : [request.signal])];
  const target = new URL(url + request.path);
  const begin = target.protocol === 'https:' ? tlsRequest : plainRequest;
  return await new Promise((resolve, reject) => {
    const failed = (cause: unknown): void => {
      reject(new LicenseError('vendor-ill/license-server', 'asking the license server', { cause }));
    };
    const sent = begin(
      target,
      { method: request.method, headers, signal: AbortSignal.any(signals), ...(ca == null ? {} : { ca }) },
      (response) => {
        const pieces: Buffer[] = [];
        let size = 0;
        response.on('data', (piece: Buffer) => {
          size += piece.length;
          if (size > LICENSE_ANSWER_BYTES_MAX) response.destroy(new Error('the answer is too large'));
          else pieces.push(piece);
        });
        response.on('error', failed);
        response.on('end', () => {
          const names = Object.entries(response.headers).map(([name, value]) => [name, String(value)]);
          resolve({
            status: response.statusCode ?? 0,
            headers: Object.fromEntries(names),
            body: Buffer.concat(pieces),
          });
        });
      },
    );
    sent.on('error', failed);
    sent.end(text);
  });
}

/** The body with the token at its place. */
function withToken(body: unknown, field: readonly string[], token: string): unknown {
  const [name, ...rest] = field;
  if (name === undefined) return body;
  const table = typeof body === 'object' && body !== null ? body : {};
  const inner = name in table ? (table as Record<string, unknown>)[name] : {}; // The cast holds: it is an object.
  return { ...table, [name]: rest.length === 0 ? token : withToken(inner, rest, token) };
}

export type { LicenseRow };
