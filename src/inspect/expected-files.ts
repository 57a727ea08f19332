// Which files a release puts on a disk, and what they hold: from the artifact in our own store, never from what a guest says.
import { createHash } from 'node:crypto';
import { VERIFY_FILES_MAX, VERIFY_LIST_BYTES_MAX } from '../base/limits.ts';
import { tryCommand } from '../base/run-command.ts';
import type { PlanItem } from '../model/plan.ts';
import { readArchive } from '../vendor/archive.ts';

export type ExpectedFile = {
  /** Absolute, in the guest. */
  readonly path: string;
  readonly algorithm: 'md5' | 'sha256';
  readonly digest: string;
};

/** The files of one item of a plan. */
export type ExpectedItem = { readonly item: string; readonly files: readonly ExpectedFile[] };

/**
 * What a plan's item must have left on the disk. A bundle whose own `install` entry may change what it unpacked is held to its
 * entries only, and an agent's executable is compared with the inventory. Throws PratiqueError when the artifact cannot be read.
 */
export async function expectedFiles({ id, release }: PlanItem, artifactPath: string): Promise<ExpectedItem> {
  const { install } = release;
  switch (install.action) {
    case 'debian-package':
      return { item: id, files: await filesOfPackage(artifactPath) };
    case 'bundle': {
      const all = await filesOfBundle(artifactPath, install.compression, `${install.prefix}/current`);
      const entries = [install.install, install.check].map((entry) => `${install.prefix}/current/${entry}`);
      const files = install.install === undefined ? all : all.filter(({ path }) => entries.includes(path));
      return { item: id, files };
    }
    case 'agent':
      return { item: id, files: [] };
    default:
      return install satisfies never;
  }
}

/** The package's own list of digests (dh_md5sums(1)): all its files but those that an administrator may change. */
async function filesOfPackage(artifactPath: string): Promise<readonly ExpectedFile[]> {
  const shown = await tryCommand(['dpkg-deb', '--info', artifactPath, 'md5sums'], {
    purpose: "reading a package's list of digests",
    outputBytesMax: VERIFY_LIST_BYTES_MAX,
  });
  // A package may come without one.
  if (shown.exitCode !== 0) return [];
  return shown.stdout
    .split('\n')
    .slice(0, VERIFY_FILES_MAX)
    .flatMap((line) => {
      const [, digest, path] = /^([0-9a-f]{32}) [ *]?(?:\.\/)?([^/].*)$/.exec(line) ?? [];
      return digest === undefined || path === undefined
        ? []
        : [{ path: `/${path}`, algorithm: 'md5', digest } as const];
    });
}

async function filesOfBundle(
  artifactPath: string,
  compression: Parameters<typeof readArchive>[1]['compression'],
  folder: string,
): Promise<readonly ExpectedFile[]> {
  const files: ExpectedFile[] = [];
  await readArchive(artifactPath, {
    compression,
    onFile: (path) => {
      const hash = createHash('sha256');
      return {
        push: (piece) => void hash.update(piece),
        end: () => void files.push({ path: `${folder}/${path}`, algorithm: 'sha256', digest: hash.digest('hex') }),
      };
    },
  });
  return files;
}
