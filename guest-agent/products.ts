// The records of what is installed from bundles, and whether the folders say the same.
import { AGENT_PRODUCTS_MAX, NAME_CHARS_MAX } from '../src/base/limits.ts';
import type { InstalledProduct } from '../src/model/inventory.ts';
import { readRecord, writeRecord } from './durable.ts';
import type { Paths } from './paths.ts';
import { AgentError, type Platform } from './platform/platform.ts';
import { EMBEDDED, type ProductRecord } from './schemas.ts';

/** Whether a product or version may name a file: no separator, no control character, not hidden, not reserved. */
export function isFileName(text: string): boolean {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for.
  return text.length <= NAME_CHARS_MAX && /^[^./\u0000-\u001f\u007f][^/\u0000-\u001f\u007f]*$/u.test(text);
}

function recordPath(paths: Paths, product: string): string {
  return `${paths.state}/products/${product}.json`;
}

/** The record of a product; null if there is none that can be believed. */
export function readProduct(platform: Platform, paths: Paths, product: string): ProductRecord | null {
  const record = readRecord<ProductRecord>(platform, recordPath(paths, product), EMBEDDED.productRecord);
  return record?.product === product ? record : null;
}

/** Writes a record durably: this is the moment at which a version counts as installed. */
export function writeProduct(platform: Platform, paths: Paths, record: ProductRecord): void {
  writeRecord(platform, recordPath(paths, record.product), record);
}

/** The folder a record names. */
export function folderOf(record: ProductRecord): string {
  return record.folder ?? record.version;
}

/** Everything installed from bundles. `broken`: the link `current` does not lead to the recorded version. */
export function listProducts(platform: Platform, paths: Paths): readonly InstalledProduct[] {
  const names = platform.files.list(`${paths.state}/products`).filter((name) => name.endsWith('.json'));
  if (names.length > AGENT_PRODUCTS_MAX) throw new AgentError('too-large', 'there are too many product records');
  const products: InstalledProduct[] = [];
  for (const name of names) {
    const record = readProduct(platform, paths, name.slice(0, -'.json'.length));
    if (record === null) continue;
    const { product, version } = record;
    products.push({
      ecosystem: 'bundle',
      product,
      version,
      state: isCurrent(platform, record) ? 'installed' : 'broken',
    });
  }
  return products;
}

/** Whether `current` leads to the version that the record names. */
export function isCurrent(platform: Platform, record: ProductRecord): boolean {
  const { prefix } = record;
  const folder = folderOf(record);
  const target = platform.files.readLink(`${prefix}/current`);
  const isNamed = target === `versions/${folder}` || target === `${prefix}/versions/${folder}`;
  return isNamed && platform.files.stat(`${prefix}/versions/${folder}`)?.kind === 'folder';
}
