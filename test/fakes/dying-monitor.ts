// A monitor of QEMU's whose client ends in the middle of what it does, as our process may.
import type { QmpClient } from '../../src/hypervisor/qmp/qmp-client.ts';

/** What our own process would not live to see. */
export class OurEnd extends Error {}

/** A monitor connection that is lost at the n-th command that changes something, before or after QEMU carries it out. */
export function dying(
  qmp: QmpClient,
  at: number,
  isDone: boolean,
): { readonly qmp: QmpClient; readonly hasDied: () => boolean } {
  let changes = 0;
  let hasDied = false;
  const execute: QmpClient['execute'] = async (command, args) => {
    if (hasDied) throw new OurEnd();
    if (/^(query|qom)/.test(command)) return await qmp.execute(command, args);
    changes += 1;
    if (changes < at) return await qmp.execute(command, args);
    hasDied = true;
    if (isDone) await qmp.execute(command, args);
    throw new OurEnd();
  };
  return { qmp: { ...qmp, execute }, hasDied: () => hasDied };
}
