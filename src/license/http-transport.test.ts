// The transport to a license server against real servers on this machine that are slow, endless, gone, or say more than they should.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type IncomingMessage, type RequestListener } from 'node:http';
import { createServer as createNetServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { systemClock } from '../base/clock.ts';
import { messageChain } from '../base/errors.ts';
import { LICENSE_ANSWER_BYTES_MAX } from '../base/limits.ts';
import { silentLog } from '../base/log.ts';
import { type LicenseTransportOptions, makeLicenseTransport } from './http-transport.ts';
import { LicenseError } from './license-error.ts';
import type { LicenseHttpRequest } from './transport.ts';
import { openVault, type Vault } from './vault.ts';

const TOKEN = 'tok-0123456789abcdef';
const ILL = { name: 'LicenseError', code: 'vendor-ill/license-server' };

let folder: string;
let vault: Vault;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-transport-'));
  const runSealer = async () => assert.fail('not needed here');
  vault = await openVault({ folder: join(folder, 'vault'), clock: systemClock, log: silentLog, runSealer });
  await vault.put('acme', Buffer.from(TOKEN));
  await vault.stage('acme', Buffer.from('tok-next-9999999999'));
});
after(async () => {
  vault.close();
  await rm(folder, { recursive: true });
});

type Seen = { readonly request: IncomingMessage; readonly body: string };

