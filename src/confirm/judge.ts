// Decides whether a guest's confirmation is true: plan, results and a fresh inventory become evidence, or why not (A10).
import { digestOf } from '../base/digest.ts';
import { canonicalJson, type Digest } from '../base/digest-text.ts';
import { compareKernelReleases, kernelFlavourOf, kernelPackageOf, kernelReleaseOf } from '../base/kernel-release.ts';
import { VENDOR_RECHECK_MS } from '../base/limits.ts';
import { printable } from '../base/printable.ts';
import { type CompareVersions, findInstalled, indexProducts, type ProductIndex } from '../inventory/drift.ts';
import type { Evidence, EvidenceFacts } from '../model/evidence.ts';
import { configItemId } from '../model/guest-config.ts';
import type { HealthResult } from '../model/health.ts';
import type { RunId, VmId } from '../model/ids.ts';
import { type InstalledProduct, type Inventory, productKey } from '../model/inventory.ts';
import type { LicenseFact } from '../model/license-check.ts';
import { configIdsOf, type Plan, type PlanItem, planDigest, planStepCount } from '../model/plan.ts';
import type { Policy } from '../model/policy.ts';
import type { LeftOut } from '../model/release.ts';
import type { ItemResult } from '../model/result.ts';
import { findConfigFault } from './judge-config.ts';

/** Why a confirmation is not believed, with what each code means. */
export const JUDGE_CODES = {
  'plan-mismatch': 'the plan is not the one of this VM, run and digest',
  'session-ended': 'the confirmation came in a session that is not the present one',
  'wrong-run': 'the confirmation is for another run',
  'wrong-plan': 'the confirmation is for another plan',
  'wrong-manifest': 'the confirmation names a manifest that is not the last one offered in this run',
  'result-missing': 'an item of the plan has no result',
  'result-unknown': 'a result is for an item that is not in the plan',
  'result-repeated': 'an item has more than one result',
  'not-installed': 'an item was not installed',
  'check-failed': "an item's check did not pass",
  'check-missing': "an item's check was not run",
  'os-changed': 'the operating system is not the one that was reported before the install',
  'reboot-required': 'the guest still has to reboot',
  'old-kernel': 'the plan installed a newer kernel than the one that runs',
  'product-missing': 'the fresh inventory does not show a product of the plan',
  'product-broken': 'a product of the plan is broken',
  'version-differs': 'the fresh inventory shows another version than the plan',
  'config-missing': 'the fresh inventory does not show a configuration item that it should',
  'config-differs': 'a configuration item is at another version, or was changed in the guest',
  'config-left': 'a configuration item that is configured no longer was not taken back',
  'went-backwards': 'a product is older than before the install',
  'version-unreadable': 'a version that changed cannot be compared',
  'left-out': 'a security update that the policy asks for could not be planned, or a version failed on this VM before',
  'health-missing': "the guest did not answer for a health check of the VM's policy",
  'health-failed': "a health check of the VM's policy failed in the guest",
  'disk-mismatch': "the VM's own disk, read by the host, does not bear out what the guest claims",
  'disk-unread': "the policy asks for the VM's disk, and nobody could read it",
  'metadata-old': 'the plan rests on vendor metadata that is older than the policy believes',
  'still-behind': 'the fresh inventory shows a product that nobody reported before and that is not the latest',
} as const;
export type JudgeCode = keyof typeof JUDGE_CODES;

/** The agent's `confirm` with the session it came in. */
export type Confirmation = {
  readonly nonce: string;
  readonly boot: string;
  readonly run: RunId;
  readonly planDigest: Digest;
  readonly manifestDigest: Digest | null;
  readonly results: readonly ItemResult[];
  /** Taken after the last install and reboot. */
  readonly inventory: Inventory;
  readonly health?: readonly HealthResult[];
};

