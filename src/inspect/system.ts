// What a root filesystem tells of the system on it: its release, its packages, our agent and what that left behind.
import { createHash } from 'node:crypto';
import type { TSchema } from 'typebox';
import type { Digest } from '../base/digest-text.ts';
import {
  AGENT_PRODUCTS_MAX,
  DPKG_STATUS_BYTES_MAX,
  INSPECT_AGENT_BYTES_MAX,
  INSPECT_TEXT_BYTES_MAX,
  INVENTORY_PRODUCTS_MAX,
  NAME_CHARS_MAX,
} from '../base/limits.ts';
import { makeParser, parseJson } from '../base/parse.ts';
import { counted } from '../base/printable.ts';
import {
  AGENT_STATE_FOLDER,
  BootRecordSchema,
  type ProductRecord,
  ProductRecordSchema,
  RunRecordSchema,
  ShutdownRecordSchema,
} from '../model/agent-records.ts';
import { makeDpkgStatusReader } from '../model/dpkg-status.ts';
import type { RunId } from '../model/ids.ts';
import { type InstalledProduct, type Inventory, InventorySchema, type Os } from '../model/inventory.ts';
import { readOsRelease } from '../model/os-release.ts';
import { InspectError } from './errors.ts';
import type { ExtFiles, FoundFile } from './ext-files.ts';

/** The run the agent was in last. */
export type LastRun = {
  readonly run: RunId;
  readonly isFinished: boolean;
  readonly failed: number;
  readonly results: number;
};

export type SystemFacts = {
  readonly inventory: Inventory;
  readonly lastRun: LastRun | null;
  /** What people should know of this reading, a sentence each. */
  readonly notes: readonly string[];
};

/** Inventory.agent.version where there is no agent. */
export const NO_AGENT = 'none';

const DPKG_STATUS_PATH = '/var/lib/dpkg/status';
const OS_RELEASE_PATHS = ['/etc/os-release', '/usr/lib/os-release'] as const;
const AGENT_PATHS = [
  '/usr/sbin/pratique-agent',
  '/usr/lib/pratique/pratique-agent',
  '/usr/local/sbin/pratique-agent',
] as const;
/** Programs whose first bytes name the architecture, where no package does. */
const SAMPLE_PROGRAMS = ['/sbin/init', '/bin/sh', '/usr/bin/env'] as const;
const COMPRESSIONS = { gzip: ['/bin/gzip', '/usr/bin/gzip'], zstd: ['/usr/bin/zstd', '/bin/zstd'] } as const;

const parseInventory = makeParser(InventorySchema, 'guest-fault/disk');

/** Everything that is looked for on a system, for one question about all of it. */
const WELL_KNOWN_PATHS: readonly string[] = [
  ...OS_RELEASE_PATHS,
  ...AGENT_PATHS,
  ...COMPRESSIONS.gzip,
  ...COMPRESSIONS.zstd,
  DPKG_STATUS_PATH,
  ...['products', 'boot.json', 'shutdown.json', 'run.json'].map((name) => `${AGENT_STATE_FOLDER}/${name}`),
];

/** The text of os-release; null where this is no root filesystem. */
export async function findOsRelease(files: ExtFiles): Promise<string | null> {
  await files.stat(WELL_KNOWN_PATHS);
  for (const path of OS_RELEASE_PATHS) {
    const content = await files.read(path, INSPECT_TEXT_BYTES_MAX);
    if (content !== null) return content.toString('utf8');
  }
  return null;
}

/** Reads it all. Throws InspectError where a file it rests on is beyond its bounds: half a list of packages would be a lie. */
export async function readSystem(files: ExtFiles, osRelease: string, freeBytes: number): Promise<SystemFacts> {
  const notes: string[] = [];
  const packages = await readPackages(files);
  const bundles = await readBundles(files, notes);
  const agent = await readAgent(files);
  const os: Os = { ...readOsRelease(osRelease), arch: await findArch(files, packages, agent?.executable ?? null) };
  const inventory: Inventory = {
    os,
    products: [...bundles, ...packages],
    config: [],
    agent: { version: agent?.version ?? NO_AGENT, digest: agent?.digest ?? null },
    // Which drivers the guest loads is known only once it runs.
    // What its agent knows it tells itself; until then nothing is refused for it.
    abilities: { drives: [], compressions: ['none', ...(await findCompressions(files))], config: true },
    freeBytes,
    rebootRequired: false,
    lastShutdown: await readLastShutdown(files),
  };
  if (agent === null) notes.push('it has no guest agent: it will not be plugged in before it has one');
  return { inventory: parseInventory(inventory, 'what the disk tells'), lastRun: await readLastRun(files), notes };
}

