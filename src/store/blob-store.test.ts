// The store against a vendor that stops, lies and repeats itself, a full disk, a crash at every stage, and bit rot.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { chmod, link, mkdir, mkdtemp, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { type Clock, systemClock } from '../base/clock.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { type ErrorCode, PratiqueError } from '../base/errors.ts';
import { DOWNLOAD_ATTEMPTS_MAX, DOWNLOADS_AT_ONCE_MAX, PARTIAL_AGE_MAX_MS } from '../base/limits.ts';
import { silentLog } from '../base/log.ts';
import { runCommand } from '../base/run-command.ts';
import { type BlobStore, type BlobStoreOptions, openBlobStore } from './blob-store.ts';
import { type Disk, realDisk } from './download.ts';

const VICTIM = fileURLToPath(new URL('../../test/fakes/store-victim.ts', import.meta.url));
const PIECE_BYTES = 4096;

/** Pauses are noted, not waited for. */
function hurriedClock(pausesMs: number[] = []): Clock {
  const sleep: Clock['sleep'] = async (durationMs, signal) => {
    pausesMs.push(durationMs);
    signal?.throwIfAborted();
  };
  return { ...systemClock, sleep };
}

async function makeFolder(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-store-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return folder;
}

async function makeStore(t: TestContext, options: Partial<BlobStoreOptions> = {}): Promise<BlobStore> {
  const folder = options.folder ?? (await makeFolder(t));
  const store = await openBlobStore({
    clock: hurriedClock(),
    log: silentLog,
    budgetBytes: 1e9,
    ...options,
    folder,
  });
  t.after(() => store.close().catch(() => {}));
  return store;
}

type Fault = {
  /** Break the stream after this many bytes of the whole. */
  readonly breakAt?: number;
  readonly endAt?: number;
  readonly content?: Buffer;
  /** Wait for this before the first byte. */
  readonly gate?: Promise<void>;
  readonly onPiece?: (position: number) => Promise<void>;
};

/** A vendor whose n-th answer has the n-th fault; after the list it is well. Notes the offset of every request. */
function vendorOf(content: Buffer, faults: readonly Fault[] = []) {
  const offsets: number[] = [];
  async function* pieces(offsetBytes: number, fault: Fault): AsyncGenerator<Uint8Array> {
    await fault.gate;
    const bytes = fault.content ?? content;
    const end = Math.min(fault.endAt ?? bytes.length, fault.breakAt ?? bytes.length);
    for (let position = offsetBytes; position < end; position += PIECE_BYTES) {
      await fault.onPiece?.(position);
      yield bytes.subarray(position, Math.min(position + PIECE_BYTES, end));
    }
    if (fault.breakAt !== undefined) throw Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' });
  }
  const open = async (offsetBytes: number): Promise<AsyncIterable<Uint8Array>> => {
    offsets.push(offsetBytes);
    return pieces(offsetBytes, faults[offsets.length - 1] ?? {});
  };
  return { offsets, request: { digest: digestOf(content), sizeBytes: content.length, open } };
}

const fails = (code: string) => (error: unknown) => error instanceof Error && 'code' in error && error.code === code;

function gate(): { promise: Promise<void>; release: () => void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  return { promise, release: () => resolve() };
}

test('a blob is stored read-only under its digest and asked for once [X6]', async (t) => {
  const folder = await makeFolder(t);
  const store = await makeStore(t, { folder });
  const vendor = vendorOf(randomBytes(50_000));
  const { digest } = vendor.request;
  assert.equal(store.has(digest), false);
  assert.throws(() => store.path(digest), fails('not-found/blob'));
  const progress: number[] = [];
  const first = await store.ensure({ ...vendor.request, onProgress: (done) => progress.push(done) });
  assert.deepEqual(first, { path: join(folder, 'blobs', digest.slice(0, 2), digest), wasPresent: false });
  assert.equal((await stat(first.path)).mode & 0o777, 0o444);
  assert.equal((await stat(folder)).mode & 0o777, 0o700);
  assert.deepEqual([progress[0], progress.at(-1)], [0, 50_000]);
  assert.equal((await store.ensure(vendor.request)).wasPresent, true);
  assert.equal(vendor.offsets.length, 1);
  assert.equal(digestOf(await readFile(store.path(digest))), digest);
});

