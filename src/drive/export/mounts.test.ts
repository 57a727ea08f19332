// The kernel's side of a drive that is shown as a file.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../../base/clock.ts';
import { EXPORT_READ_AHEAD_KIB } from '../../base/limits.ts';
import { waitUntil } from '../../base/wait-until.ts';
import { countMounts, readFurtherAhead, unmountAll } from './mounts.ts';

test('the kernel reads further ahead on a mounted drive where we are root, and nothing fails where we are not [X6]', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'pq-mounts-'));
  const file = join(folder, 'drive.iso');
  await writeFile(file, '');
  const node = { driver: 'null-co', 'node-name': 'drive', size: 1024 * 1024, 'read-only': true };
  const shown = { type: 'fuse', id: 'drive', 'node-name': 'drive', writable: false, mountpoint: file };
  const options = ['--blockdev', JSON.stringify(node), '--export', JSON.stringify({ ...shown, 'allow-other': 'off' })];
  const child = spawn('qemu-storage-daemon', options, { stdio: 'ignore' });
  const ended = new Promise((resolve) => child.once('exit', resolve));
  try {
    assert.ok(await waitUntil(async () => (await countMounts(file)) === 1, systemClock, 10_000));
    const table = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n');
    const device = table.find((line) => line.split(' ')[4] === file)?.split(' ')[2];
    const readAhead = async () => Number(await readFile(`/sys/class/bdi/${device}/read_ahead_kb`, 'utf8'));
    const before = await readAhead();
    assert.notEqual(before, EXPORT_READ_AHEAD_KIB);
    await readFurtherAhead(file);
    assert.equal(await readAhead(), process.getuid?.() === 0 ? EXPORT_READ_AHEAD_KIB : before);
    await readFurtherAhead(folder); // No mount there: nothing to set.
  } finally {
    child.kill('SIGTERM');
    await ended;
    await unmountAll(file);
    await rm(folder, { recursive: true, force: true });
  }
});
