// Builds the guest images of the demo and the tests, once per set of inputs, and gives each VM a disk of its own.
import { access, mkdir, mkdtemp, readdir, readFile, rename } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { type Static, Type } from 'typebox';
import { type Digest, digestOf, digestOfFile } from '../src/base/digest.ts';
import { canonicalJson } from '../src/base/digest-text.ts';
import { syncFolder, writeDurably } from '../src/base/durable-file.ts';
import type { Log } from '../src/base/log.ts';
import { makeParser, parseJson } from '../src/base/parse.ts';
import { runCommand } from '../src/base/run-command.ts';
import type { DiskSchema } from '../src/hypervisor/vm-spec.ts';
import type { VmId } from '../src/model/ids.ts';
import { markUsed, pruneCache, removeTree } from './cache.ts';
import { debianRecipe } from './debian.ts';
import { type DebianPackage, fetchPackage } from './debian-package.ts';
import { debianCloudRecipe, debianSystemdRecipe } from './debian-systemd.ts';
import { withFileLock } from './file-lock.ts';
import { kernelCommandLine } from './guest-system.ts';
import { ImageError } from './image-error.ts';
import { fetchKernelPackage, hostArch, type KernelFlavour } from './kernel.ts';
import type { DirectBootRecipe, DiskBootRecipe, ImageRecipe } from './recipe.ts';
import { tinyRecipe } from './tiny.ts';

export type DiskSpec = Static<typeof DiskSchema>;
export type ImageName = ImageRecipe['name'];

const RECIPES: Readonly<Record<ImageName, ImageRecipe>> = {
  tiny: tinyRecipe,
  debian: debianRecipe,
  'debian-systemd': debianSystemdRecipe,
  'debian-cloud': debianCloudRecipe,
};

export type ImageDebian = {
  readonly suite: string;
  readonly packages: readonly { readonly name: string; readonly version: string; readonly arch: string }[];
};

type CommonImage = {
  readonly name: ImageName;
  /** The shared disks, to be turned into a VM's own with `makeVmDisk`. */
  readonly disks: readonly DiskSpec[];
  readonly vmDisk: 'copy' | 'overlay';
  /** Memory with which it boots and updates without trouble. */
  readonly memoryMiB: number;
  /** Of all inputs: equal digests, equal images. */
  readonly digest: Digest;
  /** What it is made of; null for the tiny one. */
  readonly debian: ImageDebian | null;
};
/** An image as it stands in the cache, started by kernel; its files are shared by all VMs and never written. */
export type GuestImage = CommonImage & {
  readonly kernel: string;
  readonly initrd: string;
  /** What the kernel needs to hear; `guestCommandLine` adds what one VM needs. */
  readonly commandLine: string;
};
/** An image whose disk boots by itself. */
export type DiskBootImage = CommonImage & {
  readonly kernel: null;
  /** The kernel that its boot loader starts, as `uname -r` says it. */
  readonly kernelRelease: string;
};
export type AnyImage = GuestImage | DiskBootImage;

export type BuildOptions<Name extends ImageName = ImageName> = {
  readonly name: Name;
  /** The agent's executable for the guest. */
  readonly agentPath: string;
  readonly cacheFolder: string;
  readonly log: Log;
  /** Of the images that are started by kernel. */
  readonly kernelFlavour?: KernelFlavour;
  readonly onProgress?: (step: string) => void;
};

/** Images of one name that are kept in the cache when none of them is in use. */
const IMAGES_KEPT = 2;

/**
 * The image for these inputs, from the cache or built now. Several processes may ask at once: one builds, the others wait.
 * Images of superseded inputs are removed from the cache. Throws ImageError or CommandError; the cache then holds no half image.
 */
