// Which drive is attached when a manifest is announced: never another one, whatever the vendor publishes during a run.
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { SPEC } from '../../test/simulator/machine.ts';
import { systemClock } from '../base/clock.ts';
import type { Digest } from '../base/digest.ts';
import { digestOf } from '../base/digest.ts';
import { silentLog } from '../base/log.ts';
import { buildDrive, removeDrives } from '../drive/drive.ts';
import type { RunningVm } from '../hypervisor/hypervisor.ts';
import type { Plan } from '../model/plan.ts';
import { DEFAULT_POLICY } from '../model/policy.ts';
import type { Release } from '../model/release.ts';
import { type BlobStore, openBlobStore } from '../store/blob-store.ts';
import type { Vendor } from '../vendor/vendor.ts';
import { newRun } from './new-run.ts';
import { RUN } from './samples.ts';
import type { Run } from './state.ts';
import { VmDrive } from './vm-drive.ts';
import type { VmRunDeps } from './vm-run-deps.ts';

const signal = new AbortController().signal;
const PACKAGE = 'the package';

let folder = '';
let store: BlobStore;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-vm-drive-'));
  store = await openBlobStore({ folder: join(folder, 'store'), clock: systemClock, log: silentLog, budgetBytes: 0 });
});
afterEach(async () => {
  await store.close();
  await rm(folder, { recursive: true, force: true });
});

const release: Release = {
  ...{ vendor: 'debian', ecosystem: 'debian', product: 'jq', version: '1', kind: 'security' },
  ...{ requires: [], advisories: [], install: { action: 'debian-package' } },
  artifact: { name: 'jq.deb', digest: digestOf(PACKAGE), sizeBytes: PACKAGE.length, location: 'x/jq.deb' },
};
const PLAN: Plan = {
  ...{ vm: SPEC.vm, run: RUN, leftOut: [], vendors: [] },
  items: [{ id: 'jq', fromVersion: '0', release }],
};

/** A vendor that publishes: what it signed last is what it gives out. */
function archive() {
  let edition = 0;
  const publish = async (): Promise<void> => {
    edition += 1;
    await writeFile(join(folder, `edition-${edition}`), `signed, edition ${edition}`);
  };
  const signedArchives: Vendor['signedArchives'] = async () => {
    const text = `signed, edition ${edition}`;
    const file = { path: 'dists/x/InRelease', digest: digestOf(text), sizeBytes: text.length };
    const pool = [{ digest: digestOf(PACKAGE), path: 'pool/jq.deb' }];
    return [
      { suite: 'x', components: ['main'], files: [{ ...file, sourcePath: join(folder, `edition-${edition}`) }], pool },
    ];
  };
  const open: Vendor['open'] = async (_artifact, offsetBytes) =>
    (async function* () {
      yield Buffer.from(PACKAGE).subarray(offsetBytes);
    })();
  // The cast holds: a drive asks no more of a vendor.
  const vendor = { name: 'debian', signedArchives, open, inspect: async () => {} } as unknown as Vendor;
  return { publish, vendor };
}

function machine() {
  const seen: string[] = [];
  let hasDrive = false;
  const parts: Pick<RunningVm, 'driveFrontEnds' | 'attachDrive' | 'detachDrive' | 'hasDrive'> = {
    driveFrontEnds: ['virtio-blk', 'scsi-cd'],
    hasDrive: async () => hasDrive,
    attachDrive: async () => {
      seen.push('attach');
      hasDrive = true;
    },
    detachDrive: async () => {
      seen.push('detach');
      hasDrive = false;
      return { surprise: false };
    },
  };
  // The cast holds: a drive asks no more of a VM.
  return { seen, running: parts as RunningVm };
}

function daemon(vendor: Vendor): VmDrive {
  const parts: Partial<VmRunDeps> = {
    ...{ store, clock: systemClock, vendors: () => [vendor], inspections: new Map() },
    ...{ drives: { build: buildDrive, remove: removeDrives }, drivesFolder: join(folder, 'drives') },
  };
  const audit = { append: async () => {} };
  // The cast holds: these are the rooms that a drive uses.
  const deps = { ...parts, audit } as unknown as VmRunDeps;
  const policy = () => ({ ...DEFAULT_POLICY, apt: 'vendor-verified' }) as const;
  const rest = { note: () => {}, policy, running: () => null, onLost: () => {} };
  return new VmDrive(deps, { vm: SPEC.vm, spec: SPEC, uid: process.getuid?.() ?? 0, ...rest });
}

const runWith = (manifests: readonly Digest[]): Run => ({
  ...newRun({ run: RUN, atMs: 1 }),
  manifests: [...manifests],
});

test('a guest that comes back in the middle of a run is offered the same drive, also when the vendor published meanwhile [A9]', async () => {
  const { publish, vendor } = archive();
  const { seen, running } = machine();
  const drive = daemon(vendor);
  await publish();
  assert.equal(await drive.fetch(PLAN, 'run', signal), null);
  const first = await drive.attach(runWith([]), PLAN, { running, reported: null }, signal);
  await publish();
  assert.equal(await drive.fetch(PLAN, 'run', signal), null);
  assert.equal(await drive.attach(runWith([first]), PLAN, { running, reported: null }, signal), first);
  assert.deepEqual(seen, ['attach']);
  // Its signed files are pinned as before: nothing that is needed goes.
  await store.collect();
  assert.equal(store.has(digestOf('signed, edition 1')), true);
});

test('a daemon that starts anew and would announce another manifest takes the old drive away first [A9 X4]', async () => {
  const { publish, vendor } = archive();
  const { seen, running } = machine();
  await publish();
  const before = daemon(vendor);
  await before.fetch(PLAN, 'run', signal);
  const first = await before.attach(runWith([]), PLAN, { running, reported: null }, signal);

  const same = daemon(vendor);
  await same.find(running);
  await same.fetch(PLAN, 'run', signal);
  assert.equal(await same.attach(runWith([first]), PLAN, { running, reported: null }, signal), first);
  assert.deepEqual(seen, ['attach'], 'nothing was published: the drive that was found is the one');

  await publish();
  const anew = daemon(vendor);
  await anew.find(running);
  await anew.fetch(PLAN, 'run', signal);
  assert.notEqual(await anew.attach(runWith([first]), PLAN, { running, reported: null }, signal), first);
  assert.deepEqual(seen, ['attach', 'detach', 'attach']);
});
