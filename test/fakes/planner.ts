// What the planner's tests are made of: products, releases, vendors that answer with them, and plans as short texts.
import { digestOf } from '../../src/base/digest.ts';
import type { Ecosystem, InstalledProduct, Inventory } from '../../src/model/inventory.ts';
import { DEFAULT_POLICY, type Policy } from '../../src/model/policy.ts';
import type { Release } from '../../src/model/release.ts';
import { makePlan, type PlanAnswer, type PlanRequest } from '../../src/update/planner.ts';
import { RUN } from '../../src/update/samples.ts';
import { compareDebianVersions } from '../../src/vendor/debian-apt/version.ts';
import { compareSemver } from '../../src/vendor/tuf/choose.ts';
import type { Vendor } from '../../src/vendor/vendor.ts';
import { makeFakeClock } from '../simulator/clock.ts';

const VM = 'vm1' as Parameters<typeof makePlan>[0]['vm']; // The form that the brand promises.

/** A bundle's release. */
export function release(product: string, version: string, more: Partial<Release> = {}): Release {
  return {
    vendor: 'v',
    ecosystem: 'bundle',
    product,
    version,
    kind: 'fix',
    requires: [],
    advisories: [],
    artifact: { name: product, digest: digestOf(`${product} ${version}`), sizeBytes: 1, location: product },
    install: { action: 'bundle', prefix: '/opt/x', compression: 'none' },
    ...more,
  };
}

/** A Debian package's release. */
export const deb = (product: string, version: string, more: Partial<Release> = {}) =>
  release(product, version, { ecosystem: 'debian', arch: 'amd64', install: { action: 'debian-package' }, ...more });

/** A vendor of these releases, whatever is held. */
export function vendor(
  releases: readonly Release[] | ((inventory: Inventory) => readonly Release[]),
  more: Partial<Vendor> = {},
): Vendor {
  const ecosystem: Ecosystem = more.ecosystem ?? 'bundle';
  const status = { vendor: 'v', checkedAtMs: 1_700_000_000_000, isFresh: true, trouble: null };
  return {
    name: 'v',
    kind: 'tuf',
    ecosystem,
    refresh: async () => status,
    status: () => status,
    latest: async (inventory) => ({
      releases: typeof releases === 'function' ? releases(inventory) : releases,
      leftOut: [],
    }),
    offers: async () => [],
    compareVersions: ecosystem === 'debian' ? compareDebianVersions : compareSemver,
    open: () => Promise.reject(new Error('not asked for here')),
    inspect: async () => {},
    close: async () => {},
    ...more,
  };
}

/** An installed bundle. */
export const product = (name: string, version: string, more: Partial<InstalledProduct> = {}): InstalledProduct => ({
  ecosystem: 'bundle',
  product: name,
  version,
  state: 'installed',
  ...more,
});
/** An installed Debian package. */
export const debian = (name: string, version: string, more: Partial<InstalledProduct> = {}) =>
  product(name, version, { ecosystem: 'debian', arch: 'amd64', ...more });

/** What a guest with these products reports. */
export function inventory(...products: readonly InstalledProduct[]): Inventory {
  return {
    os: { id: 'debian', versionId: '12', codename: 'bookworm', arch: 'amd64' },
    products: [...products],
    config: [],
    agent: { version: '1.0.0', digest: null },
    abilities: { drives: ['virtio-blk'], compressions: ['none'] },
    freeBytes: 1,
    rebootRequired: false,
    lastShutdown: null,
  };
}

/** What the planner answers. */
export async function answer(
  vendors: readonly Vendor[],
  has: Inventory,
  policy: Partial<Policy> = {},
  more: Partial<PlanRequest> = {},
): Promise<PlanAnswer> {
  const clock = makeFakeClock();
  const whole = { ...DEFAULT_POLICY, ...policy };
  return await makePlan({ vm: VM, run: RUN, inventory: has, policy: whole, vendors, clock, ...more });
}

/** The items of a plan, each as "id from to"; or the code with which it was refused. */
export async function plan(vendors: readonly Vendor[], has: Inventory, policy: Partial<Policy> = {}) {
  const answered = await answer(vendors, has, policy);
  if (answered.kind === 'plan')
    return answered.plan.items.map((item) => `${item.id} ${item.fromVersion} ${item.release.version}`);
  return answered.reason.kind === 'plan-refused' ? `refused: ${answered.reason.code}` : answered.reason.kind;
}
