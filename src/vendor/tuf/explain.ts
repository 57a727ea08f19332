// Why a VM does without a newer version: one sentence that names both sides. Pure.
import { TUF_EXPLAIN_CHECKS_MAX } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import type { InstalledProduct } from '../../model/inventory.ts';
import type { LeftOut, Release } from '../../model/release.ts';
import { isNewerVersion, severestKind } from './order.ts';
import { groupsOf, isWithin, type Need, type Option, resolve } from './resolve.ts';

/** One version a product may have; without a release it is what the VM has, of which the vendor says nothing. */
export type Choice = Option & { readonly release: Release | null };

/** A product of this VM and what is on offer for it. */
export type Subject = {
  readonly key: string;
  readonly installed: InstalledProduct;
  /** Fitting releases that are newer than the installed version, newest first. */
  readonly newer: readonly Release[];
  /** The release that is installed, if it is still on offer. */
  readonly same: Release | null;
  /** What stands for this product among the releases when nothing of it changes; null where nothing but newer is on offer. */
  readonly shown: Release | null;
};

export type Outcome = {
  readonly chosen: ReadonlyMap<string, Choice>;
  readonly options: ReadonlyMap<string, readonly Choice[]>;
  readonly subjects: ReadonlyMap<string, Subject>;
  /** Products whose requirements were given up on. */
  readonly entangled: ReadonlySet<string>;
};

/** The key of a product, whatever its architecture: a VM has one of each. */
export function keyOf(product: { readonly ecosystem: string; readonly product: string }): string {
  return `${product.ecosystem}/${product.product}`;
}

/** A release as a version that a product may have. */
export function choiceOf(release: Release): Choice {
  const needs = release.requires.map(({ product, range }): Need => ({ key: `bundle/${product}`, range }));
  return { version: release.version, needs, release };
}

/** For each product the newest version that this VM does without, if any. */
export function explainLeftOut(outcome: Outcome): readonly LeftOut[] {
  const inquiry: Inquiry = { ...outcome, checks: { left: TUF_EXPLAIN_CHECKS_MAX } };
  return [...outcome.subjects.values()].flatMap((subject) => explainSubject(subject, inquiry));
}

/** What an explanation may look at, and how much of it is left. */
type Inquiry = Outcome & { readonly checks: { left: number } };

function explainSubject({ key, installed, newer }: Subject, inquiry: Inquiry): readonly LeftOut[] {
  const [newest] = newer;
  const got = inquiry.chosen.get(key)?.version ?? installed.version;
  if (newest === undefined || newest.version === got) return [];
  const entry = {
    vendor: newest.vendor,
    ecosystem: newest.ecosystem,
    product: newest.product,
    version: newest.version,
    ...(newest.arch === undefined ? {} : { arch: newest.arch }),
    kind: severestKind(newer.filter(({ version }) => isNewerVersion(version, got))) ?? newest.kind,
  };
  if (installed.held === true) {
    return [{ ...entry, why: 'held', reason: `${newest.product} is held at ${printable(installed.version)}` }];
  }
  return [{ ...entry, why: 'unsatisfiable', reason: printable(reasonOf(newest, inquiry), 500) }];
}

function reasonOf(newest: Release, inquiry: Inquiry): string {
  if (inquiry.entangled.has(keyOf(newest))) {
    return `the requirements of ${newest.product} and of what hangs together with it are too entangled to resolve`;
  }
  return (
    missingReason(newest, inquiry, 0) ??
    clashReason(newest, inquiry) ??
    pairReason(newest, inquiry) ??
    `${nameOf(newest)} cannot be had together with the other products of this VM`
  );
}

const nameOf = ({ product, version }: Release): string => `${product} ${version}`;
const productOf = ({ key }: Need): string => key.slice(key.indexOf('/') + 1);

/** The versions among these that are within the range; none when the explanation has taken too long already. */
function within(options: readonly Choice[], range: string, { checks }: Inquiry): readonly Choice[] {
  checks.left -= options.length;
  return checks.left < 0 ? [] : options.filter(({ version }) => isWithin(version, range));
}

