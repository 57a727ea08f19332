// Keeps every downloaded artifact once per host, by its sha256; nothing unfinished or unverified is ever reachable in it.
//
//   ensure ─► partial/<digest> ─► bounded, hashed, fsync ─► rename ─► blobs/ab/<digest> (read-only) ─► catalog
//                                                                        │ rotten: scrub, verify
//                                                                        ▼
//                                                             quarantine/<digest>
//
// Blobs may be hard-linked elsewhere (a drive does), so a blob is only ever renamed or unlinked, never written again.
import { statSync } from 'node:fs';
import { chmod, open, readdir, rename, stat, unlink } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { type Digest, digestOfFile, isDigest } from '../base/digest.ts';
import { makeFolderDurably, syncFolder } from '../base/durable-file.ts';
import { DOWNLOADS_AT_ONCE_MAX, PARTIAL_AGE_MAX_MS } from '../base/limits.ts';
import type { Log } from '../base/log.ts';
import { makeSlots, type Slots } from '../base/slots.ts';
import { type Catalog, openCatalog } from './catalog.ts';
import { type Disk, downloadBlob, realDisk, type Source } from './download.ts';
import { diskError, ignoreMissing, StoreError } from './errors.ts';
import { chooseExpendable } from './retention.ts';
import { type BlobHealth, examineBlob, type RottenBlob, type ScrubOptions, type ScrubReport } from './scrub.ts';

export { StoreError };

export type EnsureRequest = {
  readonly digest: Digest;
  readonly sizeBytes: number;
  /** The vendor's bytes from an offset on; unverified, and cut off by the store after `sizeBytes`. */
  readonly open: Source;
  readonly signal?: AbortSignal;
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
};

export type EnsureResult = { readonly path: string; readonly wasPresent: boolean };

export type CollectReport = {
  readonly removed: readonly Digest[];
  readonly freedBytes: number;
  readonly totalBytes: number;
  /** Whether pinned blobs alone exceed the budget. */
  readonly isOverBudget: boolean;
};

export type StoreStats = {
  readonly blobs: number;
  readonly totalBytes: number;
  readonly pinnedBytes: number;
  readonly budgetBytes: number;
  readonly downloading: number;
  readonly waiting: number;
};

export type BlobStore = {
  readonly has: (digest: Digest) => boolean;
  /** Where a blob lies. Throws StoreError `not-found/blob`. */
  readonly path: (digest: Digest) => string;
  /**
   * Returns the blob, downloading it when it is absent; everybody who asks for one blob shares one download. Pin it
   * first: an unpinned blob may be collected as soon as it is there. An abort takes back only this request.
   * Throws `vendor-ill/…`, `host-fault/…` or the signal's reason.
   */
  readonly ensure: (request: EnsureRequest) => Promise<EnsureResult>;
  /** Adds blobs, present or not, to those that the owner (a run, a drive) needs. Durable. */
  readonly pin: (owner: string, digests: readonly Digest[]) => void;
  /** Forgets everything that the owner needed. */
  readonly unpin: (owner: string) => void;
  /** Removes the least recently used unpinned blobs until the store fits its budget, and forgotten partial downloads. */
  readonly collect: () => Promise<CollectReport>;
  /** Hashes every blob again; rotten ones go to quarantine and count as absent. */
  readonly scrub: (options?: ScrubOptions) => Promise<ScrubReport>;
  /** Hashes one blob again; false when it was rotten (and is now in quarantine). Throws `not-found/blob`. */
  readonly verify: (digest: Digest, signal?: AbortSignal) => Promise<boolean>;
  readonly stats: () => StoreStats;
  /** Stops the downloads (their parts stay for later) and lets go of the folder. */
  readonly close: () => Promise<void>;
};

export type BlobStoreOptions = {
  readonly folder: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly budgetBytes: number;
  readonly disk?: Disk;
};

/** One running download and those who wait for it. */
type Job = {
  readonly sizeBytes: number;
  readonly finished: Promise<void>;
  readonly watchers: Set<(doneBytes: number) => void>;
  readonly cancel: AbortController;
};

type Store = {
  readonly options: BlobStoreOptions;
  readonly disk: Disk;
  readonly catalog: Catalog;
  readonly slots: Slots;
  readonly jobs: Map<Digest, Job>;
};

