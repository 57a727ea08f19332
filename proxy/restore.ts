// Makes a data folder from a backup: everything is verified beside its place, and then put there by one rename.
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { chmod, mkdir, open, readdir, readFile, rename, rm } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { PassThrough, Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { extract, type Header } from 'tar-stream';
import type { Clock } from '../src/base/clock.ts';
import type { Digest } from '../src/base/digest.ts';
import { syncFolder, writeDurably } from '../src/base/durable-file.ts';
import { PratiqueError } from '../src/base/errors.ts';
import { BACKUP_MANIFEST_BYTES_MAX } from '../src/base/limits.ts';
import { parseJson } from '../src/base/parse.ts';
import {
  BackupError,
  type BackupFile,
  type BackupManifest,
  checkManifest,
  damaged,
  MANIFEST_NAME,
  parseManifest,
  RESTORED_CONFIG,
  RESTORED_NAME,
} from './backup-manifest.ts';
import { HOST_DATABASE, KNOWN_SCHEMAS } from './databases.ts';

export type RestoreOptions = {
  readonly file: string;
  readonly dataFolder: string;
  /** What the backup said its own digest was; null: it is not known. */
  readonly digest: string | null;
  readonly clock: Clock;
};

export type RestoreReport = {
  readonly dataFolder: string;
  readonly madeAtMs: number;
  readonly program: string;
  readonly files: number;
  readonly blobs: number;
  /** Where each file of the configuration lies now, and where it had been. */
  readonly config: readonly { readonly path: string; readonly from: string }[];
  /** What is left to do, a sentence each. */
  readonly next: readonly string[];
};

/**
 * Restores into a folder that is empty or not there. Throws BackupError `usage/backup-…` for a backup that is not whole or not to
 * be believed, `conflict/data-folder` for a folder with something in it, `host-unfit/schema-newer` for one of a newer program;
 * then nothing was changed.
 */
export async function restore(options: RestoreOptions): Promise<RestoreReport> {
  const dataFolder = resolve(options.dataFolder);
  await requireEmpty(dataFolder);
  await requireDigest(options);
  const staging = `${dataFolder}${STAGING}${process.pid}`;
  try {
    await removeLeftovers(dataFolder);
    await mkdir(staging, { recursive: true, mode: 0o700 });
    const manifest = await takeOut(options.file, staging);
    const told = { format: 'pratique.restored/1', madeAtMs: manifest.madeAtMs, restoredAtMs: options.clock.nowMs() };
    await writeDurably(join(staging, RESTORED_NAME), `${JSON.stringify(told)}\n`);
    // QEMUs of other users pass through it (docs/operations.md).
    await chmod(staging, 0o711);
    await syncFolder(staging);
    await putInPlace(staging, dataFolder);
    return reportOf(manifest, dataFolder);
  } catch (error) {
    throw fileFault(error, `restoring ${options.file} to ${dataFolder}`);
  } finally {
    await rm(staging, { recursive: true, force: true });
  }
}

const STAGING = '.restore-';

/** An empty folder has no daemon: a daemon's lock is the first file it makes. */
async function requireEmpty(dataFolder: string): Promise<void> {
  const names: readonly string[] = await readdir(dataFolder).catch((error: unknown) => {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return [];
    throw fileFault(error, `reading ${dataFolder}`);
  });
  if (names.length === 0) return;
  const isHost = names.includes(HOST_DATABASE) || names.includes('daemon.lock');
  throw new BackupError(
    'conflict/data-folder',
    `${dataFolder} is not empty${isHost ? ': it is the data folder of a host' : ''}`,
    {
      next: isHost
        ? 'stop its daemon and move the folder away, or restore to another one'
        : 'restore to an empty folder, or to one that does not exist yet',
    },
  );
}

async function requireDigest({ file, digest }: RestoreOptions): Promise<void> {
  const hash = createHash('sha256');
  try {
    if (digest === null) return;
    for await (const piece of createReadStream(file)) hash.update(piece as Buffer); // The cast holds: no encoding is set.
  } catch (error) {
    throw fileFault(error, `reading the backup ${file}`);
  }
  const found = hash.digest('hex');
  if (found !== digest) throw damaged(`its digest is ${found}, not ${digest}`);
}

/** Of a restore whose process is gone. */
async function removeLeftovers(dataFolder: string): Promise<void> {
  const prefix = `${basename(dataFolder)}${STAGING}`;
  const names = await readdir(dirname(dataFolder)).catch(() => []);
  for (const name of names.filter((each) => each.startsWith(prefix))) {
    const pid = name.slice(prefix.length);
    const isGone = await readFile(`/proc/${pid}/stat`).then(
      () => false,
      () => true,
    );
    if (isGone && /^\d+$/.test(pid)) await rm(join(dirname(dataFolder), name), { recursive: true, force: true });
  }
}

/** Writes every file that the manifest names, and nothing else. Everything is synced when it returns. */
async function takeOut(file: string, staging: string): Promise<BackupManifest> {
  const tar = extract();
  const limit = makeLimit();
  let manifest: BackupManifest | null = null;
  const left = new Map<string, BackupFile>();
  const folders = new Set<string>([staging]);
  const consume = async (): Promise<void> => {
    for await (const entry of tar) {
      requirePlain(entry);
      const { name } = entry.header;
      if (manifest === null) {
        manifest = await readManifest(entry);
        for (const each of manifest.files) left.set(each.path, each);
        limit.raise(manifest);
        continue;
      }
      const wanted = left.get(name);
      if (wanted === undefined) throw damaged(`${name.slice(0, 200)} is not in its manifest, or stands in it twice`);
      left.delete(name);
      await writeEntry(entry, wanted, await makeParent(staging, name, folders));
    }
  };
  try {
    // Before the stream is made: what opening it says would otherwise be nobody's.
    const plain = await decompressor(file);
    await Promise.all([pipeline(createReadStream(file), plain, limit.transform, tar), consume()]);
  } catch (error) {
    throw fileFault(error, `reading the backup ${file}`, true);
  }
  if (manifest === null) throw damaged('it is empty');
  const [missing] = left.keys();
  if (missing !== undefined) throw damaged(`${missing} is missing: it was cut off`);
  for (const folder of folders) await syncFolder(folder);
  return manifest;
}

type Entry = AsyncIterable<unknown> & { readonly header: Header };

function requirePlain({ header }: Entry): void {
  if (header.type === 'file' || header.type === 'contiguous-file') return;
  throw damaged(`${header.name.slice(0, 200)} is a ${header.type ?? 'thing of unknown kind'}, not a file`);
}

async function readManifest(entry: Entry): Promise<BackupManifest> {
  const { name, size = 0 } = entry.header;
  if (name !== MANIFEST_NAME || size > BACKUP_MANIFEST_BYTES_MAX) throw damaged('it does not begin with its manifest');
  const pieces: Buffer[] = [];
  for await (const piece of entry) pieces.push(piece as Buffer); // The cast holds: tar-stream hands out Buffers.
  const text = Buffer.concat(pieces).toString('utf8');
  const manifest = parseManifest(parseJson(text, MANIFEST_NAME, 'usage/backup-damaged'), MANIFEST_NAME);
  checkManifest(manifest);
  for (const [path, known] of Object.entries(KNOWN_SCHEMAS)) {
    const schema = manifest.schemas[path] ?? 0;
    if (schema <= known) continue;
    throw new BackupError(
      'host-unfit/schema-newer',
      `the backup is of Pratique ${manifest.program}: its ${path} has schema ${schema}, this program knows ${known}`,
      { next: 'restore it with the version of Pratique that made it, or a newer one' },
    );
  }
  return manifest;
}

/** The place of a file below the staging folder, its folders made. `checkManifest` has held the path against the known places. */
async function makeParent(staging: string, name: string, folders: Set<string>): Promise<string> {
  const isConfig = name.startsWith('config/');
  const inside = isConfig ? join(RESTORED_CONFIG, name.slice('config/'.length)) : name.slice('data/'.length);
  const path = join(staging, inside);
  for (let folder = dirname(path); folder !== staging; folder = dirname(folder)) {
    await mkdir(folder, { recursive: true, mode: 0o700 });
    folders.add(folder);
  }
  return path;
}

async function writeEntry(entry: Entry, { path, sizeBytes, digest }: BackupFile, target: string): Promise<void> {
  if (entry.header.size !== sizeBytes)
    throw damaged(`${path} has ${entry.header.size} bytes, its manifest says ${sizeBytes}`);
  const hash = createHash('sha256');
  const file = await open(target, 'wx', path.endsWith('.pub') ? 0o644 : 0o600);
  try {
    for await (const piece of entry) {
      hash.update(piece as Buffer); // The cast holds: tar-stream hands out Buffers.
      await file.write(piece as Buffer);
    }
    await file.sync();
  } finally {
    await file.close();
  }
  const found = hash.digest('hex') as Digest; // The cast holds: sha256 in hex is what a Digest is.
  if (found !== digest) throw damaged(`${path} has the digest ${found}, its manifest says ${digest}`);
}

/** By the first bytes: a name may say anything (RFC 1952, RFC 8878). */
async function decompressor(file: string): Promise<Transform> {
  const handle = await open(file, 'r');
  try {
    const { buffer } = await handle.read(Buffer.alloc(4), 0, 4, 0);
    if (buffer.subarray(0, 2).equals(Buffer.from([0x1f, 0x8b]))) return createGunzip();
    return buffer.equals(Buffer.from([0x28, 0xb5, 0x2f, 0xfd])) ? createZstdDecompress() : new PassThrough();
  } finally {
    await handle.close();
  }
}

/** What a tar of that content takes at most: a decompression bomb ends here. */
function makeLimit(): { readonly transform: Transform; readonly raise: (manifest: BackupManifest) => void } {
  let bytesMax = BACKUP_MANIFEST_BYTES_MAX + TAR_OVERHEAD_BYTES;
  let total = 0;
  return {
    transform: new Transform({
      transform: (piece: Buffer, _encoding, done) => {
        total += piece.length;
        if (total > bytesMax) done(damaged('it is larger than its manifest says'));
        else done(null, piece);
      },
    }),
    raise: ({ files }) => {
      // A header, an extended header for a long name, and what fills the last block.
      bytesMax += files.reduce((sum, { sizeBytes }) => sum + sizeBytes + 4 * 512, 0);
    },
  };
}

const TAR_OVERHEAD_BYTES = 1024 * 1024;

/** rename(2) takes the place of an empty folder, and of nothing else. */
async function putInPlace(staging: string, dataFolder: string): Promise<void> {
  try {
    await rename(staging, dataFolder);
  } catch (cause) {
    const code = cause instanceof Error && 'code' in cause ? cause.code : '';
    if (code === 'ENOTEMPTY' || code === 'EEXIST') {
      throw new BackupError('conflict/data-folder', `${dataFolder} was filled by somebody else meanwhile`, {
        next: 'find out by whom, then restore to an empty folder',
      });
    }
    if (code !== 'EBUSY' && code !== 'EXDEV') throw cause;
    throw new BackupError('conflict/data-folder', `${dataFolder} is where a file system is mounted`, {
      cause,
      next: 'restore to a folder below it that does not exist yet, and name that one as dataFolder',
    });
  }
  await syncFolder(dirname(dataFolder));
}

function reportOf(manifest: BackupManifest, dataFolder: string): RestoreReport {
  const { madeAtMs, program, files, blobs, hasKeys, hasBlobs } = manifest;
  const config = files.flatMap(({ path, from }) =>
    from === undefined ? [] : [{ path: join(dataFolder, RESTORED_CONFIG, path.slice('config/'.length)), from }],
  );
  const copied = files.filter(({ path }) => path.startsWith('data/store/blobs/')).length;
  const next = [
    ...(hasKeys
      ? []
      : [`put the private key of the audit chain back: ${join(dataFolder, 'audit/audit-key.pem')}, mode 600`]),
    ...(config.length === 0
      ? []
      : ['compare the configuration with what is in its place now, and put back what is missing']),
    'start the daemon; every gate is closed first, and VMs that were plugged in prove themselves anew',
    ...(hasBlobs || blobs.length === 0 ? [] : [`${blobs.length} packages are fetched again when they are needed`]),
    'audit checkpoints made after the backup will fail: make a new one, and keep the old one as the proof of what was lost',
  ];
  return { dataFolder, madeAtMs, program, files: files.length, blobs: copied, config, next };
}

/** Errors of the file system and of decompressors get a code; ours pass. */
function fileFault(error: unknown, what: string, isReading = false): unknown {
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  if (error instanceof PratiqueError) return error;
  if (/^E[A-Z]+$/.test(code)) {
    const isMissing = code === 'ENOENT' && isReading;
    return new BackupError(isMissing ? 'usage/backup-file' : 'host-fault/restore', what, {
      cause: error,
      next: isMissing
        ? 'check the path given to --from'
        : 'check the permissions and the free space; nothing was restored',
    });
  }
  return isReading ? damaged('it is no tar, or a damaged one', error) : error;
}
