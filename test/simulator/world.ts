// All that a life consists of: the host with its disk, the vendor, the VMs with their guests, at most one daemon, and the story.
import { setImmediate as tick } from 'node:timers/promises';
import type { AuditRecord } from '../../src/audit/record.ts';
import type { Clock } from '../../src/base/clock.ts';
import type { VmSpec } from '../../src/hypervisor/vm-spec.ts';
import type { VmId } from '../../src/model/ids.ts';
import type { Plan } from '../../src/model/plan.ts';
import type { Policy } from '../../src/model/policy.ts';
import type { RunNote, StoredVm } from '../../src/update/journal.ts';
import { isGateOpen, type RunState } from '../../src/update/state.ts';
import { makeFakeClock } from './clock.ts';
import { type Daemon, startDaemon } from './daemon.ts';
import { type HostDisk, makeHostDisk } from './disk.ts';
import { type Guest, makeGuest } from './guest.ts';
import { LICENSE, type LicenseWorld, makeLicenseWorld } from './licenses.ts';
import {
  beginEpoch,
  type DriverHooks,
  endMachine,
  framesPass,
  type Kernel,
  type Machine,
  makeMachine,
  type Touch,
} from './machine.ts';
import type { Mutation } from './mutations.ts';
import { makeRandom, type Random, seedFor } from './random.ts';
import { type HostFiles, makeServer, type VendorServer } from './rooms.ts';
import { attachedSpec, managedSpec } from './specs.ts';
import { makeWire, type Wire } from './wire.ts';

/** An invariant does not hold. */
export class Broken extends Error {}

/** One VM, and what is known of it outside of the daemon. */
export type SimVm = {
  readonly vm: VmId;
  readonly spec: VmSpec;
  readonly products: readonly string[];
  readonly machine: Machine;
  readonly guest: Guest;
  readonly wire: Wire;
  /** Nothing is ever wrong with it. */
  readonly isCalm: boolean;
  policy: Partial<Policy>;
  /** The host knows it. */
  isAdded: boolean;
  /** A removal is under way. */
  isLeaving: boolean;
  /** Versions that were rolled back, until an operator says to try again. */
  readonly failed: Set<string>;
};

export type Setup = {
  readonly seed: number;
  readonly vms: number;
  readonly calm: boolean;
  /** Chances of a touch to be late, and to fail. */
  readonly lateness: number;
  readonly failures: number;
  /** The product that all VMs share is under a license. */
  readonly isLicensed: boolean;
  readonly mutation: Mutation | null;
};

export type Tally = { opened: number; crashes: number; quarantines: number; rollBacks: number; moments: number };

export type OpenRecord = { readonly record: AuditRecord; readonly epoch: number };

const FULL = ['journal', 'audit', 'store', 'drive'] as const;
export type FullRoom = (typeof FULL)[number];
const STORY_LINES_MAX = 400;
/** In which the fence has done what was asked of it. */
const FENCE_MOMENT_MS = 100;

export class World {
  readonly setup: Setup;
  readonly clock = makeFakeClock();
  readonly disk: HostDisk = makeHostDisk();
  readonly kernel: Kernel = { hasTable: false, admitted: new Set(), gated: new Set() };
  readonly server: VendorServer;
  readonly files: HostFiles = {
    vendor: { checkedAtMs: null, newest: new Map(), isStale: false },
    blobs: new Map(),
    pins: new Map(),
    drives: new Map(),
    downloads: new Map(),
    losses: new Map(),
  };
  readonly vms: readonly SimVm[];
  /** Rooms whose disk is full. */
  readonly full = new Set<FullRoom>();
  isDiskSlow = false;
  /** Chances of trouble are on; off for the quiet end of a life. */
  isStormy = true;
  daemon: Daemon | null = null;
  /** Since when there is a daemon, and disks that it can write. */
  wellSinceMs = 0;
  /** The steps that the journal has answered for. */
  readonly journaled = new Map<VmId, number>();
  readonly records: OpenRecord[] = [];
  readonly notes = new Map<VmId, number>();
  readonly tally: Tally = { opened: 0, crashes: 0, quarantines: 0, rollBacks: 0, moments: 0 };
  /** How often each fault met each state. */
  readonly coverage = new Map<string, number>();
  readonly story: string[] = [];
  /** Null in a life where nothing is under a license. */
  readonly licenses: LicenseWorld | null;
  #complaint: string | null = null;
  #said = '';
  readonly #openSeen = new Set<VmId>();
  readonly #randoms = new Map<string, Random>();
  #lane: Promise<void> = Promise.resolve();

