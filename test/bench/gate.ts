// The bench `gate`: what the gate costs one VM, a hundred that open at once, and five hundred on one daemon.

import { machineFacts } from './gate-figures.ts';
import { benchOpening, benchScale, type Say } from './gate-fleet.ts';
import { benchOverhead } from './gate-overhead.ts';

const ROUNDS = 7;
const OPENING_VMS = 100;
const SCALE_VMS = 500;

/** Runs the three parts one after the other, so that they do not disturb each other. Takes about two minutes. */
export async function run(say: Say): Promise<object> {
  const machine = await machineFacts();
  return {
    machine,
    overhead: await benchOverhead({ rounds: ROUNDS }, say),
    opening: await benchOpening({ vms: OPENING_VMS }, say),
    scale: await benchScale({ vms: SCALE_VMS }, say),
  };
}
