// The fetcher against a real server that cuts, stalls, lies, floods and redirects.
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { type FakeHttpServer, startHttpServer } from '../../test/fakes/http-server.ts';
import { systemClock } from './clock.ts';
import { bytesFrom, type Download, HttpError, type HttpFetch, isUnreachable, makeHttpFetch } from './http-fetch.ts';

const CONTENT = Buffer.from(Array.from({ length: 300_000 }, (_, index) => index % 251));
const LIMIT = { sizeBytesMax: 1_000_000 };

let folder: string;
let server: FakeHttpServer;
let http: HttpFetch;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-http-'));
  await writeFile(join(folder, 'file'), CONTENT);
});
after(async () => await rm(folder, { recursive: true }));
beforeEach(async () => {
  server = await startHttpServer(folder);
  http = makeHttpFetch({
    clock: systemClock,
    headersTimeoutMs: 300,
    stallTimeoutMs: 300,
    progressWindowMs: 400,
    progressBytesMin: 1000,
  });
});
afterEach(async () => {
  await http.close();
  await server.close();
});

async function readAll(pieces: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const list: Uint8Array[] = [];
  for await (const piece of pieces) list.push(piece);
  return Buffer.concat(list);
}

async function download(path: string, options: Partial<Parameters<HttpFetch['open']>[1]> = {}): Promise<Download> {
  return await http.open(`${server.url}${path}`, { ...LIMIT, ...options });
}

/** Runs and returns the code it fails with. */
async function codeOf(work: Promise<unknown>): Promise<string> {
  const error = await work.then(
    () => assert.fail('it should have failed'),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof HttpError, String(error));
  return error.code;
}

const fetchAll = async (path: string) => await readAll((await download(path)).bytes);

