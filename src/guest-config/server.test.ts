// A configuration server as the host believes it: real TLS, real signatures, and everything a server or a thief may do to them.
import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, stat } from 'node:fs/promises';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import {
  type FakeConfigServer,
  makeCertificate,
  makeSigningKey,
  startConfigServer,
  timeOf,
} from '../../test/fakes/config-server.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import { sealEnvelope } from '../base/dsse.ts';
import {
  ETAG_CHARS_MAX,
  GUEST_CONFIG_ASKED_AT_ONCE_MAX,
  GUEST_CONFIG_AWAY_MS,
  GUEST_CONFIG_RECHECK_MS,
} from '../base/limits.ts';
import { silentLog } from '../base/log.ts';
import { waitUntil } from '../base/wait-until.ts';
import { GuestConfigError } from './error.ts';
import { type ConfigServer, type ConfigServerOptions, openConfigServer } from './server.ts';
import { DOCUMENT_FORMAT, DOCUMENT_TYPE } from './server-document.ts';
import { startPolling } from './server-poll.ts';
import { makeServerTransport, type ServerTransport } from './server-transport.ts';

const ITEMS = { hostname: { kind: 'hostname', hostname: 'one' } };
const HOUR_MS = 3_600_000;

type Site = {
  readonly server: FakeConfigServer;
  readonly folder: string;
  readonly time: { passedMs: number };
  /** The host, as after a restart of the daemon. */
  readonly open: (more?: Partial<ConfigServerOptions>) => Promise<ConfigServer>;
};

async function site(t: TestContext): Promise<Site> {
  const folder = await mkdtemp(join(tmpdir(), 'config-host-'));
  const server = await startConfigServer();
  const time = { passedMs: 0 };
  const clock: Clock = {
    ...systemClock,
    nowMs: () => systemClock.nowMs() + time.passedMs,
    monotonicMs: () => systemClock.monotonicMs() + time.passedMs,
  };
  t.after(async () => {
    await server.close().catch(() => {}); // Some tests have closed it.
    await rm(folder, { recursive: true });
  });
  const open = async (more: Partial<ConfigServerOptions> = {}) => {
    const opened = await openConfigServer({
      url: server.url,
      keys: [server.key],
      graceMs: 0,
      isRequired: false,
      folder,
      transport: makeServerTransport({ clock, ca: server.ca, timeoutMs: 3_000 }),
      clock,
      log: silentLog,
      ...more,
    });
    t.after(async () => await opened.close());
    return opened;
  };
  return { server, folder, time, open };
}

const namesOf = async (host: ConfigServer, vm = 'web1') => [...((await host.documentOf(vm)).layer?.items.keys() ?? [])];

test('a signed document is taken by ETag, and its serial and address tell where a value is from [A14]', async (t) => {
  const { server, time, open } = await site(t);
  const host = await open();
  assert.deepEqual(await host.documentOf('web1'), { layer: null, trouble: [], remarks: [] });
  server.publish('web1', { items: ITEMS });
  time.passedMs += GUEST_CONFIG_RECHECK_MS;
  const word = await host.documentOf('web1');
  assert.deepEqual([word.trouble, word.remarks], [[], []]);
  assert.equal(word.layer?.at([]), `${server.url}/v1/vms/web1 serial 1`);
  assert.deepEqual([...(word.layer?.items.keys() ?? [])], ['hostname']);
  // Whoever asks again soon is answered from here; later the server only says that nothing changed.
  await host.documentOf('web1');
  assert.deepEqual(
    server.requests.map(({ status }) => status),
    [404, 200],
  );
  time.passedMs += GUEST_CONFIG_RECHECK_MS;
  await host.documentOf('web1');
  assert.deepEqual(
    server.requests.map(({ status }) => status),
    [404, 200, 304],
  );
  // Nothing but the VM's name goes to the server.
  assert.deepEqual(new Set(server.requests.map(({ path }) => path)), new Set(['/config/v1/vms/web1']));
});

