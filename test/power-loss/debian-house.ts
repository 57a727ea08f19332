// One host with real Debian guests for a test: the mirror of this machine's own apt as vendor, and what is left on a guest's disk.
import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { buildAgent } from '../../guest-agent/build.ts';
import { PARTITION_SECTOR } from '../../images/boot-disk.ts';
import { HELLO_SEEDED_VERSION } from '../../images/hello-product.ts';
import { type AnyImage, buildImage, type ImageName } from '../../images/images.ts';
import { makeVmParts } from '../../images/vm-parts.ts';
import { type DemoDaemon, makeDemoDaemon } from '../../proxy/demo/demo-daemon.ts';
import { DEMO_BRIDGE, type DemoNetwork, makeDemoNetwork, waitUntil } from '../../proxy/demo/demo-network.ts';
import { startDemoVendor } from '../../proxy/demo/demo-vendor.ts';
import { debianVendor } from '../../proxy/demo/pending.ts';
import type { RunStateName, VmEventRecord } from '../../proxy/service.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { type ProcessId, parseProcessId } from '../../src/base/process-id.ts';
import { runCommand, tryCommand } from '../../src/base/run-command.ts';
import type { ManagedVm } from '../../src/hypervisor/vm-spec.ts';
import type { VmId } from '../../src/model/ids.ts';
import type { Policy } from '../../src/model/policy.ts';

/** An emulated guest on a busy machine boots, installs, is cut off and does it again. */
const SETTLE_TIMEOUT_MS = 900_000;
const EVENTS_MAX = 1_000;
const ROOT = process.getuid?.() === 0;

export type DebianGuest = {
  readonly vm: VmId;
  readonly start: () => Promise<void>;
  /** The state when the VM is connected, quarantined or off. */
  readonly settle: () => Promise<RunStateName>;
  readonly events: () => Promise<readonly VmEventRecord[]>;
  /** Resolves when the run has come to a state. */
  readonly reach: (state: RunStateName) => Promise<VmEventRecord>;
  readonly qemu: () => Promise<ProcessId>;
  readonly why: () => Promise<string>;
  /** A page that the guest serves. */
  readonly page: (path: string) => Promise<string>;
  /** What dpkg in the guest has installed, asked over its network. */
  readonly versions: () => Promise<ReadonlyMap<string, string>>;
  /** Ends the VM by force and reads its disk: what fsck and dpkg say of it after the journal was replayed. */
  readonly examine: () => Promise<{
    readonly fsck: string;
    readonly audit: string;
    readonly interrupted: readonly string[];
  }>;
};

/** Files put into a VM's own disk by their paths, and links (`-> target`). */
export type Taught = Readonly<Record<string, string>>;

export type DebianHouse = {
  readonly daemon: DemoDaemon;
  readonly image: AnyImage;
  readonly network: DemoNetwork;
  readonly addVm: (policy?: Partial<Policy>, files?: Taught) => Promise<DebianGuest>;
  readonly close: () => Promise<void>;
};

/** Makes the host with its vendor checked. */
export async function makeDebianHouse(name: Exclude<ImageName, 'tiny'> = 'debian'): Promise<DebianHouse> {
  const cacheFolder = defaultCacheFolder();
  await mkdir(cacheFolder, { recursive: true });
  const agent = await buildAgent({ cacheFolder, log: silentLog });
  const image = await buildImage({ name, agentPath: agent.path, cacheFolder, log: silentLog });
  assert(image.debian !== null);
  const folder = await mkdtemp(join(ROOT ? '/var/tmp' : tmpdir(), 'pratique-debian-'));
  await chmod(folder, 0o711);
  const runFolder = await mkdtemp(join(ROOT ? '/run' : tmpdir(), 'pqd'));
  const network = await makeDemoNetwork({ folder, clock: systemClock, prefix: 'pqdebian' });
  // The image comes with a product of its own beside Debian's; it is up to date.
  const own = {
    folder: join(folder, 'vendor'),
    version: HELLO_SEEDED_VERSION,
    behaviour: 'ok',
    clock: systemClock,
  } as const;
  const hello = await startDemoVendor(own);
  const configuration = {
    vendors: [debianVendor(image.debian), hello.config],
    diskRoots: [folder, ...image.disks.map(({ path }) => dirname(path)), cacheFolder],
  };
  const daemon = await makeDemoDaemon({ folder, runFolder, configuration, clock: systemClock });
  const guests: DebianGuest[] = [];
  const close = async (): Promise<void> => {
    for (const { vm } of guests) await daemon.service.stopVm(vm, { force: true }).catch(() => {});
    await daemon.stop();
    await hello.close();
    await network.close();
    await rm(folder, { recursive: true, force: true });
    await rm(runFolder, { recursive: true, force: true });
  };
  try {
    await daemon.start();
    await daemon.service.checkVendor(null);
  } catch (error) {
    await close();
    throw error;
  }
  return {
    daemon,
    image,
    network,
    close,
    addVm: async (policy = {}, files = {}) => {
      const number = guests.length + 2;
      const guest = await addVm({ daemon, image, network, folder, runFolder, policy, files, number });
      guests.push(guest);
      return guest;
    },
  };
}

type Parts = {
  readonly daemon: DemoDaemon;
  readonly image: AnyImage;
  readonly network: DemoNetwork;
  readonly folder: string;
  readonly runFolder: string;
  readonly policy: Partial<Policy>;
  readonly files: Taught;
  readonly number: number;
};

