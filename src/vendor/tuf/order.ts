// The order of semantic versions, and of the kinds of releases.
import { compareBuild, parse as parseSemver } from 'semver';
import { printable } from '../../base/printable.ts';
import type { Kind, Release } from '../../model/release.ts';
import { VendorError } from '../errors.ts';
import { isVersion } from './offer.ts';

/**
 * Compares two semantic versions. Build metadata, which has no precedence of its own (semver.org 10), decides last, so
 * that a rebuilt release is newer than what it replaces. Throws VendorError `usage/version` on anything else.
 */
export function compareSemver(a: string, b: string): number {
  for (const version of [a, b]) {
    if (!isVersion(version)) {
      throw new VendorError('usage/version', `"${printable(version)}" is not a semantic version`, {
        next: 'versions of bundles have the form 1.2.3',
      });
    }
  }
  return compareBuild(a, b);
}

/** Whether an offered version is newer than an installed one; everything is newer than one that cannot be read. */
export function isNewerVersion(offered: string, installed: string): boolean {
  if (!isVersion(offered)) return false;
  return !isVersion(installed) || compareSemver(offered, installed) > 0;
}

/** Whether a version is a pre-release. */
export function isPreview(version: string): boolean {
  return (parseSemver(version)?.prerelease.length ?? 0) > 0;
}

const SEVERITY: Readonly<Record<Kind, number>> = { security: 0, fix: 1, enhancement: 2 };

/** The most severe kind among releases: whoever takes the newest gets what the ones before it mend. Null of none. */
export function severestKind(releases: readonly Release[]): Kind | null {
  const [most] = releases.map(({ kind }) => kind).sort((a, b) => SEVERITY[a] - SEVERITY[b]);
  return most ?? null;
}

/** Orders by what is pending: security, fix, enhancement, then nothing. */
export function severityOf(releases: readonly Release[]): number {
  const kind = severestKind(releases);
  return kind === null ? SEVERITY.enhancement + 1 : SEVERITY[kind];
}
