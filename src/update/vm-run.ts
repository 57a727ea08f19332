// One VM with all it holds while it runs: hypervisor handle, channel, drive, plan, evidence. Carries out the effects of its runner.
import { printable } from '../base/printable.ts';
import { licensesOf } from '../drive/drive.ts';
import type { GuestEvent as ChannelEvent, GuestChannel } from '../guest/session.ts';
import type { RunningVm, VmEvent } from '../hypervisor/hypervisor.ts';
import type { VmSpec } from '../hypervisor/vm-spec.ts';
import type { RunId, VmId } from '../model/ids.ts';
import type { Inventory } from '../model/inventory.ts';
import { type Plan, planSizeBytes, planStepCount } from '../model/plan.ts';
import type { Policy } from '../model/policy.ts';
import type { Trouble } from '../model/quarantine.ts';
import { postReport } from './agent-report.ts';
import { CONFIG_CHANGED } from './drive-config.ts';
import { dryRun } from './dry-run.ts';
import type { Effect } from './effect.ts';
import { withHealthChecks } from './health-checks.ts';
import type { RunRecord } from './journal.ts';
import { newRunId } from './new-run-id.ts';
import { type Found, recover } from './recover.ts';
import { oldMetadataText } from './remarks.ts';
import { type Answer, makeRunner, RunError, type Runner } from './runner.ts';
import { type Inspection, Staging } from './staging.ts';
import { isUnderWay, type Run, type RunState, runOf } from './state.ts';
import { namespaceOf, tapNamesOf } from './taps.ts';
import { VmDisk } from './vm-disk.ts';
import { VmDrive } from './vm-drive.ts';
import { VmJudge } from './vm-judge.ts';
import { VmOverlay } from './vm-overlay.ts';
import { VmPlan } from './vm-plan.ts';
import type { VmRunDeps } from './vm-run-deps.ts';
import { explainQuarantine } from './why.ts';

/** One VM of this host and its run. */
export class VmRun {
  readonly vm: VmId;
  readonly spec: VmSpec;
  readonly specDigest: string;
  readonly uid: number;
  readonly runner: Runner;
  policy: Policy;
  /** Why that policy is not the one that was meant; then nothing is planned, and the VM stays gated. */
  policyTrouble: string | null = null;
  readonly #deps: VmRunDeps;
  readonly #drive: VmDrive;
  readonly #staging: Staging;
  readonly #overlay: VmOverlay;
  readonly #plan: VmPlan;
  readonly #judge: VmJudge;
  readonly #ending = new AbortController();
  #running: RunningVm | null = null;
  #untold: (() => void)[] | null = null;
  #hasEnded = false;
  #isMonitorLost = false;
  /** It could not be taken over: it may run all the same. */
  #isDoubtful = false;
  #channel: GuestChannel | null = null;
  #agentVersion: string | null = null;
  #reported: Inventory | null = null;

  constructor(deps: VmRunDeps, record: RunRecord) {
    this.#deps = deps;
    this.vm = record.vm;
    this.spec = record.spec;
    this.specDigest = record.specDigest;
    this.uid = record.uid;
    this.policy = record.policy;
    this.runner = makeRunner(
      {
        vm: record.vm,
        policy: () => this.policy,
        journal: deps.journal,
        clock: deps.clock,
        log: deps.log,
        isRunning: () => this.#running !== null || this.#isDoubtful,
        perform: (effect, state, signal) => this.#perform(effect, state, signal),
        ...(deps.deadlinesMs === undefined ? {} : { deadlinesMs: deps.deadlinesMs }),
      },
      record.journaled,
      record.sinceMs,
    );
    const { vm, spec, uid } = record;
    const note: Runner['note'] = (...words) => this.runner.note(...words);
    const policy = () => this.policy;
    this.#staging = new Staging(deps, { vm, spec, policy, note });
    const running = () => this.#running;
    const onLost = (reason: Trouble) => this.runner.post({ kind: 'drive-lost', reason });
    this.#drive = new VmDrive(deps, { vm, spec, uid, note, policy, running, onLost });
    this.#overlay = new VmOverlay(deps, { spec, note, running });
    const policyTrouble = () => this.policyTrouble;
    this.#plan = new VmPlan(deps, { vm, note, policy, policyTrouble, ending: this.#ending.signal });
    const onBelieved = (inventory: Inventory) => this.#keepInventory(inventory, 'confirm');
    const disk = new VmDisk(deps, { vm, spec, note, running });
    this.#judge = new VmJudge(deps, { vm, note, policy, plan: this.#plan, disk, onBelieved });
  }

