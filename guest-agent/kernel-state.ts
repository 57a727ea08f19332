// Which kernel runs, and whether the guest has a newer one of its own that only a reboot brings to work.
import {
  compareKernelReleases,
  kernelFlavourOf,
  kernelPackageOf,
  kernelReleaseOf,
} from '../src/base/kernel-release.ts';
import { NAME_CHARS_MAX } from '../src/base/limits.ts';
import type { InstalledProduct } from '../src/model/inventory.ts';
import { readLine, readRecord, writeRecord } from './durable.ts';
import { inRoot, type Paths } from './paths.ts';
import type { Platform } from './platform/platform.ts';
import { EMBEDDED, type KernelRecord } from './schemas.ts';

const recordPath = (paths: Paths) => `${paths.state}/kernel.json`;

/** The version of the package the running kernel was built as, by its own word: `… Debian 6.1.140-1 (2025-05-22)`; null if it has none. */
export function runningKernelVersion(platform: Platform, paths: Paths): string | null {
  const version = / Debian (\S+) \(/.exec(readLine(platform, `${paths.proc}/version`))?.[1];
  return version !== undefined && version.length <= NAME_CHARS_MAX ? version : null;
}

/**
 * The installed kernel that should run instead of the present one, as `package version`; null when there is none. A machine whose
 * kernel comes from its host has none: the running kernel is in no package of its own.
 */
export function findNewerKernel(
  platform: Platform,
  paths: Paths,
  packages: readonly InstalledProduct[],
): string | null {
  const running = platform.kernel().release;
  const own = packages.find(({ product }) => product === kernelPackageOf(running));
  if (own === undefined) return null;
  const newer = newestOfKind(platform, paths, packages, running);
  if (newer !== null) return `${newer.product} ${newer.version}`;
  const version = runningKernelVersion(platform, paths);
  return version === null || version === own.version ? null : `${own.product} ${own.version}`;
}

function newestOfKind(
  platform: Platform,
  paths: Paths,
  packages: readonly InstalledProduct[],
  running: string,
): InstalledProduct | null {
  let newest = running;
  let found: InstalledProduct | null = null;
  for (const product of packages) {
    const release = kernelReleaseOf(product.product);
    if (release === null || kernelFlavourOf(release) !== kernelFlavourOf(running)) continue;
    if (compareKernelReleases(release, newest) <= 0) continue;
    if (platform.files.stat(inRoot(paths, `/boot/vmlinuz-${release}`)) === null) continue;
    newest = release;
    found = product;
  }
  return found;
}

/** Whether a reboot would bring a newer kernel: not if one was done for it already and the boot loader took the old one all the same. */
export function isKernelDue(platform: Platform, paths: Paths, packages: readonly InstalledProduct[]): boolean {
  const newer = findNewerKernel(platform, paths, packages);
  if (newer === null) return false;
  return readRecord<KernelRecord>(platform, recordPath(paths), EMBEDDED.kernelRecord)?.tried !== newer;
}

/** Remembers, when this boot ends, which kernel the next one should come up with. */
export function noteKernelTried(platform: Platform, paths: Paths, packages: readonly InstalledProduct[]): void {
  const tried = findNewerKernel(platform, paths, packages);
  if (tried === null) return;
  const record: KernelRecord = { tried };
  writeRecord(platform, recordPath(paths), record);
}
