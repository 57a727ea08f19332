// Which drive is attached when a manifest is announced: never another one, whatever the vendor publishes during a run.
import assert from 'node:assert/strict';
import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { SPEC } from '../../test/simulator/machine.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import type { Digest } from '../base/digest.ts';
import { digestOf } from '../base/digest.ts';
import { silentLog } from '../base/log.ts';
import { waitUntil } from '../base/wait-until.ts';
import { buildDrive, type DriveExports, type ExportWatcher, makeDriveExports, removeDrives } from '../drive/drive.ts';
import type { RunningVm } from '../hypervisor/hypervisor.ts';
import type { DriveTransport } from '../model/drive.ts';
import type { LicenseCheck } from '../model/license-check.ts';
import type { Plan } from '../model/plan.ts';
import { DEFAULT_POLICY } from '../model/policy.ts';
import type { Trouble } from '../model/quarantine.ts';
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

function machine(seen: string[] = []) {
  let hasDrive = false;
  const parts: Pick<RunningVm, 'driveFrontEnds' | 'attachDrive' | 'reopenDrive' | 'detachDrive' | 'hasDrive'> = {
    driveFrontEnds: ['virtio-blk', 'scsi-cd'],
    hasDrive: async () => hasDrive,
    attachDrive: async () => {
      seen.push('attach');
      hasDrive = true;
    },
    reopenDrive: async () => void seen.push('reopen'),
    detachDrive: async () => {
      seen.push('detach');
      hasDrive = false;
      return { surprise: false };
    },
  };
  // The cast holds: a drive asks no more of a VM.
  return { seen, running: parts as RunningVm };
}

type Changes = {
  readonly transport?: DriveTransport;
  readonly running?: RunningVm;
  readonly exports?: DriveExports;
  readonly checkLicense?: LicenseCheck;
  readonly lost?: Trouble[];
  readonly notes?: string[];
  readonly clock?: Clock;
  readonly store?: BlobStore;
};

function daemon(vendor: Vendor, changes: Changes = {}): VmDrive {
  const { transport, running = null, exports, checkLicense, lost = [], notes = [] } = changes;
  const parts: Partial<VmRunDeps> = {
    ...{ store: changes.store ?? store, clock: changes.clock ?? systemClock },
    ...{ vendors: () => [vendor], inspections: new Map() },
    ...{ drives: { build: buildDrive, remove: removeDrives }, drivesFolder: join(folder, 'drives') },
    ...(exports === undefined ? {} : { exports }),
    ...(checkLicense === undefined ? {} : { checkLicense }),
  };
  const audit = { append: async () => {} };
  // The cast holds: these are the rooms that a drive uses.
  const deps = { ...parts, audit } as unknown as VmRunDeps;
  return new VmDrive(deps, {
    vm: SPEC.vm,
    spec: transport === undefined ? SPEC : { ...SPEC, drive: { transport } },
    uid: process.getuid?.() ?? 0,
    note: (_kind, text) => void notes.push(text),
    policy: () => ({ ...DEFAULT_POLICY, apt: 'vendor-verified' }),
    running: () => running,
    onLost: (reason) => void lost.push(reason),
  });
}

