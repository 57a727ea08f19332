// What a guest reads is not what was announced, for every reason there is: the drive's own file rotted, a stored blob is gone or went
// bad while the vendor is away, or the guest lies. What the host can mend it mends, and the run goes on; a lie ends in quarantine.
import assert from 'node:assert/strict';
import { chmod, open, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { assertConnected, type House, openHouse, type TestVm } from '../e2e/harness.ts';
import { fingerprint } from './drive-lab.ts';

/** Turns one bit of a file at an offset, as a disk does that rots: same size, same inode. */
async function rot(path: string, at: number): Promise<void> {
  const { mode } = await stat(path);
  await chmod(path, 0o600);
  const file = await open(path, 'r+');
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, at);
  await file.write(Buffer.from([(byte[0] ?? 0) ^ 1]), 0, 1, at);
  await file.close();
  await chmod(path, mode & 0o777);
}

async function blobOf({ folder, service }: House, version: string): Promise<string> {
  const offer = (await service.vendorOffers('demo')).find((each) => each.version === version);
  assert(offer !== undefined, `${version} is on offer`);
  const { digest } = offer.artifact;
  return join(folder, 'data/store/blobs', digest.slice(0, 2), digest);
}

async function driveFolder({ folder }: House, { vm }: TestVm): Promise<string> {
  const drives = join(folder, 'data/drives', vm);
  const [run] = await readdir(drives);
  assert(run !== undefined);
  return join(drives, run);
}

const told = async (vm: TestVm): Promise<readonly string[]> => (await vm.events()).map(({ text }) => text);
const offers = async (vm: TestVm): Promise<number> =>
  (await vm.audit()).filter(({ record }) => record.kind === 'offer').length;

/** A VM whose drive rots as soon as it is shown; a guest that had read it by then is followed by another. */
async function rotUnderGuest(house: House) {
  for (let tries = 0; tries < 3; tries += 1) {
    const vm = await house.addVm();
    await vm.start();
    await vm.hear(/ is attached \(/);
    const metadata = join(await driveFolder(house, vm), 'meta.bin');
    const before = await stat(metadata);
    await rot(metadata, before.size - 2_000);
    const { text } = await vm.hear(/^the agent reports 1 result/);
    if (/mismatch/.test(text)) return { vm, metadata, before };
    await vm.reach('connected');
  }
  assert.fail('three guests were quicker than this test');
}

/** An agent that reads a copy of the drive in which each package has other bytes: the manifest is the announced one. */
const LIAR = `#!/bin/busybox sh
bb=/bin/busybox
$bb mkdir -p /run/real /run/copy
(while :; do
  for device in /dev/vd?; do
    [ -b $device ] || continue
    $bb mount -t iso9660 -o ro $device /run/real 2>/dev/null || continue
    $bb mkdir -p /run/copy/packages
    for file in /run/real/packages/*; do $bb tr '\\\\0' x <$file >/run/copy/packages/\${file##*/}; done
    $bb cp /run/real/manifest.json /run/copy/.new && $bb mv /run/copy/.new /run/copy/manifest.json
    $bb umount /run/real
  done
  $bb usleep 100000
done) &
exec /usr/sbin/pratique-agent --drive /run/copy
`;

test('a drive that is not what was announced is mended where the host can, and the run goes on; a lie is not believed for ever [A9] [X4] [X8]', async (t) => {
  const house = await openHouse(t, { version: '1.1.0' });
  const liar = await house.addVm({ programs: { '/usr/lib/pratique-guest/agent': LIAR } });

  await t.test('the file of a drive rots in which its small blobs are packed: a sound one is made', async () => {
    const { vm: packed, metadata, before } = await rotUnderGuest(house);
    await packed.hear(/^this host's copies of the updates are sound/);
    await packed.hear(/ is attached \(/);
    // The file system may give the new file the old one's number.
    assert.notEqual((await stat(metadata)).birthtimeMs, before.birthtimeMs, 'another file');
    await packed.reach('connected');
    await assertConnected(packed, '1.1.0');
    assert.equal(await offers(packed), 2);
  });

  await t.test('a guest that lies about a sound drive is heard a few times, then it is quarantined', async () => {
    const before = await fingerprint(join(house.folder, 'data/store/blobs'));
    await liar.start();
    assert.equal(await liar.settle(), 'quarantined');
    assert.equal(await offers(liar), 3);
    const why = await house.service.whyVm(liar.vm);
    assert.match(why.reason, /Installing bundle\/hello failed \((digest|size)-mismatch\)/);
    assert.match(why.next, /This host has looked at its copies/);
    assert.equal((await house.service.showVm(liar.vm)).gate, 'closed');
    assert.deepEqual(await liar.frames(), []);
    assert.deepEqual(
      await fingerprint(join(house.folder, 'data/store/blobs')),
      before,
      'nothing was taken out or fetched',
    );
    assert(!(await told(liar)).some((text) => /damaged on this host/.test(text)));
    await house.service.stopVm(liar.vm, { force: true });
  });

  await house.publish({ version: '1.2.0', paddingBytes: 16_000_000 });

  await t.test('a stored blob that disappears under a guest is on its drive all the same', async () => {
    const vm = await house.addVm();
    await vm.start();
    await vm.hear(/ is attached \(/);
    await rm(await blobOf(house, '1.2.0'));
    await vm.reach('connected');
    await assertConnected(vm, '1.2.0');
    assert.equal(await offers(vm), 1);
    await house.service.stopVm(vm.vm, { force: true });
  });

  await t.test('what rotted while the vendor is away keeps the gate closed, and why says who is missing', async () => {
    const vm = await house.addVm();
    await vm.start();
    await vm.hear(/ is attached \(/);
    await house.server.close();
    const blob = await blobOf(house, '1.2.0');
    // A guest needs a second to read to here.
    await rot(blob, 15_500_000);
    assert.equal(await vm.settle(), 'quarantined');
    assert(
      (await told(vm)).some((text) => /damaged on this host .* bundle\/hello/.test(text)),
      (await told(vm)).join('; '),
    );
    const why = await house.service.whyVm(vm.vm);
    assert.match(why.reason, /demo cannot be asked \(bundle\/hello/);
    assert.equal((await house.service.showVm(vm.vm)).gate, 'closed');
    assert.deepEqual(await vm.frames(), []);
    t.diagnostic(why.reason);
  });
});