async function readPackages(files: ExtFiles): Promise<readonly InstalledProduct[]> {
  const content = await files.read(DPKG_STATUS_PATH, DPKG_STATUS_BYTES_MAX);
  if (content === null) return [];
  const reader = makeDpkgStatusReader();
  const { packages, overflow } = reader.push(content.toString('utf8'));
  if (overflow) throw new InspectError('guest-fault/disk-file', "the disk's list of packages has an endless entry");
  const all = [...packages, ...reader.end()];
  if (all.length <= INVENTORY_PRODUCTS_MAX) return all;
  throw new InspectError(
    'guest-fault/disk-file',
    `the disk names ${all.length} packages, more than ${INVENTORY_PRODUCTS_MAX}`,
  );
}

// ---- What the agent left --------------------------------------------------------------------------------------------

/** The bundles of the agent's records. `broken`: the link `current` does not lead to the recorded version. */
async function readBundles(files: ExtFiles, notes: string[]): Promise<readonly InstalledProduct[]> {
  const listed = await files.list(`${AGENT_STATE_FOLDER}/products`);
  const named = listed.filter(({ name }) => name.endsWith('.json'));
  if (named.length > AGENT_PRODUCTS_MAX)
    throw new InspectError(
      'guest-fault/disk-file',
      `the disk has ${named.length} records of products, more than ${AGENT_PRODUCTS_MAX}`,
    );
  const found = await files.statInodes(named.map(({ inode }) => inode));
  const small = found.filter(
    (file): file is FoundFile => file?.kind === 'file' && file.sizeBytes <= INSPECT_TEXT_BYTES_MAX,
  );
  const nameOf = new Map(named.map(({ name, inode }) => [inode, name]));
  const contents = await readInParts(files, small);
  const records = contents.flatMap((content, index) => {
    const record = recordOf<ProductRecord>(content, parseProduct);
    return record !== null && `${record.product}.json` === nameOf.get(small[index]?.inode ?? 0) ? [record] : [];
  });
  const skipped = named.length - records.length;
  if (skipped > 0) notes.push(`${counted(skipped, 'record')} of products could not be read and were left out`);
  const isCurrent = await areCurrent(files, records);
  return records.map(({ product, version }, index) => ({
    ecosystem: 'bundle',
    product,
    version,
    state: isCurrent[index] === true ? 'installed' : 'broken',
  }));
}

/** A hundred at a time: each answer stays small. */
async function readInParts(files: ExtFiles, found: readonly FoundFile[]): Promise<readonly (Buffer | null)[]> {
  const contents: (Buffer | null)[] = [];
  for (let at = 0; at < found.length; at += 100) contents.push(...(await files.readSmall(found.slice(at, at + 100))));
  return contents;
}

/** As the agent judges it: `current` names the version's folder, which is there. */
async function areCurrent(files: ExtFiles, records: readonly ProductRecord[]): Promise<readonly boolean[]> {
  const folderOf = (record: ProductRecord): string => record.folder ?? record.version;
  const links = await files.stat(records.map(({ prefix }) => `${prefix}/current`));
  const folders = await files.stat(records.map((record) => `${record.prefix}/versions/${folderOf(record)}`));
  return records.map((record, index) => {
    const target = links[index]?.target;
    const folder = `versions/${folderOf(record)}`;
    return (target === folder || target === `${record.prefix}/${folder}`) && folders[index]?.kind === 'folder';
  });
}

const parseProduct = recordParser(ProductRecordSchema);
const parseRun = recordParser(RunRecordSchema);
const parseBoot = recordParser(BootRecordSchema);
const parseShutdown = recordParser(ShutdownRecordSchema);

