// The license of a life that has one: its server, what befalls that, and the real leases of each daemon over it.
import type { Licenses } from '../../proxy/licenses.ts';
import { noLicenses } from '../../proxy/licenses-service.ts';
import type { Audit } from '../../src/audit/audit.ts';
import type { Clock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import type { DatabaseSync } from '../../src/base/sqlite.ts';
import { type LeaseBook, openLeaseBook } from '../../src/license/lease-book.ts';
import type { LicenseServer } from '../../src/license/license-server.ts';
import type { VmId } from '../../src/model/ids.ts';
import type { Plan } from '../../src/model/plan.ts';
import type { VmRun } from '../../src/update/vm-run.ts';
import { makeSeats, type Seats } from '../fakes/seats.ts';
import { START_MS } from './clock.ts';
import type { Touch } from './machine.ts';
import type { World } from './world.ts';

/** What the product that all VMs share is under. */
export const LICENSE = 'lic';
const HOUR_MS = 3_600_000;
const POLICY = { durationMs: 2 * HOUR_MS, graceMs: HOUR_MS, idleMs: 30 * 24 * HOUR_MS };
const POLL_MS = 30_000;
const SEATS = 5;

/** Whether a plan brings something under the license. */
export const isLicensed = (plan: Plan): boolean => plan.items.some(({ release }) => release.license === LICENSE);

/** The license server of a life. */
export type LicenseWorld = { readonly seats: Seats; readonly calm: () => void };

/** Makes it; from then on things befall it. */
export function makeLicenseWorld(world: World): LicenseWorld {
  const { clock } = world;
  const random = world.random('license server');
  const seats = makeSeats({ total: SEATS, nowMs: () => START_MS + clock.monotonicMs() });
  const strike = (): void => {
    if (!world.isStormy) return;
    const what = random.pick([
      [3, 'goes away'],
      [3, 'is back'],
      [2, 'suspends the license'],
      [3, 'reinstates it'],
      [1, 'revokes a seat'],
    ]);
    world.say(`the license server ${what}`);
    if (what === 'goes away' || what === 'is back') seats.isAway = what === 'goes away';
    if (what === 'suspends the license') seats.end('SUSPENDED');
    if (what === 'reinstates it') seats.end(null);
    const [first] = seats.held().values();
    if (what === 'revokes a seat' && first !== undefined) seats.revoke(first.id, 'REVOKED');
    clock.after(random.between(1_000, 2 * HOUR_MS), strike);
  };
  clock.after(random.between(1_000, HOUR_MS), strike);
  return {
    seats,
    calm: () => {
      seats.isAway = false;
      seats.end(null);
    },
  };
}

export type LicenseParts = {
  readonly db: DatabaseSync;
  readonly clock: Clock;
  readonly audit: Pick<Audit, 'append'>;
  readonly touch: Touch;
  readonly runOf: (vm: VmId) => VmRun | null;
};

/** The leases of one daemon, looked after as the host does it; null in a life without a license. */
export function openLicenses(
  world: World,
  { db, clock, audit, touch, runOf }: LicenseParts,
): { readonly book: LeaseBook; readonly close: () => void } | null {
  if (world.licenses === null) return null;
  const real = world.licenses.seats.server(LICENSE);
  // On the way there and back the daemon may die, and then nothing is answered.
  const asked = async <T>(work: () => Promise<T>): Promise<T> => {
    await touch('', () => {});
    const said = await work();
    await touch('', () => {}, { mayFail: false });
    return said;
  };
  const server: LicenseServer = {
    ...real,
    lease: (request) => asked(() => real.lease(request)),
    renew: (lease, request) => asked(() => real.renew(lease, request)),
    release: (id) => asked(() => real.release(id)),
    revocations: (since) => asked(() => real.revocations(since)),
  };
  const { mutation } = world;
  const onEnded = (vm: VmId, license: string, code: string) => runOf(vm)?.loseLicense(license, code);
  const book = openLeaseBook({
    ...{ db, log: silentLog, policy: POLICY, serverOf: () => server, isFor: () => true, tenantOf: () => 'default' },
    // The wall clock of a life jumps; what is sure goes on.
    clock: { ...clock, trustedMs: () => START_MS + clock.monotonicMs() },
    record: (decision) => audit.append({ kind: 'license', ...decision }),
    onEnded: mutation === 'keeps-licensed' ? () => {} : onEnded,
    random: world.random('renewals').next,
  });
  const ending = new AbortController();
  const { signal } = ending;
  let cancel = (): void => {};
  const look = async (): Promise<void> => {
    await book.readRevocations(signal).catch(() => {});
    if (mutation !== 'keeps-licensed')
      for (const { vm, license, code, state } of book.leases()) if (state === 'ended') onEnded(vm, license, code);
    await book.tend(signal).catch(() => {});
    arm();
  };
  const arm = (): void => {
    if (!signal.aborted) cancel = clock.after(POLL_MS, () => void look());
  };
  arm();
  return {
    book,
    close: () => {
      ending.abort();
      cancel();
    },
  };
}

/** What host and service take of it. */
export function licenseRoom(book: LeaseBook): Licenses {
  const room: Pick<Licenses, 'book' | 'service' | 'tenantOf' | 'setTenant' | 'forgetVm' | 'doctorLines'> = {
    book,
    service: noLicenses(),
    tenantOf: () => 'default',
    setTenant: () => {},
    forgetVm: (vm) => book.releaseVm(vm),
    doctorLines: async () => [],
  };
  // The cast holds: they use no more of it.
  return room as Licenses;
}
