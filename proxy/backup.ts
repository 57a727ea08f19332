// Copies a data folder that is in use into one tar: every database as it was at one moment, keys, vendors' trust, configuration.
//
// The order is what makes a restored host safe: the journal's moment comes first, the audit chain's after it. Whatever the journal
// says was opened has its record in the chain; a record of which the journal knows nothing yet is only a decision that is made again.
// Vendors' trust comes last: a newer one refuses more, never less.
import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { link, mkdir, open as openFile, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { PassThrough, Readable, type Transform, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip, createZstdCompress } from 'node:zlib';
import { type Pack, pack } from 'tar-stream';
import manifest from '../package.json' with { type: 'json' };
import type { Clock } from '../src/base/clock.ts';
import { type Digest, digestOf, digestOfFile, isDigest } from '../src/base/digest.ts';
import { syncFolder } from '../src/base/durable-file.ts';
import { BACKUP_KEY_TRIES_MAX, CONFIG_FILE_BYTES_MAX, KEYRING_BYTES_MAX } from '../src/base/limits.ts';
import { type Snapshot, takeSnapshot } from '../src/base/sqlite.ts';
import type { VendorConfig } from '../src/vendor/registry.ts';
import { BackupError, type BackupFile, type BackupManifest, MANIFEST_NAME } from './backup-manifest.ts';
import { HOST_DATABASE } from './databases.ts';

export type BackupOptions = {
  readonly dataFolder: string;
  /** Configuration files that were read, and the vendors they name. */
  readonly configFiles: readonly string[];
  readonly vendors: readonly VendorConfig[];
  readonly hasKeys: boolean;
  readonly hasBlobs: boolean;
  readonly clock: Clock;
};

export type BackupReport = {
  /** Where it was written; null: to the stream. */
  readonly file: string | null;
  readonly sizeBytes: number;
  /** Of the whole archive: `pratique restore --digest` proves by it that nobody exchanged it. */
  readonly digest: Digest;
  readonly manifest: Omit<BackupManifest, 'blobs' | 'files'> & { readonly files: number; readonly blobs: number };
  /** What a person should know: secrets inside, what was left out. */
  readonly remarks: readonly string[];
};

type Compression = 'none' | 'gzip' | 'zstd';

/** Copies the folder to a new file of the owner's only, whole or not there. Throws BackupError or PratiqueError. */
export async function backUpToFile(file: string, options: BackupOptions): Promise<BackupReport> {
  if (await exists(file)) {
    throw new BackupError('conflict/backup-exists', `${file} is already there and stays as it is`, {
      next: 'name a file that does not exist yet',
    });
  }
  const partial = `${file}.partial`;
  try {
    // What a backup that was broken off left.
    await rm(partial, { force: true });
    const open = () => createWriteStream(partial, { flags: 'wx', mode: 0o600, flush: true });
    const report = await backUp(open, compressionOf(file), options);
    await rename(partial, file);
    await syncFolder(dirname(file));
    return { ...report, file };
  } catch (error) {
    await rm(partial, { force: true });
    throw systemFault(error, `writing the backup ${file}`);
  }
}

/** Copies the folder to a stream, which is opened when everything is ready. Throws BackupError or PratiqueError. */
export async function backUp(
  open: () => Writable,
  compression: Compression,
  options: BackupOptions,
): Promise<BackupReport> {
  const { dataFolder } = options;
  await removeLeftovers(dataFolder);
  const staging = join(dataFolder, `${STAGING}${process.pid}`);
  try {
    await mkdir(staging, { mode: 0o700 });
    const { entries, made, remarks } = await collect(staging, options);
    const written = await writeTar(open(), compression, made, entries);
    const { files, blobs, ...rest } = made;
    const told = { ...rest, files: files.length, blobs: blobs.length };
    return { file: null, ...written, manifest: told, remarks };
  } catch (error) {
    throw systemFault(error, `copying the data folder ${dataFolder}`);
  } finally {
    await rm(staging, { recursive: true, force: true });
  }
}

const STAGING = '.backup-';

/** By the file's name: `.gz`, `.tgz`, `.zst`, or a plain tar. */
function compressionOf(file: string): Compression {
  if (/\.(gz|tgz)$/.test(file)) return 'gzip';
  return /\.(zst|tzst)$/.test(file) ? 'zstd' : 'none';
}

/** Of a backup whose process is gone. */
async function removeLeftovers(dataFolder: string): Promise<void> {
  const names = await readdir(dataFolder).catch((cause: unknown) => {
    throw new BackupError('usage/data-folder', `${dataFolder} cannot be read`, {
      cause,
      next: 'run it as the user of the daemon, on the host whose data it is',
    });
  });
  for (const name of names.filter((each) => each.startsWith(STAGING))) {
    const pid = Number(name.slice(STAGING.length));
    if (pid === process.pid || !(await exists(`/proc/${pid}`)))
      await rm(join(dataFolder, name), { recursive: true, force: true });
  }
}

/** One entry of the tar: its place in it, and the file that is copied. */
type Entry = { readonly path: string; readonly source: string; readonly from?: string };
type Collected = {
  readonly entries: readonly (BackupFile & { readonly source: string })[];
  readonly made: BackupManifest;
  readonly remarks: readonly string[];
};

async function collect(staging: string, options: BackupOptions): Promise<Collected> {
  const { dataFolder, hasKeys, hasBlobs, clock } = options;
  if (!(await exists(join(dataFolder, HOST_DATABASE)))) {
    throw new BackupError(
      'usage/data-folder',
      `${dataFolder} is not the data folder of a host: it has no ${HOST_DATABASE}`,
      {
        next: 'say with --config or PRATIQUE_DATA which host is meant',
      },
    );
  }
  const databases = await copyDatabases(dataFolder, staging);
  const audit = await auditFiles(dataFolder, hasKeys);
  const blobs = await blobsOf(join(staging, 'store/catalog.sqlite'));
  const linked = hasBlobs ? await linkBlobs(dataFolder, staging, blobs) : [];
  const { files: config, missing } = await configFiles(staging, options);
  const found = [...databases.entries, ...audit, ...(await trustFiles(dataFolder)), ...config];
  const entries = await Promise.all(found.map((entry) => settleEntry(entry, staging)));
  // The keys are read after the chain: those of a rotation in between would not open it.
  if ((await keysDigest(dataFolder)) !== databases.keys) {
    throw new BackupError('conflict/backup-rotation', 'the key of the audit chain was changed while it was copied', {
      next: 'make the backup again',
    });
  }
  // A blob's name is its digest; it is held against its bytes while they are written.
  const all = [...entries, ...linked];
  const made: BackupManifest = {
    format: 'pratique.backup/1',
    program: manifest.version,
    madeAtMs: clock.nowMs(),
    hasKeys,
    hasBlobs,
    schemas: databases.schemas,
    files: all.map(({ path, sizeBytes, digest, from }) => ({
      path,
      sizeBytes,
      digest,
      ...(from === undefined ? {} : { from }),
    })),
    blobs,
  };
  return { entries: all, made, remarks: [...remarksOf(options), ...missing, ...(await aside(dataFolder))] };
}

/** Databases of a data folder in the order of their moments (see the head of this file). */
async function databasesOf(dataFolder: string): Promise<readonly string[]> {
  const vendors = await filesBelow(dataFolder, 'vendors');
  const fixed = [HOST_DATABASE, 'audit/audit.db', 'store/catalog.sqlite'];
  return [...fixed, ...vendors.filter((path) => path.endsWith('.sqlite'))];
}

/** Plain files one folder deep: `vendors/NAME/FILE`. */
async function filesBelow(dataFolder: string, name: string): Promise<readonly string[]> {
  const found: string[] = [];
  for (const folder of await readdir(join(dataFolder, name), { withFileTypes: true }).catch(() => [])) {
    if (!folder.isDirectory()) continue;
    const inside = await readdir(join(dataFolder, name, folder.name), { withFileTypes: true });
    for (const file of inside) if (file.isFile()) found.push(`${name}/${folder.name}/${file.name}`);
  }
  return found.sort();
}

type Copied = {
  readonly entries: readonly Entry[];
  readonly schemas: BackupManifest['schemas'];
  /** Of the keys that the chain had at its moment. */
  readonly keys: Digest;
};

/**
 * All moments are taken in one go, before anything is copied: a daemon at work writes on meanwhile. Keys that change between two
 * looks mean that a rotation was under way: then the chain and its keys might not fit together, and it is done again.
 */
async function copyDatabases(dataFolder: string, staging: string): Promise<Copied> {
  for (let attempt = 1; ; attempt += 1) {
    const keys = await keysDigest(dataFolder);
    const snapshots: { readonly path: string; readonly snapshot: Snapshot }[] = [];
    try {
      for (const path of await databasesOf(dataFolder)) {
        if (!(await exists(join(dataFolder, path)))) continue;
        snapshots.push({ path, snapshot: takeSnapshot(join(dataFolder, path)) });
      }
      if ((await keysDigest(dataFolder)) !== keys && attempt < BACKUP_KEY_TRIES_MAX) continue;
      for (const { path, snapshot } of snapshots) {
        await mkdir(dirname(join(staging, path)), { recursive: true, mode: 0o700 });
        await snapshot.copyTo(join(staging, path));
      }
      const entries = snapshots.map(({ path }) => ({ path: `data/${path}`, source: join(staging, path) }));
      const schemas = Object.fromEntries(snapshots.map(({ path, snapshot }) => [path, snapshot.schema]));
      return { entries, schemas, keys };
    } finally {
      for (const { snapshot } of snapshots) snapshot.close();
    }
  }
}

async function keysDigest(dataFolder: string): Promise<Digest> {
  const found = await auditFiles(dataFolder, true);
  return digestOf((await Promise.all(found.map(async ({ source }) => await readFile(source)))).map(digestOf).join(' '));
}

/** The keys of the audit chain. Private ones are those that are not `.pub`. */
async function auditFiles(dataFolder: string, hasKeys: boolean): Promise<readonly Entry[]> {
  const names = await readdir(join(dataFolder, 'audit')).catch(() => []);
  return names
    .filter((name) => /\.(pem|pub)$/.test(name) && (hasKeys || name.endsWith('.pub')))
    .sort()
    .map((name) => ({ path: `data/audit/${name}`, source: join(dataFolder, 'audit', name) }));
}

/** What was verified last of each vendor, and the host's idea of time: what forbids going back. */
async function trustFiles(dataFolder: string): Promise<readonly Entry[]> {
  const kept = (await filesBelow(dataFolder, 'vendors')).filter((path) => path.endsWith('.json'));
  const time = (await exists(join(dataFolder, 'trust-time.json'))) ? ['trust-time.json'] : [];
  return [...kept, ...time].map((path) => ({ path: `data/${path}`, source: join(dataFolder, path) }));
}

async function blobsOf(catalog: string): Promise<BackupManifest['blobs']> {
  if (!(await exists(catalog))) return [];
  const db = new DatabaseSync(catalog, { readOnly: true });
  try {
    const rows = db.prepare('SELECT digest, size_bytes FROM blobs ORDER BY digest').all();
    return rows.flatMap((row) => {
      const digest = String(row.digest);
      return isDigest(digest) ? [{ digest, sizeBytes: Number(row.size_bytes) }] : [];
    });
  } finally {
    db.close();
  }
}

/** A second name for each blob: what the store forgets while we write stays until we are done. */
async function linkBlobs(
  dataFolder: string,
  staging: string,
  blobs: BackupManifest['blobs'],
): Promise<Collected['entries']> {
  const linked: Collected['entries'][number][] = [];
  await mkdir(join(staging, 'blobs'), { mode: 0o700 });
  for (const { digest, sizeBytes } of blobs) {
    const source = join(staging, 'blobs', digest);
    const inStore = `store/blobs/${digest.slice(0, 2)}/${digest}`;
    const isThere = await link(join(dataFolder, inStore), source).then(
      () => true,
      (error: unknown) => {
        if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return false;
        throw error;
      },
    );
    // A row without a file is what the next start of the daemon drops, too.
    if (isThere) linked.push({ path: `data/${inStore}`, source, sizeBytes, digest });
  }
  return linked;
}

type ConfigCopies = { readonly files: readonly Entry[]; readonly missing: readonly string[] };

/** The configuration, and the roots and keyrings that it and added vendors name. */
async function configFiles(staging: string, options: BackupOptions): Promise<ConfigCopies> {
  const added = addedVendors(join(staging, HOST_DATABASE));
  const trusted = [...options.vendors, ...added].flatMap((vendor) =>
    vendor.kind === 'tuf' ? [vendor.rootPath] : vendor.keyring === undefined ? [] : [vendor.keyring],
  );
  const files: Entry[] = [];
  const missing: string[] = [];
  for (const [index, from] of [...new Set([...options.configFiles, ...trusted])].entries()) {
    const size = await stat(from).then(
      (found) => (found.isFile() ? found.size : null),
      () => null,
    );
    if (size === null || size > Math.max(CONFIG_FILE_BYTES_MAX, KEYRING_BYTES_MAX)) {
      missing.push(`${from} is named by the configuration or a vendor and could not be copied`);
      continue;
    }
    const name = basename(from).replace(/[^A-Za-z0-9._-]/g, '_');
    files.push({ path: `config/${index + 1}-${name}`, source: from, from });
  }
  return { files, missing };
}

function addedVendors(path: string): readonly VendorConfig[] {
  const db = new DatabaseSync(path, { readOnly: true });
  try {
    // The cast holds: only the vendor book writes this column.
    return db
      .prepare('SELECT config FROM vendor')
      .all()
      .map((row) => JSON.parse(String(row.config)) as VendorConfig);
  } finally {
    db.close();
  }
}

/** A small file that others may replace is copied first, so that its digest is that of what is written. */
async function settleEntry(entry: Entry, staging: string): Promise<BackupFile & { readonly source: string }> {
  const isOurs = entry.source.startsWith(staging);
  if (isOurs) {
    const { size } = await stat(entry.source);
    return { ...entry, sizeBytes: size, digest: await digestOfFile(entry.source) };
  }
  const bytes = await readFile(entry.source);
  const source = join(staging, digestOf(entry.path));
  const copy = await openFile(source, 'wx', 0o600);
  try {
    await copy.writeFile(bytes);
  } finally {
    await copy.close();
  }
  return { ...entry, source, sizeBytes: bytes.length, digest: digestOf(bytes) };
}

function remarksOf({ hasKeys, hasBlobs }: BackupOptions): readonly string[] {
  const keys = hasKeys
    ? 'it holds the key that signs the audit records, and perhaps credentials of the configuration: keep it as safe as the host'
    : 'it holds no private keys: put audit/*.pem back before a restored host is started';
  return hasBlobs ? [keys] : [keys, 'packages are not in it: a restored host fetches them again when it needs them'];
}

/** What lies in the data folder and stays there. */
async function aside(dataFolder: string): Promise<readonly string[]> {
  return [...(await tokenRemarks(dataFolder)), ...(await overlayRemarks(dataFolder))];
}

/** Sealed for one host, a token opens on no other; with a key file, the backup would be as good as the tokens. */
async function tokenRemarks(dataFolder: string): Promise<readonly string[]> {
  const names = await readdir(join(dataFolder, 'licenses')).catch(() => []);
  const licenses = names.filter((name) => name.endsWith('.json')).map((name) => name.slice(0, -'.json'.length));
  if (licenses.length === 0) return [];
  return [`tokens are not in it: after a restore give those of ${licenses.join(', ')} again (pratique license rotate)`];
}

/** What a VM has accepted and its disk does not have yet lies beside the disks, and is backed up with them. */
async function overlayRemarks(dataFolder: string): Promise<readonly string[]> {
  const vms = await readdir(join(dataFolder, 'overlays')).catch(() => []);
  if (vms.length === 0) return [];
  return [
    `disks are not in it; ${vms.join(', ')} also have an overlay in ${join(dataFolder, 'overlays')}: back it up with them`,
  ];
}

/** Writes the tar and says how long it became and what its digest is. */
async function writeTar(
  target: Writable,
  compression: Compression,
  made: BackupManifest,
  entries: Collected['entries'],
): Promise<{ readonly sizeBytes: number; readonly digest: Digest }> {
  const tar = pack();
  const hash = createHash('sha256');
  let sizeBytes = 0;
  const count = async function* (pieces: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const piece of pieces) {
      sizeBytes += piece.length;
      hash.update(piece);
      yield piece;
    }
  };
  const feed = async () => {
    await addEntry(tar, MANIFEST_NAME, made.madeAtMs, Buffer.from(JSON.stringify(made)));
    for (const entry of entries) await addFile(tar, made.madeAtMs, entry);
    tar.finalize();
  };
  // tar-stream's Pack is a streamx stream: async iteration is the bridge to Node's own streams.
  const written = pipeline(Readable.from(tar), compressor(compression), count, target);
  await Promise.all([
    feed().catch((error: unknown) => {
      tar.destroy(error instanceof Error ? error : new Error(String(error)));
      throw error;
    }),
    written,
  ]);
  // The cast holds: sha256 in hex is what a Digest is.
  return { sizeBytes, digest: hash.digest('hex') as Digest };
}