function recordParser<S extends TSchema>(schema: S) {
  return makeParser(schema, 'guest-fault/disk-record');
}

/** Null for what is no such record: a power cut or a hand may have spoilt it, and the agent does not believe it either. */
function recordOf<T>(content: Buffer | null, parse: (value: unknown, what: string) => T): T | null {
  if (content === null) return null;
  try {
    return parse(parseJson(content.toString('utf8'), 'a record', 'guest-fault/disk-record'), 'a record');
  } catch {
    return null;
  }
}

const STATE_BYTES_MAX = INSPECT_AGENT_BYTES_MAX;
const stateFile = async (files: ExtFiles, name: string): Promise<Buffer | null> =>
  await files.read(`${AGENT_STATE_FOLDER}/${name}`, STATE_BYTES_MAX);

/** What was recorded when the last boot ended; an older record is no news of it (the agent's own rule). */
async function readLastShutdown(files: ExtFiles): Promise<Inventory['lastShutdown']> {
  const shutdown = recordOf(await stateFile(files, 'shutdown.json'), parseShutdown);
  const boot = recordOf(await stateFile(files, 'boot.json'), parseBoot);
  return shutdown !== null && (boot === null || boot.boot === shutdown.boot) ? shutdown : null;
}

async function readLastRun(files: ExtFiles): Promise<LastRun | null> {
  const record = recordOf(await stateFile(files, 'run.json'), parseRun);
  if (record === null) return null;
  const { run, isFinished, results } = record;
  return {
    run,
    isFinished,
    results: results.length,
    failed: results.filter(({ outcome }) => outcome === 'failed').length,
  };
}

type AgentFacts = { readonly version: string; readonly digest: Digest; readonly executable: Buffer };

/** The agent's own executable. Its version stands in it in clear, as `--version` prints it. */
async function readAgent(files: ExtFiles): Promise<AgentFacts | null> {
  for (const path of AGENT_PATHS) {
    const executable = await files.read(path, INSPECT_AGENT_BYTES_MAX).catch((error: unknown) => {
      if (error instanceof InspectError && error.code === 'guest-fault/disk-file') return null; // Something else of that name.
      throw error;
    });
    if (executable === null) continue;
    const version = /pratique-agent (\d[0-9A-Za-z.+-]{0,60})\n/.exec(executable.toString('latin1'))?.[1];
    // The cast holds: it is the SHA-256 of bytes, in hex.
    const digest = createHash('sha256').update(executable).digest('hex') as Digest;
    return { version: version ?? 'unknown', digest, executable };
  }
  return null;
}

// ---- The machine ----------------------------------------------------------------------------------------------------

/** e_machine of an ELF header (elf(5)) in Debian's words. */
const ELF_MACHINES: Readonly<Record<number, string>> = {
  3: 'i386',
  21: 'ppc64el',
  40: 'armhf',
  62: 'amd64',
  183: 'arm64',
  243: 'riscv64',
};

async function findArch(files: ExtFiles, packages: readonly InstalledProduct[], agent: Buffer | null): Promise<string> {
  const dpkg = packages.find(({ product }) => product === 'dpkg')?.arch;
  if (dpkg !== undefined && dpkg !== 'all' && dpkg.length <= NAME_CHARS_MAX) return dpkg;
  const heads = agent === null ? [] : [agent.subarray(0, 20)];
  for (const path of SAMPLE_PROGRAMS) {
    if (heads.length > 0) break;
    const head = await files.readHead(path, 20);
    if (head !== null) heads.push(head);
  }
  const [head] = heads;
  const isElf = head !== undefined && head.length >= 20 && head.toString('latin1', 0, 4) === '\x7fELF';
  return (isElf ? ELF_MACHINES[head.readUInt16LE(18)] : undefined) ?? 'unknown';
}

async function findCompressions(files: ExtFiles): Promise<readonly ('gzip' | 'zstd')[]> {
  const has = async (paths: readonly string[]): Promise<boolean> =>
    (await files.stat(paths)).some((file) => file !== null);
  const found: ('gzip' | 'zstd')[] = [];
  if (await has(COMPRESSIONS.gzip)) found.push('gzip');
  if (await has(COMPRESSIONS.zstd)) found.push('zstd');
  return found;
}
