// The reference license server's HTTP side: docs/license-api.md as routes. Every decision is a signed answer; everything else a problem document.
import { type FastifyInstance, type FastifyReply, type FastifyRequest, fastify } from 'fastify';
import { type Static, type TSchema, Type } from 'typebox';
import type { Clock } from '../../src/base/clock.ts';
import { sealEnvelope } from '../../src/base/dsse.ts';
import { messageChain, PratiqueError } from '../../src/base/errors.ts';
import {
  LICENSE_SERVER_ANSWER_LIFE_MS,
  LICENSE_SERVER_BODY_BYTES_MAX,
  LICENSE_SERVER_CONNECTIONS_MAX,
  LICENSE_SERVER_RATE_PER_SECOND,
  LICENSE_SERVER_REQUEST_TIMEOUT_MS,
  LICENSE_SERVER_UNKNOWN_PER_SECOND,
  LICENSE_TOKEN_BYTES_MAX,
} from '../../src/base/limits.ts';
import type { Log } from '../../src/base/log.ts';
import { makeParser } from '../../src/base/parse.ts';
import { printable } from '../../src/base/printable.ts';
import {
  ANSWER_FORMAT,
  ANSWER_TYPE,
  LeaseRequestSchema,
  ReleaseRequestSchema,
  RevocationsRequestSchema,
  ValidateRequestSchema,
} from '../../src/license/pratique-protocol.ts';
import { LeaseSchema } from '../../src/model/license.ts';
import { LicenseServerError } from './error.ts';
import { type Asker, type LicenseStore, tokenHashOf } from './license-store.ts';
import { makeRate } from './rate.ts';

export type LicenseApiOptions = {
  readonly store: LicenseStore;
  readonly clock: Clock;
  readonly log: Log;
  readonly tls?: { readonly cert: string; readonly key: string };
  /** Requests of one token and second. */
  readonly ratePerSecond?: number;
};

/** An HTTP status with what is said of it; decides nothing about a license. */
class RequestProblem extends Error {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;

  constructor(status: number, detail: string, headers: Readonly<Record<string, string>> = {}) {
    super(detail);
    this.status = status;
    this.headers = headers;
  }
}

const TITLES: Readonly<Record<number, string>> = {
  400: 'The request does not fit',
  401: 'A token is missing',
  404: 'No such place',
  413: 'The request is too large',
  415: 'The request is not JSON',
  429: 'Too many requests',
  503: 'The server cannot answer now',
};

const LeaseParamsSchema = Type.Object({ id: LeaseSchema.properties.id });
const parseParams = makeParser(LeaseParamsSchema, 'usage/request');

/** The server over a store, not yet listening. */
export function makeLicenseApi(options: LicenseApiOptions): FastifyInstance {
  const { clock, log, tls, ratePerSecond = LICENSE_SERVER_RATE_PER_SECOND } = options;
  const limits = {
    bodyLimit: LICENSE_SERVER_BODY_BYTES_MAX,
    requestTimeout: LICENSE_SERVER_REQUEST_TIMEOUT_MS,
    connectionTimeout: LICENSE_SERVER_REQUEST_TIMEOUT_MS * 2,
    exposeHeadRoutes: false,
    forceCloseConnections: true,
  } as const;
  // The cast holds: fastify's type of a server differs by its protocol, and nothing here depends on that.
  const app = (tls === undefined ? fastify(limits) : fastify({ ...limits, https: tls })) as unknown as FastifyInstance;
  app.removeContentTypeParser('text/plain');
  app.server.maxConnections = LICENSE_SERVER_CONNECTIONS_MAX;
  app.setErrorHandler(async (error, _request, reply) => await sendProblem(reply, error, log));
  app.setNotFoundHandler(async (request) => {
    throw new RequestProblem(404, `${request.method} ${printable(request.url.split('?')[0] ?? '')} is nothing here`);
  });
  const known = makeRate({ perSecond: ratePerSecond, monotonicMs: clock.monotonicMs });
  const unknown = makeRate({ perSecond: LICENSE_SERVER_UNKNOWN_PER_SECOND, monotonicMs: clock.monotonicMs });
  const rates = { known, unknown };
  addRoutes(app, options, rates);
  return app;
}

type Rates = Readonly<Record<'known' | 'unknown', ReturnType<typeof makeRate>>>;

