// What the drive bench reads: one drive as Pratique builds it, the same bytes as a plain ISO file, and every way to them.
import { type ChildProcess, spawn } from 'node:child_process';
import { access, mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { systemClock } from '../../src/base/clock.ts';
import { type Digest, digestOf } from '../../src/base/digest.ts';
import { describeError } from '../../src/base/errors.ts';
import { silentLog } from '../../src/base/log.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import { type BuiltDrive, buildDrive, type ExtraFile } from '../../src/drive/drive.ts';
import { exportFiles, readProcess } from '../../src/drive/export/export-files.ts';
import { type DriveExports, type ExportTransport, makeDriveExports } from '../../src/drive/export/exports.ts';
import type { DriveSource } from '../../src/model/drive.ts';
import type { RunId, VmId } from '../../src/model/ids.ts';
import { type Plan, planDigest } from '../../src/model/plan.ts';
import type { Say } from './gate-fleet.ts';
import { installedPeer } from './patch-peers.ts';
import { NotMeasured } from './patch-site.ts';

/** One way to read the drive. */
export type Way = {
  readonly name: WayName;
  /** What QEMU opens, as the product does for its own ways. */
  readonly source: DriveSource;
  /** The process that serves it; null when QEMU reads by itself. */
  readonly serverPid: number | null;
};
export const WAY_NAMES = ['plain', 'zero-copy', 'nbd', 'fuse', 'qemu-nbd', 'nbdkit', 'nbdkit-split'] as const;
export type WayName = (typeof WAY_NAMES)[number];

export type LeftOut = { readonly what: string; readonly why: string; readonly next: string };

export type DriveSite = {
  readonly folder: string;
  readonly sizeBytes: number;
  readonly blobs: number;
  readonly ways: readonly Way[];
  readonly leftOut: readonly LeftOut[];
  readonly close: () => Promise<void>;
};

const MiB = 2 ** 20;
/** Blobs are up to so large: about the packages of a small Debian guest. */
const BLOB_BYTES_MAX = 2_500_000;
const SERVER_START_TIMEOUT_MS = 10_000;
/** Milliseconds to read all of a drive once, on a busy machine. */
const COMPARE_TIMEOUT_MS = 120_000;
/** The exports are served by VMs' names; these are the two of the bench. */
const EXPORT_VMS = { nbd: 'bench-nbd' as VmId, file: 'bench-fuse' as VmId }; // They have the form of a VmId.

/** Builds the drive and starts whatever serves it; ways that cannot be had here are left out, with the reason. */
export async function makeDriveSite(options: {
  readonly folder: string;
  readonly blobs: number;
  readonly say: Say;
}): Promise<DriveSite> {
  const { folder, say } = options;
  say(`drive: building one of ${options.blobs} blobs, and the same bytes as a plain file`);
  const drive = await buildWholeMiB(folder, options.blobs);
  const vmdk = drive.image.path;
  const iso = join(folder, 'plain.iso');
  const convert = ['qemu-img', 'convert', '-f', 'vmdk', '-O', 'raw', '-S', '0', vmdk, iso];
  await runCommand(convert, { timeoutMs: COMPARE_TIMEOUT_MS });
  const ways: Way[] = [
    { name: 'plain', source: { kind: 'raw', path: iso }, serverPid: null },
    { name: 'zero-copy', source: { kind: 'vmdk', path: vmdk }, serverPid: null },
  ];
  const leftOut: LeftOut[] = [];
  const servers: ChildProcess[] = [];
  const exports = makeDriveExports({ runFolder: join(folder, 'run'), clock: systemClock, log: silentLog });
  const close = async () => await closeAll(exports, servers);
  const attempt = async (name: WayName, start: () => Promise<Way>) => {
    try {
      ways.push(await start());
    } catch (error) {
      const next = error instanceof NotMeasured ? error.next : 'see the reason';
      leftOut.push({ what: name, why: describeError(error), next });
    }
  };
  try {
    const runFolder = join(folder, 'run');
    await mkdir(runFolder);
    await attempt('nbd', () => serveExport({ exports, runFolder, drive, transport: 'nbd' }));
    await attempt('fuse', () => serveExport({ exports, runFolder, drive, transport: 'file' }));
    const peer = { folder, servers };
    await attempt('qemu-nbd', () => servePeer('qemu-nbd', [iso], peer));
    await attempt('nbdkit', () => servePeer('nbdkit', [iso], peer));
    await attempt('nbdkit-split', async () => servePeer('nbdkit-split', await listPieces(folder, vmdk), peer));
    for (const way of ways.slice(1)) await checkSameBytes(way, iso);
  } catch (error) {
    await close();
    throw error;
  }
  for (const { what, why } of leftOut) say(`drive: ${what} is left out: ${why}`);
  return { folder, sizeBytes: drive.sizeBytes, blobs: options.blobs, ways, leftOut, close };
}

/** A drive of a whole number of MiB, so that readers go round it without an end in the middle of a block. */
async function buildWholeMiB(folder: string, count: number): Promise<BuiltDrive> {
  const files: ExtraFile[] = [];
  for (let index = 0; index < count; index += 1) {
    files.push(await writeBlob(folder, index, 1 + ((index * 7_919_117) % BLOB_BYTES_MAX)));
  }
  const sector = 2048;
  const first = await buildOnce(folder, [...files, await writeBlob(folder, count, sector)]);
  const missingBytes = (MiB - (first.sizeBytes % MiB)) % MiB;
  const drive = await buildOnce(folder, [...files, await writeBlob(folder, count, sector + missingBytes)]);
  if (drive.sizeBytes % MiB !== 0) throw new Error(`the drive of the bench has ${drive.sizeBytes} bytes, no whole MiB`);
  return drive;
}

async function writeBlob(folder: string, index: number, sizeBytes: number): Promise<ExtraFile> {
  const bytes = Buffer.alloc(sizeBytes, (index % 250) + 1);
  bytes.write(String(index));
  const digest = digestOf(bytes);
  await mkdir(join(folder, 'blobs'), { recursive: true });
  await writeFile(blobPath(folder, digest), bytes);
  return { path: `/packages/package-${index}_1.2.3_amd64.deb`, digest, sizeBytes };
}

function blobPath(folder: string, digest: Digest): string {
  return join(folder, 'blobs', digest);
}

async function buildOnce(folder: string, extraFiles: readonly ExtraFile[]): Promise<BuiltDrive> {
  // The casts hold: both texts have the form of their id.
  const [vm, run] = ['bench' as VmId, '0'.repeat(32) as RunId];
  const plan: Plan = { vm, run, items: [], leftOut: [], vendors: [] };
  const blobs = { path: (digest: Digest) => blobPath(folder, digest), has: () => true };
  return await buildDrive({
    ...{ vm, run, plan, planDigest: planDigest(plan), blobs, extraFiles },
    folder: join(folder, 'drive'),
  });
}

async function serveExport(options: {
  readonly exports: DriveExports;
  readonly runFolder: string;
  readonly drive: BuiltDrive;
  readonly transport: ExportTransport;
}): Promise<Way> {
  const { exports, runFolder, drive, transport } = options;
  const vm = EXPORT_VMS[transport];
  const watcher = {
    mayServe: () => {},
    onRestart: async () => {},
    onFailure: () => {},
  };
  const source = await exports.serve({ vm, drive, transport, watcher });
  const found = await readProcess(exportFiles(runFolder, vm));
  return { name: transport === 'nbd' ? 'nbd' : 'fuse', source, serverPid: found?.pid ?? null };
}

type Peer = 'qemu-nbd' | 'nbdkit' | 'nbdkit-split';

/** How each peer serves files on a socket, read-only, to several clients. */
const PEERS: Readonly<Record<Peer, (files: readonly string[], socket: string) => readonly [string, ...string[]]>> = {
  'qemu-nbd': (files, socket) => [
    ...(['qemu-nbd', '--read-only', '--format=raw', '--persistent', '--shared=16'] as const),
    ...[`--socket=${socket}`, '--export-name=drive', ...files],
  ],
  nbdkit: (files, socket) => ['nbdkit', '-f', '-r', '-e', 'drive', '-U', socket, 'file', ...files],
  'nbdkit-split': (files, socket) => ['nbdkit', '-f', '-r', '-e', 'drive', '-U', socket, 'split', ...files],
};

/** The files that make up a drive, one after the other: its own, and one with the missing zeros behind each that ends in mid-sector. */
async function listPieces(folder: string, descriptor: string): Promise<readonly string[]> {
  const pads = join(folder, 'pads');
  await mkdir(pads);
  const pieces: string[] = [];
  for (const [, sectors, name = ''] of (await readFile(descriptor, 'utf8')).matchAll(/^RW (\d+) FLAT "([^"]+)" 0$/gm)) {
    const path = join(descriptor, '..', name);
    pieces.push(path);
    const missingBytes = Number(sectors) * 512 - (await stat(path)).size;
    if (missingBytes === 0) continue;
    const pad = join(pads, String(missingBytes));
    await writeFile(pad, Buffer.alloc(missingBytes));
    pieces.push(pad);
  }
  return pieces;
}