test('the last good document counts while the server is away, over a restart too, until it expires', async (t) => {
  const { server, folder, time, open } = await site(t);
  const before = await open();
  server.publish('web1', { items: ITEMS });
  await before.documentOf('web1');
  await before.close();
  server.fail(503);
  const host = await open();
  const word = await host.documentOf('web1');
  assert.deepEqual(word.trouble, []);
  assert.match(
    word.remarks.join(),
    /is away; its document of serial 1, confirmed last at .*, counts on: .*answered 503/,
  );
  assert.ok(word.layer?.items.has('hostname'));
  const { mode } = await stat(join(folder, 'web1.json'));
  assert.equal(mode & 0o777, 0o600);
  await server.close();
  time.passedMs += GUEST_CONFIG_AWAY_MS;
  assert.match((await host.documentOf('web1')).remarks.join(), /could not be asked/);
  time.passedMs += HOUR_MS;
  const expired = await host.documentOf('web1');
  assert.equal(expired.layer, null);
  assert.match(expired.trouble.join(), /serial 1, expired at/);
  const graceful = await open({ graceMs: 2 * HOUR_MS });
  const inGrace = await graceful.documentOf('web1');
  assert.deepEqual(inGrace.trouble, []);
  assert.match(inGrace.remarks.join(), /its grace runs/);
  assert.ok(inGrace.layer?.items.has('hostname'));
});

test('a VM of which nothing is known is in trouble while the server is away, and where a document is required', async (t) => {
  const { server, open } = await site(t);
  const host = await open();
  server.fail(500);
  assert.match(
    (await host.documentOf('web1')).trouble.join(),
    /no document of the configuration server yet: .*answered 500/,
  );
  server.fail(null);
  // One that was away is asked again at once for a VM that has nothing.
  assert.deepEqual((await host.documentOf('web1')).trouble, []);
  const strict = await open({ isRequired: true });
  assert.match((await strict.documentOf('web1')).trouble.join(), /has no document for web1, and it is required/);
});

/** What somebody in the server's place may try, with a genuine document of serial 5 in force. */
const ATTACKS: Readonly<Record<string, { readonly play: (server: FakeConfigServer) => void; readonly says: RegExp }>> =
  {
    'an older serial': {
      play: (server) => server.publish('web1', { serial: 4, items: {} }),
      says: /serial 4 is older than 5/,
    },
    'another document under the same serial': {
      play: (server) => server.publish('web1', { serial: 5, items: {} }),
      says: /another document under the known serial 5/,
    },
    "another VM's document": {
      play: (server) => {
        server.publish('web2', { serial: 6, items: {} });
        server.serve('web1', server.servedFor('web2') ?? '');
      },
      says: /the document is one of web2/,
    },
    "somebody else's signature": {
      play: (server) => server.publish('web1', { serial: 6, items: {} }, makeSigningKey()),
      says: /signed by none of the keys/,
    },
    'a changed payload': {
      play: (server) => {
        server.publish('web1', { serial: 6, items: {} });
        const envelope = JSON.parse(server.servedFor('web1') ?? '') as { payload: string };
        const payload = Buffer.from(
          Buffer.from(envelope.payload, 'base64').toString().replace('"serial":6', '"serial":7'),
        );
        server.serve('web1', JSON.stringify({ ...envelope, payload: payload.toString('base64') }));
      },
      says: /signed by none of the keys/,
    },
    'an expired document': {
      play: (server) => server.publish('web1', { serial: 6, expiresAt: timeOf(0), items: {} }),
      says: /serial 6 expired at 1970/,
    },
    'no JSON': { play: (server) => server.serve('web1', '<html>'), says: /not JSON/ },
    'an envelope with more than it may have': {
      play: (server) => {
        server.publish('web1', { serial: 6, items: {} });
        server.serve('web1', JSON.stringify({ ...JSON.parse(server.servedFor('web1') ?? ''), more: 1 }));
      },
      says: /more|additional/i,
    },
    'a redirect': { play: (server) => server.fail(302), says: /answered 302/ },
  };

