// The vendor behind a TUF repository of bundles: verified metadata become offers, mirrors serve them, our guards read the bundles.
import { stat } from 'node:fs/promises';
import { type Clock, isoTime, trustedNowMs } from '../../base/clock.ts';
import { describeError, PratiqueError } from '../../base/errors.ts';
import type { HttpFetch } from '../../base/http-fetch.ts';
import { TUF_MIRRORS_MAX } from '../../base/limits.ts';
import type { Log } from '../../base/log.ts';
import { printable } from '../../base/printable.ts';
import type { Release } from '../../model/release.ts';
import { readArchive } from '../archive.ts';
import { VendorError } from '../errors.ts';
import type { Vendor, VendorStatus } from '../vendor.ts';
import { chooseReleases, newestOfAll } from './choose.ts';
import { makeMirrors, type TufMirror } from './mirrors.ts';
import { type Offer, readOffer } from './offer.ts';
import { compareSemver } from './order.ts';
import { loadTrust, type Trust } from './trust.ts';
import type { VerifiedMetadata } from './trust-state.ts';
import { leaveOutUnread, nameUnread, type Unread } from './unread.ts';

export type TufVendorDeps = {
  readonly name: string;
  /** Folder of `timestamp.json` and the versioned metadata: http, https or file. */
  readonly metadataUrl: string;
  /** Folder of the targets. */
  readonly targetsUrl: string;
  /** Other places of the same repository, for when the first is away or ill. */
  readonly mirrors?: readonly TufMirror[];
  /** The root.json the operator trusts. */
  readonly rootPath: string;
  /** Where this vendor's trust is kept; made when absent. */
  readonly folder: string;
  readonly http: HttpFetch;
  readonly clock: Clock;
  /** Metadata verified longer ago are not fresh, whatever their own expiry. */
  readonly metadataAgeMaxMs: number;
  readonly log: Log;
};

/** Opens a TUF vendor from what is on disk, without network. Throws VendorError `usage/tuf-root` or `host-fault/tuf-state`. */
export async function makeTufVendor(deps: TufVendorDeps): Promise<Vendor> {
  const places = [{ metadataUrl: deps.metadataUrl, targetsUrl: deps.targetsUrl }, ...(deps.mirrors ?? [])];
  if (places.length > TUF_MIRRORS_MAX) {
    throw new VendorError('usage/mirrors', `${deps.name} has more than ${TUF_MIRRORS_MAX} mirrors`);
  }
  const trust = await loadTrust({ ...deps, metadataUrls: places.map(({ metadataUrl }) => metadataUrl) });
  const mirrors = makeMirrors({
    vendor: deps.name,
    targetsUrls: places.map(({ targetsUrl }) => targetsUrl),
    http: deps.http,
  });
  const closing = new AbortController();
  let { offers, unread } = readOffers(deps, trust.verified());
  let trouble: VendorStatus['trouble'] = null;
  let running: Promise<void> | null = null;

  const status = (): VendorStatus => statusOf(deps, trust, trouble);
  const refreshOnce = async () => {
    try {
      ({ offers, unread } = readOffers(deps, await trust.refresh(closing.signal)));
      trouble = null;
    } catch (error) {
      if (closing.signal.aborted) throw error;
      const code = error instanceof PratiqueError ? error.code : 'internal/bug';
      trouble = { code, message: printable(describeError(error), 600) };
      throw error;
    }
  };
  return {
    name: deps.name,
    kind: 'tuf',
    ecosystem: 'bundle',
    refresh: async ({ signal }) => {
      // One round at a time, shared by all who ask meanwhile; one of them giving up does not end it for the others.
      running ??= refreshOnce().finally(() => {
        running = null;
      });
      await abortable(running, signal);
      return status();
    },
    status,
    latest: async (inventory) => {
      const { releases, leftOut } = chooseReleases(offers, inventory);
      return { releases, leftOut: [...leftOut, ...leaveOutUnread(deps.name, unread, { inventory, releases })] };
    },
    offers: async () => newestOfAll(offers),
    compareVersions: compareSemver,
    open: mirrors.open,
    inspect: inspectRelease,
    close: async () => {
      closing.abort(new VendorError('host-fault/closing', `vendor ${deps.name} is being closed`));
      await running?.catch(() => {});
    },
  };
}

function statusOf(deps: TufVendorDeps, trust: Trust, trouble: VendorStatus['trouble']): VendorStatus {
  const verified = trust.verified();
  const nowMs = trustedNowMs(deps.clock);
  const staleness = stalenessOf(verified, nowMs, deps.metadataAgeMaxMs);
  return {
    vendor: deps.name,
    checkedAtMs: verified?.checkedAtMs ?? null,
    isFresh: staleness === null,
    // Why it is not fresh, also when nobody asked since the start: what failed last says it better, if something did.
    trouble: trouble ?? staleness,
  };
}

function stalenessOf(verified: VerifiedMetadata | null, nowMs: number, ageMaxMs: number): VendorStatus['trouble'] {
  if (verified === null) return { code: 'vendor-ill/never-checked', message: 'its metadata were never verified' };
  const { checkedAtMs, expiresAtMs, firstToExpire } = verified;
  const since = `verified last at ${isoTime(checkedAtMs)}`;
  if (nowMs >= expiresAtMs) {
    const message = `${since}; its ${printable(firstToExpire)} metadata expired at ${isoTime(expiresAtMs)}`;
    return { code: 'vendor-ill/tuf-expired', message };
  }
  if (nowMs - checkedAtMs <= ageMaxMs) return null;
  const hours = Math.round(ageMaxMs / 360_000) / 10;
  return { code: 'vendor-ill/stale', message: `${since}; more than ${hours} hours ago` };
}

type Read = { readonly offers: readonly Offer[]; readonly unread: readonly Unread[] };

/** Every target that can be understood; the others are left out, loudly, and break nothing else. */
function readOffers(deps: TufVendorDeps, verified: VerifiedMetadata | null): Read {
  if (verified === null) return { offers: [], unread: [] };
  const offers: Offer[] = [];
  const unread: Unread[] = [];
  for (const { role, target } of verified.targets) {
    try {
      offers.push(readOffer(deps.name, target, { isConsistent: verified.isConsistentSnapshot, role }));
    } catch (error) {
      const problem = describeError(error);
      deps.log.warn({ vendor: deps.name, problem }, 'a target is left out');
      const named = nameUnread(target, role, problem);
      if (named !== null) unread.push(named);
    }
  }
  return { offers, unread };
}

async function abortable<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return await work;
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const giveUp = () => aborted.reject(signal.reason);
  signal.addEventListener('abort', giveUp, { once: true });
  try {
    return await Promise.race([work, aborted.promise]);
  } finally {
    signal.removeEventListener('abort', giveUp);
    // Nobody else may be waiting for the shared round when this caller has left.
    work.catch(() => {});
  }
}

async function inspectRelease(release: Release, path: string): Promise<void> {
  const { install } = release;
  switch (install.action) {
    case 'bundle': {
      const entries = [install.install, install.check].filter((entry) => entry !== undefined);
      await readArchive(path, { compression: install.compression, executables: entries });
      return;
    }
    case 'agent': {
      const { size } = await stat(path);
      if (size === 0) throw new VendorError('vendor-ill/bundle-damaged', `the agent ${release.version} is empty`);
      return;
    }
    case 'debian-package':
      throw new VendorError('usage/release', `${release.product} is no bundle of a TUF vendor`);
    default:
      install satisfies never;
  }
}
