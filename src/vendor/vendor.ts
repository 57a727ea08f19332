// The contract of a vendor: what it offers, how its metadata is trusted, where its bytes come from. README.md: how to add one.
import type { Ecosystem, Inventory } from '../model/inventory.ts';
import type { Artifact, Release } from '../model/release.ts';

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

export type Vendor = {
  readonly name: string;
  readonly kind: 'tuf' | 'debian-apt';
  readonly ecosystem: Ecosystem;
  /** Fetches and verifies the metadata. Throws PratiqueError `vendor-ill/…` and keeps the last verified metadata. */
  readonly refresh: (options: { readonly signal?: AbortSignal }) => Promise<VendorStatus>;
  readonly status: () => VendorStatus;
  /**
   * The newest verified release of each product that this VM has, or is required by one of them, and that fits its OS
   * and architecture; already installed versions are included. From the last verified metadata, no network.
   */
  readonly latest: (inventory: Inventory) => Promise<readonly Release[]>;
  /** All products on offer, newest release each; for `vendor list` and the patch table. */
  readonly offers: () => Promise<readonly Release[]>;
  /** Orders two version strings of this vendor's ecosystem: negative, zero, positive. Throws on a malformed version. */
  readonly compareVersions: (a: string, b: string) => number;
  /** The artifact's bytes from an offset on, as the vendor's server sends them: bounded, but unverified. */
  readonly open: (artifact: Artifact, offsetBytes: number, signal?: AbortSignal) => Promise<ByteStream>;
  /** Looks into a downloaded artifact whose digest already matched (a bundle's tar guards). Throws `vendor-ill/…`. */
  readonly inspect: (release: Release, path: string) => Promise<void>;
  readonly close: () => Promise<void>;
};
