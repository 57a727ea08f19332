// What every installer is given.
import type { Manifest, ManifestItem } from '../../src/model/manifest.ts';
import type { ItemResult } from '../../src/model/result.ts';
import type { Paths } from '../paths.ts';
import { AgentError, type Platform, type RunResult } from '../platform/platform.ts';

export type Phase = 'verify' | 'unpack' | 'install' | 'check';

export type InstallContext = {
  readonly platform: Platform;
  readonly paths: Paths;
  /** Folder under which the drive's paths stand; every file was verified. */
  readonly drive: string;
  /** Signed archives on the drive, from which apt verifies the packages by itself; null where the manifest vouches for them. */
  readonly archives: NonNullable<Manifest['apt']>['archives'] | null;
  /** Whether the host has admitted this boot to the network already. */
  readonly isAdmitted: boolean;
  readonly report: (item: ManifestItem, phase: Phase) => void;
};

/** A result as the installer knows it; the item's name and the time it took are added outside. */
export type Outcome = Omit<ItemResult, 'item' | 'durationMs'>;

/** The result of an item that was stopped by an error. Throws what is no AgentError: that is our bug. */
export function failure(error: unknown): Outcome {
  if (!(error instanceof AgentError)) throw error;
  return { outcome: 'failed', code: error.word, output: error.message };
}

/** The result of an item whose program ended badly. */
export function programFailure(code: string, result: RunResult): Outcome {
  return {
    outcome: 'failed',
    code: result.isTimeout ? 'timeout' : code,
    ...(result.exitCode === null ? {} : { exitCode: result.exitCode }),
    output: result.output,
  };
}
