// Plays the main scenarios of the public TUF conformance suite through the client program, over real HTTP: what the program
// answers, what it keeps, what it stores, and what it asked for. docs/tuf-conformance.md says how to run the suite itself.
import assert from 'node:assert/strict';
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { tryCommand } from '../../src/base/run-command.ts';
import { startHttpServer } from '../fakes/http-server.ts';
import {
  addTarget,
  delegate,
  type FakeRepository,
  fakeKey,
  fakeRepository,
  publishAll,
  publishRoot,
  rekey,
  roleOf,
  write,
  writeAll,
} from '../fakes/tuf-repository.ts';

const PROGRAM = join(import.meta.dirname, '../../proxy/tuf-client.ts');
const isFull = process.env.PRATIQUE_TEST_FULL === '1';

type Client = {
  readonly repository: FakeRepository;
  readonly metadata: string;
  readonly init: () => Promise<number>;
  readonly refresh: () => Promise<number>;
  readonly download: (target: string) => Promise<number>;
  /** The version of a role that the client trusts; null: none. */
  readonly version: (role: string) => Promise<number | null>;
  /** What it asked for below `metadata/` since the last time this was asked. */
  readonly asked: () => readonly string[];
  /** Contents of all downloaded files, sorted. */
  readonly stored: () => Promise<readonly string[]>;
};

async function openClient(t: TestContext, prepare?: (repository: FakeRepository) => void): Promise<Client> {
  const base = await mkdtemp(join(tmpdir(), 'pratique-tuf-client-'));
  const folders = { web: join(base, 'web'), metadata: join(base, 'metadata'), targets: join(base, 'targets') };
  for (const folder of Object.values(folders)) await mkdir(folder);
  const repository = fakeRepository(folders.web);
  prepare?.(repository);
  await writeAll(repository);
  await copyFile(join(folders.web, 'metadata', '1.root.json'), join(base, 'root.json'));
  const server = await startHttpServer(folders.web);
  t.after(async () => {
    await server.close();
    await rm(base, { recursive: true });
  });
  const run = async (...argv: readonly string[]): Promise<number> => {
    const { exitCode } = await tryCommand([process.execPath, PROGRAM, '--metadata-dir', folders.metadata, ...argv]);
    return exitCode ?? -1;
  };
  const urls = ['--metadata-url', `${server.url}/metadata/`] as const;
  let seen = 0;
  return {
    repository,
    metadata: folders.metadata,
    init: async () => await run('init', join(base, 'root.json')),
    refresh: async () => await run(...urls, 'refresh'),
    download: async (target) =>
      await run(
        ...urls,
        ...['--target-name', target, '--target-base-url', `${server.url}/targets/`, '--target-dir', folders.targets],
        'download',
      ),
    version: async (role) => {
      const path = join(folders.metadata, `${encodeURIComponent(role)}.json`);
      const text = await readFile(path, 'utf8').catch(() => null);
      return text === null ? null : JSON.parse(text).signed.version;
    },
    asked: () => {
      const all = server.requests.map(({ path }) => path).filter((path) => path.startsWith('/metadata/'));
      const fresh = all.slice(seen).map((path) => path.slice('/metadata/'.length));
      seen = all.length;
      return fresh;
    },
    stored: async () => {
      const names = await readdir(folders.targets);
      return (await Promise.all(names.map((name) => readFile(join(folders.targets, name), 'utf8')))).sort();
    },
  };
}

const FIRST = ['2.root.json', 'timestamp.json', '1.snapshot.json', '1.targets.json'];
const past = (days: number): string => `${new Date(Date.now() - days * 86_400_000).toISOString().slice(0, 19)}Z`;

test('init asks for nothing, refresh asks for each role once and keeps it under its plain name', async (t) => {
  const client = await openClient(t);
  assert.equal(await client.init(), 0);
  assert.deepEqual(client.asked(), []);
  assert.equal(await client.refresh(), 0);
  assert.deepEqual(client.asked(), FIRST);
  const names = (await readdir(client.metadata)).filter((name) => name.endsWith('.json'));
  assert.deepEqual(names.sort(), ['root.json', 'snapshot.json', 'targets.json', 'timestamp.json']);
  for (const role of ['root', 'timestamp', 'snapshot', 'targets']) assert.equal(await client.version(role), 1);
  assert.equal(await client.refresh(), 0);
  assert.deepEqual(client.asked(), ['2.root.json', 'timestamp.json']);
});