export type JudgeInput = {
  readonly vm: VmId;
  readonly run: RunId;
  readonly plan: Plan;
  /** The digest that was journaled when the plan was made. */
  readonly planDigest: Digest;
  /** The present session of this VM; null when there is none any more. */
  readonly session: { readonly nonce: string; readonly boot: string } | null;
  readonly confirmation: Confirmation;
  /** Every manifest offered in this run, in any of its boots, oldest first. */
  readonly manifestDigests: readonly Digest[];
  /** What the guest reported before the install; null when that is not known any more. */
  readonly reported: Inventory | null;
  /** Absent: whether anything went backwards is not asked. */
  readonly compareVersions?: CompareVersions;
  /** The VM's policy as it is now. */
  readonly policy: JudgePolicy;
  /** Absent: nobody has looked at its disk. */
  readonly disk?: DiskWitness;
  readonly nowMs: number;
  /** The license checks behind what was installed; absent: nothing of the plan names a license. */
  readonly licenses?: readonly LicenseFact[];
};

/** What the host read on the VM's disk after the confirmation came. */
export type DiskWitness =
  | { readonly kind: 'agrees'; readonly matching: number; readonly unread: number }
  | { readonly kind: 'differs'; readonly detail: string }
  | { readonly kind: 'unread'; readonly detail: string };

/** What of the policy is for the judge to hold against a plan. */
export type JudgePolicy = Pick<
  Policy,
  'leftOut' | 'vendorAway' | 'metadataAgeMaxMs' | 'runDeadlineMs' | 'health' | 'verify'
>;

export type JudgeRefusal = { readonly kind: 'refused'; readonly code: JudgeCode; readonly detail: string };
export type Judgement = { readonly kind: 'evidence'; readonly evidence: Evidence } | JudgeRefusal;

/** Everything that came out of `judge`: a value that merely looks like evidence is not in here. */
const MADE = new WeakSet<object>();

/** Whether the value is evidence that this process judged. Evidence read back from a disk is not: it is judged again. */
export function isEvidence(value: unknown): value is Evidence {
  return typeof value === 'object' && value !== null && MADE.has(value);
}

/** Believes a confirmation, or says which rule it breaks first. Pure; the evidence is frozen. */
export function judge(input: JudgeInput): Judgement {
  const refusal =
    checkBinding(input) ??
    checkManifest(input) ??
    checkResults(input) ??
    checkInventory(input) ??
    checkBackwards(input) ??
    checkHealth(input) ??
    checkDisk(input) ??
    checkMetadata(input) ??
    checkLeftOut(input.plan.leftOut, input.policy);
  if (refusal !== null) return refusal;
  const { plan, confirmation } = input;
  const passed = new Map(confirmation.results.map((result) => [result.item, result.checkPassed ?? null]));
  const facts: EvidenceFacts = {
    vm: input.vm,
    run: input.run,
    nonce: confirmation.nonce,
    boot: confirmation.boot,
    planDigest: input.planDigest,
    manifestDigests: [...input.manifestDigests],
    inventoryDigest: digestOf(canonicalJson(confirmation.inventory)),
    ...(input.licenses === undefined || input.licenses.length === 0 ? {} : { licenses: input.licenses }),
    items: plan.items.map((item) => ({
      item: item.id,
      fromVersion: item.fromVersion,
      version: item.release.version,
      checkPassed: passed.get(item.id) ?? null,
    })),
    ...configFacts(plan),
    leftOut: plan.leftOut.map((entry) => ({
      item: productKey(entry),
      version: entry.version,
      kind: entry.kind,
      why: entry.why,
      reason: entry.reason,
    })),
    health: [...input.policy.health],
    ...(input.disk?.kind === 'agrees' ? { disk: { matching: input.disk.matching, unread: input.disk.unread } } : {}),
    vendors: plan.vendors.map((vendor) => ({ ...vendor })),
    judgedAtMs: input.nowMs,
  };
  // The brand's only cast: every rule above was met.
  const evidence = freezeDeep(facts) as Evidence;
  MADE.add(evidence);
  return { kind: 'evidence', evidence };
}

