// Why a VM is not plugged in, and what to do next (X8). The reasons are data; the sentences are made in one place.

/** Words of an agent for which the bytes on the drive may be to blame. */
const CONTENT_CODES: ReadonlySet<string> = new Set([
  'mount-failed',
  'manifest-missing',
  'manifest-digest',
  'drive-unreadable',
  'digest-mismatch',
  'size-mismatch',
  'file-missing',
]);

/** Whether a guest's failure puts in doubt what this host showed to it. */
export function isContentCode(code: string): boolean {
  return CONTENT_CODES.has(code);
}

/** A version that an update failed with. */
export type FailedVersion = { readonly item: string; readonly version: string };

/** What can go wrong with a run. */
export type Trouble =
  | { readonly kind: 'agent-silent'; readonly waitedMs: number; readonly state: string }
  | { readonly kind: 'install-failed'; readonly item: string; readonly code: string; readonly detail: string }
  | { readonly kind: 'confirm-refused'; readonly code: string; readonly detail: string }
  | { readonly kind: 'drive-refused'; readonly code: string; readonly detail: string }
  | { readonly kind: 'guest-misbehaved'; readonly code: string; readonly detail: string }
  | { readonly kind: 'vendor-unavailable'; readonly vendor: string; readonly detail: string }
  | { readonly kind: 'plan-refused'; readonly code: string; readonly detail: string }
  | { readonly kind: 'license-refused'; readonly license: string; readonly code: string }
  | { readonly kind: 'host-failure'; readonly step: string; readonly detail: string }
  | { readonly kind: 'too-many-reboots'; readonly reboots: number }
  | { readonly kind: 'too-many-offers'; readonly offers: number }
  | { readonly kind: 'deadline'; readonly state: string; readonly waitedMs: number }
  | { readonly kind: 'ungated-start'; readonly detail: string };

export type QuarantineReason =
  | Trouble
  /** The update ran on a disk overlay, which was thrown away (X5). `versions`: the first of those that failed; none where the host was to blame. */
  | { readonly kind: 'rolled-back'; readonly versions: readonly FailedVersion[]; readonly cause: Trouble };
