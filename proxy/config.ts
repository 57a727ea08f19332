// Reads the host's configuration: pratique.toml, then conf.d/*.toml beside it, then the defaults. Everything is optional.
import { readdir, readFile, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { PratiqueError } from '../src/base/errors.ts';
import { CONFIG_FILE_BYTES_MAX, SOCKET_PATH_BYTES_MAX } from '../src/base/limits.ts';
import { printable } from '../src/base/printable.ts';
import type { LeasePolicy } from '../src/license/lease-policy.ts';
import { DEFAULT_POLICY, type Policy } from '../src/model/policy.ts';
import type { ConfigFile, FilePolicy } from './config-schema.ts';
import { durationMs } from './duration.ts';
import { policyOfFile } from './policy-words.ts';
import type { VendorConfig } from './service.ts';

export class ConfigError extends PratiqueError {}

export type Config = {
  readonly dataFolder: string;
  readonly runFolder: string;
  readonly logLevel: string;
  readonly vendors: readonly VendorConfig[];
  /** Disks, kernels and media of VMs lie under one of these. */
  readonly diskRoots: readonly string[];
  readonly storeBudgetBytes: number;
  /** What holds for a VM that neither its group nor its own policy says anything about. */
  readonly policy: Policy;
  /** What of it the files say, so that a value's origin can be told. */
  readonly policyOfFiles: Partial<Policy>;
  readonly groups: Groups;
  /** How leases are kept, and how often license servers are asked for revocations. */
  readonly licenses: LeasePolicy & { readonly pollMs: number };
  readonly network: { readonly bridge: string };
  /** Seconds a run may stay in a state, where they differ from the usual ones. */
  readonly deadlines: NonNullable<ConfigFile['deadlines']>;
  /** User ids for managed QEMUs: `first` to `first + count - 1`. */
  readonly uids: { readonly first: number; readonly count: number };
  /** Files of guest configuration; the folder need not exist. */
  readonly guestConfigFolder: string;
  readonly guestConfigServer?: GuestConfigServer;
};

/** Where signed configuration of VMs is fetched, and whose word counts. */
export type GuestConfigServer = Omit<NonNullable<ConfigFile['guestConfigServer']>, 'grace' | 'isRequired'> & {
  readonly graceMs: number;
  readonly isRequired: boolean;
};

/** A policy for several VMs: those that were added to it, and those whose names match. */
export type Group = {
  readonly policy: Partial<Policy>;
  readonly vms: readonly string[];
  /** Whom its VMs belong to. */
  readonly tenant?: string;
};
export type Groups = Readonly<Record<string, Group>>;

/** The configuration and the files it came from, in the order they were read. */
export type LoadedConfig = { readonly config: Config; readonly files: readonly string[] };

export type ConfigSources = {
  /** `--config FILE`; must exist. Without it the default file may be absent. */
  readonly path?: string;
  readonly env: NodeJS.ProcessEnv;
  readonly uid: number;
};

const STORE_BUDGET_BYTES_DEFAULT = 20 * 1024 * 1024 * 1024;
/** In the range that systemd's list of user ids calls unused (1879048192 to 2147483647). */
const UIDS_DEFAULT = { first: 1_900_000_000, count: 10_000 } as const;
const BRIDGE_DEFAULT = 'pratique0';
const FILES_MAX = 100;

/** The daemon's unix socket of a run folder. */
export function socketPathOf(runFolder: string): string {
  return join(runFolder, 'pratique.sock');
}

/** Reads and checks every file. Throws ConfigError `usage/config` naming file, line, key and the nearest known key. */
export async function loadConfig(sources: ConfigSources): Promise<LoadedConfig> {
  const folders = defaultFolders(sources);
  const mainPath = sources.path === undefined ? join(folders.config, 'pratique.toml') : resolve(sources.path);
  const paths = [...(await mainFile(mainPath, sources.path !== undefined)), ...(await partFiles(mainPath))];
  const read = await Promise.all(paths.map(readConfigFile));
  const merged = mergeFiles(read.map((file, index) => ({ file, path: paths[index] ?? '' })));
  const guests = join(dirname(mainPath), 'guests');
  return { config: completeConfig(merged, { ...folders, guests }, sources.env), files: paths };
}

function defaultFolders({ env, uid }: ConfigSources): { config: string; data: string; run: string } {
  if (uid === 0) return { config: '/etc/pratique', data: '/var/lib/pratique', run: '/run/pratique' };
  const home = env.HOME ?? homedir();
  const data = join(env.XDG_DATA_HOME ?? join(home, '.local/share'), 'pratique');
  return {
    config: join(env.XDG_CONFIG_HOME ?? join(home, '.config'), 'pratique'),
    data,
    // A machine without a login session has no runtime folder; the data folder is the user's own too.
    run: env.XDG_RUNTIME_DIR === undefined ? join(data, 'run') : join(env.XDG_RUNTIME_DIR, 'pratique'),
  };
}

async function mainFile(path: string, mustExist: boolean): Promise<readonly string[]> {
  if ((await fileSize(path)) !== null) return [path];
  if (!mustExist) return [];
  throw new ConfigError('usage/config', `${path}: there is no such file`, { next: 'check the path given to --config' });
}

async function partFiles(mainPath: string): Promise<readonly string[]> {
  const folder = join(dirname(mainPath), 'conf.d');
  const names = await readdir(folder).catch(() => []);
  const parts = names.filter((name) => name.endsWith('.toml') && !name.startsWith('.')).sort();
  if (parts.length > FILES_MAX) throw new ConfigError('usage/config', `${folder}: more than ${FILES_MAX} files`);
  return parts.map((name) => join(folder, name));
}

async function fileSize(path: string): Promise<number | null> {
  const found = await stat(path).catch(() => null);
  return found?.isFile() === true ? found.size : null;
}

async function readConfigFile(path: string): Promise<ConfigFile> {
  const size = await fileSize(path);
  if (size !== null && size > CONFIG_FILE_BYTES_MAX) {
    throw new ConfigError('usage/config', `${path}: larger than ${CONFIG_FILE_BYTES_MAX} bytes`);
  }
  const text = await readFile(path, 'utf8').catch((cause: unknown) => {
    throw new ConfigError('usage/config', `${path}: cannot be read`, { cause, next: 'check its permissions' });
  });
  return await parseConfigText(text, path);
}

/** Parses one file's text. Throws ConfigError naming file, line, key and the nearest known key. */
export async function parseConfigText(text: string, path: string): Promise<ConfigFile> {
  // Loaded here because most commands run without any configuration file, and the schema library takes 100 ms to load.
  const { parseTomlAs } = await import('../src/base/toml-file.ts');
  const { ConfigFileSchema } = await import('./config-schema.ts');
  const { lineOfKey } = await import('../src/base/toml-lines.ts');
  // The cast holds: parseTomlAs has checked the value against this very schema.
  const file = parseTomlAs(ConfigFileSchema, text, path, ConfigError) as ConfigFile;
  for (const { place, table } of policiesOf(file)) {
    const understood = policyOfFile(table);
    if (understood.kind === 'policy') continue;
    const { word, message } = understood.fault;
    const line = lineOfKey(text, [...place, word]);
    throw new ConfigError('usage/config', `${path}:${line}: \`${[...place, word].join('.')}\` ${message}`, {
      next: 'correct the file',
    });
  }
  return file;
}

function policiesOf(file: ConfigFile): readonly { readonly place: readonly string[]; readonly table: FilePolicy }[] {
  const groups = Object.entries(file.groups ?? {}).map(([name, { policy }]) => ({
    place: ['groups', name, 'policy'],
    table: policy ?? {},
  }));
  return [{ place: ['policy'], table: file.policy ?? {} }, ...groups];
}

/** The policy of a table that was checked when its file was read. */
function checkedPolicy(table: FilePolicy): Partial<Policy> {
  const understood = policyOfFile(table);
  if (understood.kind === 'policy') return understood.policy;
  throw new ConfigError('usage/config', `policy: \`${understood.fault.word}\` ${understood.fault.message}`, {
    next: 'correct the files',
  });
}

/** Later files win key by key; vendors add up, and a name may be given once only. */
function mergeFiles(read: readonly { readonly file: ConfigFile; readonly path: string }[]): ConfigFile {
  const owners = new Map<string, string>();
  let merged: ConfigFile = {};
  for (const { file, path } of read) {
    for (const { name } of file.vendors ?? []) {
      const owner = owners.get(name);
      if (owner !== undefined) {
        throw new ConfigError('usage/config', `${path}: vendor ${printable(name)} is already in ${owner}`, {
          next: 'rename or remove one of the two',
        });
      }
      owners.set(name, path);
    }
    merged = {
      ...merged,
      ...file,
      policy: { ...merged.policy, ...file.policy },
      groups: mergeGroups(merged.groups ?? {}, file.groups ?? {}),
      licenses: { ...merged.licenses, ...file.licenses },
      network: { ...merged.network, ...file.network },
      deadlines: { ...merged.deadlines, ...file.deadlines },
      vendors: [...(merged.vendors ?? []), ...(file.vendors ?? [])],
    };
  }
  return merged;
}

type FileGroups = NonNullable<ConfigFile['groups']>;

/** A group that two files name has the VMs of both, and the policy keys of both, the later file's where both say something. */
function mergeGroups(before: FileGroups, after: FileGroups): FileGroups {
  const names = new Set([...Object.keys(before), ...Object.keys(after)]);
  return Object.fromEntries(
    [...names].map((name) => {
      const policy = { ...before[name]?.policy, ...after[name]?.policy };
      const vms = [...new Set([...(before[name]?.vms ?? []), ...(after[name]?.vms ?? [])])];
      return [name, { ...before[name], ...after[name], vms, policy }];
    }),
  );
}

function completeLicenses(file: NonNullable<ConfigFile['licenses']>): Config['licenses'] {
  const ms = (text: string | undefined, usual: string) => durationMs(text ?? usual) ?? 0;
  return {
    durationMs: ms(file.leaseDuration, '24h'),
    graceMs: ms(file.grace, '72h'),
    idleMs: ms(file.idleRelease, '30d'),
    pollMs: ms(file.poll, '30s'),
  };
}

function completeGroups(groups: FileGroups): Groups {
  const owners = new Map<string, string>();
  for (const [name, { vms = [] }] of Object.entries(groups)) {
    for (const pattern of vms) {
      const owner = owners.get(pattern) ?? name;
      if (owner !== name) {
        throw new ConfigError('usage/config', `groups: ${printable(pattern)} is named by both ${owner} and ${name}`, {
          next: 'name it in one of the two',
        });
      }
      owners.set(pattern, name);
    }
  }
  const complete = Object.entries(groups).map(([name, { policy = {}, vms = [], tenant }]): [string, Group] => [
    name,
    { policy: checkedPolicy(policy), vms, ...(tenant === undefined ? {} : { tenant }) },
  ]);
  return Object.fromEntries(complete);
}

type Folders = { readonly data: string; readonly run: string; readonly guests: string };

function completeConfig(file: ConfigFile, folders: Folders, env: NodeJS.ProcessEnv): Config {
  const dataFolder = resolve(env.PRATIQUE_DATA ?? file.dataFolder ?? folders.data);
  const runFolder = resolve(env.PRATIQUE_RUN ?? file.runFolder ?? folders.run);
  if (Buffer.byteLength(socketPathOf(runFolder)) > SOCKET_PATH_BYTES_MAX) {
    throw new ConfigError('usage/config', `runFolder ${runFolder}: too long a path for a unix socket`, {
      next: `choose a folder of at most ${SOCKET_PATH_BYTES_MAX - '/pratique.sock'.length} bytes`,
    });
  }
  const policyOfFiles = checkedPolicy(file.policy ?? {});
  return {
    dataFolder,
    runFolder,
    logLevel: file.logLevel ?? 'info',
    vendors: file.vendors ?? [],
    diskRoots: file.diskRoots ?? [join(dataFolder, 'disks'), join(dataFolder, 'images'), '/var/lib/libvirt/images'],
    storeBudgetBytes: file.storeBudgetBytes ?? STORE_BUDGET_BYTES_DEFAULT,
    policy: { ...DEFAULT_POLICY, ...policyOfFiles },
    policyOfFiles,
    groups: completeGroups(file.groups ?? {}),
    licenses: completeLicenses(file.licenses ?? {}),
    network: { bridge: file.network?.bridge ?? BRIDGE_DEFAULT },
    deadlines: file.deadlines ?? {},
    uids: file.uids ?? UIDS_DEFAULT,
    guestConfigFolder: file.guestConfigFolder ?? folders.guests,
    ...guestConfigServerOf(file.guestConfigServer),
  };
}

function guestConfigServerOf(given: ConfigFile['guestConfigServer']): Pick<Config, 'guestConfigServer'> {
  if (given === undefined) return {};
  const { grace, isRequired = false, ...rest } = given;
  if ((rest.certificatePath === undefined) !== (rest.keyPath === undefined)) {
    throw new ConfigError('usage/config', 'guestConfigServer: `certificatePath` and `keyPath` belong together', {
      next: 'give both or none',
    });
  }
  const graceMs = grace === undefined ? 0 : (durationMs(grace) ?? 0);
  return { guestConfigServer: { ...rest, graceMs, isRequired } };
}
