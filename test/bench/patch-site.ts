// What every way of patching is given, and what it must answer: the contract of the bench `patch`.
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { type GuestImage, guestCommandLine, makeVmDisk } from '../../images/images.ts';
import { DEMO_BRIDGE } from '../../proxy/demo/demo-network.ts';
import { runCommand } from '../../src/base/run-command.ts';
import type { Accelerator } from '../../src/hypervisor/qmp/accel.ts';
import type { ManagedVm } from '../../src/hypervisor/vm-spec.ts';
import type { VmId } from '../../src/model/ids.ts';
import { round } from './gate-figures.ts';
import type { Say } from './gate-fleet.ts';
import type { CountingMirror } from './patch-mirror.ts';
import { HOST_DEVICE, type PatchNetwork } from './patch-network.ts';

/** Milliseconds for one guest in any way of patching: emulated, and maybe ten at once. */
export const GUEST_TIMEOUT_MS = 1_800_000;

/** One package that is behind, and the version that every way of patching must bring it to. */
export type Update = { readonly name: string; readonly from: string; readonly to: string };

export type PatchSite = {
  /** Scratch, removed at the end. */
  readonly folder: string;
  readonly image: GuestImage;
  /** Debian's word for the image's release. */
  readonly suite: string;
  readonly mirror: CountingMirror;
  readonly network: PatchNetwork;
  readonly accelerator: Accelerator;
  readonly signal: AbortSignal;
  readonly say: Say;
  /** Only these packages and what they need; empty: everything that is pending. */
  readonly wanted: readonly string[];
  /** What Pratique found pending and installed; empty before its first guest. */
  updates: readonly Update[];
};

/** One guest of one way of patching: `number` decides its address, `name` its disk. */
export type Slot = { readonly name: VmId; readonly number: number };

/** Seconds of one guest. */
export type Patched = {
  /** From power-on (virt-customize: from its start) to the page with the right versions. */
  readonly seconds: number;
  readonly phases: Readonly<Record<string, number>>;
};

export type Method = {
  readonly name: string;
  /** One line for people. */
  readonly title: string;
  /** What was set in its favour. */
  readonly settings: readonly string[];
  /** Once per host, not part of a guest's time. Throws `NotMeasured` when this machine lacks something. */
  readonly prepare: (site: PatchSite) => Promise<void>;
  readonly patch: (site: PatchSite, slot: Slot) => Promise<Patched>;
  readonly close: () => Promise<void>;
};

/** Why a way of patching could not be measured here, and what to do about it. */
export class NotMeasured extends Error {
  readonly next: string;
  constructor(reason: string, next: string) {
    super(reason);
    this.next = next;
  }
}

export function addressOf({ number }: Slot): string {
  return `10.77.0.${10 + number}`;
}

/** The VM of a slot with a disk of its own; `image` may be a changed one. */
export async function specOf(
  site: PatchSite,
  slot: Slot,
  options: { readonly image?: GuestImage; readonly hasAgent: boolean },
): Promise<ManagedVm> {
  const image = options.image ?? site.image;
  const folder = join(site.folder, 'disks');
  await mkdir(folder, { recursive: true, mode: 0o711 });
  await knowNeighbour(site, slot);
  const disk = await makeVmDisk({ image, folder, vm: slot.name });
  const words = { address: `${addressOf(slot)}/24`, ...(options.hasAgent ? {} : { mode: 'no-agent' as const }) };
  return {
    format: 'pratique.vm/1',
    kind: 'managed',
    vm: slot.name,
    machine: 'q35',
    memoryMiB: image.memoryMiB,
    cpus: 1,
    kernel: { image: image.kernel, initrd: image.initrd, commandLine: guestCommandLine(image, words) },
    disks: [disk],
    nics: [{ id: 'net0', model: 'virtio-net-pci', mac: macOf(slot), bridge: DEMO_BRIDGE }],
    namespace: site.network.namespace,
  };
}

/** The host need not ask for the guest's hardware address: the kernel repeats that question only once a second. */
async function knowNeighbour({ network }: PatchSite, slot: Slot): Promise<void> {
  const entry = [addressOf(slot), 'lladdr', macOf(slot), 'dev', HOST_DEVICE, 'nud', 'permanent'];
  await runCommand([...network.enter, 'ip', 'neighbour', 'replace', ...entry], { purpose: 'naming a guest' });
}

function macOf({ number }: Slot): string {
  return `52:54:00:79:00:${number.toString(16).padStart(2, '0')}`;
}

/** Waits for the guest's page and checks on it that every update is installed. Throws when one is not. */
export async function proveOverNetwork(site: PatchSite, slot: Slot): Promise<void> {
  const url = `http://${addressOf(slot)}/cgi-bin/versions`;
  const page = await site.network.page(url, { timeoutMs: GUEST_TIMEOUT_MS, signal: site.signal });
  const installed = new Map(page.split('\n').map((line) => [line.split(' ')[0], line.split(' ')[1]]));
  const wrong = site.updates.filter(({ name, to }) => installed.get(name) !== to);
  if (wrong.length === 0 && installed.size > 1) return;
  const words = wrong.map(({ name, to }) => `${name} is ${installed.get(name)}, not ${to}`).join('; ');
  throw new Error(`${slot.name} is on the network, but not patched: ${words}`);
}

export function secondsBetween(fromMs: number, toMs: number): number {
  return round((toMs - fromMs) / 1000, 2);
}

/** Each update as `name=version`, for apt-get. */
export function exactVersions(updates: readonly Update[]): string {
  return updates.map(({ name, to }) => `${name}=${to}`).join(' ');
}

/** How the peers call apt: the options of Pratique's agent that make it quicker, and no lists that nobody reads. */
export const APT = [
  'env DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true LC_ALL=C',
  'apt-get -y -q --no-install-recommends -oDPkg::Options::=--force-confdef -oDPkg::Options::=--force-confold',
  '-oDpkg::Use-Pty=0 -oAPT::Sandbox::User=root -oAcquire::Languages=none',
].join(' ');

/** The sources that Pratique's vendor has too, by an address under which the guest finds the relay. */
export function sourcesList(suite: string, root: string): string {
  return `deb ${root} ${suite} main\ndeb ${root} ${suite}-security main\n`;
}
