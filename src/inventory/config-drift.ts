// What of a VM's configuration is not as this host has it. Pure; no content of any item is in it.
import type { ResolvedGuestConfig } from '../model/guest-config.ts';
import type { AppliedConfig, Inventory } from '../model/inventory.ts';
import type { Behind } from './drift.ts';

/** An item of configuration, beside the products that are behind. */
export type ConfigBehind = Omit<Behind, 'ecosystem'> & { readonly ecosystem: 'config' };

/** What `latest` says of an item that is configured no longer. */
export const CONFIGURED_NO_LONGER = '(configured no longer)';

/**
 * The items that differ, in the order in which they are configured. Null: this host configures nothing for the VM. With trouble in the
 * sources nobody knows what is configured, and nothing is said.
 */
export function findConfigDrift(
  inventory: Pick<Inventory, 'config'>,
  configuration: Pick<ResolvedGuestConfig, 'items' | 'trouble'> | null,
): readonly ConfigBehind[] {
  if (configuration === null || configuration.trouble.length > 0) return [];
  const applied = new Map(inventory.config.map((each) => [each.item, each]));
  const wanted = new Set(configuration.items.map(({ item }) => item));
  return [
    ...configuration.items.flatMap(({ item, version }) => behindOf(item, version, applied.get(item))),
    ...inventory.config
      .filter(({ item }) => !wanted.has(item))
      .map(({ item, version }) => behind(item, version, CONFIGURED_NO_LONGER, 'older')),
  ];
}

function behindOf(item: string, version: string, applied: AppliedConfig | undefined): readonly ConfigBehind[] {
  if (applied === undefined) return [behind(item, null, version, 'missing')];
  if (applied.version !== version) return [behind(item, applied.version, version, 'older')];
  if (applied.state === undefined) return [];
  return [{ ...behind(item, version, version, 'broken'), remark: 'it was changed in the guest since it was applied' }];
}

function behind(item: string, installed: string | null, latest: string, why: Behind['why']): ConfigBehind {
  const about = { ecosystem: 'config', product: item, arch: null, installed, latest } as const;
  return { ...about, kind: 'fix', advisories: [], vendor: 'guest-config', why };
}
