// Installs a bundle so that a power cut at any point leaves the old version or the new one.
//
//   unpack to versions/<v>.tmp ─► flush ─► rename to versions/<v> ─► its `install` ─► flush ─► swap `current` ─► its `check`
//     ─► write the product record (from here on the new version counts) ─► forget the journal
//
// Until the record is written, recoverBundle takes everything back to the version before.
import { AGENT_ENTRY_TIMEOUT_MS, AGENT_PACKAGES_TIMEOUT_MS, AGENT_SLICE_BYTES } from '../../src/base/limits.ts';
import type { ManifestItem } from '../../src/model/manifest.ts';
import type { InstallAction } from '../../src/model/release.ts';
import { makeFolders, readRecord, removeDurably, removeTree, writeRecord } from '../durable.ts';
import { findProgram } from '../inventory.ts';
import type { Paths } from '../paths.ts';
import { AgentError, type OpenFile, type Platform } from '../platform/platform.ts';
import { folderOf, isCurrent, isFileName, readProduct, writeProduct } from '../products.ts';
import { type BundleJournal, EMBEDDED } from '../schemas.ts';
import { type TarEntry, TarReader } from '../tar.ts';
import { failure, type InstallContext, type Outcome, programFailure } from './context.ts';

export type BundleAction = Extract<InstallAction, { action: 'bundle' }>;

/** Room for the marks that are put behind a version's folder name. */
const VERSION_CHARS_MAX = 200;

const journalPath = (paths: Paths) => `${paths.state}/bundle.json`;

/** Installs one bundle. Failures are the result; the version before stays or comes back. */
export async function installBundle(
  context: InstallContext,
  item: ManifestItem,
  action: BundleAction,
): Promise<Outcome> {
  const { platform, paths } = context;
  try {
    recoverBundle(platform, paths);
    checkNames(item);
    if (isInstalled(context, item, action)) return await checkAgain(context, item, action);
    const journal = beginJournal(context, item, action);
    const outcome = await installFolder(context, item, action, journal);
    if (outcome.outcome === 'installed') commit(context, item, action, journal);
    else recoverBundle(platform, paths);
    return outcome;
  } catch (error) {
    const outcome = failure(error);
    takeBack(platform, paths);
    return outcome;
  }
}

/** After a failure: the disk may be full or failing, and then the next boot takes back what is left. */
function takeBack(platform: Platform, paths: Paths): void {
  try {
    recoverBundle(platform, paths);
  } catch (error) {
    platform.log(`the broken-off install could not be taken back: ${error instanceof Error ? error.message : error}`);
  }
}

/**
 * Takes a broken-off install back to the version before; nothing happens if there is none. Called at every start,
 * before anything is reported, and safe to be broken off itself.
 */
export function recoverBundle(platform: Platform, paths: Paths): void {
  const { files } = platform;
  const journal = readRecord<BundleJournal>(platform, journalPath(paths), EMBEDDED.bundleJournal);
  if (journal !== null && isFileName(journal.folder)) {
    const { prefix, folder, previous } = journal;
    const record = readProduct(platform, paths, journal.product);
    const isCommitted = record !== null && record.prefix === prefix && folderOf(record) === folder;
    if (!isCommitted) {
      const isSwapped = files.readLink(`${prefix}/current`) === `versions/${folder}`;
      if (isSwapped && previous !== null) swapCurrent(platform, prefix, previous);
      if (isSwapped && previous === null) removeDurably(platform, `${prefix}/current`);
      removeTree(platform, `${prefix}/versions/${folder}`);
    }
    removeTree(platform, `${prefix}/versions/${folder}.tmp`);
    removeTree(platform, archivePath(journal));
  }
  removeDurably(platform, journalPath(paths));
}

/** Product and version become names of files and folders. */
function checkNames({ product, version }: ManifestItem): void {
  const isFit = isFileName(product) && isFileName(version) && version.length <= VERSION_CHARS_MAX;
  if (!isFit || version.endsWith('.tmp'))
    throw new AgentError('bad-name', `${product} ${version} cannot name a folder`);
}

