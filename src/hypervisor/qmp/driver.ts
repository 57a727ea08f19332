// The QMP driver: managed and attached VMs behind the HypervisorDriver contract.
import { HypervisorError } from '../errors.ts';
import type { HypervisorDriver } from '../hypervisor.ts';
import type { Accelerator } from './accel.ts';
import { chooseAccelerator } from './accel-memory.ts';
import { adoptAttached } from './attached.ts';
import { adoptManaged, settleManaged, startManaged } from './managed.ts';
import type { QmpDriverOptions } from './options.ts';
import { forgetVm, runFiles } from './run-files.ts';

/** A driver for QEMUs on this host. The first start tries KVM with a throw-away VM. */
export function makeQmpDriver(options: QmpDriverOptions): HypervisorDriver {
  let probed: Promise<Accelerator> | null = null;
  const accelerator = () => {
    if (options.accelerator !== undefined) return Promise.resolve(options.accelerator);
    const { qemuBinary = 'qemu-system-x86_64', runFolder, clock, log } = options;
    probed ??= chooseAccelerator({ qemuBinary, runFolder, clock, log });
    return probed;
  };
  const context = { ...options, chooseAccelerator: accelerator };
  return {
    kind: 'qmp',
    start: async (spec) => {
      if (spec.kind === 'managed') return await startManaged(spec, context);
      const machine = await adoptAttached(spec, options);
      if (machine !== null) return machine;
      throw new HypervisorError('host-fault/qmp-connect', `${spec.vm}: nobody listens on ${spec.qmpSocket}`, {
        next: 'start its QEMU (with -S) first',
      });
    },
    adopt: (spec) => (spec.kind === 'managed' ? adoptManaged(spec, context) : adoptAttached(spec, options)),
    settleOverlay: async (spec) => (spec.kind === 'managed' ? await settleManaged(spec, context) : 'none'),
    forget: async (vm) => await forgetVm(runFiles(options.runFolder, vm)),
  };
}