const blobPath = (folder: string, digest: Digest): string => join(folder, 'blobs', digest.slice(0, 2), digest);
const partialPath = (folder: string, digest: Digest): string => join(folder, 'partial', digest);
const quarantinePath = (folder: string, digest: Digest): string => join(folder, 'quarantine', digest);

/** Whether the file is there with the size the catalog says: cheap, and finds what was removed behind our back. */
function isOnDisk(path: string, sizeBytes: number): boolean {
  const found = statSync(path, { throwIfNoEntry: false });
  return found?.isFile() === true && found.size === sizeBytes;
}

function isPresent(store: Store, digest: Digest): boolean {
  const blob = store.catalog.find(digest);
  return blob !== undefined && isOnDisk(blobPath(store.options.folder, digest), blob.sizeBytes);
}

function requirePresent(store: Store, digest: Digest): string {
  if (isPresent(store, digest)) return blobPath(store.options.folder, digest);
  throw new StoreError('not-found/blob', `blob ${digest} is not in the store`, { next: 'stage it again' });
}

function sizeConflict(digest: Digest, knownBytes: number, claimedBytes: number): StoreError {
  return new StoreError(
    'vendor-ill/size-mismatch',
    `blob ${digest} has ${knownBytes} bytes, the vendor's metadata says ${claimedBytes}`,
    { next: 'check the vendor: two of its entries contradict each other' },
  );
}

function startJob(store: Store, request: EnsureRequest): Job {
  const { digest, sizeBytes } = request;
  const { clock, log, folder } = store.options;
  const cancel = new AbortController();
  const watchers: Job['watchers'] = new Set();
  const download = {
    digest,
    sizeBytes,
    open: request.open,
    partialPath: partialPath(folder, digest),
    blobPath: blobPath(folder, digest),
    signal: cancel.signal,
    onProgress: (doneBytes: number) => {
      for (const watcher of watchers) watcher(doneBytes);
    },
  };
  const tools = { disk: store.disk, clock, log, withSlot: store.slots.withSlot };
  const finished = downloadBlob(download, tools)
    .then(() => store.catalog.add(digest, sizeBytes, clock.nowMs()))
    .finally(() => store.jobs.delete(digest));
  // Every waiter sees the failure; without this line the one that nobody waits for any more would end the process.
  finished.catch(() => {});
  const job: Job = { sizeBytes, finished, watchers, cancel };
  store.jobs.set(digest, job);
  return job;
}

/** Waits for a shared download; the last waiter who leaves stops it. */
async function waitForJob(job: Job, request: EnsureRequest): Promise<void> {
  const watcher = (doneBytes: number): void => request.onProgress?.(doneBytes, request.sizeBytes);
  job.watchers.add(watcher);
  let leave = (): void => {};
  const left = new Promise<never>((_resolve, reject) => {
    leave = () => reject(request.signal?.reason);
    request.signal?.addEventListener('abort', leave, { once: true });
  });
  try {
    await Promise.race([job.finished, left]);
  } finally {
    request.signal?.removeEventListener('abort', leave);
    job.watchers.delete(watcher);
    if (job.watchers.size === 0) job.cancel.abort(request.signal?.reason);
  }
}

/** Best effort: on a full disk a blob that is there must still be served. */
function noteUse(store: Store, digest: Digest): void {
  try {
    store.catalog.touch(digest);
  } catch (error) {
    store.options.log.warn({ digest, err: error }, 'could not note the use of a blob');
  }
}

async function ensure(store: Store, request: EnsureRequest): Promise<EnsureResult> {
  const { digest, sizeBytes } = request;
  for (;;) {
    request.signal?.throwIfAborted();
    const path = blobPath(store.options.folder, digest);
    const known = store.catalog.find(digest);
    if (known !== undefined && isOnDisk(path, known.sizeBytes)) {
      if (known.sizeBytes !== sizeBytes) throw sizeConflict(digest, known.sizeBytes, sizeBytes);
      noteUse(store, digest);
      request.onProgress?.(sizeBytes, sizeBytes);
      return { path, wasPresent: true };
    }
    const running = store.jobs.get(digest);
    if (running?.cancel.signal.aborted === true) {
      // Its last waiter left a moment ago; two writers of one partial file must never overlap.
      await running.finished.catch(() => {});
      continue;
    }
    if (running !== undefined && running.sizeBytes !== sizeBytes)
      throw sizeConflict(digest, running.sizeBytes, sizeBytes);
    await waitForJob(running ?? startJob(store, request), request);
    return { path, wasPresent: false };
  }
}

