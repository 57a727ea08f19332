// A licensed blob is on a VM's drive only while that VM's lease holds (A15): asked when the drive is built, and whenever it is shown.
import { printable } from '../base/printable.ts';
import type { VmId } from '../model/ids.ts';
import type { LicenseCheck } from '../model/license-check.ts';
import type { PlanItem } from '../model/plan.ts';
import { DriveError } from './drive-error.ts';

/** The licenses that a plan's updates need, each once. */
export function licensesOf(plan: { readonly items: readonly PlanItem[] }): readonly string[] {
  return [...new Set(plan.items.flatMap(({ release }) => (release.license === undefined ? [] : [release.license])))];
}

/** Throws DriveError `refused/license` for the first license that the VM holds no lease of now. */
export function checkLicenses(vm: VmId, licenses: readonly string[], check: LicenseCheck): void {
  for (const license of licenses) {
    const code = check(vm, license);
    if (code === null) continue;
    const message = `${vm}: the license ${printable(license)} does not cover it (${printable(code)})`;
    throw new DriveError('refused/license', message, { refusal: { license, code }, next: 'free or buy a seat' });
  }
}
