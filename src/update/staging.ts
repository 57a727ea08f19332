// What is known of a switched-off VM, for the updates it is staged with (A1). One that has never run is asked of its disk (A3), and
// what its agent reports later is held against that.
import type { Audit } from '../audit/audit.ts';
import { describeError, PratiqueError } from '../base/errors.ts';
import { counted, printable } from '../base/printable.ts';
import type { VmSpec } from '../hypervisor/vm-spec.ts';
import { claimDifference, type Difference, differenceOf, differenceText } from '../inspect/difference.ts';
import { InspectError } from '../inspect/errors.ts';
import type { DiskReport } from '../inspect/inspect-disk.ts';
import type { InventorySource, InventoryStore } from '../inventory/inventory-store.ts';
import type { VmId } from '../model/ids.ts';
import type { Inventory } from '../model/inventory.ts';
import type { Policy } from '../model/policy.ts';
import { RunError, type Runner } from './runner.ts';
import { hasVm, type RunState } from './state.ts';
import type { VmRunDeps } from './vm-run-deps.ts';

export type StagingOwner = {
  readonly vm: VmId;
  readonly spec: VmSpec;
  readonly policy: () => Policy;
  readonly note: Runner['note'];
};

type StagingDeps = Pick<VmRunDeps, 'inventories' | 'inspector' | 'clock' | 'log'> & {
  readonly audit: Pick<Audit, 'append'>;
};

type Known = NonNullable<ReturnType<InventoryStore['last']>>;

/** What a disk tells when somebody asks, beside what is known. */
export type Inspection = DiskReport & {
  /** Where the inventory comes from that counts for this VM. */
  readonly counts: InventorySource;
  /** How the disk differs from what the agent told last; null where they agree, or where no agent has told anything. */
  readonly difference: Difference | null;
};

/** The knowledge of one VM while it is off. */
export class Staging {
  readonly #deps: StagingDeps;
  readonly #owner: StagingOwner;
  #lastRefusal = '';
  #remark: string | null = null;
  /** When what was held against the disk had been told: nothing is held against it twice. */
  #heldAgainstDisk: number | null = null;

  constructor(deps: StagingDeps, owner: StagingOwner) {
    this.#deps = deps;
    this.#owner = owner;
  }

  /** That the agent reported something else than the disk had told; until the daemon starts anew, the audit record stays. */
  get remark(): string | null {
    return this.#remark;
  }

