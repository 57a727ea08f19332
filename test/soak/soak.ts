// The soak: storms and calms over one host for a bounded time. After each calm everything is counted and every opening judged.
import { join } from 'node:path';
import type { VmView } from '../../proxy/service.ts';
import { verifyFolder } from '../../src/audit/kept-chain.ts';
import type { Checkpoint } from '../../src/audit/record.ts';
import { systemClock } from '../../src/base/clock.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import type { VmSpec } from '../../src/hypervisor/vm-spec.ts';
import type { Policy } from '../../src/model/policy.ts';
import { makeRandom, seedFor } from '../simulator/random.ts';
import { ask, calmDown, drawStorm, type Ledger, type Strike, type Weather } from './faults.ts';
import { type Counts, judgeLeaks, type LeakLimits, type LeakVerdict, NO_COUNTS, type Sample } from './leaks.ts';
import { countOurProcesses, measure, readAdmittedTaps } from './measure.ts';
import { judgeOpenings, type OpeningCounts, type Recorded, type Seen } from './openings.ts';
import { openSite, type Site } from './site.ts';

export type SoakOptions = {
  readonly minutes: number;
  readonly vms: number;
  readonly realVms: number;
  readonly seed: number;
  readonly stormMs: number;
  /** VMs that did not come to rest within this after a storm, with an operator who starts and retries them, are stuck. */
  readonly calmTimeoutMs: number;
  /** What was just ended may take so long to be gone: a merge, a process. */
  readonly settleMs: number;
  /** Share of the time after which the daemon is left alive, so that its memory can be judged. */
  readonly killingShare: number;
  /** Called in each calm before anything is counted; for the test of the soak, which plants what it must find. */
  readonly plant?: (site: Site, cycle: number) => Promise<void>;
  /** Instead of the usual ones. */
  readonly limits?: LeakLimits;
  /** Asked before each storm: whether somebody wants it to come to its end now. */
  readonly isAskedToEnd?: () => boolean;
  readonly say: (line: string) => void;
};

export type SoakReport = {
  readonly minutes: number;
  readonly cycles: number;
  readonly seed: number;
  readonly vms: number;
  readonly realVms: number;
  /** How often each fault struck. */
  readonly faults: Readonly<Record<string, number>>;
  readonly openings: OpeningCounts;
  readonly runs: { readonly daemons: number; readonly auditRecords: number; readonly checkpoints: number };
  readonly leaks: LeakVerdict;
  readonly memory: { readonly residentMaxMB: number };
  readonly answers: Readonly<Record<string, number>>;
  readonly samples: readonly Sample[];
  /** What could not be looked at here. */
  readonly notLookedAt: readonly string[];
  /** Everything that is wrong, one sentence each; empty: the soak passed. */
  readonly wrong: readonly string[];
};

const CALM_LOOK_MS = 500;
/** Between two requests for the same VM. */
const NUDGE_MS = 4_000;
const REQUESTS_AT_ONCE = 8;
const RECORDS_PAGE = 1_000;
const CHECKPOINTS_VERIFIED_MAX = 6;
const EVENTS_MAX = 2_000;
/** Of a VM that is stuck. */
const STORY_EVENTS = 40;
const STOP_TIMEOUT_MS = 30_000;
/** Every so many cycles a new release is published. */
const RELEASE_CYCLES = 4;

/** Runs it. Throws only when the host itself cannot be made or taken down. */
export async function runSoak(options: SoakOptions): Promise<SoakReport> {
  const site = await openSite(options);
  try {
    return await new Soak(site, options).run();
  } finally {
    await site.close();
  }
}

class Soak {
  readonly #site: Site;
  readonly #options: SoakOptions;
  readonly #weather: Weather;
  readonly #ledger: Ledger = { overrides: [], answers: new Map(), outrages: [] };
  #startMs = systemClock.monotonicMs();
  readonly #faults = new Map<string, number>();
  readonly #samples: Sample[] = [];
  readonly #checkpoints: Checkpoint[] = [];
  readonly #wrong = new Set<string>();
  #records: Recorded[] = [];
  #counts: OpeningCounts = { admitted: 0, raised: 0, byEvidence: 0, byOverride: 0, frames: 0 };
  #lives = 1;
  #told = 0;
  #pid: number | null;

