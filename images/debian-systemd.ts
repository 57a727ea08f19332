// The Debian image with systemd: a real Debian at release level that boots by its own boot loader, with its own kernel package and nginx.
import { copyFile, mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { digestOfFile } from '../src/base/digest.ts';
import { runCommand } from '../src/base/run-command.ts';
import { asRootPrefix } from './as-root.ts';
import { makeGrubCore, PARTITION_SECTOR, writeBootSectors } from './boot-disk.ts';
import { removeTree } from './cache.ts';
import { type BaseContent, fetchDebianBase } from './debian-base.ts';
import { unpackPackage } from './debian-package.ts';
import {
  AGENT_PATH,
  GUEST_FILES_FOLDER,
  installProgram,
  kernelCommandLine,
  unpackBase,
  writeExt4,
} from './guest-system.ts';
import { ImageError } from './image-error.ts';
import { hostArch } from './kernel.ts';
import type { DiskBootRecipe, RecipeInputs } from './recipe.ts';

/** Holes in the file on the host until the guest fills them: room for two kernels, updates and their lists. */
const DISK_MIB = 2048;
const MIB = 1024 * 1024;

const FILES_FOLDER = join(import.meta.dirname, 'guest-systemd');
/** The agent's units as they are shipped: the image installs them as an administrator would. */
const PACKAGING_FOLDER = join(import.meta.dirname, '../guest-agent/packaging');
const UNIT_FILE = /\.(service|target|socket|path|timer)$/;

const CONTENT: BaseContent = {
  include: [
    ...['systemd-sysv', 'udev', 'dbus', 'kmod', 'mount', 'e2fsprogs', 'iproute2', 'busybox-static'],
    ...['linux-image-cloud-amd64', 'initramfs-tools', 'zstd'],
    ...['nginx', 'jq', 'libexpat1', 'unzip', 'zip'],
  ],
  seeds: {
    // An initramfs with the drivers of this machine only, packed lightly: emulated processors make and unpack one at each kernel update.
    'etc/initramfs-tools/conf.d/pratique-guest': 'MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n',
    'usr/share/initramfs-tools/modules.d/pratique-guest': 'virtio_pci\nvirtio_blk\next4\n',
  },
};

const ENABLED = [
  'pratique-agent.service',
  'pratique-guest-wishes.service',
  'pratique-guest-chatter.service',
  'systemd-networkd.service',
  'systemd-networkd-wait-online.service',
];
/**
 * What a machine that lives for minutes does without: timers that would take apt's lock or the disk at a time of their own choosing,
 * and logins that nobody uses (root has no password). Nothing else is switched off.
 */
const MASKED = [
  ...[
    'apt-daily.timer',
    'apt-daily-upgrade.timer',
    'dpkg-db-backup.timer',
    'e2scrub_all.timer',
    'e2scrub_reap.service',
  ],
  ...['fstrim.timer', 'getty.target'],
];

export const debianSystemdRecipe = recipeOf('debian-systemd', CONTENT);

/** The same with Debian's cloud-init, which finds its seed where the host shows it, and is silent where there is none. */
export const debianCloudRecipe = recipeOf('debian-cloud', { ...CONTENT, include: [...CONTENT.include, 'cloud-init'] });

function recipeOf(name: DiskBootRecipe['name'], content: BaseContent): DiskBootRecipe {
  return {
    name,
    boot: 'disk',
    memoryMiB: 768,
    vmDisk: 'overlay',
    packages: ['grub-pc-bin'],
    pinFurther: async ({ cacheFolder, log }) => {
      refuseOtherArch();
      const { suite, digest, inRelease, packages } = await fetchDebianBase({ ...content, cacheFolder, log });
      return { suite, base: digest, inRelease, basePackages: packages, packaging: await digestsOfPackaging() };
    },
    build: async (inputs) => await buildDebianSystemd(inputs, content),
  };
}

async function digestsOfPackaging(): Promise<Readonly<Record<string, string>>> {
  const names = (await readdir(PACKAGING_FOLDER)).sort();
  const digests = await Promise.all(names.map((name) => digestOfFile(join(PACKAGING_FOLDER, name))));
  return Object.fromEntries(names.map((name, index) => [name, digests[index] ?? '']));
}

function refuseOtherArch(): void {
  if (hostArch() === 'amd64') return;
  throw new ImageError('host-unfit/arch', 'the Debian image with a boot loader is made on x86_64 only', {
    next: 'use the guest debian, which needs no boot loader',
  });
}

async function buildDebianSystemd(inputs: RecipeInputs, content: BaseContent): Promise<void> {
  const { workFolder, outFolder, cacheFolder, log } = inputs;
  inputs.report('unpacking the base system');
  const base = await fetchDebianBase({ ...content, cacheFolder, log });
  const tools = join(workFolder, 'tools');
  for (const debianPackage of inputs.packages) await unpackPackage(debianPackage, tools);
  const root = join(workFolder, 'root');
  const diskPath = join(outFolder, 'root.raw');
  try {
    await unpackBase(base.path, root);
    inputs.report('installing agent and application');
    await installFiles(root, inputs.agentPath);
    await configureUnits(root);
    inputs.report('making the system disk');
    // The file system ends with the last whole MiB behind the one before the partition.
    await writeExt4({
      root,
      path: diskPath,
      sizeMiB: DISK_MIB - 1,
      offsetBytes: PARTITION_SECTOR * 512,
      owners: 'all',
    });
  } finally {
    await removeTree(root);
  }
  const modulesFolder = join(tools, 'usr/lib/grub/i386-pc');
  const corePath = join(workFolder, 'core.img');
  await makeGrubCore({ modulesFolder, path: corePath });
  await writeBootSectors({ diskPath, diskBytes: DISK_MIB * MIB, modulesFolder, corePath });
}

async function installFiles(root: string, agentPath: string): Promise<void> {
  const programs = join(root, 'usr/lib/pratique-guest');
  const units = join(root, 'etc/systemd/system');
  await installProgram(agentPath, join(root, AGENT_PATH));
  for (const name of ['wishes', 'write-facts']) await installProgram(join(FILES_FOLDER, name), join(programs, name));
  await installProgram(join(GUEST_FILES_FOLDER, 'chatter'), join(programs, 'chatter'));

  for (const name of await readdir(PACKAGING_FOLDER)) {
    if (UNIT_FILE.test(name)) await place(join(PACKAGING_FOLDER, name), join(units, name));
    if (name.endsWith('.rules')) await place(join(PACKAGING_FOLDER, name), join(root, 'etc/udev/rules.d', name));
  }
  for (const name of ['pratique-guest-wishes.service', 'pratique-guest-chatter.service']) {
    await place(join(FILES_FOLDER, name), join(units, name));
  }
  await place(join(FILES_FOLDER, 'agent.conf'), join(units, 'pratique-agent.service.d/guest.conf'));
  await place(join(FILES_FOLDER, 'nginx.conf'), join(units, 'nginx.service.d/guest.conf'));
  const sites = join(root, 'etc/nginx');
  await place(join(FILES_FOLDER, 'site.conf'), join(sites, 'sites-available/guest'));
  await rm(join(sites, 'sites-enabled/default'), { force: true });
  await symlink('/etc/nginx/sites-available/guest', join(sites, 'sites-enabled/guest'));

  const grub = await readFile(join(FILES_FOLDER, 'grub.cfg'), 'utf8');
  await mkdir(join(root, 'boot/grub'), { recursive: true });
  await writeFile(
    join(root, 'boot/grub/grub.cfg'),
    grub.replace('@KERNEL_WORDS@', `${kernelCommandLine()} net.ifnames=0`),
  );
  await writeFile(join(root, 'etc/fstab'), '/dev/vda1 / ext4 errors=remount-ro,noatime 0 1\n');
  await writeFile(join(root, 'etc/hostname'), 'debian\n');
  await writeFile(join(root, 'etc/hosts'), '127.0.0.1 localhost debian\n');
  await writeFile(join(root, 'etc/machine-id'), '');
}

async function place(from: string, to: string): Promise<void> {
  await mkdir(join(to, '..'), { recursive: true });
  await copyFile(from, to);
}

/** By the guest's own systemctl, which only sets links here. */
async function configureUnits(root: string): Promise<void> {
  const systemctl = async (verb: string, units: readonly string[]) =>
    await runCommand([...asRootPrefix('all'), '/usr/sbin/chroot', root, 'systemctl', verb, ...units], {
      purpose: `preparing the units of the Debian image (${verb})`,
    });
  await systemctl('enable', ENABLED);
  await systemctl('mask', MASKED);
}
