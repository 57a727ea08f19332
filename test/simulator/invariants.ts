// What must hold after every step (mutations.ts names it all). Each check throws Broken with a sentence.
import {
  CHANNEL_OUTGOING_BYTES_MAX,
  GUEST_NOTES_BURST_MAX,
  GUEST_NOTES_PER_SECOND_MAX,
  REBOOTS_MAX,
  SESSIONS_PER_RUN_MAX,
  STATE_DEADLINES_MS,
} from '../../src/base/limits.ts';
import type { VmId } from '../../src/model/ids.ts';
import { isGateOpen, isUnderWay, type RunState, runOf } from '../../src/update/state.ts';
import { explain, type Reason } from '../../src/update/why.ts';
import { isLicensed, LICENSE } from './licenses.ts';
import { Broken, type SimVm, type World } from './world.ts';

/** Until a boot that no reset announced is gated, and until a step that is over its deadline has moved on. */
const GRACE_MS = 90_000;
/** In which a VM with which nothing is wrong comes from its start to the network. */
const CALM_RUN_MS = 15 * 60_000;
/** In which a drive is taken away, whatever goes wrong with the first tries. */
const WITHDRAW_MS = 5 * 60_000;
const TIMERS_PER_VM = 40;

/** What was seen of a VM before. */
type Watch = {
  wasOpen: boolean;
  shown: string;
  state: RunState | null;
  step: string;
  stepAtMs: number;
  unpluggedSinceMs: number | null;
  startedAtMs: number | null;
  /** Since when it holds no seat that counts. */
  seatlessSinceMs: number | null;
  /** The newest version of each product that was ever plugged in. */
  readonly reached: Map<string, number>;
};

export class Invariants {
  readonly #world: World;
  readonly #watches = new Map<VmId, Watch>();

  constructor(world: World) {
    this.#world = world;
  }

  check(): void {
    const world = this.#world;
    world.throwComplaint();
    for (const vm of world.vms) {
      const watch = this.#watchOf(vm.vm);
      this.#narrate(vm, watch);
      this.#checkKept(vm, watch);
      this.#checkEntitled(vm, watch);
      this.#checkLicensed(vm, watch);
      this.#checkWhy(vm);
      this.#checkSilence(vm, watch);
      this.#checkSteps(vm, watch);
      this.#checkPlugged(vm, watch);
      this.#checkCalm(vm, watch);
    }
    this.#checkBounds();
  }

