// What the simulated VMs are made of.
import type { AttachedVm, ManagedVm } from '../../src/hypervisor/vm-spec.ts';
import type { VmId } from '../../src/model/ids.ts';

/** A VM that is ours from its first instruction. */
export function managedSpec(vm: VmId, index: number): ManagedVm {
  return {
    format: 'pratique.vm/1',
    kind: 'managed',
    vm,
    machine: 'q35',
    memoryMiB: 64,
    cpus: 1,
    disks: [],
    nics: [{ id: 'lan', model: 'virtio-net-pci', mac: `52:54:00:00:00:0${index}`, bridge: 'br0' }],
  };
}

/** A VM whose QEMU somebody else starts. */
export function attachedSpec(vm: VmId, index: number): AttachedVm {
  return {
    format: 'pratique.vm/1',
    kind: 'attached',
    vm,
    qmpSocket: `/simulated/${vm}.qmp`,
    channelSocket: `/simulated/${vm}`,
    nics: [{ id: 'lan', tap: `their${index}` }],
  };
}
