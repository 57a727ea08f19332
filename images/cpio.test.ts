// The initramfs archive, read back by cpio itself.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { runCommand } from '../src/base/run-command.ts';
import { type CpioEntry, makeCpio } from './cpio.ts';

test('cpio unpacks folders, files and programs of every length modulo four', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-cpio-'));
  try {
    const files = [0, 1, 2, 3, 4, 5].map(
      (size): CpioEntry => ({
        kind: size % 2 === 0 ? 'file' : 'program',
        path: `d/f${size}`,
        content: Buffer.alloc(size, 65),
      }),
    );
    const archive = makeCpio([{ kind: 'folder', path: 'd' }, ...files]);
    await runCommand(['cpio', '--extract', '--quiet', '--no-absolute-filenames'], { cwd: folder, input: archive });
    for (const size of [0, 1, 2, 3, 4, 5]) {
      const path = join(folder, `d/f${size}`);
      assert.equal(await readFile(path, 'utf8'), 'A'.repeat(size));
      assert.equal((await stat(path)).mode & 0o777, size % 2 === 0 ? 0o644 : 0o755);
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});
