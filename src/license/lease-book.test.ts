// Leases: taken, renewed, given back, ended by an explicit word; what a silent server, a crash and a clock that jumps change of that.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { makeSeats, type Seats } from '../../test/fakes/seats.ts';
import type { Clock } from '../base/clock.ts';
import { silentLog } from '../base/log.ts';
import { type DatabaseSync, openDatabase } from '../base/sqlite.ts';
import type { RunId, VmId } from '../model/ids.ts';
import type { LicenseDecision } from '../model/license-check.ts';
import { type LeaseBook, openLeaseBook, REVOKED_HERE } from './lease-book.ts';
import { endsLease, renewalAt } from './lease-policy.ts';
import { LEASE_MIGRATIONS } from './lease-rows.ts';
import type { LicenseServer } from './license-server.ts';

const HOUR = 3_600_000;
const POLICY = { durationMs: 24 * HOUR, graceMs: 72 * HOUR, idleMs: 30 * 24 * HOUR };
const ID = 'acme';
// The casts hold: letters are names of VMs, and a run's id is any word here.
const WEB = 'web' as VmId;
const SHOP = 'shop' as VmId;
const RUN = 'run-1' as RunId;
const never = new AbortController().signal;

type House = {
  readonly db: DatabaseSync;
  readonly book: LeaseBook;
  readonly seats: Seats;
  readonly told: LicenseDecision[];
  readonly ended: string[];
  readonly pass: (ms: number) => void;
  readonly setServerClock: (ms: number) => void;
  /** The daemon dies and starts again. */
  readonly restart: () => LeaseBook;
  readonly take: (vm?: VmId) => Promise<string | null>;
  readonly tend: (book?: LeaseBook) => Promise<void>;
};

function house({
  total = 2,
  isFor = () => true,
}: {
  total?: number;
  isFor?: (id: string, vm: VmId) => boolean;
} = {}): House {
  let nowMs = 1_800_000_000_000;
  let monotonicMs = 0;
  let serverMs: number | null = null;
  const db = openDatabase(':memory:', LEASE_MIGRATIONS);
  const seats = makeSeats({ total, nowMs: () => serverMs ?? nowMs });
  const told: LicenseDecision[] = [];
  const ended: string[] = [];
  const clock: Clock = {
    nowMs: () => nowMs,
    monotonicMs: () => monotonicMs,
    sleep: async () => {},
    after: () => () => {},
  };
  const server = seats.server(ID);
  const open = () =>
    openLeaseBook({
      ...{ db, clock, log: silentLog, policy: POLICY, isFor },
      serverOf: (license) => (license === ID ? server : null),
      tenantOf: (vm) => (vm === SHOP ? 'retail' : 'default'),
      record: async (decision) => void told.push(decision),
      onEnded: (vm, license, code) => void ended.push(`${vm} ${license} ${code}`),
      random: () => 0.5,
    });
  const book = open();
  const take = async (vm = WEB) => {
    await book.take({ vm, run: RUN, licenses: [ID] }, never);
    return book.check(vm, ID);
  };
  return {
    ...{ db, book, seats, told, ended, take, restart: open },
    pass: (ms) => {
      nowMs += ms;
      monotonicMs += Math.max(ms, 60_000);
    },
    setServerClock: (ms) => {
      serverMs = ms;
    },
    tend: async (given = book) => await given.tend(never),
  };
}

const decisions = (told: readonly LicenseDecision[]) =>
  told.map(({ vm, decision, code }) => `${vm} ${decision} ${code}`);

