// Runs apt and dpkg without a question to anybody, reads dpkg's own word on what is installed, and ends what was broken off.
import { AGENT_PACKAGES_TIMEOUT_MS } from '../../src/base/limits.ts';
import type { InstalledProduct } from '../../src/model/inventory.ts';
import type { ManifestItem } from '../../src/model/manifest.ts';
import { readDpkgStatus } from '../dpkg-status.ts';
import { findProgram } from '../inventory.ts';
import type { Paths } from '../paths.ts';
import type { Platform, RunResult } from '../platform/platform.ts';

/** A changed configuration file of the guest stays as it is, and nobody is asked. */
export const DPKG_OPTIONS = ['--force-confdef', '--force-confold'] as const;

const ENVIRONMENT = {
  HOME: '/root',
  LC_ALL: 'C',
  DEBIAN_FRONTEND: 'noninteractive',
  DEBCONF_NONINTERACTIVE_SEEN: 'true',
  UCF_FORCE_CONFFOLD: '1',
  APT_LISTCHANGES_FRONTEND: 'none',
  NEEDRESTART_SUSPEND: '1',
};

/** Runs a program of the guest as package scripts expect it. It has no terminal, and its input is empty. */
export function runQuietly(platform: Platform, paths: Paths, argv: readonly string[]): Promise<RunResult> {
  const env = { ...ENVIRONMENT, PATH: paths.programs.join(':') };
  return platform.run({ argv, cwd: '/', env, timeoutMs: AGENT_PACKAGES_TIMEOUT_MS });
}

/** The packages as dpkg's status file has them. */
export function readPackages(platform: Platform, paths: Paths): readonly InstalledProduct[] {
  return readDpkgStatus(platform, `${paths.dpkg}/status`);
}

/** Whether an item's package is fully installed in its version. */
export function isInstalled(packages: readonly InstalledProduct[], item: ManifestItem): boolean {
  return packages.some(
    (found) => found.version === item.version && found.state === 'installed' && isPackageOf(found, item),
  );
}

/** Whether an installed package, in whatever version, is the one that an item replaces. */
export function isPackageOf({ product, arch }: InstalledProduct, item: ManifestItem): boolean {
  const isArch = item.arch === undefined || arch === undefined || arch === item.arch || arch === 'all';
  return product === item.product && isArch;
}

/** Whether dpkg was broken off: a journal it had not merged yet, or a package that is neither here nor there. `known`: what its status was just read to be. */
export function isDpkgInterrupted(platform: Platform, paths: Paths, known?: readonly InstalledProduct[]): boolean {
  if (platform.files.list(`${paths.dpkg}/updates`).some((name) => /^\d+$/.test(name))) return true;
  return (known ?? readPackages(platform, paths)).some((product) => product.state === 'broken');
}

/**
 * Lets dpkg end what it was doing. Its failure is no end: what is only half unpacked stays so until the packages of a drive mend it.
 */
export async function finishInterrupted(platform: Platform, paths: Paths): Promise<void> {
  const dpkg = findProgram(platform, paths, 'dpkg');
  if (dpkg === null || !isDpkgInterrupted(platform, paths)) return;
  const result = await runQuietly(platform, paths, [dpkg, ...DPKG_OPTIONS, '--configure', '-a']);
  platform.log(`dpkg was broken off before; ending its work: exit ${result.exitCode ?? 'by a signal'}`);
}
