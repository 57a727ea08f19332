// The rooms that are simulated whole: the vendor's server, the store, and the drives. Each keeps on its disk what it keeps there.
import type { Clock } from '../../src/base/clock.ts';
import { type Digest, digestOf } from '../../src/base/digest.ts';
import { damagedBlob, missingBlob } from '../../src/drive/blob-files.ts';
import { makeContents } from '../../src/drive/contents.ts';
import type { VmId } from '../../src/model/ids.ts';
import type { Plan } from '../../src/model/plan.ts';
import type { Release } from '../../src/model/release.ts';
import { type BlobStore, type EnsureRequest, StoreError } from '../../src/store/blob-store.ts';
import type { VmRunDeps } from '../../src/update/vm-run-deps.ts';
import { VendorError } from '../../src/vendor/errors.ts';
import { compareSemver } from '../../src/vendor/tuf/choose.ts';
import type { Vendor } from '../../src/vendor/vendor.ts';
import type { Touch } from './machine.ts';
import type { Random } from './random.ts';

/** Bytes in the store: one file, wherever it is linked. */
export type Blob = {
  /** They are what the digest says. */
  isSound: boolean;
  /** They were, when they were stored. */
  readonly isVerified: boolean;
  readonly isFinished: boolean;
};

/** A drive as it lies on the disk; whoever has it attached keeps it. */
export type BuiltImage = {
  readonly vm: VmId;
  readonly path: string;
  readonly manifestDigest: Digest;
  readonly plan: Plan;
  readonly digests: readonly Digest[];
  readonly blobs: readonly Blob[];
};

/** What the vendor's server has, and how it is. */
export type VendorServer = {
  /** The newest version of each product. */
  readonly newest: Map<string, number>;
  /** Every artifact that it ever signed. */
  readonly signed: Set<Digest>;
  /** Products that are under a license. */
  readonly licensed: Map<string, string>;
  isDown: boolean;
  isSlow: boolean;
  /** Its signatures are out of date. */
  isStale: boolean;
  givesWrongBytes: boolean;
  /** Old artifacts are taken away as soon as there is a newer one. */
  withdraws: boolean;
};

/** What the host knows of the vendor, on its disk. */
export type VendorKnowledge = { checkedAtMs: number | null; newest: ReadonlyMap<string, number>; isStale: boolean };

/** What the daemon's rooms keep on the host's disk. */
export type HostFiles = {
  readonly vendor: VendorKnowledge;
  readonly blobs: Map<Digest, Blob>;
  readonly pins: Map<string, readonly Digest[]>;
  readonly drives: Map<string, BuiltImage>;
  /** Downloads that went well, and blobs that were lost again, by digest. */
  readonly downloads: Map<Digest, number>;
  readonly losses: Map<Digest, number>;
};

export const DISK_FULL = 'the disk is full';
/** The product that nobody has until one turns up. */
const LATE = 'late';

export function makeRelease(product: string, version: number): Release {
  const text = `${version}.0.0`;
  return {
    vendor: 'v',
    ecosystem: 'bundle',
    product,
    version: text,
    kind: 'security',
    requires: [],
    advisories: [],
    artifact: { name: product, digest: digestOf(`${product} ${text}`), sizeBytes: 1, location: product },
    install: { action: 'bundle', prefix: '/opt/x', compression: 'none' },
  };
}

export function makeServer(products: readonly string[]): VendorServer {
  const server: VendorServer = {
    newest: new Map([[LATE, 9]]),
    signed: new Set(),
    licensed: new Map(),
    isDown: false,
    isSlow: false,
    isStale: false,
    givesWrongBytes: false,
    withdraws: false,
  };
  publish(server, LATE, 9);
  for (const product of products) publish(server, product, 1);
  return server;
}

export function publish(server: VendorServer, product: string, version: number): void {
  server.newest.set(product, version);
  server.signed.add(makeRelease(product, version).artifact.digest);
}

export type RoomsParts = {
  readonly server: VendorServer;
  readonly files: HostFiles;
  readonly clock: Clock;
  readonly random: Random;
  readonly touch: Touch;
  readonly touchOf: (vm: VmId) => Touch;
  readonly isFull: (what: 'store' | 'drive') => boolean;
  readonly complain: (broken: string) => void;
  readonly mutation: string | null;
  /** A drive with this plan is made for the VM. */
  readonly onOffered: (vm: VmId, plan: Plan) => void;
};

export function makeVendor({ server, files, clock, random, touch }: RoomsParts): Vendor {
  const { vendor } = files;
  const status = () => ({
    vendor: 'v',
    checkedAtMs: vendor.checkedAtMs,
    isFresh: vendor.checkedAtMs !== null && !vendor.isStale,
    trouble: null,
  });
  const releases = () =>
    [...vendor.newest].map(([product, version]) => {
      const license = server.licensed.get(product);
      return { ...makeRelease(product, version), ...(license === undefined ? {} : { license }) };
    });
  return {
    name: 'v',
    kind: 'tuf',
    ecosystem: 'bundle',
    status,
    refresh: async ({ signal }) => {
      if (server.isSlow) await clock.sleep(random.between(1_000, 120_000), signal);
      return await touch('ask the vendor', () => {
        if (server.isDown) throw new VendorError('vendor-ill/http', 'the server does not answer');
        Object.assign(vendor, {
          checkedAtMs: clock.nowMs(),
          newest: new Map(server.newest),
          isStale: server.isStale,
        });
        return status();
      });
    },
    latest: async ({ products }) => ({
      releases: releases().filter((one) => products.some(({ product }) => product === one.product)),
      leftOut: [],
    }),
    offers: async () => releases(),
    compareVersions: compareSemver,
    open: () => Promise.reject(new Error('the simulated store does not ask')),
    inspect: async () => {},
    close: async () => {},
  };
}