describe('a seat', () => {
  test('is taken when a plan needs it, is the VM own, and is on the record with run, code and lease [A15] [X2]', async () => {
    const { book, take, told, seats } = house();
    assert.equal(book.check(WEB, ID), 'NO_LEASE');
    assert.equal(await take(), null);
    assert.equal(book.check(SHOP, ID), 'NO_LEASE', 'what one VM holds is no other one, on the same host');
    assert.equal(await take(), null);
    assert.equal(seats.asked().length, 1, 'a seat that is held is not asked for again');
    assert.equal(seats.held().size, 1);
    assert.deepEqual(told, [
      {
        ...{ license: ID, vm: WEB, run: RUN, decision: 'granted', code: 'VALID', lease: 'seat-1' },
        expiresAtMs: 1_800_000_000_000 + POLICY.durationMs,
      },
    ]);
    assert.deepEqual(book.factsOf(WEB, [ID])[0]?.code, 'VALID');
  });

  test('that is not free is refused with the server code; a free one is taken with the next plan [A15]', async () => {
    const { book, take, told } = house({ total: 1 });
    await take(WEB);
    assert.equal(await take(SHOP), 'TOO_MANY_MACHINES');
    assert.equal(await take(SHOP), 'TOO_MANY_MACHINES');
    assert.equal(book.prospect(SHOP, ID), 'TOO_MANY_MACHINES', 'a dry run knows, and asks nobody');
    book.releaseVm(WEB);
    await book.tend(never);
    assert.equal(await take(SHOP), null);
    assert.deepEqual(decisions(told), [
      'web granted VALID',
      'shop refused TOO_MANY_MACHINES',
      'web released VM_REMOVED',
      'shop granted VALID',
    ]);
  });

  test('of an unknown license, and of one that is for other tenants, is answered alike, and no server is asked [A17]', async () => {
    const { book, take, seats } = house({ isFor: (_, vm) => vm === SHOP });
    assert.equal(await take(WEB), 'NO_LICENSE');
    assert.equal(book.check(WEB, 'nothing-here'), 'NO_LICENSE');
    assert.equal(book.prospect(WEB, ID), book.prospect(WEB, 'nothing-here'));
    assert.deepEqual(seats.asked(), []);
    assert.equal(await take(SHOP), null, 'the other tenant has it');
  });

  test('is renewed at a third of its life, and given back when nothing was needed of it for long', async () => {
    const { book, take, pass, seats, tend, told } = house();
    await take();
    pass(POLICY.durationMs / 3 - 60_000);
    await tend();
    assert.deepEqual(seats.asked(), ['lease'], 'not before a third');
    pass(2 * 60_000);
    await tend();
    assert.deepEqual(seats.asked(), ['lease', 'renew']);
    for (let passed = 0; passed < POLICY.idleMs; passed += POLICY.durationMs / 2) {
      pass(POLICY.durationMs / 2);
      await tend();
    }
    assert.equal(seats.held().size, 0);
    assert.equal(book.leases().length, 0);
    assert.equal(decisions(told).at(-1), 'web released IDLE');
  });
});

describe('a server that does not answer', () => {
  test('is no denial: a lease goes on until its end and the grace after it, then only what is new stops [A15]', async () => {
    const { book, take, pass, seats, tend, told, ended } = house();
    await take();
    seats.isAway = true;
    pass(POLICY.durationMs - 1);
    await tend();
    assert.equal(book.check(WEB, ID), null);
    pass(2);
    await tend();
    assert.equal(await take(), null, 'within the grace also for the next plan');
    assert.deepEqual(
      book.factsOf(WEB, [ID]).map(({ isInGrace, code }) => [isInGrace, code]),
      [[true, 'SERVER_AWAY']],
    );
    pass(POLICY.graceMs);
    await tend();
    assert.equal(await take(), 'LEASE_EXPIRED');
    assert.deepEqual(ended, [], 'nothing is taken away from anybody');
    assert.deepEqual(decisions(told), ['web granted VALID', 'web in-grace SERVER_AWAY', 'web expired SERVER_AWAY']);
    seats.isAway = false;
    pass(60_000);
    assert.equal(await take(), null, 'as soon as it answers again');
  });

  test('gives no seat either, and whoever waited for one has it when it is back', async () => {
    const { book, take, pass, seats, tend } = house();
    seats.isAway = true;
    assert.equal(await take(), 'SERVER_AWAY');
    assert.equal(await take(SHOP), 'SERVER_AWAY');
    assert.equal(seats.asked().length, 1, 'not everybody waits for one that did not answer a moment ago');
    assert.equal(book.prospect(WEB, ID), null, 'nobody said no');
    seats.isAway = false;
    pass(61_000);
    await tend();
    assert.equal(book.check(WEB, ID), null);
    assert.equal(book.check(SHOP, ID), null);
  });
});

