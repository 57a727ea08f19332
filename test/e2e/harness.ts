// One host with real VMs for a test: a network of its own, a vendor that publishes and falls silent on demand, a daemon that can be
// killed, guests that obey orders, and the frames of each guest as the kernel of a peer on the bridge received them.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { chmod, mkdir, mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import type { TestContext } from 'node:test';
import { buildAgent } from '../../guest-agent/build.ts';
import { type HelloBehaviour, makeHelloBundle } from '../../images/hello-product.ts';
import { buildImage, type GuestImage, guestCommandLine, makeVmDisk } from '../../images/images.ts';
import type { KernelFlavour } from '../../images/kernel.ts';
import { type DemoDaemon, makeDemoDaemon } from '../../proxy/demo/demo-daemon.ts';
import {
  DEMO_BRIDGE,
  type DemoNetwork,
  makeDemoNetwork,
  type SeenFrame,
  waitUntil,
} from '../../proxy/demo/demo-network.ts';
import type { AuditEntry, RunStateName, Service, VmEventRecord } from '../../proxy/service.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { isAlive, type ProcessId, parseProcessId } from '../../src/base/process-id.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { makeDriveExports } from '../../src/drive/drive.ts';
import type { ManagedVm, VmSpec } from '../../src/hypervisor/vm-spec.ts';
import type { VmId } from '../../src/model/ids.ts';
import type { Policy } from '../../src/model/policy.ts';
import { publishFolder } from '../../src/vendor/tuf/publish.ts';
import { type FakeHttpServer, startHttpServer } from '../fakes/http-server.ts';

/** Emulated guests on a busy machine: a boot alone may take half of it. */
const SETTLE_TIMEOUT_MS = 120_000;
const EVENTS_MAX = 500;
const ROOT = process.getuid?.() === 0;

/** What a guest can be told from outside while its cable is unplugged. */
export type Order =
  /** At once and without a word, as the reset button does it. */
  | 'reset'
  | 'reboot'
  | 'poweroff'
  /** For a test's own program that waits for it. */
  | 'done';

export type Release = {
  readonly version: string;
  readonly behaviour?: HelloBehaviour;
  /** Seconds that its install entry takes. */
  readonly installSeconds?: number;
  /** Bytes of a further file in it; a small release is packed into the drive, a large one is shown from the store itself. */
  readonly paddingBytes?: number;
  /** Shell lines that its install entry runs first. */
  readonly installLines?: string;
};

/** What a house is to be otherwise. */
export type HouseWishes = {
  /** Keys of the daemon's configuration besides the usual ones. */
  readonly configuration?: Readonly<Record<string, unknown>>;
  /** Words for Node before the daemon's program. */
  readonly nodeFlags?: readonly string[];
  /** Done in the house's folder before the daemon starts; returns what undoes it, after the daemon has ended. */
  readonly prepare?: (folder: string) => Promise<() => Promise<void>>;
};

export type VmOptions = {
  readonly hasAgent?: boolean;
  readonly policy?: Partial<Policy>;
  /** Programs put into the VM's own disk, by their paths in the guest; those that are there are replaced. */
  readonly programs?: Readonly<Record<string, string | Uint8Array>>;
  /** What the VM is to be instead; may start a QEMU of its own and return the spec by which to attach it. */
  readonly change?: (spec: ManagedVm) => VmSpec | Promise<VmSpec>;
};

export type House = {
  readonly folder: string;
  readonly runFolder: string;
  readonly daemon: DemoDaemon;
  readonly service: Service;
  readonly server: FakeHttpServer;
  /** Publishes a release and lets the daemon see it, if it runs. */
  readonly publish: (release: Release) => Promise<void>;
  /** The same for a release folder that the test made. */
  readonly publishFolder: (source: string) => Promise<void>;
  readonly addVm: (options?: VmOptions) => Promise<TestVm>;
  readonly close: () => Promise<void>;
};

