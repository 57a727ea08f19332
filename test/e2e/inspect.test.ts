// A VM that has never run, staged from what its disk tells (A1, A3): a real Debian guest, real updates of the machine's own mirror.
import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { buildAgent } from '../../guest-agent/build.ts';
import { buildImage } from '../../images/images.ts';
import { makeVmParts } from '../../images/vm-parts.ts';
import { makeDemoDaemon } from '../../proxy/demo/demo-daemon.ts';
import { DEMO_BRIDGE, makeDemoNetwork, waitUntil } from '../../proxy/demo/demo-network.ts';
import { debianVendor } from '../../proxy/demo/pending.ts';
import type { RunStateName } from '../../proxy/service.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import type { VmId } from '../../src/model/ids.ts';

const STAGED_TIMEOUT_MS = 120_000;
const RUN_TIMEOUT_MS = 400_000;
const VM = 'fresh' as VmId; // Letters are a VM's name.
const MAC = '52:54:00:79:00:01';
/** Few, so that the guest's dpkg has little to do: this test is about where the bytes come from. */
const PACKAGES = ['jq', 'libjq1', 'libexpat1', 'unzip'];

test('a Debian VM that has never run is staged from its disk, then boots and is plugged in without another download [A1 A3 A9]', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'pratique-inspect-e2e-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  await chmod(folder, 0o711);
  const cacheFolder = defaultCacheFolder();
  await mkdir(cacheFolder, { recursive: true });
  const agent = await buildAgent({ cacheFolder, log: silentLog });
  const image = await buildImage({ name: 'debian', agentPath: agent.path, cacheFolder, log: silentLog });
  assert(image.debian !== null);
  const network = await makeDemoNetwork({ folder, clock: systemClock, prefix: 'pqinsp-' });
  t.after(network.close);
  const runFolder = await mkdtemp('/run/pq');
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
  t.after(async () => {
    await service.stopVm(VM, { force: true }).catch(() => {});
    await daemon.stop();
  });
  await service.checkVendor(null);
  const parts = await makeVmParts({
    image,
    folder: join(folder, 'disks'),
    vm: VM,
    wishes: { address: '10.77.0.2/24', chatter: true },
  });
  const nics = [{ id: 'net0', model: 'virtio-net-pci', mac: MAC, bridge: DEMO_BRIDGE } as const];
  const spec = { format: 'pratique.vm/1', kind: 'managed', vm: VM, machine: 'q35', cpus: 1, ...parts, nics } as const;
  await service.addVm(
    { ...spec, disks: [...parts.disks], nics: [...nics], namespace: network.namespace },
    { install: 'listed', packages: PACKAGES },
  );

  const story = async () =>
    (await service.pastEvents({ vm: VM, afterSeq: 0, limit: 500 })).map(({ text }) => text).join('\n');
  const reach = async (wanted: RunStateName, timeoutMs: number) => {
    const state = async () => (await service.showVm(VM)).state;
    const isOver = async () => [wanted, 'quarantined'].includes(await state());
    await waitUntil(systemClock, timeoutMs, isOver);
    assert.equal(await state(), wanted, await story());
  };
  await reach('staged', STAGED_TIMEOUT_MS);
  const staged = await service.showVm(VM);
  assert.equal(staged.known?.source, 'disk');
  assert.deepEqual([staged.os?.id, staged.os?.kernel], ['debian', undefined]);
  assert(staged.products.some(({ product }) => product === 'jq'));
  const plan = await service.planVm(VM);
  assert(plan.items.length > 0, 'the mirror offers updates for packages of the release');
  assert((await service.drift()).every(({ source }) => source === 'disk'));
  const before = await blobsOf(join(folder, 'data/store'));
  for (const { release } of plan.items)
    assert(
      before.some((blob) => blob.includes(release.artifact.digest)),
      release.product,
    );
  const inspection = await service.inspectVm(VM);
  t.diagnostic(`one look: ${inspection.tookMs} ms; ${plan.items.length} packages staged`);
  assert.deepEqual([inspection.counts, inspection.difference], ['disk', null]);
  assert.equal(inspection.inventory.agent.digest, agent.digest);

  await service.startVm(VM);
  await assert.rejects(service.inspectVm(VM), { code: 'conflict/running' });
  await reach('connected', RUN_TIMEOUT_MS);
  assert.deepEqual(await blobsOf(join(folder, 'data/store')), before, 'what was staged was all it needed');
  assert.match(await story(), /the agent reports what the disk told/);
  const connected = await service.showVm(VM);
  assert.equal(connected.known?.source, 'confirm');
  for (const { release } of plan.items)
    assert(
      connected.products.some(({ product, version }) => product === release.product && version === release.version),
      release.product,
    );
});

/** Every stored blob with what changes when it is written anew. */
async function blobsOf(store: string): Promise<readonly string[]> {
  const entries = await readdir(store, { recursive: true, withFileTypes: true });
  const files = entries.filter((entry) => entry.isFile() && /^[0-9a-f]{64}$/.test(entry.name));
  const lines = files.map(async ({ parentPath, name }) => {
    const { ino, mtimeMs, size } = await stat(join(parentPath, name));
    return `${name} ${ino} ${mtimeMs} ${size}`;
  });
  return (await Promise.all(lines)).toSorted();
}