/** Whether this very artifact counts already: the power failed after its record was written. */
function isInstalled({ platform, paths }: InstallContext, item: ManifestItem, action: BundleAction): boolean {
  const record = readProduct(platform, paths, item.product);
  if (record === null || record.prefix !== action.prefix || record.version !== item.version) return false;
  return record.digest === item.files[0]?.digest && isCurrent(platform, record);
}

async function checkAgain(context: InstallContext, item: ManifestItem, action: BundleAction): Promise<Outcome> {
  if (action.check === undefined) return { outcome: 'installed' };
  context.report(item, 'check');
  const where = { prefix: action.prefix, folder: currentFolder(context, action), previous: null };
  const failed = await runEntry(context, { item, action, where, entry: action.check, code: 'check-failed' });
  return failed === null ? { outcome: 'installed', checkPassed: true } : { ...failed, checkPassed: false };
}

function currentFolder({ platform }: InstallContext, { prefix }: BundleAction): string {
  const target = platform.files.readLink(`${prefix}/current`) ?? '';
  return target.slice(target.lastIndexOf('/') + 1);
}

/** Chooses the new folder and writes down what is about to be done, before it is done. */
function beginJournal({ platform, paths }: InstallContext, item: ManifestItem, action: BundleAction): BundleJournal {
  const { product, version } = item;
  const { prefix } = action;
  const previous = platform.files.readLink(`${prefix}/current`);
  const current = previous?.slice(previous.lastIndexOf('/') + 1);
  const record = readProduct(platform, paths, product);
  // A version that is there already is installed beside itself: the swap stays one step, and the record tells them apart.
  const taken = [current, record === null ? undefined : folderOf(record)];
  const folder = [version, `${version}~2`, `${version}~3`].find((name) => !taken.includes(name)) ?? version;
  makeFolders(platform, `${prefix}/versions`);
  const journal: BundleJournal = { product, prefix, folder, previous };
  writeRecord(platform, journalPath(paths), journal);
  removeTree(platform, `${prefix}/versions/${folder}`);
  removeTree(platform, `${prefix}/versions/${folder}.tmp`);
  return journal;
}

async function installFolder(
  context: InstallContext,
  item: ManifestItem,
  action: BundleAction,
  journal: BundleJournal,
): Promise<Outcome> {
  const { platform, report } = context;
  report(item, 'unpack');
  await unpack(context, item, action, journal);
  if (action.install !== undefined) {
    report(item, 'install');
    const failed = await runEntry(context, {
      item,
      action,
      where: journal,
      entry: action.install,
      code: 'install-failed',
    });
    if (failed !== null) return failed;
    // What the entry wrote must be as durable as what was unpacked before the version may count.
    platform.files.syncTree(`${journal.prefix}/versions/${journal.folder}`);
  }
  swapCurrent(platform, journal.prefix, `versions/${journal.folder}`);
  if (action.check === undefined) return { outcome: 'installed' };
  report(item, 'check');
  const failed = await runEntry(context, { item, action, where: journal, entry: action.check, code: 'check-failed' });
  return failed === null ? { outcome: 'installed', checkPassed: true } : { ...failed, checkPassed: false };
}

/** Unpacks to `<folder>.tmp`, makes it durable, and only then gives it its name. */
async function unpack(
  context: InstallContext,
  item: ManifestItem,
  action: BundleAction,
  journal: BundleJournal,
): Promise<void> {
  const { platform } = context;
  const artifact = `${context.drive}${item.files[0]?.path ?? ''}`;
  const versions = `${journal.prefix}/versions`;
  const temporary = `${versions}/${journal.folder}.tmp`;
  const archive = await openArchive(context, artifact, action, journal);
  platform.files.makeFolder(temporary, 0o755);
  try {
    await unpackEntries(platform, archive, temporary);
  } finally {
    archive.close();
  }
  removeTree(platform, archivePath(journal));
  platform.files.syncTree(temporary);
  platform.files.rename(temporary, `${versions}/${journal.folder}`);
  platform.files.syncFolder(versions);
}

