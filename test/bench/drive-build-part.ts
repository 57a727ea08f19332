// One step of measuring builds, in a process of its own, so that its memory is its own.
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { enableCompileCache } from 'node:module';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Digest } from '../../src/base/digest.ts';
import type { RunId, VmId } from '../../src/model/ids.ts';
import type { Plan } from '../../src/model/plan.ts';

// As the daemon does it: without, the compiler's memory would be counted as the drive's.
enableCompileCache(fileURLToPath(new URL('../../build/compile-cache', import.meta.url)));
const { systemClock } = await import('../../src/base/clock.ts');
const { digestOf } = await import('../../src/base/digest.ts');
const { buildDrive } = await import('../../src/drive/drive.ts');
const { buildIso } = await import('../../src/drive/iso9660.ts');
const { planDigest } = await import('../../src/model/plan.ts');

const [task = '', folder = '', count = '0'] = process.argv.slice(2);

/** Content that only depends on the index: 0.5 to 4 KB. */
function content(index: number): Buffer {
  const bytes = Buffer.alloc(500 + ((index * 131) % 3_500), index % 251);
  bytes.write(String(index));
  return bytes;
}

function blobPath(digest: Digest): string {
  return `${folder}/blobs/${digest.slice(0, 2)}/${digest}`;
}

/** Digest and size of each blob, so that measuring starts without having made them. */
const LISTING = join(folder, 'listing');
/** The same for other programs: the files' paths, and `PATH ON THE DRIVE=FILE` as image builders take it. */
const PATHS = join(folder, 'paths');
const GRAFTS = join(folder, 'grafts');

function writeBlobs(): void {
  const listing: string[] = [];
  for (let index = 0; index < Number(count); index += 1) {
    const bytes = content(index);
    const digest = digestOf(bytes);
    listing.push(`${digest} ${bytes.length}`);
    const path = blobPath(digest);
    mkdirSync(join(path, '..'), { recursive: true });
    const descriptor = openSync(path, 'w', 0o444);
    writeSync(descriptor, bytes);
    closeSync(descriptor);
  }
  writeFileSync(LISTING, listing.join('\n'));
  const files = listFiles();
  writeFileSync(PATHS, files.map(({ digest }) => `${blobPath(digest)}\n`).join(''));
  writeFileSync(GRAFTS, files.map(({ path, digest }) => `${path}=${blobPath(digest)}\n`).join(''));
}

type BlobFile = { readonly path: string; readonly digest: Digest; readonly sizeBytes: number };

function listFiles(): BlobFile[] {
  const lines = readFileSync(LISTING, 'latin1').split('\n');
  return lines.map((line, index) => {
    const path = `/packages/${String(index % 100).padStart(2, '0')}/some-package-${index}_1.2.3-${index % 9}_amd64.deb`;
    // The cast holds: the other task wrote digests.
    return { path, digest: line.slice(0, 64) as Digest, sizeBytes: Number(line.slice(65)) };
  });
}

/** Metadata and extent map alone. */
async function measureIso(): Promise<object> {
  const files = listFiles();
  const residentBeforeMB = residentMaxMB();
  const spent = await timed(async () => {
    buildIso(files.map(({ path, digest, sizeBytes }) => ({ path, sizeBytes, source: { kind: 'blob', digest } })));
  });
  return { ...spent, residentBeforeMB, residentMaxMB: residentMaxMB() };
}

/** The whole drive, or finding it already built. */
async function measureDrive(): Promise<object> {
  const files = listFiles();
  const residentBeforeMB = residentMaxMB();
  // The casts hold: both texts have the form of their id.
  const [vm, run] = ['bench' as VmId, '0'.repeat(32) as RunId];
  const plan: Plan = { vm, run, items: [], leftOut: [], vendors: [] };
  const blobs = { path: blobPath, has: (digest: Digest) => existsSync(blobPath(digest)) };
  const common = { vm, run, plan, planDigest: planDigest(plan), blobs, folder: join(folder, 'drive') };
  const spent = await timed(async () => buildDrive({ ...common, extraFiles: files }));
  const metadataFileMB = Math.round((await stat(join(folder, 'drive', 'meta.bin'))).size / 1e6);
  return { ...spent, residentBeforeMB, residentMaxMB: residentMaxMB(), metadataFileMB };
}

/** The most memory this process ever had resident. */
function residentMaxMB(): number {
  return Math.round(process.resourceUsage().maxRSS / 1024);
}

/** Wall and processor time: on a busy machine only the second can be compared. */
async function timed(work: () => Promise<unknown>): Promise<{ readonly wallMs: number; readonly cpuMs: number }> {
  const startMs = systemClock.monotonicMs();
  const startCpu = process.cpuUsage();
  await work();
  const { user, system } = process.cpuUsage(startCpu);
  return { wallMs: Math.round(systemClock.monotonicMs() - startMs), cpuMs: Math.round((user + system) / 1000) };
}

if (task === 'blobs') writeBlobs();
else process.stdout.write(JSON.stringify(task === 'iso' ? await measureIso() : await measureDrive()));
