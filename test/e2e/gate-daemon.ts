// A stand-in for the daemon that starts one VM behind its gate and then waits to be killed.
import { systemClock } from '../../src/base/clock.ts';
import { silentLog } from '../../src/base/log.ts';
import { makeGate } from '../../src/gate/gate.ts';
import { openFence } from '../../src/hypervisor/fence.ts';
import type { Accelerator } from '../../src/hypervisor/qmp/accel.ts';
import { makeQmpDriver } from '../../src/hypervisor/qmp/driver.ts';
import type { ManagedVm } from '../../src/hypervisor/vm-spec.ts';
import type { Evidence } from '../../src/model/evidence.ts';

// The cast holds: the test that starts this program wrote the argument.
const { spec, folder, roots, uid, accelerator } = JSON.parse(process.argv[2] ?? '') as {
  readonly spec: ManagedVm;
  readonly folder: string;
  readonly roots: readonly string[];
  readonly uid: number | null;
  readonly accelerator: Accelerator;
};
const namespace = spec.namespace ?? { kind: 'host' };
const fence = await openFence({ namespace, log: silentLog, clock: systemClock });
const fenceFor = async () => fence;
const driver = makeQmpDriver({
  runFolder: folder,
  overlayFolder: `${folder}/overlays`,
  diskRoots: roots,
  accelerator,
  fenceFor,
  uidFor: async () => uid,
  clock: systemClock,
  log: silentLog,
});
const isEvidence = (value: unknown): value is Evidence => value === null && false;
const gate = makeGate({ fenceFor, audit: async () => {}, isEvidence, log: silentLog });
const vm = await driver.start(spec);
await gate.close(vm, 'start');
await gate.resume(vm);
process.stdout.write('running\n');
