// A disk that boots by itself: a partition table, GRUB in the gap before the first partition, and one ext4 file system.
import { open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { runCommand } from '../src/base/run-command.ts';
import { ImageError } from './image-error.ts';

const SECTOR_BYTES = 512;
/** Where the partition begins: the customary 1 MiB leaves room for the boot loader. */
export const PARTITION_SECTOR = 2048;
/** Bytes of boot.img that are code; the rest of the first sector is the partition table (GRUB: boot.S, GRUB_BOOT_MACHINE_WINDOWS_NT_MAGIC). */
const BOOT_CODE_BYTES = 440;
const TABLE_OFFSET = 446;

/** What GRUB needs to find its configuration on the partition and to start Linux from there. */
const GRUB_MODULES = ['biosdisk', 'part_msdos', 'ext2', 'normal', 'linux', 'serial', 'terminal', 'test', 'reboot'];
/** The folder on the partition that holds grub.cfg. */
const GRUB_PREFIX = '(hd0,msdos1)/boot/grub';

/** Builds GRUB's core from the modules of an unpacked grub-pc-bin. */
export async function makeGrubCore(options: { readonly modulesFolder: string; readonly path: string }): Promise<void> {
  const { modulesFolder, path } = options;
  const target = ['--format=i386-pc', `--directory=${modulesFolder}`, `--prefix=${GRUB_PREFIX}`, `--output=${path}`];
  await runCommand(['grub-mkimage', ...target, ...GRUB_MODULES], { purpose: 'making the boot loader' });
}

/**
 * Makes a file whose partition is written already bootable: boot code and partition table in the first sector, GRUB's core in those
 * behind it, where boot.img looks for it by default. Throws ImageError `internal/boot-loader` if the core does not fit.
 */
export async function writeBootSectors(options: {
  readonly diskPath: string;
  readonly diskBytes: number;
  readonly modulesFolder: string;
  readonly corePath: string;
}): Promise<void> {
  const code = await readFile(join(options.modulesFolder, 'boot.img'));
  const core = await readFile(options.corePath);
  if (core.length > (PARTITION_SECTOR - 1) * SECTOR_BYTES) {
    throw new ImageError(
      'internal/boot-loader',
      `GRUB's core of ${core.length} bytes does not fit before the partition`,
    );
  }
  const disk = await open(options.diskPath, 'r+');
  try {
    await disk.truncate(options.diskBytes);
    await disk.write(makeFirstSector(code, options.diskBytes), 0, SECTOR_BYTES, 0);
    await disk.write(core, 0, core.length, SECTOR_BYTES);
    await disk.sync();
  } finally {
    await disk.close();
  }
}

/** The master boot record: boot code, and one active Linux partition up to the end of the disk. */
export function makeFirstSector(bootCode: Uint8Array, diskBytes: number): Uint8Array {
  const sector = new Uint8Array(SECTOR_BYTES);
  sector.set(bootCode.subarray(0, BOOT_CODE_BYTES));
  const view = new DataView(sector.buffer);
  view.setUint8(TABLE_OFFSET, 0x80);
  // The old addresses by cylinder, head and sector say "beyond what they can express"; readers then take the sector numbers.
  for (const offset of [1, 5]) sector.set([0xfe, 0xff, 0xff], TABLE_OFFSET + offset);
  view.setUint8(TABLE_OFFSET + 4, 0x83);
  view.setUint32(TABLE_OFFSET + 8, PARTITION_SECTOR, true);
  view.setUint32(TABLE_OFFSET + 12, diskBytes / SECTOR_BYTES - PARTITION_SECTOR, true);
  sector.set([0x55, 0xaa], 510);
  return sector;
}
