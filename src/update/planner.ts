// Compares what a VM has with what its vendors have, and makes the plan of a run (A7: the host decides, not the guest).

import type { Clock } from '../base/clock.ts';
import { describeError, PratiqueError } from '../base/errors.ts';
import { PLAN_ATTEMPTS_MAX, PLAN_ITEMS_MAX, PLAN_RETRY_DELAY_MS, VENDOR_RECHECK_MS } from '../base/limits.ts';
import { type Behind, type CompareVersions, findDrift } from '../inventory/drift.ts';
import type { RunId, VmId } from '../model/ids.ts';
import { type Inventory, productKey } from '../model/inventory.ts';
import type { Plan, PlanItem } from '../model/plan.ts';
import type { Policy } from '../model/policy.ts';
import type { QuarantineReason } from '../model/quarantine.ts';
import type { Release } from '../model/release.ts';
import type { Vendor } from '../vendor/vendor.ts';

export type PlanRequest = {
  readonly vm: VmId;
  readonly run: RunId;
  readonly inventory: Inventory;
  readonly policy: Policy;
  readonly vendors: readonly Vendor[];
  readonly clock: Clock;
  readonly signal?: AbortSignal;
};

export type PlanAnswer =
  | { readonly kind: 'plan'; readonly plan: Plan }
  | { readonly kind: 'refused'; readonly reason: QuarantineReason };

/** Makes the plan, asking each vendor that matters for this VM. Vendor trouble and policy refusals are answers; bugs throw. */
export async function makePlan(request: PlanRequest): Promise<PlanAnswer> {
  const chosen = chooseVendors(request);
  if (chosen.kind === 'refused') return chosen;
  const checks = await Promise.all(chosen.vendors.map((vendor) => checkVendor(vendor, request)));
  const ill = checks.find((check) => check.kind === 'refused');
  if (ill?.kind === 'refused') return ill;
  const compare = comparisonOf(chosen.vendors);
  const items: PlanItem[] = [];
  for (const vendor of chosen.vendors) {
    const releases = await vendor.latest(request.inventory);
    const behind = findDrift(request.inventory, releases, compare);
    items.push(...selectItems(behind, releases, request.policy));
  }
  const refusal = refuseItems(items, request.inventory);
  if (refusal !== null) return { kind: 'refused', reason: refusal };
  items.sort(inOrderOfInstallation);
  const vendors = chosen.vendors.map((vendor) => {
    const status = vendor.status();
    return { vendor: vendor.name, checkedAtMs: status.checkedAtMs ?? 0, fresh: status.isFresh };
  });
  return { kind: 'plan', plan: { vm: request.vm, run: request.run, items, vendors } };
}

type Chosen =
  | { readonly kind: 'chosen'; readonly vendors: readonly Vendor[] }
  | { readonly kind: 'refused'; readonly reason: QuarantineReason };

/** The vendors the policy names, else those whose ecosystem this VM has something of. A VM for which nobody speaks is not up to date. */
function chooseVendors(request: PlanRequest): Chosen {
  const { policy, vendors, inventory } = request;
  const missing = policy.vendors.find((name) => !vendors.some((vendor) => vendor.name === name));
  if (missing !== undefined) {
    return {
      kind: 'refused',
      reason: { kind: 'vendor-unavailable', vendor: missing, detail: 'it is named by the policy but not configured' },
    };
  }
  const isNamed = (vendor: Vendor) => policy.vendors.includes(vendor.name);
  const fits = (vendor: Vendor) => inventory.products.some((product) => product.ecosystem === vendor.ecosystem);
  const chosen = policy.vendors.length > 0 ? vendors.filter(isNamed) : vendors.filter(fits);
  if (chosen.length > 0) return { kind: 'chosen', vendors: chosen };
  const ecosystems =
    [...new Set(inventory.products.map((product) => product.ecosystem))].join(', ') || 'nothing we know';
  return {
    kind: 'refused',
    reason: {
      kind: 'plan-refused',
      code: 'no-vendor',
      detail: `no configured vendor offers software for this VM (it has: ${ecosystems})`,
    },
  };
}

