// Many VMs, too few seats, workers side by side, crashes at any question, lost answers, jumping clocks: never a seat too many, none lost,
// none stuck.
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { makeSeats } from '../../test/fakes/seats.ts';
import type { Clock } from '../base/clock.ts';
import { silentLog } from '../base/log.ts';
import { openDatabase } from '../base/sqlite.ts';
import type { RunId, VmId } from '../model/ids.ts';
import type { LicenseDecision } from '../model/license-check.ts';
import { type LeaseBook, openLeaseBook } from './lease-book.ts';
import { LEASE_MIGRATIONS } from './lease-rows.ts';
import { LicenseError } from './license-error.ts';
import type { LicenseServer } from './license-server.ts';

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const POLICY = { durationMs: 24 * HOUR, graceMs: 72 * HOUR, idleMs: 30 * 24 * HOUR };
const ID = 'acme';
/** Works under way at once, as many as a busy host has. */
const WORKERS = 20;
const IS_FULL = process.env.PRATIQUE_TEST_FULL === '1';
/** After the first thousand. */
const STEPS = IS_FULL ? 600 : 120;
const never = new AbortController().signal;

type Step =
  | { readonly kind: 'take' | 'remove'; readonly vm: number }
  | { readonly kind: 'tend' | 'crash' }
  | { readonly kind: 'pass' | 'wall'; readonly ms: number };

type Fault = 'none' | 'slow' | 'lost-before' | 'lost-after';

const stepOf = (vms: number): fc.Arbitrary<Step> =>
  fc.oneof(
    { weight: 12, arbitrary: fc.record({ kind: fc.constant('take' as const), vm: fc.nat(vms - 1) }) },
    { weight: 4, arbitrary: fc.record({ kind: fc.constant('remove' as const), vm: fc.nat(vms - 1) }) },
    { weight: 3, arbitrary: fc.constant({ kind: 'tend' as const }) },
    { weight: 2, arbitrary: fc.constant({ kind: 'crash' as const }) },
    {
      weight: 2,
      arbitrary: fc.record({ kind: fc.constant('pass' as const), ms: fc.integer({ min: 0, max: 60 * HOUR }) }),
    },
    {
      weight: 1,
      arbitrary: fc.record({ kind: fc.constant('wall' as const), ms: fc.integer({ min: -1e10, max: 1e10 }) }),
    },
  );
const FAULTS = fc.array(
  fc.oneof(
    { weight: 6, arbitrary: fc.constant<Fault>('none') },
    { weight: 2, arbitrary: fc.constant<Fault>('slow') },
    { weight: 1, arbitrary: fc.constant<Fault>('lost-before') },
    { weight: 1, arbitrary: fc.constant<Fault>('lost-after') },
  ),
  { minLength: 1, maxLength: 50 },
);

/** Turns of the event loop, so that what can go on goes on. */
const turns = async (count = 1): Promise<void> => {
  for (let turn = 0; turn < count; turn += 1) await new Promise((resolve) => setImmediate(resolve));
};

class Host {
  readonly #faults: readonly Fault[];
  readonly #total: number;
  readonly told: LicenseDecision[] = [];
  readonly db = openDatabase(':memory:', LEASE_MIGRATIONS);
  readonly vms = new Map<VmId, AbortController>();
  #sureMs = 1_800_000_000_000;
  #wallMs = this.#sureMs;
  #generation = 0;
  #calls = 0;
  #under: Promise<unknown>[] = [];
  isHealthy = false;
  seats;
  book: LeaseBook;

