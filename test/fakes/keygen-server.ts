// A small Keygen on loopback: one account with one license, in the documents and signatures of the real one (keygen.sh/docs/api; the
// open source keygen-api, November 2026).
import { createHash, generateKeyPairSync, randomUUID, sign } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

/** What the vendor decides in Keygen's dashboard. */
export type KeygenTerms = {
  maxMachines: number;
  heartbeatSeconds: number;
  suspended: boolean;
  banned: boolean;
  expiry: string | null;
};

export type KeygenReply = { status: number; headers: Record<string, string>; body: string };

export type FakeKeygen = {
  readonly url: string;
  readonly account: string;
  /** The account's Ed25519 verify key: 64 hex digits. */
  readonly verifyKey: string;
  /** The license key. */
  readonly key: string;
  readonly terms: KeygenTerms;
  /** Machines by id. */
  readonly machines: ReadonlyMap<string, Machine>;
  /** Method and path of each request. */
  readonly asked: readonly string[];
  /** Exchanges replies on their way out; null: none. */
  readonly alter: (change: ((reply: KeygenReply, request: string) => KeygenReply) | null) => void;
  /** Signs a reply like the real one, as of a moment. */
  readonly signed: (reply: KeygenReply, request: string, atMs: number) => KeygenReply;
  readonly close: () => Promise<void>;
};

type Machine = { readonly id: string; readonly fingerprint: string; nextHeartbeatMs: number | null };

/** Thrown where Keygen renders errors. */
class Refusal extends Error {
  readonly status: number;
  readonly code: string;

  constructor(status: number, code: string) {
    super(code);
    this.status = status;
    this.code = code;
  }
}

type JsonObject = Record<string, unknown>;

