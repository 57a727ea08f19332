// A guest whose root turns on its drive, through every way that a device offers, down to a driver of its own: nothing of the host's
// changes, the other VM that reads the same blobs notices nothing, and the host says what happened.
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { waitUntil } from '../../src/base/wait-until.ts';
import { assertConnected, type House, openHouse, type TestVm } from '../e2e/harness.ts';
import { addScratch, answersOf, buildAttempts, fingerprint, withFrontEnd } from './drive-lab.ts';

const VERSION = '1.1.0';
/** What the attempts write, and where: over the volume descriptor. */
const PATTERN = Buffer.alloc(512, 0x5a);
const DESCRIPTOR_AT = 16 * 2048;

/** Run by the root of the guest while it installs, with the drive mounted and the cable unplugged. The answers are served later. */
const ATTEMPTS = `(
set +e
device=$(awk '$2 == "/run/pratique/drive" { print $1 }' /proc/mounts)
name=\${device#/dev/}
sum() { sha256sum | cut -c1-64; }
pci() { readlink -f /sys/block/$1/device/..; }
echo "device=$device"
echo "before=$(dd if=$device bs=64k iflag=direct 2>/dev/null | sum)"
for what in $device /dev/vdc; do
  echo "on=\${what#/dev/}"
  attempts write $what
  dd if=/dev/zero of=$what bs=512 seek=200 count=1 oflag=direct conv=notrunc && echo "dd=done"
  blkdiscard -o 1048576 -l 4096 $what && echo "blkdiscard=done"
done
echo "on=file system"
mount -o remount,rw $device /run/pratique/drive
touch /run/pratique/drive/mine; echo "touch=$?"
rm -f /run/pratique/drive/manifest.json; echo "rm=$?"
echo >>/run/pratique/drive/manifest.json; echo "append=$?"
fstrim /run/pratique/drive; echo "fstrim=$?"
echo "on=raw"
case $name in sr*) attempts scsi $device; attempts eject $device ;; esac
echo "on=reads"
attempts read $device
for round in 1 2 3 4 5; do echo "again $round=$(dd if=$device bs=1M iflag=direct 2>/dev/null | sum)"; done
echo "after=$(sum <$device)"
cd /run/pratique/drive && sleep 600 </dev/null >/dev/null 2>&1 &
case $name in
  vd*) for disk in vdc $name; do
      at=$(pci $disk)
      echo "on=driver of $disk"
      echo \${at##*/} >/sys/bus/pci/drivers/virtio-pci/unbind
      attempts virtio $at
      echo \${at##*/} >/sys/bus/pci/drivers/virtio-pci/bind
    done
    echo "on=the end"
    port=$(dirname $at)
    echo \${port##*/} >/sys/bus/pci/drivers/pcieport/unbind; echo "unbind=$?" ;;
  sr*) echo "on=the end"
    echo 1 >/sys/block/$name/device/delete; echo "delete=$?" ;;
esac
) >/srv/www/attempts 2>&1 </dev/null || true
`;

type Attacker = { readonly vm: TestVm; readonly scratch: string };

async function addAttacker(house: House, program: Uint8Array, frontEnd: 'virtio-blk' | 'scsi-cd'): Promise<Attacker> {
  let scratch = '';
  const vm = await house.addVm({
    programs: { '/usr/bin/attempts': program },
    change: async (spec) => {
      const added = await addScratch(withFrontEnd(spec, frontEnd), join(house.folder, 'disks'));
      scratch = added.path;
      return added.spec;
    },
  });
  return { vm, scratch };
}