for (const [name, { play, says }] of Object.entries(ATTACKS)) {
  test(`${name} is refused, and the last good document stays`, async (t) => {
    const { server, time, open } = await site(t);
    const host = await open();
    server.publish('web1', { serial: 5, items: ITEMS });
    await host.documentOf('web1');
    play(server);
    time.passedMs += GUEST_CONFIG_RECHECK_MS;
    const word = await host.documentOf('web1');
    assert.match(word.remarks.join(), says);
    assert.deepEqual(word.trouble, []);
    assert.deepEqual([...(word.layer?.items.keys() ?? [])], ['hostname']);
    // The control: what comes next in order is taken.
    server.fail(null);
    server.publish('web1', { serial: 7, items: { ...ITEMS, motd: { kind: 'file', path: '/etc/motd', content: 'x' } } });
    time.passedMs += GUEST_CONFIG_RECHECK_MS;
    assert.deepEqual(await namesOf(host), ['hostname', 'motd']);
  });
}

test('a document whose items are wrong is refused as a whole', async (t) => {
  const { server, time, open } = await site(t);
  const host = await open();
  const sealed = (items: unknown) => () => server.publish('web1', { items });
  // Whoever signs is told as well.
  assert.throws(sealed({ x: { kind: 'hostname', hostnam: 'x' } }), /`items.x.hostnam` is not a known key.*`hostname`/);
  assert.throws(
    sealed({ x: { kind: 'file', path: '/x', content: { secret: 'host' } } }),
    /names a secret of this host/,
  );
  server.publish('web1', { items: ITEMS });
  assert.deepEqual(await namesOf(host), ['hostname']);
  const times = { issuedAt: timeOf(0), expiresAt: timeOf(systemClock.nowMs() + HOUR_MS) };
  const items = { ...ITEMS, x: { kind: 'hostname', hostnam: 'x' } };
  const document = JSON.stringify({ format: DOCUMENT_FORMAT, vm: 'web1', serial: 100, ...times, items });
  server.serve('web1', JSON.stringify(sealEnvelope(DOCUMENT_TYPE, Buffer.from(document), [server.key])));
  time.passedMs += GUEST_CONFIG_RECHECK_MS;
  const word = await host.documentOf('web1');
  assert.match(word.remarks.join(), /serial 100: `items.x.hostnam` is not a known key/);
  assert.deepEqual([...(word.layer?.items.keys() ?? [])], ['hostname']);
});

