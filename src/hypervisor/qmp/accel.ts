// Which accelerator this host really has. /dev/kvm alone proves nothing: some hosts have one that emulates every
// instruction of an ordinary guest in software and seems to hang. So a throw-away VM has to do some work in time.
import { access, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Clock } from '../../base/clock.ts';
import { describeError } from '../../base/errors.ts';
import { KVM_PROBE_TIMEOUT_MS } from '../../base/limits.ts';
import type { Log } from '../../base/log.ts';
import { tryCommand } from '../../base/run-command.ts';

export type Accelerator = 'kvm' | 'tcg';

/**
 * A boot sector that enters 64-bit mode, counts 50 million loops (0.7 s for TCG, far less for KVM, minutes for a KVM that
 * emulates) and leaves QEMU through isa-debug-exit with 0x2a:
 *   cli; real-mode segments 0; page tables at 0x1000 (one 2 MiB page); cr3; cr4.PAE; EFER.LME; cr0.PG|PE; lgdt;
 *   ljmp 8:long; long: mov $50000000,%ecx; 1: dec %ecx; jnz 1b; mov $0x2a,%al; out %al,$0xf4; 2: hlt; jmp 2b; GDT.
 */
const BOOT_SECTOR =
  'fa31c08ed88ec08ed0bc007cfc66bf0010000066b9000c00006631c066f3ab66c70600100320000066c70600200330000066c706003083000000' +
  '66b8001000000f22d80f20e06683c8200f22e066b9800000c00f32660d000100000f300f20c0660d010000800f22c00f0116987cea737c0800' +
  'b980f0fa02ffc975fcb02ae6f4f4ebfd0f1f440000000000000000000000000000009a20000f00887c0000';
const SECTOR_BYTES = 512;
/** SeaBIOS does not read a disk that is smaller than a cylinder. */
const DISK_BYTES = 1024 * 1024;
/** isa-debug-exit ends QEMU with (value << 1) | 1. */
const EXIT_CODE_PROVEN = (0x2a << 1) | 1;

/** Starts a throw-away VM with KVM and returns what VMs are to use; the log says it with the reason. Never throws. */
export async function probeAccelerator(
  qemuBinary: string,
  clock: Clock,
  log: Log,
  kvmDevice = '/dev/kvm',
): Promise<Accelerator> {
  const trouble = await kvmTrouble(qemuBinary, clock, kvmDevice);
  if (trouble === null) log.info('VMs run with KVM');
  else log.warn({ reason: trouble }, 'KVM does not work here; VMs are emulated (TCG), which is slow');
  return trouble === null ? 'kvm' : 'tcg';
}

/** The boot sector as a disk image. */
export function probeDisk(): Buffer {
  const disk = Buffer.alloc(DISK_BYTES);
  disk.write(BOOT_SECTOR, 'hex');
  disk.writeUInt16LE(0xaa55, SECTOR_BYTES - 2);
  return disk;
}

/** The command that boots the probe with an accelerator. */
export function probeCommand(qemuBinary: string, accelerator: Accelerator, disk: string): readonly string[] {
  const machine = ['-machine', `q35,accel=${accelerator}`, '-nodefaults', '-no-user-config', '-display', 'none'];
  const size = ['-m', '32', '-no-reboot', '-device', 'isa-debug-exit,iobase=0xf4,iosize=1'];
  const drive = { driver: 'raw', 'node-name': 'probe', file: { driver: 'file', filename: disk } };
  return [qemuBinary, ...machine, ...size, '-blockdev', JSON.stringify(drive), '-device', 'ide-hd,drive=probe'];
}

/** Whether the probe's exit code proves that it ran to its end. */
export function isProven(exitCode: number | null): boolean {
  return exitCode === EXIT_CODE_PROVEN;
}

async function kvmTrouble(qemuBinary: string, clock: Clock, kvmDevice: string): Promise<string | null> {
  try {
    await access(kvmDevice);
  } catch {
    return `there is no ${kvmDevice}`;
  }
  const folder = await mkdtemp(join(tmpdir(), 'pratique-probe-'));
  try {
    const disk = join(folder, 'disk');
    await writeFile(disk, probeDisk());
    const argv = probeCommand(qemuBinary, 'kvm', disk);
    const run = tryCommand(argv, { timeoutMs: KVM_PROBE_TIMEOUT_MS, purpose: 'trying KVM' });
    // A process that hangs inside the kernel does not even die of SIGKILL: do not wait for it.
    const late = clock.sleep(KVM_PROBE_TIMEOUT_MS * 2).then(() => null);
    const result = await Promise.race([run, late]);
    if (result !== null && isProven(result.exitCode)) return null;
    return `/dev/kvm is there, but a throw-away VM did not finish within ${KVM_PROBE_TIMEOUT_MS} ms`;
  } catch (error) {
    return describeError(error);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