  #watchOf(vm: VmId): Watch {
    const known = this.#watches.get(vm) ?? {
      wasOpen: false,
      shown: '',
      state: null,
      step: '',
      stepAtMs: 0,
      unpluggedSinceMs: null,
      startedAtMs: null,
      seatlessSinceMs: null,
      reached: new Map(),
    };
    this.#watches.set(vm, known);
    return known;
  }

  #narrate(vm: SimVm, watch: Watch): void {
    const world = this.#world;
    const state = world.stateOf(vm.vm);
    if (state === null) return;
    const phase = 'phase' in state ? ` ${state.phase}` : '';
    const reason = state.kind === 'quarantined' ? ` (${state.reason.kind})` : '';
    const shown = `${state.kind}${phase}${reason}${world.isOpen(vm) ? ', frames pass' : ''}`;
    if (shown === watch.shown) return;
    watch.shown = shown;
    world.say(`${vm.vm} == ${shown}`);
  }

  /** Whoever is plugged in keeps what it has, for good; nobody is plugged in on trial. */
  #checkKept(vm: SimVm, watch: Watch): void {
    const isOpen = this.#world.isOpen(vm);
    if (isOpen && vm.machine.overlay?.fate === 'trial')
      throw new Broken(`${vm.vm} is plugged in on an overlay that may be thrown away`);
    for (const [product, text] of vm.guest.products) {
      const version = Number.parseInt(text, 10);
      const reached = watch.reached.get(product) ?? 0;
      if (isOpen) watch.reached.set(product, Math.max(reached, version));
      if (version < reached)
        throw new Broken(`it was plugged in with ${product} ${reached}: ${vm.vm} has ${version} again`);
    }
  }

  /** Whoever reaches the network has evidence or an override of what runs now, on disk, and the state says so. */
  #checkEntitled(vm: SimVm, watch: Watch): void {
    const world = this.#world;
    const isOpen = world.isOpen(vm);
    const isEdge = isOpen && !watch.wasOpen;
    watch.wasOpen = isOpen;
    if (!isOpen || this.#isSomebodyElses(vm)) return;
    if (isEdge) world.tally.opened += 1;
    const { machine, guest } = vm;
    // Somebody flushed the fence under a VM whose link is out of reach: the daemon looks at it every few seconds.
    if (!world.kernel.hasTable && world.clock.monotonicMs() - world.wellSinceMs < GRACE_MS) return;
    const grant = world.records.findLast(
      ({ record }) => record.vm === vm.vm && (record.kind === 'gate-opened' || record.kind === 'override'),
    );
    if (grant?.epoch !== machine.epoch && machine.isEpochUnannounced) {
      const noticedAtMs = this.#noticedAtMs(vm);
      if (
        noticedAtMs !== null &&
        world.clock.monotonicMs() - noticedAtMs > GRACE_MS &&
        grant?.record.kind !== 'override'
      )
        throw new Broken(`the gate stays open after ${vm.vm} booted again and that was noticed`);
      return;
    }
    if (grant === undefined) throw new Broken(`the gate of ${vm.vm} is open without any record`);
    if (grant.epoch !== machine.epoch) throw new Broken(`the gate is open for a boot of ${vm.vm} that nobody judged`);
    if (isEdge && grant.record.kind === 'gate-opened') {
      this.#checkTruth(vm, grant.record.evidence);
      if (grant.record.evidence.boot !== guest.boot()) throw new Broken(`evidence of another boot opened ${vm.vm}`);
    }
    const state = world.stateOf(vm.vm);
    if (state === null || isGateOpen(state) || state.kind === 'opening') return;
    // Closing has begun in the moment in which the state moved on.
    const { daemon } = world;
    if (daemon?.isReady === true && (daemon.closing.get(vm.vm) ?? 0) === 0)
      throw new Broken(`the gate is open while the run of ${vm.vm} is ${state.kind}, and nobody closes it`);
  }

  /** A lease that merely runs out leaves what is being read; one that was ended takes it along as soon as the host knows. */
  #checkLicensed({ vm, machine }: SimVm, watch: Watch): void {
    const { daemon, clock, wellSinceMs } = this.#world;
    if (daemon?.isReady !== true || daemon.leases === null) return;
    const code = daemon.leases.check(vm, LICENSE);
    const isSeatless = code !== null && code !== 'LEASE_EXPIRED';
    const nowMs = clock.monotonicMs();
    watch.seatlessSinceMs = isSeatless ? (watch.seatlessSinceMs ?? nowMs) : null;
    if (machine.drive === null || !isLicensed(machine.drive.plan) || watch.seatlessSinceMs === null) return;
    const sinceMs = Math.max(watch.seatlessSinceMs, wellSinceMs, daemon.readyAtMs);
    if (nowMs - sinceMs > WITHDRAW_MS)
      throw new Broken(`${vm} has a drive with what no lease of it allows (${code}), and nobody takes it away`);
  }

  /** An attached VM that nobody has handed over to us, or that its owner started anew before we were asked. */
  #isSomebodyElses({ vm, spec, machine, isAdded }: SimVm): boolean {
    if (spec.kind !== 'attached') return false;
    const { kernel, daemon } = this.#world;
    if (!isAdded || !machine.taps.some((tap) => kernel.gated.has(tap))) return true;
    const state = this.#world.stateOf(vm);
    // It is off for us; whoever starts it without asking is fenced as long as its tap is not admitted.
    return daemon === null || (state === null && daemon.isReady === false);
  }

  /** When the daemon could know of a boot that it did not begin; null while it could not. */
  #noticedAtMs({ machine, guest, spec }: SimVm): number | null {
    const { daemon, wellSinceMs } = this.#world;
    if (daemon === null || !daemon.isReady) return null;
    const { toldAtMs, epochAtMs } = machine;
    const heardAtMs = guest.heardAtMs();
    const wasThere = spec.kind === 'attached' && epochAtMs < daemon.readyAtMs ? daemon.readyAtMs : null;
    const first = toldAtMs ?? heardAtMs ?? wasThere;
    return first === null ? null : Math.max(first, epochAtMs, wellSinceMs, daemon.readyAtMs);
  }

  /** Evidence of a guest that does not lie perfectly is true. */
  #checkTruth(
    vm: SimVm,
    evidence: { readonly items: readonly { readonly item: string; readonly version: string }[] },
  ): void {
    for (const { item, version } of evidence.items) {
      const has = vm.guest.products.get(item.replace(/^bundle\//, ''));
      if (has !== undefined && has !== version)
        throw new Broken(`evidence says that ${vm.vm} has ${item} ${version}, and it has ${has}`);
    }
    if (vm.guest.confirmedAs === 'hides') throw new Broken(`${vm.vm} was believed with a stale product that it hid`);
  }

  #checkWhy(vm: SimVm): void {
    const why = this.why(vm);
    if (why !== null && (why.reason === '' || why.next === ''))
      throw new Broken(`there is no answer to why ${vm.vm} is as it is`);
    const state = this.#world.stateOf(vm.vm);
    // What an operator opened by hand goes on counting; everything else ends at the limits.
    if (state === null || !isUnderWay(state) || state.kind === 'opening') return;
    const run = runOf(state);
    if (run !== null && (run.reboots > REBOOTS_MAX || run.sessions > SESSIONS_PER_RUN_MAX))
      throw new Broken(`${vm.vm}: a run with ${run.reboots} reboots and ${run.sessions} sessions`);
  }

  why({ vm }: SimVm): Reason | null {
    const run = this.#world.daemon?.runOf(vm) ?? null;
    return run === null ? null : explain(vm, run.runner.state(), run.policy);
  }

  /** A guest whose agent answered is not called silent, whatever this host's disk did with the answer. */
  #checkSilence(vm: SimVm, watch: Watch): void {
    const state = this.#world.stateOf(vm.vm);
    // In the moment in which it is said: a report may come later.
    if (state === watch.state || watch.state?.kind !== 'reporting') return;
    if (state?.kind !== 'quarantined' || state.reason.kind !== 'agent-silent') return;
    if (state.reason.state !== 'reporting' || vm.guest.reportedAtMs() <= watch.stepAtMs) return;
    throw new Broken(`${vm.vm} is said to be silent, and the host had its report`);
  }

  /** No step of a run outlives its deadline. */
  #checkSteps(vm: SimVm, watch: Watch): void {
    const world = this.#world;
    const state = world.stateOf(vm.vm);
    if (state === null) return;
    const nowMs = world.clock.monotonicMs();
    if (state !== watch.state) {
      // What was only amended is the same step.
      const step = JSON.stringify(state);
      if (step !== watch.step) Object.assign(watch, { step, stepAtMs: nowMs });
      watch.state = state;
    }
    if (!isUnderWay(state) || world.full.has('journal') || world.daemon?.isReady !== true) return;
    // The cast holds: what is under way has a deadline.
    const limitMs = STATE_DEADLINES_MS[state.kind as keyof typeof STATE_DEADLINES_MS];
    const waitedMs = nowMs - Math.max(watch.stepAtMs, world.wellSinceMs, world.daemon.readyAtMs);
    if (waitedMs > limitMs + GRACE_MS && !world.daemon.isClosing)
      throw new Broken(`it has been ${state.kind} for ${Math.round(waitedMs / 1000)} s: ${vm.vm}`);
  }

  /** Who is said to be plugged in is. */
  #checkPlugged(vm: SimVm, watch: Watch): void {
    const world = this.#world;
    const state = world.stateOf(vm.vm);
    const nowMs = world.clock.monotonicMs();
    const isWrong =
      world.daemon?.isReady === true &&
      state !== null &&
      isGateOpen(state) &&
      !world.isOpen(vm) &&
      !world.full.has('journal');
    if (!isWrong) watch.unpluggedSinceMs = null;
    else watch.unpluggedSinceMs ??= nowMs;
    const sinceMs = Math.max(watch.unpluggedSinceMs ?? nowMs, world.wellSinceMs);
    if (nowMs - sinceMs > GRACE_MS) throw new Broken(`${vm.vm} is said to be plugged in, but no frame passes`);
  }

  #checkCalm(vm: SimVm, watch: Watch): void {
    if (!vm.isCalm) return;
    const world = this.#world;
    const state = world.stateOf(vm.vm);
    if (state === null || !isUnderWay(state)) {
      watch.startedAtMs = null;
      if (state?.kind === 'quarantined')
        throw new Broken(`${vm.vm} was quarantined (${state.reason.kind}), and nothing was wrong with it`);
      return;
    }
    const nowMs = world.clock.monotonicMs();
    watch.startedAtMs ??= nowMs;
    if (nowMs - watch.startedAtMs > CALM_RUN_MS)
      throw new Broken(`${vm.vm} takes too long (${state.kind}), and nothing was wrong with it`);
  }

  #checkBounds(): void {
    const world = this.#world;
    const timers = world.daemon?.clock.timers() ?? 0;
    if (timers > TIMERS_PER_VM * (world.vms.length + 1)) throw new Broken(`the daemon has ${timers} timers`);
    const seconds = world.clock.monotonicMs() / 1000;
    const notesMax = (world.tally.crashes + 1) * GUEST_NOTES_BURST_MAX + seconds * GUEST_NOTES_PER_SECOND_MAX;
    for (const { vm, wire } of world.vms) {
      if ((world.notes.get(vm) ?? 0) > 2 * notesMax + 100)
        throw new Broken(`${vm} made the host write ${world.notes.get(vm)} notes`);
      if (wire.waitingBytes() > 2 * CHANNEL_OUTGOING_BYTES_MAX)
        throw new Broken(`${vm}: the host keeps too much for it`);
    }
    for (const [digest, times] of world.files.downloads) {
      if (times > 1 + (world.files.losses.get(digest) ?? 0) + world.tally.crashes)
        throw new Broken(`one blob was fetched ${times} times`);
    }
  }
}
