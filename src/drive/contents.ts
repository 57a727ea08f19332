// What one VM gets to see: the manifest of a plan, and the files on the drive that it names.

import { type Digest, digestOf } from '../base/digest.ts';
import { canonicalJson, writeCanonicalJson } from '../base/digest-text.ts';
import { DRIVE_FILES_MAX, MANIFEST_BYTES_MAX } from '../base/limits.ts';
import { makeParser } from '../base/parse.ts';
import { type ConfigDriveFile, ConfigDriveFileSchema, type ManifestConfig } from '../model/guest-config.ts';
import type { RunId, VmId } from '../model/ids.ts';
import { MANIFEST_FORMAT, type Manifest, type ManifestItem, ManifestSchema } from '../model/manifest.ts';
import type { Plan, PlanItem } from '../model/plan.ts';
import { DriveError } from './drive-error.ts';
import type { IsoEntry } from './iso9660.ts';

/** A file that belongs to no item: Debian's signed indices, rendered configuration. The path starts with `/apt/`, `/config/`, `/packages/` or `/agent/`. */
export type ExtraFile =
  | { readonly path: string; readonly digest: Digest; readonly sizeBytes: number }
  | { readonly path: string; readonly bytes: Uint8Array };

/** A vendor's signed archive: the guest's own apt verifies the plan's packages from these files. They become a folder below `/apt/`. */
export type DriveArchive = {
  readonly suite: string;
  readonly components: readonly string[];
  /** The signed files, with their paths below the archive's root: `dists/…`. */
  readonly files: readonly { readonly path: string; readonly digest: Digest; readonly sizeBytes: number }[];
  /** Packages of the plan that come from it, with their paths below its root: `pool/…`. */
  readonly pool: readonly { readonly digest: Digest; readonly path: string }[];
};

export type DriveContents = {
  readonly manifest: Manifest;
  /** Digest of the bytes of `/manifest.json`; announced on the channel. */
  readonly manifestDigest: Digest;
  readonly entries: readonly IsoEntry[];
};

export type ContentsOptions = {
  readonly vm: VmId;
  readonly run: RunId;
  readonly plan: Plan;
  readonly planDigest: Digest;
  readonly extraFiles?: readonly ExtraFile[];
  /** Given: every Debian package of the plan is in one of them, and the guest's apt is to verify it. */
  readonly archives?: readonly DriveArchive[];
  /** Complete, with its secrets: it goes into the drive's own metadata and into no blob. */
  readonly config?: readonly ConfigDriveFile[];
  /** Names of applied items that are to be taken back. */
  readonly configRemoved?: readonly string[];
};

/** In the guest only root has business with configuration; it may hold a password. */
const CONFIG_FILE_MODE = 0o400;
const MANIFEST_PATH = '/manifest.json';
/** Characters kept of an artifact's name; with its number it stays within every limit of the drive. */
const ARTIFACT_NAME_CHARS_MAX = 80;

const parseManifest = makeParser(ManifestSchema, 'usage/drive-manifest');
const parseConfig = makeParser(ConfigDriveFileSchema, 'usage/drive-config');

/**
 * The manifest and the entries of the drive for one run. Items stay in the plan's order, the agent's own update comes
 * last because it ends the agent. Throws DriveError or PratiqueError `usage/drive-…` when the plan is of another run or
 * names what a drive cannot carry.
 */
export function makeContents(options: ContentsOptions): DriveContents {
  const { vm, run, plan, planDigest } = options;
  if (plan.vm !== vm || plan.run !== run) {
    throw new DriveError('internal/drive-plan', `the plan is for run ${plan.run} of ${plan.vm}, not ${run} of ${vm}`);
  }
  const archives = options.archives ?? [];
  const extras = [...(options.extraFiles ?? []).map(describeExtra), ...archives.flatMap(describeSigned)];
  const config = (options.config ?? []).map((file, index) => describeConfig(options, file, index));
  const configRemoved = options.configRemoved ?? [];
  if (plan.items.length + extras.length + config.length > DRIVE_FILES_MAX) {
    throw new DriveError('usage/drive-files', `the drive of ${vm} would have more than ${DRIVE_FILES_MAX} files`);
  }
  const manifest = parseManifest(
    {
      format: MANIFEST_FORMAT,
      vm,
      run,
      planDigest,
      ...(archives.length === 0 ? {} : { apt: { archives: archives.map(describeArchive) } }),
      items: makeItems(plan.items, archives),
      ...(config.length === 0 ? {} : { config: config.map(({ file }) => file) }),
      ...(configRemoved.length === 0 ? {} : { configRemoved: [...configRemoved] }),
      extraFiles: extras.map(({ file }) => file),
    },
    `the manifest for ${vm}`,
  );
  const bytes = manifestBytes(manifest);
  if (bytes.length > MANIFEST_BYTES_MAX) {
    throw new DriveError(
      'usage/drive-manifest',
      `the manifest for ${vm} would have ${bytes.length} bytes, and the agent reads at most ${MANIFEST_BYTES_MAX}`,
      { next: 'split the content over several runs' },
    );
  }
  const entries = [
    inlineEntry(MANIFEST_PATH, bytes),
    ...manifest.items.flatMap((item) => item.files).map(blobEntry),
    ...extras.map((extra) => extra.entry),
    ...config.map((each) => each.entry),
  ];
  return { manifest, manifestDigest: digestOf(bytes), entries };
}