test('a question that its own VM gave up does not make the server count as away for the others', async () => {
  const seats = makeSeats({ total: 2, nowMs: () => 1 });
  const honest = seats.server(ID);
  const server: LicenseServer = {
    ...honest,
    lease: async (request, signal) => {
      if (request.vm === SHOP) return await honest.lease(request);
      return await new Promise((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)));
    },
  };
  const book = openLeaseBook({
    db: openDatabase(':memory:', LEASE_MIGRATIONS),
    clock: { nowMs: () => 1, monotonicMs: () => 0, sleep: async () => {}, after: () => () => {} },
    ...{ log: silentLog, policy: POLICY, isFor: () => true, tenantOf: () => 'default', onEnded: () => {} },
    ...{ random: () => 0.5, record: async () => {}, serverOf: () => server },
  });
  const ending = new AbortController();
  const given = book.take({ vm: WEB, run: RUN, licenses: [ID] }, ending.signal);
  await new Promise((resolve) => setImmediate(resolve));
  ending.abort(new Error('the VM was stopped'));
  await assert.rejects(given, /was stopped/);
  await book.take({ vm: SHOP, run: RUN, licenses: [ID] }, never);
  assert.equal(book.check(SHOP, ID), null);
});

test('a denial that the token before a rotation was given is none: the server is asked again with the new one [A15]', async () => {
  const seats = makeSeats({ total: 2, nowMs: () => 1 });
  const fresh = seats.server(ID);
  let isRotated = false;
  let answer = (): void => {};
  const stale: LicenseServer = {
    ...fresh,
    revocations: async (since) => {
      await new Promise<void>((resolve) => {
        answer = resolve;
      });
      return { serial: since, revoked: [{ serial: since, leaseId: null, code: 'NOT_FOUND' }] };
    },
  };
  const ended: string[] = [];
  const book = openLeaseBook({
    db: openDatabase(':memory:', LEASE_MIGRATIONS),
    clock: { nowMs: () => 1, monotonicMs: () => 0, sleep: async () => {}, after: () => () => {} },
    ...{ log: silentLog, policy: POLICY, isFor: () => true, tenantOf: () => 'default' },
    ...{ random: () => 0.5, record: async () => {}, serverOf: () => (isRotated ? fresh : stale) },
    onEnded: (_vm, _license, code) => void ended.push(code),
  });
  await book.take({ vm: WEB, run: RUN, licenses: [ID] }, never);
  const reading = book.readRevocations(never);
  await new Promise((resolve) => setImmediate(resolve));
  isRotated = true;
  answer();
  await reading;
  assert.equal(book.check(WEB, ID), null);
  assert.deepEqual(ended, []);
  assert.equal(seats.asked().at(-1), 'revocations', 'asked again');
  isRotated = false;
  const again = book.readRevocations(never);
  await new Promise((resolve) => setImmediate(resolve));
  answer();
  await again;
  assert.deepEqual(ended, ['NOT_FOUND'], 'positive control: without a rotation it counts');
});

