// The one error class of this room.
import { PratiqueError } from '../base/errors.ts';

/** A disk could not be looked into: it holds what we cannot read, it is damaged or hostile, or this host lacks the means. */
export class InspectError extends PratiqueError {}

/** What happens to a VM whose disk tells nothing. */
export const WITHOUT_A_LOOK =
  'nothing needs to be done: the VM is staged after its first boot, from what its agent reports';
