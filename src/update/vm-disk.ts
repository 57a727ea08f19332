// What a running VM's disk says to what its guest claims: read beside the guest, where the policy asks for it (A3, A10).
import { describeError, PratiqueError } from '../base/errors.ts';
import { counted, printable } from '../base/printable.ts';
import type { DiskWitness } from '../confirm/judge.ts';
import type { RunningVm } from '../hypervisor/hypervisor.ts';
import type { VmSpec } from '../hypervisor/vm-spec.ts';
import { checkFiles, wrongFilesText } from '../inspect/check-files.ts';
import { claimDifference } from '../inspect/difference.ts';
import { InspectError } from '../inspect/errors.ts';
import { type ExpectedItem, expectedFiles } from '../inspect/expected-files.ts';
import type { RunningReport } from '../inspect/inspect-disk.ts';
import type { VmId } from '../model/ids.ts';
import type { Inventory } from '../model/inventory.ts';
import type { Plan } from '../model/plan.ts';
import { RunError, type Runner } from './runner.ts';
import type { VmRunDeps } from './vm-run-deps.ts';

export type DiskOwner = {
  readonly vm: VmId;
  readonly spec: VmSpec;
  readonly note: Runner['note'];
  readonly running: () => RunningVm | null;
};

/** The disks of one VM while it runs. */
export class VmDisk {
  readonly #deps: Pick<VmRunDeps, 'inspector' | 'store'>;
  readonly #owner: DiskOwner;

  constructor(deps: Pick<VmRunDeps, 'inspector' | 'store'>, owner: DiskOwner) {
    this.#deps = deps;
    this.#owner = owner;
  }

  /**
   * Holds a claim against the disk: system, agent and products, and the files of what the plan installed. A disk that cannot be
   * understood is an answer; a host that cannot read it is a failure of its own, and throws PratiqueError.
   */
  async check(plan: Plan, claimed: Inventory, signal: AbortSignal): Promise<DiskWitness> {
    const { note } = this.#owner;
    note('state', 'its disk is read beside it, and held against what its agent claims');
    const expected: ExpectedItem[] = [];
    for (const item of plan.items)
      expected.push(await expectedFiles(item, this.#deps.store.path(item.release.artifact.digest)));
    let report: RunningReport;
    try {
      report = await this.#read(expected, signal);
    } catch (error) {
      signal.throwIfAborted();
      if (!isDisksFault(error)) throw error;
      return { kind: 'unread', detail: describeError(error) };
    }
    const { files, inventory, tookMs } = report;
    const differences = [claimDifference(inventory, claimed), wrongFilesText(files)].filter((text) => text !== null);
    if (differences.length > 0) return { kind: 'differs', detail: printable(differences.join('; '), 400) };
    const { matching, unread } = files;
    const left = unread === 0 ? '' : `, ${unread} not read`;
    note('state', `its disk agrees: ${counted(matching, 'file')} of its update as sent${left}, in ${tookMs} ms`);
    return { kind: 'agrees', matching, unread };
  }

  async #read(expected: readonly ExpectedItem[], signal: AbortSignal): Promise<RunningReport> {
    const { vm, spec } = this.#owner;
    const running = this.#owner.running();
    const { inspector } = this.#deps;
    const viewDisk = running?.viewDisk;
    if (spec.kind === 'attached' || viewDisk === undefined) {
      const next = `take it out of its policy: pratique vm set ${vm} verify=agent`;
      throw new RunError('usage/verify', `the disk of ${vm} cannot be read: somebody else started its QEMU`, { next });
    }
    if (inspector === undefined)
      throw new InspectError('host-unfit/inspect', `cannot look inside ${vm}: this host has nothing to look with`);
    const of = { vm, disks: spec.disks.map(({ id }) => id), show: viewDisk };
    return await inspector.inspectRunning(of, (files) => checkFiles(files, expected), signal);
  }
}

/** What lies on the disk is to blame, or where it came from: the host did what it can. */
function isDisksFault(error: unknown): boolean {
  if (!(error instanceof PratiqueError)) return false;
  return error.code === 'usage/verify' || error.code === 'refused/cannot-look' || error.code.startsWith('guest-fault/');
}
