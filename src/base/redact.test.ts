// Secrets of every form, at every depth, are taken out of log lines and error texts; other words are left alone.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { describeError, messageChain, PratiqueError } from './errors.ts';
import { makeLog } from './log.ts';
import { REDACTED, redactText, rememberSecret, withoutCredentials } from './redact.ts';

const SECRET = 's3cr3t-V4lue.x';

test('a secret is found by its form wherever one writes it', () => {
  const texts = [
    `https://ann:${SECRET}@updates.example/metadata`,
    `http://${SECRET}@proxy.example:3128`,
    `https://ann:p@ss${SECRET}@updates.example`,
    `Authorization: Bearer ${SECRET}`,
    `authorization=Basic ${SECRET}`,
    `{"authorization":"Bearer ${SECRET}"}`,
    `Proxy-Authorization: Basic ${SECRET}`,
    `the header Bearer ${SECRET} was refused`,
    `https://updates.example/x?a=1&access_token=${SECRET}&b=2`,
    `https://updates.example/x?X-Amz-Signature=${SECRET}`,
    `--password=${SECRET}`,
    JSON.stringify({ deep: [{ er: { license_token: SECRET } }] }),
    JSON.stringify({ message: JSON.stringify({ password: `a"${SECRET}` }) }),
    JSON.stringify({ 'private-key': SECRET, ApiKey: SECRET, client_secret: SECRET }),
    `-----BEGIN PRIVATE KEY-----\n${SECRET}\n-----END PRIVATE KEY-----`,
    JSON.stringify(`-----BEGIN ED25519 PRIVATE KEY-----\n${SECRET}\n`),
    `deb http://ann:${SECRET}@mirror.example/debian bookworm main`,
    `Acquire::http::Proxy "http://ann:${SECRET}@proxy.example";`,
  ];
  for (const text of texts) {
    const clean = redactText(text);
    assert.ok(!clean.includes(SECRET), clean);
    assert.ok(clean.includes(REDACTED), clean);
  }
});

test('what is no secret stays: hosts, paths, versions, mail addresses, words about tokens', () => {
  const texts = [
    'https://updates.example/metadata/@scope/timestamp.json',
    'ann@example.org wrote: the token was refused, the password too',
    'bundle/hello 1.1.0 failed: its check ended with exit code 1',
    '{"vendor":"acme","tokens":3,"state":"connected"}',
    'basic trust in bearer tokens',
    `sha256 ${'a'.repeat(64)}`,
  ];
  for (const text of texts) assert.equal(redactText(text), text);
});

test('a line of JSON stays a line of JSON', () => {
  const line = JSON.stringify({ url: `https://ann:${SECRET}@x.example/`, token: `a\\"b${SECRET}`, after: 'seen' });
  const parsed = JSON.parse(redactText(line));
  assert.equal(parsed.after, 'seen');
  assert.equal(parsed.token, REDACTED);
});

test('a secret without a form is found as long as somebody knows it, in URLs and JSON too', () => {
  const odd = 'Z9 "x/y" & more';
  const first = rememberSecret(odd);
  const second = rememberSecret(odd);
  for (const text of [odd, encodeURIComponent(odd), JSON.stringify({ said: odd })])
    assert.ok(!redactText(text).includes('Z9'), redactText(text));
  first.forget();
  first.forget();
  assert.equal(redactText(odd), REDACTED, 'the other one still knows it');
  second.forget();
  assert.equal(redactText(odd), odd);
  assert.equal(rememberSecret('abc').isKept, false);
});

test('a log line holds no secret, in whatever field, error, cause or message it stands', () => {
  const lines: string[] = [];
  const log = makeLog('debug', { write: (line) => lines.push(line) });
  const cause = Object.assign(new Error(`connecting to http://ann:${SECRET}@proxy.example`), {
    input: `http://ann:${SECRET}@proxy`,
  });
  const { forget } = rememberSecret('plainword9');
  log.error({ err: new Error('outer', { cause }), a: { b: { c: { d: { token: SECRET } } } } }, `GET ?token=${SECRET}`);
  log.child({ authorization: `Bearer ${SECRET}` }).warn({ list: [{ password: SECRET }], said: 'plainword9' }, 'x');
  forget();
  assert.equal(lines.length, 2);
  for (const line of lines) {
    assert.ok(!line.includes(SECRET) && !line.includes('plainword9'), line);
    assert.doesNotThrow(() => JSON.parse(line));
    assert.ok(line.endsWith('\n'));
  }
});

test('an error text holds no secret of its causes', () => {
  const cause = new Error(`answered 403 to https://ann:${SECRET}@updates.example/?sig=${SECRET}`);
  const error = new PratiqueError('vendor-ill/http', 'asking acme', { cause, next: 'wait' });
  assert.equal(
    describeError(error),
    `asking acme: answered 403 to https://${REDACTED}@updates.example/?sig=${REDACTED}; wait`,
  );
  assert.ok(!messageChain(error).includes(SECRET));
});

test('a long text without a secret costs little', () => {
  const started = process.hrtime.bigint();
  redactText('a'.repeat(400_000));
  redactText('"token'.repeat(50_000));
  redactText('a-a_'.repeat(100_000));
  redactText('://'.repeat(100_000));
  assert.ok(Number(process.hrtime.bigint() - started) / 1e6 < 2_000);
});

test('a program of another user gets an environment without credentials', () => {
  const env = {
    PATH: '/bin',
    HOME: '/root',
    LANG: 'C',
    https_proxy: 'http://p',
    MY_TOKEN: 'x',
    MIRROR: `http://a:${SECRET}@b/`,
  };
  assert.deepEqual(withoutCredentials({ ...env, NOTHING: undefined }), { PATH: '/bin', HOME: '/root', LANG: 'C' });
});

test('a long text of anything is looked through in a moment: a guest or a vendor may have written it', () => {
  const hostile = ['\\', '"', '\\"token\\":\\"', 'a-', '-----BEGIN ', 'authorization ', 'a://', ' token', 'bearer '];
  for (const piece of hostile) {
    const startMs = performance.now();
    redactText(piece.repeat(200_000 / piece.length));
    const tookMs = performance.now() - startMs;
    assert.ok(tookMs < 2_000, `${JSON.stringify(piece)}: ${tookMs} ms`);
  }
});