test('an empty blob needs no byte from the vendor', async (t) => {
  const store = await makeStore(t);
  const vendor = vendorOf(Buffer.alloc(0));
  await store.ensure(vendor.request);
  assert.equal(store.has(vendor.request.digest), true);
  assert.deepEqual(vendor.offsets, []);
});

test('a download that breaks goes on where it stopped, with growing pauses [X4]', async (t) => {
  const pausesMs: number[] = [];
  const store = await makeStore(t, { clock: hurriedClock(pausesMs) });
  const vendor = vendorOf(randomBytes(50_000), [{ breakAt: 10_000 }, { breakAt: 10_000 }, { endAt: 30_000 }]);
  await store.ensure(vendor.request);
  assert.deepEqual(vendor.offsets, [0, 10_000, 10_000, 30_000]);
  assert.deepEqual(pausesMs, [500, 1000, 2000]);
});

test('a vendor that never answers is given up after the last attempt, and the part stays for the next time [X4]', async (t) => {
  const store = await makeStore(t);
  const broken = { breakAt: 8192 };
  const vendor = vendorOf(randomBytes(50_000), Array(DOWNLOAD_ATTEMPTS_MAX).fill(broken));
  await assert.rejects(store.ensure(vendor.request), fails('vendor-ill/stream'));
  assert.equal(vendor.offsets.length, DOWNLOAD_ATTEMPTS_MAX);
  assert.equal(store.has(vendor.request.digest), false);
  await store.ensure(vendor.request);
  assert.equal(vendor.offsets.at(-1), 8192);
});

test('an answer that will not change is not asked for again, a passing one is', async (t) => {
  const store = await makeStore(t);
  const askedFor = async (code: ErrorCode): Promise<number> => {
    let asked = 0;
    const open = async (): Promise<never> => {
      asked += 1;
      throw new PratiqueError(code, 'no');
    };
    await assert.rejects(store.ensure({ digest: digestOf(code), sizeBytes: 10, open }), fails(code));
    return asked;
  };
  const lasting: ErrorCode[] = ['vendor-ill/http-404', 'vendor-ill/tls', 'refused/license', 'not-found/vendor'];
  const passing: ErrorCode[] = [
    'vendor-ill/http-429',
    'vendor-ill/http-5xx',
    'vendor-ill/timeout',
    'host-fault/network',
  ];
  for (const code of lasting) assert.equal(await askedFor(code), 1, code);
  for (const code of passing) assert.equal(await askedFor(code), DOWNLOAD_ATTEMPTS_MAX, code);
});

test('other content than the digest promises is refused and thrown away [X3]', async (t) => {
  const folder = await makeFolder(t);
  const store = await makeStore(t, { folder });
  const content = randomBytes(50_000);
  const vendor = vendorOf(content, [{ content: randomBytes(50_000) }]);
  await assert.rejects(store.ensure(vendor.request), fails('vendor-ill/digest-mismatch'));
  assert.equal(vendor.offsets.length, 1);
  assert.equal(existsSync(join(folder, 'partial', vendor.request.digest)), false);
  assert.equal(store.has(vendor.request.digest), false);
});

test('a part that a crash spoilt costs one whole download, not the blob [X4]', async (t) => {
  const folder = await makeFolder(t);
  const store = await makeStore(t, { folder });
  const vendor = vendorOf(randomBytes(50_000));
  await writeFile(join(folder, 'partial', vendor.request.digest), Buffer.alloc(20_000));
  await store.ensure(vendor.request);
  assert.deepEqual(vendor.offsets, [20_000, 0]);
});

test('one byte more than promised ends the download [X3]', async (t) => {
  const folder = await makeFolder(t);
  const store = await makeStore(t, { folder });
  let piecesSent = 0;
  const content = randomBytes(PIECE_BYTES);
  const countPiece = async (): Promise<void> => {
    piecesSent += 1;
  };
  const endless = { content: Buffer.alloc(PIECE_BYTES * 100), onPiece: countPiece };
  const vendor = vendorOf(content, [endless]);
  await assert.rejects(store.ensure(vendor.request), fails('vendor-ill/oversize'));
  assert.equal(piecesSent, 2);
  assert.equal(existsSync(join(folder, 'partial', vendor.request.digest)), false);
});

test('a vendor whose entries contradict each other about a size is refused, before and after the download', async (t) => {
  const store = await makeStore(t);
  const { promise, release } = gate();
  const vendor = vendorOf(randomBytes(9000), [{ gate: promise }]);
  const first = store.ensure(vendor.request);
  await assert.rejects(store.ensure({ ...vendor.request, sizeBytes: 9001 }), fails('vendor-ill/size-mismatch'));
  release();
  await first;
  await assert.rejects(store.ensure({ ...vendor.request, sizeBytes: 8999 }), fails('vendor-ill/size-mismatch'));
});

