// Starts the process of a managed VM so that it outlives us: in a session (and, under systemd, a scope) of its own.
import { existsSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import type { Clock } from '../../base/clock.ts';
import { type Identity, launcherArgv, scopePrefix, startDetached } from '../../base/detached.ts';
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
  const isUsers = options.uid === null && process.getuid?.() !== 0;
  const argv = [
    ...scopePrefix(`pratique-vm-${options.vm}`, isUsers),
    ...enterPrefix(options.namespace),
    ...(await launcher(options)),
  ];
  const child = await startDetached(argv, options.files.logFile);
  try {
    return await connectWhenReady(options, child.hasEnded);
  } catch (error) {
    if (!child.hasEnded()) child.kill();
    throw error;
  }
}

async function launcher(options: LaunchOptions): Promise<readonly string[]> {
  const { files, uid } = options;
  return launcherArgv({
    pidFile: files.pidFile,
    taps: options.taps.map(({ name }, index) => ({ name, fd: FIRST_TAP_FD + index })),
    listeners: [
      { path: files.qmpSocket, fd: QMP_FD },
      { path: files.channelSocket, fd: CHANNEL_FD },
    ],
    identity: uid === null ? null : await identityOf(uid, options.accelerator),
    command: options.command,
  });
}

async function identityOf(uid: number, accelerator: Accelerator): Promise<Identity> {
  if (accelerator !== 'kvm') return { uid, gid: uid };
  // KVM belongs to a group; nothing else is shared with other processes.
  return { uid, gid: uid, group: (await stat('/dev/kvm')).gid };
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
