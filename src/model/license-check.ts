// Whether a VM may have what a license guards, as every room asks it; and the seats of a run, as the host takes them for it.
import type { Digest } from '../base/digest-text.ts';
import type { RunId, VmId } from './ids.ts';

/** Null while the VM holds a lease of the license now; otherwise the license server's code (`NO_LICENSE`, `TOO_MANY_MACHINES` …). */
export type LicenseCheck = (vm: VmId, license: string) => string | null;

/** A host without licenses: nothing that names one may be used. */
export const NO_LICENSES: LicenseCheck = () => 'NO_LICENSE';

/** Codes of this host, beside those of license servers. */
export const HOST_LICENSE_CODES = {
  NO_LICENSE: 'this host has no such license for the VM',
  NO_LEASE: 'the VM holds no seat of it',
  SERVER_AWAY: 'its server has not answered yet: no denial, but no seat either',
  REVOKED_HERE: 'an operator of this host has revoked it',
  LEASE_EXPIRED: 'the lease has run out, and so has the time of grace after it',
} as const;

/** One license check behind an opening, as its record names it. */
export type LicenseFact = {
  readonly license: string;
  /** The server's last word, or this host's; VALID while the lease holds. */
  readonly code: string;
  /** The server's id of the lease; null: there is none. */
  readonly lease: string | null;
  /** When the server gave its word last; null: never. */
  readonly saidAtMs: number | null;
  readonly expiresAtMs: number | null;
  /** The lease had run out, and the server could not be asked: it counted by grace. */
  readonly isInGrace: boolean;
};

export type SeatsRequest = { readonly vm: VmId; readonly run: RunId; readonly licenses: readonly string[] };

/** What a run asks of the host's licenses. */
export type LicenseSeats = {
  /**
   * Takes the seats that a plan needs, or notes why not; afterwards LicenseCheck knows. A server that does not answer is no error
   * here. Rejects when aborted, or when a decision could not be recorded.
   */
  readonly take: (request: SeatsRequest, signal: AbortSignal) => Promise<void>;
  /** What would be said without asking any server, for a dry run: null where nothing speaks against a seat. */
  readonly prospect: LicenseCheck;
  readonly factsOf: (vm: VmId, licenses: readonly string[]) => readonly LicenseFact[];
  /** Counts what was brought for a VM, whether or not the host had it already. */
  readonly countFetch: (vm: VmId, license: string, sizeBytes: number) => void;
};

/** What the host's blobs were brought under, so that what one license guards is not had by naming its digest under other terms. */
export type BlobTerms = {
  /** Before the first byte of it is asked for under a license. */
  readonly guard: (digest: Digest, license: string) => void;
  /** A vendor has shown all of its bytes under these terms; null: under no license. */
  readonly prove: (digest: Digest, license: string | null) => void;
  /** Whether a vendor has to show that it has the bytes before they are used under these terms, also where the host has them. */
  readonly mustProve: (digest: Digest, license: string | null) => boolean;
};

/** One decision about a seat, as it is recorded. */
export type LicenseDecision = {
  readonly license: string;
  readonly vm: VmId;
  /** The run that asked; null: the host by itself. */
  readonly run: RunId | null;
  readonly decision: 'granted' | 'refused' | 'renewed' | 'in-grace' | 'expired' | 'revoked' | 'released';
  readonly code: string;
  readonly lease: string | null;
  readonly expiresAtMs: number | null;
};