export async function buildImage(options: BuildOptions<DirectBootRecipe['name']>): Promise<GuestImage>;
export async function buildImage(options: BuildOptions): Promise<AnyImage>;
export async function buildImage(options: BuildOptions): Promise<AnyImage> {
  const report = options.onProgress ?? (() => {});
  const recipe = RECIPES[options.name];
  const imagesFolder = join(options.cacheFolder, 'images');
  await mkdir(imagesFolder, { recursive: true });
  report('resolving inputs');
  const job = await resolveInputs(recipe, options);
  const digest = digestOf(canonicalJson(job.record));
  const folder = join(imagesFolder, `${recipe.name}-${digest}`);
  await withFileLock(join(imagesFolder, `${recipe.name}.lock`), async () => {
    if (!(await exists(folder))) {
      options.log.info({ image: recipe.name, digest }, 'building the guest image');
      await removeUnfinished(imagesFolder, recipe.name);
      const temporary = await mkdtemp(join(imagesFolder, `${recipe.name}-new-`));
      try {
        await buildInto(temporary, job, options, report);
        await rename(join(temporary, 'out'), folder);
        await syncFolder(imagesFolder);
      } finally {
        await removeTree(temporary);
      }
    }
    await markUsed(folder);
    const pattern = new RegExp(`^${recipe.name}-[0-9a-f]{64}$`);
    await pruneCache({ folder: imagesFolder, pattern, keep: IMAGES_KEPT });
  });
  report('ready');
  return await describeImage(recipe, folder, digest);
}

/** What a build that was killed has left behind; nobody else builds this image now. */
async function removeUnfinished(imagesFolder: string, name: ImageName): Promise<void> {
  const unfinished = (await readdir(imagesFolder)).filter((entry) => entry.startsWith(`${name}-new-`));
  for (const entry of unfinished) await removeTree(join(imagesFolder, entry));
}

/** A recipe with its inputs, and everything that decides the image's content: for inputs.json and the digest. */
type Job = { readonly packages: readonly DebianPackage[]; readonly record: Readonly<Record<string, unknown>> } & (
  | { readonly recipe: DirectBootRecipe; readonly kernelPackage: DebianPackage }
  | { readonly recipe: DiskBootRecipe }
);

async function resolveInputs(recipe: ImageRecipe, options: BuildOptions): Promise<Job> {
  const { cacheFolder, log } = options;
  if (!(await exists(options.agentPath))) {
    throw new ImageError('not-found/agent', `there is no guest agent at ${options.agentPath}`, {
      next: 'build the agent first, or give the path of one',
    });
  }
  const packages: DebianPackage[] = [];
  for (const name of recipe.packages) packages.push(await fetchPackage({ name, cacheFolder, log }));
  const describe = async (all: readonly DebianPackage[]) => ({
    format: 'pratique.image-inputs/1',
    name: recipe.name,
    arch: hostArch(),
    agent: await digestOfFile(options.agentPath),
    packages: all.map(({ name, version, digest }) => ({ name, version, digest })),
    recipe: await digestsOfRecipeFiles(),
    ...(recipe.pinFurther === undefined ? {} : { further: await recipe.pinFurther({ cacheFolder, log }) }),
  });
  if (recipe.boot === 'disk') return { recipe, packages, record: await describe(packages) };
  const flavour = options.kernelFlavour ?? 'cloud';
  const kernelPackage = await fetchKernelPackage({ flavour, cacheFolder, log });
  return { recipe, packages, kernelPackage, record: await describe([kernelPackage, ...packages]) };
}

/** The digest of every file of this folder that takes part in a build. */
async function digestsOfRecipeFiles(): Promise<Readonly<Record<string, Digest>>> {
  const here = import.meta.dirname;
  const entries = await readdir(here, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile() && !/\.test\.ts$|^main\.ts$|\.md$/.test(entry.name));
  const digests: Record<string, Digest> = {};
  for (const file of files) {
    const path = join(file.parentPath, file.name);
    digests[relative(here, path)] = await digestOfFile(path);
  }
  return digests;
}

async function buildInto(
  temporary: string,
  job: Job,
  options: BuildOptions,
  report: (step: string) => void,
): Promise<void> {
  const outFolder = join(temporary, 'out');
  const workFolder = join(temporary, 'work');
  // QEMU runs under another user: it must be able to read its kernel and disks.
  await mkdir(outFolder, { mode: 0o755 });
  await mkdir(workFolder);
  const { agentPath, cacheFolder, log } = options;
  const inputs = { packages: job.packages, agentPath, cacheFolder, workFolder, outFolder, report, log };
  if ('kernelPackage' in job) await job.recipe.build({ ...inputs, kernelPackage: job.kernelPackage });
  else await job.recipe.build(inputs);
  await writeDurably(join(outFolder, 'inputs.json'), `${JSON.stringify(job.record, null, 2)}\n`, 0o644);
}