export async function startKeygen(): Promise<FakeKeygen> {
  const keygen = new Keygen();
  const server = createServer((request, response) => {
    keygen.answer(request, response).catch(() => response.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo; // The cast holds: it listens on a port.
  return {
    url: `http://127.0.0.1:${port}`,
    account: keygen.account,
    verifyKey: keygen.verifyKey,
    key: keygen.key,
    terms: keygen.terms,
    machines: keygen.machines,
    asked: keygen.asked,
    alter: (change) => {
      keygen.change = change;
    },
    signed: (reply, request, atMs) => keygen.signed(reply, request, atMs),
    close: async () => {
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}

class Keygen {
  readonly account = randomUUID();
  readonly license = randomUUID();
  readonly key = `C1B6DE-39A6E3-DE1529-${randomUUID().slice(0, 6).toUpperCase()}-V3`;
  readonly verifyKey: string;
  readonly machines = new Map<string, Machine>();
  readonly asked: string[] = [];
  readonly terms: KeygenTerms = {
    maxMachines: 2,
    heartbeatSeconds: 600,
    suspended: false,
    banned: false,
    expiry: null,
  };
  change: ((reply: KeygenReply, request: string) => KeygenReply) | null = null;
  readonly #pair = generateKeyPairSync('ed25519');

  constructor() {
    this.verifyKey = this.#pair.publicKey.export({ type: 'spki', format: 'der' }).subarray(-32).toString('hex');
  }

  async answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const pieces: Buffer[] = [];
    for await (const piece of request) pieces.push(piece as Buffer); // The cast holds: no encoding is set.
    const line = `${(request.method ?? '').toLowerCase()} ${request.url}`;
    this.asked.push(line);
    const text = Buffer.concat(pieces).toString();
    const body = text === '' ? {} : (JSON.parse(text) as JsonObject); // The cast holds for our own client.
    const honest = this.signed(this.#reply(line, request.headers.authorization ?? '', body), line, Date.now());
    const reply = this.change === null ? honest : this.change(honest, line);
    response.writeHead(reply.status, reply.headers).end(reply.body);
  }

  /** https://keygen.sh/docs/api/signatures/#response-signatures; the host is without a port, as Rails has it. */
  signed({ status, headers, body }: KeygenReply, line: string, atMs: number): KeygenReply {
    const date = new Date(atMs).toUTCString();
    const digest = `sha-256=${createHash('sha256').update(body).digest('base64')}`;
    const data = `(request-target): ${line}\nhost: 127.0.0.1\ndate: ${date}\ndigest: ${digest}`;
    const signature = sign(null, Buffer.from(data), this.#pair.privateKey).toString('base64');
    const header = `keyid="${this.account}", algorithm="ed25519", signature="${signature}", headers="(request-target) host date digest"`;
    const said = { date, digest, 'keygen-signature': header, 'keygen-date': date, 'keygen-digest': digest };
    return { status, headers: { ...headers, ...said }, body };
  }

  #reply(line: string, authorization: string, body: JsonObject): KeygenReply {
    const headers = { 'content-type': 'application/vnd.api+json; charset=utf-8', 'keygen-version': '1.7' };
    try {
      const { status, document } = this.#route(line, authorization, body);
      return { status, headers, body: document === null ? '' : JSON.stringify(document) };
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      const { status, code } = error;
      const errors = [
        { title: 'Refused', detail: 'is refused', code, links: { about: 'https://keygen.sh/docs/api/' } },
      ];
      return { status, headers, body: JSON.stringify({ meta: { id: randomUUID() }, errors }) };
    }
  }

  #route(line: string, authorization: string, body: JsonObject): { status: number; document: JsonObject | null } {
    const [method = '', path = ''] = line.split(' ');
    const below = path.startsWith(`/v1/accounts/${this.account}/`) ? path.split('/').slice(4).join('/') : '';
    if (method === 'post' && below === 'licenses/actions/validate-key') {
      return { status: 200, document: this.#validate(body.meta as JsonObject) };
    }
    this.#authenticate(authorization);
    if (method === 'post' && below === 'machines')
      return { status: 201, document: this.#create(body.data as JsonObject) };
    const [, id = '', , action] = below.split('/');
    const machine = this.#find(decodeURIComponent(id));
    if (method === 'delete') {
      this.machines.delete(machine.id);
      return { status: 204, document: null };
    }
    if (action === 'ping') {
      machine.nextHeartbeatMs = Date.now() + this.terms.heartbeatSeconds * 1000;
      return { status: 200, document: { data: this.#machineDocument(machine) } };
    }
    if (action === 'check-out') return { status: 200, document: this.#checkOut(machine, body.meta as JsonObject) };
    throw new Refusal(404, 'NOT_FOUND');
  }

  #authenticate(authorization: string): void {
    if (authorization !== `License ${this.key}`) throw new Refusal(401, 'LICENSE_INVALID');
    if (this.terms.banned) throw new Refusal(403, 'LICENSE_BANNED');
    if (this.terms.suspended) throw new Refusal(403, 'LICENSE_SUSPENDED');
    if (this.#isExpired()) throw new Refusal(403, 'LICENSE_EXPIRED');
  }

  #isExpired(): boolean {
    return this.terms.expiry !== null && Date.parse(this.terms.expiry) < Date.now();
  }

  #find(idOrFingerprint: string): Machine {
    const found = [...this.machines.values()].find(
      ({ id, fingerprint }) => id === idOrFingerprint || fingerprint === idOrFingerprint,
    );
    if (found === undefined) throw new Refusal(404, 'NOT_FOUND');
    return found;
  }

  #validate(meta: JsonObject): JsonObject {
    const { key, nonce, scope } = meta;
    const isKnown = key === this.key;
    // The cast holds: a scope has a fingerprint or nothing.
    const code = this.#codeFor(isKnown, (scope as { fingerprint?: string } | undefined)?.fingerprint);
    const said = { ts: new Date().toISOString(), valid: code === 'VALID', detail: 'is so', code, nonce };
    return {
      data: isKnown ? this.#licenseDocument() : null,
      meta: { ...said, ...(scope === undefined ? {} : { scope }) },
    };
  }

  /** In the order of Keygen's own LicenseValidationService, for a floating, strict policy. */
  #codeFor(isKnown: boolean, fingerprint: string | undefined): string {
    if (!isKnown) return 'NOT_FOUND';
    if (this.terms.banned) return 'BANNED';
    if (this.terms.suspended) return 'SUSPENDED';
    if (this.#isExpired()) return 'EXPIRED';
    if (this.machines.size === 0) return 'NO_MACHINES';
    if (fingerprint !== undefined) {
      const machine = [...this.machines.values()].find((each) => each.fingerprint === fingerprint);
      if (machine === undefined) return 'FINGERPRINT_SCOPE_MISMATCH';
      if (machine.nextHeartbeatMs === null) return 'HEARTBEAT_NOT_STARTED';
      if (machine.nextHeartbeatMs < Date.now()) return 'HEARTBEAT_DEAD';
    }
    return this.machines.size > this.terms.maxMachines ? 'TOO_MANY_MACHINES' : 'VALID';
  }

  #create(data: JsonObject): JsonObject {
    // The cast holds for our own client.
    const { attributes, relationships } = data as {
      attributes: { fingerprint: string };
      relationships: { license: { data: { id: string } } };
    };
    if (relationships.license.data.id !== this.license) throw new Refusal(422, 'LICENSE_INVALID');
    const { fingerprint } = attributes;
    if ([...this.machines.values()].some((each) => each.fingerprint === fingerprint)) {
      throw new Refusal(422, 'FINGERPRINT_TAKEN');
    }
    if (this.machines.size >= this.terms.maxMachines) throw new Refusal(422, 'MACHINE_LIMIT_EXCEEDED');
    const machine: Machine = { id: randomUUID(), fingerprint, nextHeartbeatMs: null };
    this.machines.set(machine.id, machine);
    return { data: this.#machineDocument(machine) };
  }

  #checkOut(machine: Machine, { ttl }: JsonObject): JsonObject {
    const issued = new Date();
    const expiry = new Date(issued.getTime() + Number(ttl) * 1000);
    const meta = { issued: issued.toISOString(), expiry: expiry.toISOString(), ttl };
    const enc = Buffer.from(JSON.stringify({ data: this.#machineDocument(machine), meta })).toString('base64');
    const sig = sign(null, Buffer.from(`machine/${enc}`), this.#pair.privateKey).toString('base64');
    const lines =
      Buffer.from(JSON.stringify({ enc, sig, alg: 'base64+ed25519' }))
        .toString('base64')
        .match(/.{1,60}/g) ?? [];
    const certificate = `-----BEGIN MACHINE FILE-----\n${lines.join('\n')}\n-----END MACHINE FILE-----\n`;
    return { data: { id: randomUUID(), type: 'machine-files', attributes: { certificate, ...meta } } };
  }

  #licenseDocument(): JsonObject {
    const { expiry, maxMachines, suspended } = this.terms;
    const attributes = {
      name: 'Shop',
      key: this.key,
      expiry,
      status: 'ACTIVE',
      suspended,
      maxMachines,
      requireHeartbeat: true,
    };
    const machines = { links: { related: 'x' }, meta: { cores: 0, count: this.machines.size } };
    return { id: this.license, type: 'licenses', attributes, relationships: { machines } };
  }

  #machineDocument({ id, fingerprint, nextHeartbeatMs }: Machine): JsonObject {
    const nextHeartbeat = nextHeartbeatMs === null ? null : new Date(nextHeartbeatMs).toISOString();
    const attributes = {
      fingerprint,
      requireHeartbeat: true,
      heartbeatDuration: this.terms.heartbeatSeconds,
      nextHeartbeat,
    };
    const license = { data: { type: 'licenses', id: this.license } };
    return { id, type: 'machines', attributes, relationships: { license } };
  }
}
