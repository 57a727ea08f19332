// What the QMP driver needs from its surroundings.
import type { Clock } from '../../base/clock.ts';
import type { Log } from '../../base/log.ts';
import type { VmId } from '../../model/ids.ts';
import type { Fence } from '../fence.ts';
import type { Namespace } from '../vm-spec.ts';
import type { Accelerator } from './accel.ts';

export type QmpDriverOptions = {
  /** Folder for sockets and launch records; short, because unix socket paths are. */
  readonly runFolder: string;
  /** Folder for disk overlays; QEMUs of other users must be able to go through it. */
  readonly overlayFolder: string;
  /** Disks, media, kernels and initrds are taken only from under these folders. */
  readonly diskRoots: readonly string[];
  /** The fence of a namespace, opened once per namespace by the caller. */
  readonly fenceFor: (namespace: Namespace) => Promise<Fence>;
  readonly clock: Clock;
  readonly log: Log;
  readonly qemuBinary?: string;
  /** Absent: KVM if a throw-away VM proves that it works, else TCG. */
  readonly accelerator?: Accelerator;
  /** A uid of the VM's own, remembered by the caller; null (and no function): QEMU runs as we do, the case without root. */
  readonly uidFor?: (vm: VmId) => Promise<number | null>;
  /** A cloud-init seed's image for a VM that starts now, readable for this user; null: none this time. Asked for specs with `cloudInit`. */
  readonly seedFor?: (vm: VmId, uid: number | null) => Promise<string | null>;
  /** How long a guest may hold on to the drive. */
  readonly unplugTimeoutMs?: number;
};
