// What the tests of guests that turn on their drive share: the program they are given, a disk on which the same attempts succeed,
// and what the host's files of the drive were before and after.
import { createHash } from 'node:crypto';
import { chmod, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runCommand } from '../../src/base/run-command.ts';
import type { ManagedVm } from '../../src/hypervisor/vm-spec.ts';
import type { DriveFrontEnd } from '../../src/model/drive.ts';

const SCRATCH_BYTES = 4 * 1024 * 1024;

/** The attempts as a static program of the guest. */
export async function buildAttempts(): Promise<Uint8Array> {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-attempts-'));
  try {
    const output = join(folder, 'attempts');
    const source = join(import.meta.dirname, 'drive-attempts.c');
    await runCommand(['musl-gcc', '-static', '-Os', '-s', '-Wall', '-Werror', '-o', output, source]);
    return await readFile(output);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** A disk that its guest may write, as `/dev/vdc`: what reaches it proves that an attempt was real. */
export async function addScratch(spec: ManagedVm, folder: string): Promise<{ spec: ManagedVm; path: string }> {
  const path = join(folder, `${spec.vm}-scratch`);
  await writeFile(path, Buffer.alloc(SCRATCH_BYTES));
  await chmod(path, 0o666);
  return { spec: { ...spec, disks: [...spec.disks, { id: 'scratch', path, format: 'raw', readOnly: false }] }, path };
}

/** The same VM with its drive as this device. */
export function withFrontEnd(spec: ManagedVm, frontEnd: DriveFrontEnd): ManagedVm {
  return { ...spec, ...(frontEnd === 'scsi-cd' ? { scsi: true } : {}), drive: { frontEnd } };
}

/** Each file below the folders: inode, size, time of the last write, bytes. */
export async function fingerprint(...folders: readonly string[]): Promise<Readonly<Record<string, string>>> {
  const found: Record<string, string> = {};
  for (const folder of folders) {
    for (const name of (await readdir(folder, { recursive: true })).sort()) {
      const path = join(folder, name);
      const { ino, size, mtimeMs, mode, uid } = await stat(path);
      const isFile = (await stat(path)).isFile();
      const digest = isFile
        ? createHash('sha256')
            .update(await readFile(path))
            .digest('hex')
        : 'folder';
      found[path] = isFile ? `${ino} ${size} ${mtimeMs} ${mode} ${uid} ${digest}` : `${ino}`;
    }
  }
  return found;
}

/** The lines `name=answer` of a page, in the part that follows a heading `on=…`. */
export function answersOf(page: string, heading: string): ReadonlyMap<string, string> {
  const [, part = ''] = `\n${page}`.split(`\non=${heading}\n`);
  const lines = part.split('\non=')[0]?.split('\n') ?? [];
  return new Map(lines.map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]));
}
