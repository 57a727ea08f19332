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

/** Whether an error comes of a monitor whose other end is gone: QEMU ended, or will not speak to us any more. */
export function isMonitorClosed(error: unknown): boolean {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if (cause instanceof PratiqueError && cause.code === 'host-fault/qmp-closed') return true;
  }
  return false;
}
