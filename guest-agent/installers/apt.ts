// Calls the guest's apt so that it sees only the drive: the given files, or the vendor's signed archives, which apt verifies itself.
import { DPKG_STATUS_BYTES_MAX } from '../../src/base/limits.ts';
import type { Manifest, ManifestItem } from '../../src/model/manifest.ts';
import { makeFolders, readText, removeTree } from '../durable.ts';
import { findProgram } from '../inventory.ts';
import { inRoot, type Paths } from '../paths.ts';
import { AgentError, type Platform, type RunResult } from '../platform/platform.ts';
import { programFailure } from './context.ts';
import { DPKG_OPTIONS, runQuietly } from './dpkg.ts';

export type AptArchive = NonNullable<Manifest['apt']>['archives'][number];

export type AptCall = {
  readonly platform: Platform;
  readonly paths: Paths;
  /** Absolute path of apt-get. */
  readonly apt: string;
  /** Folder under which the drive's paths stand. */
  readonly drive: string;
  /** dpkg was broken off before. */
  readonly isInterrupted: boolean;
  /** Packages of the manifest that are only half there. */
  readonly halfWay: readonly string[];
};

const COMMON_OPTIONS = [
  '-q',
  ...DPKG_OPTIONS.map((option) => `-oDPkg::Options::=${option}`),
  '-oDPkg::Lock::Timeout=120',
  '-oDpkg::Use-Pty=0',
  '-oAPT::Sandbox::User=root',
  // Nothing but the drive is a source, so nothing is fetched; were it otherwise, it would fail at once instead of waiting.
  '-oAcquire::Retries=0',
  '-oAcquire::http::Timeout=3',
  '-oAcquire::https::Timeout=3',
] as const;

/**
 * Hooks that are run over the packages before dpkg sees them: debconf's asks questions that nobody answers (3 s of an emulated guest),
 * others ask servers that cannot be reached. An option cannot empty a list, a file can. apt.conf(5).
 */
const CONFIGURATION = '#clear DPkg::Pre-Install-Pkgs;\n';

const INSTALL_WORDS = [
  'install',
  '-y',
  // What was broken off may have left something unmet that this installation mends.
  '-f',
  '--no-install-recommends',
  // What would remove or downgrade something is no update.
  '--no-remove',
  '-oAPT::Get::allow-downgrades=false',
] as const;

/**
 * Unpack everything, then configure everything: two runs of dpkg instead of one or two for each essential package. What apt guards
 * against by the others, a dpkg that is broken off in between, is mended at the agent's start, while the guest is unplugged.
 */
const AT_ONCE = '-oAPT::Immediate-Configure=false';

const installWords = ({ isInterrupted }: AptCall): readonly string[] =>
  isInterrupted ? INSTALL_WORDS : [...INSTALL_WORDS, AT_ONCE];

/** What the guest's own configuration must not soften, and what keeps apt's work small. */
const VERIFYING_OPTIONS = [
  '-oAcquire::AllowInsecureRepositories=false',
  '-oAcquire::AllowDowngradeToInsecureRepositories=false',
  '-oAcquire::AllowWeakRepositories=false',
  '-oAPT::Get::AllowUnauthenticated=false',
  '-oAPT::Update::Error-Mode=any',
  // How old metadata may be is the host's decision: it has asked the vendor, and its clock is right. A guest's may not be.
  '-oAcquire::Check-Valid-Until=false',
  '-oAcquire::Check-Date=false',
  // The index stays compressed, as a link to the drive: unpacked it would fill /run.
  '-oAcquire::GzipIndexes=true',
  '-oAcquire::By-Hash=no',
  '-oAcquire::PDiffs=false',
  '-oAcquire::Languages=none',
] as const;

/** Where apt keeps its notes for the time of one installation. */
const workFolder = (paths: Paths) => `${paths.runtime}/apt`;
const configurationFile = (paths: Paths) => `${workFolder(paths)}/apt.conf`;

/** A view of apt in which only the given sources exist; the guest's own sources and lists are neither read nor changed. */
function ownView(paths: Paths): readonly string[] {
  const work = workFolder(paths);
  return [
    `-oDir::Etc::sourcelist=${work}/sources.list`,
    '-oDir::Etc::sourceparts=/dev/null',
    `-oDir::State::lists=${work}/lists`,
    `-oDir::Cache::archives=${work}/archives`,
    '-oDir::Cache::pkgcache=',
    '-oDir::Cache::srcpkgcache=',
    // Which packages were installed by hand is the guest's own note: an update is no installation by hand.
    `-oDir::State::extended_states=${work}/extended_states`,
  ];
}

/** Installs the files as they are: the manifest's digests vouch for them. */
export async function installFiles(call: AptCall, items: readonly ManifestItem[]): Promise<RunResult> {
  prepareView(call, []);
  const files = items.map((item) => `${call.drive}${item.files[0]?.path ?? ''}`);
  return await runApt(call, [...installWords(call), ...files]);
}

/** Lets apt verify the archives with the guest's own keys and install exactly the items' versions from them. */
export async function installVerified(
  call: AptCall,
  items: readonly ManifestItem[],
  archives: readonly AptArchive[],
): Promise<RunResult> {
  prepareView(
    call,
    archives.map((archive) => sourceLine(call, archive)),
  );
  const status = call.halfWay.length === 0 ? [] : [`-oDir::State::status=${writeStatusWithout(call)}`];
  const update = await runApt(call, [...VERIFYING_OPTIONS, 'update']);
  if (update.exitCode !== 0) return update;
  const versions = items.map(({ product, arch, version }) => `${product}${archSuffix(arch)}=${version}`);
  return await runApt(call, [...VERIFYING_OPTIONS, ...status, ...installWords(call), ...versions]);
}