  constructor(site: Site, options: SoakOptions) {
    this.#site = site;
    this.#options = options;
    this.#weather = { site, ledger: this.#ledger, random: makeRandom(seedFor(options.seed, 'weather')) };
    this.#pid = site.house.daemon.pid();
  }

  async run(): Promise<SoakReport> {
    const { minutes, say } = this.#options;
    const lengthMs = minutes * 60_000;
    let cycles = 0;
    await this.#calm(0);
    this.#startMs = systemClock.monotonicMs();
    while (
      !this.#options.isAskedToEnd?.() &&
      systemClock.monotonicMs() - this.#startMs < lengthMs &&
      !this.#isHopeless()
    ) {
      cycles += 1;
      const mayKillDaemon = systemClock.monotonicMs() - this.#startMs < lengthMs * this.#options.killingShare;
      if (cycles % RELEASE_CYCLES === 0) await this.#publish(cycles);
      const strikes = drawStorm(this.#weather, { lengthMs: this.#options.stormMs, mayKillDaemon });
      await this.#storm(strikes);
      await this.#calm(cycles);
      say(this.#progressLine(cycles, strikes.length));
      this.#sayWrong();
    }
    const end = await this.#takeAway();
    return await this.#report(cycles, end);
  }

  #sayWrong(): void {
    for (const text of [...this.#wrong].slice(this.#told)) this.#options.say(`wrong: ${text}`);
    this.#told = this.#wrong.size;
  }

  /** Where nothing comes to rest any more, further storms would only tell the same again. */
  #isHopeless(): boolean {
    return this.#wrong.size > 50;
  }

  #moment() {
    return { atMinutes: this.#minutes(), life: this.#lives, settleMs: this.#options.settleMs };
  }

  #minutes(): number {
    return (systemClock.monotonicMs() - this.#startMs) / 60_000;
  }

  async #publish(cycle: number): Promise<void> {
    await ask(this.#weather, async () => await this.#site.house.publish({ version: `1.1.${cycle}` }));
  }

  async #storm(strikes: readonly Strike[]): Promise<void> {
    await Promise.all(
      strikes.map(async ({ name, run, afterMs }) => {
        await systemClock.sleep(afterMs);
        this.#faults.set(name, (this.#faults.get(name) ?? 0) + 1);
        await run();
      }),
    );
  }

  async #calm(cycle: number): Promise<void> {
    await calmDown(this.#weather);
    this.#lookAtDaemon();
    await this.#comeToRest();
    await this.#options.plant?.(this.#site, cycle);
    const allowed = this.#allowedNow();
    this.#samples.push(await measure(this.#site, { ...this.#moment(), allowed }));
    await this.#readRecords();
    await ask(this.#weather, async () => this.#checkpoints.push(await this.#site.house.service.auditCheckpoint()));
    await this.#judge();
  }

  /** A daemon that ended without our doing is wrong, whatever the weather. */
  #lookAtDaemon(): void {
    const pid = this.#site.house.daemon.pid();
    if (pid === this.#pid) return;
    this.#pid = pid;
    this.#lives += 1;
  }

  /** Until every VM is plugged in, with an operator who starts what is off and retries what is quarantined. */
  async #comeToRest(): Promise<void> {
    const nudged = new Map<string, number>();
    let waiting: readonly VmView[] = [];
    const isCalm = await waitUntil(
      async () => {
        const views = await this.#site.house.service.listVms();
        waiting = views.filter(({ state, gate }) => state !== 'connected' || gate !== 'open');
        await this.#nudge(views, nudged);
        return waiting.length === 0 && views.length === this.#specs().length && (await this.#areAdmitted());
      },
      systemClock,
      this.#options.calmTimeoutMs,
      CALM_LOOK_MS,
    );
    if (isCalm) return;
    for (const { vm, state, why } of waiting) {
      const past = await this.#site.house.service.pastEvents({ vm, afterSeq: 0, limit: EVENTS_MAX }).catch(() => []);
      const story = past.slice(-STORY_EVENTS).map(({ atMs, state: then, text }) => `${atMs} ${then}: ${text}`);
      this.#wrong.add(
        `minute ${this.#minutes().toFixed(1)}: ${vm} did not come to rest, it is ${state}: ${why.reason} Its story: ${story.join(' | ')}`,
      );
    }
    if (waiting.length === 0) this.#wrong.add(`minute ${this.#minutes().toFixed(1)}: connected VMs are not admitted`);
  }