  constructor(setup: Setup) {
    this.setup = setup;
    this.vms = Array.from({ length: setup.vms }, (_, index) => this.#makeVm(index));
    this.server = makeServer([...new Set(this.vms.flatMap(({ products }) => products))]);
    this.licenses = setup.isLicensed ? makeLicenseWorld(this) : null;
    if (this.licenses !== null) this.server.licensed.set('hello', LICENSE);
  }

  get mutation(): Mutation | null {
    return this.setup.mutation;
  }

  random(name: string): Random {
    const known = this.#randoms.get(name) ?? makeRandom(seedFor(this.setup.seed, name));
    this.#randoms.set(name, known);
    return known;
  }

  #makeVm(index: number): SimVm {
    const { calm, vms, seed } = this.setup;
    const random = this.random(`make ${index}`);
    const vm = `vm${index}` as VmId; // The form that the brand promises.
    const isCalm = calm && index === vms - 1;
    // Every VM shares one product with the others, and has one of its own.
    const products = ['hello', `own${index}`];
    const spec = !isCalm && index > 0 && random.chance(0.3) ? attachedSpec(vm, index) : managedSpec(vm, index);
    const machine = makeMachine(spec);
    const wire = makeWire({
      clock: this.clock,
      random: this.random(`wire ${index}`),
      isListening: () => machine.exists,
    });
    const guest = makeGuest({
      vm,
      clock: this.clock,
      random: this.random(`guest ${index}`),
      wire,
      say: (what) => this.say(`${vm} ${what}`),
      reset: () => this.resetGuest(this.of(vm)),
      drive: () => machine.drive,
      onInstalled: () => this.#installed(machine),
      products,
      isReliable: isCalm,
    });
    const overlay = spec.kind === 'managed' && (seed + index) % 3 !== 0;
    return {
      vm,
      spec,
      products,
      machine,
      guest,
      wire,
      isCalm,
      policy: { overlay },
      isAdded: false,
      isLeaving: false,
      failed: new Set(),
    };
  }

