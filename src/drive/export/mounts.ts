// The FUSE mounts of exported drives. A mount whose server is gone is never looked into: every touch of it is an error, and one
// whose server hangs hangs too.
import { readFile, writeFile } from 'node:fs/promises';
import { EXPORT_READ_AHEAD_KIB, EXPORT_STALE_MOUNTS_MAX } from '../../base/limits.ts';
import { tryCommand } from '../../base/run-command.ts';
import { DriveError } from '../drive-error.ts';

/** How many mounts lie over one another on this path. */
export async function countMounts(path: string): Promise<number> {
  return (await devicesAt(path)).length;
}

/** The device numbers, `MAJOR:MINOR`, of all mounts on this path, as our mount namespace has it (proc_pid_mountinfo(5)). */
async function devicesAt(path: string): Promise<readonly string[]> {
  const table = await readFile('/proc/self/mountinfo', 'utf8');
  return table.split('\n').flatMap((line) => {
    const [, , device, , place] = line.split(' ');
    return device !== undefined && place !== undefined && unescapeOctal(place) === path ? [device] : [];
  });
}

/**
 * Lets the kernel read further ahead on a mount than the 128 KiB of its default: each request is a turn of the server (sysfs-class-bdi).
 * Only root may say so; without it the same bytes are read, in more turns.
 */
export async function readFurtherAhead(path: string): Promise<void> {
  const device = (await devicesAt(path)).at(-1);
  if (device === undefined) return;
  await writeFile(`/sys/class/bdi/${device}/read_ahead_kb`, String(EXPORT_READ_AHEAD_KIB)).catch(() => {});
}

/** Takes every mount off this path, also from under whoever has the file open. Throws DriveError when one stays. */
export async function unmountAll(path: string): Promise<void> {
  let said = '';
  for (let round = 0; round <= EXPORT_STALE_MOUNTS_MAX; round += 1) {
    if ((await countMounts(path)) === 0) return;
    const { stderr } = await tryCommand(unmounting(path), { purpose: `unmounting ${path}` });
    said = stderr.trim();
  }
  throw new DriveError('host-fault/drive-mount', `the stale mount of a drive at ${path} does not go: ${said}`, {
    next: `unmount it: umount --lazy ${path}`,
  });
}

/** An ordinary user's mounts are made and ended by a program that has the right to (fusermount3(1)). */
function unmounting(path: string): readonly string[] {
  if (process.getuid?.() !== 0) return ['fusermount3', '-u', '-z', path];
  return ['umount', '--lazy', '--no-canonicalize', '--internal-only', path];
}

function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
}
