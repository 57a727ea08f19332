// The only code that lets a VM run, raises a link, lifts a fence or releases media. Closing wins over everything.
//
//   close: expel from the fence ─► lower the links ─► withhold media ─► read the fence back
//   open:  evidence or override ─► signed record on disk ─► admit ─► raise the links ─► release media
//
// What stands open is remembered by the run's journal (QEMU cannot be asked for a link's state): it says `connected`
// only after `open` returned, and whatever it does not call connected is closed again when the daemon starts.
import type { AuditRecord } from '../audit/record.ts';
import { PratiqueError } from '../base/errors.ts';
import type { Log } from '../base/log.ts';
import type { Fence } from '../hypervisor/fence.ts';
import { isCoveredName } from '../hypervisor/fence.ts';
import type { RunningVm } from '../hypervisor/hypervisor.ts';
import type { Namespace } from '../hypervisor/vm-spec.ts';
import type { Evidence } from '../model/evidence.ts';
import type { RunId } from '../model/ids.ts';

export class GateError extends PratiqueError {}

export type GateGrant =
  | { readonly kind: 'evidence'; readonly run: RunId; readonly evidence: Evidence }
  | { readonly kind: 'override'; readonly run: RunId; readonly reason: string; readonly actor: string };

export type Gate = {
  /** Closes all three layers and reads the fence back. Throws GateError or HypervisorError; the fence is closed first, whatever fails after it. */
  readonly close: (vm: RunningVm, reason: string) => Promise<void>;
  /** Lets a stopped VM run. Throws GateError `refused/gate-not-closed` unless this gate closed it and the fence in the kernel holds. */
  readonly resume: (vm: RunningVm) => Promise<void>;
  /** Plugs a VM in. Throws GateError `refused/evidence…` for anything but genuine evidence or an override with a reason; a close meanwhile wins. */
  readonly open: (vm: RunningVm, grant: GateGrant) => Promise<void>;
  /** Whether the kernel's fence admits every tap of the VM. */
  readonly isAdmitted: (vm: RunningVm) => Promise<boolean>;
};

export type GateDeps = {
  readonly fenceFor: (namespace: Namespace) => Promise<Fence>;
  /** Resolves when the record is on disk. */
  readonly audit: (record: AuditRecord) => Promise<unknown>;
  /** Only what the judge made in this process is evidence. */
  readonly isEvidence: (value: unknown) => value is Evidence;
  readonly log: Log;
};

const tapNames = (vm: RunningVm): readonly string[] => vm.taps.map((tap) => tap.name);

/** Makes the gate of this host. */
export function makeGate(deps: GateDeps): Gate {
  // One number per running VM, raised by every close: an open that sees it change undoes itself.
  const closings = new WeakMap<RunningVm, number>();
  const closingsOf = (vm: RunningVm): number => closings.get(vm) ?? 0;
  const closed = new WeakSet<RunningVm>();

  const close = async (vm: RunningVm, reason: string): Promise<void> => {
    closings.set(vm, closingsOf(vm) + 1);
    closed.delete(vm);
    const mine = closingsOf(vm);
    const fence = await deps.fenceFor(vm.namespace);
    await closeFence(fence, vm);
    await deps.audit({ kind: 'gate-closed', vm: vm.vm, reason });
    await vm.lowerLinks();
    await vm.withholdMedia();
    await verifyClosed(fence, vm);
    if (closingsOf(vm) === mine) closed.add(vm);
  };

  const open = async (vm: RunningVm, grant: GateGrant): Promise<void> => {
    checkGrant(deps, vm, grant);
    const before = closingsOf(vm);
    const fence = await deps.fenceFor(vm.namespace);
    await deps.audit(recordOf(vm, grant));
    refuseIfClosed(vm, closingsOf(vm) === before);
    closed.delete(vm);
    try {
      await fence.admit(tapNames(vm));
      refuseIfClosed(vm, closingsOf(vm) === before);
      await vm.raiseLinks();
      await vm.releaseMedia();
      refuseIfClosed(vm, closingsOf(vm) === before);
    } catch (error) {
      await close(vm, 'opening failed').catch((cause) =>
        deps.log.error({ vm: vm.vm, err: cause }, 'a half-open gate could not be closed'),
      );
      throw error;
    }
  };

  return {
    close,
    open,
    resume: async (vm) => {
      if (!closed.has(vm)) {
        throw new GateError('refused/gate-not-closed', `${vm.vm} is not let run: its gate was not closed before`, {
          next: 'retry it',
        });
      }
      await verifyClosed(await deps.fenceFor(vm.namespace), vm);
      await vm.resume();
    },
    isAdmitted: async (vm) => {
      const fence = await deps.fenceFor(vm.namespace);
      const { fault, admitted } = await fence.verify();
      return fault === null && tapNames(vm).every((tap) => admitted.has(tap));
    },
  };
}

async function closeFence(fence: Fence, vm: RunningVm): Promise<void> {
  await fence.ensure();
  const foreign = tapNames(vm).filter((tap) => !isCoveredName(tap));
  if (foreign.length > 0) await fence.guard(foreign);
  await fence.expel(tapNames(vm));
}

/** The kernel's own table says that the rules stand and that none of the VM's taps may pass. */
async function verifyClosed(fence: Fence, vm: RunningVm): Promise<void> {
  const { fault, admitted, gated } = await fence.verify();
  const open = tapNames(vm).filter((tap) => admitted.has(tap) || !(isCoveredName(tap) || gated.has(tap)));
  if (fault === null && open.length === 0) return;
  throw new GateError(
    'host-fault/fence-open',
    `${vm.vm}: the fence does not hold (${fault ?? `not fenced: ${open.join(', ')}`})`,
    {
      next: 'look at `nft list table bridge pratique`',
    },
  );
}

function checkGrant(deps: GateDeps, vm: RunningVm, grant: GateGrant): void {
  if (grant.kind === 'override') {
    if (grant.reason.trim() !== '' && grant.actor.trim() !== '') return;
    throw new GateError('refused/override', `${vm.vm}: an override needs a reason and an actor`);
  }
  if (!deps.isEvidence(grant.evidence)) {
    throw new GateError('refused/evidence', `${vm.vm}: what was given is no evidence of this process`);
  }
  if (grant.evidence.vm === vm.vm && grant.evidence.run === grant.run) return;
  throw new GateError(
    'refused/evidence-of-another',
    `${vm.vm}: the evidence is for run ${grant.evidence.run} of ${grant.evidence.vm}`,
  );
}

function recordOf(vm: RunningVm, grant: GateGrant): AuditRecord {
  if (grant.kind === 'evidence') return { kind: 'gate-opened', vm: vm.vm, evidence: grant.evidence };
  return { kind: 'override', vm: vm.vm, run: grant.run, actor: grant.actor, reason: grant.reason };
}

function refuseIfClosed(vm: RunningVm, isStillMine: boolean): void {
  if (isStillMine) return;
  throw new GateError('refused/closed-meanwhile', `${vm.vm}: the gate was closed while it was being opened`);
}
