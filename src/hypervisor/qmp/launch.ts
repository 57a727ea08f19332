// Starts the process of a managed VM so that it outlives us: in a session (and, under systemd, a scope) of its own.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { open, stat } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import type { Clock } from '../../base/clock.ts';
import { QEMU_START_TIMEOUT_MS } from '../../base/limits.ts';
import { printable } from '../../base/printable.ts';
import type { VmId } from '../../model/ids.ts';
import { HypervisorError } from '../errors.ts';
import type { Tap } from '../hypervisor.ts';
import { enterPrefix } from '../namespace.ts';
import type { Namespace } from '../vm-spec.ts';
import type { Accelerator } from './accel.ts';
import { CHANNEL_FD, FIRST_TAP_FD, QMP_FD } from './command-line.ts';
import { connectQmp, type QmpClient } from './qmp-client.ts';
import { logTail, type RunFiles } from './run-files.ts';

const LAUNCHER = fileURLToPath(new URL('launch.pl', import.meta.url));
/** sd_booted(3). */
const SYSTEMD_SIGN = '/run/systemd/system';

export type LaunchOptions = {
  readonly vm: VmId;
  readonly namespace: Namespace;
  readonly files: RunFiles;
  readonly taps: readonly Tap[];
  readonly uid: number | null;
  readonly accelerator: Accelerator;
  /** QEMU's argv. */
  readonly command: readonly string[];
  readonly clock: Clock;
};

/** Starts QEMU and connects to its monitor. Throws HypervisorError with the end of QEMU's log when it does not come up; it is ended then. */
export async function launch(options: LaunchOptions): Promise<QmpClient> {
  const argv = [
    ...scopePrefix(options.vm, options.uid),
    ...enterPrefix(options.namespace),
    ...(await launcher(options)),
  ];
  const log = await open(options.files.logFile, 'w', 0o600);
  let hasEnded = false;
  try {
    const [program = 'perl', ...args] = argv;
    const child = spawn(program, args, { detached: true, stdio: ['ignore', log.fd, log.fd], cwd: '/' });
    child.on('error', () => {
      hasEnded = true;
    });
    child.on('exit', () => {
      hasEnded = true;
    });
    child.unref();
    try {
      return await connectWhenReady(options, () => hasEnded);
    } catch (error) {
      if (!hasEnded) child.kill('SIGKILL');
      throw error;
    }
  } finally {
    await log.close();
  }
}

/** Under systemd our own unit's end would take QEMU along; a scope of its own does not. */
function scopePrefix(vm: VmId, uid: number | null): readonly string[] {
  if (!existsSync(SYSTEMD_SIGN)) return [];
  const user = uid === null && process.getuid?.() !== 0 ? ['--user'] : [];
  return ['systemd-run', ...user, '--scope', '--quiet', '--collect', `--unit=pratique-vm-${vm}`, '--'];
}

async function launcher(options: LaunchOptions): Promise<readonly string[]> {
  const taps = options.taps.flatMap((tap, index) => ['--tap', `${tap.name}:${FIRST_TAP_FD + index}`]);
  const sockets = [`${options.files.qmpSocket}:${QMP_FD}`, `${options.files.channelSocket}:${CHANNEL_FD}`];
  return [
    ...['perl', LAUNCHER, '--pid-file', options.files.pidFile, ...taps],
    ...sockets.flatMap((socket) => ['--listen', socket]),
    '--',
    ...(await dropPrivileges(options.uid, options.accelerator)),
    ...options.command,
  ];
}

async function dropPrivileges(uid: number | null, accelerator: Accelerator): Promise<readonly string[]> {
  if (uid === null) return [];
  // KVM belongs to a group; nothing else is shared with other processes.
  const groups = accelerator === 'kvm' ? `--groups=${(await stat('/dev/kvm')).gid}` : '--clear-groups';
  const identity = [`--reuid=${uid}`, `--regid=${uid}`, groups];
  return ['setpriv', ...identity, '--no-new-privs', '--inh-caps=-all', '--bounding-set=-all', '--'];
}

async function connectWhenReady(options: LaunchOptions, hasEnded: () => boolean): Promise<QmpClient> {
  const { clock, files, vm } = options;
  const deadlineMs = clock.monotonicMs() + QEMU_START_TIMEOUT_MS;
  for (;;) {
    if (hasEnded() || clock.monotonicMs() > deadlineMs) {
      const said = printable(await logTail(files, 600), 600);
      const how = hasEnded() ? 'ended at once' : `offered no monitor within ${QEMU_START_TIMEOUT_MS} ms`;
      throw new HypervisorError('host-fault/qemu-start', `${vm}: QEMU ${how}: ${said || 'it said nothing'}`, {
        next: `look at ${files.logFile}, and whether the VM's uid may read its disks and kernel`,
      });
    }
    try {
      if (existsSync(files.qmpSocket)) return await connectQmp({ path: files.qmpSocket, clock });
    } catch (error) {
      // The launcher makes the socket before QEMU reads its command line; if QEMU then ends, the log knows why.
      await clock.sleep(50);
      if (!hasEnded()) throw error;
    }
    await clock.sleep(10);
  }
}
