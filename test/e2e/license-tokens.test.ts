// A license's token goes to its own origin over a connection that proves to be that origin's, and nowhere else, whatever servers,
// name servers and proxies do. In each case the allowed origin does get it: otherwise nothing would be shown.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { spellingsOf } from '../../src/license/spellings.ts';
import { type Authority, makeAuthority } from '../fakes/certificates.ts';
import type { TokenOrder, TokenOutcome } from './token-client.ts';
import {
  CONTENT,
  hostsIn,
  type LabClient,
  type LabProxy,
  type LabServer,
  nameHosts,
  startLabClient,
  startLabProxy,
  startLabServer,
} from './token-lab.ts';

const TOKEN = 'tok-4d2f81c07ab9e6635021';
/** The vendor, and somebody else with a good certificate for another name, on the same port of another address. */
const VENDOR = 'vendor.test';
const EVIL = 'evil.test';
const HOME = { [VENDOR]: '127.0.0.1', [EVIL]: '127.0.0.2' };

let folder: string;
let authority: Authority;
let vendor: LabServer;
let evil: LabServer;
let plain: LabServer;
let proxy: LabProxy;
const clients: LabClient[] = [];
let client: LabClient;
let proxied: LabClient;
let careless: LabClient;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-tokens-'));
  authority = makeAuthority(folder, 'trusted');
  vendor = await startLabServer('127.0.0.1', 0, authority.issue(VENDOR));
  evil = await startLabServer('127.0.0.2', vendor.port, authority.issue(EVIL));
  plain = await startLabServer('127.0.0.1', 0, null);
  proxy = await startLabProxy();
  await nameHosts(hostsIn(folder), HOME);
  const start = async (name: string, env: Readonly<Record<string, string>>) => {
    const trust = { NODE_EXTRA_CA_CERTS: authority.caPath };
    const made = await startLabClient(join(folder, name), hostsIn(folder), { ...trust, ...env });
    clients.push(made);
    return made;
  };
  client = await start('client', {});
  proxied = await start('proxied', { http_proxy: proxy.url, https_proxy: proxy.url });
  careless = await start('careless', { NODE_TLS_REJECT_UNAUTHORIZED: '0' });
});
after(async () => {
  for (const each of clients) await each.close();
  for (const each of [vendor, evil, plain, proxy]) await each?.close();
  await rm(folder, { recursive: true });
});
beforeEach(async () => {
  await nameHosts(hostsIn(folder), HOME);
  for (const server of [vendor, evil, plain]) {
    server.heard.length = 0;
    server.brokenOff = 0;
    server.answer = (_request, response) => void response.end(CONTENT);
  }
  proxy.heard.length = 0;
  proxy.leadsTo = { address: '127.0.0.1', port: vendor.port };
});

const urlOf = (name: string, path = '/artifact') => `https://${name}:${vendor.port}${path}`;
const plainUrl = () => `http://127.0.0.1:${plain.port}/artifact`;

function order(more: Partial<TokenOrder> = {}): TokenOrder {
  const origins = [new URL(urlOf(VENDOR)).origin];
  return { do: 'download', url: urlOf(VENDOR), token: TOKEN, origins, content: CONTENT, ...more };
}

const asked = (more: Partial<TokenOrder> = {}) => order({ do: 'ask', ...more });

const FORMS = [...spellingsOf(TOKEN), [...TOKEN].reverse().join(''), TOKEN.slice(4)];
const isIn = (text: string) => FORMS.some((form) => text.toLowerCase().includes(form.toLowerCase()));
/** How many of a server's requests had the token in any form. */
const carried = (server: LabServer) => server.heard.filter(({ text }) => isIn(text)).length;

/** The control of each case: the same order to a well-behaved vendor brings the token there, once. */
async function reachesVendor(by: LabClient, like: TokenOrder): Promise<void> {
  vendor.heard.length = 0;
  vendor.answer = (_request, response) => void response.end(CONTENT);
  const outcome = await by.run(like);
  assert.equal(outcome.code, null, outcome.said);
  assert.equal(carried(vendor), 1);
  assert.equal(vendor.heard[0]?.headers.authorization, `Bearer ${TOKEN}`);
}

/** Nothing but the allowed origin has heard it, and neither the outcome nor the log tells it. */
function staysIn(by: LabClient, ...outcomes: readonly TokenOutcome[]): void {
  assert.equal(carried(evil), 0, 'another origin got the token');
  assert.equal(carried(plain), 0, 'plain http got the token');
  assert.ok(!isIn(proxy.heard.join('')), 'the proxy saw the token');
  for (const { said } of outcomes) assert.ok(!isIn(said), `an error tells the token: ${said}`);
  assert.ok(!isIn(by.log()), 'the log tells the token');
}

test('the searcher finds a token in each of its forms', () => {
  const forms = [
    TOKEN,
    encodeURIComponent(TOKEN),
    Buffer.from(`x${TOKEN}`).toString('base64'),
    Buffer.from(TOKEN).toString('hex'),
  ];
  for (const form of [...forms, [...TOKEN].reverse().join('')]) assert.ok(isIn(`before ${form} behind`), form);
  assert.ok(!isIn('before tok- behind'));
});