/** Notes in the guest's own records that packages came as a need of others, so that the guest may remove them with those (old kernels). */
export async function markAutomatic(call: AptCall, names: readonly string[]): Promise<void> {
  const { platform, paths } = call;
  const mark = findProgram(platform, paths, 'apt-mark');
  if (mark === null || names.length === 0) return;
  const view = ownView(paths).filter((option) => !option.startsWith('-oDir::State::extended_states='));
  const result = await runQuietly(platform, paths, [mark, ...view, 'auto', ...names]);
  if (result.exitCode !== 0) platform.log(`apt-mark auto ${names.join(' ')}: ${result.output}`);
}

/** Takes apt's notes away. */
export function clearView(platform: Platform, paths: Paths): void {
  removeTree(platform, workFolder(paths));
}

/** Why apt failed, as a stable word. apt has one exit code for everything, so its words (LC_ALL=C) decide. */
export function aptFailure(result: RunResult): ReturnType<typeof programFailure> {
  const { output } = result;
  const known: readonly (readonly [RegExp, string])[] = [
    [
      /BADSIG|NO_PUBKEY|EXPKEYSIG|REVKEYSIG|ERRSIG|NODATA|is not signed|Clearsigned file|signatures? (were|was|are) invalid|couldn't be verified/,
      'bad-signature',
    ],
    [/Hash Sum mismatch|File has unexpected size|hash verification/i, 'signed-digest-mismatch'],
    [/Version '.*' for '.*' was not found|Unable to locate package/, 'not-in-archive'],
    [/No space left on device|not enough free space/i, 'no-space'],
  ];
  const code = known.find(([words]) => words.test(output))?.[1] ?? 'install-failed';
  return programFailure(code, result);
}

function archSuffix(arch: string | undefined): string {
  return arch === undefined || arch === 'all' ? '' : `:${arch}`;
}

function runApt({ platform, paths, apt }: AptCall, words: readonly string[]): Promise<RunResult> {
  return runQuietly(platform, paths, [
    apt,
    '-c',
    configurationFile(paths),
    ...COMMON_OPTIONS,
    ...ownView(paths),
    ...words,
  ]);
}

function prepareView({ platform, paths }: AptCall, sources: readonly string[]): void {
  const work = workFolder(paths);
  removeTree(platform, work);
  makeFolders(platform, `${work}/lists/partial`);
  makeFolders(platform, `${work}/archives/partial`);
  writeText(platform, `${work}/sources.list`, sources.map((line) => `${line}\n`).join(''));
  writeText(platform, configurationFile(paths), CONFIGURATION);
  const marks = readText(platform, inRoot(paths, '/var/lib/apt/extended_states'), DPKG_STATUS_BYTES_MAX) ?? '';
  writeText(platform, `${work}/extended_states`, marks);
}

/**
 * dpkg's status without the packages that are half there: one that is half unpacked in the wanted version counts for apt as there, and it
 * would only configure it, which dpkg refuses. So apt takes it for new and unpacks it; dpkg goes by its own status.
 */
function writeStatusWithout({ platform, paths, halfWay }: AptCall): string {
  const path = `${workFolder(paths)}/status`;
  const text = readText(platform, `${paths.dpkg}/status`, DPKG_STATUS_BYTES_MAX) ?? '';
  const isLeft = (stanza: string) => !halfWay.some((name) => `\n${stanza}\n`.includes(`\nPackage: ${name}\n`));
  writeText(platform, path, text.split('\n\n').filter(isLeft).join('\n\n'));
  return path;
}

/** sources.list(5). The architectures are those whose index is on the drive: a guest that knows more of them needs no more here. */
function sourceLine({ platform, paths, drive }: AptCall, archive: AptArchive): string {
  const folder = `${drive}${archive.folder}`;
  const arches = new Set<string>();
  for (const component of archive.components) {
    for (const name of platform.files.list(`${folder}/dists/${archive.suite}/${component}`)) {
      if (name.startsWith('binary-') && name !== 'binary-all') arches.add(name.slice('binary-'.length));
    }
  }
  if (arches.size === 0) throw new AgentError('file-missing', `${archive.folder} on the drive has no package index`);
  const options = [`arch=${[...arches].join(',')}`, ...keyOption(platform, paths)].join(' ');
  return `deb [${options}] file:${folder} ${archive.suite} ${archive.components.join(' ')}`;
}

/** apt's own trusted keys; a guest that has none of those (newer Debian) has the keyrings that its sources name. */
function keyOption({ files }: Platform, paths: Paths): readonly string[] {
  if (files.list(`${paths.etc}/apt/trusted.gpg.d`).some((name) => /\.(gpg|asc)$/.test(name))) return [];
  const folder = inRoot(paths, '/usr/share/keyrings');
  const keyrings = files.list(folder).filter((name) => /archive-keyring\.(gpg|pgp|asc)$/.test(name));
  return keyrings.length === 0 ? [] : [`signed-by=${keyrings.map((name) => `${folder}/${name}`).join(',')}`];
}

function writeText(platform: Platform, path: string, text: string): void {
  const file = platform.files.create(path, 0o644);
  try {
    file.write(platform.encode(text));
  } finally {
    file.close();
  }
}
