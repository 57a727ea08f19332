// The power fails before every single durable step of an install, with and without loss of what was not flushed.
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, readlinkSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../src/base/clock.ts';
import type { Digest } from '../src/base/digest-text.ts';
import { makeTar, writeDrive } from '../test/fakes/guest-agent/fake-bundle.ts';
import { FakeGuest } from '../test/fakes/guest-agent/fake-guest.ts';
import { PLAN, RUN } from '../test/fakes/guest-agent/fake-host.ts';
import { type Loss, PowerSupply } from '../test/fakes/guest-agent/power-supply.ts';

const CONTENT = 'the content of version 2\n';
/** More steps than any of these installs has; the loops end with the first cut that is not reached. */
const STEPS_MAX = 300;
const STEPS_MIN = 40;

function makeGuest(hasOldVersion: boolean): { readonly guest: FakeGuest; readonly manifestDigest: Digest } {
  const guest = new FakeGuest();
  const prefix = join(guest.folder, 'opt/app');
  if (hasOldVersion) {
    mkdirSync(join(prefix, 'versions/1'), { recursive: true });
    writeFileSync(join(prefix, 'versions/1/data'), 'old');
    symlinkSync('versions/1', join(prefix, 'current'));
    mkdirSync(join(guest.paths.state, 'products'), { recursive: true });
    const record = { product: 'app', version: '1', prefix, digest: null };
    writeFileSync(join(guest.paths.state, 'products/app.json'), JSON.stringify(record));
  }
  const content = makeTar([
    { name: 'bin/check', content: '#!/bin/sh\n' },
    { name: 'data', content: CONTENT, mode: 0o644 },
    { name: 'bin/link', type: '2', target: '../data' },
    { name: 'again', type: '1', target: 'data' },
  ]);
  const install = {
    action: 'bundle',
    prefix,
    compression: 'none',
    // Without an install entry the flush after it is missing too.
    ...(hasOldVersion ? { install: 'bin/check' } : {}),
    check: 'bin/check',
    reboot: true,
  } as const;
  const items = [{ item: { product: 'app', version: '2', install }, content }];
  const { manifestDigest } = writeDrive(guest.attachDrive('vdb'), items);
  // The entries do nothing here; what they do is none of the agent's steps.
  guest.overrides = { run: async () => ({ exitCode: 0, isTimeout: false, output: '' }) };
  return { guest, manifestDigest };
}

/** The version that `current` leads to, complete, or null if there is none. */
function currentVersion(guest: FakeGuest): string | null {
  const prefix = join(guest.folder, 'opt/app');
  let target: string;
  try {
    target = readlinkSync(join(prefix, 'current'));
  } catch {
    return null;
  }
  const content = readFileSync(join(prefix, target, 'data'), 'utf8');
  if (target === 'versions/1') {
    assert.equal(content, 'old');
    return '1';
  }
  assert.equal(target, 'versions/2');
  assert.equal(content, CONTENT);
  assert.equal(readFileSync(join(prefix, target, 'bin/link'), 'utf8'), CONTENT);
  assert.equal(readFileSync(join(prefix, target, 'again'), 'utf8'), CONTENT);
  return '2';
}

function offer(guest: FakeGuest, manifestDigest: Digest): void {
  guest.host.send({ type: 'offer', run: RUN, planDigest: PLAN, manifestDigest, label: 'PRATIQUE' });
}

/** Installs until done or until the power fails. */
async function installUntilCut(guest: FakeGuest, manifestDigest: Digest): Promise<void> {
  try {
    guest.start();
  } catch {
    return; // Cut before the agent had even started.
  }
  while (guest.host.nonce === null && !guest.power.isOff) await systemClock.sleep(1);
  if (!guest.power.isOff) offer(guest, manifestDigest);
  while (!guest.power.isOff && guest.host.count('installed') === 0) await systemClock.sleep(1);
}

async function reported(guest: FakeGuest): Promise<string | null> {
  guest.host.send({ type: 'ask-inventory' });
  const { inventory } = await guest.host.take('inventory');
  const app = inventory.products.find(({ product }) => product === 'app');
  assert.notEqual(app?.state, 'broken', 'the next boot shows no broken product');
  return app?.version ?? null;
}

/** Cuts the power before step `cutAt` and lets the next boot go on; returns whether there was such a step. */
async function cutAndGoOn(
  hasOldVersion: boolean,
  cutAt: number,
  loss: Loss,
  cutsInRecovery: readonly number[] = [],
): Promise<boolean> {
  const { guest, manifestDigest } = makeGuest(hasOldVersion);
  const before = hasOldVersion ? '1' : null;
  try {
    guest.power = new PowerSupply(cutAt, loss);
    await installUntilCut(guest, manifestDigest);
    if (!guest.power.isOff) return false;
    assert.ok([before, '2'].includes(currentVersion(guest)), 'old or new, whole, before anybody repaired anything');
    for (const again of cutsInRecovery) {
      guest.newBoot();
      guest.power = new PowerSupply(again, loss);
      await installUntilCut(guest, manifestDigest);
      assert.ok([before, '2'].includes(currentVersion(guest)), 'old or new after a cut in the repair');
      guest.cutPower();
    }
    guest.newBoot();
    guest.start();
    await guest.host.take('hello');
    assert.equal(await reported(guest), currentVersion(guest), 'the report says what is there');
    offer(guest, manifestDigest);
    const { results } = await guest.host.take('installed');
    assert.deepEqual(
      results.map(({ outcome, checkPassed }) => [outcome, checkPassed]),
      [['installed', true]],
    );
    assert.equal(currentVersion(guest), '2');
    assert.equal(await reported(guest), '2');
    assert.deepEqual(
      guest.log.filter((line) => line.includes('assertion')),
      [],
    );
    return true;
  } finally {
    guest.remove();
  }
}

/** Names the cut in the failure of a cell. */
async function cell(hasOldVersion: boolean, cutAt: number, loss: Loss, again?: readonly number[]): Promise<boolean> {
  return await cutAndGoOn(hasOldVersion, cutAt, loss, again).catch((error: unknown) => {
    throw new Error(`cut before step ${cutAt}, unflushed changes ${loss}, then ${again}`, { cause: error });
  });
}

for (const loss of ['kept', 'lost', 'half'] as const) {
  for (const hasOldVersion of [true, false]) {
    const what = `${hasOldVersion ? 'over an old version' : 'of a new product'}, unflushed changes ${loss}`;
    test(`a power cut before any step of an install ${what}: old or new, and the next boot goes on [X4]`, async () => {
      let steps = 0;
      while (steps < STEPS_MAX && (await cell(hasOldVersion, steps, loss))) steps += 1;
      assert.ok(steps >= STEPS_MIN && steps < STEPS_MAX, `${steps} steps`);
    });
  }
}

test('a power cut in the repair after a power cut: old or new, and the boot after goes on [X4]', async () => {
  // A cell per pair is too many for every run: every third step is followed by a few early ones of the next boots.
  for (let cutAt = 10; cutAt < STEPS_MIN + 10; cutAt += 3) {
    await cell(true, cutAt, 'half', [cutAt % 7, (cutAt * 5) % 11, (cutAt * 3) % 40]);
  }
});