test('a redirect to another origin takes no token along [A15]', async () => {
  for (const status of [301, 302, 303, 307, 308]) {
    evil.heard.length = 0;
    vendor.heard.length = 0;
    vendor.answer = (_request, response) => void response.writeHead(status, { location: urlOf(EVIL, '/x') }).end();
    const outcome = await client.run(order());
    assert.equal(outcome.code, null, outcome.said);
    assert.equal(carried(vendor), 1, `${status}`);
    assert.equal(evil.heard.length, 1, `${status} was followed`);
    assert.equal(evil.heard[0]?.headers.authorization, undefined);
    staysIn(client, outcome);
  }
  await reachesVendor(client, order());
});

test('a redirect away and back, and one in a circle, bring the token nowhere a second time [A15]', async () => {
  evil.answer = (_request, response) => void response.writeHead(302, { location: urlOf(VENDOR, '/back') }).end();
  vendor.answer = ({ path }, response) => {
    if (path === '/back') response.end(CONTENT);
    else response.writeHead(302, { location: urlOf(EVIL, '/x') }).end();
  };
  const there = await client.run(order());
  assert.equal(there.code, null, there.said);
  assert.deepEqual(
    vendor.heard.map(({ path, headers }) => [path, headers.authorization]),
    [
      ['/artifact', `Bearer ${TOKEN}`],
      ['/back', undefined],
    ],
  );
  vendor.heard.length = 0;
  vendor.answer = (_request, response) => void response.writeHead(302, { location: '/artifact' }).end();
  const circle = await client.run(order());
  assert.equal(circle.code, 'vendor-ill/redirect');
  assert.ok(vendor.heard.length > 1);
  assert.equal(carried(vendor), 1);
  staysIn(client, there, circle);
});

test('a redirect to plain http of the same host is not followed, with or without the token [A15]', async () => {
  for (const status of [301, 307]) {
    const location = `http://${VENDOR}:${plain.port}/artifact`;
    vendor.answer = (_request, response) => void response.writeHead(status, { location }).end();
    const outcome = await client.run(order());
    assert.equal(outcome.code, 'vendor-ill/redirect');
    assert.equal(plain.heard.length, 0);
    staysIn(client, outcome);
  }
  // The control: that server is there for whoever asks it, and it is not asked with a token even when told to.
  const direct = { url: `http://${VENDOR}:${plain.port}/artifact`, origins: [`http://${VENDOR}:${plain.port}`] };
  const outcome = await client.run(order({ ...direct, isLoopbackHttpAllowed: true }));
  assert.equal(outcome.code, null, outcome.said);
  assert.equal(plain.heard.length, 1);
  staysIn(client, outcome);
  await reachesVendor(client, order());
});

test('a name that suddenly stands for somebody else’s address: no token, for the certificate is not the name’s [A15]', async () => {
  for (const like of [order(), asked()]) {
    await reachesVendor(client, like);
    await nameHosts(hostsIn(folder), { [VENDOR]: '127.0.0.2' });
    const outcome = await client.run(like);
    assert.equal(outcome.code, like.do === 'ask' ? 'vendor-ill/license-server' : 'vendor-ill/tls', outcome.said);
    assert.equal(evil.heard.length, 0);
    staysIn(client, outcome);
    // The control: the other address was really asked; with a certificate of the name the token does go there.
    evil.present(authority.issue(VENDOR));
    const moved = await client.run(like);
    assert.equal(moved.code, null, moved.said);
    assert.equal(carried(evil), 1);
    evil.present(authority.issue(EVIL));
    evil.heard.length = 0;
    await nameHosts(hostsIn(folder), HOME);
  }
});

test('a certificate of an authority that is not believed gets no token, also where the environment asks for no verification [A15]', async () => {
  const unknown = makeAuthority(folder, 'unknown');
  try {
    for (const by of [client, careless]) {
      vendor.present(unknown.issue(VENDOR));
      for (const like of [order(), asked()]) {
        const outcome = await by.run(like);
        assert.match(outcome.code ?? '', /^vendor-ill\/(tls|license-server)$/, outcome.said);
        assert.equal(vendor.heard.length, 0);
        staysIn(by, outcome);
      }
      if (by === careless) {
        const control = await by.run(order({ do: 'careless' }));
        assert.equal(control.said, 'reached', 'the environment does turn verification off for others');
      }
      vendor.present(authority.issue(VENDOR));
      await reachesVendor(by, order());
      await reachesVendor(by, asked());
      vendor.heard.length = 0;
    }
  } finally {
    vendor.present(authority.issue(VENDOR));
  }
});

test('a license server with a pinned authority is believed by that one only [A15]', async () => {
  const own = makeAuthority(folder, 'own');
  const refused = await client.run(asked({ ca: own.ca }));
  assert.equal(refused.code, 'vendor-ill/license-server', refused.said);
  assert.equal(vendor.heard.length, 0);
  staysIn(client, refused);
  await reachesVendor(client, asked({ ca: authority.ca }));
});