/** Names and versions: what an item says is nobody's business but the guest's. */
function configFacts({ config, configRemoved }: Plan): Pick<EvidenceFacts, 'config' | 'configRemoved'> {
  return {
    ...(config === undefined
      ? {}
      : {
          config: config.map(({ item, fromVersion, version }) => ({ item: configItemId(item), fromVersion, version })),
        }),
    ...(configRemoved === undefined
      ? {}
      : { configRemoved: configRemoved.map(({ item, version }) => ({ item: configItemId(item), version })) }),
  };
}

/** Run, plan and session are the present ones. */
function checkBinding({ vm, run, plan, planDigest: digest, session, confirmation }: JudgeInput): JudgeRefusal | null {
  if (plan.vm !== vm || plan.run !== run || planDigest(plan) !== digest) {
    return refused(
      'plan-mismatch',
      `the plan at hand is for VM ${plan.vm}, run ${plan.run}, or was changed since it was made`,
    );
  }
  if (session === null) return refused('session-ended', 'the agent has no session any more');
  if (confirmation.nonce !== session.nonce || confirmation.boot !== session.boot) {
    return refused('session-ended', 'the agent has begun a new session or boot since it confirmed');
  }
  if (confirmation.run !== run) return refused('wrong-run', `it confirms run ${confirmation.run}, this is ${run}`);
  if (confirmation.planDigest === digest) return null;
  return refused('wrong-plan', `it confirms plan ${confirmation.planDigest}, this is ${digest}`);
}

function checkManifest({ plan, manifestDigests, confirmation }: JudgeInput): JudgeRefusal | null {
  const last = manifestDigests.at(-1) ?? null;
  if (last === null && planStepCount(plan) > 0) return refused('wrong-manifest', 'no manifest was offered in this run');
  if (confirmation.manifestDigest === last) return null;
  return refused(
    'wrong-manifest',
    `it installed ${confirmation.manifestDigest ?? 'none'}, offered last was ${last ?? 'none'}`,
  );
}

/** Exactly one result for each item, installed, with the checks it has. */
function checkResults({ plan, confirmation }: JudgeInput): JudgeRefusal | null {
  const results = new Map<string, ItemResult>();
  const configIds = configIdsOf(plan);
  const known = new Set([...plan.items.map((item) => item.id), ...configIds]);
  for (const result of confirmation.results) {
    if (!known.has(result.item)) return refused('result-unknown', `${result.item} is not in the plan`);
    if (results.has(result.item)) return refused('result-repeated', `${result.item} has two results`);
    results.set(result.item, result);
  }
  for (const item of plan.items) {
    const result = results.get(item.id);
    if (result === undefined) return refused('result-missing', `${item.id} has no result`);
    const refusal = checkResult(item, result);
    if (refusal !== null) return refusal;
  }
  for (const id of configIds) {
    const result = results.get(id);
    if (result === undefined) return refused('result-missing', `${id} has no result`);
    if (result.outcome !== 'installed') return refused('not-installed', notInstalledText(id, result));
  }
  return null;
}

function notInstalledText(id: string, { outcome, code }: ItemResult): string {
  return `${id} was ${outcome}${code ? ` (${code})` : ''}`;
}

function checkResult(item: PlanItem, result: ItemResult): JudgeRefusal | null {
  if (result.outcome !== 'installed') return refused('not-installed', notInstalledText(item.id, result));
  if (result.checkPassed === false) return refused('check-failed', `${item.id} was installed but its check failed`);
  const { install } = item.release;
  const hasCheck = install.action === 'bundle' && install.check !== undefined;
  if (hasCheck && result.checkPassed !== true) return refused('check-missing', `the check of ${item.id} was not run`);
  return null;
}

