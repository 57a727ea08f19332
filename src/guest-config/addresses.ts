// What is wrong with a network interface's addresses, and what is only odd. Pure.
import { BlockList, isIP } from 'node:net';
import { printable } from '../base/printable.ts';
import type { Interface } from '../model/guest-config.ts';

/** A sentence's end after the key's path, and the path below the interface. */
export type AddressFault = { readonly path: readonly (string | number)[]; readonly message: string };

const MAC = /^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/;

/** The first fault of an interface; null when it can be set up as it says. */
export function faultOfInterface(given: Interface): AddressFault | null {
  const { mac, addresses = [], gateway4, gateway6, dns = [], dhcp4 = false, dhcp6 = false } = given;
  if (!MAC.test(mac)) return { path: ['mac'], message: 'must be a MAC address in lower case, like 52:54:00:12:34:56' };
  for (const [index, address] of addresses.entries()) {
    if (familyOfPrefix(address) === null) {
      return { path: ['addresses', index], message: 'must be an address with its prefix, like 192.0.2.10/24' };
    }
    if (addresses.indexOf(address) !== index) return { path: ['addresses', index], message: 'stands here twice' };
  }
  if (gateway4 !== undefined && isIP(gateway4) !== 4) return { path: ['gateway4'], message: 'must be an IPv4 address' };
  if (gateway6 !== undefined && isIP(gateway6) !== 6) return { path: ['gateway6'], message: 'must be an IPv6 address' };
  const badDns = dns.findIndex((address) => isIP(address) === 0);
  if (badDns >= 0) return { path: ['dns', badDns], message: 'must be an IP address' };
  if (gateway4 !== undefined && !dhcp4 && !addresses.some((each) => familyOfPrefix(each) === 4)) {
    return { path: ['gateway4'], message: 'needs an IPv4 address of the interface' };
  }
  if (gateway6 !== undefined && !dhcp6 && !addresses.some((each) => familyOfPrefix(each) === 6)) {
    const isLinkLocal = gateway6.toLowerCase().startsWith('fe80:');
    if (!isLinkLocal) return { path: ['gateway6'], message: 'needs an IPv6 address of the interface' };
  }
  return null;
}

/** What is odd about a sound interface: it can be set up, but perhaps not as it was meant. */
export function remarksOfInterface(given: Interface): readonly string[] {
  const { mac, addresses = [], gateway4, gateway6, dhcp4 = false, dhcp6 = false } = given;
  const remarks: string[] = [];
  if (addresses.length === 0 && !dhcp4 && !dhcp6) remarks.push(`${mac} has no address and no DHCP`);
  for (const gateway of [gateway4, gateway6]) {
    if (gateway === undefined || gateway.toLowerCase().startsWith('fe80:')) continue;
    const sameFamily = addresses.filter((each) => familyOfPrefix(each) === isIP(gateway));
    if (sameFamily.length === 0 || sameFamily.some((each) => isWithin(each, gateway))) continue;
    remarks.push(
      `the gateway ${printable(gateway)} of ${mac} is in none of its networks: it must be reachable on the link itself`,
    );
  }
  return remarks;
}

/** 4 or 6 of an address with its prefix; null when it is none. */
export function familyOfPrefix(text: string): 4 | 6 | null {
  const [, address, bits] = /^([0-9A-Fa-f:.]{2,45})\/(0|[1-9][0-9]{0,2})$/.exec(text) ?? [];
  if (address === undefined || bits === undefined) return null;
  const family = isIP(address);
  if (family === 4 && Number(bits) <= 32) return 4;
  return family === 6 && Number(bits) <= 128 ? 6 : null;
}

function isWithin(prefix: string, address: string): boolean {
  const [network = '', bits] = prefix.split('/');
  const family = isIP(address) === 4 ? 'ipv4' : 'ipv6';
  const list = new BlockList();
  list.addSubnet(network, Number(bits), family);
  return list.check(address, family);
}
