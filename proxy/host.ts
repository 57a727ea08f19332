// The running host: opens every room over one data folder, takes over the VMs it knows, and answers the surfaces.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { openAudit } from '../src/audit/audit.ts';
import type { Clock } from '../src/base/clock.ts';
import { digestOf } from '../src/base/digest.ts';
import { canonicalJson } from '../src/base/digest-text.ts';
import { describeError, PratiqueError } from '../src/base/errors.ts';
import { makeHttpFetch, type RequestInterceptor } from '../src/base/http-fetch.ts';
import { DRIVE_BUILDS_AT_ONCE_MAX } from '../src/base/limits.ts';
import type { Log } from '../src/base/log.ts';
import { makeSlots } from '../src/base/slots.ts';
import { type DatabaseSync, openDatabase } from '../src/base/sqlite.ts';
import { openTrustTime } from '../src/base/trust-time.ts';
import { isEvidence } from '../src/confirm/judge.ts';
import { buildDrive, makeDriveExports, removeDrives } from '../src/drive/drive.ts';
import { makeGate } from '../src/gate/gate.ts';
import { openGuestChannel } from '../src/guest/session.ts';
import { type Fence, openFence } from '../src/hypervisor/fence.ts';
import { namespaceKey } from '../src/hypervisor/namespace.ts';
import { prepareImage } from '../src/hypervisor/qmp/disk-paths.ts';
import { makeQmpDriver } from '../src/hypervisor/qmp/driver.ts';
import type { Namespace, VmSpec } from '../src/hypervisor/vm-spec.ts';
import { makeInspector } from '../src/inspect/inspector.ts';
import { makeInventoryStore } from '../src/inventory/inventory-store.ts';
import { openBlobTerms } from '../src/license/blob-terms.ts';
import { openVault } from '../src/license/vault.ts';
import type { VmId } from '../src/model/ids.ts';
import { openBlobStore } from '../src/store/blob-store.ts';
import { openConfigSalt } from '../src/update/config-salt.ts';
import { openJournal, type StoredVm } from '../src/update/journal.ts';
import { hasVm } from '../src/update/state.ts';
import { namespaceOf, tapNamesOf } from '../src/update/taps.ts';
import { VmRun } from '../src/update/vm-run.ts';
import type { VmRunDeps } from '../src/update/vm-run-deps.ts';
import { beginAfterRestore } from './after-restore.ts';
import type { Config } from './config.ts';
import { HOST_DATABASE, HOST_MIGRATIONS } from './databases.ts';
import { GUEST_CONFIG_STATE, openHostGuestConfig } from './guest-config.ts';
import type { HostRooms } from './host-rooms.ts';
import { makeService } from './host-service.ts';
import { openLicenses } from './licenses.ts';
import { startMaintenance } from './maintenance.ts';
import { openScrubbing } from './scrubbing.ts';
import type { Service } from './service.ts';
import { openVendorBook, type VendorBook } from './vendor-book.ts';
import { type OwnPolicy, policyOf, tenantOfGroup } from './vm-policy.ts';

export type HostOptions = {
  readonly config: Config;
  readonly log: Log;
  readonly clock: Clock;
};

export type RunningHost = { readonly service: Service; readonly rooms: HostRooms; readonly close: () => Promise<void> };