async function describeImage(recipe: ImageRecipe, folder: string, digest: Digest): Promise<AnyImage> {
  const common = {
    name: recipe.name,
    disks: [{ id: 'root', path: join(folder, 'root.raw'), format: 'raw' }],
    vmDisk: recipe.vmDisk,
    memoryMiB: recipe.memoryMiB,
    digest,
    debian: await readDebian(folder),
  } as const;
  if (recipe.boot === 'disk') return { ...common, kernel: null, kernelRelease: kernelReleaseOf(common.debian) };
  const commandLine = kernelCommandLine();
  return { ...common, kernel: join(folder, 'kernel'), initrd: join(folder, 'initrd'), commandLine };
}

const parseInputs = makeParser(
  Type.Object({
    further: Type.Optional(Type.Object({ suite: Type.String(), basePackages: Type.Array(Type.String()) })),
  }),
  'host-fault/image-inputs',
);

/** The packages of the base system, from the record of the image's inputs. */
async function readDebian(folder: string): Promise<ImageDebian | null> {
  const path = join(folder, 'inputs.json');
  const { further } = parseInputs(parseJson(await readFile(path, 'utf8'), path, 'host-fault/image-inputs'), path);
  if (further === undefined) return null;
  const packages = further.basePackages.map((line) => {
    const [name = '', version = '', arch = ''] = line.split(' ');
    return { name, version, arch };
  });
  return { suite: further.suite, packages };
}

function kernelReleaseOf(debian: ImageDebian | null): string {
  for (const { name } of debian?.packages ?? []) {
    const release = /^linux-image-([0-9].*)$/.exec(name)?.[1];
    if (release !== undefined) return release;
  }
  throw new ImageError('internal/image', 'the image that boots by itself has no kernel package');
}

/** What one VM's guest is to do: told on its kernel's command line and read by images/guest/boot, or told on a disk and read by images/guest-systemd/wishes. */
export type GuestWishes = {
  /** Address and prefix length of eth0, for example 10.77.0.2/24. */
  readonly address?: string;
  /** Try to send all the time, so that a leak check has something to count. */
  readonly chatter?: boolean;
  /** `no-agent`: the agent is never started. */
  readonly mode?: 'no-agent';
};

/** The command line of one VM. Throws ImageError `usage/guest-address` for an address that is none. */
export function guestCommandLine(image: GuestImage, wishes: GuestWishes): string {
  return [image.commandLine, ...guestWords(wishes)].join(' ');
}

/** The wishes as words. Throws ImageError `usage/guest-address` for an address that is none. */
export function guestWords(wishes: GuestWishes): readonly string[] {
  const words: string[] = [];
  if (wishes.address !== undefined) {
    if (!/^\d{1,3}(\.\d{1,3}){3}\/\d{1,2}$/.test(wishes.address)) {
      throw new ImageError('usage/guest-address', `'${wishes.address}' is no IPv4 address with prefix length`);
    }
    words.push(`pq.ip=${wishes.address}`);
  }
  if (wishes.chatter === true) words.push('pq.chatter=1');
  if (wishes.mode !== undefined) words.push(`pq.mode=${wishes.mode}`);
  return words;
}

/** Makes one VM's own system disk from the image's. Throws ImageError `conflict/vm-disk` if it exists: a VM's disk is never overwritten. */
export async function makeVmDisk(options: {
  readonly image: AnyImage;
  readonly folder: string;
  readonly vm: VmId;
}): Promise<DiskSpec> {
  const { image, folder, vm } = options;
  const [shared] = image.disks;
  if (shared === undefined) throw new ImageError('internal/image', `the image ${image.name} has no disk`);
  const format = image.vmDisk === 'copy' ? 'raw' : 'qcow2';
  const path = join(folder, `${vm}-${shared.id}.${format}`);
  if (await exists(path)) {
    throw new ImageError('conflict/vm-disk', `the disk ${path} of ${vm} exists already`, {
      next: 'remove it if the VM is to start afresh',
    });
  }
  await mkdir(folder, { recursive: true });
  const argv =
    image.vmDisk === 'copy'
      ? ['cp', '--sparse=always', '--reflink=auto', shared.path, path]
      : ['qemu-img', 'create', '-q', '-f', 'qcow2', '-F', shared.format, '-b', shared.path, path];
  await runCommand(argv, { purpose: `making the disk of ${vm}` });
  if (image.vmDisk === 'copy') return { id: shared.id, path, format };
  return { id: shared.id, path, format, backing: { path: shared.path, format: shared.format } };
}

async function exists(path: string): Promise<boolean> {
  return await access(path).then(
    () => true,
    () => false,
  );
}
