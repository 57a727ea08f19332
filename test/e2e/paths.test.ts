// Ways through a run that only a real guest can prove: its drive as a CD, a medium that is withheld, a blob that rotted under it,
// a new agent in the middle of a run, and what it remembers of its last shutdown.
import assert from 'node:assert/strict';
import { chmod, copyFile, mkdir, open, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { inc } from 'semver';
import { buildAgent } from '../../guest-agent/build.ts';
import { HELLO_PRODUCT } from '../../images/hello-product.ts';
import manifest from '../../package.json' with { type: 'json' };
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { type Digest, digestOfFile } from '../../src/base/digest.ts';
import { silentLog } from '../../src/base/log.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { NIC_MODELS } from '../../src/hypervisor/vm-spec.ts';
import type { Inventory } from '../../src/model/inventory.ts';
import { assertConnected, type House, openHouse, type TestVm } from './harness.ts';

const NEW_AGENT = inc(manifest.version, 'minor') ?? '';

async function makeMedium(folder: string): Promise<string> {
  const content = join(folder, 'medium');
  await mkdir(content);
  await writeFile(join(content, 'hello'), 'from the medium\n');
  const path = join(folder, 'medium.iso');
  await runCommand(['xorriso', '-as', 'mkisofs', '-quiet', '-V', 'MEDIUM', '-R', '-o', path, content]);
  await chmod(path, 0o644);
  return path;
}

/** Notes on a page what the guest sees of its drives while it is gated, in a form that needs no network. */
const NOTE_DRIVES = `{
  for tray in /dev/sr*; do echo "tray: $(dd if=$tray of=/dev/null bs=2048 count=1 2>&1 | head -n 1)"; done
  grep /run/pratique/drive /proc/mounts
  cat /sys/block/sr*/device/model
} >/srv/www/seen 2>&1 || true`;

/** To the agent, a guest without a driver's folder has no such driver: none for virtio-blk, though its system disk is one. */
const HIDE_VIRTIO_BLK = `/bin/busybox mount -t tmpfs none /sys/bus/virtio/drivers
/bin/busybox mkdir /sys/bus/virtio/drivers/virtio_scsi`;

const SHOW_MEDIUM = `#!/bin/busybox sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
mount -t iso9660 -o ro /dev/sr0 /mnt && cat /mnt/hello && umount /mnt
`;

async function agentWithoutVirtioBlk(): Promise<string> {
  const text = await readFile(join(import.meta.dirname, '../../images/guest/agent'), 'utf8');
  return text.replace('\n', `\n${HIDE_VIRTIO_BLK}\n`);
}

/** The stored file of the release of this version. */
async function findBlob({ folder, service }: House, version: string): Promise<{ path: string; digest: Digest }> {
  const offer = (await service.vendorOffers('demo')).find((each) => each.version === version);
  assert(offer !== undefined, `${version} is on offer`);
  const { digest } = offer.artifact;
  return { path: join(folder, 'data/store/blobs', digest.slice(0, 2), digest), digest };
}

/** Turns one bit in the middle of a file, as a disk does that rots: same size, same inode. */
async function rot(path: string): Promise<void> {
  const { size, mode } = await stat(path);
  await chmod(path, 0o600);
  const file = await open(path, 'r+');
  const byte = Buffer.alloc(1);
  const at = Math.floor(size / 2);
  await file.read(byte, 0, 1, at);
  await file.write(Buffer.from([(byte[0] ?? 0) ^ 1]), 0, 1, at);
  await file.close();
  await chmod(path, mode & 0o777);
}

async function makeAgentRelease(folder: string): Promise<{ readonly source: string; readonly digest: Digest }> {
  const agent = await buildAgent({ cacheFolder: defaultCacheFolder(), log: silentLog, version: NEW_AGENT });
  const source = join(folder, 'agent-release');
  await mkdir(join(source, 'files'), { recursive: true });
  await copyFile(agent.path, join(source, 'files/pratique-agent'));
  const release = { product: 'pratique-agent', version: NEW_AGENT, kind: 'fix', install: { action: 'agent' } };
  await writeFile(join(source, 'release.json'), JSON.stringify(release));
  return { source, digest: agent.digest };
}

/** The inventory that the daemon keeps of a VM. */
function inventoryOf({ folder }: House, vm: TestVm): Inventory {
  const db = new DatabaseSync(join(folder, 'data/pratique.db'), { readOnly: true });
  try {
    const row = db.prepare('SELECT inventory FROM inventories WHERE vm = ?').get(vm.vm);
    // The cast holds: the daemon parsed what it wrote there.
    return JSON.parse(String(row?.inventory)) as Inventory;
  } finally {
    db.close();
  }
}

test('ways through a run that only real guests can prove', async (t) => {
  const home = await openHouse(t, { version: '1.1.0', installLines: NOTE_DRIVES, paddingBytes: 200_000 });
  const { folder, service, addVm } = home;

  await t.test(
    'a guest without virtio-blk gets its drive as a CD, and its medium only once it is admitted [A4] [A8] [X1]',
    async () => {
      const medium = await makeMedium(folder);
      const vm = await addVm({
        programs: {
          '/usr/lib/pratique-guest/agent': await agentWithoutVirtioBlk(),
          '/srv/www/cgi-bin/medium': SHOW_MEDIUM,
        },
        change: (spec) => ({ ...spec, scsi: true, media: [{ id: 'cd', path: medium }] }),
      });
      await vm.start();
      await assertConnected(vm, '1.1.0');
      assert.deepEqual(inventoryOf(home, vm).abilities.drives, ['scsi-cd', 'nvme']);
      const seen = (await vm.page('/seen')) ?? '';
      assert.match(seen, /tray: .*'?\/dev\/sr0'?: No medium found/, 'the tray was empty while it was gated');
      assert.match(seen, /^\/dev\/sr1 \/run\/pratique\/drive iso9660 ro/m, 'the drive was a CD');
      assert.equal(await vm.page('/cgi-bin/medium'), 'from the medium');
    },
  );

  await t.test(
    'a blob that rotted on the host is refused by the guest and fetched anew, and the run goes on by itself [X4] [X8]',
    async (t) => {
      const { path, digest } = await findBlob(home, '1.1.0');
      assert.equal(await digestOfFile(path), digest, 'it is there already: an earlier VM needed it');
      await rot(path);
      const vm = await addVm();
      await vm.start();
      await vm.hear(/damaged on this host .* to be fetched anew: bundle\/hello/);
      assert.equal((await service.showVm(vm.vm)).gate, 'closed');
      await vm.reach('connected');
      await assertConnected(vm, '1.1.0');
      assert.deepEqual(await readdir(join(folder, 'data/store/quarantine')), [digest]);
      assert.equal(await digestOfFile(path), digest, 'the host has a sound copy again');
      const offers = (await vm.audit()).map(({ record }) => record).filter(({ kind }) => kind === 'offer');
      assert.equal(offers.length, 2, 'positive control: the damaged drive was shown first');
      assert.equal(new Set(offers.map(({ run }) => run)).size, 1, 'one run');
      const told = (await vm.events()).map(({ text }) => text);
      assert.deepEqual(
        told.filter((text) => /quarantined|did not let go/.test(text)),
        [],
      );
      t.diagnostic(told.filter((text) => /drive|damaged/.test(text)).join('; '));

      // A small release is read by the host when it packs the drive: nobody has to be asked.
      await home.publish({ version: '1.2.0' });
      await service.stopVm(vm.vm, { force: true });
      await vm.reach('staged');
      await rot((await findBlob(home, '1.2.0')).path);
      await vm.start();
      await vm.hear(/damaged on this host .* to be fetched anew: bundle\/hello/);
      await vm.reach('connected');
      await assertConnected(vm, '1.2.0');
      assert(!(await vm.events()).some(({ text }) => text === 'quarantined: host-failure'));
    },
  );

  await t.test(
    'an agent is replaced in the middle of a run, which goes on; it stays, and remembers its last shutdown [X7] [A6]',
    async (t) => {
      const agent = await makeAgentRelease(folder);
      await home.publishFolder(agent.source);
      const vm = await addVm({ policy: { vendors: ['demo'] } });
      await vm.start();
      await vm.hear(/the agent leaves: agent-update/);
      assert.equal((await service.showVm(vm.vm)).gate, 'closed');
      await vm.reach('connected');
      await assertConnected(vm, '1.2.0');
      assert.equal((await service.showVm(vm.vm)).agentVersion, NEW_AGENT);
      const records = (await vm.audit()).map(({ record }) => record);
      const opened = records.filter(({ kind }) => kind === 'gate-opened');
      assert.equal(opened.length, 1, 'plugged in once');
      assert.equal(new Set(records.filter(({ kind }) => kind === 'offer').map(({ run }) => run)).size, 1, 'by one run');
      assert.match(
        JSON.stringify(opened),
        new RegExp(`"fromVersion":"${manifest.version}","item":"agent/pratique-agent","version":"${NEW_AGENT}"`),
      );
      assert.match(JSON.stringify(opened), /"fromVersion":"1\.0\.0","item":"bundle\/hello","version":"1\.2\.0"/);
      const first = inventoryOf(home, vm);
      assert.equal(first.agent.digest, agent.digest);
      assert.equal(first.lastShutdown, null, 'there was none');

      await vm.order('reset');
      await vm.hear(/^closed: guest reset/);
      await vm.reach('connected');
      await assertConnected(vm, '1.2.0');
      const crashed = inventoryOf(home, vm);
      assert.deepEqual(crashed.agent, { version: NEW_AGENT, digest: agent.digest });
      assert.equal(crashed.lastShutdown, null, 'a reset leaves no record of a shutdown');

      await vm.order('poweroff');
      await vm.reach('off');
      await vm.start();
      await vm.reach('connected');
      await assertConnected(vm, '1.2.0');
      const { agent: last, lastShutdown } = inventoryOf(home, vm);
      assert.equal(last.version, NEW_AGENT);
      const remembered = lastShutdown?.products.map(({ product, version }) => `${product} ${version}`);
      assert.deepEqual(remembered, [`${HELLO_PRODUCT} 1.2.0`]);
      t.diagnostic(`recorded in boot ${lastShutdown?.boot}`);
    },
  );
});

/** While gated: the guest takes its link down and up under everything that tries to send. */
const BOUNCE = 'for round in 1 2 3 4 5; do ip link set eth0 down; ip link set eth0 up; sleep 0.4; done';

// Debian's cloud kernel knows virtio only: the emulated cards need the generic one, a larger download, and so the full run.
const isFull = process.env.PRATIQUE_TEST_FULL === '1';
for (const model of isFull ? NIC_MODELS : (['virtio-net-pci'] as const)) {
  test(`nothing of a VM with a card of model ${model} reaches a peer before its admission, also when its guest bounces the link [A8] [X1]`, async (t) => {
    const sample = `sample: ${model} of ${NIC_MODELS.length} models; PRATIQUE_TEST_FULL=1 runs all`;
    t.diagnostic(isFull ? 'every model' : sample);
    const { addVm } = await openHouse(t, { version: '1.1.0', installLines: BOUNCE }, isFull ? 'generic' : 'cloud');
    const vm = await addVm({ change: (spec) => ({ ...spec, nics: spec.nics.map((nic) => ({ ...nic, model })) }) });
    await vm.start();
    await vm.reach('judging');
    assert.deepEqual(await vm.frames(), []);
    await assertConnected(vm, '1.1.0');
  });
}
