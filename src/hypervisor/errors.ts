// The one error class of this room.
import { type ErrorCode, type ErrorOptions, PratiqueError } from '../base/errors.ts';

export type HypervisorErrorOptions = ErrorOptions & {
  /** QEMU's own error class (`GenericError`, `DeviceNotFound`, …) when QEMU refused a command. */
  readonly qemuClass?: string;
};

/** A hypervisor, its monitor, its process or its network devices did not do what was asked. */
export class HypervisorError extends PratiqueError {
  readonly qemuClass: string | undefined;

  constructor(code: ErrorCode, message: string, options: HypervisorErrorOptions = {}) {
    super(code, message, options);
    this.qemuClass = options.qemuClass;
  }
}