  #installed(machine: Machine): void {
    if (this.mutation !== 'opens-on-installed') return;
    machine.isLinkUp = true;
    for (const tap of machine.taps) this.kernel.admitted.add(tap);
    this.look();
  }

  of(vm: VmId): SimVm {
    const found = this.vms.find((each) => each.vm === vm);
    if (found === undefined) throw new Error(`assertion failed: there is no ${vm}`);
    return found;
  }

  machineOf(vm: VmId): Machine {
    return this.of(vm).machine;
  }

  wireOf(vm: VmId): Wire {
    return this.of(vm).wire;
  }

  ownerOf(tap: string | undefined): VmId | null {
    return this.vms.find(({ machine }) => tap !== undefined && machine.taps.includes(tap))?.vm ?? null;
  }

  stateOf(vm: VmId): RunState | null {
    return this.daemon?.runOf(vm)?.runner.state() ?? null;
  }

  isOpen(vm: SimVm): boolean {
    return framesPass(this.kernel, vm.machine);
  }

  stormOf(vm: VmId | null): { readonly lateness: number; readonly failures: number } {
    const isQuiet = !this.isStormy || (vm === null ? this.setup.calm : this.of(vm).isCalm);
    return isQuiet ? { lateness: 0, failures: 0 } : this.setup;
  }

  /** A mutation: one VM's touch waits for those of all others, and whatever is wrong with one keeps everybody waiting. */
  passLane(clock: Clock, vm: VmId | null): Promise<void> {
    const isWrong = vm !== null && (this.machineOf(vm).isMonitorLost || this.of(vm).guest.behaviour !== 'honest');
    this.#lane = this.#lane.then(() => (isWrong && this.isStormy ? clock.sleep(600_000) : undefined));
    return this.#lane;
  }

  // ---- What the daemon is given -------------------------------------------------------------------------------------

  driverHooks(clock: Clock, touchOf: (vm: VmId) => Touch, isDead: () => boolean): DriverHooks {
    return {
      kernel: this.kernel,
      machineOf: (vm) => this.machineOf(vm),
      touchOf,
      clock,
      onChange: () => this.look(),
      onBoot: (vm) => {
        const { guest, machine } = this.of(vm);
        if (this.mutation === 'reopens-after-reset' && machine.epoch > 2) {
          machine.isLinkUp = true;
          for (const tap of machine.taps) this.kernel.admitted.add(tap);
        }
        guest.powerOn();
      },
      onEnd: (vm) => {
        this.of(vm).guest.powerOff();
        this.wireOf(vm).hangUp();
      },
      readDisk: (vm) => this.of(vm).guest.readDisk(),
      writeDisk: (vm, disk) => this.of(vm).guest.writeDisk(disk),
      imageAt: (path) => {
        const folder = path.replace(/\/[^/]+$/, '');
        const image = this.files.drives.get(path) ?? this.files.drives.get(folder);
        if (image === undefined) throw new Error(`there is no drive at ${path}`);
        return image;
      },
      mergeMs: () => this.random('merge').between(10, this.isStormy ? 600_000 : 100_000),
      complain: this.complain,
      isDiscardingAll: this.mutation === 'discards-accepted',
      isDead,
    };
  }

  readonly offered = (vm: VmId, plan: Plan): void => {
    const { failed } = this.of(vm);
    const again = plan.items.find(({ id, release }) => failed.has(`${id} ${release.version}`));
    if (again !== undefined) this.complain(`${again.id} failed before on ${vm} and is offered again by itself`);
  };

  readonly recorded = (record: AuditRecord, epoch: number): void => {
    this.records.push({ record, epoch });
    if (record.kind !== 'quarantine') return;
    this.tally.quarantines += 1;
    if (record.reason.kind !== 'rolled-back') return;
    this.tally.rollBacks += 1;
    // A record that comes late must not outlive the operator's word to try again.
    if (this.stateOf(record.vm)?.kind !== 'quarantined') return;
    for (const { item, version } of record.reason.versions) this.of(record.vm).failed.add(`${item} ${version}`);
  };

  noted({ vm, kind }: RunNote): void {
    if (kind === 'guest' || kind === 'progress') this.notes.set(vm, (this.notes.get(vm) ?? 0) + 1);
  }

  checkJournal(stored: readonly StoredVm[]): void {
    for (const each of this.vms) each.isAdded = stored.some(({ vm }) => vm === each.vm);
    for (const [vm, step] of this.journaled) {
      const found = stored.find((each) => each.vm === vm);
      if (found === undefined) this.complain(`the journal lost ${vm}`);
      else if (found.journaled.step < step) this.complain(`the journal lost a state of ${vm} that it had answered for`);
    }
  }

  /** Notes a broken invariant. Throwing would be taken for a failed effect. */
  readonly complain = (broken: string): void => {
    this.#complaint ??= broken;
  };

  throwComplaint(): void {
    if (this.#complaint !== null) throw new Broken(this.#complaint);
  }

  /** What must hold at every touch: drive and network meet only in a live update, and a drive is its VM's own. */
  readonly look = (): void => {
    for (const each of this.vms) {
      const { machine, vm } = each;
      this.#lookAtSession(each);
      if (machine.drive !== null && machine.drive.vm !== vm) this.complain(`${vm} sees the drive of another VM`);
      if (machine.drive === null || !this.isOpen(each)) continue;
      const state = this.stateOf(vm);
      // The reset of an attached VM is told when it boots already.
      const isUnseen = each.spec.kind === 'attached' && machine.isEpochUnannounced;
      const isClosing = (this.daemon?.closing.get(vm) ?? 0) > 0;
      if (state === null || isGateOpen(state) || isUnseen || isClosing) continue;
      this.complain(`drive and network are there together while the run of ${vm} is ${state.kind}`);
    }
  };

  /** In the moment in which frames begin to pass on evidence, the session that confirmed is the present one. */
  #lookAtSession(each: SimVm): void {
    const { vm, machine } = each;
    if (!this.isOpen(each)) {
      this.#openSeen.delete(vm);
      return;
    }
    if (this.#openSeen.has(vm)) return;
    this.#openSeen.add(vm);
    const last = this.records.findLast(({ record }) => record.vm === vm);
    // Without the fence an old opening may come to light again.
    if (last?.record.kind !== 'gate-opened' || last.epoch !== machine.epoch || !this.kernel.hasTable) return;
    if (this.daemon === null) return;
    const session = this.daemon.sessions.get(vm);
    if (session === last.record.evidence.nonce) return;
    // A link that was on its way up when the close was asked for meets a fence that takes a moment.
    const isClosing = (this.daemon.closing.get(vm) ?? 0) > 0;
    const closingSinceMs = this.daemon.closingSinceMs.get(vm) ?? 0;
    if (isClosing && this.clock.monotonicMs() - closingSinceMs < FENCE_MOMENT_MS) return;
    this.complain(`${vm} was opened on evidence of a session that had ended`);
  }

  // ---- What happens to a VM -----------------------------------------------------------------------------------------

  resetGuest({ vm, machine, guest, spec }: SimVm): boolean {
    if (!machine.exists || machine.isStopped) return false;
    this.say(`${vm} the guest resets`);
    const isHeard = this.daemon !== null && !machine.isMonitorLost && machine.listener !== null;
    if (spec.kind === 'attached') {
      // It boots again at once; whoever holds the monitor hears of it a moment later.
      beginEpoch(machine, this.clock.monotonicMs(), true);
      guest.powerOn();
      const { listener } = machine;
      this.clock.after(this.random(`reset ${vm}`).between(0, 3_000), () => {
        if (!isHeard || listener !== machine.listener) return;
        machine.toldAtMs = this.clock.monotonicMs();
        listener?.({ kind: 'reset', isStopped: false });
      });
      return true;
    }
    guest.powerOff();
    machine.isStopped = true;
    if (isHeard) machine.listener?.({ kind: 'reset', isStopped: true });
    else machine.isResetPending = true;
    return true;
  }

  /** QEMU ends by itself, or by somebody else's hand. */
  endQemu({ vm, machine, guest, wire, spec }: SimVm, isGuestsWish: boolean): boolean {
    if (!machine.exists) return false;
    this.say(`${vm} ${isGuestsWish ? 'the guest powers off' : 'QEMU dies'}`);
    const { listener } = machine;
    const isHeard = this.daemon !== null && !machine.isMonitorLost && listener !== null;
    endMachine(this.kernel, machine);
    guest.powerOff();
    wire.hangUp();
    if (!isHeard) return true;
    // The driver expels the taps of an attached VM before it tells of its end.
    if (spec.kind === 'attached') for (const tap of machine.taps) this.kernel.admitted.delete(tap);
    listener({ kind: 'exited', detail: 'it ended', isGuestsWish });
    return true;
  }

  /** Somebody else starts the QEMU of an attached VM. */
  startForeign({ vm, machine, guest, spec }: SimVm, isPaused: boolean): boolean {
    if (spec.kind !== 'attached' || machine.exists) return false;
    this.say(`${vm} somebody starts its QEMU${isPaused ? ', paused' : ''}`);
    machine.process += 1;
    Object.assign(machine, { exists: true, isFresh: isPaused, isStopped: isPaused, isLinkUp: true, drive: null });
    Object.assign(machine, { isMonitorLost: false, isResetPending: false, isMarked: false, listener: null });
    beginEpoch(machine, this.clock.monotonicMs(), true);
    if (!isPaused) guest.powerOn();
    return true;
  }

  // ---- The daemon ---------------------------------------------------------------------------------------------------

  async start(): Promise<void> {
    if (this.daemon !== null) return;
    this.say('the daemon starts');
    this.wellSinceMs = this.clock.monotonicMs();
    this.daemon = await startDaemon(this);
    await this.settle();
  }

  /** The process ends now: `power-cut` takes the whole host with it. */
  async crash(kind: 'kill' | 'power-cut'): Promise<void> {
    const { daemon } = this;
    this.say(kind === 'kill' ? 'the daemon is killed' : 'the host loses its power');
    this.tally.crashes += 1;
    if (daemon !== null) {
      daemon.isDead = true;
      daemon.clock.kill();
    }
    this.disk.crash(kind, this.random('crash'));
    this.daemon = null;
    for (const each of this.vms) {
      each.isLeaving = false;
      each.machine.listener = null;
      each.wire.hangUp();
    }
    if (kind === 'power-cut') this.#losePower();
    for (let turn = 0; turn < 6; turn += 1) await tick();
    await daemon?.abandon();
  }

  #losePower(): void {
    for (const { machine, guest } of this.vms) {
      endMachine(this.kernel, machine);
      guest.powerOff();
    }
    this.kernel.admitted.clear();
    this.kernel.gated.clear();
    this.kernel.hasTable = false;
  }

  // ---- Time ---------------------------------------------------------------------------------------------------------

  /** Everything that needs no time. */
  async settle(): Promise<void> {
    for (let turn = 0; turn < 4; turn += 1) await tick();
    this.look();
    this.tally.moments += 1;
  }

  // ---- The story ----------------------------------------------------------------------------------------------------

  readonly say = (what: string): void => {
    if (what === this.#said) return;
    this.#said = what;
    this.story.push(`${(this.clock.monotonicMs() / 1000).toFixed(3)} ${what}`);
    if (this.story.length > 2 * STORY_LINES_MAX) this.story.splice(0, STORY_LINES_MAX);
  };

  /** Where a fault meets a VM (or all of them): its name and the state. */
  meetings(fault: string, vm: VmId | null): readonly string[] {
    const met = vm === null ? this.vms : [this.of(vm)];
    return met.map((each) => {
      const state = this.daemon === null ? 'no daemon' : (this.stateOf(each.vm)?.kind ?? 'not added');
      return `${fault}\t${state}`;
    });
  }

  count(meetings: readonly string[]): void {
    for (const key of meetings) this.coverage.set(key, (this.coverage.get(key) ?? 0) + 1);
  }
}
