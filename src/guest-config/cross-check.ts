// What cannot be true of two items together, and what does not fit the VM. Pure.
import { printable } from '../base/printable.ts';
import { type ConfigFileContent, type GuestConfigItem, isProtectedGuestPath } from '../model/guest-config.ts';
import { remarksOfInterface } from './addresses.ts';
import type { FilledItem } from './fill-item.ts';

/** Faults of the whole, each in one sentence that names the places. */
export function faultsOfItems(items: readonly FilledItem[]): readonly string[] {
  const owners = new Map<string, FilledItem>();
  const faults: string[] = [];
  for (const each of items) {
    for (const { key, text } of claimsOf(each.item)) {
      const owner = owners.get(key);
      if (owner === undefined) owners.set(key, each);
      else faults.push(`${each.origin.at}: ${text} is set by item ${owner.item.item} of ${owner.origin.at} already`);
    }
    for (const { path } of filesOf(each.item)) {
      if (!isProtectedGuestPath(path)) continue;
      faults.push(
        `${each.origin.at}: item ${each.item.item} may not write ${printable(path)}: the agent keeps that to itself`,
      );
    }
  }
  return faults;
}

/** What an operator should know. `macs`: those of the VM's NICs; null: not known. */
export function remarksOfItems(items: readonly FilledItem[], macs: readonly string[] | null): readonly string[] {
  return items.flatMap(({ item, origin }) => {
    const { setting } = item;
    if (setting.kind !== 'network') return [];
    const unknown = setting.interfaces.filter(({ mac }) => macs !== null && !macs.includes(mac));
    return [
      ...unknown.map(({ mac }) => `${origin.at}: the VM's spec has no NIC ${mac}`),
      ...setting.interfaces.flatMap((each) => remarksOfInterface(each).map((text) => `${origin.at}: ${text}`)),
    ];
  });
}

type Claim = { readonly key: string; readonly text: string };

/** What one item alone may set. */
function claimsOf(item: GuestConfigItem): readonly Claim[] {
  const { setting } = item;
  const files = filesOf(item).map(({ path }) => ({ key: `file ${path}`, text: `the file ${printable(path)}` }));
  if (setting.kind === 'hostname') return [{ key: 'hostname', text: 'the hostname' }];
  if (setting.kind === 'ssh-keys') return [{ key: `keys ${setting.user}`, text: `the keys of ${setting.user}` }];
  if (setting.kind !== 'network') return files;
  return setting.interfaces.flatMap(({ mac, addresses = [] }) => [
    { key: `mac ${mac}`, text: `the interface ${mac}` },
    ...addresses.map((address) => {
      const [ip = ''] = address.split('/');
      return { key: `address ${ip.toLowerCase()}`, text: `the address ${ip}` };
    }),
  ]);
}

function filesOf({ setting }: GuestConfigItem): readonly ConfigFileContent[] {
  if (setting.kind === 'file') return [setting.file];
  return setting.kind === 'product' ? setting.files : [];
}