/** Opens the host over its data folder and takes over its VMs. Throws PratiqueError when a room cannot be opened. */
export async function startHost(options: HostOptions): Promise<RunningHost> {
  const { config, log } = options;
  const { dataFolder, runFolder } = config;
  // QEMUs run under other users and reach their own drives below; listing is not for them.
  await mkdir(dataFolder, { recursive: true, mode: 0o711 });
  await mkdir(runFolder, { recursive: true, mode: 0o711 });
  const trustTime = await openTrustTime({ path: join(dataFolder, 'trust-time.json'), clock: options.clock, log });
  const clock: Clock = { ...options.clock, trustedMs: trustTime.nowMs };
  const timed: HostOptions = { ...options, clock };
  const db = openDatabase(join(dataFolder, HOST_DATABASE), HOST_MIGRATIONS);
  const journal = openJournal(db);
  const inventories = makeInventoryStore(db);
  const audit = await openAudit({ folder: join(dataFolder, 'audit'), clock, log });
  const storeFolder = join(dataFolder, 'store');
  const blobs = await openBlobStore({ folder: storeFolder, clock, log, budgetBytes: config.storeBudgetBytes });
  const scrubbing = await openScrubbing({ store: blobs, folder: storeFolder, clock, log });
  const store = { ...blobs, scrub: scrubbing.scrub };
  const runs = new Map<VmId, VmRun>();
  const ownPolicies = new Map<VmId, OwnPolicy>();
  const vault = await openVault({ folder: join(dataFolder, 'licenses'), clock, log });
  const licenses = openLicenses({
    ...{ db, vault, clock, log, policy: config.licenses, record: (record) => audit.append(record) },
    groupTenantOf: (vm) => tenantOfGroup(config, vm, ownPolicies.get(vm)),
    onEnded: (vm, license, code) => runs.get(vm)?.loseLicense(license, code),
  });
  const vendors = await openVendors(timed, db, licenses.intercept);
  const fences = makeFences(timed);
  const gate = makeGate({ fenceFor: fences.fenceFor, audit: (record) => audit.append(record), isEvidence, log });
  const guestConfig = await openHostGuestConfig({ config, runs, ownPolicies, clock, log });
  const diskRoots = [...config.diskRoots, dataFolder];
  // Only root may give a QEMU a user of its own; for anybody else it runs as they do.
  const uidFor = async (vm: VmId) => (process.getuid?.() === 0 ? (runs.get(vm)?.uid ?? null) : null);
  const overlayFolder = overlayFolderOf(config);
  const driver = makeQmpDriver({
    runFolder,
    overlayFolder,
    diskRoots,
    uidFor,
    seedFor: guestConfig.seeds.seedFor,
    fenceFor: fences.fenceFor,
    clock,
    log,
  });
  const inspector = makeInspector({
    clock,
    uidFor,
    prepare: (vm, disk, uid) => prepareImage(vm, disk, uid, diskRoots),
    scratchFolder: join(dataFolder, 'looks'),
  });
  const exports = makeDriveExports({ runFolder, clock, log });
  const configSalt = await openConfigSalt(join(dataFolder, GUEST_CONFIG_STATE));
  const deps = makeRunDeps(timed, {
    ...{ journal, inventories, audit, store, vendors, gate, driver, inspector, exports, configSalt },
    ...{ guestConfig: guestConfig.resolve, finishSeed: guestConfig.seeds.finish },
    ...{ checkLicense: licenses.book.check, seats: licenses.book, blobTerms: openBlobTerms(db) },
  });
  const rooms: HostRooms = {
    config,
    clock,
    log,
    journal,
    inventories,
    audit,
    store,
    scrubbing,
    trustTime,
    gate,
    vendors,
    runs,
    fenceFor: fences.fenceFor,
    guestConfig,
    licenses,
    ownPolicies,
    addRun: (spec, given) => addRun(rooms, deps, spec, given),
    removeRun: (run, record) => removeRun(rooms, deps, run, record),
  };
  const endRestore = await beginAfterRestore(rooms);
  await exports.recover(new Set(journal.load().map(({ vm }) => vm)));
  await takeOver(rooms, deps);
  await endRestore?.();
  const maintenance = startMaintenance(rooms);
  licenses.start(new Set(runs.keys()));
  guestConfig.startPolling();
  return {
    service: makeService(rooms),
    rooms,
    close: async () => {
      await Promise.all([maintenance.close(), guestConfig.close()]);
      await licenses.close();
      await inspector.close();
      await Promise.all([...runs.values()].map((run) => run.close()));
      await exports.close();
      await vendors.close();
      await scrubbing.close();
      await store.close();
      await fences.close();
      await audit.close();
      journal.flush();
      db.close();
      await trustTime.save();
    },
  };
}