/** Requirements of requirements that are followed for an explanation. */
const CHAIN_MAX = 4;

/** What it requires, directly or by way of others, that nobody offers. */
function missingReason(release: Release, inquiry: Inquiry, depth: number): string | null {
  for (const need of choiceOf(release).needs) {
    const product = productOf(need);
    const all = inquiry.options.get(need.key) ?? [];
    const requires = `${nameOf(release)} requires ${product} ${need.range}`;
    if (all.length === 0) return `${requires}, and nobody offers ${product}`;
    const fitting = within(all, need.range, inquiry);
    if (inquiry.checks.left < 0) return null;
    const installed = inquiry.subjects.get(need.key)?.installed;
    if (fitting.length === 0 && installed?.held === true) {
      return `${requires}, and ${product} is held at ${installed.version}`;
    }
    if (fitting.length === 0) return `${requires}, and nobody offers that: there is ${product} ${all[0]?.version}`;
    if (depth >= CHAIN_MAX) continue;
    const reasons = fitting.map((one) =>
      one.release === null ? null : missingReason(one.release, inquiry, depth + 1),
    );
    const [first = null] = reasons;
    if (first !== null && reasons.every((reason) => reason !== null)) return `${requires}, but ${first}`;
  }
  return null;
}

/** A requirement of its own that excludes one of the chosen set's, or one of the chosen set that it does not meet. */
function clashReason(newest: Release, inquiry: Inquiry): string | null {
  const own = keyOf(newest);
  for (const need of choiceOf(newest).needs) {
    const other = inquiry.chosen.get(need.key);
    if (other === undefined || isWithin(other.version, need.range)) continue;
    const rival = rivalOf(need, own, inquiry);
    if (rival !== null) return `${nameOf(newest)} requires ${productOf(need)} ${need.range}, but ${rival}`;
  }
  for (const [key, { release, needs }] of inquiry.chosen) {
    if (release === null || key === own) continue;
    const need = needs.find((each) => each.key === own && !isWithin(newest.version, each.range));
    if (need !== undefined) return `${nameOf(release)} requires ${newest.product} ${need.range}`;
  }
  return null;
}

/** Who among the chosen needs the same product in a way that leaves no version for both. */
function rivalOf(need: Need, own: string, inquiry: Inquiry): string | null {
  const fitting = within(inquiry.options.get(need.key) ?? [], need.range, inquiry);
  for (const [other, { release, needs }] of inquiry.chosen) {
    const rival = needs.find(({ key }) => key === need.key);
    if (other === own || release === null || rival === undefined) continue;
    if (within(fitting, rival.range, inquiry).length > 0) continue;
    return inquiry.checks.left < 0 ? null : `${nameOf(release)} requires ${productOf(need)} ${rival.range}`;
  }
  return null;
}

/** Products tried one by one for an explanation. */
const PAIRS_MAX = 50;

/** By trying: the first product of this VM beside whose chosen version the newest cannot be had. */
function pairReason(newest: Release, { chosen, options, subjects }: Inquiry): string | null {
  const own = keyOf(newest);
  const fixed = new Map(options).set(own, [choiceOf(newest)]);
  const groups = groupsOf({ options: fixed, wanted: [own, ...subjects.keys()] });
  const members = groups.find(({ wanted }) => wanted.includes(own))?.wanted ?? [];
  for (const key of members.slice(0, PAIRS_MAX)) {
    const choice = chosen.get(key);
    if (key === own || choice === undefined || choice.release === null) continue;
    const pair = { options: new Map(fixed).set(key, [choice]), wanted: [own, key] };
    if (resolve(pair, TUF_EXPLAIN_CHECKS_MAX / PAIRS_MAX).kind !== 'impossible') continue;
    return `${nameOf(newest)} cannot be had together with ${nameOf(choice.release)}: what they require excludes each other`;
  }
  return null;
}
