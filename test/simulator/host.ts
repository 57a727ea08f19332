// The daemon's rooms for one incarnation of it: the real gate over a fake fence; store, vendor, drives and disk that are late or fail.
import type { Audit } from '../../src/audit/audit.ts';
import type { AuditRecord } from '../../src/audit/record.ts';
import { digestOf } from '../../src/base/digest.ts';
import { silentLog } from '../../src/base/log.ts';
import type { DatabaseSync } from '../../src/base/sqlite.ts';
import { isEvidence } from '../../src/confirm/judge.ts';
import { type Gate, makeGate } from '../../src/gate/gate.ts';
import { makeInventoryStore } from '../../src/inventory/inventory-store.ts';
import type { Plan } from '../../src/model/plan.ts';
import type { Release } from '../../src/model/release.ts';
import type { BlobStore } from '../../src/store/blob-store.ts';
import { type Journal, openJournal } from '../../src/update/journal.ts';
import type { VmRunDeps } from '../../src/update/vm-run-deps.ts';
import { VendorError } from '../../src/vendor/errors.ts';
import { compareSemver } from '../../src/vendor/tuf/choose.ts';
import type { Vendor } from '../../src/vendor/vendor.ts';
import type { FakeClock } from './clock.ts';
import type { Guest } from './guest.ts';
import { type Machine, makeFence, type SimDriver, type Touch, VM } from './machine.ts';
import type { Random } from './random.ts';

/** An invariant does not hold. */
export class Broken extends Error {}

/** Something wrong on purpose, to see that it is found. */
export type Sabotage =
  | 'opens-on-installed'
  | 'ignores-kexec'
  | 'opens-before-record'
  | 'discards-accepted'
  | 'forgets-failed';

export const DISK_FULL = 'database or disk is full';

/** What an incarnation of the daemon finds outside of itself. */
export type Outside = {
  readonly clock: FakeClock;
  readonly random: Random;
  readonly machine: Machine;
  readonly guest: Guest;
  readonly blobs: Set<string>;
  readonly pins: Map<string, readonly string[]>;
  readonly drives: Map<string, Plan>;
  readonly sabotage: Sabotage | null;
  readonly isDead: () => boolean;
  readonly isVendorIll: () => boolean;
  readonly isDiskFull: () => boolean;
  readonly isStormy: () => boolean;
  readonly latest: () => string;
  /** A drive with this plan is made for the VM. */
  readonly offered: (plan: Plan) => void;
  readonly say: (what: string) => void;
  /** Notes a broken invariant. Throwing would be taken for a failed effect. */
  readonly complain: (broken: string) => void;
  /** Looks at what must hold at every touch. */
  readonly look: () => void;
  readonly recorded: (record: AuditRecord) => void;
  /** Closings under way. */
  readonly closing: Set<object>;
};

const never = (): Promise<never> => new Promise(() => {});

/** A journal that loses what a crash finds on its way to the disk, and that a full disk refuses. */
export function openLossyJournal(db: DatabaseSync, outside: Outside): Journal {
  const real = openJournal(db);
  const durable = async (work: () => Promise<void>): Promise<void> => {
    if (outside.random.chance(0.2)) await outside.clock.sleep(outside.random.between(1, 300));
    if (outside.isDead()) await never();
    if (outside.isDiskFull()) throw new Error(DISK_FULL);
    const written = work();
    real.flush();
    await written;
  };
  return {
    ...real,
    note: () => {},
    saveState: (...args) => durable(() => real.saveState(...args)),
    savePlan: (plan) => durable(() => real.savePlan(plan)),
    rememberFailed: (...args) =>
      durable(() => (outside.sabotage === 'forgets-failed' ? Promise.resolve() : real.rememberFailed(...args))),
    forgetFailed: (vm) => durable(() => real.forgetFailed(vm)),
  };
}

/** Every touch of the world is late by chance, fails by chance, and never comes once the daemon is dead. */
export function makeTouch({ clock, random, isStormy, isDead, say }: Outside): Touch {
  return async (what, work, { mayFail } = {}) => {
    const delayMs = isStormy()
      ? random.pick([
          [12, 0],
          [4, random.between(1, 100)],
          [1, random.between(1_000, 20_000)],
        ])
      : 1;
    if (delayMs > 0) await clock.sleep(delayMs);
    if (isDead()) await never();
    if (mayFail !== false && isStormy() && random.chance(0.02)) throw new Error(`${what}: it failed by chance`);
    const result = work();
    say(`  ${what}`);
    return result;
  };
}

type Parts = {
  readonly db: DatabaseSync;
  readonly outside: Outside;
  readonly journal: Journal;
  readonly driver: SimDriver;
  readonly touch: Touch;
};

