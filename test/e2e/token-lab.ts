// Servers, a proxy and a name table on loopback that write down every byte they hear, and a host process that uses tokens among them.
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, writeFile } from 'node:fs/promises';
import { createServer as createHttpServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import type { Certificate } from '../fakes/certificates.ts';
import type { TokenOrder, TokenOutcome } from './token-client.ts';

export type Heard = { readonly path: string; readonly headers: IncomingMessage['headers']; readonly text: string };

export type LabServer = {
  readonly port: number;
  /** Each request with everything that was in it. */
  readonly heard: Heard[];
  /** TLS handshakes that a client broke off. */
  brokenOff: number;
  answer: (request: Heard, response: ServerResponse) => void;
  /** Another certificate from now on. */
  readonly present: (certificate: Certificate) => void;
  readonly close: () => Promise<void>;
};

export const CONTENT = 'the licensed artifact';

const give = (_request: Heard, response: ServerResponse): void => void response.end(CONTENT);

/** A server on an address of loopback; over TLS with a certificate. Every answer closes its connection. */
export async function startLabServer(
  address: string,
  port: number,
  certificate: Certificate | null,
): Promise<LabServer> {
  const heard: Heard[] = [];
  const listen = (request: IncomingMessage, response: ServerResponse) => {
    const pieces: Buffer[] = [];
    request.on('data', (piece: Buffer) => pieces.push(piece));
    request.on('end', () => {
      const body = Buffer.concat(pieces).toString('latin1');
      const text = `${request.method} ${request.url}\n${request.rawHeaders.join('\n')}\n${body}`;
      const one: Heard = { path: request.url ?? '', headers: request.headers, text };
      heard.push(one);
      response.setHeader('connection', 'close');
      lab.answer(one, response);
    });
  };
  const server = certificate === null ? createHttpServer(listen) : createHttpsServer({ ...certificate }, listen);
  const lab: LabServer = {
    port: 0,
    heard,
    brokenOff: 0,
    answer: give,
    present: (other) => {
      if ('setSecureContext' in server) server.setSecureContext({ ...other });
    },
    close: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };
  server.on('tlsClientError', () => {
    lab.brokenOff += 1;
  });
  return Object.assign(lab, { port: await listenOn(server, address, port) });
}

async function listenOn(server: Server, address: string, port: number): Promise<number> {
  server.listen(port, address);
  await once(server, 'listening');
  // The cast holds: it listens on a port, not on a path.
  return (server.address() as AddressInfo).port;
}

export type LabProxy = {
  readonly url: string;
  /** What it was asked, and all bytes that went through it towards a server. */
  readonly heard: string[];
  /** Where CONNECT really leads, whatever was asked for; null: it says 407. */
  leadsTo: { readonly address: string; readonly port: number } | null;
  readonly close: () => Promise<void>;
};

export async function startLabProxy(): Promise<LabProxy> {
  const heard: string[] = [];
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    let onward: Socket | null = null;
    socket.on('data', (piece: Buffer) => {
      heard.push(piece.toString('latin1'));
      if (onward !== null) return void onward.write(piece);
      const { leadsTo } = proxy;
      if (leadsTo === null) {
        socket.end(
          'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n',
        );
        return;
      }
      if (!piece.toString('latin1').startsWith('CONNECT ')) {
        socket.end(`HTTP/1.1 200 OK\r\nContent-Length: ${CONTENT.length}\r\nConnection: close\r\n\r\n${CONTENT}`);
        return;
      }
      onward = connect(leadsTo.port, leadsTo.address);
      onward.on('error', () => socket.destroy());
      onward.on('close', () => socket.destroy());
      socket.on('close', () => onward?.destroy());
      onward.pipe(socket);
      socket.write('HTTP/1.1 200 OK\r\n\r\n');
    });
  });
  const proxy: LabProxy = {
    url: '',
    heard,
    leadsTo: null,
    close: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
  return Object.assign(proxy, { url: `http://127.0.0.1:${await listenOn(server, '127.0.0.1', 0)}` });
}

export type LabClient = {
  readonly run: (order: TokenOrder) => Promise<TokenOutcome>;
  /** Everything it wrote to its log. */
  readonly log: () => string;
  readonly close: () => Promise<void>;
};

/** A host process that believes in the authority and has a name table of its own, which may change at any time. */
export async function startLabClient(
  folder: string,
  hosts: string,
  env: Readonly<Record<string, string>>,
): Promise<LabClient> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const isRoot = process.getuid?.() === 0;
  const apart = ['--mount', '--propagation', 'private', ...(isRoot ? [] : ['--user', '--map-root-user'])];
  const script = 'mount --bind "$1" /etc/hosts && shift && exec "$@"';
  const client = [process.execPath, new URL('./token-client.ts', import.meta.url).pathname, folder];
  const child: ChildProcessByStdio<Writable, Readable, Readable> = spawn(
    'unshare',
    [...apart, 'sh', '-c', script, 'sh', hosts, ...client],
    { stdio: ['pipe', 'pipe', 'pipe'], env: { PATH: process.env.PATH ?? '', HOME: folder, ...env } },
  );
  let log = '';
  child.stderr.on('data', (piece: Buffer) => {
    log += piece.toString('utf8');
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    run: async (order) => {
      child.stdin.write(`${JSON.stringify(order)}\n`);
      const { value, done } = await lines.next();
      if (done === true) throw new Error(`the client ended: ${log}`);
      // The cast holds: the client writes these lines.
      return JSON.parse(value) as TokenOutcome;
    },
    log: () => log,
    close: async () => {
      const ended = child.exitCode === null ? once(child, 'exit') : null;
      child.stdin.end();
      await ended;
    },
  };
}

/** Writes the name table anew, in the same file: a bound mount keeps to it. */
export async function nameHosts(path: string, table: Readonly<Record<string, string>>): Promise<void> {
  const lines = Object.entries(table).map(([name, address]) => `${address} ${name}\n`);
  await writeFile(path, lines.join(''));
}

export const hostsIn = (folder: string): string => join(folder, 'hosts');
