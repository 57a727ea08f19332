// The vault: what comes in, what may be shown, what a crash leaves, and where a token goes.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { makeFakeClock } from '../../test/simulator/clock.ts';
import { systemClock } from '../base/clock.ts';
import { VAULT_OPEN_MS, VAULT_REDACT_MS } from '../base/limits.ts';
import { silentLog } from '../base/log.ts';
import { redactText } from '../base/redact.ts';
import { licenseInterceptor } from './download-token.ts';
import { type RunSealer, runSystemdCreds } from './seal.ts';
import { openVault, type Vault, type VaultOptions } from './vault.ts';

const TOKEN = 'tok-b1946ac92492d234';
const NEXT = 'tok-ffffffff00000000';
const bytes = (text: string) => Buffer.from(text);
const WITHOUT_SYSTEMD: RunSealer = async () => {
  throw new Error('there is no systemd-creds');
};
const ORIGIN = 'https://updates.example.com';
const WHERE = { origins: [ORIGIN], place: { kind: 'header', scheme: 'Bearer' } } as const;

let parent: string;
const opened: Vault[] = [];
before(async () => {
  parent = await mkdtemp(join(tmpdir(), 'pratique-vault-'));
});
after(async () => await rm(parent, { recursive: true }));
afterEach(() => {
  for (const vault of opened.splice(0)) vault.close();
});

const newFolder = async () => join(await mkdtemp(join(parent, 'v-')), 'vault');

async function open(folder: string, more: Partial<VaultOptions> = {}): Promise<Vault> {
  const vault = await openVault({ folder, clock: systemClock, log: silentLog, runSealer: WITHOUT_SYSTEMD, ...more });
  opened.push(vault);
  return vault;
}

/** What the vault would send: the only way a token is ever seen. */
async function sent(vault: Vault, license: string, slot: 'current' | 'next' = 'current'): Promise<string | undefined> {
  const { headers } = await vault.attach(license, WHERE, { slot, origin: ORIGIN, place: WHERE.place, headers: {} });
  return headers.authorization;
}

