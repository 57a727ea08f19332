// What a recipe of an image is: its fixed inputs, and the function that builds from them.
import type { Log } from '../src/base/log.ts';
import type { DebianPackage } from './debian-package.ts';

export type RecipeInputs = {
  readonly kernelPackage: DebianPackage;
  /** The packages the recipe named, fetched and pinned. */
  readonly packages: readonly DebianPackage[];
  readonly agentPath: string;
  readonly cacheFolder: string;
  /** A folder for things in between, removed afterwards. */
  readonly workFolder: string;
  /** Where the recipe puts the files `kernel`, `initrd` and `root.raw`. */
  readonly outFolder: string;
  /** Says in a few words what is being done. */
  readonly report: (step: string) => void;
  readonly log: Log;
};

export type ImageRecipe = {
  readonly name: 'tiny' | 'debian';
  readonly memoryMiB: number;
  /** How a VM gets a disk of its own: a sparse copy, or a qcow2 overlay on the shared file. */
  readonly vmDisk: 'copy' | 'overlay';
  readonly packages: readonly string[];
  /** Further inputs that this machine decides, for the image's digest. */
  readonly pinFurther?: (inputs: {
    readonly cacheFolder: string;
    readonly log: Log;
  }) => Promise<Readonly<Record<string, string>>>;
  readonly build: (inputs: RecipeInputs) => Promise<void>;
};