test('a root that is not signed by itself, or no root, is refused before anything is asked for', async (t) => {
  const client = await openClient(t);
  assert.equal(await client.init(), 0);
  const anchor = join(client.metadata, '.pratique', 'anchor');
  const root = JSON.parse(await readFile(anchor, 'utf8'));
  root.signatures[0].sig = root.signatures[0].sig.replace(/^./, (digit: string) => (digit === '0' ? '1' : '0'));
  await writeFile(anchor, JSON.stringify(root));
  assert.equal(await client.refresh(), 1);
  await writeFile(anchor, '{}');
  assert.equal(await client.refresh(), 1);
  assert.deepEqual(client.asked(), []);
});

test('download refreshes, stores a target by its digest, does not fetch it again, and refuses other bytes', async (t) => {
  const client = await openClient(t);
  const { repository } = client;
  await client.init();
  assert.equal(await client.download('missing'), 1);
  assert.deepEqual(client.asked(), FIRST);
  await addTarget(repository, 'targets', 'path/to/file.txt', { bytes: 'content' });
  await addTarget(repository, 'targets', 'other.txt', { bytes: 'other' });
  await publishAll(repository);
  assert.equal(await client.download('path/to/file.txt'), 0);
  assert.deepEqual(await client.stored(), ['content']);
  for (const name of await readdir(join(repository.folder, 'targets'))) {
    if (name.endsWith('other.txt')) await writeFile(join(repository.folder, 'targets', name), 'OTHER');
  }
  await rm(join(repository.folder, 'targets', 'path'), { recursive: true });
  assert.equal(await client.download('path/to/file.txt'), 0);
  assert.equal(await client.download('other.txt'), 1);
  assert.deepEqual(await client.stored(), ['content']);
  await addTarget(repository, 'targets', 'path/to/file.txt', { bytes: 'content, changed' });
  await publishAll(repository);
  assert.equal(await client.download('path/to/file.txt'), 0);
  assert.deepEqual(await client.stored(), ['content, changed']);
});

test('a repository without consistent snapshots is asked for plain names', async (t) => {
  const client = await openClient(t, (repository) => {
    repository.isConsistent = false;
  });
  await client.init();
  await addTarget(client.repository, 'targets', 'a/file.txt', { bytes: 'content' });
  await publishAll(client.repository);
  assert.equal(await client.download('a/file.txt'), 0);
  assert.deepEqual(client.asked(), ['2.root.json', 'timestamp.json', 'snapshot.json', 'targets.json']);
  assert.deepEqual(await client.stored(), ['content']);
});

test('rollback of timestamp, snapshot and targets is refused, with hashes and without', async (t) => {
  const day = Math.floor(Date.now() / 86_400_000);
  for (const hasHashes of isFull ? [false, true] : [day % 2 === 0]) {
    const client = await openClient(t, (repository) => {
      repository.hasHashes = hasHashes;
    });
    const { repository } = client;
    await client.init();
    await publishAll(repository);
    assert.equal(await client.refresh(), 0);
    roleOf(repository, 'timestamp').version = 1;
    await write(repository, 'timestamp');
    assert.equal(await client.refresh(), 1);
    assert.equal(await client.version('timestamp'), 2);
    roleOf(repository, 'snapshot').version = 1;
    roleOf(repository, 'timestamp').version = 3;
    await write(repository, 'snapshot', 'timestamp');
    assert.equal(await client.refresh(), 1);
    assert.deepEqual([await client.version('timestamp'), await client.version('snapshot')], [2, 2]);
    roleOf(repository, 'targets').version = 1;
    roleOf(repository, 'snapshot').version = 3;
    await write(repository, 'targets', 'snapshot', 'timestamp');
    assert.equal(await client.refresh(), 1);
    assert.equal(await client.version('targets'), 2);
  }
});

test('a timestamp of the same version with other content is passed over', async (t) => {
  const client = await openClient(t);
  await client.init();
  await client.refresh();
  const kept = await readFile(join(client.metadata, 'timestamp.json'), 'utf8');
  client.repository.listed.set('snapshot', 100);
  await write(client.repository, 'timestamp');
  assert.equal(await client.refresh(), 0);
  assert.equal(await readFile(join(client.metadata, 'timestamp.json'), 'utf8'), kept);
});

