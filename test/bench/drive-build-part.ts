// One step of the drive bench in a process of its own, so that its memory is its own.
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { systemClock } from '../../src/base/clock.ts';
import { type Digest, digestOf } from '../../src/base/digest.ts';
import { buildDrive } from '../../src/drive/drive.ts';
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

/** Digest and size of each blob, so that measuring starts without having made them. */
const LISTING = join(folder, 'listing');

function writeBlobs(): void {
  const lines: string[] = [];
  for (let index = 0; index < Number(count); index += 1) {
    const bytes = content(index);
    const digest = digestOf(bytes);
    lines.push(`${digest} ${bytes.length}`);
    const path = blobPath(digest);
    mkdirSync(join(path, '..'), { recursive: true });
    const descriptor = openSync(path, 'w', 0o444);
    writeSync(descriptor, bytes);
    closeSync(descriptor);
  }
  writeFileSync(LISTING, lines.join('\n'));
}

type BlobFile = { readonly path: string; readonly digest: Digest; readonly sizeBytes: number };

function listFiles(): BlobFile[] {
  const lines = readFileSync(LISTING, 'utf8').split('\n');
  return lines.map((line, index) => {
    const [digest = '', size] = line.split(' ');
    const path = `/packages/${String(index % 100).padStart(2, '0')}/some-package-${index}_1.2.3-${index % 9}_amd64.deb`;
    // The cast holds: the other task wrote digests.
    return { path, digest: digest as Digest, sizeBytes: Number(size) };
  });
}

async function build(): Promise<void> {
  const files = listFiles();
  const residentBeforeMB = residentMaxMB();
  const iso = await timed(async () => {
    buildIso(files.map(({ path, digest, sizeBytes }) => ({ path, sizeBytes, source: { kind: 'blob', digest } })));
  });
  const isoResidentMaxMB = residentMaxMB();
  // The casts hold: both texts have the form of their id.
  const [vm, run] = ['bench' as VmId, '0'.repeat(32) as RunId];
  const plan: Plan = { vm, run, items: [], leftOut: [], vendors: [] };
  const blobs = { path: blobPath, has: (digest: Digest) => existsSync(blobPath(digest)) };
  const options = {
    vm,
    run,
    plan,
    planDigest: planDigest(plan),
    blobs,
    folder: join(folder, 'drive'),
    extraFiles: files,
  };
  const drive = await timed(async () => buildDrive(options));
  const driveResidentMaxMB = residentMaxMB();
  const driveAgain = await timed(async () => buildDrive(options));
  const metadataFileMB = Math.round((await stat(join(folder, 'drive', 'meta.bin'))).size / 1e6);
  const memory = { residentBeforeMB, isoResidentMaxMB, driveResidentMaxMB };
  process.stdout.write(JSON.stringify({ files: files.length, iso, drive, driveAgain, ...memory, metadataFileMB }));
}

/** The most memory this process ever had resident. */
function residentMaxMB(): number {
  return Math.round(process.resourceUsage().maxRSS / 1024);
}

/** Wall and processor time: on a busy machine only the second can be compared. */
type Spent = { readonly wallMs: number; readonly cpuMs: number };

async function timed(work: () => Promise<unknown>): Promise<Spent> {
  const startMs = systemClock.monotonicMs();
  const startCpu = process.cpuUsage();
  await work();
  const { user, system } = process.cpuUsage(startCpu);
  return { wallMs: Math.round(systemClock.monotonicMs() - startMs), cpuMs: Math.round((user + system) / 1000) };
}

if (task.endsWith('-blobs')) writeBlobs();
else await build();
