// The demo product's bundles: what a publisher takes, and how their entry scripts end.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, readlink, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { tryCommand } from '../src/base/run-command.ts';
import { readDescription } from '../src/vendor/tuf/description.ts';
import { HELLO_BEHAVIOURS, makeHelloBundle, seedHello } from './hello-product.ts';

let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-hello-'));
});
after(async () => {
  await rm(folder, { recursive: true, force: true });
});

test('every behaviour makes a release that a publisher accepts', async () => {
  for (const behaviour of HELLO_BEHAVIOURS) {
    const bundle = await makeHelloBundle({ version: '1.1.0', folder: join(folder, behaviour), behaviour });
    const description = await readDescription(bundle.folder);
    assert.equal(description.product, 'hello');
    assert.equal(description.version, '1.1.0');
    assert.equal(description.install.action, 'bundle');
    const mayReboot = description.install.action === 'bundle' && description.install.reboot === true;
    assert.equal(mayReboot, behaviour === 'reboot');
  }
});

test('the install entry prepares the page of its own version, from any folder', async () => {
  const bundle = await makeHelloBundle({ version: '1.2.0', folder: join(folder, 'page'), behaviour: 'ok' });
  const result = await tryCommand([join(bundle.folder, 'files/bin/install')], { cwd: '/' });
  assert.equal(result.exitCode, 0, result.stderr);
  assert.match(await readFile(join(bundle.folder, 'files/www/index.html'), 'utf8'), /hello 1\.2\.0/);
});

test('a failing install and a failing check say why and end with 1', async () => {
  for (const [behaviour, entry] of [
    ['install-fails', 'install'],
    ['check-fails', 'check'],
  ] as const) {
    const bundle = await makeHelloBundle({ version: '1.3.0', folder: join(folder, `bad-${behaviour}`), behaviour });
    const result = await tryCommand([join(bundle.folder, 'files/bin', entry)]);
    assert.equal(result.exitCode, 1);
    assert.match(result.stderr, /^hello: /);
  }
});

test('the seeded version is stale, current and recorded as the agent records it [A6]', async () => {
  const root = join(folder, 'root');
  await seedHello(root);
  assert.equal(await readlink(join(root, 'opt/hello/current')), 'versions/1.0.0');
  assert.equal(await readFile(join(root, 'opt/hello/current/www/version'), 'utf8'), '1.0.0\n');
  const record = JSON.parse(await readFile(join(root, 'var/lib/pratique/products/hello.json'), 'utf8'));
  assert.deepEqual(record, { product: 'hello', version: '1.0.0', prefix: '/opt/hello', digest: null });
});
