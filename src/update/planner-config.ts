// Which configuration a run applies: what differs from what the guest has applied, and what it has that nobody configures any more. Pure.
import { CONFIG_ITEMS_MAX } from '../base/limits.ts';
import { printable } from '../base/printable.ts';
import { configItemId, type PlanConfig, type ResolvedGuestConfig } from '../model/guest-config.ts';
import type { AppliedConfig, Inventory } from '../model/inventory.ts';
import type { Plan } from '../model/plan.ts';
import type { Policy } from '../model/policy.ts';
import type { FailedVersion } from '../model/quarantine.ts';
import type { Refusal } from './planner.ts';

export type ConfigRequest = {
  /** Null: this host has no configuration for the VM, and says nothing about what was applied before. */
  readonly configuration: ResolvedGuestConfig | null;
  readonly inventory: Inventory;
  readonly policy: Pick<Policy, 'install'>;
  readonly failedBefore: readonly FailedVersion[];
};

export type ConfigSelection =
  | { readonly kind: 'chosen'; readonly parts: Pick<Plan, 'config' | 'configRemoved'> }
  | { readonly kind: 'refused'; readonly reason: Refusal };

/** The configuration of a plan, or why there can be none. Nothing of an item's content is in either. */
export function selectConfig(request: ConfigRequest): ConfigSelection {
  const { configuration, inventory, policy } = request;
  if (configuration === null) {
    if (policy.install !== 'none') return { kind: 'chosen', parts: {} };
    return refused('guest-config', 'its policy installs no software, and nothing is configured for it');
  }
  const [trouble] = configuration.trouble;
  if (trouble !== undefined) {
    const more = configuration.trouble.length - 1;
    return refused('guest-config', `${printable(trouble, 300)}${more === 0 ? '' : ` (and ${more} more)`}`);
  }
  if (configuration.items.length > CONFIG_ITEMS_MAX)
    return refused('guest-config', `${configuration.items.length} items are more than ${CONFIG_ITEMS_MAX}`);
  const applied = new Map(inventory.config.map((each) => [each.item, each]));
  const config = configuration.items.flatMap((item): PlanConfig[] => {
    const before = applied.get(item.item);
    if (before !== undefined && isAsConfigured(before, item)) return [];
    const reboot = item.apply?.some((step) => 'reboot' in step) === true;
    const fromVersion = before?.version ?? null;
    return [{ item: item.item, version: item.version, fromVersion, kind: item.setting.kind, reboot }];
  });
  const wanted = new Set(configuration.items.map(({ item }) => item));
  const gone = inventory.config.filter(({ item }) => !wanted.has(item));
  const configRemoved = gone.map(({ item, version }) => ({ item, version }));
  return refuseConfig(request, config, config.length + configRemoved.length) ?? chosen(config, configRemoved);
}

/** Whether what a guest says of an item is what it is to have. */
export function isAsConfigured(
  applied: AppliedConfig,
  wanted: { readonly item: string; readonly version: string },
): boolean {
  return applied.item === wanted.item && applied.version === wanted.version && applied.state === undefined;
}

function refuseConfig(
  { inventory, failedBefore }: ConfigRequest,
  config: readonly PlanConfig[],
  count: number,
): ConfigSelection | null {
  if (count === 0) return null;
  const failed = config.find(({ item, version }) =>
    failedBefore.some((before) => before.item === configItemId(item) && before.version === version),
  );
  if (failed !== undefined) {
    const detail = `${configItemId(failed.item)} ${failed.version} failed on this VM before and was rolled back`;
    return refused('guest-config', detail);
  }
  if (inventory.abilities.config === true) return null;
  return refused('old-agent', `its agent ${printable(inventory.agent.version, 60)} cannot apply configuration`);
}

/** Without configuration a plan is what it was before there was any, to the byte. */
function chosen(config: readonly PlanConfig[], configRemoved: NonNullable<Plan['configRemoved']>): ConfigSelection {
  const parts: Pick<Plan, 'config' | 'configRemoved'> = {
    ...(config.length === 0 ? {} : { config: [...config] }),
    ...(configRemoved.length === 0 ? {} : { configRemoved }),
  };
  return { kind: 'chosen', parts };
}

function refused(code: string, detail: string): ConfigSelection {
  return { kind: 'refused', reason: { kind: 'plan-refused', code, detail } };
}
