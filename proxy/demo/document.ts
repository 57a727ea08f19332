// The one JSON document with which a demonstration ends (contracts.md).
import type { AnyImage } from '../../images/images.ts';
import type { EvidenceFacts } from '../../src/model/evidence.ts';
import type { VmId } from '../../src/model/ids.ts';
import { matchesProduct } from '../../src/model/policy.ts';
import type { AuditEntry, Service, VmEventRecord, Why } from '../service.ts';
import type { Probe } from './configuration.ts';
import type { FollowedRun } from './follow-run.ts';
import type { Scenario } from './scenarios.ts';
import type { Served } from './served.ts';

export type DemoDocument = {
  readonly vm: string;
  readonly guest: string;
  readonly scenario: string;
  readonly state: string;
  /** Versions of the products the plan was about, and of every product with a vendor, as last confirmed. */
  readonly installed: Readonly<Record<string, string>>;
  readonly latest: Readonly<Record<string, string>>;
  /** Frames from the guest that the kernel saw arrive at a peer on the bridge before the decision to plug in; all, if there was none. */
  readonly framesBeforePlug: number;
  /** The same guest with the gate overridden. */
  readonly framesControl: number;
  /** Milliseconds after power-on; null if it never came to it. */
  readonly gate: { readonly linkUpAtMs: number | null; readonly confirmedAtMs: number | null };
  /** Milliseconds after power-on at which each state was first reached; negative where that was before. */
  readonly timelineMs: Readonly<Record<string, number>>;
  /** The audit record that opened the gate; null if it stayed closed. */
  readonly evidence: unknown;
  readonly why: Pick<Why, 'reason' | 'next'>;
  /** Versions of those products as the guest's own page lists them over the network after the plug; null where it was not asked. */
  readonly served: Readonly<Record<string, string>> | null;
  /** The kernel that the boot loader started first, and the one that the guest's page tells in the end; null for other guests. */
  readonly kernel: { readonly before: string; readonly after: string | null } | null;
  /** The configured address, asked from the bridge all along; null where nothing is configured. */
  readonly configured: {
    readonly address: string;
    /** Questions before the decision to plug in, and how many of them were answered. */
    readonly probesBeforePlug: number;
    readonly answersBeforePlug: number;
    /** The positive control: the same question afterwards. */
    readonly answersAfterPlug: number;
    /** The items that the evidence names, with their versions. */
    readonly items: readonly string[];
  } | null;
  /** Milliseconds after power-on at which the guest's application started, by the guest's clock; null where its page does not tell. */
  readonly applicationStartedMs: number | null;
  /** What has to be known about this run: an archive with few updates on this day. */
  readonly remarks: readonly string[];
  readonly daemonKilled: boolean;
};

export type DocumentInput = {
  readonly vm: VmId;
  readonly guest: string;
  readonly scenario: string;
  readonly plan: Scenario;
  readonly image: AnyImage;
  readonly run: FollowedRun;
  readonly service: Service;
  readonly frames: readonly { readonly atMs: number }[];
  readonly served: Served | null;
  readonly probed: { readonly address: string; readonly probes: readonly Probe[] } | null;
  readonly remarks: readonly string[];
};

/** Puts the document together while the VM still runs; the positive control comes after it. From the run's events, the audit chain and the frames at the peer. */
export async function writeDocument(input: DocumentInput): Promise<DemoDocument> {
  const { vm, service, run, image, served } = input;
  const entries = await service.auditEntries({ vm, afterSeq: 0, limit: 1000 });
  const opened = entries.find((entry) => entry.record.kind === 'gate-opened' || entry.record.kind === 'override');
  const products = await productVersions(input, opened);
  const why = await service.whyVm(vm);
  const since = (atMs: number | undefined) => (atMs === undefined ? null : atMs - run.startedAtMs);
  return {
    vm,
    guest: input.guest,
    scenario: input.scenario,
    state: run.state,
    ...products,
    framesBeforePlug: input.frames.filter((frame) => opened === undefined || frame.atMs < opened.atMs).length,
    framesControl: 0,
    gate: {
      linkUpAtMs: since(run.events.find((event) => event.kind === 'state' && event.state === 'connected')?.atMs),
      confirmedAtMs: since(run.events.find((event) => event.kind === 'state' && event.state === 'opening')?.atMs),
    },
    timelineMs: timeline(run.events, run.startedAtMs),
    evidence: evidenceOf(opened),
    why: { reason: why.reason, next: why.next },
    served: served === null ? null : pick(served.versions, Object.keys(products.installed)),
    kernel: image.kernel === null ? { before: image.kernelRelease, after: served?.kernel ?? null } : null,
    configured: configuredOf(input, opened),
    applicationStartedMs: since(served?.startedAtMs ?? undefined),
    remarks: input.remarks,
    daemonKilled: run.wasKilled,
  };
}

