// Whether the packages fit: asked before the first of them is unpacked, because dpkg without space leaves half a package behind.

import { kernelReleaseOf } from '../../src/base/kernel-release.ts';
import {
  AGENT_BOOT_BYTES_MIN,
  AGENT_INITRD_BYTES,
  AGENT_PACKAGE_GROWTH_FACTOR,
  AGENT_SPACE_RESERVE_BYTES,
} from '../../src/base/limits.ts';
import type { ManifestItem } from '../../src/model/manifest.ts';
import { readInstalledSizes } from '../dpkg-status.ts';
import { findProgram } from '../inventory.ts';
import { inRoot, type Paths } from '../paths.ts';
import { AgentError, type Platform } from '../platform/platform.ts';

export type SpaceQuestion = {
  readonly platform: Platform;
  readonly paths: Paths;
  readonly drive: string;
  readonly items: readonly ManifestItem[];
};

/**
 * Throws AgentError `no-space` with the figures: what all packages grow by, and once the largest of them, because dpkg has a
 * package's old and new files side by side while it unpacks.
 */
export async function requireSpace(question: SpaceQuestion): Promise<void> {
  const { platform, paths, items } = question;
  const present = readInstalledSizes(platform, `${paths.dpkg}/status`);
  let growthBytes = 0;
  let largestBytes = 0;
  for (const item of items) {
    const newBytes = await installedBytes(question, item);
    growthBytes += Math.max(0, newBytes - (present.get(item.product) ?? 0));
    largestBytes = Math.max(largestBytes, newBytes);
  }
  const neededBytes = AGENT_SPACE_RESERVE_BYTES + growthBytes + largestBytes;
  for (const folder of ['/usr', '/var']) {
    requireFree(platform, inRoot(paths, folder), folder, folder === '/usr' ? neededBytes : AGENT_SPACE_RESERVE_BYTES);
  }
  const kernels = items.filter((item) => kernelReleaseOf(item.product) !== null);
  if (kernels.length > 0) requireFree(platform, inRoot(paths, '/boot'), '/boot', kernels.length * bootBytes(question));
}

function requireFree(platform: Platform, path: string, name: string, neededBytes: number): void {
  if (platform.files.stat(path) === null) return;
  const freeBytes = platform.files.freeBytes(path);
  if (freeBytes >= neededBytes) return;
  const need = `the packages need ${mebibytes(neededBytes)} MiB on the file system of ${name}`;
  throw new AgentError('no-space', `${need}, ${mebibytes(freeBytes)} MiB are free`);
}

const mebibytes = (bytes: number): string => (bytes / 1_048_576).toFixed(1);

/** What the package says it takes (deb-control: Installed-Size, in KiB); a multiple of its own size if it does not say. */
async function installedBytes({ platform, paths, drive }: SpaceQuestion, item: ManifestItem): Promise<number> {
  const [file] = item.files;
  if (file === undefined) return 0;
  const guess = file.sizeBytes * AGENT_PACKAGE_GROWTH_FACTOR;
  const reader = findProgram(platform, paths, 'dpkg-deb');
  if (reader === null) return guess;
  const argv = [reader, '--field', `${drive}${file.path}`, 'Installed-Size'];
  const { exitCode, output } = await platform.run({ argv, env: { LC_ALL: 'C' }, timeoutMs: 60_000 });
  const kibibytes = /^(\d{1,12})\s*$/.exec(output)?.[1];
  // The package's own word is never taken for less than the package is.
  return exitCode === 0 && kibibytes !== undefined ? Math.max(Number(kibibytes) * 1024, file.sizeBytes) : guess;
}

/** One kernel with its initramfs, as large as the largest that is there. */
function bootBytes({ platform, paths }: SpaceQuestion): number {
  const folder = inRoot(paths, '/boot');
  const sizes = platform.files
    .list(folder)
    .filter((name) => name.startsWith('initrd.img'))
    .map((name) => platform.files.stat(`${folder}/${name}`)?.sizeBytes ?? 0);
  // update-initramfs writes the new one beside the old one.
  return AGENT_BOOT_BYTES_MIN + (sizes.length === 0 ? AGENT_INITRD_BYTES : 1.2 * Math.max(...sizes));
}