test('a hundred VMs that need one blob make one download and all see its progress [X6]', async (t) => {
  const store = await makeStore(t);
  const vendor = vendorOf(randomBytes(50_000), [{ breakAt: 20_000 }]);
  let lastSeen = 0;
  const onProgress = (done: number, total: number): void => {
    if (done === total) lastSeen += 1;
  };
  await Promise.all(Array.from({ length: 100 }, () => store.ensure({ ...vendor.request, onProgress })));
  assert.deepEqual(vendor.offsets, [0, 20_000]);
  assert.equal(lastSeen, 100);
});

test('one VM that gives up does not take the download from the others; the last one does', async (t) => {
  const store = await makeStore(t);
  const { promise, release } = gate();
  const vendor = vendorOf(randomBytes(50_000), [{ gate: promise }]);
  const quitter = new AbortController();
  const leaving = store.ensure({ ...vendor.request, signal: quitter.signal });
  const staying = store.ensure(vendor.request);
  quitter.abort(new Error('changed my mind'));
  await assert.rejects(leaving, /changed my mind/);
  release();
  assert.equal((await staying).wasPresent, false);

  const second = vendorOf(randomBytes(50_000), [{ gate: new Promise(() => {}) }]);
  const alone = new AbortController();
  const abandoned = store.ensure({ ...second.request, signal: alone.signal });
  alone.abort(new Error('nobody needs it'));
  await assert.rejects(abandoned, /nobody needs it/);
  await store.ensure(second.request);
  assert.equal(store.has(second.request.digest), true);
});

test('no more downloads run at once than the limit allows, and all get their turn', async (t) => {
  const store = await makeStore(t);
  let running = 0;
  let mostRunning = 0;
  const download = async (): Promise<unknown> => {
    const content = randomBytes(5000);
    const { request } = vendorOf(content);
    async function* counted(offsetBytes: number): AsyncGenerator<Uint8Array> {
      running += 1;
      mostRunning = Math.max(mostRunning, running);
      for await (const piece of await request.open(offsetBytes)) {
        await systemClock.sleep(1);
        yield piece;
      }
      running -= 1;
    }
    return await store.ensure({ ...request, open: async (offsetBytes) => counted(offsetBytes) });
  };
  await Promise.all(Array.from({ length: 5 * DOWNLOADS_AT_ONCE_MAX }, download));
  assert.equal(mostRunning, DOWNLOADS_AT_ONCE_MAX);
});

/** The disk itself, noting the order of what makes a blob durable. */
function notingDisk(steps: string[]): Disk {
  return {
    ...realDisk,
    syncFile: async (file) => {
      steps.push('sync content');
      await realDisk.syncFile(file);
    },
    rename: async (from, to) => {
      steps.push('rename');
      await realDisk.rename(from, to);
    },
    syncFolder: async (path) => {
      steps.push('sync folder');
      await realDisk.syncFolder(path);
    },
  };
}

test('the content is on the disk before its name is, and the name before anybody is told [X4]', async (t) => {
  const steps: string[] = [];
  const store = await makeStore(t, { disk: notingDisk(steps) });
  await store.ensure(vendorOf(randomBytes(5000)).request);
  assert.deepEqual(steps, ['sync content', 'rename', 'sync folder', 'sync folder']);
});

test('a blob that the catalog does not know is flushed with its name before it counts [X4]', async (t) => {
  const folder = await makeFolder(t);
  await (await makeStore(t, { folder })).close();
  const content = randomBytes(5000);
  const digest = digestOf(content);
  await mkdir(join(folder, 'blobs', digest.slice(0, 2)));
  await writeFile(join(folder, 'blobs', digest.slice(0, 2), digest), content);
  const steps: string[] = [];
  const store = await makeStore(t, { folder, disk: notingDisk(steps) });
  assert.deepEqual(steps, ['sync content', 'sync folder', 'sync folder']);
  assert.equal(store.has(digest), true);
});

