// The inventory store: what is last known of each VM, and since when it is behind, over restarts.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { openDatabase } from '../base/sqlite.ts';
import type { VmId } from '../model/ids.ts';
import type { Inventory } from '../model/inventory.ts';
import type { Behind } from './drift.ts';
import { INVENTORY_MIGRATIONS, makeInventoryStore } from './inventory-store.ts';

const VM = 'web-1' as VmId;
const OTHER = 'web-2' as VmId;
const INVENTORY: Inventory = {
  os: { id: 'tiny', versionId: '1', arch: 'amd64' },
  products: [{ ecosystem: 'bundle', product: 'démo', version: '1.0.0', state: 'installed' }],
  config: [],
  agent: { version: '0.1.0', digest: null },
  abilities: { drives: ['virtio-blk'], compressions: ['none'] },
  freeBytes: 1,
  rebootRequired: false,
  lastShutdown: null,
};
const BEHIND: Behind = {
  ecosystem: 'bundle',
  product: 'demo',
  arch: null,
  installed: '1.0.0',
  latest: '1.1.0',
  kind: 'fix',
  advisories: [],
  vendor: 'own',
  why: 'older',
};

async function makePath(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-inventory-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return join(folder, 'inventory.db');
}
function open(t: TestContext, path: string) {
  const db = openDatabase(path, INVENTORY_MIGRATIONS);
  t.after(() => db.isOpen && db.close());
  return { db, store: makeInventoryStore(db) };
}

test('the last inventory of a VM is known after a restart, with its time and source [A6]', async (t) => {
  const path = await makePath(t);
  const first = open(t, path);
  assert.equal(first.store.last(VM), null);
  first.store.record(VM, { inventory: INVENTORY, atMs: 5, source: 'report' });
  first.db.close();
  const { store } = open(t, path);
  assert.deepEqual(store.last(VM), { inventory: INVENTORY, atMs: 5, source: 'report' });
  assert.deepEqual(store.vms(), [VM]);
});

test('an older inventory never replaces a newer one [A6]', async (t) => {
  const { store } = open(t, await makePath(t));
  store.record(VM, { inventory: INVENTORY, atMs: 9, source: 'confirm' });
  store.record(VM, { inventory: { ...INVENTORY, freeBytes: 2 }, atMs: 5, source: 'disk' });
  assert.deepEqual(store.last(VM), { inventory: INVENTORY, atMs: 9, source: 'confirm' });
});

test('a product keeps the time since when it is behind, over restarts and newer releases [A7]', async (t) => {
  const path = await makePath(t);
  const first = open(t, path);
  first.store.setDrift(VM, [BEHIND], 100);
  first.db.close();
  const { store } = open(t, path);
  const newer = { ...BEHIND, latest: '1.2.0' };
  assert.deepEqual(store.setDrift(VM, [newer], 200), [{ ...newer, vm: VM, sinceMs: 100 }]);
});

test('a product that caught up is forgotten, and is behind anew when it falls back again [A7]', async (t) => {
  const { store } = open(t, await makePath(t));
  store.setDrift(VM, [BEHIND], 100);
  assert.deepEqual(store.setDrift(VM, [], 200), []);
  assert.equal(store.setDrift(VM, [BEHIND], 300)[0]?.sinceMs, 300);
});

test('a product that a guest lists twice is behind once, since the first time [A7]', async (t) => {
  const { store } = open(t, await makePath(t));
  store.setDrift(VM, [BEHIND, { ...BEHIND, installed: '0.9.0' }], 100);
  const rows = store.setDrift(VM, [BEHIND, { ...BEHIND, installed: '0.9.0' }], 200);
  assert.deepEqual(rows, [{ ...BEHIND, vm: VM, sinceMs: 100 }]);
});

test('drift of all VMs comes oldest first, and a removed VM leaves nothing behind [A7]', async (t) => {
  const { store } = open(t, await makePath(t));
  store.record(VM, { inventory: INVENTORY, atMs: 1, source: 'report' });
  store.setDrift(VM, [BEHIND], 300);
  store.setDrift(OTHER, [BEHIND, { ...BEHIND, arch: 'i386' }], 100);
  assert.deepEqual(
    store.drift().map(({ vm, arch, sinceMs }) => [vm, arch, sinceMs]),
    [
      [OTHER, null, 100],
      [OTHER, 'i386', 100],
      [VM, null, 300],
    ],
  );
  assert.equal(store.drift(OTHER).length, 2);
  store.forget(VM);
  assert.equal(store.last(VM), null);
  assert.deepEqual(store.drift(VM), []);
});