/** From the moment in which its drive is attached until it has told what it did, nothing of the host's may change. */
async function watch(house: House, { vm }: Attacker): Promise<string> {
  const data = join(house.folder, 'data');
  await vm.start();
  await vm.hear(/^a drive with 1 update is attached/);
  const before = await fingerprint(join(data, 'store/blobs'), join(data, 'drives', vm.vm));
  assert(
    Object.keys(before).some((path) => path.endsWith('meta.bin')) &&
      Object.keys(before).some((path) => path.endsWith('b0001')),
  );
  await vm.reach('judging');
  assert.deepEqual(await fingerprint(join(data, 'store/blobs'), join(data, 'drives', vm.vm)), before);
  assert.deepEqual(await vm.frames(), []);
  await assertConnected(vm, VERSION);
  const page = await vm.page('/attempts');
  assert(page !== null);
  return page;
}

const isDone = (answers: ReadonlyMap<string, string>, ...names: readonly string[]): readonly string[] =>
  names.filter((name) => answers.get(name) === 'done' || answers.get(name) === 'status 0');

const WRITES = ['write', 'BLKZEROOUT', 'BLKDISCARD', 'BLKSECDISCARD', 'dd', 'blkdiscard'];

test('a guest that writes, trims, ejects, unbinds, sits in its drive and brings a driver of its own changes nothing [A4] [X1]', async (t) => {
  const house = await openHouse(t, { version: VERSION, paddingBytes: 2_000_000, installLines: ATTEMPTS });
  const program = await buildAttempts();
  const [disk, cd] = [await addAttacker(house, program, 'virtio-blk'), await addAttacker(house, program, 'scsi-cd')];
  // At the same time: each is the other's neighbour, and both read the same blob.
  const [diskPage, cdPage] = await Promise.all([watch(house, disk), watch(house, cd)]);

  for (const [page, name, attacker] of [
    [diskPage, 'vdd', disk],
    [cdPage, 'sr0', cd],
  ] as const) {
    t.diagnostic(page);
    assert.match(page, new RegExp(`^device=/dev/${name}$`, 'm'));
    assert.deepEqual(isDone(answersOf(page, name), ...WRITES), [], 'no write got through');
    assert.deepEqual(
      isDone(answersOf(page, 'vdc'), 'write', 'BLKZEROOUT', 'dd').length,
      3,
      'positive control: on a disk they do',
    );
    for (const [what, status] of answersOf(page, 'file system')) if (what !== '') assert.notEqual(status, '0', what);
    const reads = answersOf(page, 'reads');
    assert.equal(reads.get('random reads'), '0 of 500 wrong');
    const sums = [...reads].filter(([what]) => /^again|^after/.test(what)).map(([, sum]) => sum);
    assert.equal(new Set([...sums, /^before=(.*)$/m.exec(page)?.[1]]).size, 1, 'it reads the same bytes all the time');
    assert.equal(sums.length, 6);
    const scratch = await readFile(attacker.scratch);
    assert.deepEqual(scratch.subarray(DESCRIPTOR_AT, DESCRIPTOR_AT + 512), PATTERN, 'what it wrote is on its own disk');
  }

  const ring = answersOf(diskPage, 'driver of vdd');
  assert.equal(ring.get('virtio read'), 'status 0');
  assert.equal(ring.get('it reads'), 'CD001', 'positive control: its ring is the device’s');
  for (const what of ['virtio write', 'virtio write, long', 'virtio write zeroes', 'virtio secure erase'])
    assert.match(ring.get(what) ?? '', /^status [12]$/, what);
  // QEMU answers a discard well whatever the device, and throws it away: the image does not pass it on.
  assert.match(ring.get('virtio discard') ?? '', /^status [012]$/);
  assert.equal(
    answersOf(diskPage, 'driver of vdc').get('virtio write'),
    'status 0',
    'positive control: a disk takes it',
  );

  const raw = answersOf(cdPage, 'raw');
  assert.equal(raw.get('READ(10)'), 'done', 'positive control: raw commands arrive');
  assert.equal(raw.get('its label'), 'CD001');
  for (const what of ['WRITE(10)', 'WRITE(16)', 'WRITE AND VERIFY', 'WRITE SAME(16)', 'UNMAP'])
    assert.match(raw.get(what) ?? '', /^refused, sense [57]/, what);

  const told = async ({ vm }: Attacker) => (await vm.events()).map(({ text }) => text);
  assert.equal(answersOf(diskPage, 'the end').get('unbind'), '0');
  assert.equal(raw.get('eject'), 'done');
  assert.equal(raw.get('read while ejected'), 'refused, sense 2/3a', 'positive control: its medium was out');
  assert.equal(answersOf(cdPage, 'the end').get('delete'), '0');
  for (const attacker of [disk, cd]) {
    // Nobody in the guest answers any more. It is taken away all the same, and said how.
    const said = (await told(attacker)).filter((text) => /^the drive is|^the guest did not let go/.test(text));
    t.diagnostic(`${attacker.vm.vm}: ${said.join('; ')}`);
    assert.equal(said.length, 1, (await told(attacker)).join('; '));
  }
});