function addRoutes(app: FastifyInstance, { store, clock }: LicenseApiOptions, rates: Rates): void {
  /** A route whose body has this schema, and whose answer is what `decide` says, signed. */
  const answering = <S extends TSchema>(
    path: string,
    schema: S,
    decide: (asker: Asker, body: Static<S>, leaseId: string) => { readonly kind: string },
  ): void => {
    const parse = makeParser(schema, 'usage/request');
    app.post(path, async (request, reply) => {
      const tokenHash = tokenHashOf(tokenOf(request));
      const isKnown = store.knowsToken(tokenHash);
      const mayAsk = isKnown ? rates.known.mayAsk(tokenHash) : rates.unknown.mayAsk(request.ip);
      if (!mayAsk) throw new RequestProblem(429, 'wait a second, then ask again', { 'retry-after': '1' });
      // The cast holds: every request of the protocol has these two, by its schema.
      const body = parse(request.body, 'the request') as Static<S> & { nonce: string; license: string };
      const leaseId = path.includes(':id') ? parseParams(request.params, 'the path').id : '';
      const { nonce, license } = body;
      const said = decide({ tokenHash, license }, body, leaseId);
      const issuedAtMs = clock.nowMs();
      const expiresAtMs = issuedAtMs + LICENSE_SERVER_ANSWER_LIFE_MS;
      const payload = { format: ANSWER_FORMAT, nonce, license, issuedAtMs, expiresAtMs, ...said };
      const envelope = sealEnvelope(ANSWER_TYPE, Buffer.from(JSON.stringify(payload)), store.signingKeys());
      return await reply.header('cache-control', 'no-store').send(envelope);
    });
  };
  answering('/v1/validate', ValidateRequestSchema, (asker) => store.validate(asker));
  answering('/v1/leases', LeaseRequestSchema, (asker, body) => store.lease(asker, body));
  answering('/v1/leases/:id/renew', LeaseRequestSchema, (asker, body, id) => store.renew(asker, id, body));
  answering('/v1/leases/:id/release', ReleaseRequestSchema, (asker, _body, id) => store.release(asker, id));
  answering('/v1/checkouts', LeaseRequestSchema, (asker, body) => store.checkout(asker, body));
  answering('/v1/revocations', RevocationsRequestSchema, (asker, { since }) => store.revocations(asker, since));
  // For whoever sets up a host by hand and compares. A host never takes its key from here.
  app.get('/v1/keys', async () => ({
    keys: store.signingKeys().map(({ keyid, publicPem }) => ({ keyid, publicKey: publicPem })),
  }));
}

function tokenOf(request: FastifyRequest): string {
  const found = /^Bearer ([\x21-\x7e]+)$/i.exec(request.headers.authorization ?? '')?.[1];
  if (found !== undefined && found.length <= LICENSE_TOKEN_BYTES_MAX) return found;
  throw new RequestProblem(401, 'send the token of the license: Authorization: Bearer TOKEN', {
    'www-authenticate': 'Bearer',
  });
}

async function sendProblem(reply: FastifyReply, error: unknown, log: Log): Promise<FastifyReply> {
  const { status, detail, headers } = problemOf(error);
  if (status >= 500) log.error({ err: error }, 'a request to the license server failed');
  const title = TITLES[status] ?? 'The request failed';
  return await reply
    .code(status)
    .headers(headers)
    .type('application/problem+json')
    .send({ type: 'about:blank', title, status, detail });
}

function problemOf(error: unknown): Pick<RequestProblem, 'status' | 'headers'> & { readonly detail: string } {
  if (error instanceof RequestProblem) return { status: error.status, headers: error.headers, detail: error.message };
  if (error instanceof PratiqueError && error.code === 'usage/request') {
    return { status: 400, headers: {}, detail: printable(error.message) };
  }
  // What fastify itself refuses carries its status: a body that is too large, of another type, or no JSON.
  const status = error instanceof Error && 'statusCode' in error ? Number(error.statusCode) : 503;
  const isTheirs = status >= 400 && status < 500;
  const detail = isTheirs ? printable(messageChain(error)) : 'the server could not answer; nothing was decided';
  return { status: isTheirs ? status : 503, headers: {}, detail };
}

/** Where a server listens, as people write it. */
export type ListenAddress = { readonly host: string; readonly port: number };

/** `127.0.0.1:8443` or `[::1]:8443`. Throws LicenseServerError `usage/listen`. */
export function parseListen(text: string): ListenAddress {
  const found = /^(?:\[([0-9a-fA-F:]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text);
  const host = found?.[1] ?? found?.[2];
  const port = Number(found?.[3]);
  if (host !== undefined && port <= 65_535) return { host, port };
  throw new LicenseServerError('usage/listen', `${printable(text)} is no address to listen on`, {
    next: 'write it like 127.0.0.1:8443 or [::1]:8443',
  });
}

/** Starts to listen and returns the URL. Tokens travel in clear over plain HTTP, so that is for this machine only. */
export async function listen(app: FastifyInstance, address: ListenAddress, isTls: boolean): Promise<string> {
  const { host, port } = address;
  const isLocal = host === 'localhost' || host === '::1' || /^127\./.test(host);
  if (!isLocal && !isTls) {
    throw new LicenseServerError('usage/listen', `without TLS tokens would travel in clear over ${printable(host)}`, {
      next: 'give --tls-cert and --tls-key, or listen on 127.0.0.1',
    });
  }
  try {
    await app.listen({ host, port });
  } catch (cause) {
    throw new LicenseServerError('host-fault/listen', `listening on ${printable(host)}:${port}`, {
      cause,
      next: 'choose another port',
    });
  }
  const bound = app.server.address();
  const boundPort = typeof bound === 'object' && bound !== null ? bound.port : port;
  return `${isTls ? 'https' : 'http'}://${host.includes(':') ? `[${host}]` : host}:${boundPort}`;
}
