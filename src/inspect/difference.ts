// Compares what a disk told with what the agent reports later (A3). Pure; counts are of all, names are bounded.
import { INSPECT_NAMES_TOLD_MAX } from '../base/limits.ts';
import { counted, printable } from '../base/printable.ts';
import { type InstalledProduct, type Inventory, productKey } from '../model/inventory.ts';

/** How a list of products differs, with the first few names of each kind. */
export type Difference = {
  /** Another version, state or hold than the disk told. */
  readonly changed: Counted;
  /** On the disk, but not reported. */
  readonly missing: Counted;
  /** Reported, but not on the disk. */
  readonly added: Counted;
  /** Facts beside the products: `os`, `agent`. */
  readonly facts: readonly string[];
};
type Counted = { readonly count: number; readonly first: readonly string[] };

/** Null when both say the same. */
export function differenceOf(disk: Inventory, reported: Inventory): Difference | null {
  const onDisk = wordsByKey(disk.products);
  const inReport = wordsByKey(reported.products);
  const difference: Difference = {
    changed: countedOf([...onDisk].flatMap(([key, words]) => changeOf(key, words, inReport.get(key)))),
    missing: countedOf([...onDisk.keys()].filter((key) => !inReport.has(key))),
    added: countedOf([...inReport.keys()].filter((key) => !onDisk.has(key))),
    facts: factsThatDiffer(disk, reported),
  };
  const { changed, missing, added, facts } = difference;
  return changed.count + missing.count + added.count + facts.length === 0 ? null : difference;
}

/** What is said of each product; one that is listed twice says both, in an order of its own. */
function wordsByKey(products: readonly InstalledProduct[]): ReadonlyMap<string, string> {
  const words = new Map<string, string[]>();
  for (const product of products) {
    const { version, state, held } = product;
    const word = `${version}${state === 'broken' ? ' (broken)' : ''}${held === true ? ' (held)' : ''}`;
    const key = productKey(product);
    words.set(key, [...(words.get(key) ?? []), word]);
  }
  return new Map([...words].map(([key, each]) => [key, each.toSorted().join(' and ')]));
}

function changeOf(key: string, before: string, after: string | undefined): readonly string[] {
  return after === undefined || after === before ? [] : [`${key} ${before} -> ${after}`];
}

function countedOf(names: readonly string[]): Counted {
  const first = names.toSorted().slice(0, INSPECT_NAMES_TOLD_MAX);
  return { count: names.length, first: first.map((name) => printable(name, 120)) };
}

function factsThatDiffer(disk: Inventory, reported: Inventory): readonly string[] {
  const osOf = ({ os }: Inventory): string => `${os.id} ${os.versionId} ${os.arch}`;
  const agentOf = ({ agent }: Inventory): string => agent.digest ?? agent.version;
  return [
    ...(osOf(disk) === osOf(reported) ? [] : [printable(`os ${osOf(disk)} -> ${osOf(reported)}`, 200)]),
    ...(agentOf(disk) === agentOf(reported)
      ? []
      : [printable(`agent ${disk.agent.version} -> ${reported.agent.version}`, 120)]),
  ];
}

/** A sentence for people. */
export function differenceText(difference: Difference): string {
  return `the agent reports something else than the disk told: ${partsText(difference)}`;
}

/** How a guest's claim differs from its disk, in a sentence without a full stop; null where the disk bears it out. */
export function claimDifference(disk: Inventory, claimed: Inventory): string | null {
  // An agent of somebody else's may lie where nobody looks for it.
  const known = disk.agent.digest === null ? { ...disk, agent: claimed.agent } : disk;
  const difference = differenceOf(known, claimed);
  return difference === null ? null : `on its disk -> claimed: ${partsText(difference)}`;
}

function partsText({ changed, missing, added, facts }: Difference): string {
  const part = ({ count, first }: Counted, noun: string): readonly string[] => {
    if (count === 0) return [];
    const more = count > first.length ? ', …' : '';
    return [`${counted(count, 'product')} ${noun}: ${first.join(', ')}${more}`];
  };
  const parts = [...facts, ...part(changed, 'changed'), ...part(missing, 'missing'), ...part(added, 'added')];
  return parts.join('; ');
}