export type TestVm = {
  readonly vm: VmId;
  readonly start: () => Promise<void>;
  /** Resolves as soon as the state is reached (anew, if it was reached before the last call). */
  readonly reach: (state: RunStateName) => Promise<void>;
  /** Resolves with the state when the VM is connected, quarantined or off; the daemon may be away meanwhile. */
  readonly settle: () => Promise<RunStateName>;
  /** Resolves when an event's text matches that came after the last `reach` or `hear`. */
  readonly hear: (words: RegExp) => Promise<VmEventRecord>;
  readonly events: () => Promise<readonly VmEventRecord[]>;
  readonly audit: () => Promise<readonly AuditEntry[]>;
  readonly qemu: () => Promise<ProcessId>;
  readonly order: (order: Order) => Promise<void>;
  readonly frames: () => Promise<readonly SeenFrame[]>;
  /** Frames at the peer that came while nothing had opened the gate. */
  readonly strayFrames: () => Promise<readonly SeenFrame[]>;
  /** Resolves when a frame arrives that was sent from now on: the positive control. */
  readonly isHeard: () => Promise<boolean>;
  /** The version that it serves over the network; null when nobody answers. */
  readonly served: () => Promise<string | null>;
  /** A page that it serves; null when nobody answers. */
  readonly page: (path: string) => Promise<string | null>;
  /** The state in the journal on disk, whether or not a daemon runs. */
  readonly journaledState: () => RunStateName;
};

const built = new Map<KernelFlavour, Promise<GuestImage>>();
let houses = 0;

async function tinyImage(kernelFlavour: KernelFlavour): Promise<GuestImage> {
  const cacheFolder = defaultCacheFolder();
  await mkdir(cacheFolder, { recursive: true });
  const agent = await buildAgent({ cacheFolder, log: silentLog });
  return await buildImage({ name: 'tiny', agentPath: agent.path, cacheFolder, log: silentLog, kernelFlavour });
}

/** Makes the host with its first release published and its daemon running; nothing is left of it when that fails. */
export async function makeHouse(
  release: Release,
  kernelFlavour: KernelFlavour = 'cloud',
  wishes: HouseWishes = {},
): Promise<House> {
  const building = built.get(kernelFlavour) ?? tinyImage(kernelFlavour);
  built.set(kernelFlavour, building);
  houses += 1;
  const image = await building;
  const folder = await mkdtemp(join(ROOT ? '/var/tmp' : tmpdir(), 'pratique-e2e-'));
  const runFolder = await mkdtemp(join(ROOT ? '/run' : tmpdir(), 'pqe'));
  const endings: (() => Promise<void>)[] = [
    async () => await rm(folder, { recursive: true, force: true }),
    async () => await rm(runFolder, { recursive: true, force: true }),
  ];
  const close = async () => {
    for (let end = endings.pop(); end !== undefined; end = endings.pop()) await end();
  };
  try {
    return await furnish({ release, image, folder, runFolder, endings, close, wishes });
  } catch (error) {
    await close();
    throw error;
  }
}

type Ground = {
  readonly release: Release;
  readonly image: GuestImage;
  readonly folder: string;
  readonly runFolder: string;
  /** What ends each part, in the order of making. */
  readonly endings: (() => Promise<void>)[];
  readonly close: () => Promise<void>;
  readonly wishes: HouseWishes;
};

async function furnish({ release, image, folder, runFolder, endings, close, wishes }: Ground): Promise<House> {
  for (const each of [folder, runFolder]) await chmod(each, 0o711);
  const vendor = await makeVendor(folder, release);
  endings.push(vendor.server.close);
  const network = await makeDemoNetwork({ folder, clock: systemClock, prefix: `pqe2e${houses}-` });
  endings.push(network.close);
  const configuration = {
    vendors: [vendor.config],
    diskRoots: [folder, dirname(image.kernel), defaultCacheFolder()],
    ...wishes.configuration,
  };
  if (wishes.prepare !== undefined) endings.push(await wishes.prepare(folder));
  const { nodeFlags = [] } = wishes;
  const daemon = await makeDemoDaemon({ folder, runFolder, configuration, clock: systemClock, nodeFlags });
  const { service } = daemon;
  const vms: TestVm[] = [];
  endings.push(async () => {
    const left = await Promise.all(vms.map((vm) => vm.qemu().catch(() => null)));
    await daemon.kill();
    for (const qemu of left) if (qemu !== null && (await isAlive(qemu))) process.kill(qemu.pid, 'SIGKILL');
    // What a test that failed left of exported drives: no VM is known any more.
    await makeDriveExports({ runFolder, clock: systemClock, log: silentLog }).recover(new Set());
  });
  await daemon.start();
  await service.checkVendor(null);
  return {
    folder,
    runFolder,
    daemon,
    service,
    server: vendor.server,
    publish: async (next) => {
      await vendor.publish(next);
      await service.checkVendor(null);
    },
    publishFolder: async (source) => {
      await vendor.publishSource(source);
      await service.checkVendor(null);
    },
    addVm: async (options = {}) => {
      const vm = await addVm({ folder, runFolder, image, network, service, number: vms.length + 2, ...options });
      vms.push(vm);
      return vm;
    },
    close,
  };
}