/** The same system as before, nothing left to do, and every target version exactly there. */
function checkInventory({ plan, confirmation, reported }: JudgeInput): JudgeRefusal | null {
  const { inventory } = confirmation;
  const { os } = inventory;
  if (reported !== null) {
    const changed = (['id', 'versionId', 'arch'] as const).find((field) => os[field] !== reported.os[field]);
    if (changed !== undefined) {
      return refused('os-changed', `the system's ${changed} was ${reported.os[changed]} and is now ${os[changed]}`);
    }
  }
  if (inventory.rebootRequired) return refused('reboot-required', 'the fresh inventory says that a reboot is required');
  const index = indexProducts(inventory);
  for (const item of plan.items) {
    const refusal = checkProduct(item, index);
    if (refusal !== null) return refusal;
  }
  const fault = findConfigFault(plan, inventory, reported);
  if (fault !== null) return refused(fault.code, fault.detail);
  return checkKernel(plan, inventory);
}

/**
 * A kernel that the plan installed is the one that runs. Nothing is said where the running kernel is in no package of the guest: it
 * comes from the host then, and no reboot of the guest changes it; nor of a kernel of another kind than the one that runs.
 */
function checkKernel(plan: Plan, { os, products }: Inventory): JudgeRefusal | null {
  const running = os.kernel;
  if (running === undefined || !products.some(({ product }) => product === kernelPackageOf(running))) return null;
  for (const { id, release } of plan.items) {
    const planned = release.ecosystem === 'debian' ? kernelReleaseOf(release.product) : null;
    if (planned === null || kernelFlavourOf(planned) !== kernelFlavourOf(running)) continue;
    const isBuildOld = planned === running && (os.kernelVersion ?? release.version) !== release.version;
    if (isBuildOld || compareKernelReleases(running, planned) < 0) {
      const detail = `${id} ${release.version} is installed, but the kernel that runs is ${running} ${os.kernelVersion ?? ''}`;
      return refused('old-kernel', detail.trim());
    }
  }
  return null;
}

function checkProduct({ id, release }: PlanItem, index: ProductIndex): JudgeRefusal | null {
  const installed = findInstalled(index, release);
  if (installed.length === 0) return refused('product-missing', `${id} is not in the fresh inventory`);
  const broken = installed.find((product) => product.state !== 'installed');
  if (broken !== undefined) return refused('product-broken', `${id} is ${broken.state} at ${broken.version}`);
  const other = installed.find((product) => product.version !== release.version);
  if (other !== undefined)
    return refused('version-differs', `${id} is at ${other.version}, the plan wants ${release.version}`);
  // The artifact of an agent's release is its executable.
  const running = index.agentDigest;
  if (release.ecosystem !== 'agent' || running === null || running === release.artifact.digest) return null;
  return refused('version-differs', `the running agent is ${running}, the plan wants ${release.artifact.digest}`);
}

/**
 * Products of the fresh inventory that the plan does not speak for: they were not there, or were at another version, when it was
 * made, and it did not ask for this one. Whether they are the latest is for the vendors to say.
 */
export function findUnplanned(
  input: Pick<JudgeInput, 'plan' | 'reported' | 'confirmation'>,
): readonly InstalledProduct[] {
  const identity = (product: Pick<InstalledProduct, 'ecosystem' | 'product' | 'arch' | 'version'>) =>
    `${productKey(product)} ${product.version}`;
  const reported = new Set(input.reported?.products.map(identity) ?? []);
  const index = indexProducts(input.confirmation.inventory);
  const planned = new Set(input.plan.items.flatMap((item) => findInstalled(index, item.release)));
  return input.confirmation.inventory.products.filter(
    (product) => !planned.has(product) && !reported.has(identity(product)),
  );
}

/** No product is older than it was reported before the install. */
function checkBackwards({ reported, confirmation, compareVersions }: JudgeInput): JudgeRefusal | null {
  if (reported === null || compareVersions === undefined) return null;
  const before = new Map(reported.products.map((product) => [productKey(product), product]));
  for (const product of confirmation.inventory.products) {
    const old = before.get(productKey(product));
    if (old === undefined || old.version === product.version) continue;
    const refusal = checkNotOlder(old, product, compareVersions);
    if (refusal !== null) return refusal;
  }
  return null;
}

