// Publishing with threshold keys, delegation and rotation; and a publish that is cut off at every single write.
import assert from 'node:assert/strict';
import { watch } from 'node:fs';
import { chmod, copyFile, cp, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, afterEach, before, beforeEach, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { type Clock, systemClock } from '../../base/clock.ts';
import { digestOf } from '../../base/digest.ts';
import { type HttpFetch, makeHttpFetch } from '../../base/http-fetch.ts';
import { silentLog } from '../../base/log.ts';
import type { Vendor } from '../vendor.ts';
import { delegateProduct, requestDelegation, revokeProduct } from './delegate.ts';
import { makeTufVendor } from './index.ts';
import { openKeyRing, signWith } from './keys.ts';
import { Metadata, MetadataKind } from './models.ts';
import { type PublishOptions, publishFolder, refreshRepository } from './publish.ts';
import { initRepository, rotateKey } from './publish-root.ts';
import { showRepository } from './show.ts';

const DAY_MS = 86_400_000;
const later = (days: number): Clock => ({ ...systemClock, nowMs: () => systemClock.nowMs() + days * DAY_MS });

let base: string;
let http: HttpFetch;

before(() => {
  http = makeHttpFetch({ clock: systemClock });
});
after(async () => await http.close());
beforeEach(async () => {
  base = await mkdtemp(join(tmpdir(), 'pratique-publish-'));
});
afterEach(async () => await rm(base, { recursive: true }));

const at = (...parts: readonly string[]): string => join(base, ...parts);
const web = (): string => at('web');
const clock = systemClock;

async function release(product: string, version: string): Promise<string> {
  const folder = at('releases', `${product}-${version}`);
  await mkdir(join(folder, 'files', 'bin'), { recursive: true });
  const install = { action: 'bundle', prefix: `/opt/${product}` };
  await writeFile(join(folder, 'release.json'), JSON.stringify({ product, version, kind: 'fix', install }));
  await writeFile(join(folder, 'files', 'bin', 'run'), version);
  return folder;
}

async function publish(product: string, version: string, options: Partial<PublishOptions> = {}) {
  const source = await release(product, version);
  return await publishFolder({ source, repository: web(), keys: at('keys'), clock, compression: 'none', ...options });
}

/** What a client sees that has trusted the first root from the beginning; `state` is what it knows already. */
async function seen(
  repository: string,
  state: string,
  terms: { readonly clock?: Clock } = {},
): Promise<readonly string[]> {
  const vendor = await openVendor(repository, state, terms);
  await vendor.refresh({});
  const offers = await vendor.offers();
  await vendor.close();
  return offers.map(({ product, version }) => `${product} ${version}`);
}

async function openVendor(repository: string, state: string, terms: { readonly clock?: Clock }): Promise<Vendor> {
  return await makeTufVendor({
    name: 'acme',
    metadataUrl: pathToFileURL(join(repository, 'metadata')).href,
    targetsUrl: pathToFileURL(join(repository, 'targets')).href,
    rootPath: at('root.json'),
    folder: state,
    http,
    clock,
    metadataAgeMaxMs: 400 * DAY_MS,
    log: silentLog,
    ...terms,
  });
}

const trustFirstRoot = async () => await copyFile(join(web(), 'metadata', '1.root.json'), at('root.json'));

/** Three root keys in three places, two of which must sign; the others where they are used. */
async function initThresholds() {
  const published = await initRepository({
    repository: web(),
    keys: [at('online')],
    clock,
    roleFolders: { root: [at('a'), at('b'), at('c')], targets: [at('office-1'), at('office-2')] },
    thresholds: { root: 2, targets: 2 },
    expiresDays: { timestamp: 7, targets: 100 },
  });
  await trustFirstRoot();
  return published;
}

const OFFICE = () => [at('online'), at('office-1'), at('office-2')];

test('two of three root keys and two of two targets keys: what is missing is named, and nothing changes without it [X3]', async () => {
  await initThresholds();
  const before = await readFile(join(web(), 'metadata', 'timestamp.json'));
  const one = publish('hello', '1.0.0', { keys: [at('online'), at('office-1')] });
  await assert.rejects(one, {
    code: 'usage/tuf-key',
    message: /^targets needs 2 of its 2 keys, 1 here .*office-1.*; missing: [0-9a-f]{8} /,
  });
  const rotate = rotateKey({
    repository: web(),
    keys: [at('a'), at('online')],
    clock,
    role: 'timestamp',
    keyId: null,
    into: null,
  });
  await assert.rejects(rotate, { code: 'usage/tuf-key', message: /^root needs 2 of its 3 keys, 1 here/ });
  assert.deepEqual(await readFile(join(web(), 'metadata', 'timestamp.json')), before);
  assert.deepEqual((await readdir(at('online'))).sort(), ['snapshot.pem', 'timestamp.pem'], 'no stray key is left');
  await publish('hello', '1.0.0', { keys: OFFICE() });
  assert.deepEqual(await seen(web(), at('state')), ['hello 1.0.0']);
});

test('a lost root key is replaced by the two that are left, and clients follow [X3]', async () => {
  await initThresholds();
  await publish('hello', '1.0.0', { keys: OFFICE() });
  assert.deepEqual(await seen(web(), at('state')), ['hello 1.0.0']);
  const { roles } = await showRepository({ repository: web(), keys: [at('b')], clock });
  const lost = roles[0]?.keys.find(({ path }) => path !== null)?.id ?? assert.fail('b holds a root key');
  await rm(at('b'), { recursive: true });
  const place = { repository: web(), clock, role: 'root' as const, into: at('b2') };
  await assert.rejects(rotateKey({ ...place, keys: [at('a'), at('c'), at('online')], keyId: null }), /has 3 keys: /);
  const rotated = await rotateKey({ ...place, keys: [at('a'), at('c'), at('online')], keyId: lost.slice(0, 8) });
  assert.equal(rotated.publication.versions.root, 2);
  assert.equal(rotated.key.path, at('b2', 'root.pem'));
  await publish('hello', '2.0.0', { keys: OFFICE() });
  assert.deepEqual(await seen(web(), at('state')), ['hello 2.0.0']);
  assert.deepEqual(await seen(web(), at('new-state')), ['hello 2.0.0']);
  // The new key counts: with one old one it signs the next root.
  await rotateKey({
    ...place,
    role: 'timestamp',
    keys: [at('a'), at('b2'), at('online')],
    keyId: null,
    into: at('online'),
  });
  assert.deepEqual(await seen(web(), at('state')), ['hello 2.0.0']);
});

test('a key that is replaced while the old one is gone still ends with a repository that works', async () => {
  await publish('hello', '1.0.0');
  await trustFirstRoot();
  assert.deepEqual(await seen(web(), at('state')), ['hello 1.0.0']);
  for (const role of ['timestamp', 'snapshot', 'targets'] as const) {
    await rm(at('keys', `${role}.pem`));
    await rotateKey({ repository: web(), keys: [at('keys')], clock, role, keyId: null, into: null });
  }
  await publish('hello', '2.0.0');
  assert.deepEqual(await seen(web(), at('state')), ['hello 2.0.0']);
});

test('refresh needs the online keys only, touches the snapshot when there is news, and warns of what grows old', async () => {
  await initThresholds();
  await publish('hello', '1.0.0', { keys: OFFICE() });
  const place = { repository: web(), keys: [at('online')] };
  const first = await refreshRepository({ ...place, clock });
  const second = await refreshRepository({ ...place, clock });
  assert.deepEqual(
    [second.versions.timestamp, second.versions.snapshot],
    [first.versions.timestamp + 1, first.versions.snapshot],
  );
  assert.deepEqual(second.warnings, []);
  // Seven days as `init` said, not the thirty of the default.
  assert.ok(Date.parse(second.expires) < systemClock.nowMs() + 8 * DAY_MS);
  const old = await refreshRepository({ ...place, clock: later(90) });
  assert.match(old.warnings.join(), /^targets expires at \S+: sign it again with its keys$/);
  assert.deepEqual(await seen(web(), at('state'), { clock: later(90) }), ['hello 1.0.0']);
  const older = await refreshRepository({ ...place, clock: later(310) });
  assert.equal(older.versions.snapshot, second.versions.snapshot + 1, 'the snapshot came into its last part');
  await assert.rejects(refreshRepository({ ...place, keys: [at('a')], clock }), { code: 'usage/tuf-key' });
});

async function delegateTeam(folder = 'team', options: { readonly repository?: string } = {}) {
  const request = at(`${folder}.json`);
  const repository = options.repository ?? null;
  await requestDelegation({ product: 'team', keys: [at(folder)], threshold: 1, repository, out: request, clock });
  return await delegateProduct({ repository: web(), keys: [at('keys')], clock, request });
}

test('a team signs its product with its own key, and nothing else [X3]', async () => {
  await publish('hello', '1.0.0');
  await trustFirstRoot();
  await assert.rejects(publish('team', '1.0.0', { product: 'team' }), { code: 'usage/tuf-delegation' });
  const delegated = await delegateTeam();
  assert.deepEqual(delegated.paths, ['team/*']);
  const mine = { product: 'team', keys: [at('team')] };
  const published = await publish('team', '1.0.0', mine);
  assert.equal(published.isVisible, false);
  assert.deepEqual(await seen(web(), at('state')), ['hello 1.0.0']);
  await refreshRepository({ repository: web(), keys: [at('keys')], clock });
  assert.deepEqual(await seen(web(), at('state')), ['hello 1.0.0', 'team 1.0.0']);
  await assert.rejects(publish('hello', '6.6.6', mine), { code: 'usage/tuf-delegation' });
  await assert.rejects(publish('hello', '6.6.6', { keys: [at('team')] }), { code: 'usage/tuf-key' });
  // The owner's own publish keeps what the team has signed, also what nobody has seen yet.
  await publish('team', '1.1.0', mine);
  await publish('hello', '1.1.0');
  assert.deepEqual(await seen(web(), at('state')), ['hello 1.1.0', 'team 1.1.0']);
});

test("a team's stolen key is replaced by a new request that takes over what is published; a revoked product is gone [X3]", async () => {
  await publish('hello', '1.0.0');
  await trustFirstRoot();
  await delegateTeam();
  const publishTeam = async (version: string, folder: string) =>
    await publish('team', version, { product: 'team', keys: [at(folder), at('keys')] });
  await publishTeam('1.0.0', 'team');
  assert.deepEqual(await seen(web(), at('state')), ['hello 1.0.0', 'team 1.0.0']);
  await assert.rejects(delegateTeam('team-2'), {
    code: 'usage/tuf-delegation',
    message: /version 1 .* clients have 2/,
  });
  await delegateTeam('team-3', { repository: web() });
  await assert.rejects(publishTeam('6.6.6', 'team'), { code: 'usage/tuf-key' });
  await publishTeam('1.1.0', 'team-3');
  assert.deepEqual(await seen(web(), at('state')), ['hello 1.0.0', 'team 1.1.0']);
  await revokeProduct({ repository: web(), keys: [at('keys')], clock, product: 'team' });
  assert.deepEqual(await seen(web(), at('state')), ['hello 1.0.0']);
  await assert.rejects(revokeProduct({ repository: web(), keys: [at('keys')], clock, product: 'team' }), {
    code: 'usage/tuf-delegation',
  });
});

test('a request that was altered, or whose keys did not sign it, is refused and changes nothing', async () => {
  await publish('hello', '1.0.0');
  const place = { repository: web(), keys: [at('keys')], clock };
  const request = at('request.json');
  await requestDelegation({ product: 'team', keys: [at('team')], threshold: 1, repository: null, out: request, clock });
  const text = await readFile(request, 'utf8');
  assert.ok(!text.includes('PRIVATE'));
  const before = await readFile(join(web(), 'metadata', 'timestamp.json'));
  const spoilt: readonly string[] = [
    text.replaceAll('"team"', '"hello"'),
    text.replace(/"sig":"../, '"sig":"00'),
    text.replace('"threshold":1', '"threshold":2'),
    text.slice(0, 100),
    '{}',
    '[]',
  ];
  for (const each of spoilt) {
    await writeFile(request, each);
    await assert.rejects(delegateProduct({ ...place, request }), { code: 'usage/tuf-delegation' }, each.slice(0, 60));
  }
  await assert.rejects(delegateProduct({ ...place, request: at('nowhere') }), { code: 'usage/tuf-delegation' });
  assert.deepEqual(await readFile(join(web(), 'metadata', 'timestamp.json')), before);
  const tooMany = requestDelegation({
    product: 'x',
    keys: [at('x')],
    threshold: 2,
    repository: null,
    out: request,
    clock,
  });
  await assert.rejects(tooMany, { code: 'usage/tuf-key' });
});

/** A request of `thief` that gives its key the id of another team's, signed under that id. */
async function stealId(id: string, request: string): Promise<void> {
  await requestDelegation({
    product: 'thief',
    keys: [at('thief')],
    threshold: 1,
    repository: null,
    out: request,
    clock,
  });
  const { signed } = JSON.parse(await readFile(request, 'utf8'));
  const asked = signed['x-pratique-delegation'];
  asked.keys = { [id]: Object.values(asked.keys)[0] };
  const metadata = Metadata.fromJSON(MetadataKind.Targets, { signed, signatures: [] });
  const [key] = (await openKeyRing([at('thief')])).all();
  assert.ok(key !== undefined);
  signWith({ ...key, id }, metadata);
  await writeFile(request, JSON.stringify(metadata.toJSON()));
}

test("a request cannot put its key in the place of another team's by taking its id [X3]", async () => {
  await publish('hello', '1.0.0');
  await delegateTeam();
  const [victim] = (await openKeyRing([at('team')])).all();
  const request = at('thief.json');
  await stealId(victim?.id ?? '', request);
  const place = { repository: web(), keys: [at('keys')], clock };
  await assert.rejects(delegateProduct({ ...place, request }), {
    code: 'usage/tuf-delegation',
    message: /the id of one of its keys is not that key's/,
  });
  // With its own id alone the same team is welcome, and the other one can still sign.
  await requestDelegation({
    product: 'thief',
    keys: [at('thief')],
    threshold: 1,
    repository: null,
    out: request,
    clock,
  });
  assert.equal((await delegateProduct({ ...place, request })).product, 'thief');
  assert.equal((await publish('team', '1.0.0', { product: 'team', keys: [at('team')] })).isVisible, false);
});

test('no key file is overwritten, each is private, and none is taken that others can read', async () => {
  await publish('hello', '1.0.0');
  await publish('hello', '1.1.0', { rotate: ['timestamp'] });
  assert.deepEqual((await readdir(at('keys'))).sort(), [
    'root.pem',
    'snapshot.pem',
    'targets.pem',
    'timestamp-2.pem',
    'timestamp.pem',
  ]);
  for (const name of await readdir(at('keys'))) assert.equal((await stat(at('keys', name))).mode & 0o777, 0o600, name);
  await chmod(at('keys', 'timestamp.pem'), 0o640);
  await assert.rejects(publish('hello', '1.2.0'), { code: 'usage/tuf-key', message: /readable by others/ });
  await chmod(at('keys', 'timestamp.pem'), 0o600);
  await writeFile(at('keys', 'timestamp.pem'), 'nothing', { mode: 0o600 });
  await assert.rejects(publish('hello', '1.2.0'), { code: 'usage/tuf-key', message: /no ed25519 private key/ });
});

test('what clients would refuse to read is not published', async () => {
  const many = { targets: Array.from({ length: 33 }, () => at('many')) };
  const place = { repository: web(), keys: [at('online')], clock, roleFolders: many };
  await assert.rejects(initRepository(place), { code: 'usage/tuf-too-many' });
  await assert.rejects(stat(join(web(), 'metadata', 'timestamp.json')));
  await publish('hello', '1.0.0');
  assert.deepEqual((await readdir(join(web(), 'metadata'))).length, 4);
});

test('one publisher at a time: a lock that is held is respected, one whose holder is gone is not', async () => {
  await publish('hello', '1.0.0');
  const lock = join(web(), '.lock');
  await writeFile(lock, `${process.pid}\n`);
  await assert.rejects(publish('hello', '1.1.0'), { code: 'conflict/tuf-repository' });
  await writeFile(lock, '99999999\n');
  await publish('hello', '1.1.0');
  await assert.rejects(stat(lock));
});

test('init does not take over a repository, and refuses thresholds that cannot be met', async () => {
  await publish('hello', '1.0.0');
  const place = { repository: web(), keys: [at('keys')], clock };
  await assert.rejects(initRepository(place), { code: 'conflict/tuf-repository' });
  const other = { ...place, repository: at('other') };
  await assert.rejects(initRepository({ ...other, thresholds: { root: 2 } }), { code: 'usage/tuf-key' });
  await assert.rejects(initRepository({ ...other, keys: [] }), { code: 'usage/tuf-key' });
  await assert.rejects(refreshRepository({ repository: at('none'), keys: [at('keys')], clock }), {
    code: 'usage/tuf-repository',
  });
});

type Step = {
  readonly name: string;
  readonly run: () => Promise<unknown>;
  readonly before: readonly string[];
  readonly after: readonly string[];
};

const rotating = (role: 'root' | 'targets' | 'snapshot' | 'timestamp'): Step => ({
  name: `rotating the ${role} key`,
  run: async () => await rotateKey({ repository: web(), keys: [at('keys')], clock, role, keyId: null, into: null }),
  before: ['hello 1.0.0', 'team 1.0.0'],
  after: ['hello 1.0.0', 'team 1.0.0'],
});

const STEPS: readonly Step[] = [
  {
    name: 'publishing a release',
    run: async () => await publish('hello', '2.0.0'),
    before: ['hello 1.0.0', 'team 1.0.0'],
    after: ['hello 2.0.0', 'team 1.0.0'],
  },
  {
    name: "publishing a team's release",
    run: async () => await publish('team', '2.0.0', { product: 'team', keys: [at('team'), at('keys')] }),
    before: ['hello 1.0.0', 'team 1.0.0'],
    after: ['hello 1.0.0', 'team 2.0.0'],
  },
  {
    name: 'publishing with all keys rotated',
    run: async () => await publish('hello', '2.0.0', { rotate: ['root', 'targets', 'snapshot', 'timestamp'] }),
    before: ['hello 1.0.0', 'team 1.0.0'],
    after: ['hello 2.0.0', 'team 1.0.0'],
  },
  rotating('root'),
  rotating('targets'),
  rotating('snapshot'),
  rotating('timestamp'),
  {
    name: "replacing a team's keys",
    run: async () => await delegateTeam('team-2', { repository: web() }),
    before: ['hello 1.0.0', 'team 1.0.0'],
    after: ['hello 1.0.0', 'team 1.0.0'],
  },
];

/** Every file below a folder with its content's digest. */
async function filesOf(folder: string): Promise<ReadonlyMap<string, string>> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
  return new Map(await Promise.all(files.map(async (path) => [path, digestOf(await readFile(path))] as const)));
}

/** Runs a step and returns the files that it wrote, in the order in which they got their names. */
async function writesOf(run: () => Promise<unknown>): Promise<readonly string[]> {
  const known = await filesOf(web());
  const folder = join(web(), 'metadata');
  const order: string[] = [];
  const watcher = watch(folder, (_event, name) => void order.push(join(folder, name ?? '')));
  await run();
  await systemClock.sleep(100);
  watcher.close();
  const now = [...(await filesOf(web()))].filter(([path, digest]) => known.get(path) !== digest).map(([path]) => path);
  // Bundles are in their place before any metadata are written that name them.
  const bundles = now.filter((path) => !path.startsWith(folder));
  const metadata = now.filter((path) => path.startsWith(folder));
  for (const path of metadata) assert.ok(order.includes(path), `${path} was seen`);
  return [...bundles, ...metadata.sort((a, b) => order.lastIndexOf(a) - order.lastIndexOf(b))];
}

for (const { name, run, before: old, after: fresh } of STEPS) {
  test(`${name}, cut off after any write, leaves clients the old or the new repository, and can be done again [X4]`, async () => {
    await publish('hello', '1.0.0');
    await trustFirstRoot();
    await delegateTeam();
    await publish('team', '1.0.0', { product: 'team', keys: [at('team'), at('keys')] });
    assert.deepEqual(await seen(web(), at('state')), old);
    await cp(web(), at('was'), { recursive: true });
    const written = await writesOf(run);
    assert.ok(written.length >= 3, `${written.length} writes`);
    let isNew = false;
    for (let count = 0; count <= written.length; count += 1) {
      await rm(at('cut'), { recursive: true, force: true });
      await cp(at('was'), at('cut'), { recursive: true });
      for (const path of written.slice(0, count)) {
        const target = path.replace(web(), at('cut'));
        await mkdir(dirname(target), { recursive: true });
        await copyFile(path, target);
      }
      await cp(at('state'), at('state-cut'), { recursive: true, force: true });
      const shown = await seen(at('cut'), at('state-cut'));
      assert.deepEqual(
        await seen(at('cut'), at(`new-state-${count}`)),
        shown,
        'also for a client that knows nothing yet',
      );
      if (JSON.stringify(shown) === JSON.stringify(fresh)) isNew = true;
      assert.deepEqual(shown, isNew ? fresh : old, `after ${count} of ${written.length} writes`);
      // Whoever was cut off publishes again.
      await publish('hello', '3.0.0', { repository: at('cut') });
      assert.ok((await seen(at('cut'), at('state-cut'))).includes('hello 3.0.0'));
      await rm(at('state-cut'), { recursive: true });
    }
    assert.ok(isNew);
  });
}
