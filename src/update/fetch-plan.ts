// Brings every artifact of a plan into the store: pinned, downloaded once, looked into by its vendor.
import { createHash } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { classifyError, describeError } from '../base/errors.ts';
import { PROGRESS_INTERVAL_MS } from '../base/limits.ts';
import type { BlobTerms } from '../model/license-check.ts';
import { type Plan, type PlanItem, planSizeBytes } from '../model/plan.ts';
import type { Trouble } from '../model/quarantine.ts';
import type { BlobStore } from '../store/blob-store.ts';
import { VendorError } from '../vendor/errors.ts';
import type { Vendor } from '../vendor/vendor.ts';

export type FetchRequest = {
  readonly plan: Plan;
  /** Who needs the blobs; they stay until this owner is unpinned. */
  readonly owner: string;
  readonly store: BlobStore;
  readonly vendors: readonly Vendor[];
  readonly clock: Clock;
  /** Looks into artifacts that are under way or done, by digest: one look serves every VM of the host. */
  readonly inspections: Inspections;
  /** Absent: this host has no licenses. */
  readonly terms?: BlobTerms;
  readonly signal: AbortSignal;
  readonly onProgress: (doneBytes: number, totalBytes: number) => void;
};

export type Inspections = Map<string, Promise<void>>;

/** Null when all is there; otherwise why not, in the vendor's or the host's name. Throws only when aborted. */
export async function fetchPlan(request: FetchRequest): Promise<Trouble | null> {
  const { plan, store, owner } = request;
  store.pin(
    owner,
    plan.items.map((item) => item.release.artifact.digest),
  );
  const report = makeProgress(request);
  const failures = await Promise.all(plan.items.map((item) => fetchItem(item, request, report)));
  return failures.find((failure) => failure !== null) ?? null;
}

type Report = (digest: string, doneBytes: number) => void;

/** Adds up the items' progress and passes it on a few times a second. */
function makeProgress({ plan, clock, onProgress }: FetchRequest): Report {
  const totalBytes = planSizeBytes(plan);
  const done = new Map<string, number>();
  let lastMs = Number.NEGATIVE_INFINITY;
  return (digest, doneBytes) => {
    done.set(digest, doneBytes);
    if (clock.monotonicMs() - lastMs < PROGRESS_INTERVAL_MS) return;
    lastMs = clock.monotonicMs();
    onProgress(
      [...done.values()].reduce((sum, bytes) => sum + bytes, 0),
      totalBytes,
    );
  };
}

async function fetchItem(item: PlanItem, request: FetchRequest, report: Report): Promise<Trouble | null> {
  const { store, signal, terms } = request;
  const { artifact, vendor: name, license } = item.release;
  const vendor = request.vendors.find((each) => each.name === name);
  if (vendor === undefined)
    return { kind: 'vendor-unavailable', vendor: name, detail: 'it is not configured any more' };
  const { digest, sizeBytes } = artifact;
  /** Where the bytes began that this vendor was asked for now. */
  const asked: number[] = [];
  try {
    if (license !== undefined) terms?.guard(digest, license);
    const { path } = await store.ensure({
      ...{ digest, sizeBytes, signal },
      open: (offsetBytes, openSignal) => {
        asked.push(offsetBytes);
        return vendor.open(artifact, offsetBytes, openSignal, license);
      },
      onProgress: (doneBytes) => report(digest, doneBytes),
    });
    const isShown = asked[0] === 0;
    const mustShow = !isShown && terms?.mustProve(digest, license ?? null) === true;
    if (mustShow) await showAll(item, vendor, signal);
    if (isShown || mustShow) terms?.prove(digest, license ?? null);
    await inspectOnce(item, vendor, path, request.inspections);
    return null;
  } catch (error) {
    if (signal.aborted) throw error;
    const detail = `${item.id}: ${describeError(error)}`;
    if (classifyError(error).blame === 'vendor') return { kind: 'vendor-unavailable', vendor: name, detail };
    return { kind: 'host-failure', step: 'fetch', detail };
  }
}

/** Reads the whole artifact from its vendor once more, and keeps nothing of it: the host has it from another one, under a license. */
async function showAll({ release }: PlanItem, vendor: Vendor, signal: AbortSignal): Promise<void> {
  const { artifact, license } = release;
  const hash = createHash('sha256');
  let sizeBytes = 0;
  for await (const piece of await vendor.open(artifact, 0, signal, license)) {
    signal.throwIfAborted();
    sizeBytes += piece.length;
    if (sizeBytes > artifact.sizeBytes) break;
    hash.update(piece);
  }
  if (sizeBytes === artifact.sizeBytes && hash.digest('hex') === artifact.digest) return;
  throw new VendorError('vendor-ill/digest-mismatch', `${vendor.name} sends other bytes than it names`);
}

async function inspectOnce(item: PlanItem, vendor: Vendor, path: string, inspections: Inspections): Promise<void> {
  const key = `${vendor.name} ${item.release.artifact.digest} ${JSON.stringify(item.release.install)}`;
  const known = inspections.get(key);
  if (known !== undefined) return await known;
  const look = vendor.inspect(item.release, path);
  inspections.set(key, look);
  try {
    await look;
  } catch (error) {
    inspections.delete(key); // A failure of this host (no memory, no xz) must not stick to the artifact.
    throw error;
  }
}
