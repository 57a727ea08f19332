// X8: for every VM that is not plugged in, the reason and the next step, one sentence each. The only place that words them.
import { printable } from '../base/printable.ts';
import type { VmId } from '../model/ids.ts';
import type { Policy } from '../model/policy.ts';
import { type FailedVersion, isContentCode, type QuarantineReason } from '../model/quarantine.ts';
import { isGateOpen, type RunState } from './state.ts';
import { explainLicense } from './why-license.ts';

export type Reason = { readonly reason: string; readonly next: string };

/** Why the VM is as it is, and what to do. */
export function explain(vm: VmId, state: RunState, policy: Pick<Policy, 'overlay'>): Reason {
  if (state.kind === 'quarantined') return explainQuarantine(vm, state.reason, state.isRunning);
  if (state.kind === 'connected') return explainConnected(vm, state, policy);
  if (isGateOpen(state))
    return { reason: `It is plugged in and being updated (${state.kind}).`, next: `Wait: pratique vm wait ${vm}` };
  if (state.kind === 'offering' && state.phase === 'withdrawing') {
    const reason =
      'The guest read something else from its drive than was announced; the host takes it back and looks at its copies.';
    return { reason, next: `Wait: pratique vm wait ${vm}` };
  }
  return explainWaiting(vm, state.kind, state.kind === 'opening' && state.grant.kind === 'override');
}

function explainConnected(
  vm: VmId,
  state: Extract<RunState, { kind: 'connected' }>,
  policy: Pick<Policy, 'overlay'>,
): Reason {
  const { grant, trouble } = state;
  // With an overlay in its policy nothing is pushed to a VM that is plugged in.
  const update = policy.overlay ? 'restart the guest' : `pratique vm update ${vm}`;
  if (trouble !== null) {
    const { reason } = explainQuarantine(vm, trouble, true);
    // A retry is for quarantined VMs; this one is updated again, once its agent can be asked.
    const next =
      state.session === null
        ? `Restart the guest: its agent is not on the channel; then it is gated and updated`
        : `Mend the cause, then: ${update}`;
    return { reason: `It is plugged in, but its last live update did not end well: ${reason}`, next };
  }
  if (grant.kind === 'override') {
    return {
      reason: `It was plugged in without evidence by ${printable(grant.actor)}: ${printable(grant.reason)}.`,
      next: `Update it when you can: ${update}`,
    };
  }
  return { reason: 'It confirmed the installation of every update of its plan.', next: 'Nothing to do.' };
}

function explainWaiting(
  vm: VmId,
  kind: Exclude<RunState['kind'], 'connected' | 'quarantined'>,
  isByOverride: boolean,
): Reason {
  const wait = `Wait: pratique vm wait ${vm}`;
  switch (kind) {
    case 'off':
      return { reason: 'The VM is off.', next: `Start it: pratique vm start ${vm}` };
    case 'staged':
      return {
        reason: 'The VM is off; the updates it needs are on this host already.',
        next: `Start it: pratique vm start ${vm}`,
      };
    case 'booting':
      return { reason: 'The guest is booting and its agent has not said hello yet.', next: wait };
    case 'reporting':
      return { reason: 'The agent is on the channel; its inventory is awaited.', next: wait };
    case 'planning':
      return { reason: 'The host compares versions and fetches what is missing.', next: wait };
    case 'offering':
      return { reason: 'The updates are on the drive; the agent is checking them.', next: wait };
    case 'installing':
      return { reason: 'The agent is installing updates.', next: `Watch it: pratique vm events --follow ${vm}` };
    case 'rebooting':
      return { reason: 'The guest reboots to finish its updates.', next: wait };
    case 'judging':
      return { reason: 'The agent confirms; the host checks it against a fresh inventory.', next: wait };
    case 'opening':
      if (isByOverride) {
        return { reason: 'It was admitted without evidence; the cable is being plugged in.', next: wait };
      }
      return {
        reason: 'The confirmation was accepted; the drive is taken away and the cable is being plugged in.',
        next: wait,
      };
    case 'rolling-back':
      return { reason: 'Its update failed; the disk overlay it ran on is thrown away.', next: wait };
    default:
      return kind satisfies never;
  }
}

function nextAfterFailure(
  vm: VmId,
  step: string,
  how: { readonly isRunning: boolean; readonly retry: string },
): string {
  // What cannot be taken over can still be ended.
  if (step === 'hold-vm' && how.isRunning) return `End it: pratique vm stop --force ${vm}, then start it again`;
  if (step === 'begin-overlay')
    return `Mend that, or do without an overlay: pratique vm set ${vm} overlay=false; then: ${how.retry}`;
  return `Run pratique doctor, mend what it names, then: ${how.retry}`;
}

/** Named versions in a sentence: three of them, and how many more. */
function listVersions(versions: readonly FailedVersion[]): string {
  const named = versions.slice(0, 3).map(({ item, version }) => `${printable(item)} ${printable(version)}`);
  const more = versions.length > named.length ? ` and ${versions.length - named.length} more` : '';
  return named.join(', ') + more;
}

