// One incarnation of the daemon: the real runs, journal, audit, gate, service and maintenance over what is simulated.

import type { Config } from '../../proxy/config.ts';
import { addRun, removeRun, takeOver } from '../../proxy/host.ts';
import type { HostRooms } from '../../proxy/host-rooms.ts';
import { makeService } from '../../proxy/host-service.ts';
import { startMaintenance } from '../../proxy/maintenance.ts';
import type { Service } from '../../proxy/service.ts';
import type { VendorBook } from '../../proxy/vendor-book.ts';
import { type Audit, openAudit } from '../../src/audit/audit.ts';
import type { AuditRecord } from '../../src/audit/record.ts';
import { STATE_DEADLINES_MS } from '../../src/base/limits.ts';
import { silentLog } from '../../src/base/log.ts';
import { type DatabaseSync, openDatabase } from '../../src/base/sqlite.ts';
import { isEvidence } from '../../src/confirm/judge.ts';
import { type Gate, makeGate } from '../../src/gate/gate.ts';
import { openGuestChannel } from '../../src/guest/session.ts';
import { INVENTORY_MIGRATIONS, makeInventoryStore } from '../../src/inventory/inventory-store.ts';
import type { LeaseBook } from '../../src/license/lease-book.ts';
import { LEASE_MIGRATIONS } from '../../src/license/lease-rows.ts';
import type { VmId } from '../../src/model/ids.ts';
import { DEFAULT_POLICY } from '../../src/model/policy.ts';
import {
  FAILED_UPDATE_MIGRATIONS,
  JOURNAL_MIGRATIONS,
  type Journal,
  OWN_POLICY_MIGRATIONS,
  openJournal,
} from '../../src/update/journal.ts';
import type { VmRun } from '../../src/update/vm-run.ts';
import type { VmRunDeps } from '../../src/update/vm-run-deps.ts';
import type { ProcessClock } from './clock.ts';
import { JOURNAL_DB } from './disk.ts';
import { licenseRoom, openLicenses } from './licenses.ts';
import { makeDriver, makeFence, SimulatedFault, type Touch } from './machine.ts';
import { DISK_FULL, makeDrives, makeStore, makeVendor, type RoomsParts } from './rooms.ts';
import type { World } from './world.ts';

export type Daemon = {
  isDead: boolean;
  /** It has taken over its VMs, and answers. */
  isReady: boolean;
  readyAtMs: number;
  isClosing: boolean;
  readonly startedAtMs: number;
  readonly clock: ProcessClock;
  readonly rooms: HostRooms;
  /** Null in a life where nothing is under a license. */
  readonly leases: LeaseBook | null;
  readonly service: Service;
  readonly runOf: (vm: VmId) => VmRun | null;
  /** Closings of a VM's gate under way. */
  readonly closing: Map<VmId, number>;
  /** When the first of them was asked for. */
  readonly closingSinceMs: Map<VmId, number>;
  /** Nonce of the channel session that the host has with a VM. */
  readonly sessions: Map<VmId, string>;
  /** Ends the process as a stop of the service does. */
  readonly close: () => Promise<void>;
  /** Lets go of the files of a process that was killed. */
  readonly abandon: () => Promise<void>;
};

type Mine = Pick<Daemon, 'isDead' | 'isReady' | 'isClosing' | 'closing' | 'closingSinceMs' | 'sessions'> & {
  readonly clock: ProcessClock;
};

const never = (): Promise<never> => new Promise(() => {});