async function addVm(parts: Parts): Promise<DebianGuest> {
  const { daemon, image, network, folder, runFolder, policy, number } = parts;
  const { service } = daemon;
  const vm = `debian${number}` as VmId; // Letters and digits are a VM's name.
  const address = `10.77.0.${number}`;
  const wishes = { address: `${address}/24` };
  const made = await makeVmParts({ image, folder: join(folder, 'disks'), vm, wishes });
  const own = { ...made, disks: await teach(made.disks, parts) };
  const mac = `52:54:00:79:00:${number.toString(16).padStart(2, '0')}`;
  await service.addVm(
    {
      ...{ format: 'pratique.vm/1', kind: 'managed', vm, machine: 'q35', cpus: 1 },
      ...own,
      nics: [{ id: 'net0', model: 'virtio-net-pci', mac, bridge: DEMO_BRIDGE }],
      namespace: network.namespace,
    },
    policy,
  );
  const events = async () => await service.pastEvents({ vm, afterSeq: 0, limit: EVENTS_MAX });
  const story = async () => (await events()).map(({ atMs, state, text }) => `${atMs} ${state}: ${text}`).join('\n');
  const page = async (path: string): Promise<string> => {
    const text = await network.fetchPage(`http://${address}${path}`, 300_000);
    assert(text !== null, `${vm} serves no page ${path}`);
    return text;
  };
  return {
    vm,
    events,
    start: async () => void (await service.startVm(vm)),
    why: async () => `${(await service.whyVm(vm)).reason}\n${await story()}`,
    settle: async () => {
      let state: RunStateName = 'booting';
      const isSettled = await waitUntil(systemClock, SETTLE_TIMEOUT_MS, async () => {
        state = (await service.showVm(vm)).state;
        return ['connected', 'quarantined', 'off'].includes(state);
      });
      assert(isSettled, `${vm} did not settle:\n${await story()}`);
      return state;
    },
    reach: async (state) => {
      let found: VmEventRecord | undefined;
      const isThere = await waitUntil(systemClock, SETTLE_TIMEOUT_MS, async () => {
        found = (await events()).find(({ kind, text }) => kind === 'state' && text.startsWith(state));
        return found !== undefined;
      });
      assert(isThere && found !== undefined, `${vm} did not come to ${state}:\n${await story()}`);
      return found;
    },
    qemu: async () => {
      const found = parseProcessId(await readFile(join(runFolder, 'vm', vm, 'pid'), 'utf8'));
      assert(found !== null);
      return found;
    },
    page,
    versions: async () => {
      const text = await page('/cgi-bin/versions');
      return new Map(
        text
          .trim()
          .split('\n')
          .map((line) => pairOf(line)),
      );
    },
    examine: async () => {
      await service.stopVm(vm, { force: true });
      const [disk] = own.disks;
      assert(disk !== undefined);
      return await examineDisk(disk.path, disk.format, await mkdtemp(join(folder, 'disk-')));
    },
  };
}

/** The disks with the files in the first of them, which is then raw. */
async function teach(disks: ManagedVm['disks'], { image, folder, files }: Parts): Promise<ManagedVm['disks']> {
  const [disk, ...others] = disks;
  if (disk === undefined || Object.keys(files).length === 0) return disks;
  const raw = `${disk.path}.raw`;
  await runCommand(['qemu-img', 'convert', '-f', disk.format, '-O', 'raw', disk.path, raw], { timeoutMs: 300_000 });
  const source = await mkdtemp(join(folder, 'taught-'));
  const requests: string[] = [];
  for (const [index, [target, content]] of Object.entries(files).entries()) {
    const path = join(source, String(index));
    await writeFile(path, content);
    // debugfs goes on after what cannot be done: a folder that is there.
    requests.push(`mkdir ${dirname(target)}`);
    requests.push(content.startsWith('-> ') ? `symlink ${target} ${content.slice(3)}` : `write ${path} ${target}`);
  }
  const device = image.kernel === null ? `${raw}?offset=${PARTITION_SECTOR * 512}` : raw;
  await runCommand(['debugfs', '-w', '-f', '-', device], { input: `${requests.join('\n')}\n` });
  return [{ ...disk, path: raw, format: 'raw' }, ...others];
}

function pairOf(line: string): [string, string] {
  const [name = '', version = ''] = line.split(' ');
  return [name, version];
}

/** A copy of the disk, as the next mount would find it. */
async function examineDisk(path: string, format: string, folder: string) {
  const raw = join(folder, 'disk.raw');
  await runCommand(['qemu-img', 'convert', '-f', format, '-O', 'raw', path, raw], { timeoutMs: 300_000 });
  // What a mount does first; everything that is wrong beyond that is a fault.
  await tryCommand(['/sbin/e2fsck', '-E', 'journal_only', '-p', raw], { timeoutMs: 300_000 });
  const checked = await tryCommand(['/sbin/e2fsck', '-f', '-n', raw], { timeoutMs: 300_000 });
  await runCommand(['debugfs', '-R', `rdump /var/lib/dpkg ${folder}`, raw], { timeoutMs: 300_000 });
  const admin = join(folder, 'dpkg');
  const audit = await runCommand(['dpkg', `--admindir=${admin}`, '--audit']);
  const status = await readFile(join(admin, 'status'), 'utf8');
  const interrupted = status
    .split('\n\n')
    .filter((stanza) => /^Status: /m.test(stanza) && !/^Status: (install|hold) ok installed$/m.test(stanza));
  await rm(folder, { recursive: true, force: true });
  return { fsck: checked.exitCode === 0 ? '' : `${checked.stdout}\n${checked.stderr}`, audit, interrupted };
}