/** The tar of a compressed bundle, while it is unpacked. */
function archivePath(journal: BundleJournal): string {
  return `${journal.prefix}/versions/.${journal.folder}.tar`;
}

/** Opens the tar: the artifact itself, or what the guest's own gzip or zstd makes of it. */
async function openArchive(
  { platform, paths }: InstallContext,
  artifact: string,
  action: BundleAction,
  journal: BundleJournal,
): Promise<OpenFile> {
  const { files } = platform;
  if (action.compression === 'none') return files.open(artifact);
  const program = findProgram(platform, paths, action.compression);
  if (program === null) {
    throw new AgentError('unsupported-compression', `this guest has no ${action.compression}`);
  }
  const path = archivePath(journal);
  const file = files.create(path, 0o600);
  try {
    // More than is free cannot be meant; the limit keeps a small bundle from filling the disk.
    const sizeBytesMax = Math.max(1, files.freeBytes(journal.prefix));
    const result = await platform.run({
      argv: [program, '-dc', artifact],
      timeoutMs: AGENT_PACKAGES_TIMEOUT_MS,
      outputFile: { file, sizeBytesMax },
    });
    // Ended by a signal, not by us: it went over the limit.
    const isFull = result.exitCode === null && !result.isTimeout;
    if (isFull) throw new AgentError('no-space', `the bundle unpacks to more than is free below ${journal.prefix}`);
    if (result.exitCode !== 0) throw new AgentError('unpack-failed', `${program} failed: ${result.output}`);
  } finally {
    file.close();
  }
  return files.open(path);
}

async function unpackEntries(platform: Platform, archive: OpenFile, folder: string): Promise<void> {
  const reader = new TarReader(archive, platform.decode);
  let inSlice = 0;
  let entries = 0;
  for (let entry = reader.next(); entry !== null; entry = reader.next()) {
    entries += 1;
    makeFoldersBelow(platform, folder, entry.path);
    unpackEntry(platform, reader, entry, folder);
    // Between entries the channel is heard.
    inSlice += entry.kind === 'file' ? entry.sizeBytes + 4096 : 4096;
    if (inSlice < AGENT_SLICE_BYTES) continue;
    inSlice = 0;
    await platform.clock.sleep(0);
  }
  if (entries === 0) throw new AgentError('bad-bundle', 'the bundle is refused: it is empty');
}

/** Folders that the tar implies but does not name. */
function makeFoldersBelow({ files }: Platform, folder: string, path: string): void {
  for (let end = path.indexOf('/'); end >= 0; end = path.indexOf('/', end + 1)) {
    const above = `${folder}/${path.slice(0, end)}`;
    if (files.stat(above) === null) files.makeFolder(above, 0o755);
  }
}

function unpackEntry({ files }: Platform, reader: TarReader, entry: TarEntry, folder: string): void {
  const path = `${folder}/${entry.path}`;
  switch (entry.kind) {
    case 'folder':
      if (files.stat(path) === null) files.makeFolder(path, entry.mode | 0o700);
      return;
    case 'symlink':
      files.symlink(entry.target, path);
      return;
    case 'hardlink':
      files.hardLink(`${folder}/${entry.target}`, path);
      return;
    case 'file': {
      const file = files.create(path, 0o600);
      try {
        for (let piece = reader.readContent(); piece !== null; piece = reader.readContent()) file.write(piece);
        file.setMode(entry.mode);
      } finally {
        file.close();
      }
      return;
    }
    default:
      entry satisfies never;
  }
}

/** Points `current` at another version in one step. */
function swapCurrent({ files }: Platform, prefix: string, target: string): void {
  const temporary = `${prefix}/current.new`;
  if (files.stat(temporary) !== null) files.remove(temporary);
  files.symlink(target, temporary);
  files.rename(temporary, `${prefix}/current`);
  files.syncFolder(prefix);
}

/**
 * Runs the check of the version that counts, as its record names it; null if it passed, otherwise why not. Throws AgentError when
 * there is nothing to run.
 */
