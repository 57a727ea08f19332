// Brings the vendors' own signed files into the store, so that a drive can carry them to the guest's own package manager.
import { createReadStream } from 'node:fs';
import type { DriveArchive } from '../drive/drive.ts';
import type { Plan, PlanItem } from '../model/plan.ts';
import type { BlobStore } from '../store/blob-store.ts';
import type { SignedFile, Vendor } from '../vendor/vendor.ts';
import { RunError } from './runner.ts';

export type ArchivesRequest = {
  readonly plan: Plan;
  readonly vendors: readonly Vendor[];
  readonly store: BlobStore;
  /** Who needs the files; they are added to what this owner has pinned. */
  readonly owner: string;
  readonly signal: AbortSignal;
};

/**
 * The signed archives of every Debian package of a plan; none when it has no Debian package. Throws RunError
 * `refused/unsigned-vendor` for a vendor that has no signed files, and what the vendor or the store throws.
 */
export async function bringSignedArchives(request: ArchivesRequest): Promise<readonly DriveArchive[]> {
  const archives: DriveArchive[] = [];
  for (const [name, items] of itemsByVendor(request.plan)) {
    const vendor = request.vendors.find((each) => each.name === name);
    if (vendor?.signedArchives === undefined) {
      throw new RunError('refused/unsigned-vendor', `vendor ${name} has no signed files that a guest could verify`, {
        next: `set the policy's apt to "fast", or configure ${name} as the Debian archive it is`,
      });
    }
    for (const { suite, components, files, pool } of await vendor.signedArchives(items.map((item) => item.release))) {
      request.store.pin(
        request.owner,
        files.map((file) => file.digest),
      );
      await Promise.all(files.map((file) => bringFile(file, request)));
      archives.push({ suite, components, files, pool });
    }
  }
  return archives;
}

function itemsByVendor(plan: Plan): ReadonlyMap<string, readonly PlanItem[]> {
  const byVendor = new Map<string, PlanItem[]>();
  for (const item of plan.items) {
    const { install, vendor } = item.release;
    if (install.action !== 'debian-package') continue;
    byVendor.set(vendor, [...(byVendor.get(vendor) ?? []), item]);
  }
  return byVendor;
}

async function bringFile(file: SignedFile, { store, signal }: ArchivesRequest): Promise<void> {
  const { digest, sizeBytes, sourcePath } = file;
  const open = async (offsetBytes: number) => createReadStream(sourcePath, { start: offsetBytes });
  await store.ensure({ digest, sizeBytes, open, signal });
}
