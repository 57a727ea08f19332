// Power lost in the middle of a Debian install (kill -9 of QEMU), at many moments of it, on real VMs with the updates of this machine's
// own mirror: each time the next boot ends plugged in with the right versions, and neither dpkg nor fsck has anything to say.
// A seeded sample by default; 20 moments with PRATIQUE_TEST_FULL=1.
//
// QEMU runs its disks with cache=writeback (its default): a killed QEMU loses what the guest had not written out and what was on its
// way, not what lay in the host's page cache. That is the power cut of the guest; one of the host also tests the host's own disks.
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { waitUntil } from '../../proxy/demo/demo-network.ts';
import { systemClock } from '../../src/base/clock.ts';
import type { Policy } from '../../src/model/policy.ts';
import { crash } from '../e2e/harness.ts';
import { type DebianGuest, type DebianHouse, makeDebianHouse } from './debian-house.ts';

const MOMENTS = 20;
const isFull = process.env.PRATIQUE_TEST_FULL === '1';
const seed = Number(process.env.PRATIQUE_TEST_SEED ?? randomInt(1, 2 ** 31));

type Moment = { readonly fraction: number; readonly apt: Policy['apt'] };

/** One moment in each twentieth of the install, half of them each way (a linear congruential generator, Numerical Recipes). */
function momentsOf(from: number): readonly Moment[] {
  let random = from >>> 0;
  const next = (): number => {
    random = (Math.imul(random, 1_664_525) + 1_013_904_223) >>> 0;
    return random / 2 ** 32;
  };
  next(); // The first number of a small seed is small.
  const all = Array.from({ length: MOMENTS }, (_, index): Moment => {
    return { fraction: (index + next()) / MOMENTS, apt: index % 2 === 0 ? 'fast' : 'vendor-verified' };
  });
  if (isFull) return all;
  // One of each way: the first in the first half of the install, the second in the other.
  return (['fast', 'vendor-verified'] as const).flatMap((apt, index) => {
    const half = all.slice((index * MOMENTS) / 2, ((index + 1) * MOMENTS) / 2).filter((moment) => moment.apt === apt);
    return half[Math.floor(next() * half.length)] ?? [];
  });
}

type Row = { readonly moment: string; readonly cutAfterMs: number; readonly wasIn: string; readonly boots: number };

describe('power cut in a Debian install [X4]', () => {
  const rows: Row[] = [];
  let house: DebianHouse;
  let updated: ReadonlyMap<string, string>;
  /** Milliseconds from the state `installing` to the next one, undisturbed, in each way. */
  const installMs = new Map<Policy['apt'], number>();

  before(async () => {
    house = await makeDebianHouse();
  });
  after(async () => {
    await house?.close();
  });

  /** Plugged in, with what the undisturbed guest has, and a disk without a fault. */
  async function assertWhole(guest: DebianGuest): Promise<void> {
    assert.equal(await guest.settle(), 'connected', await guest.why());
    assert.deepEqual(await guest.versions(), updated);
    assert.deepEqual(await guest.examine(), { fsck: '', audit: '', interrupted: [] });
  }

  /** A quicker machine than during the control may have been done already: the VM is off then, and comes back by a start. */
  async function startAgain(guest: DebianGuest): Promise<void> {
    const isOff = async () => ['off', 'staged'].includes((await house.daemon.service.showVm(guest.vm)).state);
    assert(await waitUntil(systemClock, 60_000, isOff), await guest.why());
    await guest.start();
  }

  const moments = momentsOf(seed);
  // The sample goes by the time of the one way for both; the other one takes longer.
  const ways: readonly Policy['apt'][] = isFull ? ['fast', 'vendor-verified'] : ['fast'];
  for (const apt of ways) {
    test(`positive control: undisturbed (${apt}), its versions change and its disk is whole`, async () => {
      const guest = await house.addVm({ apt });
      await guest.start();
      assert.equal(await guest.settle(), 'connected', await guest.why());
      const events = (await guest.events()).filter(({ kind }) => kind === 'state');
      const begin = events.findIndex(({ text }) => text.startsWith('installing'));
      const [from, to] = [events[begin], events[begin + 1]];
      assert(from !== undefined && to !== undefined, await guest.why());
      installMs.set(apt, to.atMs - from.atMs);
      const versions = await guest.versions();
      const old = new Map(house.image.debian?.packages.map(({ name, version }) => [name, version]));
      const changed = [...versions].filter(([name, version]) => old.get(name) !== version);
      assert(changed.length > 0, 'the mirror has updates for this image');
      updated ??= versions;
      await assertWhole(guest);
    });
  }

  for (const { fraction, apt } of moments) {
    const moment = `${Math.round(100 * fraction)} % (${apt})`;
    test(`at ${moment} of the install: plugged in with the right versions, dpkg and fsck clean`, async () => {
      const guest = await house.addVm({ apt });
      await guest.start();
      const { atMs } = await guest.reach('installing');
      const cutAfterMs = fraction * (installMs.get(apt) ?? installMs.get('fast') ?? 0);
      await systemClock.sleep(Math.max(0, atMs + cutAfterMs - systemClock.nowMs()));
      const wasIn = (await house.daemon.service.showVm(guest.vm)).state;
      await crash(await guest.qemu());
      if (wasIn === 'connected') await startAgain(guest);
      await assertWhole(guest);
      const boots = (await guest.events()).filter(({ text }) => text.startsWith('booting')).length;
      rows.push({ moment, cutAfterMs: Math.round(cutAfterMs), wasIn, boots });
    });
  }

  test('the table', (t) => {
    t.diagnostic(
      isFull ? `all ${moments.length} moments, seed ${seed}` : `seed ${seed}, ${moments.length} of ${MOMENTS} moments`,
    );
    for (const [apt, ms] of installMs) t.diagnostic(`undisturbed (${apt}): ${ms} ms in installing`);
    for (const { moment, cutAfterMs, wasIn, boots } of rows) {
      t.diagnostic(`${moment}: cut after ${cutAfterMs} ms, while ${wasIn}; ${boots} boots`);
    }
    assert.equal(rows.length, moments.length, 'moments that did not come to an end have failed above');
    assert(
      rows.some(({ wasIn }) => wasIn === 'installing'),
      'the cuts fell into installs',
    );
  });
});