test('a snapshot whose version or hash the timestamp does not name is refused, and the timestamp is kept', async (t) => {
  const client = await openClient(t, (repository) => {
    repository.hasHashes = false;
  });
  const { repository } = client;
  await client.init();
  repository.listed.set('snapshot', 2);
  await write(repository, 'timestamp');
  const folder = join(repository.folder, 'metadata');
  await copyFile(join(folder, '1.snapshot.json'), join(folder, '2.snapshot.json'));
  assert.equal(await client.refresh(), 1);
  const names = (await readdir(client.metadata)).filter((name) => name.endsWith('.json'));
  assert.deepEqual(names.sort(), ['root.json', 'timestamp.json']);
});

test('expired metadata are not taken, an expired root is, and fresh ones work again', async (t) => {
  const client = await openClient(t);
  const { repository } = client;
  await client.init();
  assert.equal(await client.refresh(), 0);
  for (const role of isFull ? ['timestamp', 'snapshot', 'targets'] : ['timestamp', 'targets']) {
    const { expires } = roleOf(repository, role);
    roleOf(repository, role).expires = past(5);
    const before = await client.version(role);
    await publishAll(repository);
    assert.equal(await client.refresh(), 1, role);
    assert.equal(await client.version(role), before, role);
    roleOf(repository, role).expires = expires;
    await publishAll(repository);
    assert.equal(await client.refresh(), 0, role);
  }
  roleOf(repository, 'root').expires = past(1);
  await publishRoot(repository);
  await publishAll(repository);
  const before = await client.version('timestamp');
  assert.equal(await client.refresh(), 1);
  assert.deepEqual([await client.version('root'), await client.version('timestamp')], [2, before]);
});

test('new keys recover from a fast-forward of timestamp, snapshot and targets', async (t) => {
  const client = await openClient(t);
  const { repository } = client;
  await client.init();
  const roles = ['timestamp', 'snapshot', 'targets'];
  for (const role of roles) roleOf(repository, role).version = 99_999;
  await writeAll(repository);
  assert.equal(await client.refresh(), 0);
  for (const role of ['timestamp', 'snapshot']) rekey(repository, role);
  await publishRoot(repository);
  for (const role of roles) roleOf(repository, role).version = 1;
  await writeAll(repository);
  assert.equal(await client.refresh(), 0);
  for (const role of roles) assert.equal(await client.version(role), 1);
});

type RootVersion = {
  readonly keys: readonly number[];
  readonly threshold: number;
  readonly signers: readonly number[];
};
type RootCase = { readonly name: string; readonly versions: readonly RootVersion[]; readonly isGood: boolean };

const rootVersion = (keys: readonly number[], threshold: number, signers: readonly number[]): RootVersion => ({
  keys,
  threshold,
  signers,
});

const FIVE = [0, 1, 2, 3, 4];
const ROTATIONS: readonly RootCase[] = [
  {
    name: '1 of 1 rotated',
    versions: [rootVersion([1], 1, [1]), rootVersion([2], 1, [2, 1]), rootVersion([2], 1, [2])],
    isGood: true,
  },
  {
    name: 'with signatures nobody asked for',
    versions: [rootVersion([1], 1, [3, 1, 4]), rootVersion([2], 1, [3, 2, 1])],
    isGood: true,
  },
  {
    name: '3 of 5 in turns',
    versions: [rootVersion(FIVE, 3, [0, 2, 4]), rootVersion(FIVE, 3, [0, 4, 1])],
    isGood: true,
  },
  {
    name: 'one of 3 of 5 replaced',
    versions: [rootVersion(FIVE, 3, [0, 2, 4]), rootVersion([0, 1, 3, 4, 5], 3, [0, 4, 1])],
    isGood: true,
  },
  {
    name: 'all of 3 of 5 replaced',
    versions: [rootVersion(FIVE, 3, [0, 2, 4]), rootVersion([5, 6, 7, 8, 9], 3, [0, 2, 4, 5, 6, 7])],
    isGood: true,
  },
  {
    name: 'threshold raised',
    versions: [rootVersion([1, 2, 3], 1, [1]), rootVersion([1, 2, 3], 2, [1, 2])],
    isGood: true,
  },
  {
    name: 'threshold lowered',
    versions: [rootVersion([1, 2, 3], 2, [1, 2]), rootVersion([1, 2, 3], 1, [1, 2])],
    isGood: true,
  },
  {
    name: 'not signed by the old key',
    versions: [rootVersion([1], 1, [1]), rootVersion([2], 1, [2, 3])],
    isGood: false,
  },
  {
    name: 'not signed by the new key',
    versions: [rootVersion([1], 1, [1]), rootVersion([2], 1, [1, 3])],
    isGood: false,
  },
  {
    name: 'too few new keys',
    versions: [rootVersion(FIVE, 3, [0, 2, 4]), rootVersion([0, 1, 3, 4, 5], 3, [0, 2, 4])],
    isGood: false,
  },
  {
    name: 'too few old keys',
    versions: [rootVersion(FIVE, 3, [0, 2, 4]), rootVersion([0, 1, 3, 4, 5], 3, [0, 4, 5])],
    isGood: false,
  },
  {
    name: 'raised threshold not reached',
    versions: [rootVersion([1, 2, 3], 1, [1]), rootVersion([1, 2, 3], 2, [2])],
    isGood: false,
  },
  {
    name: 'old threshold not reached',
    versions: [rootVersion([1, 2, 3], 2, [1, 2]), rootVersion([1, 2, 3], 1, [1])],
    isGood: false,
  },
];