test('a vendor or license server that says 401 again and again hears the token once for each question [A15]', async () => {
  vendor.answer = (_request, response) =>
    void response.writeHead(401, { 'www-authenticate': 'Basic realm="give it again", Bearer' }).end();
  const download = await client.run(order());
  assert.equal(download.code, 'vendor-ill/http-401', download.said);
  assert.equal(vendor.heard.length, 1);
  assert.equal(carried(vendor), 1);
  vendor.heard.length = 0;
  const answer = await client.run(asked());
  assert.equal(answer.status, 401);
  assert.equal(vendor.heard.length, 1);
  staysIn(client, download, answer);
  // The control: the same download is tried again where that may help.
  vendor.heard.length = 0;
  let isFirst = true;
  vendor.answer = (_request, response) => {
    response.writeHead(isFirst ? 503 : 200).end(isFirst ? '' : CONTENT);
    isFirst = false;
  };
  assert.equal((await client.run(order())).code, null);
  assert.equal(vendor.heard.length, 2);
});

test('a redirect of a license server is an answer, and nobody goes there [A15]', async () => {
  for (const status of [301, 302, 303, 307, 308]) {
    vendor.answer = (_request, response) => void response.writeHead(status, { location: urlOf(EVIL, '/x') }).end();
    const outcome = await client.run(asked());
    assert.equal(outcome.status, status);
    assert.equal(evil.heard.length, 0);
    staysIn(client, outcome);
  }
  await reachesVendor(client, asked());
});

test('a proxy in the environment carries the token through TLS and never sees it [A15]', async () => {
  for (const like of [order(), asked()]) {
    proxy.heard.length = 0;
    await reachesVendor(proxied, like);
    assert.match(proxy.heard.join(''), new RegExp(`^CONNECT ${VENDOR}:`), 'it went through the proxy');
    staysIn(proxied);
    // One that leads somewhere else, to a good certificate of another name.
    proxy.leadsTo = { address: '127.0.0.2', port: evil.port };
    const astray = await proxied.run(like);
    assert.match(astray.code ?? '', /^vendor-ill\/(tls|license-server)$/, astray.said);
    assert.equal(evil.heard.length, 0);
    // One that wants to be told who is there.
    proxy.leadsTo = null;
    const barred = await proxied.run(like);
    assert.match(barred.code ?? '', /^(host-fault\/proxy|vendor-ill\/license-server)$/, barred.said);
    staysIn(proxied, astray, barred);
    proxy.leadsTo = { address: '127.0.0.1', port: vendor.port };
  }
});

test('plain http on this machine goes past every proxy when it has a token, and through it when it has none [A15]', async () => {
  const lab = { url: plainUrl(), origins: [new URL(plainUrl()).origin], isLoopbackHttpAllowed: true };
  for (const like of [order(lab), asked(lab)]) {
    plain.heard.length = 0;
    const outcome = await proxied.run(like);
    assert.equal(outcome.code, null, outcome.said);
    assert.equal(carried(plain), 1);
    assert.deepEqual(proxy.heard, []);
  }
  plain.heard.length = 0;
  const control = await proxied.run(order({ ...lab, do: 'plain' }));
  assert.equal(control.code, null, control.said);
  assert.match(proxy.heard.join(''), /127\.0\.0\.1/);
  staysIn(proxied, control);
});

test('what is under no license, or under one for other origins, is asked for without a token [A15]', async () => {
  const free = await client.run(order({ do: 'plain' }));
  const other = await client.run(order({ origins: [new URL(urlOf(EVIL)).origin] }));
  for (const outcome of [free, other]) assert.equal(outcome.code, null, outcome.said);
  assert.equal(vendor.heard.length, 2);
  assert.equal(carried(vendor), 0);
  staysIn(client, free, other);
  await reachesVendor(client, order());
});

test('an answer that sends the token back is thrown away, and what is said of it does not tell it [A15]', async () => {
  for (const echo of [
    TOKEN,
    Buffer.from(`{"detail":"${TOKEN}"}`).toString('base64'),
    Buffer.from(TOKEN).toString('hex'),
  ]) {
    vendor.answer = (_request, response) => void response.end(JSON.stringify({ detail: echo }));
    const body = await client.run(asked());
    assert.equal(body.code, 'vendor-ill/license-server', body.said);
    vendor.answer = (_request, response) => void response.writeHead(200, { 'x-token': echo }).end('{}');
    const header = await client.run(asked());
    assert.equal(header.code, 'vendor-ill/license-server', header.said);
    staysIn(client, body, header);
  }
  // A vendor's answer is shown by its status and its place only.
  vendor.answer = (_request, response) =>
    void response.writeHead(302, { location: `http://${EVIL}/${TOKEN}?${TOKEN}` }).end();
  const moved = await client.run(order());
  assert.notEqual(moved.code, null);
  staysIn(client, moved);
});