async function makeVendor(folder: string, first: Release) {
  const repository = join(folder, 'repository');
  await mkdir(repository);
  const publishSource = async (source: string) => {
    const keys = join(folder, 'keys');
    return await publishFolder({ source, repository, keys, clock: systemClock, compression: 'none' });
  };
  const publish = async (release: Release) => {
    const source = join(folder, `release-${release.version}`);
    await makeHelloBundle({ version: release.version, folder: source, behaviour: release.behaviour ?? 'ok' });
    const lines = `sleep ${release.installSeconds ?? 0}\n${release.installLines ?? ''}`;
    await runFirst(join(source, 'files/bin/install'), lines);
    await writeFile(join(source, 'files/padding'), randomBytes(release.paddingBytes ?? 0));
    return await publishSource(source);
  };
  const { rootPath } = await publish(first);
  const server = await startHttpServer(repository);
  const { url } = server;
  return {
    config: { kind: 'tuf', name: 'demo', metadataUrl: `${url}/metadata`, targetsUrl: `${url}/targets`, rootPath },
    server,
    publish,
    publishSource,
  };
}

async function runFirst(script: string, lines: string): Promise<void> {
  const text = await readFile(script, 'utf8');
  await writeFile(
    script,
    text.replace('set -eu\n', () => `set -eu\n${lines}\n`),
  );
}

/**
 * Put into a VM's own disk: follows orders on a second disk, which the host writes and the guest only reads, so that it needs
 * neither network nor channel. An order's number is on disk before it is obeyed: no boot obeys it again.
 */
const ORDERS = `#!/bin/busybox sh
bb=/bin/busybox
obeyed=$($bb cat /var/lib/orders-obeyed 2>/dev/null)
while :; do
  set -- $($bb dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null)
  if [ "\${1:-none}" != none ] && [ "$1" != "$obeyed" ]; then
    obeyed=$1
    echo "$1" >/var/lib/orders-obeyed
    $bb sync
    case $2 in
      reset) echo b >/proc/sysrq-trigger ;;
      reboot) /sbin/reboot ;;
      poweroff) /sbin/poweroff ;;
    esac
  fi
  $bb usleep 100000
done
`;
const ORDERS_BYTES = 64 * 1024;

async function teach(
  folder: string,
  disk: string,
  programs: Readonly<Record<string, string | Uint8Array>>,
): Promise<void> {
  const inittab = await readFile(join(import.meta.dirname, '../../images/guest/inittab'), 'utf8');
  const files = {
    '/usr/lib/pratique-guest/orders': ORDERS,
    '/etc/inittab': inittab.replace(/(?=::respawn)/, '::respawn:/usr/lib/pratique-guest/orders\n'),
    ...programs,
  };
  const source = await mkdtemp(join(folder, 'taught-'));
  const requests: string[] = [];
  for (const [index, [target, content]] of Object.entries(files).entries()) {
    const path = join(source, String(index));
    await writeFile(path, content);
    // debugfs goes on after what cannot be done: a folder that is there, a file that is not.
    requests.push(`mkdir ${dirname(target)}`, `rm ${target}`, `write ${path} ${target}`);
    requests.push(`set_inode_field ${target} mode 0100755`);
  }
  await runCommand(['debugfs', '-w', '-f', '-', disk], { input: `${requests.join('\n')}\n` });
}

