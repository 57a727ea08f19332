// One seeded life of one VM: the real run, planner, judge, journal and gate; everything around them late, failing or gone.
// After every step the invariants of ARCHITECTURE.md are looked at; a broken one ends the life with a short story.
import { setImmediate as tick } from 'node:timers/promises';
import { digestOf } from '../../src/base/digest.ts';
import { REBOOTS_MAX, SESSIONS_PER_RUN_MAX, STATE_DEADLINES_MS } from '../../src/base/limits.ts';
import { type DatabaseSync, openDatabase } from '../../src/base/sqlite.ts';
import { INVENTORY_MIGRATIONS } from '../../src/inventory/inventory-store.ts';
import type { Plan } from '../../src/model/plan.ts';
import { DEFAULT_POLICY } from '../../src/model/policy.ts';
import { FAILED_UPDATE_MIGRATIONS, JOURNAL_MIGRATIONS, openJournal } from '../../src/update/journal.ts';
import { newRunId } from '../../src/update/new-run-id.ts';
import { RunError } from '../../src/update/runner.ts';
import { isGateOpen, isUnderWay, type RunState, runOf } from '../../src/update/state.ts';
import { VmRun } from '../../src/update/vm-run.ts';
import { explain, type Reason } from '../../src/update/why.ts';
import { type FakeClock, makeFakeClock } from './clock.ts';
import { type Behaviour, type Guest, makeGuest } from './guest.ts';
import { Broken, DISK_FULL, makeDeps, makeTouch, type Outside, openLossyJournal, type Sabotage } from './host.ts';
import { framesPass, type Machine, makeDriver, makeMachineState, type SimDriver, SPEC, TAPS, VM } from './machine.ts';
import { makeRandom, type Random } from './random.ts';

export type SimOptions = { readonly seed: number; readonly steps?: number; readonly sabotage?: Sabotage };

export type SimResult = {
  readonly seed: number;
  /** The invariant that was broken; null for a life that went well. */
  readonly broken: string | null;
  /** What happened last, oldest first. */
  readonly story: readonly string[];
  readonly steps: number;
  readonly opened: number;
  readonly crashes: number;
  readonly quarantines: number;
  readonly rollBacks: number;
};

const STORY_LINES_KEPT = 60;
/** Time until a boot that no reset announced is gated, once its agent was heard. */
const GRACE_MS = 40_000;

/** Lives one life. Never throws for a broken invariant: that is in the result. */
export async function simulate(options: SimOptions): Promise<SimResult> {
  const life = new Life(options);
  let broken: string | null = null;
  try {
    await life.live(options.steps ?? 120);
  } catch (error) {
    if (!(error instanceof Broken)) throw error;
    broken = error.message;
  } finally {
    life.end();
  }
  return { seed: options.seed, broken, ...life.tally() };
}

/** One process of the daemon. */
type Daemon = {
  readonly closing: ReadonlySet<object>;
  isDead: boolean;
  /** It has taken over its VM, and answers. */
  isReady: boolean;
  readonly run: VmRun;
  readonly driver: SimDriver;
};

class Life {
  readonly #clock: FakeClock = makeFakeClock();
  readonly #random: Random;
  readonly #sabotage: Sabotage | null;
  /** Its policy wants updates on a disk overlay. */
  readonly #hasOverlay: boolean;
  readonly #machine: Machine = makeMachineState();
  readonly #guest: Guest;
  readonly #db: DatabaseSync;
  readonly #blobs = new Set<string>();
  readonly #pins = new Map<string, readonly string[]>();
  readonly #drives = new Map<string, Plan>();
  readonly #story: string[] = [];
  #daemon: Daemon | null = null;
  /** Since when there is a daemon, and a disk that it can write. */
  #aliveSinceMs = 0;
  #latest = 1;
  #isVendorIll = false;
  #isDiskFull = false;
  /** Chances of trouble are on; off for the quiet end of a life. */
  #isStormy = true;
  #steps = 0;
  #opened = 0;
  #crashes = 0;
  #quarantines = 0;
  #rollBacks = 0;
  /** Versions that were rolled back, until an operator says to try again. */
  readonly #failed = new Set<string>();
  /** The newest hello that was ever plugged in. */
  #reached = 0;
  #shown = '';
  /** The first invariant that broke in the middle of something. */
  #complaint: string | null = null;
  #stepSince = { step: '', atMs: 0 };
  #wasOpen = false;
  #unpluggedSinceMs: number | null = null;

