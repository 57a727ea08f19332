// Which policy holds for a VM: its own keys, its group's, the host's default; and what is wrong or worth knowing about it. Pure.
import { PratiqueError } from '../src/base/errors.ts';
import { nearestWord } from '../src/base/nearest-word.ts';
import { printable } from '../src/base/printable.ts';
import type { VmSpec } from '../src/hypervisor/vm-spec.ts';
import type { Inventory } from '../src/model/inventory.ts';
import { faultOfPolicy, matchesProduct, type Policy, type ResolvedPolicy, resolvePolicy } from '../src/model/policy.ts';
import type { StoredVm } from '../src/update/journal.ts';
import type { Config, Groups } from './config.ts';
import { fileOfPolicy, type PolicyChange, wordOfKey } from './policy-words.ts';

/** What an operator decided for one VM alone. */
export type OwnPolicy = Pick<StoredVm, 'own' | 'group'>;

export type VmPolicy = ResolvedPolicy & {
  /** The group it is in, by its own word or by its name; null: none. */
  readonly group: string | null;
  /** Why this is not what the operator meant; then the VM stays gated, for a typo must not weaken a policy. */
  readonly trouble: string | null;
};

/** Resolves a VM's policy against the configuration as it is now. */
export function policyOf(config: Pick<Config, 'policyOfFiles' | 'groups'>, vm: string, given: OwnPolicy): VmPolicy {
  const group = given.group ?? groupByName(config.groups, vm);
  // Its own: every object has a `constructor`, and that would be a group that says nothing.
  const known = group !== null && Object.hasOwn(config.groups, group) ? config.groups[group] : undefined;
  const resolved = resolvePolicy({ default: config.policyOfFiles, group: known?.policy ?? {}, vm: given.own });
  const isLost = group !== null && known === undefined;
  const trouble = isLost ? `there is no group ${group} in the configuration` : faultOfPolicy(resolved.policy);
  return { ...resolved, group, trouble };
}

/** Whom a VM belongs to by its group; null: that says nothing, or it has none. */
export function tenantOfGroup(config: Pick<Config, 'groups'>, vm: string, given: OwnPolicy | undefined): string | null {
  const group = given?.group ?? groupByName(config.groups, vm);
  const known = group !== null && Object.hasOwn(config.groups, group) ? config.groups[group] : undefined;
  return known?.tenant ?? null;
}

/** The group with the longest pattern that the name matches; a whole name is longer than any beginning. */
export function groupByName(groups: Groups, vm: string): string | null {
  let best: { readonly group: string; readonly length: number } | null = null;
  for (const [group, { vms }] of Object.entries(groups)) {
    for (const pattern of vms) {
      if (!matchesProduct([pattern], vm)) continue;
      const length = pattern.endsWith('*') ? pattern.length - 1 : Number.POSITIVE_INFINITY;
      if (best === null || length > best.length) best = { group, length };
    }
  }
  return best?.group ?? null;
}

/** What a VM has of its own after a change. Throws PratiqueError `usage/policy` or `not-found/group`; then nothing changes. */
export function changedPolicy(
  config: Pick<Config, 'policyOfFiles' | 'groups'>,
  vm: string,
  before: OwnPolicy,
  { set, unset, group }: PolicyChange,
): OwnPolicy {
  const own: Partial<Policy> = { ...before.own, ...set };
  for (const key of unset) delete own[key];
  const after: OwnPolicy = { own, group: group === undefined ? before.group : group };
  if (after.group !== null && !Object.hasOwn(config.groups, after.group) && after.group !== before.group) {
    const near = nearestWord(after.group, Object.keys(config.groups));
    throw new PratiqueError(
      'not-found/group',
      `${vm}: there is no group ${printable(after.group)} in the configuration`,
      {
        next: near === null ? 'add it to the configuration, then restart the daemon' : `did you mean ${near}?`,
      },
    );
  }
  const { policy } = policyOf(config, vm, after);
  const fault = faultOfPolicy(policy);
  if (fault !== null) {
    throw new PratiqueError('usage/policy', `${vm}: its policy would make no sense: ${fault}`, {
      next: 'name the packages as well: packages=nginx,openssl',
    });
  }
  return after;
}

/** Throws PratiqueError where a policy asks for what can never be done for this VM: it would stay gated for ever. */
export function checkPolicyFits(spec: VmSpec, { policy }: Pick<VmPolicy, 'policy'>): void {
  if (spec.kind !== 'attached' || policy.verify !== 'disk') return;
  throw new PratiqueError(
    'usage/policy',
    `${spec.vm}: its policy wants its disk read (verify=disk), but somebody else starts its QEMU: its disks are not ours`,
    { next: 'give it verify=agent of its own, or let Pratique start the VM' },
  );
}

/** A change in one line, for the audit record. */
export function changeText({ set, unset, group }: PolicyChange): string {
  const words = Object.entries(fileOfPolicy(set)).map(
    ([key, value]) => `${key}=${Array.isArray(value) ? value.join(',') || '[]' : value}`,
  );
  return [
    ...words,
    ...unset.map((key) => `${wordOfKey(key)}=`),
    ...(group === undefined ? [] : [`group=${group ?? ''}`]),
  ].join(' ');
}

/** NICs that the gate leaves alone. */
export function ungatedNicsOf(spec: VmSpec): readonly string[] {
  return spec.nics.filter(({ gated }) => gated === false).map(({ id }) => id);
}

/** What about the gate and the policy of a VM an operator should be reminded of. */
export function policyRemarks(spec: VmSpec, given: VmPolicy, inventory: Inventory | null): readonly string[] {
  return [
    ...(given.trouble === null ? [] : [`Its policy does not hold, so it stays gated: ${given.trouble}`]),
    ...nicRemarks(spec),
    ...patternRemarks(given.policy, inventory),
  ];
}

function nicRemarks(spec: VmSpec): readonly string[] {
  const ungated = ungatedNicsOf(spec);
  if (ungated.length === 0) return [];
  const isWhole = ungated.length === spec.nics.length;
  const said = isWhole
    ? `None of its NICs is gated (${ungated.join(', ')}): it is on the network whatever it has installed`
    : `Its NIC ${ungated.join(', ')} is never unplugged or fenced`;
  const bridgesOf = (gated: boolean) =>
    spec.kind === 'managed'
      ? spec.nics.filter((nic) => (nic.gated !== false) === gated).map(({ bridge }) => bridge)
      : [];
  const gatedBridges = bridgesOf(true);
  const shared = bridgesOf(false).find((bridge) => gatedBridges.includes(bridge));
  return shared === undefined
    ? [said]
    : [said, `A gated and an ungated NIC are both on ${shared}: the gate keeps the VM from nothing there`];
}

/** A pattern that nothing matches is perhaps a typo. */
function patternRemarks({ install, packages, holds }: Policy, inventory: Inventory | null): readonly string[] {
  if (inventory === null) return [];
  const isIdle = (pattern: string) => !inventory.products.some(({ product }) => matchesProduct([pattern], product));
  const remark = (key: string, patterns: readonly string[]) => {
    const idle = patterns.filter(isIdle);
    return idle.length === 0
      ? []
      : [`Nothing that it has matches ${printable(idle.join(', '))} of its policy's ${key}`];
  };
  return [...(install === 'listed' ? remark('packages', packages) : []), ...remark('holds', holds)];
}