function checkNotOlder(old: InstalledProduct, now: InstalledProduct, compare: CompareVersions): JudgeRefusal | null {
  const change = `${productKey(now)} was at ${old.version} and is now at ${now.version}`;
  try {
    return compare(now.ecosystem, now.version, old.version) < 0 ? refused('went-backwards', change) : null;
  } catch {
    return refused('version-unreadable', change);
  }
}

/** Every check of the policy was answered, once and well. What the guest checked beyond that is of no interest. */
function checkHealth({ policy, confirmation }: JudgeInput): JudgeRefusal | null {
  for (const check of policy.health) {
    const answers = confirmation.health?.filter((result) => result.check === check) ?? [];
    const [answer] = answers;
    if (answer === undefined) {
      const why =
        confirmation.health === undefined ? 'its agent knows no health checks, or the policy is newer' : 'no answer';
      return refused('health-missing', `${check}: ${why}`);
    }
    const failed = answers.find(({ isHealthy }) => !isHealthy);
    if (failed !== undefined) return refused('health-failed', `${check}: ${failed.detail ?? 'it said no more'}`);
  }
  return null;
}

/** Where the policy asks for it, the disk bears out what the guest claims. Without a look nothing is believed. */
function checkDisk({ policy, disk }: JudgeInput): JudgeRefusal | null {
  if (disk?.kind === 'differs') return refused('disk-mismatch', disk.detail);
  if (policy.verify === 'agent' || disk?.kind === 'agrees') return null;
  return refused('disk-unread', disk?.detail ?? 'nobody has looked');
}

/**
 * "Up to date" is as good as what the vendors said, and when. A run may take its time, but a plan that rests on metadata older
 * than the policy believes opens only where the policy goes by old metadata. Small steps of the host's clock do no harm.
 */
function checkMetadata({ plan, policy, nowMs }: JudgeInput): JudgeRefusal | null {
  for (const { vendor, checkedAtMs, fresh } of plan.vendors) {
    const ageMs = nowMs - checkedAtMs;
    if (ageMs < -VENDOR_RECHECK_MS) return refused('metadata-old', `${vendor} was checked later than now`);
    if (policy.vendorAway === 'admit') continue;
    if (!fresh) return refused('metadata-old', `what is known of ${vendor} was out of date when the plan was made`);
    if (ageMs <= policy.metadataAgeMaxMs + policy.runDeadlineMs) continue;
    return refused('metadata-old', `${vendor} was checked ${Math.round(ageMs / 3_600_000)} hours ago`);
  }
  return null;
}

/**
 * A VM with a hole that cannot be mended is not plugged in unless the policy says so; the rest of its plan was installed. A hold
 * of the operator's is a decision; what failed on this VM before keeps it gated as the failure itself did.
 */
export function checkLeftOut(leftOut: readonly LeftOut[], policy: Pick<Policy, 'leftOut'>): JudgeRefusal | null {
  if (policy.leftOut === 'admit') return null;
  const open = leftOut.filter(
    ({ why, kind }) => why === 'failed-before' || (why === 'unsatisfiable' && kind === 'security'),
  );
  const [first] = open;
  if (first === undefined) return null;
  const more = open.length === 1 ? '' : ` (${open.length} in all)`;
  return refused('left-out', `${first.product} ${first.version} is left out, ${first.reason}${more}`);
}

function refused(code: JudgeCode, detail: string): JudgeRefusal {
  return { kind: 'refused', code, detail: printable(detail, 400) };
}

function freezeDeep<T>(value: T): T {
  if (typeof value !== 'object' || value === null) return value;
  for (const field of Object.values(value)) freezeDeep(field);
  return Object.freeze(value);
}
