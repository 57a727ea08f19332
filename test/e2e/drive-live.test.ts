// An update pushed to a VM that is plugged in: the same drive, over each transport, while its guest reads from it all the time and
// serves its page all the time; the gate is never closed, the record says that drive and network were there at once, and the drive
// is gone afterwards. What the vendor publishes meanwhile, and an agent that is started anew, never show half of another medium.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import { DRIVE_TRANSPORTS, type DriveTransport } from '../../src/model/drive.ts';
import { assertConnected, type House, openHouse, type TestVm } from './harness.ts';

/** Seconds that the live update takes: long enough to ask for the page many times. */
const INSTALL_SECONDS = 6;

/** Reads each medium that is there from end to end again and again, past the cache, and notes which manifest it shows with which sum. */
const WATCH_DRIVE = `#!/bin/busybox sh
bb=/bin/busybox
while :; do
  device=$($bb awk '$2 == "/run/pratique/drive" { print $1 }' /proc/mounts)
  [ -n "$device" ] || { $bb usleep 50000; continue; }
  manifest=$($bb sha256sum /run/pratique/drive/manifest.json 2>/dev/null)
  # A reading that failed, because the medium was taken away in the middle, is no reading of a medium.
  $bb dd if=$device of=/run/medium bs=64k iflag=direct 2>/dev/null || continue
  sum=$($bb sha256sum </run/medium)
  after=$($bb sha256sum /run/pratique/drive/manifest.json 2>/dev/null)
  [ -n "$manifest" ] && [ "$manifest" = "$after" ] && echo "\${manifest%% *} \${sum%% *}" >>/srv/www/media
  $bb usleep 20000
done
`;

const SCRIPTS = {
  /** Starts the reader beside the installation, and the agent anew on demand. */
  '/usr/lib/pratique-guest/watch-drive': WATCH_DRIVE,
  '/srv/www/cgi-bin/kill-agent': `#!/bin/busybox sh
/bin/busybox killall -9 pratique-agent
printf 'Content-Type: text/plain\\r\\n\\r\\nkilled'
`,
};
const START_WATCH = '(/usr/lib/pratique-guest/watch-drive </dev/null >/dev/null 2>&1 &)';

async function addVm(house: House, transport: DriveTransport): Promise<TestVm> {
  return await house.addVm({
    programs: SCRIPTS,
    change: (spec) => ({ ...spec, drive: { transport } }),
  });
}

/** Which sum of the whole medium was read under which manifest. */
async function mediaOf(vm: TestVm): Promise<ReadonlyMap<string, ReadonlySet<string>>> {
  const media = new Map<string, Set<string>>();
  for (const line of ((await vm.page('/media')) ?? '').trim().split('\n')) {
    const [manifest = '', sum = ''] = line.split(' ');
    media.set(manifest, (media.get(manifest) ?? new Set()).add(sum));
  }
  return media;
}

const offersOf = async (vm: TestVm) =>
  (await vm.audit()).flatMap(({ record }) => (record.kind === 'offer' ? [record] : []));

/** Asks for the page until it is told to stop: how often it answered, and how often nobody did. */
function keepAsking(vm: TestVm) {
  let isOver = false;
  const counts = { answered: 0, silent: 0 };
  const asking = (async () => {
    while (!isOver) {
      if ((await vm.served()) === null) counts.silent += 1;
      else counts.answered += 1;
      await systemClock.sleep(50);
    }
  })();
  return async () => {
    isOver = true;
    await asking;
    return counts;
  };
}

