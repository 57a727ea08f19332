// Keeps a suite's signed files on disk under their digests, so that guests can verify them too and nothing is fetched twice.
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type Digest, digestOf, digestOfFile, isDigest } from '../../base/digest.ts';
import { syncFolder, writeDurably } from '../../base/durable-file.ts';
import type { HttpFetch } from '../../base/http-fetch.ts';
import { VendorError } from '../errors.ts';
import type { IndexEntry } from './in-release.ts';

export type KeptFiles = {
  readonly pathOf: (digest: Digest) => string;
  readonly has: (file: { readonly digest: Digest; readonly sizeBytes: number }) => Promise<boolean>;
  /** Keeps bytes that were verified. */
  readonly keep: (bytes: Uint8Array) => Promise<IndexEntry>;
  /** Downloads a file that must have this digest and size, unless it is there. Throws HttpError, VendorError `vendor-ill/digest-mismatch`. */
  readonly fetch: (
    http: HttpFetch,
    url: string,
    wanted: IndexEntry & { readonly what: string },
    signal?: AbortSignal,
  ) => Promise<void>;
  /** Removes all but these. */
  readonly prune: (wanted: ReadonlySet<string>) => Promise<void>;
};

/** Downloads to a file and returns the digest of what came. */
async function download(http: HttpFetch, url: string, sizeBytesMax: number, path: string, signal?: AbortSignal) {
  const { bytes } = await http.open(url, { sizeBytesMax, ...(signal === undefined ? {} : { signal }) });
  const hash = createHash('sha256');
  const file = await open(path, 'wx', 0o600);
  try {
    for await (const piece of bytes) {
      hash.update(piece);
      await file.write(piece);
    }
    await file.sync();
  } finally {
    await file.close();
  }
  return hash.digest('hex');
}

/** Opens the folder; `scratchFolder` must be on the same file system. */
export async function openKeptFiles(folder: string, scratchFolder: string): Promise<KeptFiles> {
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const pathOf = (digest: Digest): string => join(folder, digest);
  const has: KeptFiles['has'] = async ({ digest, sizeBytes }) =>
    (await stat(pathOf(digest)).catch(() => undefined))?.size === sizeBytes;
  return {
    pathOf,
    has,
    keep: async (bytes) => {
      const kept = { digest: digestOf(bytes), sizeBytes: bytes.length };
      if (!(await has(kept))) await writeDurably(pathOf(kept.digest), bytes);
      return kept;
    },
    fetch: async (http, url, wanted, signal) => {
      // Kept under its digest it was right once; disks rot, so it is read again before it is believed.
      if ((await has(wanted)) && (await digestOfFile(pathOf(wanted.digest))) === wanted.digest) return;
      const scratch = await mkdtemp(join(scratchFolder, 'index-'));
      try {
        const path = join(scratch, 'file');
        const found = await download(http, url, wanted.sizeBytes, path, signal);
        if (found !== wanted.digest) {
          throw new VendorError(
            'vendor-ill/digest-mismatch',
            `${wanted.what} has the digest ${found}, its Release says ${wanted.digest}`,
            { next: 'try again later: the mirror may be in the middle of an update' },
          );
        }
        await rename(path, pathOf(wanted.digest));
        await syncFolder(folder);
      } finally {
        await rm(scratch, { recursive: true, force: true });
      }
    },
    prune: async (wanted) => {
      const names = await readdir(folder);
      for (const name of names) if (!isDigest(name) || !wanted.has(name)) await rm(join(folder, name), { force: true });
    },
  };
}
