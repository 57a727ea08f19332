// A relay in front of this machine's own Debian archives that counts what is fetched through it and keeps nothing: one address for the
// release and the security archive. Their addresses are read from apt at run time and are never shown.
import {
  createServer,
  Agent as HttpAgent,
  request as httpRequest,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type Server,
  type ServerResponse,
} from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import type { AddressInfo } from 'node:net';
import { runCommand } from '../../src/base/run-command.ts';
import { readAptProxy } from '../../src/vendor/debian-apt/host-apt.ts';

/** Milliseconds without a byte after which a transfer is given up. */
const IDLE_TIMEOUT_MS = 60_000;

/** What was fetched since the last look. */
export type Fetched = {
  readonly requests: number;
  readonly bytes: number;
  readonly packageBytes: number;
  /** Transfers of package files, and how many different ones. */
  readonly packageTransfers: number;
  readonly packageFiles: number;
};

export type CountingMirror = {
  /** `http://127.0.0.1:PORT/debian` */
  readonly url: string;
  readonly port: number;
  /** Paths of package files below the archive's root, by file name, as they were first asked for. */
  readonly packagePaths: () => ReadonlyMap<string, string>;
  /** What was fetched since the last call. */
  readonly take: () => Fetched;
  readonly close: () => Promise<void>;
};

type Transfer = { readonly path: string; bytes: number };

/** Starts the relay on loopback and on a unix socket, by which it is reached from another network namespace. */
export async function startCountingMirror(options: {
  readonly suite: string;
  readonly socketPath: string;
}): Promise<CountingMirror> {
  const archives = await readArchives(options.suite);
  const proxy = await readAptProxy(archives.release);
  const transfers: Transfer[] = [];
  const paths = new Map<string, string>();
  const answer = (asked: IncomingMessage, reply: ServerResponse): void => {
    const path = (asked.url ?? '/').replace(/^\/debian\//, '');
    const file = /^pool\/.*\/([^/]+\.deb)$/.exec(path)?.[1];
    if (file !== undefined && !paths.has(file)) paths.set(file, path);
    const transfer = { path, bytes: 0 };
    transfers.push(transfer);
    const root = /^(dists\/[a-z]+-security|pool\/updates)\//.test(path) ? archives.security : archives.release;
    relay({ target: new URL(path, root), proxy, asked, reply, transfer });
  };
  const [tcp, local] = [createServer(answer), createServer(answer)];
  await listening(tcp, { host: '127.0.0.1', port: 0 });
  await listening(local, { path: options.socketPath });
  const { port } = tcp.address() as AddressInfo; // A TCP server that listens has an address of this form.
  return {
    url: `http://127.0.0.1:${port}/debian`,
    port,
    packagePaths: () => paths,
    take: () => summarise(transfers.splice(0)),
    close: async () => {
      for (const server of [tcp, local]) await closed(server);
      for (const agent of Object.values(AGENTS)) agent.destroy();
    },
  };
}

function summarise(transfers: readonly Transfer[]): Fetched {
  const packages = transfers.filter(({ path, bytes }) => path.endsWith('.deb') && bytes > 0);
  const total = (list: readonly Transfer[]) => list.reduce((sum, { bytes }) => sum + bytes, 0);
  return {
    requests: transfers.length,
    bytes: total(transfers),
    packageBytes: total(packages),
    packageTransfers: packages.length,
    packageFiles: new Set(packages.map(({ path }) => path)).size,
  };
}

type Relayed = {
  readonly target: URL;
  readonly proxy: string | undefined;
  readonly asked: IncomingMessage;
  readonly reply: ServerResponse;
  readonly transfer: Transfer;
};

/** What concerns one connection only (RFC 9110, 7.6.1); each side keeps its own open, or apt-cacher-ng counts a closed one as a failure. */
const OF_ONE_CONNECTION = new Set(['connection', 'keep-alive', 'proxy-connection', 'transfer-encoding', 'host']);
const AGENTS = { http: new HttpAgent({ keepAlive: true }), https: new HttpsAgent({ keepAlive: true }) };

function endToEnd(headers: IncomingHttpHeaders): IncomingHttpHeaders {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !OF_ONE_CONNECTION.has(name)));
}

/** Hands a request on and its answer back, byte for byte; a broken transfer is broken on both sides. */
function relay({ target, proxy, asked, reply, transfer }: Relayed): void {
  const via = proxy === undefined ? target : new URL(proxy);
  const isTls = via.protocol === 'https:';
  const path = proxy === undefined ? `${target.pathname}${target.search}` : target.href;
  const sent = (isTls ? httpsRequest : httpRequest)({
    agent: isTls ? AGENTS.https : AGENTS.http,
    method: asked.method,
    host: via.hostname,
    port: via.port,
    path,
    headers: { ...endToEnd(asked.headers), host: target.host },
  });
  sent.on('response', (answer: IncomingMessage) => {
    reply.writeHead(answer.statusCode ?? 502, endToEnd(answer.headers));
    answer.on('data', (piece: Buffer) => {
      transfer.bytes += piece.length;
    });
    answer.on('error', () => reply.destroy());
    answer.pipe(reply);
  });
  sent.setTimeout(IDLE_TIMEOUT_MS, () => sent.destroy());
  sent.on('error', () => reply.destroy());
  reply.on('close', () => {
    if (!reply.writableFinished) sent.destroy();
  });
  sent.end();
}

/** Roots of the two archives, ending in a slash, from the machine's own apt. */
async function readArchives(suite: string): Promise<{ readonly release: string; readonly security: string }> {
  const argv = ['apt-get', 'indextargets', '--format', '$(RELEASE)\t$(REPO_URI)', 'Created-By: Packages'];
  const lines = (await runCommand(argv, { purpose: "reading this machine's Debian archives" })).split('\n');
  const rootOf = (wanted: string): string => {
    const root = lines.map((line) => line.split('\t')).find(([release]) => release === wanted)?.[1];
    if (root === undefined) throw new Error(`apt on this machine has no source for ${wanted}; run apt-get update`);
    return root.replace(/\/*$/, '/');
  };
  return { release: rootOf(suite), security: rootOf(`${suite}-security`) };
}

async function listening(server: Server, where: { host: string; port: number } | { path: string }): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(where, () => resolve());
  });
}

async function closed(server: Server): Promise<void> {
  server.closeAllConnections();
  await new Promise<void>((resolve) => server.close(() => resolve()));
}
