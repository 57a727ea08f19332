// Network identity, written the way this guest's own system reads it.
import { AGENT_ACCOUNTS_BYTES_MAX, AGENT_PROBE_TIMEOUT_MS } from '../../src/base/limits.ts';
import type { Interface } from '../../src/model/guest-config.ts';
import { digestOfBytes, readLine } from '../durable.ts';
import { isSystemd, systemctl } from '../installers/service-starts.ts';
import { findProgram } from '../inventory.ts';
import { inRoot, type Paths, runFolder } from '../paths.ts';
import { AgentError, type Platform } from '../platform/platform.ts';
import { findUser } from './accounts.ts';
import type { Change, Link, NetworkWay, Rendered } from './change.ts';
import { connectionFile, networkdFile, plainMac, resolverFile, stanzas, withoutStanzas } from './network-files.ts';
import { encoded, toBinary, withBlock, withoutBlock } from './text.ts';

const INTERFACES = '/etc/network/interfaces';

/** The files of the interfaces and the step that makes them count. Throws AgentError `no-network-way`, `no-interface`. */
export async function renderNetwork(
  platform: Platform,
  paths: Paths,
  item: string,
  interfaces: readonly Interface[],
): Promise<Rendered> {
  const way = await findNetworkWay(platform, paths);
  if (way === null) {
    const known = 'systemd-networkd, NetworkManager or ifupdown';
    throw new AgentError('no-network-way', `this guest's network is set by none of ${known}`);
  }
  const links = interfaces.map((wanted) => findLink(platform, paths, wanted));
  const root = findUser(platform, paths, 'root');
  const changes = changesOf(platform, paths, { way, item, interfaces, links, owner: { uid: root.uid, gid: root.gid } });
  return { changes, steps: [{ do: 'network', way, links }] };
}

/** What sets this guest's network: what runs, then what is enabled, then what is merely there. */
export async function findNetworkWay(platform: Platform, paths: Paths): Promise<NetworkWay | null> {
  const hasIfup = callOf(platform, paths, 'ifup') !== null;
  const hasInterfaces = platform.files.stat(inRoot(paths, INTERFACES)) !== null;
  if (!isSystemd(platform, paths)) {
    if (platform.files.stat(`${runFolder(paths)}/NetworkManager`) !== null) return 'network-manager';
    return hasIfup ? 'ifupdown' : null;
  }
  const says = async (verb: string, unit: string) =>
    (await systemctl(platform, paths, [verb, '--quiet', unit], AGENT_PROBE_TIMEOUT_MS)).exitCode === 0;
  for (const verb of ['is-active', 'is-enabled']) {
    if (await says(verb, 'NetworkManager.service')) return 'network-manager';
    if (await says(verb, 'systemd-networkd.service')) return 'networkd';
  }
  return hasIfup && hasInterfaces ? 'ifupdown' : null;
}

/** How this guest calls a small program: by its own name, or as a part of busybox. */
export function callOf(platform: Platform, paths: Paths, name: string): readonly string[] | null {
  const program = findProgram(platform, paths, name);
  if (program !== null) return [program];
  const busybox = findProgram(platform, paths, 'busybox');
  return busybox === null ? null : [busybox, name];
}

function findLink(platform: Platform, paths: Paths, { mac, dhcp4, dhcp6 }: Interface): Link {
  const folder = `${paths.sys}/class/net`;
  const isOurs = (name: string) => readLine(platform, `${folder}/${name}/address`).trim() === mac;
  const { files } = platform;
  const names = files.list(folder).filter(isOurs);
  // A bridge or a VLAN has the address of its card; the card is what has a device.
  const name = names.find((each) => files.stat(`${folder}/${each}/device`) !== null) ?? names[0] ?? null;
  return { mac, name, isDhcp: dhcp4 === true || dhcp6 === true };
}

type Wanted = {
  readonly way: NetworkWay;
  readonly item: string;
  readonly interfaces: readonly Interface[];
  readonly links: readonly Link[];
  readonly owner: { readonly uid: number; readonly gid: number };
};

