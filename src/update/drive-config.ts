// The configuration of a run's drive: asked for anew, because no plan and no journal keeps what is in it.
import type { DriveOptions } from '../drive/drive.ts';
import type { ConfigDriveFile, GuestConfigItem, GuestConfigOf } from '../model/guest-config.ts';
import type { Plan } from '../model/plan.ts';
import type { ConfigSalt } from './config-salt.ts';
import { RunError } from './runner.ts';

export type ConfigSource = { readonly guestConfig?: GuestConfigOf; readonly configSalt?: ConfigSalt };

/** What is configured is not what was planned: the run is planned anew. */
export const CONFIG_CHANGED = 'conflict/config-changed';

/**
 * The part of a drive that is configuration. Throws RunError `conflict/config-changed` where an item is not there in the planned
 * version any more, and with a trouble where nobody knows what is configured.
 */
export async function configForDrive(
  { vm, run, config, configRemoved }: Plan,
  { guestConfig, configSalt }: ConfigSource,
): Promise<Pick<DriveOptions, 'config' | 'configRemoved'>> {
  const removed = configRemoved === undefined ? {} : { configRemoved: configRemoved.map(({ item }) => item) };
  if (config === undefined) return removed;
  const resolved = (await guestConfig?.(vm)) ?? null;
  const [trouble] = resolved?.trouble ?? [];
  if (trouble !== undefined) {
    const reason = { kind: 'plan-refused', code: 'guest-config', detail: trouble } as const;
    throw new RunError('refused/guest-config', 'what is configured cannot be known', { trouble: reason });
  }
  if (configSalt === undefined) throw new RunError('internal/config-salt', 'this host has no salts for configuration');
  const files = config.map(({ item: name, version }): ConfigDriveFile => {
    const found = resolved?.items.find(({ item }) => item === name);
    if (found?.version !== version)
      throw new RunError(CONFIG_CHANGED, `the configuration ${name} of ${vm} was changed since it was planned`);
    return { format: 'pratique.config/1', vm, run, salt: configSalt(vm, run, name), item: itemOf(found) };
  });
  return { config: files, ...removed };
}

/** What the guest is to have; where it comes from is this host's business. */
function itemOf({ item, version, setting, apply, health }: GuestConfigItem): GuestConfigItem {
  return {
    item,
    version,
    setting,
    ...(apply === undefined ? {} : { apply }),
    ...(health === undefined ? {} : { health }),
  };
}
