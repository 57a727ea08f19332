// Compares what a VM has with what its vendors have, and makes the plan of a run (A7: the host decides, not the guest).

import { type Clock, trustedNowMs } from '../base/clock.ts';
import { describeError, PratiqueError } from '../base/errors.ts';
import { PLAN_ATTEMPTS_MAX, PLAN_ITEMS_MAX, PLAN_RETRY_DELAY_MS, VENDOR_RECHECK_MS } from '../base/limits.ts';
import { licensesOf } from '../drive/drive.ts';
import type { CompareVersions } from '../inventory/drift.ts';
import type { ResolvedGuestConfig } from '../model/guest-config.ts';
import type { RunId, VmId } from '../model/ids.ts';
import { type Ecosystem, type InstalledProduct, type Inventory, productKey } from '../model/inventory.ts';
import { type LicenseCheck, NO_LICENSES } from '../model/license-check.ts';
import type { Plan, PlanItem } from '../model/plan.ts';
import { faultOfPolicy, matchesProduct, type Policy } from '../model/policy.ts';
import type { QuarantineReason } from '../model/quarantine.ts';
import type { LeftOut } from '../model/release.ts';
import type { Vendor } from '../vendor/vendor.ts';
import { selectConfig } from './planner-config.ts';
import { findHeldBack, gatherOffers, type Offers } from './planner-offers.ts';
import { type FailedBefore, isAskedFor, selectItems } from './planner-select.ts';

export type PlanRequest = {
  readonly vm: VmId;
  readonly run: RunId;
  readonly inventory: Inventory;
  readonly policy: Policy;
  /** Why the policy at hand is not the one that the operator meant; such a VM gets no plan. */
  readonly policyTrouble?: string | null;
  /** Versions that are not tried again by themselves. */
  readonly failedBefore?: readonly FailedBefore[];
  readonly vendors: readonly Vendor[];
  /** What this VM is to be configured with; null or absent: this host says nothing about it. */
  readonly configuration?: ResolvedGuestConfig | null;
  /** Absent: this host has no licenses. */
  readonly checkLicense?: LicenseCheck;
  /** Takes the seats that a plan needs before it is decided; absent: only what the VM holds already counts. */
  readonly takeSeats?: (licenses: readonly string[]) => Promise<void>;
  readonly clock: Clock;
  readonly signal?: AbortSignal;
};

export type PlanAnswer =
  | { readonly kind: 'plan'; readonly plan: Plan }
  | { readonly kind: 'refused'; readonly reason: Refusal };

/** No plan is ever refused because one was rolled back: its versions are left out. */
export type Refusal = Exclude<QuarantineReason, { readonly kind: 'rolled-back' }>;

/** Makes the plan, asking each vendor that matters for this VM. Vendor trouble and policy refusals are answers; bugs throw. */
export async function makePlan(request: PlanRequest): Promise<PlanAnswer> {
  const { vm, run, inventory, policy, failedBefore = [], configuration = null } = request;
  const unmeant = refusePolicy(request);
  if (unmeant !== null) return { kind: 'refused', reason: unmeant };
  const config = selectConfig({ configuration, inventory, policy, failedBefore });
  if (config.kind === 'refused') return config;
  // Only configuration: what the vendors have is not asked, and nothing is said about it.
  if (policy.install === 'none')
    return { kind: 'plan', plan: { vm, run, items: [], ...config.parts, leftOut: [], vendors: [] } };
  const chosen = chooseVendors(request);
  if (chosen.kind === 'refused') return chosen;
  const checks = await Promise.all(chosen.vendors.map((vendor) => checkVendor(vendor, request)));
  const ill = checks.find((check) => check.kind === 'refused');
  if (ill?.kind === 'refused') return ill;
  const compare = comparisonOf(chosen.vendors);
  const offers = await gatherOffers(chosen.vendors, inventory, policy, compare);
  const { releases } = offers;
  const selection = selectItems({ inventory, releases, policy, compare, failedBefore });
  const items = [...selection.items];
  const unfit =
    refuseUncovered(request, chosen.vendors, offers) ??
    refuseHeld(request, offers, compare) ??
    refuseItems(items, request);
  if (unfit !== null) return { kind: 'refused', reason: unfit };
  // Last: a plan that comes to nothing anyway takes nobody's seat.
  const uncovered = await refuseUnlicensed(items, request);
  if (uncovered !== null) return { kind: 'refused', reason: uncovered };
  items.sort(inOrderOfInstallation);
  const leftOut = gatherLeftOut({ offers, blocked: selection.blocked, inventory, policy, compare });
  const vendors = checks.flatMap((check) => (check.kind === 'believed' ? [check.entry] : []));
  return { kind: 'plan', plan: { vm, run, items, ...config.parts, leftOut: [...leftOut], vendors } };
}

