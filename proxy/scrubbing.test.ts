// Readings of the store: what is damaged is taken out and fetched again, one reading at a time, and the last one is remembered.
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterEach, beforeEach, test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import { digestOf } from '../src/base/digest.ts';
import { silentLog } from '../src/base/log.ts';
import { type BlobStore, openBlobStore } from '../src/store/blob-store.ts';
import type { ScrubOptions, ScrubReport } from '../src/store/scrub.ts';
import { openScrubbing, scrubLine } from './scrubbing.ts';

let folder = '';
let store: BlobStore;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'pratique-scrubbing-'));
  store = await openBlobStore({ folder, clock: systemClock, log: silentLog, budgetBytes: 1_000_000 });
});
afterEach(async () => {
  await store.close();
  rmSync(folder, { recursive: true, force: true });
});

const open = (over: Pick<BlobStore, 'scrub'> = store) =>
  openScrubbing({ store: over, folder, clock: systemClock, log: silentLog });

async function fetchBlob(text: string): Promise<string> {
  const bytes = Buffer.from(text);
  const source = async () => ({ offsetBytes: 0, bytes: Readable.from([bytes]) });
  const { path } = await store.ensure({
    digest: digestOf(text),
    sizeBytes: bytes.length,
    open: async () => (await source()).bytes,
  });
  return path;
}

test('a damaged package is taken out, told until the next reading, also by the next daemon, and fetched anew', async () => {
  const path = await fetchBlob('a package');
  await fetchBlob('another package');
  store.pin('web', [digestOf('a package')]);
  writeFileSync(path, 'a pACKage');
  const scrubbing = await open();
  assert.equal(scrubbing.view().last, null);
  scrubbing.start();
  assert.equal(scrubbing.view().isRunning, true);
  await scrubbing.scrub({ verifiedBeforeMs: 0 });
  const { last } = scrubbing.view();
  assert.equal(last?.checkedBlobs, 2);
  assert.deepEqual(last?.rotten, [{ digest: digestOf('a package'), fault: 'altered', owners: ['web'] }]);
  assert.ok(!store.has(digestOf('a package')));
  const line = scrubLine((await open()).view());
  assert.equal(line.state, 'warning');
  assert.match(line.detail, /2 packages, 1 damaged and taken out \(needed by web\)/);
  await fetchBlob('a package');
  assert.equal(readFileSync(path, 'utf8'), 'a package');
  await scrubbing.scrub();
  assert.equal(scrubLine(scrubbing.view()).state, 'ok');
  await scrubbing.close();
});

test('a look that finds nothing old enough does not hide what the last reading found', async () => {
  const path = await fetchBlob('a package');
  writeFileSync(path, 'a pACKage');
  const scrubbing = await open();
  await scrubbing.scrub();
  await fetchBlob('a package');
  const report = await scrubbing.scrub({ verifiedBeforeMs: systemClock.nowMs() - 60_000 });
  assert.equal(report.checkedBlobs, 0);
  assert.equal(scrubbing.view().last?.rottenBlobs, 1);
  await scrubbing.close();
});

test('blobs that were verified by a clock that was ahead are read, too', async () => {
  const ahead = { ...systemClock, nowMs: () => systemClock.nowMs() + 1_000_000_000_000 };
  await store.close();
  store = await openBlobStore({ folder, clock: ahead, log: silentLog, budgetBytes: 1_000_000 });
  await fetchBlob('a package');
  await store.close();
  store = await openBlobStore({ folder, clock: systemClock, log: silentLog, budgetBytes: 1_000_000 });
  assert.equal((await store.scrub({ verifiedBeforeMs: 0 })).checkedBlobs, 1);
  assert.equal((await store.scrub({ verifiedBeforeMs: 0 })).checkedBlobs, 0);
});

test('readings never overlap; who asks again while his is waiting joins it; closing ends it', async () => {
  let now = 0;
  let most = 0;
  const asked: ScrubOptions[] = [];
  const slow = async (options: ScrubOptions = {}): Promise<ScrubReport> => {
    asked.push(options);
    now += 1;
    most = Math.max(most, now);
    try {
      await systemClock.sleep(20, options.signal);
      if (asked.length === 3) await systemClock.sleep(60_000, options.signal);
    } finally {
      now -= 1;
    }
    return { checkedBlobs: 1, checkedBytes: 1, rotten: [] };
  };
  const scrubbing = await open({ scrub: slow });
  const aged = scrubbing.scrub({ verifiedBeforeMs: 1 });
  scrubbing.start();
  scrubbing.start();
  await aged;
  const third = assert.rejects(scrubbing.scrub({ verifiedBeforeMs: 2 }));
  await systemClock.sleep(50);
  await scrubbing.close();
  await third;
  assert.equal(asked.length, 3);
  assert.equal(most, 1);
  assert.ok(
    asked.every(
      ({ bytesPerSecond, verifiedBeforeMs }) => bytesPerSecond !== undefined || verifiedBeforeMs !== undefined,
    ),
  );
  assert.ok(existsSync(join(folder, 'scrub.json')));
  assert.equal(scrubbing.view().isRunning, false);
});
