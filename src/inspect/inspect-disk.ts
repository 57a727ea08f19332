// Looks into one switched-off disk (A3): finds the system on it and says what that is, or why nothing can be said.
import type { Clock } from '../base/clock.ts';
import { printable } from '../base/printable.ts';
import type { DiskImage } from '../model/disk-image.ts';
import type { Inventory } from '../model/inventory.ts';
import { InspectError, WITHOUT_A_LOOK } from './errors.ts';
import { ExtFiles } from './ext-files.ts';
import { type Content, type ExtFilesystem, identify } from './filesystem.ts';
import { type Look, openLook } from './look.ts';
import { type Partition, readPartitionTable } from './partition-table.ts';
import { findOsRelease, type LastRun, readSystem } from './system.ts';

/** What a disk tells. */
export type DiskReport = {
  /** Id of the disk in the VM spec. */
  readonly disk: string;
  readonly format: DiskImage['format'];
  readonly sizeBytes: number;
  readonly table: 'gpt' | 'mbr' | 'none';
  /** The partition that holds the system; null: the filesystem fills the disk. */
  readonly partition: number | null;
  readonly filesystem: ExtFilesystem['kind'];
  readonly inventory: Inventory;
  readonly lastRun: LastRun | null;
  /** What people should know of this reading, a sentence each. */
  readonly notes: readonly string[];
  readonly tookMs: number;
};

export type InspectOptions = {
  readonly disk: string;
  /** With real paths, which the caller has checked. */
  readonly image: DiskImage;
  readonly uid: number | null;
  readonly clock: Clock;
  readonly signal: AbortSignal;
};

/** Throws InspectError: `refused/cannot-look` where there is nothing we can read, and others for damage, time and means. */
export async function inspectDisk(options: InspectOptions): Promise<DiskReport> {
  const { disk, image, clock } = options;
  const startedMs = clock.monotonicMs();
  const look = await openLook(options);
  try {
    const report = await reportOn(look, image);
    return { disk, format: image.format, ...report, tookMs: Math.round(clock.monotonicMs() - startedMs) };
  } catch (error) {
    options.signal.throwIfAborted();
    throw error;
  } finally {
    await look.close();
  }
}

type Place = { readonly partition: Partition | null; readonly content: Content };

async function reportOn(look: Look, image: DiskImage): Promise<Omit<DiskReport, 'disk' | 'format' | 'tookMs'>> {
  const table = await readPartitionTable(look);
  const places: Place[] = [];
  for (const partition of table.partitions)
    places.push({ partition, content: await identify(look, partition.offsetBytes) });
  // A table may be left over from before the whole disk was given to one filesystem.
  if (!places.some(({ content }) => isExt(content))) places.push({ partition: null, content: await identify(look, 0) });
  for (const { partition, content } of places) {
    if (!isExt(content)) continue;
    const files = new ExtFiles(look, content.offsetBytes);
    const osRelease = await findOsRelease(files);
    if (osRelease === null) continue;
    const { inventory, lastRun, notes } = await readSystem(files, osRelease, content.freeBytes);
    return {
      sizeBytes: look.sizeBytes,
      table: table.kind,
      partition: partition?.number ?? null,
      filesystem: content.kind,
      inventory,
      lastRun,
      notes: [...table.notes, ...notesOn(content), ...notes],
    };
  }
  throw cannotLook(image, places);
}

function isExt(content: Content): content is ExtFilesystem {
  return content.kind !== 'other' && content.kind !== 'unknown';
}

function notesOn(filesystem: ExtFilesystem): readonly string[] {
  return [
    ...(filesystem.needsRecovery
      ? ['its filesystem was not unmounted: what its journal still holds is not seen until the guest boots']
      : []),
    ...(filesystem.hasErrors ? ['its filesystem is marked as damaged'] : []),
  ];
}

/** Names what was seen, so that nobody has to guess. */
function cannotLook({ path }: DiskImage, places: readonly Place[]): InspectError {
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
