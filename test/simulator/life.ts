// One life: the steps of a schedule one after the other, the invariants after each moment, and at its end peace, in which all must end well.
import { PratiqueError } from '../../src/base/errors.ts';
import { OVERLAY_RETRY_MAX_MS } from '../../src/base/limits.ts';
import { DEFAULT_POLICY } from '../../src/model/policy.ts';
import { isUnderWay, type RunState } from '../../src/update/state.ts';
import { addVm, ask, checkGone, perform, removeVm } from './faults.ts';
import { Invariants } from './invariants.ts';
import { makeRandom } from './random.ts';
import type { Schedule } from './schedule.ts';
import { Broken, type SimVm, World } from './world.ts';

const HOUR_MS = 3_600_000;
const QUIET_STEP_MS = 3 * 60_000;
const PEACE_TURNS_MAX = 16;
/** A stop of the service ends within this time, whatever is under way. */
const CLOSE_MAX_MS = 15 * 60_000;

export class Life {
  readonly world: World;
  readonly #schedule: Schedule;
  readonly #invariants: Invariants;
  #timersAtRest = 0;
  steps = 0;

  constructor(schedule: Schedule) {
    this.#schedule = schedule;
    this.world = new World(schedule.setup);
    this.#invariants = new Invariants(this.world);
  }

  /** Throws Broken. */
  async live(): Promise<void> {
    const { world } = this;
    await world.start();
    await this.#pass(5_000);
    // The maintenance has one timer for each of its works.
    this.#timersAtRest = world.daemon?.clock.timers() ?? 0;
    for (const vm of world.vms) addVm(world, vm);
    await this.#pass(5_000);
    for (const step of this.#schedule.steps) {
      const vm = world.vms[step.vm];
      if (step.name !== null && vm !== undefined) await perform(world, step.name, vm, makeRandom(step.seed));
      await this.#settle();
      if (world.daemon === null && step.isRevived) await world.start();
      await this.#pass(step.waitMs);
      this.steps += 1;
    }
    await this.#endInPeace();
  }

  async end(): Promise<void> {
    const { world } = this;
    if (world.daemon !== null) await world.crash('kill');
    world.disk.remove();
  }

