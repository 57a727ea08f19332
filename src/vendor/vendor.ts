// The contract of a vendor: what it offers, how its metadata is trusted, where its bytes come from. README.md: how to add one.

import type { Digest } from '../base/digest-text.ts';
import type { Ecosystem, Inventory } from '../model/inventory.ts';
import type { Artifact, LeftOut, Release } from '../model/release.ts';

export type VendorStatus = {
  readonly vendor: string;
  /** Wall time of the last verified metadata; null when there never was any. */
  readonly checkedAtMs: number | null;
  /** Whether that metadata is within its own validity and the configured age. */
  readonly isFresh: boolean;
  /** Error code and one sentence of the last failure, null after a success. */
  readonly trouble: { readonly code: string; readonly message: string } | null;
};

export type ByteStream = AsyncIterable<Uint8Array>;
export type OpenArtifact = (
  artifact: Artifact,
  offsetBytes: number,
  signal?: AbortSignal,
  license?: string,
) => Promise<ByteStream>;

/** What a vendor has for one VM. */
export type Offered = {
  /**
   * The newest verified release of each product that this VM has, or is required by one of them, and that fits its OS
   * and architecture; already installed versions are included. `requires` names what must come with it.
   */
  readonly releases: readonly Release[];
  /**
   * Newer versions that cannot be installed on this VM, each with the reason; the other releases do without them. Products
   * that the inventory marks as held are among them.
   */
  readonly leftOut: readonly LeftOut[];
};

/** A file by which the guest's own package manager verifies the vendor's releases: it goes onto the drive below `/apt/`. */
export type SignedFile = {
  /** Below the archive's root on the drive, for example `dists/bookworm/InRelease`. */
  readonly path: string;
  /** Where the verified copy lies on this host, until the vendor is refreshed again. */
  readonly sourcePath: string;
  readonly digest: Digest;
  readonly sizeBytes: number;
};

/** One signed archive as the guest's apt sees it: a folder of the drive that holds `dists/` and `pool/`. */
export type SignedArchive = {
  readonly suite: string;
  readonly components: readonly string[];
  readonly files: readonly SignedFile[];
  /** The releases asked for that come from it, by artifact digest, and their paths below the archive's root: `pool/…`. */
  readonly pool: readonly { readonly digest: Digest; readonly path: string }[];
};

export type Vendor = {
  readonly name: string;
  readonly kind: 'tuf' | 'debian-apt';
  readonly ecosystem: Ecosystem;
  /** Fetches and verifies the metadata. Throws PratiqueError `vendor-ill/…` and keeps the last verified metadata. */
  readonly refresh: (options: { readonly signal?: AbortSignal }) => Promise<VendorStatus>;
  readonly status: () => VendorStatus;
  /** From the last verified metadata, no network. Throws `vendor-ill/never-checked` when there is none. */
  readonly latest: (inventory: Inventory) => Promise<Offered>;
  /** All products on offer, newest release each; for `vendor list` and the patch table. */
  readonly offers: () => Promise<readonly Release[]>;
  /** Orders two version strings of this vendor's ecosystem: negative, zero, positive. Throws on a malformed version. */
  readonly compareVersions: (a: string, b: string) => number;
  /**
   * The artifact's bytes from an offset on, as the vendor's server sends them: bounded, but unverified. `license`: what its release
   * names, for whoever attaches the token.
   */
  readonly open: OpenArtifact;
  /** Looks into a downloaded artifact whose digest already matched (a bundle's tar guards). Throws `vendor-ill/…`. */
  readonly inspect: (release: Release, path: string) => Promise<void>;
  /** The vendor's own signed files for these releases, where the guest can verify them itself (Debian's apt). */
  readonly signedArchives?: (releases: readonly Release[]) => Promise<readonly SignedArchive[]>;
  readonly close: () => Promise<void>;
};
