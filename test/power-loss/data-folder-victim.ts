// A program that fills a data folder and says what it promises: node data-folder-victim.ts FOLDER LIFE [DEVICE OFFSET]
//
// A line of JSON each on its output; or, with a device, a block of it from that byte on, past every cache of the kernel and without a
// flush of its own: where the block lies among the device's writes is when it was promised.
import { constants, openSync, writeSync } from 'node:fs';
import { fillDataFolder, LIVES, type Said } from './data-folder.ts';

/** Bytes of one mark; its text ends at the first zero byte. */
export const MARK_BYTES = 4096;

type Say = (said: Said) => void;

const sayAloud: Say = (said) => {
  writeSync(1, `${JSON.stringify(said)}\n`);
};

/** The addresses that the kernel takes for writes past its cache are whole sectors; where a buffer begins is not ours to choose. */
const ALIGNMENT_STEP_BYTES = 16;

function makeMarker(device: string, offset: number): Say {
  const file = openSync(device, constants.O_WRONLY | constants.O_DIRECT);
  const room = Buffer.alloc(2 * MARK_BYTES);
  const starts = Array.from({ length: MARK_BYTES / ALIGNMENT_STEP_BYTES }, (_, index) => index * ALIGNMENT_STEP_BYTES);
  const start = starts.find((from) => isTaken(() => writeSync(file, room, from, MARK_BYTES, offset)));
  if (start === undefined) throw new Error(`${device} takes no write past the cache`);
  const block = room.subarray(start, start + MARK_BYTES);
  return (said) => {
    block.fill(0);
    block.write(JSON.stringify(said));
    writeSync(file, block, 0, MARK_BYTES, offset);
  };
}

function isTaken(write: () => unknown): boolean {
  try {
    write();
    return true;
  } catch {
    return false;
  }
}

const [folder, word, device, offset] = process.argv.slice(2);
const life = LIVES.find((each) => each === word);
if (import.meta.main && folder !== undefined && life !== undefined) {
  await fillDataFolder(folder, life, device === undefined ? sayAloud : makeMarker(device, Number(offset)));
  // Without a word to anybody, as a crash.
  process.exit();
}