describe('an explicit word', () => {
  for (const [what, revoke] of [
    ['of a whole license', ({ seats }: House) => seats.end('SUSPENDED')],
    ['of one seat', ({ seats }: House) => seats.revoke('seat-1', 'SUSPENDED')],
  ] as const) {
    test(`${what} applies at once, whatever is left of the lease [A15]`, async () => {
      const here = house();
      await here.take();
      revoke(here);
      assert.equal(here.book.check(WEB, ID), null, 'not known here yet');
      await here.book.readRevocations(never);
      assert.equal(here.book.check(WEB, ID), 'SUSPENDED');
      assert.deepEqual(here.ended, ['web acme SUSPENDED']);
      assert.equal(decisions(here.told).at(-1), 'web revoked SUSPENDED');
      await here.book.readRevocations(never);
      assert.equal(here.ended.length, 1, 'once');
    });
  }

  test('ends a lease at its renewal too; a license that merely ran out leaves it its time [A15]', async () => {
    const here = house();
    await here.take();
    here.seats.refuse('EXPIRED');
    here.pass(POLICY.durationMs / 2);
    await here.tend();
    assert.equal(here.book.check(WEB, ID), null, 'promised until its end');
    here.pass(POLICY.durationMs);
    await here.tend();
    assert.equal(here.book.check(WEB, ID), null, 'and the grace after it');
    here.seats.refuse('BANNED');
    here.pass(61_000);
    await here.tend();
    assert.equal(here.book.check(WEB, ID), 'BANNED');
    assert.deepEqual(here.ended, ['web acme BANNED']);
  });

  test('is forgotten when the server gives seats again; an operator word is not', async () => {
    const here = house();
    await here.take();
    here.seats.end('SUSPENDED');
    await here.book.readRevocations(never);
    assert.equal(await here.take(), 'SUSPENDED');
    here.seats.end(null);
    assert.equal(await here.take(), null);
    assert.equal(here.book.endedBy(ID), null);
    await here.book.endLicense(ID, REVOKED_HERE);
    assert.equal(await here.take(), REVOKED_HERE);
    assert.equal(await here.take(SHOP), REVOKED_HERE);
    here.book.mendLicense(ID);
    assert.equal(await here.take(SHOP), null);
  });

  test('of this host is lifted by no server: a VM that waited for its answer is given nothing [A15]', async () => {
    const here = house();
    here.seats.isAway = true;
    assert.equal(await here.take(), 'SERVER_AWAY');
    await here.book.endLicense(ID, REVOKED_HERE);
    here.seats.isAway = false;
    for (let minute = 0; minute < 3; minute += 1) {
      here.pass(61_000);
      await here.tend();
    }
    assert.equal(here.book.endedBy(ID), REVOKED_HERE);
    assert.equal(here.book.check(WEB, ID), REVOKED_HERE);
    assert.equal(await here.take(SHOP), REVOKED_HERE);
    assert.equal(here.seats.held().size, 0, 'what the server gave all the same is given back');
    assert.ok(!decisions(here.told).includes('web granted VALID'));
  });

  test('that was not written down for every seat is in force for all, and carried through later [A15]', async () => {
    const here = house();
    await here.take(WEB);
    await here.take(SHOP);
    const isHeld = "NEW.state = 'ended' AND NEW.vm = 'web'";
    here.db.exec(`CREATE TRIGGER full BEFORE INSERT ON lease WHEN ${isHeld} BEGIN SELECT RAISE(ABORT, 'full'); END`);
    await assert.rejects(here.book.endLicense(ID, REVOKED_HERE), /full/);
    here.db.exec('DROP TRIGGER full');
    const again = here.restart();
    assert.equal(again.check(WEB, ID), REVOKED_HERE);
    for (let minute = 0; minute < 3; minute += 1) {
      here.pass(61_000);
      await here.tend(again);
    }
    assert.ok(here.ended.includes(`web acme ${REVOKED_HERE}`));
    assert.equal(here.seats.held().size, 0);
  });

  test('that comes while an answer with the seat is under way wins', async () => {
    let release = () => {};
    const here = house();
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    const seats = makeSeats({
      total: 1,
      nowMs: () => 1_800_000_000_000,
      trouble: async (when, what) => (when === 'after' && what === 'lease' ? await held : undefined),
    });
    const server = seats.server(ID);
    const told: LicenseDecision[] = [];
    const book = openLeaseBook({
      db: openDatabase(':memory:', LEASE_MIGRATIONS),
      clock: { nowMs: () => 1_800_000_000_000, monotonicMs: () => 0, sleep: async () => {}, after: () => () => {} },
      ...{ log: silentLog, policy: POLICY, serverOf: () => server, isFor: () => true },
      ...{ tenantOf: () => 'default', onEnded: () => {}, random: () => 0.5 },
      record: async (decision) => void told.push(decision),
    });
    const taking = book.take({ vm: WEB, run: RUN, licenses: [ID] }, never);
    await new Promise((resolve) => setImmediate(resolve));
    seats.revoke('seat-1', 'REVOKED');
    await book.readRevocations(never);
    release();
    await taking;
    assert.equal(book.check(WEB, ID), 'REVOKED');
    assert.deepEqual(decisions(told), ['web refused REVOKED']);
    assert.equal(here.seats.asked().length, 0);
  });
});

