// The plan of one VM's run: asked of the planner, kept in the journal, and what of it failed remembered there.
import { JOURNAL_RETRY_MS, PLAN_SUMMARY_ITEMS_MAX } from '../base/limits.ts';
import { counted } from '../base/printable.ts';
import { configItemId } from '../model/guest-config.ts';
import type { RunId, VmId } from '../model/ids.ts';
import type { Inventory } from '../model/inventory.ts';
import { configIdsOf, type Plan, planDigest, planSizeBytes, planStepCount } from '../model/plan.ts';
import type { Policy } from '../model/policy.ts';
import type { FailedVersion, QuarantineReason } from '../model/quarantine.ts';
import { makePlan, type PlanAnswer, type PlanRequest } from './planner.ts';
import { planNotes } from './remarks.ts';
import { type Answer, RunError, type Runner } from './runner.ts';
import type { PlanSummary, Run } from './state.ts';
import type { VmRunDeps } from './vm-run-deps.ts';
import { explainQuarantine } from './why.ts';

type PlanDeps = Pick<VmRunDeps, 'journal' | 'clock' | 'log' | 'checkLicense' | 'seats' | 'vendors' | 'guestConfig'>;

export type PlanOwner = {
  readonly vm: VmId;
  readonly note: Runner['note'];
  readonly policy: () => Policy;
  /** Why that policy is not the one that was meant; then nothing is planned. */
  readonly policyTrouble: () => string | null;
  /** Aborts when nobody waits for this VM any more. */
  readonly ending: AbortSignal;
};

/** What one VM's run installs. */
export class VmPlan {
  readonly #deps: PlanDeps;
  readonly #owner: PlanOwner;
  #plan: Plan | null = null;
  /** What the guest had when the run was planned; a daemon that started since does not know it any more. */
  #before: { readonly run: RunId; readonly inventory: Inventory } | null = null;

  constructor(deps: PlanDeps, owner: PlanOwner) {
    this.#deps = deps;
    this.#owner = owner;
  }

  /** The plan at hand, of whichever run; null when there is none. */
  get current(): Plan | null {
    return this.#plan;
  }

  /** After a start of the daemon: takes the run's plan from the journal. */
  load(run: Run | null): void {
    this.#plan = run === null ? null : this.#deps.journal.loadPlan(run.run);
  }

  /** The plan of a run. Throws RunError where the journal has none. */
  of(run: Run): Plan {
    if (this.#plan?.run !== run.run) this.load(run);
    if (this.#plan !== null) return this.#plan;
    const { vm } = this.#owner;
    throw new RunError('internal/no-plan', `the plan of run ${run.run} of ${vm} is not in the journal`);
  }

  /** What the guest had before this run; null when that is not known any more. */
  before(run: Run): Inventory | null {
    return this.#before?.run === run.run ? this.#before.inventory : null;
  }

  /** Makes the plan of a run and keeps it. */
  async make(run: Run, inventory: Inventory, signal: AbortSignal): Promise<Answer> {
    const { note } = this.#owner;
    const answer = await this.askForAll(run.run, inventory, signal);
    if (answer.kind === 'refused') return { kind: 'plan-failed', reason: answer.reason };
    const { plan } = answer;
    await this.#deps.journal.savePlan(plan);
    this.#plan = plan;
    this.#before = { run: run.run, inventory };
    if (plan.items.length > 0) note('state', `missing: ${counted(plan.items.length, 'update')}`);
    const configured = configIdsOf(plan).length;
    if (configured > 0) note('state', `to be configured: ${counted(configured, 'item')}`);
    for (const { kind, text } of planNotes(plan)) note(kind, text);
    return { kind: 'planned', plan: summaryOf(plan), rebootRequired: inventory.rebootRequired };
  }

  /** What a dry run would say: no seat is taken, and what no server has refused yet is taken to be free. */
  async askLightly(run: RunId, inventory: Inventory, signal: AbortSignal): Promise<PlanAnswer> {
    const { seats } = this.#deps;
    return await this.ask(run, inventory, signal, seats === undefined ? {} : { checkLicense: seats.prospect });
  }

  /** What the VM is to get: the seats that it needs are taken before that is decided. */
  async askForAll(run: RunId, inventory: Inventory, signal: AbortSignal): Promise<PlanAnswer> {
    const { seats } = this.#deps;
    const { vm } = this.#owner;
    if (seats === undefined) return await this.ask(run, inventory, signal);
    return await this.ask(run, inventory, signal, {
      takeSeats: (licenses) => seats.take({ vm, run, licenses }, signal),
    });
  }

  /** What the vendors and the policy say to an inventory, by the seats that the VM has; kept by nobody. */
  async ask(
    run: RunId,
    inventory: Inventory,
    signal: AbortSignal,
    how: Pick<PlanRequest, 'checkLicense' | 'takeSeats'> = {},
  ): Promise<PlanAnswer> {
    const { clock, checkLicense, journal, guestConfig } = this.#deps;
    const { vm } = this.#owner;
    const policy = this.#owner.policy();
    const policyTrouble = this.#owner.policyTrouble();
    const failedBefore = journal.failedUpdates(vm);
    const vendors = this.#deps.vendors();
    const configuration = (await guestConfig?.(vm)) ?? null;
    const asked = { vm, run, inventory, policy, policyTrouble, failedBefore, vendors, configuration, clock, signal };
    return await makePlan({ ...asked, ...(checkLicense === undefined ? {} : { checkLicense }), ...how });
  }

  /** The whole plan where nobody in particular is to blame; the state names only its first versions. */
  async rememberFailed({ versions, cause }: Extract<QuarantineReason, { kind: 'rolled-back' }>): Promise<void> {
    const isWholePlan = versions.length > 1 && this.#plan !== null;
    const failed = isWholePlan ? versionsOf(this.#plan) : versions;
    const { vm, ending } = this.#owner;
    const { reason } = explainQuarantine(vm, cause, true);
    const { clock, journal, log } = this.#deps;
    const atMs = clock.nowMs();
    const lines = failed.map((each) => ({ ...each, atMs, cause: reason }));
    // The VM does not boot again before this is on disk: what failed would be tried once more.
    for (;;) {
      try {
        return await journal.rememberFailed(vm, lines);
      } catch (error) {
        log.error({ vm, err: error }, 'what failed could not be written down; it is tried again');
        await clock.sleep(JOURNAL_RETRY_MS, ending);
      }
    }
  }
}

function summaryOf(plan: Plan): PlanSummary {
  const versions = versionsOf(plan).slice(0, PLAN_SUMMARY_ITEMS_MAX);
  const configCount = configIdsOf(plan).length;
  return {
    digest: planDigest(plan),
    itemCount: planStepCount(plan),
    ...(configCount === 0 ? {} : { configCount }),
    sizeBytes: planSizeBytes(plan),
    versions,
  };
}

function versionsOf(plan: Plan | null): readonly FailedVersion[] {
  if (plan === null) return [];
  const updates = plan.items.map(({ id, release }) => ({ item: id, version: release.version }));
  const config = plan.config?.map(({ item, version }) => ({ item: configItemId(item), version })) ?? [];
  return [...updates, ...config];
}
