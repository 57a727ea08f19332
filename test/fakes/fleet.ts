// A fleet on one host: fake QEMUs and scripted agents in this process, real taps on a real bridge in a namespace of their own.
// The daemon under test attaches to them over the same sockets and the same kernel table as to real VMs.
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Duplex } from 'node:stream';
import { systemClock } from '../../src/base/clock.ts';
import { digestOf } from '../../src/base/digest.ts';
import type { HostMessage, HostMessageOf } from '../../src/guest/messages.ts';
import type { AttachedVm } from '../../src/hypervisor/vm-spec.ts';
import type { VmId } from '../../src/model/ids.ts';
import type { Inventory } from '../../src/model/inventory.ts';
import { makeNamespace, type TestNamespace } from './namespace.ts';
import { type FakeQemu, startFakeQemu } from './qemu.ts';
import { type AgentDisk, type Behaviour, makeAgentDisk, runScriptedAgent } from './scripted-agent.ts';

/** Moments of one VM in this process's monotonic time; NaN until they have come. */
export type FleetTimes = {
  /** The agent said that it let go of the drive. */
  releasedMs: number;
  /** QEMU said that the device is gone (the DEVICE_DELETED with the id). */
  deletedMs: number;
  /** QEMU was told to close the image behind the drive, which ends the detaching. */
  closedMs: number;
  /** `set_link up` arrived at QEMU. */
  linkUpMs: number;
};

export type FleetVm = {
  readonly spec: AttachedVm;
  readonly behaviour: Behaviour;
  readonly qemu: FakeQemu;
  readonly disk: AgentDisk;
  readonly times: FleetTimes;
  /** What the host told the agent last about the gate; null before it said anything. */
  readonly verdict: () => 'admitted' | 'hold' | null;
};

export type Fleet = {
  readonly vms: readonly FleetVm[];
  readonly net: TestNamespace;
  /** Resolves once each of these agents was told whether it is admitted. */
  readonly allTold: (vms: readonly FleetVm[], timeoutMs: number) => Promise<boolean>;
  /** With `holdsRelease`: how many agents wait to let go of their drive, and the word that lets them all. */
  readonly waiting: () => number;
  readonly letGo: () => void;
  /** Taps in the kernel's set of admitted ones. */
  readonly admittedTaps: () => Promise<ReadonlySet<string>>;
  readonly close: () => Promise<void>;
};

export type FleetOptions = {
  readonly count: number;
  /** For the sockets; a short path. */
  readonly folder: string;
  readonly behaviourOf?: (index: number) => Behaviour;
  /** Agents do not let go of the drive before `letGo`. */
  readonly holdsRelease?: boolean;
  /** The version of the product `hello` that every VM has. */
  readonly version: string;
};

const BRIDGE = 'fleetbr0';

/** Starts the fleet: every QEMU waits before its first instruction, as after `-S`. */
export async function startFleet(options: FleetOptions): Promise<Fleet> {
  const net = await makeNamespace();
  const barrier = makeBarrier(options.holdsRelease === true);
  const vms: FleetVm[] = [];
  try {
    await makeTaps(
      net,
      Array.from({ length: options.count }, (_, index) => tapOf(index)),
    );
    for (let index = 0; index < options.count; index += 1) vms.push(await startVm(index, options, net, barrier.wait));
  } catch (error) {
    await net.close();
    throw error;
  }
  return {
    vms,
    net,
    allTold: async (wanted, timeoutMs) => {
      const until = systemClock.monotonicMs() + timeoutMs;
      const isTold = () => wanted.every((vm) => vm.verdict() !== null);
      while (!isTold() && systemClock.monotonicMs() < until) await systemClock.sleep(20);
      return isTold();
    },
    waiting: barrier.waiting,
    letGo: barrier.letGo,
    admittedTaps: () => readAdmitted(net),
    close: async () => {
      await Promise.all(vms.map((vm) => vm.qemu.close()));
      await net.close();
    },
  };
}

/** Names of somebody else's choice, as attached VMs have them: the standing rules do not cover them, they are guarded one by one. */
const tapOf = (index: number): string => `vmtap${index}`;

/** Makes the bridge and these taps on it. */
export async function makeTaps(net: TestNamespace, taps: readonly string[]): Promise<void> {
  await net.ip(
    `link add ${BRIDGE} type bridge forward_delay 0 mcast_snooping 0`,
    `link set ${BRIDGE} up`,
    ...taps.flatMap((tap) => [
      `tuntap add dev ${tap} mode tap`,
      `link set dev ${tap} addrgenmode none`,
      `link set dev ${tap} master ${BRIDGE} up`,
    ]),
  );
}

