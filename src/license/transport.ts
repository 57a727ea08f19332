// How a license server is spoken to: one origin, the token attached by the vault, no redirect followed, answers bounded.

export type LicenseHttpRequest = {
  readonly method: 'GET' | 'POST' | 'PATCH' | 'DELETE';
  /** Path and query below the license's server URL: `/v1/leases`. */
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  /** Sent as JSON. */
  readonly body?: unknown;
  /**
   * Where the transport puts the token; absent: `Authorization: Bearer`. Keygen's license keys have a scheme of their own, and its
   * `validate-key` takes the key in the body, at these field names from the outside in.
   */
  readonly token?:
    | { readonly kind: 'header'; readonly scheme: 'Bearer' | 'License' }
    | { readonly kind: 'body'; readonly field: readonly string[] };
  /**
   * The answer may have the token in it: what Keygen says about a license holds its key. Whoever asks so takes named fields out of the
   * answer and hands none of its free text on. Otherwise a transport refuses an answer that has the token in it.
   */
  readonly mayHoldToken?: boolean;
  readonly signal?: AbortSignal;
};

export type LicenseHttpAnswer = {
  readonly status: number;
  /** Names in lower case. */
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Uint8Array;
};

/** Any status is an answer, redirects too; throws LicenseError `vendor-ill/license-server` when there is none, or it is too large or too slow. */
export type LicenseTransport = (request: LicenseHttpRequest) => Promise<LicenseHttpAnswer>;
