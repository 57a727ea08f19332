// Fetches Debian packages through the machine's own apt configuration and pins what it got, so that an image stays the same.
import { mkdir, mkdtemp, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { type Static, Type } from 'typebox';
import { type Digest, digestOfFile } from '../src/base/digest.ts';
import { writeDurably } from '../src/base/durable-file.ts';
import type { Log } from '../src/base/log.ts';
import { makeParser, parseJson } from '../src/base/parse.ts';
import { runCommand, tryCommand } from '../src/base/run-command.ts';
import { DigestSchema } from '../src/model/digest-schema.ts';
import { withFileLock } from './file-lock.ts';
import { ImageError } from './image-error.ts';

/** Milliseconds for one apt run: a package index of 50 MB over a slow line. */
const APT_TIMEOUT_MS = 600_000;

const PinSchema = Type.Object({ version: Type.String(), digest: DigestSchema, file: Type.String() });
const parsePin = makeParser(PinSchema, 'host-fault/package-pin');
type Pin = Static<typeof PinSchema>;

export type DebianPackage = {
  readonly name: string;
  readonly version: string;
  readonly digest: Digest;
  /** The .deb file. */
  readonly path: string;
};

export type PackageOptions = { readonly name: string; readonly cacheFolder: string; readonly log: Log };

/**
 * The package as it was first fetched into this cache, or the machine's candidate now, which is then pinned.
 * Throws ImageError `host-fault/package` when apt cannot bring it.
 */
export async function fetchPackage(options: PackageOptions): Promise<DebianPackage> {
  const folder = join(options.cacheFolder, 'packages', options.name);
  await mkdir(folder, { recursive: true });
  return await withFileLock(join(folder, 'lock'), async () => {
    return (await readPinned(options.name, folder)) ?? (await downloadAndPin(options, folder));
  });
}

/** Unpacks the package's files below a folder, without running any of its scripts. */
export async function unpackPackage(debianPackage: DebianPackage, folder: string): Promise<void> {
  await runCommand(['dpkg-deb', '--extract', debianPackage.path, folder], {
    purpose: `unpacking ${debianPackage.name}`,
  });
}

/** One control field of the package, an empty text if it has none. */
export async function packageField(path: string, field: string): Promise<string> {
  return (await runCommand(['dpkg-deb', '--field', path, field], { purpose: `reading ${path}` })).trim();
}

async function readPinned(name: string, folder: string): Promise<DebianPackage | null> {
  const pinPath = join(folder, 'pin.json');
  const text = await readFile(pinPath, 'utf8').catch(() => null);
  if (text === null) return null;
  const pin = parsePin(parseJson(text, pinPath, 'host-fault/package-pin'), pinPath);
  const path = join(folder, pin.file);
  // A file that no longer has its pinned content is fetched anew rather than built into an image.
  if ((await digestOfFile(path).catch(() => null)) !== pin.digest) return null;
  return { name, version: pin.version, digest: pin.digest, path };
}

async function downloadAndPin(options: PackageOptions, folder: string): Promise<DebianPackage> {
  const { name, log } = options;
  const temporary = await mkdtemp(join(folder, 'download-'));
  try {
    await aptDownload(options, temporary);
    const file = (await readdir(temporary)).find((entry) => entry.endsWith('.deb'));
    if (file === undefined) throw new ImageError('host-fault/package', `apt-get brought no file for ${name}`);
    const path = join(folder, file);
    await rename(join(temporary, file), path);
    const version = await packageField(path, 'Version');
    const pin: Pin = { version, digest: await digestOfFile(path), file };
    await writeDurably(join(folder, 'pin.json'), `${JSON.stringify(pin)}\n`, 0o644);
    log.info({ package: name, version, digest: pin.digest }, 'package fetched and pinned');
    return { name, version, digest: pin.digest, path };
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

/** First with the machine's package lists; if those are missing or too old, with fresh ones of our own (which needs no root). */
async function aptDownload({ name, cacheFolder, log }: PackageOptions, folder: string): Promise<void> {
  const run = { cwd: folder, timeoutMs: APT_TIMEOUT_MS, purpose: `fetching the Debian package ${name}` };
  const asRoot = process.getuid?.() === 0 ? ['-o', 'APT::Sandbox::User=root'] : [];
  const download = ['apt-get', '-qq', ...asRoot, 'download', name];
  if ((await tryCommand(download, run)).exitCode === 0) return;

  log.info({ package: name }, "the machine's package lists do not bring it; reading fresh ones");
  const lists = join(cacheFolder, 'apt', 'lists');
  const archives = join(cacheFolder, 'apt', 'cache');
  await mkdir(join(lists, 'partial'), { recursive: true });
  await mkdir(join(archives, 'archives', 'partial'), { recursive: true });
  const own = [...asRoot, '-o', `Dir::State::lists=${lists}`, '-o', `Dir::Cache=${archives}`];
  try {
    await runCommand(['apt-get', '-qq', ...own, 'update'], run);
    await runCommand(['apt-get', '-qq', ...own, 'download', name], run);
  } catch (cause) {
    throw new ImageError('host-fault/package', `the Debian package ${name} could not be fetched`, {
      cause,
      next: 'check that `apt-get update` works on this machine',
    });
  }
}
