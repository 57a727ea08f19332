// Which host files a VM may be given, and whose they are then.
import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { runCommand } from '../../base/run-command.ts';
import type { VmId } from '../../model/ids.ts';
import { prepareImage, resolveImage } from './disk-paths.ts';

const VM = 'web' as VmId; // Letters are a VM's name.
let folder: string;
let root: string;
let base: string;
let top: string;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'pratique-paths-'));
  root = join(folder, 'disks');
  await mkdir(root);
  base = join(root, 'base.raw');
  top = join(root, 'top.qcow2');
  await writeFile(base, Buffer.alloc(1024 * 1024));
  await runCommand(['qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', base, top]);
});
after(async () => {
  await rm(folder, { recursive: true });
});

const resolve = async (image: Parameters<typeof resolveImage>[2]) =>
  await resolveImage(VM, 'disks.root', image, [root]);

test('a chain is resolved to its end, and each image of it must lie under the roots [A3]', async () => {
  const link = join(root, 'link.raw');
  await symlink(base, link);
  const backing = { path: link, format: 'raw' } as const;
  assert.deepEqual(await resolve({ path: top, format: 'qcow2', backing }), {
    path: top,
    format: 'qcow2',
    backing: { path: base, format: 'raw' },
  });
  const outside = join(folder, 'outside.raw');
  await writeFile(outside, 'x');
  const other = { path: outside, format: 'raw' } as const;
  await assert.rejects(resolve({ path: top, format: 'qcow2', backing: other }), { code: 'refused/disk-root' });
  const away = join(root, 'away.raw');
  await symlink(outside, away);
  await assert.rejects(resolve({ path: away, format: 'raw' }), { code: 'refused/disk-root' });
});

test('a qcow2 disk on top of an image that the spec does not name is refused: the guest would see holes [A3]', async () => {
  await assert.rejects(resolve({ path: top, format: 'qcow2' }), (error: Error & { next?: string }) => {
    assert.match(error.message, /web: disks\.root: .*top\.qcow2 was made on top of another image/);
    assert.match(error.next ?? '', /disks\.root\.backing/);
    return true;
  });
  const plain = join(root, 'plain.qcow2');
  await runCommand(['qemu-img', 'create', '-q', '-f', 'qcow2', plain, '1M']);
  assert.equal((await resolve({ path: plain, format: 'qcow2' })).path, plain);
  // The same header in a raw disk is a guest's data.
  assert.equal((await resolve({ path: top, format: 'raw' })).format, 'raw');
});

test('a qcow2 disk that keeps its data in another file is refused [A3]', async () => {
  const path = join(root, 'split.qcow2');
  const options = `data_file=${join(root, 'split.data')},data_file_raw=on`;
  await runCommand(['qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, path, '1M']);
  await assert.rejects(resolve({ path, format: 'qcow2' }), { code: 'refused/disk-data-file' });
});

test('a disk that its VM may not read is given to it, one that it may is left as it is [A3]', async (t) => {
  if (process.getuid?.() !== 0) {
    t.diagnostic('not root: nothing can be given');
    return;
  }
  const uid = 64_901;
  const closed = join(root, 'closed.raw');
  await writeFile(closed, 'x', { mode: 0o600 });
  const disk = { id: 'root', format: 'raw' } as const;
  await prepareImage(VM, { ...disk, path: closed, readOnly: true }, uid, [root]);
  assert.equal((await stat(closed)).uid, 0, 'a read-only disk belongs to whoever made it');
  await prepareImage(VM, { ...disk, path: closed }, uid, [root]);
  const given = await stat(closed);
  assert.deepEqual([given.uid, given.mode & 0o777], [uid, 0o600]);
  await chmod(base, 0o644);
  await prepareImage(VM, { ...disk, path: base }, uid, [root]);
  assert.equal((await stat(base)).uid, 0);
});
