// The vendor behind a TUF repository of bundles: tuf-js verifies the metadata, our fetch brings them, our guards read the bundles.
import { stat } from 'node:fs/promises';
import type { Clock } from '../../base/clock.ts';
import { describeError, PratiqueError } from '../../base/errors.ts';
import { bytesFrom, type HttpFetch } from '../../base/http-fetch.ts';
import type { Log } from '../../base/log.ts';
import { printable } from '../../base/printable.ts';
import type { Artifact, Release } from '../../model/release.ts';
import { readArchive } from '../archive.ts';
import { VendorError } from '../errors.ts';
import type { ByteStream, Vendor, VendorStatus } from '../vendor.ts';
import { chooseReleases, newestOfAll } from './choose.ts';
import { type Offer, readOffer } from './offer.ts';
import { compareSemver } from './order.ts';
import { loadTrust, type Trust, type VerifiedMetadata } from './trust.ts';

export type TufVendorDeps = {
  readonly name: string;
  /** Folder of `timestamp.json` and the versioned metadata: http, https or file. */
  readonly metadataUrl: string;
  /** Folder of the targets. */
  readonly targetsUrl: string;
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
  const trust = await loadTrust(deps);
  const closing = new AbortController();
  let offers = readOffers(deps, trust.verified());
  let trouble: VendorStatus['trouble'] = null;
  let running: Promise<void> | null = null;

  const status = (): VendorStatus => statusOf(deps, trust, trouble);
  const refreshOnce = async () => {
    try {
      offers = readOffers(deps, await trust.refresh(closing.signal));
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
    latest: async (inventory) => chooseReleases(offers, inventory),
    offers: async () => newestOfAll(offers),
    compareVersions: compareSemver,
    open: async (artifact, offsetBytes, signal) => await openArtifact(deps, artifact, offsetBytes, signal),
    inspect: inspectRelease,
    close: async () => {
      closing.abort(new VendorError('host-fault/closing', `vendor ${deps.name} is being closed`));
      await running?.catch(() => {});
    },
  };
}

function statusOf(deps: TufVendorDeps, trust: Trust, trouble: VendorStatus['trouble']): VendorStatus {
  const verified = trust.verified();
  if (verified === null) return { vendor: deps.name, checkedAtMs: null, isFresh: false, trouble };
  const { checkedAtMs, expiresAtMs } = verified;
  const nowMs = deps.clock.nowMs();
  const isFresh = nowMs < expiresAtMs && nowMs - checkedAtMs <= deps.metadataAgeMaxMs;
  return { vendor: deps.name, checkedAtMs, isFresh, trouble };
}

/** Every target that can be understood; the others are left out, loudly, and break nothing else. */
function readOffers(deps: TufVendorDeps, verified: VerifiedMetadata | null): readonly Offer[] {
  if (verified === null) return [];
  const offers: Offer[] = [];
  for (const target of Object.values(verified.targets.targets)) {
    try {
      offers.push(readOffer(deps.name, target, verified.isConsistentSnapshot));
    } catch (error) {
      deps.log.warn({ vendor: deps.name, problem: describeError(error) }, 'a target is left out');
    }
  }
  return offers;
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

async function openArtifact(
  deps: TufVendorDeps,
  artifact: Artifact,
  offsetBytes: number,
  signal: AbortSignal | undefined,
): Promise<ByteStream> {
  const base = deps.targetsUrl.endsWith('/') ? deps.targetsUrl : `${deps.targetsUrl}/`;
  const parts = artifact.location.split('/');
  // A release may come back from a database: a location that climbs out of the repository is refused here again.
  if (parts.some((part) => ['', '.', '..'].includes(part))) {
    throw new VendorError('usage/location', `"${printable(artifact.location)}" is not a place in ${deps.name}`);
  }
  const url = new URL(parts.map(encodeURIComponent).join('/'), base).href;
  const download = await deps.http.open(url, {
    offsetBytes,
    sizeBytesMax: artifact.sizeBytes,
    ...(signal === undefined ? {} : { signal }),
  });
  return bytesFrom(download, offsetBytes);
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
