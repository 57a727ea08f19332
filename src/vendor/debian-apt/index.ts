// The vendor "a Debian archive": Debian's own chain of trust from the archive's keys to each package, for the suites of one release.
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, open, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { Clock } from '../../base/clock.ts';
import { describeError, PratiqueError } from '../../base/errors.ts';
import { bytesFrom, type HttpFetch, makeHttpFetch } from '../../base/http-fetch.ts';
import { INDEX_BYTES_MAX, INDEX_UNPACKED_BYTES_MAX, METADATA_BYTES_MAX } from '../../base/limits.ts';
import type { Log } from '../../base/log.ts';
import type { Inventory } from '../../model/inventory.ts';
import type { Artifact, Kind, Release } from '../../model/release.ts';
import { VendorError } from '../errors.ts';
import type { ByteStream, Offered, Vendor, VendorStatus } from '../vendor.ts';
import { inspectDeb } from './deb-file.ts';
import { defaultKeyrings, readAptProxy, readAptSources, readHostArch, type Source } from './host-apt.ts';
import { type IndexEntry, parseSuiteRelease, type SuiteRelease, verifyClearSigned } from './in-release.ts';
import {
  type Compression,
  type IndexFile,
  type OfferedPackage,
  openPackageIndex,
  type PackageIndex,
  type SuiteState,
} from './package-index.ts';
import { newestOf, selectPackages } from './select.ts';
import { compareDebianVersions } from './version.ts';

export { compareDebianVersions };

export type DebianVendorConfig = {
  readonly name: string;
  /** For example bookworm, bookworm-updates, bookworm-security. */
  readonly suites: readonly string[];
  /** The archive's root; absent: the archives of the host's own apt configuration. */
  readonly url?: string;
  /** Binary keyring file; absent: what the host's apt trusts for the source. */
  readonly keyring?: string;
  /** Primary-key fingerprints that may sign; absent: those of the first verified InRelease are pinned. */
  readonly fingerprints?: readonly string[];
  /** Absent: all components that the host's apt has, or main for a `url`. */
  readonly components?: readonly string[];
  /** Debian's word for the guests' architecture; absent: the host's. */
  readonly arch?: string;
};

export type DebianVendorDeps = {
  /** A folder of this vendor's own. */
  readonly folder: string;
  readonly http: HttpFetch;
  readonly clock: Clock;
  readonly metadataAgeMaxMs: number;
  readonly log: Log;
};

type Trouble = VendorStatus['trouble'];

type Debian = {
  readonly config: DebianVendorConfig;
  readonly deps: DebianVendorDeps;
  readonly arch: string;
  readonly index: PackageIndex;
  readonly incoming: string;
  readonly fetcherFor: (repoUri: string) => Promise<HttpFetch>;
};

type WantedIndex = { readonly path: string; readonly entry: IndexEntry; readonly file: Omit<IndexFile, 'path'> };

const SUFFIXES: readonly (readonly [string, Compression])[] = [
  ['.xz', 'xz'],
  ['.gz', 'gzip'],
  ['', 'none'],
];

