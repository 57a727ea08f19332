// Why a VM is not plugged in, and what to do next (X8). The reasons are data; the sentences are made in one place.

export type QuarantineReason =
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
