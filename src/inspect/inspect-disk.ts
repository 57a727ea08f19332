// Looks into one switched-off disk (A3): finds the system on it and says what that is, or why nothing can be said.
import type { Clock } from '../base/clock.ts';
import { printable } from '../base/printable.ts';
import type { DiskImage, DiskViewSource } from '../model/disk-image.ts';
import type { Inventory } from '../model/inventory.ts';
import type { FilesFinding } from './check-files.ts';
import { InspectError, WITHOUT_A_LOOK } from './errors.ts';
import { ExtFiles } from './ext-files.ts';
import { type Content, type ExtFilesystem, identify } from './filesystem.ts';
import { type Look, type LookOptions, openLook } from './look.ts';
import { type Partition, readPartitionTable } from './partition-table.ts';
import { findOsRelease, type LastRun, readSystem } from './system.ts';

/** What a disk tells. */
export type DiskReport = SystemReport & {
  /** Id of the disk in the VM spec. */
  readonly disk: string;
  readonly format: DiskImage['format'];
  readonly tookMs: number;
};

/** What the disk of a VM that runs told, with what came of looking for files on it. */
export type RunningReport = SystemReport & { readonly files: FilesFinding; readonly tookMs: number };

type SystemReport = {
  readonly sizeBytes: number;
  readonly table: 'gpt' | 'mbr' | 'none';
  /** The partition that holds the system; null: the filesystem fills the disk. */
  readonly partition: number | null;
  readonly filesystem: ExtFilesystem['kind'];
  readonly inventory: Inventory;
  readonly lastRun: LastRun | null;
  /** What people should know of this reading, a sentence each. */
  readonly notes: readonly string[];
};

type Reading = { readonly uid: number | null; readonly clock: Clock; readonly signal: AbortSignal };

export type InspectOptions = Reading & {
  readonly disk: string;
  /** With real paths, which the caller has checked. */
  readonly image: DiskImage;
};

export type RunningOptions = Reading & {
  readonly view: DiskViewSource;
  readonly check: (files: ExtFiles) => Promise<FilesFinding>;
};

/** Throws InspectError: `refused/cannot-look` where there is nothing we can read, and others for damage, time and means. */
export async function inspectDisk({ disk, image, ...reading }: InspectOptions): Promise<DiskReport> {
  const { report, tookMs } = await lookInto(image, reading, (look) => findSystem(look, image.path));
  return { disk, format: image.format, ...report.system, tookMs };
}

/** The same of a VM that runs, as its journal has it. Throws as `inspectDisk` does. */
export async function inspectView({ view, check, ...reading }: RunningOptions): Promise<RunningReport> {
  const { report, tookMs } = await lookInto(view, reading, async (look) => {
    const { system, files } = await findSystem(look, view.path);
    return { ...system, files: await check(files) };
  });
  return { ...report, tookMs };
}

async function lookInto<T>(target: LookOptions['image'], reading: Reading, read: (look: Look) => Promise<T>) {
  const { clock, signal } = reading;
  const startedMs = clock.monotonicMs();
  const look = await openLook({ ...reading, image: target });
  try {
    const report = await read(look);
    return { report, tookMs: Math.round(clock.monotonicMs() - startedMs) };
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  } finally {
    await look.close();
  }
}

type Place = { readonly partition: Partition | null; readonly content: Content };

async function findSystem(
  look: Look,
  path: string,
): Promise<{ readonly system: SystemReport; readonly files: ExtFiles }> {
  const table = await readPartitionTable(look);
  const places: Place[] = [];
  for (const partition of table.partitions)
    places.push({ partition, content: await identify(look, partition.offsetBytes) });
  // A table may be left over from before the whole disk was given to one filesystem.
  if (!places.some(({ content }) => isExt(content))) places.push({ partition: null, content: await identify(look, 0) });
  for (const { partition, content } of places) {
    if (!isExt(content)) continue;
    const place = { offsetBytes: content.offsetBytes, sizeBytes: partition?.sizeBytes ?? look.sizeBytes };
    const found = await openSystem(look, content, place);
    if (found === null) continue;
    const { files } = found;
    const { inventory, lastRun, notes } = await readSystem(files, found.osRelease, content.freeBytes);
    const system: SystemReport = {
      sizeBytes: look.sizeBytes,
      table: table.kind,
      partition: partition?.number ?? null,
      filesystem: content.kind,
      inventory,
      lastRun,
      notes: [...table.notes, ...notesOn(content, found.isReplayed), ...notes],
    };
    return { system, files };
  }
  throw cannotLook(path, places);
}

/** The files of a filesystem with a system on it; null for any other. Of a VM that runs they are as its journal has them. */
async function openSystem(look: Look, content: ExtFilesystem, place: Pick<Partition, 'offsetBytes' | 'sizeBytes'>) {
  const plain = new ExtFiles(look, content.offsetBytes);
  const before = await findOsRelease(plain);
  if (before === null) return null;
  if (!content.needsRecovery || look.replay === undefined)
    return { files: plain, osRelease: before, isReplayed: false };
  await look.replay(place);
  const files = new ExtFiles(look, 'replayed');
  const osRelease = await findOsRelease(files);
  return osRelease === null ? null : { files, osRelease, isReplayed: true };
}

function isExt(content: Content): content is ExtFilesystem {
  return content.kind !== 'other' && content.kind !== 'unknown';
}

function notesOn(filesystem: ExtFilesystem, isReplayed: boolean): readonly string[] {
  return [
    ...(filesystem.needsRecovery && !isReplayed
      ? ['its filesystem was not unmounted: what its journal still holds is not seen until the guest boots']
      : []),
    ...(filesystem.hasErrors ? ['its filesystem is marked as damaged'] : []),
  ];
}

/** Names what was seen, so that nobody has to guess. */
function cannotLook(path: string, places: readonly Place[]): InspectError {
  const seen = places.flatMap(({ partition, content }) => {
    const where = partition === null ? '' : ` (partition ${partition.number})`;
    if (content.kind === 'unknown') return [];
    return [`${content.kind === 'other' ? content.name : `${content.kind} without a system on it`}${where}`];
  });
  const holds = seen.length === 0 ? 'nothing we know' : seen.slice(0, SEEN_TOLD_MAX).join(', ');
  return new InspectError(
    'refused/cannot-look',
    `cannot look inside ${path}: the disk holds ${printable(holds, 400)}`,
    {
      next: WITHOUT_A_LOOK,
    },
  );
}

const SEEN_TOLD_MAX = 10;
