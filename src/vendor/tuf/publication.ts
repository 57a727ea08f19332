// What a publish has done: read from the repository again, as proof that it is whole.
import { join } from 'node:path';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest-text.ts';
import { printable } from '../../base/printable.ts';
import type { RoleName } from './keys.ts';
import type { StagedTarget } from './releases.ts';
import { metadataFolder, type Published, readRepository, requirePublished } from './repository.ts';
import { expiresDaysOf, isDue } from './sign.ts';

export type PublishedTarget = {
  readonly path: string;
  readonly product: string;
  readonly version: string;
  readonly digest: Digest;
  readonly sizeBytes: number;
};

export type Publication = {
  /** The releases of this call. */
  readonly targets: readonly PublishedTarget[];
  /** All releases the repository now offers. */
  readonly targetsTotal: number;
  readonly versions: Readonly<Record<RoleName, number>>;
  /** Whether clients see it now; otherwise whoever holds the keys of snapshot and timestamp refreshes. */
  readonly isVisible: boolean;
  /** The newest root, to hand to operators by a trusted way (`rootPath` of their vendor configuration). */
  readonly rootPath: string;
  /** ISO time by which the repository must be signed again. */
  readonly expires: string;
  /** What has to be signed again soon, and with whose keys. */
  readonly warnings: readonly string[];
};

type Described = { readonly repository: string; readonly clock: Clock };

/** Reads the repository again, as proof that it is whole, and says what is in it. */
export async function describePublication(
  { repository, clock }: Described,
  staged: readonly StagedTarget[],
  isVisible: boolean,
): Promise<Publication> {
  const after = requirePublished(await readRepository(repository));
  const root = after.root.signed;
  const { timestamp, snapshot } = after.visible ?? {};
  const expires = [timestamp?.signed.expires, snapshot?.signed.expires].filter((each) => each !== undefined).sort();
  return {
    targets: staged.map(({ path, digest, target, description }) => {
      const { product, version } = description;
      return { path, product, version, digest, sizeBytes: target.length };
    }),
    targetsTotal: [...after.roles.values()].reduce(
      (sum, { metadata }) => sum + Object.keys(metadata.signed.targets).length,
      0,
    ),
    versions: {
      root: root.version,
      targets: after.roles.get('targets')?.metadata.signed.version ?? 0,
      snapshot: snapshot?.signed.version ?? 0,
      timestamp: timestamp?.signed.version ?? 0,
    },
    isVisible,
    rootPath: join(metadataFolder(repository), `${root.version}.root.json`),
    expires: expires[0] ?? '',
    warnings: warningsOf(after, clock),
  };
}

/** Offline roles that come into the last part of their time, or are past it. */
function warningsOf(repository: Published, clock: Clock): readonly string[] {
  const root = repository.root.signed;
  const signed = [
    { name: 'root', expires: root.expires, days: expiresDaysOf(root, 'root') },
    ...[...repository.roles.values()].map(({ name, metadata }) => ({
      name,
      expires: metadata.signed.expires,
      days: expiresDaysOf(root, 'targets'),
    })),
  ];
  return signed
    .filter(({ expires, days }) => isDue(clock, expires, days))
    .map(({ name, expires }) => {
      const past = Date.parse(expires) < clock.nowMs() ? 'expired' : 'expires';
      return `${printable(name)} ${past} at ${expires}: sign it again with its keys`;
    });
}