async function removeBlob(store: Store, digest: Digest): Promise<void> {
  // File first: a crash in between leaves a row without a file, which the next start drops.
  await ignoreMissing(unlink(blobPath(store.options.folder, digest)));
  store.catalog.remove(digest);
}

async function removeForgottenParts(store: Store): Promise<void> {
  const folder = join(store.options.folder, 'partial');
  for (const name of await readdir(folder)) {
    if (isDigest(name) && store.jobs.has(name)) continue;
    const found = await stat(join(folder, name));
    if (store.options.clock.nowMs() - found.mtimeMs > PARTIAL_AGE_MAX_MS)
      await ignoreMissing(unlink(join(folder, name)));
  }
}

async function collect(store: Store): Promise<CollectReport> {
  const { budgetBytes, folder } = store.options;
  const removed: Digest[] = [];
  let freedBytes = 0;
  for (const digest of chooseExpendable(store.catalog.list(), budgetBytes)) {
    const blob = store.catalog.find(digest); // Asked again: a pin may have come while the one before was unlinked.
    if (blob === undefined || blob.isPinned) continue;
    try {
      await removeBlob(store, digest);
    } catch (error) {
      throw diskError(error, `removing blob ${digest}`, folder);
    }
    removed.push(digest);
    freedBytes += blob.sizeBytes;
  }
  await removeForgottenParts(store);
  const totalBytes = store.catalog.list().reduce((sum, blob) => sum + blob.sizeBytes, 0);
  return { removed, freedBytes, totalBytes, isOverBudget: totalBytes > budgetBytes };
}

/** Takes a bad blob out of reach; the file itself is kept for whoever wants to know what happened to it. */
async function quarantine(store: Store, digest: Digest, fault: RottenBlob['fault']): Promise<RottenBlob> {
  const { folder, log } = store.options;
  const owners = store.catalog.ownersOf(digest);
  const target = quarantinePath(folder, digest);
  // Out of the catalog first: whoever examines it at the same time finds it gone, and after a crash it is an orphan that is hashed.
  store.catalog.remove(digest);
  if (fault !== 'missing') {
    await rename(blobPath(folder, digest), target);
    await syncFolder(join(folder, 'quarantine'));
  }
  log.error({ digest, fault, owners }, 'a stored blob is damaged; it was taken out of the store');
  return { digest, fault, owners, quarantinePath: fault === 'missing' ? null : target };
}

async function examine(
  store: Store,
  digest: Digest,
  options: ScrubOptions,
): Promise<RottenBlob | 'sound' | 'collected'> {
  const health: BlobHealth = await examineBlob(
    blobPath(store.options.folder, digest),
    digest,
    store.options.clock,
    options,
  );
  if (store.catalog.find(digest) === undefined) return 'collected'; // While we read it.
  if (health !== 'sound') return await quarantine(store, digest, health);
  store.catalog.setVerified(digest, store.options.clock.nowMs());
  return 'sound';
}

async function scrub(store: Store, options: ScrubOptions): Promise<ScrubReport> {
  // The longest unchecked first: an interrupted scrub goes on where it was.
  const { verifiedBeforeMs = Number.POSITIVE_INFINITY } = options;
  const nowMs = store.options.clock.nowMs();
  const isDue = ({ verifiedAtMs }: { readonly verifiedAtMs: number }) =>
    verifiedAtMs < verifiedBeforeMs || verifiedAtMs > nowMs;
  const blobs = store.catalog
    .list()
    .filter(isDue)
    .sort((a, b) => a.verifiedAtMs - b.verifiedAtMs);
  const rotten: RottenBlob[] = [];
  let checkedBlobs = 0;
  let checkedBytes = 0;
  for (const blob of blobs) {
    const found = await examine(store, blob.digest, options);
    if (found === 'collected') continue;
    checkedBlobs += 1;
    checkedBytes += blob.sizeBytes;
    if (found !== 'sound') rotten.push(found);
  }
  return { checkedBlobs, checkedBytes, rotten };
}

