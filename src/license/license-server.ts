// The contract of a license server, as the host's leases use it. Adapters: pratique-server (our documented HTTP API), keygen-server.
import type { Lease, Verdict } from '../model/license.ts';

export type LeaseAnswer =
  | {
      readonly kind: 'granted';
      readonly lease: Lease;
      /** The server's signed words, to keep: they prove the lease without the server. Absent where a server signs no leases. */
      readonly proof?: string;
    }
  /** The server's explicit word. */
  | { readonly kind: 'refused'; readonly verdict: Verdict };

export type Revocation = {
  readonly serial: number;
  /** Null: the whole license. */
  readonly leaseId: string | null;
  readonly code: string;
};

export type SeatRequest = {
  /** Our id of the license. */
  readonly license: string;
  readonly vm: string;
  /**
   * Names this VM to the server, and nobody else: made from the VM's name with a key of this host, so that a server learns no
   * names. The same VM asks with the same fingerprint after a crash and gets the same seat, never a second one.
   */
  readonly fingerprint: string;
  readonly durationMs: number;
};

/**
 * One license at its server; the token is put in by the vault's own transport and is not seen here. Every method throws
 * LicenseError `vendor-ill/license-server` when the server cannot be reached, answers with something that is not its own signed word
 * (wrong signature, nonce, or out of date), or is ill: that is never a denial. A denial is an answer.
 */
export type LicenseServer = {
  readonly validate: (signal?: AbortSignal) => Promise<Verdict>;
  /** Takes a seat, or gives back the one that this fingerprint has. */
  readonly lease: (request: SeatRequest, signal?: AbortSignal) => Promise<LeaseAnswer>;
  readonly renew: (lease: Lease, request: SeatRequest, signal?: AbortSignal) => Promise<LeaseAnswer>;
  /** Done when the server no longer counts the seat, also when it never knew it. */
  readonly release: (leaseId: string, signal?: AbortSignal) => Promise<void>;
  /** What was revoked since a serial, oldest first. */
  readonly revocations: (
    sinceSerial: number,
    signal?: AbortSignal,
  ) => Promise<{ readonly serial: number; readonly revoked: readonly Revocation[] }>;
  /** A lease for a time without the server: the same answer as `lease`, for longer; null where the server has no such thing. */
  readonly checkout: ((request: SeatRequest, signal?: AbortSignal) => Promise<LeaseAnswer>) | null;
  readonly close: () => Promise<void>;
};