test('a document is believed only as long as its key is, and a serial outlives the VM', async (t) => {
  const { server, folder, time, open } = await site(t);
  const host = await open();
  server.publish('web1', {
    serial: 9,
    items: { app: { kind: 'file', path: '/x', content: { secretText: 'sesame' } } },
  });
  await host.documentOf('web1');
  server.fail(503);
  const other = await open({ keys: [makeSigningKey()] });
  assert.match((await other.documentOf('web1')).trouble.join(), /is not believed any more: .*none of the keys/);
  assert.match(await readFile(join(folder, 'web1.json'), 'utf8'), /"envelope":\{/);
  await host.forget('web1');
  assert.match(await readFile(join(folder, 'web1.json'), 'utf8'), /"envelope":null/);
  server.fail(null);
  server.publish('web1', { serial: 8, items: ITEMS });
  time.passedMs += GUEST_CONFIG_RECHECK_MS;
  assert.match((await host.documentOf('web1')).trouble.join(), /serial 8 is older than 9/);
  assert.deepEqual(await readdir(folder), ['web1.json']);
});

test('a server with another certificate than the configured one is not talked to; one that asks for ours gets it', async (t) => {
  const { server, folder, open } = await site(t);
  server.publish('web1', { items: ITEMS });
  const publicOnly = await open({ transport: makeServerTransport({ clock: systemClock, timeoutMs: 3_000 }) });
  assert.match((await publicOnly.documentOf('web1')).trouble.join(), /could not be asked: .*certificate/);
  assert.deepEqual(server.requests, []);
  const { certificatePath, keyPath } = makeCertificate(folder, 'host1');
  const certificate = await readFile(certificatePath, 'utf8');
  const asking = await startConfigServer({ clientCa: certificate });
  t.after(async () => await asking.close());
  asking.publish('web1', { items: ITEMS });
  const at = (identity?: { certificate: string; key: string }) =>
    open({
      url: asking.url,
      keys: [asking.key],
      transport: makeServerTransport({
        clock: systemClock,
        ca: asking.ca,
        ...(identity === undefined ? {} : { identity }),
      }),
    });
  assert.equal((await (await at()).documentOf('web1')).layer, null);
  const known = await at({ certificate, key: await readFile(keyPath, 'utf8') });
  assert.deepEqual(await namesOf(known), ['hostname']);
});

test('VMs that are off have their documents before they start [A1]', async (t) => {
  const { server, folder, open } = await site(t);
  const host = await open();
  server.publish('web1', { items: ITEMS });
  server.publish('web2', { items: ITEMS });
  const waits: number[] = [];
  const { promise, resolve } = Promise.withResolvers<void>();
  const clock: Clock = {
    ...systemClock,
    sleep: async (durationMs, signal) => {
      waits.push(durationMs);
      if (waits.length === 1) return;
      resolve();
      await systemClock.sleep(durationMs, signal);
    },
  };
  const polling = startPolling({ server: host, vms: () => ['web1', 'web2'], clock, log: silentLog });
  await promise;
  await polling.close();
  assert.deepEqual((await readdir(folder)).sort(), ['web1.json', 'web2.json']);
  assert.equal(waits.length, 2);
});

test('a VM of which nothing is known asks itself where a round of all VMs passed it over [A1]', async (t) => {
  const { server, open } = await site(t);
  const away = new GuestConfigError('vendor-ill/guest-config-away', 'no answer');
  const first = Promise.withResolvers<never>();
  let asked = 0;
  const transport: ServerTransport = {
    get: async () => {
      asked += 1;
      return await first.promise;
    },
    close: async () => {},
  };
  const host = await open({ transport });
  const others = Array.from({ length: GUEST_CONFIG_ASKED_AT_ONCE_MAX }, (_, index) => `other${index}`);
  const round = host.refresh([...others, 'web1'], new AbortController().signal);
  const word = host.documentOf('web1');
  await waitUntil(async () => asked === others.length, systemClock, 5_000, 5);
  first.reject(away);
  await round;
  assert.match((await word).trouble.join(), /no document of the configuration server yet: .*no answer/);
  assert.equal(server.requests.length, 0);
});

test('an ETag longer than any is left out, and the document is kept and asked for again', async (t) => {
  const { server, time, open } = await site(t);
  server.publish('web1', { items: ITEMS });
  const answers: (string | null)[] = [];
  const text = server.servedFor('web1') ?? '';
  const odd = createServer(
    { cert: server.ca, key: await readFile(`${server.caPath.slice(0, -4)}.key`) },
    (request, response) => {
      answers.push(request.headers['if-none-match'] ?? null);
      response.writeHead(200, { etag: `"${'x'.repeat(2 * ETAG_CHARS_MAX)}"` }).end(text);
    },
  );
  await new Promise<void>((resolve) => odd.listen(0, '127.0.0.1', resolve));
  t.after(() => odd.close());
  const { port } = odd.address() as AddressInfo; // The cast holds: it listens on TCP.
  const host = await open({ url: `https://127.0.0.1:${port}` });
  assert.deepEqual(await namesOf(host), ['hostname']);
  time.passedMs += GUEST_CONFIG_RECHECK_MS;
  const again = await host.documentOf('web1');
  assert.deepEqual([again.trouble, again.remarks], [[], []]);
  assert.deepEqual(answers, [null, null]);
  await host.forget('web1');
});