/** Reads the whole drive past the cache, again and again, beside an installation that takes its time; goes on when it is over. */
const READ_ON = `(
while :; do
  dd if=$(awk '$2 == "/run/pratique/drive" { print $1 }' /proc/mounts) of=/dev/null bs=64k iflag=direct || exit
  echo read >>/srv/www/reads
done </dev/null >/dev/null 2>&1 &)`;
const ENDINGS = ['reset', 'poweroff', 'detached'] as const;
type Ending = (typeof ENDINGS)[number];
const isFull = process.env.PRATIQUE_TEST_FULL === '1';
const seed = Number(process.env.PRATIQUE_TEST_SEED ?? randomInt(1, 2 ** 31));
const CELLS = ENDINGS.flatMap((ending) =>
  (['virtio-blk', 'scsi-cd'] as const).map((frontEnd) => ({ ending, frontEnd })),
);

/** What becomes of the VM by itself; what it holds on this host is as it was, or gone. */
async function endWhileReading(house: House, ending: Ending, vm: TestVm): Promise<void> {
  const data = join(house.folder, 'data');
  await vm.start();
  await vm.reach('installing');
  const before = await fingerprint(join(data, 'store/blobs'));
  if (ending === 'detached') {
    await vm.hear(/^the drive is detached$|^the guest did not let go/);
  } else {
    await vm.order(ending);
    await vm.hear(ending === 'reset' ? /^the guest reset itself/ : /powered off/);
  }
  if (ending === 'poweroff') {
    await vm.reach('off');
    assert.deepEqual(await vm.frames(), []);
    await vm.start();
  }
  await vm.reach('connected');
  await assertConnected(vm, VERSION);
  const reads = ((await vm.page('/reads')) ?? '').split('read').length - 1;
  assert(reads > 0, 'positive control: it was reading');
  assert.deepEqual(await fingerprint(join(data, 'store/blobs')), before);
  const isGone = async () => !existsSync(join(data, 'drives', vm.vm));
  assert(await waitUntil(isGone, systemClock, 20_000), 'its drive is gone');
}

test('a guest that resets, powers off or loses its drive while it reads comes to its end by itself, and nothing has changed [A2] [A4] [X4]', async (t) => {
  const chosen = isFull ? CELLS : [CELLS[seed % CELLS.length] ?? CELLS[0]].filter((cell) => cell !== undefined);
  t.diagnostic(
    isFull ? 'all cells' : `seed ${seed}: ${JSON.stringify(chosen)}; PRATIQUE_TEST_FULL=1 runs all ${CELLS.length}`,
  );
  const house = await openHouse(t, { version: VERSION, paddingBytes: 2_000_000, installLines: `${READ_ON}\nsleep 3` });
  for (const { ending, frontEnd } of chosen) {
    await endWhileReading(house, ending, await house.addVm({ change: (spec) => withFrontEnd(spec, frontEnd) }));
    t.diagnostic(`${ending}, ${frontEnd}: well`);
  }
});