/** Exports that only say what is asked of them; `die` is what happens when a process dies and is started again, or is given up. */
function scriptedExports(seen: string[]) {
  let watcher: ExportWatcher | null = null;
  const source = { kind: 'raw', path: '/run/drive.iso' } as const;
  const exports: DriveExports = {
    serve: async (request) => {
      request.watcher.mayServe(request.licenses ?? []);
      seen.push('serve');
      watcher = request.watcher;
      return source;
    },
    keep: async (_vm, next) => {
      seen.push('keep');
      watcher = next;
      return source;
    },
    isServing: () => watcher !== null,
    withdraw: async () => {
      if (watcher !== null) seen.push('withdraw');
      watcher = null;
    },
    recover: async () => {},
    close: async () => {},
  };
  return {
    exports,
    restart: async () => await watcher?.onRestart(source, 'it died'),
    giveUp: (error: unknown) => {
      const told = watcher;
      watcher = null;
      told?.onFailure(error);
    },
  };
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

test('nobody serves the new drive before the old one is detached and withdrawn [A4]', async () => {
  const { publish, vendor } = archive();
  const seen: string[] = [];
  const { running } = machine(seen);
  const drive = daemon(vendor, { transport: 'file', running, exports: scriptedExports(seen).exports });
  const guest = { running, reported: null };
  await publish();
  await drive.fetch(PLAN, 'run', signal);
  const first = await drive.attach(runWith([]), PLAN, guest, signal);
  assert.equal(await drive.attach(runWith([first]), PLAN, guest, signal), first);
  assert.deepEqual(seen, ['serve', 'attach'], 'the same drive once');
  const other: Plan = { ...PLAN, items: [{ id: 'jq', fromVersion: '0.5', release }] };
  assert.notEqual(await drive.attach(runWith([first]), other, guest, signal), first);
  assert.deepEqual(seen.slice(2), ['detach', 'withdraw', 'serve', 'attach']);
  await drive.detach(running);
  await drive.forgetAttached();
  assert.deepEqual(seen.slice(6), ['detach', 'withdraw']);
});

test('a drive that cannot be plugged in is not served any longer: it would stand in the way of the next one [A4]', async () => {
  const { publish, vendor } = archive();
  const seen: string[] = [];
  const { running } = machine(seen);
  const broken: RunningVm = { ...running, attachDrive: async () => assert.fail('no such bus') };
  const drive = daemon(vendor, { transport: 'nbd', running, exports: scriptedExports(seen).exports });
  await publish();
  await drive.fetch(PLAN, 'run', signal);
  const guest = { running: broken, reported: null };
  await assert.rejects(drive.attach(runWith([]), PLAN, guest, signal), /no such bus/);
  assert.deepEqual(seen, ['serve', 'withdraw']);
  await drive.attach(runWith([]), PLAN, { running, reported: null }, signal);
  assert.deepEqual(seen.slice(2), ['serve', 'attach']);
});

test('a drive that a broken-off step left with the guest counts as attached: it goes before the gate opens or another one is shown [A4 A11]', async () => {
  const { publish, vendor } = archive();
  const seen: string[] = [];
  const { running } = machine(seen);
  // QEMU did what it was asked, but too late for its answer, and the way back failed as well.
  const attachDrive = async () => {
    await running.attachDrive({ source: { kind: 'vmdk', path: '' }, frontEnd: 'virtio-blk' });
    assert.fail('QEMU did not answer in time');
  };
  const drive = daemon(vendor, { transport: 'nbd', running, exports: scriptedExports(seen).exports });
  await publish();
  await drive.fetch(PLAN, 'run', signal);
  const first = await drive.attach(runWith([]), PLAN, { running, reported: null }, signal);
  await drive.detach(running);
  seen.length = 0;
  const slow: RunningVm = { ...running, attachDrive };
  await assert.rejects(drive.attach(runWith([first]), PLAN, { running: slow, reported: null }, signal), /in time/);
  assert.equal(drive.isAttached, true);
  await drive.attach(runWith([first]), PLAN, { running, reported: null }, signal);
  assert.deepEqual(seen, ['serve', 'attach', 'detach', 'withdraw', 'serve', 'attach']);
  seen.length = 0;
  await drive.detach(running);
  const mute = async () => assert.fail('nor did it answer this');
  const silent: RunningVm = { ...running, attachDrive: mute, hasDrive: mute };
  await assert.rejects(drive.attach(runWith([first]), PLAN, { running: silent, reported: null }, signal), /nor did/);
  await drive.detach(running);
  assert.equal(drive.isAttached, false);
  assert.deepEqual(seen, ['detach', 'withdraw', 'serve', 'detach', 'withdraw']);
});

test('a file that went away and came back is opened anew under the guest, unless it was detached meanwhile [A9]', async () => {
  const { publish, vendor } = archive();
  const [seen, notes, lost]: [string[], string[], Trouble[]] = [[], [], []];
  const { running } = machine(seen);
  const scripted = scriptedExports(seen);
  const drive = daemon(vendor, { transport: 'file', running, exports: scripted.exports, notes, lost });
  await publish();
  await drive.fetch(PLAN, 'run', signal);
  await drive.attach(runWith([]), PLAN, { running, reported: null }, signal);
  assert.equal(notes.at(-1), 'a drive with 1 update is attached (file, virtio-blk)');
  await scripted.restart();
  assert.deepEqual(seen, ['serve', 'attach', 'reopen']);
  assert.equal(notes.at(-1), 'it died; it was started again');
  scripted.giveUp(new Error('it dies whenever it is started'));
  assert.deepEqual(lost, [{ kind: 'host-failure', step: 'drive-export', detail: 'it dies whenever it is started' }]);
  await drive.attach(runWith([]), PLAN, { running, reported: null }, signal);
  assert.deepEqual(seen.slice(3), ['serve', 'reopen'], 'the attached drive is served again when it is offered again');
  const detaching = drive.detach(running);
  await scripted.restart();
  await detaching;
  assert.deepEqual(seen.slice(5), ['detach', 'withdraw']);
});

test('a daemon that starts anew keeps what serves a drive that is attached, and withdraws what no VM has [X4]', async () => {
  const { publish, vendor } = archive();
  const seen: string[] = [];
  const { running } = machine(seen);
  const { exports } = scriptedExports(seen);
  await publish();
  const before = daemon(vendor, { transport: 'nbd', running, exports });
  await before.fetch(PLAN, 'run', signal);
  await before.attach(runWith([]), PLAN, { running, reported: null }, signal);
  await daemon(vendor, { transport: 'nbd', running, exports }).find(running);
  assert.deepEqual(seen, ['serve', 'attach', 'keep']);
  await running.detachDrive();
  await daemon(vendor, { transport: 'nbd', running, exports }).find(running);
  assert.deepEqual(seen.slice(3), ['detach', 'withdraw']);
});

const LICENSED: Plan = {
  ...PLAN,
  items: [{ id: 'jq', fromVersion: '0', release: { ...release, license: 'antivirus' } }],
};

for (const transport of ['direct', 'file'] as const) {
  test(`what a license guards is neither put on a drive without a lease nor shown once it has lapsed (${transport}) [A15]`, async () => {
    const { publish, vendor } = archive();
    const seen: string[] = [];
    const asked: string[] = [];
    const { running } = machine(seen);
    let leftToAllow = 0;
    const checkLicense: LicenseCheck = (vm, license) => {
      asked.push(`${vm} ${license}`);
      leftToAllow -= 1;
      return leftToAllow >= 0 ? null : 'LEASE_EXPIRED';
    };
    const { exports } = scriptedExports(seen);
    const drive = daemon(vendor, { transport, running, exports, checkLicense });
    const attach = async () => await drive.attach(runWith([]), LICENSED, { running, reported: null }, signal);
    const refused = {
      code: 'refused/license',
      trouble: { kind: 'license-refused', license: 'antivirus', code: 'LEASE_EXPIRED' },
    };
    await publish();
    assert.deepEqual(await drive.fetch(LICENSED, 'run', signal), refused.trouble, 'nor is it fetched');
    leftToAllow = 1;
    assert.equal(await drive.fetch(LICENSED, 'run', signal), null);
    // It is in the store now, and not a word of that is in the answer.
    assert.deepEqual(await drive.fetch(LICENSED, 'run', signal), refused.trouble);
    asked.length = 0;
    await assert.rejects(attach(), refused);
    assert.deepEqual(asked, [`${SPEC.vm} antivirus`]);
    await assert.rejects(readdir(join(folder, 'drives')), { code: 'ENOENT' }, 'nothing was built');
    leftToAllow = 1;
    await assert.rejects(attach(), refused, 'it lapsed between building and attaching');
    assert.equal((await readdir(join(folder, 'drives', SPEC.vm))).length, 1, 'positive control: it was built');
    assert.deepEqual(seen, []);
    leftToAllow = 10;
    await attach();
    assert.equal(seen.at(-1), 'attach');
    leftToAllow = 0;
    await assert.rejects(attach(), refused, 'nor is what is attached offered again');
  });
}

test('an export that died is not started again for a VM whose lease has lapsed, and its run says why [A15]', async () => {
  const { publish, vendor } = archive();
  const [seen, lost]: [string[], Trouble[]] = [[], []];
  const { running } = machine(seen);
  let answer: string | null = null;
  const runFolder = join(folder, 'run');
  const exports = makeDriveExports({ runFolder, clock: systemClock, log: silentLog });
  try {
    const drive = daemon(vendor, { transport: 'nbd', running, exports, lost, checkLicense: () => answer });
    await publish();
    await drive.fetch(LICENSED, 'run', signal);
    await chmod(folder, 0o711);
    await drive.attach(runWith([]), LICENSED, { running, reported: null }, signal);
    answer = 'LEASE_EXPIRED';
    process.kill(Number((await readFile(join(runFolder, 'drives', SPEC.vm, 'pid'), 'utf8')).split(' ')[0]), 'SIGKILL');
    assert(await waitUntil(async () => lost.length > 0, systemClock, 10_000));
    assert.deepEqual(lost, [{ kind: 'license-refused', license: 'antivirus', code: 'LEASE_EXPIRED' }]);
  } finally {
    await exports.withdraw(SPEC.vm);
    await exports.close();
  }
});

/** Turns one bit in the middle of a file, as a disk does that rots. */
async function rot(path: string): Promise<void> {
  const bytes = await readFile(path);
  const at = Math.floor(bytes.length / 2);
  bytes.writeUInt8(bytes.readUInt8(at) ^ 1, at);
  await chmod(path, 0o600);
  await writeFile(path, bytes);
}

test('a signed file of the vendor that rotted in the store is taken out of it and brought anew [X4]', async () => {
  const { publish, vendor } = archive();
  const { running } = machine();
  const notes: string[] = [];
  const drive = daemon(vendor, { notes });
  await publish();
  assert.equal(await drive.fetch(PLAN, 'run', signal), null);
  const digest = digestOf('signed, edition 1');
  await rot(store.path(digest));
  await drive.attach(runWith([]), PLAN, { running, reported: null }, signal);
  assert.match(notes.join('; '), /damaged on this host .* to be fetched anew: dists\/x\/InRelease/);
  assert.equal(await store.verify(digest), true, 'the store has a sound one');
});

test('when its guest doubts a drive, the copies are looked at and the drive is made anew: its own file may be what rotted [X4]', async () => {
  const { publish, vendor } = archive();
  const { seen, running } = machine();
  const notes: string[] = [];
  const drive = daemon(vendor, { notes });
  await publish();
  assert.equal(await drive.fetch(PLAN, 'run', signal), null);
  const first = await drive.attach(runWith([]), PLAN, { running, reported: null }, signal);
  const metadata = join(folder, 'drives', SPEC.vm, RUN, 'meta.bin');
  const sound = await readFile(metadata);
  // The package is packed behind everything else.
  const rotten = Buffer.from(sound);
  rotten.write('THE', sound.lastIndexOf(PACKAGE));
  await chmod(metadata, 0o600);
  await writeFile(metadata, rotten);
  assert.equal(await drive.attach(runWith([first]), PLAN, { running, reported: null }, signal), first);
  assert.deepEqual(await readFile(metadata), rotten, 'positive control: an offer alone does not see it');
  await drive.detach(running);
  await drive.verifyBlobs(PLAN);
  assert.match(notes.join('; '), /this host's copies of the updates are sound/);
  assert.equal(await drive.attach(runWith([first]), PLAN, { running, reported: null }, signal), first);
  assert.deepEqual(await readFile(metadata), sound);
  assert.deepEqual(seen, ['attach', 'detach', 'attach']);
});

test('a guest that lies again and again keeps the disk busy for a tenth of the time at most, however long a look takes [A10]', async () => {
  const { publish, vendor } = archive();
  let nowMs = 0;
  let readingMs = 0;
  const clock: Clock = { ...systemClock, monotonicMs: () => nowMs };
  const verify: BlobStore['verify'] = async () => {
    nowMs += 60_000;
    readingMs += 60_000;
    return true;
  };
  const drive = daemon(vendor, { clock, store: { ...store, verify } });
  await publish();
  await drive.fetch(PLAN, 'run', signal);
  for (; nowMs < 24 * 3_600_000; nowMs += 1_000) await drive.verifyBlobs(PLAN);
  assert.ok(readingMs > 60_000, 'positive control: it is looked at again');
  assert.ok(readingMs <= nowMs / 10 + 120_000, `${readingMs} of ${nowMs} ms`);
});