function stats(store: Store): StoreStats {
  const blobs = store.catalog.list();
  const sum = (list: readonly { sizeBytes: number }[]): number =>
    list.reduce((total, blob) => total + blob.sizeBytes, 0);
  return {
    blobs: blobs.length,
    totalBytes: sum(blobs),
    pinnedBytes: sum(blobs.filter((blob) => blob.isPinned)),
    budgetBytes: store.options.budgetBytes,
    downloading: store.slots.busy(),
    waiting: store.slots.waiting(),
  };
}

/** Takes a whole blob into the catalog: nothing says that whoever put it there came to flush it, or its name. */
async function adopt(store: Store, digest: Digest): Promise<void> {
  const path = blobPath(store.options.folder, digest);
  const file = await open(path, 'r');
  try {
    await store.disk.syncFile(file);
  } finally {
    await file.close();
  }
  await store.disk.syncFolder(dirname(path));
  await store.disk.syncFolder(dirname(dirname(path)));
  store.catalog.add(digest, (await stat(path)).size, store.options.clock.nowMs());
}

/** Files under blobs/ that the catalog does not know: a crash came between the rename and the entry. */
async function adoptOrphans(store: Store): Promise<void> {
  const { folder, log } = store.options;
  for (const prefix of await readdir(join(folder, 'blobs'))) {
    if (!/^[0-9a-f]{2}$/.test(prefix)) continue;
    for (const name of await readdir(join(folder, 'blobs', prefix))) {
      if (!isDigest(name) || !name.startsWith(prefix) || store.catalog.find(name) !== undefined) continue;
      const path = blobPath(folder, name);
      // Hashed, not believed: nothing says who put it there.
      if ((await digestOfFile(path)) === name) await adopt(store, name);
      else await quarantine(store, name, 'altered');
      log.warn({ digest: name }, 'found a blob that the catalog did not know');
    }
  }
}

function dropRowsWithoutFile(store: Store): void {
  for (const blob of store.catalog.list()) {
    if (statSync(blobPath(store.options.folder, blob.digest), { throwIfNoEntry: false }) !== undefined) continue;
    store.catalog.remove(blob.digest);
    store.options.log.warn({ digest: blob.digest }, 'a catalogued blob has no file any more');
  }
}

async function closeStore(store: Store): Promise<void> {
  const running = [...store.jobs.values()];
  const reason = new StoreError('daemon-down/store-closed', 'the store is closing', { next: 'start the daemon again' });
  for (const job of running) job.cancel.abort(reason);
  await Promise.allSettled(running.map((job) => job.finished));
  store.catalog.close();
}

async function prepareFolders(folder: string): Promise<void> {
  try {
    await makeFolderDurably(folder, 0o700);
    for (const name of ['blobs', 'partial', 'quarantine']) await makeFolderDurably(join(folder, name), 0o700);
    await chmod(folder, 0o700);
  } catch (error) {
    throw diskError(error, 'making the store', folder);
  }
}

/**
 * Opens (or makes) the store in a folder and puts right what a crash left. One process per folder.
 * Throws `conflict/store-in-use`, `host-fault/…`.
 */
export async function openBlobStore(options: BlobStoreOptions): Promise<BlobStore> {
  await prepareFolders(options.folder);
  const store: Store = {
    options,
    disk: options.disk ?? realDisk,
    catalog: openCatalog(options.folder),
    slots: makeSlots(DOWNLOADS_AT_ONCE_MAX),
    jobs: new Map(),
  };
  try {
    dropRowsWithoutFile(store);
    await adoptOrphans(store);
  } catch (error) {
    store.catalog.close();
    throw diskError(error, 'opening the store', options.folder);
  }
  return {
    has: (digest) => isPresent(store, digest),
    path: (digest) => requirePresent(store, digest),
    ensure: (request) => ensure(store, request),
    pin: (owner, digests) => store.catalog.pin(owner, digests),
    unpin: (owner) => store.catalog.unpin(owner),
    collect: () => collect(store),
    scrub: (scrubOptions = {}) => scrub(store, scrubOptions),
    verify: async (digest, signal) => {
      requirePresent(store, digest);
      return (await examine(store, digest, signal === undefined ? {} : { signal })) === 'sound';
    },
    stats: () => stats(store),
    close: () => closeStore(store),
  };
}