/** Starts the daemon over the world's disk. It is ready some time later. */
export async function startDaemon(world: World): Promise<Daemon> {
  const clock = makeProcessClock(world);
  const mine: Mine = {
    isDead: false,
    isReady: false,
    isClosing: false,
    closing: new Map(),
    closingSinceMs: new Map(),
    sessions: new Map(),
    clock,
  };
  const { folder, audit: auditDb } = world.disk;
  const db = openDatabase(`${folder()}/${JOURNAL_DB}`, [
    ...JOURNAL_MIGRATIONS,
    ...INVENTORY_MIGRATIONS,
    ...FAILED_UPDATE_MIGRATIONS,
    ...OWN_POLICY_MIGRATIONS,
    ...LEASE_MIGRATIONS,
  ]);
  fillUp(db, () => world.full.has('journal'));
  const realAudit = await openAudit({ folder: `${folder()}/audit`, clock, log: silentLog });
  const audit = makeAudit(world, mine, realAudit, auditDb);
  const journal = makeJournal(world, mine, openJournal(db));
  const touchOf = (vm: VmId | null): Touch => makeTouch(world, mine, vm);
  const parts: RoomsParts = {
    server: world.server,
    files: world.files,
    clock,
    random: world.random('rooms'),
    touch: touchOf(null),
    touchOf,
    isFull: (what) => world.full.has(what),
    complain: world.complain,
    mutation: world.mutation,
    onOffered: world.offered,
  };
  const fence = makeFence({
    kernel: world.kernel,
    touchOf: (tap) => touchOf(world.ownerOf(tap)),
    onChange: world.look,
    isKeeping: world.mutation === 'leaks-taps',
  });
  const fenceFor = async () => fence;
  const store = makeStore(parts);
  const vendor = makeVendor(parts);
  const knownInventories = makeInventoryStore(db);
  const inventories: typeof knownInventories = {
    ...knownInventories,
    record: (...args) => {
      if (world.full.has('journal')) throw new SimulatedFault('host-fault/disk-full', DISK_FULL);
      knownInventories.record(...args);
    },
  };
  const gate = makeSimGate(world, mine, { fenceFor, audit });
  const config = {
    dataFolder: '/simulated',
    policyOfFiles: {},
    groups: {},
    policy: DEFAULT_POLICY,
    uids: { first: 1000, count: 100 },
  } as unknown as Config; // The cast holds: host, service and maintenance read no more of it here.
  const driver = makeDriver(world.driverHooks(clock, touchOf, () => mine.isDead));
  const runs = new Map<VmId, VmRun>();
  const touch = touchOf(null);
  const licenses = openLicenses(world, { db, clock, audit, touch, runOf: (vm) => runs.get(vm) ?? null });
  const leases = licenses?.book ?? null;
  const isBlind = world.mutation === 'keeps-licensed';
  const deps: VmRunDeps = {
    ...(leases === null ? {} : { checkLicense: isBlind ? () => null : leases.check, seats: leases }),
    clock,
    log: silentLog,
    journal,
    driver,
    gate,
    store,
    vendors: () => [vendor],
    inventories,
    audit,
    inspections: new Map(),
    openChannel: makeChannels(world, mine),
    drives: makeDrives(parts),
    drivesFolder: '/simulated/drives',
  };
  const rooms: HostRooms = {
    config,
    clock,
    log: silentLog,
    journal,
    inventories,
    audit,
    store,
    gate,
    vendors: {} as VendorBook, // The cast holds: nobody asks the service about vendors here.
    runs,
    ...(leases === null ? {} : { licenses: licenseRoom(leases) }),
    fenceFor,
    ownPolicies: new Map(),
    addRun: (spec, given) => addRun(rooms, deps, spec, given),
    removeRun: (run, record) => removeRun(rooms, deps, run, record),
  };
  world.checkJournal(journal.load());
  let maintenance: { readonly close: () => Promise<void> } | null = null;
  const daemon: Daemon = Object.assign(mine, {
    rooms,
    leases,
    service: makeService(rooms),
    startedAtMs: clock.monotonicMs(),
    readyAtMs: Number.POSITIVE_INFINITY,
    runOf: (vm: VmId) => rooms.runs.get(vm) ?? null,
    close: async () => {
      mine.isClosing = true;
      await maintenance?.close();
      licenses?.close();
      await Promise.all([...rooms.runs.values()].map((run) => run.close()));
      journal.flush();
    },
    abandon: async () => {
      await realAudit.close();
      db.close();
    },
  });
  void takeOver(rooms, deps).then(() => {
    if (mine.isDead) return;
    mine.isReady = true;
    daemon.readyAtMs = clock.monotonicMs();
    if (!mine.isClosing) maintenance = startMaintenance(rooms);
  });
  return daemon;
}