  /** Every VM with the policy it was added with. */
  #specs(): readonly { readonly spec: VmSpec; readonly policy: Partial<Policy> }[] {
    const { fleet, real } = this.#site;
    return [...fleet.map(({ spec }) => ({ spec, policy: {} })), ...real];
  }

  async #areAdmitted(): Promise<boolean> {
    const admitted = await readAdmittedTaps(this.#site);
    return [...this.#site.vmOfTap.keys()].every((tap) => admitted.has(tap));
  }

  async #nudge(views: readonly VmView[], nudged: Map<string, number>): Promise<void> {
    const known = new Map(views.map((view) => [view.vm as string, view]));
    const works: (() => Promise<unknown>)[] = [];
    for (const { spec, policy } of this.#specs()) {
      const view = known.get(spec.vm);
      const isRecent = systemClock.monotonicMs() - (nudged.get(spec.vm) ?? Number.NEGATIVE_INFINITY) < NUDGE_MS;
      if (isRecent || view?.state === 'connected') continue;
      const work = this.#nudgeOf({ spec, policy }, view);
      if (work === null) continue;
      nudged.set(spec.vm, systemClock.monotonicMs());
      works.push(work);
    }
    const fleet = this.#site.fleet.filter((vm) => !vm.isOn());
    for (const vm of fleet) await vm.powerOn();
    const worker = async () => {
      for (let work = works.shift(); work !== undefined; work = works.shift()) await ask(this.#weather, work);
    };
    await Promise.all(Array.from({ length: REQUESTS_AT_ONCE }, worker));
    for (const { vm, state, why } of views)
      if (state === 'quarantined' && (why.reason === '' || why.next === ''))
        this.#wrong.add(`${vm} is quarantined and does not say why or what to do`);
  }

  #nudgeOf({ spec, policy }: { readonly spec: VmSpec; readonly policy: Partial<Policy> }, view: VmView | undefined) {
    const { service } = this.#site.house;
    if (view === undefined) return async () => await service.addVm(spec, policy);
    if (view.state === 'quarantined') return async () => await service.retryVm(spec.vm);
    if (view.state === 'off' || view.state === 'staged') return async () => await service.startVm(spec.vm);
    return null;
  }

  /** With everything plugged in and nothing under way. */
  #allowedNow(): Counts {
    const { fleet, real } = this.#site;
    const all = fleet.length + real.length;
    return {
      ...NO_COUNTS,
      taps: real.length,
      admitted: all,
      gated: fleet.length,
      fenceCounters: 2 * all,
      runFolders: all,
      qemus: real.length,
      children: this.#site.namespaces.length,
      scopes: real.length,
    };
  }

  async #readRecords(): Promise<void> {
    for (;;) {
      const afterSeq = this.#records.at(-1)?.seq ?? 0;
      const page = await this.#site.house.service.auditEntries({ afterSeq, limit: RECORDS_PAGE });
      if (page.length === 0) return;
      this.#records.push(...page);
    }
  }

  async #judge(): Promise<void> {
    const { wrong, counts } = judgeOpenings(await this.#seen());
    this.#counts = counts;
    for (const { vm, atMs, text } of wrong) this.#wrong.add(`${new Date(atMs).toISOString()} ${vm}: ${text}`);
    for (const watch of this.#site.watches) {
      const trouble = watch.trouble();
      if (trouble !== null) this.#wrong.add(`the watch of the fence is not whole: ${trouble}`);
    }
    for (const outrage of this.#ledger.outrages) this.#wrong.add(outrage);
  }

  async #seen(): Promise<Seen> {
    const { diary, fleet, real, vmOfTap, watches } = this.#site;
    const frames = await Promise.all(
      real.map(async ({ vm }) => (await vm.frames()).map(({ atMs }) => ({ atMs, vm: vm.vm }))),
    );
    return {
      vmOfTap,
      admissions: watches.flatMap(({ admissions }) => admissions),
      ...diary,
      watched: new Set(fleet.map(({ spec }) => spec.vm as string)),
      overrides: this.#ledger.overrides,
      frames: frames.flat(),
      records: this.#records,
    };
  }

  #progressLine(cycle: number, strikes: number): string {
    const sample = this.#samples.at(-1);
    const memory = sample?.memory ?? { residentMB: Number.NaN, heapMB: Number.NaN };
    const { sockets = 0, others = 0 } = sample?.descriptors ?? {};
    return [
      `minute ${this.#minutes().toFixed(1)}: cycle ${cycle}, ${strikes} faults`,
      `${this.#counts.admitted} openings so far`,
      `daemon ${this.#lives}: ${memory.residentMB} MB (heap ${memory.heapMB}), ${sockets + others} descriptors`,
      `${this.#wrong.size} wrong`,
    ].join('; ');
  }

  /** Every VM is stopped and removed; then nothing of them may be left. */
  async #takeAway(): Promise<Sample> {
    const { service } = this.#site.house;
    for (const { spec } of this.#specs()) await ask(this.#weather, () => service.stopVm(spec.vm, { force: true }));
    const areOff = await waitUntil(
      async () => (await service.listVms()).every(({ state }) => state === 'off' || state === 'staged'),
      systemClock,
      STOP_TIMEOUT_MS,
      CALM_LOOK_MS,
    );
    if (!areOff) this.#wrong.add('not every VM could be stopped at the end');
    for (const { spec } of this.#specs()) await ask(this.#weather, () => service.removeVm(spec.vm));
    if ((await service.listVms()).length > 0) this.#wrong.add('not every VM could be removed at the end');
    // The fence counts on for the names of taps, so that a VM's figures outlast its restarts.
    const allowed = {
      ...NO_COUNTS,
      children: this.#site.namespaces.length,
      fenceCounters: 2 * this.#specs().length,
    };
    const end = await measure(this.#site, { ...this.#moment(), allowed });
    await this.#readRecords();
    await this.#judge();
    return end;
  }

  async #report(cycles: number, end: Sample): Promise<SoakReport> {
    const { house, dataFolder, hasOwnDisk } = this.#site;
    await house.daemon.stop();
    const left = await countOurProcesses(this.#site);
    if (left > 0) this.#wrong.add(`${left} processes outlived the daemon's own end, with no VM left`);
    await this.#verifyChain(join(dataFolder, 'audit'));
    const leaks = judgeLeaks(this.#samples, end, this.#options.limits);
    for (const { text } of leaks.leaks) this.#wrong.add(`leak: ${text}`);
    const { vms, realVms, seed } = this.#options;
    return {
      ...{ vms, realVms, seed },
      minutes: Math.round(this.#minutes() * 10) / 10,
      cycles,
      faults: Object.fromEntries([...this.#faults].sort()),
      openings: this.#counts,
      runs: { daemons: this.#lives, auditRecords: this.#records.length, checkpoints: this.#checkpoints.length },
      leaks,
      memory: { residentMaxMB: Math.max(...this.#samples.map(({ memory }) => memory.residentMaxMB)) },
      answers: Object.fromEntries([...this.#ledger.answers].sort()),
      samples: [...this.#samples, end],
      notLookedAt: hasOwnDisk ? [] : ['a full disk: only root can give the daemon a disk of its own'],
      wrong: [...this.#wrong],
    };
  }

  /** By the files alone, against checkpoints that were taken meanwhile: each reads the whole chain, so a few of them stand for all. */
  async #verifyChain(folder: string): Promise<void> {
    const every = Math.ceil(this.#checkpoints.length / CHECKPOINTS_VERIFIED_MAX);
    const chosen = this.#checkpoints.filter((_, index) => index % every === 0);
    for (const checkpoint of [undefined, ...chosen]) {
      const report = await verifyFolder(folder, checkpoint === undefined ? {} : { checkpoint });
      if (!report.isIntact) this.#wrong.add(`the audit chain is not intact: ${report.trouble ?? ''}`);
    }
  }
}
