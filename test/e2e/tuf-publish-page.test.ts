// Runs every command of docs/publish.md as it stands there: real web servers, real repositories, and behind the daemon's real
// API the vendors' own code, without a host.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { makeHttpFetch } from '../../src/base/http-fetch.ts';
import { silentLog } from '../../src/base/log.ts';
import { tryCommand } from '../../src/base/run-command.ts';
import { makeVendorRegistry, type VendorRegistry } from '../../src/vendor/registry.ts';
import { type FakeDaemon, startFakeDaemon } from '../fakes/daemon.ts';
import { makeFakeService } from '../fakes/service.ts';

const ROOT = join(import.meta.dirname, '../..');
const PORT = 30_000 + (process.pid % 10_000);
/** In the place of the page's own folder: a reader may be at it on this machine, and an earlier run may have been cut off. */
const HOME = `/var/tmp/my-software-${process.pid}`;
const TIMEOUT_MS = 400_000;

async function commandsOfPage(): Promise<string> {
  const page = await readFile(join(ROOT, 'docs/publish.md'), 'utf8');
  const blocks = [...page.matchAll(/^```sh\n([\s\S]*?)^```$/gm)].map((match) => match[1] ?? '');
  assert.ok(blocks.length >= 15, `the page has only ${blocks.length} blocks of commands`);
  const commands = blocks.join('\n').replaceAll('/var/tmp/my-software', HOME);
  return commands.replaceAll(':8480', `:${PORT}`).replaceAll(':8481', `:${PORT + 1}`);
}

/** A daemon whose vendors are real. */
async function startVendorDaemon(t: TestContext): Promise<{ daemon: FakeDaemon; registry: VendorRegistry }> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-publish-'));
  const daemon = await startFakeDaemon();
  const http = makeHttpFetch({ clock: systemClock });
  const terms = { clock: systemClock, metadataAgeMaxMs: 86_400_000, log: silentLog };
  const registry = await makeVendorRegistry([], { folder: join(folder, 'vendors'), http, ...terms });
  daemon.reset({
    ...makeFakeService(),
    addVendor: async (config) => {
      await registry.add(config);
      const [report] = await registry.refresh(config.name, {});
      return report ?? assert.fail('the vendor was just added');
    },
    listVendors: async () => registry.reports(),
    checkVendor: async (name) => await registry.refresh(name, {}),
    vendorOffers: async (name) => await registry.get(name).offers(),
  });
  t.after(async () => {
    await registry.close();
    await http.close();
    await daemon.close();
    await rm(folder, { recursive: true, force: true });
  });
  return { daemon, registry };
}

/** Ends what a page that broke off left behind, by the process ids that it wrote. */
async function sweep(): Promise<void> {
  for (const name of ['httpd.pid', 'mirror.pid']) {
    const pid = /^\d+/.exec(await readFile(join(HOME, name), 'utf8').catch(() => ''))?.[0];
    if (pid !== undefined) await tryCommand(['kill', '-9', pid]);
  }
  await rm(HOME, { recursive: true, force: true });
}

test('the page "Publish your own software" does what it says, command by command [X3]', async (t) => {
  const { daemon, registry } = await startVendorDaemon(t);
  const folder = await mkdtemp(join(tmpdir(), 'pratique-page-'));
  t.after(async () => {
    await sweep();
    await rm(folder, { recursive: true });
  });
  const log = join(folder, 'log');
  // To a file: what runs in the background would hold a pipe open.
  const script = `exec >${log} 2>&1\n${await commandsOfPage()}`;
  const { exitCode } = await tryCommand(['sh', '-eu', '-c', script], {
    cwd: ROOT,
    env: daemon.env,
    timeoutMs: TIMEOUT_MS,
  });
  const said = await readFile(log, 'utf8');
  assert.equal(exitCode, 0, `a command of the page failed; the output until then:\n${said}`);
  const inOrder = [
    /hello +1\.0\.0 +\d+ B +hello\/hello-1\.0\.0\.tar\.gz/,
    /you may sign: root, targets, snapshot, timestamp/,
    /The repository is made/,
    /root +1 +\S+ +2 of 3: /,
    /targets needs 1 of its 1 keys, none is here; missing: [0-9a-f]{8} \(looked in \S+online\)/,
    /that ended with 2/,
    /The repository offers 1 releases/,
    /root\.json\nsnapshot\.json\ntargets\.json\ntimestamp\.json/,
    /shop is signed by 1 of 1 keys/,
    /clients see it after the next `publish refresh`/,
    /product-shop +2 \(not visible yet\) .* shop\/\* +1/,
    /Nothing new; everything is signed again/,
    /The root key [0-9a-f]{8} is replaced by [0-9a-f]{8} \(\S+usb-bob-2\/root\.pem\)/,
    /The timestamp key \S+ is replaced/,
    /The snapshot key \S+ is replaced/,
    /product-shop needs 1 of its 1 keys, none is here/,
    /the old key is worth nothing: 2/,
    /you may sign: targets, snapshot, timestamp, product-shop/,
    /shop +yes +\d{4}-/,
    /hello +1\.0\.0 +fix\s+shop +1\.0\.0 +fix/,
    /shop +yes +\d{4}-/,
    /vendor-ill\/unreachable: none of 2 mirrors could be used: http:\S+\/metadata: .*; http:/,
    /no mirror is left: 6/,
    /shop +tuf +yes /,
  ];
  let rest = said;
  for (const wanted of inOrder) {
    const at = rest.search(wanted);
    assert.ok(at >= 0, `${wanted} does not follow; the whole output:\n${said}`);
    rest = rest.slice(at + (wanted.exec(rest.slice(at))?.[0].length ?? 0));
  }
  // The host that began with the first root has followed all rotations, and still offers what it verified.
  const offers = await registry.get('shop').offers();
  assert.deepEqual(
    offers.map(({ product, version }) => `${product} ${version}`),
    ['hello 1.0.0', 'shop 1.0.0'],
  );
  await assert.rejects(stat(HOME), 'the page leaves its folder behind');
});
