// Which VM holds a seat of which license: taken when a plan needs it, renewed at a third of its life, given back when nobody needs it.
//
//   (none) ─► asking ─► held ─► releasing ─► (none)
//               │ ▲       │
//               ▼ │       ▼
//            refused    ended     by the server's explicit word; what is needed again is asked again
//
// The wish is on disk before a server is asked, and what is to be given back before it is given back: after a crash the same
// fingerprint gets the same seat, so none is lost and none stuck. A server that does not answer changes nothing; a lease that runs out
// meanwhile goes on counting for the time of grace.
import { createHmac } from 'node:crypto';
import { type Clock, trustedNowMs } from '../base/clock.ts';
import { describeError } from '../base/errors.ts';
import {
  LICENSE_ASKS_AT_ONCE_MAX,
  LICENSE_AWAY_MS,
  LICENSE_RETRY_MS,
  LICENSE_REVOKED_KEPT_MAX,
} from '../base/limits.ts';
import type { Log } from '../base/log.ts';
import { makeSlots } from '../base/slots.ts';
import type { DatabaseSync } from '../base/sqlite.ts';
import type { RunId, VmId } from '../model/ids.ts';
import { ENDING_CODES, type Lease } from '../model/license.ts';
import type { LicenseDecision, LicenseFact, LicenseSeats, SeatsRequest } from '../model/license-check.ts';
import { makeLanes } from './lease-lanes.ts';
import { endsLease, type LeasePolicy, renewalAt, standingOf } from './lease-policy.ts';
import { type LeaseRow, openLeaseRows } from './lease-rows.ts';
import { openLeaseUse, type UseQuery, type UseRow } from './lease-use.ts';
import type { LicenseServer, SeatRequest } from './license-server.ts';

export type LeaseBookOptions = {
  readonly db: DatabaseSync;
  readonly clock: Clock;
  readonly log: Log;
  readonly policy: LeasePolicy;
  /** Null: there is no such license here. Another object once the license has another token. */
  readonly serverOf: (license: string) => LicenseServer | null;
  /** Whether the license is for this VM at all: that of another tenant is as if it were not there. */
  readonly isFor: (license: string, vm: VmId) => boolean;
  readonly tenantOf: (vm: VmId) => string;
  /** Resolves when the decision is on the record. */
  readonly record: (decision: LicenseDecision) => Promise<unknown>;
  /** The seat of a VM ended by an explicit word: what it guards is to be taken away from the VM now. */
  readonly onEnded: (vm: VmId, license: string, code: string) => void;
  /** From 0 to 1. */
  readonly random: () => number;
};

/** A row for people. */
export type LeaseView = Omit<LeaseRow, 'told'> & { readonly standing: 'valid' | 'grace' | 'over' | null };

export type LeaseBook = LicenseSeats & {
  readonly check: (vm: VmId, license: string) => string | null;
  /** Everything that is due: renewals, revocations, what is idle, what a crash left half done. */
  readonly tend: (signal: AbortSignal) => Promise<void>;
  /** Reads the list of revocations of each license; servers that do not answer are asked the next time. */
  readonly readRevocations: (signal: AbortSignal) => Promise<void>;
  /** Gives back all seats of a VM, as soon as their servers answer; on disk when it returns. */
  readonly releaseVm: (vm: VmId) => void;
  /** Gives back all seats of a license; resolves with how many could not be given back yet. */
  readonly releaseLicense: (license: string, signal: AbortSignal) => Promise<number>;
  /** An explicit end of a whole license, by its server or by an operator; in force when it returns. */
  readonly endLicense: (license: string, code: string) => Promise<void>;
  /** The server says of a license that ended before that it is valid. */
  readonly mendLicense: (license: string) => void;
  /** Nothing of it is left; its seats must have been given back. */
  readonly forgetLicense: (license: string) => void;
  readonly endedBy: (license: string) => string | null;
  /** After a restore: nothing that is held counts before its server has said so again, for it may be another's by now. */
  readonly doubt: () => void;
  /** VMs that are no more give back what they held. */
  readonly reconcile: (vms: ReadonlySet<string>) => void;
  readonly leases: (filter?: { readonly vm?: string; readonly license?: string }) => readonly LeaseView[];
  readonly usage: (query: Omit<UseQuery, 'nowMs'>) => readonly UseRow[];
  readonly forgetUse: (beforeMs: number) => void;
};

