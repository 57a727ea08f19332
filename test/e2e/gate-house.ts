// What tests of the gate share: real QEMU, taps, bridge and fence, and a peer on the bridge whose kernel counts what arrives.
import assert from 'node:assert/strict';
import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import type { KernelFlavour } from '../../images/kernel.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { makeGate } from '../../src/gate/gate.ts';
import { type Fence, openFence } from '../../src/hypervisor/fence.ts';
import type { HypervisorDriver, RunningVm, VmEvent } from '../../src/hypervisor/hypervisor.ts';
import { type Accelerator, probeAccelerator } from '../../src/hypervisor/qmp/accel.ts';
import { makeQmpDriver } from '../../src/hypervisor/qmp/driver.ts';
import type { ManagedVm } from '../../src/hypervisor/vm-spec.ts';
import type { Evidence } from '../../src/model/evidence.ts';
import type { RunId, VmId } from '../../src/model/ids.ts';
import { makeNamespace, type TestNamespace } from '../fakes/namespace.ts';
import { type SendingGuest, sendingGuest } from './sending-guest.ts';

/** Address of the first guest's card, whose frames the peer counts. */
export const MAC = '52:54:00:aa:00:05';
/** A run for openings by hand. */
export const RUN = 'a'.repeat(32) as RunId;
/** Emulated guests on a busy machine. */
const BOOT_TIMEOUT_MS = 60_000;
/** Whom the QEMUs run as; null without root. */
export const uid = process.getuid?.() === 0 ? 64_321 : null;

export type GateHouse = {
  readonly folder: string;
  readonly net: TestNamespace;
  readonly fence: Fence;
  readonly driver: HypervisorDriver;
  readonly guest: SendingGuest;
  /** Frames with the guest's address that the peer's kernel received. */
  readonly framesAtPeer: () => Promise<number>;
  readonly spec: (vm: string, changes?: Partial<ManagedVm>) => ManagedVm;
};

const made = new Map<KernelFlavour, Promise<SendingGuest>>();
let probed: Promise<Accelerator> | null = null;

/** What this machine runs guests with, asked once. */
export async function chosenAccelerator(): Promise<Accelerator> {
  probed ??= probeAccelerator('qemu-system-x86_64', systemClock, silentLog);
  return await probed;
}

/** A namespace with a bridge, a peer on it that counts frames, and a fence; taken down with the test. */
export async function gateHouse(t: TestContext, kernelFlavour: KernelFlavour = 'cloud'): Promise<GateHouse> {
  const making = made.get(kernelFlavour) ?? sendingGuest(kernelFlavour);
  made.set(kernelFlavour, making);
  const guest = await making;
  const folder = await mkdtemp(join(tmpdir(), 'pq-e2e-'));
  await chmod(folder, 0o711);
  const net = await makeNamespace();
  const peer = await makeNamespace({ neighbourOf: net });
  assert(peer.namespace.kind === 'process');
  await net.ip(
    'link add br0 type bridge forward_delay 0 mcast_snooping 0',
    'link set br0 up',
    `link add toPeer type veth peer name eth0 netns ${peer.namespace.pid}`,
    'link set toPeer master br0 up',
  );
  await peer.ip('addr add 10.99.0.1/24 dev eth0', 'link set eth0 up');
  await peer.run(
    'nft',
    `add table netdev count; add chain netdev count in { type filter hook ingress device eth0 priority 0; }; add rule netdev count in ether saddr ${MAC} counter`,
  );
  const fence = await openFence({ namespace: net.namespace, log: silentLog, clock: systemClock });
  t.after(async () => {
    fence.close();
    await net.close();
    await peer.close();
    await rm(folder, { recursive: true });
  });
  return {
    folder,
    net,
    fence,
    guest,
    driver: await makeDriver(folder, fence),
    framesAtPeer: async () => {
      const text = await peer.run('nft', 'list', 'chain', 'netdev', 'count', 'in');
      return Number(/counter packets (\d+)/.exec(text)?.[1] ?? Number.NaN);
    },
    spec: (vm, changes = {}) => ({
      format: 'pratique.vm/1',
      kind: 'managed',
      vm: vm as VmId,
      machine: 'q35',
      memoryMiB: 96,
      cpus: 1,
      kernel: { image: guest.kernel, initrd: guest.initrd, commandLine: guest.commandLine },
      disks: [],
      nics: [{ id: 'lan', model: 'virtio-net-pci', mac: MAC, bridge: 'br0' }],
      namespace: net.namespace,
      ...changes,
    }),
  };
}

/** A driver as a daemon has it. */
export async function makeDriver(folder: string, fence: Fence): Promise<HypervisorDriver> {
  return makeQmpDriver({
    accelerator: await chosenAccelerator(),
    runFolder: folder,
    overlayFolder: join(folder, 'overlays'),
    diskRoots: [folder, defaultCacheFolder()],
    fenceFor: async () => fence,
    uidFor: async () => uid,
    clock: systemClock,
    log: silentLog,
  });
}

/** A gate that opens for overrides only. */
export function gateOf(fence: Fence) {
  return makeGate({
    fenceFor: async () => fence,
    audit: async () => {},
    isEvidence: (value): value is Evidence => value === null && false,
    log: silentLog,
  });
}

/** What a running VM said and did; it is ended with the test. */
export function watch(t: TestContext, vm: RunningVm) {
  const events: VmEvent[] = [];
  let text = '';
  let socket: Socket | null = null;
  vm.onEvent((event) => events.push(event));
  t.after(() => vm.stop({ graceful: false }).catch(() => {}));
  const until = async (what: string, isSo: () => Promise<boolean> | boolean) => {
    const deadlineMs = systemClock.monotonicMs() + BOOT_TIMEOUT_MS;
    while (!(await isSo())) {
      if (systemClock.monotonicMs() > deadlineMs)
        assert.fail(`not within ${BOOT_TIMEOUT_MS} ms: ${what}; console: ${text}`);
      await systemClock.sleep(50);
    }
  };
  return {
    events,
    /** Waits until the console shows the text anew, and forgets what it showed. */
    untilSaid: async (words: RegExp) => {
      await until(String(words), async () => {
        text += (await vm.readConsole?.()) ?? '';
        return words.test(text);
      });
      const said = text;
      text = '';
      return said;
    },
    until,
    untilEvent: (kind: VmEvent['kind']) => until(kind, () => events.some((event) => event.kind === kind)),
    order: (word: string) => {
      // QEMU serves one client of a socket; a second would wait for the first to leave.
      socket ??= connectFor(t, vm.channelSocket);
      socket.write(`${word}\n`);
    },
  };
}

function connectFor(t: TestContext, path: string): Socket {
  const socket = connect(path);
  socket.on('error', () => {});
  t.after(() => socket.destroy());
  return socket;
}
