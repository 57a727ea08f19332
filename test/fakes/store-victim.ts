// A process that downloads one blob and dies by SIGKILL at a chosen stage: node store-victim.ts FOLDER STAGE
import { systemClock } from '../../src/base/clock.ts';
import { digestOf } from '../../src/base/digest.ts';
import { silentLog } from '../../src/base/log.ts';
import { openBlobStore } from '../../src/store/blob-store.ts';
import { type Disk, realDisk } from '../../src/store/download.ts';

export type VictimStage = 'partial-write' | 'before-sync' | 'before-rename' | 'after-rename' | 'after-sync';
/** What it downloads: 1 MiB whose every byte depends on its place. */
export const VICTIM_BLOB = Buffer.alloc(1024 * 1024, 'pratique: free pratique is granted to this ship. ');

function die(): never {
  process.kill(process.pid, 'SIGKILL');
  for (;;); // The signal arrives before the next instruction that matters.
}

function deadlyDisk(stage: VictimStage): Disk {
  return {
    ...realDisk,
    write: async (file, piece, position) => {
      if (stage === 'partial-write' && position > VICTIM_BLOB.length / 2) {
        await realDisk.write(file, piece.subarray(0, piece.length / 2), position);
        die();
      }
      await realDisk.write(file, piece, position);
    },
    syncFile: async (file) => {
      if (stage === 'before-sync') die();
      await realDisk.syncFile(file);
    },
    rename: async (from, to) => {
      if (stage === 'before-rename') die();
      await realDisk.rename(from, to);
      if (stage === 'after-rename') die();
    },
    syncFolder: async (folder) => {
      await realDisk.syncFolder(folder);
      if (stage === 'after-sync') die();
    },
  };
}

async function* pieces(offsetBytes: number): AsyncGenerator<Uint8Array> {
  for (let start = offsetBytes; start < VICTIM_BLOB.length; start += 65_536) {
    yield VICTIM_BLOB.subarray(start, start + 65_536);
  }
}

async function main(folder: string, stage: VictimStage): Promise<void> {
  const store = await openBlobStore({
    folder,
    clock: systemClock,
    log: silentLog,
    budgetBytes: 1e9,
    disk: deadlyDisk(stage),
  });
  const digest = digestOf(VICTIM_BLOB);
  store.pin('victim', [digest]);
  await store.ensure({ digest, sizeBytes: VICTIM_BLOB.length, open: async (offsetBytes) => pieces(offsetBytes) });
}

const [folder, stage] = process.argv.slice(2);
// The cast holds: the test passes one of the stages.
if (import.meta.main && folder !== undefined) await main(folder, stage as VictimStage);
