// What the runs of all VMs of a host share, and what the simulator replaces.
import type { Audit } from '../audit/audit.ts';
import type { Clock } from '../base/clock.ts';
import type { Log } from '../base/log.ts';
import type { buildDrive, DriveExports, removeDrives } from '../drive/drive.ts';
import type { Gate } from '../gate/gate.ts';
import type { openGuestChannel } from '../guest/session.ts';
import type { HypervisorDriver } from '../hypervisor/hypervisor.ts';
import type { Inspector } from '../inspect/inspector.ts';
import type { InventoryStore } from '../inventory/inventory-store.ts';
import type { GuestConfigOf } from '../model/guest-config.ts';
import type { VmId } from '../model/ids.ts';
import type { BlobTerms, LicenseCheck, LicenseSeats } from '../model/license-check.ts';
import type { BlobStore } from '../store/blob-store.ts';
import type { Vendor } from '../vendor/vendor.ts';
import type { ConfigSalt } from './config-salt.ts';
import type { Inspections } from './fetch-plan.ts';
import type { Journal } from './journal.ts';
import type { RunState } from './state.ts';

/** What every VM of the host shares. */
export type VmRunDeps = {
  readonly clock: Clock;
  readonly log: Log;
  readonly journal: Journal;
  readonly driver: HypervisorDriver;
  readonly gate: Gate;
  readonly store: BlobStore;
  readonly vendors: () => readonly Vendor[];
  readonly inventories: InventoryStore;
  readonly audit: Audit;
  readonly inspections: Inspections;
  /** Looks into the disks of VMs that are off; absent: no disk is looked into. */
  readonly inspector?: Inspector;
  readonly openChannel: typeof openGuestChannel;
  readonly drives: { readonly build: typeof buildDrive; readonly remove: typeof removeDrives };
  /** Drives over NBD or as files; absent: drives are shown directly, and no VM may ask for another way. */
  readonly exports?: DriveExports;
  /** Asked when a plan is made, when its drive is built, and whenever that is shown; absent: this host has no licenses. */
  readonly checkLicense?: LicenseCheck;
  /** Takes seats for plans and counts what they bring; absent: only what a VM holds already counts. */
  readonly seats?: LicenseSeats;
  /** Under which licenses the store's blobs came; absent: this host has no licenses. */
  readonly blobTerms?: BlobTerms;
  /** What each VM is to be configured with; absent: this host configures no guest. */
  readonly guestConfig?: GuestConfigOf;
  /** Salts of the configuration on drives; a host that configures guests has them. */
  readonly configSalt?: ConfigSalt;
  /** What a VM was seeded with is taken back once it was admitted by its agent's word; absent: no VM is seeded. */
  readonly finishSeed?: (vm: VmId) => Promise<void>;
  /** Folder of the drives: one folder a VM, one below it a run. */
  readonly drivesFolder: string;
  readonly deadlinesMs?: Readonly<Partial<Record<RunState['kind'], number>>>;
};