type Check = { readonly kind: 'ok' } | { readonly kind: 'refused'; readonly reason: QuarantineReason };

/** Metadata younger than VENDOR_RECHECK_MS is taken as it is; older is refreshed; what cannot be refreshed is believed up to the policy's age. */
async function checkVendor(vendor: Vendor, request: PlanRequest): Promise<Check> {
  const { clock, policy, signal } = request;
  const ageMs = () => clock.nowMs() - (vendor.status().checkedAtMs ?? Number.NEGATIVE_INFINITY);
  if (vendor.status().isFresh && ageMs() >= 0 && ageMs() < VENDOR_RECHECK_MS) return { kind: 'ok' };
  let trouble: unknown;
  for (let attempt = 1; attempt <= PLAN_ATTEMPTS_MAX; attempt += 1) {
    try {
      await vendor.refresh(signal === undefined ? {} : { signal });
      if (vendor.status().isFresh) return { kind: 'ok' };
      trouble = new PratiqueError('vendor-ill/stale', 'its metadata is out of date');
      break;
    } catch (error) {
      if (signal?.aborted) throw error;
      trouble = error;
      const isLast = attempt === PLAN_ATTEMPTS_MAX || vendor.status().checkedAtMs !== null;
      if (isLast) break;
      await clock.sleep(PLAN_RETRY_DELAY_MS, signal);
    }
  }
  const isBelieved = ageMs() >= 0 && ageMs() <= policy.metadataAgeMaxMs;
  if (isBelieved && vendor.status().checkedAtMs !== null) return { kind: 'ok' };
  return {
    kind: 'refused',
    reason: { kind: 'vendor-unavailable', vendor: vendor.name, detail: describeError(trouble) },
  };
}

/** One order of versions for each ecosystem, as its vendors have it. */
export function comparisonOf(vendors: readonly Vendor[]): CompareVersions {
  return (ecosystem, a, b) => {
    const vendor =
      vendors.find((each) => each.ecosystem === ecosystem) ?? vendors.find((each) => each.ecosystem === 'bundle');
    if (vendor === undefined)
      throw new Error(`assertion failed: versions of ${ecosystem} are compared without a vendor`);
    return vendor.compareVersions(a, b);
  };
}

/** The releases of what is behind and wanted: new products are there because something wanted requires them. */
function selectItems(behind: readonly Behind[], releases: readonly Release[], policy: Policy): readonly PlanItem[] {
  const byKey = new Map(releases.map((release) => [productKey(release), release]));
  return behind.flatMap((entry): readonly PlanItem[] => {
    const id = productKey({ ...entry, arch: entry.arch ?? undefined });
    const release = byKey.get(id);
    const isWanted = policy.install === 'all' || entry.kind === 'security' || entry.installed === null;
    return release === undefined || !isWanted ? [] : [{ id, fromVersion: entry.installed, release }];
  });
}

function refuseItems(items: readonly PlanItem[], inventory: Inventory): QuarantineReason | null {
  if (items.length > PLAN_ITEMS_MAX) {
    return {
      kind: 'plan-refused',
      code: 'too-many-items',
      detail: `${items.length} updates are missing, more than ${PLAN_ITEMS_MAX}; rebuild the VM from a newer image`,
    };
  }
  for (const { id, release } of items) {
    if (release.license !== undefined) {
      return { kind: 'license-refused', license: release.license, code: 'NO_LICENSE' };
    }
    const { install } = release;
    if (install.action === 'bundle' && !inventory.abilities.compressions.includes(install.compression)) {
      return {
        kind: 'plan-refused',
        code: 'cannot-unpack',
        detail: `${id} is packed with ${install.compression}, which this guest cannot unpack`,
      };
    }
  }
  return null;
}

/** New products before what requires them, the agent last; otherwise by id, so that equal plans are equal. */
function inOrderOfInstallation(a: PlanItem, b: PlanItem): number {
  const rank = (item: PlanItem) => (item.release.ecosystem === 'agent' ? 2 : item.fromVersion === null ? 0 : 1);
  return rank(a) - rank(b) || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);
}
