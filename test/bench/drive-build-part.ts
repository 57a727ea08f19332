// One step of the drive bench in a process of its own, so that its memory is its own.
import { closeSync, existsSync, mkdirSync, openSync, writeSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { systemClock } from '../../src/base/clock.ts';
import { type Digest, digestOf } from '../../src/base/digest.ts';
import { buildDrive, type ExtraFile } from '../../src/drive/drive.ts';
import { buildIso } from '../../src/drive/iso9660.ts';
import type { RunId, VmId } from '../../src/model/ids.ts';
import { type Plan, planDigest } from '../../src/model/plan.ts';

const [task = '', folder = '', count = '0'] = process.argv.slice(2);
const isLarge = task.endsWith('large') || task === 'large-blobs';

/** Content that only depends on the index: 0.5 to 4 KB, or up to 2.5 MB. */
function content(index: number): Buffer {
  const sizeBytes = isLarge ? 1 + ((index * 7_919_117) % 2_500_000) : 500 + ((index * 131) % 3_500);
  const bytes = Buffer.alloc(sizeBytes, index % 251);
  bytes.write(String(index));
  return bytes;
}

function blobPath(digest: Digest): string {
  return join(folder, 'blobs', digest.slice(0, 2), digest);
}

function writeBlobs(): void {
  for (let index = 0; index < Number(count); index += 1) {
    const bytes = content(index);
    const path = blobPath(digestOf(bytes));
    mkdirSync(join(path, '..'), { recursive: true });
    const descriptor = openSync(path, 'w', 0o444);
    writeSync(descriptor, bytes);
    closeSync(descriptor);
  }
}

function listFiles(): (ExtraFile & { readonly digest: Digest })[] {
  return Array.from({ length: Number(count) }, (_, index) => {
    const bytes = content(index);
    const path = `/packages/${String(index % 100).padStart(2, '0')}/some-package-${index}_1.2.3-${index % 9}_amd64.deb`;
    return { path, digest: digestOf(bytes), sizeBytes: bytes.length };
  });
}

async function build(): Promise<void> {
  const extraFiles = listFiles();
  const entries = extraFiles.map(({ path, digest, ...rest }) => {
    const sizeBytes = 'sizeBytes' in rest ? rest.sizeBytes : 0;
    return { path, sizeBytes, source: { kind: 'blob' as const, digest } };
  });
  const isoMs = await timed(async () => buildIso(entries));
  // The casts hold: both texts have the form of their id.
  const [vm, run] = ['bench' as VmId, '0'.repeat(32) as RunId];
  const plan: Plan = { vm, run, items: [], vendors: [] };
  const blobs = { path: blobPath, has: (digest: Digest) => existsSync(blobPath(digest)) };
  const options = { vm, run, plan, planDigest: planDigest(plan), blobs, folder: join(folder, 'drive'), extraFiles };
  const driveMs = await timed(async () => buildDrive(options));
  const residentMaxMB = Math.round(process.resourceUsage().maxRSS / 1024);
  const driveAgainMs = await timed(async () => buildDrive(options));
  const metadataFileMB = Math.round((await stat(join(folder, 'drive', 'meta.bin'))).size / 1e6);
  const figures = { files: Number(count), isoMs, driveMs, driveAgainMs, residentMaxMB, metadataFileMB };
  process.stdout.write(JSON.stringify(figures));
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const startMs = systemClock.monotonicMs();
  await work();
  return Math.round(systemClock.monotonicMs() - startMs);
}

if (task.endsWith('-blobs')) writeBlobs();
else await build();
