// What a VM would get now, without doing it: a plan, or an error that says why there is none.
import type { VmId } from '../model/ids.ts';
import type { Inventory } from '../model/inventory.ts';
import type { Plan } from '../model/plan.ts';
import type { PlanAnswer } from './planner.ts';
import { RunError } from './runner.ts';
import { explainQuarantine } from './why.ts';

/** The plan of the last known inventory. Throws RunError when there is no inventory or no plan can be made. */
export async function dryRun(
  vm: VmId,
  known: Inventory | null,
  ask: (inventory: Inventory) => Promise<PlanAnswer>,
): Promise<Plan> {
  if (known === null) {
    throw new RunError('conflict/no-inventory', `nothing is known of ${vm} yet`, {
      next: `start it once: pratique vm start ${vm}`,
    });
  }
  const answer = await ask(known);
  if (answer.kind === 'plan') return answer.plan;
  const { reason, next } = explainQuarantine(vm, answer.reason, true);
  const code = answer.reason.kind === 'vendor-unavailable' ? 'vendor-ill/unavailable' : 'refused/plan';
  throw new RunError(code, reason, { next });
}