/** All of them in the full run; otherwise one that must work and one that must not, another pair every day. */
function sampleOfRotations(): readonly RootCase[] {
  if (isFull) return ROTATIONS;
  const day = Math.floor(Date.now() / 86_400_000);
  return [true, false].flatMap((isGood) => {
    const list = ROTATIONS.filter((each) => each.isGood === isGood);
    return list[day % list.length] ?? [];
  });
}

for (const { name, versions, isGood } of sampleOfRotations()) {
  test(`a root ${isGood ? 'is followed' : 'is refused'}: ${name}`, async (t) => {
    const keys = Array.from({ length: 10 }, fakeKey);
    const pick = (numbers: readonly number[]) => numbers.flatMap((number) => keys[number] ?? []);
    const apply = (repository: FakeRepository, { keys: listed, threshold, signers }: RootVersion) =>
      Object.assign(roleOf(repository, 'root'), { keys: pick(listed), threshold, signers: pick(signers) });
    const [first, ...rest] = versions;
    assert.ok(first !== undefined);
    const client = await openClient(t, (repository) => void apply(repository, first));
    await client.init();
    for (const version of rest) {
      apply(client.repository, version);
      await publishRoot(client.repository);
    }
    assert.equal(await client.refresh(), isGood ? 0 : 1);
    assert.equal(await client.version('root'), isGood ? versions.length : versions.length - 1);
  });
}

test('a threshold counts keys, not signatures, and a key without a signature not at all', async (t) => {
  const client = await openClient(t);
  const { repository } = client;
  await client.init();
  assert.equal(await client.refresh(), 0);
  const keys = [fakeKey(), fakeKey(), fakeKey()];
  Object.assign(roleOf(repository, 'snapshot'), { keys, threshold: 3, signers: keys.slice(0, 2) });
  await publishRoot(repository);
  await publishAll(repository);
  assert.equal(await client.refresh(), 1);
  assert.equal(await client.version('root'), 2);
  roleOf(repository, 'snapshot').signers = keys;
  await publishAll(repository);
  assert.equal(await client.refresh(), 0);
  const [one] = keys;
  assert.ok(one !== undefined);
  const twins = Array.from({ length: 3 }, (_, at) => ({ ...one, id: String(at).repeat(64) }));
  Object.assign(roleOf(repository, 'snapshot'), { keys: twins, threshold: 3, signers: twins });
  await publishRoot(repository);
  await publishAll(repository);
  assert.equal(await client.refresh(), 1);
});

type Edge = {
  readonly from: string;
  readonly to: string;
  readonly paths?: readonly string[];
  readonly terminating?: true;
};

