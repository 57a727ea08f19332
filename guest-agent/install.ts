// Installs the items of a verified manifest: first every file is checked, then each item by its typed action.
import type { Manifest, ManifestItem } from '../src/model/manifest.ts';
import type { ItemResult } from '../src/model/result.ts';
import { applyConfig, type ConfigContext, configIds } from './config/apply.ts';
import { configItemId } from './config/change.ts';
import { digestOfFile } from './durable.ts';
import { AGENT_PACKAGE, type AgentUpdate, findUnfitAgent, updateAgent } from './installers/agent-update.ts';
import { installBundle } from './installers/bundle.ts';
import { failure, type InstallContext, type Outcome, type Phase } from './installers/context.ts';
import { installDebianPackages } from './installers/debian.ts';
import type { Paths } from './paths.ts';
import { AgentError, type Platform, SystemError } from './platform/platform.ts';

export type Installation = {
  readonly platform: Platform;
  readonly paths: Paths;
  /** Folder under which the drive's paths stand. */
  readonly drive: string;
  readonly manifest: Manifest;
  /** Items that have their result from before a power cut or a restart. */
  readonly done: readonly ItemResult[];
  readonly ownDigest: string;
  /** Makes results durable; only then the next item begins. `items`: those of them that are software, in the same order. */
  readonly keep: (results: readonly ItemResult[], items: readonly ManifestItem[]) => void;
  readonly progress: (item: { readonly id: string }, phase: Phase, itemsDone: number) => void;
  readonly restartAgent: AgentUpdate['restart'];
  readonly isAdmitted: boolean;
  /** Remembers that processes run something that is no longer on the disk, until the next boot. */
  readonly requireReboot: () => void;
};

/** Installs what has no result yet. After the first failure the rest is skipped: later items may rest on earlier ones. */
export async function installManifest(installation: Installation): Promise<void> {
  const { manifest, keep, done } = installation;
  const finished = new Set(done.map((result) => result.item));
  let isFailed = done.some((result) => result.outcome !== 'installed');
  const context = contextOf(installation, finished);
  const pending = manifest.items.filter((item) => !finished.has(item.id));
  const keepAll = (items: readonly ManifestItem[], results: readonly ItemResult[]): void => {
    keep(results, items);
    for (const { item } of results) finished.add(item);
    isFailed ||= results.some((result) => result.outcome !== 'installed');
  };
  if (!isFailed) {
    // Nothing is installed unless everything on the drive is as the manifest says.
    const broken = (await verifyItems(context, pending)) ?? (await verifyArchives(context, manifest, pending));
    if (broken !== null) keepAll([broken.item], [broken.result]);
    const brokenConfig = broken === null ? await verifyConfig(context, manifest) : null;
    if (brokenConfig !== null) keepAll([], [brokenConfig]);
  }
  for (const group of groupsOf(pending)) {
    if (isFailed) break;
    keepAll(group, await installGroup(installation, context, group));
  }
  const skipped = pending.filter((item) => !finished.has(item.id));
  if (skipped.length > 0) keepAll(skipped, skipped.map(skippedResult));
  // Last, because it may be for what was just installed.
  const configured = configIds(manifest).filter((id) => !finished.has(id));
  if (configured.length === 0) return;
  if (isFailed)
    keepAll(
      [],
      configured.map((id) => skippedResult({ id })),
    );
  else keepAll([], await applySet(installation, finished.size));
}

async function applySet(
  { platform, paths, drive, manifest, isAdmitted, requireReboot, progress }: Installation,
  itemsDone: number,
): Promise<readonly ItemResult[]> {
  const report: ConfigContext['report'] = (item, phase) => progress(item, phase, itemsDone);
  return await applyConfig({ platform, paths, drive, manifest, isAdmitted, report, requireReboot });
}

/** The result of the first item of configuration whose file is not what the manifest says. */
async function verifyConfig(context: InstallContext, { config = [] }: Manifest): Promise<ItemResult | null> {
  for (const file of config) {
    try {
      await verifyFile(context, file);
    } catch (error) {
      return { item: configItemId(file.item), ...failure(error), durationMs: 0 };
    }
  }
  return null;
}

function contextOf(installation: Installation, finished: ReadonlySet<string>): InstallContext {
  const { platform, paths, drive, manifest, isAdmitted, progress } = installation;
  const report: InstallContext['report'] = (item, phase) => progress(item, phase, finished.size);
  return { platform, paths, drive, archives: manifest.apt?.archives ?? null, isAdmitted, report };
}

