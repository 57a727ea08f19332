// Which signed files come along for which plan, and whose fault it is when there are none.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { systemClock } from '../base/clock.ts';
import { digestOf } from '../base/digest.ts';
import { silentLog } from '../base/log.ts';
import type { RunId, VmId } from '../model/ids.ts';
import type { Plan, PlanItem } from '../model/plan.ts';
import { type BlobStore, openBlobStore } from '../store/blob-store.ts';
import type { Vendor } from '../vendor/vendor.ts';
import { bringSignedArchives } from './signed-archives.ts';

let folder = '';
let store: BlobStore;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-signed-'));
  store = await openBlobStore({ folder: join(folder, 'store'), clock: systemClock, log: silentLog, budgetBytes: 0 });
});
after(async () => {
  await store.close();
  await rm(folder, { recursive: true, force: true });
});

function planOf(vendors: readonly string[], action: 'debian-package' | 'agent' = 'debian-package'): Plan {
  const items = vendors.map((vendor, index): PlanItem => {
    const artifact = { name: `p${index}.deb`, digest: digestOf(`p${index}`), sizeBytes: 2, location: 'x' };
    const ecosystem = action === 'agent' ? 'agent' : 'debian';
    const common = { vendor, ecosystem, product: `p${index}`, version: '1', kind: 'fix' } as const;
    const release = { ...common, requires: [], advisories: [], artifact, install: { action } };
    return { id: `p${index}`, fromVersion: null, release };
  });
  // The casts hold: both texts have the form of their id.
  return { vm: 'web-1' as VmId, run: 'a'.repeat(32) as RunId, items, leftOut: [], vendors: [] };
}

/** A vendor that has signed files only, or (null) not even those. */
function vendorOf(name: string, content: string | null): Vendor {
  const sourcePath = join(folder, name);
  const bytes = content ?? '';
  const signedArchives: Vendor['signedArchives'] = async (releases) => [
    {
      suite: name,
      components: ['main'],
      files: [{ path: 'dists/x/InRelease', sourcePath, digest: digestOf(bytes), sizeBytes: bytes.length }],
      pool: releases.map(({ artifact }) => ({ digest: artifact.digest, path: `pool/${artifact.name}` })),
    },
  ];
  // The cast holds as far as this test goes: nothing else of a vendor is asked.
  return { name, ...(content === null ? {} : { signedArchives }) } as Vendor;
}

const signal = new AbortController().signal;
const request = (plan: Plan, vendors: readonly Vendor[]) => ({ plan, vendors, store, owner: 'run:web-1', signal });

test('the signed files of each vendor in the plan are stored and pinned, and each package has its place [A9 X4]', async () => {
  await writeFile(join(folder, 'one'), 'signed by one');
  await writeFile(join(folder, 'two'), 'signed by two');
  const vendors = [vendorOf('one', 'signed by one'), vendorOf('two', 'signed by two')];
  const archives = await bringSignedArchives(request(planOf(['one', 'two', 'one']), vendors));
  assert.deepEqual(
    archives.map(({ suite, pool }) => [suite, pool.map(({ path }) => path)]),
    [
      ['one', ['pool/p0.deb', 'pool/p2.deb']],
      ['two', ['pool/p1.deb']],
    ],
  );
  // What is not pinned would go now: the budget is nothing.
  await store.collect();
  assert.equal(await readFile(store.path(digestOf('signed by two')), 'utf8'), 'signed by two');
});

test('a vendor without signed files is refused by name; a plan without Debian packages needs none', async () => {
  await assert.rejects(bringSignedArchives(request(planOf(['bare']), [vendorOf('bare', null)])), {
    code: 'refused/unsigned-vendor',
    message: /vendor bare/,
  });
  assert.deepEqual(await bringSignedArchives(request(planOf(['bare'], 'agent'), [vendorOf('bare', null)])), []);
});

test('a signed file that is not what was verified never reaches the store', async () => {
  await writeFile(join(folder, 'three'), 'signed by thre3');
  const vendors = [vendorOf('three', 'signed by three')];
  await assert.rejects(bringSignedArchives(request(planOf(['three']), vendors)), { code: /^vendor-ill\// });
  assert.equal(store.has(digestOf('signed by three')), false);
});
