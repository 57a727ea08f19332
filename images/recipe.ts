// What a recipe of an image is: its fixed inputs, and the function that builds from them.
import type { Log } from '../src/base/log.ts';
import type { DebianPackage } from './debian-package.ts';

export type RecipeInputs = {
  /** The packages the recipe named, fetched and pinned. */
  readonly packages: readonly DebianPackage[];
  readonly agentPath: string;
  readonly cacheFolder: string;
  /** A folder for things in between, removed afterwards. */
  readonly workFolder: string;
  /** Where the recipe puts the file `root.raw` and, if the hypervisor is to start the kernel, `kernel` and `initrd`. */
  readonly outFolder: string;
  /** Says in a few words what is being done. */
  readonly report: (step: string) => void;
  readonly log: Log;
};
export type DirectBootInputs = RecipeInputs & { readonly kernelPackage: DebianPackage };

type CommonRecipe = {
  readonly memoryMiB: number;
  /** How a VM gets a disk of its own: a sparse copy, or a qcow2 overlay on the shared file. */
  readonly vmDisk: 'copy' | 'overlay';
  readonly packages: readonly string[];
  /** Further inputs that this machine decides, for the image's digest and record. */
  readonly pinFurther?: (inputs: {
    readonly cacheFolder: string;
    readonly log: Log;
  }) => Promise<Readonly<Record<string, unknown>>>;
};
/** The hypervisor starts the kernel: quick, and the guest's own kernel packages play no part. */
export type DirectBootRecipe = CommonRecipe & {
  readonly name: 'tiny' | 'debian';
  readonly boot: 'kernel';
  readonly build: (inputs: DirectBootInputs) => Promise<void>;
};
/** The disk's own boot loader starts the kernel that is installed on it. */
export type DiskBootRecipe = CommonRecipe & {
  readonly name: 'debian-systemd' | 'debian-cloud';
  readonly boot: 'disk';
  readonly build: (inputs: RecipeInputs) => Promise<void>;
};
export type ImageRecipe = DirectBootRecipe | DiskBootRecipe;
