// What this guest has installed and can do, measured afresh each time it is asked.
import { MODULE_LIST_BYTES_MAX } from '../src/base/limits.ts';
import type { InstalledProduct, Inventory, Os } from '../src/model/inventory.ts';
import { readOsRelease } from '../src/model/os-release.ts';
import { type BootState, isRebootRequired } from './boot-state.ts';
import { listConfig } from './config/records.ts';
import { readDpkgStatus } from './dpkg-status.ts';
import { readLine, readText } from './durable.ts';
import { runningKernelVersion } from './kernel-state.ts';
import { inRoot, type Paths, runFolder } from './paths.ts';
import type { Platform } from './platform/platform.ts';
import { listProducts } from './products.ts';

/** Debian's words for what uname calls the machine. */
const DEBIAN_ARCHES: Readonly<Record<string, string>> = {
  x86_64: 'amd64',
  aarch64: 'arm64',
  armv7l: 'armhf',
  i686: 'i386',
  ppc64le: 'ppc64el',
};

export type AgentIdentity = { readonly version: string; readonly digest: Inventory['agent']['digest'] };

/** The inventory. Throws AgentError if a file it rests on is beyond its limits or cannot be read. */
export function takeInventory(platform: Platform, paths: Paths, agent: AgentIdentity, boot: BootState): Inventory {
  const products = [...listInstalled(platform, paths)];
  return {
    os: readOs(platform, paths),
    products,
    config: [...listConfig(platform, paths)],
    agent: { version: agent.version, digest: agent.digest },
    abilities: {
      drives: [...findDrives(platform, paths)],
      compressions: [...findCompressions(platform, paths)],
      healthChecks: true,
      config: true,
    },
    freeBytes: platform.files.freeBytes(paths.installRoot),
    rebootRequired: isRebootRequired(platform, paths, boot.boot, products),
    lastShutdown: boot.lastShutdown,
  };
}

/** Every product of every ecosystem. The agent itself is not among them: it has a place of its own in the inventory. */
export function listInstalled(platform: Platform, paths: Paths): readonly InstalledProduct[] {
  return [...listProducts(platform, paths), ...readDpkgStatus(platform, `${paths.dpkg}/status`)];
}

function readOs(platform: Platform, paths: Paths): Os {
  const { release, machine } = platform.kernel();
  const kernelVersion = runningKernelVersion(platform, paths);
  return {
    ...readOsRelease(readText(platform, `${paths.etc}/os-release`, 65_536) ?? ''),
    arch: DEBIAN_ARCHES[machine] ?? machine,
    kernel: release,
    ...(kernelVersion === null ? {} : { kernelVersion }),
  };
}

type DriveKind = Inventory['abilities']['drives'][number];
/** A driver: its folder in /sys/bus, and its module's file name. */
type Driver = readonly [folder: string, module: string];

const DISK: Driver = ['scsi/drivers/sd', '/sd_mod.ko'];
const CD: Driver = ['scsi/drivers/sr', '/sr_mod.ko'];
/** What QEMU emulates of each kind of controller. */
const SCSI_CONTROLLERS: readonly Driver[] = [
  ['virtio/drivers/virtio_scsi', '/virtio_scsi.ko'],
  ['pci/drivers/sym53c8xx', '/sym53c8xx.ko'],
  ['pci/drivers/megaraid_sas', '/megaraid_sas.ko'],
  ['pci/drivers/mptsas', '/mptsas.ko'],
];
const ATA_CONTROLLERS: readonly Driver[] = [
  ['pci/drivers/ahci', '/ahci.ko'],
  ['pci/drivers/ata_piix', '/ata_piix.ko'],
];
const USB_CONTROLLERS: readonly Driver[] = [
  ['pci/drivers/xhci_hcd', '/xhci-pci.ko'],
  ['pci/drivers/ehci-pci', '/ehci-pci.ko'],
];

/** What a guest needs to see each kind of drive: one driver of each list. */
const DRIVE_DRIVERS: readonly { readonly kind: DriveKind; readonly needs: readonly (readonly Driver[])[] }[] = [
  { kind: 'virtio-blk', needs: [[['virtio/drivers/virtio_blk', '/virtio_blk.ko']]] },
  { kind: 'scsi-cd', needs: [[CD], SCSI_CONTROLLERS] },
  { kind: 'nvme', needs: [[['pci/drivers/nvme', '/nvme.ko']]] },
  { kind: 'ide-cd', needs: [[CD], ATA_CONTROLLERS] },
  { kind: 'usb-storage', needs: [[['usb/drivers/usb-storage', '/usb-storage.ko']], [DISK], USB_CONTROLLERS] },
];

/** A driver counts if it is loaded, or if its module is there for a udev that loads it on demand. */
function findDrives(platform: Platform, paths: Paths): readonly DriveKind[] {
  const { files } = platform;
  const hasUdev = files.stat(`${runFolder(paths)}/udev`) !== null;
  let modules: string | null = hasUdev ? null : '';
  const hasModule = (module: string): boolean => {
    modules ??= moduleList(platform, paths);
    return modules.includes(module);
  };
  const hasDriver = ([folder, module]: Driver) =>
    files.stat(`${paths.sys}/bus/${folder}`) !== null || hasModule(module);
  return DRIVE_DRIVERS.filter(({ needs }) => needs.every((drivers) => drivers.some(hasDriver))).map(({ kind }) => kind);
}

function moduleList(platform: Platform, paths: Paths): string {
  const path = inRoot(paths, `/lib/modules/${platform.kernel().release}/modules.dep`);
  try {
    return readText(platform, path, MODULE_LIST_BYTES_MAX) ?? '';
  } catch {
    return '';
  }
}

function findCompressions(platform: Platform, paths: Paths): Inventory['abilities']['compressions'] {
  const programs = ['gzip', 'zstd'] as const;
  return ['none', ...programs.filter((program) => findProgram(platform, paths, program) !== null)];
}

/** Absolute path of a program of the guest; null if it has none of this name. */
export function findProgram(platform: Platform, paths: Paths, name: string): string | null {
  const candidates = paths.programs.map((folder) => `${folder}/${name}`);
  return candidates.find((path) => platform.files.stat(path) !== null) ?? null;
}

/** The boot id the kernel gave this boot. */
export function readBootId(platform: Platform, paths: Paths): string {
  return readLine(platform, `${paths.proc}/sys/kernel/random/boot_id`);
}
