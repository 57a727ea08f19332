// What licenses were used for, per tenant: seat-hours, fetches and bytes (A17).
import type { DatabaseSync } from '../base/sqlite.ts';
import type { VmId } from '../model/ids.ts';

/** One line of the bill: one VM's use of one license. */
export type UseRow = {
  readonly tenant: string;
  readonly license: string;
  readonly vm: VmId;
  readonly seatHours: number;
  readonly fetches: number;
  readonly bytes: number;
};

export type UseQuery = { readonly tenant?: string; readonly sinceMs: number; readonly nowMs: number };

export type LeaseUse = {
  readonly countFetch: (entry: {
    readonly license: string;
    readonly vm: VmId;
    readonly tenant: string;
    readonly bytes: number;
    readonly nowMs: number;
  }) => void;
  /** By tenant, license and VM. Fetches are counted by day: those of the day of `sinceMs` are all in it. */
  readonly usage: (query: UseQuery) => readonly UseRow[];
  /** Forgets what ended before. */
  readonly forget: (beforeMs: number) => void;
};

const DAY_MS = 86_400_000;
const HOUR_MS = 3_600_000;

/** Over an open database with the migrations of lease-rows.ts applied. */
export function openLeaseUse(db: DatabaseSync): LeaseUse {
  const add = db.prepare(
    `INSERT INTO license_fetch VALUES (?, ?, ?, ?, 1, ?)
     ON CONFLICT (day, license, vm, tenant) DO UPDATE SET fetches = fetches + 1, bytes = bytes + excluded.bytes`,
  );
  const usage = db.prepare(`
    SELECT tenant, license, vm, sum(seat_ms) AS seat_ms, sum(fetches) AS fetches, sum(bytes) AS bytes FROM (
      SELECT tenant, license, vm, max(0, min(coalesce(until_ms, ?2), ?2) - max(from_ms, ?1)) AS seat_ms, 0 AS fetches, 0 AS bytes
        FROM license_seat_time WHERE from_ms < ?2 AND coalesce(until_ms, ?2) > ?1
      UNION ALL
      SELECT tenant, license, vm, 0, fetches, bytes FROM license_fetch WHERE day >= ?3
    ) WHERE ?4 IS NULL OR tenant = ?4 GROUP BY tenant, license, vm ORDER BY tenant, license, vm`);
  const forgetSeats = db.prepare('DELETE FROM license_seat_time WHERE until_ms < ?');
  const forgetFetches = db.prepare('DELETE FROM license_fetch WHERE day < ?');
  const dayOf = (ms: number): number => Math.floor(ms / DAY_MS);
  return {
    countFetch: ({ license, vm, tenant, bytes, nowMs }) => void add.run(dayOf(nowMs), license, vm, tenant, bytes),
    usage: ({ tenant, sinceMs, nowMs }) =>
      usage.all(sinceMs, nowMs, dayOf(sinceMs), tenant ?? null).map((found) => {
        // The cast holds: these are the columns of the query above.
        const { seat_ms: seatMs, ...row } = found as Omit<UseRow, 'seatHours'> & { readonly seat_ms: number };
        return { ...row, seatHours: Math.round((seatMs / HOUR_MS) * 1000) / 1000 };
      }),
    forget: (beforeMs) => {
      forgetSeats.run(beforeMs);
      forgetFetches.run(dayOf(beforeMs));
    },
  };
}