/** A quarantine's reason in a sentence, and the next step. */
export function explainQuarantine(vm: VmId, reason: QuarantineReason, isRunning: boolean): Reason {
  const retry = isRunning ? `pratique vm retry ${vm}` : `pratique vm start ${vm}`;
  const seconds = (ms: number) => `${Math.round(ms / 1000)} s`;
  switch (reason.kind) {
    case 'agent-silent':
      return {
        reason: `The agent in the guest said nothing for ${seconds(reason.waitedMs)} while ${reason.state}.`,
        next: `Look at the guest's console for why pratique-agent does not run, then: ${retry}`,
      };
    case 'install-failed':
      return {
        reason: `Installing ${printable(reason.item)} failed (${printable(reason.code)})${reason.detail === '' ? '' : `: ${printable(reason.detail)}`}.`,
        next: isContentCode(reason.code)
          ? `This host has looked at its copies and fetches damaged ones anew: ${retry}`
          : `Mend the cause in the guest or publish a better release, then: ${retry}`,
      };
    case 'confirm-refused':
      if (reason.code === 'metadata-old') {
        return {
          reason: `Whether it is up to date is not known any more: ${printable(reason.detail)}.`,
          next: `Look at pratique vendor check, then: ${retry}`,
        };
      }
      if (reason.code === 'left-out') {
        return {
          reason: `What it should have cannot be installed: ${printable(reason.detail, 400)}.`,
          next: `Wait for the vendor, or decide: pratique vm set ${vm} leftOut=admit (or holds=…); then: ${retry}`,
        };
      }
      if (reason.code === 'disk-mismatch') {
        return {
          reason: `Its disk does not bear out what its agent claims: ${printable(reason.detail, 400)}.`,
          next: `Do not trust this guest's word before you know why: pratique vm stop ${vm}, pratique vm inspect ${vm}; if it is mended: ${retry}`,
        };
      }
      if (reason.code === 'disk-unread') {
        return {
          reason: `Its policy asks for its disk, and nothing can be read there: ${printable(reason.detail, 400)}.`,
          next: `Put its system on a plain ext4 disk, or believe its agent: pratique vm set ${vm} verify=agent; then: ${retry}`,
        };
      }
      if (reason.code === 'health-failed' || reason.code === 'health-missing') {
        return {
          reason: `It is up to date, but a health check of its policy did not pass: ${printable(reason.detail, 400)}.`,
          next: `Mend it in the guest, or change the check: pratique vm set ${vm} health=…; then: ${retry}`,
        };
      }
      return {
        reason: `The guest's confirmation was not believed (${printable(reason.code)}): ${printable(reason.detail)}.`,
        next: `Compare it with pratique vm show ${vm}; if the guest can be trusted: ${retry}`,
      };
    case 'drive-refused':
      return {
        reason: `The agent refused the drive (${printable(reason.code)})${reason.detail === '' ? '' : `: ${printable(reason.detail)}`}.`,
        next: `Look at pratique vm events ${vm}, then: ${retry}`,
      };
    case 'guest-misbehaved':
      return {
        reason: `The guest broke the channel's rules (${printable(reason.code)}): ${printable(reason.detail)}.`,
        next: `Inspect the guest before you trust it, then: ${retry}`,
      };
    case 'vendor-unavailable':
      return {
        reason: `Whether it is up to date cannot be known: ${printable(reason.vendor)} cannot be asked (${printable(reason.detail)}).`,
        next: `Check it: pratique vendor check ${printable(reason.vendor)}; then: ${retry}`,
      };
    case 'plan-refused':
      if (reason.code === 'guest-config') {
        return {
          reason: `What is configured for it cannot be applied: ${printable(reason.detail, 400)}.`,
          next: `Look at pratique config show ${vm} and mend what it names, then: ${retry}`,
        };
      }
      if (reason.code === 'old-agent') {
        return {
          reason: `Configuration waits for it, but ${printable(reason.detail)}.`,
          next: `Give it a newer pratique-agent (docs/guest-config.md), then: ${retry}`,
        };
      }
      return {
        reason: `No plan could be made (${printable(reason.code)}): ${printable(reason.detail)}.`,
        next: `Change the VM's policy or the vendor's offer, then: ${retry}`,
      };
    case 'license-refused':
      return explainLicense(reason.license, reason.code, retry);
    case 'host-failure':
      return {
        reason: `This host could not do its part (${reason.step}): ${printable(reason.detail, 400)}.`,
        next: nextAfterFailure(vm, reason.step, { isRunning, retry }),
      };
    case 'too-many-reboots':
      return {
        reason: `The guest booted ${reason.reboots} times within one run without ending it.`,
        next: `Look at the guest's console, then: ${retry}`,
      };
    case 'too-many-offers':
      return {
        reason: `The agent took the drive ${reason.offers} times without finishing the installation.`,
        next: `Look at the guest's console, then: ${retry}`,
      };
    case 'deadline':
      if (reason.state === 'run') {
        return {
          reason: `The run took ${seconds(reason.waitedMs)} from its beginning, longer than the VM's policy allows.`,
          next: `Look at pratique vm events ${vm} for what took so long, then: ${retry}`,
        };
      }
      return {
        reason: `It stayed in ${reason.state} for ${seconds(reason.waitedMs)}, longer than allowed.`,
        next: `Look at pratique vm events ${vm}, then: ${retry}`,
      };
    case 'rolled-back': {
      const cause = explainQuarantine(vm, reason.cause, isRunning);
      const back = 'The update was rolled back: its disk overlay was thrown away, and the VM is as before.';
      if (reason.versions.length === 0) return { reason: `${back} ${cause.reason}`, next: cause.next };
      return {
        reason: `${back} ${cause.reason} Not tried again by itself: ${listVersions(reason.versions)}.`,
        next: `Wait for a newer release, or mend the cause; then: ${retry}`,
      };
    }
    case 'ungated-start':
      return {
        reason: `It ran before Pratique took it over (${printable(reason.detail)}), so what it did was not gated.`,
        next: isRunning
          ? `Power it off and on: pratique vm stop ${vm}, then start it again`
          : `Start it: pratique vm start ${vm}`,
      };
    default:
      return reason satisfies never;
  }
}