/** The word of an operator of this host: no server's word lifts it. */
export const REVOKED_HERE = 'REVOKED_HERE';

/** The leases of a host over its database (LEASE_MIGRATIONS applied). */
export function openLeaseBook(options: LeaseBookOptions): LeaseBook {
  return new Book(options);
}

class Book implements LeaseBook {
  readonly #options: LeaseBookOptions;
  readonly #rows: ReturnType<typeof openLeaseRows>;
  readonly #use: ReturnType<typeof openLeaseUse>;
  readonly #lanes = makeLanes();
  readonly #slots = makeSlots(LICENSE_ASKS_AT_ONCE_MAX);
  /** Of their own: what was revoked is read also while all others wait for a server. */
  readonly #readingSlots = makeSlots(LICENSE_ASKS_AT_ONCE_MAX);
  readonly #hostKey: Uint8Array;
  /** On the monotonic clock: until then a server that did not answer is not asked by others. */
  readonly #awayUntil = new Map<string, number>();
  /** Leases that were revoked since this process started: an answer that was under way may still bring one. */
  readonly #revoked = new Set<string>();

  constructor(options: LeaseBookOptions) {
    this.#options = options;
    this.#rows = openLeaseRows(options.db);
    this.#use = openLeaseUse(options.db);
    this.#hostKey = this.#rows.hostKey();
  }

  // ---- Asked by runs ------------------------------------------------------------------------------------------------