type VmParts = {
  readonly folder: string;
  readonly runFolder: string;
  readonly image: GuestImage;
  readonly network: DemoNetwork;
  readonly service: Service;
  readonly number: number;
} & VmOptions;

async function addVm(parts: VmParts): Promise<TestVm> {
  const { folder, runFolder, image, network, service, number } = parts;
  const vm = `guest${number}` as VmId; // Letters and digits are a VM's name.
  const address = `10.77.0.${number}`;
  const mac = `52:54:00:78:00:${number.toString(16).padStart(2, '0')}`;
  const disk = await makeVmDisk({ image, folder: join(folder, 'disks'), vm });
  await teach(folder, disk.path, parts.programs ?? {});
  const ordersPath = join(folder, 'disks', `${vm}-orders`);
  await writeFile(ordersPath, Buffer.alloc(ORDERS_BYTES));
  const wishes = { address: `${address}/24`, chatter: true } as const;
  const words = parts.hasAgent === false ? ({ ...wishes, mode: 'no-agent' } as const) : wishes;
  const spec: ManagedVm = {
    format: 'pratique.vm/1',
    kind: 'managed',
    vm,
    machine: 'q35',
    memoryMiB: image.memoryMiB,
    cpus: 1,
    kernel: { image: image.kernel, initrd: image.initrd, commandLine: guestCommandLine(image, words) },
    disks: [disk, { id: 'orders', path: ordersPath, format: 'raw', readOnly: true }],
    nics: [{ id: 'net0', model: 'virtio-net-pci', mac, bridge: DEMO_BRIDGE }],
    namespace: network.namespace,
  };
  await service.addVm((await parts.change?.(spec)) ?? spec, parts.policy ?? {});
  return handleOf({ ...parts, vm, mac, address, ordersPath, runFolder });
}

type HandleParts = VmParts & {
  readonly vm: VmId;
  readonly mac: string;
  readonly address: string;
  readonly ordersPath: string;
};

function handleOf(parts: HandleParts): TestVm {
  const { vm, service, network, mac } = parts;
  let after = 0;
  let orders = 0;
  const events = async () => await service.pastEvents({ vm, afterSeq: 0, limit: EVENTS_MAX });
  const audit = async () => await service.auditEntries({ vm, afterSeq: 0, limit: EVENTS_MAX });
  const frames = async () => await network.framesFrom(mac);
  const page = async (path: string) => await network.fetchPage(`http://${parts.address}${path}`, 30_000);
  const find = async (what: string, isIt: (event: VmEventRecord) => boolean): Promise<VmEventRecord> => {
    const found = await findEvent({ service, vm, after, isIt });
    if (found === null) assert.fail(`${vm}: not within ${SETTLE_TIMEOUT_MS} ms: ${what}; ${await story(service, vm)}`);
    after = found.seq;
    return found;
  };
  return {
    vm,
    start: async () => void (await service.startVm(vm)),
    reach: async (state) => void (await find(state, (event) => event.kind === 'state' && event.text.startsWith(state))),
    hear: async (words) => await find(String(words), (event) => words.test(event.text)),
    settle: async () => {
      let state: RunStateName = 'booting';
      const isSettled = await waitUntil(systemClock, SETTLE_TIMEOUT_MS, async () => {
        state = (await service.showVm(vm).catch(() => null))?.state ?? 'booting';
        return ['connected', 'quarantined', 'off', 'staged'].includes(state);
      });
      if (!isSettled) assert.fail(`${vm} did not settle; ${await story(service, vm)}`);
      return state;
    },
    events,
    audit,
    qemu: async () => {
      const text = await readFile(join(parts.runFolder, 'vm', vm, 'pid'), 'utf8');
      const qemu = parseProcessId(text);
      assert(qemu !== null, `${vm}: its pid file says ${text}`);
      return qemu;
    },
    order: async (order) => {
      orders += 1;
      await writeSector(parts.ordersPath, `${orders} ${order} `);
    },
    frames,
    strayFrames: async () => strayFrames(await frames(), await events(), await audit()),
    isHeard: async () => {
      const sinceMs = systemClock.nowMs();
      const isLater = async () => (await frames()).some((frame) => frame.atMs > sinceMs);
      return await waitUntil(systemClock, SETTLE_TIMEOUT_MS, isLater);
    },
    served: async () => await page('/version'),
    page,
    journaledState: () => readJournaledState(join(parts.folder, 'data/pratique.db'), vm),
  };
}