test('after a restore nothing that was held counts before its server has said so again; what is gone there is gone [A15]', async () => {
  const here = house();
  await here.take(WEB);
  await here.take(SHOP);
  here.seats.revoke('seat-1', 'BANNED');
  here.seats.refuse('TOO_MANY_MACHINES');
  here.seats.isAway = true;
  const restored = here.restart();
  restored.doubt();
  assert.equal(restored.check(WEB, ID), 'SERVER_AWAY');
  assert.equal(restored.check(SHOP, ID), 'SERVER_AWAY');
  here.seats.isAway = false;
  await here.tend(restored);
  assert.equal(restored.check(WEB, ID), 'TOO_MANY_MACHINES');
  assert.equal(restored.check(SHOP, ID), null, 'its server still has it');
  assert.equal(here.seats.held().size, 1);
});

describe('a crash', () => {
  test('between the question and the answer loses no seat and takes no second one', async () => {
    let isLost = true;
    const db = openDatabase(':memory:', LEASE_MIGRATIONS);
    const nowMs = 1_800_000_000_000;
    const seats = makeSeats({
      total: 5,
      nowMs: () => nowMs,
      trouble: async (when) => (when === 'after' && isLost ? await new Promise(() => {}) : undefined),
    });
    const open = () => {
      const server = seats.server(ID);
      return openLeaseBook({
        db,
        clock: { nowMs: () => nowMs, monotonicMs: () => 0, sleep: async () => {}, after: () => () => {} },
        ...{ log: silentLog, policy: POLICY, serverOf: () => server, isFor: () => true },
        ...{ tenantOf: () => 'default', onEnded: () => {}, random: () => 0.5, record: async () => {} },
      });
    };
    void open().take({ vm: WEB, run: RUN, licenses: [ID] }, never);
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(seats.held().size, 1, 'the server gave it');
    isLost = false;
    const again = open();
    assert.equal(again.check(WEB, ID), 'SERVER_AWAY');
    // Removed before it was ever known here: the seat is found by asking once more, and given back.
    again.releaseVm(WEB);
    await again.tend(never);
    assert.equal(seats.held().size, 0);
    assert.deepEqual(again.leases(), []);
    await again.take({ vm: WEB, run: RUN, licenses: [ID] }, never);
    await open().take({ vm: WEB, run: RUN, licenses: [ID] }, never);
    assert.equal(seats.held().size, 1);
  });

  test('before a removed VM gave back its seats is made good at the next start', async () => {
    const here = house();
    await here.take();
    const again = here.restart();
    again.reconcile(new Set());
    await here.tend(again);
    assert.equal(here.seats.held().size, 0);
  });
});

test('a VM that is removed while a lease that ran out becomes another one leaves none of the two behind [A15]', async () => {
  const { book, take, tend, seats, pass } = house();
  await take();
  pass(POLICY.durationMs);
  const taking = take();
  while (seats.asked().length < 3) await Promise.resolve();
  assert.deepEqual(seats.asked(), ['lease', 'renew', 'lease']);
  book.releaseVm(WEB);
  await taking;
  await tend();
  assert.deepEqual([...seats.held()], []);
  assert.deepEqual(book.leases(), []);
});

test('a clock that is set back gains nothing: what ran out by the time that is sure stays so', async () => {
  let wallMs = 1_800_000_000_000;
  let sureMs = wallMs;
  const seats = makeSeats({ total: 1, nowMs: () => 1_800_000_000_000 });
  const server = seats.server(ID);
  const book = openLeaseBook({
    db: openDatabase(':memory:', LEASE_MIGRATIONS),
    clock: {
      nowMs: () => wallMs,
      monotonicMs: () => 0,
      trustedMs: () => Math.max(sureMs, wallMs),
      sleep: async () => {},
      after: () => () => {},
    },
    ...{ log: silentLog, policy: POLICY, serverOf: () => server, isFor: () => true },
    ...{ tenantOf: () => 'default', onEnded: () => {}, random: () => 0.5, record: async () => {} },
  });
  await book.take({ vm: WEB, run: RUN, licenses: [ID] }, never);
  sureMs += POLICY.durationMs + POLICY.graceMs;
  assert.equal(book.check(WEB, ID), 'LEASE_EXPIRED');
  wallMs -= 365 * 24 * HOUR;
  assert.equal(book.check(WEB, ID), 'LEASE_EXPIRED');
});

