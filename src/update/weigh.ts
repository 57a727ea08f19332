// Weighs a confirmation: the judge's rules, what the VM's disk tells where the policy asks for it, and what the vendors say of
// products that turned up only with it.
import {
  checkLeftOut,
  type DiskWitness,
  findUnplanned,
  type JudgeInput,
  type Judgement,
  judge,
} from '../confirm/judge.ts';
import type { PlanAnswer } from './planner.ts';
import { explainQuarantine } from './why.ts';

export type Witnesses = {
  /** Makes a plan of the fresh inventory. */
  readonly planAnew: () => Promise<PlanAnswer>;
  /** Looks at the VM's disk; asked only when everything that costs less is right. */
  readonly readDisk: () => Promise<DiskWitness>;
};

/**
 * Evidence, or why not. `planAnew` makes a plan of the fresh inventory; it is asked only if something turned up that nobody
 * reported before, which an honest guest shows after an installer brought more than its item.
 */
export async function weigh(given: JudgeInput, { planAnew, readDisk }: Witnesses): Promise<Judgement> {
  const first = judge(given);
  const isForDisk = first.kind === 'refused' && first.code === 'disk-unread';
  const input = isForDisk ? { ...given, disk: await readDisk() } : given;
  const judged = isForDisk ? judge(input) : first;
  if (judged.kind === 'refused') return judged;
  const unplanned = new Set(findUnplanned(input).map(nameOf));
  if (unplanned.size === 0) return judged;
  const answer = await planAnew();
  if (answer.kind === 'refused') {
    const { reason } = explainQuarantine(input.vm, answer.reason, true);
    return { kind: 'refused', code: 'still-behind', detail: reason };
  }
  const isLate = (product: Named) => unplanned.has(nameOf(product));
  const late = answer.plan.items.find(({ release }) => isLate(release));
  if (late === undefined) return checkLeftOut(answer.plan.leftOut.filter(isLate), input.policy) ?? judged;
  const detail = `${late.id} turned up at ${late.fromVersion ?? 'no version'}, the latest is ${late.release.version}`;
  return { kind: 'refused', code: 'still-behind', detail };
}

type Named = { readonly ecosystem: string; readonly product: string };

const nameOf = ({ ecosystem, product }: Named): string => `${ecosystem}/${product}`;