/** The first event after a number that is the one; follows the stream, again and again while the daemon is away. */
async function findEvent(options: {
  readonly service: Service;
  readonly vm: VmId;
  readonly after: number;
  readonly isIt: (event: VmEventRecord) => boolean;
}): Promise<VmEventRecord | null> {
  const { service, vm, after, isIt } = options;
  const limit = new AbortController();
  const cancel = systemClock.after(SETTLE_TIMEOUT_MS, () => limit.abort());
  try {
    while (!limit.signal.aborted) {
      try {
        for await (const event of service.followEvents({ vm, afterSeq: after, signal: limit.signal })) {
          if (isIt(event)) return event;
        }
      } catch {
        await systemClock.sleep(100); // The daemon is being started again.
      }
    }
    return null;
  } finally {
    cancel();
    limit.abort();
  }
}

async function story(service: Service, vm: VmId): Promise<string> {
  const events = await service.pastEvents({ vm, afterSeq: 0, limit: EVENTS_MAX }).catch(() => []);
  return `its story:\n${events.map(({ atMs, state, text }) => `${atMs} ${state}: ${text}`).join('\n')}`;
}

async function writeSector(path: string, text: string): Promise<void> {
  const file = await open(path, 'r+');
  await file.write(Buffer.from(text.padEnd(511)), 0, 511, 0);
  await file.close();
}

/** Frames outside of the times from a decision to plug in (audit chain) to the end of the next closing (events). */
function strayFrames(
  frames: readonly SeenFrame[],
  events: readonly VmEventRecord[],
  audit: readonly AuditEntry[],
): readonly SeenFrame[] {
  const opened = audit
    .filter(({ record }) => record.kind === 'gate-opened' || record.kind === 'override')
    .map(({ atMs }) => atMs);
  const closed = events
    .filter(({ kind, text }) => kind === 'gate' && text.startsWith('closed'))
    .map(({ atMs }) => atMs);
  const isStray = ({ atMs }: SeenFrame): boolean => {
    const lastOpen = opened.findLast((openMs) => openMs <= atMs);
    return lastOpen === undefined || closed.some((closedMs) => closedMs >= lastOpen && closedMs < Math.floor(atMs));
  };
  return frames.filter(isStray);
}

function readJournaledState(path: string, vm: VmId): RunStateName {
  const db = new DatabaseSync(path, { readOnly: true });
  try {
    const row = db.prepare('SELECT state FROM run_state WHERE vm = ?').get(vm);
    assert(row !== undefined && typeof row.state === 'string', `${vm} is not in the journal`);
    // The cast holds: the journal's states carry their kind.
    return (JSON.parse(row.state) as { readonly kind: RunStateName }).kind;
  } finally {
    db.close();
  }
}

/** Ends a process as a crash would, and waits until it is gone. */
export async function crash(victim: ProcessId): Promise<void> {
  process.kill(victim.pid, 'SIGKILL');
  assert(await waitUntil(systemClock, 10_000, async () => !(await isAlive(victim))), `process ${victim.pid} lives on`);
}

/** A house that the test's end takes down. */
export async function openHouse(
  t: TestContext,
  release: Release,
  kernelFlavour: KernelFlavour = 'cloud',
): Promise<House> {
  const made = await makeHouse(release, kernelFlavour);
  t.after(made.close);
  return made;
}

/** The VM is plugged in with this version, serves it, and nothing of it arrived anywhere while the gate was closed. */
export async function assertConnected(vm: TestVm, version: string): Promise<void> {
  assert.equal(await vm.settle(), 'connected');
  assert.equal(await vm.served(), version);
  assert(await vm.isHeard(), 'positive control: its frames arrive now');
  assert.deepEqual(await vm.strayFrames(), []);
}