  constructor({ seed, sabotage }: SimOptions) {
    this.#random = makeRandom(seed);
    this.#sabotage = sabotage ?? null;
    this.#hasOverlay = seed % 3 !== 0;
    this.#db = openDatabase(':memory:', [...JOURNAL_MIGRATIONS, ...INVENTORY_MIGRATIONS, ...FAILED_UPDATE_MIGRATIONS]);
    this.#guest = makeGuest({
      clock: this.#clock,
      random: this.#random,
      say: (what) => this.#say(what),
      reset: () => this.#resetGuest(),
      readDrive: (digest) => (this.#machine.hasDrive ? (this.#drives.get(digest) ?? null) : null),
      onInstalled: () => {
        if (this.#sabotage !== 'opens-on-installed') return;
        this.#say('sabotage: the gate is opened');
        this.#machine.isLinkUp = true;
        for (const tap of TAPS) this.#machine.admitted.add(tap);
        this.#look();
      },
    });
    openJournal(this.#db).addVm({
      vm: VM,
      uid: 1,
      spec: SPEC,
      specDigest: digestOf('spec'),
      own: { overlay: this.#hasOverlay },
      group: null,
      journaled: { step: 0, state: { kind: 'off' } },
      sinceMs: this.#clock.nowMs(),
    });
  }

  tally() {
    const { length } = this.#story;
    return {
      story: this.#story.slice(Math.max(0, length - STORY_LINES_KEPT)),
      steps: this.#steps,
      opened: this.#opened,
      crashes: this.#crashes,
      quarantines: this.#quarantines,
      rollBacks: this.#rollBacks,
    };
  }

