// The fence on Debian 12's own kernel, in a guest: there a chain that hangs on a device is gone with it, and a tap that is made anew
// under the same name would be unfenced. On newer kernels this cannot be seen.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import type { CpioEntry } from '../../images/cpio.ts';
import { fetchKernelPackage, listModules, unpackKernel } from '../../images/kernel.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { silentLog } from '../../src/base/log.ts';
import { runCommand } from '../../src/base/run-command.ts';
import { addCommands, ensureCommand, removeCommands } from '../../src/hypervisor/fence-rules.ts';
import { COMMAND_LINE, makeInitrd } from './sending-guest.ts';

const GUEST_TIMEOUT_MS = 90_000;
const TAP = 'pq1';

/** Makes a tap, puts it on the bridge, sends broadcast frames through it as a guest would, and lets the tap go with its end. */
const SENDER = String.raw`
#include <fcntl.h>
#include <net/if.h>
#include <linux/if_tun.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
int main(int argc, char **argv) {
  struct ifreq r = {0};
  unsigned char frame[60];
  int fd = open("/dev/net/tun", O_RDWR);
  if (argc < 3 || fd < 0) return 1;
  r.ifr_flags = IFF_TAP | IFF_NO_PI;
  strncpy(r.ifr_name, argv[1], IFNAMSIZ - 1);
  if (ioctl(fd, TUNSETIFF, &r) < 0) return 2;
  if (system(argv[2]) != 0) return 3;
  memset(frame, 0, sizeof frame);
  memset(frame, 0xff, 6);
  memcpy(frame + 6, "\x52\x54\x00\xaa\x00\x05\x08\x06", 8);
  for (int i = 0; i < 20; i++) {
    if (write(fd, frame, sizeof frame) < 0) return 4;
    usleep(10000);
  }
  return 0;
}
`;

const IP = (await runCommand(['sh', '-c', 'command -v ip'])).trim();

const nft = (commands: readonly string[]) => `nft '${commands.join('; ')}'`;

const INIT = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /bin
/bin/busybox --install -s /bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
mkdir -p /dev/net; [ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
echo "GUEST kernel $(uname -r)"
# Before there is an interface: the kernel's own first words on one are frames, too.
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
ip link add br0 type bridge; ip link set br0 up
# The shell would take busybox' own ip, which makes no pairs.
${IP} link add peer0 type veth peer name peer1
ip link set peer0 master br0; ip link set peer0 up; ip link set peer1 up
frames() { cat /sys/class/net/peer1/statistics/rx_packets; }
try() {
  before=$(frames)
  send ${TAP} "ip link set ${TAP} master br0 && ip link set ${TAP} up && usleep 300000" || echo "GUEST cannot send: $?"
  usleep 300000
  [ -d /sys/class/net/${TAP} ] && echo "GUEST still has its tap"
  echo "GUEST $1: $(($(frames) - before))"
}
echo 0 >/sys/class/net/br0/bridge/multicast_snooping
usleep 500000
try unfenced
${nft([ensureCommand()])} || echo "GUEST has no fence"
try 'fenced before the tap was there'
try 'fenced, the tap made anew'
${nft(addCommands('admitted', [TAP]))}
try admitted
${nft(removeCommands('admitted', [TAP]))}
try 'fenced again'
${nft(['add table netdev t', 'add chain netdev t c { type filter hook ingress device "peer1" priority 0; policy drop; }'])} && echo "GUEST netdev chain made"
ip link del peer0
nft list table netdev t | grep -q 'device "peer1"' || echo "GUEST netdev chain is gone with its device"
nft list table bridge pratique | grep -q 'hook prerouting' && echo "GUEST fence stands"
echo "GUEST done"
poweroff -f
`;

/** Programs of this machine with the libraries they are linked to. */
async function programEntries(names: readonly string[]): Promise<readonly CpioEntry[]> {
  const files = new Set<string>();
  for (const name of names) {
    const path = (await runCommand(['sh', '-c', `command -v ${name}`])).trim();
    for (const file of [path, ...((await runCommand(['ldd', path])).match(/\/\S+(?= \()/g) ?? [])]) files.add(file);
  }
  const entries = await Promise.all(
    [...files].map(
      async (file): Promise<CpioEntry> => ({ kind: 'program', path: file.slice(1), content: await readFile(file) }),
    ),
  );
  return [...foldersOf(entries.map((entry) => entry.path)), ...entries];
}

function foldersOf(paths: readonly string[]): readonly CpioEntry[] {
  const folders = new Set<string>();
  for (const path of paths) {
    for (let folder = dirname(path); folder !== '.'; folder = dirname(folder)) folders.add(folder);
  }
  return [...folders].sort().map((path) => ({ kind: 'folder', path }));
}

test("on Debian 12's kernel the standing fence holds a tap that is deleted and made anew, where a chain on the device is gone [A2] [X1]", async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'pq-fence-'));
  t.after(() => rm(folder, { recursive: true }));
  const cacheFolder = join(defaultCacheFolder(), 'sending-guest-cloud');
  const kernelPackage = await fetchKernelPackage({ flavour: 'cloud', cacheFolder, log: silentLog });
  const kernel = await unpackKernel(kernelPackage, join(folder, 'kernel'));
  await writeFile(join(folder, 'send.c'), SENDER);
  await runCommand(['gcc', '-static', '-Os', '-o', join(folder, 'send'), join(folder, 'send.c')]);
  const modules = await listModules(kernel, ['tun', 'bridge', 'veth', 'nf_tables', 'nft_meta_bridge']);
  const initrd = join(folder, 'initrd');
  const more: readonly CpioEntry[] = [
    ...(await programEntries(['nft', 'ip'])),
    { kind: 'program', path: 'bin/send', content: await readFile(join(folder, 'send')) },
  ];
  await writeFile(initrd, await makeInitrd(modules, INIT, more));

  const machine = ['-M', 'q35,usb=off', '-accel', 'tcg', '-cpu', 'qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16'];
  const quiet = ['-nodefaults', '-display', 'none', '-serial', 'stdio', '-no-reboot', '-m', '256'];
  const boot = ['-kernel', kernel.image, '-initrd', initrd, '-append', `${COMMAND_LINE} rdinit=/init`];
  const qemu = spawn('qemu-system-x86_64', [...machine, ...quiet, ...boot], {
    stdio: ['ignore', 'pipe', 'inherit'],
    timeout: GUEST_TIMEOUT_MS,
  });
  let said = '';
  qemu.stdout.on('data', (piece: Buffer) => {
    said += piece.toString('latin1');
  });
  await once(qemu, 'exit');
  const lines = [...said.matchAll(/GUEST (.*?)\r?\n/g)].map(([, line]) => line);
  t.diagnostic(lines.join('; '));
  assert.match(lines[0] ?? '', /^kernel 6\.1\./, said);
  // The controls may hear a frame of the kernel's own beside them; what is fenced hears nothing at all.
  const heard = lines.slice(1).map((line) => line?.replace(/^(unfenced|admitted): 2\d$/, '$1: 20 or more'));
  assert.deepEqual(heard, [
    'unfenced: 20 or more',
    'fenced before the tap was there: 0',
    'fenced, the tap made anew: 0',
    'admitted: 20 or more',
    'fenced again: 0',
    'netdev chain made',
    'netdev chain is gone with its device',
    'fence stands',
    'done',
  ]);
});
