// Bridges and taps of managed VMs. A tap is made only behind a fence that was verified, and never admitted.
import { createHash } from 'node:crypto';
import { Type } from 'typebox';
import { makeParser, parseJson } from '../base/parse.ts';
import { runCommand, tryCommand } from '../base/run-command.ts';
import type { VmId } from '../model/ids.ts';
import { HypervisorError } from './errors.ts';
import type { Fence } from './fence.ts';
import { TAP_PREFIX } from './fence-rules.ts';
import type { Tap } from './hypervisor.ts';
import { enterPrefix, namespaceKey } from './namespace.ts';
import { gatedNics, type ManagedVm, type Namespace } from './vm-spec.ts';

/** The name of a VM's tap: always the same, 15 characters, 65 bits of a digest so that no two VMs meet. */
export function tapName(vm: VmId, nic: string): string {
  const digest = createHash('sha256').update(`${vm}\0${nic}`).digest();
  let bits = 0n;
  for (const byte of digest.subarray(0, 9)) bits = (bits << 8n) | BigInt(byte);
  const text = bits.toString(32).padStart(15, '0');
  return TAP_PREFIX + text.slice(-13);
}

/** Beginning of the taps of NICs that are not gated: the standing rules must not match it. */
const OPEN_TAP_PREFIX = 'po';

/** The taps of a managed VM, in the order of its NICs. */
export function tapsOf(spec: ManagedVm): readonly Tap[] {
  return spec.nics.map(({ id, gated }) => {
    const name = tapName(spec.vm, id);
    return { name: gated === false ? OPEN_TAP_PREFIX + name.slice(TAP_PREFIX.length) : name, nic: id };
  });
}

/** Those that stand behind the fence. */
export function gatedTapsOf(spec: ManagedVm): readonly Tap[] {
  return tapsOf({ ...spec, nics: [...gatedNics(spec.nics)] });
}

export type InterfaceFacts = {
  readonly name: string;
  /** `tun` for taps, `bridge`, `veth`, …; null for physical and unknown ones. */
  readonly kind: string | null;
  readonly isTap: boolean;
  /** The bridge it is a port of. */
  readonly master: string | null;
};

const parseLinks = makeParser(
  Type.Array(
    Type.Object({
      ifname: Type.Optional(Type.String()),
      master: Type.Optional(Type.String()),
      linkinfo: Type.Optional(
        Type.Object({
          info_kind: Type.Optional(Type.String()),
          info_data: Type.Optional(Type.Object({ type: Type.Optional(Type.String()) })),
        }),
      ),
    }),
  ),
  'host-fault/network',
);

/** What the kernel says about one interface; null when there is none of that name. */
export async function readInterface(namespace: Namespace, name: string): Promise<InterfaceFacts | null> {
  const argv = [...enterPrefix(namespace), 'ip', '-j', '-d', 'link', 'show', 'dev', name];
  const result = await tryCommand(argv, { purpose: `looking at the interface ${name}` });
  if (result.exitCode !== 0) return null;
  const [link] = parseLinks(parseJson(result.stdout, 'the answer of ip', 'host-fault/network'), 'the answer of ip');
  if (link?.ifname !== name) return null;
  const kind = link.linkinfo?.info_kind ?? null;
  const isTap = kind === 'tun' && link.linkinfo?.info_data?.type === 'tap';
  return { name, kind, isTap, master: link.master ?? null };
}

/**
 * Makes the VM's bridges (where the spec asks for it) and taps, those of gated NICs closed by the fence. Left-over taps of that name are replaced.
 * `uid` owns the taps. Throws HypervisorError `host-fault/network` or CommandError; taps that were made are removed again.
 */
export async function makeTaps(spec: ManagedVm, namespace: Namespace, fence: Fence, uid: number | null): Promise<void> {
  const taps = tapsOf(spec);
  const names = taps.map((tap) => tap.name);
  await fence.ensure();
  await fence.expel(gatedTapsOf(spec).map((tap) => tap.name));
  for (const nic of spec.nics) await ensureBridge(spec.vm, namespace, nic.bridge, nic.createBridge === true);
  await removeTaps(namespace, names);
  const lines = spec.nics.flatMap((nic, index) => {
    const name = names[index] ?? '';
    return [
      `tuntap add dev ${name} mode tap${uid === null ? '' : ` user ${uid}`}`,
      // No address of its own: the host must not send router solicitations or MLD reports out of it.
      `link set dev ${name} addrgenmode none`,
      `link set dev ${name} master ${nic.bridge}`,
      `link set dev ${name} up`,
    ];
  });
  try {
    await runBatch(namespace, lines, `making the taps of ${spec.vm}`);
  } catch (error) {
    await removeTaps(namespace, names);
    throw error;
  }
}

/** Removes taps; those that are not there are fine. */
export async function removeTaps(namespace: Namespace, names: readonly string[]): Promise<void> {
  if (names.length === 0) return;
  const argv = [...enterPrefix(namespace), 'ip', '-force', '-batch', '-'];
  const input = names.map((name) => `link delete dev ${name}\n`).join('');
  await tryCommand(argv, { input, purpose: `removing the taps ${names.join(', ')}` });
}

async function ensureBridge(vm: VmId, namespace: Namespace, bridge: string, mayCreate: boolean): Promise<void> {
  const found = await readInterface(namespace, bridge);
  if (found?.kind === 'bridge') return;
  const where = `${bridge} in ${namespaceKey(namespace)}`;
  if (found !== null) {
    throw new HypervisorError('host-fault/network', `${vm}: the interface ${where} is not a Linux bridge`, {
      next: 'name a bridge: the fence sees only frames that cross one',
    });
  }
  if (!mayCreate) {
    throw new HypervisorError('host-fault/network', `${vm}: there is no bridge ${where}`, {
      next: 'make it, or set createBridge in the VM spec',
    });
  }
  const make = [
    `link add name ${bridge} type bridge forward_delay 0 stp_state 0 mcast_snooping 0`,
    `link set dev ${bridge} addrgenmode none`,
    `link set dev ${bridge} up`,
  ];
  try {
    await runBatch(namespace, make, `making the bridge ${where}`);
  } catch (error) {
    // Another VM's start may have made it between our look and our try.
    if ((await readInterface(namespace, bridge))?.kind !== 'bridge') throw error;
  }
}

async function runBatch(namespace: Namespace, lines: readonly string[], purpose: string): Promise<void> {
  if (lines.length === 0) return;
  await runCommand([...enterPrefix(namespace), 'ip', '-batch', '-'], { input: `${lines.join('\n')}\n`, purpose });
}