type Parts = Pick<
  VmRunDeps,
  | 'journal'
  | 'inventories'
  | 'audit'
  | 'store'
  | 'gate'
  | 'driver'
  | 'inspector'
  | 'exports'
  | 'guestConfig'
  | 'finishSeed'
  | 'configSalt'
  | 'checkLicense'
  | 'seats'
  | 'blobTerms'
> & {
  readonly vendors: VendorBook;
};

function makeRunDeps(options: HostOptions, parts: Parts): VmRunDeps {
  const { clock, log, config } = options;
  return {
    ...parts,
    clock,
    log,
    vendors: () => parts.vendors.registry.all(),
    inspections: new Map(),
    openChannel: openGuestChannel,
    drives: { build: makeBoundedBuild(), remove: removeDrives },
    drivesFolder: join(config.dataFolder, 'drives'),
    deadlinesMs: Object.fromEntries(
      Object.entries(config.deadlines).map(([state, seconds]) => [state, seconds * 1000]),
    ),
  };
}

/** Builds drives a few at a time: a fleet that starts at once is not to hold hundreds of them in memory. */
function makeBoundedBuild(): typeof buildDrive {
  const slots = makeSlots(DRIVE_BUILDS_AT_ONCE_MAX);
  const never = new AbortController().signal;
  return (drive) => slots.withSlot(never, () => buildDrive(drive));
}

async function openVendors(
  { config, log, clock }: HostOptions,
  db: DatabaseSync,
  intercept: RequestInterceptor,
): Promise<VendorBook> {
  return await openVendorBook(config.vendors, {
    db,
    folder: join(config.dataFolder, 'vendors'),
    http: makeHttpFetch({ clock, log, intercept }),
    clock,
    log,
    // A vendor tells what its signatures say of its metadata; how old they may be is each VM's policy.
    metadataAgeMaxMs: Number.MAX_SAFE_INTEGER,
  });
}

type Fences = { readonly fenceFor: (namespace: Namespace) => Promise<Fence>; readonly close: () => Promise<void> };

/** One fence for each network namespace, opened when it is first needed. */
function makeFences({ log, clock }: HostOptions): Fences {
  const fences = new Map<string, Promise<Fence>>();
  return {
    fenceFor: (namespace) => {
      const key = namespaceKey(namespace);
      const known = fences.get(key);
      if (known !== undefined) return known;
      const opening = openFence({ namespace, log, clock });
      fences.set(key, opening);
      opening.catch(() => fences.delete(key)); // The next caller tries again; this one has the error.
      return opening;
    },
    close: async () => {
      const opened = await Promise.allSettled(fences.values());
      await Promise.all(opened.map(async (each) => (each.status === 'fulfilled' ? each.value.close() : undefined)));
    },
  };
}

export function addRun(rooms: HostRooms, deps: VmRunDeps, spec: VmSpec, given: OwnPolicy): VmRun {
  // The journal also has those that are being removed: their rows, and so their user ids, are not free yet.
  const stored = rooms.journal.load();
  if (stored.some(({ vm }) => vm === spec.vm)) {
    throw new PratiqueError('conflict/vm-exists', `a VM ${spec.vm} is being removed`, {
      next: 'add it again in a moment',
    });
  }
  const record: StoredVm = {
    vm: spec.vm,
    uid: freeUid(rooms, stored),
    spec,
    specDigest: digestOf(canonicalJson(spec)),
    ...given,
    journaled: { step: 0, state: { kind: 'off' } },
    sinceMs: rooms.clock.nowMs(),
  };
  rooms.journal.addVm(record);
  return openRun(rooms, deps, record);
}

/** A VM with the policy that holds for it now, by the configuration this daemon was started with. */
function openRun(rooms: HostRooms, deps: VmRunDeps, { own, group, ...record }: StoredVm): VmRun {
  const { policy, trouble } = policyOf(rooms.config, record.vm, { own, group });
  const run = new VmRun(deps, { ...record, policy });
  run.policyTrouble = trouble;
  rooms.ownPolicies.set(record.vm, { own, group });
  rooms.runs.set(record.vm, run);
  if (trouble !== null) rooms.log.warn({ vm: record.vm, trouble }, 'the policy of a VM does not hold; it stays gated');
  return run;
}