  constructor(total: number, faults: readonly Fault[]) {
    this.#faults = faults;
    this.#total = total;
    this.seats = makeSeats({ total, nowMs: () => this.#sureMs, trouble: (when) => this.#trouble(when) });
    this.book = this.#open();
  }

  #open(): LeaseBook {
    const mine = this.#generation;
    const server = this.seats.server(ID);
    /** What belongs to a process that died is never answered. */
    const orNever = async <T>(work: Promise<T>): Promise<T> => {
      const settled = await work.then(
        (value) => ({ value }),
        (error: unknown) => ({ error }),
      );
      if (mine !== this.#generation) await new Promise(() => {});
      if ('error' in settled) throw settled.error;
      return settled.value;
    };
    /** Nor does it ask anything more: what it had begun in this very turn ends with it. */
    const ifAlive = async <T>(ask: () => Promise<T>): Promise<T> => {
      if (mine !== this.#generation) await new Promise(() => {});
      return await orNever(ask());
    };
    const clock: Clock = {
      nowMs: () => this.#wallMs,
      trustedMs: () => this.#sureMs,
      monotonicMs: () => this.#sureMs,
      sleep: async () => {},
      after: () => () => {},
    };
    const reached: LicenseServer = {
      ...server,
      lease: (request, signal) => ifAlive(() => server.lease(request, signal)),
      renew: (lease, request, signal) => ifAlive(() => server.renew(lease, request, signal)),
      release: (id, signal) => ifAlive(() => server.release(id, signal)),
      revocations: (since, signal) => ifAlive(() => server.revocations(since, signal)),
    };
    return openLeaseBook({
      ...{ db: this.db, clock, log: silentLog, policy: POLICY, isFor: () => true, random: Math.random },
      serverOf: () => reached,
      tenantOf: () => 'default',
      onEnded: () => {},
      record: (decision) => orNever(turns().then(() => void this.told.push(decision))),
    });
  }

  async #trouble(when: 'before' | 'after'): Promise<void> {
    if (this.isHealthy) return;
    if (when === 'before') this.#calls += 1;
    const fault = this.#faults[this.#calls % this.#faults.length] ?? 'none';
    const mine = this.#generation;
    if (fault === 'slow') await turns(when === 'before' ? 3 : 2);
    // What a process that died had not sent yet never arrives.
    if (mine !== this.#generation) await new Promise(() => {});
    if (fault === `lost-${when}`) throw new LicenseError('vendor-ill/license-server', 'the connection broke');
  }

  async step(step: Step): Promise<void> {
    switch (step.kind) {
      case 'take': {
        const vm = nameOf(step.vm);
        const ending = this.vms.get(vm) ?? new AbortController();
        this.vms.set(vm, ending);
        const run = `run-${step.vm}` as RunId; // The cast holds: any word is a run here.
        const taking = this.book.take({ vm, run, licenses: [ID] }, ending.signal);
        await this.#begin(taking.catch((error: unknown) => assert.ok(ending.signal.aborted, String(error))));
        return;
      }
      case 'remove':
        // As the host does it: nobody asks for the VM any more when its seats are given back.
        this.vms.get(nameOf(step.vm))?.abort();
        this.vms.delete(nameOf(step.vm));
        this.book.releaseVm(nameOf(step.vm));
        return;
      case 'tend':
        await this.#begin(this.book.tend(never));
        return;
      case 'crash':
        this.#generation += 1;
        this.#under = [];
        this.book = this.#open();
        this.book.reconcile(new Set(this.vms.keys()));
        return;
      case 'pass':
        await this.settle();
        this.#sureMs += step.ms;
        this.#wallMs += step.ms;
        return;
      case 'wall':
        this.#wallMs = Math.max(0, this.#wallMs + step.ms);
        return;
      default:
        step satisfies never;
    }
  }

  /** As many as there are workers; who comes then waits for all of them. */
  async #begin(work: Promise<unknown>): Promise<void> {
    this.#under.push(work);
    if (this.#under.length >= WORKERS) await this.settle();
  }

  async settle(): Promise<void> {
    await Promise.all(this.#under);
    this.#under = [];
  }

  /** What must hold at any moment. */
  check(): void {
    const leases = this.book.leases();
    const holding = leases.filter(({ state, standing }) => state === 'held' && standing === 'valid');
    assert.ok(holding.length <= this.#total, `${holding.length} seats are held here, there are ${this.#total}`);
    assert.ok(this.seats.most() <= this.#total);
    const held = [...this.seats.held().values()];
    const known = new Set<string>(leases.map(({ vm }) => vm));
    for (const { vm } of held) assert.ok(known.has(vm), `the seat of ${vm} is lost: the host knows nothing of it`);
    const ids = new Set(held.map(({ id }) => id));
    for (const { vm, seat } of holding)
      assert.ok(ids.has(seat ?? ''), `${vm} is believed to have a seat that it has not`);
    assert.equal(new Set(held.map(({ vm }) => vm)).size, held.length, 'no VM has two');
  }

  /** All is well again: what is wanted is had, and what is not is free. */
  async recover(): Promise<void> {
    await this.settle();
    this.isHealthy = true;
    for (let round = 0; round < 3; round += 1) {
      await this.step({ kind: 'pass', ms: 2 * MINUTE });
      await this.book.tend(never);
    }
    const before = [...this.seats.held().values()].filter(({ vm }) => !this.vms.has(vm));
    assert.deepEqual(before, [], 'no removed VM has a seat');
    for (const vm of this.vms.keys()) await this.book.take({ vm, run: 'run' as RunId, licenses: [ID] }, never); // The cast holds: any word is a run here.
    const covered = [...this.vms.keys()].filter((vm) => this.book.check(vm, ID) === null).length;
    assert.equal(covered, Math.min(this.vms.size, this.#total), 'every seat can be had');
    for (const vm of this.vms.keys()) this.book.releaseVm(vm);
    await this.book.tend(never);
    assert.equal(this.seats.held().size, 0, 'no seat is stuck');
    assert.deepEqual(this.book.leases(), []);
    this.db.close();
  }
}

const nameOf = (vm: number): VmId => `vm-${vm}` as VmId; // The cast holds: letters and digits are a VM's name.

async function live(total: number, faults: readonly Fault[], steps: readonly Step[], lookEvery = 1): Promise<Host> {
  const host = new Host(total, faults);
  for (const [index, step] of steps.entries()) {
    await host.step(step);
    if (index % lookEvery === 0) host.check();
  }
  await host.settle();
  host.check();
  await host.recover();
  return host;
}

function seedOf(t: TestContext): number {
  const seed = Number(process.env.PRATIQUE_SEED ?? randomInt(2 ** 31));
  t.diagnostic(`seed ${seed}: try it again with PRATIQUE_SEED`);
  return seed;
}

test('whatever happens between a host and its license server, no seat is lost, stuck or had twice [A15 X4]', async (t) => {
  const few = fc.tuple(FAULTS, fc.array(stepOf(9), { maxLength: 80 }));
  await fc.assert(
    fc.asyncProperty(few, async ([faults, steps]) => void (await live(6, faults, steps))),
    { seed: seedOf(t), numRuns: IS_FULL ? 5_000 : 500 },
  );
});

test('1,000 VMs at 900 seats with 20 workers and crashes: never more than 900 leases, none lost, none stuck [A15 X4]', async (t) => {
  const seed = seedOf(t);
  const many = fc.tuple(FAULTS, fc.array(stepOf(1_000), { minLength: STEPS, maxLength: STEPS }));
  const [[faults, steps] = [[], []]] = fc.sample(many, { seed, numRuns: 1 });
  const all = Array.from({ length: 1_000 }, (_, vm): Step => ({ kind: 'take', vm }));
  const begin: readonly Step[] = [...all.slice(0, 500), { kind: 'crash' }, ...all.slice(500)];
  const host = await live(900, faults, [...begin, ...steps], 20);
  assert.equal(host.seats.most(), 900, 'all were had at once');
  assert.ok(host.told.some(({ code }) => code === 'TOO_MANY_MACHINES'));
});
