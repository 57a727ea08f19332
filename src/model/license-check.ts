// Whether a VM may have what a license guards, as every room asks it.
import type { VmId } from './ids.ts';

/** Null while the VM holds a lease of the license now; otherwise the license server's code (`NO_LICENSE`, `TOO_MANY_MACHINES` …). */
export type LicenseCheck = (vm: VmId, license: string) => string | null;

/** A host without licenses: nothing that names one may be used. */
export const NO_LICENSES: LicenseCheck = () => 'NO_LICENSE';