test('VMs that are plugged in are updated over each transport: they serve on, the gate stays open, the record says it, the drive goes [A4] [A9] [A12] [A16]', async (t) => {
  const house = await openHouse(t, { version: '1.1.0' });
  const vms: TestVm[] = [];
  for (const transport of DRIVE_TRANSPORTS) vms.push(await addVm(house, transport));
  await Promise.all(vms.map((vm) => vm.start()));
  for (const vm of vms) await assertConnected(vm, '1.1.0');
  const first = await Promise.all(vms.map(offersOf));
  assert(
    first.flat().every(({ isLive }) => isLive === undefined),
    'positive control: the first offers were to gated VMs',
  );
  const next = { installSeconds: INSTALL_SECONDS, installLines: START_WATCH, paddingBytes: 500_000 };
  await house.publish({ ...next, version: '1.2.0' });

  await Promise.all(
    vms.map(async (vm, index) => {
      const transport = DRIVE_TRANSPORTS[index];
      const closings = async () => (await vm.events()).filter(({ text }) => text.startsWith('closed')).length;
      const before = await closings();
      const qemu = await vm.qemu();
      await vm.reach('connected');
      const stop = keepAsking(vm);
      await house.service.updateVm(vm.vm);
      const attached = await vm.hear(/is attached \(/);
      assert.match(attached.text, new RegExp(`\\(${transport}, virtio-blk\\) to a VM that is plugged in$`));
      await vm.reach('installing');
      assert.equal((await house.service.showVm(vm.vm)).gate, 'open');
      await vm.reach('connected');
      const { answered, silent } = await stop();
      t.diagnostic(`${transport}: ${answered} pages served during the update, ${silent} not`);
      assert(answered >= 3, 'it was asked in the meantime');
      assert.equal(silent, 0, 'it serves on');
      assert.equal(await closings(), before, 'the gate was never closed');
      assert.deepEqual(await vm.qemu(), qemu);
      await assertConnected(vm, '1.2.0');
      const offers = await offersOf(vm);
      assert.deepEqual(
        offers.map(({ isLive }) => isLive),
        [undefined, true],
      );
      const media = await mediaOf(vm);
      assert.deepEqual([...media.keys()], [offers[1]?.manifestDigest]);
      assert.equal([...media.values()][0]?.size, 1, 'the same bytes all the time');
      const isGone = async () =>
        !existsSync(join(house.folder, 'data/drives', vm.vm)) && !existsSync(join(house.runFolder, 'drives', vm.vm));
      assert(await waitUntil(isGone, systemClock, 20_000), `${transport}: its drive is still there`);
    }),
  );
});

test('an agent that starts anew in the middle, a vendor that publishes meanwhile and an update after it: each medium is whole, none is half of two [A9] [A12] [X4]', async (t) => {
  const house = await openHouse(t, { version: '1.1.0' });
  const vm = await addVm(house, 'direct');
  await vm.start();
  await assertConnected(vm, '1.1.0');
  await house.publish({ version: '1.2.0', installSeconds: 3, installLines: START_WATCH, paddingBytes: 400_000 });
  await house.service.updateVm(vm.vm);
  await vm.reach('installing');
  await house.publish({ version: '1.3.0', paddingBytes: 700_000 });
  assert.equal(await vm.page('/cgi-bin/kill-agent'), 'killed');
  await vm.reach('reporting');
  await vm.reach('connected');
  const one = await vm.served();
  // The plan of a run is its own: what was published while its offer stood comes with the next one.
  assert.equal(one, '1.2.0');
  await house.service.updateVm(vm.vm);
  await vm.hear(/is attached \(/);
  await vm.reach('connected');
  await assertConnected(vm, '1.3.0');
  const offers = await offersOf(vm);
  const announced = new Set(offers.map(({ manifestDigest }) => manifestDigest));
  const media = await mediaOf(vm);
  t.diagnostic(`${offers.length} offers, ${media.size} media read in ${[...media.values()].length} ways`);
  assert(media.size >= 1);
  for (const [manifest, sums] of media) {
    assert(
      [...announced].some((each) => each === manifest),
      'no manifest but the announced ones was ever there',
    );
    assert.equal(sums.size, 1, 'a medium is the same from its first reading to its last');
  }
});