for (const stage of ['partial-write', 'before-sync', 'before-rename', 'after-rename', 'after-sync']) {
  test(`killed at ${stage}, the blob is absent or whole afterwards, and the next run completes it [X4 X6]`, async (t) => {
    const folder = await makeFolder(t);
    const victim = spawnSync(process.execPath, [VICTIM, folder, stage], { encoding: 'utf8', timeout: 60_000 });
    assert.equal(victim.signal, 'SIGKILL', victim.stderr);
    const { VICTIM_BLOB } = await import(VICTIM);
    const { request, offsets } = vendorOf(VICTIM_BLOB);
    const store = await makeStore(t, { folder });
    const isWhole = stage.startsWith('after');
    assert.equal(store.has(request.digest), isWhole);
    if (isWhole) assert.equal(await store.verify(request.digest), true);
    await store.ensure(request);
    assert.equal(await store.verify(request.digest), true);
    assert.deepEqual((await store.collect()).removed, []);
    if (stage === 'partial-write') assert.ok(offsets[0] !== undefined && offsets[0] > VICTIM_BLOB.length / 2);
    else assert.deepEqual(offsets, []); // All bytes were there; only the last steps were missing.
  });
}

test('a second process cannot open the store', async (t) => {
  const folder = await makeFolder(t);
  await makeStore(t, { folder });
  await assert.rejects(makeStore(t, { folder }), fails('conflict/store-in-use'));
});

type SmallDisk = {
  readonly folder: string;
  readonly disk: Disk;
  /** Somebody else takes all that is free, and gives it back. */
  readonly fill: () => Promise<void>;
  readonly relieve: () => Promise<void>;
};

const SMALL_DISK_BYTES = 4 * 1024 * 1024;

/** As root a real file system of 4 MiB, with the kernel's own ENOSPC. */
async function mountedSmallDisk(t: TestContext): Promise<SmallDisk> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-store-'));
  await runCommand(['mount', '-t', 'tmpfs', '-o', `size=${SMALL_DISK_BYTES}`, 'pratique-test', folder]);
  t.after(async () => {
    await runCommand(['umount', '--lazy', folder]);
    await rm(folder, { recursive: true });
  });
  const filler = join(folder, 'somebody-else');
  // The write ends in ENOSPC, as it should.
  const fill = (): Promise<void> => writeFile(filler, Buffer.alloc(SMALL_DISK_BYTES)).catch(() => {});
  return { folder, disk: realDisk, fill, relieve: () => rm(filler) };
}

/** Without root nothing can be mounted: a disk that answers as a full one does. */
async function pretendedSmallDisk(t: TestContext): Promise<SmallDisk> {
  let freeBytes = SMALL_DISK_BYTES;
  const disk: Disk = {
    ...realDisk,
    freeBytes: async () => freeBytes,
    write: async (...args) => {
      if (freeBytes === 0) throw Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' });
      await realDisk.write(...args);
    },
  };
  const setFree = (bytes: number) => async (): Promise<void> => {
    freeBytes = bytes;
  };
  return { folder: await makeFolder(t), disk, fill: setFree(0), relieve: setFree(SMALL_DISK_BYTES) };
}

const makeSmallDisk = process.getuid?.() === 0 ? mountedSmallDisk : pretendedSmallDisk;

for (const makeDisk of new Set([makeSmallDisk, pretendedSmallDisk])) {
  test(`a disk that cannot hold the blob refuses it before the first byte; what was stored stays (${makeDisk.name})`, async (t) => {
    const store = await makeStore(t, await makeDisk(t));
    const kept = vendorOf(randomBytes(500_000));
    await store.ensure(kept.request);
    const large = vendorOf(randomBytes(5_000_000));
    await assert.rejects(store.ensure(large.request), fails('host-fault/disk-full'));
    assert.deepEqual(large.offsets, []);
    assert.equal(await store.verify(kept.request.digest), true);
    store.pin('vm1', [kept.request.digest]);
  });

  test(`a disk that fills up during a download stops it, stays usable, and the download completes later (${makeDisk.name}) [X4]`, async (t) => {
    const { folder, disk, fill, relieve } = await makeDisk(t);
    const store = await makeStore(t, { folder, disk });
    const kept = vendorOf(randomBytes(500_000));
    await store.ensure(kept.request);
    const onPiece = async (position: number): Promise<void> => {
      if (position === 40 * PIECE_BYTES) await fill();
    };
    const vendor = vendorOf(randomBytes(1_000_000), [{ breakAt: 10 * PIECE_BYTES }, { onPiece }]);
    await assert.rejects(store.ensure(vendor.request), fails('host-fault/disk-full'));
    assert.equal(store.has(vendor.request.digest), false);
    assert.equal((await store.ensure(kept.request)).wasPresent, true);
    store.pin('vm1', [kept.request.digest]); // Room for the catalog: the failed attempt gave its bytes back.
    await relieve();
    await store.ensure(vendor.request);
    assert.equal(vendor.offsets.at(-1), 10 * PIECE_BYTES);
  });
}