const withSlash = (url: string): string => url.replace(/\/*$/, '/');

/** A path below an archive's root, each part quoted: file names carry `+`, `~` and `%`. */
function urlOf(repoUri: string, path: string): string {
  return new URL(path.split('/').map(encodeURIComponent).join('/'), repoUri).href;
}

async function findSources({ config, arch }: Debian): Promise<readonly Source[]> {
  const own = config.keyring === undefined ? undefined : [config.keyring];
  if (config.url === undefined) {
    const sources = await readAptSources(config.suites, arch, config.components);
    return sources.map((source) => ({
      ...source,
      keyrings: own ?? source.keyrings,
      repoUri: withSlash(source.repoUri),
    }));
  }
  const repoUri = withSlash(config.url);
  const components = config.components ?? ['main'];
  const keyrings = own ?? (await defaultKeyrings());
  return config.suites.map((suite) => ({ suite, repoUri, components, keyrings }));
}

/** Fingerprints are written with spaces and in lower case by people, without and in upper case by gpgv. */
function configuredPins(config: DebianVendorConfig): readonly string[] | undefined {
  return config.fingerprints?.map((fingerprint) => fingerprint.replace(/\s+/g, '').toUpperCase());
}

/** The keys that may sign from now on. Throws VendorError when none of the known ones did. */
function checkPins(found: readonly string[], pinned: readonly string[] | undefined, what: string): readonly string[] {
  if (pinned === undefined) return found;
  if (found.some((fingerprint) => pinned.includes(fingerprint))) {
    // A known key vouches for what the new one signed too: that is how an archive changes its keys.
    return [...new Set([...pinned, ...found])];
  }
  throw new VendorError(
    'vendor-ill/key-changed',
    `${what} is signed by ${found.join(', ')}, not by a key pinned for it`,
    {
      next: 'ask the vendor whether its keys changed; then remove this vendor and add it again',
    },
  );
}

/** Refuses what is older than what we have, or past its own date. */
function checkAge(release: SuiteRelease, known: SuiteState | undefined, nowMs: number, what: string): void {
  if (known !== undefined && release.dateMs < known.dateMs) {
    const dates = `${new Date(release.dateMs).toISOString()}, we have ${new Date(known.dateMs).toISOString()}`;
    throw new VendorError('vendor-ill/rollback', `${what} is validly signed but old: ${dates}`, {
      next: 'wait for the mirror to catch up, or use another one',
    });
  }
  if (release.validUntilMs === null || nowMs <= release.validUntilMs) return;
  const ended = new Date(release.validUntilMs).toISOString();
  throw new VendorError('vendor-ill/expired', `${what} was valid until ${ended}`, {
    next: "check this host's clock; if it is right, the mirror is no longer updated",
  });
}

function findIndexes(release: SuiteRelease, source: Source, arch: string): readonly WantedIndex[] {
  return source.components.map((component) => {
    const plainPath = `${component}/binary-${arch}/Packages`;
    for (const [suffix, compression] of SUFFIXES) {
      const entry = release.entries.get(plainPath + suffix);
      if (entry === undefined) continue;
      if (entry.sizeBytes > INDEX_BYTES_MAX) {
        throw new VendorError(
          'vendor-ill/too-large',
          `the index ${plainPath} of ${source.suite} is larger than ${INDEX_BYTES_MAX} bytes`,
        );
      }
      const unpackedBytesMax = release.entries.get(plainPath)?.sizeBytes ?? INDEX_UNPACKED_BYTES_MAX;
      return { path: plainPath + suffix, entry, file: { compression, unpackedBytesMax } };
    }
    throw new VendorError('vendor-ill/no-index', `${source.suite} offers no packages of ${component} for ${arch}`, {
      next: 'check the components and the architecture configured for this vendor',
    });
  });
}

/** By hash where the archive offers it: the plain name may already be the next version's while a mirror is updated. */
function indexUrl(source: Source, release: SuiteRelease, wanted: WantedIndex): string {
  const suiteUrl = `${source.repoUri}dists/${source.suite}/`;
  if (!release.isByHash) return suiteUrl + wanted.path;
  return `${suiteUrl}${wanted.path.replace(/[^/]*$/, '')}by-hash/SHA256/${wanted.entry.digest}`;
}

/** Downloads one index to a file and verifies it against the signed Release. */
async function fetchIndex(
  http: HttpFetch,
  url: string,
  wanted: WantedIndex,
  path: string,
  signal?: AbortSignal,
): Promise<void> {
  const { digest, sizeBytes } = wanted.entry;
  const download = await http.open(url, { sizeBytesMax: sizeBytes, ...(signal === undefined ? {} : { signal }) });
  const hash = createHash('sha256');
  const file = await open(path, 'wx', 0o600);
  try {
    for await (const piece of download.bytes) {
      hash.update(piece);
      await file.write(piece);
    }
  } finally {
    await file.close();
  }
  const found = hash.digest('hex');
  if (found === digest) return;
  throw new VendorError(
    'vendor-ill/digest-mismatch',
    `${wanted.path} has the digest ${found}, its Release says ${digest}`,
    {
      next: 'try again later: the mirror may be in the middle of an update',
    },
  );
}

async function importSuite(
  debian: Debian,
  source: Source,
  release: SuiteRelease,
  state: SuiteState,
  wanted: readonly WantedIndex[],
  signal?: AbortSignal,
): Promise<void> {
  const folder = await mkdtemp(join(debian.incoming, 'index-'));
  try {
    const http = await debian.fetcherFor(source.repoUri);
    const files: IndexFile[] = [];
    for (const [number, one] of wanted.entries()) {
      const path = join(folder, String(number));
      await fetchIndex(http, indexUrl(source, release, one), one, path, signal);
      files.push({ ...one.file, path });
    }
    const packages = await debian.index.replace(state, files, signal);
    debian.deps.log.info({ vendor: debian.config.name, suite: source.suite, packages }, 'package index replaced');
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Whether the packages we have come from the components that are wanted now; "not modified" says nothing about others. */
function coversComponents(state: SuiteState, source: Source): boolean {
  const present = state.indexKey.split(' ').map((key) => key.replace(/\/binary-.*$/, ''));
  return present.join(' ') === source.components.join(' ');
}

/** Brings one suite up to date; on any error its last verified state stays as it was. */
async function refreshSuite(debian: Debian, source: Source, signal?: AbortSignal): Promise<void> {
  const { config, deps, index } = debian;
  const what = `the InRelease of ${source.suite}`;
  const known = index.suites().find((state) => state.suite === source.suite && state.repoUri === source.repoUri);
  const anyKnown = known ?? index.suites().find((state) => state.suite === source.suite);
  const http = await debian.fetcherFor(source.repoUri);
  const fetched = await http.fetchBytes(`${source.repoUri}dists/${source.suite}/InRelease`, {
    sizeBytesMax: METADATA_BYTES_MAX,
    ...(known?.etag == null || !coversComponents(known, source) ? {} : { ifNoneMatch: known.etag }),
    ...(signal === undefined ? {} : { signal }),
  });
  const checkedAtMs = deps.clock.nowMs();
  if (fetched.status === 'not-modified' && known !== undefined) {
    checkAge({ ...known, isByHash: false, entries: new Map() }, known, checkedAtMs, what);
    index.setState({ ...known, checkedAtMs });
    return;
  }
  const verified = await verifyClearSigned(fetched.bytes, what, source.keyrings, debian.incoming);
  const fingerprints = checkPins(verified.fingerprints, configuredPins(config) ?? anyKnown?.fingerprints, what);
  const release = parseSuiteRelease(verified.body, source.suite, what);
  checkAge(release, anyKnown, checkedAtMs, what);
  const wanted = findIndexes(release, source, debian.arch);
  const indexKey = wanted.map(({ path, entry }) => `${path}=${entry.digest}`).join(' ');
  const { suite, repoUri } = source;
  const { dateMs, validUntilMs } = release;
  const state: SuiteState = {
    suite,
    repoUri,
    dateMs,
    validUntilMs,
    checkedAtMs,
    etag: fetched.etag,
    fingerprints,
    indexKey,
  };
  if (anyKnown?.indexKey === indexKey) index.setState(state);
  else await importSuite(debian, source, release, state, wanted, signal);
}

/** All suites, also after one of them failed; then the first failure is told. */
async function refreshAll(debian: Debian, signal?: AbortSignal): Promise<void> {
  const failures: unknown[] = [];
  for (const source of await findSources(debian)) {
    try {
      await refreshSuite(debian, source, signal);
    } catch (error) {
      signal?.throwIfAborted();
      failures.push(error);
    }
  }
  if (failures.length > 0) throw failures[0];
}

function statusOf({ config, deps, index }: Debian, trouble: Trouble): VendorStatus {
  const states = index.suites().filter(({ suite }) => config.suites.includes(suite));
  const isComplete = config.suites.every((suite) => states.some((state) => state.suite === suite));
  const checkedAtMs = isComplete ? Math.min(...states.map((state) => state.checkedAtMs)) : null;
  const nowMs = deps.clock.nowMs();
  const isValid = states.every(({ validUntilMs }) => validUntilMs === null || nowMs <= validUntilMs);
  const isYoung = checkedAtMs !== null && nowMs - checkedAtMs <= deps.metadataAgeMaxMs;
  return { vendor: config.name, checkedAtMs, isFresh: isValid && isYoung, trouble };
}

function releaseOf(vendor: string, offer: OfferedPackage, kind: Kind): Release {
  const isKernel = offer.name.startsWith('linux-image-');
  return {
    vendor,
    ecosystem: 'debian',
    product: offer.name,
    version: offer.version,
    arch: offer.arch,
    kind,
    requires: [],
    advisories: [],
    ...(offer.summary === '' ? {} : { summary: offer.summary }),
    artifact: {
      name: basename(offer.filename),
      digest: offer.digest,
      sizeBytes: offer.sizeBytes,
      // The suite tells the archive apart: the security archive is not the main one. It outlives the index's next version.
      location: `${offer.suite}/${offer.filename}`,
    },
    install: isKernel ? { action: 'debian-package', reboot: true } : { action: 'debian-package' },
  };
}

/** Whether the suites are those of the guest's Debian release: `bookworm` and `bookworm-…`. */
function fitsGuest({ config, arch }: Debian, { os }: Inventory): boolean {
  if (os.id !== 'debian' || os.arch !== arch || os.codename === undefined) return false;
  const { codename } = os;
  return config.suites.every(
    (suite) => suite === codename || suite.startsWith(`${codename}-`) || suite.startsWith(`${codename}/`),
  );
}

function latestFor(debian: Debian, inventory: Inventory): Offered {
  const { config, index, arch } = debian;
  if (!fitsGuest(debian, inventory)) return { releases: [], leftOut: [] };
  if (statusOf(debian, null).checkedAtMs === null) {
    // An empty answer would read as "nothing newer", and the VM would be plugged in.
    throw new VendorError(
      'vendor-ill/never-checked',
      `the metadata of ${config.name} has never been fetched completely`,
      {
        next: `run \`pratique vendor check ${config.name}\``,
      },
    );
  }
  const { chosen, leftOut } = selectPackages(inventory.products, index, arch);
  return {
    releases: chosen.map(({ offer, kind }) => releaseOf(config.name, offer, kind)),
    leftOut: leftOut.map(({ name, ...rest }) => ({
      vendor: config.name,
      ecosystem: 'debian',
      product: name,
      ...rest,
    })),
  };
}

function allOffers({ config, index, arch }: Debian): readonly Release[] {
  const releases: Release[] = [];
  let same: OfferedPackage[] = [];
  const flush = (): void => {
    const newest = newestOf(same, arch);
    if (newest !== undefined)
      releases.push(releaseOf(config.name, newest, /-security$/.test(newest.suite) ? 'security' : 'fix'));
    same = [];
  };
  for (const offer of index.all()) {
    if (same[0] !== undefined && same[0].name !== offer.name) flush();
    same.push(offer);
  }
  flush();
  return releases;
}

async function openArtifact(
  debian: Debian,
  artifact: Artifact,
  offsetBytes: number,
  signal?: AbortSignal,
): Promise<ByteStream> {
  const { location, sizeBytes } = artifact;
  const known = debian.index.suites().filter(({ suite }) => location.startsWith(`${suite}/`));
  const state = known.sort((a, b) => b.suite.length - a.suite.length)[0];
  if (state === undefined) {
    throw new VendorError('not-found/artifact', `${debian.config.name} has no archive for ${location}`, {
      next: `run \`pratique vendor check ${debian.config.name}\``,
    });
  }
  const http = await debian.fetcherFor(state.repoUri);
  const url = urlOf(state.repoUri, location.slice(state.suite.length + 1));
  const options = { offsetBytes, sizeBytesMax: sizeBytes, ...(signal === undefined ? {} : { signal }) };
  return bytesFrom(await http.open(url, options), offsetBytes);
}

/** Uses the given fetcher, or one through apt's proxy for archives that the host's apt reaches by a proxy. */
function makeFetchers(config: DebianVendorConfig, deps: DebianVendorDeps) {
  const proxied = new Map<string, HttpFetch>();
  return {
    fetcherFor: async (repoUri: string): Promise<HttpFetch> => {
      const proxyUrl = config.url === undefined ? await readAptProxy(repoUri) : undefined;
      if (proxyUrl === undefined) return deps.http;
      const made = proxied.get(proxyUrl) ?? makeHttpFetch({ clock: deps.clock, log: deps.log, proxyUrl });
      proxied.set(proxyUrl, made);
      return made;
    },
    close: async (): Promise<void> => {
      for (const fetcher of proxied.values()) await fetcher.close();
    },
  };
}

/**
 * Makes the vendor over the metadata verified earlier, if there is any; nothing is fetched before `refresh`.
 * Throws VendorError `host-unfit/…` when the host's architecture cannot be told.
 */
export async function makeDebianVendor(config: DebianVendorConfig, deps: DebianVendorDeps): Promise<Vendor> {
  const arch = config.arch ?? (await readHostArch());
  const incoming = join(deps.folder, 'incoming');
  await rm(incoming, { recursive: true, force: true }); // What a crash left half fetched.
  await mkdir(incoming, { recursive: true, mode: 0o700 });
  const fetchers = makeFetchers(config, deps);
  const index = openPackageIndex(join(deps.folder, `packages-${arch}.sqlite`));
  const debian: Debian = { config, deps, arch, index, incoming, fetcherFor: fetchers.fetcherFor };
  let trouble: Trouble = null;
  let turn: Promise<unknown> = Promise.resolve();

  const refresh = async (signal?: AbortSignal): Promise<VendorStatus> => {
    try {
      await refreshAll(debian, signal);
      trouble = null;
    } catch (error) {
      const code = error instanceof PratiqueError ? error.code : 'internal/bug';
      if (signal?.aborted !== true) trouble = { code, message: describeError(error) };
      throw error;
    }
    return statusOf(debian, trouble);
  };

  return {
    name: config.name,
    kind: 'debian-apt',
    ecosystem: 'debian',
    // One at a time; the second finds everything unchanged.
    refresh: ({ signal }) => {
      const mine = turn.then(() => refresh(signal));
      turn = mine.catch(() => {});
      return mine;
    },
    status: () => statusOf(debian, trouble),
    latest: async (inventory) => latestFor(debian, inventory),
    offers: async () => allOffers(debian),
    compareVersions: compareDebianVersions,
    open: (artifact, offsetBytes, signal) => openArtifact(debian, artifact, offsetBytes, signal),
    inspect: (release, path) =>
      inspectDeb(path, { name: release.product, version: release.version, arch: release.arch ?? '' }),
    close: async () => {
      await turn;
      await fetchers.close();
      index.close();
    },
  };
}
