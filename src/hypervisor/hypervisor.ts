// The contract of a hypervisor driver. Rooms above speak only this; only hypervisor/ speaks QMP or libvirt.
import type { DriveFrontEnd, DriveSource } from '../model/drive.ts';
import type { VmId } from '../model/ids.ts';
import type { Namespace, VmSpec } from './vm-spec.ts';

/** What happens to a VM without our asking. */
export type VmEvent =
  /** The guest reset itself. `isStopped`: no instruction has run since (managed VMs); otherwise it is already booting again. */
  | { readonly kind: 'reset'; readonly isStopped: boolean }
  /** The VM ended: the guest powered itself off (`isGuestsWish`), or QEMU quit, was killed or died under it. */
  | { readonly kind: 'exited'; readonly detail: string; readonly isGuestsWish: boolean }
  | { readonly kind: 'agent-port'; readonly isOpen: boolean }
  /** A write of the guest found no space on the host; the VM stands still. */
  | { readonly kind: 'disk-full' }
  /** We lost QEMU's monitor while its process may live on: everything about the VM is doubtful. */
  | { readonly kind: 'monitor-lost'; readonly detail: string };

/** How the VM was found when a driver took it over. */
export type AdoptedState =
  /** Paused before its first instruction. */
  | { readonly kind: 'fresh' }
  /** Running; `pid` and start time are those of the process we once started, so it is the same one. */
  | { readonly kind: 'same-process' }
  /** Running since before we came: what it did until now was not gated. */
  | { readonly kind: 'ungated' };

export type DriveImage = { readonly source: DriveSource; readonly frontEnd: DriveFrontEnd };

/** What the overlay over a VM's disks is worth: `trial` is thrown away when the VM ends, `accepted` is merged, whatever happens. */
export type OverlayFate = 'none' | 'trial' | 'accepted';

/** An overlay over all disks that a guest can write: what it writes from `begin` on can be thrown away, or merged. Each idempotent. */
export type DiskOverlay = {
  readonly fate: () => Promise<OverlayFate>;
  /** From now on a trial. Throws HypervisorError, with nothing changed, when no overlay of so many bytes can be made. */
  readonly begin: (spaceBytes: number) => Promise<void>;
  /** Makes a trial accepted. Resolves when that is on disk. */
  readonly accept: () => Promise<void>;
  /** Merges an accepted overlay into the disks while the VM runs, which may take long; false when there is none. It is kept when that fails. */
  readonly commit: () => Promise<boolean>;
};

/** One disk of a running VM as it was at one moment: an NBD export on a unix socket that the VM's own user reaches. */
export type DiskView = {
  readonly socket: string;
  readonly exportName: string;
  readonly sizeBytes: number;
  /** Takes it away. Call it soon: meanwhile the guest's writes cost more. */
  readonly close: () => Promise<void>;
};

/** One running VM. Every method is idempotent; each throws HypervisorError `host-fault/…` naming VM and step. */
export type RunningVm = {
  readonly vm: VmId;
  /** Where the taps and their fence live. */
  readonly namespace: Namespace;
  readonly taps: readonly Tap[];
  /** Unix socket of the agent's channel; one client only. */
  readonly channelSocket: string;
  readonly adopted: AdoptedState;
  readonly onEvent: (listener: (event: VmEvent) => void) => void;
  /** Sets every NIC's link down. */
  readonly lowerLinks: () => Promise<void>;
  /** Sets every NIC's link up. Called by gate/ only. */
  readonly raiseLinks: () => Promise<void>;
  /** Lets a VM run that is stopped before its first instruction or after a reset. Called by gate/ only, after the close was verified. */
  readonly resume: () => Promise<void>;
  /** Resets the machine and leaves it stopped (managed VMs). */
  readonly resetStopped: () => Promise<void>;
  readonly isStopped: () => Promise<boolean>;
  /** What this VM's hardware has a place for, the best first. */
  readonly driveFrontEnds: readonly DriveFrontEnd[];
  readonly attachDrive: (image: DriveImage) => Promise<void>;
  /** Opens an attached drive's source anew under the guest, which keeps its device: after whatever served it was started again. */
  readonly reopenDrive: (source: DriveSource) => Promise<void>;
  /** Asks the guest to let the device go and waits; after the deadline removes it by surprise and says so. */
  readonly detachDrive: () => Promise<{ readonly surprise: boolean }>;
  /** Whether our drive is attached now. */
  readonly hasDrive: () => Promise<boolean>;
  /** Makes the withheld removable media of the spec visible. Called by gate/ only. */
  readonly releaseMedia: () => Promise<void>;
  readonly withholdMedia: () => Promise<void>;
  /** Ends the VM: `graceful` asks the guest (ACPI) first. */
  readonly stop: (options: { readonly graceful: boolean }) => Promise<void>;
  /** What the guest wrote to its serial console since the last call, at most a bounded tail; managed VMs only. */
  readonly readConsole?: () => Promise<string>;
  /** Managed VMs only. */
  readonly overlay?: DiskOverlay;
  /**
   * A read-only view of a disk, by its id in the spec, while the guest goes on; managed VMs only, and one at a time. Too many
   * writes of the guest break the view and nothing else.
   */
  readonly viewDisk?: (disk: string) => Promise<DiskView>;
  /** Forgets the VM without ending it. */
  readonly release: () => Promise<void>;
};

/** A host-side network device of a VM. */
export type Tap = { readonly name: string; readonly nic: string };

export type HypervisorDriver = {
  readonly kind: 'qmp';
  /** Starts the VM paused before its first instruction, links down, media withheld, taps made behind the fence. */
  readonly start: (spec: VmSpec) => Promise<RunningVm>;
  /** Takes over a VM that runs already (after our own restart, or somebody else's QEMU); null if there is none. */
  readonly adopt: (spec: VmSpec) => Promise<RunningVm | null>;
  /**
   * What becomes of the overlay of a VM that is off: an accepted one is merged into its disks, any other thrown away. Throws
   * HypervisorError when the VM runs, or when it could not be merged; then it is kept.
   */
  readonly settleOverlay: (spec: VmSpec) => Promise<'none' | 'discarded' | 'committed'>;
  /** Gives back what is kept of a VM that is off and being removed: its record and its log. Absent: nothing is kept. */
  readonly forget?: (vm: VmId) => Promise<void>;
};
