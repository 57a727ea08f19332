// The configuration of guests as this host has it: its files and its server, and what it knows of each VM.
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../src/base/clock.ts';
import type { Log } from '../src/base/log.ts';
import { GuestConfigError } from '../src/guest-config/error.ts';
import { type GuestConfig, openGuestConfig, type VmFacts } from '../src/guest-config/guest-config.ts';
import { type ConfigServer, openConfigServer } from '../src/guest-config/server.ts';
import { verifyKeysOf } from '../src/guest-config/server-document.ts';
import { startPolling } from '../src/guest-config/server-poll.ts';
import { makeServerTransport } from '../src/guest-config/server-transport.ts';
import type { VmId } from '../src/model/ids.ts';
import type { VmRun } from '../src/update/vm-run.ts';
import type { Config, GuestConfigServer } from './config.ts';
import { openSeeds, type Seeds } from './guest-config-seeds.ts';
import { type OwnPolicy, policyOf } from './vm-policy.ts';

/** Folder of the data folder for keys and kept documents. */
export const GUEST_CONFIG_STATE = 'guest-config';

export type HostGuestConfigOptions = {
  readonly config: Config;
  readonly runs: ReadonlyMap<VmId, Pick<VmRun, 'spec'>>;
  readonly ownPolicies: ReadonlyMap<VmId, OwnPolicy>;
  readonly clock: Clock;
  readonly log: Log;
};

export type HostGuestConfig = GuestConfig & {
  readonly seeds: Seeds;
  /** Begins to ask the server for all VMs at intervals. */
  readonly startPolling: () => void;
  /** A VM is gone: what was kept for it goes. */
  readonly forget: (vm: VmId) => Promise<void>;
  readonly close: () => Promise<void>;
};

/** Opens it. Throws GuestConfigError `usage/guest-config` for what the configuration names, `host-fault/guest-config` for our own. */
export async function openHostGuestConfig(options: HostGuestConfigOptions): Promise<HostGuestConfig> {
  const { config, runs, clock, log } = options;
  const stateFolder = join(config.dataFolder, GUEST_CONFIG_STATE);
  const server = await openServer(options, stateFolder);
  const guestConfig = await openGuestConfig({
    folder: config.guestConfigFolder,
    stateFolder,
    factsOf: (vm) => factsOf(options, vm),
    ...(server === null ? {} : { server }),
  });
  const seeds = await openSeeds({
    folder: join(config.dataFolder, 'seeds'),
    guestConfigOf: guestConfig.resolve,
    ...{ clock, log },
  });
  let polling: ReturnType<typeof startPolling> | null = null;
  return {
    ...guestConfig,
    seeds,
    startPolling: () => {
      if (server !== null) polling ??= startPolling({ server, vms: () => [...runs.keys()], clock, log });
    },
    forget: async (vm) => {
      await server?.forget(vm);
      await seeds.forget(vm);
    },
    close: async () => {
      seeds.close();
      await Promise.all([polling?.close(), server?.close()]);
    },
  };
}

async function openServer(
  { config, clock, log }: HostGuestConfigOptions,
  folder: string,
): Promise<ConfigServer | null> {
  const given = config.guestConfigServer;
  if (given === undefined) return null;
  const { url, publicKeys, graceMs, isRequired } = given;
  return await openConfigServer({
    ...{ url, graceMs, isRequired, clock, log },
    keys: verifyKeysOf(publicKeys),
    folder: join(folder, 'server'),
    transport: makeServerTransport({ clock, ...(await credentialsOf(given)) }),
  });
}

async function credentialsOf({ caPath, certificatePath, keyPath }: GuestConfigServer) {
  const ca = caPath === undefined ? {} : { ca: await readPem(caPath) };
  if (certificatePath === undefined || keyPath === undefined) return ca;
  if (((await stat(keyPath).catch(() => null))?.mode ?? 0) & 0o077) {
    throw new GuestConfigError('usage/guest-config', `guestConfigServer: ${keyPath} is open to others`, {
      next: `chmod 600 ${keyPath}`,
    });
  }
  return { ...ca, identity: { certificate: await readPem(certificatePath), key: await readPem(keyPath) } };
}

async function readPem(path: string): Promise<string> {
  return await readFile(path, 'utf8').catch((cause: unknown) => {
    throw new GuestConfigError('usage/guest-config', `guestConfigServer: ${path} cannot be read`, {
      cause,
      next: 'correct the path, or its permissions',
    });
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
