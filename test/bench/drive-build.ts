// How long the drive takes to build, how much memory, and how fast QEMU reads it beside a plain ISO file.
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runCommand } from '../../src/base/run-command.ts';

const FILE_COUNTS = [10, 1_000, 100_000];
/** About the size of a security update of a small Debian guest: 240 packages of up to 2.5 MB. */
const READ_BLOBS = 240;
/** Rounds of each reading; the median is reported, alternating so that a busy machine disturbs both alike. */
const READ_ROUNDS = 7;

/** V8's young generation grows to 100 MB by default, whatever is live in it; the drive needs none of that. */
const NODE_FLAGS = ['--max-semi-space-size=8'];

type Spent = { readonly wallMs: number; readonly cpuMs: number };
type BuildFigures = {
  readonly files: number;
  /** Metadata and extent map alone. */
  readonly iso: Spent;
  /** The whole drive on disk: manifest, metadata, packed small blobs, links, fsync. */
  readonly drive: Spent;
  /** Finding that drive already built. */
  readonly driveAgain: Spent;
  /** The most memory resident: of the process before, with the metadata, with the whole drive. */
  readonly residentBeforeMB: number;
  readonly isoResidentMaxMB: number;
  readonly driveResidentMaxMB: number;
  readonly metadataFileMB: number;
};

/** Build time and memory for 10, 1,000 and 100,000 files, each in a process of its own; sequential and 4 KiB reads on the host. */
export async function run(): Promise<object> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-bench-drive-'));
  try {
    const builds: BuildFigures[] = [];
    for (const files of FILE_COUNTS) builds.push(await measureBuild(folder, files));
    return { builds, reads: await measureReads(folder) };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function runPart(folder: string, task: string, files: number): Promise<string> {
  const script = join(import.meta.dirname, 'drive-build-part.ts');
  return await runCommand([process.execPath, ...NODE_FLAGS, script, task, folder, String(files)], {
    timeoutMs: 300_000,
  });
}

async function measureBuild(parent: string, files: number): Promise<BuildFigures> {
  const folder = join(parent, `build-${files}`);
  await mkdir(folder);
  await runPart(folder, 'small-blobs', files);
  // The cast holds: the other file of this bench prints it.
  return JSON.parse(await runPart(folder, 'build', files)) as BuildFigures;
}

async function measureReads(parent: string): Promise<object> {
  const folder = join(parent, 'reads');
  await mkdir(folder);
  await runPart(folder, 'large-blobs', READ_BLOBS);
  await runPart(folder, 'build-large', READ_BLOBS);
  const vmdk = join(folder, 'drive', 'drive.vmdk');
  const iso = join(folder, 'plain.iso');
  await runCommand(['qemu-img', 'convert', '-f', 'vmdk', '-O', 'raw', '-S', '0', vmdk, iso]);
  const info: unknown = JSON.parse(await runCommand(['qemu-img', 'info', '--output=json', '-f', 'raw', iso]));
  // The cast holds: qemu-img info documents the field.
  const sizeBytes = (info as { 'virtual-size': number })['virtual-size'];
  return {
    sizeMB: Math.round(sizeBytes / 1e6),
    sequential: await compareReads(vmdk, iso, { sizeBytes, bytes: 1024 * 1024, stepBytes: 1024 * 1024 }),
    small: await compareReads(vmdk, iso, { sizeBytes, bytes: 4096, stepBytes: 20 * 4096 }),
  };
}

type ReadShape = { readonly sizeBytes: number; readonly bytes: number; readonly stepBytes: number };

async function compareReads(vmdk: string, iso: string, shape: ReadShape): Promise<object> {
  const zeroCopy: number[] = [];
  const plain: number[] = [];
  for (let round = 0; round < READ_ROUNDS; round += 1) {
    plain.push(await readRate(iso, 'raw', shape));
    zeroCopy.push(await readRate(vmdk, 'vmdk', shape));
  }
  const [a, b] = [median(zeroCopy), median(plain)];
  return { zeroCopyMBs: Math.round(a), plainMBs: Math.round(b), ratio: Number((a / b).toFixed(3)) };
}

async function readRate(path: string, format: string, shape: ReadShape): Promise<number> {
  const count = Math.floor((shape.sizeBytes - shape.bytes) / shape.stepBytes);
  const shapeArgs = ['-c', String(count), '-s', String(shape.bytes), '-S', String(shape.stepBytes), '-d', '1'];
  const said = await runCommand(['qemu-img', 'bench', '-f', format, ...shapeArgs, path]);
  const seconds = Number(/Run completed in ([0-9.]+) seconds/.exec(said)?.[1]);
  return (count * shape.bytes) / 1e6 / seconds;
}

function median(numbers: readonly number[]): number {
  return numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)] ?? Number.NaN;
}