  /** What the VM has, as last told; of one that has never run, as its disk tells now. Null where nobody knows. */
  async inventory(signal: AbortSignal): Promise<Inventory | null> {
    const { vm, spec, policy, note } = this.#owner;
    const known = this.#deps.inventories.last(vm);
    if (known !== null) {
      if (known.source !== 'disk') await this.#holdAgainstDisk(known, signal);
      return known.inventory;
    }
    if (spec.kind === 'attached' || !policy().inspectDisk || this.#deps.inspector === undefined) return null;
    try {
      const report = await this.#look(signal);
      this.#keep(report);
      const { os, products } = report.inventory;
      const found = printable(`${os.id} ${os.versionId} ${os.arch}`, 100);
      note('state', `its disk tells: ${found}, ${counted(products.length, 'product')}`);
      for (const each of report.notes) note('state', printable(each, 400));
      return report.inventory;
    } catch (error) {
      signal.throwIfAborted();
      this.#tellRefusal(error);
      return null;
    }
  }

  /**
   * Where the policy asks for the disk, what the agent told last is held against it once the VM is off: a guest that put its disk
   * in order for one look only is on the record before it boots again. It changes nothing: the next confirmation is held against
   * the disk as well.
   */
  async #holdAgainstDisk({ inventory, atMs }: Known, signal: AbortSignal): Promise<void> {
    const { spec, policy, note } = this.#owner;
    const isAsked = policy().verify === 'disk' && spec.kind === 'managed' && this.#deps.inspector !== undefined;
    if (!isAsked || this.#heldAgainstDisk === atMs) return;
    try {
      const report = await this.#look(signal);
      this.#heldAgainstDisk = atMs;
      const text = claimDifference(report.inventory, inventory);
      if (text === null) return;
      note('warning', `its disk does not bear out what its agent told last: ${text}`);
      this.#remark = printable(`Its disk does not bear out what its agent told last: ${text}`, 400);
      this.#record(differenceOf(report.inventory, inventory), text);
    } catch (error) {
      signal.throwIfAborted();
      this.#tellRefusal(error);
    }
  }

  /** What the disk tells now, for people. Throws RunError for a VM whose disk may not be read now, InspectError otherwise. */
  async inspect(state: RunState, signal: AbortSignal): Promise<Inspection> {
    const { vm, spec } = this.#owner;
    if (spec.kind === 'attached') {
      throw new RunError('conflict/attached', `${vm} was started by somebody else: its disks are not ours to read`);
    }
    if (hasVm(state)) {
      throw new RunError('conflict/running', `${vm} is running: its disk is read only while it is off`, {
        next: `stop it first: pratique vm stop ${vm}`,
      });
    }
    const known = this.#deps.inventories.last(vm);
    const report = await this.#look(signal);
    if (known === null || known.source === 'disk') this.#keep(report);
    const isTold = known !== null && known.source !== 'disk';
    const difference = isTold ? differenceOf(report.inventory, known.inventory) : null;
    return { ...report, counts: isTold ? known.source : 'disk', difference };
  }

  /**
   * Remembers what the agent told. A database that cannot take it holds up no run: what is planned and judged is what was told, and the
   * agent reports again with each session.
   */
  learn(inventory: Inventory, source: 'report' | 'confirm'): void {
    const { vm } = this.#owner;
    const { inventories, clock, log } = this.#deps;
    try {
      this.compare(inventory);
      inventories.record(vm, { inventory, source, atMs: clock.nowMs() });
    } catch (error) {
      log.error({ vm, detail: describeError(error) }, 'what the agent told could not be written down');
    }
  }

  /** Holds the agent's first report against what the disk told. Call it before the report takes the disk's place. */
  compare(reported: Inventory): void {
    const { vm, note } = this.#owner;
    const known = this.#deps.inventories.last(vm);
    if (known?.source !== 'disk') return;
    const difference = differenceOf(known.inventory, reported);
    if (difference === null) {
      note('guest', 'the agent reports what the disk told');
      return;
    }
    const text = differenceText(difference);
    note('warning', text);
    this.#remark = printable(text.replace(/^the/, 'The'), 400);
    this.#record(difference, text);
  }

  #record(difference: Difference | null, text: string): void {
    const { vm } = this.#owner;
    if (difference === null) return;
    const { changed, missing, added } = difference;
    const counts = { changed: changed.count, missing: missing.count, added: added.count };
    this.#deps.audit.append({ kind: 'disk-differs', vm, ...counts, detail: text }).catch((error: unknown) => {
      this.#deps.log.error(
        { vm, detail: describeError(error) },
        'a difference between disk and agent was not recorded',
      );
    });
  }

  /** Ends a look that is under way: the VM is about to need its disks. */
  async leave(): Promise<void> {
    await this.#deps.inspector?.leave(this.#owner.vm);
  }

  async #look(signal: AbortSignal): Promise<DiskReport> {
    const { vm, spec } = this.#owner;
    if (spec.kind === 'attached' || this.#deps.inspector === undefined)
      throw new InspectError('host-unfit/inspect', `cannot look inside ${vm}: this host has nothing to look with`);
    return await this.#deps.inspector.inspect({ vm, disks: spec.disks }, signal);
  }

  #keep({ inventory }: DiskReport): void {
    this.#deps.inventories.record(this.#owner.vm, { inventory, source: 'disk', atMs: this.#deps.clock.nowMs() });
  }

  /** Once: a VM that stays off is staged again and again. */
  #tellRefusal(error: unknown): void {
    const text = describeError(error);
    if (!(error instanceof PratiqueError))
      this.#deps.log.error({ vm: this.#owner.vm, err: error }, 'a look into a disk failed');
    if (text === this.#lastRefusal) return;
    this.#lastRefusal = text;
    this.#owner.note('state', printable(text, 600));
  }
}