function changesOf(platform: Platform, paths: Paths, wanted: Wanted): readonly Change[] {
  const { way, interfaces, owner } = wanted;
  const whole = (path: string, mode: number, text: string): Change => ({
    path,
    content: () => ({ text: encoded(platform, text) }),
    access: { mode, ...owner },
    watch: 'whole',
  });
  switch (way) {
    case 'networkd':
      // Before what the guest came with: the first file that matches an interface counts.
      return interfaces.map((each) =>
        whole(`/etc/systemd/network/05-pratique-${plainMac(each)}.network`, 0o644, networkdFile(each)),
      );
    case 'network-manager':
      return interfaces.map((each) => {
        const path = `/etc/NetworkManager/system-connections/pratique-${plainMac(each)}.nmconnection`;
        return whole(path, 0o600, connectionFile(each, uuidOf(platform, each)));
      });
    case 'ifupdown':
      return [...interfacesChanges(platform, paths, wanted), ...resolverChanges(platform, paths, wanted)];
    default:
      return way satisfies never;
  }
}

/** The same for the same card: a profile that is written again is the same profile. */
function uuidOf(platform: Platform, wanted: Interface): string {
  const hex = digestOfBytes(platform, platform.encode(`pratique ${wanted.mac}`));
  return [hex.slice(0, 8), hex.slice(8, 12), `4${hex.slice(13, 16)}`, `a${hex.slice(17, 20)}`, hex.slice(20, 32)].join(
    '-',
  );
}

function interfacesChanges(platform: Platform, paths: Paths, { item, interfaces, links }: Wanted): readonly Change[] {
  const ip = (callOf(platform, paths, 'ip') ?? ['ip']).join(' ');
  const named = interfaces.map((each, index) => {
    const name = links[index]?.name ?? null;
    if (name === null) throw new AgentError('no-interface', `no network card has the address ${each.mac}`);
    return { each, name };
  });
  const names = new Set(named.map(({ name }) => name));
  const lines = named.flatMap(({ each, name }) => stanzas(each, name, ip)).map((line) => encoded(platform, line));
  const own: Change = {
    path: INTERFACES,
    content: (before) => ({
      text: withBlock(withoutStanzas(withoutBlock(before ?? LOOPBACK, item), names), item, lines),
    }),
    access: 'keep',
    watch: 'lines',
  };
  const others = platform.files.list(inRoot(paths, `${INTERFACES}.d`)).flatMap((file): readonly Change[] => {
    const path = `${INTERFACES}.d/${file}`;
    const found = platform.files.stat(inRoot(paths, path));
    if (found?.kind !== 'file' || found.sizeBytes > AGENT_ACCOUNTS_BYTES_MAX) return [];
    const text = readBinary(platform, inRoot(paths, path));
    if (withoutStanzas(text, names) === text) return [];
    return [
      { path, content: (before) => ({ text: withoutStanzas(before ?? '', names) }), access: 'keep', watch: 'none' },
    ];
  });
  return [own, ...others];
}

/** What a guest without any interfaces(5) begins with. */
const LOOPBACK = 'auto lo\niface lo inet loopback\n';

function readBinary({ files }: Platform, path: string): string {
  const file = files.open(path);
  try {
    const bytes = new Uint8Array(AGENT_ACCOUNTS_BYTES_MAX);
    let size = 0;
    for (let count = file.read(bytes); count > 0; count = file.read(bytes.subarray(size))) size += count;
    return toBinary(bytes.subarray(0, size));
  } finally {
    file.close();
  }
}

/** Where resolvconf(8) is, it writes the file from what ifup tells it. */
function resolverChanges(platform: Platform, paths: Paths, { interfaces, owner }: Wanted): readonly Change[] {
  const text = resolverFile(interfaces);
  if (text === null || findProgram(platform, paths, 'resolvconf') !== null) return [];
  const access = { mode: 0o644, ...owner };
  return [{ path: '/etc/resolv.conf', content: () => ({ text: encoded(platform, text) }), access, watch: 'none' }];
}