/** Piece by piece: as one text, a manifest of 100,000 files would be in memory four times. */
function manifestBytes(manifest: Manifest): Buffer {
  let bytes = Buffer.allocUnsafe(64 * 1024);
  let used = 0;
  writeCanonicalJson(manifest, (piece) => {
    // A UTF-16 unit has at most three bytes.
    const endMax = used + 3 * piece.length;
    if (endMax > bytes.length) {
      const larger = Buffer.allocUnsafe(Math.max(2 * bytes.length, endMax));
      bytes.copy(larger, 0, 0, used);
      bytes = larger;
    }
    used += bytes.write(piece, used, 'utf8');
  });
  return bytes.subarray(0, used);
}

/** Short, because ISO 9660 counts the levels of folders, and Debian's own paths have many. */
function archiveFolder(index: number): string {
  return `/apt/${index + 1}`;
}

function describeArchive({ suite, components }: DriveArchive, index: number) {
  return { folder: archiveFolder(index), suite, components: [...components] };
}

function makeItems(planItems: readonly PlanItem[], archives: readonly DriveArchive[]): ManifestItem[] {
  const isAgent = (item: PlanItem) => item.release.install.action === 'agent';
  const ordered = [...planItems.filter((item) => !isAgent(item)), ...planItems.filter(isAgent)];
  const digits = Math.max(2, String(ordered.length).length);
  return ordered.map((item, index) => {
    const { ecosystem, product, version, arch, install, artifact } = item.release;
    const number = String(index + 1).padStart(digits, '0');
    const folder = isAgent(item) ? 'agent' : 'packages';
    const isSigned = archives.length > 0 && install.action === 'debian-package';
    const paths = isSigned ? poolPaths(item, archives) : [`/${folder}/${number}-${safeFileName(artifact.name)}`];
    const files = paths.map((path) => ({ path, digest: artifact.digest, sizeBytes: artifact.sizeBytes }));
    return { id: item.id, ecosystem, product, version, ...(arch === undefined ? {} : { arch }), install, files };
  });
}

/** In every archive that lists it: apt looks where the index that it happened to choose says, and the bytes are the same blob. */
function poolPaths({ id, release }: PlanItem, archives: readonly DriveArchive[]): readonly string[] {
  const paths = archives.flatMap(({ pool }, index) =>
    pool
      .filter(({ digest }) => digest === release.artifact.digest)
      .map(({ path }) => `${archiveFolder(index)}/${path}`),
  );
  if (paths.length > 0) return [...new Set(paths)];
  throw new DriveError('usage/drive-unsigned', `${id} ${release.version} is in none of the vendor's signed archives`, {
    next: 'check the vendor again: it may have moved on since the plan was made',
  });
}

/** A vendor's file name in characters that no reader or shell trips over; its end is kept because apt goes by it. */
export function safeFileName(name: string): string {
  const safe = name.replace(/[^A-Za-z0-9._+~-]/g, '_').replace(/\.+$/, '_');
  if (safe.length <= ARTIFACT_NAME_CHARS_MAX) return safe;
  const half = ARTIFACT_NAME_CHARS_MAX / 2;
  return `${safe.slice(0, half - 1)}_${safe.slice(-half)}`;
}

type ManifestFile = Manifest['extraFiles'][number];

/** A file as the manifest names it, and as the image gets it. */
type DescribedFile = { readonly file: ManifestFile; readonly entry: IsoEntry };

function describeExtra(extra: ExtraFile): DescribedFile {
  if (!('bytes' in extra)) return describeBlob(extra.path, extra);
  const { path, bytes } = extra;
  const file = { digest: digestOf(bytes), path, sizeBytes: bytes.length };
  return { file, entry: inlineEntry(path, bytes) };
}

/** In the order in which they were configured, which is the order in which they are applied. */
function describeConfig(
  { vm, run }: ContentsOptions,
  content: ConfigDriveFile,
  index: number,
): { readonly file: ManifestConfig; readonly entry: IsoEntry } {
  const { item, version } = content.item;
  if (content.vm !== vm || content.run !== run)
    throw new DriveError(
      'internal/drive-config',
      `the configuration ${item} is for run ${content.run} of ${content.vm}`,
    );
  const bytes = Buffer.from(canonicalJson(parseConfig(content, `the configuration ${item} of ${vm}`)));
  const path = `/config/${String(index + 1).padStart(3, '0')}-${item.replace(/[^A-Za-z0-9._-]/g, '_')}.json`;
  const entry: IsoEntry = { path, mode: CONFIG_FILE_MODE, sizeBytes: bytes.length, source: { kind: 'inline', bytes } };
  return { file: { item, version, path, digest: digestOf(bytes), sizeBytes: bytes.length }, entry };
}

function describeSigned({ files }: DriveArchive, index: number): DescribedFile[] {
  return files.map((file) => describeBlob(`${archiveFolder(index)}/${file.path}`, file));
}

function describeBlob(
  path: string,
  { digest, sizeBytes }: { readonly digest: Digest; readonly sizeBytes: number },
): DescribedFile {
  // In the order in which canonical JSON has them, which makes it faster.
  const file = { digest, path, sizeBytes };
  return { file, entry: blobEntry(file) };
}

function blobEntry({ path, digest, sizeBytes }: ManifestFile): IsoEntry {
  return { path, sizeBytes, source: { kind: 'blob', digest } };
}

function inlineEntry(path: string, bytes: Uint8Array): IsoEntry {
  return { path, sizeBytes: bytes.length, source: { kind: 'inline', bytes } };
}