/** The timers of one process; two mutations spoil them. */
function makeProcessClock({ clock, mutation }: World): ProcessClock {
  const real = clock.fork();
  const deadlines = new Set<number>(Object.values(STATE_DEADLINES_MS));
  if (mutation === 'drops-deadlines')
    return { ...real, after: (ms, callback) => (deadlines.has(ms) ? () => {} : real.after(ms, callback)) };
  if (mutation === 'leaks-timers')
    return {
      ...real,
      after: (ms, callback) => {
        let isCancelled = false;
        real.after(ms + 1_000_000_000, () => {});
        const cancel = real.after(ms, () => isCancelled || callback());
        return () => {
          isCancelled = true;
          cancel();
        };
      },
    };
  return real;
}

/** Every touch of the world is late by chance, fails by chance, and never comes once the daemon is dead. */
function makeTouch(world: World, mine: Mine, vm: VmId | null): Touch {
  return async (what, work, { mayFail, isQuick = false } = {}) => {
    const { lateness, failures } = world.stormOf(vm);
    const random = world.random(`touch ${vm ?? 'host'}`);
    const isHeldUp = random.chance(lateness) && !isQuick;
    const delayMs = isHeldUp
      ? random.pick([
          [4, random.between(1, 100)],
          [1, random.between(1_000, 20_000)],
        ])
      : random.between(0, 1);
    if (delayMs > 0) await mine.clock.sleep(delayMs);
    if (world.mutation === 'one-lane') await world.passLane(mine.clock, vm);
    if (mine.isDead) await never();
    if (mayFail !== false && random.chance(failures)) {
      world.count(world.meetings('failing-touch', vm));
      throw new SimulatedFault('host-fault/simulated', `${what}: it failed by chance`);
    }
    const result = work();
    if (what !== '') world.say(`  ${vm === null ? '' : `${vm} `}${what}`);
    return result;
  };
}

/** From now on a full disk refuses every transaction of this database. */
function fillUp(db: DatabaseSync, isFull: () => boolean): void {
  const exec = db.exec.bind(db);
  db.exec = (sql) => {
    if (sql === 'COMMIT' && isFull()) throw new SimulatedFault('host-fault/disk-full', DISK_FULL);
    exec(sql);
  };
}

/** Waits as long as the disk takes; what is written meanwhile is lost with the power. */
async function write<T>(
  world: World,
  mine: Mine,
  name: Parameters<World['disk']['beginWrite']>[0],
  work: () => Promise<T>,
) {
  const random = world.random('disk');
  const slowMs = world.isDiskSlow ? random.between(10, 8_000) : random.chance(0.2) ? random.between(1, 300) : 0;
  const beforeMs = Math.floor(slowMs * random.next());
  if (beforeMs > 0) await mine.clock.sleep(beforeMs);
  if (mine.isDead) await never();
  const synced = world.disk.beginWrite(name);
  try {
    const result = await work();
    if (slowMs > beforeMs) await mine.clock.sleep(slowMs - beforeMs);
    if (mine.isDead) await never();
    return result;
  } finally {
    synced();
  }
}

function makeJournal(world: World, mine: Mine, real: Journal): Journal {
  const durable = (work: () => Promise<void>): Promise<void> => write(world, mine, JOURNAL_DB, work);
  const isHasty = world.mutation === 'journal-answers-too-soon';
  const refuseWhenFull = (): void => {
    if (world.full.has('journal')) throw new SimulatedFault('host-fault/disk-full', DISK_FULL);
  };
  return {
    ...real,
    addVm: (record) => {
      refuseWhenFull();
      real.addVm(record);
      world.journaled.set(record.vm, record.journaled.step);
    },
    savePolicy: (...args) => {
      refuseWhenFull();
      real.savePolicy(...args);
    },
    removeVm: (vm) => {
      real.removeVm(vm);
      world.journaled.delete(vm);
    },
    note: (note) => {
      if (mine.isDead) return;
      world.noted(note);
      real.note(note);
    },
    saveState: async (vm, journaled, sinceMs) => {
      const save = () => durable(() => real.saveState(vm, journaled, sinceMs));
      if (isHasty)
        void mine.clock
          .sleep(3_000)
          .then(save)
          .catch(() => {});
      else await save();
      world.journaled.set(vm, journaled.step);
    },
    savePlan: (plan) => durable(() => real.savePlan(plan)),
    rememberFailed: (...args) =>
      durable(() => (world.mutation === 'forgets-failed' ? Promise.resolve() : real.rememberFailed(...args))),
    forgetFailed: (vm) => durable(() => real.forgetFailed(vm)),
  };
}

