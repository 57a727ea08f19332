// The first sector and the boot loader of a disk that boots by itself, read as firmware and partition tools read them.
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { makeFirstSector, PARTITION_SECTOR, writeBootSectors } from './boot-disk.ts';

const DISK_BYTES = 64 * 1024 * 1024;
let folder: string;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-boot-disk-'));
});
after(async () => {
  await rm(folder, { recursive: true, force: true });
});

test('the first sector holds the boot code and one active Linux partition up to the end of the disk', () => {
  const sector = Buffer.from(makeFirstSector(new Uint8Array(512).fill(7), DISK_BYTES));
  assert.equal(sector.length, 512);
  assert.deepEqual([...new Set(sector.subarray(0, 440))], [7]);
  assert.deepEqual([...sector.subarray(440, 446)], [0, 0, 0, 0, 0, 0], 'boot.img brings no table of its own');
  assert.equal(sector[446], 0x80, 'active');
  assert.equal(sector[450], 0x83, 'Linux');
  assert.equal(sector.readUInt32LE(454), PARTITION_SECTOR);
  assert.equal(sector.readUInt32LE(458), DISK_BYTES / 512 - PARTITION_SECTOR);
  assert.deepEqual([...new Set(sector.subarray(462, 510))], [0], 'no further partition');
  assert.equal(sector.readUInt16LE(510), 0xaa55);
});

async function prepareDisk(core: Uint8Array) {
  const modulesFolder = await mkdtemp(join(folder, 'modules-'));
  await mkdir(modulesFolder, { recursive: true });
  const paths = { diskPath: join(modulesFolder, 'disk.raw'), corePath: join(modulesFolder, 'core.img'), modulesFolder };
  await writeFile(join(modulesFolder, 'boot.img'), new Uint8Array(512).fill(7));
  await writeFile(paths.corePath, core);
  await writeFile(paths.diskPath, new Uint8Array((PARTITION_SECTOR + 8) * 512).fill(1));
  return { ...paths, diskBytes: DISK_BYTES };
}

test('the core stands right behind the first sector, and the partition is not touched', async () => {
  const disk = await prepareDisk(new Uint8Array(1000).fill(9));
  await writeBootSectors(disk);
  const bytes = await readFile(disk.diskPath);
  assert.equal(bytes.length, DISK_BYTES);
  assert.deepEqual([...new Set(bytes.subarray(512, 1512))], [9]);
  const partition = bytes.subarray(PARTITION_SECTOR * 512, (PARTITION_SECTOR + 8) * 512);
  assert.deepEqual([...new Set(partition)], [1]);
});

test('a core that would reach into the partition is refused, and the disk stays as it was', async () => {
  const disk = await prepareDisk(new Uint8Array((PARTITION_SECTOR - 1) * 512 + 1));
  const before = await readFile(disk.diskPath);
  await assert.rejects(writeBootSectors(disk), { code: 'internal/boot-loader' });
  assert.deepEqual(await readFile(disk.diskPath), before);
});