/** Whether the server still has an artifact. */
function isOnServer(server: VendorServer, digest: Digest): boolean {
  if (!server.withdraws) return true;
  return [...server.newest].some(([product, version]) => makeRelease(product, version).artifact.digest === digest);
}

export function makeStore(parts: RoomsParts): BlobStore {
  const { files, clock, random, touch, server, mutation } = parts;
  const { blobs, pins } = files;
  const jobs = new Map<Digest, Promise<void>>();
  const lose = (digest: Digest): void => {
    blobs.delete(digest);
    files.losses.set(digest, (files.losses.get(digest) ?? 0) + 1);
  };
  const download = async (digest: Digest): Promise<void> => {
    if (mutation === 'unfinished-bytes') blobs.set(digest, { isSound: true, isVerified: false, isFinished: false });
    await clock.sleep(server.isSlow ? random.between(1_000, 600_000) : random.between(1, 60_000));
    if (server.isDown) throw new VendorError('vendor-ill/http', 'the server does not answer');
    if (!isOnServer(server, digest)) throw new VendorError('vendor-ill/http-404', 'it is not there any more');
    const isWrong = server.givesWrongBytes;
    if (isWrong && mutation !== 'wrong-bytes') throw new StoreError('vendor-ill/digest-mismatch', 'other bytes came');
    await touch('store what was fetched', () => {
      if (parts.isFull('store')) throw new StoreError('host-fault/disk-full', DISK_FULL);
      blobs.set(digest, { isSound: !isWrong, isVerified: !isWrong, isFinished: true });
      files.downloads.set(digest, (files.downloads.get(digest) ?? 0) + 1);
    });
  };
  const store: Pick<BlobStore, 'has' | 'path' | 'ensure' | 'pin' | 'unpin' | 'verify' | 'collect' | 'scrub'> = {
    has: (digest) => blobs.has(digest),
    path: () => '/simulated',
    ensure: async (request) => {
      const { digest } = request;
      if (blobs.has(digest)) return { path: '/simulated', wasPresent: true };
      const job = jobs.get(digest) ?? download(digest).finally(() => jobs.delete(digest));
      // All who wait may have left before it fails, as with the real store.
      job.catch(() => {});
      jobs.set(digest, job);
      await orAborted(job, request);
      return { path: '/simulated', wasPresent: false };
    },
    pin: (owner, digests) => pins.set(owner, [...(pins.get(owner) ?? []), ...digests]),
    unpin: (owner) => {
      if (mutation !== 'leaks-pins') pins.delete(owner);
    },
    verify: (digest) =>
      touch('read a blob again', () => {
        const isSound = blobs.get(digest)?.isSound === true;
        if (!isSound) lose(digest);
        return isSound;
      }),
    collect: async () => {
      const needed = new Set([...pins.values()].flat());
      const removed = [...blobs.keys()].filter((digest) => !needed.has(digest));
      for (const digest of removed) lose(digest);
      return { removed, freedBytes: removed.length, totalBytes: blobs.size, isOverBudget: false };
    },
    scrub: async () => {
      for (const [digest, blob] of [...blobs]) if (!blob.isSound) lose(digest);
      return { examined: blobs.size, bytes: 0, rotten: [], missing: [] } as never;
    },
  };
  // The cast holds: runs, the planner and the maintenance use no more of it.
  return store as BlobStore;
}

async function orAborted(job: Promise<void>, { signal }: EnsureRequest): Promise<void> {
  if (signal === undefined) return await job;
  signal.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const onAbort = () => aborted.reject(signal.reason);
  signal.addEventListener('abort', onAbort, { once: true });
  job.catch(() => {}); // The request is answered; the download goes on for the others.
  try {
    await Promise.race([job, aborted.promise]);
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

export function makeDrives(parts: RoomsParts): VmRunDeps['drives'] {
  const { files, complain, mutation } = parts;
  return {
    build: (options) =>
      parts.touchOf(options.vm)('build the drive', () => {
        if (parts.isFull('drive')) throw new StoreError('host-fault/disk-full', DISK_FULL);
        const { manifest, manifestDigest } = makeContents(options);
        const digests = options.plan.items.map((item) => item.release.artifact.digest);
        const blobs = digests.map((digest) => {
          const blob = files.blobs.get(digest);
          if (blob === undefined) throw missingBlob(digest);
          if (!blob.isSound && parts.random.chance(0.5)) throw damagedBlob(digest);
          return blob;
        });
        parts.onOffered(options.vm, options.plan);
        const others = [...files.drives.values()].filter((each) => each.vm !== options.vm);
        const image = { vm: options.vm, path: options.folder, manifestDigest, plan: options.plan, digests, blobs };
        const shown = mutation === 'mixes-drives' ? (others[0] ?? image) : image;
        files.drives.set(options.folder, shown);
        if (digests.some((digest) => !parts.server.signed.has(digest))) complain('a drive carries what nobody signed');
        if (blobs.some((blob) => !blob.isFinished)) complain('a drive carries bytes of an unfinished download');
        else if (blobs.some((blob) => !blob.isVerified)) complain('a drive carries bytes that were never verified');
        return {
          manifest,
          manifestDigest,
          label: 'PRATIQUE',
          sizeBytes: 1,
          image: { path: options.folder, format: 'vmdk' },
        };
      }),
    remove: (folder, except = null) =>
      parts.touch(
        'remove drives',
        () => {
          if (mutation === 'leaks-drives') return;
          for (const path of [...files.drives.keys()])
            if (path.startsWith(`${folder}/`) && path !== `${folder}/${except}`) files.drives.delete(path);
        },
        { mayFail: false },
      ),
  };
}