test('a file arrives whole, with its length and tags [A9]', async () => {
  const answer = await download('/file');
  assert.equal(answer.offsetBytes, 0);
  assert.equal(answer.contentLength, CONTENT.length);
  assert.match(answer.etag ?? '', /^"/);
  assert.deepEqual(await readAll(answer.bytes), CONTENT);
});

test('a download that was cut is resumed where it stopped [A9]', async () => {
  server.fail('/file', { kind: 'cut', afterBytes: 100_000, times: 1 });
  const first = await download('/file');
  const held: Uint8Array[] = [];
  const broken = async () => {
    for await (const piece of first.bytes) held.push(piece);
  };
  assert.equal(await codeOf(broken()), 'vendor-ill/cut-short');
  const offsetBytes = Buffer.concat(held).length;
  assert.ok(offsetBytes > 0 && offsetBytes <= 100_000);
  const rest = await download('/file', { offsetBytes, ifRangeEtag: first.etag ?? '' });
  assert.equal(rest.offsetBytes, offsetBytes);
  assert.equal(rest.contentLength, CONTENT.length - offsetBytes);
  assert.deepEqual(Buffer.concat([...held, await readAll(rest.bytes)]), CONTENT);
});

test('a file that changed since is sent from its beginning, and the answer says so', async () => {
  const answer = await download('/file', { offsetBytes: 1000, ifRangeEtag: '"older"' });
  assert.equal(answer.offsetBytes, 0);
  assert.deepEqual(await readAll(answer.bytes), CONTENT);
});

test('a server that answers another range than asked is asked for the whole', async () => {
  server.fail('/file', { kind: 'wrong-range' });
  const answer = await download('/file', { offsetBytes: 1000 });
  assert.equal(answer.offsetBytes, 0);
  assert.deepEqual(await readAll(answer.bytes), CONTENT);
  assert.equal(server.count('/file'), 2);
});

test('an offset beyond the end starts over', async () => {
  const answer = await download('/file', { offsetBytes: CONTENT.length + 5 });
  assert.equal(answer.offsetBytes, 0);
  assert.deepEqual(await readAll(answer.bytes), CONTENT);
});

test('bytesFrom gives the wanted part also when the server knows no ranges', async () => {
  server.fail('/file', { kind: 'no-range' });
  const answer = await download('/file', { offsetBytes: 123_456 });
  assert.equal(answer.offsetBytes, 0);
  assert.deepEqual(await readAll(bytesFrom(answer, 123_456)), CONTENT.subarray(123_456));
});

test('unchanged metadata is not sent again, by tag or by date', async () => {
  const url = `${server.url}/file`;
  const first = await http.fetchBytes(url, LIMIT);
  assert.equal(first.status, 'modified');
  assert.deepEqual(Buffer.from(first.bytes), CONTENT);
  const byTag = await http.fetchBytes(url, { ...LIMIT, ifNoneMatch: first.etag ?? '' });
  assert.equal(byTag.status, 'not-modified');
  const byDate = await http.fetchBytes(url, { ...LIMIT, ifModifiedSince: first.lastModified ?? '' });
  assert.equal(byDate.status, 'not-modified');
});

test('a file larger than allowed is refused before its bytes are read', async () => {
  assert.equal(await codeOf(download('/file', { sizeBytesMax: 1000 })), 'vendor-ill/too-large');
});

test('endless data end at the limit [X3]', async () => {
  server.fail('/file', { kind: 'endless' });
  assert.equal(await codeOf(fetchAll('/file')), 'vendor-ill/too-large');
});

test('a shorter body than announced is an error, never a short file', async () => {
  server.fail('/file', { kind: 'length', contentLength: CONTENT.length + 10 });
  assert.match(await codeOf(fetchAll('/file')), /^vendor-ill\/(cut-short|timeout)$/);
});

test('a server that never answers is given up', async () => {
  server.fail('/file', { kind: 'silent' });
  assert.equal(await codeOf(download('/file')), 'vendor-ill/timeout');
});

test('a server that falls silent in the middle is given up', async () => {
  server.fail('/file', { kind: 'stall', afterBytes: 1000 });
  assert.equal(await codeOf(fetchAll('/file')), 'vendor-ill/timeout');
});

test('slow retrieval is refused although every byte comes in time [X3]', async () => {
  server.fail('/file', { kind: 'drip', everyMs: 50 });
  assert.equal(await codeOf(fetchAll('/file')), 'vendor-ill/too-slow');
});

test('a slow reader is not mistaken for a slow server', async () => {
  const answer = await download('/file');
  let total = 0;
  for await (const piece of answer.bytes) {
    total += piece.length;
    await systemClock.sleep(total > 200_000 ? 200 : 100);
  }
  assert.equal(total, CONTENT.length);
});

test('refusals carry their status in the code', async () => {
  assert.equal(await codeOf(download('/absent')), 'vendor-ill/http-404');
  server.fail('/file', { kind: 'status', status: 403 });
  assert.equal(await codeOf(download('/file')), 'vendor-ill/http-403');
  server.fail('/file', { kind: 'status', status: 503 });
  assert.equal(await codeOf(download('/file')), 'vendor-ill/http-5xx');
});

test('redirects are followed, but not in circles and not to another protocol', async () => {
  server.fail('/moved', { kind: 'redirect', to: '/file' });
  assert.deepEqual(await fetchAll('/moved'), CONTENT);
  server.fail('/circle', { kind: 'redirect', to: '/circle' });
  assert.equal(await codeOf(download('/circle')), 'vendor-ill/redirect');
  server.fail('/local', { kind: 'redirect', to: pathToFileURL(join(folder, 'file')).href });
  assert.equal(await codeOf(download('/local')), 'vendor-ill/redirect');
});

test('what the interceptor adds goes with the first request and never across a redirect [A15]', async () => {
  const other = await startHttpServer(folder);
  server.fail('/moved', { kind: 'redirect', to: `${other.url}/file` });
  server.fail('/near', { kind: 'redirect', to: '/file' });
  const withToken = makeHttpFetch({
    clock: systemClock,
    intercept: ({ origin }, headers) => (origin === server.url ? { ...headers, authorization: 'Bearer t' } : headers),
  });
  await readAll((await withToken.open(`${server.url}/moved`, LIMIT)).bytes);
  await readAll((await withToken.open(`${server.url}/near`, LIMIT)).bytes);
  assert.equal(server.requests[0]?.headers.authorization, 'Bearer t');
  assert.equal(server.requests[2]?.path, '/file');
  assert.equal(server.requests[2]?.headers.authorization, undefined);
  assert.equal(other.requests[0]?.headers.authorization, undefined);
  await withToken.close();
  await other.close();
});

test('a server that is not there is unreachable, and the code says who has to act', async () => {
  const gone = await startHttpServer(folder);
  await gone.close();
  const failure = http.open(`${gone.url}/file`, LIMIT);
  assert.equal(await codeOf(failure), 'vendor-ill/unreachable');
  await failure.catch((error: unknown) => assert.equal(isUnreachable(error), true));
});

test('what is no HTTP is named so', async () => {
  const raw = createServer((socket) => {
    socket.on('error', () => {});
    socket.end('SSH-2.0-x\r\n\r\n');
  });
  await new Promise<void>((resolve) => raw.listen(0, '127.0.0.1', resolve));
  const address = raw.address();
  assert.ok(address !== null && typeof address === 'object');
  assert.equal(await codeOf(http.open(`http://127.0.0.1:${address.port}/`, LIMIT)), 'vendor-ill/protocol');
  raw.close();
});

test("an abort throws the caller's own reason, before the headers and in the middle of the body", async () => {
  const reason = new Error('the operator said stop');
  server.fail('/silent', { kind: 'silent' });
  const early = new AbortController();
  setImmediate(() => early.abort(reason));
  await assert.rejects(download('/silent', { signal: early.signal }), reason);
  server.fail('/file', { kind: 'stall', afterBytes: 1000 });
  const late = new AbortController();
  const answer = await download('/file', { signal: late.signal });
  const reading = readAll(answer.bytes);
  setImmediate(() => late.abort(reason));
  await assert.rejects(reading, reason);
});

test('a URL with a password is refused without repeating it', async () => {
  const error = await http
    .open('http://user:secret@127.0.0.1/x?token=secret', LIMIT)
    .catch((reason: unknown) => reason);
  assert.ok(error instanceof HttpError);
  assert.equal(error.code, 'usage/url');
  assert.doesNotMatch(error.message, /secret/);
  assert.equal(await codeOf(http.open('ftp://127.0.0.1/', LIMIT)), 'usage/url');
});

test('a query never reaches an error message', async () => {
  const error = await http.open(`${server.url}/absent?token=secret`, LIMIT).catch((reason: unknown) => reason);
  assert.ok(error instanceof HttpError);
  assert.doesNotMatch(error.message, /secret/);
});

test('a mirror on disk is read by file: URLs within the same bounds', async () => {
  const url = pathToFileURL(join(folder, 'file')).href;
  const answer = await http.open(url, { ...LIMIT, offsetBytes: 1000 });
  assert.equal(answer.offsetBytes, 1000);
  assert.deepEqual(await readAll(answer.bytes), CONTENT.subarray(1000));
  const { etag } = await http.fetchBytes(url, LIMIT);
  assert.equal((await http.fetchBytes(url, { ...LIMIT, ifNoneMatch: etag ?? '' })).status, 'not-modified');
  assert.equal(await codeOf(http.open(url, { sizeBytesMax: 10 })), 'vendor-ill/too-large');
  assert.equal(await codeOf(http.open(`${url}.absent`, LIMIT)), 'vendor-ill/http-404');
  assert.equal(await codeOf(http.open(pathToFileURL(folder).href, LIMIT)), 'vendor-ill/protocol');
});

test('the proxy of the environment is used, and left out where no_proxy says so', async () => {
  const saved = { http: process.env.http_proxy, no: process.env.no_proxy };
  process.env.http_proxy = 'http://127.0.0.1:9';
  process.env.no_proxy = '';
  const proxied = makeHttpFetch({ clock: systemClock });
  process.env.no_proxy = '127.0.0.1';
  const direct = makeHttpFetch({ clock: systemClock });
  const given = makeHttpFetch({ clock: systemClock, proxyUrl: 'http://127.0.0.1:9' });
  await assert.rejects(given.fetchBytes(`${server.url}/file`, LIMIT), HttpError);
  await assert.rejects(proxied.fetchBytes(`${server.url}/file`, LIMIT), HttpError);
  assert.equal((await direct.fetchBytes(`${server.url}/file`, LIMIT)).bytes.length, CONTENT.length);
  restore('http_proxy', saved.http);
  restore('no_proxy', saved.no);
  await Promise.all([proxied, given].map(async (one) => await one.close()));
  await direct.close();
});

function restore(name: string, value: string | undefined): void {
  if (value === undefined) delete process.env[name];
  else process.env[name] = value;
}
