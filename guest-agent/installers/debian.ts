// Installs all Debian packages of a manifest together, by the guest's own apt (dpkg where there is none), without a network.
//
//   space? ─► no service starts ─► end what dpkg was broken off in ─► apt (fast, or vendor-verified) ─► dpkg's status decides
//          ─► old services end ─► is a reboot due?
import type { InstalledProduct } from '../../src/model/inventory.ts';
import type { ManifestItem } from '../../src/model/manifest.ts';
import { findProgram } from '../inventory.ts';
import { inRoot, type Paths } from '../paths.ts';
import { AgentError, type Platform, type RunResult } from '../platform/platform.ts';
import { findStaleProcesses } from '../stale-processes.ts';
import { type AptCall, aptFailure, clearView, installFiles, installVerified, markAutomatic } from './apt.ts';
import { failure, type InstallContext, type Outcome } from './context.ts';
import {
  DPKG_OPTIONS,
  finishInterrupted,
  isDpkgInterrupted,
  isInstalled,
  isPackageOf,
  readPackages,
  runQuietly,
} from './dpkg.ts';
import { requireSpace } from './free-space.ts';
import { forbidStarts, renewInit, restorePolicy, settleServices } from './service-starts.ts';

export type DebianOutcomes = {
  /** In the order of the items. */
  readonly outcomes: readonly Outcome[];
  /** Processes that only a reboot brings onto what was installed. */
  readonly rebootFor: readonly string[];
};

const INSTALLED: Outcome = { outcome: 'installed' };

/** Installs the packages. */
export async function installDebianPackages(
  context: InstallContext,
  items: readonly ManifestItem[],
): Promise<DebianOutcomes> {
  const { platform, paths } = context;
  try {
    for (const item of items) context.report(item, 'install');
    const present = readPackages(platform, paths);
    const isDone = items.every((item) => isInstalled(present, item)) && !isDpkgInterrupted(platform, paths, present);
    const outcomes = isDone
      ? items.map(() => INSTALLED)
      : await withoutStarts(platform, paths, () => runInstaller(context, items));
    return { outcomes, rebootFor: await settle(platform, paths, context.isAdmitted) };
  } catch (error) {
    const outcome = failure(error);
    return { outcomes: items.map(() => outcome), rebootFor: [] };
  }
}

/** Ends what a power cut broke off in dpkg, at the agent's start. Fine when nothing was. */
export async function repairPackages(platform: Platform, paths: Paths, isAdmitted: boolean): Promise<void> {
  if (!isDpkgInterrupted(platform, paths)) return;
  await withoutStarts(platform, paths, () => finishInterrupted(platform, paths));
  await settle(platform, paths, isAdmitted);
}

async function withoutStarts<T>(platform: Platform, paths: Paths, step: () => Promise<T>): Promise<T> {
  forbidStarts(platform, paths);
  try {
    return await step();
  } finally {
    restorePolicy(platform, paths);
  }
}

/** Lets go of services that run what was replaced; says what else runs it. */
async function settle(platform: Platform, paths: Paths, isAdmitted: boolean): Promise<readonly string[]> {
  const { units, isInitStale, rebootFor: others } = findStaleProcesses(platform, paths);
  const isInitLeft = isInitStale && !(await renewInit(platform, paths));
  const rebootFor = [...(isInitLeft ? ['init'] : []), ...others];
  await settleServices(platform, paths, { further: units, isAdmitted });
  if (rebootFor.length > 0) platform.log(`only a reboot renews ${rebootFor.join(', ')}`);
  return rebootFor;
}

async function runInstaller(context: InstallContext, items: readonly ManifestItem[]): Promise<readonly Outcome[]> {
  const { platform, paths, drive } = context;
  await finishInterrupted(platform, paths);
  const before = readPackages(platform, paths);
  if (items.every((item) => isInstalled(before, item))) return items.map(() => INSTALLED);
  await requireSpace({ platform, paths, drive, items });
  const result = await runPackageManager(context, items, before);
  flush(platform, paths);
  const packages = readPackages(platform, paths);
  return items.map((item) => outcomeOf(result, isInstalled(packages, item)));
}

async function runPackageManager(
  context: InstallContext,
  items: readonly ManifestItem[],
  before: readonly InstalledProduct[],
): Promise<RunResult> {
  const { platform, paths, drive, archives } = context;
  const apt = findProgram(platform, paths, 'apt-get');
  if (apt === null) return await runDpkg(context, items);
  const isBroken = (item: ManifestItem) =>
    before.some((product) => product.state === 'broken' && isPackageOf(product, item));
  const halfWay = items.filter(isBroken).map(({ product }) => product);
  const isInterrupted = isDpkgInterrupted(platform, paths, before);
  const call: AptCall = { platform, paths, apt, drive, isInterrupted, halfWay };
  try {
    const result = archives === null ? await installFiles(call, items) : await installVerified(call, items, archives);
    const isHalfWay = result.exitCode !== 0 && !result.isTimeout && isDpkgInterrupted(platform, paths);
    // apt gives up where dpkg alone goes on: a package that has to be unpacked anew before anything else can be worked out.
    if (isHalfWay && archives === null) return await runDpkg(context, items);
    const isNew = (item: ManifestItem) => !before.some((product) => isPackageOf(product, item));
    if (result.exitCode === 0)
      await markAutomatic(
        call,
        items.filter(isNew).map(({ product }) => product),
      );
    return result;
  } finally {
    clearView(platform, paths);
  }
}

async function runDpkg(context: InstallContext, items: readonly ManifestItem[]): Promise<RunResult> {
  const { platform, paths, drive, archives } = context;
  const dpkg = findProgram(platform, paths, 'dpkg');
  if (dpkg === null) throw new AgentError('no-dpkg', 'this guest has neither apt-get nor dpkg');
  if (archives !== null) throw new AgentError('no-apt', 'this guest has no apt-get that could verify the packages');
  const files = items.map((item) => `${drive}${item.files[0]?.path ?? ''}`);
  return await runQuietly(platform, paths, [dpkg, ...DPKG_OPTIONS, '-i', ...files]);
}

/** dpkg flushes what it unpacks; what packages' scripts wrote nobody has. A power cut after the confirmation must not take it. */
function flush(platform: Platform, paths: Paths): void {
  const { files } = platform;
  const folders = [paths.dpkg, paths.etc, inRoot(paths, '/usr'), inRoot(paths, '/boot')];
  for (const folder of folders) if (files.stat(folder)?.kind === 'folder') files.syncTree(folder);
}

/** What dpkg's own status says counts, not what apt printed. */
function outcomeOf(result: RunResult, isThere: boolean): Outcome {
  if (isThere) return INSTALLED;
  if (result.exitCode === 0) return { outcome: 'failed', code: 'not-installed', exitCode: 0, output: result.output };
  return aptFailure(result);
}
