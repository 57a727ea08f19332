// Installs all Debian packages of a manifest together, by the guest's own apt (dpkg where there is none), without a network.
import { AGENT_PACKAGES_TIMEOUT_MS } from '../../src/base/limits.ts';
import type { InstalledProduct } from '../../src/model/inventory.ts';
import type { ManifestItem } from '../../src/model/manifest.ts';
import { readDpkgStatus } from '../dpkg-status.ts';
import { readText } from '../durable.ts';
import { findProgram } from '../inventory.ts';
import type { Paths } from '../paths.ts';
import { AgentError, type Platform, type RunResult } from '../platform/platform.ts';
import { failure, type InstallContext, type Outcome, programFailure } from './context.ts';

/** invoke-rc.d(8): 101 means "do not start"; services start in order after the agent, or not at all. */
const POLICY = `#!/bin/sh
# Written by pratique-agent for the time of an installation.
exit 101
`;
const keptPolicy = (paths: Paths) => `${paths.policy}.pratique-kept`;

const APT_OPTIONS = [
  '-y',
  '-q',
  '--no-install-recommends',
  // What would remove or downgrade something is no update.
  '--no-remove',
  '-oAPT::Get::allow-downgrades=false',
  '-oDPkg::Options::=--force-confdef',
  '-oDPkg::Options::=--force-confold',
  '-oDPkg::Lock::Timeout=120',
  '-oDpkg::Use-Pty=0',
  '-oAPT::Sandbox::User=root',
  // Everything is on the drive; what is not must fail at once instead of waiting for a network.
  '-oAcquire::Retries=0',
  '-oAcquire::http::Timeout=3',
  '-oAcquire::https::Timeout=3',
] as const;

const ENVIRONMENT = {
  HOME: '/root',
  LC_ALL: 'C',
  DEBIAN_FRONTEND: 'noninteractive',
  DEBCONF_NONINTERACTIVE_SEEN: 'true',
  APT_LISTCHANGES_FRONTEND: 'none',
  NEEDRESTART_SUSPEND: '1',
};

/** Installs the packages; the outcomes are in the order of the items. */
export async function installDebianPackages(
  context: InstallContext,
  items: readonly ManifestItem[],
): Promise<readonly Outcome[]> {
  const { platform, paths } = context;
  try {
    for (const item of items) context.report(item, 'install');
    if (items.every((item) => isInstalled(readPackages(platform, paths), item))) return items.map(() => INSTALLED);
    forbidStarts(platform, paths);
    try {
      return await runInstaller(context, items);
    } finally {
      restorePolicy(platform, paths);
    }
  } catch (error) {
    const outcome = failure(error);
    return items.map(() => outcome);
  }
}

const INSTALLED: Outcome = { outcome: 'installed' };

async function runInstaller(context: InstallContext, items: readonly ManifestItem[]): Promise<readonly Outcome[]> {
  const { platform, paths } = context;
  await finishInterrupted(context);
  const archives = items.map((item) => `${context.drive}${item.files[0]?.path ?? ''}`);
  const apt = findProgram(platform, paths, 'apt-get');
  const dpkg = findProgram(platform, paths, 'dpkg');
  if (apt === null && dpkg === null) throw new AgentError('no-dpkg', 'this guest has neither apt-get nor dpkg');
  const argv =
    apt === null
      ? [dpkg ?? '', '--force-confdef', '--force-confold', '-i', ...archives]
      : [apt, ...APT_OPTIONS, 'install', ...archives];
  const result = await runQuietly(context, argv);
  const packages = readPackages(platform, paths);
  return items.map((item) => outcomeOf(result, isInstalled(packages, item)));
}

/** What dpkg's own status says counts, not what apt printed. */
function outcomeOf(result: RunResult, isThere: boolean): Outcome {
  if (isThere) return INSTALLED;
  if (result.exitCode === 0) return { outcome: 'failed', code: 'not-installed', exitCode: 0, output: result.output };
  return programFailure('install-failed', result);
}

/** dpkg that was broken off (a power cut) has to end first. */
async function finishInterrupted(context: InstallContext): Promise<void> {
  const { platform, paths } = context;
  const isBrokenOff = platform.files.list(`${paths.dpkg}/updates`).length > 0;
  const isHalfWay = readPackages(platform, paths).some((product) => product.state === 'broken');
  const dpkg = findProgram(platform, paths, 'dpkg');
  if ((!isBrokenOff && !isHalfWay) || dpkg === null) return;
  // Its failure is no end: the packages on the drive may be what mends it.
  await runQuietly(context, [dpkg, '--force-confdef', '--force-confold', '--configure', '-a']);
}

function runQuietly({ platform, paths }: InstallContext, argv: readonly string[]): Promise<RunResult> {
  const env = { ...ENVIRONMENT, PATH: paths.programs.join(':') };
  return platform.run({ argv, cwd: '/', env, timeoutMs: AGENT_PACKAGES_TIMEOUT_MS });
}

function readPackages(platform: Platform, paths: Paths): readonly InstalledProduct[] {
  return readDpkgStatus(platform, `${paths.dpkg}/status`);
}

function isInstalled(packages: readonly InstalledProduct[], item: ManifestItem): boolean {
  return packages.some(
    ({ product, version, arch, state }) =>
      product === item.product &&
      version === item.version &&
      state === 'installed' &&
      (item.arch === undefined || arch === undefined || arch === item.arch || arch === 'all'),
  );
}

/** No service is started or stopped by a package's own scripts. */
function forbidStarts(platform: Platform, paths: Paths): void {
  const { files } = platform;
  restorePolicy(platform, paths);
  if (files.stat(paths.policy) !== null) files.rename(paths.policy, keptPolicy(paths));
  const file = files.create(paths.policy, 0o755);
  try {
    file.write(platform.encode(POLICY));
    file.setMode(0o755);
  } finally {
    file.close();
  }
}

/** Puts the guest's own policy back, also after an installation that was broken off. Called at every start. */
export function restorePolicy(platform: Platform, paths: Paths): void {
  const { files } = platform;
  if (files.stat(keptPolicy(paths)) !== null) files.rename(keptPolicy(paths), paths.policy);
  else if (isOurPolicy(platform, paths)) files.remove(paths.policy);
}

/** Ours in full or, after a power cut, the beginning of it. */
function isOurPolicy(platform: Platform, paths: Paths): boolean {
  const found = platform.files.stat(paths.policy);
  if (found === null || found.kind !== 'file' || found.sizeBytes > POLICY.length) return false;
  const text = readText(platform, paths.policy, POLICY.length);
  return text !== null && POLICY.startsWith(text);
}