async function withServer<T>(
  answer: RequestListener,
  use: (
    ask: (
      request: LicenseHttpRequest,
      more?: Partial<LicenseTransportOptions>,
    ) => ReturnType<ReturnType<typeof makeLicenseTransport>>,
    seen: readonly Seen[],
  ) => Promise<T>,
): Promise<T> {
  const seen: Seen[] = [];
  const server = createServer((request, response) => {
    let body = '';
    request.on('data', (piece: Buffer) => {
      body += piece.toString('utf8');
    });
    request.on('end', () => {
      seen.push({ request, body });
      answer(request, response);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  assert.ok(address !== null && typeof address !== 'string');
  try {
    return await use(async (request, more = {}) => {
      const serverUrl = `http://127.0.0.1:${address.port}/api/`;
      const base = { vault, license: 'acme', serverUrl, clock: systemClock, isLoopbackHttpAllowed: true };
      const transport = makeLicenseTransport({ ...base, ...more });
      try {
        return await transport(request);
      } finally {
        await transport.close();
      }
    }, seen);
  } finally {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
}

const POST: LicenseHttpRequest = { method: 'POST', path: '/v1/validate', body: { nonce: 'n' } };

test('a request carries its token, its JSON and its path below the server’s own [A15]', async () => {
  await withServer(
    (_request, response) => response.writeHead(418, { 'X-Signature': 's' }).end('{"a":1}'),
    async (ask, seen) => {
      const answer = await ask(POST);
      assert.equal(answer.status, 418, 'any status is an answer');
      assert.equal(answer.headers['x-signature'], 's');
      assert.equal(Buffer.from(answer.body).toString(), '{"a":1}');
      const [first] = seen;
      assert.equal(first?.request.url, '/api/v1/validate');
      assert.equal(first?.request.method, 'POST');
      assert.equal(first?.request.headers.authorization, `Bearer ${TOKEN}`);
      assert.equal(first?.request.headers['content-type'], 'application/json');
      assert.equal(first?.body, '{"nonce":"n"}');
      await ask({ method: 'GET', path: '/v1/x?y=1', token: { kind: 'header', scheme: 'License' } }, { slot: 'next' });
      assert.equal(seen[1]?.request.headers.authorization, 'License tok-next-9999999999');
      assert.equal(seen[1]?.body, '');
      await ask({ ...POST, token: { kind: 'body', field: ['meta', 'key'] } });
      assert.equal(seen[2]?.request.headers.authorization, undefined);
      assert.deepEqual(JSON.parse(seen[2]?.body ?? ''), { nonce: 'n', meta: { key: TOKEN } });
    },
  );
});

test('a path that leads to another host, or out of the server’s own, is never asked [A15]', async () => {
  await withServer(
    (_request, response) => response.end(),
    async (ask, seen) => {
      for (const path of ['', 'v1', '@evil.example/', '.evil.example/', ':1/', '/../admin', '/v1/../../x'])
        await assert.rejects(ask({ ...POST, path }), { code: 'usage/license-server' }, path);
      assert.equal(seen.length, 0);
      await ask(POST);
      assert.equal(seen.length, 1);
    },
  );
});

test('an answer that is too large, too slow, or breaks off is no answer [A15]', async () => {
  await withServer(
    (_request, response) => void response.end(Buffer.alloc(LICENSE_ANSWER_BYTES_MAX + 1)),
    async (ask) => await assert.rejects(ask(POST), ILL),
  );
  await withServer(
    (_request, response) => void response.end(Buffer.alloc(LICENSE_ANSWER_BYTES_MAX)),
    async (ask) => assert.equal((await ask(POST)).body.length, LICENSE_ANSWER_BYTES_MAX),
  );
  await withServer(
    () => {},
    async (ask) => await assert.rejects(ask(POST, { timeoutMs: 100 }), { ...ILL, message: /within 100 ms/ }),
  );
  await withServer(
    (_request, response) => void response.write('{'),
    async (ask) => await assert.rejects(ask(POST, { timeoutMs: 100 }), { ...ILL, message: /within 100 ms/ }),
  );
  await withServer(
    (_request, response) =>
      void response.writeHead(200, { 'content-length': '9' }).write('{', () => response.destroy()),
    async (ask) => await assert.rejects(ask(POST), ILL),
  );
});

test('a server that is away or speaks no HTTP is ill, and nothing that is said of it holds the token [A15]', async () => {
  const server = createNetServer((socket) => socket.end(`SSH-2.0 ${TOKEN}\r\n`, () => socket.destroy()));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  assert.ok(address !== null && typeof address !== 'string');
  const serverUrl = `http://127.0.0.1:${address.port}`;
  const options = { vault, license: 'acme', serverUrl, clock: systemClock, isLoopbackHttpAllowed: true };
  const ask = async () => {
    const transport = makeLicenseTransport(options);
    const error = await transport(POST).then(
      () => assert.fail('it answered'),
      (reason: unknown) => reason,
    );
    await transport.close();
    assert.ok(error instanceof LicenseError && error.code === ILL.code, String(error));
    assert.ok(!messageChain(error).includes(TOKEN), messageChain(error));
  };
  await ask();
  await new Promise((resolve) => server.close(resolve));
  await ask();
});

test('whoever asks may give up, before and while the server thinks [A15]', async () => {
  await withServer(
    () => {},
    async (ask, seen) => {
      const reason = new Error('given up');
      await assert.rejects(ask({ ...POST, signal: AbortSignal.abort(reason) }), reason);
      assert.equal(seen.length, 0, 'nothing was sent');
      const controller = new AbortController();
      const asking = ask({ ...POST, signal: controller.signal });
      while (seen.length === 0) await systemClock.sleep(5);
      controller.abort(reason);
      await assert.rejects(asking, reason);
    },
  );
});

test('a server’s URL that would tell or mislead is refused [A15]', () => {
  const make = (serverUrl: string) => makeLicenseTransport({ vault, license: 'acme', serverUrl, clock: systemClock });
  for (const url of [
    '',
    'x',
    'https://u:p@licenses.example',
    'https://licenses.example/?key=1',
    'https://licenses.example/#x',
  ])
    assert.throws(() => make(url), { code: 'usage/license-server' }, url);
  for (const url of ['http://licenses.example', 'http://127.0.0.1:1', 'ftp://licenses.example'])
    assert.throws(() => make(url), { code: 'usage/license-origin' }, url);
});

test('an answer with the token in it is refused unless it must hold it, and then its asker was told [A15]', async () => {
  await withServer(
    (_request, response) => void response.end(JSON.stringify({ key: TOKEN })),
    async (ask) => {
      await assert.rejects(ask(POST), { ...ILL, message: /sent its token back/ });
      assert.match(Buffer.from((await ask({ ...POST, mayHoldToken: true })).body).toString(), new RegExp(TOKEN));
    },
  );
});
