// TUF's attacks from a real HTTP server on the real vendor: each is refused by a code that names whose fault it is, and
// afterwards the honest repository works again.
import assert from 'node:assert/strict';
import { copyFile, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { TUF_OBJECT_FIELDS_MAX, TUF_SIGNATURES_MAX } from '../../src/base/limits.ts';
import {
  addTarget,
  bundle,
  copyOf,
  delegate,
  type FakeRepository,
  fakeKey,
  fileName,
  publishAll,
  publishRoot,
  rekey,
  roleOf,
  write,
} from '../fakes/tuf-repository.ts';
import { honestAgain, offered, openScene, past, refusalOf, type Scene } from './tuf-scene.ts';

type Attack = {
  readonly name: string;
  readonly code: string;
  /** The snapshot lists roles that the honest one does not have: only a new snapshot key takes them away again. */
  readonly addsRoles?: true;
  /** Spoils what is served; the copy of the repository has all of the vendor's keys. */
  readonly strike: (evil: FakeRepository, scene: Scene) => Promise<void>;
};

/** The role signed by somebody else's key, at a version that is new. */
const arbitrary = (name: string): Attack => ({
  name: `arbitrary software: ${name} signed by an unknown key`,
  code: 'vendor-ill/tuf-signature',
  strike: async (evil) => {
    await addTarget(evil, 'targets', 'hello/hello-6.6.6', { bytes: 'evil', custom: bundle('hello', '6.6.6') });
    roleOf(evil, name).signers = [fakeKey()];
    if (name === 'root') await publishRoot(evil);
    else await publishAll(evil);
  },
});

const endless = (name: string): Attack => ({
  name: `endless data: ${name}`,
  code: 'vendor-ill/tuf-endless-data',
  strike: async (evil, { server }) => {
    evil.hasHashes = false;
    await publishAll(evil);
    if (name === 'root') roleOf(evil, 'root').version += 1;
    server.fail(`/metadata/${fileName(evil, name)}`, { kind: 'endless' });
  },
});

const expired = (name: string): Attack => ({
  name: `freeze: ${name} is expired`,
  code: 'vendor-ill/tuf-expired',
  strike: async (evil) => {
    roleOf(evil, name).expires = past(1);
    if (name === 'root') {
      // The root counts also when it is expired; only the next one, not expired, lets the rest go on.
      await publishRoot(evil);
    }
    await publishAll(evil);
  },
});

const ATTACKS: readonly Attack[] = [
  ...['root', 'timestamp', 'snapshot', 'targets', 'product-team'].map(arbitrary),
  ...['timestamp', 'snapshot', 'targets', 'product-team'].map(expired),
  ...['root', 'timestamp', 'snapshot', 'targets', 'product-team'].map(endless),
  {
    name: 'rollback of the timestamp',
    code: 'vendor-ill/tuf-rollback',
    strike: async (evil) => {
      roleOf(evil, 'timestamp').version = 1;
      await write(evil, 'timestamp');
    },
  },
  {
    name: 'rollback of the snapshot behind a newer timestamp',
    code: 'vendor-ill/tuf-rollback',
    strike: async (evil) => {
      roleOf(evil, 'snapshot').version = 1;
      roleOf(evil, 'timestamp').version += 1;
      await write(evil, 'snapshot', 'timestamp');
    },
  },
  ...['targets', 'product-team'].map(
    (name): Attack => ({
      name: `rollback of ${name} behind a newer snapshot`,
      code: 'vendor-ill/tuf-rollback',
      strike: async (evil) => {
        roleOf(evil, name).version = 1;
        roleOf(evil, 'snapshot').version += 1;
        roleOf(evil, 'timestamp').version += 1;
        await write(evil, name, 'snapshot', 'timestamp');
      },
    }),
  ),
  {
    name: 'a role that the snapshot no longer lists',
    code: 'vendor-ill/tuf-rollback',
    strike: async (evil) => {
      evil.listed.set('product-team', null);
      await publishAll(evil);
    },
  },
  {
    name: 'a root that skips a version',
    code: 'vendor-ill/tuf-rollback',
    strike: async (evil) => {
      roleOf(evil, 'root').version = 3;
      await write(evil, 'root');
      await copyFile(join(evil.folder, 'metadata', '3.root.json'), join(evil.folder, 'metadata', '2.root.json'));
      await rm(join(evil.folder, 'metadata', '3.root.json'));
    },
  },
  ...['targets', 'product-team', 'snapshot'].map(
    (name): Attack => ({
      name: `mix and match: ${name} of another time`,
      code: 'vendor-ill/tuf-mix-and-match',
      strike: async (evil) => {
        const old = await readFile(join(evil.folder, 'metadata', fileName(evil, name)));
        await publishAll(evil);
        await writeFile(join(evil.folder, 'metadata', fileName(evil, name)), old);
      },
    }),
  ),
  {
    name: 'mix and match: the same version with other content',
    code: 'vendor-ill/tuf-mix-and-match',
    strike: async (evil) => {
      await publishAll(evil);
      // Of the same length: the length alone would give it away.
      roleOf(evil, 'targets').expires = '2091-01-01T00:00:00Z';
      await write(evil, 'targets');
    },
  },
  ...['timestamp', 'targets'].map(
    (name): Attack => ({
      name: `slow retrieval: ${name} trickles in`,
      code: 'vendor-ill/too-slow',
      strike: async (evil, { server }) => {
        evil.hasHashes = false;
        await publishAll(evil);
        server.fail(`/metadata/${fileName(evil, name)}`, { kind: 'drip', everyMs: 20 });
      },
    }),
  ),
  {
    name: 'slow retrieval: no answer at all',
    code: 'vendor-ill/timeout',
    strike: async (_evil, { server }) => server.fail('/metadata/timestamp.json', { kind: 'silent' }),
  },
  {
    name: 'key compromise below the threshold of targets',
    code: 'vendor-ill/tuf-signature',
    strike: async (evil, scene) => {
      await raiseThreshold(scene, 'targets');
      Object.assign(evil.roles, copyOf(scene.honest).roles);
      const [stolen] = roleOf(scene.honest, 'targets').keys;
      const spoilt = copyOf(scene.honest);
      roleOf(spoilt, 'targets').signers = stolen === undefined ? [] : [stolen];
      await addTarget(spoilt, 'targets', 'hello/hello-6.6.6', { bytes: 'evil', custom: bundle('hello', '6.6.6') });
      await publishAll(spoilt);
    },
  },
  {
    name: 'key compromise below the threshold of a delegation',
    code: 'vendor-ill/tuf-signature',
    strike: async (_evil, scene) => {
      await raiseThreshold(scene, 'product-team');
      const spoilt = copyOf(scene.honest);
      const [stolen] = roleOf(spoilt, 'product-team').keys;
      roleOf(spoilt, 'product-team').signers = stolen === undefined ? [] : [stolen];
      await addTarget(spoilt, 'product-team', 'team/team-6.6.6', { bytes: 'evil', custom: bundle('team', '6.6.6') });
      await publishAll(spoilt);
    },
  },
  {
    name: 'one stolen key that stands twice under two ids',
    code: 'vendor-ill/tuf-malformed',
    strike: async (evil) => {
      const [key] = roleOf(evil, 'product-team').keys;
      assert.ok(key !== undefined);
      const twin = { ...key, id: 'f'.repeat(64) };
      rekey(evil, 'product-team', [key, twin]);
      roleOf(evil, 'product-team').threshold = 2;
      await publishAll(evil);
    },
  },
  {
    name: 'delegations deeper than anybody needs',
    addsRoles: true,
    code: 'vendor-ill/tuf-delegations',
    strike: async (evil) => {
      for (let depth = 0; depth < 12; depth += 1) {
        delegate(evil, depth === 0 ? 'product-team' : `deep${depth - 1}`, `deep${depth}`);
      }
      await publishAll(evil);
    },
  },
  {
    name: 'more delegated roles than anybody needs',
    addsRoles: true,
    code: 'vendor-ill/tuf-delegations',
    strike: async (evil) => {
      const keys = [fakeKey()];
      for (const parent of ['targets', 'product-team']) {
        for (let index = 0; index < 150; index += 1) delegate(evil, parent, `${parent}${index}`, { keys });
      }
      await publishAll(evil);
    },
  },
  {
    name: 'a delegated role that bears the name of something that every object has',
    addsRoles: true,
    code: 'vendor-ill/tuf-malformed',
    strike: async (evil) => {
      delegate(evil, 'product-team', 'constructor');
      await publishAll(evil);
    },
  },
  {
    name: 'more targets in a delegated role than can be read in time',
    code: 'vendor-ill/tuf-too-many',
    strike: async (evil, { server }) => {
      evil.hasHashes = false;
      await publishAll(evil);
      const fields = Object.fromEntries(Array.from({ length: TUF_OBJECT_FIELDS_MAX + 1 }, (_, at) => [`f${at}`, {}]));
      const bytes = Buffer.from(JSON.stringify({ signed: { _type: 'targets', targets: fields }, signatures: [] }));
      server.fail(`/metadata/${fileName(evil, 'product-team')}`, { kind: 'bytes', bytes });
    },
  },
  {
    name: 'more signatures than can be verified in time',
    code: 'vendor-ill/tuf-too-many',
    strike: async (evil) => {
      roleOf(evil, 'snapshot').signers = Array.from({ length: TUF_SIGNATURES_MAX + 1 }, fakeKey);
      await publishAll(evil);
    },
  },
  {
    name: 'a version beyond all counting',
    code: 'vendor-ill/tuf-malformed',
    strike: async (evil) => {
      roleOf(evil, 'timestamp').version = 2 ** 60;
      await write(evil, 'timestamp');
    },
  },
  {
    name: 'JSON nested without end',
    code: 'vendor-ill/tuf-too-many',
    strike: async (_evil, { server }) => {
      const bytes = Buffer.from(`{"signed":${'['.repeat(5_000)}${']'.repeat(5_000)}}`);
      server.fail('/metadata/timestamp.json', { kind: 'bytes', bytes });
    },
  },
];

/** An honest change to two of three keys, which the vendor follows. */
async function raiseThreshold({ honest, vendor }: Scene, name: string): Promise<void> {
  rekey(honest, name, [...roleOf(honest, name).keys, fakeKey(), fakeKey()]);
  roleOf(honest, name).threshold = 2;
  await publishRoot(honest);
  await publishAll(honest);
  await vendor.refresh({});
}

for (const { name, code, addsRoles = false, strike } of ATTACKS) {
  test(`${name}: refused, and the honest repository works again [X3]`, async (t) => {
    const scene = await openScene(t);
    const { checkedAtMs } = scene.vendor.status();
    await strike(copyOf(scene.honest), scene);
    const before = await offered(scene.vendor);
    assert.equal(await refusalOf(scene.vendor), code);
    assert.deepEqual(await offered(scene.vendor), before, 'what was verified stays');
    assert.ok((scene.vendor.status().checkedAtMs ?? 0) >= (checkedAtMs ?? 0));
    assert.equal(await refusalOf(await scene.reopen()), code, 'also after a restart');
    await honestAgain(scene, { isSnapshotKeyNew: addsRoles });
  });
}
