// What the header of a qcow2 file names beside itself (QEMU's docs/interop/qcow2.txt), read without QEMU.
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';

/** Bytes of the header of version 2; version 3 adds feature bits behind them. */
const HEADER_BYTES = 104;
const MAGIC = 0x51_46_49_fb;
const INCOMPATIBLE_DATA_FILE = 4n;

export type Qcow2Header = {
  readonly namesBacking: boolean;
  /** The guest's bytes lie in another file, which the header names. */
  readonly namesDataFile: boolean;
  readonly isEncrypted: boolean;
};

/** The header of the file; null if it is no qcow2. Throws the file system's error. */
export async function readQcow2Header(path: string): Promise<Qcow2Header | null> {
  // O_NOFOLLOW: the path was resolved before; a link now would be somebody's trick. O_NONBLOCK: so would be a pipe.
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    const header = Buffer.alloc(HEADER_BYTES);
    await file.read(header, 0, HEADER_BYTES, 0);
    if (header.readUInt32BE(0) !== MAGIC) return null;
    const isVersion3 = header.readUInt32BE(4) >= 3;
    return {
      namesBacking: header.readBigUInt64BE(8) !== 0n,
      namesDataFile: isVersion3 && (header.readBigUInt64BE(72) & INCOMPATIBLE_DATA_FILE) !== 0n,
      isEncrypted: header.readUInt32BE(32) !== 0,
    };
  } finally {
    await file.close();
  }
}
