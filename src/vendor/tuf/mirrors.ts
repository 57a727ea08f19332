// Where a repository's targets are fetched from: its mirrors in order, another one when a download is tried again.
import { describeError, PratiqueError } from '../../base/errors.ts';
import { bytesFrom, type HttpFetch, isUnreachable } from '../../base/http-fetch.ts';
import { TUF_MIRROR_TURNS_MAX } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import type { Artifact } from '../../model/release.ts';
import { VendorError } from '../errors.ts';
import type { OpenArtifact } from '../vendor.ts';

/** One place of a repository. */
export type TufMirror = {
  /** Folder of `timestamp.json` and the versioned metadata: http, https or file. */
  readonly metadataUrl: string;
  /** Folder of the targets. */
  readonly targetsUrl: string;
};

export type MirrorsDeps = {
  readonly vendor: string;
  /** Folders of the targets, the preferred one first. */
  readonly targetsUrls: readonly string[];
  readonly http: HttpFetch;
};

export type Mirrors = {
  /** The artifact's bytes from an offset on: bounded, unverified. Throws VendorError or HttpError when no mirror has them. */
  readonly open: OpenArtifact;
};

/** Makes them. Whoever asks for the same artifact again was not content with what came, so the next mirror has its turn. */
export function makeMirrors(deps: MirrorsDeps): Mirrors {
  const turns = new Map<string, number>();
  const takeTurn = (digest: string): number => {
    const turn = turns.get(digest) ?? 0;
    turns.delete(digest);
    turns.set(digest, turn + 1);
    const [oldest] = turns.keys();
    if (turns.size > TUF_MIRROR_TURNS_MAX && oldest !== undefined) turns.delete(oldest);
    return turn % deps.targetsUrls.length;
  };
  return {
    open: async (artifact, offsetBytes, signal, license) => {
      const first = takeTurn(artifact.digest);
      const inOrder = [...deps.targetsUrls.slice(first), ...deps.targetsUrls.slice(0, first)];
      const failures: { readonly url: string; readonly error: unknown }[] = [];
      for (const base of inOrder) {
        const url = artifactUrl(deps.vendor, base, artifact);
        try {
          const limit = { sizeBytesMax: artifact.sizeBytes, ...(signal === undefined ? {} : { signal }) };
          const under = license === undefined ? {} : { license };
          const download = await deps.http.open(url, { offsetBytes, ...limit, ...under });
          return bytesFrom(download, offsetBytes);
        } catch (error) {
          if (signal?.aborted === true) throw error;
          failures.push({ url: base, error });
        }
      }
      throw failureOf(artifact, failures);
    },
  };
}

function artifactUrl(vendor: string, base: string, artifact: Artifact): string {
  const folder = base.endsWith('/') ? base : `${base}/`;
  const parts = artifact.location.split('/');
  // A release may come back from a database: a location that climbs out of the repository is refused here again.
  if (parts.some((part) => ['', '.', '..'].includes(part))) {
    throw new VendorError('usage/location', `"${printable(artifact.location)}" is not a place in ${vendor}`);
  }
  return new URL(parts.map(encodeURIComponent).join('/'), folder).href;
}

function failureOf(
  artifact: Artifact,
  failures: readonly { readonly url: string; readonly error: unknown }[],
): unknown {
  const [first] = failures;
  if (failures.length <= 1) return first?.error;
  const { error } = failures.find((each) => !isUnreachable(each.error)) ?? { error: first?.error };
  const code = error instanceof PratiqueError ? error.code : 'internal/bug';
  const each = failures.map(({ url, error: one }) => `${printable(url, 300)}: ${describeError(one)}`);
  return new VendorError(code, `no mirror has ${printable(artifact.name)}: ${each.join('; ')}`);
}
