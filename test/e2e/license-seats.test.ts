// Many VMs at too few seats of the real license server, over HTTP: server and host are killed in the middle, again and again.
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { openDatabase } from '../../src/base/sqlite.ts';
import { type LeaseBook, openLeaseBook } from '../../src/license/lease-book.ts';
import { LEASE_MIGRATIONS } from '../../src/license/lease-rows.ts';
import type { LicenseServer } from '../../src/license/license-server.ts';
import { makePratiqueServer } from '../../src/license/pratique-server.ts';
import type { RunId, VmId } from '../../src/model/ids.ts';
import { startLicenseServer } from '../fakes/license-server.ts';

const IS_FULL = process.env.PRATIQUE_TEST_FULL === '1';
const VMS = IS_FULL ? 1_000 : 150;
const SEATS = (VMS * 9) / 10;
const WORKERS = 20;
const ID = 'acme-2026';
const HOUR = 3_600_000;
const RUN = 'run' as RunId; // The cast holds: any word is a run here.
const nameOf = (vm: number): VmId => `vm-${vm}` as VmId; // The cast holds: letters and digits are a VM's name.
const never = new AbortController().signal;

test(`${VMS} VMs at ${SEATS} seats of the real server with ${WORKERS} workers, both killed on the way: never a seat too many, none lost, none stuck [A15 X4]`, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'pratique-seats-'));
  const server = await startLicenseServer({ licenses: { [ID]: SEATS }, child: true, ratePerSecond: 10_000 });
  const db = openDatabase(join(folder, 'host.db'), LEASE_MIGRATIONS);
  let generation = 0;
  /** Passes quickly for the host only: a server that was away is asked again at once. */
  let monotonicMs = 0;
  const clock: Clock = { ...systemClock, monotonicMs: () => (monotonicMs += 60_000) };
  const client = makePratiqueServer({
    transport: server.transport(ID),
    clock: systemClock,
    keys: server.keys,
    license: ID,
  });
  const open = (): LeaseBook => {
    const mine = generation;
    const orNever = async <T>(work: Promise<T>): Promise<T> => {
      try {
        return await work;
      } finally {
        // What belongs to a process that died is never answered.
        if (mine !== generation) await new Promise(() => {});
      }
    };
    const ofThisLife: LicenseServer = {
      ...client,
      lease: (request, signal) => orNever(client.lease(request, signal)),
      renew: (lease, request, signal) => orNever(client.renew(lease, request, signal)),
      release: (id, signal) => orNever(client.release(id, signal)),
    };
    return openLeaseBook({
      ...{ db, clock, log: silentLog, policy: { durationMs: HOUR, graceMs: HOUR, idleMs: 24 * HOUR } },
      ...{ serverOf: () => ofThisLife, isFor: () => true, tenantOf: () => 'default' },
      ...{ onEnded: () => {}, random: Math.random, record: async () => {} },
    });
  };
  let book = open();
  const asking = new Set<Promise<unknown>>();
  const check = (): void => {
    const given = server.admin.seats(ID);
    assert.ok(given.length <= SEATS, `${given.length} of ${SEATS} seats are given`);
    assert.equal(new Set(given.map(({ fingerprint }) => fingerprint)).size, given.length, 'no VM has two');
    assert.ok(book.leases().filter(({ state }) => state === 'held').length <= SEATS);
  };
  try {
    for (let vm = 0; vm < VMS; vm += 1) {
      const work = book.take({ vm: nameOf(vm), run: RUN, licenses: [ID] }, never);
      asking.add(work);
      void work.then(() => asking.delete(work));
      if (asking.size >= WORKERS) await Promise.race(asking);
      if (vm % Math.floor(VMS / 5) !== 40 % Math.floor(VMS / 5)) continue;
      check();
      await server.kill();
      generation += 1;
      asking.clear();
      book = open();
      await server.restart();
    }
    await Promise.all(asking);
    for (const { vm, state } of book.leases()) {
      if (state === 'asking') await book.take({ vm, run: RUN, licenses: [ID] }, never);
    }
    check();
    const states = Map.groupBy(book.leases(), ({ state }) => state);
    t.diagnostic([...states].map(([state, rows]) => `${rows.length} ${state}`).join(', '));
    assert.equal(states.get('held')?.length, SEATS, 'all seats are had');
    assert.equal(server.admin.seats(ID).length, SEATS, 'and none that nobody knows of');
    assert.equal(states.get('refused')?.length, VMS - SEATS);
    // A tenth goes; whoever was refused gets the seats.
    for (let vm = 0; vm < VMS; vm += 10) book.releaseVm(nameOf(vm));
    await book.tend(never);
    for (const { vm, state } of book.leases()) {
      if (state === 'refused') await book.take({ vm, run: RUN, licenses: [ID] }, never);
    }
    check();
    assert.equal(
      book.leases().every(({ state }) => state === 'held'),
      true,
    );
    for (const { vm } of book.leases()) book.releaseVm(vm);
    await book.tend(never);
    assert.equal(server.admin.seats(ID).length, 0, 'no seat is stuck');
    assert.deepEqual(book.leases(), []);
  } finally {
    db.close();
    await server.close();
    rmSync(folder, { recursive: true, force: true });
  }
});
