// Puts the layers of a VM on top of each other: later values and items replace earlier ones of the same name. Then each is filled.
import { describeError, PratiqueError } from '../base/errors.ts';
import { CONFIG_FILES_MAX, CONFIG_ITEM_BYTES_MAX, CONFIG_ITEMS_MAX, GUEST_CONFIG_BYTES_MAX } from '../base/limits.ts';
import { nearestWord } from '../base/nearest-word.ts';
import type { ConfigOrigin } from '../model/guest-config.ts';
import { faultsOfItems, remarksOfItems } from './cross-check.ts';
import { type FillDeps, type FilledItem, fillItem } from './fill-item.ts';
import type { Layer, RawItem, RawValue } from './layer.ts';
import { type NamedValue, namesIn } from './values.ts';

export type RenderOptions = {
  readonly vm: string;
  readonly group: string | null;
  /** MAC addresses of the VM's NICs; null: not known. */
  readonly macs: readonly string[] | null;
  /** From the most general to the one that has the last word. */
  readonly layers: readonly Layer[];
  readonly readSecret: FillDeps['readSecret'];
  readonly versionOf: FillDeps['versionOf'];
};

export type Rendered = {
  readonly items: readonly FilledItem[];
  readonly values: ReadonlyMap<string, NamedValue>;
  readonly trouble: readonly string[];
  readonly remarks: readonly string[];
};

type Placed = { readonly raw: RawItem; readonly layer: Layer };

/** Never throws for what stands in the layers: that is trouble, one sentence each. */
export async function renderLayers(options: RenderOptions): Promise<Rendered> {
  const trouble: string[] = [];
  const placed = placeItems(options.layers, trouble);
  const values = await placeValues(options, placed, trouble);
  const { readSecret, versionOf } = options;
  const items: FilledItem[] = [];
  let totalBytes = 0;
  for (const [name, { raw, layer }] of [...placed].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const filled = await orTrouble(trouble, () => fillItem(name, raw, layer, { values, readSecret, versionOf }));
    if (filled === null) continue;
    items.push(filled);
    totalBytes += Buffer.byteLength(JSON.stringify(filled.item));
    // The rest would only take memory: `faultsOfSizes` says what is wrong.
    if (totalBytes > GUEST_CONFIG_BYTES_MAX) break;
  }
  trouble.push(...faultsOfItems(items), ...faultsOfSizes(items));
  return { items, values, trouble, remarks: remarksOfItems(items, options.macs) };
}

function placeItems(layers: readonly Layer[], trouble: string[]): ReadonlyMap<string, Placed> {
  const placed = new Map<string, Placed>();
  for (const layer of layers) {
    for (const [name, raw] of layer.items) {
      if (raw !== null) placed.set(name, { raw, layer });
      else if (!placed.delete(name)) {
        const nearest = nearestWord(name, [...placed.keys()]);
        const hint = nearest === null ? '' : `; the nearest is \`${nearest}\``;
        trouble.push(`${layer.at(['items', name])}: there is no inherited item \`${name}\` to remove${hint}`);
      }
    }
  }
  return placed;
}

async function placeValues(
  { vm, group, layers, readSecret }: RenderOptions,
  placed: ReadonlyMap<string, Placed>,
  trouble: string[],
): Promise<ReadonlyMap<string, NamedValue>> {
  const own: ConfigOrigin = { source: 'file', at: 'built in', layer: 'built in' };
  const values = new Map<string, NamedValue>([['vm', { text: vm, isSecret: false, origin: own }]]);
  if (group !== null) values.set('group', { text: group, isSecret: false, origin: own });
  const raws = new Map(layers.flatMap((layer) => [...layer.values].map(([name, raw]) => [name, { raw, layer }])));
  // A secret that no item of this VM needs is not even read.
  const needed = new Set([...placed.values()].flatMap(({ raw }) => namesIn(JSON.stringify(raw))));
  for (const [name, { raw, layer }] of raws) {
    const at = layer.at(['values', name]);
    const isNeeded = typeof raw !== 'object' || needed.has(name);
    const text = isNeeded ? await orTrouble(trouble, () => textOf(raw, at, readSecret)) : '';
    const origin: ConfigOrigin = { source: layer.source, at, layer: layer.name };
    values.set(name, { text: text ?? '', isSecret: typeof raw === 'object', origin });
  }
  return values;
}

/** A secret in the midst of a text comes without the newline that ends its file. */
async function textOf(raw: RawValue, at: string, readSecret: FillDeps['readSecret']): Promise<string> {
  if (typeof raw !== 'object') return String(raw);
  if ('secretText' in raw) return raw.secretText;
  return (await readSecret(raw.secret, at)).toString('utf8').replace(/\r?\n$/, '');
}

function faultsOfSizes(items: readonly FilledItem[]): readonly string[] {
  const sized = items.map((each) => ({ ...each, sizeBytes: Buffer.byteLength(JSON.stringify(each.item)) }));
  const large = sized.filter(({ sizeBytes }) => sizeBytes > CONFIG_ITEM_BYTES_MAX);
  const total = sized.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  const filesCount = items.reduce(
    (sum, { item: { setting } }) => sum + (setting.kind === 'product' ? setting.files.length : 1),
    0,
  );
  return [
    ...large.map(({ origin, item }) => `${origin.at}: item ${item.item} has more than ${CONFIG_ITEM_BYTES_MAX} bytes`),
    ...(items.length > CONFIG_ITEMS_MAX ? [`more than ${CONFIG_ITEMS_MAX} items`] : []),
    ...(filesCount > CONFIG_FILES_MAX ? [`all items together have more than ${CONFIG_FILES_MAX} files`] : []),
    ...(total > GUEST_CONFIG_BYTES_MAX ? [`all items together have more than ${GUEST_CONFIG_BYTES_MAX} bytes`] : []),
  ];
}

/** The answer, or null with the failure as trouble; a bug of ours goes on as one. */
async function orTrouble<T>(trouble: string[], work: () => Promise<T>): Promise<T | null> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof PratiqueError)) throw error;
    trouble.push(describeError(error));
    return null;
  }
}
