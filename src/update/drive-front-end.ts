// Which device a VM's drive becomes.
import type { DriveFrontEnd } from '../model/drive.ts';
import { RunError } from './runner.ts';

/**
 * What the operator wants, else the first that the VM's hardware has a place for and its guest has a driver for. A guest that has
 * told nothing of its drivers is taken at its hardware. Throws RunError `usage/drive-front-end`.
 */
export function chooseFrontEnd(options: {
  readonly wanted: DriveFrontEnd | undefined;
  readonly offered: readonly DriveFrontEnd[];
  readonly known: readonly DriveFrontEnd[] | undefined;
}): DriveFrontEnd {
  const { wanted, offered, known } = options;
  if (wanted !== undefined) {
    if (offered.includes(wanted)) return wanted;
    throw new RunError(
      'usage/drive-front-end',
      `the VM has no place for a drive as ${wanted}, only for ${list(offered)}`,
      {
        next: 'change drive.frontEnd in its spec, or give the VM the hardware for it',
      },
    );
  }
  const found = offered.find((frontEnd) => known === undefined || known.includes(frontEnd));
  if (found !== undefined) return found;
  const guest = known === undefined ? 'has told of no drivers' : `has drivers for ${list(known)}`;
  const message = `the VM has a place for ${list(offered)}, its guest ${guest}: no drive can be shown to it`;
  throw new RunError('usage/drive-front-end', message, {
    next: 'give the VM hardware that its guest knows, or the guest a driver',
  });
}

function list(frontEnds: readonly DriveFrontEnd[]): string {
  return frontEnds.length === 0 ? 'none' : frontEnds.join(', ');
}