  end(): void {
    if (this.#daemon !== null) this.#daemon.isDead = true;
    this.#db.close();
  }

  async live(steps: number): Promise<void> {
    await this.#startDaemon();
    for (; this.#steps < steps; this.#steps += 1) {
      await this.#act();
      await this.#settle();
      await this.#pass(
        this.#random.pick([
          [5, 0],
          [5, 50],
          [5, 2_000],
          [4, 20_000],
          [2, 120_000],
          [1, 1_000_000],
        ]),
      );
    }
    await this.#endInPeace();
  }

  // ---- What happens -------------------------------------------------------------------------------------------------

  async #act(): Promise<void> {
    const random = this.#random;
    const act = random.pick<() => void | Promise<void>>([
      [6, () => this.#ask('start')],
      [2, () => this.#ask('stop')],
      [1, () => this.#ask('stop by force')],
      [3, () => this.#ask('retry')],
      [1, () => this.#ask('admit')],
      [3, () => this.#ask('update')],
      [3, () => this.#resetGuest()],
      [2, () => this.#kexec()],
      [2, () => this.#killQemu()],
      [1, () => this.#loseMonitor()],
      [3, () => this.#guest.restartAgent()],
      [3, () => this.#guest.misbehave()],
      [3, () => this.#crash()],
      [2, () => this.#publish()],
      [1, () => this.#toggle('vendor')],
      [1, () => this.#toggle('disk')],
      [3, () => this.#changeGuest()],
      [6, () => {}],
    ]);
    await act();
    if (this.#daemon === null && random.chance(0.7)) await this.#startDaemon();
  }

  /** An operator asks; not waiting for the answer. */
  #ask(what: 'start' | 'stop' | 'stop by force' | 'retry' | 'admit' | 'update'): void {
    const runner = this.#daemon?.run.runner;
    if (runner === undefined || this.#daemon?.isReady !== true) return;
    this.#say(`operator: ${what}`);
    if (what === 'retry' || what === 'update') this.#failed.clear();
    const fresh = { run: newRunId(), atMs: this.#clock.nowMs() };
    const event =
      what === 'stop' || what === 'stop by force'
        ? ({ kind: 'stop', force: what !== 'stop' } as const)
        : what === 'admit'
          ? ({ kind: 'admit', reason: 'by hand', actor: 'op' } as const)
          : ({ kind: what, ...fresh } as const);
    runner.request(event).catch((error: unknown) => {
      if (error instanceof RunError || (error instanceof Error && error.message === DISK_FULL)) return;
      throw error;
    });
  }

  #resetGuest(): void {
    const { exists, isStopped, isMonitorLost } = this.#machine;
    if (!exists || isStopped) return;
    this.#say('the guest resets');
    this.#guest.powerOff();
    this.#machine.isStopped = true;
    if (this.#daemon === null || isMonitorLost) this.#machine.isResetPending = true;
    else this.#daemon.driver.tell({ kind: 'reset', isStopped: true });
  }

  #kexec(): void {
    if (!this.#machine.exists || this.#machine.isStopped) return;
    this.#say('the guest starts another kernel');
    this.#machine.epoch += 1;
    this.#machine.epochAtMs = this.#clock.nowMs();
    this.#machine.isEpochUnannounced = true;
    this.#guest.kexec();
  }

  #killQemu(): void {
    if (!this.#machine.exists) return;
    const isGuestsWish = this.#random.chance(0.3);
    this.#say(isGuestsWish ? 'the guest powers off' : 'QEMU dies');
    this.#machine.exists = false;
    this.#machine.hasDrive = false;
    this.#machine.isStopped = true;
    this.#machine.isLinkUp = false;
    this.#machine.isResetPending = false;
    this.#guest.powerOff();
    if (!this.#machine.isMonitorLost) this.#daemon?.driver.tell({ kind: 'exited', detail: 'it ended', isGuestsWish });
  }

  #loseMonitor(): void {
    if (!this.#machine.exists || this.#daemon === null || this.#machine.isMonitorLost) return;
    this.#say('the monitor is lost');
    this.#machine.isMonitorLost = true;
    this.#daemon.driver.tell({ kind: 'monitor-lost', detail: 'it is gone' });
  }

  #publish(): void {
    this.#latest += 1;
    this.#say(`the vendor publishes ${this.#latest}.0.0`);
  }

  #toggle(what: 'vendor' | 'disk'): void {
    if (what === 'vendor') this.#isVendorIll = !this.#isVendorIll;
    else this.#isDiskFull = !this.#isDiskFull;
    this.#aliveSinceMs = this.#clock.nowMs();
    this.#say(`${what}: ${(what === 'vendor' ? this.#isVendorIll : this.#isDiskFull) ? 'in trouble' : 'well'}`);
  }

  #changeGuest(): void {
    const behaviour = this.#random.pick<Behaviour>([
      [8, 'honest'],
      [1, 'forges'],
      [1, 'hides'],
      [1, 'fails'],
      [2, 'forgetful'],
      [1, 'silent'],
      [1, 'clings'],
    ]);
    this.#guest.behaviour = behaviour;
    this.#say(`the guest is now ${behaviour}`);
  }

  #crash(): void {
    if (this.#daemon === null) return;
    this.#say('the daemon is killed');
    this.#crashes += 1;
    this.#daemon.isDead = true;
    this.#daemon = null;
    this.#guest.hangUp();
  }

  // ---- The daemon ---------------------------------------------------------------------------------------------------

  async #startDaemon(): Promise<void> {
    this.#say('the daemon starts');
    const mine = { isDead: false, isReady: false, closing: new Set<object>() };
    const outside = this.#outside(mine);
    const journal = openLossyJournal(this.#db, outside);
    const [record] = journal.load();
    if (record === undefined) throw new Error('assertion failed: the journal has its VM');
    const touch = makeTouch(outside);
    const driver = makeDriver(this.#machine, {
      touch,
      nowMs: this.#clock.nowMs,
      onChange: () => this.#look(),
      onBoot: () => this.#guest.powerOn(),
      onEnd: () => this.#guest.powerOff(),
      readDisk: () => this.#guest.readDisk(),
      writeDisk: (disk) => this.#guest.writeDisk(disk),
      mergeMs: () => this.#random.between(10, 100_000),
      sleep: (ms) => this.#clock.sleep(ms),
      complain: (broken) => this.#complain(broken),
      isDiscardingAll: this.#sabotage === 'discards-accepted',
    });
    const { own, group: _none, ...rest } = record;
    const policy = { ...DEFAULT_POLICY, ...own };
    const run = new VmRun(makeDeps({ db: this.#db, outside, journal, driver, touch }), { ...rest, policy });
    const daemon: Daemon = Object.assign(mine, { run, driver });
    this.#daemon = daemon;
    this.#aliveSinceMs = this.#clock.nowMs();
    const takeOver = run.recover().catch((error: unknown) => {
      this.#say(`the VM could not be taken over: ${String(error)}`);
      run.runner.post({ kind: 'monitor-lost', detail: String(error) });
    });
    void takeOver.then(() => {
      mine.isReady = true;
    });
    await this.#settle();
  }

  #outside(mine: { readonly isDead: boolean; readonly closing: Set<object> }): Outside {
    return {
      clock: this.#clock,
      random: this.#random,
      machine: this.#machine,
      guest: this.#guest,
      blobs: this.#blobs,
      pins: this.#pins,
      drives: this.#drives,
      sabotage: this.#sabotage,
      isDead: () => mine.isDead,
      closing: mine.closing,
      isVendorIll: () => this.#isVendorIll,
      isDiskFull: () => this.#isDiskFull,
      isStormy: () => this.#isStormy,
      offered: (plan) => {
        const again = plan.items.find(({ id, release }) => this.#failed.has(`${id} ${release.version}`));
        if (again !== undefined) this.#complain(`${again.id} failed before and is offered again by itself`);
      },
      latest: () => `${this.#latest}.0.0`,
      say: (what) => this.#say(what),
      complain: (broken) => this.#complain(broken),
      look: () => this.#look(),
      recorded: (record) => {
        if (record.kind === 'gate-opened') this.#checkTruth();
        if (record.kind === 'quarantine') this.#quarantines += 1;
        if (record.kind === 'quarantine' && record.reason.kind === 'rolled-back') {
          this.#rollBacks += 1;
          for (const { item, version } of record.reason.versions) this.#failed.add(`${item} ${version}`);
        }
      },
    };
  }

  // ---- Time ---------------------------------------------------------------------------------------------------------

  /** Lets time pass, one timer after the other, looking at the invariants after each. */
  async #pass(durationMs: number): Promise<void> {
    const untilMs = this.#clock.nowMs() + durationMs;
    for (let next = this.#clock.nextMs(); next !== null && next <= untilMs; next = this.#clock.nextMs()) {
      this.#clock.moveTo(next);
      await this.#settle();
    }
    this.#clock.moveTo(untilMs);
    await this.#settle();
  }

  /** Everything that needs no time. */
  async #settle(): Promise<void> {
    for (let turn = 0; turn < 3; turn += 1) await tick();
    this.#check();
  }

  // ---- Invariants ---------------------------------------------------------------------------------------------------

  #complain(broken: string): void {
    this.#complaint ??= broken;
  }

  #check(): void {
    if (this.#complaint !== null) throw new Broken(this.#complaint);
    this.#narrate();
    this.#checkEntitled();
    this.#checkKept();
    const { run } = this.#daemon ?? {};
    if (run === undefined) return;
    const state = run.runner.state();
    const why = this.#explain(state);
    if (why.reason === '' || why.next === '') throw new Broken(`there is no answer to why it is ${state.kind}`);
    const current = runOf(state);
    if (current !== null && (current.reboots > REBOOTS_MAX + 1 || current.sessions > SESSIONS_PER_RUN_MAX))
      throw new Broken(`run with ${current.reboots} reboots and ${current.sessions} sessions`);
    this.#checkDeadline();
    this.#checkPlugged();
  }

  /** X5: whoever is plugged in keeps what it has, for good; nobody is plugged in on trial. */
  #checkKept(): void {
    const hello = Number.parseInt(this.#guest.products.get('hello') ?? '0', 10);
    if (framesPass(this.#machine)) {
      if (this.#machine.overlay?.fate === 'trial')
        throw new Broken('it is plugged in on an overlay that may be thrown away');
      this.#reached = Math.max(this.#reached, hello);
    }
    if (hello < this.#reached)
      throw new Broken(`it was plugged in with hello ${this.#reached}, and has ${hello} again`);
  }

  /** Who is said to be plugged in is. */
  #checkPlugged(): void {
    const daemon = this.#daemon;
    const nowMs = this.#clock.nowMs();
    const isWrong =
      daemon?.isReady === true &&
      isGateOpen(daemon.run.runner.state()) &&
      !framesPass(this.#machine) &&
      !this.#isDiskFull;
    if (!isWrong) this.#unpluggedSinceMs = null;
    else this.#unpluggedSinceMs ??= nowMs;
    if (this.#unpluggedSinceMs !== null && nowMs - this.#unpluggedSinceMs > GRACE_MS)
      throw new Broken('it is said to be plugged in, but no frame passes');
  }

  /** 1: whoever reaches the network has evidence or an override of what runs now, on disk, and the state says so. */
  #checkEntitled(): void {
    const isOpen = framesPass(this.#machine);
    if (isOpen && !this.#wasOpen) this.#opened += 1;
    this.#wasOpen = isOpen;
    if (!isOpen) {
      return;
    }
    const { audit, epoch, epochAtMs, isEpochUnannounced } = this.#machine;
    const grant = audit.findLast(({ record }) => record.kind === 'gate-opened' || record.kind === 'override');
    const nowMs = this.#clock.nowMs();
    if (grant === undefined) throw new Broken('the gate is open without any record');
    if (grant.epoch !== epoch) {
      if (!isEpochUnannounced) throw new Broken('the gate is open for a boot that nobody judged');
      // An override is for the VM as it is; it is bound to a boot once its agent has spoken.
      if (grant.record.kind === 'override') return;
      const heardAtMs = this.#guest.bootHeardAtMs();
      const sinceMs = Math.max(epochAtMs, heardAtMs ?? nowMs, this.#aliveSinceMs);
      if (heardAtMs !== null && this.#daemon !== null && nowMs - sinceMs > GRACE_MS)
        throw new Broken('the gate stays open after a kexec whose agent was heard');
      return;
    }
    const state = this.#daemon?.run.runner.state();
    if (state === undefined || isGateOpen(state) || state.kind === 'opening') return;
    // Closing has begun in the moment in which the state moved on.
    if (this.#daemon?.isReady === true && this.#daemon.closing.size === 0)
      throw new Broken(`the gate is open while the run is ${state.kind}, and nobody closes it`);
  }

  /** 3: drive and network meet only in a live update. */
  #look(): void {
    if (!framesPass(this.#machine) || !this.#machine.hasDrive) return;
    const state = this.#daemon?.run.runner.state();
    if (state === undefined || isGateOpen(state)) return;
    this.#complain(`drive and network are there together while the run is ${state.kind}`);
  }

  /** Evidence of a guest that does not lie perfectly is true. */
  #checkTruth(): void {
    const last = this.#machine.audit.at(-1);
    if (last === undefined || last.record.kind !== 'gate-opened') return;
    const { evidence } = last.record;
    if (evidence.boot !== this.#guest.boot() && !this.#machine.isEpochUnannounced)
      this.#complain('evidence of another boot opened the gate');
    for (const { item, version } of evidence.items) {
      const name = item.replace(/^bundle\//, '');
      const has = this.#guest.products.get(name);
      if (has !== version && name === 'hello')
        this.#complain(`evidence says ${item} ${version}, the guest has ${has ?? 'none'}`);
    }
    if (this.#guest.confirmedAs === 'hides') this.#complain('a guest with a stale product that it hid was believed');
  }

  /** 4: no step of a run outlives its deadline. */
  #checkDeadline(): void {
    const runner = this.#daemon?.run.runner;
    if (runner === undefined) return;
    const state = runner.state();
    const step = JSON.stringify(state);
    if (step !== this.#stepSince.step) this.#stepSince = { step, atMs: this.#clock.nowMs() };
    if (!isUnderWay(state) || this.#isDiskFull) return;
    // The cast holds: what is under way has a deadline.
    const limitMs = STATE_DEADLINES_MS[state.kind as keyof typeof STATE_DEADLINES_MS];
    const waitedMs = this.#clock.nowMs() - Math.max(this.#stepSince.atMs, this.#aliveSinceMs);
    if (waitedMs > limitMs + GRACE_MS) throw new Broken(`it has been ${state.kind} for ${waitedMs} ms`);
  }

  /** Whatever happened, an honest guest gets in when all is well again and somebody does what `why` says. */
  async #endInPeace(): Promise<void> {
    this.#say('--- all is well again ---');
    this.#isStormy = false;
    this.#isVendorIll = false;
    this.#isDiskFull = false;
    this.#aliveSinceMs = this.#clock.nowMs();
    this.#guest.behaviour = 'honest';
    if (this.#daemon === null) await this.#startDaemon();
    for (let turn = 0; turn < 12; turn += 1) {
      await this.#pass(2 * 3_600_000);
      const state = this.#daemon?.run.runner.state();
      if (state === undefined || isUnderWay(state))
        throw new Broken(`a run does not end: ${state?.kind ?? 'no daemon'}`);
      if (state.kind === 'connected') {
        if (this.#machine.isStopped || !this.#machine.isLinkUp)
          throw new Broken('it is connected, but no frame passes');
        if (state.trouble === null && state.session !== null) return this.#checkRest();
      }
      this.#guest.restartAgent(); // It says hello again and again until it is heard.
      await this.#settle();
      this.#obey(this.#explain(state).next);
      await this.#settle();
    }
    throw new Broken(
      `doing what it says does not help: ${JSON.stringify(this.#explain(this.#daemon?.run.runner.state() ?? { kind: 'off' }))}`,
    );
  }

  #explain(state: RunState): Reason {
    return explain(VM, state, { overlay: this.#hasOverlay });
  }

  #obey(next: string): void {
    this.#say(`why: ${next}`);
    const does: readonly (readonly [string, () => void])[] = [
      ['vm stop --force', () => this.#ask('stop by force')],
      ['vm stop', () => this.#ask('stop')],
      ['vm start', () => this.#ask('start')],
      ['vm retry', () => this.#ask('retry')],
      ['vm update', () => this.#ask('update')],
      ['Restart the guest', () => this.#resetGuest()],
      ['restart the guest', () => this.#resetGuest()],
      ['Nothing to do.', () => this.#guest.restartAgent()],
    ];
    const found = does.find(([words]) => next.includes(words));
    if (found === undefined) throw new Broken(`nobody can do this: ${next}`);
    found[1]();
  }

  /** Nothing is held that nobody needs. */
  #checkRest(): void {
    if (this.#machine.hasDrive) throw new Broken('the drive of a run that ended is still there');
    if (this.#machine.overlay !== null) throw new Broken('an overlay is never merged');
    if (this.#pins.size > 0) throw new Broken(`blobs stay pinned: ${[...this.#pins.keys()].join(', ')}`);
    const plans = this.#db.prepare('SELECT count(*) AS n FROM plan').get();
    if (plans?.n !== 0) throw new Broken('plans stay in the journal');
  }

  // ---- The story ----------------------------------------------------------------------------------------------------

  #say(what: string): void {
    const seconds = ((this.#clock.nowMs() - 1_700_000_000_000) / 1000).toFixed(3);
    this.#story.push(`${seconds} ${what}`);
    if (this.#story.length > 10 * STORY_LINES_KEPT) this.#story.splice(0, 5 * STORY_LINES_KEPT);
  }

  #narrate(): void {
    const state = this.#daemon?.run.runner.state();
    const phase = state !== undefined && 'phase' in state ? ` ${state.phase}` : '';
    const reason = state?.kind === 'quarantined' ? ` ${JSON.stringify(state.reason)}` : '';
    const shown = `${state?.kind ?? 'no daemon'}${phase}${reason}${framesPass(this.#machine) ? ', frames pass' : ''}`;
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.#say(`== ${shown}`);
  }
}
