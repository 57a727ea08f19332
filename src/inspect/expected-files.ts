// Which files a release puts on a disk, and what they hold: from the artifact in our own store, never from what a guest says.
import { createHash } from 'node:crypto';
import { VERIFY_FILES_MAX, VERIFY_LIST_BYTES_MAX } from '../base/limits.ts';
import { runCommand, tryCommand } from '../base/run-command.ts';
import type { PlanItem } from '../model/plan.ts';
import { readArchive } from '../vendor/archive.ts';

export type ExpectedFile = {
  /** Absolute, in the guest. */
  readonly path: string;
  readonly algorithm: 'md5' | 'sha256';
  readonly digest: string;
};

/** The files of one item of a plan. */
export type ExpectedItem = {
  readonly item: string;
  readonly files: readonly ExpectedFile[];
  /** Bytes of the files by their paths, as far as the artifact tells; asked for where some are too large to be read. Throws PratiqueError. */
  readonly sizes?: () => Promise<ReadonlyMap<string, number>>;
};

/**
 * What a plan's item must have left on the disk. A bundle whose own `install` entry may change what it unpacked is held to its
 * entries only, and an agent's executable is compared with the inventory. Throws PratiqueError when the artifact cannot be read.
 */
export async function expectedFiles({ id, release }: PlanItem, artifactPath: string): Promise<ExpectedItem> {
  const { install } = release;
  switch (install.action) {
    case 'debian-package':
      return { item: id, files: await filesOfPackage(artifactPath), sizes: () => sizesOfPackage(artifactPath) };
    case 'bundle': {
      const all = await filesOfBundle(artifactPath, install.compression, `${install.prefix}/current`);
      const entries = [install.install, install.check].map((entry) => `${install.prefix}/current/${entry}`);
      const files = install.install === undefined ? all.files : all.files.filter(({ path }) => entries.includes(path));
      return { item: id, files, sizes: async () => all.sizes };
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

/** Plain files as `tar -tv` lists them; a hard link's size is that of another, and is not told. */
async function sizesOfPackage(artifactPath: string): Promise<ReadonlyMap<string, number>> {
  const listed = await runCommand(['dpkg-deb', '--contents', artifactPath], {
    purpose: "listing a package's files",
    outputBytesMax: VERIFY_LIST_BYTES_MAX,
  });
  const sizes = listed.split('\n').flatMap((line) => {
    const [, size, path] = /^-\S{9}\s+\S+\s+(\d{1,15}) \S+ \S+ \.(\/.*)$/.exec(line) ?? [];
    return size === undefined || path === undefined ? [] : [[path, Number(size)] as const];
  });
  return new Map(sizes);
}

async function filesOfBundle(
  artifactPath: string,
  compression: Parameters<typeof readArchive>[1]['compression'],
  folder: string,
): Promise<{ readonly files: readonly ExpectedFile[]; readonly sizes: ReadonlyMap<string, number> }> {
  const files: ExpectedFile[] = [];
  const sizes = new Map<string, number>();
  await readArchive(artifactPath, {
    compression,
    onFile: (path) => {
      const hash = createHash('sha256');
      let sizeBytes = 0;
      return {
        push: (piece) => {
          sizeBytes += piece.length;
          hash.update(piece);
        },
        end: () => {
          files.push({ path: `${folder}/${path}`, algorithm: 'sha256', digest: hash.digest('hex') });
          sizes.set(`${folder}/${path}`, sizeBytes);
        },
      };
    },
  });
  return { files, sizes };
}