test('a token that was put is sent after the vault was opened again, and only its last four are shown [A15]', async () => {
  const folder = await newFolder();
  const entry = await (await open(folder)).put('acme-2026', bytes(`${TOKEN}\n`));
  assert.equal(entry.lastFour, 'd234');
  assert.equal(entry.sealedBy, 'key-file');
  assert.match(entry.warning ?? '', /key file/);
  const again = await open(folder);
  assert.equal(await sent(again, 'acme-2026'), `Bearer ${TOKEN}`);
  assert.deepEqual(again.list(), [entry]);
  assert.doesNotMatch(JSON.stringify(again.list()), new RegExp(TOKEN));
  assert.doesNotMatch(JSON.stringify(again.describe('acme-2026')), /sealed"/);
  assert.equal((await stat(folder)).mode & 0o777, 0o700);
  for (const name of await readdir(folder)) {
    assert.equal((await stat(join(folder, name))).mode & 0o777, 0o600);
    assert.doesNotMatch(await readFile(join(folder, name), 'latin1'), /b1946ac92492|YjE5NDZhYzky/);
  }
});

test('systemd-creds seals where it works, without a warning [A15]', async (t) => {
  const vault = await open(await newFolder(), { runSealer: runSystemdCreds });
  const { sealedBy, reason } = await vault.sealing();
  if (sealedBy === 'key-file') return t.diagnostic(`systemd-creds does not work on this machine: ${reason}`);
  const entry = await vault.put('acme', bytes(TOKEN));
  assert.equal(entry.sealedBy, 'systemd-creds');
  assert.equal(entry.warning, null);
  assert.equal(await sent(vault, 'acme'), `Bearer ${TOKEN}`);
});

test('bytes that are no token are refused, and nothing is changed [A15]', async () => {
  const folder = await newFolder();
  const vault = await open(folder);
  await vault.put('acme', bytes(TOKEN));
  const before = await readFile(join(folder, 'acme.json'), 'utf8');
  const bad = [
    '',
    'short',
    `${TOKEN}\n\n`,
    `two ${TOKEN}`,
    `${TOKEN}\nx`,
    `t\u00f6k-1234567890`,
    'x'.repeat(8 * 1024 + 1),
  ];
  for (const text of bad) {
    for (const give of [vault.put, vault.stage]) {
      const error = await give('acme', bytes(text)).then(
        () => assert.fail(`${text.slice(0, 20)} was taken`),
        (reason: unknown) => reason as Error,
      );
      assert.equal((error as { code?: string }).code, 'usage/license-token');
      if (text.length > 10) assert.ok(!error.message.includes(text.slice(0, 10)), error.message);
    }
  }
  for (const id of ['', '../x', 'A', 'x/y', '.new', 'x'.repeat(65)])
    await assert.rejects(vault.put(id, bytes(TOKEN)), { code: 'usage/license-id' });
  assert.equal(await readFile(join(folder, 'acme.json'), 'utf8'), before);
  assert.equal(await sent(vault, 'acme'), `Bearer ${TOKEN}`);
  assert.equal((await vault.put('crlf', bytes(`${TOKEN}\r\n`))).lastFour, 'd234');
  assert.equal((await vault.put('small', bytes('12345678'))).lastFour, '', 'a short token shows nothing of itself');
});

test('the bytes that were given are zeroed [A15]', async () => {
  const vault = await open(await newFolder());
  const given = bytes(TOKEN);
  await vault.put('acme', given);
  assert.ok(given.every((byte) => byte === 0));
});

test('a staged token is tried beside the one in use, and promoting it drops the old one in one step [A15]', async () => {
  const folder = await newFolder();
  const vault = await open(folder);
  assert.equal(
    (await vault.stage('acme', bytes(NEXT))).lastFour,
    '0000',
    'also where there is none yet, as after a restore',
  );
  await assert.rejects(sent(vault, 'acme'), { code: 'not-found/license' });
  assert.equal(await sent(await open(folder), 'acme', 'next'), `Bearer ${NEXT}`);
  await vault.drop('acme', 'next');
  assert.throws(() => vault.describe('acme'), { code: 'not-found/license' });
  await vault.put('acme', bytes(TOKEN));
  await assert.rejects(vault.promote('acme'), { code: 'conflict/license-slot' });
  await assert.rejects(sent(vault, 'acme', 'next'), { code: 'not-found/license' });
  const staged = await vault.stage('acme', bytes(NEXT));
  assert.deepEqual(
    staged.slots.map(({ slot, lastFour }) => [slot, lastFour]),
    [
      ['current', 'd234'],
      ['next', '0000'],
    ],
  );
  assert.equal(await sent(vault, 'acme'), `Bearer ${TOKEN}`);
  assert.equal(await sent(vault, 'acme', 'next'), `Bearer ${NEXT}`);
  await assert.rejects(vault.drop('acme', 'current'), { code: 'conflict/license-slot' });
  await vault.promote('acme');
  const again = await open(folder);
  for (const each of [vault, again]) {
    assert.equal(await sent(each, 'acme'), `Bearer ${NEXT}`);
    assert.equal(each.describe('acme').slots.length, 1);
  }
  await vault.stage('acme', bytes(TOKEN));
  await vault.drop('acme', 'next');
  await vault.drop('acme', 'next');
  assert.equal(await sent(vault, 'acme'), `Bearer ${NEXT}`);
  await vault.drop('acme', 'current');
  assert.throws(() => vault.describe('acme'), { code: 'not-found/license' });
  await vault.remove('acme');
  assert.deepEqual(await readdir(folder), ['key']);
});

test('a damaged or exchanged file is said and takes no other license with it [A15]', async () => {
  const folder = await newFolder();
  const vault = await open(folder);
  for (const id of ['a', 'b', 'c', 'd']) await vault.put(id, bytes(`${TOKEN}-${id}`));
  await writeFile(join(folder, 'a.json'), '{"format":"pratique.vault/1"');
  // A sealed token in the place of another license's: it is bound to its name.
  const b = JSON.parse(await readFile(join(folder, 'b.json'), 'utf8'));
  const c = JSON.parse(await readFile(join(folder, 'c.json'), 'utf8'));
  await writeFile(
    join(folder, 'b.json'),
    JSON.stringify({ ...b, current: { ...b.current, sealed: c.current.sealed } }),
  );
  await writeFile(join(folder, 'c.json'), JSON.stringify({ ...c, license: 'd' }));
  await writeFile(join(folder, 'd.json.new'), 'left by a crash');
  const again = await open(folder);
  assert.throws(() => again.describe('a'), { code: 'host-fault/vault' });
  assert.throws(() => again.describe('c'), { code: 'host-fault/vault', message: /another license/ });
  await assert.rejects(sent(again, 'b'), { code: 'host-fault/vault' });
  assert.equal(await sent(again, 'd'), `Bearer ${TOKEN}-d`);
  assert.ok(!(await readdir(folder)).includes('d.json.new'));
  await again.put('a', bytes(NEXT));
  assert.equal(await sent(again, 'a'), `Bearer ${NEXT}`);
});

test('a folder that others could read is closed to them; one that is a file is refused [A15]', async () => {
  const folder = await newFolder();
  await (await open(folder)).put('acme', bytes(TOKEN));
  await chmod(folder, 0o755);
  await open(folder);
  assert.equal((await stat(folder)).mode & 0o777, 0o700);
  const file = join(parent, 'file');
  await writeFile(file, 'x');
  await assert.rejects(open(file), { code: 'host-fault/vault' });
});

test('a token goes to its own origins over https, and to no other place [A15]', async () => {
  const vault = await open(await newFolder());
  await vault.put('acme', bytes(TOKEN));
  const intercept = vault.interceptorFor('acme', WHERE);
  const ask = async (origin: string, each = intercept) =>
    await each({ origin, url: `${origin}/x`, license: null }, { accept: '*/*' });
  assert.deepEqual(await ask(ORIGIN), { accept: '*/*', authorization: `Bearer ${TOKEN}` });
  const others = [
    'http://updates.example.com',
    'https://updates.example.com:8443',
    'https://updates.example.com.evil.example',
  ];
  for (const origin of [...others, 'https://example.com', 'null'])
    assert.deepEqual(await ask(origin), { accept: '*/*' });
  const license = vault.interceptorFor('acme', { origins: [ORIGIN], place: { kind: 'header', scheme: 'License' } });
  assert.equal((await ask(ORIGIN, license)).authorization, `License ${TOKEN}`);
  const named = vault.interceptorFor('acme', { origins: [ORIGIN], place: { kind: 'header', name: 'X-Api-Key' } });
  assert.deepEqual(await ask(ORIGIN, named), { accept: '*/*', 'x-api-key': TOKEN });
  const place = WHERE.place;
  await assert.rejects(
    vault.attach('acme', WHERE, { slot: 'current', origin: 'https://evil.example', place, headers: {} }),
    { code: 'refused/license-origin' },
  );
});

test('plain http is for an address of this machine, when that is said, and never for a name [A15]', async () => {
  const vault = await open(await newFolder());
  await vault.put('acme', bytes(TOKEN));
  const { place } = WHERE;
  const bad = [
    'http://updates.example.com',
    'http://localhost:80',
    'http://10.0.0.1',
    'ftp://x',
    'https://x/',
    'https://u@x',
    'x',
  ];
  for (const origin of bad) {
    for (const isLoopbackHttpAllowed of [true, false]) {
      assert.throws(() => vault.interceptorFor('acme', { origins: [origin], isLoopbackHttpAllowed, place }), {
        code: 'usage/license-origin',
      });
    }
  }
  assert.throws(() => vault.interceptorFor('acme', { origins: ['http://127.0.0.1:80'], place }));
  for (const origin of ['http://127.0.0.1:8080', 'http://[::1]:8080']) {
    const intercept = vault.interceptorFor('acme', { origins: [origin], isLoopbackHttpAllowed: true, place });
    assert.equal((await intercept({ origin, url: origin, license: null }, {})).authorization, `Bearer ${TOKEN}`);
  }
  for (const name of ['host', 'Content-Length', 'x y', 'a:b', 'proxy-authorization', '']) {
    assert.throws(() => vault.interceptorFor('acme', { origins: [ORIGIN], place: { kind: 'header', name } }), {
      code: 'usage/license-header',
    });
  }
});

test('a body gets the token at the named field, and what was given stays as it was [A15]', async () => {
  const vault = await open(await newFolder());
  await vault.put('acme', bytes(TOKEN));
  const body = { meta: { scope: { product: 'x' } } };
  const place = { kind: 'body', field: ['meta', 'key'] } as const;
  const request = { slot: 'current', origin: ORIGIN, place, headers: {}, body } as const;
  const signed = await vault.attach('acme', WHERE, request);
  assert.deepEqual(JSON.parse(signed.body ?? ''), { meta: { scope: { product: 'x' }, key: TOKEN } });
  assert.deepEqual(signed.headers, {});
  assert.deepEqual(body, { meta: { scope: { product: 'x' } } });
});

test('an answer that has the token in it is recognised in each spelling [A15]', async () => {
  const vault = await open(await newFolder());
  const secret = 'p/+"\\tok%&?=öäü'.replace(/[^\x21-\x7e]/g, '~');
  await vault.put('acme', bytes(secret));
  const { isEchoed } = await vault.attach('acme', WHERE, {
    slot: 'current',
    origin: ORIGIN,
    place: WHERE.place,
    headers: {},
  });
  const raw = Buffer.from(secret);
  for (const before of ['', 'x', 'xy', 'xyz']) {
    for (const spelled of [
      `${before}${secret}!`,
      encodeURIComponent(`${before}${secret}!`),
      JSON.stringify({ a: `${before}${secret}` }),
      raw.toString('hex'),
      raw.toString('hex').toUpperCase(),
      Buffer.from(`${before}${secret}!`).toString('base64'),
      Buffer.from(`${before}${secret}!`).toString('base64url'),
    ])
      assert.ok(isEchoed(spelled), spelled);
  }
  assert.ok(!isEchoed('an answer about something else'));
});

test('the redactor knows a token while it is used and for a while after, then no more [A15]', async () => {
  const clock = makeFakeClock();
  const move = (byMs: number) => clock.moveTo(clock.monotonicMs() + byMs);
  const folder = await newFolder();
  const vault = await open(folder, { clock });
  const shown = () => redactText(`server said ${TOKEN}.`);
  assert.match(shown(), new RegExp(TOKEN), 'nobody has told the redactor yet');
  await vault.put('acme', bytes(TOKEN));
  assert.doesNotMatch(shown(), new RegExp(TOKEN));
  move(VAULT_REDACT_MS);
  assert.match(shown(), new RegExp(TOKEN));
  await sent(vault, 'acme');
  assert.doesNotMatch(shown(), new RegExp(TOKEN));
  move(VAULT_REDACT_MS - 1);
  await sent(vault, 'acme');
  move(VAULT_REDACT_MS - 1);
  assert.doesNotMatch(shown(), new RegExp(TOKEN), 'each use counts anew');
  move(1);
  assert.match(shown(), new RegExp(TOKEN));
});

test('a fleet that asks at once opens a token once, and later it is opened again [A15]', async () => {
  const clock = makeFakeClock();
  const move = (byMs: number) => clock.moveTo(clock.monotonicMs() + byMs);
  let runs = 0;
  // Stands for systemd-creds: turns the bytes round, and binds to nothing but what the probe looks at.
  const counting: RunSealer = async ([verb, name = ''], input) => {
    const text = Buffer.from(input).toString();
    if (verb === 'encrypt')
      return { exitCode: 0, signal: null, stdout: `${name} ${[...text].reverse().join('')}`, stderr: '' };
    runs += 1;
    const [by, turned = ''] = text.split(' ');
    const isBound = by === name;
    return {
      exitCode: isBound ? 0 : 1,
      signal: null,
      stdout: isBound ? [...turned].reverse().join('') : '',
      stderr: '',
    };
  };
  const vault = await open(await newFolder(), { clock, runSealer: counting });
  await vault.put('acme', bytes(TOKEN));
  runs = 0;
  await Promise.all(Array.from({ length: 500 }, () => sent(vault, 'acme')));
  assert.equal(runs, 1);
  move(VAULT_OPEN_MS - 1);
  assert.equal(await sent(vault, 'acme'), `Bearer ${TOKEN}`);
  assert.equal(runs, 1);
  move(1);
  assert.equal(await sent(vault, 'acme'), `Bearer ${TOKEN}`);
  assert.equal(runs, 2);
});

test('a download gets the token of its own license, where the operator says it may go [A15]', async () => {
  const vault = await open(await newFolder());
  await vault.put('acme', bytes(TOKEN));
  await vault.put('other', bytes(NEXT));
  const origins = new Map([
    ['acme', ORIGIN],
    ['other', 'https://other.example'],
  ]);
  const intercept = licenseInterceptor(vault, (license) => {
    const origin = origins.get(license);
    return origin === undefined ? null : { origins: [origin], place: WHERE.place };
  });
  const ask = async (license: string | null, origin: string) =>
    (await intercept({ origin, url: `${origin}/x`, license }, {})).authorization;
  assert.equal(await ask('acme', ORIGIN), `Bearer ${TOKEN}`);
  assert.equal(await ask('other', 'https://other.example'), `Bearer ${NEXT}`);
  // A vendor that names another one's license gets nothing by it.
  assert.equal(await ask('other', ORIGIN), undefined);
  assert.equal(await ask(null, ORIGIN), undefined);
  assert.equal(await ask('unknown', ORIGIN), undefined);
  await vault.remove('acme');
  await assert.rejects(ask('acme', ORIGIN), { code: 'not-found/license' });
});

/** Each starts a program, which takes half a second. */
const ROUNDS = process.env.PRATIQUE_TEST_FULL === '1' ? 24 : 4;
const VICTIM = `
const [module, folder] = process.argv.slice(1);
const { openVault } = await import(module);
const { systemClock } = await import(module.replace('license/vault', 'base/clock'));
const { silentLog } = await import(module.replace('license/vault', 'base/log'));
const vault = await openVault({ folder, clock: systemClock, log: silentLog, runSealer: async () => { throw new Error('none'); } });
console.log('ready');
for (let turn = 0; ; turn += 1) {
  await vault.stage('acme', Buffer.from('token-next-' + turn));
  await vault.promote('acme');
  await vault.put('acme', Buffer.from('token-put-' + turn));
  await vault.put('second', Buffer.from('token-second-' + turn));
  await vault.remove('second');
}`;

test('killed between anything, a license has the old token or the new one, whole [A15]', async () => {
  const folder = await newFolder();
  await (await open(folder)).put('acme', bytes('token-first'));
  let changed = 0;
  for (let round = 0; round < ROUNDS; round += 1) {
    const child = spawn(
      process.execPath,
      ['--input-type=module', '-e', VICTIM, new URL('./vault.ts', import.meta.url).href, folder],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    );
    await once(child.stdout, 'data');
    await systemClock.sleep(1 + (round * 56) / ROUNDS);
    child.kill('SIGKILL');
    await once(child, 'exit');
    const vault = await open(folder);
    const [current, next] = vault.describe('acme').slots;
    assert.equal(current?.slot, 'current');
    const token = await sent(vault, 'acme');
    assert.match(token ?? '', /^Bearer token-(first|next-\d+|put-\d+)$/);
    if (token !== 'Bearer token-first') changed += 1;
    if (next !== undefined) assert.match((await sent(vault, 'acme', 'next')) ?? '', /^Bearer token-next-\d+$/);
    if (vault.list().length > 1) assert.match((await sent(vault, 'second')) ?? '', /^Bearer token-second-\d+$/);
    assert.ok(!(await readdir(folder)).some((name) => name.endsWith('.new')));
    vault.close();
  }
  assert.ok(changed > 0, 'the victims got to write something');
});