  check = (vm: VmId, license: string): string | null => {
    if (!this.#isHere(license, vm)) return 'NO_LICENSE';
    const row = this.#rows.get(license, vm);
    if (row === null || row.state === 'releasing') return this.endedBy(license) ?? 'NO_LEASE';
    if (row.state !== 'held') return row.code;
    // A license that has ended has no seats: one that is still held was not reached by the end, and is by the next look.
    return this.endedBy(license) ?? (this.#standing(row) === 'over' ? 'LEASE_EXPIRED' : null);
  };

  prospect = (vm: VmId, license: string): string | null => {
    if (!this.#isHere(license, vm)) return 'NO_LICENSE';
    const row = this.#rows.get(license, vm);
    const isRefused = row?.state === 'refused' || row?.state === 'ended';
    return isRefused ? row.code : row?.state === 'held' ? this.check(vm, license) : this.endedBy(license);
  };

  factsOf = (vm: VmId, licenses: readonly string[]): readonly LicenseFact[] =>
    licenses.map((license) => {
      const row = this.#rows.get(license, vm);
      const { seat: lease = null, saidAtMs = null, expiresAtMs = null } = row ?? {};
      const isInGrace = row?.state === 'held' && this.#standing(row) === 'grace';
      const code = this.check(vm, license) ?? (isInGrace ? (row?.code ?? 'SERVER_AWAY') : 'VALID');
      return { license, code, lease, saidAtMs, expiresAtMs, isInGrace };
    });

  countFetch = (vm: VmId, license: string, sizeBytes: number): void => {
    this.#use.countFetch({ license, vm, tenant: this.#options.tenantOf(vm), bytes: sizeBytes, nowMs: this.#now() });
  };

  take = async ({ vm, run, licenses }: SeatsRequest, signal: AbortSignal): Promise<void> => {
    const here = licenses.filter((license) => this.#isHere(license, vm));
    await allOf(here.map((license) => this.#inLane(license, vm, signal, () => this.#take(license, vm, run, signal))));
  };

  async #take(license: string, vm: VmId, run: RunId, signal: AbortSignal): Promise<void> {
    let row = this.#rows.get(license, vm);
    if (row?.state === 'releasing') {
      await this.#release(row, signal);
      row = this.#rows.get(license, vm);
      if (row?.state === 'releasing') return;
    }
    const now = this.#now();
    if (row?.state === 'held') {
      this.#put({ ...row, usedAtMs: now });
      if (this.#standing(row) === 'valid') return;
      await this.#renew({ ...row, usedAtMs: now }, run, signal);
      const after = this.#rows.get(license, vm);
      if (after?.state === 'held') await this.#tellStanding(after);
      return;
    }
    const tenant = this.#options.tenantOf(vm);
    if (this.endedBy(license) === REVOKED_HERE) return;
    const code = row?.state === 'asking' || row === null ? 'SERVER_AWAY' : row.code;
    const asked = { license, vm, tenant, state: 'asking', seat: null, grantedAtMs: null, expiresAtMs: null } as const;
    const when = { saidAtMs: row?.saidAtMs ?? null, dueAtMs: now + LICENSE_RETRY_MS, usedAtMs: now };
    await this.#ask({ ...asked, ...when, code, told: 'nothing' }, run, signal);
  }

  // ---- Asking servers -----------------------------------------------------------------------------------------------

  /** Asks for the seat of a row; the row is on disk before. */
  async #ask(row: LeaseRow, run: RunId | null, signal: AbortSignal): Promise<void> {
    this.#put(row);
    const endedBefore = this.#rows.word(row.license).ended;
    const answer = await this.#word(row.license, signal, (server) => server.lease(this.#request(row), signal));
    signal.throwIfAborted();
    const now = this.#rows.get(row.license, row.vm);
    if (answer === null) {
      // Nothing was said: what a server said before does not stand any more, it may have given the seat.
      if (now?.state === 'asking') this.#put({ ...now, code: 'SERVER_AWAY' });
      return;
    }
    if (now?.state !== 'asking') return;
    if (answer.kind === 'granted') await this.#grant(now, answer.lease, run, endedBefore);
    else await this.#refuse(now, answer.verdict.code, run, row.code !== answer.verdict.code);
  }

  async #grant(row: LeaseRow, lease: Lease, run: RunId | null, endedBefore: string | null): Promise<void> {
    const { license, vm } = row;
    const { ended } = this.#rows.word(license);
    // It was ended while the answer was under way: which of the two came later nobody knows, and the next plan asks again.
    // A word of this host's operator is lifted by no answer at all.
    const isEnded = ended === REVOKED_HERE || this.#revoked.has(lease.id) || (ended !== null && ended !== endedBefore);
    if (isEnded) return await this.#refuse({ ...row, seat: lease.id }, ended ?? 'REVOKED', run, true);
    await this.#record(row, 'granted', 'VALID', lease, run);
    if (this.#rows.get(license, vm)?.state !== 'asking') return;
    this.#rows.atOnce(() => {
      this.#put(heldRow(row, lease, this.#now(), this.#options.random));
      // The server gives seats again, so the license has not ended any more.
      if (ended !== null) this.mendLicense(license);
    });
  }

  async #refuse(row: LeaseRow, code: string, run: RunId | null, isNews: boolean): Promise<void> {
    if (isNews) await this.#record(row, 'refused', code, null, run);
    const now = this.#rows.get(row.license, row.vm);
    if (now?.state !== 'asking') return;
    const saidAtMs = this.#now();
    if (row.seat === null) this.#put({ ...now, state: 'refused', code, saidAtMs });
    // A seat that the server gave all the same is given back.
    else this.#put({ ...now, state: 'ended', seat: row.seat, code, saidAtMs, told: 'expired' });
  }

  async #renew(row: LeaseRow, run: RunId | null, signal: AbortSignal): Promise<void> {
    const lease = leaseOf(row);
    const { license, vm } = row;
    let asked = row;
    const renew = (server: LicenseServer, known: Lease) => server.renew(known, this.#request(row), signal);
    let answer = lease === null ? null : await this.#word(license, signal, (server) => renew(server, lease));
    const isGone = answer?.kind === 'refused' && !ENDING_CODES.has(answer.verdict.code);
    // A lease that ran out may be another's by now: then it is asked for like a new one.
    if (lease === null || (isGone && this.#standing(row) !== 'valid')) {
      signal.throwIfAborted();
      const before = this.#rows.get(license, vm);
      if (before?.state !== 'held' || before.seat !== row.seat) return;
      // Which seat that will be is not known before the answer, nor if none comes: whoever gives it back looks for it.
      asked = { ...before, seat: null };
      this.#put(asked);
      answer = await this.#word(license, signal, (server) => server.lease(this.#request(row), signal));
    }
    signal.throwIfAborted();
    const now = this.#rows.get(license, vm);
    if (now?.state !== 'held' || now.seat !== asked.seat) return;
    const dueAtMs = this.#now() + LICENSE_RETRY_MS;
    if (answer === null) return this.#put({ ...now, code: 'SERVER_AWAY', dueAtMs });
    if (answer.kind === 'granted') {
      const { lease: renewed } = answer;
      if (this.#revoked.has(renewed.id)) return await this.#end(now, 'REVOKED');
      await this.#record(now, 'renewed', 'VALID', renewed, run);
      if (this.#rows.get(license, vm)?.state === 'held')
        this.#put(heldRow(now, renewed, this.#now(), this.#options.random));
      return;
    }
    const { code } = answer.verdict;
    if (endsLease(code, this.#standing(now))) return await this.#end(now, code);
    if (now.code !== code) await this.#record(now, 'refused', code, lease, run);
    this.#put({ ...now, code, saidAtMs: this.#now(), dueAtMs });
  }

  /** Gives a seat back, and forgets the row when the server has said so. */
  async #release(row: LeaseRow, signal: AbortSignal): Promise<void> {
    const { license, vm } = row;
    const seat = row.seat ?? (await this.#findSeat(row, signal));
    if (seat === undefined) return this.#put({ ...row, dueAtMs: this.#now() + LICENSE_RETRY_MS });
    if (seat !== null) {
      const done = await this.#word(license, signal, async (server) => {
        await server.release(seat, signal);
        return true;
      });
      signal.throwIfAborted();
      if (done === null) return this.#put({ ...row, seat, dueAtMs: this.#now() + LICENSE_RETRY_MS });
    }
    await this.#record({ ...row, seat }, 'released', row.code, null, null);
    if (this.#rows.get(license, vm)?.state === 'releasing') this.#rows.remove(row, this.#now());
  }

  /** The seat that an answer which never came may have given: whoever asks again gets the same one. Undefined: not known now. */
  async #findSeat(row: LeaseRow, signal: AbortSignal): Promise<string | null | undefined> {
    const answer = await this.#word(row.license, signal, (server) => server.lease(this.#request(row), signal));
    signal.throwIfAborted();
    if (answer === null) return undefined;
    if (answer.kind === 'refused') return null;
    this.#put({ ...row, seat: answer.lease.id });
    return answer.lease.id;
  }

  /** What a server says; null when it says nothing that counts. */
  async #word<T>(license: string, signal: AbortSignal, ask: (server: LicenseServer) => Promise<T>): Promise<T | null> {
    const { clock, log } = this.#options;
    const server = this.#options.serverOf(license);
    if (server === null || clock.monotonicMs() < (this.#awayUntil.get(license) ?? 0)) return null;
    try {
      const said = await ask(server);
      this.#awayUntil.delete(license);
      // The license has another token since, or is gone: what the old one was told counts no more.
      if (this.#options.serverOf(license) !== server) return await this.#word(license, signal, ask);
      return said;
    } catch (error) {
      // Whoever asked waits no more: that says nothing about the server.
      if (signal.aborted) return null;
      log.warn(
        { license, detail: describeError(error) },
        'a license server did not answer; no lease is changed by that',
      );
      this.#awayUntil.set(license, clock.monotonicMs() + LICENSE_AWAY_MS);
      return null;
    }
  }

  // ---- By the clock -------------------------------------------------------------------------------------------------

  async tend(signal: AbortSignal): Promise<void> {
    const never = new AbortController().signal;
    const rows = this.#rows.list().filter((row) => this.#isDue(row));
    const works = rows.map((row) =>
      this.#slots.withSlot(signal, () =>
        this.#inLane(row.license, row.vm, never, () => this.#tendRow(row.license, row.vm, signal)),
      ),
    );
    await allOf(works).catch((error: unknown) => {
      if (!signal.aborted) throw error;
    });
  }

  #isDue(row: LeaseRow): boolean {
    const now = this.#now();
    if (this.#isIdle(row)) return true;
    if (row.state === 'held' && this.endedBy(row.license) !== null) return true;
    if (row.state === 'refused') return false;
    if (row.state === 'ended') return (row.seat !== null || row.told === 'nothing') && row.dueAtMs <= now;
    if (row.dueAtMs <= now) return true;
    return row.state === 'held' && (row.expiresAtMs ?? 0) <= now && row.told !== 'expired';
  }

  #isIdle(row: LeaseRow): boolean {
    return this.#now() - row.usedAtMs >= this.#options.policy.idleMs;
  }

  async #tendRow(license: string, vm: VmId, signal: AbortSignal): Promise<void> {
    const row = this.#rows.get(license, vm);
    // What was done since the list was made is not done twice.
    if (row === null || signal.aborted || !this.#isDue(row)) return;
    switch (row.state) {
      case 'releasing':
        return await this.#release(row, signal);
      case 'asking':
        if (this.#isIdle(row)) return await this.#letGo(row, signal);
        return await this.#ask({ ...row, dueAtMs: this.#now() + LICENSE_RETRY_MS }, null, signal);
      case 'held': {
        const ended = this.endedBy(license);
        if (ended !== null) return await this.#end(row, ended);
        await this.#tellStanding(row);
        if (this.#isIdle(row)) return await this.#letGo(row, signal);
        const told = this.#rows.get(license, vm);
        if (told?.state === 'held' && told.dueAtMs <= this.#now()) await this.#renew(told, null, signal);
        return;
      }
      case 'refused':
      case 'ended':
        if (row.state === 'ended' && row.told === 'nothing') return await this.#tellEnd(row);
        // A seat that ended may still be counted at its server.
        if (row.seat !== null) return await this.#giveBackEnded(row, signal);
        return this.#rows.remove(row, this.#now());
      default:
        row.state satisfies never;
    }
  }

  async #letGo(row: LeaseRow, signal: AbortSignal): Promise<void> {
    const releasing: LeaseRow = { ...row, state: 'releasing', code: 'IDLE' };
    this.#put(releasing);
    await this.#release(releasing, signal);
  }

  async #giveBackEnded(row: LeaseRow, signal: AbortSignal): Promise<void> {
    const { seat, license, vm } = row;
    if (seat === null) return;
    const done = await this.#word(license, signal, async (server) => {
      await server.release(seat, signal);
      return true;
    });
    const now = this.#rows.get(license, vm);
    if (now?.state !== row.state) return;
    this.#put({ ...now, ...(done === null ? {} : { seat: null }), dueAtMs: this.#now() + LICENSE_RETRY_MS });
  }

  /** That a lease has run out goes on the record once, and so does the end of its grace. */
  async #tellStanding(row: LeaseRow): Promise<void> {
    const standing = this.#standing(row);
    const told = standing === 'valid' ? 'nothing' : standing === 'grace' ? 'grace' : 'expired';
    if (told === 'nothing' || told === row.told) return;
    await this.#record(row, told === 'grace' ? 'in-grace' : 'expired', row.code, leaseOf(row), null);
    const now = this.#rows.get(row.license, row.vm);
    if (now?.state === 'held') this.#put({ ...now, told });
  }

  // ---- By an explicit word ------------------------------------------------------------------------------------------

  async readRevocations(signal: AbortSignal): Promise<void> {
    const licenses = [...new Set(this.#rows.list().map(({ license }) => license))];
    await Promise.all(
      licenses.map((license) => this.#readingSlots.withSlot(signal, () => this.#readRevocationsOf(license, signal))),
    );
  }

  async #readRevocationsOf(license: string, signal: AbortSignal): Promise<void> {
    const before = this.#rows.word(license);
    const said = await this.#word(license, signal, (server) => server.revocations(before.serial, signal));
    if (said === null || signal.aborted) return;
    const works: Promise<void>[] = [];
    this.#rows.atOnce(() => {
      for (const { leaseId, code } of said.revoked) {
        const begun = leaseId === null ? [this.endLicense(license, code)] : this.#endSeat(license, leaseId, code);
        works.push(...begun);
        // Where the database takes none of it, nobody waits for these any more; the list is read again.
        for (const work of begun) work.catch(() => {});
      }
      this.#rows.putWord(license, { ...this.#rows.word(license), serial: Math.max(before.serial, said.serial) });
    });
    await allOf(works);
  }

  #endSeat(license: string, seat: string, code: string): readonly Promise<void>[] {
    this.#revoked.add(seat);
    const [oldest] = this.#revoked;
    if (this.#revoked.size > LICENSE_REVOKED_KEPT_MAX && oldest !== undefined) this.#revoked.delete(oldest);
    const rows = this.#rows.list({ license }).filter((row) => row.seat === seat && row.state === 'held');
    return rows.map((row) => this.#end(row, code));
  }

  endLicense = async (license: string, code: string): Promise<void> => {
    this.#rows.putWord(license, { ...this.#rows.word(license), ended: code });
    const held = this.#rows.list({ license }).filter(({ state }) => state === 'held');
    await allOf(held.map((row) => this.#end(row, code)));
  };

  /** In force before anything is waited for. */
  async #end(row: LeaseRow, code: string): Promise<void> {
    const nowMs = this.#now();
    const ended: LeaseRow = { ...row, state: 'ended', code, saidAtMs: nowMs, told: 'nothing' };
    this.#put({ ...ended, dueAtMs: nowMs + LICENSE_RETRY_MS });
    this.#options.onEnded(row.vm, row.license, code);
    await this.#tellEnd(ended);
  }

  /** It counts whether or not it can be recorded now; then it is recorded later. */
  async #tellEnd(row: LeaseRow): Promise<void> {
    await this.#record(row, 'revoked', row.code, leaseOf(row), null);
    const now = this.#rows.get(row.license, row.vm);
    if (now?.state === 'ended') this.#put({ ...now, told: 'expired' });
  }

  mendLicense(license: string): void {
    this.#rows.putWord(license, { ...this.#rows.word(license), ended: null });
  }

  endedBy(license: string): string | null {
    return this.#rows.word(license).ended;
  }

  // ---- Giving back --------------------------------------------------------------------------------------------------

  releaseVm(vm: VmId): void {
    this.#rows.atOnce(() => {
      for (const row of this.#rows.list({ vm })) this.#markReleasing(row, 'VM_REMOVED');
    });
  }

  async releaseLicense(license: string, signal: AbortSignal): Promise<number> {
    this.#awayUntil.delete(license);
    this.#rows.atOnce(() => {
      for (const row of this.#rows.list({ license })) this.#markReleasing(row, 'LICENSE_REMOVED');
    });
    const rows = this.#rows.list({ license });
    const release = async ({ vm }: LeaseRow) => {
      const row = this.#rows.get(license, vm);
      if (row?.state === 'releasing') await this.#release(row, signal);
    };
    await Promise.all(
      rows.map((row) =>
        this.#slots.withSlot(signal, () => this.#inLane(license, row.vm, signal, async () => await release(row))),
      ),
    );
    return this.#rows.list({ license }).length;
  }

  #markReleasing(row: LeaseRow, code: string): void {
    if (row.state === 'releasing') return;
    const nowMs = this.#now();
    const isSeatless = row.seat === null && (row.state === 'refused' || row.state === 'ended');
    if (isSeatless) this.#rows.remove(row, nowMs);
    else this.#put({ ...row, state: 'releasing', code, dueAtMs: nowMs });
  }

  forgetLicense(license: string): void {
    this.#rows.atOnce(() => {
      for (const row of this.#rows.list({ license })) this.#rows.remove(row, this.#now());
      this.#rows.forgetWord(license);
    });
  }