  async #settle(): Promise<void> {
    await this.world.settle();
    this.#invariants.check();
  }

  /** Lets time pass, one timer after the other, looking at the invariants after each. */
  async #pass(durationMs: number): Promise<void> {
    const { clock } = this.world;
    const untilMs = clock.monotonicMs() + durationMs;
    for (let next = clock.nextMs(); next !== null && next <= untilMs; next = clock.nextMs()) {
      clock.moveTo(next);
      await this.#settle();
    }
    clock.moveTo(untilMs);
    await this.#settle();
  }

  /** Until no run is under way, at most as long as the longest step may take. */
  async #passUntilQuiet(): Promise<void> {
    const isBusy = (state: RunState | null): boolean => state !== null && isUnderWay(state);
    for (let passedMs = 0; passedMs < 2 * HOUR_MS; passedMs += QUIET_STEP_MS) {
      await this.#pass(QUIET_STEP_MS);
      if (!this.world.vms.some(({ vm }) => isBusy(this.world.stateOf(vm)))) return;
    }
  }

  // ---- Peace --------------------------------------------------------------------------------------------------------

  /** Whatever happened, an honest guest gets in when all is well again and somebody does what `why` says; and what is removed is gone. */
  async #endInPeace(): Promise<void> {
    const { world } = this;
    await this.#calmDown();
    for (let turn = 0; turn < PEACE_TURNS_MAX; turn += 1) {
      if (world.vms.every((vm) => this.#isAtRest(vm))) break;
      if (turn === PEACE_TURNS_MAX - 1) this.#giveUp();
      for (const vm of world.vms.filter((each) => !this.#isAtRest(each))) this.#help(vm);
      await this.#passUntilQuiet();
    }
    // A merge that failed is tried again within the hour.
    if (world.vms.some(({ machine }) => machine.overlay !== null)) await this.#pass(OVERLAY_RETRY_MAX_MS + 5 * 60_000);
    for (const vm of world.vms) this.#checkAtRest(vm);
    await this.#leave();
    await this.#checkAudit();
    await this.#close();
  }

  async #calmDown(): Promise<void> {
    const { world } = this;
    world.say('--- all is well again ---');
    world.isStormy = false;
    world.isDiskSlow = false;
    world.full.clear();
    world.licenses?.calm();
    Object.assign(world.server, { isDown: false, isSlow: false, isStale: false });
    Object.assign(world.server, { givesWrongBytes: false, withdraws: false });
    for (const { guest, wire } of world.vms) {
      guest.behaviour = 'honest';
      wire.isLossy = false;
      wire.isMute = false;
    }
    world.wellSinceMs = world.clock.monotonicMs();
    // A daemon that is ending ends first.
    if (world.daemon?.isClosing === true) await this.#pass(CLOSE_MAX_MS);
    if (world.daemon?.isClosing === true) throw new Broken('the daemon does not end');
    if (world.daemon === null) await world.start();
    await this.#pass(5 * 60_000);
    if (world.daemon?.isReady !== true) throw new Broken('the daemon does not take over its VMs');
    const { allowReboot, infrastructure, vendorAway, leftOut, metadataAgeMaxMs, runDeadlineMs, holds } = DEFAULT_POLICY;
    const set = { allowReboot, infrastructure, vendorAway, leftOut, metadataAgeMaxMs, runDeadlineMs, holds };
    for (const vm of world.vms) {
      addVm(world, vm);
      await this.#pass(30_000);
      ask(world, `set ${vm.vm}`, (host) => host.setVmPolicy(vm.vm, { set, unset: [], actor: 'op' }));
    }
    await this.#passUntilQuiet();
  }

  #isAtRest({ vm }: SimVm): boolean {
    const state = this.world.stateOf(vm);
    return state?.kind === 'connected' && state.trouble === null && state.session !== null;
  }

  /** One turn: what the VM's own `why` says is done. */
  #help(each: SimVm): void {
    const { world } = this;
    const { vm, guest } = each;
    const state = world.stateOf(vm);
    if (state !== null && isUnderWay(state)) throw new Broken(`a run does not end: ${vm} is ${state.kind}`);
    world.startForeign(each, true);
    each.failed.clear();
    guest.restartAgent(); // It says hello again and again until it is heard.
    const next = this.#invariants.why(each)?.next ?? `pratique vm start ${vm}`;
    world.say(`${vm} why: ${next}`);
    const does: readonly (readonly [string, () => void])[] = [
      ['vm stop --force', () => ask(world, `stop ${vm} by force`, (host) => host.stopVm(vm, { force: true }))],
      ['vm stop', () => ask(world, `stop ${vm}`, (host) => host.stopVm(vm, { force: false }))],
      ['vm start', () => ask(world, `start ${vm}`, (host) => host.startVm(vm))],
      ['vm retry', () => ask(world, `retry ${vm}`, (host) => host.retryVm(vm))],
      ['vm update', () => ask(world, `update ${vm}`, (host) => host.updateVm(vm))],
      ['estart the guest', () => world.resetGuest(each)],
      ['Nothing to do.', () => guest.restartAgent()],
    ];
    const found = does.find(([words]) => next.includes(words));
    if (found === undefined) throw new Broken(`nobody can do this for ${vm}: ${next}`);
    found[1]();
  }

  #giveUp(): void {
    const lost = this.world.vms.find((vm) => !this.#isAtRest(vm));
    if (lost === undefined) return;
    const why = this.#invariants.why(lost);
    throw new Broken(`doing what it says does not help ${lost.vm}: ${why?.reason ?? ''} ${why?.next ?? ''}`);
  }

  /** Nothing is held that nobody needs. */
  #checkAtRest({ vm, machine }: SimVm): void {
    const { world } = this;
    if (!world.isOpen(world.of(vm))) throw new Broken(`${vm} is connected, but no frame passes`);
    if (machine.drive !== null) throw new Broken(`the drive of a run of ${vm} that ended is still there`);
    if (machine.overlay !== null) throw new Broken(`an overlay of ${vm} is never merged`);
    const pins = [...world.files.pins.keys()].filter((owner) => owner.endsWith(`:${vm}`));
    if (pins.length > 0) throw new Broken(`blobs stay pinned: ${pins.join(', ')}`);
    if ([...world.files.drives.keys()].some((path) => path.includes(`/${vm}/`)))
      throw new Broken(`a drive folder of ${vm} stays after its run`);
  }

  /** All are stopped and removed; nothing of them stays. */
  async #leave(): Promise<void> {
    const { world } = this;
    for (const { vm } of world.vms) ask(world, `stop ${vm} by force`, (host) => host.stopVm(vm, { force: true }));
    await this.#pass(10 * 60_000);
    for (const vm of world.vms) removeVm(world, vm);
    await this.#pass(10 * 60_000);
    for (const vm of world.vms) {
      if (vm.isAdded) throw new Broken(`${vm.vm} cannot be removed`);
      checkGone(world, vm);
    }
    world.throwComplaint();
    const timers = world.daemon?.clock.timers() ?? 0;
    if (timers > this.#timersAtRest) throw new Broken(`${timers} timers stay when all VMs are removed`);
  }

  async #checkAudit(): Promise<void> {
    const { world } = this;
    const audit = world.daemon?.rooms.audit;
    if (audit === undefined) return;
    const report = await audit.verify();
    if (!report.isIntact) throw new Broken(`the audit chain does not verify: ${report.trouble}`);
    if (report.records < world.records.length)
      throw new Broken(`the audit lost records: it has ${report.records} of ${world.records.length}`);
  }

  async #close(): Promise<void> {
    const { world } = this;
    const { daemon } = world;
    if (daemon === null) return;
    let isClosed = false;
    void daemon.close().then(
      () => {
        isClosed = true;
      },
      (error: unknown) => {
        if (!(error instanceof PratiqueError)) throw error;
      },
    );
    await this.#pass(CLOSE_MAX_MS);
    if (!isClosed) throw new Broken('the daemon does not end');
    const timers = daemon.clock.timers();
    if (timers > 0) throw new Broken(`${timers} timers stay when the daemon has ended`);
  }
}
