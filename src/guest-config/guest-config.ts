// The configuration of a host's VMs: from files of this host and, where there is one, a configuration server; resolved per VM.
import { join } from 'node:path';
import { describeError, PratiqueError } from '../base/errors.ts';
import type { ConfigOrigin, GuestConfigItem, ResolvedGuestConfig } from '../model/guest-config.ts';
import { BLANKED } from '../model/guest-config.ts';
import type { FilledItem } from './fill-item.ts';
import { type Layer, secretTextsOf } from './layer.ts';
import { type FileRole, listFolder, readLayer, SECRETS_SUBFOLDER } from './layer-files.ts';
import { type Rendered, renderLayers } from './render.ts';
import { makeSecretMemory, openSecretFolder } from './secrets.ts';
import type { ConfigServer } from './server.ts';
import { openVersionKey } from './version-key.ts';

/** What the host knows of a VM besides its name. */
export type VmFacts = { readonly group: string | null; readonly macs: readonly string[] | null };

/** What the configuration server has for a VM. */
export type ServerWord = {
  readonly layer: Layer | null;
  readonly trouble: readonly string[];
  readonly remarks: readonly string[];
};

export type GuestConfigOptions = {
  /** The folder of the files; its subfolder `secrets` has the secrets. */
  readonly folder: string;
  /** A folder of the data folder for what the host keeps itself. */
  readonly stateFolder: string;
  readonly factsOf: (vm: string) => VmFacts;
  /** Absent: this host has no configuration server. */
  readonly server?: Pick<ConfigServer, 'documentOf'>;
};

/** A value that went into an item, for people. */
export type ShownValue = { readonly name: string; readonly value: string; readonly origin: ConfigOrigin };

/** A VM's configuration for people: every secret blanked. */
export type ShownGuestConfig = {
  readonly items: readonly (GuestConfigItem & {
    readonly origin: ConfigOrigin;
    readonly hasSecret: boolean;
    readonly values: readonly ShownValue[];
  })[];
  readonly trouble: readonly string[];
  readonly remarks: readonly string[];
};

export type GuestConfig = {
  /** What a VM is to have; null: nothing is configured for it. */
  readonly resolve: (vm: string) => Promise<ResolvedGuestConfig | null>;
  /** The same for people. */
  readonly show: (vm: string) => Promise<ShownGuestConfig | null>;
};

/** Opens it; files are read anew for every VM that is asked for. Throws GuestConfigError `host-fault/guest-config`. */
export async function openGuestConfig(options: GuestConfigOptions): Promise<GuestConfig> {
  const versionOf = await openVersionKey(options.stateFolder);
  const secrets = openSecretFolder(join(options.folder, SECRETS_SUBFOLDER));
  const remember = makeSecretMemory();
  const render = async (vm: string): Promise<Rendered | null> => {
    const facts = options.factsOf(vm);
    const found = await layersOf(options, vm, facts.group);
    const brought = found.layers.flatMap(secretTextsOf);
    // A server that is away takes nothing back of what its guests may have by now.
    if (brought.length > 0) remember(vm, brought);
    if (found.layers.length === 0 && found.trouble.length === 0) return null;
    const rendered = await renderLayers({ vm, ...facts, layers: found.layers, readSecret: secrets.read, versionOf });
    return {
      ...rendered,
      trouble: [...found.trouble, ...rendered.trouble],
      remarks: [...found.remarks, ...rendered.remarks],
    };
  };
  return {
    resolve: async (vm) => {
      const rendered = await render(vm);
      if (rendered === null) return null;
      const { trouble, remarks } = rendered;
      return { items: rendered.items.map(resolvedOf), trouble, remarks };
    },
    show: async (vm) => {
      const rendered = await render(vm);
      if (rendered === null) return null;
      const { trouble, remarks } = rendered;
      return { items: rendered.items.map((each) => shownOf(each, rendered)), trouble, remarks };
    },
  };
}

function resolvedOf({ item, origin, hasSecret }: FilledItem): ResolvedGuestConfig['items'][number] {
  return { ...item, origin, hasSecret };
}

function shownOf(
  { shown, origin, hasSecret, used }: FilledItem,
  { values }: Rendered,
): ShownGuestConfig['items'][number] {
  const named = used.flatMap((name): ShownValue[] => {
    const value = values.get(name);
    return value === undefined ? [] : [{ name, value: value.isSecret ? BLANKED : value.text, origin: value.origin }];
  });
  return { ...shown, origin, hasSecret, values: named };
}

type Found = {
  readonly layers: readonly Layer[];
  readonly trouble: readonly string[];
  readonly remarks: readonly string[];
};

/**
 * Default, group, the server's document, the VM's own file: what somebody wrote on this very host for this very VM has the last
 * word. A file that cannot be read is trouble, not an absent layer: a VM must not come up with half of its configuration.
 */
async function layersOf({ folder, server }: GuestConfigOptions, vm: string, group: string | null): Promise<Found> {
  const layers: Layer[] = [];
  const trouble: string[] = [];
  const remarks: string[] = [];
  const attempt = async (work: () => Promise<Layer | null>): Promise<void> => {
    try {
      const layer = await work();
      if (layer !== null) layers.push(layer);
    } catch (error) {
      if (!(error instanceof PratiqueError)) throw error;
      trouble.push(describeError(error));
    }
  };
  const list = await listFolder(folder);
  const read = (role: FileRole) => attempt(() => readLayer(list, role));
  await read({ kind: 'default' });
  if (group !== null) await read({ kind: 'group', name: group });
  if (server !== undefined) {
    await attempt(async () => {
      const word = await server.documentOf(vm);
      trouble.push(...word.trouble);
      remarks.push(...word.remarks);
      return word.layer;
    });
  }
  await read({ kind: 'vm', name: vm });
  if (list.strangers.length > 0) {
    remarks.push(`${folder}: not read, for it is not default, group-NAME or vm-NAME: ${list.strangers.join(', ')}`);
  }
  return { layers, trouble, remarks };
}
