// How long a lease counts, when it is renewed and when it is given back. Pure.
import { LEASE_JITTER, LEASE_RENEW_SHARE } from '../base/limits.ts';
import { ENDING_CODES } from '../model/license.ts';

export type LeasePolicy = {
  /** What is asked of a server; it may grant less. */
  readonly durationMs: number;
  /** How long a lease that could not be renewed goes on counting. */
  readonly graceMs: number;
  /** A seat that nothing was needed of for so long is given back. */
  readonly idleMs: number;
};

/** How a lease stands at a moment: `grace` after its end, `over` after the grace. */
export type Standing = 'valid' | 'grace' | 'over';

/** Told by the time alone. A server's explicit word is not in here: it has ended the lease already. */
export function standingOf(expiresAtMs: number, nowMs: number, { graceMs }: Pick<LeasePolicy, 'graceMs'>): Standing {
  if (nowMs < expiresAtMs) return 'valid';
  return nowMs < expiresAtMs + graceMs ? 'grace' : 'over';
}

/** A third of the way, a little earlier or later for each VM, so that a fleet that started at once does not ask at once. */
export function renewalAt(fromMs: number, expiresAtMs: number, random: () => number): number {
  const lifeMs = Math.max(0, expiresAtMs - fromMs);
  const share = LEASE_RENEW_SHARE * (1 + LEASE_JITTER * (2 * random() - 1));
  return Math.trunc(fromMs + lifeMs * share);
}

/**
 * Whether a refused renewal ends the lease now. A suspension does; a license that has run out or an unpaid bill does not, the lease
 * was promised until its end; and a seat that somebody else has now is gone once that end has come.
 */
export function endsLease(code: string, standing: Standing): boolean {
  if (ENDING_CODES.has(code)) return true;
  return standing !== 'valid' && !GRACE_CODES.has(code);
}

/** The license ran out: the lease that it gave has its grace like any other. */
const GRACE_CODES: ReadonlySet<string> = new Set(['EXPIRED', 'OVERDUE']);