/** In the manifest's order, but all Debian packages at once, and the agent itself last, because it ends this process. */
function groupsOf(items: readonly ManifestItem[]): readonly (readonly ManifestItem[])[] {
  const packages = items.filter((item) => item.install.action === 'debian-package');
  const groups: (readonly ManifestItem[])[] = [];
  for (const item of items) {
    if (item.install.action === 'bundle') groups.push([item]);
    else if (item === packages[0]) groups.push(packages);
  }
  const agents = items.filter((item) => item.install.action === 'agent');
  return [...groups, ...agents.map((item) => [item])];
}

async function installGroup(
  installation: Installation,
  context: InstallContext,
  group: readonly ManifestItem[],
): Promise<readonly ItemResult[]> {
  const { monotonicMs } = context.platform.clock;
  const startMs = monotonicMs();
  const outcomes = await installActions(installation, context, group);
  const durationMs = Math.round(monotonicMs() - startMs);
  return group.map((item, index) => {
    const outcome = outcomes[index];
    if (outcome === undefined) throw new Error('assertion failed: every item has an outcome');
    return { item: item.id, ...outcome, durationMs };
  });
}

async function installActions(
  installation: Installation,
  context: InstallContext,
  group: readonly ManifestItem[],
): Promise<readonly Outcome[]> {
  const [item] = group;
  if (item === undefined) return [];
  const { install } = item;
  switch (install.action) {
    case 'bundle':
      return [await installBundle(context, item, install)];
    case 'debian-package':
      return await installPackages(installation, context, group);
    case 'agent': {
      const { ownDigest, restartAgent } = installation;
      return [await updateAgent({ context, item, ownDigest, restart: restartAgent })];
    }
    default:
      return install satisfies never;
  }
}

async function installPackages(
  { ownDigest, requireReboot }: Installation,
  context: InstallContext,
  group: readonly ManifestItem[],
): Promise<readonly Outcome[]> {
  const { outcomes, rebootFor } = await installDebianPackages(context, group);
  if (rebootFor.length > 0) requireReboot();
  const unfit = await findUnfitAgent(context.platform, ownDigest);
  if (unfit === null) return outcomes;
  const named = group.findIndex((item) => item.product === AGENT_PACKAGE);
  return outcomes.map((outcome, index) => (index === Math.max(0, named) ? unfit : outcome));
}

/** The first item with a file that is not what the manifest says. */
async function verifyItems(
  context: InstallContext,
  items: readonly ManifestItem[],
): Promise<{ readonly item: ManifestItem; readonly result: ItemResult } | null> {
  for (const item of items) {
    context.report(item, 'verify');
    try {
      for (const file of item.files) await verifyFile(context, file);
    } catch (error) {
      return { item, result: { item: item.id, ...failure(error), durationMs: 0 } };
    }
  }
  return null;
}

/** A signed file that is not what the manifest says fails the first of the packages that rest on it. */
async function verifyArchives(
  context: InstallContext,
  manifest: Manifest,
  items: readonly ManifestItem[],
): ReturnType<typeof verifyItems> {
  const item = items.find(({ install }) => install.action === 'debian-package');
  if (manifest.apt === undefined || item === undefined) return null;
  return await verifyItems(context, [{ ...item, files: manifest.extraFiles }]);
}

async function verifyFile(
  { platform, drive }: InstallContext,
  file: Pick<ManifestItem['files'][number], 'path' | 'sizeBytes' | 'digest'>,
): Promise<void> {
  const path = `${drive}${file.path}`;
  const found = platform.files.stat(path);
  if (found?.kind !== 'file') throw new AgentError('file-missing', `${file.path} is not on the drive`);
  if (found.sizeBytes !== file.sizeBytes) {
    throw new AgentError('size-mismatch', `${file.path} has ${found.sizeBytes} bytes instead of ${file.sizeBytes}`);
  }
  if ((await digestOnDrive(platform, path)) !== file.digest) {
    throw new AgentError('digest-mismatch', `${file.path} is not what the manifest says`);
  }
}

/** A drive that cannot be read is the host's to mend, like one with other bytes. */
async function digestOnDrive(platform: Platform, path: string): Promise<string> {
  try {
    return await digestOfFile(platform, path);
  } catch (error) {
    if (!(error instanceof SystemError)) throw error;
    throw new AgentError('drive-unreadable', error.message, error);
  }
}

function skippedResult(item: { readonly id: string }): ItemResult {
  return { item: item.id, outcome: 'skipped', code: 'earlier-failed', durationMs: 0 };
}
