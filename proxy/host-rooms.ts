// The rooms of a running host, as the service works with them.
import type { Audit } from '../src/audit/audit.ts';
import type { Clock } from '../src/base/clock.ts';
import type { Log } from '../src/base/log.ts';
import type { TrustTime } from '../src/base/trust-time.ts';
import type { Gate } from '../src/gate/gate.ts';
import type { Fence } from '../src/hypervisor/fence.ts';
import type { Namespace, VmSpec } from '../src/hypervisor/vm-spec.ts';
import type { InventoryStore } from '../src/inventory/inventory-store.ts';
import type { VmId } from '../src/model/ids.ts';
import type { BlobStore } from '../src/store/blob-store.ts';
import type { Journal } from '../src/update/journal.ts';
import type { VmRun } from '../src/update/vm-run.ts';
import type { Config } from './config.ts';
import type { HostGuestConfig } from './guest-config.ts';
import type { Licenses } from './licenses.ts';
import type { Scrubbing } from './scrubbing.ts';
import type { VendorBook } from './vendor-book.ts';
import type { OwnPolicy } from './vm-policy.ts';

export type HostRooms = {
  readonly config: Config;
  readonly clock: Clock;
  readonly log: Log;
  readonly journal: Journal;
  readonly inventories: InventoryStore;
  readonly audit: Audit;
  readonly store: BlobStore;
  /** Absent where nothing is measured or read for long: in the simulator. */
  readonly scrubbing?: Scrubbing;
  readonly trustTime?: TrustTime;
  readonly gate: Gate;
  /** Absent where no guest is configured: in the simulator. */
  readonly guestConfig?: HostGuestConfig;
  /** Absent where nothing is licensed: in the simulator. */
  readonly licenses?: Licenses;
  readonly vendors: VendorBook;
  readonly fenceFor: (namespace: Namespace) => Promise<Fence>;
  readonly runs: Map<VmId, VmRun>;
  /** What was decided for each VM alone. */
  readonly ownPolicies: Map<VmId, OwnPolicy>;
  readonly addRun: (spec: VmSpec, given: OwnPolicy) => VmRun;
  /** `record` is called once nobody can ask for this VM any more; if it fails, the VM stays. */
  readonly removeRun: (run: VmRun, record: () => Promise<void>) => Promise<void>;
};