test('collecting removes what was used longest ago, never what is pinned, also after a restart [X6]', async (t) => {
  const folder = await makeFolder(t);
  const first = await makeStore(t, { folder, budgetBytes: 25_000 });
  const [a, b, c, d] = Array.from({ length: 4 }, () => vendorOf(randomBytes(10_000)).request);
  assert.ok(a && b && c && d);
  first.pin('run 1', [a.digest]);
  for (const request of [a, b, c, d]) await first.ensure(request);
  await first.ensure(b); // Used again: now c is the oldest unpinned one.
  await first.close();

  const store = await makeStore(t, { folder, budgetBytes: 25_000 });
  assert.deepEqual(await store.collect(), {
    removed: [c.digest, d.digest],
    freedBytes: 20_000,
    totalBytes: 20_000,
    isOverBudget: false,
  });
  assert.deepEqual(
    [a, b, c, d].map(({ digest }) => store.has(digest)),
    [true, true, false, false],
  );
  assert.equal(store.stats().pinnedBytes, 10_000);
  store.pin('run 2', [a.digest, b.digest]);
  store.unpin('run 1');
  await store.close();

  const tiny = await makeStore(t, { folder, budgetBytes: 0 });
  assert.deepEqual((await tiny.collect()).removed, []);
  assert.equal((await tiny.collect()).isOverBudget, true);
  tiny.unpin('run 2');
  assert.deepEqual((await tiny.collect()).removed, [a.digest, b.digest]);
});

test('a drive that hard-links a blob keeps its bytes when the blob is collected or found rotten [X6]', async (t) => {
  const folder = await makeFolder(t);
  const store = await makeStore(t, { folder, budgetBytes: 0 });
  const content = randomBytes(10_000);
  const { request } = vendorOf(content);
  await store.ensure(request);
  const onDrive = join(folder, 'drive-extent');
  await link(store.path(request.digest), onDrive);
  await store.collect();
  assert.equal(store.has(request.digest), false);
  assert.ok(content.equals(await readFile(onDrive)));
  await store.ensure(request);
  assert.ok(content.equals(await readFile(onDrive)));
});

test('a partial download that nobody asked for again goes after its time', async (t) => {
  const folder = await makeFolder(t);
  const store = await makeStore(t, { folder });
  const [old, young] = ['old', 'young'].map((name) => join(folder, 'partial', digestOf(name)));
  assert.ok(old && young);
  await writeFile(old, 'x');
  await writeFile(young, 'x');
  const longAgo = (systemClock.nowMs() - PARTIAL_AGE_MAX_MS - 1000) / 1000;
  await utimes(old, longAgo, longAgo);
  await store.collect();
  assert.deepEqual([existsSync(old), existsSync(young)], [false, true]);
});

/** Changes one byte behind the store's back, size unchanged. */
async function rot(store: BlobStore, digest: Digest): Promise<void> {
  const path = store.path(digest);
  const bytes = await readFile(path);
  bytes[100] = (bytes[100] ?? 0) ^ 1;
  await chmod(path, 0o600);
  await writeFile(path, bytes);
}

test('a scrub finds the rotten blob, names who has it, and the next request downloads it again', async (t) => {
  const folder = await makeFolder(t);
  const store = await makeStore(t, { folder });
  const vendors = Array.from({ length: 3 }, () => vendorOf(randomBytes(10_000)));
  for (const vendor of vendors) await store.ensure(vendor.request);
  const bad = vendors[1];
  assert.ok(bad);
  store.pin('vm7', [bad.request.digest]);
  await rot(store, bad.request.digest);
  const report = await store.scrub();
  const quarantinePath = join(folder, 'quarantine', bad.request.digest);
  assert.deepEqual(report, {
    checkedBlobs: 3,
    checkedBytes: 30_000,
    rotten: [{ digest: bad.request.digest, fault: 'altered', owners: ['vm7'], quarantinePath }],
  });
  assert.equal(existsSync(quarantinePath), true);
  assert.equal(store.has(bad.request.digest), false);
  await store.ensure(bad.request);
  assert.deepEqual((await store.scrub()).rotten, []);
});