function compressor(compression: Compression): Transform {
  switch (compression) {
    case 'none':
      return new PassThrough();
    case 'gzip':
      return createGzip();
    case 'zstd':
      return createZstdCompress();
    default:
      return compression satisfies never;
  }
}

const headOf = (name: string, atMs: number, size: number) =>
  ({ name, size, mode: 0o600, mtime: new Date(atMs), type: 'file', uid: 0, gid: 0, uname: '', gname: '' }) as const;

async function addEntry(tar: Pack, name: string, atMs: number, bytes: Buffer): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    tar.entry(headOf(name, atMs, bytes.length), bytes, (error) => (error == null ? resolve() : reject(error)));
  });
}

/** Holds the file against its digest on the way: a rotten blob must not be restored as a sound one. */
async function addFile(
  tar: Pack,
  atMs: number,
  { path, source, sizeBytes, digest }: Collected['entries'][number],
): Promise<void> {
  const hash = createHash('sha256');
  const hashed = async function* (pieces: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const piece of pieces) {
      hash.update(piece);
      yield piece;
    }
  };
  const { size } = await stat(source);
  if (size === sizeBytes) await pipeline(createReadStream(source), hashed, tar.entry(headOf(path, atMs, sizeBytes)));
  if (size === sizeBytes && hash.digest('hex') === digest) return;
  throw new BackupError(
    'host-fault/backup-rotten',
    `${path.slice('data/'.length)} is not what it was when it was stored`,
    {
      next: 'run `pratique store scrub`, then make the backup again',
    },
  );
}

async function exists(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  );
}

/** Errors of the file system get a code; ours pass. */
function systemFault(error: unknown, what: string): unknown {
  const isSystems = error instanceof Error && 'code' in error && /^E[A-Z]+$/.test(String(error.code));
  if (!isSystems) return error;
  return new BackupError('host-fault/backup', what, {
    cause: error,
    next: 'check the permissions and the free space: a backup needs room for a copy of the databases',
  });
}
