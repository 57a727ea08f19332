// Looks through every file of the folder without a daemon: what a VM would stumble over, found before one does.
import { join } from 'node:path';
import { describeError, PratiqueError } from '../base/errors.ts';
import { nearestWord } from '../base/nearest-word.ts';
import { printable } from '../base/printable.ts';
import { BUILT_IN_VALUES, type Layer } from './layer.ts';
import { type FileRole, type FolderList, listFolder, readLayer, roleOf, SECRETS_SUBFOLDER } from './layer-files.ts';
import { renderLayers } from './render.ts';
import { openSecretFolder } from './secrets.ts';
import { namesIn } from './values.ts';

export type CheckOptions = {
  readonly folder: string;
  /** Groups of the host's configuration. */
  readonly groups: readonly string[];
  /** The group that a VM is in by its name. */
  readonly groupOf: (vm: string) => string | null;
  /** Whether values and items may also come from a server, which is not asked here. */
  readonly hasServer: boolean;
};

export type CheckReport = {
  readonly files: readonly string[];
  readonly trouble: readonly string[];
  readonly remarks: readonly string[];
};

/** Reads all layers, and renders each VM that has a file of its own. A secret that only root may read is not looked at by others. */
export async function checkGuestConfig(options: CheckOptions): Promise<CheckReport> {
  const list = await listFolder(options.folder);
  const trouble: string[] = list.strangers.map(
    (name) => `${join(options.folder, name)}: its name is not default, group-NAME or vm-NAME`,
  );
  const remarks: string[] = [];
  const layers = await readAll(list, trouble);
  trouble.push(...unknownGroups(options, [...layers.keys()]));
  if (trouble.length === 0 && !options.hasServer) trouble.push(...unknownNames([...layers.values()]));
  if (trouble.length === 0) {
    for (const base of layers.keys()) {
      const role = roleOf(base);
      if (role?.kind === 'vm') await renderOne(options, { vm: role.name, layers, trouble, remarks });
    }
  }
  return { files: [...list.files.values()].flat(), trouble, remarks };
}

async function readAll(list: FolderList, trouble: string[]): Promise<ReadonlyMap<string, Layer>> {
  const layers = new Map<string, Layer>();
  for (const base of list.files.keys()) {
    const role = roleOf(base);
    if (role === null) continue;
    try {
      const layer = await readLayer(list, role);
      if (layer !== null) layers.set(base, layer);
    } catch (error) {
      if (!(error instanceof PratiqueError)) throw error;
      trouble.push(describeError(error));
    }
  }
  return layers;
}

function unknownGroups({ folder, groups }: CheckOptions, bases: readonly string[]): readonly string[] {
  const named = bases.map(roleOf).filter((role): role is FileRole & { kind: 'group' } => role?.kind === 'group');
  return named.flatMap(({ name }) => {
    if (groups.includes(name)) return [];
    const nearest = nearestWord(name, groups);
    const hint = nearest === null ? '' : `; the nearest known group is ${nearest}`;
    return [`${join(folder, `group-${printable(name)}`)}: the host's configuration has no such group${hint}`];
  });
}

/** A name that no layer at all has a value for cannot be right in any VM. */
function unknownNames(layers: readonly Layer[]): readonly string[] {
  const known = [...BUILT_IN_VALUES, ...layers.flatMap(({ values }) => [...values.keys()])];
  return layers.flatMap(({ items, at }) =>
    [...items].flatMap(([item, raw]) => {
      if (raw === null || raw.verbatim === true) return [];
      const stranger = namesIn(JSON.stringify(raw)).find((name) => !known.includes(name));
      if (stranger === undefined) return [];
      const nearest = nearestWord(stranger, known);
      const hint = nearest === null ? '' : `; the nearest known value is \`${nearest}\``;
      return [
        `${at(['items', item])}: item ${item} names \`${printable(stranger, 80)}\`, which no file has a value for${hint}`,
      ];
    }),
  );
}

type One = {
  readonly vm: string;
  readonly layers: ReadonlyMap<string, Layer>;
  readonly trouble: string[];
  readonly remarks: string[];
};

async function renderOne({ folder, groupOf, hasServer }: CheckOptions, one: One): Promise<void> {
  const { vm, layers, trouble, remarks } = one;
  const group = groupOf(vm);
  const bases = ['default', ...(group === null ? [] : [`group-${group}`]), `vm-${vm}`];
  const secrets = openSecretFolder(join(folder, SECRETS_SUBFOLDER));
  const rendered = await renderLayers({
    vm,
    group,
    macs: null,
    layers: bases.flatMap((base) => layers.get(base) ?? []),
    versionOf: () => 'unknown',
    readSecret: async (name, at) => {
      try {
        return await secrets.read(name, at);
      } catch (error) {
        if (!isForbidden(error)) throw error;
        remarks.push(`${at}: the secret ${name} is not looked at; only its owner may`);
        return Buffer.alloc(0);
      }
    },
  });
  const say = (text: string) => `VM ${vm}: ${text}`;
  // What a server may still add is not known here.
  if (!hasServer) trouble.push(...rendered.trouble.map(say));
  else remarks.push(...rendered.trouble.map((text) => `${say(text)} (unless the server's document mends that)`));
  remarks.push(...rendered.remarks.map(say));
}

function isForbidden(error: unknown): boolean {
  const cause = error instanceof PratiqueError ? error.cause : undefined;
  return cause instanceof Error && 'code' in cause && cause.code === 'EACCES';
}