function makeAudit(world: World, mine: Mine, real: Audit, name: World['disk']['audit']): Audit {
  const isHasty = world.mutation === 'audit-answers-too-soon';
  const append = async (record: AuditRecord) => {
    const touch = makeTouch(world, mine, record.vm ?? null);
    await touch(`record ${record.kind}`, () => {
      if (world.full.has('audit')) throw new SimulatedFault('host-fault/disk-full', DISK_FULL);
    });
    const epoch = record.vm === undefined ? 0 : world.machineOf(record.vm).epoch;
    const put = () => write(world, mine, name, () => real.append(record));
    if (isHasty) {
      void mine.clock
        .sleep(3_000)
        .then(put)
        .catch(() => {});
      world.recorded(record, epoch);
      return { seq: 0, hash: '' };
    }
    const written = await put();
    world.recorded(record, epoch);
    return written;
  };
  return new Proxy(real, {
    get: (_, key) => {
      if (key === 'append') return append;
      const value: unknown = Reflect.get(real, key);
      return typeof value === 'function' ? value.bind(real) : value;
    },
  });
}

function makeSimGate(
  world: World,
  mine: Mine,
  { fenceFor, audit }: { readonly fenceFor: HostRooms['fenceFor']; readonly audit: Audit },
): Gate {
  const { mutation } = world;
  const isOpening = ({ kind }: AuditRecord) => kind === 'gate-opened' || kind === 'override';
  const gate = makeGate({
    fenceFor,
    audit: async (record) => {
      if (mutation === 'opens-before-record' && isOpening(record)) return;
      await audit.append(record);
    },
    isEvidence,
    log: silentLog,
    clock: mine.clock,
  });
  const counted = async (vm: VmId, work: () => Promise<void>): Promise<void> => {
    if ((mine.closing.get(vm) ?? 0) === 0) mine.closingSinceMs.set(vm, mine.clock.monotonicMs());
    mine.closing.set(vm, (mine.closing.get(vm) ?? 0) + 1);
    await work().finally(() => mine.closing.set(vm, (mine.closing.get(vm) ?? 0) - 1));
  };
  return {
    ...gate,
    fenceOff: (vm, ...rest) => counted(vm, () => gate.fenceOff(vm, ...rest)),
    close: async (vm, reason) => {
      if (mutation === 'ignores-kexec' && reason === 'the guest booted again') return;
      await counted(vm.vm, () => gate.close(vm, reason));
    },
  };
}

/** The real host end of the channel, over the VM's line. */
function makeChannels(world: World, mine: Mine): VmRunDeps['openChannel'] {
  const firstBoots = new Map<VmId, string>();
  return (options) => {
    const { vm } = options;
    const random = world.random(`nonce ${vm}`);
    const hex = (): string => random.between(0, 0xffff_ffff).toString(16).padStart(8, '0');
    return openGuestChannel({
      ...options,
      clock: mine.clock,
      connect: () => world.wireOf(vm).connect({ isDead: () => mine.isDead }),
      randomNonce: () => hex() + hex() + hex() + hex(),
      onEvent: (event) => {
        if (mine.isDead) return;
        if (event.kind === 'opened') mine.sessions.set(vm, event.nonce);
        if (event.kind === 'closed' || event.kind === 'misbehaved') mine.sessions.delete(vm);
        if (world.mutation === 'blind-to-boots' && (event.kind === 'opened' || event.kind === 'message')) {
          const boot = firstBoots.get(vm) ?? event.boot;
          firstBoots.set(vm, boot);
          options.onEvent({ ...event, boot });
          return;
        }
        options.onEvent(world.mutation === 'believes-lies' ? asIfInstalled(world, event) : event);
      },
    });
  };
}

type ChannelEvent = Parameters<Parameters<VmRunDeps['openChannel']>[0]['onEvent']>[0];

/** A mutation: what a guest confirms looks as if it had the newest of everything. */
function asIfInstalled({ files }: World, event: ChannelEvent): ChannelEvent {
  if (event.kind !== 'message' || event.body.type !== 'confirm') return event;
  const { body } = event;
  const products = body.inventory.products.map((each) => {
    const newest = files.vendor.newest.get(each.product);
    return newest === undefined ? each : { ...each, version: `${newest}.0.0` };
  });
  return { ...event, body: { ...body, inventory: { ...body.inventory, products } } };
}
