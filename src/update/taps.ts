// Where the frames of a VM pass, from its spec alone: also of a VM that does not run, or is out of our reach.
import { HOST_NAMESPACE } from '../hypervisor/namespace.ts';
import { gatedTapsOf, tapsOf } from '../hypervisor/network.ts';
import { gatedNics, type Namespace, type VmSpec } from '../hypervisor/vm-spec.ts';

/** Names of the taps that stand behind the fence. */
export function tapNamesOf(spec: VmSpec): readonly string[] {
  if (spec.kind === 'managed') return gatedTapsOf(spec).map((tap) => tap.name);
  return gatedNics(spec.nics).map((nic) => nic.tap);
}

/** Names of all taps, also of NICs that are not gated. */
export function everyTapOf(spec: VmSpec): readonly string[] {
  return spec.kind === 'managed' ? tapsOf(spec).map((tap) => tap.name) : spec.nics.map((nic) => nic.tap);
}

/** Where they live. */
export function namespaceOf(spec: VmSpec): Namespace {
  return spec.namespace ?? HOST_NAMESPACE;
}