/** Forgets a VM that is off, and gives back what the host kept for it. */
export async function removeRun(
  rooms: HostRooms,
  deps: VmRunDeps,
  run: VmRun,
  record: () => Promise<void>,
): Promise<void> {
  const { runs, inventories, journal, log } = rooms;
  await settleBeforeRemoval(rooms, run);
  runs.delete(run.vm);
  try {
    await record();
  } catch (error) {
    runs.set(run.vm, run);
    throw error;
  }
  await run.close();
  try {
    await run.forget();
    await rooms.guestConfig?.forget(run.vm);
    // The standing rules cover our own taps; others are fenced only as long as they belong to a VM of ours.
    if (run.spec.kind === 'attached') {
      const fence = await rooms.fenceFor(namespaceOf(run.spec));
      await fence.unguard(tapNamesOf(run.spec));
    }
  } catch (error) {
    log.warn({ vm: run.vm, detail: describeError(error) }, 'not all that belonged to a removed VM could be given back');
  }
  const stored = journal.load().find(({ vm }) => vm === run.vm);
  try {
    inventories.forget(run.vm);
    journal.removeVm(run.vm);
  } catch (cause) {
    // It is still on the disk: as long as that is so, it can be seen, and removed once more.
    if (stored !== undefined) openRun(rooms, deps, stored);
    throw new PratiqueError('host-fault/database', `${run.vm} could not be taken out of the database, so it stays`, {
      cause,
      next: `check the free space and remove it again: pratique vm remove ${run.vm}`,
    });
  }
  rooms.ownPolicies.delete(run.vm);
  // Its row is gone: from here on its seats go back, at the latest after the next start.
  rooms.licenses?.forgetVm(run.vm);
}

/** A VM of which nobody knows any more is one whose accepted update nobody merges, or somebody into a disk that went on without it. */
async function settleBeforeRemoval({ config }: HostRooms, run: VmRun): Promise<void> {
  try {
    await run.settleOverlay();
  } catch (cause) {
    const folder = join(overlayFolderOf(config), run.vm);
    throw new PratiqueError('conflict/overlay', `${run.vm}: its last update is not in its disk yet, so it stays`, {
      cause,
      next: `mend that and remove the VM again; if its disk is gone for good, remove ${folder} first`,
    });
  }
  // It may have been started meanwhile: merging takes its time.
  if (!hasVm(run.runner.state())) return;
  throw new PratiqueError('conflict/running', `${run.vm} is running`, {
    next: `stop it first: pratique vm stop ${run.vm}`,
  });
}

const overlayFolderOf = ({ dataFolder }: Config): string => join(dataFolder, 'overlays');

/** The lowest user id of the configured range that no VM has. */
function freeUid({ config }: HostRooms, stored: readonly StoredVm[]): number {
  const taken = new Set(stored.map(({ uid }) => uid));
  const { first, count } = config.uids;
  for (let uid = first; uid < first + count; uid += 1) if (!taken.has(uid)) return uid;
  throw new PratiqueError('refused/uids', `all ${count} user ids for VMs are taken`, {
    next: 'raise uids.count in the configuration',
  });
}

/** Each VM on its own: what goes wrong with one is said and does not keep the others. */
export async function takeOver(rooms: HostRooms, deps: VmRunDeps): Promise<void> {
  const records = rooms.journal.load();
  for (const record of records) openRun(rooms, deps, record);
  await Promise.all(
    [...rooms.runs.values()].map(async (run) => {
      try {
        await run.recover();
      } catch (error) {
        rooms.log.error({ vm: run.vm, detail: describeError(error) }, 'a VM could not be taken over');
        run.runner.post({ kind: 'monitor-lost', detail: describeError(error) });
      }
    }),
  );
}