/** A policy that was not resolved, or that says nothing about this VM, must not make it look up to date. */
function refusePolicy({ inventory, policy, policyTrouble = null }: PlanRequest): Refusal | null {
  const trouble = policyTrouble ?? faultOfPolicy(policy);
  if (trouble !== null) return { kind: 'plan-refused', code: 'policy', detail: trouble };
  if (policy.install !== 'listed') return null;
  if (inventory.products.some(({ product }) => matchesProduct(policy.packages, product))) return null;
  const detail = `nothing that this VM has is listed by its policy (${policy.packages.join(', ')})`;
  return { kind: 'plan-refused', code: 'nothing-listed', detail };
}

type Chosen =
  | { readonly kind: 'chosen'; readonly vendors: readonly Vendor[] }
  | { readonly kind: 'refused'; readonly reason: Refusal };

/** The vendors the policy names, else those whose ecosystem this VM has something of. A VM for which nobody speaks is not up to date. */
function chooseVendors(request: PlanRequest): Chosen {
  const { policy, vendors, inventory } = request;
  const missing = policy.vendors.find((name) => !vendors.some((vendor) => vendor.name === name));
  if (missing !== undefined) {
    // Not as if it could not be reached: for an infrastructure VM that opens, and a typo must not.
    const detail = `the vendor ${missing} is named by it but not configured`;
    return { kind: 'refused', reason: { kind: 'plan-refused', code: 'policy', detail } };
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

type Check =
  | { readonly kind: 'believed'; readonly entry: Plan['vendors'][number] }
  | { readonly kind: 'refused'; readonly reason: Refusal };

/**
 * Metadata that was verified a moment ago is taken as it is; older is refreshed. What cannot be refreshed is believed as long
 * as it is valid and not older than the policy allows; older only where the policy says so, and then it is on the record.
 */
async function checkVendor(vendor: Vendor, request: PlanRequest): Promise<Check> {
  const { clock, policy, signal } = request;
  const look = () => lookAt(vendor, policy, trustedNowMs(clock));
  const before = look();
  if (before.isFresh && before.ageMs < VENDOR_RECHECK_MS) return believed(vendor, true);
  let trouble: unknown;
  for (let attempt = 1; attempt <= PLAN_ATTEMPTS_MAX; attempt += 1) {
    try {
      await vendor.refresh(signal === undefined ? {} : { signal });
      if (look().isFresh) return believed(vendor, true);
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
  const { isFresh, isThere } = look();
  if (isFresh) return believed(vendor, true);
  if (policy.vendorAway === 'admit' && isThere) return believed(vendor, false);
  return {
    kind: 'refused',
    reason: { kind: 'vendor-unavailable', vendor: vendor.name, detail: describeError(trouble) },
  };
}

type Look = { readonly ageMs: number; readonly isThere: boolean; readonly isFresh: boolean };

/** Metadata that was checked later than now was checked by another clock: its age is not known, so it is not believed. */
function lookAt(vendor: Vendor, policy: Policy, nowMs: number): Look {
  const { checkedAtMs, isFresh } = vendor.status();
  const ageMs = checkedAtMs === null ? Number.POSITIVE_INFINITY : nowMs - checkedAtMs;
  const isThere = checkedAtMs !== null && ageMs >= 0;
  return { ageMs, isThere, isFresh: isThere && isFresh && ageMs <= policy.metadataAgeMaxMs };
}

function believed(vendor: Vendor, fresh: boolean): Check {
  return { kind: 'believed', entry: { vendor: vendor.name, checkedAtMs: vendor.status().checkedAtMs ?? 0, fresh } };
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

/**
 * A VM that no vendor speaks for is not up to date: a vendor of another release of the system answers with nothing, and so does
 * one that never heard of a bundle. Where the policy names vendors, only what is theirs to know is asked for.
 */
function refuseUncovered(
  { inventory, policy }: PlanRequest,
  vendors: readonly Vendor[],
  { releases, leftOut, without }: Offers,
): Refusal | null {
  const refuse = (detail: string): Refusal => ({ kind: 'plan-refused', code: 'no-vendor', detail });
  // The agent comes from this project; a host that offers no newer one says nothing against it.
  const ecosystems = new Set(inventory.products.map(({ ecosystem }) => ecosystem).filter((each) => each !== 'agent'));
  const isAsked = (ecosystem: Ecosystem) =>
    policy.vendors.length === 0 || vendors.some((vendor) => vendor.ecosystem === ecosystem);
  // What is held, or cannot be had, is known all the same.
  const known = [...releases, ...leftOut, ...(without.policy ?? []), ...(without.guest ?? [])];
  const covered = new Set(known.map(({ ecosystem, product }) => `${ecosystem}/${product}`));
  const isCovered = ({ ecosystem, product }: InstalledProduct) => covered.has(`${ecosystem}/${product}`);
  if (!inventory.products.some(isCovered)) return refuse('no configured vendor knows anything that this VM has');
  for (const ecosystem of [...ecosystems].filter(isAsked)) {
    const own = inventory.products.filter((product) => product.ecosystem === ecosystem);
    const isMeant = ({ product }: InstalledProduct) =>
      policy.install !== 'listed' || matchesProduct(policy.packages, product);
    const meant = own.filter(isMeant);
    const alone = meant.find((product) => !isCovered(product));
    // A distribution's VM may have packages of its own; but of what is listed somebody must know something.
    const isUnknown = ecosystem === 'bundle' || (policy.install === 'listed' && !meant.some(isCovered));
    if (alone !== undefined && isUnknown) return refuse(`no configured vendor offers ${alone.product} for this VM`);
    if (ecosystem !== 'bundle' && !own.some(isCovered)) {
      const { id, versionId } = inventory.os;
      return refuse(`no configured vendor offers ${ecosystem} software for ${id} ${versionId}`);
    }
  }
  return null;
}

/** A guest that holds a package back holds back its security updates, too; a VM with a known hole is not plugged in. */
function refuseHeld({ inventory, policy }: PlanRequest, offers: Offers, compare: CompareVersions): Refusal | null {
  const holes = findHeldBack('guest', offers, inventory, policy, compare).filter(
    (entry) => entry.kind === 'security' && isAskedFor(policy, entry),
  );
  const [first] = holes;
  if (first === undefined) return null;
  const detail = `${first.product} ${first.version} mends a hole, but ${first.reason} (${holes.length} in all)`;
  return { kind: 'plan-refused', code: 'held', detail };
}

type LeftOutParts = {
  readonly offers: Offers;
  readonly blocked: readonly LeftOut[];
  readonly inventory: Inventory;
  readonly policy: Policy;
  readonly compare: CompareVersions;
};

/** The newer versions that this policy asks for and the plan does without, each once, security first. */
function gatherLeftOut({ offers, blocked, inventory, policy, compare }: LeftOutParts): readonly LeftOut[] {
  const heldBack = (['guest', 'policy'] as const).flatMap((holder) =>
    findHeldBack(holder, offers, inventory, policy, compare),
  );
  const free = new Set((offers.without.policy ?? []).map((release) => `${productKey(release)} ${release.version}`));
  const told = offers.leftOut.map((entry): LeftOut => {
    // The vendor cannot know whose hold it was that it could not go past.
    const isOperators = entry.why === 'unsatisfiable' && free.has(`${productKey(entry)} ${entry.version}`);
    return isOperators ? { ...entry, why: 'held', reason: `${entry.reason}; this VM's policy holds that` } : entry;
  });
  // Of one product the last entry stays: where two vendors leave out versions of it, that is the one that is a hole.
  const byWeight = told.toSorted((a, b) => Number(isHole(a)) - Number(isHole(b)));
  const byKey = new Map([...byWeight, ...heldBack, ...blocked].map((entry) => [productKey(entry), entry]));
  const unwanted = new Set(blocked.map(productKey));
  const has = new Map(offers.releases.map((release) => [productKey(release), release]));
  // Another vendor may have what one leaves out.
  const isHad = (entry: LeftOut): boolean => {
    const release = unwanted.has(productKey(entry)) ? undefined : has.get(productKey(entry));
    return release !== undefined && compare(entry.ecosystem, release.version, entry.version) >= 0;
  };
  return [...byKey.values()]
    .filter((entry) => isAskedFor(policy, entry) && !isHad(entry))
    .sort(securityFirst)
    .slice(0, PLAN_ITEMS_MAX);
}

const isHole = ({ why, kind }: LeftOut): boolean => why === 'unsatisfiable' && kind === 'security';

function securityFirst(a: LeftOut, b: LeftOut): number {
  const rank = ({ kind }: LeftOut) => (kind === 'security' ? 0 : 1);
  const [left, right] = [productKey(a), productKey(b)];
  return rank(a) - rank(b) || (left < right ? -1 : left > right ? 1 : 0);
}

async function refuseUnlicensed(
  items: readonly PlanItem[],
  { vm, checkLicense = NO_LICENSES, takeSeats }: PlanRequest,
): Promise<Refusal | null> {
  const licenses = licensesOf({ items });
  if (licenses.length > 0) await takeSeats?.(licenses);
  for (const license of licenses) {
    const code = checkLicense(vm, license);
    if (code !== null) return { kind: 'license-refused', license, code };
  }
  return null;
}

function refuseItems(items: readonly PlanItem[], { inventory }: PlanRequest): Refusal | null {
  if (items.length > PLAN_ITEMS_MAX) {
    return {
      kind: 'plan-refused',
      code: 'too-many-items',
      detail: `${items.length} updates are missing, more than ${PLAN_ITEMS_MAX}; rebuild the VM from a newer image`,
    };
  }
  for (const { id, release } of items) {
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
