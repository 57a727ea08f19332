// The network of a guest, written as its own system reads it, and set while the cable is still unplugged.
import assert from 'node:assert/strict';
import { chmodSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import type { GuestConfigItem, Interface } from '../../src/model/guest-config.ts';
import { apply, furnish, plan, read, write } from '../../test/fakes/guest-agent/fake-config.ts';
import { FakeGuest } from '../../test/fakes/guest-agent/fake-guest.ts';
import { RUN } from '../../test/fakes/guest-agent/fake-host.ts';
import { connectionFile, networkdFile, stanzas, withoutStanzas } from './network-files.ts';

const MAC = '52:54:00:00:00:01';
const LAN: Interface = {
  mac: MAC,
  addresses: ['192.0.2.10/24', '192.0.2.11/25', '2001:db8::10/64'],
  gateway4: '192.0.2.1',
  gateway6: '2001:db8::1',
  dns: ['192.0.2.53', '2001:db8::53'],
  search: ['example.org'],
  mtu: 1400,
};
const item = (wanted: Interface): GuestConfigItem => ({
  item: 'lan',
  version: '1',
  setting: { kind: 'network', interfaces: [wanted] },
});

let guest: FakeGuest;
beforeEach(async () => {
  guest = new FakeGuest();
  furnish(guest);
  write(guest, 'sys/class/net/eth0/address', `${MAC}\n`);
  mkdirSync(join(guest.folder, 'sys/class/net/eth0/device'));
  write(guest, 'sys/class/net/br0/address', `${MAC}\n`);
  await guest.started();
});
afterEach(() => guest.remove());

/** A program that notes how it was called, and ends as told. */
function program(name: string, body = 'exit 0'): void {
  write(guest, `bin/${name}`, `#!/bin/sh\necho "${name} $*" >>${join(guest.folder, 'calls')}\n${body}\n`);
  chmodSync(join(guest.folder, 'bin', name), 0o755);
}
const calls = () => (read(guest, 'calls') ?? '').trim().split('\n');
const systemd = (active: string) => {
  mkdirSync(join(guest.folder, 'run/systemd/system'), { recursive: true });
  program('systemctl', `case "$*" in "is-active --quiet ${active}") exit 0 ;; is-*) exit 3 ;; esac`);
};

test('a guest with ifupdown gets a stanza in the place of its own, and its card is set anew at once [A14]', async () => {
  for (const name of ['ifup', 'ifdown', 'ip']) program(name);
  write(
    guest,
    'etc/network/interfaces',
    'auto lo eth0\niface lo inet loopback\niface eth0 inet dhcp\n  metric 5\n# mine\n',
  );
  write(guest, 'etc/network/interfaces.d/cloud', 'auto eth0\niface eth0 inet dhcp\n');
  assert.deepEqual(await apply(guest, { items: [item(LAN)] }), ['config/lan installed']);
  const text = read(guest, 'etc/network/interfaces') ?? '';
  assert.match(
    text,
    /^auto lo\niface lo inet loopback\n# mine\n# pratique lan: begin\nauto eth0\niface eth0 inet static\n/,
  );
  assert.doesNotMatch(text, /dhcp/);
  assert.doesNotMatch(read(guest, 'etc/network/interfaces.d/cloud') ?? '', /eth0/);
  assert.match(read(guest, 'etc/resolv.conf') ?? '', /search example\.org\nnameserver 192\.0\.2\.53\n/);
  assert.deepEqual(
    calls(),
    ['ifdown -f eth0', 'ip address flush dev eth0', 'ifup -f eth0'],
    'the card, not the bridge with its address',
  );
});

test('an interface that asks for its address does so only once the machine is plugged in [A8]', async () => {
  for (const name of ['ifup', 'ifdown', 'ip']) program(name);
  assert.deepEqual(await apply(guest, { items: [item({ mac: MAC, dhcp4: true })] }), ['config/lan installed']);
  assert.equal(read(guest, 'calls'), null);
  guest.host.send({ type: 'admitted', run: RUN });
  for (let tries = 0; tries < 500 && calls().length < 3; tries += 1) await guest.host.settle();
  assert.deepEqual(calls().at(-1), 'ifup -f eth0');
});

test('an address that ifup cannot set takes the set back, and the card is set as before', async () => {
  for (const name of ['ifdown', 'ip']) program(name);
  const interfaces = join(guest.folder, 'etc/network/interfaces');
  program('ifup', `case "$(cat ${interfaces})" in *192.0.2.10*) exit 1 ;; esac`);
  write(guest, 'etc/network/interfaces', 'auto eth0\niface eth0 inet dhcp\n');
  assert.deepEqual(await apply(guest, { items: [item(LAN)] }), ['config/lan failed apply-failed']);
  assert.equal(read(guest, 'etc/network/interfaces'), 'auto eth0\niface eth0 inet dhcp\n');
});

test('a guest with systemd-networkd gets a file of its own that comes first, and networkd is told [A14]', async () => {
  systemd('systemd-networkd.service');
  program('networkctl');
  assert.deepEqual(await apply(guest, { items: [item(LAN)] }), ['config/lan installed']);
  assert.equal(read(guest, 'etc/systemd/network/05-pratique-525400000001.network'), networkdFile(LAN));
  assert.deepEqual(calls().slice(-2), ['networkctl reload', 'networkctl reconfigure eth0']);
  assert.deepEqual(await apply(guest, { removed: ['lan'], plan: plan('3') }), ['config/lan installed']);
  assert.equal(read(guest, 'etc/systemd/network/05-pratique-525400000001.network'), null);
});

test('a guest with NetworkManager gets a profile that only root reads [A14]', async () => {
  systemd('NetworkManager.service');
  program('nmcli');
  assert.deepEqual(await apply(guest, { items: [item(LAN)] }), ['config/lan installed']);
  const text = read(guest, 'etc/NetworkManager/system-connections/pratique-525400000001.nmconnection') ?? '';
  assert.match(text, /^uuid=[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}$/m);
  assert.deepEqual(calls().slice(-1), ['nmcli connection reload'], 'without a carrier nothing is activated');
});

test('a guest whose network is set by nothing we know, or that has no such card, is told so', async () => {
  assert.deepEqual(await apply(guest, { items: [item(LAN)] }), ['config/lan failed no-network-way']);
  for (const name of ['ifup', 'ifdown', 'ip']) program(name);
  const other = item({ ...LAN, mac: '52:54:00:00:00:99' });
  assert.deepEqual(await apply(guest, { items: [other], plan: plan('3') }), ['config/lan failed no-interface']);
});

test('every part of an interface is in the file of each way', () => {
  const networkd = networkdFile(LAN).split('\n');
  for (const line of [
    'MACAddress=52:54:00:00:00:01',
    'MTUBytes=1400',
    'DHCP=no',
    'ConfigureWithoutCarrier=yes',
    'Address=192.0.2.11/25',
    'Address=2001:db8::10/64',
    'Gateway=192.0.2.1',
    'Gateway=2001:db8::1',
    'DNS=2001:db8::53',
    'Domains=example.org',
  ])
    assert.ok(networkd.includes(line), line);
  assert.ok(networkdFile({ mac: MAC, dhcp4: true, dhcp6: true }).includes('DHCP=yes'));
  const connection = connectionFile(LAN, 'u').split('\n');
  for (const line of [
    'mac-address=52:54:00:00:00:01',
    'mtu=1400',
    'method=manual',
    'address1=192.0.2.10/24',
    'address2=192.0.2.11/25',
    'gateway=192.0.2.1',
    'dns=192.0.2.53;',
    'address1=2001:db8::10/64',
    'gateway=2001:db8::1',
    'dns=2001:db8::53;',
    'dns-search=example.org;',
  ])
    assert.ok(connection.includes(line), line);
  assert.deepEqual(connectionFile({ mac: MAC, dhcp4: true }, 'u').match(/method=.*/g), [
    'method=auto',
    'method=disabled',
  ]);
  assert.deepEqual(stanzas(LAN, 'eth0', '/bin/busybox ip'), [
    'auto eth0',
    'iface eth0 inet static',
    '    address 192.0.2.10',
    '    netmask 255.255.255.0',
    '    gateway 192.0.2.1',
    '    up /bin/busybox ip address add 192.0.2.11/25 dev eth0',
    '    up /bin/busybox ip link set dev eth0 mtu 1400',
    '    dns-nameservers 192.0.2.53 2001:db8::53',
    '    dns-search example.org',
    'iface eth0 inet6 static',
    '    address 2001:db8::10',
    '    netmask 64',
    '    gateway 2001:db8::1',
    '    up /bin/busybox ip link set dev eth0 mtu 1400',
    '    dns-nameservers 192.0.2.53 2001:db8::53',
    '    dns-search example.org',
  ]);
});

test('stanzas of other interfaces, comments and sources stay where they are', () => {
  const text =
    'source /etc/network/interfaces.d/*\nauto eth0 eth1\niface eth1 inet dhcp\n# a word\nallow-hotplug eth0\niface eth0 inet static\n  address 1.2.3.4\niface eth2 inet manual\n';
  assert.equal(
    withoutStanzas(text, new Set(['eth0'])),
    'source /etc/network/interfaces.d/*\nauto eth1\niface eth1 inet dhcp\n# a word\niface eth2 inet manual\n',
  );
});
