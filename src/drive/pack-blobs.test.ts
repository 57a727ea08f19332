// The metadata file, byte for byte: what is in it, what fills its sectors, and what happens when it cannot be written.
import assert from 'node:assert/strict';
import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { type Digest, digestOf } from '../base/digest.ts';
import { type IsoExtent, SECTOR_BYTES } from './iso9660.ts';
import { writePacked } from './pack-blobs.ts';

let scratch = '';
before(async () => {
  scratch = await mkdtemp(join(tmpdir(), 'pratique-pack-'));
});
after(async () => await rm(scratch, { recursive: true, force: true }));

const blobs = { path: (digest: Digest) => join(scratch, digest), has: () => true };

/** A blob of ones in the store, and its extent; nobody here asks where it lies. */
async function addBlob(sizeBytes: number): Promise<IsoExtent> {
  const content = Buffer.alloc(sizeBytes, 0xff);
  const digest = digestOf(content);
  await writeFile(join(scratch, digest), content);
  return { startSector: 0, lengthBytes: sizeBytes, source: { kind: 'blob', digest } };
}

async function pack(metadata: Uint8Array, packed: readonly IsoExtent[], path: string): Promise<void> {
  const out = await open(path, 'w');
  try {
    await writePacked(out, { metadata, packed, blobs });
  } finally {
    await out.close();
  }
}

describe('the metadata file [A4] [X6]', () => {
  test('holds metadata and blobs, and behind each blob zeros up to the end of its sector: nothing of our memory', async () => {
    const metadata = Buffer.alloc(3 * SECTOR_BYTES, 0xaa);
    // Around a sector, around the piece that is written at once, and many that together fill several pieces.
    const sizes = [1, 2047, 2048, 2049, 2 ** 20 - 1, 2 ** 20, 2 ** 20 + 1, 3_000_001, 5];
    const packed = await Promise.all(sizes.map(addBlob));
    for (let index = 0; index < 700; index += 1) packed.push(await addBlob(1_000 + index));
    const path = join(scratch, 'meta.bin');
    await pack(metadata, packed, path);
    const parts = packed.flatMap(({ lengthBytes }) => [
      Buffer.alloc(lengthBytes, 0xff),
      Buffer.alloc((SECTOR_BYTES - (lengthBytes % SECTOR_BYTES)) % SECTOR_BYTES),
    ]);
    const found = await readFile(path);
    assert.ok(found.equals(Buffer.concat([metadata, ...parts])));
  });

  test('that does not fit on the disk fails with the disk’s own error, whatever is still being read', async () => {
    const packed = [await addBlob(1_000), await addBlob(3_000_000)];
    await assert.rejects(pack(Buffer.alloc(SECTOR_BYTES), packed, '/dev/full'), { code: 'ENOSPC' });
    await assert.rejects(pack(Buffer.alloc(SECTOR_BYTES), [], '/dev/full'), { code: 'ENOSPC' });
  });

  for (const sizeBytes of [1_000, 1_500_000]) {
    test(`is not finished with a blob of ${sizeBytes} bytes that is longer, shorter, other or gone`, async () => {
      const extent = await addBlob(sizeBytes);
      const path = join(scratch, extent.source.digest);
      const attempt = async () => await pack(Buffer.alloc(SECTOR_BYTES), [extent], join(scratch, 'attempt'));
      const damaged = { code: 'host-fault/blob-damaged', digest: extent.source.digest };
      await writeFile(path, Buffer.alloc(sizeBytes + 1, 0xff));
      await assert.rejects(attempt(), damaged);
      await writeFile(path, Buffer.alloc(sizeBytes - 1, 0xff));
      await assert.rejects(attempt(), damaged);
      await writeFile(path, Buffer.alloc(sizeBytes, 0xfe));
      await assert.rejects(attempt(), damaged);
      await rm(path);
      await assert.rejects(attempt(), { code: 'host-fault/blob-missing', digest: extent.source.digest });
    });
  }
});