/** What a run works with. */
export function makeDeps({ db, outside, journal, driver, touch }: Parts): VmRunDeps {
  const { clock, machine } = outside;
  const append = (record: AuditRecord) =>
    touch(`record ${record.kind}`, () => {
      machine.audit.push({ record, epoch: machine.epoch });
      outside.recorded(record);
      return { seq: machine.audit.length, hash: '' };
    });
  const audit: Pick<Audit, 'append'> = { append };
  return {
    clock,
    log: silentLog,
    journal,
    driver,
    gate: makeSimGate(outside, touch, append),
    store: makeStore(outside, touch),
    vendors: () => [makeVendor(outside, touch)],
    inventories: makeInventoryStore(db),
    // The cast holds: a run only appends.
    audit: audit as Audit,
    inspections: new Map(),
    openChannel: (options) =>
      outside.guest.openChannel({
        ...options,
        onEvent: (event) => {
          if (!outside.isDead()) options.onEvent(event);
        },
      }),
    drives: makeDrives(outside, touch),
    drivesFolder: '/simulated',
  };
}

function makeSimGate(outside: Outside, touch: Touch, append: (record: AuditRecord) => Promise<unknown>): Gate {
  const { machine, sabotage, clock } = outside;
  const fence = makeFence(machine, touch, outside.look);
  const isOpening = (record: AuditRecord) => record.kind === 'gate-opened' || record.kind === 'override';
  const gate = makeGate({
    fenceFor: async () => fence,
    audit: async (record) => {
      if (sabotage === 'opens-before-record' && isOpening(record)) return;
      await append(record);
    },
    isEvidence,
    log: silentLog,
    clock,
  });
  const counted = async (work: () => Promise<void>): Promise<void> => {
    const token = {};
    outside.closing.add(token);
    await work().finally(() => outside.closing.delete(token));
  };
  return {
    ...gate,
    fenceOff: (...args) => counted(() => gate.fenceOff(...args)),
    close: async (vm, reason) => {
      if (sabotage === 'ignores-kexec' && reason === 'the guest booted again') return;
      await counted(() => gate.close(vm, reason));
    },
  };
}

function makeDrives({ blobs, drives, complain, offered }: Outside, touch: Touch): VmRunDeps['drives'] {
  return {
    build: ({ plan, planDigest, run }) =>
      touch('build the drive', () => {
        const missing = plan.items.find((item) => !blobs.has(item.release.artifact.digest));
        if (missing !== undefined) complain(`a drive was built without the blob of ${missing.id}`);
        offered(plan);
        const manifestDigest = digestOf(`${run} ${planDigest}`);
        drives.set(manifestDigest, plan);
        const manifest = { format: 'pratique.manifest/1', vm: VM, run, planDigest, items: [], extraFiles: [] } as const;
        return {
          manifest: { ...manifest, items: [], extraFiles: [] },
          manifestDigest,
          label: 'PRATIQUE',
          sizeBytes: 1,
          image: { path: '/simulated', format: 'vmdk' },
        };
      }),
    remove: () => touch('remove drives', () => {}),
  };
}

function makeStore({ blobs, pins, clock, random, isVendorIll }: Outside, touch: Touch): BlobStore {
  const store: Pick<BlobStore, 'has' | 'path' | 'ensure' | 'pin' | 'unpin'> = {
    has: (digest) => blobs.has(digest),
    path: () => '/simulated',
    ensure: async ({ digest, signal }) => {
      await clock.sleep(random.between(1, 60_000), signal);
      if (isVendorIll()) throw new VendorError('vendor-ill/http', 'the server does not answer');
      return await touch('fetch', () => {
        blobs.add(digest);
        return { path: '/simulated', wasPresent: false };
      });
    },
    pin: (owner, digests) => pins.set(owner, [...(pins.get(owner) ?? []), ...digests]),
    unpin: (owner) => pins.delete(owner),
  };
  // The cast holds: a run and the planner use no more of it.
  return store as BlobStore;
}

function makeVendor({ clock, isVendorIll, latest }: Outside, touch: Touch): Vendor {
  // Its signatures hold for ever; how old what it said last may be is the policy's to say.
  let checkedAtMs = clock.nowMs();
  const status = () => ({ vendor: 'v', checkedAtMs, isFresh: true, trouble: null });
  const releases = () => [makeRelease('hello', latest()), makeRelease('late', '9.0.0')];
  return {
    name: 'v',
    kind: 'tuf',
    ecosystem: 'bundle',
    status,
    refresh: () =>
      touch('ask the vendor', () => {
        if (isVendorIll()) throw new VendorError('vendor-ill/http', 'the server does not answer');
        checkedAtMs = clock.nowMs();
        return status();
      }),
    latest: async ({ products }) => ({
      releases: releases().filter((one) => products.some(({ product }) => product === one.product)),
      leftOut: [],
    }),
    offers: async () => releases(),
    compareVersions: compareSemver,
    open: () => Promise.reject(new Error('the simulated store does not ask')),
    inspect: async () => {},
    close: async () => {},
  };
}

function makeRelease(product: string, version: string): Release {
  return {
    vendor: 'v',
    ecosystem: 'bundle',
    product,
    version,
    kind: 'security',
    requires: [],
    advisories: [],
    artifact: { name: product, digest: digestOf(`${product} ${version}`), sizeBytes: 1, location: product },
    install: { action: 'bundle', prefix: '/opt/x', compression: 'none' },
  };
}
