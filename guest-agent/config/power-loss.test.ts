// The power fails before every single durable step of a set of configuration: it is applied as a whole, or everything is as before.
import assert from 'node:assert/strict';
import { lstatSync, readlinkSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import type { GuestConfigItem } from '../../src/model/guest-config.ts';
import {
  apply,
  type ConfigOffer,
  fileItem,
  furnish,
  offerConfig,
  plan,
  read,
  write,
} from '../../test/fakes/guest-agent/fake-config.ts';
import { FakeGuest } from '../../test/fakes/guest-agent/fake-guest.ts';
import { type Loss, PowerSupply } from '../../test/fakes/guest-agent/power-supply.ts';

/** More steps than the set has; the loops end with the first cut that is not reached. */
const STEPS_MAX = 300;
const STEPS_MIN = 40;

const OLD: ConfigOffer = {
  items: [fileItem('motd', '/etc/motd', 'old\n'), fileItem('gone', '/etc/gone', 'old\n')],
  plan: plan('3'),
};
const product: GuestConfigItem = {
  item: 'shop',
  version: '2',
  setting: {
    kind: 'product',
    product: 'shop',
    files: [
      { path: '/opt/shop/etc/a', content: 'new\n' },
      { path: '/opt/shop/etc/b', content: 'new\n', mode: '0600' },
    ],
  },
};
const NEW: ConfigOffer = {
  items: [
    { item: 'name', version: '2', setting: { kind: 'hostname', hostname: 'web-1' } },
    { ...fileItem('motd', '/etc/motd', 'new\n'), version: '2' },
    { ...fileItem('link', '/etc/link', 'new\n'), version: '2' },
    product,
  ],
  removed: ['gone'],
  plan: plan('4'),
};

/** What the guest has of each thing that the new set changes. */
function picture(guest: FakeGuest): string {
  const link = lstatSync(join(guest.folder, 'etc/link'));
  return JSON.stringify({
    motd: read(guest, 'etc/motd'),
    gone: read(guest, 'etc/gone'),
    link: link.isSymbolicLink() ? readlinkSync(join(guest.folder, 'etc/link')) : read(guest, 'etc/link'),
    shop: [read(guest, 'opt/shop/etc/a'), read(guest, 'opt/shop/etc/b')],
    name: [read(guest, 'etc/hostname'), read(guest, 'etc/hosts')],
  });
}

async function makeGuest(): Promise<FakeGuest> {
  const guest = new FakeGuest();
  furnish(guest);
  write(guest, 'etc/target', 'target\n');
  symlinkSync('target', join(guest.folder, 'etc/link'));
  await guest.started();
  await apply(guest, OLD);
  guest.cutPower();
  guest.newBoot();
  return guest;
}

/** Applies until done or until the power fails. */
async function applyUntilCut(guest: FakeGuest, offer: ConfigOffer): Promise<void> {
  try {
    guest.start();
  } catch {
    return; // Cut before the agent had even started.
  }
  while (guest.host.nonce === null && !guest.power.isOff) await systemClock.sleep(1);
  if (!guest.power.isOff) offerConfig(guest, offer);
  while (!guest.power.isOff && guest.host.count('installed') === 0) await systemClock.sleep(1);
}

/** Cuts the power before step `cutAt`, and once more in the repair where told; returns whether there was such a step. */
async function cutAndGoOn(cutAt: number, loss: Loss, again: readonly number[] = []): Promise<boolean> {
  const guest = await makeGuest();
  const before = picture(guest);
  try {
    guest.power = new PowerSupply(cutAt, loss);
    await applyUntilCut(guest, NEW);
    if (!guest.power.isOff) return false;
    for (const cut of again) {
      guest.newBoot();
      guest.power = new PowerSupply(cut, loss);
      await applyUntilCut(guest, NEW);
      guest.cutPower();
    }
    guest.newBoot();
    guest.start();
    await guest.host.take('hello');
    // The next boot, before anything is offered: all of it or nothing, and the report says which.
    const { config } = await guest.inventory();
    assert.deepEqual(
      config.filter(({ state }) => state !== undefined),
      [],
    );
    const isNew = config.some(({ item, version }) => item === 'motd' && version === '2');
    if (!isNew) assert.equal(picture(guest), before, 'as before');
    const results = await apply(guest, NEW);
    assert.deepEqual(results, [
      'config/name installed',
      'config/motd installed',
      'config/link installed',
      'config/shop installed',
      'config/gone installed',
    ]);
    if (isNew) assert.notEqual(picture(guest), before);
    assert.match(
      picture(guest),
      /"motd":"new\\n","gone":null,"link":"new\\n","shop":\["new\\n","new\\n"\],"name":\["web-1\\n"/,
    );
    assert.deepEqual((await guest.inventory()).config.map(({ item }) => item).sort(), ['link', 'motd', 'name', 'shop']);
    return true;
  } finally {
    guest.remove();
  }
}

/** Names the cut in the failure of a cell. */
async function cell(cutAt: number, loss: Loss, again?: readonly number[]): Promise<boolean> {
  return await cutAndGoOn(cutAt, loss, again).catch((error: unknown) => {
    throw new Error(`cut before step ${cutAt}, unflushed changes ${loss}, then ${again}`, { cause: error });
  });
}

const FULL = process.env.PRATIQUE_TEST_FULL === '1';

for (const loss of ['kept', 'lost', 'half'] as const) {
  test(`a power cut before any step of a set of configuration, unflushed changes ${loss}: as before or applied, and the next boot goes on [X4]`, async () => {
    const stride = FULL ? 1 : 8;
    let steps = ['kept', 'lost', 'half'].indexOf(loss) * (FULL ? 0 : 3);
    while (steps < STEPS_MAX && (await cell(steps, loss))) steps += stride;
    assert.ok(steps >= STEPS_MIN && steps < STEPS_MAX, `${steps} steps`);
  });
}

test('a power cut in the repair after a power cut: as before or applied, and the boot after goes on [X4]', async () => {
  for (let cutAt = 20; cutAt < STEPS_MIN + 20; cutAt += FULL ? 3 : 16) {
    await cell(cutAt, 'half', [cutAt % 7, (cutAt * 5) % 23]);
  }
});
