// Several vendors side by side, one of them broken.
import assert from 'node:assert/strict';
import { copyFile, mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { systemClock } from '../base/clock.ts';
import { type HttpFetch, makeHttpFetch } from '../base/http-fetch.ts';
import { silentLog } from '../base/log.ts';
import type { RunId, VmId } from '../model/ids.ts';
import { DEFAULT_POLICY } from '../model/policy.ts';
import { makePlan } from '../update/planner.ts';
import { makeVendorRegistry, type VendorConfig, type VendorDeps, type VendorRegistry } from './registry.ts';
import { publishFolder } from './tuf/publish.ts';

let base: string;
let http: HttpFetch;
let good: Extract<VendorConfig, { readonly kind: 'tuf' }>;

before(async () => {
  base = await mkdtemp(join(tmpdir(), 'pratique-registry-'));
  http = makeHttpFetch({ clock: systemClock });
  const source = join(base, 'release');
  await mkdir(join(source, 'files'), { recursive: true });
  await writeFile(join(source, 'files', 'a'), 'a');
  const install = { action: 'bundle', prefix: '/opt/a' };
  await writeFile(
    join(source, 'release.json'),
    JSON.stringify({ product: 'a', version: '1.0.0', kind: 'fix', install }),
  );
  const repository = join(base, 'web');
  const { rootPath } = await publishFolder({ source, repository, keys: join(base, 'keys'), clock: systemClock });
  good = {
    kind: 'tuf',
    name: 'good',
    metadataUrl: pathToFileURL(join(repository, 'metadata')).href,
    targetsUrl: pathToFileURL(join(repository, 'targets')).href,
    rootPath,
  };
});
after(async () => {
  await http.close();
  await rm(base, { recursive: true });
});

function deps(name: string): VendorDeps {
  return { folder: join(base, name), http, clock: systemClock, metadataAgeMaxMs: 86_400_000, log: silentLog };
}

test('a broken vendor is shown with its trouble and stops no other', async () => {
  const rootPath = join(base, 'missing-root.json');
  const broken: VendorConfig = { ...good, name: 'broken', rootPath };
  const gone: VendorConfig = { ...good, name: 'gone', metadataUrl: pathToFileURL(join(base, 'nowhere')).href };
  const registry = await makeVendorRegistry([broken, good, gone], deps('one'));
  const reports = await registry.refresh(null, {});
  assert.deepEqual(
    reports.map(({ vendor, isFresh, trouble }) => [vendor, isFresh, trouble?.code ?? null]),
    [
      ['broken', false, 'usage/tuf-root'],
      ['good', true, null],
      ['gone', false, 'vendor-ill/http-404'],
    ],
  );
  assert.throws(() => registry.get('broken'), { code: 'usage/tuf-root' });
  assert.equal((await registry.get('good').offers()).length, 1);
  assert.equal(registry.opened().length, 2);
  // Mended while we run: the next refresh opens it.
  await copyFile(good.rootPath, rootPath);
  const [mended] = await registry.refresh('broken', {});
  assert.equal(mended?.trouble, null);
  await registry.close();
});

test('a vendor that cannot be opened is still one to plan with: nobody is up to date without it [A11 X3]', async () => {
  const rootPath = join(base, 'late-root.json');
  const registry = await makeVendorRegistry([{ ...good, name: 'broken', rootPath }, good], deps('plan'));
  await registry.refresh('good', {});
  assert.equal(await planOf(registry), 'broken: vendor-unavailable');
  // Mended while we run: the next plan opens it, also if several are made at once.
  await copyFile(good.rootPath, rootPath);
  assert.deepEqual(await Promise.all([planOf(registry), planOf(registry)]), ['0 items', '0 items']);
  assert.equal(registry.opened().length, 2);
  await registry.close();
});

/** What a VM with the product's newest release is told. */
async function planOf(registry: VendorRegistry): Promise<string> {
  const answer = await makePlan({
    // The casts hold: both texts have the form of their id.
    ...{ vm: 'web-1' as VmId, run: 'a'.repeat(32) as RunId, policy: DEFAULT_POLICY, vendors: registry.all() },
    clock: { ...systemClock, sleep: async () => {} },
    inventory: {
      ...{ os: { id: 'tiny', versionId: '1', arch: 'amd64' }, config: [], freeBytes: 0, rebootRequired: false },
      ...{ agent: { version: '0.1.0', digest: null }, abilities: { drives: [], compressions: ['gzip'] } },
      ...{
        lastShutdown: null,
        products: [{ ecosystem: 'bundle', product: 'a', version: '1.0.0', state: 'installed' }],
      },
    },
  });
  if (answer.kind === 'plan') return `${answer.plan.items.length} items`;
  const { reason } = answer;
  return `${'vendor' in reason ? reason.vendor : ''}: ${reason.kind}`;
}

test('names are unique and safe, unknown ones are named, and removal forgets the state', async () => {
  const registry = await makeVendorRegistry([], deps('two'));
  await registry.add(good);
  await assert.rejects(registry.add(good), { code: 'conflict/vendor' });
  await assert.rejects(registry.add({ ...good, name: '../climb' }), { code: 'usage/vendor-name' });
  assert.throws(() => registry.get('unknown'), { code: 'not-found/vendor' });
  await assert.rejects(registry.refresh('unknown', {}), { code: 'not-found/vendor' });
  await registry.refresh('good', {});
  assert.deepEqual(await readdir(join(base, 'two')), ['good']);
  await registry.remove('good');
  assert.deepEqual(await readdir(join(base, 'two')), []);
  assert.deepEqual(registry.reports(), []);
  await registry.close();
});
