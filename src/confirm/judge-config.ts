// What a guest says of its configuration, held against the plan: every planned item at its version, and nothing else changed meanwhile.
import { configItemId } from '../model/guest-config.ts';
import type { AppliedConfig, Inventory } from '../model/inventory.ts';
import type { Plan } from '../model/plan.ts';

export type ConfigFault = {
  readonly code: 'config-missing' | 'config-differs' | 'config-left';
  readonly detail: string;
};

/** The first rule that the fresh inventory breaks; null where it breaks none. */
export function findConfigFault(
  plan: Plan,
  fresh: Pick<Inventory, 'config'>,
  reported: Pick<Inventory, 'config'> | null,
): ConfigFault | null {
  // A guest may list an item twice; each of them has to be right.
  const found = Map.groupBy(fresh.config, ({ item }) => item);
  const planned = plan.config ?? [];
  const removed = plan.configRemoved ?? [];
  for (const { item, version } of planned) {
    const fault = faultOf(item, version, found.get(item) ?? []);
    if (fault !== null) return fault;
  }
  for (const { item } of removed) {
    if (found.has(item))
      return { code: 'config-left', detail: `${configItemId(item)} was to be taken back and is there` };
  }
  const settled = new Set([...planned, ...removed].map(({ item }) => item));
  // An update may have written over what was configured before it: the report said that it was right.
  for (const { item, version, state } of reported?.config ?? []) {
    if (settled.has(item) || state !== undefined) continue;
    const fault = faultOf(item, version, found.get(item) ?? []);
    if (fault !== null) return fault;
  }
  return null;
}

function faultOf(item: string, version: string, found: readonly AppliedConfig[]): ConfigFault | null {
  const id = configItemId(item);
  if (found.length === 0) return { code: 'config-missing', detail: `${id} is not in the fresh inventory` };
  const other = found.find((each) => each.version !== version);
  if (other !== undefined)
    return { code: 'config-differs', detail: `${id} is at ${other.version} instead of ${version}` };
  const changed = found.find(({ state }) => state !== undefined);
  if (changed === undefined) return null;
  return { code: 'config-differs', detail: `${id} is at ${version}, but was changed since it was applied` };
}