test('a decision that cannot be recorded is not in force', async () => {
  let isFull = true;
  const seats = makeSeats({ total: 1, nowMs: () => 1 });
  const server = seats.server(ID);
  const book = openLeaseBook({
    db: openDatabase(':memory:', LEASE_MIGRATIONS),
    clock: { nowMs: () => 1, monotonicMs: () => 0, sleep: async () => {}, after: () => () => {} },
    ...{ log: silentLog, policy: POLICY, serverOf: () => server, isFor: () => true },
    ...{ tenantOf: () => 'default', onEnded: () => {}, random: () => 0.5 },
    record: async () => {
      if (isFull) throw new Error('the disk is full');
    },
  });
  await assert.rejects(book.take({ vm: WEB, run: RUN, licenses: [ID] }, never), /disk is full/);
  assert.notEqual(book.check(WEB, ID), null);
  isFull = false;
  await book.take({ vm: WEB, run: RUN, licenses: [ID] }, never);
  assert.equal(book.check(WEB, ID), null);
  assert.equal(seats.held().size, 1);
});

test('an end that cannot be recorded is in force all the same, and recorded as soon as that is possible [X2]', async () => {
  let isFull = false;
  let nowMs = 1;
  const seats = makeSeats({ total: 1, nowMs: () => nowMs });
  const server = seats.server(ID);
  const told: LicenseDecision[] = [];
  const book = openLeaseBook({
    db: openDatabase(':memory:', LEASE_MIGRATIONS),
    clock: { nowMs: () => nowMs, monotonicMs: () => nowMs, sleep: async () => {}, after: () => () => {} },
    ...{ log: silentLog, policy: POLICY, serverOf: () => server, isFor: () => true },
    ...{ tenantOf: () => 'default', onEnded: () => {}, random: () => 0.5 },
    record: async (decision) => {
      if (isFull) throw new Error('the disk is full');
      told.push(decision);
    },
  });
  await book.take({ vm: WEB, run: RUN, licenses: [ID] }, never);
  isFull = true;
  seats.end('SUSPENDED');
  await assert.rejects(book.readRevocations(never), /disk is full/);
  assert.equal(book.check(WEB, ID), 'SUSPENDED');
  isFull = false;
  for (let minute = 0; minute < 3; minute += 1) {
    nowMs += 61_000;
    await book.tend(never);
  }
  assert.deepEqual(decisions(told), ['web granted VALID', 'web revoked SUSPENDED']);
});

test('use is metered for each tenant: hours of seats until they ended, fetches and bytes [A17]', async () => {
  const { book, take, pass, tend } = house();
  await take(WEB);
  await take(SHOP);
  book.countFetch(SHOP, ID, 1_000);
  book.countFetch(SHOP, ID, 24);
  const sinceMs = 1_800_000_000_000;
  pass(2 * HOUR);
  book.releaseVm(WEB);
  await tend();
  pass(HOUR);
  const use = (tenant?: string) =>
    book
      .usage({ sinceMs, ...(tenant === undefined ? {} : { tenant }) })
      .map((row) => [row.tenant, row.vm, row.seatHours, row.fetches, row.bytes]);
  assert.deepEqual(use(), [
    ['default', 'web', 2, 0, 0],
    ['retail', 'shop', 3, 2, 1_024],
  ]);
  assert.deepEqual(use('retail'), [['retail', 'shop', 3, 2, 1_024]]);
  assert.deepEqual(
    book.usage({ sinceMs: sinceMs + 2.5 * HOUR }).map(({ vm, seatHours }) => [vm, seatHours]),
    [['shop', 0.5]],
  );
  book.forgetUse(sinceMs + 10 * 24 * HOUR);
  assert.deepEqual(
    use().map(([, vm]) => vm),
    ['shop'],
    'a seat that is held is not forgotten',
  );
});

test('renewals of a fleet are spread around a third of the life', () => {
  const at = (random: number) => renewalAt(0, 3_000, () => random);
  assert.deepEqual([at(0), at(0.5), at(1)], [900, 1_000, 1_100]);
});

test('an explicit end, an expiry and a lost seat end a lease at different times', () => {
  const standings = ['valid', 'grace', 'over'] as const;
  const ends = (code: string) => standings.map((standing) => endsLease(code, standing));
  assert.deepEqual(ends('SUSPENDED'), [true, true, true]);
  assert.deepEqual(ends('EXPIRED'), [false, false, false]);
  assert.deepEqual(ends('TOO_MANY_MACHINES'), [false, true, true]);
});
