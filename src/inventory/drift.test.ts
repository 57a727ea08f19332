// Drift: what counts as behind, decided from the vendors' releases and never from the guest's word.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from '../base/clock.ts';
import type { Digest } from '../base/digest-text.ts';
import type { InstalledProduct, Inventory } from '../model/inventory.ts';
import type { Release } from '../model/release.ts';
import { type CompareVersions, findDrift } from './drift.ts';

const DEMO: InstalledProduct = { ecosystem: 'bundle', product: 'demo', version: '1.0.0', state: 'installed' };
const RELEASE: Release = {
  vendor: 'own',
  ecosystem: 'bundle',
  product: 'demo',
  version: '1.1.0',
  kind: 'security',
  requires: [],
  advisories: ['DEMO-1'],
  artifact: { name: 'demo.tar', digest: '3'.repeat(64) as Digest, sizeBytes: 10, location: 'demo.tar' },
  install: { action: 'bundle', prefix: '/opt/demo', compression: 'none' },
};
const compare: CompareVersions = (_ecosystem, a, b) => {
  if (!/^[0-9]/.test(a)) throw new Error('unreadable');
  return a < b ? -1 : a > b ? 1 : 0;
};

function inventoryOf(...products: InstalledProduct[]): Inventory {
  return {
    os: { id: 'tiny', versionId: '1', arch: 'amd64' },
    products,
    config: [],
    agent: { version: '0.1.0', digest: null },
    abilities: { drives: ['virtio-blk'], compressions: ['none'] },
    freeBytes: 1,
    rebootRequired: false,
    lastShutdown: null,
  };
}
function drift(products: InstalledProduct[], releases: Release[] = [RELEASE]) {
  return findDrift(inventoryOf(...products), releases, compare).map(
    ({ product, arch, installed, latest, why }) => `${product}:${arch} ${installed} ${latest} ${why}`,
  );
}

test('an older product is behind, with kind and advisories of the release [A7]', () => {
  assert.deepEqual(findDrift(inventoryOf(DEMO), [RELEASE], compare), [
    {
      ecosystem: 'bundle',
      product: 'demo',
      arch: null,
      installed: '1.0.0',
      latest: '1.1.0',
      kind: 'security',
      advisories: ['DEMO-1'],
      vendor: 'own',
      why: 'older',
    },
  ]);
});

test('the latest and a newer version are not behind [A7]', () => {
  assert.deepEqual(drift([{ ...DEMO, version: '1.1.0' }]), []);
  assert.deepEqual(drift([{ ...DEMO, version: '1.2.0' }]), []);
});

test('a broken product is behind at any version [A7]', () => {
  assert.deepEqual(drift([{ ...DEMO, version: '1.1.0', state: 'broken' }]), ['demo:null 1.1.0 1.1.0 broken']);
});

test('a version that cannot be compared is not believed to be the latest [A7]', () => {
  assert.deepEqual(drift([{ ...DEMO, version: '~~' }]), ['demo:null ~~ 1.1.0 unreadable']);
});

test('a product that is not installed is behind only if another needs it [A7]', () => {
  const library: Release = { ...RELEASE, product: 'lib', version: '2.0.0' };
  assert.deepEqual(drift([{ ...DEMO, version: '1.1.0' }], [RELEASE, library]), []);
  const needing: Release = { ...RELEASE, requires: [{ product: 'lib', range: '>=2' }] };
  assert.deepEqual(drift([{ ...DEMO, version: '1.1.0' }], [needing, library]), ['lib:null null 2.0.0 missing']);
});

test('each architecture is compared for itself [A7]', () => {
  const jq = { ...DEMO, ecosystem: 'debian' as const, product: 'jq', arch: 'amd64', version: '1.1.0' };
  const release = { ...RELEASE, ecosystem: 'debian' as const, product: 'jq' };
  const releases = [
    { ...release, arch: 'amd64' },
    { ...release, arch: 'i386' },
  ];
  assert.deepEqual(drift([jq, { ...jq, arch: 'i386', version: '1.0.0' }], releases), ['jq:i386 1.0.0 1.1.0 older']);
});

test('a product that a guest lists twice is behind as long as one of the two is [A7]', () => {
  assert.deepEqual(drift([{ ...DEMO, version: '1.1.0' }, DEMO]), ['demo:null 1.0.0 1.1.0 older']);
});

test('the agent is compared by the version of the running one [A7]', () => {
  const release: Release = { ...RELEASE, ecosystem: 'agent', product: 'pratique-agent', version: '0.2.0' };
  assert.deepEqual(drift([], [release]), ['pratique-agent:null 0.1.0 0.2.0 older']);
});

test('20,000 products against 2,000 releases take no more than a moment [A7]', () => {
  const products = Array.from({ length: 20_000 }, (_, n) => ({ ...DEMO, product: `p${n}` }));
  const releases = Array.from({ length: 2_000 }, (_, n) => ({ ...RELEASE, product: `p${n * 10}` }));
  const beganMs = systemClock.monotonicMs();
  assert.equal(findDrift(inventoryOf(...products), releases, compare).length, 2_000);
  assert.ok(systemClock.monotonicMs() - beganMs < 1000);
});
