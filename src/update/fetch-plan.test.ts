// What a license guards is not had through another vendor, who only has to name its digest.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { systemClock } from '../base/clock.ts';
import { digestOf } from '../base/digest.ts';
import { silentLog } from '../base/log.ts';
import { openDatabase } from '../base/sqlite.ts';
import { openBlobTerms } from '../license/blob-terms.ts';
import { LEASE_MIGRATIONS } from '../license/lease-rows.ts';
import type { VmId } from '../model/ids.ts';
import type { BlobTerms } from '../model/license-check.ts';
import type { Release } from '../model/release.ts';
import { type BlobStore, openBlobStore } from '../store/blob-store.ts';
import { VendorError } from '../vendor/errors.ts';
import type { Vendor } from '../vendor/vendor.ts';
import { fetchPlan } from './fetch-plan.ts';
import { RUN } from './samples.ts';

const BYTES = Buffer.from('what is paid for');
const DIGEST = digestOf(BYTES);

let folder = '';
let store: BlobStore;
let terms: BlobTerms;
let asked: string[] = [];
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-fetch-'));
  store = await openBlobStore({ folder, clock: systemClock, log: silentLog, budgetBytes: 0 });
  terms = openBlobTerms(openDatabase(':memory:', LEASE_MIGRATIONS));
  asked = [];
});
afterEach(async () => {
  await store.close();
  await rm(folder, { recursive: true, force: true });
});

/** A vendor that names the digest, and sends these bytes; null: it has none. */
function vendor(name: string, bytes: Buffer | null): Vendor {
  const open: Vendor['open'] = async (_artifact, offsetBytes) => {
    asked.push(name);
    if (bytes === null) throw new VendorError('vendor-ill/http-404', `${name} answered 404`);
    return (async function* () {
      yield bytes.subarray(offsetBytes);
    })();
  };
  // The cast holds: a fetch asks no more of a vendor.
  return { name, open, inspect: async () => {} } as unknown as Vendor;
}

const vendors = [
  vendor('acme', BYTES),
  vendor('copycat', null),
  vendor('forger', Buffer.from('what looks like it')),
  vendor('giver', BYTES),
];

/** `had`, or why not. */
async function fetchFrom(name: string, license?: string): Promise<string> {
  const release: Release = {
    ...{ vendor: name, ecosystem: 'bundle', product: 'x', version: '1.0.0', kind: 'fix', requires: [], advisories: [] },
    ...(license === undefined ? {} : { license }),
    artifact: { name: 'x.tar', digest: DIGEST, sizeBytes: BYTES.length, location: 'x.tar' },
    install: { action: 'bundle', prefix: '/opt/x', compression: 'none' },
  };
  const items = [{ id: 'x', fromVersion: '0.9.0', release }];
  // The cast holds: letters are names of VMs.
  const plan = { vm: 'web' as VmId, run: RUN, items, leftOut: [], vendors: [] };
  const signal = new AbortController().signal;
  const around = { store, vendors, terms, signal, owner: 'run:web', clock: systemClock, inspections: new Map() };
  const trouble = await fetchPlan({ ...around, plan, onProgress: () => {} });
  return trouble === null ? 'had' : trouble.kind;
}

test('a blob that came under a license is no other vendor’s to give, unless it shows that it has it [A15] [A17]', async () => {
  assert.equal(await fetchFrom('acme', 'acme-2026'), 'had');
  assert.equal(await fetchFrom('copycat'), 'vendor-unavailable');
  assert.equal(await fetchFrom('forger'), 'vendor-unavailable');
  assert.equal(await fetchFrom('copycat', 'copycat-1'), 'vendor-unavailable');
  assert.equal(await fetchFrom('acme', 'acme-2026'), 'had');
  assert.deepEqual(asked.filter((name) => name === 'acme').length, 1, 'who brought it is not asked again');
  assert.equal(await fetchFrom('giver'), 'had');
  assert.equal(await fetchFrom('giver'), 'had');
  assert.deepEqual(asked.filter((name) => name === 'giver').length, 1);
});

test('a vendor that lays a license of its own on a digest keeps it from nobody, and gains nothing by coming first [A15]', async () => {
  assert.equal(await fetchFrom('copycat', 'copycat-1'), 'vendor-unavailable');
  assert.equal(await fetchFrom('acme', 'acme-2026'), 'had');
  assert.equal(await fetchFrom('copycat', 'copycat-1'), 'vendor-unavailable');
  assert.equal(await fetchFrom('copycat'), 'vendor-unavailable');
});

test('what came under no license is everybody’s, and nothing is written down about it', async () => {
  assert.equal(await fetchFrom('giver'), 'had');
  assert.equal(await fetchFrom('copycat'), 'had');
  assert.equal(terms.mustProve(DIGEST, null), false);
  assert.deepEqual(asked, ['giver']);
});