test('one blob can be verified on demand; a cut or vanished one counts as absent at once', async (t) => {
  const folder = await makeFolder(t);
  const store = await makeStore(t, { folder });
  const [a, b] = [vendorOf(randomBytes(10_000)).request, vendorOf(randomBytes(10_000)).request];
  await store.ensure(a);
  await store.ensure(b);
  await rot(store, a.digest);
  // Two VMs that were shown the same bytes complain at the same moment.
  assert.deepEqual(await Promise.all([store.verify(a.digest), store.verify(a.digest)]), [false, false]);
  assert.equal(store.has(a.digest), false);
  await assert.rejects(store.verify(a.digest), fails('not-found/blob'));
  await rm(store.path(b.digest));
  assert.equal(store.has(b.digest), false);
  assert.equal((await store.scrub()).rotten[0]?.fault, 'missing');
});

test('a scrub reads no faster than told, and can be stopped', async (t) => {
  const pausesMs: number[] = [];
  const clock = { ...hurriedClock(pausesMs), monotonicMs: () => 0 };
  const store = await makeStore(t, { clock });
  await store.ensure(vendorOf(randomBytes(10_000)).request);
  await store.scrub({ bytesPerSecond: 5_000 });
  assert.deepEqual(pausesMs, [2000]);
  await assert.rejects(store.scrub({ signal: AbortSignal.abort(new Error('not now')) }), /not now/);
});

test('a file under blobs that the catalog does not know is believed only after hashing it', async (t) => {
  const folder = await makeFolder(t);
  const first = await makeStore(t, { folder });
  const { request } = vendorOf(randomBytes(10_000));
  const { path } = await first.ensure(request);
  await first.close();
  const forged = join(path, '..', `${request.digest.slice(0, 2)}${'0'.repeat(62)}`);
  await writeFile(forged, 'not what the name says');
  for (const name of ['catalog.sqlite', 'catalog.sqlite-wal', 'catalog.sqlite-shm']) {
    await rm(join(folder, name), { force: true });
  }
  const store = await makeStore(t, { folder });
  assert.equal(store.has(request.digest), true);
  assert.equal(existsSync(forged), false);
  assert.equal(store.stats().blobs, 1);
});

test('closing stops downloads, tells their waiters, and keeps the part', async (t) => {
  const folder = await makeFolder(t);
  const store = await makeStore(t, { folder });
  const stuck = (position: number): Promise<void> =>
    position >= 2 * PIECE_BYTES ? new Promise(() => {}) : Promise.resolve();
  const vendor = vendorOf(randomBytes(50_000), [{ onPiece: stuck }]);
  const hanging = assert.rejects(store.ensure(vendor.request), fails('daemon-down/store-closed'));
  while (vendor.offsets.length === 0) await systemClock.sleep(1);
  while (((await stat(join(folder, 'partial', vendor.request.digest))).size ?? 0) < 2 * PIECE_BYTES) {
    await systemClock.sleep(1);
  }
  await store.close();
  await hanging;
  const again = await makeStore(t, { folder });
  await again.ensure(vendor.request);
  assert.deepEqual(vendor.offsets, [0, 2 * PIECE_BYTES]);
});

/** Examines a blob, takes every file descriptor that is left, and examines it again. */
const STARVED = `
  import { openSync } from 'node:fs';
  const { systemClock } = await import(process.argv[1] + '/src/base/clock.ts');
  const { examineBlob } = await import(process.argv[1] + '/src/store/scrub.ts');
  const examine = () => examineBlob(process.argv[2], process.argv[3], systemClock, {}).catch(({ code }) => code);
  const before = await examine();
  try { for (;;) openSync('/dev/null'); } catch {}
  console.log(before, await examine());
`;

test('a sound blob that this process cannot open for want of descriptors is not called damaged [X4]', async (t) => {
  const folder = await makeFolder(t);
  const path = join(folder, 'blob');
  await writeFile(path, 'sound');
  const root = fileURLToPath(new URL('../..', import.meta.url));
  const node = [process.execPath, '--input-type=module', '-e', STARVED, root, path, digestOf('sound')];
  const { stdout } = spawnSync('sh', ['-c', 'ulimit -n 100; exec "$@"', 'sh', ...node], { encoding: 'utf8' });
  assert.equal(stdout, 'sound host-fault/store\n');
});
