// Judges one VM's confirmations, and keeps the evidence between the judgement and the gate.
import { trustedNowMs } from '../base/clock.ts';
import type { JudgeInput } from '../confirm/judge.ts';
import { licensesOf } from '../drive/drive.ts';
import type { Evidence } from '../model/evidence.ts';
import type { VmId } from '../model/ids.ts';
import type { Inventory } from '../model/inventory.ts';
import { planDigest } from '../model/plan.ts';
import type { Policy } from '../model/policy.ts';
import type { Effect } from './effect.ts';
import { comparisonOf } from './planner.ts';
import { type Answer, RunError, type Runner } from './runner.ts';
import { type Grant, type Run, type RunState, sessionOf } from './state.ts';
import type { VmDisk } from './vm-disk.ts';
import type { VmPlan } from './vm-plan.ts';
import type { VmRunDeps } from './vm-run-deps.ts';
import { weigh } from './weigh.ts';

type JudgeDeps = Pick<VmRunDeps, 'clock' | 'audit' | 'vendors' | 'seats'>;

export type JudgeOwner = {
  readonly vm: VmId;
  readonly note: Runner['note'];
  readonly policy: () => Policy;
  readonly plan: VmPlan;
  readonly disk: Pick<VmDisk, 'check'>;
  /** Told of the inventory that was believed. */
  readonly onBelieved: (inventory: Inventory) => void;
};

/** What one VM's guest confirmed, and what that is worth. */
export class VmJudge {
  readonly #deps: JudgeDeps;
  readonly #owner: JudgeOwner;
  #evidence: Evidence | null = null;

  constructor(deps: JudgeDeps, owner: JudgeOwner) {
    this.#deps = deps;
    this.#owner = owner;
  }

  /** Evidence, or a refusal on the record. */
  async judge(
    { confirm }: Extract<Effect, { kind: 'judge' }>,
    run: Run,
    state: RunState,
    signal: AbortSignal,
  ): Promise<Answer> {
    const { vm, note, policy } = this.#owner;
    const { clock, audit, vendors, seats } = this.#deps;
    const plan = this.#owner.plan.of(run);
    const input: JudgeInput = {
      vm,
      run: run.run,
      plan,
      planDigest: run.plan?.digest ?? planDigest(plan),
      session: sessionOf(state),
      confirmation: confirm,
      manifestDigests: run.manifests,
      reported: this.#owner.plan.before(run),
      compareVersions: comparisonOf(vendors()),
      policy: policy(),
      nowMs: trustedNowMs(clock),
      ...(seats === undefined ? {} : { licenses: seats.factsOf(vm, licensesOf(plan)) }),
    };
    const verdict = await weigh(input, {
      planAnew: () => this.#owner.plan.ask(run.run, confirm.inventory, signal),
      readDisk: () => this.#owner.disk.check(plan, confirm.inventory, signal),
    });
    if (verdict.kind === 'evidence') {
      this.#evidence = verdict.evidence;
      this.#owner.onBelieved(confirm.inventory);
      note('guest', 'the confirmation is believed');
      return { kind: 'judged', evidence: verdict.evidence };
    }
    await audit.append({ kind: 'refusal', vm, run: run.run, code: verdict.code, detail: verdict.detail });
    return { kind: 'judged-refused', code: verdict.code, detail: verdict.detail };
  }

  /** The evidence of this run and grant. Throws RunError where this process has not judged it. */
  evidenceOf(run: Run, grant: Extract<Grant, { kind: 'evidence' }>): Evidence {
    const evidence = this.#evidence;
    if (evidence !== null && evidence.run === run.run && evidence.nonce === grant.evidence.nonce) return evidence;
    throw new RunError('internal/no-evidence', `${this.#owner.vm} has no evidence of this run in memory`);
  }

  /** It opened a gate, and opens no other. */
  forget(): void {
    this.#evidence = null;
  }
}
