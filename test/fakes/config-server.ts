// A configuration server for tests, over real TLS: it serves the signed documents it is given, and misbehaves on demand.
import { execFileSync } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { digestOf } from '../../src/base/digest.ts';
import { type SigningKey, signingKeyOf } from '../../src/base/dsse.ts';
import { sealDocument } from '../../src/guest-config/server-document.ts';

export type SeenRequest = { readonly path: string; readonly status: number; readonly isKnown: boolean };

export type FakeConfigServer = {
  /** `https://127.0.0.1:PORT/config`. */
  readonly url: string;
  /** Certificate (PEM) that vouches for it, and its path. */
  readonly ca: string;
  readonly caPath: string;
  readonly key: SigningKey;
  readonly requests: readonly SeenRequest[];
  /** Signs and serves a document for a VM; `serial` and the times are filled in where they are left out. */
  readonly publish: (vm: string, document: Readonly<Record<string, unknown>>, key?: SigningKey) => void;
  /** Serves these very bytes for a VM. */
  readonly serve: (vm: string, text: string) => void;
  /** What is served for a VM now, null: nothing. */
  readonly servedFor: (vm: string) => string | null;
  readonly withdraw: (vm: string) => void;
  /** Answers everything with this status; null: behaves again. */
  readonly fail: (status: number | null) => void;
  readonly close: () => Promise<void>;
};

export type FakeConfigServerOptions = {
  /** Asks for a client's certificate, which this one (PEM) vouches for. */
  readonly clientCa?: string;
  readonly port?: number;
  /** Certificate and key of an earlier one, so that a client goes on to trust it. */
  readonly folder?: string;
};

const HOUR_MS = 3_600_000;

/** Starts it on loopback. */
export async function startConfigServer(options: FakeConfigServerOptions = {}): Promise<FakeConfigServer> {
  const folder = options.folder ?? mkdtempSync(join(tmpdir(), 'config-server-'));
  const { certificatePath, keyPath } = makeCertificate(folder, '127.0.0.1');
  const key = makeSigningKey();
  const documents = new Map<string, string>();
  const requests: SeenRequest[] = [];
  let failing: number | null = null;
  let serial = 0;
  const clientCheck =
    options.clientCa === undefined ? {} : { requestCert: true, rejectUnauthorized: true, ca: options.clientCa };
  const tls = { cert: readFileSync(certificatePath), key: readFileSync(keyPath), ...clientCheck };
  const server = createServer(tls, (request, response) => {
    const path = request.url ?? '/';
    const vm = /^\/config\/v1\/vms\/([^/]+)$/.exec(path)?.[1];
    const text = documents.get(decodeURIComponent(vm ?? ''));
    const etag = text === undefined ? '' : `"${digestOf(text).slice(0, 16)}"`;
    const isKnown = text !== undefined && request.headers['if-none-match'] === etag;
    const status = failing ?? (text === undefined ? 404 : isKnown ? 304 : 200);
    requests.push({ path, status, isKnown });
    const location = status >= 300 && status < 304 ? { location: 'https://127.0.0.1:1/elsewhere' } : {};
    response.writeHead(status, { 'content-type': 'application/json', ...(etag === '' ? {} : { etag }), ...location });
    response.end(status === 200 ? text : '');
  });
  await new Promise<void>((resolve) => server.listen(options.port ?? 0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo; // The cast holds: it listens on TCP.
  return {
    url: `https://127.0.0.1:${port}/config`,
    ca: readFileSync(certificatePath, 'utf8'),
    caPath: certificatePath,
    key,
    requests,
    publish: (vm, document, by = key) => {
      serial += 1;
      // Tests of what has no time read the wall clock.
      const nowMs = Date.now();
      const times = { issuedAt: timeOf(nowMs), expiresAt: timeOf(nowMs + HOUR_MS) };
      const whole = { format: 'pratique.guest-config/1', vm, serial, ...times, ...document };
      documents.set(vm, JSON.stringify(sealDocument(whole, [by])));
    },
    serve: (vm, text) => void documents.set(vm, text),
    servedFor: (vm) => documents.get(vm) ?? null,
    withdraw: (vm) => void documents.delete(vm),
    fail: (status) => {
      failing = status;
    },
    close: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
      if (options.folder === undefined) rmSync(folder, { recursive: true });
    },
  };
}

/** A time as documents have it. */
export function timeOf(ms: number): string {
  return new Date(ms).toISOString();
}

/** A key of its own. */
export function makeSigningKey(): SigningKey {
  const key = signingKeyOf(generateKeyPairSync('ed25519').privateKey);
  if (key === null) throw new Error('the key is not ed25519');
  return key;
}

/** A certificate for a name or address that signs itself. */
export function makeCertificate(folder: string, name: string): { certificatePath: string; keyPath: string } {
  const certificatePath = join(folder, `${name}.pem`);
  const keyPath = join(folder, `${name}.key`);
  const kind = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
  const alternative = /^[0-9.]+$/.test(name) ? `IP:${name}` : `DNS:${name}`;
  const subject = ['-subj', `/CN=${name}`, '-addext', `subjectAltName=${alternative}`];
  const files = ['-keyout', keyPath, '-out', certificatePath];
  execFileSync('openssl', ['req', '-x509', ...kind, ...files, ...subject], { stdio: 'ignore' });
  return { certificatePath, keyPath };
}