async function startVm(
  index: number,
  options: FleetOptions,
  net: TestNamespace,
  beforeRelease: () => Promise<void>,
): Promise<FleetVm> {
  const { folder } = options;
  const qmpSocket = join(folder, `q${index}`);
  const channelSocket = join(folder, `c${index}`);
  const behaviour = options.behaviourOf?.(index) ?? 'honest';
  const disk = makeAgentDisk(inventoryWith(options.version));
  const times: FleetTimes = {
    releasedMs: Number.NaN,
    deletedMs: Number.NaN,
    closedMs: Number.NaN,
    linkUpMs: Number.NaN,
  };
  let verdict: 'admitted' | 'hold' | null = null;
  const onMessage = (message: HostMessage): void => {
    if (message.type === 'admitted' || message.type === 'hold') verdict = message.type;
  };
  const boot = makeBoot((stream) =>
    runScriptedAgent(stream, {
      disk,
      boot: `00000000-0000-4000-8000-${String(index).padStart(12, '0')}`,
      behaviour,
      readManifest: (offer) => readManifest(qemu, offer),
      onMessage,
      beforeRelease: async () => {
        await beforeRelease();
        times.releasedMs = systemClock.monotonicMs();
      },
    }),
  );
  const qemu: FakeQemu = await startFakeQemu({
    qmpSocket,
    channelSocket,
    nics: [{ id: 'net0', tap: tapOf(index) }],
    ports: ['spare0'],
    onChannel: boot.connected,
    onCommand: (command, args) => {
      if (command === 'blockdev-del') times.closedMs = systemClock.monotonicMs();
      if (command === 'set_link' && args.up === true) times.linkUpMs = systemClock.monotonicMs();
    },
    onEvent: (event, data) => {
      if (event === 'DEVICE_DELETED' && data.device !== undefined) times.deletedMs = systemClock.monotonicMs();
      if (event === 'RESUME') boot.started();
    },
  });
  const spec: AttachedVm = {
    format: 'pratique.vm/1',
    kind: 'attached',
    vm: `fleet-${index}` as VmId, // It has the form of a VmId.
    qmpSocket,
    channelSocket,
    nics: [{ id: 'net0', tap: tapOf(index) }],
    drivePort: 'spare0',
    namespace: net.namespace,
  };
  return { spec, behaviour, qemu, disk, times, verdict: () => verdict };
}

/** An agent speaks when both are there: a guest that runs, and a host at the other end of the wire. */
function makeBoot(startAgent: (stream: Duplex) => void) {
  let isRunning = false;
  let waiting: Duplex | null = null;
  const meet = (): void => {
    if (!isRunning || waiting === null) return;
    startAgent(waiting);
    waiting = null;
  };
  return {
    started: () => {
      isRunning = true;
      meet();
    },
    connected: (stream: Duplex) => {
      waiting = stream;
      meet();
    },
  };
}

function makeBarrier(isHolding: boolean) {
  const gone = Promise.withResolvers<void>();
  let waiting = 0;
  if (!isHolding) gone.resolve();
  return {
    waiting: () => waiting,
    letGo: gone.resolve,
    wait: async () => {
      waiting += 1;
      await gone.promise;
    },
  };
}

/** What mounting the drive would show: the manifest lies in the metadata file beside the image, up to the next zero byte. */
async function readManifest(qemu: FakeQemu, offer: HostMessageOf<'offer'>): Promise<string> {
  const file = qemu.nodes.get('pratique-image')?.file;
  if (typeof file !== 'object' || file === null || !('filename' in file)) return '';
  const bytes = await readFile(join(dirname(String(file.filename)), 'meta.bin'));
  const start = bytes.indexOf('{"extraFiles":');
  const end = bytes.indexOf(0, start);
  const text = start < 0 ? '' : bytes.subarray(start, end < 0 ? bytes.length : end).toString('utf8');
  if (digestOf(text) !== offer.manifestDigest)
    throw new Error('the drive does not hold the manifest that was announced');
  return text;
}

/** What a VM that has this version of the product `hello` reports. */
export function inventoryWith(version: string): Inventory {
  return {
    os: { id: 'tiny', versionId: '1', arch: 'amd64', kernel: '6.1.0' },
    products: [{ ecosystem: 'bundle', product: 'hello', version, state: 'installed' }],
    config: [],
    agent: { version: '0.1.0', digest: null },
    abilities: { drives: ['virtio-blk'], compressions: ['none', 'gzip'] },
    freeBytes: 1_000_000_000,
    rebootRequired: false,
    lastShutdown: null,
  };
}

/** Taps in the kernel's set of admitted ones. */
export async function readAdmitted(net: TestNamespace): Promise<ReadonlySet<string>> {
  const text = await net.run('nft', '-j', 'list', 'set', 'bridge', 'pratique', 'admitted');
  // The cast holds: libnftables-json(5).
  const { nftables } = JSON.parse(text) as { nftables: readonly { set?: { elem?: readonly string[] } }[] };
  return new Set(nftables.flatMap((entry) => entry.set?.elem ?? []));
}
