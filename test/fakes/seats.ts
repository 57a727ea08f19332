// A license server as its contract has it, in memory: seats, leases that end by its own clock, revocations, and answers that get lost.
import { LicenseError } from '../../src/license/license-error.ts';
import type { LeaseAnswer, LicenseServer, Revocation, SeatRequest } from '../../src/license/license-server.ts';
import type { VmId } from '../../src/model/ids.ts';
import type { Lease, Verdict } from '../../src/model/license.ts';

export type SeatsOptions = {
  readonly total: number;
  readonly nowMs: () => number;
  /** Called before and after each request does its work; may throw, or never resolve: then the answer is lost. */
  readonly trouble?: (when: 'before' | 'after', what: string) => Promise<void>;
};

export type Seats = {
  readonly server: (license: string) => LicenseServer;
  /** Leases that hold now, by fingerprint. */
  readonly held: () => ReadonlyMap<string, Lease>;
  readonly asked: () => readonly string[];
  /** The most seats that were ever held at once. */
  readonly most: () => number;
  /** Null: all is well again. */
  readonly end: (code: string | null) => void;
  /** The seat of one VM is taken back. */
  readonly revoke: (leaseId: string, code: string) => void;
  /** What is refused to whoever has no seat, whatever is free. */
  readonly refuse: (code: string | null) => void;
  isAway: boolean;
};

/** The seats of one license. */
export function makeSeats({ total, nowMs, trouble = async () => {} }: SeatsOptions): Seats {
  const held = new Map<string, Lease>();
  const asked: string[] = [];
  const revocations: Revocation[] = [];
  let ended: string | null = null;
  let refused: string | null = null;
  let most = 0;
  let numbers = 0;
  const seats: Seats = {
    server: (license) => makeServer(license),
    held: () => {
      cull();
      return held;
    },
    asked: () => asked,
    most: () => most,
    end: (code) => {
      ended = code;
      if (code === null) return;
      held.clear();
      revocations.push({ serial: revocations.length + 1, leaseId: null, code });
    },
    revoke: (leaseId, code) => {
      for (const [key, lease] of held) if (lease.id === leaseId) held.delete(key);
      revocations.push({ serial: revocations.length + 1, leaseId, code });
    },
    refuse: (code) => {
      refused = code;
    },
    isAway: false,
  };
  const cull = (): void => {
    for (const [key, lease] of held) if (lease.expiresAtMs <= nowMs()) held.delete(key);
  };
  const verdict = (code: string): Verdict => ({
    valid: code === 'VALID',
    code,
    detail: '',
    seats: { used: held.size, total },
    expiresAtMs: null,
  });
  const refusal = (code: string): LeaseAnswer => ({ kind: 'refused', verdict: verdict(code) });
  const grant = (request: SeatRequest, id: string, grantedAtMs: number): LeaseAnswer => {
    const { license, vm, fingerprint, durationMs } = request;
    // The cast holds: the host asks with the names of its VMs.
    const lease: Lease = { id, license, vm: vm as VmId, grantedAtMs, expiresAtMs: nowMs() + durationMs };
    held.set(fingerprint, lease);
    most = Math.max(most, held.size);
    return { kind: 'granted', lease };
  };
  const makeServer = (license: string): LicenseServer => {
    const reach = async <T>(what: string, work: () => T): Promise<T> => {
      asked.push(what);
      if (seats.isAway) throw new LicenseError('vendor-ill/license-server', `${license}: it cannot be reached`);
      await trouble('before', what);
      cull();
      const answer = work();
      await trouble('after', what);
      return answer;
    };
    return {
      validate: () => reach('validate', () => verdict(ended ?? refused ?? 'VALID')),
      lease: (request) =>
        reach('lease', () => {
          if (ended !== null) return refusal(ended);
          const known = held.get(request.fingerprint);
          if (known !== undefined) return grant(request, known.id, known.grantedAtMs);
          if (refused !== null) return refusal(refused);
          if (held.size >= total) return refusal('TOO_MANY_MACHINES');
          numbers += 1;
          return grant(request, `seat-${numbers}`, nowMs());
        }),
      renew: (lease, request) =>
        reach('renew', () => {
          if (ended !== null) return refusal(ended);
          if (refused !== null) return refusal(refused);
          if (held.get(request.fingerprint)?.id !== lease.id) return refusal('NO_MACHINE');
          return grant(request, lease.id, lease.grantedAtMs);
        }),
      release: (leaseId) =>
        reach('release', () => {
          for (const [key, lease] of held) if (lease.id === leaseId) held.delete(key);
        }),
      revocations: (since) =>
        reach('revocations', () => ({
          serial: revocations.length,
          revoked: revocations.filter(({ serial }) => serial > since),
        })),
      checkout: null,
      close: async () => {},
    };
  };
  return seats;
}
