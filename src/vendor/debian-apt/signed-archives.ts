// The signed files by which a guest's own apt verifies the releases it is given.
import { assert } from '../../base/errors.ts';
import type { Release } from '../../model/release.ts';
import { VendorError } from '../errors.ts';
import type { SignedArchive, SignedFile } from '../vendor.ts';
import type { KeptFiles } from './kept-files.ts';
import type { PackageIndex, SuiteState } from './package-index.ts';
import type { OfferedPackage } from './packages-file.ts';

/** The offer in the verified index that a release was made of. Throws VendorError `conflict/release` when it is no longer there. */
function offerOf(release: Release, index: PackageIndex, suites: ReadonlyMap<string, SuiteState>): OfferedPackage {
  const same = index
    .byName(release.product)
    .filter(({ suite, digest }) => suites.has(suite) && digest === release.artifact.digest);
  const found = same.find(({ suite }) => release.artifact.location.startsWith(`${suite}/`)) ?? same[0];
  if (found !== undefined) return found;
  const what = `${release.product} ${release.version}`;
  throw new VendorError('conflict/release', `${what} is no longer in the verified index of ${release.vendor}`, {
    next: 'make a new plan: the vendor was refreshed in between',
  });
}

/** One archive for each suite that a release comes from, with the indexes of the components that are needed. */
export async function signedArchivesOf(
  releases: readonly Release[],
  { index, kept, suites }: { index: PackageIndex; kept: KeptFiles; suites: ReadonlyMap<string, SuiteState> },
): Promise<readonly SignedArchive[]> {
  const bySuite = new Map<string, OfferedPackage[]>();
  for (const release of releases) {
    const offer = offerOf(release, index, suites);
    bySuite.set(offer.suite, [...(bySuite.get(offer.suite) ?? []), offer]);
  }
  const archives: SignedArchive[] = [];
  for (const [suite, offers] of bySuite) {
    const state = suites.get(suite);
    assert(state !== undefined, 'an offer comes from a suite we know');
    const components = [...new Set(offers.map(({ component }) => component))].sort();
    archives.push({
      suite,
      components,
      files: await filesOf(state, components, kept),
      pool: offers.map(({ digest, filename }) => ({ digest, path: filename })),
    });
  }
  return archives;
}

async function filesOf(
  { suite, files }: SuiteState,
  components: readonly string[],
  kept: KeptFiles,
): Promise<readonly SignedFile[]> {
  const isNeeded = (path: string): boolean =>
    path === 'InRelease' || components.some((component) => path.startsWith(`${component}/binary-`));
  const signed: SignedFile[] = [];
  for (const { path, digest, sizeBytes } of files.filter((file) => isNeeded(file.path))) {
    if (!(await kept.has({ digest, sizeBytes }))) {
      throw new VendorError('host-fault/file', `the signed file ${path} of ${suite} is no longer on this host`, {
        next: 'run `pratique vendor check`: it is fetched again',
      });
    }
    signed.push({ path: `dists/${suite}/${path}`, sourcePath: kept.pathOf(digest), digest, sizeBytes });
  }
  return signed;
}