export async function runOwnCheck(
  context: Pick<InstallContext, 'platform' | 'paths'>,
  product: string,
  timeoutMs: number,
): Promise<string | null> {
  const record = isFileName(product) ? readProduct(context.platform, context.paths, product) : null;
  if (record === null) throw new AgentError('no-product', `the bundle ${product} is not installed`);
  const { version, prefix, check, previousFolder } = record;
  if (check === undefined) throw new AgentError('no-check', `the bundle ${product} ${version} has no check`);
  const previous = previousFolder ? `versions/${previousFolder}` : null;
  const failed = await runEntry(context, {
    item: { product, version },
    action: { timeoutMs: Math.min(timeoutMs, record.checkTimeoutMs ?? AGENT_ENTRY_TIMEOUT_MS) },
    where: { prefix, folder: folderOf(record), previous },
    entry: check,
    code: 'check-failed',
  });
  return failed === null
    ? null
    : failed.output || `its check ended with ${failed.exitCode ?? failed.code ?? 'an error'}`;
}

type Entry = {
  readonly item: Pick<ManifestItem, 'product' | 'version'>;
  readonly action: Pick<BundleAction, 'timeoutMs'>;
  readonly where: Pick<BundleJournal, 'prefix' | 'folder' | 'previous'>;
  readonly entry: string;
  readonly code: string;
};

/** Runs an entry of the bundle in its own folder; null if it went well. */
async function runEntry(
  { platform, paths }: Pick<InstallContext, 'platform' | 'paths'>,
  what: Entry,
): Promise<Outcome | null> {
  const { item, action, where, entry, code } = what;
  const folder = `${where.prefix}/versions/${where.folder}`;
  const program = `${folder}/${entry}`;
  if (platform.files.stat(program) === null) {
    return { outcome: 'failed', code, output: `the bundle has no ${entry}` };
  }
  const result = await platform.run({
    argv: [program],
    cwd: folder,
    timeoutMs: action.timeoutMs ?? AGENT_ENTRY_TIMEOUT_MS,
    env: {
      PATH: paths.programs.join(':'),
      HOME: '/root',
      PRATIQUE_PRODUCT: item.product,
      PRATIQUE_VERSION: item.version,
      PRATIQUE_PREFIX: where.prefix,
      // Absolute path of the version before; empty if there is none.
      PRATIQUE_PREVIOUS: where.previous === null ? '' : absolute(where.prefix, where.previous),
    },
  });
  return result.exitCode === 0 && !result.isTimeout ? null : programFailure(code, result);
}

function absolute(prefix: string, target: string): string {
  return target.startsWith('/') ? target : `${prefix}/${target}`;
}

/** The new version counts from here on. What is two versions old goes. */
function commit(
  { platform, paths }: InstallContext,
  item: ManifestItem,
  { check, timeoutMs }: BundleAction,
  journal: BundleJournal,
): void {
  const { product, version } = item;
  const { prefix, folder } = journal;
  const before = readProduct(platform, paths, product);
  const digest = item.files[0]?.digest ?? null;
  const isSamePlace = before !== null && before.prefix === prefix;
  const previousFolder = isSamePlace ? folderOf(before) : null;
  const ownCheck =
    check === undefined ? {} : { check, ...(timeoutMs === undefined ? {} : { checkTimeoutMs: timeoutMs }) };
  writeProduct(platform, paths, { product, version, prefix, digest, folder, previousFolder, ...ownCheck });
  const oldest = isSamePlace ? before.previousFolder : null;
  if (oldest && oldest !== folder && oldest !== previousFolder && isFileName(oldest)) {
    prune(platform, `${prefix}/versions/${oldest}`);
  }
  removeDurably(platform, journalPath(paths));
}

/** The new version stands whether or not the old folder can be removed. */
function prune(platform: Platform, folder: string): void {
  try {
    removeTree(platform, folder);
  } catch (error) {
    platform.log(`${folder} could not be removed: ${error instanceof Error ? error.message : error}`);
  }
}
