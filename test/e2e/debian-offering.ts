// What a Debian vendor has for a guest, fetched and ready for a drive: with the vendor's signed files, or without.
import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Digest } from '../../src/base/digest.ts';
import type { Inventory } from '../../src/model/inventory.ts';
import { productKey } from '../../src/model/inventory.ts';
import type { PlanItem } from '../../src/model/plan.ts';
import type { Release } from '../../src/model/release.ts';
import type { Vendor } from '../../src/vendor/vendor.ts';
import type { Offering } from './debian-root.ts';

/** Everything newer than what the guest has; bytes are kept in the folder. */
export async function makeOffering(options: {
  readonly vendor: Vendor;
  readonly inventory: Inventory;
  readonly apt: 'fast' | 'vendor-verified';
  readonly folder: string;
  /** Products to leave out of what would be too much for a test. */
  readonly only?: readonly string[];
}): Promise<Offering> {
  const { vendor, inventory, folder } = options;
  await mkdir(folder, { recursive: true });
  const { releases } = await vendor.latest(inventory);
  const blobs = new Map<Digest, string>();
  const items: PlanItem[] = [];
  for (const release of releases) {
    const installed = installedVersion(inventory, release);
    if (installed === release.version || options.only?.includes(release.product) === false) continue;
    const path = join(folder, release.artifact.digest);
    await writeFile(path, await download(vendor, release));
    await vendor.inspect(release, path);
    blobs.set(release.artifact.digest, path);
    items.push({ id: productKey(release), fromVersion: installed, release });
  }
  if (options.apt === 'fast') return { items, archives: [], blobs };
  assert(vendor.signedArchives !== undefined);
  const archives = await vendor.signedArchives(items.map((item) => item.release));
  for (const { digest, sourcePath } of archives.flatMap(({ files }) => files)) blobs.set(digest, sourcePath);
  return { items, archives, blobs };
}

function installedVersion(inventory: Inventory, { product }: Release): string | null {
  return inventory.products.find((installed) => installed.product === product)?.version ?? null;
}

async function download(vendor: Vendor, release: Release): Promise<Buffer> {
  const pieces: Uint8Array[] = [];
  for await (const piece of await vendor.open(release.artifact, 0)) pieces.push(piece);
  return Buffer.concat(pieces);
}