const GRAPHS: readonly {
  readonly name: string;
  readonly edges: readonly Edge[];
  readonly visited: readonly string[];
}[] = [
  {
    name: 'depth first',
    edges: [
      { from: 'targets', to: 'A' },
      { from: 'targets', to: 'B' },
      { from: 'A', to: 'C' },
      { from: 'A', to: 'D' },
    ],
    visited: ['A', 'C', 'D', 'B'],
  },
  {
    name: 'terminating',
    edges: [
      { from: 'targets', to: 'A' },
      { from: 'targets', to: 'B' },
      { from: 'A', to: 'C', terminating: true },
      { from: 'A', to: 'D' },
    ],
    visited: ['A', 'C'],
  },
  {
    name: 'only matching paths',
    edges: [
      { from: 'targets', to: 'A', paths: ['*.py'] },
      { from: 'targets', to: 'B' },
      { from: 'A', to: 'C' },
    ],
    visited: ['B'],
  },
  {
    name: 'a circle',
    edges: [
      { from: 'targets', to: 'A' },
      { from: 'targets', to: 'B' },
      { from: 'B', to: 'C' },
      { from: 'C', to: 'D' },
      { from: 'D', to: 'B' },
    ],
    visited: ['A', 'B', 'C', 'D'],
  },
  {
    name: 'two ways to one role',
    edges: [
      { from: 'targets', to: 'A' },
      { from: 'targets', to: 'B' },
      { from: 'B', to: 'C' },
      { from: 'A', to: 'C' },
    ],
    visited: ['A', 'C', 'B'],
  },
];

/** All of them in the full run; otherwise one, another every day. */
function sampleOfGraphs(): typeof GRAPHS {
  if (isFull) return GRAPHS;
  return [GRAPHS[Math.floor(Date.now() / 86_400_000) % GRAPHS.length]].filter((each) => each !== undefined);
}

for (const { name, edges, visited } of sampleOfGraphs()) {
  test(`delegations are walked in preorder: ${name}`, async (t) => {
    const client = await openClient(t, (repository) => {
      for (const { from, to, paths = ['*'], terminating = false } of edges)
        delegate(repository, from, to, { paths, terminating });
    });
    await client.init();
    assert.equal(await client.download('missingpath'), 1);
    assert.deepEqual(client.asked(), [...FIRST, ...visited.map((role) => `1.${role}.json`)]);
    for (const role of visited) assert.equal(await client.version(role), 1);
  });
}

test('a target is found where the whole chain delegates its path, and nowhere else', async (t) => {
  const client = await openClient(t, (repository) => {
    delegate(repository, 'targets', 'A', { paths: ['*.doc', '*.md'] });
    delegate(repository, 'targets', 'B', { paths: ['releases/*/*'] });
    delegate(repository, 'B', 'C', { paths: ['releases/x/*'] });
    delegate(repository, 'B', 'D', { paths: ['releases/y/*.zip'] });
  });
  const { repository } = client;
  await addTarget(repository, 'A', 'README.md', { bytes: 'by A' });
  await addTarget(repository, 'C', 'releases/x/x_v1', { bytes: 'by C' });
  await addTarget(repository, 'D', 'releases/z/z_v1.zip', { bytes: 'not by D' });
  await publishAll(repository);
  await client.init();
  assert.equal(await client.download('README.md'), 0);
  assert.equal(await client.download('releases/x/x_v1'), 0);
  assert.equal(await client.download('releases/z/z_v1.zip'), 1);
  assert.deepEqual(await client.stored(), ['by A', 'by C']);
});

test('names of roles and targets may be anything, and stay in their folders', async (t) => {
  const client = await openClient(t, (repository) => {
    for (const role of ['?', '#', '/delegated', '../delegated', 'päckchen 包'])
      delegate(repository, 'targets', role, { paths: ['x'] });
  });
  await addTarget(client.repository, 'targets', 'ünï/包 裹?#.txt', { bytes: 'content' });
  await publishAll(client.repository);
  await client.init();
  assert.equal(await client.download('x'), 1);
  for (const role of ['?', '#', '/delegated', '../delegated', 'päckchen 包'])
    assert.equal(await client.version(role), 2, role);
  assert.equal(await client.download('ünï/包 裹?#.txt'), 0);
  assert.deepEqual(await client.stored(), ['content']);
  const names = (await readdir(client.metadata)).filter((name) => name.endsWith('.json'));
  assert.equal(names.length, 9);
});

test('a command line that is not in the interface ends with 1 and does nothing', async (t) => {
  const client = await openClient(t);
  const folder = join(client.metadata, 'none');
  const run = async (...argv: readonly string[]) => (await tryCommand([process.execPath, PROGRAM, ...argv])).exitCode;
  assert.equal(await run('refresh'), 1);
  assert.equal(await run('--metadata-dir', folder, 'refresh'), 1);
  assert.equal(await run('--metadata-dir', folder, 'publish'), 1);
  assert.deepEqual(client.asked(), []);
});
