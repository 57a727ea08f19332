// A NIC that the operator took out of the gate, beside one that is gated, on a real VM: frames are counted by the kernels of peers
// on the bridges of both.
import assert from 'node:assert/strict';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { makeGate } from '../../src/gate/gate.ts';
import { isCoveredName, openFence } from '../../src/hypervisor/fence.ts';
import { gatedTapsOf, readInterface, tapsOf } from '../../src/hypervisor/network.ts';
import { probeAccelerator } from '../../src/hypervisor/qmp/accel.ts';
import { makeQmpDriver } from '../../src/hypervisor/qmp/driver.ts';
import type { ManagedVm } from '../../src/hypervisor/vm-spec.ts';
import type { Evidence } from '../../src/model/evidence.ts';
import type { RunId, VmId } from '../../src/model/ids.ts';
import { makeNamespace } from '../fakes/namespace.ts';
import { sendingGuest } from './sending-guest.ts';

const GATED_MAC = '52:54:00:ab:00:01';
const OPEN_MAC = '52:54:00:ab:00:02';
const WAIT_MS = 60_000;

test('a NIC that is not gated is on its network from the first instruction, and the gated one beside it is not [A8] [A11]', async (t) => {
  const guest = await sendingGuest();
  const folder = await mkdtemp(join(tmpdir(), 'pq-nics-'));
  await chmod(folder, 0o711);
  const net = await makeNamespace();
  const peer = await makeNamespace({ neighbourOf: net });
  const fence = await openFence({ namespace: net.namespace, log: silentLog, clock: systemClock });
  t.after(async () => {
    fence.close();
    await net.close();
    await peer.close();
    await rm(folder, { recursive: true });
  });
  assert(peer.namespace.kind === 'process');
  for (const [bridge, device] of [
    ['br0', 'eth0'],
    ['mgmt0', 'eth1'],
  ] as const) {
    await net.ip(
      `link add ${bridge} type bridge forward_delay 0 mcast_snooping 0`,
      `link set ${bridge} up`,
      `link add to-${device} type veth peer name ${device} netns ${peer.namespace.pid}`,
      `link set to-${device} master ${bridge} up`,
    );
    await peer.ip(`link set ${device} up`);
    await peer.run(
      'nft',
      `add table netdev ${device}; add chain netdev ${device} in { type filter hook ingress device ${device} priority 0; }; add rule netdev ${device} in ether saddr { ${GATED_MAC}, ${OPEN_MAC} } counter`,
    );
  }
  const framesOn = async (device: string) =>
    Number(/counter packets (\d+)/.exec(await peer.run('nft', 'list', 'chain', 'netdev', device, 'in'))?.[1]);
  const spec: ManagedVm = {
    format: 'pratique.vm/1',
    kind: 'managed',
    vm: 'twonics' as VmId, // Letters are a VM's name.
    machine: 'q35',
    memoryMiB: 96,
    cpus: 1,
    kernel: { image: guest.kernel, initrd: guest.initrd, commandLine: guest.commandLine },
    disks: [],
    nics: [
      { id: 'lan', model: 'virtio-net-pci', mac: GATED_MAC, bridge: 'br0' },
      { id: 'mgmt', model: 'virtio-net-pci', mac: OPEN_MAC, bridge: 'mgmt0', gated: false },
    ],
    namespace: net.namespace,
  };
  const driver = makeQmpDriver({
    accelerator: await probeAccelerator('qemu-system-x86_64', systemClock, silentLog),
    runFolder: folder,
    overlayFolder: join(folder, 'overlays'),
    diskRoots: [folder, defaultCacheFolder()],
    fenceFor: async () => fence,
    uidFor: async () => (process.getuid?.() === 0 ? 64_322 : null),
    clock: systemClock,
    log: silentLog,
  });
  const isEvidence = (value: unknown): value is Evidence => value === null && false;
  const gate = makeGate({ fenceFor: async () => fence, audit: async () => {}, isEvidence, log: silentLog });
  const [lan, mgmt] = tapsOf(spec);
  assert.ok(lan !== undefined && mgmt !== undefined);
  assert.ok(isCoveredName(lan.name) && !isCoveredName(mgmt.name), `${lan.name}, ${mgmt.name}`);
  assert.deepEqual(gatedTapsOf(spec), [lan]);

  const vm = await driver.start(spec);
  t.after(() => vm.stop({ graceful: false }).catch(() => {}));
  assert.deepEqual(vm.taps, [lan], 'the gate knows of the gated one only');
  let console = '';
  const untilSent = async (times: number) => {
    const until = systemClock.monotonicMs() + WAIT_MS;
    for (let seen = 0; seen < times; seen = console.split(/sent on eth[01]/).length - 1) {
      assert.ok(systemClock.monotonicMs() < until, `the guest is silent: ${console}`);
      await systemClock.sleep(50);
      console += (await vm.readConsole?.()) ?? '';
    }
    const said = console;
    console = '';
    return said;
  };
  await gate.close(vm, 'start');
  await gate.resume(vm);
  const said = await untilSent(6);
  assert.match(said, /sent on eth0 carrier=0/);
  assert.match(said, /sent on eth1 carrier=1/);
  assert.equal(await framesOn('eth0'), 0, 'gated, before admission');
  assert.ok((await framesOn('eth1')) > 0, 'positive control: the one that is not gated sends');

  await gate.open(vm, { kind: 'override', run: 'a'.repeat(32) as RunId, reason: 'the test', actor: 'test' });
  await untilSent(6);
  assert.ok((await framesOn('eth0')) > 0, 'positive control: the gated one sends once it is admitted');
  assert.equal(await gate.isAdmitted(vm), true);
  assert.deepEqual([...(await fence.verify()).admitted], [lan.name], 'the other never was in the set');

  await gate.close(vm, 'again');
  const [gatedBefore, openBefore] = [await framesOn('eth0'), await framesOn('eth1')];
  assert.match(await untilSent(6), /sent on eth1 carrier=1/);
  assert.equal(await framesOn('eth0'), gatedBefore, 'off its network again');
  assert.ok((await framesOn('eth1')) > openBefore, 'the other stays on its own');

  await vm.stop({ graceful: false });
  for (const tap of [lan, mgmt]) assert.equal(await readInterface(net.namespace, tap.name), null, 'its taps are gone');
});