  get running(): RunningVm | null {
    return this.#running;
  }

  get agentVersion(): string | null {
    return this.#agentVersion;
  }

  /** After a start of the daemon: looks for the VM, and goes on or closes, whatever is sure (architecture.md). */
  async recover(): Promise<void> {
    const { clock } = this.#deps;
    const state = this.runner.state();
    // What the VM tells meanwhile is about the state that comes out of this: nobody else writes it before.
    this.#untold = [];
    const found = await this.#find(state).catch((error: unknown) => {
      this.#tellUntold();
      this.#isDoubtful = true;
      throw error;
    });
    if (found.kind === 'none') await this.#drive.forgetAttached();
    this.#plan.load(runOf(state));
    const fresh = { run: newRunId(), atMs: clock.nowMs(), planAgeMaxMs: this.policy.metadataAgeMaxMs };
    const recovery = recover(state, found, fresh);
    await this.runner.resume(recovery.state, recovery.effects).finally(() => this.#tellUntold());
  }

  #tellUntold(): void {
    const events = this.#untold ?? [];
    this.#untold = null;
    for (const tell of events) tell();
  }

  async #find(state: RunState): Promise<Found> {
    if (state.kind === 'off' || state.kind === 'staged') return { kind: 'none' };
    const running = await this.#deps.driver.adopt(this.spec);
    if (running === null) return { kind: 'none' };
    this.#hold(running);
    await this.#drive.find(running);
    const isStopped = await running.isStopped();
    const isAdmitted = await this.#deps.gate.isAdmitted(running);
    // An attached VM does not stop at a reset: it may have booted again while nobody looked.
    const isSameProcess = running.adopted.kind === 'same-process' && this.spec.kind === 'managed';
    const isOnTrial = (await this.#overlay.fate(running)) === 'trial';
    return { kind: 'running', isSameProcess, isStopped, isAdmitted, isOnTrial };
  }

  /** Lets go of everything without touching the VM. */
  async close(): Promise<void> {
    this.#ending.abort();
    await this.runner.close();
    this.#overlay.close();
    this.#channel?.close();
    await this.#running?.release();
  }

  /** Brings the disks of a VM that is off to rest, before it is removed. Throws HypervisorError when what it has accepted cannot be merged; it is kept then. */
  async settleOverlay(): Promise<void> {
    await this.#overlay.settle();
  }

  /** Gives back what the host keeps for this VM: call it after `close`, when the VM is removed. */
  async forget(): Promise<void> {
    await this.#drive.forget();
    await this.#deps.driver.forget?.(this.vm);
  }

  // ---- Events in ----------------------------------------------------------------------------------------------------

  #hold(running: RunningVm): void {
    this.#running = running;
    this.#hasEnded = false;
    this.#isMonitorLost = false;
    this.#isDoubtful = false;
    running.onEvent((event) => this.#onVmEvent(running, event));
  }

  #onVmEvent(running: RunningVm, event: VmEvent): void {
    if (this.#running !== running) return;
    if (this.#untold !== null) {
      this.#untold.push(() => this.#onVmEvent(running, event));
      return;
    }
    const fresh = { run: newRunId(), atMs: this.#deps.clock.nowMs() };
    switch (event.kind) {
      case 'reset':
        this.runner.note('guest', 'the guest reset itself');
        this.runner.post({ kind: 'reset', isStopped: event.isStopped, ...fresh });
        return;
      case 'exited':
        this.#hasEnded = true;
        this.runner.note('guest', printable(event.detail));
        this.runner.post({ kind: 'exited', detail: event.detail, isGuestsWish: event.isGuestsWish });
        return;
      case 'disk-full':
        this.runner.note('warning', 'a write of the guest found no space on this host; the VM stands still');
        this.runner.post({ kind: 'disk-full' });
        return;
      case 'monitor-lost':
        this.#isMonitorLost = true;
        this.runner.post({ kind: 'monitor-lost', detail: event.detail });
        return;
      case 'agent-port':
        return;
      default:
        event satisfies never;
    }
  }

  #onChannelEvent(event: ChannelEvent): void {
    switch (event.kind) {
      case 'opened': {
        this.#agentVersion = event.agentVersion;
        const session = { nonce: event.nonce, boot: event.boot };
        this.runner.post({ kind: 'agent-opened', session, run: newRunId(), atMs: this.#deps.clock.nowMs() });
        return;
      }
      case 'message':
        if (event.body.type === 'inventory') this.#keepInventory(event.body.inventory, 'report');
        postReport(this.runner, { nonce: event.nonce, boot: event.boot }, event.body);
        return;
      case 'refused':
        this.runner.note('guest', `a message was refused (${event.code}): ${printable(event.detail)}`);
        return;
      case 'misbehaved':
        this.#channel = null; // It is cut for good; the next boot or a retry opens another.
        this.runner.note('warning', `the guest broke the channel's rules (${event.code})`);
        this.runner.post({ kind: 'misbehaved', code: event.code, detail: event.detail });
        return;
      case 'closed':
        return;
      default:
        event satisfies never;
    }
  }

  #keepInventory(inventory: Inventory, source: 'report' | 'confirm'): void {
    if (source === 'report') this.#reported = inventory;
    this.#staging.learn(inventory, source);
  }

  // ---- Effects out --------------------------------------------------------------------------------------------------

  async #perform(effect: Effect, state: RunState, signal: AbortSignal): Promise<Answer | null> {
    switch (effect.kind) {
      case 'start-vm':
        return await this.#startVm();
      case 'hold-vm':
        return await this.#takeHold();
      case 'stop-vm':
        return await this.#stopVm(effect.graceful);
      case 'close-gate':
        return await this.#closeGate(effect.reason);
      case 'open-channel':
        this.#openChannel(effect.asks === true);
        return null;
      case 'close-channel':
        await this.#letGo();
        return null;
      case 'resume-vm':
        return await this.#resume(effect.afterReset);
      case 'send':
        this.#channel?.send(withHealthChecks(effect.body, this.policy, this.#reported));
        return null;
      case 'stage':
        return await this.#stage(signal);
      case 'make-plan':
        return await this.#plan.make(this.#requireRun(state), this.#requireReport(), signal);
      case 'fetch-plan':
        return await this.#fetchPlan(state, signal);
      case 'begin-overlay':
        await this.#overlay.begin(this.#require('begin-overlay'), this.#plan.of(this.#requireRun(state)), signal);
        return null;
      case 'accept-overlay':
        await this.#overlay.accept(this.#require('accept-overlay'));
        return null;
      case 'commit-overlay':
        this.#overlay.startMerge();
        return null;
      case 'settle-overlay':
        await this.#overlay.settle();
        return null;
      case 'remember-failed':
        await this.#plan.rememberFailed(effect.reason);
        return null;
      case 'forget-failed':
        await this.#deps.journal.forgetFailed(this.vm);
        return null;
      case 'attach-drive':
        return await this.#attachDrive(state, signal);
      case 'detach-drive':
        await this.#drive.detach(this.#running, effect.isUnanswered);
        return { kind: 'drive-detached' };
      case 'judge':
        return await this.#judge.judge(effect, this.#requireRun(state), state, signal);
      case 'open-gate':
        return await this.#openGate(effect, state, signal);
      case 'record-quarantine': {
        const { reason } = explainQuarantine(this.vm, effect.reason, true);
        this.runner.note('warning', reason);
        await this.#deps.audit.append({
          kind: 'quarantine',
          vm: this.vm,
          run: runOf(state)?.run ?? null,
          reason: effect.reason,
        });
        return null;
      }
      case 'verify-blobs':
        await this.#drive.verifyBlobs(this.#plan.current);
        return null;
      case 'clean-up':
        return await this.#cleanUp(state);
      default:
        return effect satisfies never;
    }
  }

  #require(step: string): RunningVm {
    if (this.#running !== null) return this.#running;
    throw new RunError('conflict/not-running', `${step}: ${this.vm} is not running`);
  }

  async #startVm(): Promise<Answer | null> {
    await this.#staging.leave();
    await this.#drive.forgetAttached();
    // One that was left behind when it could not be taken over is taken over now.
    const running = (await this.#deps.driver.adopt(this.spec)) ?? (await this.#startAnew());
    this.#hold(running);
    if (running.adopted.kind !== 'ungated') return null;
    return { kind: 'found-ungated', detail: 'it was running when it was attached' };
  }

  /** From the disk alone: an overlay of before is merged or thrown away first. */
  async #startAnew(): Promise<RunningVm> {
    await this.#overlay.settle();
    return await this.#deps.driver.start(this.spec);
  }

  async #takeHold(): Promise<null> {
    if (this.#running !== null && !this.#isMonitorLost) return null;
    this.#isDoubtful = true; // Until we have an answer.
    const running = await this.#deps.driver.adopt(this.spec);
    await this.#running?.release();
    if (running === null) {
      this.#running = null;
      this.#isDoubtful = false;
      throw new RunError('conflict/not-running', `${this.vm} is not running any more`);
    }
    this.#hold(running);
    await this.#drive.find(running);
    return null;
  }

  async #closeGate(reason: string): Promise<null> {
    const running = this.#running;
    try {
      // A VM that we do not hold may run all the same, and may be admitted from before.
      if (running === null)
        await this.#deps.gate.fenceOff(this.vm, namespaceOf(this.spec), tapNamesOf(this.spec), reason);
      else await this.#deps.gate.close(running, reason);
    } catch (error) {
      // A VM that has ended has no links to lower; its fence was closed first.
      if (!this.#hasEnded) throw error;
    }
    this.runner.note('gate', `closed: ${reason}`);
    return null;
  }

  async #stopVm(graceful: boolean): Promise<null> {
    // One that could not be taken over is looked for again: it may run, or be gone since.
    const running = this.#running ?? (await this.#deps.driver.adopt(this.spec));
    if (running === null) {
      this.runner.post({ kind: 'exited', detail: 'it is not there any more', isGuestsWish: false });
      return null;
    }
    if (this.#running === null) this.#hold(running);
    // Without its monitor nobody can ask the guest.
    await running.stop({ graceful: graceful && !this.#isMonitorLost });
    // With its monitor lost before, the end of the VM is not told by itself.
    if (this.#running === running && !this.#hasEnded) {
      this.#onVmEvent(running, { kind: 'exited', detail: 'we ended the VM', isGuestsWish: false });
    }
    return null;
  }

  #openChannel(isAgentAsked: boolean): void {
    if (this.#channel !== null) {
      if (isAgentAsked) this.#channel.askForHello();
      return;
    }
    const running = this.#require('open-channel');
    this.#channel = this.#deps.openChannel({
      vm: this.vm,
      socketPath: running.channelSocket,
      clock: this.#deps.clock,
      log: this.#deps.log,
      isAgentExpected: running.adopted.kind !== 'fresh',
      onEvent: (event) => this.#onChannelEvent(event),
    });
  }

  async #letGo(): Promise<void> {
    this.#channel?.close();
    this.#channel = null;
    this.#running = null;
    this.#isDoubtful = false;
    await this.#drive.forgetAttached();
  }

  async #resume(afterReset: boolean): Promise<null> {
    const running = this.#require('resume-vm');
    if (!(await running.isStopped())) return null;
    if (afterReset && running.adopted.kind !== 'fresh' && this.spec.kind === 'attached') return null; // Its owner paused it.
    if (afterReset) {
      await running.resetStopped(); // Takes the drive away as well.
      if (!(await running.hasDrive())) await this.#drive.forgetAttached();
    }
    await this.#deps.gate.resume(running);
    return null;
  }

  /** How the disk of a VM that had never run differed from its agent's first report; null where it did not. */
  get diskRemark(): string | null {
    return this.#staging.remark;
  }

  /** What its disk tells while it is off (A3). Throws RunError while it runs, InspectError where the disk tells nothing. */
  async inspectDisk(signal: AbortSignal): Promise<Inspection> {
    return await this.#staging.inspect(this.runner.state(), signal);
  }

  /** What would be installed now, from the last known inventory. Throws RunError when there is none or no plan can be made. */
  async dryRun(signal: AbortSignal): Promise<Plan> {
    const known = this.#deps.inventories.last(this.vm);
    return await dryRun(this.vm, known?.inventory ?? null, (inventory) =>
      this.#plan.askLightly(newRunId(), inventory, signal),
    );
  }

  /** A seat of this VM ended by an explicit word: what it guards is taken away from it now. Said again until it is. */
  loseLicense(license: string, code: string): void {
    const plan = this.#plan.current;
    // What a drive was made from that was found after a restart may not be known any more.
    if (plan !== null && !licensesOf(plan).includes(license)) return;
    const { kind } = this.runner.state();
    if (!this.#drive.isAttached && (plan === null || (kind !== 'offering' && kind !== 'installing'))) return;
    this.runner.post({ kind: 'drive-lost', reason: { kind: 'license-refused', license, code } });
  }

  async #fetchPlan(state: RunState, signal: AbortSignal): Promise<Answer> {
    const run = this.#requireRun(state);
    const trouble = await this.#drive.fetch(this.#plan.of(run), 'run', signal);
    return trouble === null ? { kind: 'fetched' } : { kind: 'plan-failed', reason: trouble };
  }

  /** A1: what the VM needs is fetched while it is off. */
  async #stage(signal: AbortSignal): Promise<Answer | null> {
    const known = await this.#staging.inventory(signal);
    if (known === null) return null;
    const answer = await this.#plan.askForAll(newRunId(), known, signal);
    if (answer.kind === 'refused') return null;
    const trouble = await this.#drive.fetch(answer.plan, 'stage', signal);
    if (trouble !== null) return null;
    return { kind: 'staged', itemCount: planStepCount(answer.plan), sizeBytes: planSizeBytes(answer.plan) };
  }

  async #attachDrive(state: RunState, signal: AbortSignal): Promise<Answer> {
    const run = this.#requireRun(state);
    const guest = { running: this.#require('attach-drive'), reported: this.#reported };
    try {
      const manifestDigest = await this.#drive.attach(run, this.#plan.of(run), guest, signal);
      return { kind: 'drive-attached', manifestDigest };
    } catch (error) {
      if (!(error instanceof RunError) || error.code !== CONFIG_CHANGED) throw error;
      this.runner.note('state', error.message);
      return { kind: 'config-changed', run: newRunId(), atMs: this.#deps.clock.nowMs() };
    }
  }

  async #openGate(
    effect: Extract<Effect, { kind: 'open-gate' }>,
    state: RunState,
    signal: AbortSignal,
  ): Promise<Answer | null> {
    const running = this.#require('open-gate');
    const run = this.#requireRun(state);
    // A drive of an earlier run that the guest never let go of.
    if (run.liveGrant === null) await this.#drive.detach(running);
    // Also what an earlier run left on trial: whoever is plugged in keeps what it writes.
    await this.#overlay.accept(running);
    // From here to the gate, which watches for closes by itself, nothing is waited for.
    signal.throwIfAborted();
    if (this.#drive.isAttached && run.liveGrant === null) {
      throw new RunError(
        'internal/drive-attached',
        `${this.vm} still has its drive; a first admission never goes with it`,
      );
    }
    const { grant } = effect;
    if (grant.kind === 'override') {
      await this.#deps.gate.open(running, { kind: 'override', run: run.run, reason: grant.reason, actor: grant.actor });
    } else {
      const evidence = this.#judge.evidenceOf(run, grant);
      // The session that confirmed is over: the next one is asked again. Until it comes, the state waits for its deadline.
      const isCurrent = () => this.#channel?.session()?.nonce === evidence.nonce;
      if (!isCurrent()) return null;
      try {
        await this.#deps.gate.open(running, { kind: 'evidence', run: run.run, evidence, isCurrent });
      } catch (error) {
        if (isCurrent()) throw error;
        return null;
      }
    }
    this.#judge.forget();
    const old = grant.kind === 'evidence' ? oldMetadataText(grant.evidence) : null;
    const by =
      grant.kind === 'override' ? `open by override: ${printable(grant.reason)}` : 'open: the cable is plugged in';
    this.runner.note('gate', old === null ? by : `${by}, on ${old}`);
    return { kind: 'opened' };
  }

  /** After a run: its drive folder, pins and old plans go; what the VM may need next is staged when it is off. */
  async #cleanUp(state: RunState): Promise<null> {
    const run = runOf(state);
    const keep: RunId | null = isUnderWay(state) && run !== null ? run.run : null;
    this.#deps.journal.forgetPlansOf(this.vm, keep);
    // Of a live update that failed: its guest never answered that it let go.
    if (state.kind === 'connected') await this.#drive.detach(this.#running);
    await this.#drive.cleanUp({ keep, isConnected: state.kind === 'connected' });
    // An override says nothing of what the guest has taken over.
    if (state.kind === 'connected' && state.grant.kind !== 'override') await this.#deps.finishSeed?.(this.vm);
    return null;
  }

  #requireReport(): Inventory {
    if (this.#reported !== null) return this.#reported;
    throw new RunError('internal/no-inventory', `${this.vm} is planned before it reported`);
  }

  #requireRun(state: RunState): Run {
    const run = runOf(state);
    if (run === null) throw new RunError('internal/no-run', `${this.vm} has no run`);
    return run;
  }
}
