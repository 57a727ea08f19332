// A throw-away guest without a disk that never stops sending, bounces its links and obeys one-word orders on its agent port:
// what the leak checks need, and nothing else. Busybox and a Debian kernel, made once per machine.
import { access, mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { type CpioEntry, makeCpio } from '../../images/cpio.ts';
import { fetchKernelPackage, type KernelFlavour, listModules, unpackKernel } from '../../images/kernel.ts';
import { defaultCacheFolder } from '../../src/base/cache-folder.ts';
import { silentLog } from '../../src/base/log.ts';
import { runCommand } from '../../src/base/run-command.ts';

export type SendingGuest = { readonly kernel: string; readonly initrd: string; readonly commandLine: string };

const MODULES = {
  cloud: ['virtio_pci', 'virtio_console', 'virtio_net', 'virtio_blk', 'isofs', 'virtio_scsi', 'sr_mod'],
  generic: ['virtio_pci', 'virtio_console', 'virtio_net', 'e1000', 'e1000e', '8139cp', 'vmxnet3'],
} as const satisfies Record<KernelFlavour, readonly string[]>;

/** arping sends without asking for a route or a neighbour; `ip link set` down and up resets what a driver knows of the link. */
const INIT = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /mnt /bin
/bin/busybox --install -s /bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
while read -r module; do insmod "/modules/$module"; done </modules/order
echo "GUEST up"
send() {
  while [ -d "/sys/class/net/$1" ]; do
    ip addr add "$2" dev "$1" 2>/dev/null; ip link set "$1" up
    arping -q -c 2 -w 1 -I "$1" 10.99.0.1
    echo "GUEST sent on $1 carrier=$(cat /sys/class/net/$1/carrier 2>&1)"
    n=$((n + 1)); [ $((n % 5)) = 0 ] && { ip link set "$1" down; ip link set "$1" up; }
  done
}
( i=9; known=' '
while :; do
  for nic in /sys/class/net/eth*; do nic=\${nic##*/}
    case $known in *" $nic "*) continue;; esac
    i=$((i + 1)); known="$known$nic "
    while [ -d /sys/class/net ]; do send "$nic" "10.99.0.$i/24"; usleep 100000; done &
  done
  usleep 200000
done ) &
( while :; do b=$(ls /sys/block | grep -E '^(vd|sr)' | tr '\\n' ' '); [ "$b" = "$last" ] || echo "GUEST blocks [$b]"; last=$b
  for d in $b; do [ "$d" = "$seen" ] || { mount -o ro "/dev/$d" /mnt 2>/dev/null && { echo "GUEST read $(cat /mnt/hello)"; umount /mnt; seen=$d; }; }; done
  [ -z "$b" ] && seen=; usleep 100000; done ) &
for port in /sys/class/virtio-ports/*; do [ "$(cat $port/name)" = dev.pratique.agent.0 ] && agent=/dev/\${port##*/}; done
while :; do
  while read -r order; do echo "GUEST order $order"
    case $order in
      reboot) reboot -f;;
      poweroff) poweroff -f;;
      bounce) for nic in /sys/class/net/eth*; do ip link set "\${nic##*/}" down; ip link set "\${nic##*/}" up; done;;
      rebind)
        for nic in /sys/class/net/eth*; do
          device=$(readlink -f "$nic/device"); driver=$(readlink -f "$nic/device/driver")
          echo "\${device##*/}" >"$driver/unbind"; echo "\${device##*/}" >"$driver/bind"
        done;;
    esac
    echo "GUEST did $order"
  done <"$agent"
  usleep 200000
done
`;

/** Makes (or finds) the guest of a kernel flavour. */
export async function sendingGuest(flavour: KernelFlavour = 'cloud'): Promise<SendingGuest> {
  const folder = join(defaultCacheFolder(), `sending-guest-${flavour}`);
  const kernelFolder = join(folder, 'kernel');
  await mkdir(folder, { recursive: true });
  const kernelPackage = await fetchKernelPackage({ flavour, cacheFolder: folder, log: silentLog });
  const kernel = await unpackKernel(kernelPackage, kernelFolder);
  const initrd = join(folder, 'initrd');
  await writeFile(`${initrd}.${process.pid}`, await makeInitrd(await listModules(kernel, MODULES[flavour]), INIT));
  await rename(`${initrd}.${process.pid}`, initrd);
  await access(kernel.image);
  return { kernel: kernel.image, initrd, commandLine: COMMAND_LINE };
}

/** The kernel's words for a guest that lives in its initramfs and is thrown away after seconds. */
export const COMMAND_LINE =
  'console=ttyS0 quiet loglevel=3 net.ifnames=0 panic=1 mitigations=off nokaslr cryptomgr.notests no_timer_check noreplace-smp tsc=reliable 8250.nr_uarts=1';

/** A guest in one file: busybox, the kernel modules in the order to load, a start script, and what else it is given. */
export async function makeInitrd(
  modules: readonly string[],
  init: string,
  more: readonly CpioEntry[] = [],
): Promise<Uint8Array> {
  const busybox = (await runCommand(['which', 'busybox'])).trim();
  const order = modules.map((file) => `${basename(file)}\n`).join('');
  const entries: CpioEntry[] = [
    ...['bin', 'modules'].map((path): CpioEntry => ({ kind: 'folder', path })),
    { kind: 'program', path: 'init', content: Buffer.from(init) },
    { kind: 'program', path: 'bin/busybox', content: await readFile(busybox) },
    { kind: 'file', path: 'modules/order', content: Buffer.from(order) },
    ...more,
  ];
  for (const file of modules) {
    entries.push({ kind: 'file', path: `modules/${basename(file)}`, content: await readFile(file) });
  }
  return makeCpio(entries);
}