  doubt(): void {
    const held = this.#rows.list().filter(({ state }) => state === 'held');
    const dueAtMs = this.#now();
    this.#rows.atOnce(() => {
      for (const row of held) this.#put({ ...row, state: 'asking', code: 'SERVER_AWAY', dueAtMs });
    });
  }

  reconcile(vms: ReadonlySet<string>): void {
    const gone = new Set(this.#rows.list().flatMap(({ vm }) => (vms.has(vm) ? [] : [vm])));
    for (const vm of gone) this.releaseVm(vm);
  }

  // ---- For people ---------------------------------------------------------------------------------------------------

  leases(filter: { readonly vm?: string; readonly license?: string } = {}): readonly LeaseView[] {
    return this.#rows.list(filter).map(({ told: _, ...row }) => ({
      ...row,
      standing: row.state === 'held' ? this.#standing(row) : null,
    }));
  }

  usage(query: Omit<UseQuery, 'nowMs'>): readonly UseRow[] {
    return this.#use.usage({ ...query, nowMs: this.#now() });
  }

  forgetUse(beforeMs: number): void {
    this.#use.forget(beforeMs);
  }

  // ---- Small parts --------------------------------------------------------------------------------------------------

  #isHere(license: string, vm: VmId): boolean {
    return this.#options.serverOf(license) !== null && this.#options.isFor(license, vm);
  }

  #now(): number {
    return Math.trunc(trustedNowMs(this.#options.clock));
  }

  #standing(row: Pick<LeaseRow, 'expiresAtMs'>) {
    return standingOf(row.expiresAtMs ?? 0, this.#now(), this.#options.policy);
  }

  #put(row: LeaseRow): void {
    this.#rows.put(row, this.#now());
  }

  #request({ license, vm }: LeaseRow): SeatRequest {
    const fingerprint = createHmac('sha256', this.#hostKey).update(`${license}\n${vm}`).digest('hex');
    return { license, vm, fingerprint, durationMs: this.#options.policy.durationMs };
  }

  async #record(
    { license, vm }: LeaseRow,
    decision: LicenseDecision['decision'],
    code: string,
    lease: Pick<Lease, 'id' | 'expiresAtMs'> | null,
    run: RunId | null,
  ): Promise<void> {
    const said = { lease: lease?.id ?? null, expiresAtMs: lease?.expiresAtMs ?? null };
    await this.#options.record({ license, vm, run, decision, code, ...said });
  }

  /** What concerns one seat happens one after another. */
  async #inLane<T>(license: string, vm: VmId, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    return await this.#lanes.run(`${license}\n${vm}`, async () => {
      signal.throwIfAborted();
      return await work();
    });
  }
}

/** Waits for all, then throws what the first of them failed with. */
async function allOf(works: readonly Promise<void>[]): Promise<void> {
  const failed = (await Promise.allSettled(works)).find((each) => each.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
}

function heldRow(row: LeaseRow, lease: Lease, nowMs: number, random: () => number): LeaseRow {
  const { id: seat, grantedAtMs, expiresAtMs } = lease;
  const dueAtMs = renewalAt(nowMs, expiresAtMs, random);
  return {
    ...row,
    ...{ state: 'held', code: 'VALID', told: 'nothing', seat, grantedAtMs, expiresAtMs, saidAtMs: nowMs, dueAtMs },
  };
}

function leaseOf({ license, vm, seat, grantedAtMs, expiresAtMs }: LeaseRow): Lease | null {
  if (seat === null || expiresAtMs === null) return null;
  return { id: seat, license, vm, grantedAtMs: grantedAtMs ?? expiresAtMs, expiresAtMs };
}