/** Their Debian packages. */
export const DRIVE_PEERS_LIST = join(import.meta.dirname, 'drive-peers.txt');

async function servePeer(
  name: Peer,
  files: readonly string[],
  { folder, servers }: { readonly folder: string; readonly servers: ChildProcess[] },
): Promise<Way> {
  const socket = join(folder, `${name}.sock`);
  const [program, ...args] = PEERS[name](files, socket);
  await installedPeer(program, DRIVE_PEERS_LIST);
  const child = spawn(program, args, { stdio: 'ignore' });
  servers.push(child);
  const isUp = await waitUntil(
    async () => child.exitCode !== null || (await exists(socket)),
    systemClock,
    SERVER_START_TIMEOUT_MS,
  );
  const { pid } = child;
  if (!isUp || child.exitCode !== null || pid === undefined) throw new Error(`${name} did not start`);
  return { name, source: { kind: 'nbd', socket, exportName: 'drive' }, serverPid: pid };
}

async function exists(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}

/** How the tools of QEMU are told what to open. */
export function imageArguments({ source }: Pick<Way, 'source'>): readonly string[] {
  if (source.kind === 'nbd') return ['-f', 'raw', `nbd+unix:///${source.exportName}?socket=${source.socket}`];
  return ['-f', source.kind, source.path];
}

/** A way that shows other bytes is not measured; reading them also fills the page cache. */
async function checkSameBytes(way: Way, iso: string): Promise<void> {
  const [, format = '', image = ''] = imageArguments(way);
  const argv = ['qemu-img', 'compare', '-U', '-f', format, '-F', 'raw', image, iso];
  await runCommand(argv, { purpose: `comparing ${way.name} with the plain file`, timeoutMs: COMPARE_TIMEOUT_MS });
}

async function closeAll(exports: DriveExports, servers: readonly ChildProcess[]): Promise<void> {
  for (const server of servers) await endChild(server);
  for (const vm of Object.values(EXPORT_VMS)) await exports.withdraw(vm);
  await exports.close();
}

/** Ends a process of the bench and waits until it is gone. */
export async function endChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  child.kill('SIGTERM');
  const cancel = systemClock.after(SERVER_START_TIMEOUT_MS, () => void child.kill('SIGKILL'));
  await ended;
  cancel();
}
