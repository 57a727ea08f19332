// Network interfaces as the three ways of Linux guests want them written: systemd.network(5), interfaces(5), nm-settings-keyfile(5). Pure.
import type { Interface } from '../../src/model/guest-config.ts';

const isV6 = (address: string): boolean => address.includes(':');
const v4Of = ({ addresses = [] }: Interface) => addresses.filter((each) => !isV6(each));
const v6Of = ({ addresses = [] }: Interface) => addresses.filter(isV6);
/** The MAC as a part of file names. */
export const plainMac = ({ mac }: Interface): string => mac.replaceAll(':', '');

/** A file below /etc/systemd/network. Addresses are set before there is a carrier: the cable comes later. */
export function networkdFile(wanted: Interface): string {
  const { mac, dhcp4 = false, dhcp6 = false, addresses = [], dns = [], search = [], mtu } = wanted;
  const dhcp = dhcp4 && dhcp6 ? 'yes' : dhcp4 ? 'ipv4' : dhcp6 ? 'ipv6' : 'no';
  const isStatic = addresses.length > 0;
  const gateways = [wanted.gateway4, wanted.gateway6].filter((each) => each !== undefined);
  return lines(
    '# Written by pratique-agent.',
    '[Match]',
    `MACAddress=${mac}`,
    '[Link]',
    'RequiredForOnline=degraded-carrier',
    ...(mtu === undefined ? [] : [`MTUBytes=${mtu}`]),
    '[Network]',
    `DHCP=${dhcp}`,
    `IPv6AcceptRA=${dhcp6 ? 'yes' : 'no'}`,
    ...(isStatic ? ['ConfigureWithoutCarrier=yes', 'IgnoreCarrierLoss=yes'] : []),
    ...addresses.map((each) => `Address=${each}`),
    ...gateways.map((each) => `Gateway=${each}`),
    ...dns.map((each) => `DNS=${each}`),
    ...(search.length === 0 ? [] : [`Domains=${search.join(' ')}`]),
  );
}

/** A file below /etc/NetworkManager/system-connections. */
export function connectionFile(wanted: Interface, uuid: string): string {
  const { mac, dhcp4 = false, dhcp6 = false, dns = [], search = [], mtu, gateway4, gateway6 } = wanted;
  const family = (
    name: string,
    own: readonly string[],
    isDhcp: boolean,
    gateway: string | undefined,
    servers: readonly string[],
  ) => [
    `[${name}]`,
    `method=${isDhcp ? 'auto' : own.length > 0 ? 'manual' : 'disabled'}`,
    ...own.map((each, index) => `address${index + 1}=${each}`),
    ...(gateway === undefined || (own.length === 0 && !isDhcp) ? [] : [`gateway=${gateway}`]),
    ...(servers.length === 0 || (own.length === 0 && !isDhcp) ? [] : [`dns=${servers.join(';')};`]),
    ...(search.length === 0 || (own.length === 0 && !isDhcp) ? [] : [`dns-search=${search.join(';')};`]),
  ];
  return lines(
    '# Written by pratique-agent.',
    '[connection]',
    `id=pratique-${plainMac(wanted)}`,
    `uuid=${uuid}`,
    'type=ethernet',
    'autoconnect=true',
    'autoconnect-priority=100',
    '[ethernet]',
    `mac-address=${mac.toUpperCase()}`,
    ...(mtu === undefined ? [] : [`mtu=${mtu}`]),
    ...family(
      'ipv4',
      v4Of(wanted),
      dhcp4,
      gateway4,
      dns.filter((each) => !isV6(each)),
    ),
    ...family('ipv6', v6Of(wanted), dhcp6, gateway6, dns.filter(isV6)),
  );
}

/** Lines of /etc/network/interfaces. `ip`: how this guest calls ip(8); what comes after the first address is set by it. */
export function stanzas(wanted: Interface, name: string, ip: string): readonly string[] {
  const { dhcp4 = false, dhcp6 = false, dns = [], search = [], mtu, gateway4, gateway6 } = wanted;
  const [first4, ...more4] = v4Of(wanted);
  const [first6, ...more6] = v6Of(wanted);
  const more = (own: readonly string[]) => own.map((each) => `    up ${ip} address add ${each} dev ${name}`);
  const common = [
    ...(mtu === undefined ? [] : [`    up ${ip} link set dev ${name} mtu ${mtu}`]),
    ...(dns.length === 0 ? [] : [`    dns-nameservers ${dns.join(' ')}`]),
    ...(search.length === 0 ? [] : [`    dns-search ${search.join(' ')}`]),
  ];
  const stanza = (
    family: 'inet' | 'inet6',
    isDhcp: boolean,
    first: string | undefined,
    rest: readonly string[],
    gateway: string | undefined,
  ): readonly string[] => {
    if (isDhcp)
      return [`iface ${name} ${family} dhcp`, ...more(first === undefined ? [] : [first, ...rest]), ...common];
    if (first === undefined) return [];
    const [address = '', prefix = ''] = first.split('/');
    const netmask = family === 'inet' ? netmaskOf(Number(prefix)) : prefix;
    const route = gateway === undefined ? [] : [`    gateway ${gateway}`];
    const head = [`iface ${name} ${family} static`, `    address ${address}`, `    netmask ${netmask}`, ...route];
    return [...head, ...more(rest), ...common];
  };
  const both = [...stanza('inet', dhcp4, first4, more4, gateway4), ...stanza('inet6', dhcp6, first6, more6, gateway6)];
  return [`auto ${name}`, ...(both.length === 0 ? [`iface ${name} inet manual`, ...common] : both)];
}

function netmaskOf(prefix: number): string {
  const bits = Math.min(32, Math.max(0, prefix));
  return [0, 1, 2, 3].map((index) => 256 - 2 ** (8 - Math.min(8, Math.max(0, bits - 8 * index)))).join('.');
}

/** An interfaces(5) text without what it says of these interfaces: two stanzas of one interface would both count. */
export function withoutStanzas(text: string, names: ReadonlySet<string>): string {
  const kept: string[] = [];
  let isSkipped = false;
  for (const line of text.split('\n')) {
    const [word = '', ...rest] = line.trim().split(/\s+/);
    const isBegin = /^(iface|mapping|auto|allow-[a-z-]+|source|source-directory|no-auto-down|no-scripts|rename)$/.test(
      word,
    );
    if (isBegin) isSkipped = word === 'iface' && names.has(rest[0] ?? '');
    if (isSkipped && word !== '' && !word.startsWith('#')) continue;
    if (!/^(auto|allow-[a-z-]+)$/.test(word)) {
      kept.push(line);
      continue;
    }
    const others = rest.filter((name) => !names.has(name));
    if (others.length === rest.length) kept.push(line);
    else if (others.length > 0) kept.push(`${word} ${others.join(' ')}`);
  }
  return kept.join('\n');
}

/** resolv.conf(5), for guests where nobody else writes it. */
export function resolverFile(interfaces: readonly Interface[]): string | null {
  const dns = [...new Set(interfaces.flatMap((each) => each.dns ?? []))];
  const search = [...new Set(interfaces.flatMap((each) => each.search ?? []))];
  if (dns.length === 0) return null;
  return lines(
    '# Written by pratique-agent.',
    ...(search.length === 0 ? [] : [`search ${search.join(' ')}`]),
    ...dns.map((each) => `nameserver ${each}`),
  );
}

function lines(...all: readonly string[]): string {
  return `${all.join('\n')}\n`;
}
