// How many real updates Debian has for an image today, counted before anything is started: an archive that has few is not dressed up.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { ImageDebian } from '../../images/images.ts';
import { hostArch } from '../../images/kernel.ts';
import type { Clock } from '../../src/base/clock.ts';
import { makeHttpFetch } from '../../src/base/http-fetch.ts';
import type { Log } from '../../src/base/log.ts';
import type { Inventory } from '../../src/model/inventory.ts';
import { DEFAULT_POLICY } from '../../src/model/policy.ts';
import type { Release } from '../../src/model/release.ts';
import { openVendor, type VendorConfig } from '../../src/vendor/registry.ts';
import type { Scenario } from './scenarios.ts';

/** Real security updates that a Debian run should have at least; what is missing, a product of our own signing completes. */
const DEBIAN_UPDATES_MIN = 3;

/** The source of a Debian guest's updates: the archives of this machine's own apt. */
export function debianVendor({ suite }: ImageDebian): VendorConfig {
  return { kind: 'debian-apt', name: 'debian', suites: [suite, `${suite}-security`] };
}

/**
 * The updates that the archive has for the packages of an image, and what those bring along. The vendor's state is left in the
 * data folder of the daemon that starts next, which then need not fetch it again. Throws `vendor-ill/…`.
 */
export async function pendingUpdates(options: {
  readonly debian: ImageDebian;
  readonly dataFolder: string;
  readonly clock: Clock;
  readonly log: Log;
}): Promise<readonly Release[]> {
  const { debian, dataFolder, clock, log } = options;
  const config = debianVendor(debian);
  // As the daemon itself makes it: each QEMU runs under a user of its own and must find its drive below.
  await mkdir(dataFolder, { recursive: true, mode: 0o711 });
  const vendor = await openVendor(config, {
    folder: join(dataFolder, 'vendors', config.name),
    http: makeHttpFetch({ clock, log }),
    clock,
    metadataAgeMaxMs: DEFAULT_POLICY.metadataAgeMaxMs,
    log,
  });
  try {
    await vendor.refresh({});
    const { releases } = await vendor.latest(inventoryOf(debian));
    const installed = new Map(debian.packages.map(({ name, version }) => [name, version]));
    return releases.filter(({ product, version }) => installed.get(product) !== version);
  } finally {
    await vendor.close();
  }
}

/** What a day with few updates makes of a run, in words; nothing on other days. */
export function remarksOn(
  pending: readonly Pick<Release, 'product' | 'kind'>[],
  { bootsNewKernel }: Pick<Scenario, 'bootsNewKernel'>,
): readonly string[] {
  if (bootsNewKernel) {
    const hasKernel = pending.some(({ product }) => product.startsWith('linux-image-'));
    return hasKernel ? [] : ['the Debian archive has no newer kernel for this image today: no reboot can be shown'];
  }
  const names = pending.filter(({ kind }) => kind === 'security').map(({ product }) => product);
  if (names.length >= DEBIAN_UPDATES_MIN) return [];
  const real =
    names.length === 0
      ? 'no security update'
      : `no more than ${names.length} security ${names.length === 1 ? 'update' : 'updates'}`;
  const which = names.length === 0 ? '' : ` (${names.join(', ')})`;
  return [`the Debian archive has ${real}${which} for this image today; the signed product hello completes the run`];
}

/** What the image's guest will report, as far as the vendor looks at it. */
function inventoryOf({ suite, packages }: ImageDebian): Inventory {
  return {
    os: { id: 'debian', versionId: '', codename: suite, arch: hostArch() },
    products: packages.map(({ name, version, arch }) => ({
      ecosystem: 'debian',
      product: name,
      version,
      arch,
      state: 'installed',
    })),
    config: [],
    agent: { version: '0', digest: null },
    abilities: { drives: [], compressions: [] },
    freeBytes: 0,
    rebootRequired: false,
    lastShutdown: null,
  };
}
