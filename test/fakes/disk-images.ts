// Makes disk images as people have them: real filesystems by mke2fs, partition tables by sfdisk, formats by qemu-img.
import { chmod, mkdir, mkdtemp, open, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { systemClock } from '../../src/base/clock.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { type DiskReport, inspectDisk } from '../../src/inspect/inspect-disk.ts';
import type { DiskFormat, DiskImage } from '../../src/model/disk-image.ts';

/** The user that the looks of tests run as: any that has no rights; null where we are not root ourselves. */
export const LOOK_UID = process.getuid?.() === 0 ? 64_900 : null;

export const OS_RELEASE = 'PRETTY_NAME="Debian"\nID=debian\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n';

/** Content of a file, or `-> target` for a link, by path. */
export type Tree = Readonly<Record<string, string | Uint8Array>>;

export type Stanza = {
  readonly name: string;
  readonly version: string;
  readonly status?: string;
  readonly more?: string;
};

/** A dpkg status file. */
export function statusOf(stanzas: readonly Stanza[]): string {
  return stanzas
    .map(
      ({ name, version, status = 'install ok installed', more = '' }) =>
        `Package: ${name}\nStatus: ${status}\nArchitecture: amd64\nVersion: ${version}\n${more}Description: a package\n with two lines\n`,
    )
    .join('\n');
}

/** A small Debian: what A3 looks for. */
export const DEBIAN_TREE: Tree = {
  'usr/lib/os-release': OS_RELEASE,
  'etc/os-release': '-> ../usr/lib/os-release',
  'var/lib/dpkg/status': statusOf([
    { name: 'dpkg', version: '1.21.22' },
    { name: 'jq', version: '1.6-2.1', more: 'Source: jq-source (1.6-2)\n' },
    { name: 'held', version: '1', status: 'hold ok installed' },
    { name: 'halfway', version: '2', status: 'install ok half-configured' },
    { name: 'gone', version: '3', status: 'deinstall ok config-files' },
  ]),
};

/** A folder for images that the user of a look can reach. */
export async function makeImageFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-inspect-'));
  await chmod(folder, 0o711);
  return folder;
}

export type Ext4Options = {
  readonly folder: string;
  readonly name: string;
  readonly tree: Tree;
  readonly sizeMiB?: number;
  /** Of mke2fs: `ext2`, or `ext4` with other features. */
  readonly type?: string;
  readonly features?: string;
  /** Where it begins in the file, which is then written over and not made anew. */
  readonly offsetBytes?: number;
};

/** Writes a filesystem with these files, into a new raw image or into a partition of one; returns the image's path. */
export async function makeExt4(options: Ext4Options): Promise<string> {
  const { folder, name, tree, sizeMiB = 8, type = 'ext4', features = '', offsetBytes } = options;
  const root = await mkdtemp(join(folder, 'tree-'));
  for (const [path, content] of Object.entries(tree)) {
    const target = join(root, path);
    await mkdir(dirname(target), { recursive: true });
    if (typeof content === 'string' && content.startsWith('-> ')) await symlink(content.slice(3), target);
    else await writeFile(target, content);
  }
  const path = join(folder, name);
  const place = offsetBytes === undefined ? [] : ['-E', `offset=${offsetBytes}`];
  const wanted = features === '' ? [] : ['-O', features];
  await runCommand(['/sbin/mke2fs', '-q', '-F', '-t', type, ...wanted, ...place, '-d', root, path, `${sizeMiB}M`]);
  await rm(root, { recursive: true });
  return path;
}

/** An image of this size with a partition table that sfdisk's words describe. */
export async function makePartitioned(folder: string, name: string, sizeMiB: number, words: string): Promise<string> {
  const path = join(folder, name);
  const file = await open(path, 'w', 0o644);
  await file.truncate(sizeMiB * 1024 * 1024);
  await file.close();
  await runCommand(['/sbin/sfdisk', '-q', path], { input: words });
  return path;
}

/** The same disk in another format. */
export async function convert(path: string, format: DiskFormat): Promise<string> {
  const target = `${path}.${format}`;
  await runCommand(['qemu-img', 'convert', '-f', 'raw', '-O', format, path, target]);
  await chmod(target, 0o644);
  return target;
}

/** Overwrites bytes of a file. */
export async function patch(path: string, offsetBytes: number, bytes: Uint8Array | string): Promise<void> {
  const file = await open(path, 'r+');
  const buffer = typeof bytes === 'string' ? Buffer.from(bytes, 'latin1') : bytes;
  await file.write(buffer, 0, buffer.length, offsetBytes);
  await file.close();
}

/** Looks into an image as the host would. */
export async function look(image: DiskImage, signal = new AbortController().signal): Promise<DiskReport> {
  return await inspectDisk({ disk: 'root', image, uid: LOOK_UID, clock: systemClock, signal });
}