/** How long a question waits for its answer (the demonstration's network asks for two seconds, twice), with some room. */
const ANSWER_MS = 5_000;

function configuredOf({ probed }: DocumentInput, opened: AuditEntry | undefined): DemoDocument['configured'] {
  if (probed === null) return null;
  const { address, probes } = probed;
  const answers = (some: readonly Probe[]) => some.filter(({ isAnswered }) => isAnswered).length;
  // Whoever asked just before the decision may have been answered after it.
  const before = probes.filter(({ atMs }) => opened === undefined || atMs + ANSWER_MS < opened.atMs);
  return {
    address,
    probesBeforePlug: before.length,
    answersBeforePlug: answers(before),
    answersAfterPlug: answers(probes) - answers(before),
    items: (evidenceFacts(opened)?.config ?? []).map(({ item, version }) => `${item} ${version}`),
  };
}

function pick(
  versions: Readonly<Record<string, string>>,
  products: readonly string[],
): Readonly<Record<string, string>> {
  return Object.fromEntries(Object.entries(versions).filter(([product]) => products.includes(product)));
}

function timeline(events: readonly VmEventRecord[], startedAtMs: number): Readonly<Record<string, number>> {
  const reached = new Map<string, number>();
  for (const event of events) {
    if (event.kind === 'state' && !reached.has(event.state)) reached.set(event.state, event.atMs - startedAtMs);
  }
  return Object.fromEntries(reached);
}

function evidenceOf(opened: AuditEntry | undefined): unknown {
  if (opened === undefined) return null;
  return { seq: opened.seq, hash: opened.hash, ...opened.record };
}

/** Installed versions as last confirmed or reported, and the vendor's latest: of what the run was about, what is behind, and what a TUF vendor offers. */
async function productVersions(
  { service, vm, plan }: DocumentInput,
  opened: AuditEntry | undefined,
): Promise<Pick<DemoDocument, 'installed' | 'latest'>> {
  const { products } = await service.showVm(vm);
  const newest = new Map<string, string>();
  for (const { vendor, kind } of await service.listVendors()) {
    if (kind !== 'tuf') continue; // A Debian archive offers 60,000 packages.
    for (const release of await service.vendorOffers(vendor)) newest.set(release.product, release.version);
  }
  for (const { item, version } of evidenceItems(opened)) newest.set(productOfItem(item), version);
  for (const row of await service.drift()) {
    if (row.vm === vm && isAskedFor(plan, row.product)) newest.set(row.product, row.latest);
  }
  const concerned = products.filter(({ product }) => newest.has(product));
  return {
    installed: Object.fromEntries(concerned.map(({ product, version }) => [product, version])),
    latest: Object.fromEntries(concerned.map(({ product }) => [product, newest.get(product) ?? ''])),
  };
}

/** Where the policy lists products, the others stay behind by the operator's own word. */
function isAskedFor({ policy }: Scenario, product: string): boolean {
  return policy.install !== 'listed' || matchesProduct(policy.packages ?? [], product);
}

function evidenceItems(opened: AuditEntry | undefined): EvidenceFacts['items'] {
  return evidenceFacts(opened)?.items ?? [];
}

function evidenceFacts(opened: AuditEntry | undefined): EvidenceFacts | null {
  // The cast holds: the audit chain's gate-opened records carry the facts as they are.
  return opened?.record.kind === 'gate-opened' ? (opened.record.evidence as EvidenceFacts) : null;
}

/** `debian/jq:amd64` is about `jq`. */
function productOfItem(item: string): string {
  return item.replace(/^[a-z]+\//, '').replace(/:[a-z0-9]+$/, '');
}
