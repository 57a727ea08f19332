// The bounds of licenses: tokens, leases, and the servers that are asked about them.

/** Characters of a license's id, of a code of a license server, and bytes of a token. */
export const LICENSE_ID_CHARS_MAX = 64;
export const LICENSE_CODE_CHARS_MAX = 64;
export const LICENSE_TOKEN_BYTES_MAX = 8 * 1024;
/** Characters a token has at least: a shorter one could not be told from other text, and so not be kept out of logs. */
export const LICENSE_TOKEN_CHARS_MIN = 8;
/** Characters from which a token's last four are shown: of a shorter one they would tell too much. */
export const LICENSE_TOKEN_TAIL_CHARS_MIN = 16;
/** Licenses of one vault, and bytes of the file of one: two sealed tokens, a third larger in base64, with room for the seal. */
export const VAULT_LICENSES_MAX = 1_000;
export const VAULT_FILE_BYTES_MAX = 64 * 1024;
/** Milliseconds for which an opened token serves further requests: a fleet that starts asks at once, and opening takes a process. */
export const VAULT_OPEN_MS = 2_000;
/** Milliseconds after its last use for which a token is looked for in logs and answers: what a server says of it comes within seconds. */
export const VAULT_REDACT_MS = 60_000;
/** Milliseconds for systemd-creds to seal or open one token; it takes some ten. */
export const VAULT_SEAL_TIMEOUT_MS = 10_000;
/** Milliseconds for a license server to answer, connection and body included. */
export const LICENSE_ANSWER_TIMEOUT_MS = 15_000;
/** Origins one license's token may go to. */
export const LICENSE_ORIGINS_MAX = 16;
/** Bytes of one answer of a license server. */
export const LICENSE_ANSWER_BYTES_MAX = 256 * 1024;
/** Signatures of one signed envelope: a key and the one that follows it, and some. */
export const DSSE_SIGNATURES_MAX = 8;
/** Milliseconds a license server's answer may claim to be believed for, and by which its clock may differ from ours. */
export const LICENSE_ANSWER_LIFE_MAX_MS = 60 * 60_000;
export const LICENSE_CLOCK_SKEW_MAX_MS = 10 * 60_000;
/** Revocations in one answer of a license server, and answers read one after another: 50,000 in all, the rest the next time. */
export const LICENSE_REVOCATIONS_PAGE_MAX = 500;
export const LICENSE_REVOCATION_PAGES_MAX = 100;
/** Milliseconds by which a signed answer of Keygen may be away from our clock, as its documentation advises. */
export const LICENSE_KEYGEN_AGE_MAX_MS = 5 * 60_000;
/** Milliseconds of the shortest machine file that Keygen gives out. */
export const LICENSE_KEYGEN_CHECKOUT_MS_MIN = 60 * 60_000;
/** Milliseconds for which an answer of our own license server may be believed: a host asks and reads it within seconds. */
export const LICENSE_SERVER_ANSWER_LIFE_MS = 60_000;
/** Milliseconds for which the license server remembers a lease that ran out, so that its VM gets the same one again: a day. */
export const LICENSE_SERVER_LEASE_KEPT_MS = 24 * 60 * 60_000;
/** Decisions in the license server's log. */
export const LICENSE_SERVER_LOG_MAX = 100_000;
/** Bytes of one request to the license server, and connections at once: a host has a few. */
export const LICENSE_SERVER_BODY_BYTES_MAX = 16 * 1024;
export const LICENSE_SERVER_CONNECTIONS_MAX = 1_024;
/** Milliseconds a client of the license server has to send its whole request. */
export const LICENSE_SERVER_REQUEST_TIMEOUT_MS = 15_000;
/** Requests of one token and second, and as many at once as a burst of so many seconds: a host that starts a fleet. */
export const LICENSE_SERVER_RATE_PER_SECOND = 100;
export const LICENSE_SERVER_BURST_SECONDS = 10;
/** The same for an address that comes with tokens nobody knows: nobody needs to be quick at that. */
export const LICENSE_SERVER_UNKNOWN_PER_SECOND = 5;
/** Tokens and addresses whose rate is remembered. */
export const LICENSE_SERVER_BUCKETS_MAX = 10_000;
/** The share of a lease's life after which it is renewed, and by how much of that earlier or later. */
export const LEASE_RENEW_SHARE = 1 / 3;
export const LEASE_JITTER = 0.1;
/** Questions to license servers at the same time; further ones wait. */
export const LICENSE_ASKS_AT_ONCE_MAX = 20;
/** Milliseconds for which a license server that did not answer is not asked again by others, and until a lease is tried again. */
export const LICENSE_AWAY_MS = 15_000;
export const LICENSE_RETRY_MS = 60_000;
/**
 * How often a license server that has too many requests is asked in all, and milliseconds until it is asked again: so long after the
 * first time, twice so long after the second … A fleet of 2,000 VMs gets through to a server that takes 1,000 at once and 100 a second.
 */
export const LICENSE_BUSY_TRIES_MAX = 5;
export const LICENSE_BUSY_WAIT_MS = 1_000;
/** Milliseconds between two questions to a license's server how the license itself stands. */
export const LICENSE_VALIDATE_MS = 60 * 60_000;
/** Ids of revoked leases that are remembered for answers that were under way: a page of revocations is a few hundred. */
export const LICENSE_REVOKED_KEPT_MAX = 10_000;
/** Milliseconds for which the use of licenses is kept for bills: a year and a month. */
export const LICENSE_USE_KEPT_MS = 400 * 24 * 60 * 60_000;
/** Tenants that one license is for. */
export const LICENSE_TENANTS_MAX = 1_000;
