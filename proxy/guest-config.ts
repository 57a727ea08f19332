// The configuration of guests as this host has it: its files and its server, and what it knows of each VM.
import { join } from 'node:path';
import { type GuestConfig, openGuestConfig, type VmFacts } from '../src/guest-config/guest-config.ts';
import type { VmId } from '../src/model/ids.ts';
import type { VmRun } from '../src/update/vm-run.ts';
import type { Config } from './config.ts';
import { type OwnPolicy, policyOf } from './vm-policy.ts';

/** Folder of the data folder for keys and kept documents. */
export const GUEST_CONFIG_STATE = 'guest-config';

export type HostGuestConfigOptions = {
  readonly config: Config;
  readonly runs: ReadonlyMap<VmId, Pick<VmRun, 'spec'>>;
  readonly ownPolicies: ReadonlyMap<VmId, OwnPolicy>;
};

/** Opens it. Throws GuestConfigError `host-fault/guest-config`. */
export async function openHostGuestConfig(options: HostGuestConfigOptions): Promise<GuestConfig> {
  const { config } = options;
  return await openGuestConfig({
    folder: config.guestConfigFolder,
    stateFolder: join(config.dataFolder, GUEST_CONFIG_STATE),
    factsOf: (vm) => factsOf(options, vm),
  });
}

/** The group is the one of its policy; somebody else's QEMU tells no MAC addresses. */
function factsOf({ config, runs, ownPolicies }: HostGuestConfigOptions, name: string): VmFacts {
  const vm = [...runs.keys()].find((each) => each === name);
  const given = (vm === undefined ? undefined : ownPolicies.get(vm)) ?? { own: {}, group: null };
  const spec = vm === undefined ? undefined : runs.get(vm)?.spec;
  return {
    group: policyOf(config, name, given).group,
    macs: spec?.kind === 'managed' ? spec.nics.map(({ mac }) => mac) : null,
  };
}
