// Debian guests held against their own disks (policy `verify`), with real packages of the machine's own mirror: an honest one is
// plugged in, one whose dpkg puts old programs back behind its own records is not, and is believed where nobody looks.
import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { buildAgent } from '../../guest-agent/build.ts';
import { buildImage } from '../../images/images.ts';
import { makeVmParts } from '../../images/vm-parts.ts';
import { makeDemoDaemon } from '../../proxy/demo/demo-daemon.ts';
import { DEMO_BRIDGE, makeDemoNetwork, waitUntil } from '../../proxy/demo/demo-network.ts';
import { debianVendor } from '../../proxy/demo/pending.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { runCommand } from '../../src/base/run-command.ts';
import type { DiskImage } from '../../src/model/disk-image.ts';
import type { VmId } from '../../src/model/ids.ts';
import type { Policy } from '../../src/model/policy.ts';

const RUN_TIMEOUT_MS = 500_000;
const PACKAGES = ['jq', 'libjq1', 'libexpat1', 'unzip'];
const PROGRAMS = ['/usr/bin/jq', '/usr/bin/unzip', '/usr/lib/x86_64-linux-gnu/libjq.so.1.0.4'];

/** Put in the place of dpkg: what that records is new, what lies on the disk is old again. */
const SABOTAGE = `#!/bin/sh
mkdir -p /var/tmp/old
for program in ${PROGRAMS.join(' ')}; do
  [ -e "/var/tmp/old/$(basename "$program")" ] || cp -p "$program" /var/tmp/old/ 2>/dev/null
done
/usr/bin/dpkg.real "$@"
code=$?
for program in ${PROGRAMS.join(' ')}; do
  cp -p "/var/tmp/old/$(basename "$program")" "$program" 2>/dev/null
done
sync
exit $code
`;

async function house(t: TestContext) {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-verify-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  await chmod(folder, 0o711);
  const cacheFolder = defaultCacheFolder();
  await mkdir(cacheFolder, { recursive: true });
  const agent = await buildAgent({ cacheFolder, log: silentLog });
  const image = await buildImage({ name: 'debian', agentPath: agent.path, cacheFolder, log: silentLog });
  assert(image.debian !== null);
  const network = await makeDemoNetwork({ folder, clock: systemClock, prefix: 'pqverify-' });
  t.after(network.close);
  const runFolder = await mkdtemp('/run/pq');
  await chmod(runFolder, 0o711);
  t.after(() => rm(runFolder, { recursive: true, force: true }));
  const daemon = await makeDemoDaemon({
    folder,
    runFolder,
    clock: systemClock,
    configuration: {
      vendors: [debianVendor(image.debian)],
      diskRoots: [folder, dirname(image.disks[0]?.path ?? ''), cacheFolder],
    },
  });
  await daemon.start();
  const { service } = daemon;
  const added: VmId[] = [];
  t.after(async () => {
    for (const vm of added) await service.stopVm(vm, { force: true }).catch(() => {});
    await daemon.stop();
  });
  await service.checkVendor(null);
  const run = async (name: string, policy: Partial<Policy>, isSabotaged: boolean) => {
    const vm = name as VmId; // Letters are a VM's name.
    const number = added.push(vm);
    const parts = await makeVmParts({
      image,
      folder: join(folder, 'disks'),
      vm,
      wishes: { address: `10.77.0.${number + 1}/24`, chatter: true },
    });
    const disks = isSabotaged ? [await sabotaged(parts.disks[0], join(folder, 'disks', `${vm}.raw`))] : parts.disks;
    const mac = `52:54:00:79:00:0${number}`;
    const nics = [{ id: 'net0', model: 'virtio-net-pci', mac, bridge: DEMO_BRIDGE } as const];
    const spec = { format: 'pratique.vm/1', kind: 'managed', vm, machine: 'q35', cpus: 1, ...parts } as const;
    const given = { ...spec, disks: [...disks], nics: [...nics], namespace: network.namespace };
    await service.addVm(given, { install: 'listed', packages: PACKAGES, ...policy });
    await service.startVm(vm);
    const state = async () => (await service.showVm(vm)).state;
    await waitUntil(systemClock, RUN_TIMEOUT_MS, async () => ['connected', 'quarantined'].includes(await state()));
    const told = (await service.pastEvents({ vm, afterSeq: 0, limit: 500 })).map(({ text }) => text).join('\n');
    const answer = { state: await state(), told, why: (await service.whyVm(vm)).reason };
    await service.stopVm(vm, { force: true });
    return answer;
  };
  return { run };
}

async function sabotaged(disk: (DiskImage & { readonly id: string }) | undefined, path: string) {
  assert(disk !== undefined);
  // The VM's own layer is empty yet.
  const source = disk.backing ?? disk;
  await runCommand(['qemu-img', 'convert', '-f', source.format, '-O', 'raw', source.path, path]);
  await writeFile(`${path}.sh`, SABOTAGE);
  const requests = ['link /usr/bin/dpkg /usr/bin/dpkg.real', 'unlink /usr/bin/dpkg', `write ${path}.sh /usr/bin/dpkg`];
  const input = [...requests, 'set_inode_field /usr/bin/dpkg mode 0100755', ''].join('\n');
  await runCommand(['debugfs', '-w', '-f', '-', path], { input });
  return { id: disk.id, path, format: 'raw' } as const;
}

test('a Debian guest is plugged in when its disk bears out its word, and stays gated when old programs lie there [A3 A10]', async (t) => {
  const { run } = await house(t);
  const honest = await run('honest', { verify: 'disk' }, false);
  assert.equal(honest.state, 'connected', honest.told);
  const agreed = /its disk agrees: (\d+) files of its update.*/.exec(honest.told);
  t.diagnostic(agreed?.[0] ?? honest.told);
  assert(Number(agreed?.[1]) >= 5, honest.told);

  const liar = await run('liar', { verify: 'disk' }, true);
  assert.equal(liar.state, 'quarantined', liar.told);
  t.diagnostic(liar.why);
  assert.match(liar.why, /disk does not bear out.*(?:jq|unzip).*holds something else/);

  const believed = await run('believed', {}, true);
  assert.equal(believed.state, 'connected', `positive control: its own word is in order: ${believed.told}`);
});
